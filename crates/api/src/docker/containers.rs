//! `GET /containers/json`: the list.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use image::{Reference, Store};
use serde::Serialize;
use serde_json::{Map, Value, json};
use workload::{Description, Folder, Isolation, State as Condition, Status, in_parallel, now_ms};

use super::filters::Filters;
use super::params::Params;
use super::{App, create, endpoints};
use crate::backend::Backend;
use crate::error::{ApiError, Result};
use crate::images::is_id_of;

/// What a list can be asked for.
const KNOWN: [&str; 15] = [
    "ancestor", "before", "exited", "expose", "health", "id", "is-task", "label", "label!", "name",
    "network", "publish", "since", "status", "volume",
];

/// `GET /containers/json`
pub(super) async fn list(State(app): App, params: Params) -> Result {
    let filters = Filters::of(&params, &KNOWN)?;
    let limit: Option<i64> = params.number("limit")?;
    let all = params.flag("all") || limit.is_some_and(|limit| limit > 0) || filters.has("status");
    let with_size = params.flag("size");
    let rows = app.blocking(move |backend| rows(backend, &filters, all, limit, with_size)).await?;
    let head = [(header::CONTENT_TYPE, "application/json")];
    Ok((head, format!("[{}]\n", rows.join(","))).into_response())
}

/// Texts in JSON: made by several threads, and nothing else between the workloads and the answer.
fn rows(
    backend: &dyn Backend,
    filters: &Filters,
    all: bool,
    limit: Option<i64>,
    with_size: bool,
) -> Result<Vec<String>> {
    let folders = backend.workloads().list()?;
    let made = |name: &str| {
        let other = folders.iter().find(|folder| is_named(folder, name));
        let made = other.map(|folder| folder.description().created_ms);
        made.ok_or_else(|| ApiError::not_found(format!("No such container: {name}")))
    };
    let before = filters.values("before").map(made).collect::<Result<Vec<u64>>>()?;
    let since = filters.values("since").map(made).collect::<Result<Vec<u64>>>()?;
    let images = ImageIds::new(backend.store());
    let networks = backend.workloads().networks()?;
    // Clients name them by their ids too.
    let name = |wanted: &str| {
        networks.find(wanted).map_or_else(|_| wanted.to_owned(), |network| network.info().name.clone())
    };
    let networks: Vec<String> = filters.values("network").map(name).collect();
    let is_on = |folder: &Folder| {
        networks.is_empty() || endpoints::names(folder).iter().any(|name| networks.contains(name))
    };
    let row_of = |folder: &&Folder| {
        // One that is being removed just now is gone.
        let state = folder.state().ok()?;
        let created = folder.description().created_ms;
        let in_time = before.iter().all(|time| created < *time) && since.iter().all(|time| created > *time);
        let is_wanted = in_time && (all || state.status.is_active()) && is_on(folder);
        if !is_wanted || !fits(filters, folder, &state, &images) {
            return None;
        }
        let sizes = with_size.then(|| sizes(backend, folder));
        serde_json::to_string(&Row::of(folder, &state, &images, sizes)).ok()
    };
    let newest_first: Vec<&Folder> = folders.iter().rev().collect();
    Ok(match limit.and_then(|limit| usize::try_from(limit).ok()).filter(|limit| *limit > 0) {
        Some(limit) => newest_first.iter().filter_map(row_of).take(limit).collect(),
        None => in_parallel(&newest_first, row_of),
    })
}

/// Whether it has this name, this id, or an id that begins so.
fn is_named(folder: &Folder, name: &str) -> bool {
    let description = folder.description();
    let name = name.trim_start_matches('/');
    description.name == name || (!name.is_empty() && description.id.starts_with(name))
}

fn fits(filters: &Filters, folder: &Folder, state: &Condition, images: &ImageIds<'_>) -> bool {
    let what = folder.description();
    let health = health_word(state);
    let code = state.exit_code.filter(|_| state.status == Status::Exited);
    filters.fits("id", |id| what.id.starts_with(id))
        && filters.fits_name(&what.name)
        && filters.fits("publish", |port| has_port(&what.wanted.publish, port))
        && filters.fits("expose", |port| exposes(what, port))
        && filters.fits("volume", |wanted| sees(what, wanted))
        && filters.fits_labels(|key| what.wanted.labels.get(key).map(String::as_str))
        && filters.fits("status", |word| word == status_word(state.status))
        && filters.fits("exited", |wanted| code.is_some_and(|code| wanted == code.to_string()))
        && filters.fits("health", |word| word == health)
        && filters.fits("ancestor", |name| {
            what.wanted.image == name
                || normal(&what.wanted.image) == normal(name)
                || images.id(&what.wanted.image).is_some_and(|id| is_id_of(&id, name))
        })
}

/// Whether this port is among those that lead to a workload: `PORT[-PORT][/PROTOCOL]`.
fn has_port(publish: &[String], wanted: &str) -> bool {
    create::bindings(publish).keys().any(|port| is_port(port, wanted))
}

/// Whether a client said that a workload has this port.
fn exposes(what: &Description, wanted: &str) -> bool {
    let said = what.wanted.said.as_ref().and_then(|said| said.get("ExposedPorts")).and_then(Value::as_object);
    said.is_some_and(|ports| ports.keys().any(|port| is_port(port, wanted)))
        || has_port(&what.wanted.publish, wanted)
}

fn is_port(port: &str, wanted: &str) -> bool {
    let parts = |text: &str| {
        let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        (number.to_owned(), protocol.to_owned())
    };
    let ((own, own_protocol), (wanted, protocol)) = (parts(port), parts(wanted));
    let (first, last) = wanted.split_once('-').unwrap_or((&wanted, &wanted));
    let range = first.parse::<u16>().ok().zip(last.parse::<u16>().ok());
    let is_in = |(first, last): (u16, u16)| own.parse().is_ok_and(|own| (first..=last).contains(&own));
    own_protocol == protocol && range.is_some_and(is_in)
}

/// Whether a workload has this volume, or something at this place.
fn sees(what: &Description, wanted: &str) -> bool {
    what.wanted.mounts.iter().any(|mount| mount.volume() == Some(wanted) || mount.target == wanted)
}

/// A name with its tag; anything else as it is.
fn normal(name: &str) -> String {
    name.parse::<Reference>().map_or_else(|_| name.to_owned(), |name| name.full())
}

/// What docker calls it.
pub(super) fn status_word(status: Status) -> &'static str {
    match status {
        Status::Created => "created",
        Status::Starting | Status::Running => "running",
        Status::Paused => "paused",
        Status::Restarting => "restarting",
        Status::Exited => "exited",
        Status::Lost => "dead",
    }
}

/// What docker calls the health of it.
pub(super) fn health_word(state: &Condition) -> String {
    let runs = matches!(state.status, Status::Running | Status::Paused);
    state
        .health
        .as_ref()
        .filter(|_| runs)
        .map_or_else(|| "none".to_owned(), |health| health.status.to_string())
}

/// The name of the network it is on.
pub(super) fn network_of(folder: &Folder) -> String {
    let said = folder.description().wanted.said.as_ref();
    let mode = said.and_then(|said| said.pointer("/HostConfig/NetworkMode")).and_then(Value::as_str);
    match mode {
        // Another face made it.
        None if !folder.description().wanted.networks.is_empty() => {
            folder.description().wanted.networks[0].network.clone()
        }
        Some("" | "default") | None => "bridge".to_owned(),
        Some(mode) => mode.to_owned(),
    }
}

/// Ids of images by name, looked up once for a list.
pub(super) struct ImageIds<'a> {
    store: &'a Store,
    known: Mutex<HashMap<String, Option<String>>>,
}

impl<'a> ImageIds<'a> {
    pub(super) fn new(store: &'a Store) -> ImageIds<'a> {
        ImageIds { store, known: Mutex::default() }
    }

    /// The id of the image that has this name now; nothing if none has.
    pub(super) fn id(&self, name: &str) -> Option<String> {
        let find = || Some(crate::images::id_of(&self.store.image(&name.parse().ok()?).ok()?));
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.entry(name.to_owned()).or_insert_with(find).clone()
    }
}

/// What a list says of a workload.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row<'a> {
    id: &'a str,
    names: [String; 1],
    image: &'a str,
    #[serde(rename = "ImageID")]
    image_id: String,
    command: String,
    created: u64,
    ports: Vec<Value>,
    labels: &'a BTreeMap<String, String>,
    state: &'a str,
    status: String,
    host_config: RowHost,
    network_settings: RowNetworks,
    mounts: Vec<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size_rw: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size_root_fs: Option<u64>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct RowHost {
    network_mode: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct RowNetworks {
    networks: Map<String, Value>,
}

impl<'a> Row<'a> {
    fn of(
        folder: &'a Folder,
        state: &Condition,
        images: &ImageIds<'_>,
        sizes: Option<(u64, u64)>,
    ) -> Row<'a> {
        let what = folder.description();
        let networks = endpoints::names(folder).into_iter().map(|name| (name, json!({})));
        Row {
            id: &what.id,
            names: [format!("/{}", what.name)],
            image: image_said(folder),
            image_id: images.id(&what.wanted.image).unwrap_or_default(),
            command: what.wanted.command.join(" "),
            created: what.created_ms / 1000,
            ports: ports(folder),
            labels: &what.wanted.labels,
            state: status_word(state.status),
            status: status_line(state),
            host_config: RowHost { network_mode: network_of(folder) },
            network_settings: RowNetworks { networks: networks.collect() },
            mounts: super::volumes::mounts(what, None),
            size_rw: sizes.map(|(written, _)| written),
            size_root_fs: sizes.map(|(_, all)| all),
        }
    }
}

/// The image as whoever made the workload called it.
pub(super) fn image_said(folder: &Folder) -> &str {
    let wanted = &folder.description().wanted;
    let said = wanted.said.as_ref().and_then(|said| said["Image"].as_str());
    said.filter(|image| !image.is_empty()).unwrap_or(&wanted.image)
}

/// Bytes that it has written to its image's root, and those of all of that root.
pub(super) fn sizes(backend: &dyn Backend, folder: &Folder) -> (u64, u64) {
    let name = folder.description().wanted.image.parse::<Reference>().ok();
    let image = name.and_then(|name| backend.store().image(&name).ok());
    let written = backend.written(folder).unwrap_or_default();
    (written, written + image.map_or(0, |image| image.size_bytes()))
}

/// The runtime that a client would have to name.
pub(super) fn runtime_of(folder: &Folder) -> &'static str {
    match folder.description().wanted.isolation {
        Isolation::Vm => create::VM,
        Isolation::Container => create::CONTAINER,
    }
}

/// Published ports, as rows of the list have them.
fn ports(folder: &Folder) -> Vec<Value> {
    let number = |text: &str| text.parse::<u16>().unwrap_or_default();
    let mut rows = Vec::new();
    for (port, hosts) in create::bindings(&folder.description().wanted.publish) {
        let Some((private, protocol)) = port.split_once('/') else { continue };
        rows.extend(hosts.iter().map(|(ip, public)| {
            json!({ "IP": ip, "PrivatePort": number(private), "PublicPort": number(public), "Type": protocol })
        }));
    }
    rows
}

/// `Up 3 minutes (healthy)`, `Exited (0) 2 hours ago`
pub(super) fn status_line(state: &Condition) -> String {
    let since = |from: Option<u64>| ago(now_ms().saturating_sub(from.unwrap_or_default()) / 1000);
    match state.status {
        Status::Created => "Created".to_owned(),
        Status::Starting => "Up Less than a second".to_owned(),
        Status::Running => match health_word(state).as_str() {
            "none" => format!("Up {}", since(state.started_ms)),
            "starting" => format!("Up {} (health: starting)", since(state.started_ms)),
            health => format!("Up {} ({health})", since(state.started_ms)),
        },
        Status::Paused => format!("Up {} (Paused)", since(state.started_ms)),
        Status::Restarting => {
            format!("Restarting ({}) {} ago", state.exit_code.unwrap_or_default(), since(state.finished_ms))
        }
        Status::Exited => {
            format!("Exited ({}) {} ago", state.exit_code.unwrap_or_default(), since(state.finished_ms))
        }
        Status::Lost => "Dead".to_owned(),
    }
}

/// A time in docker's words.
fn ago(seconds: u64) -> String {
    let (minutes, hours) = (seconds / 60, (seconds + 1800) / 3600);
    match seconds {
        0 => "Less than a second".to_owned(),
        1 => "1 second".to_owned(),
        2..60 => format!("{seconds} seconds"),
        60..120 => "About a minute".to_owned(),
        120..3600 => format!("{minutes} minutes"),
        3600..5400 => "About an hour".to_owned(),
        _ => match hours {
            ..48 => format!("{hours} hours"),
            48..336 => format!("{} days", hours / 24),
            336..1440 => format!("{} weeks", hours / 24 / 7),
            1440..17_520 => format!("{} months", hours / 24 / 30),
            _ => format!("{} years", hours / 24 / 365),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_as_docker_tells_them() {
        for (seconds, text) in [
            (0, "Less than a second"),
            (59, "59 seconds"),
            (61, "About a minute"),
            (3599, "59 minutes"),
            (4000, "About an hour"),
            (7200, "2 hours"),
            (3 * 86_400, "3 days"),
            (21 * 86_400, "3 weeks"),
            (100 * 86_400, "3 months"),
            (800 * 86_400, "2 years"),
        ] {
            assert_eq!(ago(seconds), text, "{seconds}");
        }
    }

    #[test]
    fn ports_are_numbers_and_ranges_of_a_protocol() {
        assert!(is_port("80/tcp", "80") && is_port("80/tcp", "79-81/tcp") && is_port("53/udp", "53/udp"));
        assert!(!is_port("53/udp", "53") && !is_port("80/tcp", "81-90") && !is_port("80/tcp", "x"));
    }

    #[test]
    fn ids_are_known_by_their_beginnings() {
        let id = "sha256:0123abcd";
        assert!(is_id_of(id, "0123") && is_id_of(id, "sha256:0123ab") && !is_id_of(id, "012"));
        assert!(!is_id_of(id, "debian") && !is_id_of(id, "0124"));
    }
}
