//! Several NFs in one process: each burst runs through all of them, with no ring between.
#![forbid(unsafe_code)]

use clap::{Args, Parser};
use nflib::control::ServiceRef;
use nflib::{NetworkFunction, NfArgs, NfError};

use crate::{Common, Nf};

/// Most NFs in one process.
const MAX_STAGES: usize = 64;

/// Options of `chain`.
#[derive(Args, Clone)]
pub struct Options {
    #[command(flatten)]
    nf: NfArgs,
    /// The NFs, in order, separated by commas, each with its own options: "forward,firewall --default
    /// deny,forward"; what has a comma or a space in it is quoted once more
    #[arg(value_name = "NF,NF,…", value_parser = parse_stages)]
    stages: Stages,
}

/// NFs that are to run as one.
#[derive(Clone)]
struct Stages(Vec<Nf<Nothing>>);

/// Stands where an NF has the options that all have: a stage shares the process's.
#[derive(Args, Clone)]
struct Nothing {}

impl Common for Nothing {
    fn service(&self) -> Option<&ServiceRef> {
        None
    }
}

/// One stage's words.
#[derive(Parser)]
#[command(name = "chain", no_binary_name = true, disable_help_flag = true)]
#[command(subcommand_value_name = "NF", disable_help_subcommand = true)]
struct Stage {
    #[command(subcommand)]
    nf: Nf<Nothing>,
}

fn parse_stages(list: &str) -> Result<Stages, String> {
    let texts = split_outside_quotes(list);
    if texts.len() > MAX_STAGES {
        return Err(format!("{} NFs; expected at most {MAX_STAGES}", texts.len()));
    }
    let stages = texts.iter().zip(1..).map(|(text, number)| {
        let text = text.trim();
        if text.is_empty() {
            return Err(format!("NF {number} has no name"));
        }
        let words = shlex::split(text).ok_or_else(|| format!("{text}: a quote is not closed"))?;
        let stage = Stage::try_parse_from(words)
            .map_err(|error| format!("NF {number}: {}", nflib::args::one_line(&error)))?;
        Ok(stage.nf)
    });
    stages.collect::<Result<_, _>>().map(Stages)
}

/// The parts between commas that stand in no quotes.
fn split_outside_quotes(list: &str) -> Vec<&str> {
    let (mut parts, mut from, mut quote) = (Vec::new(), 0, None);
    for (at, c) in list.char_indices() {
        match (c, quote) {
            ('"' | '\'', None) => quote = Some(c),
            (_, Some(open)) if c == open => quote = None,
            (',', None) => {
                parts.push(&list[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&list[from..]);
    parts
}

impl Options {
    /// The name that the manager shows, the options of the process, and the NFs as one.
    ///
    /// # Errors
    /// What is wrong with the options of one of them, as one line.
    pub fn build(&self) -> Result<(&'static str, &NfArgs, Box<dyn NetworkFunction>), NfError> {
        let mut stages = Vec::new();
        for stage in &self.stages.0 {
            let (name, _, nf) = stage.build(Some(&self.nf.service))?;
            stages.push((name.to_owned(), nf));
        }
        Ok(("chain", &self.nf, Box::new(nflib::Fused::new(stages)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_in_quotes_do_not_separate() {
        assert_eq!(split_outside_quotes("a,b \"c,d\",e 'f,g'"), ["a", "b \"c,d\"", "e 'f,g'"]);
        assert_eq!(split_outside_quotes("a,,b"), ["a", "", "b"]);
    }

    #[test]
    fn each_stage_has_its_own_options() {
        let stages =
            parse_stages("forward, firewall --rule \"deny tcp to any 23\", forward --swap-macs");
        let stages = stages.map(|stages| stages.0).ok().unwrap();
        assert!(matches!(&stages[0], Nf::Forward(forward) if !forward.own.swap_macs));
        assert!(matches!(&stages[1], Nf::Firewall(firewall) if firewall.own.rules.len() == 1));
        assert!(matches!(&stages[2], Nf::Forward(forward) if forward.own.swap_macs));
    }

    #[test]
    fn what_is_no_stage_is_named_in_one_line() {
        for (list, what) in [
            ("", "NF 1 has no name"),
            ("forward,,forward", "NF 2 has no name"),
            ("forward,forwrad", "NF 2: "),
            ("forward --service 3", "--service"),
            ("forward --swap-macs \"", "not closed"),
            ("chain forward", "NF 1: "),
        ] {
            let error = parse_stages(list).err().unwrap();
            assert!(error.contains(what) && error.lines().count() == 1, "{list}: {error}");
        }
        let many = vec!["forward"; MAX_STAGES + 1].join(",");
        assert!(parse_stages(&many).err().unwrap().contains("at most 64"));
    }
}
