//! `strata templates …`: the saved machines that `strata run` starts from.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use clap::{Args, Subcommand};
use machine::snapshot::folder;
use serde::Serialize;

use super::listing::Listing;
use super::run::rehearsal::{self, RehearseOptions};
use super::run::template::{self, CaptureOptions, Template};
use crate::cli::Global;
use crate::exit::Exit;
use crate::failure::{Failure, Outcome, While, each};
use crate::output::{self, Table};
use crate::store;

/// Saved machines that `strata run` starts from
#[derive(Subcommand)]
pub enum Command {
    /// List the templates
    Ls(Listing),
    /// Remove templates; machines that came from them run on
    Rm(RmOptions),
    /// Remove templates that no run would use: of other builds, of kernels that are gone, damaged ones
    Prune,
    /// Make one into a folder
    #[command(hide = true)]
    Capture(CaptureOptions),
    /// Rehearse one in a folder
    #[command(hide = true)]
    Rehearse(RehearseOptions),
}

#[derive(Args)]
pub struct RmOptions {
    /// Ids of the templates
    #[arg(required_unless_present = "all", conflicts_with = "all", value_name = "ID")]
    ids: Vec<String>,
    /// All of them
    #[arg(long)]
    all: bool,
}

#[derive(Serialize)]
struct Row {
    id: String,
    kernel: Option<String>,
    cpu: Option<String>,
    cpus: Option<u32>,
    memory_bytes: Option<u64>,
    size_bytes: u64,
    broken: Option<String>,
}

/// Does what the verb says.
///
/// # Errors
/// The store is not as it should be; the message says what.
pub fn run(global: &Global, command: &Command) -> Outcome {
    match command {
        Command::Ls(options) => list(global, options)?,
        Command::Rm(options) => return remove(global, options),
        Command::Prune => {
            let removed = template::prune(&store::open(global)?);
            output::write(&format!("removed {removed}\n"))?;
        }
        Command::Capture(options) => return template::capture(global, options),
        Command::Rehearse(options) => return rehearsal::rehearse(global, options),
    }
    Ok(Exit::Success)
}

fn list(global: &Global, options: &Listing) -> Outcome<()> {
    let store = store::open(global)?;
    let found = template::all(&store).while_trying(|| "list templates".to_owned())?;
    let rows = found.into_iter().map(|Template { id, path, snapshot }| {
        let size_bytes = [folder::STATE, folder::RAM, rehearsal::TRANSLATIONS]
            .iter()
            .map(|name| on_disk(&path.join(name)))
            .sum();
        let empty =
            Row { id, kernel: None, cpu: None, cpus: None, memory_bytes: None, size_bytes, broken: None };
        match snapshot {
            Ok(snapshot) => Row {
                kernel: template::kernel_of(&snapshot.header.build).map(str::to_owned),
                cpu: Some(snapshot.config.cpu_model),
                cpus: Some(snapshot.config.cpus),
                memory_bytes: Some(snapshot.config.memory_bytes),
                ..empty
            },
            Err(error) => Row { broken: Some(Failure::because("open it", error).to_string()), ..empty },
        }
    });
    let rows: Vec<Row> = rows.collect();
    if options.json {
        return output::json(&rows);
    }
    if options.quiet {
        return rows.iter().try_for_each(|row| output::write(&format!("{}\n", row.id)));
    }
    let mut table = Table::new(&["ID", "KERNEL", "CPU", "CPUS", "MEMORY", "SIZE"]);
    for row in rows {
        let text = |value: Option<String>| value.unwrap_or_else(|| "?".to_owned());
        let kernel = row.broken.or(row.kernel);
        table.row([
            row.id,
            output::visible(&text(kernel)),
            text(row.cpu),
            text(row.cpus.map(|cpus| cpus.to_string())),
            text(row.memory_bytes.map(output::bytes)),
            output::bytes(row.size_bytes),
        ]);
    }
    table.print()
}

/// Bytes that a file takes, which are fewer than it has.
fn on_disk(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |meta| meta.blocks() * 512)
}

fn remove(global: &Global, options: &RmOptions) -> Outcome {
    let store = store::open(global)?;
    let found = template::all(&store).while_trying(|| "list templates".to_owned())?;
    let all: Vec<String> = found.iter().map(|template| template.id.clone()).collect();
    each(if options.all { &all } else { &options.ids }, |id| {
        let Some(template) = found.iter().find(|template| template.id == id) else {
            let failure = Failure::new(format!("remove template {id}: there is none"));
            return Err(failure.hint("strata templates ls shows what there is"));
        };
        fs::remove_dir_all(&template.path).while_trying(|| format!("remove template {id}"))
    })
}
