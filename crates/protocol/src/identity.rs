//! What copies of one machine must not share, as the host tells it.

use alloc::string::String;
use core::fmt;

use crate::Error;
use crate::wire::{Decoder, Encoder};

/// What [`HostMessage::Renew`](crate::HostMessage::Renew) carries.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Renew {
    /// Fresh random bits for the kernel's pool.
    pub seed: [u64; 8],
    /// The time, in nanoseconds since the Unix epoch.
    pub clock_ns: u64,
}

/// The seed is nobody's business.
impl fmt::Debug for Renew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Renew").field("clock_ns", &self.clock_ns).finish_non_exhaustive()
    }
}

impl Renew {
    pub(crate) fn encode(&self, to: &mut Encoder) {
        self.seed.iter().for_each(|word| to.u64(*word));
        to.u64(self.clock_ns);
    }

    pub(crate) fn decode(from: &mut Decoder<'_>) -> Result<Self, Error> {
        let mut seed = [0; 8];
        for word in &mut seed {
            *word = from.u64("seed")?;
        }
        Ok(Self { seed, clock_ns: from.u64("clock")? })
    }
}

/// What [`HostMessage::Identify`](crate::HostMessage::Identify) carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The machine's new name; empty leaves the one it has.
    pub hostname: String,
    /// Its id (machine-id(5)), 128 bits.
    pub machine_id: [u64; 2],
}

impl Identity {
    /// The id as `/etc/machine-id` has it: 32 hexadecimal digits.
    #[must_use]
    pub fn machine_id_text(&self) -> String {
        let [high, low] = self.machine_id;
        alloc::format!("{high:016x}{low:016x}")
    }

    pub(crate) fn encode(&self, to: &mut Encoder) {
        to.string(&self.hostname);
        self.machine_id.iter().for_each(|word| to.u64(*word));
    }

    pub(crate) fn decode(from: &mut Decoder<'_>) -> Result<Self, Error> {
        let hostname = from.string("hostname")?;
        Ok(Self { hostname, machine_id: [from.u64("machine id")?, from.u64("machine id")?] })
    }
}
