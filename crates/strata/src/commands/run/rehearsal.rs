//! The rehearsal of a template: what every start of a machine makes its kernel and agent do is done once, and the translator's
//! work is kept beside the template, for the starts that follow.
//!
//! What is kept is code that the processes of all those machines will execute. So nothing runs in a rehearsal but the kernel and
//! the agent: a guest that got out of its machine there could lay something into others'. Its root has the agent's program alone.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use image::Store;
use machine::Machine;
use machine::config::DiskConfig;
use machine::snapshot::{Snapshot, folder};
use machine::workload::command::Streams;
use machine::workload::{AgentSession, Origin, Outcome as Ended, Workload, new_identity};
use protocol::{Process, Root, Start, Writable};

use super::template;
use crate::cli::Global;
use crate::commands::sizing::Sizing;
use crate::engines::{Keeping, Kept, Recorder};
use crate::exit::Exit;
use crate::failure::{Failure, Outcome, While};
use crate::store;

/// The file of translations in a template's folder.
pub const TRANSLATIONS: &str = "translations";
/// How long a rehearsal may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// The agent's program in the root of a rehearsal.
const AGENT: &str = "usr/bin/agent";

/// Rehearses a template: for `strata run` itself.
#[derive(clap::Args)]
pub struct RehearseOptions {
    #[command(flatten)]
    sizing: Sizing,
    /// Folder with the template
    folder: PathBuf,
}

/// Whose translations those of a template are.
fn whose(snapshot: &Snapshot) -> String {
    format!("{} {}", template::build(), snapshot.config.cpu_model)
}

/// The translations kept beside the template `snapshot` in `folder`, if they are of use to this program.
pub fn translations(folder: &Path, snapshot: &Snapshot) -> Option<Arc<Kept>> {
    let path = folder.join(TRANSLATIONS);
    let file = File::open(&path).ok()?;
    let meta = file.metadata().ok()?;
    let own = rustix::process::geteuid().as_raw();
    if meta.uid() != own || meta.mode() & 0o022 != 0 {
        tracing::info!("{} is not used: others can write it", path.display());
        return None;
    }
    let kept = Kept::open(&file, &whose(snapshot));
    kept.map_err(|error| tracing::info!("{} is not used: {error}", path.display())).ok().map(Arc::new)
}

/// Removes from a template's `folder` what a rehearsal left that failed.
pub fn forget(folder: &Path) {
    // Without the end it is not read.
    let _ = std::fs::remove_file(folder.join(TRANSLATIONS));
}

/// Rehearses the template in the folder, and puts what came of it there.
///
/// # Errors
/// The machine does not go on from it, or the host has no space.
pub fn rehearse(global: &Global, options: &RehearseOptions) -> Outcome {
    let act = || "rehearse a start".to_owned();
    let store = store::open(global)?;
    let recorder = Recorder::default();
    let engine = options.sizing.open_engine_keeping(Keeping::Record(recorder.clone()))?;
    let mut snapshot = folder::open(&options.folder).map_err(|error| Failure::because(act(), error))?;
    let whose = whose(&snapshot);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(options.folder.join(TRANSLATIONS))
        .while_trying(act)?;
    let mut view = root(&store)?;
    let path = view.file_system().map_err(|error| Failure::because(act(), error))?.to_owned();
    snapshot.config.disks = vec![DiskConfig { path, read_only: true, serial: "root".to_owned(), rate: None }];
    let agent = AgentSession::new();
    let (backends, sandboxed) = template::backends(&options.sizing, &agent, snapshot.config.net.len())?;
    let machine = Machine::restore(snapshot, backends, engine.as_ref())
        .map_err(|error| Failure::because(act(), error))?;
    // The machine has it open.
    drop(view);
    let streams = streams().while_trying(act)?;
    options.sizing.enter_sandbox(engine.as_ref(), sandboxed)?;
    let workload = Workload {
        start: start(),
        network: None,
        volumes: Vec::new(),
        streams,
        origin: Origin::Restored,
        identity: Some(new_identity("rehearsal".to_owned()).while_trying(act)?),
        boot_timeout: Some(PATIENCE),
        timeout: Some(PATIENCE),
        progress: &mut |_| {},
    };
    match agent.run(&machine, workload).map_err(|error| Failure::because(act(), error))? {
        Ended::Exited(exit) if exit.shell_code() == 0 => {}
        other => return Err(Failure::because(act(), format!("the command ended otherwise: {other:?}"))),
    }
    drop(machine);
    file.write_all(&recorder.finish(&whose)).while_trying(act)?;
    Ok(Exit::Success)
}

/// The root of a rehearsal.
fn root(store: &Store) -> Outcome<image::View> {
    let act = || "make the root of a rehearsal".to_owned();
    let mut archive = tar::Builder::new(Vec::new());
    let files: [(&str, u32, &[u8]); 3] = [
        ("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\n"),
        ("etc/group", 0o644, b"root:x:0:\n"),
        (AGENT, 0o755, agent::AGENT),
    ];
    for (path, mode, bytes) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(mode);
        header.set_mtime(0);
        archive.append_data(&mut header, path, bytes).while_trying(act)?;
    }
    let archive = archive.into_inner().while_trying(act)?;
    store
        .view_archive(&archive[..], "the root of a rehearsal")
        .map_err(|error| Failure::because(act(), error))
}

/// What such a start is told: a command found along `PATH`, which starts another one, as most do.
fn start() -> Start {
    let program = format!("/{AGENT}");
    let argv = ["agent", "reap", &program, &program, "processes"].map(str::to_owned).to_vec();
    Start {
        root: Root::Device {
            device: "/dev/vda".to_owned(),
            fs_type: image::SQUASHFS.to_owned(),
            writable: Writable::Overlay { size_bytes: 0 },
        },
        hostname: "rehearsal".to_owned(),
        hosts: String::new(),
        process: Process { exec: 1, argv, ..Process::default() },
    }
}

fn streams() -> std::io::Result<Streams> {
    let null = || OpenOptions::new().write(true).open("/dev/null").map(OwnedFd::from);
    Ok(Streams { stdin: None, stdout: null()?, stderr: null()? })
}
