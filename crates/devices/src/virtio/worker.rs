//! The thread on which a device works beside the vCPUs.

use std::thread::JoinHandle;

/// At most one thread. What tells it to end is the device's: a [`Poller`](super::poller::Poller) or a doorbell that is closed.
#[derive(Default)]
pub(super) struct Worker {
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Does `work` on a thread of this name, unless there is one. A host that gives none leaves it undone, and the log says so.
    pub fn start(&mut self, name: &str, work: impl FnOnce() + Send + 'static) {
        if self.thread.is_some() {
            return;
        }
        match std::thread::Builder::new().name(name.into()).spawn(work) {
            Ok(thread) => self.thread = Some(thread),
            Err(error) => tracing::error!(%error, "start {name} thread"),
        }
    }

    /// Waits until the thread has ended, which was told to.
    pub fn join(&mut self) {
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been reported by the panic hook.
            let _ = thread.join();
        }
    }
}
