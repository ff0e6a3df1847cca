//! A manager that says what a test wants, on a real socket, to the real `millrace`.

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nflib::control::{self, MAX_REQUEST_BYTES, Reply, Request};

type Answers = Arc<dyn Fn(&Request) -> Option<Reply> + Send + Sync>;

/// How long anything may take before a test gives up; nothing is asserted about time.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A fake manager; it listens until it is dropped.
pub struct Fake {
    directory: tempfile::TempDir,
    asked: Arc<Mutex<Vec<Request>>>,
}

impl Fake {
    /// Answers every request by `answers`; `None` hangs up.
    pub fn new(answers: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static) -> Self {
        let fake = Self::away();
        fake.listen(answers);
        fake
    }

    /// Answers every request by the same reply.
    pub fn always(reply: Reply) -> Self {
        Self::new(move |_| Some(reply.clone()))
    }

    /// A socket's path where nobody listens yet.
    pub fn away() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), asked: Arc::default() }
    }

    /// Begins to listen.
    pub fn listen(&self, answers: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static) {
        let listener = UnixListener::bind(self.socket()).unwrap();
        let (asked, answers): (_, Answers) = (Arc::clone(&self.asked), Arc::new(answers));
        // The threads end with the test's process; each sleeps in accept or recv.
        std::thread::spawn(move || {
            for socket in listener.incoming().map_while(Result::ok) {
                let (asked, answers) = (Arc::clone(&asked), Arc::clone(&answers));
                std::thread::spawn(move || serve(&socket, &asked, &answers));
            }
        });
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("m.sock")
    }

    /// A file beside the socket.
    pub fn file(&self, name: &str, text: &str) -> String {
        let path = self.directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// What it was asked so far.
    pub fn asked(&self) -> Vec<Request> {
        self.asked.lock().unwrap().clone()
    }

    /// `millrace --socket HERE ARGS…`.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_millrace"));
        command.arg("--socket").arg(self.socket()).args(args);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs it to its end.
    pub fn run(&self, args: &[&str]) -> Said {
        Said::of(wait(self.command(args).spawn().unwrap()), args)
    }

    /// Runs it with a text of words.
    pub fn run_words(&self, words: &str) -> Said {
        self.run(&words.split_whitespace().collect::<Vec<_>>())
    }
}

fn serve(socket: &UnixStream, asked: &Mutex<Vec<Request>>, answers: &Answers) {
    while let Ok((request, _)) = control::recv::<Request>(socket, MAX_REQUEST_BYTES) {
        asked.lock().unwrap().push(request.clone());
        let Some(reply) = answers(&request) else { return };
        if control::send(socket, &reply, &[]).is_err() {
            return;
        }
    }
}

/// Waits for the end of a process, which must come by itself.
pub fn wait(mut child: Child) -> Output {
    // The pipes are read meanwhile, or a long output would never end.
    let pipes = (child.stdout.take(), child.stderr.take());
    let read = |pipe: Option<Box<dyn std::io::Read + Send>>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            if let Some(mut pipe) = pipe {
                pipe.read_to_end(&mut bytes).unwrap();
            }
            bytes
        })
    };
    let out = read(pipes.0.map(|pipe| Box::new(pipe) as _));
    let err = read(pipes.1.map(|pipe| Box::new(pipe) as _));
    let limit = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > limit {
            child.kill().unwrap();
            panic!("the command hangs");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    Output { status, stdout: out.join().unwrap(), stderr: err.join().unwrap() }
}

/// What a command said, and how it ended.
#[derive(Debug)]
pub struct Said {
    pub words: String,
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Said {
    fn of(output: Output, args: &[&str]) -> Self {
        Self {
            words: args.join(" "),
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// It went well; its text.
    #[track_caller]
    pub fn text(&self) -> &str {
        assert_eq!((self.code, self.err.as_str()), (Some(0), ""), "{self:?}");
        &self.out
    }

    /// It went well; its one line of JSON.
    #[track_caller]
    pub fn json<T: serde::de::DeserializeOwned>(&self) -> T {
        let text = self.text();
        assert_eq!(text.lines().count(), 1, "one line: {text}");
        serde_json::from_str(text).unwrap_or_else(|error| panic!("{}: {error}: {text}", self.words))
    }

    /// It failed with this code and one line on standard error.
    #[track_caller]
    pub fn complaint(&self, code: i32) -> &str {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert_eq!(self.err.lines().count(), 1, "one line: {self:?}");
        assert!(self.err.starts_with("millrace: "), "{self:?}");
        &self.err
    }
}
