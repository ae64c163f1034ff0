//! `strata worker`: the process that runs the machine, or waits for the container, of a workload in the background. Its standard input is the socket on which
//! its monitor asks; it dies with the monitor.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use machine::Machine;
use machine::workload::command::{Extra, ExtraEvent, Streams};
use machine::workload::{Control, Outcome};
use protocol::WinSize;
use rustix::process::Signal;
use workload::control::{self, Answer, Event, Exec, Message, Receiver, Request, Sender};
use workload::{Folder, Isolation, Workloads};

use super::{InnerOptions, Options, container};
use crate::cli::Global;
use crate::failure::{self, Failure, While};
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
    sender: Arc<Mutex<Sender>>,
    receiver: Mutex<Receiver>,
    /// To end the conversation, and with it the thread that hears.
    socket: UnixStream,
}

/// Runs the workload's command.
///
/// # Errors
/// As `run`; the monitor is told too.
pub fn run(global: &Global, options: &InnerOptions) -> failure::Outcome {
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
        say(&sender, 0, &Event::Failed { reason: failure.to_string() });
    }
    outcome
}

impl Link {
    fn open(folder: &Folder) -> failure::Outcome<Link> {
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

    /// The command runs.
    pub fn started(&self) {
        say(&self.sender, 0, &Event::Started);
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

/// A machine and the way to its commands.
pub struct Guest<'a> {
    machine: &'a Machine,
    control: &'a Control,
    /// Commands beside the first: the client's number and the session's.
    extras: Arc<Mutex<HashMap<u64, u32>>>,
}

impl<'a> Guest<'a> {
    pub fn new(machine: &'a Machine, control: &'a Control) -> Self {
        Self { machine, control, extras: Arc::default() }
    }

    /// The session's number of a command. One that has not started yet, or has ended, hears nothing.
    fn extra(&self, key: u64) -> Option<u32> {
        self.extras.lock().unwrap_or_else(PoisonError::into_inner).get(&key).copied()
    }

    /// Starts a command; its client is told how it ends.
    fn exec(&self, exec: Exec, fds: Vec<OwnedFd>, reply: Reply) {
        let Exec { key, command, env, workdir, user, terminal, stdin, detach } = exec;
        let mut fds = fds.into_iter();
        let (Some(stdout), Some(stderr)) = (fds.next(), fds.next()) else {
            return reply.done(Err("exec without open files".to_owned()));
        };
        let process = protocol::Process {
            argv: command,
            env,
            cwd: workdir,
            user,
            tty: terminal.map(|(rows, cols)| WinSize { rows, cols }),
            stdin,
            ..protocol::Process::default()
        };
        let streams = Streams { stdin: fds.next().filter(|_| stdin), stdout, stderr };
        let extras = self.extras.clone();
        let told = move |event| {
            if !matches!(event, ExtraEvent::Started) {
                extras.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
            }
            match event {
                ExtraEvent::Started if detach => reply.done(Ok(())),
                ExtraEvent::Started => {}
                ExtraEvent::Ended(Outcome::Exited(exit)) => {
                    reply.send(&Answer::Exited { code: exit.shell_code() });
                }
                ExtraEvent::Ended(Outcome::NotStarted(failure)) => {
                    reply.send(&Answer::NotStarted { code: failure.code, reason: failure.to_string() });
                }
                ExtraEvent::Ended(Outcome::Saved) => reply.done(Err("it was saved".to_owned())),
                ExtraEvent::Lost(reason) => reply.done(Err(reason)),
            }
        };
        let id = self.control.new_extra();
        self.extras.lock().unwrap_or_else(PoisonError::into_inner).insert(key, id);
        self.control.exec(id, Extra { process, streams, told: Box::new(told) });
    }
}

impl Target for Guest<'_> {
    fn answer(&self, message: Message<Request>, reply: Reply) {
        let Message { body, fds, .. } = message;
        match body {
            Request::Signal { number } => self.control.signal(number),
            Request::Resize { rows, columns } => self.control.resize(WinSize { rows, cols: columns }),
            Request::Pause => self.machine.pause(),
            Request::Resume => self.machine.resume(),
            Request::Exec(exec) => return self.exec(exec, fds, reply),
            Request::ExecSignal { key, number } => {
                if let Some(id) = self.extra(key) {
                    self.control.signal_extra(id, number);
                }
            }
            Request::ExecResize { key, rows, columns } => {
                if let Some(id) = self.extra(key) {
                    self.control.resize_extra(id, WinSize { rows, cols: columns });
                }
            }
            other => return reply.done(Err(format!("a machine cannot do this: {other:?}"))),
        }
        reply.done(Ok(()));
    }

    fn unheard(&self) {
        self.control.cancel();
    }
}
