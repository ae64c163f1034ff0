//! How other threads get a vCPU's attention: a word of request bits that a running engine polls, and a place
//! to sleep for a halted one. No signals, no system call unless the vCPU sleeps.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, OnceLock, PoisonError};
use std::time::Instant;

/// Bits of the request word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request(u32);

impl Request {
    /// Return from `run` with [`crate::Exit::Kicked`]: the machine has something to say.
    pub const KICK: Self = Self(1 << 0);
    /// The interrupt state changed: look at [`crate::Bus::interrupt_pending`].
    pub const INTERRUPT: Self = Self(1 << 1);
    /// For the engine's own use between its vCPUs (e.g. TLB shoot-downs).
    pub const ENGINE: Self = Self(1 << 2);

    /// The bits.
    pub const fn bits(self) -> u32 {
        self.0
    }
}

/// The shared half of one vCPU.
#[derive(Default)]
pub struct VcpuSignal {
    requests: AtomicU32,
    /// Whether the vCPU's thread is in [`Self::wait`]. Set under `lock`; see `post` for the pairing.
    sleeping: AtomicBool,
    lock: Mutex<()>,
    wake: Condvar,
    hook: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl VcpuSignal {
    /// A signal with no request pending.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets request bits and wakes the vCPU if it sleeps. Any thread.
    pub fn post(&self, request: Request) {
        let before = self.requests.fetch_or(request.0, Ordering::SeqCst);
        if self.sleeping.load(Ordering::SeqCst) {
            // Taking the lock orders this after the sleeper's last look at `requests`.
            drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
            self.wake.notify_all();
        }
        if before & request.0 != request.0
            && let Some(hook) = self.hook.get()
        {
            hook();
        }
    }

    /// Asks the vCPU to return from `run`. Any thread.
    pub fn kick(&self) {
        self.post(Request::KICK);
    }

    /// Says that an interrupt may have become deliverable. Any thread.
    pub fn interrupt(&self) {
        self.post(Request::INTERRUPT);
    }

    /// Clears `request` and says whether it was set. The vCPU's thread only.
    pub fn take(&self, request: Request) -> bool {
        self.requests.load(Ordering::Relaxed) & request.0 != 0
            && self.requests.fetch_and(!request.0, Ordering::SeqCst) & request.0 != 0
    }

    /// Whether any request is pending.
    #[inline]
    pub fn is_pending(&self) -> bool {
        self.requests.load(Ordering::Relaxed) != 0
    }

    /// The request word.
    pub fn word(&self) -> &AtomicU32 {
        &self.requests
    }

    /// Sleeps until a request is pending or `deadline` has passed. The vCPU's thread only.
    pub fn wait(&self, deadline: Option<Instant>) {
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.sleeping.store(true, Ordering::SeqCst);
        while self.requests.load(Ordering::SeqCst) == 0 {
            guard = match deadline {
                None => self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|d| !d.is_zero())
                    else {
                        break;
                    };
                    self.wake.wait_timeout(guard, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        self.sleeping.store(false, Ordering::SeqCst);
    }

    /// Lets an engine be told of new requests, after they are set: its vCPUs do not look at the word. At most once.
    pub fn set_hook(&self, hook: Box<dyn Fn() + Send + Sync>) {
        assert!(self.hook.set(hook).is_ok(), "the engine sets its hook once");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn a_sleeping_vcpu_wakes_on_a_request() {
        let signal = Arc::new(VcpuSignal::new());
        let sleeper = {
            let s = signal.clone();
            std::thread::spawn(move || s.wait(None))
        };
        signal.interrupt();
        sleeper.join().unwrap();
        assert!(signal.take(Request::INTERRUPT) && !signal.take(Request::INTERRUPT));
    }

    #[test]
    fn a_deadline_in_the_past_does_not_sleep() {
        VcpuSignal::new().wait(Some(Instant::now()));
    }
}
