//! `strata volume …`: folders of the store that have names and outlive the workloads that see them.

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use workload::{NewVolume, Volume, VolumeInfo, Volumes};

use super::listing::Listing;
use crate::cli::Global;
use crate::exit::Exit;
use crate::failure::{Failure, Outcome, While, each};
use crate::output::{self, Table};
use crate::store;

/// Folders that have names and outlive the workloads that see them
#[derive(Subcommand)]
pub enum Command {
    /// Make a volume; one that is there already stays as it is
    Create(CreateOptions),
    /// List the volumes
    Ls(LsOptions),
    /// Show all about volumes, as JSON
    Inspect(NamesOptions),
    /// Remove volumes and all that is in them
    Rm(RmOptions),
    /// Remove volumes that nobody uses and nobody gave a name
    Prune(PruneOptions),
}

/// `strata volume create`
#[derive(Args)]
pub struct CreateOptions {
    /// Free text by key, for those who look for it
    #[arg(long = "label", value_name = "KEY[=VALUE]")]
    labels: Vec<String>,
    /// Where it is, if not in the store: -o type=none -o o=bind -o device=DIR
    #[arg(short, long = "opt", value_name = "KEY=VALUE")]
    options: Vec<String>,
    /// Its name [default: 64 hexadecimal digits]
    name: Option<String>,
}

/// `strata volume ls`
#[derive(Args)]
pub struct LsOptions {
    #[command(flatten)]
    listing: Listing,
    /// Show some: name=TEXT, label=KEY[=VALUE], dangling=true|false
    #[arg(short, long = "filter", value_name = "KEY=VALUE", value_parser = Filter::parse)]
    filters: Vec<Filter>,
}

/// `strata volume inspect`
#[derive(Args)]
pub struct NamesOptions {
    /// Names of volumes
    #[arg(required = true)]
    names: Vec<String>,
}

/// `strata volume rm`
#[derive(Args)]
pub struct RmOptions {
    /// One that is not there is no error
    #[arg(short, long)]
    force: bool,
    /// Names of volumes
    #[arg(required = true)]
    names: Vec<String>,
}

/// `strata volume prune`
#[derive(Args)]
pub struct PruneOptions {
    /// Those that somebody gave a name too
    #[arg(short, long)]
    all: bool,
    /// Those with this label
    #[arg(long = "label", value_name = "KEY[=VALUE]")]
    labels: Vec<String>,
}

/// Which volumes to show.
#[derive(Clone)]
enum Filter {
    Name(String),
    Label(String),
    Dangling(bool),
}

impl Filter {
    fn parse(text: &str) -> Result<Filter, String> {
        match text.split_once('=') {
            Some(("name", value)) => Ok(Filter::Name(value.to_owned())),
            Some(("label", value)) => Ok(Filter::Label(value.to_owned())),
            Some(("dangling", "true" | "1")) => Ok(Filter::Dangling(true)),
            Some(("dangling", "false" | "0")) => Ok(Filter::Dangling(false)),
            _ => Err("it is name=TEXT, label=KEY[=VALUE] or dangling=true|false".to_owned()),
        }
    }

    fn fits(&self, info: &VolumeInfo, is_used: bool) -> bool {
        match self {
            Filter::Name(text) => info.name.contains(text),
            Filter::Label(text) => has_label(info, text),
            Filter::Dangling(wanted) => *wanted != is_used,
        }
    }
}

fn has_label(info: &VolumeInfo, wanted: &str) -> bool {
    match wanted.split_once('=') {
        Some((key, value)) => info.labels.get(key).is_some_and(|found| found == value),
        None => info.labels.contains_key(wanted),
    }
}

/// Does what the verb says.
///
/// # Errors
/// There is no such volume, somebody uses it, or the store is not as it should be.
pub fn run(global: &Global, command: &Command) -> Outcome {
    let volumes = Volumes::open(&store::root(global)?).while_trying(|| "open the volumes".to_owned())?;
    match command {
        Command::Create(options) => create(&volumes, options)?,
        Command::Ls(options) => list(&volumes, options)?,
        Command::Inspect(options) => inspect(&volumes, &options.names)?,
        Command::Rm(options) => return remove(&volumes, options),
        Command::Prune(options) => {
            let unwanted = |info: &VolumeInfo| {
                (options.all || info.anonymous) && options.labels.iter().all(|label| has_label(info, label))
            };
            let (removed, bytes) = volumes.prune(unwanted).while_trying(|| "prune volumes".to_owned())?;
            let names: String = removed.iter().map(|name| format!("{name}\n")).collect();
            output::write(&format!("{names}freed {}\n", output::bytes(bytes)))?;
        }
    }
    Ok(Exit::Success)
}

fn pairs(entries: &[String]) -> BTreeMap<String, String> {
    let pair = |entry: &String| {
        let (key, value) = entry.split_once('=').unwrap_or((entry, ""));
        (key.to_owned(), value.to_owned())
    };
    entries.iter().map(pair).collect()
}

fn create(volumes: &Volumes, options: &CreateOptions) -> Outcome<()> {
    let new = NewVolume {
        name: options.name.clone(),
        labels: pairs(&options.labels),
        options: pairs(&options.options),
        temporary: false,
    };
    let made = volumes.create(new).while_trying(|| "create a volume".to_owned())?;
    output::write(&format!("{}\n", made.info().name))
}

/// A volume and the names of those who use it.
fn described(volume: &Volume, users: &[String]) -> Value {
    let mut value = json!(volume.info());
    value["mountpoint"] = json!(volume.data());
    value["users"] = json!(users);
    value
}

fn list(volumes: &Volumes, options: &LsOptions) -> Outcome<()> {
    let act = || "list the volumes".to_owned();
    volumes.clean().while_trying(act)?;
    let mut users = volumes.users().while_trying(act)?;
    let all = volumes.list().while_trying(act)?.into_iter().map(|volume| {
        let users = users.remove(&volume.info().name).unwrap_or_default();
        (volume, users)
    });
    let fits = |(volume, users): &(Volume, Vec<String>)| {
        options.filters.iter().all(|filter| filter.fits(volume.info(), !users.is_empty()))
    };
    let all: Vec<_> = all.filter(fits).collect();
    if options.listing.json {
        let rows: Vec<_> = all.iter().map(|(volume, users)| described(volume, users)).collect();
        return output::json(&rows);
    }
    if options.listing.quiet {
        return all.iter().try_for_each(|(volume, _)| output::write(&format!("{}\n", volume.info().name)));
    }
    let mut table = Table::new(&["NAME", "USED BY", "SIZE"]);
    for (volume, users) in all {
        table.row([
            volume.info().name.clone(),
            output::visible(&users.join(", ")),
            output::bytes(volume.size_bytes()),
        ]);
    }
    table.print()
}

fn inspect(volumes: &Volumes, names: &[String]) -> Outcome<()> {
    let mut users = volumes.users().while_trying(|| "list the volumes".to_owned())?;
    let mut all = Vec::new();
    for name in names {
        let volume = volumes.find(name).map_err(|error| {
            Failure::because("inspect", error).hint("strata volume ls shows what there is")
        })?;
        all.push(described(&volume, &users.remove(name).unwrap_or_default()));
    }
    output::json(&all)
}

fn remove(volumes: &Volumes, options: &RmOptions) -> Outcome {
    each(&options.names, |name| {
        match volumes.remove(name) {
            Err(workload::Error::NoVolume { .. }) if options.force => {}
            removed => removed.map_err(|error| {
                let is_used = matches!(error, workload::Error::VolumeInUse { .. });
                let failure = Failure::because(format!("remove volume {name:?}"), error);
                let hint = "strata rm removes the workloads; strata volume ls shows who uses what";
                if is_used { failure.hint(hint) } else { failure }
            })?,
        }
        output::write(&format!("{name}\n"))
    })
}
