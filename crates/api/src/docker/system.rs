//! What the server is: `_ping`, `version`, `info`, `auth`, `system/df`.

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use bollard_stubs::models::AuthConfig;
use serde_json::json;
use workload::Status;
use workload::log::rfc3339;

use super::params::Params;
use super::{API_VERSION, App, MIN_API_VERSION, create, json, pull, stats};
use crate::error::{ApiError, Result};

/// The version of this program.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// `GET /_ping`
pub(super) async fn ping() -> Response {
    let mut response = "OK".into_response();
    let head = response.headers_mut();
    for (name, value) in [
        ("api-version", API_VERSION),
        ("builder-version", "1"),
        ("docker-experimental", "false"),
        ("ostype", "linux"),
        ("server", concat!("Strata/", env!("CARGO_PKG_VERSION"), " (linux)")),
        ("cache-control", "no-cache, no-store, must-revalidate"),
        ("pragma", "no-cache"),
    ] {
        head.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// `GET /version`
pub(super) async fn version() -> Response {
    let system = rustix::system::uname();
    let kernel = system.release().to_string_lossy();
    json(
        StatusCode::OK,
        &json!({
            "Platform": { "Name": "Strata" },
            "Components": [{
                "Name": "Engine",
                "Version": VERSION,
                "Details": {
                    "ApiVersion": API_VERSION, "MinAPIVersion": MIN_API_VERSION, "Os": "linux", "Arch": "amd64",
                    "KernelVersion": kernel, "Experimental": "false",
                },
            }],
            "Version": VERSION,
            "ApiVersion": API_VERSION,
            "MinAPIVersion": MIN_API_VERSION,
            "GitCommit": "",
            "GoVersion": "",
            "Os": "linux",
            "Arch": "amd64",
            "KernelVersion": kernel,
            "BuildTime": "",
        }),
    )
}

/// `GET /info`
pub(super) async fn info(State(app): App) -> Result {
    let value = app
        .blocking(|backend| {
            let folders = backend.workloads().list()?;
            let states: Vec<Status> =
                folders.iter().filter_map(|folder| Some(folder.state().ok()?.status)).collect();
            let count = |wanted: &dyn Fn(Status) -> bool| states.iter().filter(|status| wanted(**status)).count();
            let paused = count(&|status| status == Status::Paused);
            let running = count(&|status| status.is_active()) - paused;
            let system = rustix::system::uname();
            let root = backend.store().root();
            Ok(json!({
                "ID": "strata",
                "Containers": states.len(),
                "ContainersRunning": running,
                "ContainersPaused": paused,
                "ContainersStopped": states.len() - running - paused,
                "Images": crate::images::count(backend.store()),
                "Driver": "overlay2",
                "DriverStatus": [["Root", "squashfs, one file for an image"]],
                "DockerRootDir": root,
                "Plugins": { "Volume": ["local"], "Network": ["none", "user"], "Authorization": null, "Log": ["json-file", "local", "none"] },
                "MemoryLimit": true, "SwapLimit": false, "CpuCfsPeriod": true, "CpuCfsQuota": true,
                "CPUShares": true, "CPUSet": true, "PidsLimit": true, "OomKillDisable": false,
                "IPv4Forwarding": true, "Debug": false, "NFd": 0, "NGoroutines": 0, "NEventsListener": 0,
                "SystemTime": rfc3339(workload::now_ms()),
                "LoggingDriver": "json-file",
                "CgroupDriver": "cgroupfs",
                "CgroupVersion": if std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists() { "2" } else { "1" },
                "KernelVersion": system.release().to_string_lossy(),
                "OperatingSystem": operating_system(),
                "OSType": "linux",
                "Architecture": "x86_64",
                "NCPU": stats::host_cpus(),
                "MemTotal": stats::host_memory(),
                "IndexServerAddress": "https://index.docker.io/v1/",
                "RegistryConfig": { "InsecureRegistryCIDRs": [], "IndexConfigs": {}, "Mirrors": [] },
                "Name": system.nodename().to_string_lossy(),
                "Labels": [],
                "ExperimentalBuild": false,
                "ServerVersion": VERSION,
                "Runtimes": { create::CONTAINER: { "path": "strata" }, create::VM: { "path": "strata" } },
                "DefaultRuntime": create::CONTAINER,
                "Swarm": { "LocalNodeState": "inactive", "ControlAvailable": false },
                "LiveRestoreEnabled": true,
                "Isolation": "",
                "InitBinary": "",
                "SecurityOptions": ["name=seccomp,profile=builtin", "name=cgroupns"],
                "Warnings": [],
            }))
        })
        .await?;
    Ok(json(StatusCode::OK, &value))
}

fn operating_system() -> String {
    let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map_or_else(|| "Linux".to_owned(), |name| name.trim_matches('"').to_owned())
}

/// `POST /auth`: whether a registry knows the client's user.
pub(super) async fn auth(
    State(app): App,
    body: std::result::Result<Json<AuthConfig>, JsonRejection>,
) -> Result {
    let Json(config) = body?;
    let domain = pull::domain(config.serveraddress.as_deref().unwrap_or_default());
    let options = pull::options(Some(config));
    app.blocking(move |_| {
        let unauthorized = |error: registry::Error| match error.cause() {
            registry::Cause::Unauthorized { .. } => {
                ApiError::new(StatusCode::UNAUTHORIZED, crate::error::chain(&error))
            }
            _ => ApiError::failed(crate::error::chain(&error)),
        };
        registry::login(&domain, &options).map_err(unauthorized)
    })
    .await?;
    Ok(json(StatusCode::OK, &json!({ "Status": "Login Succeeded", "IdentityToken": "" })))
}

/// `GET /system/df`
pub(super) async fn disk_usage(State(app): App, _params: Params) -> Result {
    let value = app
        .blocking(|backend| {
            let images = backend.store().images()?;
            let size: u64 = images.iter().map(|image| image.size_bytes).sum();
            let rows = super::images::rows(backend, &|_| true)?;
            let mut containers = Vec::new();
            for folder in backend.workloads().list()? {
                let Ok(state) = folder.state() else { continue };
                let what = folder.description();
                let (written, all) = super::containers::sizes(backend, &folder);
                containers.push(json!({
                    "Id": what.id, "Names": [format!("/{}", what.name)], "Image": what.wanted.image,
                    "State": super::containers::status_word(state.status),
                    "Status": super::containers::status_line(&state),
                    "SizeRw": written, "SizeRootFs": all, "Created": what.created_ms / 1000,
                    "Command": what.wanted.command.join(" "), "Mounts": super::volumes::mounts(what, None),
                }));
            }
            Ok(json!({
                "LayersSize": size, "Images": rows, "Containers": containers, "Volumes": super::volumes::rows_with_usage(backend)?, "BuildCache": [],
            }))
        })
        .await?;
    Ok(json(StatusCode::OK, &value))
}

/// `GET /plugins`: there are none.
pub(super) async fn plugins(_params: Params) -> Result {
    Ok(json(StatusCode::OK, &json!([])))
}
