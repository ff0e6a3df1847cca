//! From what is wanted to a command line: the program, its arguments, its user.
#![forbid(unsafe_code)]

use std::ffi::{CString, OsStr, OsString};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, Gid, Uid, User, access, geteuid, getgrouplist};

use super::Wanted;
use super::exec::Account;

/// The program's arguments: those of its command, then what every NF is told unless the command
/// says it already, and limits and core where there are any.
pub fn arguments(wanted: &Wanted, socket: &Path, core: Option<u32>) -> Vec<OsString> {
    let given = wanted.command.get(1..).unwrap_or_default();
    let mut args: Vec<OsString> = given.iter().map(OsString::from).collect();
    let mut add = |name: &str, value: Option<OsString>| {
        let has = |arg: &String| {
            arg.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
        };
        if let Some(value) = value
            && !given.iter().any(has)
        {
            args.extend([name.into(), value]);
        }
    };
    add("--service", Some(wanted.service.to_string().into()));
    add("--socket", Some(socket.into()));
    add("--core", core.map(|core| core.to_string().into()));
    add("--packet-limit", wanted.packet_limit.map(|limit| limit.to_string().into()));
    add("--time-limit-s", wanted.time_limit_s.map(|limit| limit.to_string().into()));
    args
}

/// Finds a program: a path as it stands; a name first in the folder of the manager's own program,
/// then in the folders of `search` (`$PATH`).
///
/// # Errors
/// One line.
pub fn find_program(name: &str, own: &Path, search: Option<&OsStr>) -> Result<PathBuf, String> {
    if name.contains('/') {
        let path = PathBuf::from(name);
        return check_program(&path).map(|()| path);
    }
    let folders = own.parent().map(PathBuf::from).into_iter();
    let folders = folders.chain(std::env::split_paths(search.unwrap_or_default()));
    let mut refused = None;
    for path in folders.filter(|folder| !folder.as_os_str().is_empty()).map(|f| f.join(name)) {
        match check_program(&path) {
            Ok(()) => return Ok(path),
            Err(why) if path.exists() => refused = refused.or(Some(why)),
            Err(_) => {}
        }
    }
    Err(refused.unwrap_or_else(|| {
        let beside = own.parent().unwrap_or(Path::new("."));
        format!("there is no program {name:?} in {} or $PATH", beside.display())
    }))
}

fn check_program(path: &Path) -> Result<(), String> {
    let shown = path.display();
    let meta = std::fs::metadata(path).map_err(|error| format!("{shown}: {error}"))?;
    if !meta.is_file() {
        return Err(format!("{shown}: not a program: expected an executable file"));
    }
    access(path, AccessFlags::X_OK).map_err(|_| format!("{shown}: not executable: chmod +x it"))
}

/// Who the NF has to become; `None`: it runs as the manager's own user.
///
/// Its groups are those of the user, and the control socket's group, without which it could not
/// open the socket (mode 0660).
///
/// # Errors
/// One line.
pub fn account(user: Option<&str>, socket: &Path) -> Result<Option<Account>, String> {
    let Some(name) = user else { return Ok(None) };
    let (uid, gid, mut groups) = look_up(name)?;
    if uid == geteuid().as_raw() {
        return Ok(None);
    }
    if !geteuid().is_root() {
        return Err(format!(
            "user {name:?}: only a manager that runs as root starts NFs as another user; remove \
             `user`, or start the manager as root"
        ));
    }
    if let Ok(meta) = std::fs::metadata(socket) {
        // Group 0 opens far more than a socket on most systems: not for an NF.
        if meta.gid() == 0 && gid != 0 {
            return Err(format!(
                "user {name:?} cannot open the control socket, which belongs to group root: set \
                 manager.socket_group"
            ));
        }
        groups.push(meta.gid());
    }
    groups.sort_unstable();
    groups.dedup();
    Ok(Some(Account { uid, gid, groups }))
}

/// User id, group id and groups. A number need not stand in the user database; its group is then
/// the one with the same number.
fn look_up(name: &str) -> Result<(u32, u32, Vec<u32>), String> {
    let failed = |errno: nix::Error| format!("user {name:?} cannot be looked up: {errno}");
    let number = name.parse::<u32>().ok();
    let user = match number {
        Some(uid) => User::from_uid(Uid::from_raw(uid)).map_err(failed)?,
        None => User::from_name(name).map_err(failed)?,
    };
    match (user, number) {
        (Some(user), _) => {
            let c_name = CString::new(user.name).map_err(|_| format!("user {name:?}"))?;
            let groups = getgrouplist(&c_name, user.gid).map_err(failed)?;
            Ok((
                user.uid.as_raw(),
                user.gid.as_raw(),
                groups.into_iter().map(Gid::as_raw).collect(),
            ))
        }
        (None, Some(uid)) => Ok((uid, uid, Vec::new())),
        (None, None) => Err(format!("there is no user {name:?} on this machine")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(command: &[&str]) -> Wanted {
        let command = command.iter().map(ToString::to_string).collect();
        Wanted { service: 7, command, ..Wanted::default() }
    }

    fn line(wanted: &Wanted, core: Option<u32>) -> String {
        let args = arguments(wanted, Path::new("/run/m.sock"), core);
        args.join(OsStr::new(" ")).into_string().unwrap()
    }

    #[test]
    fn an_nf_is_told_its_service_and_socket_and_what_else_is_wanted() {
        assert_eq!(
            line(&wanted(&["millrace-nf", "forward"]), None),
            "forward --service 7 --socket /run/m.sock"
        );
        let limited = Wanted {
            packet_limit: Some(100),
            time_limit_s: Some(2.5),
            ..wanted(&["nf", "--service=firewall", "--socketed"])
        };
        assert_eq!(
            line(&limited, Some(3)),
            "--service=firewall --socketed --socket /run/m.sock --core 3 --packet-limit 100 \
             --time-limit-s 2.5"
        );
    }

    #[test]
    fn a_program_is_looked_for_beside_the_manager_and_then_in_path() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        let (own, path) = (directory.path().join("own"), directory.path().join("path"));
        let put = |folder: &Path, name: &str, mode| {
            std::fs::create_dir_all(folder).unwrap();
            std::fs::write(folder.join(name), "").unwrap();
            let mode = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(folder.join(name), mode).unwrap();
        };
        put(&own, "both", 0o755);
        put(&path, "both", 0o755);
        put(&path, "second", 0o755);
        put(&own, "plain", 0o644);
        let find = |name: &str| find_program(name, &own.join("manager"), Some(path.as_os_str()));
        assert_eq!(find("both"), Ok(own.join("both")));
        assert_eq!(find("second"), Ok(path.join("second")));
        assert!(find("plain").unwrap_err().ends_with("not executable: chmod +x it"));
        assert!(find("nowhere").unwrap_err().starts_with("there is no program \"nowhere\" in"));
        assert!(find("./nowhere").unwrap_err().contains("./nowhere: No such file"));
        let folder = own.to_str().unwrap();
        assert!(find(folder).unwrap_err().contains("expected an executable file"));
    }

    #[test]
    fn a_user_that_does_not_exist_is_named() {
        let error = account(Some("no-such-user"), Path::new("/nowhere")).unwrap_err();
        assert_eq!(error, "there is no user \"no-such-user\" on this machine");
        assert_eq!(account(None, Path::new("/nowhere")), Ok(None));
        let me = geteuid().to_string();
        assert_eq!(account(Some(&me), Path::new("/nowhere")), Ok(None));
    }
}
