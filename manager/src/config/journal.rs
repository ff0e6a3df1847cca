//! Key `journal` of `[manager]`.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use serde::Deserialize;

/// Whether what is wanted is written down for the next manager, and where.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum JournalSetting {
    /// Beside the control socket, for a manager that dies; a clean end removes it.
    #[default]
    BesideSocket,
    /// Not at all (`"off"`).
    Off,
    /// Here; it stays.
    At(PathBuf),
}

impl JournalSetting {
    /// The file for the manager of a control socket, and whether it is to last; `None`: no file.
    #[must_use]
    pub fn file(&self, socket: &Path) -> Option<(PathBuf, bool)> {
        match self {
            Self::BesideSocket => {
                let mut path = socket.as_os_str().to_owned();
                path.push(".journal");
                Some((path.into(), false))
            }
            Self::Off => None,
            Self::At(path) => Some((path.clone(), true)),
        }
    }
}

impl TryFrom<String> for JournalSetting {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        match text.as_str() {
            "" => Err("journal is empty: expected a path, or \"off\""),
            "off" => Ok(Self::Off),
            _ => Ok(Self::At(text.into())),
        }
    }
}
