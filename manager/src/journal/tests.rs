//! Journals in a folder of their own, and journals cut and damaged in memory.
#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;

use nflib::control::spec::Value;
use nflib::control::{ChainSpec, Edit, MatchSpec, RuleSpec, ThenSpec};
use proptest::prelude::*;

use super::record::{change_line, first_lines, read};
use super::*;
use crate::config::Config;
use crate::model::properties::{edit, ports, specs};

/// All of a state that anybody could see: numbers, too.
fn all_of(model: &Model) -> crate::model::Numbered {
    model.numbered()
}

const FILE: &str = "[[port]]\nname = \"lan\"\nbackend = \"sink\"\n\
                    [[chain]]\nname = \"default\"\nservices = [\"fw\"]\n";

fn config(text: &str) -> Config {
    Config::parse(text, Path::new("m.toml")).unwrap()
}

fn rule(tp_dst: u64, hard_timeout_s: Option<f64>) -> Edit {
    let matches = MatchSpec {
        ip_proto: Some(Value::Text("tcp".to_owned())),
        tp_dst: Some(Value::Int(tp_dst)),
        ..MatchSpec::default()
    };
    let then = ThenSpec { drop: true, ..ThenSpec::default() };
    let rule = RuleSpec { matches, then, hard_timeout_s, ..RuleSpec::default() };
    Edit::AddRule { rule: Box::new(rule) }
}

/// A folder with a journal.
struct Site(tempfile::TempDir);

impl Site {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> std::path::PathBuf {
        self.0.path().join("m.journal")
    }

    fn open(&self, text: &str) -> Result<Beginning, JournalError> {
        Found::read(&self.path(), true, &config(text)).and_then(Found::begin)
    }

    /// What goes wrong, which is one line.
    fn error(&self) -> String {
        let error = self.open(FILE).map(|_| ()).unwrap_err().to_string();
        assert_eq!(error.lines().count(), 1, "{error}");
        error
    }
}

/// Makes a change and writes it down.
fn change(begun: &mut Beginning, edits: Vec<Edit>) {
    begun.model = begun.model.edit(&edits).unwrap().model;
    begun.journal.add(vec![Step::Edits { edits }], &begun.model).unwrap();
}

#[test]
fn what_was_changed_is_there_again_with_its_numbers() {
    let site = Site::new();
    let mut begun = site.open(FILE).unwrap();
    change(&mut begun, vec![rule(80, None), rule(81, None)]);
    change(&mut begun, vec![Edit::RemoveRule { id: 1 }]);
    let was = all_of(&begun.model);
    assert_eq!((was.rule_ids.as_slice(), was.next_rule_id), ([2].as_slice(), 3));
    drop(begun);
    for _ in 0..2 {
        assert_eq!(all_of(&site.open(FILE).unwrap().model), was);
    }
}

#[test]
fn a_file_that_was_changed_since_is_followed_and_the_journal_kept_aside() {
    let site = Site::new();
    let mut begun = site.open(FILE).unwrap();
    change(&mut begun, vec![rule(80, None)]);
    drop(begun);
    let before = fs::read(site.path()).unwrap();
    let next = FILE.replace("\"fw\"", "\"nat\", \"fw\"");
    let begun = site.open(&next).unwrap();
    assert_eq!(begun.model.rule_count(), 0);
    assert_eq!(begun.model.specs(), config(&next).specs);
    let fw = begun.model.find_service(&"fw".parse().unwrap()).unwrap().id;
    assert_eq!(fw, 1, "what stays wanted keeps its number");
    assert_eq!(fs::read(with_ending(&site.path(), ".old")).unwrap(), before);
}

#[test]
fn a_file_that_was_applied_is_no_other_file() {
    let site = Site::new();
    let next = FILE.replace("\"fw\"", "\"nat\"");
    let mut begun = site.open(FILE).unwrap();
    let specs = config(&next).specs;
    let (model, _) = Model::build(&specs, begun.model.ports(), Some(&begun.model)).unwrap();
    begun.model = model;
    begun.journal.add(vec![Step::Specs { specs }], &begun.model).unwrap();
    change(&mut begun, vec![rule(80, None)]);
    let was = all_of(&begun.model);
    drop(begun);
    // Whether it was saved as the manager's own file, or the manager has its old one.
    for text in [FILE, FILE, &next, &next] {
        assert_eq!(all_of(&site.open(text).unwrap().model), was);
    }
    // From then on it is the applied one that the manager has, and the old one is another.
    assert_eq!(site.open(FILE).unwrap().model.specs(), config(FILE).specs);
}

#[test]
fn a_hard_timeout_goes_on_and_an_end_is_not_put_off() {
    let site = Site::new();
    let mut begun = site.open(FILE).unwrap();
    change(&mut begun, vec![rule(80, Some(1000.0)), rule(81, Some(0.001)), rule(82, None)]);
    change(&mut begun, vec![rule(83, Some(500.0)), Edit::RemoveRule { id: 1 }]);
    drop(begun);
    std::thread::sleep(Duration::from_millis(5));
    for _ in 0..2 {
        let begun = site.open(FILE).unwrap();
        let now = Instant::now();
        let left: Vec<_> = begun
            .remaining
            .iter()
            .map(|(end, rule)| (rule.id(), end.saturating_duration_since(now)))
            .collect();
        assert_eq!(left.len(), 2, "{left:?}");
        assert_eq!(left[0], (2, Duration::ZERO));
        assert!(left[1].0 == 4 && left[1].1 < Duration::from_millis(499_997), "{left:?}");
    }
}

#[test]
fn a_journal_that_grows_is_begun_anew_and_says_the_same() {
    let site = Site::new();
    let mut begun = site.open(FILE).unwrap();
    let mut largest = 0;
    let mut shrunk = false;
    for port in 0..400 {
        // Put in and taken out again: the state stays small.
        change(&mut begun, vec![rule(port, None)]);
        let id = begun.model.rules().next().unwrap().id();
        change(&mut begun, vec![Edit::RemoveRule { id }]);
        shrunk |= begun.journal.bytes < largest;
        largest = largest.max(begun.journal.bytes);
    }
    assert!(shrunk && largest < 2 * MIN_GROWTH_BYTES, "{largest} bytes");
    let was = all_of(&begun.model);
    drop(begun);
    assert_eq!(all_of(&site.open(FILE).unwrap().model), was);
}

#[test]
fn a_manager_that_cannot_start_changes_nothing() {
    let site = Site::new();
    drop(Found::read(&site.path(), true, &config(FILE)).unwrap());
    assert_eq!(fs::read_dir(site.0.path()).unwrap().count(), 0);
    let mut begun = site.open(FILE).unwrap();
    change(&mut begun, vec![rule(80, None)]);
    drop(begun);
    let before = fs::read(site.path()).unwrap();
    let next = FILE.replace("\"fw\"", "\"nat\"");
    drop(Found::read(&site.path(), true, &config(&next)).unwrap());
    assert_eq!(fs::read(site.path()).unwrap(), before);
    assert_eq!(site.open(FILE).unwrap().model.rule_count(), 1);
}

#[test]
fn two_managers_do_not_write_one_journal() {
    let site = Site::new();
    let mut begun = site.open(FILE).unwrap();
    let error = site.error();
    assert!(error.contains("another manager writes it"), "{error}");
    change(&mut begun, vec![rule(80, None)]);
    drop(begun);
    assert_eq!(site.open(FILE).unwrap().model.rule_count(), 1);
}

#[test]
fn a_journal_that_somebody_else_could_have_written_is_not_believed() {
    use std::os::unix::fs::PermissionsExt as _;
    let site = Site::new();
    drop(site.open(FILE).unwrap());
    fs::set_permissions(site.path(), fs::Permissions::from_mode(0o620)).unwrap();
    assert!(site.error().contains("nobody else may write to"));
    fs::remove_file(site.path()).unwrap();
    std::os::unix::fs::symlink("/dev/null", site.path()).unwrap();
    assert!(site.error().contains("cannot be opened"));
}

#[test]
fn damage_is_told_in_one_line_with_its_place_and_what_to_do() {
    let site = Site::new();
    let mut begun = site.open(FILE).unwrap();
    change(&mut begun, vec![rule(80, None)]);
    change(&mut begun, vec![rule(81, None)]);
    drop(begun);
    let good = fs::read_to_string(site.path()).unwrap();
    let cases = [
        (good.replacen("\"tp_dst\":80", "\"tp_dst\":88", 1), "line 3 is damaged"),
        (good.replacen("version 1", "version 2", 1), "of version \"2\", and this release reads"),
        ("a letter\n".to_owned(), "does not begin with"),
        (good.lines().next().unwrap().to_owned() + "\n", "line 2 is damaged"),
    ];
    for (text, expected) in cases {
        fs::write(site.path(), text).unwrap();
        let error = site.error();
        assert!(error.contains(expected) && error.contains("mv "), "{error}");
    }
    fs::write(site.path(), good.replace("\"lan\"", "\"wan\"")).unwrap();
    fs::write(site.path(), "").unwrap();
    assert_eq!(site.open(FILE).unwrap().model.rule_count(), 0, "an empty file says nothing");
}

#[test]
fn what_is_possible_no_more_is_told() {
    let site = Site::new();
    let mut begun = site.open(FILE).unwrap();
    let end = "out:lan".to_owned();
    let chain = ChainSpec { name: "a".into(), end, ..ChainSpec::default() };
    change(&mut begun, vec![Edit::SetChain { chain, new: true }]);
    drop(begun);
    let other = FILE.replace("\"lan\"", "\"wan\"");
    let error = site.open(&other).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("line 3 cannot be so here: ") && error.contains("no port"), "{error}");
}

#[test]
fn after_a_write_that_failed_the_next_one_writes_it_all() {
    let site = Site::new();
    let mut begun = site.open(FILE).unwrap();
    // A file that nothing can be added to.
    let read_only = fs::File::open(site.path()).unwrap();
    drop(std::mem::replace(&mut begun.journal.file, {
        let other = fs::File::open("/dev/null").unwrap();
        Flock::lock(other, FlockArg::LockSharedNonblock).unwrap()
    }));
    drop(read_only);
    let edits = vec![rule(80, None)];
    begun.model = begun.model.edit(&edits).unwrap().model;
    let error = begun.journal.add(vec![Step::Edits { edits }], &begun.model).unwrap_err();
    assert!(error.to_string().contains("cannot be written"), "{error}");
    change(&mut begun, vec![rule(81, None)]);
    let was = all_of(&begun.model);
    drop(begun);
    assert_eq!(all_of(&site.open(FILE).unwrap().model), was);
}

#[test]
fn a_clean_end_removes_what_is_not_to_last() {
    let site = Site::new();
    for lasting in [true, false] {
        let found = Found::read(&site.path(), lasting, &config(FILE)).unwrap();
        found.begin().unwrap().journal.end();
        assert_eq!(site.path().exists(), lasting);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn cut_anywhere_a_journal_says_what_was_after_some_of_the_changes(
        first in specs(),
        others in prop::collection::vec(specs(), 1..3),
        batches in prop::collection::vec(prop::collection::vec(edit(), 1..4), 1..7),
        noise in prop::collection::vec(any::<u8>(), 0..20),
    ) {
        let mut model = Model::build(&first, &ports(), None).unwrap().0;
        let mut deadlines_ms = Deadlines::new();
        let snapshot = snapshot_of(&model, &deadlines_ms, &[7]);
        let mut bytes = first_lines(snapshot).unwrap();
        // How long the file was after each change, and what was then.
        let mut after = vec![(bytes.len(), model.clone(), deadlines_ms.clone())];
        for (at, edits) in batches.into_iter().enumerate() {
            let (step, next) = match others.get(at / 2).filter(|_| at % 2 == 1) {
                Some(specs) => match Model::build(specs, &ports(), Some(&model)) {
                    Ok((next, _)) => (Step::Specs { specs: specs.clone() }, next),
                    Err(_) => continue,
                },
                None => match model.edit(&edits) {
                    Ok(edited) => (Step::Edits { edits }, edited.model),
                    Err(_) => continue,
                },
            };
            bytes.extend(change_line(at as u64, vec![step]).unwrap());
            note_deadlines(&mut deadlines_ms, &model, &next, at as u64);
            model = next;
            after.push((bytes.len(), model.clone(), deadlines_ms.clone()));
        }
        let first_bytes = after[0].0;
        for len in 0..=bytes.len() {
            let whole = after.iter().rposition(|(end, ..)| *end <= len);
            // Each look costs a while: what it all says, at each change's end and here and there between.
            // Cut there, or cut and overwritten with what happened to lie on the disk.
            let mut noisy = bytes[..len].to_vec();
            noisy.extend(noise.iter().filter(|byte| **byte != b'\n'));
            let looks_at = if len % 16 == 0 { vec![&bytes[..len], &noisy] } else { vec![&bytes[..len]] };
            for cut in looks_at {
                let said = read(cut, &ports());
                let Some(whole) = whole else {
                    prop_assert!(said.is_err(), "{len} of the first {first_bytes} bytes");
                    continue;
                };
                let said = said.unwrap();
                let (end, model, deadlines_ms) = &after[whole];
                prop_assert_eq!(said.changes, whole);
                prop_assert_eq!(said.torn_bytes, cut.len() - end);
                if len == *end || len % 64 == 0 {
                    prop_assert_eq!(all_of(&said.model), all_of(model));
                    prop_assert_eq!(&said.deadlines_ms, deadlines_ms);
                }
            }
        }
    }

    #[test]
    fn a_changed_byte_is_noticed_or_in_what_was_written_last(
        edits in prop::collection::vec(1_u64..1000, 2..6),
        at in any::<prop::sample::Index>(),
        flip in 1_u8..=255,
    ) {
        let mut model = config(FILE).model;
        let mut bytes = first_lines(snapshot_of(&model, &Deadlines::new(), &[])).unwrap();
        let mut last = bytes.len();
        for port in edits {
            let edits = vec![rule(port, None)];
            model = model.edit(&edits).unwrap().model;
            last = bytes.len();
            bytes.extend(change_line(0, vec![Step::Edits { edits }]).unwrap());
        }
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        match read(&bytes, model.ports()) {
            Err(_) => prop_assert!(at < last),
            Ok(said) => prop_assert!(at >= last && said.torn_bytes > 0),
        }
    }
}
