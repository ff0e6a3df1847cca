//! Why a wanted state is impossible, and the checks of names that all parts share.
#![forbid(unsafe_code)]

use nflib::control::{ChangeOf, ErrorCode, ErrorReply};
use thiserror::Error;

/// Longest name of a service, chain or rule, bytes.
pub const MAX_NAME_BYTES: usize = 64;

/// Why a wanted state is impossible. One line: what is wrong, what was expected.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{message}")]
pub struct ModelError {
    /// [`ErrorCode::NotFound`]: something is named that does not exist; else
    /// [`ErrorCode::Invalid`].
    pub code: ErrorCode,
    /// For people.
    pub message: String,
    /// The table of the configuration file it is about, when it is about one.
    pub item: Option<Item>,
}

/// A table of a configuration file: its kind, and its place among those of its kind, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item {
    /// `[[service]]`, `[[chain]]` or `[[rule]]`.
    pub of: ChangeOf,
    /// Place among those.
    pub at: usize,
}

impl ModelError {
    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self { code: ErrorCode::Invalid, message: message.into(), item: None }
    }

    pub(super) fn not_found(message: impl Into<String>) -> Self {
        Self { code: ErrorCode::NotFound, message: message.into(), item: None }
    }

    /// Says where the mistake stands, unless that is known already.
    pub(super) fn at(mut self, of: ChangeOf, at: usize) -> Self {
        self.item = self.item.or(Some(Item { of, at }));
        self
    }
}

impl From<ModelError> for ErrorReply {
    fn from(error: ModelError) -> Self {
        Self { code: error.code, message: error.message }
    }
}

/// Checks a name of a service, chain or rule.
pub(super) fn check_name(what: &str, name: &str) -> Result<(), ModelError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    if (1..=MAX_NAME_BYTES).contains(&name.len()) && name.bytes().all(plain) {
        return Ok(());
    }
    Err(ModelError::invalid(format!(
        "{what} {}: a name is 1 to {MAX_NAME_BYTES} of A-Z a-z 0-9 _ - .",
        shown(name)
    )))
}

/// A text of somebody else in quotes, on one line and not endless.
pub(super) fn shown(text: &str) -> String {
    if text.chars().nth(MAX_NAME_BYTES).is_none() {
        return format!("{text:?}");
    }
    let head: String = text.chars().take(MAX_NAME_BYTES).collect();
    format!("\"{}…\"", head.escape_debug())
}

/// `there are a, b, c`, cut short when they are many; `none` when there is none.
pub(super) fn there_are<'a>(names: impl Iterator<Item = &'a str>, none: &str) -> String {
    const MANY: usize = 20;
    let mut names: Vec<_> = names.take(MANY + 1).collect();
    if names.is_empty() {
        return none.to_owned();
    }
    let more = if names.len() > MANY { ", …" } else { "" };
    names.truncate(MANY);
    format!("there are {}{more}", names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_foreign_text_stays_on_one_line_and_short() {
        assert_eq!(shown("a\nb"), r#""a\nb""#);
        let long = shown(&"\u{1}".repeat(1000));
        assert!(long.ends_with("…\"") && long.len() < 500 && !long.contains('\u{1}'), "{long}");
    }

    #[test]
    fn a_long_list_is_cut() {
        let names: Vec<_> = (0..100).map(|n| n.to_string()).collect();
        let list = there_are(names.iter().map(String::as_str), "no port");
        assert!(list.starts_with("there are 0, 1,") && list.ends_with(", 19, …"), "{list}");
        assert_eq!(there_are([].into_iter(), "there is no port"), "there is no port");
    }
}
