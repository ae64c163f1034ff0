//! Network back ends: the port a network device sends and receives frames through.
//!
//! Deliberately absent: what a machine or a virtio queue is, and, for now, every back end but [`Unplugged`];
//! user-mode NAT, taps and switches become siblings of it.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::BorrowedFd;

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

/// Where a network device's cable ends. Never blocks. Frames are whole Ethernet frames without checksum (FCS).
pub trait Port: Send {
    /// Whether the cable is plugged in.
    fn link(&self) -> Link;

    /// Sends one frame. A port that cannot take it now drops it, as Ethernet does.
    ///
    /// # Errors
    /// The port is broken; the frame is lost.
    fn send(&mut self, frame: &[u8]) -> io::Result<()>;

    /// Receives one frame into `frame` and gives its length; `None` if there is none now. Longer frames than
    /// `frame` are dropped.
    ///
    /// # Errors
    /// The port is broken.
    fn receive(&mut self, frame: &mut [u8]) -> io::Result<Option<usize>>;

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

    fn send(&mut self, _frame: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn receive(&mut self, _frame: &mut [u8]) -> io::Result<Option<usize>> {
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
        let mut port = Unplugged;
        assert_eq!(port.link(), Link::Down);
        port.send(&[0; 60]).unwrap();
        assert_eq!(port.receive(&mut [0; 60]).unwrap(), None);
        assert!(port.readiness().is_none());
    }
}
