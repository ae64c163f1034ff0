//! The host half of a workload in a microVM: waits for the agent, starts the command, carries its streams,
//! signals and exit status, and turns the machine off again.
//!
//! ```text
//!   guest agent ──vsock──► Connector (port 1024 control, 1025 streams)
//!                               │ events          ┌─ control reader thread
//!   owner ──Control──► AgentSession::run ◄────────┼─ a pump thread for each stream
//!                               │                 └─ waiter: the machine has ended
//!                               └─ HostMessages to the agent
//! ```
//! The guest is not trusted: connections are counted, frames are bounded by `protocol`, and an end of the
//! machine at any moment is one error that shows the console's last lines.
//!
//! Reading order: [`AgentSession`], [`connector`], [`pump`].
//!
//! Absent: what is in the initial RAM disk and on the root disk; the caller composes both.

mod agent;
pub mod connector;
mod error;
pub mod pump;
mod saving;
#[cfg(test)]
mod tests;

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use devices::virtio::VsockHost;

use protocol::{AgentMessage, Hello, HostMessage, Stream, WinSize};

use crate::{Machine, MachineEvent};
use agent::{read_control, renewal};
use connector::Connector;
pub use error::Error;
use saving::Gate;
pub(crate) use saving::WORKLOAD;
pub use saving::{Saving, WorkloadState};

/// How long a guest may take to write back and power off after [`HostMessage::Shutdown`].
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a guest that is up has work left over from its start.
const SETTLE: Duration = Duration::from_millis(100);
/// How long what a guest said before its end may be on its way to us.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// A command to run in a machine whose initial process is the agent.
pub struct Workload<'a> {
    /// Root file system and first process.
    pub start: protocol::Start,
    /// What the process reads; `None` if [`protocol::Process::stdin`] is false.
    pub stdin: Option<OwnedFd>,
    /// Where its output goes.
    pub stdout: OwnedFd,
    /// Where its error output goes; a process on a terminal has none.
    pub stderr: OwnedFd,
    /// Whether the guest is a copy of one that others come from too.
    pub origin: Origin,
    /// How long the guest may take until the agent answers; `None` is for ever.
    pub boot_timeout: Option<Duration>,
    /// How long the process may run; `None` is for ever.
    pub timeout: Option<Duration>,
    /// Is told how far things are.
    pub progress: &'a mut dyn FnMut(Progress),
}

/// Where the guest comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It boots.
    Booted,
    /// It was saved and restored: what copies must not share is renewed before anything runs.
    Restored,
}

/// How far a workload is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The agent answers.
    Ready {
        /// `uname -r` of the guest.
        kernel: String,
    },
    /// A kernel module the bundle carries did not load.
    ModuleFailed(protocol::ModuleFailure),
    /// The process runs.
    Started {
        /// Its process id in the guest.
        pid: u32,
    },
    /// The agent has something to say.
    Log(protocol::Log),
}

/// How a workload ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The process ended.
    Exited(protocol::Exit),
    /// The agent could not start it.
    NotStarted(protocol::Failure),
    /// It was saved, to go on elsewhere.
    Saved,
}

/// Talks to a running workload. Any thread.
#[derive(Clone)]
pub struct Control(Sender<Event>);

impl Control {
    /// Sends a signal, by its number on Linux x86, to the process. Before the agent answers it cancels the start.
    pub fn signal(&self, number: u8) {
        let _ = self.0.send(Event::Signal(number));
    }

    /// The terminal has a new size.
    pub fn resize(&self, size: WinSize) {
        let _ = self.0.send(Event::Resize(size));
    }

    /// Ends everything without asking: [`Error::Cancelled`].
    pub fn cancel(&self) {
        let _ = self.0.send(Event::Cancel);
    }
}

/// What [`AgentSession::run`] waits for.
enum Event {
    Connected {
        port: u32,
        guest_port: u32,
        socket: UnixStream,
    },
    /// The host has none for a connection of the agent.
    NoSocket(std::io::Error),
    StreamOpened {
        hello: Hello,
        guest_port: u32,
        socket: UnixStream,
    },
    Agent(Result<Option<AgentMessage>, protocol::Error>),
    StreamEnded {
        stream: Stream,
        result: Result<(), pump::Error>,
    },
    MachineEnded(MachineEvent),
    Signal(u8),
    Resize(WinSize),
    Save(Box<Saving>),
    Cancel,
}

/// The host's end of the agent's connections. Made before the machine, which is given [`Self::host`].
pub struct AgentSession {
    sender: Sender<Event>,
    events: Receiver<Event>,
    saved: Option<WorkloadState>,
}

impl Default for AgentSession {
    fn default() -> Self {
        Self::new()
    }
}

impl AgentSession {
    /// Nothing is connected yet.
    pub fn new() -> Self {
        let (sender, events) = channel();
        Self { sender, events, saved: None }
    }

    /// For the machine of a snapshot that was taken while its command ran.
    pub fn resume(saved: WorkloadState) -> Self {
        Self { saved: Some(saved), ..Self::new() }
    }

    /// For [`crate::Backends::vsock`].
    pub fn host(&self) -> Box<dyn VsockHost> {
        Box::new(Connector::new(self.sender.clone(), self.saved.clone()))
    }

    /// For signals, resizes and cancelling.
    pub fn control(&self) -> Control {
        Control(self.sender.clone())
    }

    /// Starts `machine`, waits until its agent answers, and pauses it there: nothing is mounted, nothing runs.
    ///
    /// # Errors
    /// Any [`Error`] of a start.
    pub fn boot(self, machine: &Machine, timeout: Duration) -> Result<protocol::Ready, Error> {
        machine.start();
        let deadline = Instant::now() + timeout;
        let tail = || machine.console().tail();
        let mut control = None;
        loop {
            match self.events.recv_timeout(Duration::from_millis(20)) {
                Ok(Event::Connected { port: protocol::CONTROL_PORT, socket, .. }) => {
                    control = Some(socket.try_clone().map_err(Error::Host)?);
                    read_control(socket, self.sender.clone(), Gate::default()).map_err(Error::Host)?;
                }
                Ok(Event::NoSocket(error)) => return Err(Error::Host(error)),
                Ok(Event::Cancel) => return Err(Error::Cancelled),
                Ok(Event::Agent(Ok(Some(AgentMessage::Ready(ready))))) => {
                    protocol::check_version(ready.version)?;
                    // What its kernel does beside, it does once; copies need not do it again.
                    std::thread::sleep(SETTLE);
                    machine.pause();
                    drop(control);
                    return Ok(ready);
                }
                Ok(Event::Agent(Err(error))) => return Err(Error::Protocol(error)),
                _ => {}
            }
            if let Some(event) = machine.ended() {
                return Err(Error::GuestEnded { event, console: tail() });
            }
            if Instant::now() >= deadline {
                return Err(Error::BootTimeout { seconds: timeout.as_secs_f64(), console: tail() });
            }
        }
    }

    /// Starts `machine`, runs `workload` in it to the end, and turns the machine off.
    ///
    /// # Errors
    /// Any [`Error`]; the machine has ended then too.
    pub fn run<'a>(self, machine: &'a Machine, workload: Workload<'a>) -> Result<Outcome, Error> {
        machine.start();
        std::thread::scope(|scope| {
            let ended = self.sender.clone();
            scope.spawn(move || {
                let _ = ended.send(Event::MachineEnded(machine.wait()));
            });
            let mut run = Run::new(self, machine, workload);
            let result = run.pump_until_exit();
            run.turn_off(result.is_ok());
            result
        })
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Booting,
    Starting,
    Running,
}

struct Run<'a> {
    sender: Sender<Event>,
    events: Receiver<Event>,
    machine: &'a Machine,
    workload: Workload<'a>,
    control: Option<UnixStream>,
    control_port: Option<u32>,
    gate: Gate,
    /// The guest's port of each stream that was opened.
    streams: Vec<(u32, Stream)>,
    pumps: pump::Pumps,
    phase: Phase,
    deadline: Option<Instant>,
    outcome: Option<Outcome>,
    ended: Option<MachineEvent>,
}

impl<'a> Run<'a> {
    fn new(session: AgentSession, machine: &'a Machine, workload: Workload<'a>) -> Self {
        let AgentSession { sender, events, saved } = session;
        let mut pumps = pump::Pumps::default();
        // What runs already is not waited for.
        let phase = if saved.is_some() { Phase::Running } else { Phase::Booting };
        let limit = if saved.is_some() { workload.timeout } else { workload.boot_timeout };
        for stream in saved.iter().flat_map(WorkloadState::over) {
            pumps.ended(stream, Ok(()));
        }
        Self {
            sender,
            events,
            machine,
            control: None,
            control_port: None,
            gate: Gate::default(),
            streams: saved.iter().flat_map(WorkloadState::over).map(|stream| (0, stream)).collect(),
            pumps,
            phase,
            deadline: limit.and_then(|t| Instant::now().checked_add(t)),
            workload,
            outcome: None,
            ended: None,
        }
    }

    fn pump_until_exit(&mut self) -> Result<Outcome, Error> {
        loop {
            if let Some(outcome) = self.finished()? {
                return Ok(outcome);
            }
            match self.next_event()? {
                Event::Save(saving) => {
                    if self.save(&saving) {
                        self.outcome = Some(Outcome::Saved);
                    }
                }
                event => self.handle(event)?,
            }
        }
    }

    fn handle(&mut self, event: Event) -> Result<(), Error> {
        match event {
            Event::Connected { port, guest_port, socket } => self.connected(port, guest_port, socket)?,
            Event::NoSocket(error) => return Err(Error::Host(error)),
            Event::StreamOpened { hello, guest_port, socket } => {
                self.stream_opened(hello, guest_port, socket)?;
            }
            Event::Agent(message) => self.agent_said(message)?,
            Event::StreamEnded { stream, result } => self.pumps.ended(stream, result),
            Event::MachineEnded(event) => self.machine_ended(event),
            Event::Signal(number) => self.signal(number)?,
            Event::Resize(size) => self.resize(size)?,
            Event::Save(saving) => {
                let _ = saving.done.send(Err("it is being saved already".to_owned()));
            }
            Event::Cancel => return Err(Error::Cancelled),
        }
        Ok(())
    }

    /// The outcome, once the process has ended and all its output is out.
    fn finished(&mut self) -> Result<Option<Outcome>, Error> {
        let Some(outcome) = &self.outcome else { return Ok(None) };
        let is_exit = matches!(outcome, Outcome::Exited(_));
        // What the process wrote comes by other connections than its end, and may be slower.
        if self.ended.is_none() && is_exit && !self.output_streams().iter().all(|s| self.pumps.is_over(*s)) {
            return Ok(None);
        }
        let outcome = outcome.clone();
        self.pumps.take_error().map_or(Ok(Some(outcome)), Err)
    }

    /// The streams the agent opens for what the process writes.
    fn output_streams(&self) -> &'static [Stream] {
        if self.workload.start.process.tty.is_some() {
            &[Stream::Stdout]
        } else {
            &[Stream::Stdout, Stream::Stderr]
        }
    }

    fn next_event(&mut self) -> Result<Event, Error> {
        let Some(deadline) = self.deadline else {
            // `self` holds a sender, so the channel is never closed.
            return self.events.recv().map_err(|_| Error::Cancelled);
        };
        let left = deadline.saturating_duration_since(Instant::now());
        match self.events.recv_timeout(left) {
            Ok(event) => Ok(event),
            Err(RecvTimeoutError::Timeout) => Err(self.timed_out()),
            Err(RecvTimeoutError::Disconnected) => Err(Error::Cancelled),
        }
    }

    fn timed_out(&mut self) -> Error {
        if let Some(event) = self.ended.take() {
            return Error::GuestEnded { event, console: self.machine.console().tail() };
        }
        let seconds = |t: Option<Duration>| t.unwrap_or_default().as_secs_f64();
        match self.phase {
            Phase::Booting => Error::BootTimeout {
                seconds: seconds(self.workload.boot_timeout),
                console: self.machine.console().tail(),
            },
            _ => Error::Timeout { seconds: seconds(self.workload.timeout) },
        }
    }

    /// Waits a moment more for what the guest had said before.
    fn machine_ended(&mut self, event: MachineEvent) {
        self.ended = Some(event);
        self.deadline = Some(Instant::now() + LAST_WORDS);
    }

    fn connected(&mut self, port: u32, guest_port: u32, socket: UnixStream) -> Result<(), Error> {
        let sender = self.sender.clone();
        let thread = std::thread::Builder::new();
        let spawned = if port == protocol::CONTROL_PORT {
            let reader = socket.try_clone().map_err(Error::Host)?;
            self.control = Some(socket);
            self.control_port = Some(guest_port);
            if self.phase == Phase::Running {
                self.tell(&HostMessage::Renew(renewal().map_err(Error::Host)?))?;
            }
            read_control(reader, sender, self.gate.clone())
        } else {
            // Eight bytes that a guest may never send: read beside everything else.
            thread
                .name("agent-hello".to_owned())
                .spawn(move || {
                    let mut socket = socket;
                    match Hello::read(&mut socket) {
                        Ok(hello) => drop(sender.send(Event::StreamOpened { hello, guest_port, socket })),
                        Err(error) => tracing::debug!(%error, "stream connection without a hello"),
                    }
                })
                .map(drop)
        };
        spawned.map_err(Error::Host)
    }

    fn stream_opened(&mut self, hello: Hello, guest_port: u32, socket: UnixStream) -> Result<(), Error> {
        let process = &self.workload.start.process;
        if hello.exec != process.exec {
            return Ok(());
        }
        let sender = self.sender.clone();
        let stream = hello.stream;
        if self.streams.iter().any(|(_, known)| *known == stream) {
            return Ok(());
        }
        self.streams.push((guest_port, stream));
        let done = move |result| drop(sender.send(Event::StreamEnded { stream, result }));
        match stream {
            Stream::Stdin => match self.workload.stdin.take() {
                Some(fd) => self.pumps.start_input(fd, socket, done),
                None => Ok(()),
            },
            Stream::Stdout => self.pumps.start_output(stream, &self.workload.stdout, socket, done),
            Stream::Stderr => self.pumps.start_output(stream, &self.workload.stderr, socket, done),
        }
    }

    fn agent_said(&mut self, message: Result<Option<AgentMessage>, protocol::Error>) -> Result<(), Error> {
        match message {
            Ok(Some(AgentMessage::Ready(ready))) => self.ready(ready),
            Ok(Some(AgentMessage::Started { exec, pid })) if exec == self.workload.start.process.exec => {
                self.phase = Phase::Running;
                (self.workload.progress)(Progress::Started { pid });
                Ok(())
            }
            Ok(Some(AgentMessage::Exited { exec, exit })) if exec == self.workload.start.process.exec => {
                self.outcome = Some(Outcome::Exited(exit));
                self.pumps.end_input();
                Ok(())
            }
            Ok(Some(AgentMessage::Failed(failure))) => {
                self.outcome = Some(Outcome::NotStarted(failure));
                Ok(())
            }
            Ok(Some(AgentMessage::Log(log))) => {
                (self.workload.progress)(Progress::Log(log));
                Ok(())
            }
            Ok(Some(_)) | Err(protocol::Error::UnknownKind(_)) => Ok(()),
            // The machine's end says more than the connection's, and follows.
            Ok(None) => Ok(()),
            Err(error) => Err(Error::Protocol(error)),
        }
    }

    fn ready(&mut self, ready: protocol::Ready) -> Result<(), Error> {
        if self.phase != Phase::Booting {
            return Err(Error::Protocol(protocol::Error::Malformed { field: "ready", fault: "said twice" }));
        }
        protocol::check_version(ready.version)?;
        (self.workload.progress)(Progress::Ready { kernel: ready.kernel });
        for module in ready.failed_modules {
            (self.workload.progress)(Progress::ModuleFailed(module));
        }
        self.phase = Phase::Starting;
        self.deadline = self.workload.timeout.and_then(|t| Instant::now().checked_add(t));
        if self.workload.origin == Origin::Restored {
            self.tell(&HostMessage::Renew(renewal().map_err(Error::Host)?))?;
        }
        let start = self.workload.start.clone();
        self.tell(&HostMessage::Start(start))
    }

    fn signal(&mut self, number: u8) -> Result<(), Error> {
        if self.phase == Phase::Booting {
            return Err(Error::Cancelled);
        }
        self.tell(&HostMessage::Signal { exec: self.workload.start.process.exec, number })
    }

    fn resize(&mut self, size: WinSize) -> Result<(), Error> {
        if self.phase == Phase::Booting {
            // The process is started with it.
            if let Some(tty) = &mut self.workload.start.process.tty {
                *tty = size;
            }
            return Ok(());
        }
        self.tell(&HostMessage::Resize { exec: self.workload.start.process.exec, size })
    }

    fn tell(&mut self, message: &HostMessage) -> Result<(), Error> {
        let Some(control) = &mut self.control else { return Ok(()) };
        match protocol::write_message(control, message) {
            // A connection that is gone: the machine is ending, which says more.
            Err(protocol::Error::Io { .. }) => Ok(()),
            other => other.map_err(Error::Protocol),
        }
    }

    /// Waits for pumps that write what they have read.
    fn finish_output(&mut self) {
        let deadline = Instant::now() + SHUTDOWN_TIMEOUT;
        while !self.output_streams().iter().all(|stream| self.pumps.is_over(*stream)) {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.events.recv_timeout(left) {
                Ok(Event::StreamEnded { stream, result }) => self.pumps.ended(stream, result),
                Ok(_) => {}
                Err(_) => return,
            }
        }
    }

    fn turn_off(&mut self, orderly: bool) {
        let orderly = orderly && self.outcome != Some(Outcome::Saved);
        self.pumps.end_all();
        if self.outcome == Some(Outcome::Saved) {
            self.finish_output();
        }
        if orderly && self.ended.is_none() {
            let _ = self.tell(&HostMessage::Shutdown);
            if self.machine.wait_timeout(SHUTDOWN_TIMEOUT).is_none() {
                tracing::warn!("the guest did not power off in time");
            }
        }
        self.machine.stop();
        self.machine.wait();
        // Also ends the thread that reads it.
        if let Some(control) = self.control.take() {
            let _ = control.shutdown(std::net::Shutdown::Both);
        }
    }
}
