//! `strata network …`: networks that workloads are connected to by name.

pub mod connections;
pub mod names;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use workload::EventKind;
use workload::networks::{
    Endpoint, LeaseInfo, Link, Locked, Network, Networks, NewNetwork, Pool, Subnet, Subnet6,
};

use super::listing::Listing;
use super::workloads;
use crate::bridge;
use crate::cli::Global;
use crate::exit::Exit;
use crate::failure::{Failure, Outcome, While, each};
use crate::output::{self, Table};
use crate::store;

/// Networks that workloads are connected to by name
#[derive(Subcommand)]
pub enum Command {
    /// Make a network: a bridge of this host, with rules that lead out of it, where workloads find each other by name
    Create(CreateOptions),
    /// List the networks
    Ls(Listing),
    /// Show all about networks, as JSON
    Inspect(NamesOptions),
    /// Remove networks that nobody is connected to
    Rm(NamesOptions),
    /// Remove all networks that nobody is connected to
    Prune,
    /// Connect a workload to a network too, at once if it is a container that runs
    Connect(ConnectOptions),
    /// Take a workload off a network
    Disconnect(DisconnectOptions),
}

/// `strata network create`
#[derive(Args)]
pub struct CreateOptions {
    /// Its addresses, e.g. 10.90.0.0/24; a second one may be of IPv6 [default: some that are free]
    #[arg(long, value_name = "SUBNET")]
    subnet: Vec<Block>,
    /// The host's own address of them; a second one may be of IPv6 [default: the first]
    #[arg(long, value_name = "ADDRESS")]
    gateway: Vec<IpAddr>,
    /// Addresses of the subnet that are given to those who ask for none; a second one may be of IPv6 [default: all]
    #[arg(long, value_name = "SUBNET")]
    ip_range: Vec<Block>,
    /// An address that no workload gets
    #[arg(long = "aux-address", value_name = "NAME=ADDRESS", value_parser = reserved)]
    aux_addresses: Vec<(String, IpAddr)>,
    /// Give it IPv6 addresses too, unless told which some that nobody has (RFC 4193)
    #[arg(long)]
    ipv6: bool,
    /// Let nothing lead out of it
    #[arg(long)]
    internal: bool,
    /// Leave the sender's address to what goes out: somebody else has a way back
    #[arg(long, conflicts_with = "internal")]
    no_masquerade: bool,
    /// Bytes of a packet at most
    #[arg(long, value_name = "BYTES", default_value_t = 1500)]
    mtu: u32,
    /// What its bridge is to be called on this host [default: st- and the beginning of its id]
    #[arg(long, value_name = "NAME")]
    bridge: Option<String>,
    /// Free text by key, for those who look for it
    #[arg(long = "label", value_name = "KEY[=VALUE]")]
    labels: Vec<String>,
    /// Its name
    name: String,
}

/// `strata network connect`
#[derive(Args)]
pub struct ConnectOptions {
    /// Its address on the network [default: one that is free]
    #[arg(long, value_name = "ADDRESS")]
    ip: Option<Ipv4Addr>,
    /// Its IPv6 address [default: one that is free]
    #[arg(long, value_name = "ADDRESS")]
    ip6: Option<Ipv6Addr>,
    /// What others on the network call it too
    #[arg(long, value_name = "NAME", value_parser = workload::parse_name)]
    alias: Vec<String>,
    /// Of several networks the one with the highest leads out, of several such the first
    #[arg(long, value_name = "NUMBER", default_value_t = 0, allow_negative_numbers = true)]
    gw_priority: i64,
    /// What it alone calls another workload on the network
    #[arg(long = "link", value_name = "WORKLOAD[:ALIAS]")]
    links: Vec<Link>,
    /// Name of the network, or the beginning of its id
    network: String,
    /// Name or id of the workload
    workload: String,
}

/// `strata network disconnect`
#[derive(Args)]
pub struct DisconnectOptions {
    /// Name of the network
    network: String,
    /// Name or id of the workload
    workload: String,
}

/// Addresses of either kind.
#[derive(Clone, Copy)]
enum Block {
    Four(Subnet),
    Six(Subnet6),
}

impl FromStr for Block {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains(':') { text.parse().map(Self::Six) } else { text.parse().map(Self::Four) }
    }
}

/// One of each kind at most.
fn one_of_each<T, A, B>(
    flag: &str,
    all: &[T],
    of: impl Fn(&T) -> (Option<A>, Option<B>),
) -> Outcome<(Option<A>, Option<B>)> {
    let mut found = (None, None);
    for (four, six) in all.iter().map(of) {
        if (four.is_some() && found.0.is_some()) || (six.is_some() && found.1.is_some()) {
            let text = format!("--{flag}: one of IPv4 and one of IPv6 at most");
            return Err(Failure::new(text).exit(Exit::Usage));
        }
        found = (found.0.or(four), found.1.or(six));
    }
    Ok(found)
}

fn reserved(text: &str) -> Result<(String, IpAddr), String> {
    let (name, address) = text.split_once('=').ok_or_else(|| format!("{text:?} is not NAME=ADDRESS"))?;
    let address = address.parse().map_err(|error| format!("{address:?}: {error}"))?;
    Ok((name.to_owned(), address))
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
                Ok(described(&network, &connected(&locked, &network)?))
            };
            output::json(&options.names.iter().map(described).collect::<Outcome<Vec<_>>>()?)?;
        }
        Command::Rm(options) => {
            return each(&options.names, |name| {
                let locked = networks.lock().while_trying(|| format!("remove network {name:?}"))?;
                remove(&networks, &locked, &find(&networks, name)?)
            });
        }
        Command::Connect(options) => {
            let endpoint = Endpoint {
                network: options.network.clone(),
                aliases: options.alias.clone(),
                ip: options.ip,
                ip6: options.ip6,
                mac: None,
                priority: options.gw_priority,
                links: options.links.clone(),
            };
            connections::connect(&networks, &workloads::all(global)?, &options.workload, endpoint)?;
        }
        Command::Disconnect(options) => {
            connections::disconnect(&workloads::all(global)?, &options.workload, &options.network)?;
        }
        Command::Prune => {
            let act = || "prune networks".to_owned();
            let locked = networks.lock().while_trying(act)?;
            for network in networks.list().while_trying(act)? {
                if network.leases(&locked).while_trying(act)?.is_empty() {
                    remove(&networks, &locked, &network)?;
                }
            }
            workloads::all(global)?.tell_pruned(EventKind::Network, 0);
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
        let is_missing = error.is_not_found();
        let failure = Failure::because(format!("find network {name:?}"), error);
        if is_missing { failure.hint(hint) } else { failure }
    })
}

fn create(networks: &Networks, options: &CreateOptions) -> Outcome<()> {
    let pair = |entry: &String| {
        let (key, value) = entry.split_once('=').unwrap_or((entry, ""));
        (key.to_owned(), value.to_owned())
    };
    let either = |block: &Block| match block {
        Block::Four(subnet) => (Some(*subnet), None),
        Block::Six(subnet) => (None, Some(*subnet)),
    };
    let (subnet, subnet6) = one_of_each("subnet", &options.subnet, either)?;
    let (range, range6) = one_of_each("ip-range", &options.ip_range, either)?;
    if (range.is_some() && subnet.is_none()) || (range6.is_some() && subnet6.is_none()) {
        return Err(Failure::new("--ip-range: of which --subnet?").exit(Exit::Usage));
    }
    let (gateway, gateway6): (Option<Ipv4Addr>, Option<Ipv6Addr>) =
        one_of_each("gateway", &options.gateway, |address| match address {
            IpAddr::V4(address) => (Some(*address), None),
            IpAddr::V6(address) => (None, Some(*address)),
        })?;
    let new = NewNetwork {
        name: options.name.clone(),
        subnet,
        gateway,
        ipv6: options.ipv6,
        subnet6,
        gateway6,
        pool: Pool { range, range6, reserved: options.aux_addresses.iter().cloned().collect() },
        mtu: Some(options.mtu),
        internal: options.internal,
        routed: options.no_masquerade,
        labels: options.labels.iter().map(pair).collect(),
        options: Default::default(),
        bridge: options.bridge.clone(),
    };
    let network = make(networks, new)?;
    output::write(&format!("{}\n", network.info().name))
}

/// Makes a network, and its bridge.
///
/// # Errors
/// Its name or addresses are another's, or this process may not.
pub fn make(networks: &Networks, new: NewNetwork) -> Outcome<Network> {
    let name = new.name.clone();
    let act = || format!("create network {name:?}");
    if !rustix::process::geteuid().is_root() {
        let failure = Failure::new(format!("{}: bridges are made by root only", act()));
        return Err(failure.hint("strata run --network user needs no root"));
    }
    let locked = networks.lock().while_trying(act)?;
    if let Some(bridge) = new.bridge.as_deref().filter(|bridge| bridge::exists(bridge)) {
        // It would go with the network.
        let taken = workload::Error::Refused(format!("this host has an interface {bridge} already"));
        return Err(Failure::because(act(), taken));
    }
    let _choosing = bridge::lock()?;
    let network = networks.create(&locked, new, &bridge::routes()?).map_err(|error| {
        Failure::because(act(), error).hint("strata network ls and ip route show what is taken")
    })?;
    if let Err(failure) = bridge::restore(network.info(), &[]) {
        // What went wrong first is what counts.
        let _ = bridge::remove(network.info());
        let _ = networks.remove(&locked, &network);
        return Err(failure);
    }
    Ok(network)
}

fn remove(networks: &Networks, locked: &Locked, network: &Network) -> Outcome<()> {
    unmake(networks, locked, network)?;
    output::write(&format!("{}\n", network.info().name))
}

/// Removes a network that nobody is connected to, and its bridge.
///
/// # Errors
/// Somebody is, or this process may not.
pub fn unmake(networks: &Networks, locked: &Locked, network: &Network) -> Outcome<()> {
    let name = &network.info().name;
    // The bridge goes first: one that nobody knows of would stay for ever. A network in use keeps its own.
    if network.leases(locked).while_trying(|| format!("remove network {name:?}"))?.is_empty() {
        bridge::remove(network.info())?;
    }
    networks.remove(locked, network).map_err(|error| {
        Failure::because(format!("remove network {name:?}"), error).hint("strata stop ends who uses it")
    })
}

/// Who is connected. What the host still has for those who were killed, and their keepers with them, is removed.
///
/// # Errors
/// The network's folder cannot be read.
pub fn connected(locked: &Locked, network: &Network) -> Outcome<Vec<LeaseInfo>> {
    let name = &network.info().name;
    let found = network.look(locked).while_trying(|| format!("look who is on network {name:?}"))?;
    if found.has_lost {
        // Who may only look leaves it to whoever comes next.
        if let Err(failure) = bridge::restore(network.info(), &found.leases) {
            tracing::warn!("{failure}");
        }
    }
    Ok(found.leases)
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
        let leases = connected(&locked, &network)?;
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
