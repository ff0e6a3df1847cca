//! Instructions a packet costs, counted by callgrind, against committed figures.
//!
//! Time on a shared machine says little about a change of a few per cent; instructions are the same in
//! every run. A program is run twice, for few packets and for more, and the difference is divided by
//! the packets' difference, so that what happens once cancels out. What it cannot see: cache misses,
//! waiting, and what the CPU does at the same time.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;
use thiserror::Error;

/// How much more than the committed figure is let pass.
pub const MORE_ALLOWED: f64 = 0.05;
/// How much less is worth a new figure: otherwise the next 5 % would go unseen.
pub const LESS_NOTED: f64 = 0.02;

/// The committed file.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct Figures {
    /// Paths of a packet.
    pub path: Vec<PacketPath>,
}

/// A path, the program that makes packets go it, and what it costs.
#[derive(Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct PacketPath {
    /// What it is called.
    pub name: String,
    /// An example of this workspace, built in the same profile. It prints the number of packets as the
    /// first word of its last line.
    pub program: String,
    /// Its arguments; `{n}` stands for one of `runs`.
    pub args: Vec<String>,
    /// Few packets, and more.
    pub runs: [u64; 2],
    /// Instructions a packet, as committed.
    pub instructions: Option<f64>,
}

/// Why there is no count. One line each.
#[derive(Debug, Error)]
pub enum CountError {
    /// The file is missing or none.
    #[error("{0}: {1}")]
    File(PathBuf, String),
    /// valgrind, or the program under it.
    #[error("{program} under valgrind: {problem}")]
    Run {
        /// Which.
        program: String,
        /// What went wrong.
        problem: String,
    },
}

/// How a count compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Within the limits.
    Same,
    /// So much less that the figure should follow.
    Less,
    /// Too much.
    More,
    /// There is no figure yet.
    New,
}

/// Compares a count with a figure.
#[must_use]
pub fn judge(counted: f64, figure: Option<f64>) -> Verdict {
    match figure {
        None => Verdict::New,
        Some(figure) if counted > figure * (1.0 + MORE_ALLOWED) => Verdict::More,
        Some(figure) if counted < figure * (1.0 - LESS_NOTED) => Verdict::Less,
        Some(_) => Verdict::Same,
    }
}

impl Figures {
    /// Reads the committed file.
    ///
    /// # Errors
    /// [`CountError::File`].
    pub fn load(path: &Path) -> Result<Self, CountError> {
        let fault = |what: &dyn std::fmt::Display| CountError::File(path.into(), what.to_string());
        let text = std::fs::read_to_string(path).map_err(|error| fault(&error))?;
        toml::from_str(&text).map_err(|error| fault(&error.to_string().replace('\n', " ")))
    }
}

impl PacketPath {
    /// Instructions a packet, now. `programs`: the folder of the examples; `scratch`: for valgrind.
    ///
    /// # Errors
    /// [`CountError::Run`].
    pub fn count(&self, programs: &Path, scratch: &Path) -> Result<f64, CountError> {
        let [few, many] = self.runs;
        let (instructions_few, pkts_few) = self.run(programs, scratch, few)?;
        let (instructions_many, pkts_many) = self.run(programs, scratch, many)?;
        if pkts_many <= pkts_few {
            return Err(self.fault(format!("{pkts_few} packets, then {pkts_many}: not more")));
        }
        let instructions = instructions_many.saturating_sub(instructions_few);
        Ok(instructions as f64 / (pkts_many - pkts_few) as f64)
    }

    fn fault(&self, problem: String) -> CountError {
        CountError::Run { program: self.program.clone(), problem }
    }

    /// Instructions and packets of a run.
    fn run(&self, programs: &Path, scratch: &Path, n: u64) -> Result<(u64, u64), CountError> {
        let out = scratch.join(format!("{}-{n}.callgrind", self.program));
        let n = n.to_string();
        let output = Command::new("valgrind")
            .args(["--tool=callgrind", "--quiet"])
            .arg(format!("--callgrind-out-file={}", out.display()))
            .arg(programs.join(&self.program))
            .args(self.args.iter().map(|arg| arg.replace("{n}", &n)))
            .output()
            .map_err(|error| self.fault(format!("{error}; apt-get install valgrind")))?;
        let said = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            return Err(self.fault(said.lines().last().unwrap_or("it failed").to_owned()));
        }
        let text = std::fs::read_to_string(&out).unwrap_or_default();
        let instructions = total_of(&text).ok_or_else(|| self.fault("no total".into()))?;
        let printed = String::from_utf8_lossy(&output.stdout);
        let pkts = pkts_of(&printed).ok_or_else(|| self.fault(format!("printed {printed:?}")))?;
        Ok((instructions, pkts))
    }
}

/// The total of callgrind's file: `totals: 123`.
fn total_of(profile: &str) -> Option<u64> {
    profile.lines().find_map(|line| line.strip_prefix("totals:"))?.trim().parse().ok()
}

/// The first word of the last line.
fn pkts_of(printed: &str) -> Option<u64> {
    printed.lines().last()?.split_whitespace().next()?.parse().ok()
}

/// The file's text with new figures, in the order of its paths; everything else stays.
#[must_use]
pub fn with_figures(text: &str, counted: &[f64]) -> String {
    let mut counted = counted.iter();
    let mut lines = Vec::new();
    for line in text.lines() {
        if line.starts_with("instructions = ")
            && let Some(figure) = counted.next()
        {
            lines.push(format!("instructions = {figure:.2}"));
        } else {
            lines.push(line.to_owned());
        }
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_per_cent_more_pass_and_no_further() {
        assert_eq!(judge(104.9, Some(100.0)), Verdict::Same);
        assert_eq!(judge(105.1, Some(100.0)), Verdict::More);
        assert_eq!(judge(97.0, Some(100.0)), Verdict::Less);
        assert_eq!(judge(97.0, None), Verdict::New);
    }

    #[test]
    fn totals_and_packets_are_read_from_what_is_printed() {
        let profile = "# callgrind format\nevents: Ir\n\nfn=(1) main\n3 4\n\ntotals: 123456\n";
        assert_eq!((total_of(profile), total_of("events: Ir\n")), (Some(123_456), None));
        assert_eq!(pkts_of("all: least 3\n4096 packets sent\n"), Some(4096));
        assert_eq!(pkts_of("nothing"), None);
    }

    #[test]
    fn new_figures_take_the_place_of_the_old_ones_in_order() {
        let text =
            "# why\n[[path]]\ninstructions = 1\n\n[[path]]\nname = \"b\"\ninstructions = 2.5\n";
        let expected = "# why\n[[path]]\ninstructions = 10.13\n\n[[path]]\nname = \"b\"\ninstructions = 20.00\n";
        assert_eq!(with_figures(text, &[10.125_1, 20.0]), expected);
    }

    #[test]
    fn the_committed_file_is_sound() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("instructions.toml");
        let figures = Figures::load(&file).unwrap();
        assert!(!figures.path.is_empty());
        for path in figures.path {
            assert!(path.runs[0] < path.runs[1], "{}", path.name);
            assert!(path.args.iter().any(|arg| arg.contains("{n}")), "{}", path.name);
        }
    }
}
