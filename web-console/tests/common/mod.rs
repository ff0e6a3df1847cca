//! A manager of the test's own on a real control socket, the real `millrace-web`, and a client.

// Each suite uses a part of this.
#![allow(dead_code)]

pub mod observed;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nflib::control::{
    self, Applied, CaptureStatus, ControlError, ErrorCode, ErrorReply, PortStatus, Reply, Request,
    Status,
};

use observed::Observed;

/// Says that a part of the tests does not run, and why.
#[allow(clippy::print_stdout)] // Captured by the harness unless asked for.
pub fn leave_out(reason: &str) {
    println!("skipped: {reason}");
}

/// Says that a test cannot run here, and why; fails instead when `MILLRACE_MUST_RUN=1`.
#[track_caller]
pub fn skip(reason: &str) {
    let must_run = std::env::var_os("MILLRACE_MUST_RUN").is_some_and(|value| value == "1");
    assert!(!must_run, "this test must run here, and cannot: {reason}");
    leave_out(reason);
}

/// Whether tests that take most of a minute are asked for; says what is skipped if not.
pub fn long_is_wanted() -> bool {
    let wanted = std::env::var_os("MILLRACE_WEB_LONG").is_some();
    if !wanted {
        leave_out("takes most of a minute: ./scripts/test web");
    }
    wanted
}

/// Whether a program of Debian's is here; says what is skipped if not.
#[track_caller]
pub fn is_installed(program: &str) -> bool {
    let there = Command::new(program).arg("--version").output().is_ok();
    if !there {
        skip(&format!("{program} is not installed (./scripts/setup --tests)"));
    }
    there
}

/// Longer than anything here takes; ends a test that would hang.
pub const LIMIT: Duration = Duration::from_secs(30);

/// What the manager of a test answers.
#[derive(Clone, Copy, Debug)]
pub enum Answer {
    /// A status whose port has received 1,000 packets per millisecond of `at_ns`.
    Status,
    /// The same, with a line in everything that a status has.
    Full,
    /// A refusal.
    Refusal,
    /// Something that is no message of this protocol.
    Nonsense,
}

/// Speaks the manager's side of `nflib::control` until it is dropped.
pub struct FakeManager {
    socket: PathBuf,
    stop: Arc<AtomicBool>,
    heard: Arc<Heard>,
    thread: Option<JoinHandle<()>>,
}

/// What a manager was asked.
#[derive(Default)]
struct Heard {
    /// How often for its status.
    statuses: AtomicU64,
    /// By how many connections.
    connections: AtomicU64,
    /// What else, but for what the console asks by itself.
    others: Mutex<Vec<Request>>,
    /// What it sees of packets.
    observed: Observed,
}

impl FakeManager {
    pub fn start(socket: &Path, answer: Answer) -> Self {
        let listener = UnixListener::bind(socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        let (stop, heard) = (Arc::new(AtomicBool::new(false)), Arc::new(Heard::default()));
        let (stopped, hears) = (Arc::clone(&stop), Arc::clone(&heard));
        let thread = std::thread::spawn(move || {
            let mut clients: Vec<UnixStream> = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                while let Ok((stream, _)) = listener.accept() {
                    hears.connections.fetch_add(1, Ordering::Relaxed);
                    stream.set_nonblocking(false).unwrap();
                    stream.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
                    clients.push(stream);
                }
                if clients.is_empty() {
                    std::thread::sleep(Duration::from_millis(5));
                }
                clients.retain(|client| serve(client, answer, &hears));
            }
        });
        Self { socket: socket.to_owned(), stop, heard, thread: Some(thread) }
    }

    /// How often it was asked for its status.
    pub fn requests(&self) -> u64 {
        self.heard.statuses.load(Ordering::Relaxed)
    }

    /// How many connections it has had.
    pub fn connections(&self) -> u64 {
        self.heard.connections.load(Ordering::Relaxed)
    }

    /// Captures whose reader is still there.
    pub fn captures(&self) -> Vec<CaptureStatus> {
        self.heard.observed.captures()
    }

    /// What else it was asked, in order.
    pub fn others(&self) -> Vec<Request> {
        self.heard.others.lock().unwrap().clone()
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

/// Answers one request, if there is one; whether the client is still there.
fn serve(stream: &UnixStream, answer: Answer, heard: &Heard) -> bool {
    let request = match control::recv::<Request>(stream, 16 << 20) {
        Ok((request, _)) => request,
        Err(ControlError::Io(error)) => return error.kind() == std::io::ErrorKind::WouldBlock,
        Err(_) => return false,
    };
    let reply = match (answer, request) {
        (Answer::Refusal, _) => {
            Reply::Error(ErrorReply { code: ErrorCode::Forbidden, message: "not you".to_owned() })
        }
        (Answer::Nonsense, _) => return control::send(stream, &["nonsense"], &[]).is_ok(),
        (Answer::Status | Answer::Full, Request::Status) => {
            let number = heard.statuses.fetch_add(1, Ordering::Relaxed);
            let full = matches!(answer, Answer::Full);
            Reply::Status(Box::new(if full { full_status(number) } else { status(number) }))
        }
        (Answer::Status | Answer::Full, request) => {
            let seen = heard.observed.reply(&request);
            let (reply, files) = seen.unwrap_or_else(|| (reply_to(&request), Vec::new()));
            if !Observed::is_routine(&request) {
                heard.others.lock().unwrap().push(request);
            }
            let files: Vec<_> = files.iter().map(OwnedFd::as_fd).collect();
            return control::send(stream, &reply, &files).is_ok();
        }
    };
    control::send(stream, &reply, &[]).is_ok()
}

/// What this manager says to what is no question for its status.
fn reply_to(request: &Request) -> Reply {
    let error = |code, message: &str| Reply::Error(ErrorReply { code, message: message.into() });
    match request {
        Request::Apply { text, .. } if text.is_empty() => {
            error(ErrorCode::Invalid, "the file says nothing")
        }
        Request::Apply { .. } | Request::Edit { .. } | Request::Upgrade { .. } => {
            Reply::Applied(Applied { generation: 9, ..Applied::default() })
        }
        Request::StopNf { instance: 404 } => error(ErrorCode::NotFound, "there is no instance 404"),
        Request::StopNf { .. } => Reply::Done,
        Request::Call { .. } => Reply::Called {
            answers: vec![(1, Ok(b"yes".to_vec())), (2, Ok(vec![255])), (3, Err("no".into()))],
        },
        Request::Flows { .. } => Reply::Flows { flows: Vec::new(), total: 5 },
        Request::Explain { .. } => Reply::Explained(Box::default()),
        Request::Buffers { .. } => Reply::Buffers(Box::default()),
        // Not an answer to that.
        _ => Reply::Detached,
    }
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

/// A status with a line in everything, whose packets and turns grow with `number`.
pub fn full_status(number: u64) -> Status {
    let mut full: Status =
        serde_json::from_str(include_str!("../../src/metrics/full.json")).unwrap();
    full.at_ns += 100_000_000 * number;
    full.uptime_s += number as f64 / 10.0;
    let more = 100_000 * number;
    for port in &mut full.ports {
        port.rx_pkts += more;
        port.tx_pkts += more;
        port.rx_bytes += 100 * more;
        port.tx_bytes += 100 * more;
    }
    full.nfs.iter_mut().for_each(|nf| nf.rx_pkts += more);
    full.drops.iter_mut().for_each(|line| line.pkts += more / 10);
    full.chains.iter_mut().for_each(|chain| chain.pkts += more);
    for worker in &mut full.workers {
        worker.turns += 2 * more;
        worker.idle_turns += more;
    }
    full
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
        Self::start_with(socket, &["--interval-ms", "100"])
    }

    /// Starts it on a free port with these options.
    pub fn start_with(socket: &Path, options: &[&str]) -> Self {
        let mut child = command()
            .args(["--listen", "127.0.0.1:0", "--socket"])
            .arg(socket)
            .args(options)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        let address = line.split_once("://").and_then(|(_, rest)| rest.split_once('/'));
        let address = address.unwrap_or_else(|| panic!("first line: {line:?}")).0.parse().unwrap();
        Self { child, out, address }
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
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

    /// Asks for a file; its bytes as they are.
    pub fn download(&self, path: &str) -> (Response, Vec<u8>) {
        // HTTP/1.0: the answer comes in one piece and ends with the connection.
        let mut stream = self.open(&format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n"));
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
        (Response::parse(str::from_utf8(&bytes[..end]).unwrap()), bytes.split_off(end))
    }

    /// Sends a body of JSON.
    pub fn send(&self, method: &str, path: &str, json: &str) -> Response {
        let len = json.len();
        let mut stream = self.open(&format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {len}\r\n"
        ));
        // The answer to a body that is too long may come before its end.
        let _ = stream.write_all(json.as_bytes());
        let mut text = String::new();
        let _ = stream.read_to_string(&mut text);
        Response::parse(&text)
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
        self.events_at("/api/v1/events")
    }

    /// The stream of events at this path.
    pub fn events_at(&self, path: &str) -> Events {
        let stream = self.open(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n"));
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

/// The console that is tested: the one built with the tests, or where `MILLRACE_BIN_DIR` says.
pub fn console_program() -> PathBuf {
    let built = Path::new(env!("CARGO_BIN_EXE_millrace-web"));
    std::env::var_os("MILLRACE_BIN_DIR")
        .map_or_else(|| built.to_owned(), |directory| Path::new(&directory).join("millrace-web"))
}

/// The program with an environment of its own.
pub fn command() -> Command {
    let mut command = Command::new(console_program());
    command.env_remove("MILLRACE_SOCKET").env_remove("MILLRACE_LOG");
    command
}

/// Asks another server for `path`; the whole answer.
pub fn get(address: &str, path: &str) -> std::io::Result<Response> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(LIMIT))?;
    // HTTP/1.0: the answer comes in one piece and ends with the connection.
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(Response::parse(&text))
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
