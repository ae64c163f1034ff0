//! Networks, as far as there are any.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde_json::{Value, json};

use super::containers::network_of;
use super::filters::Filters;
use super::params::Params;
use super::{App, Shared, json};
use crate::error::{ApiError, Result};

/// The networks that are always there, and what makes them.
const NETWORKS: [(&str, &str); 3] = [("bridge", "user"), ("none", "null"), ("user", "user")];

fn id(name: &str) -> String {
    image::Digest::of(format!("network {name}").as_bytes()).hex()
}

fn row(name: &str, driver: &str) -> Value {
    json!({
        "Name": name,
        "Id": id(name),
        "Created": "0001-01-01T00:00:00Z",
        "Scope": "local",
        "Driver": driver,
        "EnableIPv4": true,
        "EnableIPv6": false,
        "IPAM": { "Driver": "default", "Options": null, "Config": [] },
        "Internal": name == "none",
        "Attachable": false,
        "Ingress": false,
        "ConfigFrom": { "Network": "" },
        "ConfigOnly": false,
        "Containers": {},
        "Options": {},
        "Labels": {},
    })
}

/// `GET /networks`
pub(super) async fn list(State(_app): App, params: Params) -> Result {
    let filters = Filters::of(&params, &["dangling", "driver", "id", "label", "name", "scope", "type"])?;
    let fits = |name: &str, driver: &str| {
        filters.fits("name", |wanted| name.contains(wanted))
            && filters.fits("id", |wanted| id(name).starts_with(wanted))
            && filters.fits("driver", |wanted| wanted == driver)
            && filters.fits("scope", |wanted| wanted == "local")
            && filters.fits("type", |wanted| wanted == "builtin")
            && !filters.has("label")
    };
    let rows: Vec<Value> = NETWORKS
        .iter()
        .filter(|(name, driver)| fits(name, driver))
        .map(|(name, driver)| row(name, driver))
        .collect();
    Ok(json(StatusCode::OK, &rows))
}

/// `GET /networks/NAME`
pub(super) async fn inspect(State(app): App, Path(name): Path<String>) -> Result {
    let found =
        NETWORKS.iter().find(|(own, _)| *own == name || (name.len() >= 4 && id(own).starts_with(&name)));
    let (own, driver) = found.ok_or_else(|| ApiError::not_found(format!("network {name} not found")))?;
    let mut value = row(own, driver);
    value["Containers"] = connected(&app, own).await?;
    Ok(json(StatusCode::OK, &value))
}

async fn connected(app: &std::sync::Arc<Shared>, network: &'static str) -> Result<Value> {
    app.blocking(move |backend| {
        let mut map = serde_json::Map::new();
        for folder in backend.workloads().list()? {
            let what = folder.description();
            if network_of(&folder) == network && folder.state().is_ok_and(|state| state.status.is_active()) {
                map.insert(what.id.clone(), json!({ "Name": what.name, "EndpointID": "", "MacAddress": "" }));
            }
        }
        Ok(Value::Object(map))
    })
    .await
}
