//! What a machine counts while it runs.

use devices::virtio::BalloonHandle;

use super::Machine;

impl Machine {
    /// Bytes of memory that the guest has given back so far, if it has what it takes ([`crate::MachineConfig::balloon`]).
    pub fn returned_bytes(&self) -> Option<u64> {
        self.balloon.as_ref().map(BalloonHandle::returned_bytes)
    }

    /// What went through the guest's network cards since this machine was built; none if it has no card.
    pub fn network(&self) -> Option<&net::Counts> {
        (!self.config.net.is_empty()).then_some(&self.network)
    }
}
