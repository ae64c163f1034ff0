//! Several pieces of one work at once, and attempts that are repeated.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::error::{Cause, Result};
use crate::timeouts::Timeouts;

/// Does `act` for every item, on `threads` threads. The first failure calls off the rest: `act` is given the flag that says
/// so, and the failure is what comes back.
pub(crate) fn in_parallel<T: Send>(
    threads: usize,
    items: impl Iterator<Item = T> + Send,
    act: impl Fn(T, &AtomicBool) -> Result<()> + Sync,
) -> Result<()> {
    let (queue, failure, called_off) = (Mutex::new(items), Mutex::new(None), AtomicBool::new(false));
    let work = || {
        loop {
            let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some(item) = next.filter(|_| !called_off.load(Ordering::Relaxed)) else { return };
            if let Err(error) = act(item, &called_off) {
                called_off.store(true, Ordering::Relaxed);
                failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
    failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

/// Waits between attempts that bring nothing.
pub(crate) struct Patience {
    timeouts: Timeouts,
    tried: u32,
}

impl Patience {
    pub(crate) fn new(timeouts: Timeouts) -> Self {
        Patience { timeouts, tried: 0 }
    }

    /// The last attempt brought something.
    pub(crate) fn renew(&mut self) {
        self.tried = 0;
    }

    /// Waits for the time of the next attempt, or gives the cause back when there is none.
    pub(crate) fn wait(&mut self, cause: Cause) -> std::result::Result<(), Cause> {
        self.tried += 1;
        if !cause.may_pass() || self.tried >= self.timeouts.attempts {
            return Err(cause);
        }
        let mut pause = self.timeouts.backoff.saturating_mul(1 << (self.tried - 1).min(6));
        if let Cause::Status { retry_after: Some(wanted), .. } = cause {
            pause = pause.max(wanted);
        }
        tracing::info!("{cause}; again in {} ms", pause.as_millis());
        std::thread::sleep(pause);
        Ok(())
    }

    /// Tries until it works or there is no hope.
    pub(crate) fn until<T>(
        mut self,
        mut attempt: impl FnMut() -> std::result::Result<T, Cause>,
    ) -> std::result::Result<T, Cause> {
        loop {
            match attempt() {
                Ok(done) => return Ok(done),
                Err(cause) => self.wait(cause)?,
            }
        }
    }
}
