//! Capabilities: `capabilities(7)`, by name.

use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::error::{Result, While};
use crate::spec;

/// Names by number, from `linux/capability.h`.
pub const NAMES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// What a container has unless somebody says otherwise: what other tools give too.
pub const DEFAULT: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SYS_CHROOT",
    "CAP_MKNOD",
    "CAP_AUDIT_WRITE",
    "CAP_SETFCAP",
];

/// The number of a capability; `CAP_` and capitals may be left out.
#[must_use]
pub fn number(name: &str) -> Option<usize> {
    let name = name.to_ascii_uppercase();
    let name = name.strip_prefix("CAP_").unwrap_or(&name);
    NAMES.iter().position(|full| full.strip_prefix("CAP_") == Some(name))
}

/// The sets of a process, as bits.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sets {
    bounding: u64,
    effective: u64,
    permitted: u64,
    inheritable: u64,
    ambient: u64,
}

impl Sets {
    /// From the specification's names. Those nobody knows, and those this process cannot give, are passed over with
    /// a warning, as the specification asks. Who enters another user namespace has them all there.
    #[must_use]
    pub fn new(wanted: &spec::Capabilities, new_user: bool) -> Self {
        let here = || rustix::thread::capabilities(None).map_or(u64::MAX, |sets| sets.permitted.bits());
        let ours = if new_user { u64::MAX } else { here() };
        let bits = |names: &[String]| {
            names.iter().fold(0u64, |bits, name| match number(name) {
                Some(number) if ours >> number & 1 == 1 => bits | 1 << number,
                _ => bits,
            })
        };
        let sets =
            [&wanted.bounding, &wanted.effective, &wanted.permitted, &wanted.inheritable, &wanted.ambient];
        // Each once, in whatever sets it is.
        let names: std::collections::BTreeSet<&String> = sets.into_iter().flatten().collect();
        for name in names {
            match number(name) {
                Some(number) if ours >> number & 1 == 0 => {
                    tracing::warn!("capability {name} is not this process's to give");
                }
                Some(_) => {}
                None => tracing::warn!("capability {name:?} is not known"),
            }
        }
        Self {
            bounding: bits(&wanted.bounding),
            effective: bits(&wanted.effective),
            permitted: bits(&wanted.permitted),
            inheritable: bits(&wanted.inheritable),
            ambient: bits(&wanted.ambient),
        }
    }

    /// Gives up all that may never come back. Called before the user changes, for it takes CAP_SETPCAP.
    pub fn drop_bounding(&self) -> Result<()> {
        for number in 0..64 {
            let bit = CapabilitySet::from_bits_retain(1 << number);
            if self.bounding >> number & 1 == 1 {
                continue;
            }
            match rustix::thread::remove_capability_from_bounding_set(bit) {
                // Numbers beyond what this kernel has.
                Err(rustix::io::Errno::INVAL) => return Ok(()),
                result => result.during(|| format!("drop capability {number}"))?,
            }
        }
        Ok(())
    }

    /// Sets the rest. Called after the user changed, with capabilities kept over that.
    pub fn apply(&self) -> Result<()> {
        let set = CapabilitySet::from_bits_retain;
        let sets = CapabilitySets {
            effective: set(self.effective),
            permitted: set(self.permitted),
            inheritable: set(self.inheritable),
        };
        rustix::thread::set_capabilities(None, sets).during(|| "set capabilities".to_owned())?;
        rustix::thread::clear_ambient_capability_set().during(|| "clear ambient capabilities".to_owned())?;
        for number in (0..64).filter(|number| self.ambient >> number & 1 == 1) {
            let bit = CapabilitySet::from_bits_retain(1 << number);
            let name = NAMES.get(number as usize).copied().unwrap_or_default();
            if rustix::thread::configure_capability_in_ambient_set(bit, true).is_err() {
                tracing::warn!("{name} cannot be ambient: it is not both permitted and inheritable");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_in_every_usual_form() {
        assert_eq!(number("CAP_SYS_ADMIN"), Some(21));
        assert_eq!(number("sys_admin"), Some(21));
        assert_eq!(number("cap_checkpoint_restore"), Some(40));
        assert_eq!(number("CAP_NONE"), None);
        assert_eq!(number("CAP_"), None);
    }
}
