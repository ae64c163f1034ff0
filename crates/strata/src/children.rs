//! Children that live on without whoever started them, and are waited for all the same: a server that starts thousands
//! of monitors must not keep a dead process for each.

use std::process::Child;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How long a child may be dead before that is noticed.
const INTERVAL: Duration = Duration::from_secs(1);

struct Left {
    children: Vec<Child>,
    /// A thread waits for them.
    is_waiting: bool,
}

static LEFT: Mutex<Left> = Mutex::new(Left { children: Vec::new(), is_waiting: false });

/// Lets `child` go its own way; when it ends, it is waited for.
pub fn leave(child: Child) {
    let mut left = LEFT.lock().unwrap_or_else(PoisonError::into_inner);
    left.children.push(child);
    if !left.is_waiting {
        // Without a thread they are waited for when this process ends.
        left.is_waiting = std::thread::Builder::new().name("children".into()).spawn(wait).is_ok();
    }
}

/// Waits for those left until there are none.
fn wait() {
    loop {
        std::thread::sleep(INTERVAL);
        let mut left = LEFT.lock().unwrap_or_else(PoisonError::into_inner);
        left.children.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
        if left.children.is_empty() {
            left.is_waiting = false;
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_child_that_ends_is_waited_for() {
        let child = Command::new("true").spawn().unwrap();
        let process = format!("/proc/{}", child.id());
        leave(child);
        while std::path::Path::new(&process).exists() {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
