//! Disks that begin early with what is written in order: a guest that has a long file made durable at its end waits for the rest
//! only, not for all of it.

use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use memory::transfer::begin_writing;

use crate::virtio::worker::Worker;

/// Bytes that are written in order before the disk is told. What is shorter may be gone again before it has to be there.
const LONG: u64 = 16 << 20;

/// Bytes of a file.
type Part = (Arc<OwnedFd>, Range<u64>);

/// The thread that tells disks; ends with this.
pub(super) struct Behind {
    parts: Option<SyncSender<Part>>,
    thread: Worker,
}

impl Behind {
    /// Starts it.
    pub fn new() -> Self {
        // One is being told of and one waits: a disk that is slower than its guest is told of more at once.
        let (parts, receiver) = sync_channel(1);
        let mut thread = Worker::default();
        thread.start("write-behind", move || tell(&receiver));
        Self { parts: Some(parts), thread }
    }

    /// Notes that bytes of `file` were written; `run` is those before, as far as the disk has not been told of them.
    pub fn written(&self, file: &Arc<OwnedFd>, run: &mut Range<u64>, now: Range<u64>) {
        if run.end == now.start {
            run.end = now.end;
        } else {
            *run = now;
        }
        let is_long = run.end - run.start >= LONG;
        let parts = self.parts.as_ref().filter(|_| is_long);
        if parts.is_some_and(|parts| parts.try_send((file.clone(), run.clone())).is_ok()) {
            run.start = run.end;
        }
    }
}

impl Drop for Behind {
    fn drop(&mut self) {
        self.parts = None;
        self.thread.join();
    }
}

fn tell(parts: &Receiver<Part>) {
    while let Ok((file, part)) = parts.recv() {
        begin_writing(file.as_fd(), part.start, part.end - part.start);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_long_and_in_order_is_told_of() {
        let file: Arc<OwnedFd> = Arc::new(tempfile::tempfile().unwrap().into());
        // Nobody takes the second part.
        let (parts, receiver) = sync_channel(1);
        let behind = Behind { parts: Some(parts), thread: Worker::default() };
        let mut run = 0..0;
        let mut write = |from: u64, to: u64| {
            behind.written(&file, &mut run, from..to);
            (run.clone(), receiver.try_recv().map(|(_, part)| part).ok())
        };
        assert_eq!(write(0, LONG - 1), (0..LONG - 1, None));
        assert_eq!(write(5, 6), (5..6, None));
        assert_eq!(write(6, LONG + 5), (LONG + 5..LONG + 5, Some(5..LONG + 5)));
        assert_eq!(write(LONG + 5, LONG + 6), (LONG + 5..LONG + 6, None));
        behind.written(&file, &mut run, LONG + 6..3 * LONG);
        behind.written(&file, &mut run, 3 * LONG..4 * LONG);
        behind.written(&file, &mut run, 4 * LONG..5 * LONG);
        assert_eq!(run, 3 * LONG..5 * LONG, "it waits for the next chance");
    }
}
