//! `GET /containers/NAME/json`: everything about one.

use std::collections::HashMap;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use bollard_stubs::models::{ContainerConfig, HostConfig, PortBinding, PortMap, RestartPolicyNameEnum};
use serde_json::{Value, json};
use workload::log::rfc3339;
use workload::{Folder, Restart, State as Condition, Status};

use super::containers::{self, ImageIds, network_of, runtime_of, status_word};
use super::params::Params;
use super::{App, create, endpoints, json, volumes};
use crate::backend::Backend;
use crate::error::Result;

/// What docker says for a time that has not come.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// `GET /containers/NAME/json`
pub(super) async fn inspect(State(app): App, Path(name): Path<String>, params: Params) -> Result {
    let folder = app.find(name).await?;
    let with_size = params.flag("size");
    let execs = app.execs.of(&folder.description().id);
    let value = app
        .blocking(move |backend| {
            let state = folder.state()?;
            let mut value = describe(backend, &folder, &state, execs);
            if with_size {
                let (written, all) = containers::sizes(backend, &folder);
                value["SizeRw"] = json!(written);
                value["SizeRootFs"] = json!(all);
            }
            Ok(value)
        })
        .await?;
    Ok(json(StatusCode::OK, &value))
}

fn describe(backend: &dyn Backend, folder: &Folder, state: &Condition, execs: Vec<String>) -> Value {
    let what = folder.description();
    let (path, args) = what.wanted.command.split_first().map_or(("", &[][..]), |(path, args)| (path, args));
    let (networks, first) = endpoints::settings(backend, folder);
    json!({
        "Id": what.id,
        "Created": rfc3339(what.created_ms),
        "Path": path,
        "Args": args,
        "State": condition(state),
        "Image": ImageIds::new(backend.store()).id(&what.wanted.image).unwrap_or_default(),
        "ResolvConfPath": "",
        "HostnamePath": "",
        "HostsPath": "",
        "LogPath": folder.log(),
        "Name": format!("/{}", what.name),
        "RestartCount": state.restarts,
        "Driver": "overlay2",
        "Platform": "linux",
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": "",
        "ExecIDs": if execs.is_empty() { Value::Null } else { json!(execs) },
        "HostConfig": host_config(folder),
        "GraphDriver": { "Name": "overlay2", "Data": {} },
        "Mounts": volumes::mounts(what, backend.workloads().volumes().ok().as_ref()),
        "Config": config(folder),
        "NetworkSettings": {
            "Ports": ports(&what.wanted.publish),
            "Networks": networks,
            "Bridge": "",
            "SandboxID": "",
            "SandboxKey": "",
            // Docker's words for the first network, from before there were several.
            "EndpointID": first["EndpointID"],
            "Gateway": first["Gateway"],
            "IPAddress": first["IPAddress"],
            "IPPrefixLen": first["IPPrefixLen"],
            "IPv6Gateway": first["IPv6Gateway"],
            "GlobalIPv6Address": first["GlobalIPv6Address"],
            "GlobalIPv6PrefixLen": first["GlobalIPv6PrefixLen"],
            "MacAddress": first["MacAddress"],
        },
    })
}

fn condition(state: &Condition) -> Value {
    let runs = matches!(state.status, Status::Starting | Status::Running | Status::Paused);
    let time = |ms: Option<u64>| ms.map_or_else(|| NEVER.to_owned(), rfc3339);
    let mut value = json!({
        "Status": status_word(state.status),
        "Running": runs || state.status == Status::Restarting,
        "Paused": state.status == Status::Paused,
        "Restarting": state.status == Status::Restarting,
        "OOMKilled": state.oom_killed,
        "Dead": state.status == Status::Lost,
        "Pid": state.worker_pid.filter(|_| runs).unwrap_or_default(),
        "ExitCode": state.exit_code.unwrap_or_default(),
        "Error": state.error.clone().unwrap_or_default(),
        "StartedAt": time(state.started_ms),
        "FinishedAt": time(state.finished_ms),
    });
    if let Some(health) = &state.health {
        let checked = time(health.checked_ms);
        let check = json!({
            "Start": checked, "End": checked, "ExitCode": health.exit_code.map_or(-1, i64::from),
            "Output": health.output,
        });
        value["Health"] = json!({
            "Status": health.status.to_string(),
            "FailingStreak": health.failing,
            "Log": if health.checked_ms.is_some() { vec![check] } else { Vec::new() },
        });
    }
    value
}

/// What the client said, or what can be told of what another face was told.
fn config(folder: &Folder) -> Value {
    let what = folder.description();
    let said = what.wanted.said.clone().and_then(|said| serde_json::from_value::<ContainerConfig>(said).ok());
    let said = said.unwrap_or_else(|| ContainerConfig {
        cmd: Some(what.wanted.command.clone()),
        ..ContainerConfig::default()
    });
    let filled = ContainerConfig {
        hostname: said.hostname.filter(|name| !name.is_empty()).or_else(|| Some(what.id[..12].to_owned())),
        image: Some(containers::image_said(folder).to_owned()),
        labels: Some(what.wanted.labels.clone().into_iter().collect()),
        tty: Some(what.wanted.tty),
        open_stdin: Some(what.wanted.interactive),
        ..said
    };
    let mut value = json!(filled);
    // Clients take these for there; the types leave out what is empty.
    for (name, empty) in [("Env", json!([])), ("Cmd", Value::Null), ("Entrypoint", Value::Null)] {
        if let Some(map) = value.as_object_mut() {
            map.entry(name).or_insert(empty);
        }
    }
    value
}

fn host_config(folder: &Folder) -> Value {
    let wanted = &folder.description().wanted;
    let said = wanted.said.as_ref().and_then(|said| said.get("HostConfig")).cloned();
    let said = said.and_then(|said| serde_json::from_value::<HostConfig>(said).ok()).unwrap_or_default();
    let said_word = said.restart_policy.as_ref().and_then(|policy| policy.name);
    let (name, most) = match wanted.restart {
        Restart::No => ("no", 0),
        // It is the same here: who stops it means it.
        Restart::Always if said_word == Some(RestartPolicyNameEnum::UNLESS_STOPPED) => ("unless-stopped", 0),
        Restart::OnFailure(most) => ("on-failure", most.unwrap_or_default()),
        Restart::Always => ("always", 0),
    };
    let log = said.log_config.as_ref().and_then(|log| log.config.clone()).unwrap_or_default();
    let mut value = json!(HostConfig {
        network_mode: Some(network_of(folder)),
        auto_remove: Some(wanted.remove),
        port_bindings: Some(ports(&wanted.publish)),
        runtime: Some(runtime_of(folder).to_owned()),
        ..said
    });
    value["RestartPolicy"] = json!({ "Name": name, "MaximumRetryCount": most });
    value["LogConfig"] = json!({ "Type": wanted.log.driver(), "Config": log });
    value
}

fn ports(publish: &[String]) -> PortMap {
    let binding = |(host_ip, host_port): (String, String)| PortBinding {
        host_ip: Some(host_ip),
        host_port: Some(host_port),
    };
    let bindings: HashMap<_, _> = create::bindings(publish);
    bindings.into_iter().map(|(port, hosts)| (port, Some(hosts.into_iter().map(binding).collect()))).collect()
}
