//! How long to wait for what, so that nothing a registry does or leaves undone lasts for ever.

use std::time::Duration;

/// How long to wait for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// For a connection, TLS included.
    pub connect: Duration,
    /// For the next bytes, once there is a connection.
    pub idle: Duration,
    /// For the whole of a small document.
    pub document: Duration,
    /// For the answer to a request that makes the registry work: the end of an upload.
    pub commit: Duration,
    /// Within this time a download must bring [`Timeouts::SLOWEST_BYTES`] of its blob, whatever else comes; and for all of a
    /// blob there is this time for each [`Timeouts::AVERAGE_BYTES`] of it.
    pub slowest: Duration,
    /// Before the second attempt; doubled before each further one.
    pub backoff: Duration,
    /// How often the same thing is tried in vain.
    pub attempts: u32,
}

impl Timeouts {
    /// What a download must bring in the time of [`Timeouts::slowest`]. Attacks: a byte now and then, for ever; an answer that
    /// goes on and on without a byte of the blob, such as trailers without end.
    pub const SLOWEST_BYTES: u64 = 16 << 10;
    /// What a blob must bring on average in the time of [`Timeouts::slowest`]. Attack: just more than a trickle, for days. What
    /// breaks off for this goes on where it was.
    pub const AVERAGE_BYTES: u64 = 512 << 10;

    /// How long `bytes` of a blob may take: never less than it takes to see that they trickle.
    fn whole(&self, bytes: u64) -> Duration {
        let stretches = (bytes / Timeouts::AVERAGE_BYTES).saturating_add(2);
        self.slowest.saturating_mul(stretches.try_into().unwrap_or(u32::MAX))
    }

    /// What holds for a request of this kind.
    pub(crate) fn limits(&self, kind: Kind) -> Limits {
        match kind {
            Kind::Document => {
                Limits { idle: self.idle, send: self.document, response: self.document, body: self.document }
            }
            Kind::Blob(bytes) => Limits {
                idle: self.idle,
                send: self.document,
                response: self.document,
                body: self.whole(bytes),
            },
            Kind::Upload(bytes) => Limits {
                idle: self.commit,
                send: self.whole(bytes),
                response: self.commit + self.document,
                body: self.document,
            },
        }
    }
}

/// What a request is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A small document, or nothing but a status.
    Document,
    /// The answer is so many bytes of a blob.
    Blob(u64),
    /// So many bytes of a blob are sent, and the answer comes after work of the registry.
    Upload(u64),
}

/// How long each part of a request may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// For the next bytes of the answer.
    pub(crate) idle: Duration,
    /// For all that is sent.
    pub(crate) send: Duration,
    /// For status and headers, however they drip.
    pub(crate) response: Duration,
    /// For all that follows them.
    pub(crate) body: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        let s = Duration::from_secs;
        Timeouts {
            connect: s(20),
            idle: s(30),
            document: s(60),
            commit: s(300),
            slowest: s(60),
            backoff: Duration::from_millis(500),
            attempts: 5,
        }
    }
}
