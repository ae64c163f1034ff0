//! What a device's thread waits on when its work comes through file descriptors: epoll, and a way to wake it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};

pub(super) use rustix::event::epoll::EventFlags as Interest;

/// Token of the wake-up event; no source may use it.
const WAKE: u64 = u64::MAX;
const EVENTS_AT_ONCE: usize = 64;

/// An epoll instance that other threads can wake.
pub(super) struct Poller {
    epoll: OwnedFd,
    wake: OwnedFd,
    closed: AtomicBool,
}

/// A source is ready.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ready {
    pub token: u64,
    pub flags: Interest,
}

impl Poller {
    /// A poller with no sources.
    pub fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        epoll::add(&epoll, &wake, epoll::EventData::new_u64(WAKE), Interest::IN)?;
        Ok(Self { epoll, wake, closed: AtomicBool::new(false) })
    }

    /// Adds a source, which is reported as `token`. Closing it removes it.
    pub fn add(&self, source: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, source, epoll::EventData::new_u64(token), interest)?)
    }

    /// Changes what is waited for, and reports it again if it is so now.
    pub fn modify(&self, source: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        Ok(epoll::modify(&self.epoll, source, epoll::EventData::new_u64(token), interest)?)
    }

    /// Makes [`Self::wait`] return.
    pub fn wake(&self) {
        // The only error is a full counter, which wakes as well.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// Makes [`Self::wait`] return `false` from now on.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.wake();
    }

    /// Waits until woken, a source is ready or `patience` is at its end, and puts the ready ones into `ready`. `false` when
    /// closed.
    pub fn wait(&self, ready: &mut Vec<Ready>, patience: Option<Duration>) -> bool {
        ready.clear();
        // One that no clock can show is for ever.
        let patience = patience.and_then(|patience| Timespec::try_from(patience).ok());
        let mut events = Vec::with_capacity(EVENTS_AT_ONCE);
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), patience.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                tracing::error!(%error, "wait for device events");
                return false;
            }
        }
        for event in events {
            let token = event.data.u64();
            if token == WAKE {
                let _ = rustix::io::read(&self.wake, &mut [0; 8]);
            } else {
                ready.push(Ready { token, flags: event.flags });
            }
        }
        !self.closed.load(Ordering::SeqCst)
    }
}
