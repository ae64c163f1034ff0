//! An interface of the host's kernel joined to a [`Port`].

use std::io;
use std::os::fd::BorrowedFd;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;

use super::{HEADER_BYTES, header, unfinished};
use crate::{MAX_FRAME, Offloads, Port};

/// Frames in one direction before the other has its turn.
const TURN: usize = 64;

/// Carries frames both ways until `end` is readable, or the interface is gone.
///
/// # Errors
/// The port or the interface is broken.
pub fn join(tap: BorrowedFd<'_>, port: &dyn Port, end: BorrowedFd<'_>) -> io::Result<()> {
    port.accept(Offloads { checksum: true, segmentation: true });
    let mut buffer = vec![0; HEADER_BYTES + MAX_FRAME];
    // A frame that the interface had no room for.
    let mut held: Option<usize> = None;
    let mut outgoing = vec![0; HEADER_BYTES + MAX_FRAME];
    loop {
        let from_interface = read_some(tap, port, &mut buffer)?;
        let to_interface = write_some(tap, port, &mut outgoing, &mut held)?;
        if from_interface || to_interface {
            continue;
        }
        let room = if held.is_some() { PollFlags::OUT } else { PollFlags::empty() };
        let mut wait = vec![
            PollFd::from_borrowed_fd(end, PollFlags::IN),
            PollFd::from_borrowed_fd(tap, PollFlags::IN | room),
        ];
        wait.extend(port.readiness().map(|ready| PollFd::from_borrowed_fd(ready, PollFlags::IN)));
        match rustix::event::poll(&mut wait, None) {
            Err(Errno::INTR) | Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        if !wait[0].revents().is_empty() {
            return Ok(());
        }
    }
}

/// Frames of the interface; true when there may be more.
fn read_some(tap: BorrowedFd<'_>, port: &dyn Port, buffer: &mut [u8]) -> io::Result<bool> {
    for _ in 0..TURN {
        match rustix::io::read(tap, &mut *buffer) {
            Ok(count) => {
                if let Some((left, frame)) =
                    buffer[..count].split_first_chunk().filter(|(_, f)| !f.is_empty())
                    && let Some(left) = unfinished(left)
                {
                    port.send(frame, left)?;
                }
            }
            Err(Errno::AGAIN) => return Ok(false),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}

/// Frames of the port; true when there may be more.
fn write_some(
    tap: BorrowedFd<'_>,
    port: &dyn Port,
    buffer: &mut [u8],
    held: &mut Option<usize>,
) -> io::Result<bool> {
    for _ in 0..TURN {
        let count = match held.take() {
            Some(count) => count,
            None => match port.receive(&mut buffer[HEADER_BYTES..])? {
                Some(received) => {
                    buffer[..HEADER_BYTES]
                        .copy_from_slice(&header(received.checksum, received.segment_bytes));
                    HEADER_BYTES + received.len
                }
                None => return Ok(false),
            },
        };
        match rustix::io::write(tap, &buffer[..count]) {
            Ok(_) => {}
            Err(Errno::AGAIN) => {
                *held = Some(count);
                return Ok(false);
            }
            Err(Errno::INTR) => *held = Some(count),
            // One that makes no sense to the kernel, or an interface that its owner took down, loses a frame.
            Err(Errno::INVAL | Errno::IO) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::os::fd::AsFd;
    use std::sync::Mutex;

    use super::super::{NEEDS_CHECKSUM, SEGMENT_TCP4};
    use super::*;
    use crate::{Checksum, Received, Unfinished};

    /// Sends back what it is sent, with one byte changed.
    #[derive(Default)]
    struct Echo {
        frames: Mutex<VecDeque<Vec<u8>>>,
    }

    impl Port for Echo {
        fn link(&self) -> crate::Link {
            crate::Link::Up
        }

        fn send(&self, frame: &[u8], _left: Unfinished) -> io::Result<()> {
            let mut frame = frame.to_vec();
            frame[0] ^= 0xff;
            self.frames.lock().unwrap().push_back(frame);
            Ok(())
        }

        fn receive(&self, frame: &mut [u8]) -> io::Result<Option<Received>> {
            let Some(next) = self.frames.lock().unwrap().pop_front() else { return Ok(None) };
            frame[..next.len()].copy_from_slice(&next);
            let checksum = Checksum::Partial { start: 34, offset: 16 };
            Ok(Some(Received { len: next.len(), checksum, segment_bytes: Some(1460) }))
        }

        fn readiness(&self) -> Option<BorrowedFd<'_>> {
            None
        }
    }

    #[test]
    fn frames_go_both_ways_behind_their_headers() {
        // Keeps the bounds of messages, as a tap does.
        let (tap, other) = std::os::unix::net::UnixDatagram::pair().unwrap();
        tap.set_nonblocking(true).unwrap();
        let (end, ending) = std::io::pipe().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| join(tap.as_fd(), &Echo::default(), end.as_fd()).unwrap());
            let mut frame = vec![0; HEADER_BYTES];
            frame.extend([1, 2, 3]);
            for _ in 0..1000 {
                other.send(&frame).unwrap();
                let mut back = [0; 64];
                let count = other.recv(&mut back).unwrap();
                assert_eq!(back[HEADER_BYTES..count], [0xfe, 2, 3]);
                assert_eq!(back[..2], [NEEDS_CHECKSUM, SEGMENT_TCP4]);
                assert_eq!(back[2..10], [54, 0, 180, 5, 34, 0, 16, 0]);
            }
            other.send(&[0; 3]).unwrap();
            drop(ending);
        });
    }
}
