//! The process that watches one workload: starts its worker, keeps what it writes, notes how it ends, answers on the socket.
//!
//! ```text
//! Created ── Request::Start ──► Starting ── Event::Started ──► Running ◄──► Paused
//!    └───────────── the worker ends ──┴──────────┘
//!                        │
//!     again? ── yes ──► Restarting ──► Starting        no ──► Exited
//! ```
//! Threads: one that accepts, one for each client, and for each worker one for each of its streams and one for what it says;
//! the caller's starts workers and waits for them. Locks: `shared` alone is held while the state is written; `log` and
//! `attached` are taken after it, or alone.

mod client;
mod health;
mod worker;

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::Command;
use std::sync::mpsc;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::control::{self, Answer, Sender};
use crate::error::Result;
use crate::folder::Folder;
use crate::log::Writer;
use crate::state::{HealthStatus, State, Status, now_ms};

/// Whoever starts a monitor tells it to begin, or is gone.
const PATIENCE: Duration = Duration::from_secs(30);
/// Before a workload is started again; twice as long each time it ended soon.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// No pause is longer.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// One that ran for so long did not end soon.
const LONG_RUN: Duration = Duration::from_secs(10);

/// What the threads of a monitor share.
struct Monitor<'a> {
    folder: &'a Folder,
    shared: Mutex<Shared>,
    changed: Condvar,
    log: Mutex<Writer>,
    attached: Mutex<Vec<Attached>>,
}

struct Shared {
    state: State,
    worker: Option<Worker>,
    /// It may start its first worker.
    begun: bool,
    /// What came of its first start.
    first: Option<std::result::Result<(), String>>,
    /// The user asked for the end: it is not started again.
    stopping: bool,
    /// It has ended for good.
    over: bool,
    /// How many times it has ended, and how the last time.
    ends: u64,
    last_code: Option<u8>,
    next_request: u64,
    /// Who waits for the worker's answers.
    waiting: HashMap<u64, mpsc::Sender<Answer>>,
    attachments: u64,
    /// What the command is to read, of a client that was here before there was a worker.
    early: Option<Early>,
}

/// A client's input that nobody reads yet.
struct Early {
    input: OwnedFd,
    /// Its end is the end of the command's.
    is_whole: bool,
}

/// A worker that has not been waited for: its process id is its own.
struct Worker {
    pid: rustix::process::Pid,
    sender: Sender,
    /// Where the command's standard input is written to.
    stdin: Option<OwnedFd>,
    /// It says nothing any more: its end is near.
    silent: bool,
}

/// Somebody who sees the output as it comes.
struct Attached {
    id: u64,
    /// Until the workload ends, also if it is started again.
    once: bool,
    stdout: OwnedFd,
    stderr: OwnedFd,
}

/// A machine at rest that a workload goes on from, instead of its command's start.
#[derive(Debug)]
pub struct Saved {
    /// Of [`control::Request::Snapshot`].
    pub state: OwnedFd,
    /// Guest memory; the copies of one machine share the file.
    pub ram: OwnedFd,
    /// The file that `ram` is the differences from, if it is.
    pub base: Option<OwnedFd>,
}

impl Saved {
    /// From those that came with a message; `None` if they are too few.
    pub fn take(mut files: impl Iterator<Item = OwnedFd>) -> Option<Self> {
        Some(Self { state: files.next()?, ram: files.next()?, base: files.next() })
    }

    /// To go along with a message.
    pub fn files(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        [Some(&self.state), Some(&self.ram), self.base.as_ref()].into_iter().flatten().map(AsFd::as_fd)
    }
}

/// What a monitor starts. Their standard streams are set here.
pub struct Commands<'a> {
    /// A worker; its standard input becomes the control socket.
    pub worker: &'a dyn Fn() -> Command,
    /// The command in the workload that these arguments are.
    pub check: &'a (dyn Fn(&[String]) -> Command + Sync),
    /// Removes what a worker may have left that was killed. Called when one has ended, before that is noted.
    pub bury: &'a dyn Fn(),
}

/// Watches `folder` until its workload has ended for good. The first worker goes on from `saved`, if that is given. `listening` is
/// called once, when requests are answered: [`control::Request::Start`] begins, and without one for half a minute nothing does.
///
/// # Errors
/// Somebody else watches it, or its folder cannot be written.
pub fn watch(
    folder: &Folder,
    commands: &Commands<'_>,
    saved: Option<Saved>,
    listening: &mut dyn FnMut(),
) -> Result<()> {
    let _lock = folder.watch()?;
    let listener = control::listen(folder)?;
    listening();
    let shared = Shared {
        // From the first: who asks can tell it from the one before.
        state: State { monitor_pid: Some(std::process::id()), ..State::new() },
        worker: None,
        begun: false,
        first: None,
        stopping: false,
        over: false,
        ends: 0,
        last_code: None,
        next_request: 1,
        waiting: HashMap::new(),
        attachments: 0,
        early: None,
    };
    let monitor = Monitor {
        folder,
        shared: Mutex::new(shared),
        changed: Condvar::new(),
        log: Mutex::new(Writer::open(&folder.log(), folder.description().wanted.log)?),
        attached: Mutex::new(Vec::new()),
    };
    // The threads of clients may outlive the scope of a worker, and none outlives the process.
    std::thread::scope(|scope| {
        let monitor = &monitor;
        scope.spawn(move || client::accept(monitor, &listener, scope));
        let result = if monitor.may_begin() { monitor.run(commands, saved) } else { Ok(()) };
        monitor.end();
        result
    })?;
    let begun = monitor.lock().begun;
    if begun && folder.description().wanted.remove {
        folder.bury()?;
    }
    Ok(())
}

impl Monitor<'_> {
    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, durably, and tells whoever waits for a change.
    fn note(&self, change: impl FnOnce(&mut State)) {
        let mut shared = self.lock();
        let before = shared.state.clone();
        change(&mut shared.state);
        self.tell(&before, &shared.state);
        if let Err(error) = self.folder.set_state(&shared.state) {
            // A full disk: what runs goes on, and what is in memory is still told.
            shared.state.error = Some(error.to_string());
        }
        self.changed.notify_all();
    }

    /// Notes what happened when one state became another.
    fn tell(&self, before: &State, now: &State) {
        if now.started_ms != before.started_ms && now.status == Status::Running {
            self.folder.tell_of_volumes("mount");
            self.folder.tell("start", &[]);
        }
        match (before.status, now.status) {
            (Status::Paused, Status::Running) => self.folder.tell("unpause", &[]),
            (Status::Running, Status::Paused) => self.folder.tell("pause", &[]),
            _ => {}
        }
        if now.oom_killed && !before.oom_killed {
            self.folder.tell("oom", &[]);
        }
        if now.finished_ms.is_some() && now.finished_ms != before.finished_ms {
            self.folder.tell("die", &[("exitCode", now.exit_code.unwrap_or_default().to_string())]);
            if matches!(before.status, Status::Running | Status::Paused) {
                self.folder.tell_of_volumes("unmount");
            }
        }
        let health = |state: &State| state.health.as_ref().map(|health| health.status);
        if let Some(status @ (HealthStatus::Healthy | HealthStatus::Unhealthy)) = health(now)
            && health(before) != Some(status)
        {
            self.folder.tell(&format!("health_status: {status}"), &[]);
        }
    }

    /// Waits until it is to begin; false when nobody says so.
    fn may_begin(&self) -> bool {
        let waits = |shared: &mut Shared| !shared.begun && !shared.stopping;
        let waited = self.changed.wait_timeout_while(self.lock(), PATIENCE, waits);
        let shared = waited.unwrap_or_else(PoisonError::into_inner).0;
        shared.begun && !shared.stopping
    }

    /// What came of the first start is told to whoever asked for it.
    fn tell_first(&self, result: std::result::Result<(), String>) {
        self.lock().first.get_or_insert(result);
        self.changed.notify_all();
    }

    /// Starts workers until there is nothing more to do.
    fn run(&self, commands: &Commands<'_>, mut saved: Option<Saved>) -> Result<()> {
        let mut pause = FIRST_PAUSE;
        loop {
            let begun = Instant::now();
            let mut failed: Option<String> = None;
            let mut started = |result: std::result::Result<(), String>| match result {
                Ok(()) => self.tell_first(Ok(())),
                Err(reason) => drop(failed.get_or_insert(reason)),
            };
            let code = self.run_worker(commands, saved.take(), &mut started)?;
            (commands.bury)();
            // It may have been decided anew meanwhile.
            let now = Folder::open(self.folder.path());
            let policy = now.as_ref().unwrap_or(self.folder).description().wanted.restart;
            let (restarts, stopping) = {
                let mut shared = self.lock();
                // Whoever waits is woken when it is noted, below.
                (shared.ends, shared.last_code) = (shared.ends + 1, Some(code));
                (shared.state.restarts, shared.stopping)
            };
            let again = !stopping && policy.again(code, restarts);
            self.note(|state| {
                state.status = if again { Status::Restarting } else { Status::Exited };
                state.exit_code = Some(code);
                state.finished_ms = Some(now_ms());
                state.worker_pid = None;
                state.restarts += u32::from(again);
            });
            // Once it is noted: who hears of it may look.
            if let Some(reason) = failed {
                self.tell_first(Err(reason));
            }
            if !again {
                return Ok(());
            }
            self.attached.lock().unwrap_or_else(PoisonError::into_inner).retain(|client| !client.once);
            pause = if begun.elapsed() >= LONG_RUN { FIRST_PAUSE } else { (pause * 2).min(LONGEST_PAUSE) };
            if !self.sleep(pause) {
                self.note(|state| state.status = Status::Exited);
                return Ok(());
            }
        }
    }

    /// Waits, unless the user asks for the end meanwhile: false then.
    fn sleep(&self, time: Duration) -> bool {
        let shared = self.lock();
        let waited = self.changed.wait_timeout_while(shared, time, |shared| !shared.stopping);
        !waited.unwrap_or_else(PoisonError::into_inner).0.stopping
    }

    /// Nobody is to be answered any more but with the end.
    fn end(&self) {
        let mut shared = self.lock();
        shared.over = true;
        shared.state.monitor_pid = None;
        if shared.begun {
            let _ = self.folder.set_state(&shared.state);
        }
        self.changed.notify_all();
        drop(shared);
        // Who is attached sees the end of the output.
        self.attached.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let _ = self.log.lock().unwrap_or_else(PoisonError::into_inner).sync();
        // Wakes the thread that accepts, which then sees the end.
        drop(control::Client::connect(self.folder));
    }
}
