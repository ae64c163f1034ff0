//! A limit on how long a read may take that gives no byte of an answer's body.
//!
//! The client's own limits are for the next bytes of a connection, and for all of an answer. In between is what a registry can
//! send for hours without giving anything: the extensions of chunks, answers before the answer, trailers. A reader of a body
//! does not come back meanwhile, so the connection below it looks at the time whenever it waits for more.

use std::cell::Cell;
use std::io;
use std::time::{Duration, Instant};

use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, NextTimeout, Transport};

thread_local! {
    /// Until when this thread's reads must have given something. A call and all that it waits for are one thread's.
    static DEADLINE: Cell<Option<Deadline>> = const { Cell::new(None) };
}

#[derive(Debug, Clone, Copy)]
struct Deadline {
    at: Instant,
    /// What was allowed, for whoever is told.
    after: Duration,
}

/// A download that is slower than it may be.
#[derive(Debug, thiserror::Error)]
#[error("a trickle")]
pub(crate) struct Stall(pub(crate) Duration);

/// Does `read` on this thread, whose waiting for a connection ends `after` the moment `since`.
pub(crate) fn within<T>(since: Instant, after: Duration, read: impl FnOnce() -> T) -> T {
    let before = DEADLINE.replace(since.checked_add(after).map(|at| Deadline { at, after }));
    let done = read();
    DEADLINE.set(before);
    done
}

/// A part of a chain of connectors, below TLS, whose records may be drawn out as well: connections that keep to the deadline.
#[derive(Debug)]
pub(crate) struct Paced;

impl<In: Transport> Connector<In> for Paced {
    type Out = Connection<In>;

    fn connect(&self, _: &ConnectionDetails, chained: Option<In>) -> Result<Option<Self::Out>, ureq::Error> {
        Ok(chained.map(Connection))
    }
}

/// A connection that keeps to the deadline of the thread that waits for it.
#[derive(Debug)]
pub(crate) struct Connection<T>(T);

impl<T: Transport> Transport for Connection<T> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.0.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        self.0.transmit_output(amount, timeout)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        let Some(deadline) = DEADLINE.get() else { return self.0.await_input(timeout) };
        let late = || ureq::Error::Io(io::Error::other(Stall(deadline.after)));
        let left = deadline.at.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(late());
        }
        let is_next = timeout.per_read.is_none_or(|per_read| left < *per_read) && left < *timeout.after;
        let capped = if is_next { NextTimeout { after: left.into(), ..timeout } } else { timeout };
        match self.0.await_input(capped) {
            Err(ureq::Error::Timeout(_)) if is_next => Err(late()),
            awaited => awaited,
        }
    }

    fn is_open(&mut self) -> bool {
        self.0.is_open()
    }

    fn is_tls(&self) -> bool {
        self.0.is_tls()
    }
}
