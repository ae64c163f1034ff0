//! `strata restore`: a workload goes on from where `strata snapshot` saved it.

mod detached;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::builder::PossibleValuesParser;
use machine::snapshot::{self, RamFiles, Snapshot, folder};
use machine::workload::{AgentSession, Origin, WorkloadState};
use machine::{Backends, Machine};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use workload::monitor::Saved;
use workload::{Isolation, LogLimits, Restart, Wanted};

use super::run::connected::Connected;
use super::run::requests::Named;
use super::run::session::{self, Session};
use super::run::worker::Link;
use super::run::{as_hostname, network};
use super::sizing::account;
use crate::cli::Global;
use crate::failure::{Failure, Outcome, While};
use crate::size::parse_duration;
use crate::{confine, engines, store};

/// Go on with a workload that was saved
///
/// It goes on under any engine whose processor is the same. What it writes from now on comes here, and its exit code is ours.
/// Its disk, the image, must be in the store still. Its name is its host name too; machine id, random numbers and clock are made
/// its own, so that a snapshot can be restored more than once.
#[derive(clap::Args)]
#[command(after_long_help = crate::exit::OF_RUN)]
pub struct Options {
    /// What executes the guest's instructions
    #[arg(long, default_value = "auto", value_parser = PossibleValuesParser::new(engines::names()))]
    engine: String,
    /// Name, for strata ps, snapshot and others [default: made from the folder's]
    #[arg(long, value_parser = workload::parse_name)]
    name: Option<String>,
    /// Go on in the background, and print the new workload's id; strata start goes on from here again when it has ended
    #[arg(short, long, conflicts_with_all = ["interactive", "timeout"])]
    detach: bool,
    /// Go on although a disk was changed since, which the guest does not expect
    #[arg(long)]
    force: bool,
    /// Hand on standard input, if the command still read its own
    #[arg(short, long)]
    interactive: bool,
    /// Kill the command after this time, e.g. 90s or 5m
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    timeout: Option<Duration>,
    #[command(flatten)]
    network: network::Flags,
    /// Keep all privileges and system calls of this process
    #[arg(long)]
    no_sandbox: bool,
    /// Folder of the snapshot
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

/// Runs the command to its end; its exit code is ours.
///
/// # Errors
/// The snapshot is damaged or of another kind of machine, or something it needs is not there.
pub fn run(global: &Global, options: &Options) -> Outcome {
    let started = Instant::now();
    let act = format!("restore {}", options.folder.display());
    let store = store::open(global)?;
    let engine = engines::settle(&options.engine, store.root());
    let here = std::path::absolute(&options.folder).while_trying(|| act.clone())?;
    let again = options.detach.then(|| here.clone());
    let snapshot = folder::open(&options.folder).map_err(|error| Failure::because(&act, error))?;
    let card = !snapshot.config.net.is_empty();
    network::check_card(card, &options.network.publish)?;
    let carried = Carried {
        sizing: CarriedSizing { engine, no_sandbox: options.no_sandbox },
        network: options.network.clone(),
        card,
        again,
        force: options.force,
    };
    if !options.force {
        snapshot.check_disks().map_err(|error| {
            let hint = match &error {
                snapshot::Error::DiskChanged { .. } => {
                    "--force goes on with it as it is now; what the guest has in memory may not fit it"
                }
                _ => "bring it back: strata pull or strata image load, and a run of the image, make an image's disk",
            };
            Failure::because(&act, error).hint(hint)
        })?;
    }
    let saved = command_of(&snapshot, &act)?;
    let wanted = Wanted {
        isolation: Isolation::Vm,
        image: options.folder.display().to_string(),
        command: saved.command.clone(),
        remove: !options.detach,
        restart: Restart::No,
        log: LogLimits::default(),
        health: None,
        labels: Default::default(),
        publish: options.network.publish.clone(),
        networks: options.network.endpoints(),
        mounts: Vec::new(),
        said: None,
        stop_signal: 15,
        tty: saved.tty,
        interactive: options.interactive,
        options: serde_json::to_value(&carried).while_trying(|| act.clone())?,
    };
    if options.detach {
        return detached::run(global, store.root(), &here, options.name.clone(), wanted);
    }
    let named = Named::claim(store.root(), options.name.clone(), wanted)?;
    let session = Joined {
        root: store.root(),
        who: (format!("run-{}", std::process::id()), named.name().to_owned()),
        hostname: as_hostname(named.name()),
        interactive: options.interactive,
        timeout: options.timeout,
        link: None,
        named: Some(named),
    };
    go_on(&carried, act, snapshot, session, started)
}

/// What a process that goes on with a saved machine needs of the options of the one that started it.
#[derive(Deserialize, Serialize)]
struct Carried {
    sizing: CarriedSizing,
    /// Where it goes on from when it is started again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    again: Option<PathBuf>,
    #[serde(default)]
    network: network::Flags,
    /// Whether the machine has a card; a copy may want ports.
    #[serde(default)]
    card: bool,
    /// It goes on although a disk was changed since.
    #[serde(default)]
    force: bool,
}

/// What a workload with `options` goes on from whenever it is started; nothing if it begins with its command.
///
/// # Errors
/// The snapshot is gone.
pub fn saved_for(options: &Value) -> Outcome<Option<Saved>> {
    let folder = options.get("again").and_then(Value::as_str).map(Path::new);
    folder.map(detached::saved).transpose()
}

/// Of [`super::sizing::Sizing`].
#[derive(Deserialize, Serialize)]
struct CarriedSizing {
    engine: String,
    no_sandbox: bool,
}

/// How the command is joined to the caller.
struct Joined<'a> {
    root: &'a Path,
    /// Id and name of the workload.
    who: (String, String),
    hostname: String,
    interactive: bool,
    timeout: Option<Duration>,
    link: Option<Link>,
    named: Option<Named>,
}

fn command_of(snapshot: &Snapshot, act: &str) -> Outcome<WorkloadState> {
    let none = || Failure::new(format!("{act}: no command runs in it: it is a template"));
    snapshot.workload.clone().ok_or_else(none)
}

/// Goes on with a machine at rest for a monitor, in the workload `name` with `options`, of the store at `root`.
///
/// # Errors
/// As [`run`].
pub fn go_on_with(root: &Path, options: Value, files: Saved, link: Link, name: &str) -> Outcome {
    let started = Instant::now();
    let act = format!("go on as {name:?}");
    let mut carried: Carried = serde_json::from_value(options).while_trying(|| act.clone())?;
    carried.sizing.engine = engines::settle(&carried.sizing.engine, root);
    let memory = RamFiles { ram: files.ram.into(), base: files.base.map(File::from) };
    let snapshot = Snapshot::read(&File::from(files.state), memory);
    let snapshot = snapshot.map_err(|error| Failure::because(&act, error))?;
    if !carried.force {
        snapshot.check_disks().map_err(|error| Failure::because(&act, error))?;
    }
    let interactive = link.stdin.is_some();
    let session = Joined {
        root,
        who: link.who.clone(),
        hostname: as_hostname(name),
        interactive,
        timeout: None,
        link: Some(link),
        named: None,
    };
    go_on(&carried, act, snapshot, session, started)
}

fn go_on(
    Carried { sizing, network, .. }: &Carried,
    act: String,
    snapshot: Snapshot,
    joined: Joined<'_>,
    started: Instant,
) -> Outcome {
    let wishes =
        engines::Wishes { count: tracing::enabled!(tracing::Level::INFO), ..engines::Wishes::default() };
    let engine = engines::open(&sizing.engine, wishes)?;
    let saved = command_of(&snapshot, &act)?;
    let (id, name) = &joined.who;
    let who = network::Who { id, name, hostname: &joined.hostname };
    let mut connected = Connected::open(joined.root, network, who, !snapshot.config.net.is_empty())?;
    let agent = AgentSession::resume(saved.clone());
    let backends = Backends {
        console: None,
        folders: None,
        vsock: Some(agent.host()),
        net: connected.ports()?,
        confine: (!sizing.no_sandbox).then(confine::while_building),
        when_idle: Some(Box::new(sandbox::give_back_memory)),
    };
    let machine = Machine::restore(snapshot, backends, engine.as_ref());
    let machine = machine.map_err(|error| Failure::because(act, error))?;
    tracing::info!("restored in {} ms", started.elapsed().as_millis());
    let session = Session {
        hosts: String::new(),
        has_identity: true,
        origin: Origin::Restored,
        network: connected.of_guest(),
        hostname: joined.hostname,
        interactive: joined.interactive,
        tty: saved.tty,
        timeout: joined.timeout,
        link: joined.link,
        named: joined.named,
        enter_sandbox: &|| {
            if sizing.no_sandbox {
                Ok(())
            } else {
                confine::before_start(engine.host_requests(), connected.calls())
            }
        },
    };
    let outcome = session::resume(agent, &machine, &saved, session, started);
    account(engine.name(), &machine, started);
    outcome
}
