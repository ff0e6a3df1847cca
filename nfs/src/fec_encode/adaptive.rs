//! How much may be lost, and what that may cost: the value of `--adaptive`.
#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;

/// Adaptive redundancy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adaptive {
    /// Share of packets that may stay lost after repair.
    pub target: f64,
    /// Most parity packets for a data packet.
    pub cap: f64,
    /// Share lost on the link below which nothing is done.
    pub floor: f64,
}

const USAGE: &str =
    "expected target=SHARE,cap=SHARE,floor=SHARE, as target=1e-5,cap=0.5,floor=1e-4";

impl FromStr for Adaptive {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let [mut target, mut cap, mut floor] = [None; 3];
        for part in text.split(',') {
            let (key, value) = part.split_once('=').ok_or(USAGE)?;
            let value: f64 = value.trim().parse().map_err(|_| USAGE)?;
            let place = match key.trim() {
                "target" => &mut target,
                "cap" => &mut cap,
                "floor" => &mut floor,
                _ => return Err(USAGE.to_owned()),
            };
            if place.replace(value).is_some() {
                return Err(USAGE.to_owned());
            }
        }
        let target = target.ok_or(USAGE)?;
        if !(target > 0.0 && target < 1.0) {
            return Err("expected a target above 0 and below 1".to_owned());
        }
        let cap = cap.unwrap_or(Self::CAP);
        if !(cap > 0.0 && cap <= Self::CAP_MAX) {
            return Err(format!("expected a cap above 0, at most {}", Self::CAP_MAX));
        }
        let floor = floor.unwrap_or(target);
        if !(0.0..1.0).contains(&floor) {
            return Err("expected a floor of 0 or more and below 1".to_owned());
        }
        Ok(Self { target, cap, floor })
    }
}

impl Adaptive {
    /// The cap where none is given: a parity packet for two of data.
    const CAP: f64 = 0.5;
    /// The most there can be: as much parity as data.
    const CAP_MAX: f64 = 1.0;
}

impl fmt::Display for Adaptive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "target={},cap={},floor={}", self.target, self.cap, self.floor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_as_it_is_written_and_what_is_not_said_has_a_default() {
        let all: Adaptive = "cap=0.25, floor=0.001,target=1e-5".parse().unwrap();
        assert_eq!(all, Adaptive { target: 1e-5, cap: 0.25, floor: 0.001 });
        assert_eq!(all.to_string().parse(), Ok(all));
        let few: Adaptive = "target=0.001".parse().unwrap();
        assert_eq!(few, Adaptive { target: 0.001, cap: 0.5, floor: 0.001 });
    }

    #[test]
    fn what_makes_no_sense_is_refused_in_one_line() {
        for (text, expected) in [
            ("", "expected target=SHARE"),
            ("target", "expected target=SHARE"),
            ("cap=0.5", "expected target=SHARE"),
            ("target=much", "expected target=SHARE"),
            ("target=1e-5,target=1e-5", "expected target=SHARE"),
            ("target=1e-5,roof=2", "expected target=SHARE"),
            ("target=0", "a target above 0"),
            ("target=1", "a target above 0"),
            ("target=nan", "a target above 0"),
            ("target=1e-5,cap=0", "a cap above 0"),
            ("target=1e-5,cap=1.1", "at most 1"),
            ("target=1e-5,floor=-1", "a floor of 0 or more"),
        ] {
            let error = text.parse::<Adaptive>().unwrap_err();
            assert!(error.contains(expected) && error.lines().count() == 1, "{text}: {error}");
        }
    }
}
