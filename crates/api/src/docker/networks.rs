//! Networks: those with a name, which clients make, and those that are always there.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use bollard_stubs::models::{NetworkConnectRequest, NetworkCreateRequest, NetworkDisconnectRequest};
use serde_json::{Map, Value, json};
use workload::EventKind;
use workload::log::rfc3339;
use workload::networks::{LeaseInfo, NetworkInfo, Networks, NewNetwork, mac_text};

use super::containers::network_of;
use super::filters::Filters;
use super::params::Params;
use super::{App, NOTHING, endpoints, ipam, json};
use crate::backend::Backend;
use crate::error::{ApiError, Result};

/// The networks that are always there, and what makes them.
const NETWORKS: [(&str, &str); 4] =
    [("bridge", "user"), ("host", "host"), ("none", "null"), ("user", "user")];
/// What makes those with a name.
const DRIVER: &str = "bridge";
/// Options that mean something here.
const MTU: &str = "com.docker.network.driver.mtu";
const MASQUERADE: &str = "com.docker.network.bridge.enable_ip_masquerade";
const BRIDGE_NAME: &str = "com.docker.network.bridge.name";
/// Options that clients may send, with the only value that they can have here.
const FIXED: [(&str, &str); 2] = [
    ("com.docker.network.bridge.enable_icc", "true"),
    ("com.docker.network.bridge.host_binding_ipv4", "0.0.0.0"),
];

fn id(name: &str) -> String {
    image::Digest::of(format!("network {name}").as_bytes()).hex()
}

/// Whether it is one of those that are always there, or a word that can be none's name.
fn is_predefined(name: &str) -> bool {
    NETWORKS.iter().any(|(own, _)| *own == name) || matches!(name, "default" | "container")
}

fn predefined(name: &str, driver: &str) -> Value {
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

fn row(info: &NetworkInfo) -> Value {
    let mut options = info.options.clone();
    // Of one that another face made, what differs from what is usual.
    if info.mtu != 1500 {
        options.insert(MTU.to_owned(), info.mtu.to_string());
    }
    if info.routed {
        options.insert(MASQUERADE.to_owned(), "false".to_owned());
    }
    if let Some(bridge) = &info.bridge {
        options.insert(BRIDGE_NAME.to_owned(), bridge.clone());
    }
    json!({
        "Name": info.name,
        "Id": info.id,
        "Created": rfc3339(info.created_ms),
        "Scope": "local",
        "Driver": DRIVER,
        "EnableIPv4": true,
        "EnableIPv6": info.six.is_some(),
        "IPAM": { "Driver": "default", "Options": null, "Config": ipam::rows(info) },
        "Internal": info.internal,
        "Attachable": false,
        "Ingress": false,
        "ConfigFrom": { "Network": "" },
        "ConfigOnly": false,
        "Containers": {},
        "Options": options,
        "Labels": info.labels,
    })
}

/// `GET /networks`
pub(super) async fn list(State(app): App, params: Params) -> Result {
    let filters = Filters::of(&params, &["dangling", "driver", "id", "label", "name", "scope", "type"])?;
    let dangling = filters.values("dangling").map(truth).collect::<Result<Vec<bool>>>()?;
    if let Some(other) = filters.values("type").find(|kind| !matches!(*kind, "builtin" | "custom")) {
        return Err(ApiError::bad(format!("invalid filter: 'type'='{other}'")));
    }
    let rows = app
        .blocking(move |backend| {
            let fits = |row: &Value, kind: &str| {
                let text = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
                filters.fits_name(&text("Name"))
                    && filters.fits("id", |wanted| text("Id").starts_with(wanted))
                    && filters.fits("driver", |wanted| wanted == text("Driver"))
                    && filters.fits("scope", |wanted| wanted == "local")
                    && filters.fits("type", |wanted| wanted == kind)
                    && filters.fits_labels(|key| row["Labels"].get(key).and_then(Value::as_str))
            };
            let builtin = NETWORKS.iter().map(|(name, driver)| predefined(name, driver));
            // Docker takes none of those for forgotten.
            let mut rows: Vec<Value> =
                builtin.filter(|row| !dangling.contains(&true) && fits(row, "builtin")).collect();
            let networks = backend.workloads().networks()?;
            for network in networks.list()? {
                let row = row(network.info());
                let is_free = dangling.is_empty() || backend.connected(&network)?.is_empty();
                if dangling.iter().all(|wanted| *wanted == is_free) && fits(&row, "custom") {
                    rows.push(row);
                }
            }
            Ok(rows)
        })
        .await?;
    Ok(json(StatusCode::OK, &rows))
}

fn truth(text: &str) -> Result<bool> {
    match text {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(ApiError::bad(format!("invalid filter 'dangling={text}'"))),
    }
}

/// `GET /networks/NAME`
pub(super) async fn inspect(State(app): App, Path(name): Path<String>) -> Result {
    let value = app.blocking(move |backend| described(backend, &name)).await?;
    Ok(json(StatusCode::OK, &value))
}

fn described(backend: &dyn Backend, name: &str) -> Result<Value> {
    let named = |(own, _): &&(&str, &str)| *own == name || (name.len() >= 4 && id(own).starts_with(name));
    if let Some((own, driver)) = NETWORKS.iter().find(named) {
        let mut value = predefined(own, driver);
        value["Containers"] = on_predefined(backend, own)?;
        return Ok(value);
    }
    let networks = backend.workloads().networks()?;
    let network = find(&networks, name)?;
    let leases = backend.connected(&network)?;
    let mut value = row(network.info());
    value["Containers"] = leases.iter().map(|lease| member(network.info(), lease)).collect();
    Ok(value)
}

/// The network of this name or id, in docker's words if there is none.
pub(super) fn find(networks: &Networks, name: &str) -> Result<workload::networks::Network> {
    networks.find(name).map_err(|error| match error {
        workload::Error::Ambiguous { name } => {
            ApiError::bad(format!("network {name} is ambiguous (several networks found)"))
        }
        error => error.into(),
    })
}

fn member(info: &NetworkInfo, lease: &LeaseInfo) -> (String, Value) {
    let six = info.six.zip(lease.address6);
    let value = json!({
        "Name": lease.workload,
        "EndpointID": endpoints::id(&info.id, &lease.id),
        "MacAddress": mac_text(lease.mac),
        "IPv4Address": format!("{}/{}", lease.address, info.subnet.prefix()),
        "IPv6Address": six.map_or_else(String::new, |((subnet, _), own)| format!("{own}/{}", subnet.prefix())),
    });
    // Of one in the foreground nothing but its name is known.
    (if lease.id.is_empty() { format!("ep-{}", lease.workload) } else { lease.id.clone() }, value)
}

fn on_predefined(backend: &dyn Backend, network: &str) -> Result<Value> {
    let mut map = Map::new();
    for folder in backend.workloads().list()? {
        let what = folder.description();
        if network_of(&folder) == network && folder.state().is_ok_and(|state| state.status.is_active()) {
            map.insert(what.id.clone(), json!({ "Name": what.name, "EndpointID": "", "MacAddress": "" }));
        }
    }
    Ok(Value::Object(map))
}

/// `POST /networks/create`
pub(super) async fn create(
    State(app): App,
    body: std::result::Result<Json<NetworkCreateRequest>, JsonRejection>,
) -> Result {
    let Json(body) = body?;
    let new = wanted(body)?;
    let made = app.blocking(move |backend| Ok(backend.make_network(new)?)).await?;
    Ok(json(StatusCode::CREATED, &json!({ "Id": made.info().id, "Warning": "" })))
}

/// What a client wants, in our words. What cannot be done is not silently left out.
fn wanted(body: NetworkCreateRequest) -> Result<NewNetwork> {
    if is_predefined(&body.name) {
        let text = format!("operation is not permitted on predefined {} network", body.name);
        return Err(ApiError::new(StatusCode::FORBIDDEN, text));
    }
    match body.driver.as_deref() {
        None | Some("" | "default" | DRIVER) => {}
        Some(other) => {
            let text = format!("could not find plugin {other} in v1 plugin registry: plugin not found");
            return Err(ApiError::not_found(text));
        }
    }
    let refused = [
        ("Scope", body.scope.is_some_and(|scope| !matches!(&*scope, "" | "local"))),
        ("Ingress", body.ingress == Some(true)),
        ("ConfigOnly", body.config_only == Some(true)),
        (
            "ConfigFrom",
            body.config_from.is_some_and(|from| from.network.is_some_and(|name| !name.is_empty())),
        ),
        ("EnableIPv4=false", body.enable_ipv4 == Some(false)),
    ];
    if let Some((name, _)) = refused.iter().find(|(_, is_set)| *is_set) {
        return Err(ApiError::not_offered(format!("networks: {name}: not there yet")));
    }
    let mut new = NewNetwork {
        name: body.name,
        internal: body.internal.unwrap_or_default(),
        ipv6: body.enable_ipv6.unwrap_or_default(),
        labels: body.labels.unwrap_or_default().into_iter().collect(),
        ..NewNetwork::default()
    };
    options(&mut new, body.options.unwrap_or_default().into_iter().collect())?;
    ipam::wanted(&mut new, body.ipam.unwrap_or_default())?;
    Ok(new)
}

fn options(new: &mut NewNetwork, said: BTreeMap<String, String>) -> Result<()> {
    for (key, value) in &said {
        match key.as_str() {
            MTU => {
                let mtu =
                    value.parse().map_err(|_| ApiError::bad(format!("invalid {MTU} value {value:?}")))?;
                new.mtu = Some(mtu);
            }
            MASQUERADE => match value.as_str() {
                "true" | "1" => {}
                "false" | "0" => new.routed = true,
                _ => return Err(ApiError::bad(format!("invalid {MASQUERADE} value {value:?}"))),
            },
            BRIDGE_NAME => new.bridge = Some(value.clone()).filter(|name| !name.is_empty()),
            key if FIXED.iter().any(|(own, only)| *own == key && only == value) => {}
            key => return Err(ApiError::not_offered(format!("network option {key}={value}: not there yet"))),
        }
    }
    new.options = said;
    Ok(())
}

/// `DELETE /networks/NAME`
pub(super) async fn remove(State(app): App, Path(name): Path<String>) -> Result {
    app.blocking(move |backend| {
        if is_predefined(&name) {
            let text = format!("{name} is a pre-defined network and cannot be removed");
            return Err(ApiError::new(StatusCode::FORBIDDEN, text));
        }
        Ok(backend.remove_network(&name)?)
    })
    .await?;
    Ok(NOTHING.into_response())
}

/// `POST /networks/prune`
pub(super) async fn prune(State(app): App, params: Params) -> Result {
    let filters = Filters::of(&params, &["label", "label!", "until"])?;
    let names = app
        .blocking(move |backend| {
            let networks = backend.workloads().networks()?;
            let mut names = Vec::new();
            let fits_until = filters.until()?;
            for network in networks.list()? {
                let info = network.info();
                let fits = filters.fits_labels(|key| info.labels.get(key).map(String::as_str))
                    && fits_until(info.created_ms);
                // One that somebody uses stays; so does one that somebody else removes at the same time.
                if fits && backend.remove_network(&info.id).is_ok() {
                    names.push(info.name.clone());
                }
            }
            backend.workloads().tell_pruned(EventKind::Network, 0);
            Ok(names)
        })
        .await?;
    Ok(json(StatusCode::OK, &json!({ "NetworksDeleted": names })))
}

/// `POST /networks/NAME/connect`
pub(super) async fn connect(
    State(app): App,
    Path(name): Path<String>,
    body: std::result::Result<Json<NetworkConnectRequest>, JsonRejection>,
) -> Result {
    let Json(body) = body?;
    let folder = app.find(body.container).await?;
    app.blocking(move |backend| {
        refuse_predefined(&name)?;
        let network = find(&backend.workloads().networks()?, &name)?.info().name.clone();
        let what = folder.description();
        let mode = network_of(&folder);
        if mode == "host" || mode.starts_with("container:") {
            return Err(ApiError::bad(endpoints::SHARED));
        }
        if what.wanted.networks.iter().any(|own| own.network == network) {
            let text = format!("endpoint with name {} already exists in network {network}", what.name);
            return Err(ApiError::new(StatusCode::FORBIDDEN, text));
        }
        let endpoint = endpoints::parse(&network, body.endpoint_config.unwrap_or_default())?;
        Ok(backend.connect(&folder, endpoint)?)
    })
    .await?;
    Ok(StatusCode::OK.into_response())
}

/// `POST /networks/NAME/disconnect`
pub(super) async fn disconnect(
    State(app): App,
    Path(name): Path<String>,
    body: std::result::Result<Json<NetworkDisconnectRequest>, JsonRejection>,
) -> Result {
    let Json(body) = body?;
    let folder = app.find(body.container).await?;
    app.blocking(move |backend| {
        refuse_predefined(&name)?;
        let what = folder.description();
        // With force also from a network that is no more.
        let network = match find(&backend.workloads().networks()?, &name) {
            Ok(network) => network.info().name.clone(),
            Err(_) if body.force == Some(true) => name,
            Err(error) => return Err(error),
        };
        if what.wanted.networks.iter().all(|own| own.network != network) {
            let text = format!("container {} is not connected to the network {network}", what.id);
            return Err(ApiError::failed(text));
        }
        Ok(backend.disconnect(&folder, &network)?)
    })
    .await?;
    Ok(StatusCode::OK.into_response())
}

fn refuse_predefined(name: &str) -> Result<()> {
    if is_predefined(name) {
        let text = format!("network {name}: a container is on it from its start to its end, or never");
        return Err(ApiError::not_offered(text));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(body: Value) -> Result<NewNetwork> {
        wanted(serde_json::from_value(body).unwrap())
    }

    #[test]
    fn what_docker_sends_for_a_network_is_understood() {
        let new = of(json!({
            "Name": "team", "Driver": "bridge", "Scope": "", "EnableIPv4": true, "EnableIPv6": true, "Internal": true,
            "Attachable": false, "Ingress": false, "ConfigOnly": false, "ConfigFrom": null, "Labels": {"a": "b"},
            "IPAM": {"Driver": "default", "Options": {}, "Config": [
                {"Subnet": "10.9.0.0/24", "Gateway": "10.9.0.9", "IPRange": "10.9.0.64/26",
                 "AuxiliaryAddresses": {"router": "10.9.0.254"}}, {"Subnet": "fd00:9::/64"}]},
            "Options": {MTU: "1400", MASQUERADE: "false", "com.docker.network.bridge.enable_icc": "true", BRIDGE_NAME: "br7"},
        }))
        .unwrap();
        assert_eq!((new.mtu, new.routed, new.internal, new.ipv6), (Some(1400), true, true, true));
        assert_eq!(new.subnet.unwrap().to_string(), "10.9.0.0/24");
        assert_eq!(new.gateway.unwrap().to_string(), "10.9.0.9");
        assert_eq!((new.subnet6.unwrap().to_string(), new.gateway6), ("fd00:9::/64".to_owned(), None));
        assert_eq!((new.labels["a"].as_str(), new.options.len()), ("b", 4));
        assert_eq!(new.bridge.as_deref(), Some("br7"));
        assert_eq!(new.pool.range.unwrap().to_string(), "10.9.0.64/26");
        assert_eq!(new.pool.reserved["router"].to_string(), "10.9.0.254");
        assert_eq!(
            of(json!({"Name": "x"})).unwrap(),
            NewNetwork { name: "x".to_owned(), ..NewNetwork::default() }
        );
    }

    #[test]
    fn what_cannot_be_done_is_refused_with_dockers_codes() {
        let config = |config: Value| json!({"Name": "x", "IPAM": {"Config": [config]}});
        for (body, status) in [
            (json!({"Name": "bridge"}), 403),
            (json!({"Name": "host"}), 403),
            (json!({"Name": "x", "Driver": "overlay"}), 404),
            (json!({"Name": "x", "IPAM": {"Driver": "dhcp"}}), 404),
            (json!({"Name": "x", "Scope": "swarm"}), 501),
            (json!({"Name": "x", "EnableIPv4": false}), 501),
            (json!({"Name": "x", "Options": {"com.docker.network.container_iface_prefix": "x"}}), 501),
            (json!({"Name": "x", "Options": {MTU: "many"}}), 400),
            (config(json!({"Subnet": "10.9.0.0"})), 400),
            (config(json!({"Subnet": "10.9.0.1/24"})), 400),
            (config(json!({"Gateway": "10.9.0.1"})), 400),
            (config(json!({"Subnet": "10.9.0.0/24", "Gateway": "fd00::1"})), 400),
            (config(json!({"Subnet": "10.9.0.0/24", "Gateway": "x"})), 400),
            (config(json!({"Subnet": "10.9.0.0/24", "IPRange": "10.9.0.x/28"})), 400),
            (config(json!({"IPRange": "10.9.0.0/28"})), 400),
            (config(json!({"Subnet": "10.9.0.0/24", "AuxiliaryAddresses": {"a": "10.9.0"}})), 400),
        ] {
            assert_eq!(of(body.clone()).unwrap_err().status.as_u16(), status, "{body}");
        }
    }
}
