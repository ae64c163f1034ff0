//! `strata network …`: networks that containers are connected to by name.

use std::net::Ipv4Addr;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use workload::networks::{LeaseInfo, Locked, Network, Networks, NewNetwork, Subnet};

use super::listing::Listing;
use crate::bridge;
use crate::cli::Global;
use crate::exit::Exit;
use crate::failure::{Failure, Outcome, While, each};
use crate::output::{self, Table};
use crate::store;

/// Networks that containers are connected to by name
#[derive(Subcommand)]
pub enum Command {
    /// Make a network: a bridge of this host, with rules that lead out of it
    Create(CreateOptions),
    /// List the networks
    Ls(Listing),
    /// Show all about networks, as JSON
    Inspect(NamesOptions),
    /// Remove networks that nobody is connected to
    Rm(NamesOptions),
    /// Remove all networks that nobody is connected to
    Prune,
}

/// `strata network create`
#[derive(Args)]
pub struct CreateOptions {
    /// Its addresses, e.g. 10.90.0.0/24 [default: some that are free]
    #[arg(long, value_name = "SUBNET")]
    subnet: Option<Subnet>,
    /// The host's own address of them [default: the first]
    #[arg(long, value_name = "ADDRESS")]
    gateway: Option<Ipv4Addr>,
    /// Let nothing lead out of it
    #[arg(long)]
    internal: bool,
    /// Bytes of a packet at most
    #[arg(long, value_name = "BYTES", default_value_t = 1500)]
    mtu: u32,
    /// Free text by key, for those who look for it
    #[arg(long = "label", value_name = "KEY[=VALUE]")]
    labels: Vec<String>,
    /// Its name
    name: String,
}

/// Which networks.
#[derive(Args)]
pub struct NamesOptions {
    /// Names of networks, or the beginnings of their ids
    #[arg(required = true)]
    names: Vec<String>,
}

/// Does what the verb says.
///
/// # Errors
/// There is no such network, somebody uses it, or the host is not as it should be.
pub fn run(global: &Global, command: &Command) -> Outcome {
    let networks = open(global)?;
    match command {
        Command::Create(options) => create(&networks, options)?,
        Command::Ls(listing) => list(&networks, listing)?,
        Command::Inspect(options) => {
            let act = || "inspect networks".to_owned();
            let locked = networks.lock().while_trying(act)?;
            let described = |name: &String| {
                let network = find(&networks, name)?;
                Ok(described(&network, &network.leases(&locked).while_trying(act)?))
            };
            output::json(&options.names.iter().map(described).collect::<Outcome<Vec<_>>>()?)?;
        }
        Command::Rm(options) => {
            return each(&options.names, |name| {
                let locked = networks.lock().while_trying(|| format!("remove network {name:?}"))?;
                remove(&networks, &locked, &find(&networks, name)?)
            });
        }
        Command::Prune => {
            let act = || "prune networks".to_owned();
            let locked = networks.lock().while_trying(act)?;
            for network in networks.list().while_trying(act)? {
                if network.leases(&locked).while_trying(act)?.is_empty() {
                    remove(&networks, &locked, &network)?;
                }
            }
        }
    }
    Ok(Exit::Success)
}

/// The networks of the store.
///
/// # Errors
/// The store cannot be written.
pub fn open(global: &Global) -> Outcome<Networks> {
    Networks::open(&store::root(global)?).while_trying(|| "open the networks".to_owned())
}

/// The network of this name.
///
/// # Errors
/// There is none.
pub fn find(networks: &Networks, name: &str) -> Outcome<Network> {
    networks.find(name).map_err(|error| {
        let hint = "strata network ls shows what there is, strata network create makes one";
        if error.is_not_found() {
            return Failure::new(format!("no network {name:?}")).hint(hint);
        }
        Failure::because(format!("find network {name:?}"), error)
    })
}

fn create(networks: &Networks, options: &CreateOptions) -> Outcome<()> {
    if !rustix::process::geteuid().is_root() {
        let text = format!("create network {:?}: bridges are made by root only", options.name);
        return Err(Failure::new(text).hint("strata run --network user needs no root"));
    }
    let pair = |entry: &String| {
        let (key, value) = entry.split_once('=').unwrap_or((entry, ""));
        (key.to_owned(), value.to_owned())
    };
    let new = NewNetwork {
        name: options.name.clone(),
        subnet: options.subnet,
        gateway: options.gateway,
        mtu: options.mtu,
        internal: options.internal,
        labels: options.labels.iter().map(pair).collect(),
    };
    let act = || format!("create network {:?}", options.name);
    let locked = networks.lock().while_trying(act)?;
    let network = networks.create(&locked, new, &bridge::routes()?).map_err(|error| {
        Failure::because(act(), error).hint("strata network ls and ip route show what is taken")
    })?;
    if let Err(failure) = bridge::restore(network.info(), &[]) {
        // What went wrong first is what counts.
        let _ = bridge::remove(network.info());
        let _ = networks.remove(&locked, &network);
        return Err(failure);
    }
    output::write(&format!("{}\n", network.info().name))
}

fn remove(networks: &Networks, locked: &Locked, network: &Network) -> Outcome<()> {
    let name = &network.info().name;
    // The bridge goes first: one that nobody knows of would stay for ever. A network in use keeps its own.
    if network.leases(locked).while_trying(|| format!("remove network {name:?}"))?.is_empty() {
        bridge::remove(network.info())?;
    }
    networks.remove(locked, network).map_err(|error| {
        Failure::because(format!("remove network {name:?}"), error).hint("strata stop ends who uses it")
    })?;
    output::write(&format!("{name}\n"))
}

/// A network and who is connected.
fn described(network: &Network, leases: &[LeaseInfo]) -> Value {
    let mut value = json!(network.info());
    value["bridge"] = json!(network.info().bridge());
    value["connected"] = json!(leases);
    value
}

fn list(networks: &Networks, listing: &Listing) -> Outcome<()> {
    let act = || "list the networks".to_owned();
    let locked = networks.lock().while_trying(act)?;
    let mut table = Table::new(&["NAME", "ID", "SUBNET", "GATEWAY", "CONNECTED"]);
    let mut rows = Vec::new();
    for network in networks.list().while_trying(act)? {
        let leases = network.leases(&locked).while_trying(act)?;
        let info = network.info();
        if listing.quiet {
            output::write(&format!("{}\n", info.id))?;
        }
        let names: Vec<_> = leases.iter().map(|lease| lease.workload.as_str()).collect();
        let (subnet, gateway) = (info.subnet.to_string(), info.gateway.to_string());
        table.row([
            info.name.clone(),
            info.id[..12].to_owned(),
            subnet,
            gateway,
            output::visible(&names.join(", ")),
        ]);
        rows.push(described(&network, &leases));
    }
    match listing {
        Listing { json: true, .. } => output::json(&rows),
        Listing { quiet: true, .. } => Ok(()),
        _ => table.print(),
    }
}
