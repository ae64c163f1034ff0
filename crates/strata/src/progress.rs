//! Progress on standard error: a bar where a terminal shows it, once it has been a second; else a line per step.

use std::io::{self, IsTerminal};
use std::sync::mpsc::{self, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How long work may take before a bar appears.
const PATIENCE: Duration = Duration::from_secs(1);

/// Shows how far a long operation is. Whatever it drew is gone when it is dropped.
#[derive(Debug)]
pub struct Bar {
    /// Nothing where no terminal would show it.
    bar: Option<ProgressBar>,
    /// Dropped to call off the thread that makes the bar appear.
    calm: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Bar {
    /// Progress of one command.
    pub fn new() -> Self {
        if !io::stderr().is_terminal() {
            return Self { bar: None, calm: None, thread: None };
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        let (calm, over) = mpsc::channel::<()>();
        let shown = bar.clone();
        let thread = std::thread::spawn(move || {
            if over.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout) {
                shown.set_draw_target(ProgressDrawTarget::stderr());
                shown.enable_steady_tick(Duration::from_millis(120));
            }
        });
        Self { bar: Some(bar), calm: Some(calm), thread: Some(thread) }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        drop(self.calm.take());
        if let Some(thread) = self.thread.take() {
            // It only waits and draws; a panic there was printed.
            let _ = thread.join();
        }
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl image::Progress for Bar {
    fn step(&self, text: &str) {
        match &self.bar {
            Some(bar) => {
                bar.set_style(ProgressStyle::default_spinner());
                bar.unset_length();
                bar.set_position(0);
                bar.set_message(text.to_owned());
            }
            None => eprintln!("strata: {text}"),
        }
    }

    fn bytes(&self, done: u64, total: Option<u64>) {
        let Some(bar) = &self.bar else { return };
        if let Some(total) = total
            && bar.length() != Some(total)
        {
            let style = ProgressStyle::with_template(
                "{spinner} {msg} [{bar:30}] {binary_bytes}/{binary_total_bytes}",
            );
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_length(total);
        }
        bar.set_position(done);
    }

    fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("strata: note: {text}")),
            None => eprintln!("strata: note: {text}"),
        }
    }
}
