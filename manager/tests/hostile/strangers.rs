//! Attacks on the control socket by processes that are no NF.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use nflib::control::{self, AttachRequest, Edit, MAX_REQUEST_BYTES, Reply, Request, ServiceRef};
use nflib::shm::send_with_fds;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::skip::skip;
use super::stage::{Place, Stage, peak_bytes, set};

/// Memory that a manager may need more under attack than before, bytes: what may be unfinished
/// together, and the buffers that it grew in.
const ROOM_BYTES: u64 = 160 << 20;

/// Runs `attack`, and looks meanwhile and afterwards that commands are answered, that the manager
/// does not grow, and that nobody else is harmed.
fn attacked(attack: impl FnOnce(&Stage)) {
    attacked_within(ROOM_BYTES, attack);
}

fn attacked_within(room_bytes: u64, attack: impl FnOnce(&Stage)) {
    let Some((mut stage, mut intruder)) = set(Place::Trusted) else { return };
    let pid = stage.manager.process().pid();
    let (memory, files) = (peak_bytes(pid), stage.manager.open_files());
    attack(&stage);
    let grown = peak_bytes(pid).saturating_sub(memory);
    assert!(grown < room_bytes, "{grown} bytes more");
    assert_answers(&stage);
    super::running::until("connections are closed", || {
        intruder.behave();
        (stage.manager.open_files() <= files + 4).then_some(())
    });
    stage.end(intruder);
}

/// The command gets its answer.
#[track_caller]
fn assert_answers(stage: &Stage) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millrace"));
    command.args(["status", "--json", "--socket"]).arg(stage.manager.socket());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("accounting"));
}

fn prefix(len_bytes: usize) -> [u8; 4] {
    u32::try_from(len_bytes).unwrap().to_le_bytes()
}

/// As many connections as this process may have, up to `count`; `None`, with the reason printed,
/// where that is too few.
fn connect_many(stage: &Stage, count: usize) -> Option<Vec<UnixStream>> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    if hard < count as u64 + 100 {
        skip(&format!("{hard} open files are allowed at most, {count} connections are wanted"));
        return None;
    }
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    Some((0..count).map(|_| stage.manager.connect()).collect())
}

#[test]
fn thousands_of_connections_that_say_nothing() {
    attacked(|stage| {
        let Some(strangers) = connect_many(stage, 5000) else { return };
        for _ in 0..20 {
            assert_answers(stage);
        }
        // More than there may be: those that came first are out.
        let mut first = &strangers[0];
        first.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        assert!(matches!(first.read(&mut [0; 1]), Ok(0)), "the oldest is closed");
    });
}

#[test]
fn hundreds_that_say_a_byte_at_a_time() {
    attacked(|stage| {
        let Some(strangers) = connect_many(stage, 400) else { return };
        let request = control::encode(&Request::Shutdown { keep_nfs: false }).unwrap();
        for byte in &request[..request.len() - 1] {
            for mut stranger in &strangers {
                stranger.write_all(&[*byte]).unwrap();
            }
            assert_answers(stage);
        }
    });
}

#[test]
fn messages_of_the_greatest_length_that_never_end() {
    attacked(|stage| {
        let Some(strangers) = connect_many(stage, 100) else { return };
        for mut stranger in &strangers {
            stranger.set_nonblocking(true).unwrap();
            stranger.write_all(&prefix(MAX_REQUEST_BYTES)).unwrap();
        }
        // All but a byte of each, together 400 MB: most are told off before.
        let end = Instant::now() + Duration::from_secs(4);
        while Instant::now() < end {
            for mut stranger in &strangers {
                let _ = stranger.write(&[b' '; 32 << 10]);
            }
        }
        assert_answers(stage);
    });
}

#[test]
fn noise() {
    attacked(|stage| {
        let mut random = fastrand::Rng::with_seed(4);
        for round in 0..300 {
            let mut stranger = stage.manager.connect();
            let mut bytes = vec![0; random.usize(..2000)];
            random.fill(&mut bytes);
            if round % 2 == 0 {
                let _ = stranger.write_all(&prefix(bytes.len()));
            }
            let _ = stranger.write_all(&bytes);
        }
    });
}

#[test]
fn json_as_deep_as_it_is_long() {
    attacked(|stage| {
        for opening in ["[", "{\"a\":", "[[{\"op\":"] {
            let mut stranger = stage.manager.connect();
            let deep = opening.repeat(MAX_REQUEST_BYTES / opening.len());
            let _ = stranger.write_all(&prefix(deep.len()));
            let _ = stranger.write_all(deep.as_bytes());
            let answer = control::recv::<Reply>(&stranger, 1 << 20);
            assert!(matches!(answer, Ok((Reply::Error(_), _))), "{answer:?}");
        }
    });
}

#[test]
fn descriptors_where_none_belong() {
    attacked(|stage| {
        let file = tempfile::tempfile().unwrap();
        let fds = [file.as_fd(); 250];
        let before = stage.manager.open_files();
        let strangers: Vec<_> = (0..20).map(|_| stage.manager.connect()).collect();
        for stranger in &strangers {
            // With a whole request, and with the first byte of one that never ends.
            send_with_fds(stranger, &control::encode(&Request::Status).unwrap(), &fds).unwrap();
            assert!(matches!(
                control::recv::<Reply>(stranger, 64 << 20),
                Ok((Reply::Status(_), _))
            ));
            send_with_fds(stranger, &[9], &fds).unwrap();
        }
        assert_answers(stage);
        let now = stage.manager.open_files();
        assert!(now <= before + strangers.len() + 2, "{before} then {now}");
    });
}

#[test]
fn requests_as_fast_as_can_be_and_no_answer_read() {
    // Unread answers: a megabyte and one answer of each, and what the allocator makes of it.
    attacked_within(48 << 20, |stage| {
        let strangers: Vec<_> = (0..20).map(|_| stage.manager.connect()).collect();
        let status = control::encode(&Request::Status).unwrap();
        for stranger in &strangers {
            stranger.set_nonblocking(true).unwrap();
        }
        let end = Instant::now() + Duration::from_secs(4);
        while Instant::now() < end {
            for mut stranger in &strangers {
                let _ = stranger.write(&status.repeat(50));
            }
            assert_answers(stage);
        }
    });
}

#[test]
fn edits_as_fast_as_can_be() {
    attacked(|stage| {
        let stranger = stage.manager.connect();
        stranger.set_nonblocking(true).unwrap();
        let edit = Edit::RemoveChain { name: "nil".into() };
        let edits = control::encode(&Request::Edit { edits: vec![edit] }).unwrap().repeat(20);
        let end = Instant::now() + Duration::from_secs(2);
        let mut answers = vec![0; 1 << 16];
        while Instant::now() < end {
            let _ = (&stranger).write(&edits);
            let _ = (&stranger).read(&mut answers);
        }
        assert_answers(stage);
    });
}

#[test]
fn connections_opened_and_closed_as_fast_as_can_be() {
    attacked(|stage| {
        let end = Instant::now() + Duration::from_secs(2);
        while Instant::now() < end {
            for _ in 0..100 {
                // The door may be crowded for a moment.
                let _ = UnixStream::connect(stage.manager.socket());
            }
            assert_answers(stage);
        }
    });
}

#[test]
fn introductions_that_are_nonsense() {
    attacked(|stage| {
        let honest = || AttachRequest::new("x", ServiceRef::Name("evil".into()));
        let long = "n".repeat(1 << 20);
        for request in [
            AttachRequest { protocol: u32::MAX, ..honest() },
            AttachRequest { layout: 0, ..honest() },
            AttachRequest { name: long.clone(), ..honest() },
            AttachRequest { name: "\u{1b}[2J\nroot".into(), ..honest() },
            AttachRequest { service: ServiceRef::Name(long), ..honest() },
            AttachRequest { service: ServiceRef::Id(u16::MAX), ..honest() },
            AttachRequest { loan_pkts: u32::MAX, ..honest() },
            AttachRequest { jumps_to: vec![ServiceRef::Id(1); 100_000], ..honest() },
        ] {
            let stranger = stage.manager.connect();
            control::send(&stranger, &Request::Attach(request.clone()), &[]).unwrap();
            let Ok((Reply::Error(error), _)) = control::recv::<Reply>(&stranger, 64 << 20) else {
                panic!("{:.100}", format!("{request:?}"));
            };
            assert!(!error.message.contains('\n') && error.message.len() < 1000, "{error}");
        }
        let log = stage.log();
        assert!(log.contains("NF refused"));
        assert!(log.lines().all(|line| line.len() < 1000 && !line.starts_with("root")), "{log}");
    });
}

#[test]
fn a_peer_that_hangs_up_before_it_is_answered() {
    attacked(|stage| {
        for _ in 0..300 {
            let stranger = stage.manager.connect();
            control::send(&stranger, &Request::Status, &[]).unwrap();
            let call = Request::Call {
                target: control::Target::Service(ServiceRef::Name("good".into())),
                payload: vec![1],
            };
            let sent = control::send(&stranger, &call, &[]);
            assert!(
                sent.is_ok()
                    || matches!(sent, Err(control::ControlError::Io(ref error))
                if error.kind() == ErrorKind::BrokenPipe)
            );
        }
    });
}
