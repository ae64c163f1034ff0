//! Templates: machines saved when their agent was up and nothing was mounted, for `strata run` to go on from.
//!
//! One lies in `templates/<key>/` of the store. The key is a digest of everything that its contents depend on: kernel and
//! modules by their checksums, the size and processor of the machine, this very program. So none is ever out of date; what
//! no key leads to any more is removed when a new one is made.
//!
//! A template is made by a child process (`strata templates capture`), which boots the machine in a sandbox of its own. If that
//! fails the caller boots its guest itself, and says what is wrong with it.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::Engine;
use image::kernels::KernelBundle;
use image::{Digest, Store};
use machine::snapshot::{self, Folder, PageMap, Snapshot, folder};
use machine::workload::AgentSession;
use machine::{Backends, MachineConfig};

use super::{initrd, network, rehearsal};
use crate::cli::Global;
use crate::commands::kernel as kernels;
use crate::commands::sizing::Sizing;
use crate::engines::{self, Kept};
use crate::exit::Exit;
use crate::failure::{Failure, Outcome, While};
use crate::store;

/// A guest that has not come up by then is booted by its own caller, who waits longer and shows why.
const BOOT_TIMEOUT: Duration = Duration::from_secs(60);
/// What stands before the id of the kernel in a template's header.
const KERNEL_MARK: &str = " kernel ";
/// The file that is in the drive of a template: no bytes at all.
const NO_MEDIUM: &str = "no-medium";

/// Makes a template into a folder: for `strata run` itself.
#[derive(clap::Args)]
pub struct CaptureOptions {
    #[command(flatten)]
    sizing: Sizing,
    /// Kernel to boot, by its id
    #[arg(long, value_name = "ID")]
    kernel: String,
    /// With a network card
    #[arg(long)]
    network: bool,
    /// With a device for folders of the host
    #[arg(long)]
    folders: bool,
    /// Folder with the empty files to write
    folder: PathBuf,
}

/// Where the templates of a store are.
pub fn place(store: &Store) -> PathBuf {
    store.root().join("templates")
}

/// This program: another build of the same version is another program.
pub fn build() -> String {
    let stamp = std::env::current_exe().and_then(fs::metadata).map_or_else(
        |_| "unknown".to_owned(),
        |meta| format!("{:x}.{:x}.{:x}.{:x}", meta.dev(), meta.ino(), meta.mtime(), meta.mtime_nsec()),
    );
    format!("strata {} {stamp}", env!("CARGO_PKG_VERSION"))
}

/// The id of the kernel that a template with this header runs.
pub fn kernel_of(header: &str) -> Option<&str> {
    header.split_once(KERNEL_MARK).map(|(_, id)| id)
}

/// Whether a template with this header is of this program.
pub fn is_ours(header: &str) -> bool {
    header.split_once(KERNEL_MARK).is_some_and(|(program, _)| program == build())
}

fn key(config: &MachineConfig, kernel: &KernelBundle, engine: &dyn Engine) -> String {
    let info = kernel.info();
    let mut text = format!(
        "{} {}\n{} {} {} {:?} {}\n{}\n{:?}\n",
        build(),
        snapshot::FORMAT,
        config.cpus,
        config.memory_bytes,
        config.cpu_model,
        config.net.iter().map(|card| card.mac).collect::<Vec<_>>(),
        config.folders,
        config.boot.cmdline,
        engine.apic_timer_hz(),
    );
    let files = [Some(&info.kernel), info.vmlinux.as_ref()].into_iter().flatten();
    for sum in files.map(|file| file.sha256.as_str()).chain(initrd::module_checksums(kernel, config.folders))
    {
        text.push_str(sum);
        text.push('\n');
    }
    Digest::of(text.as_bytes()).hex()[..16].to_owned()
}

/// A template to go on from.
pub struct Opened {
    /// The machine.
    pub snapshot: Snapshot,
    /// What a translator need not translate.
    pub translations: Option<Arc<Kept>>,
}

impl Opened {
    fn from(folder: &Path) -> Result<Self, snapshot::Error> {
        let snapshot = folder::open(folder)?;
        let translations = rehearsal::translations(folder, &snapshot);
        Ok(Self { snapshot, translations })
    }
}

/// The template for a machine of `config`, which is made if there is none that is whole. Nothing here is a reason not to
/// run: without one, the guest boots.
pub fn open_or_make(
    store: &Store,
    sizing: &Sizing,
    engine: &dyn Engine,
    kernel: &KernelBundle,
    config: &MachineConfig,
) -> Option<Opened> {
    let target = place(store).join(key(config, kernel, engine));
    match Opened::from(&target) {
        Ok(opened) => return Some(opened),
        Err(_) if !target.exists() => {}
        Err(error) => {
            let failure = Failure::because(format!("use template {}", target.display()), error);
            tracing::info!("{failure}; it is made anew");
            if let Err(error) = fs::remove_dir_all(&target) {
                tracing::info!("remove template {}: {error}", target.display());
                return None;
            }
        }
    }
    let started = Instant::now();
    let made = make(store, sizing, engine, kernel, config, &target)
        .and_then(|()| Opened::from(&target).map_err(|error| Failure::because("open it", error)));
    match made {
        Ok(opened) => {
            tracing::info!("made a template of this machine in {} ms", started.elapsed().as_millis());
            prune(store);
            Some(opened)
        }
        Err(failure) => {
            tracing::info!("no template of this machine: {failure}; it boots");
            None
        }
    }
}

fn make(
    store: &Store,
    sizing: &Sizing,
    engine: &dyn Engine,
    kernel: &KernelBundle,
    config: &MachineConfig,
    target: &Path,
) -> Outcome<()> {
    fs::create_dir_all(place(store)).while_trying(|| format!("create {}", place(store).display()))?;
    let partial = Folder::create(target).map_err(|error| Failure::because("make a template", error))?;
    let flag = |name: &str, value: &dyn std::fmt::Display| OsString::from(format!("{name}={value}"));
    let mut flags = vec![
        flag("--cpus", &config.cpus),
        flag("--memory", &config.memory_bytes),
        flag("--cpu", &config.cpu_model),
        flag("--kernel", &kernel.info().id),
    ];
    flags.extend((!config.net.is_empty()).then(|| "--network".into()));
    flags.extend(config.folders.then(|| "--folders".into()));
    child(store, sizing, engine, "capture", &flags, partial.path())?;
    if engines::keeps_translations(engine.name())
        && let Err(failure) = child(store, sizing, engine, "rehearse", &[], partial.path())
    {
        tracing::info!("no translations are kept beside the template: {failure}");
        rehearsal::forget(partial.path());
    }
    partial.commit(target).map_err(|error| Failure::because("make a template", error))
}

/// Has a child process of this program work on the template in `folder`.
fn child(
    store: &Store,
    sizing: &Sizing,
    engine: &dyn Engine,
    verb: &str,
    flags: &[OsString],
    folder: &Path,
) -> Outcome<()> {
    let mut command = store::again(store.root(), 0)?;
    command.args(["templates", verb, "--engine", engine.name()]).args(flags);
    if sizing.no_sandbox {
        command.arg("--no-sandbox");
    }
    command.arg("--").arg(folder).stdin(Stdio::null()).stdout(Stdio::null());
    let output = command.output().while_trying(|| format!("start strata templates {verb}"))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let first = text.lines().next().unwrap_or_default().trim_start_matches("strata: ").to_owned();
        return Err(Failure::new(if first.is_empty() { output.status.to_string() } else { first }));
    }
    Ok(())
}

/// Boots the machine and saves it.
///
/// # Errors
/// It does not boot, or the host has no space for it.
pub fn capture(global: &Global, options: &CaptureOptions) -> Outcome {
    let engine = options.sizing.open_engine()?;
    let store = store::open(global)?;
    let act = || format!("make a template with kernel {}", options.kernel);
    let bad_kernel = |error| kernels::explain(act(), Some(&options.kernel), error);
    let kernel = Arc::new(store.kernel(Some(&options.kernel)).map_err(bad_kernel)?);
    let medium = options.folder.join(NO_MEDIUM);
    File::create(&medium).while_trying(|| format!("create {}", medium.display()))?;
    let open = |name: &str| File::options().write(true).open(options.folder.join(name)).while_trying(act);
    let (state, ram, pages) = (open(folder::STATE)?, open(folder::RAM)?, PageMap::open());
    let agent = AgentSession::new();
    let mut config = super::hardware::config(&options.sizing, engine.as_ref(), &kernel, &medium, 0);
    config.net.extend(options.network.then(|| network::card(config.cpus)));
    config.folders = options.folders;
    let (backends, sandboxed) = backends(&options.sizing, &agent, config.net.len())?;
    let build = format!("{}{KERNEL_MARK}{}", build(), kernel.info().id);
    let machine = super::build_checked(&kernel, config, backends, engine.as_ref(), bad_kernel, act)?;
    options.sizing.enter_sandbox(engine.as_ref(), sandboxed)?;
    agent.boot(&machine, BOOT_TIMEOUT).map_err(|error| Failure::because(act(), error))?;
    snapshot::write(&machine, &build, &state, &ram, &pages)
        .map_err(|error| Failure::because(act(), error))?;
    Ok(Exit::Success)
}

/// What a machine is joined to that is nobody's workload, with so many cards, and what its sandbox leaves it.
///
/// # Errors
/// The host gives no network.
pub fn backends(
    sizing: &Sizing,
    agent: &AgentSession,
    cards: usize,
) -> Outcome<(Backends, sandbox::Network)> {
    let backends = Backends {
        vsock: Some(agent.host()),
        // The copies' links are up, so this one's is.
        net: (0..cards).map(|_| network::open_for_template()).collect::<Outcome<_>>()?,
        confine: sizing.confine(),
        ..Backends::default()
    };
    Ok((backends, if cards > 0 { sandbox::Network::Sockets } else { sandbox::Network::None }))
}

/// A folder of templates.
pub struct Template {
    /// Its name, the key.
    pub id: String,
    /// Where it is.
    pub path: PathBuf,
    /// What it holds, or what is wrong with it.
    pub snapshot: Result<Snapshot, snapshot::Error>,
}

/// Every template, in the order of their ids.
///
/// # Errors
/// The folder cannot be read.
pub fn all(store: &Store) -> io::Result<Vec<Template>> {
    let entries = match fs::read_dir(place(store)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        let id = entry.file_name().to_string_lossy().into_owned();
        if !id.starts_with('.') {
            let snapshot = folder::open(&entry.path());
            found.push(Template { id, path: entry.path(), snapshot });
        }
    }
    found.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(found)
}

/// Removes what no run will use any more: templates of other builds and of kernels that are gone, damaged ones, and what
/// was left by processes that are gone. How many.
pub fn prune(store: &Store) -> usize {
    let mut removed = 0;
    let mut remove = |path: &Path| match fs::remove_dir_all(path) {
        Ok(()) => removed += 1,
        Err(error) => tracing::info!("remove template {}: {error}", path.display()),
    };
    for Template { path, snapshot, .. } in all(store).unwrap_or_default() {
        let is_used = snapshot.is_ok_and(|snapshot| {
            let build = &snapshot.header.build;
            is_ours(build) && kernel_of(build).is_some_and(|id| store.kernel(Some(id)).is_ok())
        });
        if !is_used {
            remove(&path);
        }
    }
    for entry in fs::read_dir(place(store)).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let maker = name.strip_suffix(".partial").and_then(|name| name.rsplit('.').next());
        let maker = maker.and_then(|pid| pid.parse::<i32>().ok()).and_then(rustix::process::Pid::from_raw);
        if let Some(maker) = maker.filter(|_| name.starts_with('.'))
            && rustix::process::test_kill_process(maker) == Err(rustix::io::Errno::SRCH)
        {
            remove(&entry.path());
        }
    }
    removed
}
