//! One workload from the start of its machine to the end: what comes from the agent, the machine and the owner, one event
//! after the other.

use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use protocol::{AgentMessage, Hello, HostMessage, WinSize};

use super::agent::read_control;
use super::command::{Command, Extra, ExtraEvent, Told};
use super::saving::Gate;
use super::{AgentSession, Control, Error, Event, Origin, Outcome, Progress, Workload, WorkloadState};
use crate::{Machine, MachineEvent};

/// How long a guest may take to write back and power off after [`HostMessage::Shutdown`].
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);
/// How long what a guest said before its end may be on its way to us.
const LAST_WORDS: Duration = Duration::from_millis(500);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    Booting,
    Starting,
    Running,
}

pub(super) struct Run<'a> {
    pub(super) sender: Sender<Event>,
    pub(super) events: Receiver<Event>,
    pub(super) machine: &'a Machine,
    pub(super) origin: Origin,
    pub(super) identity: Option<protocol::Identity>,
    boot_timeout: Option<Duration>,
    timeout: Option<Duration>,
    progress: &'a mut dyn FnMut(Progress),
    /// Root and host name; the process in it is `first`'s.
    start: protocol::Start,
    pub(super) network: Option<protocol::Network>,
    volumes: Vec<protocol::Volume>,
    pub(super) first: Command,
    /// Commands beside the first, and who is told of them.
    pub(super) extras: Vec<(Command, Told)>,
    pub(super) control: Option<UnixStream>,
    pub(super) control_port: Option<u32>,
    pub(super) gate: Gate,
    /// Memory is being copied, or the rest is.
    pub(super) is_saving: bool,
    pub(super) phase: Phase,
    deadline: Option<Instant>,
    pub(super) ended: Option<MachineEvent>,
}

impl<'a> Run<'a> {
    pub(super) fn new(session: AgentSession, machine: &'a Machine, workload: Workload<'a>) -> Self {
        let AgentSession { control: Control { events: sender, .. }, events, saved } = session;
        let Workload { start, network, volumes, streams, origin, identity, boot_timeout, timeout, progress } =
            workload;
        let mut first = Command::new(start.process.clone(), streams);
        // What runs already is not waited for.
        let phase = if saved.is_some() { Phase::Running } else { Phase::Booting };
        let limit = if saved.is_some() { timeout } else { boot_timeout };
        for stream in saved.iter().flat_map(WorkloadState::over) {
            first.pumps.ended(stream, Ok(()));
            first.opened.push((0, stream));
        }
        Self {
            sender,
            events,
            machine,
            control: None,
            control_port: None,
            gate: Gate::default(),
            is_saving: false,
            phase,
            deadline: limit.and_then(|t| Instant::now().checked_add(t)),
            origin,
            identity,
            boot_timeout,
            timeout,
            progress,
            start,
            network,
            volumes,
            first,
            extras: Vec::new(),
            ended: None,
        }
    }

    pub(super) fn pump_until_exit(&mut self) -> Result<Outcome, Error> {
        loop {
            self.finish_extras();
            if let Some(outcome) = self.first.finished(self.ended.is_some())? {
                return Ok(outcome);
            }
            match self.next_event()? {
                Event::Copied(copied) => {
                    if self.save(copied) {
                        self.first.outcome = Some(Outcome::Saved);
                    }
                }
                event => self.handle(event)?,
            }
        }
    }

    pub(super) fn handle(&mut self, event: Event) -> Result<(), Error> {
        match event {
            Event::Connected { port, guest_port, socket } => self.connected(port, guest_port, socket)?,
            Event::NoSocket(error) => return Err(Error::Host(error)),
            Event::StreamOpened { hello, guest_port, socket } => {
                self.stream_opened(hello, guest_port, socket)?;
            }
            Event::Agent(message) => self.agent_said(message)?,
            Event::StreamEnded { exec, stream, result } => {
                if let Some(command) = self.command(exec) {
                    command.pumps.ended(stream, result);
                }
            }
            Event::MachineEnded(event) => self.machine_ended(event),
            Event::Signal(None, number) => self.signal(number)?,
            Event::Resize(None, size) => self.resize(size)?,
            Event::Signal(Some(exec), number) => self.tell(&HostMessage::Signal { exec, number })?,
            Event::Resize(Some(exec), size) => self.tell(&HostMessage::Resize { exec, size })?,
            Event::Exec(extra) => self.exec(*extra)?,
            Event::Save(saving) => self.begin_saving(saving),
            // Comes while another is made, of which there is none.
            Event::Copied((saving, _)) => saving.refuse("it is being saved already"),
            Event::Cancel => return Err(Error::Cancelled),
        }
        Ok(())
    }

    fn command(&mut self, exec: u32) -> Option<&mut Command> {
        let extras = self.extras.iter_mut().map(|(command, _)| command);
        std::iter::once(&mut self.first).chain(extras).find(|command| command.process.exec == exec)
    }

    fn exec(&mut self, extra: Extra) -> Result<(), Error> {
        let Extra { process, streams, mut told } = extra;
        if self.phase != Phase::Running {
            told(ExtraEvent::Lost("the command does not run yet".to_owned()));
            return Ok(());
        }
        self.tell(&HostMessage::Exec(process.clone()))?;
        self.extras.push((Command::new(process, streams), told));
        Ok(())
    }

    /// Tells of commands beside the first that have ended.
    fn finish_extras(&mut self) {
        let cut_off = self.ended.is_some();
        self.extras.retain_mut(|(command, told)| match command.finished(cut_off) {
            Ok(None) => true,
            Ok(Some(outcome)) => {
                told(ExtraEvent::Ended(outcome));
                false
            }
            Err(error) => {
                told(ExtraEvent::Lost(error.to_string()));
                false
            }
        });
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
                seconds: seconds(self.boot_timeout),
                console: self.machine.console().tail(),
            },
            _ => Error::Timeout { seconds: seconds(self.timeout) },
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
                self.renew()?;
                (self.progress)(Progress::Resumed);
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
        let sender = self.sender.clone();
        match self.command(hello.exec) {
            Some(command) => command.stream_opened(hello, guest_port, socket, sender),
            None => Ok(()),
        }
    }

    fn agent_said(&mut self, message: Result<Option<AgentMessage>, protocol::Error>) -> Result<(), Error> {
        match message {
            Ok(Some(AgentMessage::Ready(ready))) => self.ready(ready),
            Ok(Some(AgentMessage::Started { exec, pid })) => {
                if exec == self.first.process.exec {
                    self.phase = Phase::Running;
                    (self.progress)(Progress::Started { pid });
                } else if let Some((_, told)) = self.extras.iter_mut().find(|(c, _)| c.process.exec == exec) {
                    told(ExtraEvent::Started);
                }
                Ok(())
            }
            Ok(Some(AgentMessage::Exited { exec, exit })) => {
                if let Some(command) = self.command(exec) {
                    command.ended(Outcome::Exited(exit));
                }
                Ok(())
            }
            Ok(Some(AgentMessage::Failed(failure))) => {
                if let Some(command) = self.command(failure.exec) {
                    command.ended(Outcome::NotStarted(failure));
                }
                Ok(())
            }
            Ok(Some(AgentMessage::Log(log))) => {
                (self.progress)(Progress::Log(log));
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
        (self.progress)(Progress::Ready { kernel: ready.kernel });
        for module in ready.failed_modules {
            (self.progress)(Progress::ModuleFailed(module));
        }
        self.phase = Phase::Starting;
        self.deadline = self.timeout.and_then(|t| Instant::now().checked_add(t));
        self.renew()?;
        let volumes = std::mem::take(&mut self.volumes);
        if !volumes.is_empty() {
            self.tell(&HostMessage::Volumes(volumes))?;
        }
        let process = self.first.process.clone();
        let start = protocol::Start { process, ..self.start.clone() };
        self.tell(&HostMessage::Start(start))
    }

    fn signal(&mut self, number: u8) -> Result<(), Error> {
        if self.phase == Phase::Booting {
            return Err(Error::Cancelled);
        }
        self.tell(&HostMessage::Signal { exec: self.first.process.exec, number })
    }

    fn resize(&mut self, size: WinSize) -> Result<(), Error> {
        if self.phase == Phase::Booting {
            // The process is started with it.
            if let Some(tty) = &mut self.first.process.tty {
                *tty = size;
            }
            return Ok(());
        }
        self.tell(&HostMessage::Resize { exec: self.first.process.exec, size })
    }

    pub(super) fn tell(&mut self, message: &HostMessage) -> Result<(), Error> {
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
        while !self.first.is_output_over() {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.events.recv_timeout(left) {
                Ok(Event::StreamEnded { exec, stream, result }) if exec == self.first.process.exec => {
                    self.first.pumps.ended(stream, result);
                }
                Ok(_) => {}
                Err(_) => return,
            }
        }
    }

    pub(super) fn turn_off(&mut self, orderly: bool) {
        let orderly = orderly && self.first.outcome != Some(Outcome::Saved);
        self.first.pumps.end_all();
        for (command, told) in &mut self.extras {
            command.pumps.end_all();
            told(ExtraEvent::Lost("the machine has ended".to_owned()));
        }
        if self.first.outcome == Some(Outcome::Saved) {
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
