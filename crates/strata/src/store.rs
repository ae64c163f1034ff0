//! Where the store is, and how it is opened.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use image::{Digest, Keeper, Store};
use workload::Workloads;

use crate::cli::Global;
use crate::failure::{Failure, Outcome, While};

/// The folder of the store: `--root`, `STRATA_ROOT`, or the user's default.
///
/// # Errors
/// There is no home folder to put it in.
pub fn root(global: &Global) -> Outcome<PathBuf> {
    if let Some(root) = &global.root {
        return Ok(root.clone());
    }
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/strata"));
    }
    let set = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let data = set("XDG_DATA_HOME").or_else(|| set("HOME").map(|home| home.join(".local/share")));
    data.map(|data| data.join("strata")).ok_or_else(|| {
        Failure::new("find the store: neither XDG_DATA_HOME nor HOME is set")
            .hint("name a folder with --root DIR")
    })
}

/// Opens the store, making it if it is not there.
///
/// # Errors
/// It cannot be made or written.
pub fn open(global: &Global) -> Outcome<Store> {
    let root = root(global)?;
    let store = Store::open(&root).map_err(|error| {
        Failure::because(format!("open store {}", root.display()), error)
            .hint("name a folder you may write with --root DIR or STRATA_ROOT")
    })?;
    Ok(store.kept_by(Arc::new(Made { root })))
}

/// The workloads of a store keep the images they were made from.
#[derive(Debug)]
struct Made {
    root: PathBuf,
}

impl Keeper for Made {
    fn kept(&self) -> std::io::Result<Vec<Digest>> {
        let all = Workloads::open(&self.root).and_then(|all| all.list()).map_err(std::io::Error::other)?;
        let digest = |folder: &workload::Folder| {
            folder.description().wanted.options.get("digest")?.as_str()?.parse().ok()
        };
        Ok(all.iter().filter_map(digest).collect())
    }
}

/// This program once more, on the store at `root`, as talkative as `verbose` says.
///
/// # Errors
/// The program or the working directory is gone.
pub fn again(root: &Path, verbose: u8) -> Outcome<Command> {
    let program = std::env::current_exe().while_trying(|| "find this program".to_owned())?;
    on_store(Command::new(program), root, verbose)
}

/// As [`again`], also where this program runs from a file without a path, as it does for containers.
///
/// # Errors
/// The working directory is gone.
pub fn again_as_it_is(root: &Path) -> Outcome<Command> {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("strata");
    on_store(command, root, 0)
}

fn on_store(mut command: Command, root: &Path, verbose: u8) -> Outcome<Command> {
    command.arg("--root").arg(std::path::absolute(root).while_trying(|| "find the store".to_owned())?);
    command.args(vec!["-v"; verbose.into()]);
    Ok(command)
}
