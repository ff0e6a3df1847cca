//! Settings of a running NF, by messages that look alike for all NFs.
//!
//! | message | answer |
//! |---|---|
//! | `help` | every key with its value and what it means, a line each |
//! | `get` | every key with its value, a line each |
//! | `get KEY` | the value |
//! | `set KEY VALUE` | the value, as it is now |
//!
//! Messages and answers are text. A key is named like the option that sets it at the start. A person
//! sends them by `millrace nf call`:
//!
//! ```
//! use nflib::settings::{self, Setting, Settings};
//!
//! /// Drops packets longer than a limit.
//! struct Cap { bytes: u16 }
//!
//! impl Settings for Cap {
//!     const KEYS: &'static [Setting] =
//!         &[Setting { key: "bytes", help: "longest packet that passes, 60 to 9000" }];
//!
//!     fn get(&self, _: &str) -> String {
//!         self.bytes.to_string()
//!     }
//!
//!     fn set(&mut self, _: &str, value: &str) -> Result<(), String> {
//!         let bytes = value.parse().ok().filter(|bytes| (60..=9000).contains(bytes));
//!         self.bytes = bytes.ok_or("expected 60 to 9000")?;
//!         Ok(())
//!     }
//! }
//!
//! let mut cap = Cap { bytes: 1500 };
//! assert_eq!(settings::answer(&mut cap, b"set bytes 900"), Ok(b"900".to_vec()));
//! assert_eq!(cap.bytes, 900);
//! assert_eq!(
//!     settings::answer(&mut cap, b"set bytes 7"),
//!     Err("bytes cannot be \"7\": expected 60 to 9000".to_owned()),
//! );
//! ```
#![forbid(unsafe_code)]

use std::fmt::Write as _;

/// One thing that can be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Its name: one word.
    pub key: &'static str,
    /// What it means, and what it can be; a part of a line.
    pub help: &'static str,
}

/// What can be set while an NF runs.
pub trait Settings {
    /// All there is.
    const KEYS: &'static [Setting];

    /// The value of one of [`KEYS`](Self::KEYS), as `set` would take it.
    fn get(&self, key: &str) -> String;

    /// Gives one of [`KEYS`](Self::KEYS) another value.
    ///
    /// # Errors
    /// What was expected instead. The value stays as it is.
    fn set(&mut self, key: &str, value: &str) -> Result<(), String>;
}

/// Acts on a message, for [`NetworkFunction::message`](crate::NetworkFunction::message).
///
/// # Errors
/// One line that says what was wrong with the message.
pub fn answer<S: Settings>(settings: &mut S, message: &[u8]) -> Result<Vec<u8>, String> {
    let text = std::str::from_utf8(message).map_err(|_| usage("the message is no text"))?;
    let (word, rest) = split_word(text);
    let answer = match (word, split_word(rest)) {
        ("help", ("", _)) => lines::<S>(|setting| {
            format!("{} = {}  ({})", setting.key, settings.get(setting.key), setting.help)
        }),
        ("get", ("", _)) => {
            lines::<S>(|setting| format!("{} = {}", setting.key, settings.get(setting.key)))
        }
        ("get", (key, "")) => settings.get(known::<S>(key)?),
        ("set", (key, value)) if !value.is_empty() => {
            let key = known::<S>(key)?;
            settings
                .set(key, value)
                .map_err(|expected| format!("{key} cannot be {value:?}: {expected}"))?;
            settings.get(key)
        }
        _ => return Err(usage(&format!("{text:?} is not understood"))),
    };
    Ok(answer.into_bytes())
}

/// Reads `on` or `off`, for [`Settings::set`].
///
/// # Errors
/// Any other text.
pub fn switch(value: &str) -> Result<bool, String> {
    match value {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("expected on or off".to_owned()),
    }
}

/// Writes `on` or `off`, for [`Settings::get`].
#[must_use]
pub fn switch_text(on: bool) -> String {
    if on { "on" } else { "off" }.to_owned()
}

fn usage(what: &str) -> String {
    format!("{what}; expected help, get, get KEY or set KEY VALUE")
}

/// The first word, and what follows it without blanks around.
fn split_word(text: &str) -> (&str, &str) {
    let text = text.trim();
    text.split_once(char::is_whitespace).map_or((text, ""), |(word, rest)| (word, rest.trim()))
}

fn known<S: Settings>(key: &str) -> Result<&'static str, String> {
    S::KEYS.iter().map(|setting| setting.key).find(|&known| known == key).ok_or_else(|| {
        let all: Vec<_> = S::KEYS.iter().map(|setting| setting.key).collect();
        format!("there is no setting {key:?}; there are: {}", all.join(", "))
    })
}

fn lines<S: Settings>(line: impl Fn(&Setting) -> String) -> String {
    let mut text = String::new();
    for setting in S::KEYS {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{}", line(setting));
    }
    text.truncate(text.trim_end().len());
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Default)]
    struct Two {
        name: String,
        on: bool,
    }

    impl Settings for Two {
        const KEYS: &'static [Setting] =
            &[Setting { key: "name", help: "any text" }, Setting { key: "on", help: "on or off" }];

        fn get(&self, key: &str) -> String {
            if key == "on" { switch_text(self.on) } else { self.name.clone() }
        }

        fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
            match key {
                "on" => self.on = switch(value)?,
                _ => self.name = value.to_owned(),
            }
            Ok(())
        }
    }

    fn ask(settings: &mut Two, message: &str) -> Result<String, String> {
        answer(settings, message.as_bytes()).map(|bytes| String::from_utf8(bytes).unwrap())
    }

    #[test]
    fn what_is_set_is_got_and_nothing_else_changes() {
        let mut two = Two::default();
        assert_eq!(ask(&mut two, "set name two  words "), Ok("two  words".into()));
        assert_eq!(ask(&mut two, " set\ton on\n"), Ok("on".into()));
        assert_eq!(ask(&mut two, "get name"), Ok("two  words".into()));
        assert_eq!(ask(&mut two, "get"), Ok("name = two  words\non = on".into()));
        let help = ask(&mut two, "help").unwrap();
        assert!(help.contains("on = on  (on or off)"), "{help}");
    }

    #[test]
    fn what_is_wrong_is_said_in_one_line_and_changes_nothing() {
        let mut two = Two { name: "old".into(), on: true };
        let cases = [
            ("", "get KEY"),
            ("set", "set KEY VALUE"),
            ("set on", "set KEY VALUE"),
            ("get on off", "not understood"),
            ("set off on", "there are: name, on"),
            ("get off", "there are: name, on"),
            ("set on maybe", "expected on or off"),
            ("gets on", "not understood"),
        ];
        for (message, complaint) in cases {
            let error = ask(&mut two, message).unwrap_err();
            assert!(error.contains(complaint) && error.lines().count() == 1, "{message}: {error}");
        }
        assert!(answer(&mut two, &[0xff]).unwrap_err().contains("no text"));
        assert_eq!((two.name.as_str(), two.on), ("old", true));
    }

    proptest! {
        #[test]
        fn any_message_has_an_answer_or_a_complaint(message: Vec<u8>) {
            let _ = answer(&mut Two::default(), &message);
        }
    }
}
