//! Users by name, from the files of the container's own root: hostile input, read up to a limit and never executed.

use std::os::fd::BorrowedFd;

use crate::error::{Error, Result};
use crate::paths;
use crate::spec::User;

/// The most that is read of `/etc/passwd` and `/etc/group`.
const MOST_BYTES: usize = 4 << 20;

/// The numbers of `USER[:GROUP]`, each a name or a number. Without a group it is the user's own, and the user's further
/// groups count too.
///
/// # Errors
/// There is no such user or group.
pub fn resolve(root: BorrowedFd<'_>, text: &str) -> Result<User> {
    let (name, group) = text.split_once(':').map_or((text, None), |(name, group)| (name, Some(group)));
    let passwd = paths::read_small(root, "etc/passwd", MOST_BYTES).unwrap_or_default();
    let groups = paths::read_small(root, "etc/group", MOST_BYTES).unwrap_or_default();
    find(&passwd, &groups, name, group.filter(|group| !group.is_empty()))
}

fn find(passwd: &str, groups: &str, name: &str, group: Option<&str>) -> Result<User> {
    let name = if name.is_empty() { "0" } else { name };
    let entry = passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let (uid, gid) = (number(fields.get(2)?)?, number(fields.get(3)?)?);
        (fields[0] == name || number(name) == Some(uid)).then_some((fields[0], uid, gid))
    });
    let (login, uid, own_gid) = match (entry, number(name)) {
        (Some(entry), _) => entry,
        (None, Some(uid)) => ("", uid, 0),
        (None, None) => return Err(Error::refused(format!("user {name:?}"), "there is none in the root")),
    };
    let rows = || {
        groups.lines().filter_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            Some((fields[0], number(fields.get(2)?)?, fields.get(3).copied().unwrap_or_default()))
        })
    };
    let (gid, additional_gids) = match group {
        Some(group) => (find_group(groups, group)?, Vec::new()),
        None => {
            let member = |row: &(&str, u32, &str)| !login.is_empty() && row.2.split(',').any(|m| m == login);
            (own_gid, rows().filter(member).map(|row| row.1).collect())
        }
    };
    Ok(User { uid, gid, umask: None, additional_gids })
}

/// The numbers of groups, each a name or a number.
///
/// # Errors
/// There is no such group.
pub fn groups(root: BorrowedFd<'_>, names: &[String]) -> Result<Vec<u32>> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let rows = paths::read_small(root, "etc/group", MOST_BYTES).unwrap_or_default();
    names.iter().map(|name| find_group(&rows, name)).collect()
}

fn find_group(groups: &str, name: &str) -> Result<u32> {
    let row = |line: &str| {
        let mut fields = line.split(':');
        (fields.next()? == name).then(|| number(fields.nth(1)?))?
    };
    let missing = || Error::refused(format!("group {name:?}"), "there is none in the root");
    groups.lines().find_map(row).or_else(|| number(name)).ok_or_else(missing)
}

fn number(text: &str) -> Option<u32> {
    text.parse::<u32>().ok().filter(|number| *number != u32::MAX)
}

/// The home folder of a user, `/` if nobody knows.
#[must_use]
pub fn home(root: BorrowedFd<'_>, uid: u32) -> String {
    let passwd = paths::read_small(root, "etc/passwd", MOST_BYTES).unwrap_or_default();
    let entry = passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        (fields.get(2)?.parse() == Ok(uid)).then(|| fields.get(5).map(|home| (*home).to_owned()))?
    });
    entry.filter(|home| home.starts_with('/')).unwrap_or_else(|| "/".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:33:34:www:/var/www:/bin/false\n";
    const GROUPS: &str = "root:x:0:\nweb:x:34:\nlogs:x:4:web,other\nx:y\n";

    fn numbers(text: &str) -> Option<(u32, u32, Vec<u32>)> {
        let (name, group) = text.split_once(':').map_or((text, None), |(name, group)| (name, Some(group)));
        find(PASSWD, GROUPS, name, group).ok().map(|user| (user.uid, user.gid, user.additional_gids))
    }

    #[test]
    fn names_and_numbers_are_found() {
        assert_eq!(numbers("web"), Some((33, 34, vec![4])));
        assert_eq!(numbers("33"), Some((33, 34, vec![4])));
        assert_eq!(numbers("web:logs"), Some((33, 4, vec![])));
        assert_eq!(numbers("1000:1000"), Some((1000, 1000, vec![])));
        assert_eq!(numbers("1000"), Some((1000, 0, vec![])));
        assert_eq!(numbers(""), Some((0, 0, vec![])));
        assert_eq!(numbers("nobody"), None);
        assert_eq!(numbers("web:nobody"), None);
        assert_eq!(numbers("4294967295"), None);
        let group = |name: &str| find_group(GROUPS, name).ok();
        assert_eq!((group("logs"), group("7"), group("x"), group("none")), (Some(4), Some(7), None, None));
    }
}
