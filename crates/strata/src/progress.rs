//! Progress on standard error: bars where a terminal shows them, once it has been a second; else a line per step.

use std::io::{self, IsTerminal};
use std::sync::mpsc::{self, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use image::Part;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output;

/// How long work may take before a bar appears.
const PATIENCE: Duration = Duration::from_secs(1);

/// How often bars are drawn anew.
const TICK: Duration = Duration::from_millis(120);

const TEMPLATE: &str = "{spinner} {msg} [{bar:30}] {binary_bytes}/{binary_total_bytes}";
const PART_TEMPLATE: &str =
    "  {msg:30} [{bar:30}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec}";

/// Shows how far a long operation is. Whatever it drew is gone when it is dropped.
#[derive(Debug)]
pub struct Bar {
    /// Nothing where no terminal would show it.
    shown: Option<Shown>,
    /// Dropped to call off the thread that makes the bars appear.
    calm: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// The bar of the step, and below it those of its parts.
#[derive(Debug, Clone)]
struct Shown {
    all: MultiProgress,
    step: ProgressBar,
}

impl Bar {
    /// Progress of one command.
    pub fn new() -> Self {
        if !io::stderr().is_terminal() {
            return Self { shown: None, calm: None, thread: None };
        }
        let all = MultiProgress::with_draw_target(ProgressDrawTarget::hidden());
        let step = all.add(ProgressBar::new_spinner());
        let shown = Shown { all, step };
        let (calm, over) = mpsc::channel::<()>();
        let appears = shown.clone();
        let thread = std::thread::spawn(move || {
            if over.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout) {
                appears.all.set_draw_target(ProgressDrawTarget::stderr());
                appears.step.enable_steady_tick(TICK);
            }
        });
        Self { shown: Some(shown), calm: Some(calm), thread: Some(thread) }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        drop(self.calm.take());
        if let Some(thread) = self.thread.take() {
            // It only waits and draws; a panic there was printed.
            let _ = thread.join();
        }
        if let Some(shown) = &self.shown {
            shown.step.finish_and_clear();
            // A terminal that is gone needs no clearing.
            let _ = shown.all.clear();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

impl image::Progress for Bar {
    fn step(&self, text: &str) {
        match &self.shown {
            Some(Shown { step, .. }) => {
                step.set_style(ProgressStyle::default_spinner());
                step.unset_length();
                step.set_position(0);
                step.set_message(text.to_owned());
            }
            None => eprintln!("strata: {text}"),
        }
    }

    fn bytes(&self, done: u64, total: Option<u64>) {
        let Some(Shown { step, .. }) = &self.shown else { return };
        if let Some(total) = total
            && step.length() != Some(total)
        {
            step.set_style(style(TEMPLATE));
            step.set_length(total);
        }
        step.set_position(done);
    }

    fn note(&self, text: &str) {
        match &self.shown {
            Some(Shown { all, .. }) => all.suspend(|| eprintln!("strata: note: {text}")),
            None => eprintln!("strata: note: {text}"),
        }
    }

    fn part(&self, text: &str, total: u64) -> Box<dyn Part + '_> {
        let Some(Shown { all, .. }) = &self.shown else {
            return Box::new(PartLine { text: text.to_owned(), total });
        };
        let bar = all.add(ProgressBar::new(total));
        bar.set_style(style(PART_TEMPLATE));
        bar.set_message(text.to_owned());
        // Also a part that stands still is seen once bars appear.
        bar.enable_steady_tick(TICK);
        Box::new(PartBar(bar))
    }
}

/// A bar of its own, gone when the part is.
struct PartBar(ProgressBar);

impl Part for PartBar {
    fn bytes(&mut self, done: u64) {
        self.0.set_position(done);
    }

    fn finish(self: Box<Self>) {}
}

impl Drop for PartBar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// A line when the part is done.
struct PartLine {
    text: String,
    total: u64,
}

impl Part for PartLine {
    fn bytes(&mut self, _done: u64) {}

    fn finish(self: Box<Self>) {
        eprintln!("strata: {}: {}", self.text, output::bytes(self.total));
    }
}
