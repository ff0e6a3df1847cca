//! What the manager of a soak is told to run, and how that may change.
#![forbid(unsafe_code)]

use std::fmt::Write as _;

use nflib::control::OnDeath;

/// Chains whose NFs are killed and stopped.
pub const CHAINS: usize = 8;
/// Flows of each of them; as many come in by no rule, for the chain that is scaled.
const FLOWS: usize = 16;
/// Buffers of the pool.
pub const BUFFERS: u64 = 16_384;
/// The service that is scaled.
pub const SCALED: &str = "scaled";
/// The chain of which nothing may be lost.
pub const BYSTANDERS: [&str; 2] = ["by1", "by2"];

/// A chain whose NFs die.
#[derive(Clone, Debug)]
struct Churned {
    /// Order of its services.
    order: [usize; 3],
    on_death: OnDeath,
    /// How often the command of its middle service changed.
    rolls: [u32; 3],
}

/// Everything that can be changed.
#[derive(Clone, Debug)]
pub struct World {
    chains: Vec<Churned>,
    /// Instances of [`SCALED`].
    pub scaled: u32,
    rate_pps: u64,
}

/// The name of a service of a chain.
#[must_use]
pub fn service(chain: usize, at: usize) -> String {
    format!("c{chain}{}", ["a", "b", "c"][at % 3])
}

impl World {
    /// As it begins: `rate_pps` packets a second to the chains whose NFs die, half as many to the
    /// bystanders.
    #[must_use]
    pub fn new(rate_pps: u64) -> Self {
        let policy = [OnDeath::Hold, OnDeath::Bypass, OnDeath::Drop];
        let chain = |at: usize| Churned {
            order: [0, 1, 2],
            on_death: policy[at % policy.len()],
            rolls: [0; 3],
        };
        Self { chains: (0..CHAINS).map(chain).collect(), scaled: 2, rate_pps }
    }

    /// Services whose NFs may be killed.
    #[must_use]
    pub fn victims(&self) -> Vec<String> {
        let of_chains = (0..CHAINS).flat_map(|chain| (0..3).map(move |at| service(chain, at)));
        of_chains.chain([SCALED.to_owned()]).collect()
    }

    /// Another order, another policy or another command somewhere. Returns what, for the log.
    pub fn change(&mut self, random: &mut fastrand::Rng) -> String {
        let number = random.usize(0..CHAINS);
        let chain = &mut self.chains[number];
        match random.u32(0..3) {
            0 => {
                random.shuffle(&mut chain.order);
                format!("chain c{number} in the order {:?}", chain.order)
            }
            1 => {
                chain.on_death =
                    [OnDeath::Hold, OnDeath::Bypass, OnDeath::Drop][random.usize(0..3)];
                format!("chain c{number} with on_death {}", chain.on_death)
            }
            _ => {
                let at = random.usize(0..3);
                chain.rolls[at] += 1;
                format!("another command for {}", service(number, at))
            }
        }
    }

    /// The tables of the configuration; without services in the chains, so that NFs are left with
    /// what they have, if `empty`.
    #[must_use]
    pub fn tables(&self, empty: bool) -> String {
        let (all, half) = (self.rate_pps, self.rate_pps / 2);
        let mut text = String::new();
        let mut add = |part: String| text.push_str(&part);
        add(generator("in", FLOWS * (CHAINS + 1), all, "out") + &sink("out"));
        add(generator("by_in", 2 * FLOWS, half, "by_out") + &sink("by_out"));
        for name in BYSTANDERS {
            add(service_table(name, 1, false, 0));
        }
        add(service_table(SCALED, self.scaled, false, 0));
        for (number, chain) in self.chains.iter().enumerate() {
            for at in 0..3 {
                // Of every other chain the middle one is isolated.
                let isolated = at == 1 && number % 2 == 1;
                add(service_table(&service(number, at), 1, isolated, chain.rolls[at]));
            }
        }
        let none: &[String] = &[];
        let of = |services: Vec<String>| if empty { none.to_vec() } else { services };
        add(chain_table("bystander", &of(BYSTANDERS.map(str::to_owned).to_vec()), OnDeath::Drop));
        add(chain_table("default", &of(vec![SCALED.to_owned()]), OnDeath::Hold));
        for (number, chain) in self.chains.iter().enumerate() {
            let services = chain.order.map(|at| service(number, at)).to_vec();
            add(chain_table(&format!("c{number}"), &of(services), chain.on_death));
            let first = FLOWS * number;
            add(rule(
                &format!("c{number}"),
                1,
                &format!("in_port = \"in\", eth_type = \"ipv4\", ip_src = \"198.18.0.{first}/28\""),
            ));
        }
        add(rule("bystander", 2, "in_port = \"by_in\""));
        text
    }
}

fn generator(name: &str, flows: usize, rate_pps: u64, egress: &str) -> String {
    format!(
        "[[port]]\nname = \"{name}\"\nbackend = \"generator\"\nflows = {flows}\n\
         rate_pps = {rate_pps}\negress = \"{egress}\"\n"
    )
}

fn sink(name: &str) -> String {
    format!("[[port]]\nname = \"{name}\"\nbackend = \"sink\"\nverify = true\n")
}

fn service_table(name: &str, instances: u32, isolated: bool, roll: u32) -> String {
    // An option that changes nothing but the command itself.
    let roll = 3600 + roll;
    let mut text = format!(
        "[[service]]\nname = \"{name}\"\ninstances = {instances}\ncommand = [\"millrace-nf\", \
         \"forward\", \"--log\", \"error\", \"--print-every\", \"{roll}\"]\n"
    );
    if isolated {
        text.push_str("isolated = true\n");
    }
    text
}

fn chain_table(name: &str, services: &[String], on_death: OnDeath) -> String {
    format!("[[chain]]\nname = \"{name}\"\nservices = {services:?}\non_death = \"{on_death}\"\n")
}

fn rule(chain: &str, priority: u16, matches: &str) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "[[rule]]\nname = \"{chain}\"\npriority = {priority}");
    let _ = writeln!(text, "match = {{ {matches} }}\nthen = {{ chain = \"{chain}\" }}");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn every_world_that_chance_makes_is_a_configuration() {
        let (mut world, mut random) = (World::new(1000), fastrand::Rng::with_seed(1));
        for step in 0..50 {
            let text =
                format!("[manager]\nsocket = \"/nowhere/m.sock\"\n{}", world.tables(step % 5 == 0));
            let config = millrace::config::Config::parse(&text, Path::new("soak.toml")).unwrap();
            assert_eq!(config.model.services().count(), 3 * CHAINS + 3);
            world.change(&mut random);
        }
    }
}
