//! A port that counts what goes through it, whatever it leads to.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Link, Offloads, Port, Received, Unfinished};

/// What went through ports so far. Numbers of their own: nobody needs both of one moment.
#[derive(Clone, Debug, Default)]
pub struct Counts(Arc<[AtomicU64; 2]>);

impl Counts {
    /// Bytes of frames that came to the guest.
    pub fn received_bytes(&self) -> u64 {
        self.0[0].load(Ordering::Relaxed)
    }

    /// Bytes of frames that the guest sent.
    pub fn sent_bytes(&self) -> u64 {
        self.0[1].load(Ordering::Relaxed)
    }

    /// The same port; what goes through it counts here from now on.
    pub fn watch(&self, port: Box<dyn Port>) -> Box<dyn Port> {
        Box::new(Counted { port, counts: self.clone() })
    }

    fn add(&self, which: usize, bytes: usize) {
        self.0[which].fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

struct Counted {
    port: Box<dyn Port>,
    counts: Counts,
}

impl Port for Counted {
    fn link(&self) -> Link {
        self.port.link()
    }

    fn accept(&self, offloads: Offloads) {
        self.port.accept(offloads);
    }

    fn reset(&self) {
        self.port.reset();
    }

    fn send(&self, frame: &[u8], left: Unfinished) -> io::Result<()> {
        self.counts.add(1, frame.len());
        self.port.send(frame, left)
    }

    fn receive(&self, frame: &mut [u8]) -> io::Result<Option<Received>> {
        let received = self.port.receive(frame)?;
        self.counts.add(0, received.map_or(0, |received| received.len));
        Ok(received)
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        self.port.readiness()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Gives back each frame once.
    #[derive(Default)]
    struct Echo(Mutex<Option<usize>>);

    impl Port for Echo {
        fn link(&self) -> Link {
            Link::Up
        }

        fn send(&self, frame: &[u8], _left: Unfinished) -> io::Result<()> {
            *self.0.lock().unwrap() = Some(frame.len());
            Ok(())
        }

        fn receive(&self, _frame: &mut [u8]) -> io::Result<Option<Received>> {
            Ok(self.0.lock().unwrap().take().map(Received::plain))
        }

        fn readiness(&self) -> Option<BorrowedFd<'_>> {
            None
        }
    }

    #[test]
    fn both_ways_count_and_silence_does_not() {
        let counts = Counts::default();
        let port = counts.watch(Box::new(Echo::default()));
        let mut frame = [0; 100];
        port.send(&frame[..60], Unfinished::NOTHING).unwrap();
        port.send(&frame[..64], Unfinished::NOTHING).unwrap();
        assert_eq!(port.receive(&mut frame).unwrap(), Some(Received::plain(64)));
        assert_eq!(port.receive(&mut frame).unwrap(), None);
        assert_eq!((counts.received_bytes(), counts.sent_bytes()), (64, 124));
        assert_eq!(port.link(), Link::Up);
    }
}
