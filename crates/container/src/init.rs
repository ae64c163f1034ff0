//! The first process of a container, from the moment it exists until it executes the bundle's command.

use std::convert::Infallible;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::net::{SocketFlags, acceptfrom_with};

use crate::cgroups::Entry;
use crate::channel::{Channel, Message};
use crate::error::{Error, Result, While};
use crate::hooks::{self, Point};
use crate::idmapped::Prepared;
use crate::mounts::{self, Target};
use crate::namespaces::Namespaces;
use crate::process::{self, Plan};
use crate::rootfs::{self, Root};
use crate::spec::Spec;
use crate::state::{State, Status};
use crate::sys;

/// All that the first process needs to know, made before it exists.
#[derive(Debug)]
pub struct Init {
    /// The bundle's config.
    pub spec: Spec,
    /// What it becomes.
    pub plan: Plan,
    /// Its namespaces.
    pub namespaces: Namespaces,
    /// Its way into the control groups.
    pub entry: Entry,
    /// Their folders.
    pub cgroups: Vec<(String, PathBuf)>,
    /// Its root.
    pub root: Root,
    /// An image's file system.
    pub lower: Option<OwnedFd>,
    /// Where the root is mounted.
    pub root_path: PathBuf,
    /// The bundle's folder: relative sources of mounts start there.
    pub bundle: PathBuf,
    /// What it mounts with other ids.
    pub mapped: Prepared,
    /// Whether `pivot_root` is used.
    pub pivot: bool,
    /// The socket it waits at to be started; without one it starts at once.
    pub start: Option<OwnedFd>,
    /// What hooks inside are told, but for the process's id.
    pub state: State,
}

impl Init {
    /// Whether the process's id has to be known to it.
    fn needs_pid(&self) -> bool {
        [Point::CreateContainer, Point::StartContainer].iter().any(|p| !hooks::of(&self.spec, *p).is_empty())
    }

    /// Whether ids are mapped by the other end.
    #[must_use]
    pub fn maps_ids(&self) -> bool {
        self.namespaces.is_new(libc::CLONE_NEWUSER)
    }

    /// Does everything. Returns only if something failed, which `channel` was told.
    pub fn run(&self, channel: &Channel) -> i32 {
        let Err(error) = self.prepare(channel);
        let message = process::failure(&error);
        let code = if let Message::Failed(code, _) = &message { i32::from(*code) } else { 125 };
        // Who waits at the start socket was told already; the channel is gone by then, and that is no loss.
        let _ = channel.send(&message);
        code
    }

    fn prepare(&self, channel: &Channel) -> Result<Infallible> {
        process::begin(&self.plan)?;
        self.entry.enter()?;
        let mut state = self.state.clone();
        if self.maps_ids() || self.needs_pid() {
            channel.send(&Message::NeedsIds)?;
            state.pid = channel.wait()?;
        }
        if self.maps_ids() || self.spec.linux().namespaces.iter().any(|n| n.kind == "user") {
            become_root()?;
        }
        // Nobody who shares this process's namespaces may look into it: it still is the runtime.
        let not = rustix::process::DumpableBehavior::NotDumpable;
        rustix::process::set_dumpable_behavior(not).during(|| "hide from others".to_owned())?;
        rustix::process::setsid().during(|| "begin a session".to_owned())?;
        self.kernel_settings()?;
        // In this mount namespace, where it can be bound from.
        let null = mounts::null_device()?;
        let root = self.build_root(channel, &state)?;
        process::terminal(&self.plan, root.as_fd(), true)?;
        if self.namespaces.is_new(libc::CLONE_NEWNS) {
            // While the host's null device can still be bound.
            rootfs::hide(root.as_fd(), &self.spec, null.as_fd())?;
            mounts::enter_root(root.as_fd(), self.pivot)?;
            rootfs::finish(root.as_fd(), &self.spec)?;
        } else {
            // Without mounts of its own the root is only changed.
            rustix::process::fchdir(&root).during(|| "enter the root".to_owned())?;
            rustix::process::chroot(".").during(|| "enter the root".to_owned())?;
        }
        let created = State { status: Status::Created, ..state };
        let hooks = || hooks::run(&self.spec, Point::StartContainer, &created);
        process::execute(&self.plan, root.as_fd(), || self.wait_for_start(channel), hooks)
    }

    /// Names, loopback, execution domain, kernel parameters, clocks, and the namespaces that come late.
    fn kernel_settings(&self) -> Result<()> {
        let spec = &self.spec;
        if self.namespaces.is_new(libc::CLONE_NEWNET) {
            sys::interface_up("lo").during(|| "bring the loopback interface up".to_owned())?;
        }
        // After the process is in its control group: that becomes the namespace's root.
        if self.namespaces.is_new(libc::CLONE_NEWCGROUP) {
            sys::unshare(libc::CLONE_NEWCGROUP as u64).during(|| "make a cgroup namespace".to_owned())?;
        }
        if self.namespaces.new & sys::NEWTIME != 0 {
            self.make_clocks()?;
        }
        if let Some(name) = spec.hostname.as_ref().filter(|name| !name.is_empty()) {
            rustix::system::sethostname(name.as_bytes()).during(|| format!("set host name {name:?}"))?;
        }
        if let Some(name) = spec.domainname.as_ref().filter(|name| !name.is_empty()) {
            rustix::system::setdomainname(name.as_bytes()).during(|| format!("set domain name {name:?}"))?;
        }
        for (name, value) in &spec.linux().sysctl {
            self.set_parameter(name, value)?;
        }
        if let Some(personality) = &spec.linux().personality {
            let domain = match personality.domain.as_str() {
                "LINUX" => 0,
                "LINUX32" => 8,
                other => return Err(Error::refused("personality", format!("no domain is called {other:?}"))),
            };
            sys::personality(domain).during(|| "set the execution domain".to_owned())?;
        }
        Ok(())
    }

    /// A time namespace is entered by exec; until then its offsets can be set.
    fn make_clocks(&self) -> Result<()> {
        sys::unshare(sys::NEWTIME).during(|| "make a time namespace".to_owned())?;
        for (clock, offset) in &self.spec.linux().time_offsets {
            if !matches!(clock.as_str(), "monotonic" | "boottime") {
                return Err(Error::refused("timeOffsets", format!("no clock is called {clock:?}")));
            }
            let line = format!("{clock} {} {}", offset.secs, offset.nanosecs);
            std::fs::write("/proc/self/timens_offsets", line).during(|| format!("set the {clock} clock"))?;
        }
        Ok(())
    }

    /// Sets a kernel parameter, through the host's `/proc`: the container's may be forged.
    fn set_parameter(&self, name: &str, value: &str) -> Result<()> {
        let what = || format!("kernel parameter {name}");
        // As sysctl(8) has it: what comes first separates, and the other one is part of a name.
        let path = match name.find(['.', '/']) {
            Some(at) if name[at..].starts_with('/') => format!("sys/{name}"),
            _ => format!("sys/{}", name.replace('.', "\0").replace('/', ".").replace('\0', "/")),
        };
        let dotted = path.trim_start_matches("sys/").replace('/', ".");
        let owner = match dotted.as_str() {
            "kernel.domainname" | "kernel.hostname" => "uts",
            "kernel.msgmax"
            | "kernel.msgmnb"
            | "kernel.msgmni"
            | "kernel.sem"
            | "kernel.shmall"
            | "kernel.shmmax"
            | "kernel.shmmni"
            | "kernel.shm_rmid_forced" => "ipc",
            _ if dotted.starts_with("fs.mqueue.") => "ipc",
            _ if dotted.starts_with("net.") => "network",
            _ => return Err(Error::refused(what(), "it is not a namespace's own: it would be the host's")),
        };
        if !self.spec.has_namespace(owner) {
            return Err(Error::refused(
                what(),
                format!("without a {owner} namespace it would be the host's"),
            ));
        }
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS;
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let file =
            rustix::fs::openat2(&self.plan.host_proc, path, flags, Mode::empty(), resolve).during(what)?;
        rustix::io::write(&file, value.as_bytes()).during(|| format!("set {}", what())).map(drop)
    }

    fn build_root(&self, channel: &Channel, state: &State) -> Result<OwnedFd> {
        if !self.namespaces.is_new(libc::CLONE_NEWNS) {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            return rustix::fs::open(&self.root_path, flags, Mode::empty())
                .during(|| format!("open root {}", self.root_path.display()));
        }
        rustix::process::umask(Mode::empty());
        rustix::process::chdir(&self.bundle).during(|| format!("enter {}", self.bundle.display()))?;
        let root =
            rootfs::open(&self.root, self.lower.as_ref(), &self.root_path, rootfs::propagation(&self.spec)?)?;
        let label = self.spec.linux().mount_label.as_deref().filter(|label| !label.is_empty());
        let target = Target { root: root.as_fd(), label, cgroups: &self.cgroups };
        let new_user = self.spec.has_namespace("user");
        rootfs::furnish(&target, &self.spec, &self.mapped, new_user)?;
        // Asked for hooks of its own too: whoever answers then knows that those that tell of the end have to run.
        let points = [Point::CreateRuntime, Point::CreateContainer, Point::StartContainer];
        if points.iter().any(|point| !hooks::of(&self.spec, *point).is_empty()) {
            channel.send(&Message::NeedsHooks)?;
            channel.wait()?;
        }
        hooks::run(&self.spec, Point::CreateContainer, state)?;
        Ok(root)
    }

    /// Tells that all is ready, and waits at the socket; whoever connects hears of what fails from then on.
    fn wait_for_start(&self, channel: &Channel) -> Result<Option<Channel>> {
        let Some(start) = &self.start else { return Ok(None) };
        channel.send(&Message::Ready)?;
        loop {
            let act = || "wait to be started".to_owned();
            let (connection, _) = match acceptfrom_with(start, SocketFlags::CLOEXEC) {
                Err(rustix::io::Errno::INTR) => continue,
                accepted => accepted.during(act)?,
            };
            let started = Channel::new(connection);
            // A connection that says nothing was no start.
            if matches!(started.receive(), Ok(Some(Message::Go(_)))) {
                return Ok(Some(started));
            }
        }
    }
}

/// In a new user namespace this process is nobody until it says that it is root there.
pub(crate) fn become_root() -> Result<()> {
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    rustix::thread::set_thread_res_gid(gid, gid, gid)
        .during(|| "become root of the user namespace".to_owned())?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)
        .during(|| "become root of the user namespace".to_owned())
}
