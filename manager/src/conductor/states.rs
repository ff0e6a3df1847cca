//! State regions: which NF has which, and who inherits it.
//!
//! Each NF of a service that asks for a state has a *place*, the lowest that no other has, and a state
//! belongs to a place. So the successor of one that died gets what that one had, whoever started it. A
//! state is handed on only when the process that had it has ended, and only to one that asks for the
//! same number of words of the same version; else the place begins anew.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use nflib::control::{ErrorCode, ErrorReply, StateSpec, StateTerms};
use nflib::descriptor::ServiceId;
use nflib::shm::{MAX_STATE_WORDS, StateFile};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Most words of all states together: 256 MiB.
const MAX_ALL_WORDS: u64 = (256 << 20) / 8;

struct Kept {
    file: StateFile,
    spec: StateSpec,
    generation: u64,
    /// The instance that has it.
    owner: Option<u32>,
    /// The process that had it last.
    had: Option<OwnedFd>,
}

/// All states.
#[derive(Default)]
pub struct States {
    kept: BTreeMap<(ServiceId, u32), Kept>,
}

impl States {
    /// A state for an NF that attaches.
    ///
    /// # Errors
    /// The refusal to send to it.
    pub fn claim(
        &mut self,
        service: ServiceId,
        spec: StateSpec,
        instance: u32,
    ) -> Result<(StateTerms, OwnedFd), ErrorReply> {
        let refuse = |message: String| ErrorReply { code: ErrorCode::Exhausted, message };
        if spec.words == 0 || spec.words > MAX_STATE_WORDS {
            return Err(refuse(format!(
                "the NF asks for a state of {} words; expected 1 to {MAX_STATE_WORDS}",
                spec.words
            )));
        }
        let place = (0..).find(|&place| {
            self.kept.get(&(service, place)).is_none_or(|kept| kept.owner.is_none())
        });
        let at = (service, place.unwrap_or(u32::MAX));
        let inherits = self.kept.get(&at).is_some_and(|kept| kept.spec == spec && kept.is_left());
        if !inherits {
            self.kept.remove(&at);
            self.make_room(spec.words).map_err(refuse)?;
            let file = StateFile::create(spec.words).map_err(|error| refuse(error.to_string()))?;
            self.kept.insert(at, Kept { file, spec, generation: 0, owner: None, had: None });
        }
        let no_file = |error: io::Error| refuse(format!("the NF's state: {error}"));
        let Some(kept) = self.kept.get_mut(&at) else {
            return Err(refuse("the NF's state has no place".to_owned()));
        };
        let fd = kept.file.fd().try_clone_to_owned().map_err(no_file)?;
        kept.owner = Some(instance);
        kept.had = None;
        kept.generation += 1;
        Ok((StateTerms { words: spec.words, generation: kept.generation }, fd))
    }

    /// Lets states go that nobody has, until so many more words fit.
    fn make_room(&mut self, words: u32) -> Result<(), String> {
        let all = |kept: &BTreeMap<_, Kept>| {
            kept.values().map(|kept| u64::from(kept.spec.words)).sum::<u64>()
        };
        if all(&self.kept) + u64::from(words) > MAX_ALL_WORDS {
            self.kept.retain(|_, kept| kept.owner.is_some());
        }
        if all(&self.kept) + u64::from(words) > MAX_ALL_WORDS {
            return Err(format!(
                "the states of all NFs have {MAX_ALL_WORDS} words at most, and {words} more do not fit"
            ));
        }
        Ok(())
    }

    /// An NF is gone: its state waits for a successor. `process` becomes readable when it has ended;
    /// `None` if it had already when it attached.
    pub fn leave(&mut self, instance: u32, process: Option<OwnedFd>) {
        if let Some(kept) = self.kept.values_mut().find(|kept| kept.owner == Some(instance)) {
            kept.owner = None;
            kept.had = process;
        }
    }

    /// Forgets the states of services that are not wanted any more.
    pub fn retain(&mut self, is_wanted: impl Fn(ServiceId) -> bool) {
        self.kept.retain(|(service, _), kept| kept.owner.is_some() || is_wanted(*service));
    }

    /// How many words an NF's state has, and which NF it is that has it.
    #[must_use]
    pub fn of(&self, instance: u32) -> Option<StateTerms> {
        let kept = self.kept.values().find(|kept| kept.owner == Some(instance))?;
        Some(StateTerms { words: kept.spec.words, generation: kept.generation })
    }
}

impl Kept {
    /// Whether the one that had it has ended: it could still write otherwise.
    fn is_left(&self) -> bool {
        let Some(process) = &self.had else { return true };
        let mut fds = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO) == Ok(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: StateSpec = StateSpec { words: 8, version: 1 };

    fn generation(states: &mut States, service: ServiceId, spec: StateSpec, nf: u32) -> u64 {
        states.claim(service, spec, nf).unwrap().0.generation
    }

    #[test]
    fn a_successor_gets_the_place_that_is_free_and_nobody_gets_one_that_is_not() {
        let mut states = States::default();
        assert_eq!([1, 2, 3].map(|nf| generation(&mut states, 7, SPEC, nf)), [1, 1, 1]);
        states.leave(2, None);
        assert!(states.of(2).is_none());
        assert_eq!(generation(&mut states, 9, SPEC, 4), 1, "another service's is another's");
        assert_eq!(generation(&mut states, 7, SPEC, 5), 2);
        assert_eq!(generation(&mut states, 7, SPEC, 6), 1, "all three have one again");
        assert_eq!(states.of(5), Some(StateTerms { words: 8, generation: 2 }));
    }

    #[test]
    fn what_is_of_another_size_or_version_begins_anew_and_so_does_a_service_that_was_away() {
        let mut states = States::default();
        generation(&mut states, 7, SPEC, 1);
        for (at, spec) in
            (2..).zip([StateSpec { words: 9, ..SPEC }, StateSpec { version: 2, ..SPEC }])
        {
            states.leave(at - 1, None);
            assert_eq!(generation(&mut states, 7, spec, at), 1);
        }
        states.leave(3, None);
        states.retain(|service| service != 7);
        assert_eq!(generation(&mut states, 7, StateSpec { version: 2, ..SPEC }, 4), 1);
    }

    #[test]
    fn a_state_is_not_handed_on_while_the_process_that_had_it_lives() {
        let mut states = States::default();
        let mut child =
            std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let process = || nflib::shm::pidfd_open(child.id().cast_signed()).ok();
        generation(&mut states, 7, SPEC, 1);
        states.leave(1, process());
        assert_eq!(generation(&mut states, 7, SPEC, 2), 1, "shut out, but alive");
        states.leave(2, process());
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(generation(&mut states, 7, SPEC, 3), 2);
    }

    #[test]
    fn states_have_bounds_and_those_that_nobody_has_make_room() {
        let mut states = States::default();
        let big = StateSpec { words: MAX_STATE_WORDS, version: 1 };
        let most = u32::try_from(MAX_ALL_WORDS).unwrap() / MAX_STATE_WORDS;
        (0..most).for_each(|nf| _ = generation(&mut states, 7, big, nf));
        let full = states.claim(7, SPEC, 9999).unwrap_err();
        assert!(full.message.contains("do not fit"), "{full}");
        states.leave(3, None);
        assert_eq!(generation(&mut states, 8, SPEC, 9999), 1);
        for words in [0, MAX_STATE_WORDS + 1, u32::MAX] {
            assert!(states.claim(7, StateSpec { words, version: 1 }, 1).is_err());
        }
    }
}
