//! Signals as calls on a thread of their own.

use std::thread::JoinHandle;

use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};

use crate::failure::{Outcome, While};

/// Signals that ask a program to end.
pub const ENDING: [i32; 4] = [SIGINT, SIGTERM, SIGHUP, SIGQUIT];

/// The terminal changed its size.
pub use signal_hook::consts::SIGWINCH;

pub use workload::signal_number as number;

/// While this lives, the signals it was made for reach its function instead of ending the program.
#[derive(Debug)]
pub struct Watch {
    handle: Handle,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Calls `on_signal` with the number of each of `signals` that arrives.
    ///
    /// # Errors
    /// The host gives no thread or no handler.
    pub fn start(signals: &[i32], mut on_signal: impl FnMut(i32) + Send + 'static) -> Outcome<Self> {
        let act = || "watch signals".to_owned();
        let mut incoming = Signals::new(signals).while_trying(act)?;
        let handle = incoming.handle();
        let work = move || incoming.forever().for_each(&mut on_signal);
        let thread = std::thread::Builder::new().name("signals".into()).spawn(work).while_trying(act)?;
        Ok(Self { handle, thread: Some(thread) })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.handle.close();
        if let Some(thread) = self.thread.take() {
            // A panic there was printed by the hook; there is nothing to add.
            let _ = thread.join();
        }
    }
}
