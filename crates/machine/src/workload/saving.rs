//! A workload that is saved with its machine, and carried on by another process.
//!
//! Memory is copied while the machine runs; then it stands still, for the rest. What the command had written by then is the original's to deliver; what it writes
//! later is the copy's. Streams go on where they were: the guest does not notice ([`devices::virtio::VsockHost::resume`]).
//! Nothing the agent said is lost between the two: a snapshot is taken when every message of it was read and acted on.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, TryLockError};
use std::time::{Duration, Instant};

use protocol::Stream;
use rustix::io::ioctl_fionread;
use serde::{Deserialize, Serialize};

use super::Event;
use super::command::Command;
use super::run::{Phase, Run};
use crate::snapshot::{self, Archive, Copying, PageMap};

/// How long what the agent has said may take to be heard.
const PATIENCE: Duration = Duration::from_secs(2);

/// Section of a snapshot: what its host must know to carry a command on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadState {
    /// The command's id for the agent.
    pub exec: u32,
    /// It runs on a terminal.
    pub tty: bool,
    /// It reads an input that has not ended.
    pub stdin: bool,
    /// What runs, for messages.
    pub command: Vec<String>,
    /// The guest's port of the control connection.
    pub(super) control: u32,
    /// The guest's port and the number of each stream that has not ended.
    streams: Vec<(u32, u8)>,
    /// The numbers of the streams that have.
    over: Vec<u8>,
}

pub(crate) const WORKLOAD: (&str, u32) = ("workload", 1);
const STREAMS: [Stream; 3] = [Stream::Stdin, Stream::Stdout, Stream::Stderr];

impl WorkloadState {
    /// Whether it can be one that was saved.
    pub(crate) fn check(&self) -> Result<(), &'static str> {
        let numbers = || self.streams.iter().map(|(_, number)| number).chain(&self.over);
        if numbers().any(|number| usize::from(*number) >= STREAMS.len()) || numbers().count() > STREAMS.len()
        {
            return Err("streams that no command has");
        }
        Ok(())
    }

    pub(super) fn stream_of(&self, guest_port: u32) -> Option<Stream> {
        let number = self.streams.iter().find(|(port, _)| *port == guest_port)?.1;
        STREAMS.get(usize::from(number)).copied()
    }

    pub(super) fn over(&self) -> impl Iterator<Item = Stream> {
        self.over.iter().filter_map(|number| STREAMS.get(usize::from(*number)).copied())
    }
}

/// Where a snapshot goes, and what becomes of the original.
#[derive(Debug)]
pub struct Saving {
    /// Empty: see [`snapshot::write`].
    pub state: File,
    /// Empty: see [`snapshot::write`].
    pub ram: File,
    /// This process's.
    pub pages: Arc<PageMap>,
    /// Who writes it.
    pub build: String,
    /// The original ends there.
    pub stop: bool,
    /// Of memory that comes from a file, `ram` may have the differences from that: see [`Saved::base`].
    pub over: bool,
    /// Told what came of it, or why there is no snapshot.
    pub done: Sender<Result<Saved, String>>,
}

/// A machine that was saved.
#[derive(Debug)]
pub struct Saved {
    /// How long it stood still.
    pub paused: Duration,
    /// The file that what was saved of memory is the differences from, if it is.
    pub base: Option<File>,
}

impl Saving {
    pub(super) fn refuse(&self, reason: &str) {
        let _ = self.done.send(Err(reason.to_owned()));
    }
}

/// A lock that is held while a message is read: who holds it finds none half read.
pub(super) type Gate = Arc<Mutex<()>>;

/// What was asked for and how far it is: memory that was copied while the machine ran.
pub(super) type Copied = (Box<Saving>, Result<Copying, String>);

impl Run<'_> {
    /// Begins to save machine and workload: memory is copied beside everything else, then [`Event::Copied`] comes.
    pub(super) fn begin_saving(&mut self, saving: Box<Saving>) {
        if self.is_saving {
            return saving.refuse("it is being saved already");
        }
        let begin = if saving.over { Copying::over } else { Copying::new };
        let copying = begin(self.machine.shared_ram(), &saving.ram, &saving.pages);
        let sender = self.sender.clone();
        let copy = move || {
            let copied = copying.and_then(Copying::ahead).map_err(|error| crate::machine::chain(&error));
            // Nobody is there to be told once all has ended.
            let _ = sender.send(Event::Copied((saving, copied)));
        };
        let thread = std::thread::Builder::new().name("saving".to_owned()).spawn(copy);
        // Whoever waits is told by the end of what the thread was to have.
        self.is_saving = thread.is_ok();
    }

    /// Saves machine and workload. The machine goes on, unless it was to stop, or stood still before.
    pub(super) fn save(&mut self, (saving, copied): Copied) -> bool {
        let mut copying = match copied {
            Ok(copying) => copying,
            Err(reason) => {
                self.is_saving = false;
                saving.refuse(&reason);
                return false;
            }
        };
        let began = Instant::now();
        let stood_still = self.machine.is_paused();
        self.machine.pause();
        let captured = self.settle(saving.stop).and_then(|()| self.capture(&saving, &mut copying));
        self.is_saving = false;
        let go_on = || {
            if !stood_still {
                self.machine.resume();
            }
        };
        let waits = captured.is_ok() && saving.stop;
        // One that goes on does so before its files are whole and durable.
        if !waits {
            go_on();
        }
        let paused = began.elapsed();
        let result = captured.and_then(|archive| {
            let write = || {
                let base = copying.base()?;
                snapshot::complete(archive, &copying.finish()?, &saving.state)?;
                snapshot::sync(&saving.state, &saving.ram)?;
                Ok::<_, snapshot::Error>(Saved { paused, base })
            };
            write().map_err(|error| crate::machine::chain(&error))
        });
        let is_over = result.is_ok() && saving.stop;
        if waits && !is_over {
            go_on();
        }
        let _ = saving.done.send(result);
        is_over
    }

    fn capture(&self, saving: &Saving, copying: &mut Copying) -> Result<Archive, String> {
        let state = self.state()?;
        let archive = snapshot::capture(self.machine, &saving.build, Some(&state));
        let archive = archive.map_err(|error| crate::machine::chain(&error))?;
        let bytes = copying.rest().map_err(|error| crate::machine::chain(&error))?;
        tracing::debug!(bytes, "copied at rest");
        Ok(archive)
    }

    fn state(&self) -> Result<WorkloadState, String> {
        let Command { process, opened, pumps, .. } = &self.first;
        let number = |stream: Stream| STREAMS.iter().position(|known| *known == stream).unwrap_or(0) as u8;
        let (over, streams): (Vec<_>, Vec<_>) = opened.iter().copied().partition(|(_, s)| pumps.is_over(*s));
        Ok(WorkloadState {
            exec: process.exec,
            tty: process.tty.is_some(),
            stdin: streams.iter().any(|(_, stream)| *stream == Stream::Stdin),
            command: process.argv.clone(),
            control: self.control_port.ok_or("the agent is not connected")?,
            streams: streams.into_iter().map(|(port, stream)| (port, number(stream))).collect(),
            over: over.into_iter().map(|(_, stream)| number(stream)).collect(),
        })
    }

    /// Waits until all that the agent said is heard, and does what it means.
    fn settle(&mut self, stop: bool) -> Result<(), String> {
        if !self.extras.is_empty() {
            return Err("another command runs in it, by strata exec".to_owned());
        }
        let deadline = Instant::now() + PATIENCE;
        // Twice in a row: a socket that was full is filled again when it was read.
        let mut drained = 0;
        loop {
            let heard = self.is_all_heard()?;
            // Of an original that ends, what the command has written is delivered first.
            drained = if !stop || self.first.pumps.is_output_read() { drained + 1 } else { 0 };
            while let Ok(event) = self.events.try_recv() {
                self.handle(event).map_err(|error| crate::machine::chain(&error))?;
            }
            if self.ended.is_some() || self.first.outcome.is_some() {
                return Err("the command has ended".to_owned());
            }
            if heard && drained > 1 && self.phase == Phase::Running && self.first.is_open() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(match self.phase {
                    Phase::Running if drained == 0 => "nobody reads the command's output".to_owned(),
                    Phase::Running => "the guest is in the middle of a message".to_owned(),
                    _ => "the command does not run yet".to_owned(),
                });
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Whether every message that came was read whole and is among the events.
    fn is_all_heard(&self) -> Result<bool, String> {
        let _held = match self.gate.try_lock() {
            Ok(held) => held,
            Err(TryLockError::Poisoned(held)) => held.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok(false),
        };
        let unread = |socket: &UnixStream| ioctl_fionread(socket).map_err(|errno| errno.to_string());
        Ok(self.control.as_ref().map(unread).transpose()?.is_none_or(|count| count == 0))
    }
}

/// An event asks for it from any thread.
impl super::Control {
    /// Saves the workload as it runs; `saving` is told what came of it.
    pub fn save(&self, saving: Saving) {
        if let Err(unsent) = self.events.send(Event::Save(Box::new(saving)))
            && let Event::Save(saving) = unsent.0
        {
            saving.refuse("the command has ended");
        }
    }
}
