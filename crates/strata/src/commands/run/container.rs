//! `strata run --isolation container`: the same command of the same image, in a container.
//!
//! The root is the file the VM's disk would be, attached to a loop device and mounted under an overlay by the
//! container's own process: both isolations see the same files, owners and modes, and the host sees no mount.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use container::spec::Rlimit;
use container::{CreateOptions, Root, Running, Runtime, Signals, Source, Upper};

use workload::control::{Answer, Message, Request};
use workload::networks::NewLease;
use workload::{Folder, Foreground, State};

use super::network::Who;
use super::volumes::Keep;
use super::worker::{Link, Reply, Target};
use super::{
    Options, bridged, container_network, container_spec, detach, find, hostname, joined, process, resolving,
    shared, tuning, volumes,
};
use crate::cli::Global;
use crate::commands::oci::enter;
use crate::commands::{files, image as images};
use crate::exit::Exit;
use crate::failure::{Failure, Outcome, While};
use crate::progress::Bar;
use crate::store;

/// What only containers have.
#[derive(clap::Args, Clone, serde::Serialize, serde::Deserialize)]
#[command(next_help_heading = "Options of containers")]
pub struct Flags {
    /// Processes and threads at most
    #[arg(long, value_name = "N", default_value_t = PIDS_LIMIT)]
    pub(super) pids_limit: i64,
    /// Give a capability more; ALL for all
    #[arg(long, value_name = "NAME")]
    pub(super) cap_add: Vec<String>,
    /// Take a capability away; ALL for all
    #[arg(long, value_name = "NAME")]
    pub(super) cap_drop: Vec<String>,
    /// no-new-privileges, seccomp=unconfined or seccomp=FILE, apparmor=PROFILE, systempaths=unconfined
    #[arg(long, value_name = "OPTION")]
    pub(super) security_opt: Vec<String>,
    /// Let nothing be written to the root
    #[arg(long)]
    pub(super) read_only: bool,
    /// Mount memory on a folder, e.g. /tmp:size=64M
    #[arg(long, value_name = "DIR[:OPTIONS]")]
    pub(super) tmpfs: Vec<String>,
    /// Set a resource limit, e.g. nofile=1024:4096
    #[arg(long, value_name = "NAME=SOFT[:HARD]", value_parser = parse_rlimit)]
    pub(super) ulimit: Vec<Rlimit>,
    /// All capabilities, all devices, no filter of system calls: root inside is root outside
    #[arg(long)]
    pub(super) privileged: bool,
    #[command(flatten)]
    #[serde(default)]
    pub(super) tuning: tuning::Flags,
    /// Thousandths of a processor, instead of --cpus. For clients of the API, who may ask for less than one.
    #[arg(skip)]
    #[serde(default)]
    pub(super) millicpus: Option<u64>,
}

/// Without a flag, so many.
const PIDS_LIMIT: i64 = 2048;

impl Flags {
    /// A flag that was given and says nothing to a machine: passing it over would not be what was asked for.
    pub(super) fn beyond_machines(&self) -> Option<&'static str> {
        let given = [
            ("--pids-limit", self.pids_limit != PIDS_LIMIT),
            ("--cap-add", !self.cap_add.is_empty()),
            ("--cap-drop", !self.cap_drop.is_empty()),
            ("--security-opt", !self.security_opt.is_empty()),
            ("--read-only", self.read_only),
            ("--tmpfs", !self.tmpfs.is_empty()),
            ("--ulimit", !self.ulimit.is_empty()),
            ("--privileged", self.privileged),
        ];
        let own = given.into_iter().find(|(_, given)| *given).map(|(flag, _)| flag);
        own.or_else(|| self.tuning.beyond_machines())
    }
}

/// Understands `NAME=SOFT[:HARD]`, a limit of processes.
pub fn parse_rlimit(text: &str) -> Result<Rlimit, String> {
    let wrong = || format!("{text:?} is not NAME=SOFT[:HARD]");
    let (name, values) = text.split_once('=').ok_or_else(wrong)?;
    let value = |text: &str| match text {
        "unlimited" | "-1" => Ok(u64::MAX),
        _ => text.parse::<u64>().map_err(|_| wrong()),
    };
    let (soft, hard) = values.split_once(':').unwrap_or((values, values));
    let kind = format!("RLIMIT_{}", name.to_ascii_uppercase());
    Ok(Rlimit { kind, soft: value(soft)?, hard: value(hard)? })
}

/// Where containers of `run` have their states.
const STATES: &str = "/run/strata/run";
/// What ids of those in the foreground begin with.
const FOREGROUND: &str = "run";

/// Containers of `run`.
pub fn runtime() -> Runtime {
    Runtime::new(STATES)
}

/// The container of a workload: one in the foreground is named after its process.
pub fn id_of(folder: &Folder) -> String {
    match folder.state() {
        Ok(State { monitor_pid: Some(pid), worker_pid, .. }) if worker_pid == Some(pid) => {
            container::id_of(FOREGROUND, pid, 0)
        }
        _ => folder.description().id.clone(),
    }
}

/// Removes what is left of containers in the foreground, and of builds, that were killed: they ended with their process.
/// Whoever may not has none.
pub fn bury_orphans() {
    for runtime in [runtime(), images::build_runtime()] {
        runtime.bury_orphans();
    }
}

/// Removes what is left of the container of a workload whose worker was killed.
///
/// # Errors
/// Something cannot be removed.
pub fn bury(id: &str) -> Outcome<()> {
    runtime().delete(id, true).map_err(explain)
}

/// Puts this program out of the reach of what it will run. Before anything is opened: it starts this program anew.
///
/// # Errors
/// The host has no way to.
pub fn protect() -> Outcome<()> {
    container::own_binary::protect().map_err(explain)
}

/// Whether this process may run containers at all.
///
/// # Errors
/// It is not root's.
pub fn check_rights() -> Outcome<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(Failure::new("run a container: an image's root is mounted by root only")
        .hint("strata run without --isolation container needs no root"))
}

/// Runs the command; its exit code is ours.
///
/// # Errors
/// Image, flags or host are not as they should be; the message says which.
pub fn run(global: &Global, options: &Options) -> Outcome {
    protect()?;
    bury_orphans();
    container_spec::warn(options);
    let id = container::own_id(FOREGROUND);
    let create = prepare(global, options, id, options.name.clone(), |_| Ok(Upper::Memory))?;
    if !options.interactive {
        let null = std::fs::File::open("/dev/null").while_trying(|| "open /dev/null".to_owned())?;
        rustix::stdio::dup2_stdin(&null).while_trying(|| "close standard input".to_owned())?;
    }
    start(create, options, None)
}

/// Runs the command of a workload in the background, with standard streams and requests from its monitor.
///
/// # Errors
/// As [`run`].
pub fn run_linked(global: &Global, options: &Options, folder: &Folder, mut link: Link) -> Outcome {
    let id = folder.description().id.clone();
    bury(&id)?;
    let create = prepare(global, options, id, None, |image| files::make_upper(folder, &image.digest()))?;
    let act = || "set up standard input".to_owned();
    let stdin = match link.stdin.take() {
        Some(stdin) => stdin,
        None => std::fs::File::open("/dev/null").while_trying(act)?.into(),
    };
    rustix::stdio::dup2_stdin(&stdin).while_trying(act)?;
    drop(stdin);
    start(create, options, Some(&link))
}

/// A container that is about to run, and its network.
struct Prepared {
    create: CreateOptions,
    network: Option<container_network::Prepared>,
    /// Held until it has ended.
    files: volumes::Settled,
    /// Namespaces of others, until it is in them.
    _shared: shared::Shared,
    /// The network of another, until it is there.
    joined: Option<joined::Joined>,
    /// Names that it knows without asking, and whom it asks for others, until they are there.
    _names: [Option<tempfile::NamedTempFile>; 2],
    /// Its places on networks with a name, as long as it runs.
    bridged: Option<bridged::Bridged>,
    /// The store, and what it wants of each of those.
    root: PathBuf,
    common: NewLease,
    /// Its name, of one in the foreground that has one.
    named: Option<Foreground>,
}

fn prepare(
    global: &Global,
    options: &Options,
    id: String,
    claimed: Option<String>,
    upper: impl FnOnce(&image::Image) -> Outcome<Upper>,
) -> Outcome<Prepared> {
    check_rights()?;
    let store = store::open(global)?;
    let image = find(&store, options)?;
    let said = image.config();
    let wanted = process(options, &said)?;
    let root = store
        .root_for_vm(&image, &Bar::new())
        .map_err(|error| images::explain(format!("run {:?}", options.image), &options.image, error))?;
    let upper = upper(&image)?;
    let name = options.hostname.clone().unwrap_or_else(|| hostname(&image));
    let workload = name_of(global, options, &id)?;
    let who = Who { id: &id, name: &workload, hostname: &name };
    let (wanted_bridge, common) = (options.network.wanted(who)?, options.network.common(who));
    let user = wanted.user.clone();
    let mut spec = container_spec::spec(options, store.root(), wanted.clone(), name)?;
    let shared = shared::prepare(store.root(), &options.container.tuning)?;
    let mut held_mounts = shared.add_to(&mut spec);
    let open = |config| container_network::prepare(&config, &options.network.user_resolv_conf());
    let network = options.network.config()?.map(open).transpose()?;
    if let Some(network) = &network {
        network.add_to(&mut spec);
    }
    let joined = options.network.joined().map(|name| joined::prepare(store.root(), name)).transpose()?;
    if let Some(joined) = &joined {
        joined.add_to(&mut spec);
    }
    let bridged = wanted_bridge.map(|wanted| bridged::prepare(store.root(), &wanted)).transpose()?;
    if let Some(bridged) = &bridged {
        bridged.add_to(&mut spec);
    }
    if options.network.is_host() {
        bridged::share_host(&mut spec);
    }
    let (hosts, resolv_conf) = (options.network.hosts_file()?, options.network.resolv_file()?);
    spec.mounts.extend(hosts.iter().map(|file| resolving::mount(resolving::HOSTS, file)));
    spec.mounts.extend(resolv_conf.iter().map(|file| resolving::mount(resolving::RESOLV_CONF, file)));
    // What is to stay of one in the background is in its upper folder and in volumes, which were made with it.
    let keep = if options.container.read_only { Keep::CommandOnReadOnlyRoot } else { Keep::Command };
    let files = options.files.settle(&store, &image, keep)?;
    spec.mounts.extend(volumes::mounts(&files.volumes));
    held_mounts.extend(volumes::held(&files.volumes)?);
    let described = |_: &String| detach::wanted(options, &wanted, &said.stop_signal, &files);
    let described = claimed.as_ref().map(described).transpose()?;
    let named = claimed.zip(described).map(|(name, wanted)| claim(&store, name, wanted)).transpose()?;
    let (file, fs_type) = (root.path().to_owned(), root.fstype().to_owned());
    let root = Root::Image { file, fs_type, below: Vec::new(), upper };
    let groups = options.container.tuning.groups().to_vec();
    let source = Source::Config { spec: Box::new(spec), root, user: Some(user), groups };
    let init = options.container.tuning.init.then_some(agent::AGENT);
    Ok(Prepared {
        create: CreateOptions { tied: true, init, mounts: held_mounts, ..CreateOptions::new(id, source) },
        _shared: shared,
        network,
        files,
        joined,
        _names: [hosts, resolv_conf],
        bridged,
        root: store.root().to_owned(),
        common,
        named,
    })
}

/// Sees that one in the foreground is found by its name.
fn claim(store: &image::Store, name: String, wanted: workload::Wanted) -> Outcome<Foreground> {
    let all = workload::Workloads::open(store.root());
    let named = all.and_then(|all| Foreground::claim(&all, Some(name), wanted));
    named.while_trying(|| "name the workload".to_owned())
}

/// The name of a workload: of one in the background, the one that it was given.
fn name_of(global: &Global, options: &Options, id: &str) -> Outcome<String> {
    let act = || format!("find the workload {id}");
    let all = workload::Workloads::open(&store::root(global)?).while_trying(act)?;
    let found = all.find(id).ok().map(|folder| folder.description().name.clone());
    Ok(found.or_else(|| options.name.clone()).unwrap_or_else(|| id.to_owned()))
}

fn start(prepared: Prepared, options: &Options, link: Option<&Link>) -> Outcome {
    let Prepared { create, network, files, joined: _joined, _names, _shared, bridged, root, common, named } =
        prepared;
    let signals = Signals::block().map_err(explain)?;
    let running = runtime().run(&create).map_err(explain)?;
    let (_network, files_of_network) = network.map(container_network::Prepared::carry).transpose()?.unzip();
    let late = options.timeout.map(|timeout| watch(&running, timeout)).transpose()?;
    if let Some(named) = named {
        let (id, signal) = (create.id.clone(), named.folder().description().wanted.stop_signal);
        let serving = named.serve(move |message| answer_in_foreground(&id, signal, &message.body));
        serving.while_trying(|| "answer requests".to_owned())?;
    }
    let attend = || enter::attend(&running, &signals, options.interactive);
    let exit = match link {
        Some(link) => {
            link.started();
            let own = files_of_network.is_some().then_some(net::nat::GATEWAY);
            let none = bridged::Cables::none(files_of_network, own);
            let cables = bridged.as_ref().map_or(&none, bridged::Bridged::cables);
            let wanted = bridged::Wanted { common, ..bridged::Wanted::default() };
            let contained = Contained { id: &create.id, running: &running, cables, root: &root, wanted };
            let exit = link.serve(&contained, attend);
            if runtime().usage(&create.id).is_ok_and(|usage| usage.oom_kills > 0) {
                link.out_of_memory();
            }
            exit
        }
        None => attend(),
    };
    running.delete().map_err(explain)?;
    drop(files);
    match (late, options.timeout) {
        (Some(late), Some(timeout)) if late.load(Ordering::Acquire) => {
            let text =
                format!("run {:?}: killed after {} s, as --timeout says", options.image, timeout.as_secs());
            Err(Failure::new(text).exit(Exit::Timeout))
        }
        _ => exit,
    }
}

fn has_begun_and_runs(id: &str) -> bool {
    use container::state::Status::{Paused, Running};
    runtime().state(id).is_ok_and(|state| matches!(state.status, Running | Paused))
}

/// What a container in the foreground does for whoever asks.
fn answer_in_foreground(id: &str, stop_signal: u8, request: &Request) -> Answer {
    const KILL: i32 = rustix::process::Signal::KILL.as_raw();
    let done = match request {
        Request::Signal { number } => runtime().kill(id, i32::from(*number), false),
        Request::Kill => runtime().kill(id, KILL, false),
        Request::Stop { timeout_ms } => runtime().kill(id, i32::from(stop_signal), false).and_then(|()| {
            let deadline = Instant::now() + Duration::from_millis(*timeout_ms);
            while has_begun_and_runs(id) {
                if Instant::now() >= deadline {
                    return runtime().kill(id, KILL, false);
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            Ok(())
        }),
        Request::Pause => runtime().pause(id),
        Request::Resume => runtime().resume(id),
        _ => {
            return Answer::Error {
                reason: "it runs in the foreground, on a terminal of its own".to_owned(),
            };
        }
    };
    done.map_or_else(|error| Answer::Error { reason: error.chain() }, |()| Answer::Done)
}

/// A container, and what its monitor may ask of it.
struct Contained<'a> {
    id: &'a str,
    running: &'a Running,
    cables: &'a bridged::Cables,
    root: &'a Path,
    wanted: bridged::Wanted,
}

impl Target for Contained<'_> {
    fn answer(&self, message: Message<Request>, reply: Reply) {
        let done = match message.body {
            Request::Signal { number } => runtime().kill(self.id, i32::from(number), false),
            Request::Pause => runtime().pause(self.id),
            Request::Resume => runtime().resume(self.id),
            Request::Resize { rows, columns } => self.running.resize(rows, columns),
            Request::Connect(endpoint) => {
                let pid = self.running.pid().unsigned_abs();
                let done = self.cables.connect(self.root, &self.wanted, &endpoint, pid);
                return reply.done(done.map_err(|failure| failure.to_string()));
            }
            Request::Disconnect { network } => {
                let pid = self.running.pid().unsigned_abs();
                return reply
                    .done(self.cables.disconnect(&network, pid).map_err(|failure| failure.to_string()));
            }
            // Who asks for another command makes it a process of its own.
            other => return reply.done(Err(format!("a container cannot do this: {other:?}"))),
        };
        reply.done(done.map_err(|error| error.chain()));
    }
}

/// Kills the command when its time is over. The thread ends with this process.
fn watch(running: &Running, timeout: Duration) -> Outcome<Arc<AtomicBool>> {
    let act = || "watch the time".to_owned();
    let process = running.pidfd().try_clone_to_owned().while_trying(act)?;
    let late = Arc::new(AtomicBool::new(false));
    let told = late.clone();
    let work = move || {
        std::thread::sleep(timeout);
        told.store(true, Ordering::Release);
        // It may have ended at the same moment.
        let _ = rustix::process::pidfd_send_signal(&process, rustix::process::Signal::KILL);
    };
    std::thread::Builder::new().name("timeout".into()).spawn(work).while_trying(act)?;
    Ok(late)
}

/// An error of the os layer with the code `run` ends with.
pub fn explain(error: container::Error) -> Failure {
    let exit = match &error {
        container::Error::Command { code, .. } => Exit::Workload(*code),
        _ => Exit::Strata,
    };
    enter::with_next_step(&error, Failure::new(error.chain()).exit(exit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resource_limits_are_read_as_docker_has_them() {
        let limit = parse_rlimit("nofile=1024:4096").unwrap();
        assert_eq!((limit.kind.as_str(), limit.soft, limit.hard), ("RLIMIT_NOFILE", 1024, 4096));
        assert_eq!(parse_rlimit("core=unlimited").unwrap().hard, u64::MAX);
        assert!(parse_rlimit("nofile").is_err() && parse_rlimit("nofile=x").is_err());
    }
}
