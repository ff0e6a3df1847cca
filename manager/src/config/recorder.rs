//! The keys of `[manager]` about NFs that crash: what is kept of them, and where.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use serde::Deserialize;

/// Where bundles of crashed NFs are put, if anywhere.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum CrashDirSetting {
    /// Beside the control socket.
    #[default]
    BesideSocket,
    /// Nowhere (`"off"`).
    Off,
    /// Here.
    At(PathBuf),
}

impl CrashDirSetting {
    /// The folder for the manager of a control socket; `None`: no bundles are written.
    #[must_use]
    pub fn folder(&self, socket: &Path) -> Option<PathBuf> {
        match self {
            Self::BesideSocket => {
                let mut path = socket.as_os_str().to_owned();
                path.push(".crashes");
                Some(path.into())
            }
            Self::Off => None,
            Self::At(path) => Some(path.clone()),
        }
    }
}

impl TryFrom<String> for CrashDirSetting {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        match text.as_str() {
            "" => Err("crash_dir is empty: expected a path, or \"off\""),
            "off" => Ok(Self::Off),
            _ => Ok(Self::At(text.into())),
        }
    }
}
