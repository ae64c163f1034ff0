//! How long work tells its caller how far it is. Nothing in this crate prints.

/// Hears what a long operation is doing. Called from several threads.
pub trait Progress: Sync {
    /// A new step begins, e.g. `apply layer 2 of 5`.
    fn step(&self, text: &str);
    /// The step has handled `done` bytes, of `total` where that is known.
    fn bytes(&self, done: u64, total: Option<u64>);
    /// Something the user should know that stops nothing.
    fn note(&self, text: &str) {
        let _ = text;
    }
    /// One of several pieces of work that go on at once begins, of `total` bytes.
    fn part(&self, text: &str, total: u64) -> Box<dyn Part + '_> {
        let _ = (text, total);
        Box::new(NoProgress)
    }
}

/// Hears how far one of several pieces of work is. A piece that is dropped unfinished has failed.
pub trait Part: Send {
    /// It has handled `done` bytes; fewer than before when it had to begin again.
    fn bytes(&mut self, done: u64);
    /// It is done.
    fn finish(self: Box<Self>);
}

/// Hears nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn step(&self, _text: &str) {}
    fn bytes(&self, _done: u64, _total: Option<u64>) {}
}

impl Part for NoProgress {
    fn bytes(&mut self, _done: u64) {}
    fn finish(self: Box<Self>) {}
}
