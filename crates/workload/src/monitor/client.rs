//! Those who ask something of a workload.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{PoisonError, mpsc};
use std::thread::Scope;
use std::time::Duration;

use rustix::process::{Signal, kill_process};

use super::worker::write_all;
use super::{Attached, Monitor, Shared};
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
    /// One client, request after request.
    fn serve(&self, socket: UnixStream) {
        let Ok((mut sender, mut receiver)) = control::halves(socket, "a client") else { return };
        // Once all has ended nobody waits for what a client might still ask.
        let _ = receiver.set_timeout(Duration::from_millis(200));
        loop {
            match receiver.receive::<Request>() {
                Ok(Some(message)) => {
                    let id = message.id;
                    let answer = self.answer(message);
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

    fn answer(&self, message: Message<Request>) -> Answer {
        match message.body {
            Request::State => Answer::State { state: Box::new(self.lock().state.clone()) },
            Request::Start => self.start(),
            Request::Wait => self.wait_for_end(None),
            Request::Kill => {
                self.kill();
                self.wait_for_end(None)
            }
            Request::Stop { timeout_ms } => self.stop(Duration::from_millis(timeout_ms)),
            Request::Attach { stdin, start } => self.attach(message.fds, stdin, start),
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
            Some(Err(reason)) => Answer::Error { reason: reason.clone() },
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

    fn attach(&self, fds: Vec<OwnedFd>, has_stdin: bool, start: bool) -> Answer {
        let mut fds = fds.into_iter();
        let (Some(stdout), Some(stderr)) = (fds.next(), fds.next()) else {
            return Answer::Error { reason: "attach without two open files".to_owned() };
        };
        let input = fds.next().filter(|_| has_stdin);
        let id = {
            let mut shared = self.lock();
            shared.attachments += 1;
            shared.attachments
        };
        self.attached.lock().unwrap_or_else(PoisonError::into_inner).push(Attached { id, stdout, stderr });
        if start && !self.let_begin() {
            self.detach(id);
            return Answer::Error { reason: "it was started already".to_owned() };
        }
        if let Some(input) = input {
            let waits = |shared: &mut Shared| {
                shared.worker.is_none() && !shared.over && shared.state.status != Status::Exited
            };
            let mut shared =
                self.changed.wait_while(self.lock(), waits).unwrap_or_else(PoisonError::into_inner);
            let pipe = shared.worker.as_mut().and_then(|worker| {
                // Of who starts it the input's end is the command's. Others come and go.
                if start { worker.stdin.take() } else { worker.stdin.as_ref()?.try_clone().ok() }
            });
            let runs = shared.worker.is_some();
            drop(shared);
            match pipe {
                Some(pipe) => carry_input(input, pipe),
                None if runs => {
                    self.detach(id);
                    return Answer::Error { reason: "it has no standard input".to_owned() };
                }
                // It has ended already.
                None => {}
            }
        }
        let ended = self.wait_for_end(None);
        self.detach(id);
        match (&self.lock().first, ended) {
            (Some(Err(reason)), Answer::Exited { code }) if start => {
                Answer::NotStarted { code, reason: reason.clone() }
            }
            (_, ended) => ended,
        }
    }

    fn detach(&self, id: u64) {
        self.attached.lock().unwrap_or_else(PoisonError::into_inner).retain(|client| client.id != id);
    }
}

/// Carries what a client types, on a thread that ends with the client's stream or with the process: nobody waits for a key.
fn carry_input(input: OwnedFd, pipe: OwnedFd) {
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = rustix::io::retry_on_intr(|| rustix::io::read(&input, &mut buffer)) {
            if !write_all(&pipe, &buffer[..count]) {
                return;
            }
        }
    });
}
