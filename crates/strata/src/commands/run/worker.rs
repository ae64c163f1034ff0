//! `strata worker`: the process that runs the machine of a workload in the background. Its standard input is the socket on which
//! its monitor asks; it dies with the monitor.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use machine::Machine;
use machine::workload::Control;
use protocol::WinSize;
use rustix::process::Signal;
use workload::control::{self, Answer, Event, Message, Receiver, Request, Sender};
use workload::{Folder, Workloads};

use super::{InnerOptions, Options};
use crate::cli::Global;
use crate::failure::{Failure, Outcome, While};
use crate::store;

/// What joins a machine to its monitor.
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
    let link = Link::open(&folder)?;
    let sender = link.sender.clone();
    let wanted: Options =
        serde_json::from_value(folder.description().wanted.options.clone()).while_trying(act)?;
    let outcome = super::run_here(global, &wanted, Some(link));
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

    /// Does what the monitor asks while `work` goes on.
    pub fn serve<T>(&self, machine: &Machine, control: &Control, work: impl FnOnce() -> T) -> T {
        std::thread::scope(|scope| {
            scope.spawn(|| self.hear(machine, control));
            let done = work();
            let _ = self.socket.shutdown(std::net::Shutdown::Read);
            done
        })
    }

    fn hear(&self, machine: &Machine, control: &Control) {
        let mut receiver = self.receiver.lock().unwrap_or_else(PoisonError::into_inner);
        while let Ok(Some(message)) = receiver.receive::<Request>() {
            let id = message.id;
            if let Some(answer) = answer(message, machine, control) {
                self.say(id, &answer);
            }
        }
        // The end of the work, which minds no more, or that of the monitor.
        control.cancel();
    }
}

/// Does it. Nothing when the answer comes later.
fn answer(message: Message<Request>, machine: &Machine, control: &Control) -> Option<Answer> {
    match message.body {
        Request::Signal { number } => control.signal(number),
        Request::Resize { rows, columns } => control.resize(WinSize { rows, cols: columns }),
        Request::Pause => machine.pause(),
        Request::Resume => machine.resume(),
        other => return Some(Answer::Error { reason: format!("a machine cannot do this yet: {other:?}") }),
    }
    Some(Answer::Done)
}
