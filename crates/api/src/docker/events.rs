//! `GET /events`: what happens to workloads, images, networks and volumes, whoever does it.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use workload::log::Reader;
use workload::{Event, EventKind, now_ms};

use super::filters::Filters;
use super::params::Params;
use super::{App, streams};
use crate::error::{ApiError, Result};
use crate::images;

/// How soon new events are seen.
const LOOK: Duration = Duration::from_millis(50);
/// Of those in the second row nothing happens here.
const KNOWN: [&str; 14] = [
    "container",
    "event",
    "image",
    "label",
    "type",
    "scope",
    "network",
    "volume", //
    "daemon",
    "plugin",
    "service",
    "node",
    "secret",
    "config",
];

/// Which events a client wants.
struct Wanted {
    filters: Filters,
    /// Seconds since 1970.
    since: Option<u64>,
    until: Option<u64>,
}

/// `GET /events`
pub(super) async fn events(State(app): App, params: Params) -> Result {
    let wanted = Wanted {
        filters: Filters::of(&params, &KNOWN)?,
        since: time(&params, "since")?,
        until: time(&params, "until")?,
    };
    let from_now = wanted.since.is_none();
    // Before the head is sent: what happens from then on is told.
    let reader = app
        .blocking(move |backend| {
            let mut reader = backend.workloads().events()?;
            while from_now && reader.next_entry()?.is_some() {}
            Ok(reader)
        })
        .await?;
    let (sender, receiver) = mpsc::channel(64);
    tokio::task::spawn_blocking(move || {
        if let Err(error) = send(reader, &wanted, &sender) {
            tracing::warn!("read events: {}", error.message);
        }
    });
    Ok((StatusCode::OK, [(header::CONTENT_TYPE, "application/json")], streams::body(receiver))
        .into_response())
}

/// Seconds since 1970; a fraction does not count.
fn time(params: &Params, name: &str) -> Result<Option<u64>> {
    let wrong = |text: &str| ApiError::bad(format!("{name}: {text:?} is no time in seconds since 1970"));
    let parse = |text: &str| text.split('.').next().unwrap_or_default().parse().map_err(|_| wrong(text));
    params.get(name).map(parse).transpose()
}

fn send(mut reader: Reader<Event>, wanted: &Wanted, to: &mpsc::Sender<Bytes>) -> Result<()> {
    loop {
        while let Some(event) = reader.next_entry()? {
            if wanted.fits(&event) && to.blocking_send(line(&event)).is_err() {
                return Ok(());
            }
        }
        if to.is_closed() || wanted.until.is_some_and(|until| now_ms() / 1000 >= until) {
            return Ok(());
        }
        std::thread::sleep(LOOK);
    }
}

impl Wanted {
    fn fits(&self, event: &Event) -> bool {
        let seconds = event.at_ms / 1000;
        let in_time = self.since.is_none_or(|since| seconds >= since)
            && self.until.is_none_or(|until| seconds <= until);
        let filters = &self.filters;
        let kind = event.action.split(':').next();
        let is = |kind, name: &str| event.kind == kind && (event.name == name || event.id.starts_with(name));
        in_time
            && filters.fits("container", |name| {
                is(EventKind::Container, name)
                    || event.more.get("container").is_some_and(|id| id.starts_with(name))
            })
            && filters.fits("event", |word| kind == Some(word) || event.action == word)
            && filters.fits("image", |name| is_of_image(event, name))
            && filters.fits("type", |word| word == event.kind.to_string())
            && filters.fits("scope", |word| word == "local")
            && filters.fits("network", |name| is(EventKind::Network, name))
            && filters.fits("volume", |name| is(EventKind::Volume, name))
            && KNOWN[8..].iter().all(|kind| !filters.has(kind))
            && filters.fits_labels(|key| event.labels.get(key).map(String::as_str))
    }
}

/// Whether it happened to the image of this name or id, or to a workload made from it; a name without a tag stands for all.
fn is_of_image(event: &Event, name: &str) -> bool {
    let is = |found: &str| {
        found == name || found.strip_prefix(name).is_some_and(|rest| rest.starts_with([':', '@']))
    };
    match event.kind {
        EventKind::Container => is(&event.image),
        EventKind::Image => is(&event.name) || is(&event.id) || images::is_id_of(&event.id, name),
        _ => false,
    }
}

fn line(event: &Event) -> Bytes {
    let texts = event.labels.iter().chain(&event.more);
    let mut attributes: serde_json::Map<String, Value> =
        texts.map(|(key, value)| (key.clone(), json!(value))).collect();
    // A volume's name is its id, and what is done to all of a kind has none.
    if event.kind != EventKind::Volume && !event.name.is_empty() {
        attributes.insert("name".to_owned(), json!(event.name));
    }
    let mut value = json!({
        "Type": event.kind.to_string(),
        "Action": event.action,
        "Actor": { "ID": event.id, "Attributes": attributes },
        "scope": "local",
        "time": event.at_ms / 1000,
        "timeNano": event.at_ms.saturating_mul(1_000_000),
    });
    if matches!(event.kind, EventKind::Container | EventKind::Image) && !event.id.is_empty() {
        (value["status"], value["id"]) = (json!(event.action), json!(event.id));
    }
    if event.kind == EventKind::Container && !event.id.is_empty() {
        value["Actor"]["Attributes"]["image"] = json!(event.image);
        value["from"] = json!(event.image);
    }
    Bytes::from(format!("{value}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(action: &str) -> Event {
        Event {
            at_ms: 5000,
            kind: EventKind::Container,
            action: action.to_owned(),
            id: "abc".to_owned(),
            name: "web".to_owned(),
            image: "debian".to_owned(),
            labels: [("a".to_owned(), "b".to_owned())].into(),
            more: [("exitCode".to_owned(), "3".to_owned())].into(),
        }
    }

    #[test]
    fn clients_hear_what_they_ask_for() {
        let fits = |filters: &str, since, until, action| {
            let filters = Filters::of(&Params::of(&[("filters", filters)]), &KNOWN).unwrap();
            Wanted { filters, since, until }.fits(&event(action))
        };
        assert!(fits("{}", None, None, "die") && fits("{}", Some(5), Some(5), "die"));
        assert!(!fits("{}", Some(6), None, "die") && !fits("{}", None, Some(4), "die"));
        assert!(fits(r#"{"event":["die"],"label":["a"]}"#, None, None, "die"));
        assert!(fits(r#"{"event":["health_status"]}"#, None, None, "health_status: healthy"));
        assert!(!fits(r#"{"container":["db"]}"#, None, None, "die"));
        assert!(!fits(r#"{"type":["image"]}"#, None, None, "die"));
    }

    #[test]
    fn kinds_have_filters_of_their_own() {
        let fits = |filters: &str, event: &Event| {
            let filters = Filters::of(&Params::of(&[("filters", filters)]), &KNOWN).unwrap();
            Wanted { filters, since: None, until: None }.fits(event)
        };
        let volume = Event { kind: EventKind::Volume, name: "data".to_owned(), ..event("mount") };
        assert!(fits(r#"{"volume":["data"],"type":["volume"]}"#, &volume));
        assert!(!fits(r#"{"volume":["other"]}"#, &volume) && !fits(r#"{"image":["data"]}"#, &volume));
        let id = "sha256:0123abcd".to_owned();
        let image = Event { kind: EventKind::Image, name: "debian:12".to_owned(), id, ..event("tag") };
        for name in ["debian", "debian:12", "0123ab", "sha256:0123abcd"] {
            assert!(fits(&json!({ "image": [name] }).to_string(), &image), "{name}");
        }
        assert!(!fits(r#"{"image":["deb"]}"#, &image) && !fits(r#"{"daemon":["x"]}"#, &image));
        assert!(fits(r#"{"image":["debian"]}"#, &event("die")));
    }

    #[test]
    fn labels_and_more_are_attributes() {
        let value: Value = serde_json::from_slice(&line(&event("die"))).unwrap();
        let attributes = &value["Actor"]["Attributes"];
        assert_eq!(
            (&attributes["a"], &attributes["exitCode"], &attributes["name"]),
            (&json!("b"), &json!("3"), &json!("web"))
        );
        assert_eq!(value["timeNano"], json!(5_000_000_000u64));
        assert_eq!((&value["Type"], &value["from"]), (&json!("container"), &json!("debian")));
        let network = Event { kind: EventKind::Network, ..event("connect") };
        let value: Value = serde_json::from_slice(&line(&network)).unwrap();
        assert_eq!((&value["Type"], &value["from"]), (&json!("network"), &Value::Null));
    }
}
