//! `strata worker`: the process that runs the machine, or waits for the container, of a workload in the background. Its standard input is the socket on which
//! its monitor asks; it dies with the monitor.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::process::Signal;
use workload::control::{self, Answer, Event, Message, Receiver, Request, Sender};
use workload::monitor::Saved;
use workload::{Description, Isolation, Workloads};

use super::requests::Saver;
use super::{InnerOptions, Options, container};
use crate::cli::Global;
use crate::commands::{files, restore};
use crate::failure::{Failure, Outcome, While};
use crate::store;

/// What a monitor asks things of: a machine, or a container.
pub trait Target: Sync {
    /// Does it, and tells what came of it, now or later. It does not wait for long: nothing else is heard meanwhile.
    fn answer(&self, message: Message<Request>, reply: Reply);

    /// Nobody will ask any more: the work has ended, which minds no more, or the monitor.
    fn unheard(&self) {}
}

/// What joins a workload to its monitor.
pub struct Link {
    /// What the command reads.
    pub stdin: Option<OwnedFd>,
    /// What it goes on from, instead of its command's start.
    pub saved: Option<Saved>,
    /// Id and name of the workload.
    pub who: (String, String),
    /// What a machine's snapshot needs.
    pub saver: Saver,
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
    let root = store::root(global)?;
    let folder = Workloads::open(&root).and_then(|all| all.find(&options.id)).while_trying(act)?;
    let isolation = folder.description().wanted.isolation;
    // Nobody has its files mounted while it runs.
    let _held = files::hold(&folder)?;
    if isolation == Isolation::Container {
        // Before anything is read from the monitor: it starts this program anew.
        container::protect()?;
    }
    let Description { id, name, wanted, .. } = folder.description();
    let mut link = Link::open((id.clone(), name.clone()))?;
    let sender = link.sender.clone();
    let options = || -> Outcome<Options> { serde_json::from_value(wanted.options.clone()).while_trying(act) };
    let saved =
        link.saved.take().map_or_else(|| restore::saved_for(&wanted.options), |saved| Ok(Some(saved)));
    let outcome = saved.and_then(|saved| match (isolation, saved) {
        (_, Some(saved)) => restore::go_on_with(&root, wanted.options.clone(), saved, link, name),
        (Isolation::Vm, None) => super::run_here(global, &options()?, Some(link)),
        (Isolation::Container, None) => container::run_linked(global, &options()?, &folder, link),
    });
    if let Err(failure) = &outcome {
        say(&sender, 0, &Event::Failed { reason: failure.to_string() });
    }
    outcome
}

impl Link {
    fn open(who: (String, String)) -> Outcome<Link> {
        let act = || "reach the process that watches this one".to_owned();
        let wrong = || Failure::new("reach the process that watches this one: it does not say what to do");
        let socket: UnixStream = std::io::stdin().as_fd().try_clone_to_owned().while_trying(act)?.into();
        let twin = socket.try_clone().while_trying(act)?;
        let (sender, mut receiver) = control::halves(socket, "the monitor").while_trying(act)?;
        let first = receiver.receive::<Request>().while_trying(act)?.ok_or_else(wrong)?;
        let Request::Begin { stdin, saved } = first.body else { return Err(wrong()) };
        let mut fds = first.fds.into_iter();
        let stdin = if stdin { Some(fds.next().ok_or_else(wrong)?) } else { None };
        let saved = if saved { Some(Saved::take(fds).ok_or_else(wrong)?) } else { None };
        let (sender, receiver) = (Arc::new(Mutex::new(sender)), Mutex::new(receiver));
        Ok(Link { stdin, saved, who, saver: Saver::open(), sender, receiver, socket: twin })
    }

    /// The command runs.
    pub fn started(&self) {
        say(&self.sender, 0, &Event::Started);
    }

    /// The kernel has killed some of it for want of memory.
    pub fn out_of_memory(&self) {
        say(&self.sender, 0, &Event::OutOfMemory);
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
            target.answer(message, Reply { id, sender: self.sender.clone() });
        }
        target.unheard();
    }
}

fn say(sender: &Mutex<Sender>, id: u64, body: &impl serde::Serialize) {
    // Without a monitor there is nobody to be told anything.
    let _ = sender.lock().unwrap_or_else(PoisonError::into_inner).send(id, body, &[]);
}

/// Where the answer to a request goes.
pub struct Reply {
    id: u64,
    sender: Arc<Mutex<Sender>>,
}

impl Reply {
    /// Tells what came of it.
    pub fn send(&self, answer: &Answer) {
        say(&self.sender, self.id, answer);
    }

    /// Tells that it is done, or why not.
    pub fn done(&self, done: Result<(), String>) {
        self.send(&done.map_or_else(|reason| Answer::Error { reason }, |()| Answer::Done));
    }
}
