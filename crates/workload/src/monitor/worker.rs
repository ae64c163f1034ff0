//! One worker: from its start to its end.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::sync::PoisonError;

use rustix::buffer::spare_capacity;
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

use super::{Commands, Early, Monitor, Saved, Worker};
use crate::control::{self, Event, FromWorker, Receiver, Request, Sender};
use crate::error::{Error, Result};
use crate::log::Lines;
use crate::state::{Status, now_ms};

/// The end of a process that something else than itself ended is told as 128 and the signal.
const SIGNALLED: i32 = 128;

type Started<'f> = &'f mut dyn FnMut(std::result::Result<(), String>);

impl Monitor<'_> {
    /// Starts a worker and waits until it has ended and all it wrote is kept. Gives its exit code.
    pub(super) fn run_worker(
        &self,
        commands: &Commands<'_>,
        saved: Option<Saved>,
        started: &mut dyn FnMut(std::result::Result<(), String>),
    ) -> Result<u8> {
        let socket = |source| Error::Socket { peer: "the worker", source };
        let (ours, theirs) = UnixStream::pair().map_err(socket)?;
        let (mut sender, receiver) = control::halves(ours, "the worker")?;
        let stdin = self.begin(&mut sender, saved)?;
        let mut command = (commands.worker)();
        command.stdin(OwnedFd::from(theirs)).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(Error::file("start", command.get_program()))?;
        // It holds the other ends: ours would keep the streams open.
        drop(command);
        let pid = Pid::from_child(&child);
        {
            let mut shared = self.lock();
            let mut worker = Worker { pid, sender, stdin, silent: false };
            if let Some(Early { input, is_whole }) = shared.early.take() {
                worker.read_from(input, is_whole);
            }
            shared.worker = Some(worker);
        }
        self.note(|state| {
            state.status = Status::Starting;
            (state.monitor_pid, state.worker_pid) = (Some(std::process::id()), Some(child.id()));
            (state.exit_code, state.error, state.finished_ms) = (None, None, None);
            state.oom_killed = false;
        });
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        std::thread::scope(|scope| {
            scope.spawn(|| stdout.map(|stream| self.keep("stdout", stream)));
            scope.spawn(|| stderr.map(|stream| self.keep("stderr", stream)));
            if let Some(check) = &self.folder.description().wanted.health {
                scope.spawn(|| self.check_health(pid, check, commands.check));
            }
            self.hear(receiver, started);
            if let Some(worker) = &mut self.lock().worker {
                worker.silent = true;
            }
            self.changed.notify_all();
        });
        // It has closed its streams: its end is near, or it is here.
        let _ = rustix::io::retry_on_intr(|| {
            waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)
        });
        // Before its process id may become another's.
        let mut shared = self.lock();
        shared.worker = None;
        shared.waiting.clear();
        drop(shared);
        let status = child.wait().map_err(Error::file("wait for", "the worker"))?;
        let signal = std::os::unix::process::ExitStatusExt::signal(&status);
        let code = status.code().unwrap_or(SIGNALLED + signal.unwrap_or_default());
        let code = u8::try_from(code).unwrap_or(u8::MAX);
        started(Err(format!("it ended with exit code {code}")));
        Ok(code)
    }

    /// Tells a new worker what it begins with; gives what the command's standard input is written to.
    fn begin(&self, sender: &mut Sender, saved: Option<Saved>) -> Result<Option<OwnedFd>> {
        let pipe = if self.folder.description().wanted.interactive { Some(open_pipe()?) } else { None };
        let mut fds: Vec<_> = pipe.iter().map(|(read, _)| read.as_fd()).collect();
        fds.extend(saved.iter().flat_map(Saved::files));
        sender.send(0, &Request::Begin { stdin: pipe.is_some(), saved: saved.is_some() }, &fds)?;
        Ok(pipe.map(|(_, write)| write))
    }

    /// What the worker says, until it has nothing more to say.
    fn hear(&self, mut receiver: Receiver, started: Started<'_>) {
        // A message that makes no sense ends the conversation, not the worker.
        while let Ok(Some(message)) = receiver.receive::<FromWorker>() {
            match message.body {
                FromWorker::Event(Event::Started) => {
                    self.note(|state| {
                        state.status = Status::Running;
                        state.started_ms = Some(now_ms());
                    });
                    started(Ok(()));
                }
                FromWorker::Event(Event::OutOfMemory) => self.note(|state| state.oom_killed = true),
                FromWorker::Event(Event::Failed { reason }) => {
                    self.note(|state| state.error = Some(reason.clone()));
                    started(Err(reason));
                }
                FromWorker::Answer(answer) => {
                    let waiting = self.lock().waiting.remove(&message.id);
                    if let Some(waiting) = waiting {
                        let _ = waiting.send(answer);
                    }
                }
            }
        }
    }

    /// Everything a stream brings goes to the log, and to those who are attached.
    fn keep(&self, name: &str, stream: impl AsFd) {
        let mut lines = Lines::default();
        // Not filled: what nothing was read into costs no memory.
        let mut buffer = Vec::with_capacity(64 << 10);
        let add = |line: &[u8]| self.log.lock().unwrap_or_else(PoisonError::into_inner).add(name, line);
        loop {
            buffer.clear();
            match rustix::io::retry_on_intr(|| rustix::io::read(&stream, spare_capacity(&mut buffer))) {
                Ok(1..) => {}
                Ok(0) | Err(_) => break,
            }
            // A full disk loses lines; the workload goes on.
            let _ = lines.push(&buffer, add);
            let mut attached = self.attached.lock().unwrap_or_else(PoisonError::into_inner);
            // A slow reader slows the workload down, as one of a foreground run does. One that is gone is forgotten.
            attached.retain(|client| {
                let fd = if name == "stdout" { &client.stdout } else { &client.stderr };
                write_all(fd, &buffer)
            });
        }
        let _ = lines.finish(add);
    }
}

impl Worker {
    /// Lets the command read what `input` brings; its end is the command's if it `is_whole`. False if the command reads nothing
    /// more.
    pub(super) fn read_from(&mut self, input: OwnedFd, is_whole: bool) -> bool {
        let pipe = if is_whole {
            self.stdin.take()
        } else {
            self.stdin.as_ref().and_then(|pipe| pipe.try_clone().ok())
        };
        let Some(pipe) = pipe else { return false };
        // On a thread that ends with the client's stream or with the process: nobody waits for a key.
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = rustix::io::retry_on_intr(|| rustix::io::read(&input, &mut buffer)) {
                if !write_all(&pipe, &buffer[..count]) {
                    return;
                }
            }
        });
        true
    }
}

/// A pipe for the command's standard input: its reading end, and its writing end.
fn open_pipe() -> Result<(OwnedFd, OwnedFd)> {
    let pipe = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC);
    pipe.map_err(|e| Error::Socket { peer: "the worker", source: e.into() })
}

/// Writes all of it; false when nobody reads it any more.
pub(super) fn write_all(fd: &OwnedFd, mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        match rustix::io::write(fd, bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => {
                let mut wait = [rustix::event::PollFd::new(fd, rustix::event::PollFlags::OUT)];
                let _ = rustix::event::poll(&mut wait, None);
            }
            Err(_) => return false,
        }
    }
    true
}
