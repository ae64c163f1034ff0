//! Several pieces of one work at once, and attempts that are repeated.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

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

/// How often somebody who waits looks whether he still should.
const GLANCE: Duration = Duration::from_millis(50);

/// Waits between attempts that bring nothing.
pub(crate) struct Patience<'a> {
    timeouts: Timeouts,
    tried: u32,
    called_off: Option<&'a AtomicBool>,
}

impl<'a> Patience<'a> {
    pub(crate) fn new(timeouts: Timeouts) -> Self {
        Patience { timeouts, tried: 0, called_off: None }
    }

    /// Ends early when another piece of the same work has failed.
    pub(crate) fn unless(self, called_off: &'a AtomicBool) -> Self {
        Patience { called_off: Some(called_off), ..self }
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
        let end = Instant::now() + pause;
        loop {
            if self.called_off.is_some_and(|called_off| called_off.load(Ordering::Relaxed)) {
                return Err(Cause::CalledOff);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(GLANCE));
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_waits_for_the_next_attempt_of_what_is_called_off() {
        let an_hour = Timeouts { backoff: Duration::from_secs(3600), ..Timeouts::default() };
        let called_off = AtomicBool::new(true);
        let stalled = Cause::Stalled { host: String::new(), what: "no answer", after: an_hour.idle };
        let waited = Patience::new(an_hour).unless(&called_off).wait(stalled);
        assert!(matches!(waited, Err(Cause::CalledOff)), "{waited:?}");
    }
}
