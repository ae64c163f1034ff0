//! Ids of a user namespace, mapped from outside: by writing the maps, or with `newuidmap` and `newgidmap` where the
//! kernel does not let this user write them.

use std::process::{Command, Stdio};

use crate::error::{Error, Result, While};
use crate::spec::IdMapping;

/// Maps the ids of process `pid`, which is in a new user namespace.
///
/// # Errors
/// A map is missing or refused.
pub fn map(pid: i32, uids: &[IdMapping], gids: &[IdMapping]) -> Result<()> {
    if uids.is_empty() || gids.is_empty() {
        return Err(Error::refused("user namespace", "it needs uidMappings and gidMappings"));
    }
    let root = rustix::process::geteuid().is_root();
    let own = rustix::process::getegid().as_raw();
    if !root && matches!(gids, [only] if only.size == 1 && only.host_id == own) {
        // Without this nobody but root may write a map of groups, not even one of the own group. `newgidmap`, which
        // gives more than that, needs it not, and processes inside can set groups then.
        let file = format!("/proc/{pid}/setgroups");
        std::fs::write(&file, "deny").during(|| format!("write {file}"))?;
    }
    for (file, tool, mappings) in [("uid_map", "newuidmap", uids), ("gid_map", "newgidmap", gids)] {
        let path = format!("/proc/{pid}/{file}");
        let lines: String =
            mappings.iter().map(|m| format!("{} {} {}\n", m.container_id, m.host_id, m.size)).collect();
        match std::fs::write(&path, &lines) {
            Err(error) if !root && find(tool) => {
                tracing::debug!("write {path}: {error}; {tool} is asked");
                with_tool(tool, pid, mappings)?;
            }
            result => result.during(|| format!("write {path}"))?,
        }
    }
    Ok(())
}

fn find(tool: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(tool).is_file()))
}

fn with_tool(tool: &str, pid: i32, mappings: &[IdMapping]) -> Result<()> {
    let numbers = mappings.iter().flat_map(|m| [m.container_id, m.host_id, m.size]);
    let mut command = Command::new(tool);
    command.arg(pid.to_string()).args(numbers.map(|n| n.to_string())).stdin(Stdio::null());
    let output = command.output().during(|| format!("run {tool}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::refused(format!("run {tool}"), String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}
