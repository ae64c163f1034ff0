//! Wakes a device's thread, and tells it to end.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Rung by anyone, answered by one thread. Rings while it is busy are remembered as one.
#[derive(Default)]
pub(super) struct Doorbell {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    rung: bool,
    closed: bool,
}

impl Doorbell {
    /// Wakes the thread.
    pub fn ring(&self) {
        self.lock().rung = true;
        self.changed.notify_one();
    }

    /// Tells the thread to end once it has answered.
    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_one();
    }

    /// Waits for a ring, or as long as `patience` says. `false` when closed and nothing is left to answer.
    pub fn wait(&self, patience: Option<Duration>) -> bool {
        // One that no clock can show is for ever.
        let until = patience.and_then(|patience| Instant::now().checked_add(patience));
        let mut state = self.lock();
        loop {
            if std::mem::take(&mut state.rung) {
                return true;
            }
            if state.closed {
                return false;
            }
            state = match until.map(|until| until.saturating_duration_since(Instant::now())) {
                Some(Duration::ZERO) => return true,
                Some(left) => {
                    self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
