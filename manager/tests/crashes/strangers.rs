//! An NF that fills its black box with anything, and is then removed for what it says.

use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use nflib::control::{self, AttachRequest, Attached, MAX_REPLY_BYTES, Reply, Request, ServiceRef};
use nflib::shm::Scribble;

use super::lab::{Lab, crashes, first_crash};
use super::running::{Manager, until};

/// Which of the descriptors is the black box.
const BLACK_BOX: usize = 6;

fn attach(manager: &Manager) -> (UnixStream, Attached, Vec<OwnedFd>) {
    let socket = manager.connect();
    let request = Request::Attach(AttachRequest::new("stranger", ServiceRef::Name("mid".into())));
    control::send(&socket, &request, &[]).unwrap();
    match control::recv(&socket, MAX_REPLY_BYTES).unwrap() {
        (Reply::Attached(terms), fds) => (socket, terms, fds),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_black_box_full_of_garbage_harms_nobody() {
    let lab = Lab::new();
    let manager = Manager::start("", &lab.tables_with("recorder_pkts = 512"));
    let mut random = fastrand::Rng::with_seed(7);
    for round in 0..8 {
        let (mut socket, terms, fds) = attach(&manager);
        assert_eq!(terms.recorder.slots, 512);
        let black_box = Scribble::over(&fds[BLACK_BOX]).unwrap();
        for at in (0..black_box.len_bytes()).step_by(4) {
            // Small numbers are marks and states that mean something.
            let word = if round % 2 == 0 { random.u32(..) } else { random.u32(0..4) };
            black_box.store(at, word);
        }
        socket.write_all(&[9, 0, 0, 0]).unwrap();
        socket.write_all(b"nonsense!").unwrap();
        let written = until("it is written down", || {
            crashes(&manager).into_iter().find(|crash| crash.instance == terms.instance)
        });
        assert!(
            written.why.starts_with("removed: it does not keep to the protocol"),
            "{written:?}"
        );
    }
    let (_, bundle) = first_crash(&manager);
    assert!(bundle.report.crash.last_words.is_none_or(|words| words.len() < 8192));
    manager.assert_all_back();
    manager.stop();
}

#[test]
fn one_that_hangs_up_and_lives_has_not_crashed() {
    let lab = Lab::new();
    let manager = Manager::start("", &lab.tables_with(""));
    let (socket, terms, _) = attach(&manager);
    drop(socket);
    until("it is gone", || manager.status().nfs.is_empty().then_some(()));
    // One that is removed afterwards is told of after it.
    let (mut socket, second, _) = attach(&manager);
    assert_ne!(second.instance, terms.instance);
    std::thread::sleep(std::time::Duration::from_millis(600));
    socket.write_all(&[1, 0, 0, 0, b'x']).unwrap();
    let (crash, _) = first_crash(&manager);
    assert_eq!(crash.instance, second.instance);
    assert_eq!(crashes(&manager).len(), 1);
    manager.stop();
}
