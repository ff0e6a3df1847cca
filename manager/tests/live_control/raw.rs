//! An NF that is only its half of the conversation: what the library hides, said by hand.

use std::os::unix::net::UnixStream;

use nflib::control::{
    self, AttachRequest, Attached, ErrorReply, MAX_REPLY_BYTES, Reply, Request, SendRefusal,
    ServiceRef, Target,
};

use super::running::Manager;

/// Attached, and never looks at a packet.
pub struct RawNf {
    pub socket: UnixStream,
    pub attached: Attached,
    last_token: u64,
}

impl RawNf {
    pub fn attach(manager: &Manager, service: &str) -> Result<Self, ErrorReply> {
        Self::welcomed(Self::ask(manager, service))
    }

    /// The first half: asks to attach.
    pub fn ask(manager: &Manager, service: &str) -> UnixStream {
        let socket = manager.connect();
        let service: ServiceRef = service.parse().unwrap();
        let request = Request::Attach(AttachRequest::new("raw", service));
        control::send(&socket, &request, &[]).unwrap();
        socket
    }

    /// The other: hears the answer.
    pub fn welcomed(socket: UnixStream) -> Result<Self, ErrorReply> {
        // What came along is closed: a thousand of these have to fit into one process.
        match control::recv::<Reply>(&socket, MAX_REPLY_BYTES).unwrap().0 {
            Reply::Attached(attached) => Ok(Self { socket, attached, last_token: 0 }),
            Reply::Error(error) => Err(error),
            other => panic!("{other:?}"),
        }
    }

    pub fn instance(&self) -> u32 {
        self.attached.instance
    }

    pub fn say(&self, request: &Request) {
        control::send(&self.socket, request, &[]).unwrap();
    }

    /// The next message that is not about edges; those are acted on as far as the manager can see.
    #[track_caller]
    pub fn hear(&self) -> Reply {
        loop {
            match control::recv::<Reply>(&self.socket, MAX_REPLY_BYTES).unwrap().0 {
                Reply::Sync { token } => self.say(&Request::Synced { token }),
                Reply::OutEdge { .. }
                | Reply::InEdge { .. }
                | Reply::CloseOutEdge { .. }
                | Reply::CloseInEdge { .. } => {}
                other => return other,
            }
        }
    }

    /// Sends a message and returns what became of it.
    #[track_caller]
    pub fn send(&mut self, target: Target, payload: Vec<u8>) -> Result<u32, SendRefusal> {
        self.last_token += 1;
        let token = self.last_token;
        self.say(&Request::Send { target, payload, token });
        match self.hear() {
            Reply::Sent { token: same, result } if same == token => result,
            other => panic!("{other:?}"),
        }
    }

    /// Leaves in good order.
    #[track_caller]
    pub fn leave(self) {
        self.say(&Request::Detach);
        while let message = self.hear()
            && message != Reply::Detached
        {
            assert!(matches!(message, Reply::Message { .. }), "{message:?}");
        }
    }
}
