//! The captures of a manager on a real socket, and packets that are made up.

use std::fs::Permissions;
use std::net::Shutdown;
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use millrace::observe::captures::{Captures, Source};
use millrace::observe::directory::{Directory, HopName, NfName, RouteName, ServiceName};
use millrace::observe::point_list::capture_points;
use millrace::stats::DropReason;
use millrace::status::now_ns;
use nflib::control::{
    self, CaptureStatus, ErrorCode, ErrorReply, MAX_REQUEST_BYTES, Reply, Request,
};
use nflib::descriptor::ActionCode;
use nflib::observe::{Event, EventKind, NOBODY, TapSet};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long anything may take before a test gives up; nothing is asserted about time.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two rounds of made packets.
const ROUND: Duration = Duration::from_millis(2);

struct Inside {
    captures: Mutex<Captures>,
    directory: Directory,
    sends: AtomicBool,
    dead: AtomicBool,
    peers: Mutex<Vec<UnixStream>>,
}

/// Ports `lan` and `wan`; chain `web`: `firewall` (instance 3), `nat` (instance 5).
pub struct Stage {
    inside: Arc<Inside>,
    folder: tempfile::TempDir,
}

impl Stage {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let inside = Arc::new(Inside {
            captures: Mutex::new(Captures::new()),
            directory: directory(),
            sends: AtomicBool::new(false),
            dead: AtomicBool::new(false),
            peers: Mutex::default(),
        });
        let stage = Self { inside, folder };
        let listener = UnixListener::bind(stage.path("m.sock")).unwrap();
        let inside = Arc::clone(&stage.inside);
        std::thread::spawn(move || accept(&listener, &inside));
        let inside = Arc::clone(&stage.inside);
        std::thread::spawn(move || observe(&inside));
        stage
    }

    /// A file beside the socket.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Lets other users of this machine use it, with a home of their own.
    pub fn open_to_all(&self) {
        std::fs::create_dir_all(self.path("home")).unwrap();
        for (name, mode) in [(".", 0o755), ("m.sock", 0o777), ("home", 0o777)] {
            std::fs::set_permissions(self.path(name), Permissions::from_mode(mode)).unwrap();
        }
    }

    /// Whether packets come.
    pub fn send(&self, sends: bool) {
        self.inside.sends.store(sends, Ordering::Relaxed);
    }

    /// The captures under way.
    pub fn captures(&self) -> Vec<CaptureStatus> {
        self.inside.captures().status(now_ns())
    }

    /// The manager is gone: socket, connections and captures.
    pub fn die(&self) {
        std::fs::remove_file(self.path("m.sock")).unwrap();
        self.inside.dead.store(true, Ordering::Relaxed);
        for peer in self.inside.peers.lock().unwrap().drain(..) {
            let _ = peer.shutdown(Shutdown::Both);
        }
        *self.inside.captures() = Captures::new();
    }

    /// `millrace --socket HERE ARGS…`.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_millrace"));
        command.arg("--socket").arg(self.path("m.sock")).args(args);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs it to its end.
    pub fn run(&self, args: &[&str]) -> Output {
        ended(self.command(args).spawn().unwrap())
    }
}

impl Inside {
    fn captures(&self) -> MutexGuard<'_, Captures> {
        self.captures.lock().unwrap()
    }

    fn answer(&self, socket: &UnixStream, request: &Request) {
        let answer = |reply: Reply| control::send(socket, &reply, &[]);
        let _ = match request {
            Request::Capture(request) => {
                let started = self.captures().start(request, &self.directory, now_ns());
                match started {
                    Ok((id, reader)) => {
                        control::send(socket, &Reply::Capturing { id }, &[reader.as_fd()])
                    }
                    Err(error) => answer(Reply::Error(error)),
                }
            }
            Request::Captures => {
                answer(Reply::Captures { captures: self.captures().status(now_ns()) })
            }
            Request::CapturePoints => {
                answer(Reply::CapturePoints { points: capture_points(&self.directory) })
            }
            other => answer(Reply::Error(ErrorReply {
                code: ErrorCode::BadRequest,
                message: format!("not in this test: {other:?}"),
            })),
        };
    }

    /// The way of one packet: in by `lan`, into `firewall#3`, dropped by it. Each event bears all taps of its
    /// writer that let the packet pass: those that are of it are found by its place.
    fn packet(&self) {
        let frame = ["tcp", "10.0.0.1:1234", "10.0.0.2:80"].map(str::to_owned);
        let mut frame = control::frame::from_tuple(&frame).unwrap();
        frame.resize(60, 0);
        let event = |kind| Event {
            time_ns: now_ns(),
            buffer: 5,
            flow_hash: 0xabc,
            len_bytes: 60,
            kept_bytes: 60,
            route: 7,
            peer: NOBODY,
            kind,
            ..Event::default()
        };
        let mut captures = self.captures();
        let passing = |taps| TapSet::new(taps).unwrap().take(|_| true, &frame).taps;
        let at_worker = passing(captures.taps_for_workers());
        let at_nf = passing(captures.taps_for_nf(13));
        let mut tell = |source, event| {
            let taps = if matches!(source, Source::Nf(_)) { at_nf } else { at_worker };
            captures.on_event(&source, &Event { taps, ..event }, &frame, &self.directory);
        };
        tell(Source::Worker(0), event(EventKind::PortIn));
        tell(Source::Nf(13), event(EventKind::NfIn));
        let code = ActionCode::Drop as u8;
        tell(Source::Nf(13), Event { code, ..event(EventKind::NfOut) });
        let code = DropReason::NfDrop as u8;
        tell(Source::Worker(0), Event { code, ..event(EventKind::Drop) });
    }
}

fn accept(listener: &UnixListener, inside: &Arc<Inside>) {
    for socket in listener.incoming().map_while(Result::ok) {
        if inside.dead.load(Ordering::Relaxed) {
            return;
        }
        inside.peers.lock().unwrap().push(socket.try_clone().unwrap());
        let inside = Arc::clone(inside);
        std::thread::spawn(move || {
            while let Ok((request, _)) = control::recv::<Request>(&socket, MAX_REQUEST_BYTES) {
                inside.answer(&socket, &request);
            }
        });
    }
}

/// The observer's rounds, without its rings.
fn observe(inside: &Inside) {
    while !inside.dead.load(Ordering::Relaxed) {
        if inside.sends.load(Ordering::Relaxed) {
            inside.packet();
        }
        inside.captures().turn(now_ns(), &[], &inside.directory);
        std::thread::sleep(ROUND);
    }
}

fn directory() -> Directory {
    let names = ["firewall", "nat"];
    let services: Vec<_> = (1..)
        .zip(names)
        .map(|(service, name)| ServiceName { service, name: name.into() })
        .collect();
    let nf = |instance: u32, slot: u16| NfName {
        nf: instance as u16 + 10,
        instance,
        service: slot + 1,
        service_name: names[usize::from(slot)].into(),
        slot,
        isolated: false,
    };
    let hops = services.iter().map(|s| HopName { service: s.service, name: s.name.clone() });
    let route = RouteName { chain: "web".into(), hops: hops.collect() };
    Directory::of(&["lan", "wan"], services, vec![nf(3, 0), nf(5, 1)], vec![(7, route)])
}

/// Waits until something is so.
pub fn until(what: &str, so: impl Fn() -> bool) {
    let limit = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < limit, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Sends a signal to a process of the test's own.
pub fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
}

/// Waits for the end of a process, which must come by itself.
pub fn ended(mut child: Child) -> Output {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    let waiting = std::thread::spawn(move || {
        drop(child.stdin.take());
        child.wait_with_output().unwrap()
    });
    let limit = Instant::now() + PATIENCE;
    while !waiting.is_finished() {
        if Instant::now() > limit {
            // Not waited for yet: the number is still that of our child.
            let _ = kill(pid, Signal::SIGKILL);
            panic!("the command hangs");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    waiting.join().unwrap()
}

/// What a program said.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}
