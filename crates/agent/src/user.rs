//! Who a process runs as: the `user` of an OCI image config, resolved with the image's own
//! `/etc/passwd` and `/etc/group` (passwd(5), group(5)), as container engines do.
//!
//! | given | user | group | further groups |
//! |---|---|---|---|
//! | empty | 0 | its group in passwd, else 0 | those of group that name the user |
//! | `name` | must be in passwd | its group there | those of group that name the user |
//! | `uid` | need not be in passwd | its group there, else 0 | those of group that name the user |
//! | `…:group` | as above | must be in group | none |
//! | `…:gid` | as above | need not be in group | none |
//!
//! Without an entry in passwd the home directory is `/`.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use rustix::io::Errno;

use crate::fault::Fault;
use crate::files;

/// The kernel's `NGROUPS_MAX`.
const MAX_GROUPS: usize = 65536;

/// Who, in the kernel's terms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary group ids.
    pub groups: Vec<u32>,
    /// The home directory.
    pub home: String,
}

struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

/// Lines that are not `name:password:uid:gid:gecos:home:shell` are passed over.
fn passwd_entries(text: &str) -> impl Iterator<Item = PasswdEntry<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let home = fields.nth(1).unwrap_or("");
        Some(PasswdEntry { name, uid, gid, home })
    })
}

struct GroupEntry<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

/// Lines that are not `name:password:gid:members` are passed over.
fn group_entries(text: &str) -> impl Iterator<Item = GroupEntry<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some(GroupEntry { name, gid, members: fields.next().unwrap_or("") })
    })
}

/// Reads the image's files and resolves `spec`.
///
/// # Errors
/// A name that is not in its file, or a file that can't be read; a missing file is an empty one.
pub fn resolve(spec: &str) -> Result<Identity, Fault> {
    let read = |path| match files::read(path) {
        Err(fault) if fault.cause == crate::sys::errno_text(Errno::NOENT) => Ok(String::new()),
        result => result,
    };
    resolve_in(spec, &read("/etc/passwd")?, &read("/etc/group")?)
}

/// Resolves `spec` with the texts of passwd and group.
///
/// # Errors
/// A name that is not in its file.
pub fn resolve_in(spec: &str, passwd: &str, group: &str) -> Result<Identity, Fault> {
    let (user, group_spec) = match spec.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (spec, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let number: Option<u32> = user.parse().ok();
    // A name made of digits wins over the number, as passwd says who it is.
    let entry = passwd_entries(passwd)
        .find(|entry| entry.name == user)
        .or_else(|| passwd_entries(passwd).find(|entry| Some(entry.uid) == number));
    let (uid, gid, home) = match (&entry, number) {
        (Some(entry), _) => (entry.uid, entry.gid, entry.home),
        (None, Some(uid)) => (uid, 0, ""),
        (None, None) => return Err(Fault::new("find user", user, "no matching entry in /etc/passwd")),
    };
    let home = if home.is_empty() { "/" } else { home }.to_string();
    if let Some(name) = group_spec {
        return Ok(Identity { uid, gid: group_id(name, group)?, groups: Vec::new(), home });
    }
    let name = entry.map_or("", |entry| entry.name);
    Ok(Identity { uid, gid, groups: groups_naming(name, group), home })
}

fn group_id(name: &str, group: &str) -> Result<u32, Fault> {
    group_entries(group)
        .find(|entry| entry.name == name)
        .map(|entry| entry.gid)
        .or_else(|| name.parse().ok())
        .ok_or_else(|| Fault::new("find group", name, "no matching entry in /etc/group"))
}

fn groups_naming(user: &str, group: &str) -> Vec<u32> {
    if user.is_empty() {
        return Vec::new();
    }
    let names_user = |entry: &GroupEntry<'_>| entry.members.split(',').any(|member| member == user);
    group_entries(group).filter(names_user).map(|entry| entry.gid).take(MAX_GROUPS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
        # a comment\nbroken:x:abc:1::\n:x:5:5::/:\n\
        web:x:33:34:web,,,:/var/www:/bin/false\nshort:x:40:41\n1000:x:7:8::/seven:\nhomeless:x:50:51:::\n";
    const GROUP: &str = "root:x:0:\nadm:x:4:root,web\nwww:x:34:\nbroken:x\nvideo:x:44:web\n";

    fn identity(uid: u32, gid: u32, groups: Vec<u32>, home: &str) -> Identity {
        Identity { uid, gid, groups, home: home.to_string() }
    }

    fn resolve(spec: &str) -> Identity {
        resolve_in(spec, PASSWD, GROUP).unwrap()
    }

    #[test]
    fn nothing_means_root() {
        assert_eq!(resolve(""), identity(0, 0, vec![4], "/root"));
        assert_eq!(resolve_in("", "", "").unwrap(), identity(0, 0, vec![], "/"));
    }

    #[test]
    fn a_name_brings_its_groups_and_home() {
        assert_eq!(resolve("web"), identity(33, 34, vec![4, 44], "/var/www"));
        assert_eq!(resolve("33"), identity(33, 34, vec![4, 44], "/var/www"));
        assert_eq!(resolve("web:"), identity(33, 34, vec![4, 44], "/var/www"));
    }

    #[test]
    fn a_group_given_is_the_only_one() {
        assert_eq!(resolve("web:adm"), identity(33, 4, vec![], "/var/www"));
        assert_eq!(resolve("web:999"), identity(33, 999, vec![], "/var/www"));
        assert_eq!(resolve(":video"), identity(0, 44, vec![], "/root"));
    }

    #[test]
    fn a_number_need_not_be_known() {
        assert_eq!(resolve("4242"), identity(4242, 0, vec![], "/"));
        assert_eq!(resolve("4242:4243"), identity(4242, 4243, vec![], "/"));
        assert_eq!(resolve("1000"), identity(7, 8, vec![], "/seven"));
    }

    #[test]
    fn entries_without_a_home_have_the_root_directory() {
        assert_eq!(resolve("short"), identity(40, 41, vec![], "/"));
        assert_eq!(resolve("homeless"), identity(50, 51, vec![], "/"));
    }

    #[test]
    fn an_unknown_name_is_named() {
        let fault = resolve_in("nobody", PASSWD, GROUP).unwrap_err();
        assert_eq!(fault.to_string(), "find user nobody: no matching entry in /etc/passwd");
        let fault = resolve_in("web:nogroup", PASSWD, GROUP).unwrap_err();
        assert_eq!(fault.to_string(), "find group nogroup: no matching entry in /etc/group");
        assert!(resolve_in("-1", PASSWD, GROUP).is_err());
        assert!(resolve_in("4294967296", PASSWD, GROUP).is_err());
    }
}
