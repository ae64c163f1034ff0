//! `strata run`: a command in a microVM made from an image.
//!
//! The guest boots a kernel of the store with an initial RAM disk of the agent and its modules, or, which takes a tenth of the
//! time, goes on from a template: a machine that was saved when its agent was up and nothing was mounted. Its root is the
//! image's read-only squashfs on a virtio disk, under an overlay in guest memory that is gone with the machine.

mod bridged;
pub mod cable;
pub mod connected;
pub mod container;
mod container_network;
mod container_spec;
mod copy_up;
pub mod creation;
pub mod detach;
pub mod exec;
mod flags;
pub mod folders;
mod hardware;
mod health;
pub mod initrd;
mod joined;
mod log_flags;
mod mount_flags;
pub mod network;
mod rates;
pub mod rehearsal;
pub mod requests;
pub mod resolving;
mod security;
pub mod session;
mod shared;
pub mod template;
mod tuning;
pub mod update;
pub mod volumes;
pub mod worker;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::Engine;
use image::kernels::KernelBundle;
use image::{Config, Image, RootFile, Store};
use machine::config::Source;
use machine::snapshot::Snapshot;
use machine::workload::{AgentSession, Origin};
use machine::{Backends, Machine, MachineConfig};
use rustix::process::Signal;

use self::connected::Connected;
use self::volumes::Keep;
use super::sizing::{Sizing, account, explain};
use super::{image as images, kernel as kernels, registry};
use crate::cli::Global;
use crate::engines::Keeping;
use crate::failure::{Failure, Outcome, While};
use crate::progress::Bar;
use crate::size::parse_duration;
use crate::terminal::LogWriter;
use crate::{engines, exit, store};

/// Run a command in a microVM made from an image
///
/// An image that is not in the store is brought from its registry first. Without a command the image's own is run.
/// Standard input is handed on with -i only. Signals reach the command; three interrupts within two seconds end the
/// machine at once. Files that the command writes are gone when it ends.
///
/// With -d the command goes on when this one has ended; strata ps, logs, stop and others reach it by its name.
#[derive(clap::Args, Clone, serde::Serialize, serde::Deserialize)]
#[command(after_long_help = exit::OF_RUN)]
pub struct Options {
    #[command(flatten)]
    sizing: Sizing,
    /// What stands between the command and this host
    #[arg(long, value_enum, default_value_t = Isolation::Vm, value_name = "KIND")]
    isolation: Isolation,
    #[command(flatten)]
    #[serde(default)]
    network: network::Flags,
    #[command(flatten)]
    #[serde(default)]
    files: volumes::Flags,
    #[command(flatten)]
    #[serde(default)]
    rates: rates::Flags,
    #[command(flatten)]
    container: container::Flags,
    /// Kernel to boot, by its id [default: the one that `strata kernel ls` marks]
    #[arg(long, value_name = "ID")]
    kernel: Option<String>,
    #[command(flatten)]
    #[serde(flatten)]
    process: flags::Process,
    /// Hand on standard input
    #[arg(short, long)]
    interactive: bool,
    /// Give the command a terminal; with -i every key is the command's, Ctrl-C too
    #[arg(short, long)]
    tty: bool,
    /// Lines and columns of that terminal at first, of a client whose terminal is elsewhere.
    #[arg(skip)]
    #[serde(default)]
    window: Option<(u16, u16)>,
    /// Kill the command after this time, e.g. 90s or 5m, counted from when the guest is up
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    timeout: Option<Duration>,
    /// When to bring the image from its registry
    #[arg(long, value_enum, default_value_t = Pull::Missing, value_name = "WHEN")]
    pull: Pull,
    /// How the guest starts; a traced or -vv guest always boots
    #[arg(long, value_enum, default_value_t = Start::Warm, value_name = "HOW")]
    start: Start,
    /// Go on in the background, and write the id of the workload
    #[arg(short, long, conflicts_with = "timeout")]
    detach: bool,
    /// Name, for strata ps, snapshot and others [default in the background: made from image and id]
    #[arg(long, value_parser = workload::parse_name)]
    name: Option<String>,
    /// Host name [default: the image's name]
    #[arg(long)]
    #[serde(default)]
    hostname: Option<String>,
    /// Run this instead of what the image begins its command with; its words are repeated flags
    #[arg(long, value_name = "WORD")]
    #[serde(default)]
    entrypoint: Option<Vec<String>>,
    /// Free text by key, for those who look for it
    #[arg(long = "label", value_name = "KEY[=VALUE]")]
    #[serde(default)]
    labels: Vec<String>,
    #[command(flatten)]
    #[serde(flatten)]
    log: log_flags::Flags,
    /// Remove the workload in the background when it has ended
    #[arg(long)]
    rm: bool,
    /// When to start the workload in the background again: no, on-failure, on-failure:TIMES or always; a server starts those
    /// again as well that were always to run when their monitor or the host ended
    #[arg(long, value_name = "POLICY", default_value = "no")]
    restart: workload::Restart,
    #[command(flatten)]
    health: health::Flags,
    /// The manifest that the name meant when the workload was made: what it runs whenever it is started.
    #[arg(long = "image-digest", hide = true)]
    #[serde(default)]
    digest: Option<String>,
    /// A squashfs that is the root of a machine instead of the image's: that of a build.
    #[arg(long, hide = true, value_name = "FILE")]
    #[serde(skip)]
    root_file: Option<PathBuf>,
    /// Name of the image
    image: String,
    /// The command and its arguments
    #[arg(trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// What stands between a workload and the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
enum Isolation {
    /// A virtual machine with a kernel of its own
    Vm,
    /// Namespaces and filters of this host's kernel
    Container,
}

/// When an image is brought from its registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
enum Pull {
    /// When the store does not have it
    Missing,
    /// Whenever it is newer there
    Always,
    /// Not at all
    Never,
}

/// How the guest starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
enum Start {
    /// From a template of such a machine, which is made first if there is none (strata templates)
    Warm,
    /// By booting its kernel
    Cold,
}

/// Processors that a machine may have.
const MAX_CPUS: u64 = 64;

/// All that a machine for a workload is made of, held open until it has ended.
struct Prepared {
    config: MachineConfig,
    process: protocol::Process,
    hostname: String,
    stop_signal: String,
    has_card: bool,
    files: volumes::Settled,
    root_type: &'static str,
    _root: Option<RootFile>,
    kernel: Arc<KernelBundle>,
}

/// Runs the command; its exit code is ours.
///
/// # Errors
/// Image, kernel, engine or machine are not as they should be; the message says which.
pub fn run(global: &Global, options: &Options) -> Outcome {
    options.check_flags()?;
    if options.detach {
        return detach::run(global, options);
    }
    if options.restart != workload::Restart::No {
        let failure =
            Failure::new("run with --restart: nobody is there to start it again").exit(exit::Exit::Usage);
        return Err(failure.hint("add -d"));
    }
    if options.isolation == Isolation::Container {
        return container::run(global, options);
    }
    if options.root_file.is_some() {
        // The build that this is for may be killed.
        let act = || "end with the build".to_owned();
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).while_trying(act)?;
    }
    run_here(global, options, None)
}

impl Options {
    /// Whether every flag says something to this isolation.
    ///
    /// # Errors
    /// One does not.
    pub fn check_flags(&self) -> Outcome<()> {
        match self.container.beyond_machines() {
            Some(flag) if self.isolation == Isolation::Vm => {
                let failure = Failure::new(format!("run with {flag}: a microVM has no such thing"));
                Err(failure.exit(exit::Exit::Usage).hint("add --isolation container"))
            }
            _ if self.isolation == Isolation::Container => self.rates.check_container(),
            _ => Ok(()),
        }
    }

    /// Whether nothing can be written to the root.
    pub fn is_read_only(&self) -> bool {
        self.container.read_only
    }
}

/// The root file of a workload's image, and that image's digest.
///
/// # Errors
/// The image is not here, or the store cannot be written.
pub fn root_file(store: &Store, options: &Options) -> Outcome<(RootFile, image::Digest)> {
    let image = find(store, options)?;
    let root = store.root_for_vm(&image, &Bar::new());
    let root =
        root.map_err(|error| images::explain(format!("run {:?}", options.image), &options.image, error))?;
    Ok((root, image.digest()))
}

pub use detach::{InnerOptions, monitor};
pub use worker::run as work;

/// Runs the command in a machine of this process; `link` joins it to a monitor.
fn run_here(global: &Global, options: &Options, link: Option<worker::Link>) -> Outcome {
    let started = Instant::now();
    let store = store::open(global)?;
    let settled = engines::settle(&options.sizing.engine, store.root());
    let sizing = Sizing { engine: settled, ..options.sizing.clone() };
    let mut engine = sizing.open_engine()?;
    let prepared = prepare(&store, options, engine.as_ref(), global.verbose)?;
    let booted_anyway = global.verbose >= 2 || options.sizing.trace_jit.is_some();
    let template = if options.start == Start::Warm && !booted_anyway {
        template::open_or_make(&store, &options.sizing, engine.as_ref(), &prepared.kernel, &prepared.config)
    } else {
        None
    };
    if let Some(kept) = template.as_ref().and_then(|template| template.translations.clone()) {
        engine = sizing.open_engine_keeping(Keeping::Reuse(kept))?;
    }
    let named = match &options.name {
        // One in the background has it already.
        Some(name) if link.is_none() => {
            let wanted = detach::wanted(options, &prepared.process, &prepared.stop_signal, &prepared.files)?;
            Some(requests::Named::claim(store.root(), Some(name.clone()), wanted)?)
        }
        _ => None,
    };
    let who = link.as_ref().map(|link| link.who.clone());
    let (id, name) = who.unwrap_or_else(|| {
        let name = options.name.clone().unwrap_or_else(|| prepared.hostname.clone());
        (format!("run-{}", std::process::id()), name)
    });
    let who = network::Who { id: &id, name: &name, hostname: &prepared.hostname };
    let mut connected = Connected::open(store.root(), &options.network, who, prepared.has_card)?;
    let origin = if template.is_some() { Origin::Restored } else { Origin::Booted };
    let agent = AgentSession::new();
    let backends = Backends {
        console: (global.verbose >= 2).then(|| Box::new(LogWriter::new()) as Box<_>),
        vsock: Some(agent.host()),
        folders: folders::serve(&prepared.files.volumes, !options.sizing.no_sandbox)?,
        net: connected.ports()?,
        confine: options.sizing.confine(),
        when_idle: Some(Box::new(sandbox::give_back_memory)),
    };
    let machine = match template {
        Some(template) => restore(&prepared, template.snapshot, backends, engine.as_ref(), options)?,
        None => build(&prepared, backends, engine.as_ref(), options)?,
    };
    tracing::info!("prepared in {} ms", started.elapsed().as_millis());
    let session = session::Session {
        has_identity: options.root_file.is_none(),
        origin,
        network: connected.of_guest(),
        hosts: options.network.lines_of_hosts(connected.gateway())?,
        // That of the start.
        hostname: String::new(),
        interactive: options.interactive,
        tty: options.tty,
        timeout: options.timeout,
        link,
        named,
        enter_sandbox: &|| options.sizing.enter_sandbox(engine.as_ref(), connected.calls()),
    };
    let outcome = session::run(agent, &machine, &prepared, session, started);
    account(engine.name(), &machine, started);
    outcome
}

/// Builds the machine that boots.
fn build(
    prepared: &Prepared,
    backends: Backends,
    engine: &dyn Engine,
    options: &Options,
) -> Outcome<Machine> {
    let act = || format!("run {:?}", options.image);
    let bad_kernel = |error| explain_kernel(options, error);
    build_checked(&prepared.kernel, prepared.config.clone(), backends, engine, bad_kernel, act)
}

/// Builds a machine of `config` that boots `kernel`. A kernel that changed on disk would be a guest that fails for no
/// visible reason: it is checked meanwhile, for each is half of what a start takes on the host.
fn build_checked(
    kernel: &Arc<KernelBundle>,
    mut config: MachineConfig,
    backends: Backends,
    engine: &dyn Engine,
    bad_kernel: impl Fn(image::Error) -> Failure,
    act: impl Fn() -> String,
) -> Outcome<Machine> {
    let checked = kernel.clone();
    let check = std::thread::spawn(move || checked.verify_kernel());
    let built = initrd::build(kernel, config.folders, &bad_kernel).map(|initrd| {
        config.boot.initrd = vec![Source::Bytes(initrd)];
        Machine::build(&config, backends, engine)
    });
    let checked = check.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    checked.map_err(&bad_kernel)?;
    built?.map_err(|error| explain(act(), error))
}

/// The machine of `template`, with the image's disk in the drive that was empty.
fn restore(
    prepared: &Prepared,
    mut template: Snapshot,
    backends: Backends,
    engine: &dyn Engine,
    options: &Options,
) -> Outcome<Machine> {
    template.config.disks.clone_from(&prepared.config.disks);
    // The same cards, with their limits.
    template.config.net.clone_from(&prepared.config.net);
    Machine::restore(template, backends, engine).map_err(|error| {
        let hint = "strata templates rm --all removes the templates; --start cold uses none";
        Failure::because(format!("run {:?} from a template", options.image), error).hint(hint)
    })
}

fn explain_kernel(options: &Options, error: image::Error) -> Failure {
    kernels::explain(format!("run {:?}", options.image), options.kernel.as_deref(), error)
}

/// The image from the store, or from its registry.
fn find(store: &Store, options: &Options) -> Outcome<Image> {
    let name = images::parse(&options.image)?;
    let explain = |error| images::explain(format!("run {:?}", options.image), &options.image, error);
    if let Some(digest) = &options.digest {
        return digest.parse().and_then(|digest| store.image_pinned(&name, digest)).map_err(explain);
    }
    let pull = || registry::fetch(store, &name, &::registry::Options::default()).map(|pulled| pulled.image);
    if options.pull == Pull::Always {
        return pull();
    }
    match store.image(&name) {
        Err(error) if error.is_not_found() && options.pull == Pull::Missing => pull().map_err(|failure| {
            let act = format!("image {:?} is not in {}", options.image, store.root().display());
            let make = format!("strata image bootstrap {}", options.image);
            let hint = format!("strata image ls shows what there is; without a registry make one: {make}");
            Failure::because(act, failure.to_string()).hint(hint)
        }),
        found => found.map_err(explain),
    }
}

fn prepare(store: &Store, options: &Options, engine: &dyn Engine, verbose: u8) -> Outcome<Prepared> {
    let explain = |error| images::explain(format!("run {:?}", options.image), &options.image, error);
    let image = find(store, options)?;
    let said = image.config();
    let process = process(options, &said)?;
    let kernel = store.kernel(options.kernel.as_deref()).map_err(|error| explain_kernel(options, error))?;
    hardware::check_width(&kernel)?;
    let kernel = Arc::new(kernel);
    let root = match &options.root_file {
        Some(_) => None,
        None => Some(store.root_for_vm(&image, &Bar::new()).map_err(explain)?),
    };
    let root_path = options.root_file.as_deref().or_else(|| root.as_ref().map(RootFile::path));
    let root_path = root_path.expect("it is one or the other");
    let has_card = options.network.has_card(&kernel)?;
    let mut config = hardware::config(&options.sizing, engine, &kernel, root_path, verbose);
    config.net.extend(has_card.then(|| network::card(config.cpus)));
    options.rates.apply(&mut config)?;
    let files = options.files.settle(store, &image, Keep::Command)?;
    files.check_machine()?;
    if files.volumes.iter().any(|volume| volume.folder().is_some()) {
        folders::check_kernel(&kernel)?;
        config.folders = true;
    }
    Ok(Prepared {
        config,
        process,
        hostname: options.hostname.clone().unwrap_or_else(|| hostname(&image)),
        stop_signal: said.stop_signal,
        has_card,
        files,
        root_type: root.as_ref().map_or(image::SQUASHFS, RootFile::fstype),
        _root: root,
        kernel,
    })
}

/// The last part of the image's name, as far as a host name may have it.
fn hostname(image: &Image) -> String {
    as_hostname(image.name().name().rsplit('/').next().unwrap_or_default())
}

/// `name`, as far as a host name may have it.
pub fn as_hostname(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(63).collect()
}

/// What the image says about its command, changed by what the user says.
fn process(options: &Options, config: &Config) -> Outcome<protocol::Process> {
    if !matches!(config.architecture.as_str(), "amd64" | "x86_64") || config.os != "linux" {
        let text = format!("run {:?}: the image is for {} {}", options.image, config.os, config.architecture);
        return Err(Failure::new(text).hint("the machines of this version run linux amd64 images"));
    }
    let argv = match &options.entrypoint {
        // The image's own arguments are for its own entrypoint.
        Some(words) => {
            words.iter().filter(|word| !word.is_empty()).chain(&options.command).cloned().collect()
        }
        None => config.command(&options.command),
    };
    if argv.is_empty() {
        let failure = Failure::new(format!("run {:?}: the image names no command", options.image));
        return Err(failure.hint(format!("strata run {} -- COMMAND", options.image)));
    }
    let unset = |variable: &String| {
        let name = variable.split('=').next().unwrap_or_default();
        options.process.unset.iter().any(|unset| unset == name)
    };
    let image: Vec<String> = config.env.iter().filter(|variable| !unset(variable)).cloned().collect();
    Ok(protocol::Process {
        exec: 1,
        argv,
        env: environment(&image, &options.process.env, |name| std::env::var(name).ok()),
        cwd: options.process.workdir.clone().unwrap_or_else(|| config.workdir.clone()),
        user: options.process.user.clone().unwrap_or_else(|| config.user.clone()),
        tty: options.tty.then(|| window(options)),
        stdin: options.interactive,
    })
}

fn window(options: &Options) -> protocol::WinSize {
    options.window.map_or_else(session::window, |(rows, cols)| protocol::WinSize { rows, cols })
}

/// The image's variables, then the user's; a name that comes again replaces the one before.
fn environment(image: &[String], user: &[String], host: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let mut variables: Vec<String> = image.to_vec();
    for entry in user {
        let Some((name, value)) = (match entry.split_once('=') {
            Some((name, value)) => Some((name, value.to_owned())),
            // A name alone that is not set here stays unset there.
            None => host(entry).map(|value| (entry.as_str(), value)),
        }) else {
            continue;
        };
        variables.retain(|variable| variable.split('=').next() != Some(name));
        variables.push(format!("{name}={value}"));
    }
    variables
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_users_variables_replace_the_images() {
        let text = |values: &[&str]| values.iter().map(|v| (*v).to_owned()).collect::<Vec<_>>();
        let host = |name: &str| (name == "HOST").then(|| "h".to_owned());
        let merged = environment(&text(&["A=1", "B=2"]), &text(&["A=x=y", "HOST", "GONE", "C="]), host);
        assert_eq!(merged, ["B=2", "A=x=y", "HOST=h", "C="]);
    }
}
