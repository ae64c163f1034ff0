//! Workloads that come to a network, or leave it, after they were made.

use workload::control::{Client, Request};
use workload::networks::{Endpoint, Networks};
use workload::{Folder, Isolation, Workloads};

use super::find;
use crate::commands::run::network::Flags;
use crate::failure::{Failure, Outcome, While};

/// Connects a workload to a network: from now on if it runs, and whenever it is started.
///
/// # Errors
/// There is no such network or workload, it is on that network already, or it is a machine that runs.
pub fn connect(networks: &Networks, all: &Workloads, name: &str, endpoint: Endpoint) -> Outcome<()> {
    let network = find(networks, &endpoint.network)?.info().name.clone();
    let endpoint = Endpoint { network, ..endpoint };
    let act = || format!("connect {name} to network {}", endpoint.network);
    let folder = all.find(name).while_trying(act)?;
    let mut endpoints = folder.description().wanted.networks.clone();
    if endpoints.iter().any(|other| other.network == endpoint.network) {
        return Err(Failure::because(act(), workload::Error::Refused("it is on it already".to_owned())));
    }
    if flags(&folder, &act)?.shares() {
        let text = "it has all of the host's network, or of another container's, and no place for another"
            .to_owned();
        return Err(Failure::because(act(), workload::Error::Refused(text)));
    }
    endpoints.push(endpoint.clone());
    if folder.description().wanted.isolation == Isolation::Vm && endpoints.len() > 1 {
        let one = workload::Error::Refused("a machine has one card".to_owned());
        let failure = Failure::because(act(), one);
        return Err(failure.hint("strata network disconnect takes it off the other network"));
    }
    ask(&folder, &Request::Connect(endpoint.clone()), &act)?;
    set(all, &folder, endpoints, &act)
}

/// Takes a workload off a network, at once if it runs.
///
/// # Errors
/// It is not on it, or it is a machine that runs.
pub fn disconnect(all: &Workloads, name: &str, network: &str) -> Outcome<()> {
    let act = || format!("disconnect {name} from network {network}");
    let folder = all.find(name).while_trying(act)?;
    let mut endpoints = folder.description().wanted.networks.clone();
    let before = endpoints.len();
    endpoints.retain(|endpoint| endpoint.network != network);
    if endpoints.len() == before {
        return Err(Failure::because(act(), workload::Error::Refused("it is not connected".to_owned())));
    }
    ask(&folder, &Request::Disconnect { network: network.to_owned() }, &act)?;
    set(all, &folder, endpoints, &act)
}

/// Has a workload that runs do it.
fn ask(folder: &Folder, request: &Request, act: &impl Fn() -> String) -> Outcome<()> {
    if !folder.state().while_trying(act)?.status.is_active() {
        return Ok(());
    }
    if folder.description().wanted.isolation == Isolation::Vm {
        let stays = "the card of a machine that runs stays where it is".to_owned();
        let failure = Failure::because(act(), workload::Error::Refused(stays));
        return Err(failure.hint("strata stop ends it, strata start starts it with its other network"));
    }
    let asked = Client::connect(folder).and_then(|mut client| client.ask(request, &[]));
    asked.map(drop).while_trying(act)
}

/// What it was made with.
fn flags(folder: &Folder, act: &impl Fn() -> String) -> Outcome<Flags> {
    let said = folder.description().wanted.options.get("network").cloned().unwrap_or_default();
    if said.is_null() { Ok(Flags::default()) } else { serde_json::from_value(said).while_trying(act) }
}

/// Writes it down.
fn set(all: &Workloads, folder: &Folder, endpoints: Vec<Endpoint>, act: &impl Fn() -> String) -> Outcome<()> {
    let mut flags = flags(folder, act)?;
    flags.set_endpoints(endpoints);
    let options = serde_json::to_value(&flags).while_trying(act)?;
    let changed = all.change(folder, |wanted| {
        wanted.networks = flags.endpoints();
        wanted.publish.clone_from(&flags.publish);
        wanted.options["network"] = options;
    });
    changed.while_trying(act)
}
