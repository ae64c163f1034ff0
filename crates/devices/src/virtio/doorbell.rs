//! Wakes a device's thread, and tells it to end.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

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

    /// Waits for a ring. `false` when closed and nothing is left to answer.
    pub fn wait(&self) -> bool {
        let mut state = self.lock();
        loop {
            if std::mem::take(&mut state.rung) {
                return true;
            }
            if state.closed {
                return false;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
