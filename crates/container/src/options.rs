//! Mount options as `mount -o` and the runtime specification have them, sorted into what the kernel takes apart.

use rustix::mount::MountAttrFlags;

/// What the options of one mount ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountOptions {
    /// Attributes of the mount to set.
    pub set: u64,
    /// Attributes of the mount to clear.
    pub clear: u64,
    /// The same for all mounts below (`rro` and its like).
    pub set_below: u64,
    /// The same for all mounts below.
    pub clear_below: u64,
    /// Whether it is a bind mount, and with what is mounted below.
    pub bind: Option<Bind>,
    /// Propagation to set, each with whether it goes for mounts below too.
    pub propagation: Vec<(u64, bool)>,
    /// Flags of the file system: `sync`, `dirsync`, …
    pub flags: Vec<String>,
    /// `name=value` of the file system.
    pub values: Vec<(String, String)>,
    /// Copy what is there into a new tmpfs.
    pub copy_up: bool,
    /// Whether its files have other owners (`idmap`), and those of what is mounted below too (`ridmap`).
    pub mapped: Option<Bind>,
}

/// How much is bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bind {
    /// One mount.
    One,
    /// With those below.
    Tree,
}

const RDONLY: u64 = MountAttrFlags::MOUNT_ATTR_RDONLY.bits() as u64;
const NOSUID: u64 = MountAttrFlags::MOUNT_ATTR_NOSUID.bits() as u64;
const NODEV: u64 = MountAttrFlags::MOUNT_ATTR_NODEV.bits() as u64;
const NOEXEC: u64 = MountAttrFlags::MOUNT_ATTR_NOEXEC.bits() as u64;
const NOATIME: u64 = MountAttrFlags::MOUNT_ATTR_NOATIME.bits() as u64;
const STRICTATIME: u64 = MountAttrFlags::MOUNT_ATTR_STRICTATIME.bits() as u64;
const ATIME: u64 = MountAttrFlags::MOUNT_ATTR__ATIME.bits() as u64;
const NODIRATIME: u64 = MountAttrFlags::MOUNT_ATTR_NODIRATIME.bits() as u64;
/// `MOUNT_ATTR_NOSYMFOLLOW` of `linux/mount.h`.
const NOSYMFOLLOW: u64 = 0x0020_0000;

/// Option, attributes it sets, attributes it clears.
const ATTRIBUTES: [(&str, u64, u64); 16] = [
    ("ro", RDONLY, 0),
    ("rw", 0, RDONLY),
    ("nosuid", NOSUID, 0),
    ("suid", 0, NOSUID),
    ("nodev", NODEV, 0),
    ("dev", 0, NODEV),
    ("noexec", NOEXEC, 0),
    ("exec", 0, NOEXEC),
    ("nodiratime", NODIRATIME, 0),
    ("diratime", 0, NODIRATIME),
    ("nosymfollow", NOSYMFOLLOW, 0),
    ("symfollow", 0, NOSYMFOLLOW),
    ("noatime", NOATIME, ATIME),
    ("strictatime", STRICTATIME, ATIME),
    ("relatime", 0, ATIME),
    ("atime", 0, ATIME),
];

/// Option and how far mounts are told of each other's changes.
const PROPAGATION: [(&str, u64); 4] = [
    ("private", libc::MS_PRIVATE),
    ("shared", libc::MS_SHARED),
    ("slave", libc::MS_SLAVE),
    ("unbindable", libc::MS_UNBINDABLE),
];

/// Options that say nothing to the kernel.
const WITHOUT_MEANING: [&str; 16] = [
    "defaults",
    "remount",
    "async",
    "loud",
    "nofail",
    "auto",
    "noauto",
    "user",
    "nouser",
    "norelatime",
    "nostrictatime",
    "nolazytime",
    // Versions of inodes are each file system's own affair, and mandatory locks are no more, since Linux 5.15.
    "iversion",
    "noiversion",
    "nomand",
    // It kept the kernel from logging; there is no such parameter any more.
    "silent",
];

/// Flags of the file system that the kernel takes by their names.
const FILE_SYSTEM_FLAGS: [&str; 4] = ["sync", "dirsync", "lazytime", "mand"];

impl MountOptions {
    /// Sorts the options; later ones win over earlier ones.
    #[must_use]
    pub fn parse(options: &[String]) -> Self {
        let mut sorted = Self::default();
        for option in options {
            sorted.add(option);
        }
        sorted
    }

    fn add(&mut self, option: &str) {
        if let Some((_, set, clear)) = ATTRIBUTES.iter().find(|row| row.0 == option) {
            self.set = self.set & !clear | set;
            self.clear = self.clear & !set | clear;
            return;
        }
        let below = option.strip_prefix('r').unwrap_or_default();
        if let Some((_, set, clear)) = ATTRIBUTES.iter().find(|row| row.0 == below) {
            self.set_below = self.set_below & !clear | set;
            self.clear_below = self.clear_below & !set | clear;
            return;
        }
        if let Some((_, kind)) = PROPAGATION.iter().find(|row| row.0 == option) {
            self.propagation.push((*kind, false));
            return;
        }
        if let Some((_, kind)) = PROPAGATION.iter().find(|row| row.0 == below) {
            self.propagation.push((*kind, true));
            return;
        }
        match option {
            "bind" => self.bind = Some(Bind::One),
            "rbind" => self.bind = Some(Bind::Tree),
            "tmpcopyup" => self.copy_up = true,
            "idmap" => self.mapped = Some(Bind::One),
            "ridmap" => self.mapped = Some(Bind::Tree),
            "" => {}
            _ if WITHOUT_MEANING.contains(&option) => {}
            _ if FILE_SYSTEM_FLAGS.contains(&option) => self.flags.push(option.to_owned()),
            _ => match option.split_once('=') {
                Some((name, value)) => self.values.push((name.to_owned(), value.to_owned())),
                None => self.flags.push(option.to_owned()),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> MountOptions {
        MountOptions::parse(&text.split(',').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn options_are_sorted_by_what_they_are_for() {
        let options = parse("nosuid,strictatime,mode=755,size=65536k");
        assert_eq!(options.set, NOSUID | STRICTATIME);
        assert_eq!(options.values, [("mode".into(), "755".into()), ("size".into(), "65536k".into())]);
        assert!(options.flags.is_empty() && options.bind.is_none());
        let options = parse("rbind,rslave,rro,exec");
        assert_eq!((options.bind, options.set_below, options.clear), (Some(Bind::Tree), RDONLY, NOEXEC));
        assert_eq!(options.propagation, [(libc::MS_SLAVE, true)]);
    }

    #[test]
    fn the_last_of_two_opposites_counts() {
        assert_eq!(parse("ro,rw").set, 0);
        assert_eq!(parse("rw,ro").set, RDONLY);
        assert_eq!(parse("rw,ro").clear, 0);
        assert_eq!(parse("noatime,relatime").set, 0);
    }
}
