//! A command in the guest, joined to descriptors of the caller: the first one of a workload, or one beside it.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::Sender;

use protocol::{Hello, Process, Stream};

use super::pump::{self, Pumps};
use super::{Error, Event, Outcome};

/// Where a command's streams go.
#[derive(Debug)]
pub struct Streams {
    /// What it reads; `None` if [`Process::stdin`] is false.
    pub stdin: Option<OwnedFd>,
    /// Where its output goes.
    pub stdout: OwnedFd,
    /// Where its error output goes; a process on a terminal has none.
    pub stderr: OwnedFd,
}

/// Who is told what becomes of a command.
pub type Told = Box<dyn FnMut(ExtraEvent) + Send>;

/// A command to run beside the first one. It ends with it.
pub struct Extra {
    /// The command; its id is the number it is run as.
    pub process: Process,
    /// Where its streams go.
    pub streams: Streams,
    /// Is told what becomes of it, on the session's thread: it must not wait for anything.
    pub told: Told,
}

/// What becomes of a command beside the first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExtraEvent {
    /// It runs.
    Started,
    /// It has ended, and what it wrote is delivered; or it could not be started.
    Ended(Outcome),
    /// The machine ended first, or a stream failed: one line.
    Lost(String),
}

/// A command's state on the host.
pub(super) struct Command {
    pub process: Process,
    streams: Streams,
    /// The guest's port of each stream that was opened.
    pub opened: Vec<(u32, Stream)>,
    pub pumps: Pumps,
    pub outcome: Option<Outcome>,
}

impl Command {
    pub fn new(process: Process, streams: Streams) -> Self {
        Self { process, streams, opened: Vec::new(), pumps: Pumps::default(), outcome: None }
    }

    /// The agent opened the connection of one of its streams.
    pub fn stream_opened(
        &mut self,
        hello: Hello,
        guest_port: u32,
        socket: UnixStream,
        sender: Sender<Event>,
    ) -> Result<(), Error> {
        let Hello { exec, stream } = hello;
        if self.opened.iter().any(|(_, known)| *known == stream) {
            return Ok(());
        }
        self.opened.push((guest_port, stream));
        let done = move |result: Result<(), pump::Error>| {
            drop(sender.send(Event::StreamEnded { exec, stream, result }));
        };
        match stream {
            Stream::Stdin => match self.streams.stdin.take() {
                Some(fd) => self.pumps.start_input(fd, socket, done),
                None => Ok(()),
            },
            Stream::Stdout => self.pumps.start_output(stream, &self.streams.stdout, socket, done),
            Stream::Stderr => self.pumps.start_output(stream, &self.streams.stderr, socket, done),
        }
    }

    /// It has ended.
    pub fn ended(&mut self, outcome: Outcome) {
        self.outcome = Some(outcome);
        self.pumps.end_input();
    }

    /// The streams the agent opens for what the process writes.
    pub fn output_streams(&self) -> &'static [Stream] {
        if self.process.tty.is_some() { &[Stream::Stdout] } else { &[Stream::Stdout, Stream::Stderr] }
    }

    /// Whether all it wrote is delivered.
    pub fn is_output_over(&self) -> bool {
        self.output_streams().iter().all(|stream| self.pumps.is_over(*stream))
    }

    /// Whether the agent has opened all its outputs.
    pub fn is_open(&self) -> bool {
        self.output_streams().iter().all(|stream| self.opened.iter().any(|(_, open)| open == stream))
    }

    /// The outcome, once it has ended and, unless `cut_off`, all its output is out: what the process wrote comes by other
    /// connections than its end, and may be slower.
    pub fn finished(&mut self, cut_off: bool) -> Result<Option<Outcome>, Error> {
        let Some(outcome) = &self.outcome else { return Ok(None) };
        if !cut_off && matches!(outcome, Outcome::Exited(_)) && !self.is_output_over() {
            return Ok(None);
        }
        let outcome = outcome.clone();
        self.pumps.take_error().map_or(Ok(Some(outcome)), Err)
    }
}
