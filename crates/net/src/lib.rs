//! Network back ends: the port a network device sends and receives frames through.
//!
//! Reading order: this file, then [`nat`], the network that needs no privilege, and [`tap`], which joins an interface of the
//! host's kernel to a port.
//!
//! Deliberately absent: what a machine or a virtio queue is, and switches: a bridge of the host's kernel is one.
#![forbid(unsafe_code)]

mod counted;
pub mod nat;
pub mod tap;

use std::io;
use std::os::fd::BorrowedFd;

pub use counted::Counts;
pub use nat::Nat;
pub use tap::Tap;

/// The largest frame a port carries, in bytes: 64 KiB of segmented TCP and its headers.
pub const MAX_FRAME: usize = 65536 + 64;

/// Whether the cable is plugged in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// Frames pass.
    Up,
    /// Frames sent are lost, none arrive.
    Down,
}

/// What the guest's card does itself with frames it receives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// It finishes checksums: [`Checksum::Partial`] is understood.
    pub checksum: bool,
    /// It takes TCP segments over IPv4 larger than the MTU; needs `checksum`.
    pub segmentation: bool,
}

/// The checksum of a frame's TCP segment or UDP datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// It is there.
    Complete,
    /// It is that of the pseudo header alone.
    Partial {
        /// Where the bytes begin that it is to be made over, from the start of the frame.
        start: u16,
        /// Where it is, from `start`.
        offset: u16,
    },
}

/// What the guest left undone in a frame it sends, in its own words: nothing of it was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unfinished {
    /// Its checksum.
    pub checksum: Checksum,
    /// If it stands for several TCP segments over IPv4: the payload of each, in bytes.
    pub segment_bytes: Option<u16>,
}

impl Unfinished {
    /// Nothing is: a frame as it is on a wire.
    pub const NOTHING: Self = Self { checksum: Checksum::Complete, segment_bytes: None };
}

/// A frame that was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Its length in bytes.
    pub len: usize,
    /// Its checksum.
    pub checksum: Checksum,
    /// If it stands for several TCP segments over IPv4: the payload of each, in bytes.
    pub segment_bytes: Option<u16>,
}

impl Received {
    /// A frame as it is on a wire.
    pub fn plain(len: usize) -> Self {
        Self { len, checksum: Checksum::Complete, segment_bytes: None }
    }
}

/// Where a network device's cable ends. Never waits for anything slow. Frames are whole Ethernet frames without checksum (FCS).
/// A card with several queues sends from several threads at once; a port that cannot take that lets them take turns.
pub trait Port: Send + Sync {
    /// Whether the cable is plugged in.
    fn link(&self) -> Link;

    /// Says what may be left to the guest's card from now on. Until then it is nothing.
    fn accept(&self, offloads: Offloads) {
        let _ = offloads;
    }

    /// The card is new: whoever used it before has forgotten everything.
    fn reset(&self) {}

    /// Sends one frame. A port that cannot take it now drops it, as Ethernet does. Its TCP and UDP checksums may be
    /// those of the pseudo header alone, and TCP segments over IPv4 may be larger than the MTU, up to [`MAX_FRAME`]:
    /// every card offers that to its guest, whatever its cable ends in. `left` is what the guest says of that.
    ///
    /// # Errors
    /// The port is broken; the frame is lost.
    fn send(&self, frame: &[u8], left: Unfinished) -> io::Result<()>;

    /// Receives one frame into `frame` and says what it is; `None` if there is none now. `frame` has
    /// room for [`MAX_FRAME`] bytes; longer frames are dropped.
    ///
    /// # Errors
    /// The port is broken.
    fn receive(&self, frame: &mut [u8]) -> io::Result<Option<Received>>;

    /// What becomes readable when [`Self::receive`] has something; `None` if it never will.
    fn readiness(&self) -> Option<BorrowedFd<'_>>;
}

/// A port with no cable in it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unplugged;

impl Port for Unplugged {
    fn link(&self) -> Link {
        Link::Down
    }

    fn send(&self, _frame: &[u8], _left: Unfinished) -> io::Result<()> {
        Ok(())
    }

    fn receive(&self, _frame: &mut [u8]) -> io::Result<Option<Received>> {
        Ok(None)
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unplugged_port_loses_everything_and_says_so() {
        let port = Unplugged;
        assert_eq!(port.link(), Link::Down);
        port.send(&[0; 60], Unfinished::NOTHING).unwrap();
        assert_eq!(port.receive(&mut [0; 60]).unwrap(), None);
        assert!(port.readiness().is_none());
    }
}
