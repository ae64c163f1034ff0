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
//! Reading order: [`AgentSession`], `run`, [`command`], [`connector`], [`pump`].
//!
//! Absent: what is in the initial RAM disk and on the root disk; the caller composes both.

mod agent;
pub mod command;
pub mod connector;
mod error;
pub mod pump;
mod run;
mod saving;
#[cfg(test)]
mod tests;

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, SendError, Sender, channel};
use std::time::{Duration, Instant};

use devices::virtio::VsockHost;

use protocol::{AgentMessage, Hello, Stream, WinSize};

use crate::{Machine, MachineEvent};
pub use agent::new_identity;
use agent::read_control;
use command::{Extra, ExtraEvent, Streams};
use connector::Connector;
pub use error::Error;
use run::Run;
pub(crate) use saving::WORKLOAD;
use saving::{Copied, Gate};
pub use saving::{Saved, Saving, WorkloadState};

/// Connections a guest may open before anything is asked of it: the agent needs four; a guest that opens more plays tricks.
const MAX_CONNECTIONS: u32 = 64;
/// Connections it may open for each command beside the first.
const STREAMS_OF_A_COMMAND: u32 = 3;
/// The id of the first command beside the first one.
const FIRST_EXTRA: u32 = 0x100;
/// How long a guest that is up has work left over from its start.
const SETTLE: Duration = Duration::from_millis(100);

/// A command to run in a machine whose initial process is the agent.
pub struct Workload<'a> {
    /// Root file system and first process.
    pub start: protocol::Start,
    /// The addresses of its network card, if it is to use one.
    pub network: Option<protocol::Network>,
    /// What of the host its processes see.
    pub volumes: Vec<protocol::Volume>,
    /// Where its streams go.
    pub streams: Streams,
    /// Whether the guest is a copy of one that others come from too.
    pub origin: Origin,
    /// What names the machine, if it is to have a name and an id of its own.
    pub identity: Option<protocol::Identity>,
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
    /// The process, which ran when it was saved, goes on.
    Resumed,
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
pub struct Control {
    events: Sender<Event>,
    next_exec: Arc<AtomicU32>,
    connections: Arc<AtomicU32>,
}

impl Control {
    /// Sends a signal, by its number on Linux x86, to the process. Before the agent answers it cancels the start.
    pub fn signal(&self, number: u8) {
        self.send(Event::Signal(None, number));
    }

    /// The terminal has a new size.
    pub fn resize(&self, size: WinSize) {
        self.send(Event::Resize(None, size));
    }

    /// The number of a command beside the first that is about to be run.
    pub fn new_extra(&self) -> u32 {
        self.next_exec.fetch_add(1, Ordering::Relaxed)
    }

    /// Runs a command beside the first, as number `id`.
    pub fn exec(&self, id: u32, mut extra: Extra) {
        extra.process.exec = id;
        self.connections.fetch_add(STREAMS_OF_A_COMMAND, Ordering::Relaxed);
        if let Err(SendError(Event::Exec(mut extra))) = self.events.send(Event::Exec(Box::new(extra))) {
            (extra.told)(ExtraEvent::Lost("the command has ended".to_owned()));
        }
    }

    /// Sends a signal to a command beside the first. One that has ended hears nothing.
    pub fn signal_extra(&self, id: u32, number: u8) {
        self.send(Event::Signal(Some(id), number));
    }

    /// The terminal of a command beside the first has a new size.
    pub fn resize_extra(&self, id: u32, size: WinSize) {
        self.send(Event::Resize(Some(id), size));
    }

    /// Ends everything without asking: [`Error::Cancelled`].
    pub fn cancel(&self) {
        self.send(Event::Cancel);
    }

    fn send(&self, event: Event) {
        // Nobody is there to be told once all has ended.
        let _ = self.events.send(event);
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
        exec: u32,
        stream: Stream,
        result: Result<(), pump::Error>,
    },
    MachineEnded(MachineEvent),
    /// To a command by its id; without one to the first.
    Signal(Option<u32>, u8),
    Resize(Option<u32>, WinSize),
    Exec(Box<Extra>),
    Save(Box<Saving>),
    /// So far memory is copied.
    Copied(Copied),
    Cancel,
}

/// The host's end of the agent's connections. Made before the machine, which is given [`Self::host`].
pub struct AgentSession {
    control: Control,
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
        let control = Control {
            events: sender,
            next_exec: Arc::new(AtomicU32::new(FIRST_EXTRA)),
            connections: Arc::new(AtomicU32::new(MAX_CONNECTIONS)),
        };
        Self { control, events, saved: None }
    }

    /// For the machine of a snapshot that was taken while its command ran.
    pub fn resume(saved: WorkloadState) -> Self {
        Self { saved: Some(saved), ..Self::new() }
    }

    /// For [`crate::Backends::vsock`].
    pub fn host(&self) -> Box<dyn VsockHost> {
        let Control { events, connections, .. } = self.control();
        Box::new(Connector::new(events, connections, self.saved.clone()))
    }

    /// For signals, resizes and cancelling.
    pub fn control(&self) -> Control {
        self.control.clone()
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
                    read_control(socket, self.control.events.clone(), Gate::default())
                        .map_err(Error::Host)?;
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
            let ended = self.control.events.clone();
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
