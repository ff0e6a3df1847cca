//! A manager of the test's own on a real control socket, the real `millrace-web`, and a client.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nflib::control::{self, ErrorCode, ErrorReply, PortStatus, Reply, Request, Status};

/// Longer than anything here takes; ends a test that would hang.
pub const LIMIT: Duration = Duration::from_secs(30);

/// What the manager of a test answers.
#[derive(Clone, Copy, Debug)]
pub enum Answer {
    /// A status whose port has received 1,000 packets per millisecond of `at_ns`.
    Status,
    /// A refusal.
    Refusal,
    /// Something that is no message of this protocol.
    Nonsense,
}

/// Speaks the manager's side of `nflib::control` until it is dropped.
pub struct FakeManager {
    socket: PathBuf,
    stop: Arc<AtomicBool>,
    requests: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl FakeManager {
    pub fn start(socket: &Path, answer: Answer) -> Self {
        let listener = UnixListener::bind(socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        let (stop, requests) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&requests));
        let thread = std::thread::spawn(move || {
            // One client: that there is one connection only is part of what is tested.
            let mut client: Option<UnixStream> = None;
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((stream, _)) = listener.accept() {
                    stream.set_nonblocking(false).unwrap();
                    stream.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
                    client = Some(stream);
                }
                match &client {
                    Some(stream) if serve(stream, answer, &counted) => {}
                    _ => std::thread::sleep(Duration::from_millis(5)),
                }
            }
        });
        Self { socket: socket.to_owned(), stop, requests, thread: Some(thread) }
    }

    /// How often it was asked.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }
}

impl Drop for FakeManager {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// Answers one request, if there is one.
fn serve(stream: &UnixStream, answer: Answer, requests: &AtomicU64) -> bool {
    let Ok((request, _)) = control::recv::<Request>(stream, 1 << 16) else { return false };
    assert_eq!(request, Request::Status);
    let number = requests.fetch_add(1, Ordering::Relaxed);
    let reply = match answer {
        Answer::Status => Reply::Status(Box::new(status(number))),
        Answer::Refusal => {
            Reply::Error(ErrorReply { code: ErrorCode::Forbidden, message: "not you".to_owned() })
        }
        Answer::Nonsense => return control::send(stream, &["nonsense"], &[]).is_ok(),
    };
    control::send(stream, &reply, &[]).is_ok()
}

/// The status number `number`: 100 ms and 100,000 packets of 100 bytes after the one before.
pub fn status(number: u64) -> Status {
    let rx_pkts = 100_000 * number;
    let port = PortStatus {
        name: "lan".into(),
        link: "up".into(),
        rx_pkts,
        rx_bytes: 100 * rx_pkts,
        ..PortStatus::default()
    };
    Status {
        version: "test".into(),
        pid: 7,
        uptime_s: number as f64 / 10.0,
        at_ns: 100_000_000 * number,
        ports: vec![port],
        ..Status::default()
    }
}

/// The program under test; killed if a test fails.
pub struct Console {
    child: Child,
    out: BufReader<ChildStdout>,
    pub address: SocketAddr,
}

impl Console {
    /// Starts it on a free port with the shortest interval.
    pub fn start(socket: &Path) -> Self {
        let mut child = command()
            .args(["--listen", "127.0.0.1:0", "--interval-ms", "100", "--socket"])
            .arg(socket)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        let address = line.strip_prefix("ready: http://").and_then(|rest| rest.split_once('/'));
        let address = address.unwrap_or_else(|| panic!("first line: {line:?}")).0.parse().unwrap();
        Self { child, out, address }
    }

    /// Sends a signal; returns how it ended and its last words.
    pub fn signal(mut self, signal: nix::sys::signal::Signal) -> (ExitStatus, String) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
        let status = self.child.wait().unwrap();
        let mut rest = String::new();
        self.out.read_to_string(&mut rest).unwrap();
        (status, rest)
    }

    /// Asks for `path` as a browser on this machine does.
    pub fn get(&self, path: &str) -> Response {
        self.ask(&format!("GET {path} HTTP/1.1\r\nHost: localhost:8080\r\n"))
    }

    /// Sends a request's head, whose end is added, and reads the whole answer.
    pub fn ask(&self, head: &str) -> Response {
        let mut stream = self.open(&format!("{head}Connection: close\r\n"));
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        Response::parse(&text)
    }

    /// Sends a request's head; the answer is the caller's to read.
    pub fn open(&self, head: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.write_all(format!("{head}\r\n").as_bytes()).unwrap();
        stream
    }

    /// A page's stream of events.
    pub fn events(&self) -> Events {
        let stream = self.open("GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\n");
        Events(BufReader::new(stream).lines())
    }

    /// Asks for the status until it has this HTTP code.
    pub fn wait_for_code(&self, code: u16) -> Response {
        let started = Instant::now();
        loop {
            let response = self.get("/api/v1/status");
            if response.code == code {
                return response;
            }
            assert!(started.elapsed() < LIMIT, "still {}: {}", response.code, response.body);
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program with an environment of its own.
pub fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millrace-web"));
    command.env_remove("MILLRACE_SOCKET").env_remove("MILLRACE_LOG");
    command
}

/// An answer over HTTP.
#[derive(Debug)]
pub struct Response {
    pub code: u16,
    pub head: String,
    pub body: String,
}

impl Response {
    fn parse(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((text, ""));
        let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        Self {
            code: code.unwrap_or_else(|| panic!("no answer: {text:?}")),
            head: head.to_ascii_lowercase(),
            body: body.to_owned(),
        }
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

/// Events as they come: name and data. Chunk sizes between them are skipped.
pub struct Events(std::io::Lines<BufReader<TcpStream>>);

impl Iterator for Events {
    type Item = (String, serde_json::Value);

    fn next(&mut self) -> Option<Self::Item> {
        let mut name = None;
        for line in self.0.by_ref() {
            // An error is the read's time limit.
            let line = line.unwrap();
            if let Some(event) = line.strip_prefix("event: ") {
                name = Some(event.to_owned());
            } else if let Some(data) = line.strip_prefix("data: ") {
                return Some((name.take().unwrap(), serde_json::from_str(data).unwrap()));
            }
        }
        None
    }
}
