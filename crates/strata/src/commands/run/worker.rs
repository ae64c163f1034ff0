//! `strata worker`: the process that runs the machine, or waits for the container, of a workload in the background. Its standard input is the socket on which
//! its monitor asks; it dies with the monitor.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use machine::Machine;
use machine::workload::Control;
use protocol::WinSize;
use rustix::process::Signal;
use workload::control::{self, Answer, Event, Message, Receiver, Request, Sender};
use workload::{Folder, Isolation, Workloads};

use super::{InnerOptions, Options, container};
use crate::cli::Global;
use crate::failure::{Failure, Outcome, While};
use crate::store;

/// What a monitor asks things of: a machine, or a container.
pub trait Target: Sync {
    /// Does it.
    ///
    /// # Errors
    /// The reason why not, in one line.
    fn answer(&self, message: Message<Request>) -> Result<(), String>;

    /// Nobody will ask any more: the work has ended, which minds no more, or the monitor.
    fn unheard(&self) {}
}

/// What joins a workload to its monitor.
pub struct Link {
    /// What the command reads.
    pub stdin: Option<OwnedFd>,
    sender: Arc<Mutex<Sender>>,
    receiver: Mutex<Receiver>,
    /// To end the conversation, and with it the thread that hears.
    socket: UnixStream,
}

/// Runs the workload's command.
///
/// # Errors
/// As `run`; the monitor is told too.
pub fn run(global: &Global, options: &InnerOptions) -> Outcome {
    let act = || format!("run {}", options.id);
    // Whoever watches us is killed: then we are lost too, and had better not go on unseen.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).while_trying(act)?;
    let folder =
        Workloads::open(&store::root(global)?).and_then(|all| all.find(&options.id)).while_trying(act)?;
    let isolation = folder.description().wanted.isolation;
    if isolation == Isolation::Container {
        // Before anything is read from the monitor: it starts this program anew.
        container::protect()?;
    }
    let link = Link::open(&folder)?;
    let sender = link.sender.clone();
    let wanted: Options =
        serde_json::from_value(folder.description().wanted.options.clone()).while_trying(act)?;
    let outcome = match isolation {
        Isolation::Vm => super::run_here(global, &wanted, Some(link)),
        Isolation::Container => container::run_linked(global, &wanted, &options.id, link),
    };
    if let Err(failure) = &outcome {
        let failed = Event::Failed { reason: failure.to_string() };
        let _ = sender.lock().unwrap_or_else(PoisonError::into_inner).send(0, &failed, &[]);
    }
    outcome
}

impl Link {
    fn open(folder: &Folder) -> Outcome<Link> {
        let act = || "reach the process that watches this one".to_owned();
        let socket: UnixStream = std::io::stdin().as_fd().try_clone_to_owned().while_trying(act)?.into();
        let twin = socket.try_clone().while_trying(act)?;
        let (sender, mut receiver) = control::halves(socket, "the monitor").while_trying(act)?;
        let mut stdin = None;
        if folder.description().wanted.interactive {
            let message = receiver.receive::<Request>().while_trying(act)?;
            let first =
                message.ok_or_else(|| Failure::new("reach the process that watches this one: it is gone"))?;
            stdin = first.fds.into_iter().next();
        }
        let sender = Arc::new(Mutex::new(sender));
        Ok(Link { stdin, sender, receiver: Mutex::new(receiver), socket: twin })
    }

    fn say(&self, id: u64, body: &impl serde::Serialize) {
        // Without a monitor there is nobody to be told anything.
        let _ = self.sender.lock().unwrap_or_else(PoisonError::into_inner).send(id, body, &[]);
    }

    /// The command runs.
    pub fn started(&self) {
        self.say(0, &Event::Started);
    }

    /// Lets `target` do what the monitor asks while `work` goes on.
    pub fn serve<T>(&self, target: &dyn Target, work: impl FnOnce() -> T) -> T {
        std::thread::scope(|scope| {
            scope.spawn(|| self.hear(target));
            let done = work();
            let _ = self.socket.shutdown(std::net::Shutdown::Read);
            done
        })
    }

    fn hear(&self, target: &dyn Target) {
        let mut receiver = self.receiver.lock().unwrap_or_else(PoisonError::into_inner);
        while let Ok(Some(message)) = receiver.receive::<Request>() {
            let id = message.id;
            let answer = match target.answer(message) {
                Ok(()) => Answer::Done,
                Err(reason) => Answer::Error { reason },
            };
            self.say(id, &answer);
        }
        target.unheard();
    }
}

/// A machine and the way to its command.
pub struct Guest<'a> {
    pub machine: &'a Machine,
    pub control: &'a Control,
}

impl Target for Guest<'_> {
    fn answer(&self, message: Message<Request>) -> Result<(), String> {
        match message.body {
            Request::Signal { number } => self.control.signal(number),
            Request::Resize { rows, columns } => self.control.resize(WinSize { rows, cols: columns }),
            Request::Pause => self.machine.pause(),
            Request::Resume => self.machine.resume(),
            other => return Err(format!("a machine cannot do this: {other:?}")),
        }
        Ok(())
    }

    fn unheard(&self) {
        self.control.cancel();
    }
}
