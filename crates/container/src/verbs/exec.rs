//! `exec`: another process in a container that runs.

use std::convert::Infallible;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};
use rustix::thread::ThreadNameSpaceType;

use super::create::write_pid;
use super::{Runtime, require, run::Running};
use crate::cgroups::Entry;
use crate::channel::{self, Channel, Message};
use crate::console;
use crate::error::{Error, Result, While};
use crate::launch;
use crate::namespaces;
use crate::process::{self, Plan};
use crate::seccomp::listener::Listener;
use crate::spec::Process;
use crate::state::Status;
use crate::sys;

/// What to run in a container.
#[derive(Clone, Debug)]
pub struct ExecOptions {
    /// The container.
    pub id: String,
    /// The process. Without capabilities it gets those of the container's first one.
    pub process: Process,
    /// `USER[:GROUP]` by names of the container's files, instead of the numbers.
    pub user: Option<String>,
    /// Further groups, by numbers or names of the container's files.
    pub groups: Vec<String>,
    /// A socket that is given the controlling end of the terminal.
    pub console_socket: Option<PathBuf>,
    /// A file that is given the process's id.
    pub pid_file: Option<PathBuf>,
    /// Further descriptors, from 3 on, that the process inherits.
    pub preserve_fds: u32,
    /// Whether a paused container is one too: the process waits until it is resumed.
    pub ignore_paused: bool,
}

/// What the new process is made from.
struct Entering {
    plan: Plan,
    root: OwnedFd,
    entry: Entry,
    new_user: bool,
}

impl Runtime {
    /// Starts a process in a container. It is this process's child.
    ///
    /// # Errors
    /// The container does not run, or the command cannot be executed.
    pub fn exec(&self, options: &ExecOptions) -> Result<Running> {
        let folder = self.folder(&options.id)?;
        let record = folder.read()?;
        let allowed: &[Status] = if options.ignore_paused {
            &[Status::Created, Status::Running, Status::Paused]
        } else {
            &[Status::Created, Status::Running]
        };
        require("exec in", &options.id, record.status(&folder), allowed)?;
        let mut process = options.process.clone();
        let first = record.spec.process.clone().unwrap_or_default();
        process.capabilities = process.capabilities.or(first.capabilities);
        let linux = record.spec.linux();
        let mut plan = Plan::new(&process, linux.seccomp.as_ref(), record.spec.has_namespace("user"))?;
        if let Some(rules) = &linux.seccomp {
            plan.listener = Listener::connect(rules, record.state(&folder))?;
        }
        (plan.user_name, plan.group_names) = (options.user.clone(), options.groups.clone());
        plan.preserve_fds = options.preserve_fds;
        let ours = match (&options.console_socket, process.terminal) {
            (Some(path), true) => {
                plan.console = Some(console::connect("console socket", path)?);
                None
            }
            (None, true) => {
                let (ours, theirs) = console::pair()?;
                plan.console = Some(theirs);
                Some(ours)
            }
            (Some(_), false) => return Err(Error::refused("console socket", "the process has no terminal")),
            (None, false) => None,
        };
        let held = record.hold()?;
        let flags = namespaces::different(record.process.pid)?;
        let root = format!("/proc/{}/root", record.process.pid);
        let open = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(&root, open, Mode::empty()).during(|| format!("open {root}"))?;
        // Everything was read of the process that is meant only if it is still there.
        record.hold()?;
        let entry = record.cgroups.entry()?;
        let new_user = flags & libc::CLONE_NEWUSER as u64 != 0;
        let running = enter(Entering { plan, root, entry, new_user }, &held, flags, ours)?;
        write_pid(options.pid_file.as_deref(), running.pid())?;
        Ok(running)
    }
}

fn enter(entering: Entering, held: &OwnedFd, flags: u64, ours: Option<OwnedFd>) -> Result<Running> {
    let (channel, theirs) = channel::pair()?;
    let join = || {
        let kinds = ThreadNameSpaceType::from_bits_retain(flags as u32);
        rustix::thread::move_into_thread_name_spaces(held.as_fd(), kinds)
            .during(|| "join the container's namespaces".to_owned())
    };
    let _before = entering.plan.affinity.begin()?;
    let mask = sys::block_signals().during(|| "block signals".to_owned())?;
    let join: Option<&dyn Fn() -> Result<()>> = if flags == 0 { None } else { Some(&join) };
    let child = launch::spawn(0, &entering.entry, join, || entering.run(&theirs));
    sys::restore_signals(&mask);
    let child = child?;
    drop(theirs);
    let failed = match channel.receive()? {
        None => {
            let console = ours.map(|socket| console::receive(socket.as_fd())).transpose()?;
            return Ok(Running::new(child, console));
        }
        Some(Message::Failed(125, text)) => Error::Inside(text),
        Some(Message::Failed(code, text)) => Error::Command { text, code },
        Some(_) => Error::refused("the process being made", "it says what nobody understands"),
    };
    let _ = Running::new(child, None).wait();
    Err(failed)
}

impl Entering {
    fn run(&self, channel: &Channel) -> i32 {
        let Err(error) = self.prepare();
        let message = process::failure(&error);
        let code = if let Message::Failed(code, _) = &message { i32::from(*code) } else { 125 };
        // Who made this process hears it, or is gone.
        let _ = channel.send(&message);
        code
    }

    fn prepare(&self) -> Result<Infallible> {
        // What is inside already may not look into this process: it still is the runtime (CVE-2019-5736).
        let not = rustix::process::DumpableBehavior::NotDumpable;
        rustix::process::set_dumpable_behavior(not).during(|| "hide from others".to_owned())?;
        process::begin(&self.plan)?;
        // Those that joined namespaces are inside already, and being put there again costs nothing.
        self.entry.enter()?;
        self.plan.affinity.finish()?;
        if self.new_user {
            crate::init::become_root()?;
        }
        rustix::process::setsid().during(|| "begin a session".to_owned())?;
        rustix::process::fchdir(&self.root).during(|| "enter the container's root".to_owned())?;
        rustix::process::chroot(".").during(|| "enter the container's root".to_owned())?;
        process::terminal(&self.plan, self.root.as_fd(), false)?;
        process::execute(&self.plan, self.root.as_fd(), || Ok(None), || Ok(()))
    }
}
