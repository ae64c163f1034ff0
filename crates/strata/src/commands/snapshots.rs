//! `strata snapshots …`: the snapshots that are kept in the store, under names.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use api::SavedWorkload;
use clap::{Args, Subcommand};
use machine::snapshot::folder;

use super::listing::Listing;
use crate::cli::Global;
use crate::exit::Exit;
use crate::failure::{Failure, Outcome, While, each};
use crate::output::{self, Table};
use crate::store;

/// Below the store's folder.
const FOLDER: &str = "snapshots";

/// Snapshots in the store: `strata snapshot WORKLOAD` makes one anywhere, these are those that servers offer
#[derive(Subcommand)]
pub enum Command {
    /// List the snapshots; strata restore PATH goes on with one
    Ls(Listing),
    /// Remove snapshots; workloads that came from them run on
    Rm(RmOptions),
}

#[derive(Args)]
pub struct RmOptions {
    /// Names of the snapshots
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

/// Does what the verb says.
///
/// # Errors
/// The store is not as it should be; the message says what.
pub fn run(global: &Global, command: &Command) -> Outcome {
    let store = store::open(global)?;
    match command {
        Command::Ls(options) => list(store.root(), options).map(|()| Exit::Success),
        Command::Rm(options) => each(&options.names, |name| remove(store.root(), name)),
    }
}

/// The folder of the snapshot `name`, in a folder that is there.
///
/// # Errors
/// The name is none, or the folder of snapshots cannot be made.
pub fn path(root: &Path, name: &str) -> Outcome<PathBuf> {
    let act = || format!("name a snapshot {name:?}");
    // The rule of workloads: no name leads out of the folder.
    let name = workload::parse_name(name)
        .map_err(|rule| Failure::new(format!("{}: {rule}", act())).exit(Exit::Usage))?;
    let parent = root.join(FOLDER);
    fs::create_dir_all(&parent).while_trying(act)?;
    Ok(parent.join(name))
}

/// All snapshots, the newest first.
///
/// # Errors
/// Their folder cannot be read.
pub fn all(root: &Path) -> Outcome<Vec<SavedWorkload>> {
    let act = || "list the snapshots".to_owned();
    let entries = match fs::read_dir(root.join(FOLDER)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Failure::because(act(), error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.while_trying(act)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // Others are being made.
        if workload::parse_name(&name).is_ok() {
            found.extend(look(name, &entry.path()));
        }
    }
    found.sort_by(|a, b| (b.created_ms, &a.name).cmp(&(a.created_ms, &b.name)));
    Ok(found)
}

/// Nothing of one that is gone meanwhile.
fn look(name: String, path: &Path) -> Option<SavedWorkload> {
    let created = fs::metadata(path).ok()?.modified().ok()?.duration_since(UNIX_EPOCH).unwrap_or_default();
    let on_disk = |file: &str| fs::metadata(path.join(file)).map_or(0, |meta| meta.blocks() * 512);
    let mut row = SavedWorkload {
        name,
        path: path.display().to_string(),
        created_ms: u64::try_from(created.as_millis()).unwrap_or_default(),
        command: Vec::new(),
        cpus: None,
        memory_bytes: None,
        size_bytes: on_disk(folder::STATE) + on_disk(folder::RAM),
        broken: None,
    };
    match folder::open(path) {
        Ok(snapshot) => {
            row.cpus = Some(snapshot.config.cpus);
            row.memory_bytes = Some(snapshot.config.memory_bytes);
            row.command = snapshot.workload.map(|saved| saved.command).unwrap_or_default();
        }
        Err(error) => row.broken = Some(Failure::because("open it", error).to_string()),
    }
    Some(row)
}

/// Removes one.
///
/// # Errors
/// There is none, or its files cannot be removed.
pub fn remove(root: &Path, name: &str) -> Outcome<()> {
    let act = || format!("remove snapshot {name:?}");
    let path = path(root, name)?;
    if !path.is_dir() {
        return Err(
            Failure::new(format!("{}: there is none", act())).hint("strata snapshots ls shows what there is")
        );
    }
    // Under a name that nobody looks for first: half a snapshot is never seen.
    let grave = path.with_file_name(format!(".{name}.removed"));
    let _ = fs::remove_dir_all(&grave);
    fs::rename(&path, &grave).while_trying(act)?;
    fs::remove_dir_all(&grave).while_trying(act)
}

fn list(root: &Path, options: &Listing) -> Outcome<()> {
    let rows = all(root)?;
    if options.json {
        return output::json(&rows);
    }
    if options.quiet {
        return rows.iter().try_for_each(|row| output::write(&format!("{}\n", row.name)));
    }
    let mut table = Table::new(&["NAME", "COMMAND", "CPUS", "MEMORY", "SIZE", "PATH"]);
    for row in rows {
        let command = row.broken.unwrap_or_else(|| row.command.join(" "));
        table.row([
            row.name,
            output::visible(&command),
            row.cpus.map_or_else(|| "?".to_owned(), |cpus| cpus.to_string()),
            row.memory_bytes.map_or_else(|| "?".to_owned(), output::bytes),
            output::bytes(row.size_bytes),
            row.path,
        ]);
    }
    table.print()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_snapshot_is_listed_as_broken_and_can_be_removed() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(all(root.path()).unwrap(), []);
        let place = path(root.path(), "base").unwrap();
        fs::create_dir(&place).unwrap();
        fs::write(place.join("state"), "nonsense").unwrap();
        fs::create_dir(place.with_file_name(".half.1.partial")).unwrap();
        let found = all(root.path()).unwrap();
        assert_eq!((found.len(), found[0].name.as_str(), found[0].broken.is_some()), (1, "base", true));
        remove(root.path(), "base").unwrap();
        assert!(remove(root.path(), "base").is_err() && all(root.path()).unwrap().is_empty());
        for name in ["../base", "", ".half.1.partial", "a/b"] {
            assert!(path(root.path(), name).is_err(), "{name}");
        }
    }
}
