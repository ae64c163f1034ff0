//! What a machine that runs does for whoever asks, on the socket of its monitor or on its own.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, PoisonError};

use machine::Machine;
use machine::snapshot::PageMap;
use machine::workload::command::{Extra, ExtraEvent, Streams};
use machine::workload::{Control, Outcome as Ended, Saved, Saving};
use protocol::WinSize;
use workload::control::{self, Answer, Exec, Message, Request};
use workload::{Foreground, Wanted, Workloads};

use super::template;
use super::worker::{Reply, Target};
use crate::failure::{Outcome, While};

/// What a snapshot needs that cannot be opened once the machine runs.
pub struct Saver {
    pages: Arc<PageMap>,
    build: String,
}

impl Saver {
    /// Opens it.
    pub fn open() -> Saver {
        Saver { pages: Arc::new(PageMap::open()), build: template::build() }
    }

    fn save(&self, message: Message<Request>, control: &Control, stop: bool) -> Answer {
        let error = |reason: String| Answer::Error { reason };
        let mut files = message.fds.into_iter().map(File::from);
        let (Some(state), Some(ram), shares) = (files.next(), files.next(), files.next()) else {
            return error("a snapshot goes to two files".to_owned());
        };
        let (done, saved) = channel();
        let (pages, build) = (self.pages.clone(), self.build.clone());
        control.save(Saving { state, ram, pages, build, stop, over: shares.is_some(), done });
        match saved.recv() {
            Ok(Ok(Saved { paused, base })) => match send_base(shares, base) {
                Ok(()) => Answer::Saved { paused_ms: u64::try_from(paused.as_millis()).unwrap_or(u64::MAX) },
                Err(unsent) => error(unsent.to_string()),
            },
            Ok(Err(reason)) => error(reason),
            Err(_) => error("the command has ended".to_owned()),
        }
    }

    /// Does what `message` asks; `machine` is there where it can be paused.
    pub fn answer(&self, message: Message<Request>, control: &Control, machine: Option<&Machine>) -> Answer {
        match (&message.body, machine) {
            (Request::Signal { number }, _) => control.signal(*number),
            (Request::Resize { rows, columns }, _) => control.resize(WinSize { rows: *rows, cols: *columns }),
            (Request::Pause, Some(machine)) => machine.pause(),
            (Request::Resume, Some(machine)) => machine.resume(),
            (Request::Stats, Some(machine)) => {
                let network = machine.network();
                return Answer::Stats {
                    returned_bytes: machine.returned_bytes(),
                    received_bytes: network.map(net::Counts::received_bytes),
                    sent_bytes: network.map(net::Counts::sent_bytes),
                };
            }
            (Request::Snapshot { stop }, _) => {
                let stop = *stop;
                return self.save(message, control, stop);
            }
            (other, Some(_)) => {
                return Answer::Error { reason: format!("a machine cannot do this: {other:?}") };
            }
            (Request::Kill, None) => control.cancel(),
            (_, None) => {
                return Answer::Error {
                    reason: "it runs in the foreground, on a terminal of its own".to_owned(),
                };
            }
        }
        Answer::Done
    }
}

/// The file behind what was saved of memory goes to whoever asked on a socket that came along.
fn send_base(shares: Option<File>, base: Option<File>) -> workload::Result<()> {
    let (Some(shares), Some(base)) = (shares, base) else { return Ok(()) };
    let socket = UnixStream::from(OwnedFd::from(shares));
    let (mut sender, _) = control::halves(socket, "whoever makes copies")?;
    sender.send(0, &Answer::Done, &[base.as_fd()])
}

/// A machine and the way to its commands.
pub struct Guest<'a> {
    saver: &'a Saver,
    machine: &'a Machine,
    control: &'a Control,
    /// Commands beside the first: the client's number and the session's.
    extras: Arc<Mutex<HashMap<u64, u32>>>,
}

impl<'a> Guest<'a> {
    /// Nothing runs beside the first command yet.
    pub fn new(saver: &'a Saver, machine: &'a Machine, control: &'a Control) -> Self {
        Self { saver, machine, control, extras: Arc::default() }
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
                ExtraEvent::Ended(Ended::Exited(exit)) => {
                    reply.send(&Answer::Exited { code: exit.shell_code() });
                }
                ExtraEvent::Ended(Ended::NotStarted(failure)) => {
                    reply.send(&Answer::NotStarted { code: failure.code, reason: failure.to_string() });
                }
                ExtraEvent::Ended(Ended::Saved) => reply.done(Err("it was saved".to_owned())),
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
        match message.body {
            Request::Exec(exec) => self.exec(exec, message.fds, reply),
            Request::ExecSignal { key, number } => {
                if let Some(id) = self.extra(key) {
                    self.control.signal_extra(id, number);
                }
                reply.done(Ok(()));
            }
            Request::ExecResize { key, rows, columns } => {
                if let Some(id) = self.extra(key) {
                    self.control.resize_extra(id, WinSize { rows, cols: columns });
                }
                reply.done(Ok(()));
            }
            _ => reply.send(&self.saver.answer(message, self.control, Some(self.machine))),
        }
    }

    fn unheard(&self) {
        self.control.cancel();
    }
}

/// A workload in the foreground that has a name.
pub struct Named {
    foreground: Foreground,
    saver: Saver,
}

impl Named {
    /// Takes `name`, or one made from the image, for what this process is about to run.
    ///
    /// # Errors
    /// Another workload has it.
    pub fn claim(root: &Path, name: Option<String>, wanted: Wanted) -> Outcome<Named> {
        let all = Workloads::open(root).while_trying(|| "open the workloads".to_owned())?;
        let foreground = Foreground::claim(&all, name, wanted);
        let foreground = foreground.while_trying(|| "name the workload".to_owned())?;
        Ok(Named { foreground, saver: Saver::open() })
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.foreground.folder().description().name
    }

    /// Answers requests until the process ends.
    ///
    /// # Errors
    /// The host has no thread.
    pub fn serve(self, control: Control) -> Outcome<()> {
        let Named { foreground, saver } = self;
        let serving = foreground.serve(move |message| saver.answer(message, &control, None));
        serving.while_trying(|| "answer requests".to_owned())
    }
}
