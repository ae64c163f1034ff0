//! `create`: everything up to the point where the process waits to be started.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::Runtime;
use crate::cgroups::Cgroups;
use crate::channel::{self, Channel, Message};
use crate::console;
use crate::error::{Error, Result, While};
use crate::hooks::{self, Point};
use crate::init::Init;
use crate::launch;
use crate::mounts;
use crate::namespaces::Namespaces;
use crate::process::Plan;
use crate::rootfs::{self, Root};
use crate::seccomp::listener::Listener;
use crate::spec::{Linux, Spec};
use crate::state::{First, Folder, Record, Status, now, process_start};
use crate::sys::{self, Child};
use crate::{bundle, idmapped, ids, own_binary};

/// What a container is made from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A bundle: `config.json` in this folder.
    Bundle(PathBuf),
    /// A config that is in no file, and a root that need not be a folder.
    Config {
        /// The config. Its root says only whether it is read-only, unless `root` is [`Root::Folder`].
        spec: Box<Spec>,
        /// Where the root comes from.
        root: Root,
        /// `USER[:GROUP]` by names of the container's files, instead of the config's numbers.
        user: Option<String>,
        /// Further groups, by numbers or names of the container's files.
        groups: Vec<String>,
    },
}

/// How a container is made.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    /// Its name.
    pub id: String,
    /// What it is made from.
    pub source: Source,
    /// A socket that is given the controlling end of the terminal.
    pub console_socket: Option<PathBuf>,
    /// A file that is given the process's id.
    pub pid_file: Option<PathBuf>,
    /// Further descriptors, from 3 on, that the process inherits.
    pub preserve_fds: u32,
    /// Whether the root is entered by `pivot_root`. Without, a process with CAP_SYS_CHROOT finds its way out where the
    /// root is a RAM disk's; that is what it is for.
    pub pivot: bool,
    /// Whether its first process is killed when the thread that made it ends, however that ends.
    pub tied: bool,
    /// A static program that becomes the first process instead of the command, which it starts: its words are `init`, `reap`, the
    /// command's file, and the command's own words.
    pub init: Option<&'static [u8]>,
    /// What is bound at some places of the config instead of the source there: mounts that are attached nowhere.
    pub mounts: Vec<(String, Arc<OwnedFd>)>,
}

impl CreateOptions {
    /// Without anything that is optional.
    #[must_use]
    pub fn new(id: impl Into<String>, source: Source) -> Self {
        Self {
            id: id.into(),
            source,
            console_socket: None,
            pid_file: None,
            preserve_fds: 0,
            pivot: true,
            tied: false,
            init: None,
            mounts: Vec::new(),
        }
    }
}

/// Whether the process waits to be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    Later,
    AtOnce,
}

/// A container whose process exists.
pub(super) struct Made {
    pub child: Child,
    pub folder: Folder,
    pub record: Record,
    /// The controlling end of a terminal that nobody else wanted.
    pub console: Option<OwnedFd>,
}

impl Runtime {
    /// Makes a container and leaves its process waiting for `start`.
    ///
    /// # Errors
    /// The bundle makes no sense, or the host refuses something. Nothing is left then.
    pub fn create(&self, options: &CreateOptions) -> Result<()> {
        self.make(options, Start::Later).map(drop)
    }

    pub(super) fn make(&self, options: &CreateOptions, start: Start) -> Result<Made> {
        let loaded = load(&options.source)?;
        let spec = &loaded.spec;
        bundle::check(spec)?;
        let folder = self.folder(&options.id)?;
        folder.create()?;
        let result = folder.lock().and_then(|_lock| self.make_in(&folder, options, start, loaded));
        if result.is_err() {
            // Its groups are removed where they are known; the folder must not stand in the way of another try.
            let _ = folder.remove();
        }
        result
    }

    fn make_in(
        &self,
        folder: &Folder,
        options: &CreateOptions,
        start: Start,
        loaded: Loaded,
    ) -> Result<Made> {
        let Loaded { spec, root, user, groups, bundle } = loaded;
        let linux = spec.linux();
        let root_path = place_of_root(folder, &root, &bundle, &spec)?;
        let process = spec.process.clone().unwrap_or_default();
        let mut plan = Plan::new(&process, linux.seccomp.as_ref(), spec.has_namespace("user"))?;
        (plan.user_name, plan.group_names) = (user, groups);
        plan.preserve_fds = options.preserve_fds;
        plan.tied = options.tied;
        plan.init = options.init.map(own_binary::sealed).transpose().during(|| "make its init".to_owned())?;
        let console = console_for(process.terminal, options, start, &mut plan)?;
        let namespaces = Namespaces::new(&linux.namespaces)?;
        let start_socket = (start == Start::Later).then(|| listen(folder.path())).transpose()?;
        let cgroups = self.groups(&options.id, linux)?;
        let record = Record {
            id: options.id.clone(),
            bundle: bundle.clone(),
            rootfs: if matches!(root, Root::Folder) { root_path.clone() } else { PathBuf::new() },
            process: First::default(),
            created: now(),
            owner: rustix::process::getuid().as_raw(),
            cgroups,
            spec: spec.clone(),
        };
        let cgroups = record.cgroups.clone();
        let result = launch_init(folder, options, record, |record| {
            if let Some(rules) = &record.spec.linux().seccomp {
                // A filter that needs no_new_privs comes last of all.
                let status = if process.no_new_privileges { Status::Created } else { Status::Creating };
                plan.listener = Listener::connect(rules, record.state_as(folder, status))?;
            }
            Ok(Init {
                cgroups: record.cgroups.folders(),
                entry: record.cgroups.entry()?,
                state: record.state_as(folder, Status::Creating),
                mapped: prepare_mounts(&spec, &bundle, options)?,
                pivot: options.pivot,
                start: start_socket,
                spec,
                plan,
                namespaces,
                lower: rootfs::lower(&root)?,
                root,
                root_path,
                bundle,
            })
        });
        match result {
            Ok((child, record)) => {
                let console = console.map(|socket| console::receive(socket.as_fd())).transpose()?;
                Ok(Made { child, folder: folder.clone(), record, console })
            }
            Err(error) => {
                let _ = cgroups.remove();
                Err(error)
            }
        }
    }

    fn groups(&self, id: &str, linux: &Linux) -> Result<Cgroups> {
        let resources = linux.resources.clone().unwrap_or_default();
        Cgroups::create(linux.cgroups_path.as_deref(), id, self.systemd_cgroup, &resources)
    }
}

/// Where the root is mounted: in the bundle, or in the container's own folder.
fn place_of_root(folder: &Folder, root: &Root, bundle: &Path, spec: &Spec) -> Result<PathBuf> {
    match root {
        Root::Folder => bundle::root(bundle, spec),
        Root::Image { .. } => {
            let scratch = folder.path().join("root");
            std::fs::create_dir(&scratch).during(|| format!("make {}", scratch.display()))?;
            Ok(scratch)
        }
    }
}

/// What a source comes to.
struct Loaded {
    spec: Spec,
    root: Root,
    user: Option<String>,
    groups: Vec<String>,
    /// Relative paths start there.
    bundle: PathBuf,
}

fn load(source: &Source) -> Result<Loaded> {
    match source {
        Source::Bundle(folder) => {
            let folder = folder.canonicalize().during(|| format!("find bundle {}", folder.display()))?;
            let spec = bundle::read(&folder)?;
            Ok(Loaded { spec, root: Root::Folder, user: None, groups: Vec::new(), bundle: folder })
        }
        Source::Config { spec, root, user, groups } => Ok(Loaded {
            spec: spec.as_ref().clone(),
            root: root.clone(),
            user: user.clone(),
            groups: groups.clone(),
            bundle: PathBuf::from("/"),
        }),
    }
}

/// What is mounted that no path leads to.
fn prepare_mounts(spec: &Spec, bundle: &Path, options: &CreateOptions) -> Result<idmapped::Prepared> {
    let mut prepared = idmapped::prepare(spec, bundle)?;
    for (number, mount) in spec.mounts.iter().enumerate() {
        if let Some((place, held)) = options.mounts.iter().find(|(place, _)| *place == mount.destination) {
            let held = held.try_clone().during(|| format!("hold what is mounted on {place}"))?;
            prepared.insert(number, held);
        }
    }
    Ok(prepared)
}

/// Who gets the terminal's controlling end: the socket that was named, or this process.
fn console_for(
    terminal: bool,
    options: &CreateOptions,
    start: Start,
    plan: &mut Plan,
) -> Result<Option<OwnedFd>> {
    match (&options.console_socket, terminal) {
        (Some(path), true) => {
            plan.console = Some(console::connect("console socket", path)?);
            Ok(None)
        }
        (Some(_), false) => Err(Error::refused("console socket", "the process has no terminal")),
        (None, true) if start == Start::Later => {
            Err(Error::refused("terminal", "the process has one: name a console socket"))
        }
        (None, true) => {
            let (ours, theirs) = console::pair()?;
            plan.console = Some(theirs);
            Ok(Some(ours))
        }
        (None, false) => Ok(None),
    }
}

/// The socket at which the process waits. Its path is made short by a descriptor: those of sockets have 107 bytes.
fn listen(folder: &Path) -> Result<OwnedFd> {
    let act = || format!("make a socket in {}", folder.display());
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
    let open = rustix::fs::open(folder, flags, rustix::fs::Mode::empty()).during(act)?;
    let address =
        SocketAddrUnix::new(format!("{}/start.sock", mounts::by_descriptor(open.as_fd()))).during(act)?;
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .during(act)?;
    rustix::net::bind(&socket, &address).during(act)?;
    rustix::net::listen(&socket, 8).during(act)?;
    Ok(socket)
}

fn launch_init(
    folder: &Folder,
    options: &CreateOptions,
    mut record: Record,
    init: impl FnOnce(&Record) -> Result<Init>,
) -> Result<(Child, Record)> {
    // Known from here on: whoever deletes it finds the groups.
    folder.write(&record)?;
    let init = init(&record)?;
    let (ours, theirs) = channel::pair()?;
    // Its cgroup and time namespaces are made by the process itself.
    let late = libc::CLONE_NEWCGROUP as u64 | sys::NEWTIME;
    let flags = init.namespaces.new & !late;
    let join = || init.namespaces.enter();
    let join: Option<&dyn Fn() -> Result<()>> =
        if init.namespaces.join.is_empty() { None } else { Some(&join) };
    let mask = sys::block_signals().during(|| "block signals".to_owned())?;
    let child = launch::spawn(flags, &init.entry, join, || {
        // Or it would not see that its maker is gone.
        sys::close_copy(ours.as_fd().as_raw_fd());
        init.run(&theirs)
    });
    sys::restore_signals(&mask);
    let child = child?;
    drop(theirs);
    let started = process_start(child.pid).map_or(0, |(start, _)| start);
    record.process = First { pid: child.pid, started };
    let mut hooked = false;
    let done = folder
        .write_process(record.process)
        .and_then(|()| converse(&ours, &child, &init, &record, folder, &mut hooked));
    let done = done.and_then(|()| write_pid(options.pid_file.as_deref(), child.pid));
    if let Err(error) = done {
        // It may have ended by itself. It is ours to reap: nobody else knows it.
        let _ = sys::signal_process(child.pidfd.as_fd(), libc::SIGKILL);
        reap(child.pid);
        if hooked {
            hooks::run_all(&record.spec, Point::Poststop, &record.state_as(folder, Status::Stopped));
        }
        return Err(error);
    }
    Ok((child, record))
}

fn reap(pid: i32) {
    let _ =
        rustix::process::waitpid(rustix::process::Pid::from_raw(pid), rustix::process::WaitOptions::empty());
}

/// Answers the process until it is ready, or runs. `hooked` becomes true when the first hook is about to run.
fn converse(
    channel: &Channel,
    child: &Child,
    init: &Init,
    record: &Record,
    folder: &Folder,
    hooked: &mut bool,
) -> Result<()> {
    loop {
        match channel.receive()? {
            Some(Message::NeedsIds) => {
                if init.maps_ids() {
                    let linux = init.spec.linux();
                    ids::map(child.pid, &linux.uid_mappings, &linux.gid_mappings)?;
                }
                channel.send(&Message::Go(child.pid))?;
            }
            Some(Message::NeedsHooks) => {
                *hooked = true;
                let state = record.state_as(folder, Status::Creating);
                hooks::run(&init.spec, Point::CreateRuntime, &state)?;
                channel.send(&Message::Go(child.pid))?;
            }
            // The end of the connection is the command's beginning.
            Some(Message::Ready) | None => return Ok(()),
            Some(Message::Failed(125, text)) => return Err(Error::Inside(text)),
            Some(Message::Failed(code, text)) => return Err(Error::Command { text, code }),
            Some(Message::Go(_)) => return Err(Error::refused("the process being made", "it says \"go\"")),
        }
    }
}

/// Writes the id whole or not at all: whoever waits for the file reads it as soon as it is there.
pub(super) fn write_pid(path: Option<&Path>, pid: i32) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    let new = path.with_file_name(format!(".{}.new", path.file_name().unwrap_or_default().to_string_lossy()));
    std::fs::write(&new, pid.to_string())
        .and_then(|()| std::fs::rename(&new, path))
        .during(|| format!("write {}", path.display()))
}
