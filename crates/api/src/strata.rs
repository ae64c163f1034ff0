//! `/strata/v1/…`: what Docker's API has no words for. Snapshots, forks, templates, and what this host can do.
//!
//! Names are those of the command line's JSON. Errors are answered as the Docker API answers them.

use axum::Json;
use axum::Router;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use workload::{Folder, Isolation, Status};

use crate::docker::{App, Routes};
use crate::error::{ApiError, Result};
use crate::machines::AfterSnapshot;
use crate::terminal;

/// Copies that one request may ask for.
const MAX_COPIES: u32 = 10_000;

/// All endpoints: one row each.
pub(crate) fn routes() -> Routes {
    Router::new()
        .route("/strata/v1/check", get(check))
        .route("/strata/v1/workloads", get(workloads))
        .route("/strata/v1/workloads/{name}/fork", post(fork))
        .route("/strata/v1/workloads/{name}/terminal", get(terminal::open))
        .route("/strata/v1/snapshots", get(snapshots).post(snapshot))
        .route("/strata/v1/snapshots/{name}", delete(remove_snapshot))
        .route("/strata/v1/snapshots/{name}/restore", post(restore))
        .route("/strata/v1/templates", get(templates))
        .route("/strata/v1/templates/{id}", delete(remove_template))
}

fn answer(status: StatusCode, value: impl Serialize) -> Response {
    (status, Json(value)).into_response()
}

/// `GET /strata/v1/check`
async fn check(State(app): App) -> Result {
    Ok(answer(StatusCode::OK, app.blocking(|backend| Ok(backend.check()?)).await?))
}

/// `GET /strata/v1/workloads`: all of them, with what they take of the host.
async fn workloads(State(app): App) -> Result {
    let rows = app
        .blocking(|backend| {
            let mut rows = Vec::new();
            for folder in backend.workloads().list()? {
                // One that is being removed just now is gone.
                let Ok(state) = folder.state() else { continue };
                let what = folder.description();
                let usage = backend.usage(&folder);
                rows.push(json!({
                    "id": what.id,
                    "name": what.name,
                    "image": what.wanted.image,
                    "isolation": what.wanted.isolation,
                    "command": what.wanted.command,
                    "publish": what.wanted.publish,
                    "tty": what.wanted.tty,
                    "created_ms": what.created_ms,
                    "state": state,
                    "cpu_ns": usage.map(|usage| usage.cpu_ns),
                    "memory_bytes": usage.map(|usage| usage.memory_bytes),
                    "memory_limit_bytes": usage.and_then(|usage| usage.memory_limit),
                    "pids": usage.map(|usage| usage.pids),
                    "traffic": usage.and_then(|_| backend.traffic(&folder)),
                }));
            }
            Ok(rows)
        })
        .await?;
    Ok(answer(StatusCode::OK, rows))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ForkRequest {
    #[serde(default = "one")]
    count: u32,
}

fn one() -> u32 {
    1
}

/// `POST /strata/v1/workloads/NAME/fork`
async fn fork(
    State(app): App,
    Path(name): Path<String>,
    body: std::result::Result<Json<ForkRequest>, JsonRejection>,
) -> Result {
    let Json(ForkRequest { count }) = body?;
    if !(1..=MAX_COPIES).contains(&count) {
        return Err(ApiError::bad(format!("count: {count} is not 1 to {MAX_COPIES}")));
    }
    let folder = app.find(name).await?;
    let copies = app
        .blocking(move |backend| {
            check_saveable(&folder, "fork")?;
            Ok(backend.fork(&folder, count)?)
        })
        .await?;
    Ok(answer(StatusCode::CREATED, copies))
}

/// What is told apart here gets a status of its own; the rest is up to whoever does it.
fn check_saveable(folder: &Folder, act: &str) -> Result<()> {
    let what = folder.description();
    if what.wanted.isolation != Isolation::Vm {
        return Err(ApiError::not_offered(format!(
            "{act} {}: it is a container, and only machines have a state that can be saved",
            what.name
        )));
    }
    match folder.state()?.status {
        Status::Running | Status::Paused => Ok(()),
        status => Err(ApiError::conflict(format!("{act} {}: it is {status}, not running", what.name))),
    }
}

/// `GET /strata/v1/snapshots`
async fn snapshots(State(app): App) -> Result {
    Ok(answer(StatusCode::OK, app.blocking(|backend| Ok(backend.snapshots()?)).await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SnapshotRequest {
    workload: String,
    name: String,
    #[serde(default)]
    stop: bool,
}

/// `POST /strata/v1/snapshots`
async fn snapshot(
    State(app): App,
    body: std::result::Result<Json<SnapshotRequest>, JsonRejection>,
) -> Result {
    let Json(SnapshotRequest { workload, name, stop }) = body?;
    check_name(&name)?;
    let folder = app.find(workload).await?;
    let after = if stop { AfterSnapshot::Stop } else { AfterSnapshot::GoOn };
    let value = json!({ "name": name });
    app.blocking(move |backend| {
        check_saveable(&folder, "snapshot")?;
        Ok(backend.snapshot(&folder, &name, after)?)
    })
    .await?;
    Ok(answer(StatusCode::CREATED, value))
}

/// A snapshot's name is a folder's: the rule of workloads leaves no way out of theirs.
fn check_name(name: &str) -> Result<()> {
    match workload::parse_name(name) {
        Ok(_) => Ok(()),
        Err(rule) => Err(ApiError::bad(format!("name {name:?}: {rule}"))),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RestoreRequest {
    name: Option<String>,
}

/// `POST /strata/v1/snapshots/NAME/restore`
async fn restore(
    State(app): App,
    Path(snapshot): Path<String>,
    body: std::result::Result<Json<RestoreRequest>, JsonRejection>,
) -> Result {
    let Json(RestoreRequest { name }) = body?;
    check_name(&snapshot)?;
    if let Some(name) = &name {
        check_name(name)?;
    }
    let id = app.blocking(move |backend| Ok(backend.restore(&snapshot, name.as_deref())?)).await?;
    let folder = app.find(id).await?;
    let what = folder.description();
    Ok(answer(StatusCode::CREATED, json!({ "id": what.id, "name": what.name })))
}

/// `DELETE /strata/v1/snapshots/NAME`
async fn remove_snapshot(State(app): App, Path(name): Path<String>) -> Result {
    check_name(&name)?;
    app.blocking(move |backend| Ok(backend.remove_snapshot(&name)?)).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `GET /strata/v1/templates`
async fn templates(State(app): App) -> Result {
    let rows: Value = app.blocking(|backend| Ok(backend.templates()?)).await?;
    Ok(answer(StatusCode::OK, rows))
}

/// `DELETE /strata/v1/templates/ID`
async fn remove_template(State(app): App, Path(id): Path<String>) -> Result {
    if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Err(ApiError::bad(format!("{id:?} is no template's id")));
    }
    app.blocking(move |backend| Ok(backend.remove_template(&id)?)).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_snapshots_lead_nowhere() {
        assert!(check_name("base-1.0").is_ok());
        for name in ["", ".", "..", "a/b", "../a", ".hidden", "a\0b", "-x"] {
            assert_eq!(check_name(name).unwrap_err().status, StatusCode::BAD_REQUEST, "{name:?}");
        }
    }

    #[test]
    fn requests_say_nothing_that_is_not_understood() {
        let parse = |text: &str| serde_json::from_str::<SnapshotRequest>(text);
        assert!(parse(r#"{"workload":"web","name":"base"}"#).is_ok_and(|request| !request.stop));
        assert!(parse(r#"{"workload":"web","name":"base","halt":true}"#).is_err());
        assert_eq!(serde_json::from_str::<ForkRequest>("{}").unwrap().count, 1);
    }
}
