//! Resource limits.

use rustix::process::{Resource, Rlimit};

use crate::error::{Error, Result};
use crate::spec;

fn resource(name: &str) -> Option<Resource> {
    Some(match name {
        "RLIMIT_AS" => Resource::As,
        "RLIMIT_CORE" => Resource::Core,
        "RLIMIT_CPU" => Resource::Cpu,
        "RLIMIT_DATA" => Resource::Data,
        "RLIMIT_FSIZE" => Resource::Fsize,
        "RLIMIT_LOCKS" => Resource::Locks,
        "RLIMIT_MEMLOCK" => Resource::Memlock,
        "RLIMIT_MSGQUEUE" => Resource::Msgqueue,
        "RLIMIT_NICE" => Resource::Nice,
        "RLIMIT_NOFILE" => Resource::Nofile,
        "RLIMIT_NPROC" => Resource::Nproc,
        "RLIMIT_RSS" => Resource::Rss,
        "RLIMIT_RTPRIO" => Resource::Rtprio,
        "RLIMIT_RTTIME" => Resource::Rttime,
        "RLIMIT_SIGPENDING" => Resource::Sigpending,
        "RLIMIT_STACK" => Resource::Stack,
        _ => return None,
    })
}

/// Checks names and values.
///
/// # Errors
/// A limit nobody knows, one that comes twice, or a value above its ceiling.
pub fn check(limits: &[spec::Rlimit]) -> Result<()> {
    for (number, limit) in limits.iter().enumerate() {
        let fault = if resource(&limit.kind).is_none() {
            "no limit is called so"
        } else if limit.soft > limit.hard {
            "the value is above the ceiling"
        } else if limits[..number].iter().any(|before| before.kind == limit.kind) {
            "it comes twice"
        } else {
            continue;
        };
        return Err(Error::refused(format!("resource limit {}", limit.kind), fault));
    }
    Ok(())
}

/// Sets the limits of this process. Where the host does not let a ceiling be raised, what is there is kept as far as it
/// has to be, and that is said.
///
/// # Errors
/// The kernel refuses for another reason.
pub fn apply(limits: &[spec::Rlimit]) -> Result<()> {
    for limit in limits {
        let Some(resource) = resource(&limit.kind) else { continue };
        let value = |n: u64| (n != u64::MAX).then_some(n);
        let wanted = Rlimit { current: value(limit.soft), maximum: value(limit.hard) };
        match rustix::process::setrlimit(resource, wanted) {
            Ok(()) => {}
            Err(rustix::io::Errno::PERM) => {
                let ceiling = rustix::process::getrlimit(resource).maximum;
                let least = |a: Option<u64>, b: Option<u64>| match (a, b) {
                    (Some(a), Some(b)) => Some(a.min(b)),
                    (a, b) => a.or(b),
                };
                let kept = Rlimit {
                    current: least(wanted.current, ceiling),
                    maximum: least(wanted.maximum, ceiling),
                };
                let kind = &limit.kind;
                tracing::warn!("{kind} cannot be raised to {}: {:?} is kept", limit.hard, kept.maximum);
                rustix::process::setrlimit(resource, kept)
                    .map_err(|error| Error::Os { act: format!("set {kind}"), source: error.into() })?;
            }
            Err(error) => {
                return Err(Error::Os { act: format!("set {}", limit.kind), source: error.into() });
            }
        }
    }
    Ok(())
}
