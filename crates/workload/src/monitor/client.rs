//! Those who ask something of a workload.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{PoisonError, mpsc};
use std::thread::Scope;
use std::time::Duration;

use rustix::process::{Signal, kill_process};

use super::{Attached, Early, Monitor, Shared};
use crate::control::{self, Answer, Message, Request};
use crate::description::Isolation;
use crate::state::Status;

/// A container whose processes do not end by then waits for the kernel.
const DEATH: Duration = Duration::from_secs(10);

/// Takes connections until the workload has ended for good.
pub(super) fn accept<'scope, 'env: 'scope>(
    monitor: &'scope Monitor<'env>,
    listener: &UnixListener,
    scope: &'scope Scope<'scope, 'env>,
) {
    for connection in listener.incoming() {
        if monitor.lock().over {
            return;
        }
        match connection {
            Ok(socket) => drop(scope.spawn(move || monitor.serve(socket))),
            // No open file is left, say: that passes.
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

impl Monitor<'_> {
    /// One client, request after request. With it go its attachments.
    fn serve(&self, socket: UnixStream) {
        let mut attachments = Vec::new();
        self.answer_all(socket, &mut attachments);
        attachments.into_iter().for_each(|attachment| self.detach(attachment));
    }

    fn answer_all(&self, socket: UnixStream, attachments: &mut Vec<u64>) {
        let Ok((mut sender, mut receiver)) = control::halves(socket, "a client") else { return };
        // Once all has ended nobody waits for what a client might still ask.
        let _ = receiver.set_timeout(Duration::from_millis(200));
        loop {
            match receiver.receive::<Request>() {
                Ok(Some(message)) => {
                    let id = message.id;
                    let answer = self.answer(message, attachments);
                    if sender.send(id, &answer, &[]).is_err() {
                        return;
                    }
                }
                Ok(None) => return,
                Err(error) if error.is_timeout() => {
                    if self.lock().over {
                        return;
                    }
                }
                Err(error) => {
                    let _ = sender.send(0, &Answer::Error { reason: error.to_string() }, &[]);
                    return;
                }
            }
        }
    }

    fn answer(&self, message: Message<Request>, attachments: &mut Vec<u64>) -> Answer {
        match message.body {
            Request::State => Answer::State { state: Box::new(self.lock().state.clone()) },
            Request::Start => self.start(),
            Request::GiveUp => self.give_up(),
            Request::Wait => self.wait_for_end(None),
            Request::WaitForNextEnd => self.wait_for_next_end(),
            Request::Kill => {
                self.kill();
                self.wait_for_end(None)
            }
            Request::Stop { timeout_ms } => {
                let answer = self.stop(Duration::from_millis(timeout_ms));
                self.folder.tell("stop", &[]);
                answer
            }
            Request::Attach { stdin, once } => match self.attach(message.fds, stdin, once) {
                Ok(attachment) => {
                    self.folder.tell("attach", &[]);
                    attachments.push(attachment);
                    Answer::Done
                }
                Err(reason) => Answer::Error { reason },
            },
            request @ Request::Snapshot { stop: true } => {
                // Before it ends: it goes on elsewhere, and not here as well.
                let before = std::mem::replace(&mut self.lock().stopping, true);
                let answer = self.hand_on(&request, &message.fds);
                if matches!(answer, Answer::Error { .. }) {
                    self.lock().stopping = before;
                }
                answer
            }
            request => self.hand_on(&request, &message.fds),
        }
    }

    /// Lets the first worker begin; false when somebody else has.
    fn let_begin(&self) -> bool {
        let begun = std::mem::replace(&mut self.lock().begun, true);
        self.changed.notify_all();
        !begun
    }

    /// Ends the wait for a start that has not come.
    fn give_up(&self) -> Answer {
        let mut shared = self.lock();
        if shared.begun {
            return Answer::Error { reason: "it was started already".to_owned() };
        }
        shared.stopping = true;
        self.changed.notify_all();
        Answer::Done
    }

    /// Lets the first worker begin, and waits until the command runs.
    fn start(&self) -> Answer {
        if !self.let_begin() {
            return Answer::Error { reason: "it was started already".to_owned() };
        }
        let shared = self.lock();
        let waits = |shared: &mut Shared| shared.first.is_none() && !shared.over;
        let shared = self.changed.wait_while(shared, waits).unwrap_or_else(PoisonError::into_inner);
        match &shared.first {
            Some(Ok(())) => Answer::Done,
            Some(Err(reason)) => {
                Answer::NotStarted { code: shared.state.exit_code.unwrap_or(u8::MAX), reason: reason.clone() }
            }
            None => Answer::Error { reason: "it has ended".to_owned() },
        }
    }

    /// Waits for the end, at most so long; nothing but an error then.
    fn wait_for_end(&self, limit: Option<Duration>) -> Answer {
        let going = |shared: &mut Shared| !shared.over && shared.state.status != Status::Exited;
        let shared = self.lock();
        let shared = match limit {
            None => self.changed.wait_while(shared, going).unwrap_or_else(PoisonError::into_inner),
            Some(limit) => {
                let waited = self.changed.wait_timeout_while(shared, limit, going);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
        };
        match shared.state.exit_code {
            Some(code) if shared.state.status == Status::Exited => Answer::Exited { code },
            _ => Answer::Error { reason: "it has not ended".to_owned() },
        }
    }

    /// Waits for an end that has not come yet, whatever comes after it; for one that will not be started again there is none.
    fn wait_for_next_end(&self) -> Answer {
        let shared = self.lock();
        let before = shared.ends;
        let going = |shared: &mut Shared| {
            !shared.over && shared.state.status != Status::Exited && shared.ends == before
        };
        let shared = self.changed.wait_while(shared, going).unwrap_or_else(PoisonError::into_inner);
        match shared.last_code {
            Some(code) => Answer::Exited { code },
            None => Answer::Error { reason: "it has not ended".to_owned() },
        }
    }

    fn stop(&self, timeout: Duration) -> Answer {
        self.will_end();
        let number = self.folder.description().wanted.stop_signal;
        let asked = self.hand_on(&Request::Signal { number }, &[]);
        if asked == Answer::Done
            && let ended @ Answer::Exited { .. } = self.wait_for_end(Some(timeout))
        {
            return ended;
        }
        self.kill();
        self.wait_for_end(None)
    }

    /// It is not started again.
    fn will_end(&self) {
        self.lock().stopping = true;
        self.changed.notify_all();
    }

    /// A worker that is killed takes its machine with it. That of a container had better remove it: it is asked first.
    fn kill(&self) {
        self.will_end();
        let number = Signal::KILL.as_raw() as u8;
        if self.folder.description().wanted.isolation == Isolation::Container
            && self.hand_on(&Request::Signal { number }, &[]) == Answer::Done
            && matches!(self.wait_for_end(Some(DEATH)), Answer::Exited { .. })
        {
            return;
        }
        if let Some(worker) = &self.lock().worker {
            self.tell_of(&Request::Signal { number });
            let _ = kill_process(worker.pid, Signal::KILL);
        }
    }

    /// The worker is asked, and what it answers comes back.
    fn hand_on(&self, request: &Request, fds: &[OwnedFd]) -> Answer {
        let error = |reason: &str| Answer::Error { reason: reason.to_owned() };
        let (answer, answered) = mpsc::channel();
        {
            let mut shared = self.lock();
            let id = shared.next_request;
            shared.next_request += 1;
            let Some(worker) = &mut shared.worker else { return error("it does not run") };
            let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            if let Err(failed) = worker.sender.send(id, request, &fds) {
                return error(&failed.to_string());
            }
            shared.waiting.insert(id, answer);
            // Before what comes of it can be noted.
            self.tell_of(request);
        }
        // The sender goes with the worker.
        let answer = answered.recv().unwrap_or_else(|_| error("it has ended"));
        match (request, &answer) {
            (Request::Pause, Answer::Done) => self.note(|state| state.status = Status::Paused),
            (Request::Resume, Answer::Done) => self.note(|state| state.status = Status::Running),
            _ => {}
        }
        answer
    }

    /// Notes that the worker was asked for this.
    fn tell_of(&self, request: &Request) {
        match request {
            Request::Signal { number } => self.folder.tell("kill", &[("signal", number.to_string())]),
            Request::Resize { rows, columns } => {
                let size = [("height", rows.to_string()), ("width", columns.to_string())];
                self.folder.tell("resize", &size);
            }
            _ => {}
        }
    }

    /// Gives the attachment's number.
    fn attach(&self, fds: Vec<OwnedFd>, has_stdin: bool, once: bool) -> std::result::Result<u64, String> {
        let mut fds = fds.into_iter();
        let (Some(stdout), Some(stderr)) = (fds.next(), fds.next()) else {
            return Err("attach without two open files".to_owned());
        };
        let input = fds.next().filter(|_| has_stdin);
        if input.is_some() && !self.folder.description().wanted.interactive {
            return Err("it has no standard input".to_owned());
        }
        let mut shared = self.lock();
        shared.attachments += 1;
        let id = shared.attachments;
        if let Some(input) = input {
            let is_whole = !shared.begun;
            if let Some(worker) = &mut shared.worker {
                if !worker.read_from(input, false) {
                    return Err("its standard input has ended".to_owned());
                }
            } else if shared.early.is_some() {
                return Err("somebody else is attached already".to_owned());
            } else {
                shared.early = Some(Early { input, is_whole });
            }
        }
        drop(shared);
        let attached = Attached { id, once, stdout, stderr };
        self.attached.lock().unwrap_or_else(PoisonError::into_inner).push(attached);
        Ok(id)
    }

    fn detach(&self, id: u64) {
        self.attached.lock().unwrap_or_else(PoisonError::into_inner).retain(|client| client.id != id);
    }
}
