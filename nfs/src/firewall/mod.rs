//! Lets packets pass or drops them, by rules on addresses, protocol and transport ports.
#![forbid(unsafe_code)]

mod rule;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::Args;
use nflib::headers::{Headers, Network, ethertype};
use nflib::settings::{self, Setting, Settings};
use nflib::{Action, Context, NetworkFunction, NfError, Packet, Setup};

use rule::{Rule, Verdict};

/// Most rules: each is tried for each packet, one after the other.
const MAX_RULES: usize = 4096;

/// Options of `firewall`.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// A rule, as "deny tcp from 10.0.0.0/8 to any 23"; the first that takes a packet decides
    #[arg(long = "rule", value_name = "RULE")]
    pub rules: Vec<Rule>,
    /// A file with a rule a line, tried after those of --rule; # begins a comment
    #[arg(long, value_name = "FILE")]
    pub rules_file: Option<PathBuf>,
    /// What becomes of IP packets that no rule takes: allow or deny
    #[arg(long, value_name = "VERDICT", default_value = "allow")]
    pub default: Verdict,
}

/// A rule and the packets it took.
struct Counted {
    rule: Rule,
    pkts: u64,
}

/// The NF.
pub struct Firewall {
    rules: Vec<Counted>,
    default: Verdict,
    default_pkts: u64,
    malformed_pkts: u64,
}

impl Firewall {
    /// # Errors
    /// The rules' file cannot be read, or one of its lines is no rule; one line that says which.
    pub fn new(options: &Options) -> Result<Self, NfError> {
        let mut rules = options.rules.clone();
        if let Some(path) = &options.rules_file {
            rules.extend(read_rules(path)?);
        }
        if rules.len() > MAX_RULES {
            let what = format!("{} rules; expected at most {MAX_RULES}", rules.len());
            return Err(NfError::new(what));
        }
        let rules = rules.into_iter().map(|rule| Counted { rule, pkts: 0 }).collect();
        Ok(Self { rules, default: options.default, default_pkts: 0, malformed_pkts: 0 })
    }

    fn verdict(&mut self, frame: &[u8]) -> Verdict {
        let headers = Headers::parse(frame);
        let is_ip = matches!(headers.ethertype, ethertype::IPV4 | ethertype::IPV6);
        if headers.problem.is_some() && (is_ip || headers.network != Network::None) {
            // It claims to be what it is not: no rule can be trusted to tell.
            self.malformed_pkts += 1;
            return Verdict::Deny;
        }
        if !is_ip {
            return Verdict::Allow;
        }
        match self.rules.iter_mut().find(|counted| counted.rule.takes(&headers)) {
            Some(counted) => {
                counted.pkts += 1;
                counted.rule.verdict
            }
            None => {
                self.default_pkts += 1;
                self.default
            }
        }
    }
}

fn read_rules(path: &Path) -> Result<Vec<Rule>, NfError> {
    let at = path.display();
    let text = std::fs::read_to_string(path)
        .map_err(|error| NfError::new(format!("{at}: {error}; expected a file of rules")))?;
    let lines = text.lines().zip(1..).map(|(line, number)| {
        let rule = line.split('#').next().unwrap_or_default().trim();
        (rule, number)
    });
    lines
        .filter(|(rule, _)| !rule.is_empty())
        .map(|(rule, number)| {
            rule.parse().map_err(|error| NfError::new(format!("{at}:{number}: {error}")))
        })
        .collect()
}

impl Settings for Firewall {
    const KEYS: &'static [Setting] = &[
        Setting { key: "default", help: "IP packets that no rule takes: allow or deny" },
        Setting { key: "counts", help: "packets by rule, the default and malformed; to read only" },
    ];

    fn get(&self, key: &str) -> String {
        if key == "default" {
            return self.default.to_string();
        }
        let mut counts = String::new();
        for (counted, number) in self.rules.iter().zip(1..) {
            // Writing to a String cannot fail.
            let _ = write!(counts, "rule{number}={} ", counted.pkts);
        }
        let _ = write!(counts, "default={} malformed={}", self.default_pkts, self.malformed_pkts);
        counts
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        if key != "default" {
            return Err("it can only be read".to_owned());
        }
        self.default = value.parse()?;
        Ok(())
    }
}

impl NetworkFunction for Firewall {
    fn setup(&mut self, _: &Setup) -> Result<(), NfError> {
        Ok(())
    }

    fn process(&mut self, packet: &mut Packet<'_>, _: &mut Context<'_>) -> Action {
        match self.verdict(packet.bytes()) {
            Verdict::Allow => Action::Next,
            Verdict::Deny => Action::Drop,
        }
    }

    fn message(
        &mut self,
        _: Option<u32>,
        payload: &[u8],
        _: &mut Context<'_>,
    ) -> Result<Vec<u8>, String> {
        settings::answer(self, payload)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use nflib::testing::{FrameBuilder, TestBench};

    use super::*;

    fn options(rules: &[&str], default: Verdict) -> Options {
        let rules = rules.iter().map(|rule| rule.parse().unwrap()).collect();
        Options { rules, rules_file: None, default }
    }

    fn firewall(rules: &[&str], default: Verdict) -> TestBench<Firewall> {
        TestBench::new(Firewall::new(&options(rules, default)).unwrap())
    }

    fn tcp_to(port: u16) -> Vec<u8> {
        FrameBuilder::new().ip([10, 0, 0, 1].into(), [10, 0, 0, 2].into()).tcp(999, port, 0).build()
    }

    fn passes(bench: &mut TestBench<Firewall>, frame: &[u8]) -> bool {
        bench.feed_one(frame).unwrap().action == Action::Next
    }

    #[test]
    fn the_first_rule_that_takes_a_packet_decides_and_then_the_default() {
        let mut bench = firewall(&["allow tcp to any 80", "deny tcp to any 1-100"], Verdict::Allow);
        assert!(passes(&mut bench, &tcp_to(80)));
        assert!(!passes(&mut bench, &tcp_to(23)));
        assert!(passes(&mut bench, &tcp_to(443)));
        let counts = bench.message(None, b"get counts").unwrap();
        assert_eq!(counts, b"rule1=1 rule2=1 default=1 malformed=0");
    }

    #[test]
    fn arp_passes_whatever_the_default_is() {
        let mut bench = firewall(&[], Verdict::Deny);
        assert!(passes(
            &mut bench,
            &FrameBuilder::new().ethertype(0x0806).payload(&[0; 28]).build()
        ));
        assert!(!passes(&mut bench, &tcp_to(80)));
    }

    #[test]
    fn a_malformed_ip_packet_is_dropped_whatever_the_default_is() {
        let mut bench = firewall(&[], Verdict::Allow);
        let mut frame = tcp_to(80);
        frame.truncate(40);
        assert!(!passes(&mut bench, &frame));
        assert_eq!(bench.message(None, b"get counts").unwrap(), b"default=0 malformed=1");
    }

    #[test]
    fn the_default_can_be_changed_while_it_runs() {
        let mut bench = firewall(&[], Verdict::Allow);
        assert!(passes(&mut bench, &tcp_to(80)));
        assert_eq!(bench.message(None, b"set default deny"), Ok(b"deny".to_vec()));
        assert!(!passes(&mut bench, &tcp_to(80)));
        assert!(bench.message(None, b"set default maybe").is_err());
        assert!(bench.message(None, b"set counts 0").is_err());
    }

    #[test]
    fn rules_of_a_file_come_after_those_of_the_command_line_and_a_bad_line_is_named() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "# management\ndeny tcp to any 22  # ssh\n\ndeny tcp to any 80").unwrap();
        let mut with_file = options(&["allow tcp to any 80"], Verdict::Allow);
        with_file.rules_file = Some(file.path().to_owned());
        let mut bench = TestBench::new(Firewall::new(&with_file).unwrap());
        assert!(passes(&mut bench, &tcp_to(80)));
        assert!(!passes(&mut bench, &tcp_to(22)));
        writeln!(file, "deny everything").unwrap();
        let error = Firewall::new(&with_file).err().unwrap().to_string();
        assert!(error.contains(":5: \"everything\": expected a protocol"), "{error}");
        with_file.rules_file = Some("/nonexistent/rules".into());
        let error = Firewall::new(&with_file).err().unwrap().to_string();
        assert!(error.starts_with("/nonexistent/rules: "), "{error}");
    }
}
