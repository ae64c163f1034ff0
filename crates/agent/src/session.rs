//! The agent's one loop: waits for the host, for children and for stdio, and does what they ask.
//!
//! ```text
//! Waiting ── Start, root entered ──► Started ── Shutdown ──► End
//!    │ ▲                                                      │
//!    │ └─ the control connection ends: call the host again    │
//!    └────────── Shutdown ────────────────────────────────────┘
//! ```
//! A machine that is saved while it waits loses its connections when it is restored, and its host is another process
//! then: so the agent calls again. Once something runs, a host that is gone is the end.
//!
//! A process is over in this order: it is reaped; its output is drained (`streams.rs`) and the
//! connections closed, however long the host takes to read; `Exited` is sent.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use protocol::{
    AgentMessage, CONTROL_PORT, Error, Exit, Failure, HostMessage, Identity, Level, Log, Network, Process,
    Ready, Renew, Start, Stream, Volume, WinSize,
};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, WaitStatus, wait};
use rustix::termios::tcgetpgrp;

use crate::control::Control;
use crate::fault::Fault;
use crate::spawn::{Spawned, resize, spawn};
use crate::{sys, tree};

/// Signals that are a key of a terminal, or its end: SIGHUP, SIGINT, SIGQUIT.
const KEYS: [u8; 3] = [1, 2, 3];
/// Number of the signal that ends anything.
const KILL: u8 = 9;

/// What surrounds the loop: a microVM, or a test.
pub trait Guest {
    /// Opens a connection to a port of the host. It blocks until [`streams`](crate::streams) says otherwise.
    ///
    /// # Errors
    /// The kernel's.
    fn connect(&mut self, port: u32) -> Result<OwnedFd, Fault>;

    /// Makes the root `start` asks for the one of this process.
    ///
    /// # Errors
    /// What could not be done.
    fn enter_root(&mut self, start: &Start, log: &mut dyn FnMut(Log)) -> Result<(), Fault>;

    /// Gives this machine random numbers and a time of its own.
    ///
    /// # Errors
    /// What could not be done.
    fn renew(&mut self, renew: &Renew) -> Result<(), Fault>;

    /// Gives this machine a name and an id of its own; its root is there.
    ///
    /// # Errors
    /// What could not be done.
    fn identify(&mut self, identity: &Identity) -> Result<(), Fault>;

    /// Gives this machine's network card an address. Not every guest has one.
    ///
    /// # Errors
    /// What could not be done.
    fn network(&mut self, network: &Network) -> Result<(), Fault> {
        Err(Fault::new("configure interface", &network.interface, "there is none"))
    }

    /// Shows the processes these of the host, once they have a root: what is wrong with them is told then.
    fn volumes(&mut self, volumes: Vec<Volume>);
}

/// Why the loop ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The host asked for it.
    Shutdown,
    /// The control connection is of no use any more.
    HostGone(String),
}

/// A process the host asked for.
#[derive(Debug)]
struct Running {
    exec: u32,
    process: Spawned,
    exit: Option<Exit>,
}

/// The loop's state.
pub struct Session<'a> {
    control: Control,
    signals: OwnedFd,
    guest: &'a mut dyn Guest,
    started: bool,
    /// For when the root is there.
    identity: Option<Identity>,
    running: Vec<Running>,
}

/// What to do after a message.
enum Next {
    GoOn,
    /// The control connection ended.
    Alone,
    Stop(End),
}

impl<'a> Session<'a> {
    /// `signals` is [`sys::child_signals`]'s.
    pub fn new(control: Control, signals: OwnedFd, guest: &'a mut dyn Guest) -> Self {
        Self { control, signals, guest, started: false, identity: None, running: Vec::new() }
    }

    /// Says that the agent is ready and serves the host until the end.
    ///
    /// # Errors
    /// The kernel's, where going on makes no sense.
    pub fn run(&mut self, ready: Ready) -> Result<End, Fault> {
        self.control.send(&AgentMessage::Ready(ready.clone()));
        loop {
            let events = self.wait().map_err(|errno| Fault::os("wait", "for events", errno))?;
            let [control, signals, pumps @ ..] = &events[..] else { continue };
            // First, while the pumps are still those that were waited for.
            self.run_pumps(pumps);
            if !control.is_empty() {
                match self.serve_control() {
                    Next::GoOn => {}
                    Next::Stop(end) => return Ok(end),
                    Next::Alone if self.started => {
                        return Ok(End::HostGone("the control connection ended".to_string()));
                    }
                    Next::Alone => match self.guest.connect(CONTROL_PORT).and_then(Control::new) {
                        Ok(control) => {
                            self.control = control;
                            self.control.send(&AgentMessage::Ready(ready.clone()));
                        }
                        Err(fault) => return Ok(End::HostGone(fault.to_string())),
                    },
                }
            }
            if !signals.is_empty() {
                self.reap();
            }
            self.report_exits();
        }
    }

    /// The events of the control connection, of the signals, and of every pump in order.
    fn wait(&self) -> Result<Vec<PollFlags>, Errno> {
        let mut fds = vec![self.control.interest(), PollFd::new(&self.signals, PollFlags::IN)];
        let pumps = self.running.iter().flat_map(|running| &running.process.pumps);
        fds.extend(pumps.filter_map(|pump| pump.interest()));
        match poll(&mut fds, None) {
            Ok(_) => Ok(fds.iter().map(PollFd::revents).collect()),
            Err(Errno::INTR) => Ok(Vec::new()),
            Err(errno) => Err(errno),
        }
    }

    /// `events` are those of [`Session::wait`], with nothing changed since.
    fn run_pumps(&mut self, events: &[PollFlags]) {
        let pumps = self.running.iter_mut().flat_map(|running| &mut running.process.pumps);
        for (pump, event) in pumps.filter(|pump| pump.interest().is_some()).zip(events) {
            if !event.is_empty() {
                pump.run();
            }
        }
    }

    fn serve_control(&mut self) -> Next {
        self.control.flush();
        let open = self.control.fill();
        loop {
            match self.control.take() {
                Ok(Some(message)) => {
                    if let stop @ Next::Stop(_) = self.serve(message) {
                        return stop;
                    }
                }
                Ok(None) if open => return Next::GoOn,
                Ok(None) => return Next::Alone,
                Err(error @ (Error::UnknownKind(_) | Error::Malformed { .. })) => {
                    self.log(Level::Error, error.to_string());
                }
                Err(error) => return Next::Stop(End::HostGone(format!("control connection: {error}"))),
            }
        }
    }

    fn serve(&mut self, message: HostMessage) -> Next {
        match message {
            HostMessage::Start(start) => self.start(start),
            HostMessage::Exec(process) => self.exec(process),
            HostMessage::Signal { exec, number } => self.signal(exec, number),
            HostMessage::Resize { exec, size } => self.resize(exec, size),
            HostMessage::CloseStdin { exec } => self.close_stdin(exec),
            HostMessage::Renew(renew) => {
                if let Err(fault) = self.guest.renew(&renew) {
                    self.log(Level::Warning, fault.to_string());
                }
            }
            HostMessage::Identify(identity) if self.started => self.identify(&identity),
            HostMessage::Identify(identity) => self.identity = Some(identity),
            HostMessage::Network(network) => {
                if let Err(fault) = self.guest.network(&network) {
                    self.log(Level::Error, fault.to_string());
                }
            }
            HostMessage::Volumes(volumes) => self.guest.volumes(volumes),
            HostMessage::Shutdown => return Next::Stop(End::Shutdown),
            // The type may grow; what this build can decode is above.
            _ => self.log(Level::Error, "a message this agent doesn't serve".to_string()),
        }
        Next::GoOn
    }

    fn identify(&mut self, identity: &Identity) {
        if let Err(fault) = self.guest.identify(identity) {
            self.log(Level::Warning, fault.to_string());
        }
    }

    fn log(&mut self, level: Level, text: String) {
        self.control.send(&AgentMessage::Log(Log { level, text }));
    }

    fn fail(&mut self, exec: u32, fault: Fault, code: u8) {
        self.control.send(&AgentMessage::Failed(fault.into_failure(exec, code)));
    }

    fn start(&mut self, start: Start) {
        let exec = start.process.exec;
        if self.started {
            return self.fail(
                exec,
                Fault::new("start", "the machine", "it is started already"),
                Failure::OTHER,
            );
        }
        let control = &mut self.control;
        let mut log = |log| control.send(&AgentMessage::Log(log));
        match self.guest.enter_root(&start, &mut log) {
            Ok(()) => {
                self.started = true;
                if let Some(identity) = self.identity.take() {
                    self.identify(&identity);
                }
                self.spawn(&start.process);
            }
            Err(fault) => self.fail(exec, fault, Failure::OTHER),
        }
    }

    fn exec(&mut self, process: Process) {
        if self.started {
            self.spawn(&process);
        } else {
            let fault = Fault::new("start", "a process", "the machine is not started yet");
            self.fail(process.exec, fault, Failure::OTHER);
        }
    }

    fn spawn(&mut self, process: &Process) {
        let exec = process.exec;
        if self.running.iter().any(|running| running.exec == exec) {
            let fault = Fault::new("start", "a process", format!("the id {exec} is in use"));
            return self.fail(exec, fault, Failure::OTHER);
        }
        match spawn(process, self.guest) {
            Ok(process) => {
                let pid = process.pid.as_raw_nonzero().get().unsigned_abs();
                self.running.push(Running { exec, process, exit: None });
                self.control.send(&AgentMessage::Started { exec, pid });
            }
            Err((fault, code)) => self.fail(exec, fault, code),
        }
    }

    /// The process the host means, unless it has ended, which the host may not know yet.
    fn running(&mut self, exec: u32) -> Option<&mut Running> {
        self.running.iter_mut().find(|running| running.exec == exec && running.exit.is_none())
    }

    fn signal(&mut self, exec: u32, number: u8) {
        let Some(running) = self.running(exec) else { return };
        let pid = running.process.pid.as_raw_nonzero().get();
        if number == KILL {
            if let Err(fault) = tree::kill(pid) {
                self.log(Level::Warning, fault.to_string());
            }
            return;
        }
        let target = match &running.process.terminal {
            Some(terminal) => tcgetpgrp(&terminal.master).map_or(pid, |group| -group.as_raw_nonzero().get()),
            // The user's terminal would send them to all of a job, whose leader this process is here.
            None if KEYS.contains(&number) => -pid,
            None => pid,
        };
        match sys::kill(target, number) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(errno) => {
                let fault = Fault::os("send signal", number, errno);
                self.log(Level::Warning, fault.to_string());
            }
        }
    }

    fn resize(&mut self, exec: u32, size: WinSize) {
        let Some(running) = self.running(exec) else { return };
        let Some(terminal) = &running.process.terminal else { return };
        if let Err(fault) = resize(&terminal.master, size) {
            self.log(Level::Warning, fault.to_string());
        }
    }

    fn close_stdin(&mut self, exec: u32) {
        let Some(running) = self.running(exec) else { return };
        for pump in running.process.pumps.iter_mut().filter(|pump| pump.stream() == Stream::Stdin) {
            pump.end_input();
        }
    }

    /// Takes every child that ended, orphans of the guest's processes among them.
    fn reap(&mut self) {
        let mut records = [0u8; 1024];
        while rustix::io::read(&self.signals, &mut records).is_ok_and(|count| count > 0) {}
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            self.ended(pid, status);
        }
    }

    fn ended(&mut self, pid: Pid, status: WaitStatus) {
        let of = |running: &&mut Running| running.process.pid == pid && running.exit.is_none();
        let Some(running) = self.running.iter_mut().find(of) else { return };
        running.exit = Some(match status.terminating_signal() {
            Some(signal) => Exit::Signal(signal.unsigned_abs() as u8),
            None => Exit::Code(status.exit_status().unwrap_or_default() as u8),
        });
        running.process.pumps.retain(|pump| pump.stream() != Stream::Stdin);
        if let Some(terminal) = &mut running.process.terminal {
            terminal.slave = None;
        }
        for pump in &mut running.process.pumps {
            pump.drain();
        }
    }

    fn report_exits(&mut self) {
        let control = &mut self.control;
        self.running.retain(|running| match running.exit {
            Some(exit) if running.process.pumps.iter().all(|pump| pump.is_done()) => {
                control.send(&AgentMessage::Exited { exec: running.exec, exit });
                false
            }
            _ => true,
        });
    }
}
