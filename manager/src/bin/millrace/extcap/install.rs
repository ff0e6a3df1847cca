//! A small script in the folder where Wireshark looks for programs to capture by.
#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};
use clap::Args;
use nflib::args::SOCKET_VARIABLE;

use crate::{Globals, print};

/// The script's name.
const NAME: &str = "millrace";
/// Its first lines: by these it is known to be ours.
const HEAD: &str = "#!/bin/sh\n# Made by `millrace extcap install`.\n";

#[derive(Args)]
pub struct Options {
    /// Wireshark's folder, where it is not the one that `tshark -G folders` tells
    #[arg(long, value_name = "FOLDER")]
    dir: Option<PathBuf>,
}

pub fn install(globals: &Globals, options: &Options) -> anyhow::Result<()> {
    let folder = folder(options)?;
    let path = folder.join(NAME);
    ours(&path)?;
    let program = std::env::current_exe().context("this program does not find itself")?;
    let socket = std::path::absolute(&globals.socket).context("the control socket")?;
    let [program, socket] = [&program, &socket].map(|path| quoted(path.as_os_str()));
    // Wireshark may itself have been started with another socket in mind.
    let variable = SOCKET_VARIABLE.as_bytes();
    let script = [
        HEAD.as_bytes(),
        &[b"socket=", &socket[..], b"\n"].concat(),
        &[b"export ", variable, b"=\"${", variable, b":-$socket}\"\n"].concat(),
        &[b"exec ", &program[..], b" extcap \"$@\"\n"].concat(),
    ]
    .concat();
    let beside = folder.join(format!(".{NAME}.{}", std::process::id()));
    let made = fs::create_dir_all(&folder)
        .and_then(|()| fs::write(&beside, script))
        .and_then(|()| fs::set_permissions(&beside, fs::Permissions::from_mode(0o755)))
        .and_then(|()| fs::rename(&beside, &path));
    if let Err(error) = made {
        let _ = fs::remove_file(&beside);
        let advice = match error.kind() {
            ErrorKind::PermissionDenied => {
                ": install as root, or into a folder of yours by --dir, and start Wireshark with \
                 WIRESHARK_EXTCAP_DIR naming it"
            }
            _ => "",
        };
        bail!("{}: {error}{advice}", folder.display());
    }
    print::text(&format!("{}\n", path.display()))
}

pub fn remove(options: &Options) -> anyhow::Result<()> {
    let path = folder(options)?.join(NAME);
    ours(&path)?;
    match fs::remove_file(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            bail!("{}: there is nothing to remove", path.display())
        }
        removed => removed.with_context(|| path.display().to_string()),
    }
}

/// Refuses to touch what somebody else has put there.
fn ours(path: &Path) -> anyhow::Result<()> {
    match fs::read(path) {
        Ok(bytes) if !bytes.starts_with(HEAD.as_bytes()) => {
            bail!("{}: this was not made by `millrace extcap install`", path.display())
        }
        _ => Ok(()),
    }
}

fn folder(options: &Options) -> anyhow::Result<PathBuf> {
    if let Some(folder) = &options.dir {
        return Ok(folder.clone());
    }
    let asked = Command::new("tshark").args(["-G", "folders"]).stdin(Stdio::null()).output();
    let text = asked.map(|said| String::from_utf8_lossy(&said.stdout).into_owned());
    match text.ok().as_deref().and_then(folder_in) {
        Some(folder) => Ok(folder),
        None => bail!("Wireshark's folder is not known, as tshark does not tell: name it by --dir"),
    }
}

/// The folder for programs to capture by: the user's own, where there is one.
fn folder_in(text: &str) -> Option<PathBuf> {
    let named = |label: &str| {
        let line = text.lines().find(|line| line.to_lowercase().starts_with(label))?;
        let (_, folder) = line.split_once(':')?;
        Some(PathBuf::from(folder.trim())).filter(|folder| folder.is_absolute())
    };
    named("personal extcap path")
        .or_else(|| named("extcap path"))
        .or_else(|| named("global extcap"))
}

/// A path in single quotes, as sh reads it back.
fn quoted(text: &OsStr) -> Vec<u8> {
    let mut quoted = b"'".to_vec();
    for &byte in text.as_bytes() {
        match byte {
            b'\'' => quoted.extend(b"'\\''"),
            byte => quoted.push(byte),
        }
    }
    quoted.push(b'\'');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_users_own_folder_goes_before_the_systems() {
        let old = "Temp:  \t/tmp\nExtcap path:         \t/usr/lib/wireshark/extcap\n";
        assert_eq!(folder_in(old), Some("/usr/lib/wireshark/extcap".into()));
        let new = "Global Extcap path:\t/usr/lib/x\nPersonal Extcap path:\t/home/me/.local/lib/x\n";
        assert_eq!(folder_in(new), Some("/home/me/.local/lib/x".into()));
        assert_eq!(folder_in("tshark: what?"), None);
    }

    #[test]
    fn quotes_are_quoted() {
        assert_eq!(quoted(OsStr::new("a'b c")), b"'a'\\''b c'");
    }
}
