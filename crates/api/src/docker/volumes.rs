//! Volumes, and what a container sees beside its image.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use bollard_stubs::models::{HostConfig, Mount as Said, MountType, VolumeCreateRequest};
use serde_json::{Value, json};
use workload::log::rfc3339;
use workload::{Description, Mount, MountSource, NewVolume, Propagation, Volume, Volumes};

use super::filters::Filters;
use super::params::Params;
use super::{App, NOTHING, json};
use crate::backend::Backend;
use crate::error::{ApiError, Result};

/// The only driver.
const DRIVER: &str = "local";

fn row(volume: &Volume) -> Value {
    let info = volume.info();
    // Docker marks those without a name so, and its clients look for that.
    let anonymous = info.anonymous.then(|| ("com.docker.volume.anonymous".to_owned(), String::new()));
    let labels: BTreeMap<_, _> = info.labels.clone().into_iter().chain(anonymous).collect();
    json!({
        "Name": info.name,
        "Driver": DRIVER,
        "Mountpoint": volume.data(),
        "CreatedAt": rfc3339(info.created_ms),
        "Labels": if labels.is_empty() { Value::Null } else { json!(labels) },
        "Scope": "local",
        "Options": if info.options.is_empty() { Value::Null } else { json!(info.options) },
    })
}

/// Rows of all volumes, with how much each takes and how many use it.
pub(super) fn rows_with_usage(backend: &dyn Backend) -> Result<Vec<Value>> {
    let volumes = backend.workloads().volumes()?;
    let users = volumes.users()?;
    let usage = |volume: Volume| {
        let mut value = row(&volume);
        let count = users.get(&volume.info().name).map_or(0, Vec::len);
        value["UsageData"] = json!({ "Size": volume.size_bytes(), "RefCount": count });
        value
    };
    Ok(volumes.list()?.into_iter().map(usage).collect())
}

/// `GET /volumes`
pub(super) async fn list(State(app): App, params: Params) -> Result {
    let filters = Filters::of(&params, &["dangling", "driver", "label", "label!", "name"])?;
    let dangling = filters.values("dangling").map(truth).collect::<Result<Vec<bool>>>()?;
    let rows = app
        .blocking(move |backend| {
            let volumes = backend.workloads().volumes()?;
            volumes.clean()?;
            let users = volumes.users()?;
            let fits = |volume: &Volume| {
                let info = volume.info();
                filters.fits_name(&info.name)
                    && filters.fits("driver", |wanted| wanted == DRIVER)
                    && filters.fits_labels(|key| info.labels.get(key).map(String::as_str))
                    && dangling.iter().all(|wanted| *wanted != users.contains_key(&info.name))
            };
            Ok(volumes.list()?.iter().filter(|volume| fits(volume)).map(row).collect::<Vec<_>>())
        })
        .await?;
    Ok(json(StatusCode::OK, &json!({ "Volumes": rows, "Warnings": null })))
}

fn truth(text: &str) -> Result<bool> {
    match text {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(ApiError::bad(format!("invalid filter 'dangling={text}'"))),
    }
}

/// `POST /volumes/create`
pub(super) async fn create(
    State(app): App,
    body: std::result::Result<Json<VolumeCreateRequest>, JsonRejection>,
) -> Result {
    let Json(body) = body?;
    check_driver(body.driver.as_deref())?;
    let new = NewVolume {
        name: body.name.filter(|name| !name.is_empty()),
        labels: body.labels.unwrap_or_default().into_iter().collect(),
        options: body.driver_opts.unwrap_or_default().into_iter().collect(),
        temporary: false,
    };
    let made = app.blocking(move |backend| Ok(backend.workloads().volumes()?.create(new)?)).await?;
    Ok(json(StatusCode::CREATED, &row(&made)))
}

fn check_driver(driver: Option<&str>) -> Result<()> {
    match driver {
        None | Some("" | DRIVER) => Ok(()),
        Some(other) => Err(ApiError::not_found(format!(
            "error looking up volume plugin {other}: plugin \"{other}\" not found"
        ))),
    }
}

/// `GET /volumes/NAME`
pub(super) async fn inspect(State(app): App, Path(name): Path<String>) -> Result {
    let found = app.blocking(move |backend| Ok(backend.workloads().volumes()?.find(&name)?)).await?;
    Ok(json(StatusCode::OK, &row(&found)))
}

/// `DELETE /volumes/NAME`
pub(super) async fn remove(State(app): App, Path(name): Path<String>, params: Params) -> Result {
    let force = params.flag("force");
    app.blocking(move |backend| match backend.workloads().volumes()?.remove(&name) {
        Err(error) if force && error.is_not_found() => Ok(()),
        removed => Ok(removed?),
    })
    .await?;
    Ok(NOTHING.into_response())
}

/// `POST /volumes/prune`
pub(super) async fn prune(State(app): App, params: Params) -> Result {
    let filters = Filters::of(&params, &["all", "label", "label!"])?;
    let all = filters.values("all").map(truth).collect::<Result<Vec<bool>>>()?.contains(&true);
    let (names, bytes) = app
        .blocking(move |backend| {
            let volumes = backend.workloads().volumes()?;
            Ok(volumes.prune(|info| {
                (all || info.anonymous) && filters.fits_labels(|key| info.labels.get(key).map(String::as_str))
            })?)
        })
        .await?;
    Ok(json(StatusCode::OK, &json!({ "VolumesDeleted": names, "SpaceReclaimed": bytes })))
}

/// What a client's description of a container says about these, in all its forms.
pub(super) fn wanted(host: &HostConfig, places: &[String]) -> Result<Vec<Mount>> {
    let mut all = Vec::new();
    for text in host.binds.iter().flatten() {
        all.push(bind(text)?);
    }
    for mount in host.mounts.iter().flatten() {
        all.push(mount_of(mount)?);
    }
    // Docker sends the places of what it sends otherwise too.
    for place in places {
        if all.iter().all(|mount| mount.target != *place) {
            all.push(Mount { source: nameless(), target: place.clone(), read_only: false });
        }
    }
    Ok(all)
}

fn nameless() -> MountSource {
    MountSource::volume("", true)
}

/// `HOST:PATH[:OPTIONS]`, `NAME:PATH[:OPTIONS]` or `PATH`
fn bind(text: &str) -> Result<Mount> {
    let wrong = || ApiError::bad(format!("invalid volume specification: '{text}'"));
    let mut parts = text.split(':');
    let first = parts.next().unwrap_or_default();
    let Some(target) = parts.next() else {
        return Ok(Mount { source: nameless(), target: first.to_owned(), read_only: false });
    };
    let (mut read_only, mut copy, mut propagation) = (false, true, Propagation::default());
    for option in parts.next().unwrap_or_default().split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" => read_only = true,
            "nocopy" => copy = false,
            // Nothing is relabelled here.
            "rw" | "z" | "Z" => {}
            _ => propagation = Propagation::parse(option).ok_or_else(wrong)?,
        }
    }
    let is_path = first.starts_with('/');
    if parts.next().is_some() || first.is_empty() || !(is_path || propagation.is_private()) {
        return Err(wrong());
    }
    let source = if is_path {
        // Docker makes what is not there, in this form and in no other.
        if !std::path::Path::new(first).exists() {
            std::fs::create_dir_all(first).map_err(|error| {
                ApiError::failed(format!("error while creating mount source path '{first}': {error}"))
            })?;
        }
        MountSource::Bind { source: first.to_owned(), propagation }
    } else {
        MountSource::volume(first, copy)
    };
    Ok(Mount { source, target: target.to_owned(), read_only })
}

fn mount_of(said: &Said) -> Result<Mount> {
    let propagation = said.bind_options.as_ref().and_then(|options| options.propagation);
    let propagation = propagation.and_then(|word| Propagation::parse(word.as_ref())).unwrap_or_default();
    let name = said.source.clone().unwrap_or_default();
    let source = match said.typ {
        Some(MountType::BIND) if !name.starts_with('/') => {
            return Err(ApiError::bad(format!(
                "invalid mount config for type \"bind\": invalid mount path: '{name}' mount path must be absolute"
            )));
        }
        Some(MountType::BIND) if !std::path::Path::new(&name).exists() => {
            return Err(ApiError::bad(format!(
                "invalid mount config for type \"bind\": bind source path does not exist: {name}"
            )));
        }
        Some(MountType::BIND) => MountSource::Bind { source: name, propagation },
        None | Some(MountType::VOLUME) => {
            let options = said.volume_options.clone().unwrap_or_default();
            let subpath = options.subpath.unwrap_or_default();
            if subpath.starts_with('/') || subpath.split('/').any(|part| part == "..") {
                return Err(ApiError::bad(format!(
                    "invalid mount config for type \"volume\": invalid subpath {subpath:?}"
                )));
            }
            let driver = options.driver_config.unwrap_or_default();
            check_driver(driver.name.as_deref())?;
            MountSource::Volume {
                name,
                copy: options.no_copy != Some(true),
                labels: options.labels.unwrap_or_default().into_iter().collect(),
                options: driver.options.unwrap_or_default().into_iter().collect(),
                subpath,
            }
        }
        Some(MountType::TMPFS) => {
            let options = said.tmpfs_options.clone().unwrap_or_default();
            let size = options.size_bytes.filter(|size| *size > 0).map(|size| format!("size={size}"));
            let mode = options.mode.filter(|mode| *mode > 0).map(|mode| format!("mode={mode:o}"));
            let options: Vec<_> = size.into_iter().chain(mode).collect();
            MountSource::Tmpfs { options: options.join(",") }
        }
        Some(other) => return Err(ApiError::not_offered(format!("mount type {other}: not there yet"))),
    };
    let target = said.target.clone().unwrap_or_default();
    Ok(Mount { source, target, read_only: said.read_only.unwrap_or_default() })
}

/// `Mounts` of a container.
pub(super) fn mounts(what: &Description, volumes: Option<&Volumes>) -> Vec<Value> {
    let row = |mount: &Mount| {
        let (kind, name, source, driver, propagation) = match &mount.source {
            MountSource::Bind { source, propagation } => {
                ("bind", None, source.clone(), None, propagation.word())
            }
            MountSource::Volume { name, .. } => {
                let found = volumes.and_then(|volumes| volumes.find(name).ok());
                let path = found.map(|volume| volume.data().display().to_string());
                ("volume", Some(name), path.unwrap_or_default(), Some(DRIVER), "")
            }
            MountSource::Tmpfs { .. } => ("tmpfs", None, String::new(), None, ""),
        };
        let mut value = json!({
            "Type": kind, "Source": source, "Destination": mount.target, "RW": !mount.read_only,
            "Mode": if mount.read_only { "ro" } else { "" }, "Propagation": propagation,
        });
        for (key, text) in [("Name", name.map(String::as_str)), ("Driver", driver)] {
            if let Some(text) = text {
                value[key] = json!(text);
            }
        }
        value
    };
    what.wanted.mounts.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(host: Value) -> Result<Vec<Mount>> {
        wanted(&serde_json::from_value(host).unwrap(), &[])
    }

    #[test]
    fn all_forms_in_which_clients_name_volumes_are_understood() {
        let all = of(json!({
            "Binds": ["/tmp:/a:ro,z", "name:/b:nocopy", "/c"],
            "Mounts": [
                {"Type": "bind", "Source": "/tmp", "Target": "/d", "ReadOnly": true},
                {"Type": "volume", "Source": "v", "Target": "/e", "VolumeOptions": {"Labels": {"x": "y"}}},
                {"Type": "tmpfs", "Target": "/f", "TmpfsOptions": {"SizeBytes": 4096, "Mode": 0o1770}},
            ],
        }))
        .unwrap();
        let kinds: Vec<_> =
            all.iter().map(|mount| (mount.volume(), &*mount.target, mount.read_only)).collect();
        let expected = [
            (None, "/a", true),
            (Some("name"), "/b", false),
            (Some(""), "/c", false),
            (None, "/d", true),
            (Some("v"), "/e", false),
            (None, "/f", false),
        ];
        assert_eq!(kinds, expected);
        assert_eq!(all[5].source, MountSource::Tmpfs { options: "size=4096,mode=1770".to_owned() });
    }

    #[test]
    fn what_is_no_volume_is_refused() {
        for (host, status) in [
            (json!({"Binds": ["/a:/b:wx"]}), 400),
            (json!({"Binds": ["a:/b:ro:x"]}), 400),
            (json!({"Binds": [":/b"]}), 400),
            (json!({"Binds": ["/a:/b:rmaster"]}), 400),
            (json!({"Binds": ["a:/b:rslave"]}), 400),
            (json!({"Mounts": [{"Type": "bind", "Source": "a", "Target": "/b"}]}), 400),
            (json!({"Mounts": [{"Type": "bind", "Source": "/no/such/path", "Target": "/b"}]}), 400),
            (json!({"Mounts": [{"Type": "npipe", "Source": "a", "Target": "/b"}]}), 501),
            (
                json!({"Mounts": [{"Type": "volume", "Source": "a", "Target": "/b",
                "VolumeOptions": {"DriverConfig": {"Name": "nfs"}}}]}),
                404,
            ),
        ] {
            assert_eq!(of(host.clone()).unwrap_err().status.as_u16(), status, "{host}");
        }
    }
}
