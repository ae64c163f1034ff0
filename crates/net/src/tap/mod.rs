//! Network interfaces of the host's kernel whose other end is a descriptor (tun(4), `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`), of
//! which frames are read behind the header of a virtio card. Who made one is not known here.
//!
//! [`Tap`] is a machine's cable that ends in one: frames go between card and kernel as they are, with checksums and
//! segmentation left to whoever can do them. [`join()`] is how a container gets what a machine's card has.

mod join;

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;

use crate::{Checksum, Link, MAX_FRAME, Offloads, Port, Received, Unfinished};

pub use join::join;

/// `struct virtio_net_hdr` without its number of buffers.
const HEADER_BYTES: usize = 10;
const NEEDS_CHECKSUM: u8 = 1;
const SEGMENT_NONE: u8 = 0;
const SEGMENT_TCP4: u8 = 1;
/// Ethernet, IPv4 and TCP without options.
const SEGMENT_HEADERS: u16 = 14 + 20 + 20;

/// Tells the kernel what may be left undone in frames that it gives (`TUNSETOFFLOAD`), which has no safe name.
pub type SetOffloads = Box<dyn Fn(BorrowedFd<'_>, Offloads) -> io::Result<()> + Send + Sync>;

/// A port that is an interface of the host's kernel. What the kernel has for it waits in the kernel, which drops what is too
/// much; what is sent while it has no room is lost.
pub struct Tap {
    tap: OwnedFd,
    set_offloads: SetOffloads,
    is_lost: AtomicBool,
}

impl Tap {
    /// Of the open `tap`, which does not block.
    #[must_use]
    pub fn new(tap: OwnedFd, set_offloads: SetOffloads) -> Self {
        Self { tap, set_offloads, is_lost: AtomicBool::new(false) }
    }

    fn lost(&self, error: Errno) -> io::Error {
        self.is_lost.store(true, Ordering::Relaxed);
        error.into()
    }
}

impl Port for Tap {
    fn link(&self) -> Link {
        if self.is_lost.load(Ordering::Relaxed) { Link::Down } else { Link::Up }
    }

    fn accept(&self, offloads: Offloads) {
        if let Err(error) = (self.set_offloads)(self.tap.as_fd(), offloads) {
            tracing::warn!("set what is left to the guest's card: {error}");
        }
    }

    fn send(&self, frame: &[u8], left: Unfinished) -> io::Result<()> {
        let header = header(left.checksum, left.segment_bytes);
        loop {
            match rustix::io::writev(&self.tap, &[IoSlice::new(&header), IoSlice::new(frame)]) {
                Err(Errno::INTR) => {}
                // No room, nonsense of the guest, or an interface that is down: the frame is lost.
                Ok(_) | Err(Errno::AGAIN | Errno::INVAL | Errno::IO | Errno::NOBUFS | Errno::NOMEM) => {
                    return Ok(());
                }
                Err(error) => return Err(self.lost(error)),
            }
        }
    }

    fn receive(&self, frame: &mut [u8]) -> io::Result<Option<Received>> {
        let room = frame.len().min(MAX_FRAME);
        let mut header = [0; HEADER_BYTES];
        loop {
            let mut parts = [IoSliceMut::new(&mut header), IoSliceMut::new(&mut frame[..room])];
            match rustix::io::readv(&self.tap, &mut parts) {
                Ok(count) if count > HEADER_BYTES => {
                    // One of a kind that was not offered, which no kernel gives.
                    if let Some(left) = unfinished(&header) {
                        let Unfinished { checksum, segment_bytes } = left;
                        return Ok(Some(Received { len: count - HEADER_BYTES, checksum, segment_bytes }));
                    }
                }
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(error) => return Err(self.lost(error)),
            }
        }
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        Some(self.tap.as_fd())
    }
}

/// What stands before a frame.
fn header(checksum: Checksum, segment_bytes: Option<u16>) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    if let Checksum::Partial { start, offset } = checksum {
        header[0] = NEEDS_CHECKSUM;
        header[6..8].copy_from_slice(&start.to_ne_bytes());
        header[8..10].copy_from_slice(&offset.to_ne_bytes());
    }
    if let Some(bytes) = segment_bytes {
        header[1] = SEGMENT_TCP4;
        header[2..4].copy_from_slice(&SEGMENT_HEADERS.to_ne_bytes());
        header[4..6].copy_from_slice(&bytes.to_ne_bytes());
    }
    header
}

/// What a header says; `None` if it speaks of what nobody offered.
fn unfinished(header: &[u8; HEADER_BYTES]) -> Option<Unfinished> {
    let word = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
    let checksum = if header[0] & NEEDS_CHECKSUM != 0 {
        Checksum::Partial { start: word(6), offset: word(8) }
    } else {
        Checksum::Complete
    };
    let segment_bytes = match header[1] {
        SEGMENT_NONE => None,
        SEGMENT_TCP4 => Some(word(4)),
        _ => return None,
    };
    Some(Unfinished { checksum, segment_bytes })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn what_is_left_undone_goes_both_ways_in_headers() {
        // Keeps the bounds of messages, as a tap does.
        let (tap, kernel) = UnixDatagram::pair().unwrap();
        tap.set_nonblocking(true).unwrap();
        let said = Arc::new(Mutex::new(Vec::new()));
        let told = said.clone();
        let set = move |_: BorrowedFd<'_>, offloads| {
            told.lock().unwrap().push(offloads);
            Ok(())
        };
        let port = Tap::new(tap.into(), Box::new(set));
        let offloads = Offloads { checksum: true, segmentation: false };
        port.accept(offloads);
        assert_eq!(*said.lock().unwrap(), [offloads]);

        let left =
            Unfinished { checksum: Checksum::Partial { start: 34, offset: 16 }, segment_bytes: Some(1460) };
        port.send(&[7; 100], left).unwrap();
        let mut bytes = [0; 200];
        assert_eq!(kernel.recv(&mut bytes).unwrap(), 110);
        assert_eq!(bytes[..HEADER_BYTES], [1, 1, 54, 0, 180, 5, 34, 0, 16, 0]);
        assert_eq!(bytes[HEADER_BYTES..110], [7; 100]);

        let mut frame = vec![0; MAX_FRAME];
        assert_eq!(port.receive(&mut frame).unwrap(), None);
        let mut other_kind = bytes;
        other_kind[1] = 4;
        for message in [&other_kind[..110], &bytes[..5], &bytes[..110]] {
            kernel.send(message).unwrap();
        }
        let received = port.receive(&mut frame).unwrap().unwrap();
        assert_eq!((received.len, received.segment_bytes), (100, Some(1460)));
        assert_eq!(received.checksum, left.checksum);
        assert_eq!(port.receive(&mut frame).unwrap(), None);
    }

    #[test]
    fn an_interface_that_is_gone_is_a_cable_that_is_pulled() {
        let (_read, write) = std::io::pipe().unwrap();
        let port = Tap::new(write.into(), Box::new(|_, _| Ok(())));
        assert_eq!(port.link(), Link::Up);
        // A descriptor that cannot be read, as one whose interface was deleted.
        assert!(port.receive(&mut vec![0; MAX_FRAME]).is_err());
        assert_eq!(port.link(), Link::Down);
    }
}
