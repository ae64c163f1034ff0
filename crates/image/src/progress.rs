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
}

/// Hears nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn step(&self, _text: &str) {}
    fn bytes(&self, _done: u64, _total: Option<u64>) {}
}
