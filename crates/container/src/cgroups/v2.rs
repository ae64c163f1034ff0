//! What only the v2 hierarchy needs.

use std::path::Path;
use std::time::Duration;

use super::{read, write};
use crate::error::{Error, Result};

/// Tries until a group comes to rest.
const FREEZER_TRIES: u32 = 2000;

/// Hands the controllers a group has on to those below. What cannot be handed on shows when a limit needs it.
pub fn enable_controllers(above: &Path) {
    let there = read(&above.join("cgroup.controllers")).unwrap_or_default();
    let enabled = read(&above.join("cgroup.subtree_control")).unwrap_or_default();
    for controller in there.split_whitespace().filter(|c| !enabled.split_whitespace().any(|e| e == *c)) {
        if let Err(error) = write(&above.join("cgroup.subtree_control"), &format!("+{controller}")) {
            tracing::debug!("{}", error.chain());
        }
    }
}

/// Freezes or thaws.
pub fn freeze(group: &Path, frozen: bool) -> Result<()> {
    write(&group.join("cgroup.freeze"), if frozen { "1" } else { "0" })?;
    let wanted = if frozen { "frozen 1" } else { "frozen 0" };
    for _ in 0..FREEZER_TRIES {
        if read(&group.join("cgroup.events"))?.lines().any(|line| line == wanted) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Err(Error::refused(format!("control group {}", group.display()), "it does not come to rest"))
}

/// A weight of v1 as v2 has it: 2 to 262144 becomes 1 to 10000.
pub fn weight(shares: u64) -> u64 {
    if shares == 0 { 0 } else { 1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142 }
}

#[cfg(test)]
mod tests {
    use super::weight;

    #[test]
    fn weights_are_scaled_to_the_other_range() {
        assert_eq!([2, 1024, 262_144].map(weight), [1, 39, 10_000]);
    }
}
