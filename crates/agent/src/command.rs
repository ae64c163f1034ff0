//! What exactly to execute: the environment completed, the command looked for in `PATH`.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use protocol::{Failure, Process};
use rustix::fs::{self, FileType};
use rustix::io::Errno;

use crate::fault::Fault;
use crate::{files, sys};

/// The `PATH` of a process that is given none; what container engines use.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The value of `name` in a list of `NAME=value`.
#[must_use]
pub fn variable<'a>(env: &'a [String], name: &str) -> Option<&'a str> {
    env.iter().find_map(|entry| entry.strip_prefix(name)?.strip_prefix('='))
}

/// The environment of a process, with what every process expects added where it is absent.
/// Entries that are not `NAME=value` are left out.
#[must_use]
pub fn environment(process: &Process, home: &str, hostname: &str) -> Vec<String> {
    let mut env: Vec<String> =
        process.env.iter().filter(|entry| entry.find('=').is_some_and(|at| at > 0)).cloned().collect();
    let term = if process.tty.is_some() { "xterm" } else { "" };
    for (name, value) in [("PATH", DEFAULT_PATH), ("HOME", home), ("HOSTNAME", hostname), ("TERM", term)] {
        if !value.is_empty() && variable(&env, name).is_none() {
            env.push(format!("{name}={value}"));
        }
    }
    env
}

/// What a path names, as far as executing it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Executable,
    Not(Errno),
}

fn inspect(path: &str) -> Found {
    match fs::stat(path) {
        Err(errno) => Found::Not(errno),
        Ok(stat) if FileType::from_raw_mode(stat.st_mode).is_dir() => Found::Not(Errno::ISDIR),
        Ok(stat) if stat.st_mode & 0o111 == 0 => Found::Not(Errno::ACCESS),
        Ok(_) => Found::Executable,
    }
}

/// A command that can't be executed, with the shell's code for it.
pub type Unusable = (Fault, u8);

/// Finds the file `command` means, as execvp(3) does: with a slash in it, itself (from `cwd` if
/// relative), else the first executable of that name in the directories of `path`.
///
/// # Errors
/// Not found (127), or found and not executable (126).
pub fn find(command: &str, path: &str, cwd: &str) -> Result<String, Unusable> {
    if command.is_empty() {
        return Err((Fault::new("run", "\"\"", "the command is empty"), Failure::NOT_FOUND));
    }
    if command.contains('/') {
        let file = files::join(cwd, command);
        return match inspect(&file) {
            Found::Executable => Ok(file),
            Found::Not(errno) => Err(refusal(command, errno)),
        };
    }
    let mut denied = None;
    for dir in path.split(':') {
        let file = files::join(&files::join(cwd, dir), command);
        match inspect(&file) {
            Found::Executable => return Ok(file),
            Found::Not(Errno::NOENT | Errno::NOTDIR | Errno::ISDIR) => {}
            Found::Not(errno) => denied = denied.or(Some((file, errno))),
        }
    }
    match denied {
        Some((file, errno)) => Err(refusal(&file, errno)),
        None => Err((Fault::new("run", command, "not found in PATH"), Failure::NOT_FOUND)),
    }
}

/// What `errno`, from looking at or executing `command`, means to who asked for it.
#[must_use]
pub fn refusal(command: &str, errno: Errno) -> Unusable {
    let code = match errno {
        Errno::NOENT | Errno::NOTDIR => Failure::NOT_FOUND,
        _ => Failure::NOT_EXECUTABLE,
    };
    (Fault::os("run", command, errno), code)
}

/// What `errno` means when executing a file that [`find`] had found.
#[must_use]
pub fn exec_refusal(file: &str, errno: Errno) -> Unusable {
    let (mut fault, code) = refusal(file, errno);
    match errno {
        Errno::NOENT => fault.cause = "its interpreter or dynamic loader is not in the image".to_string(),
        Errno::NOEXEC => fault.cause = format!("{} (for another kind of machine?)", sys::errno_text(errno)),
        _ => {}
    }
    (fault, code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn absent_variables_are_added_and_given_ones_kept() {
        let mut process = Process { env: strings(&["PATH=/x", "A=b=c", "junk", "=x"]), ..Process::default() };
        assert_eq!(environment(&process, "/root", "box"), ["PATH=/x", "A=b=c", "HOME=/root", "HOSTNAME=box"]);
        process.tty = Some(protocol::WinSize::default());
        process.env = strings(&["HOME=", "TERMINAL=1"]);
        let path = format!("PATH={DEFAULT_PATH}");
        assert_eq!(environment(&process, "/root", ""), ["HOME=", "TERMINAL=1", &path, "TERM=xterm"]);
    }

    #[test]
    fn the_first_executable_in_path_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().to_str().unwrap();
        for (name, mode) in [("a/tool", 0o644), ("b/tool", 0o755), ("a/plain", 0o644), ("a/sub/dir", 0o644)] {
            let file = dir.path().join(name);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(&file, "").unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        let path = format!("{root}/nowhere:{root}/a:{root}/b");
        assert_eq!(find("tool", &path, "/").unwrap(), format!("{root}/b/tool"));
        assert_eq!(find("tool", "a:b", root).unwrap(), format!("{root}/b/tool"));
        assert_eq!(find("b/tool", "", root).unwrap(), format!("{root}/b/tool"));

        let (fault, code) = find("plain", &path, "/").unwrap_err();
        assert_eq!((fault.to_string(), code), (format!("run {root}/a/plain: Permission denied"), 126));
        let (fault, code) = find("none", &path, "/").unwrap_err();
        assert_eq!((fault.to_string().as_str(), code), ("run none: not found in PATH", 127));
        assert_eq!(find("sub", &path, "/").unwrap_err().1, 127);
        assert_eq!(find("a/sub", "", root).unwrap_err().1, 126);
        assert_eq!(find("./none", "", root).unwrap_err().1, 127);
        assert_eq!(find("", &path, root).unwrap_err().1, 127);
    }
}
