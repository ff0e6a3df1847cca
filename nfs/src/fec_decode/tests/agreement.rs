//! What two ends must agree on, and what they need not.

use super::*;

/// A file with a key of which every byte is this.
fn key_file(byte: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut file, byte.repeat(16).as_bytes()).unwrap();
    file
}

#[test]
fn ends_that_disagree_about_the_key_get_data_through_and_no_repair_and_say_why() {
    let (one, other) = (key_file("a1"), key_file("b2"));
    let [one, other] = [&one, &other].map(|file| file.path().to_str().unwrap().to_owned());
    let with = |key: &Option<String>| -> Vec<String> {
        key.iter().flat_map(|key| ["--key-file".to_owned(), key.clone()]).collect()
    };
    for (theirs, ours, expected) in [
        (None, None, "recovered=1"),
        (Some(one.clone()), Some(one.clone()), "recovered=1"),
        (Some(one.clone()), Some(other), "rejected-mac-wrong=2"),
        (None, Some(one.clone()), "rejected-mac-missing=2"),
        (Some(one), None, "rejected-mac-unexpected=2"),
    ] {
        let (theirs, ours) = (with(&theirs), with(&ours));
        let theirs: Vec<_> =
            ["-k", "4", "-m", "2"].into_iter().chain(theirs.iter().map(|s| &**s)).collect();
        let ours: Vec<_> = ours.iter().map(|s| &**s).collect();
        let sent = tunnel(&mut encoder(V4, &theirs), &datagrams(4));
        let mut bench = decoder(V4, &ours);
        let came = [0, 1, 3, 4, 5].map(|at| &sent[at]);
        bench.feed(&came);
        assert_counts(&mut bench, &["delivered=3", expected]);
    }
}

#[test]
fn ends_need_not_agree_on_k_m_and_stride() {
    let mut encoder = encoder(V4, &["-k", "4", "-m", "2", "--flush-ms", "100"]);
    let mut bench = decoder(V4, &[]);
    let (mut sent, frames) = (Vec::new(), datagrams(60));
    for (frames, settings) in [
        (&frames[..20], ["set k 5", "set m 1", "set stride 1"]),
        (&frames[20..40], ["set k 3", "set m 2", "set stride 2"]),
        (&frames[40..], ["set k 10", "set m 4", "set stride 2"]),
    ] {
        sent.extend(tunnel(&mut encoder, frames));
        for set in settings {
            encoder.message(None, set.as_bytes()).unwrap();
        }
        sent.extend(encoder.take_outputs().into_iter().map(|out| out.bytes));
    }
    let came: Vec<_> =
        sent.iter().enumerate().filter(|(at, _)| at % 9 != 3).map(|(_, f)| f).collect();
    let mut got = let_out(bench.feed(&came));
    let mut expected = inside(&frames);
    got.sort();
    expected.sort();
    assert_eq!(got, expected);
}

#[test]
fn packets_of_another_version_or_session_are_refused_by_name() {
    let sent = tunnel(&mut encoder(V4, &["-k", "4"]), &datagrams(3));
    let mut bench = decoder(V4, &[]);
    let mut version = sent[0].clone();
    version[42] = 0x21;
    let mut session = sent[1].clone();
    session[44] = 0x77;
    let mut short = sent[2].clone();
    short.truncate(46);
    short[16..18].copy_from_slice(&32_u16.to_be_bytes());
    short[38..40].copy_from_slice(&12_u16.to_be_bytes());
    ecn::set(&mut short[14..], Ecn::NotEct);
    let sum = {
        short[24..26].fill(0);
        checksum::internet(&short[14..34])
    };
    short[24..26].copy_from_slice(&sum.to_be_bytes());
    assert!(bench.feed(&[version, session, short]).iter().all(|out| out.action == Action::Drop));
    let words = ["rejected=3", "rejected-version=1", "rejected-session=1", "rejected-short=1"];
    assert_counts(&mut bench, &words);
}
