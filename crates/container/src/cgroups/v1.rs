//! What only v1 hierarchies need.

use std::path::Path;
use std::time::Duration;

use super::{read, write};
use crate::error::{Error, Result};

/// Tries until a freezer comes to rest.
const FREEZER_TRIES: u32 = 2000;

/// A new group of this controller has no processors and no memory, and takes no process until it has.
pub fn inherit_cpuset(above: &Path, group: &Path) -> Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if read(&group.join(file))?.trim().is_empty() {
            let inherited = read(&above.join(file))?;
            write(&group.join(file), inherited.trim())?;
        }
    }
    Ok(())
}

/// Freezes or thaws. A group whose processes fork may need to be told again.
pub fn freeze(group: &Path, frozen: bool) -> Result<()> {
    let file = group.join("freezer.state");
    let wanted = if frozen { "FROZEN" } else { "THAWED" };
    for number in 0..FREEZER_TRIES {
        write(&file, wanted)?;
        if read(&file)?.trim() == wanted {
            return Ok(());
        }
        if frozen && number % 50 == 49 {
            write(&file, "THAWED")?;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    if frozen {
        write(&file, "THAWED")?;
    }
    Err(Error::refused(format!("freezer {}", group.display()), format!("it does not become {wanted}")))
}
