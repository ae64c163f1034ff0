//! What is done to a workload: start, stop, kill, pause, rename, remove.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use serde_json::{Value, json};
use workload::control::{Answer, Client, Request};
use workload::{EventKind, Folder, Running, Status};

use super::filters::Filters;
use super::params::Params;
use super::{App, NOTHING, Shared, json};
use crate::error::{ApiError, Result};

/// Seconds that docker waits before it kills.
const PATIENCE: u64 = 10;
/// A timeout of less than nothing is one without end: a day is as good.
const LONG: u64 = 86_400;

/// `POST /containers/NAME/start`
pub(super) async fn start(State(app): App, Path(name): Path<String>) -> Result {
    let folder = app.find(name).await?;
    if !start_folder(&app, &folder).await? {
        return Ok(StatusCode::NOT_MODIFIED.into_response());
    }
    Ok(NOTHING.into_response())
}

/// Starts it; false if it runs already.
async fn start_folder(app: &Arc<Shared>, folder: &Folder) -> Result<bool> {
    if status(app, folder).await?.is_active() {
        return Ok(false);
    }
    app.watch(folder).await?;
    let started = folder.clone();
    app.blocking(move |_| {
        let name = &started.description().name;
        match Client::connect(&started)?.ask(&Request::Start, &[])? {
            // Docker's command makes 127 and 126 of these words.
            Answer::NotStarted { code: 127, reason } => {
                Err(ApiError::bad(said(name, reason, "executable file not found")))
            }
            Answer::NotStarted { code: 126, reason } => {
                Err(ApiError::bad(said(name, reason, "permission denied")))
            }
            Answer::NotStarted { reason, .. } => Err(ApiError::failed(format!("start {name}: {reason}"))),
            _ => Ok(true),
        }
    })
    .await
}

/// Why it does not run, with these words in it.
fn said(name: &str, reason: String, words: &str) -> String {
    if reason.to_lowercase().contains(words) {
        return format!("start {name}: {reason}");
    }
    format!("start {name}: {reason}: {words}")
}

async fn status(app: &Arc<Shared>, folder: &Folder) -> Result<Status> {
    let folder = folder.clone();
    app.blocking(move |_| Ok(folder.state()?.status)).await
}

/// `POST /containers/NAME/stop`
pub(super) async fn stop(State(app): App, Path(name): Path<String>, params: Params) -> Result {
    let folder = app.find(name).await?;
    if !end(&app, &folder, &params).await? {
        return Ok(StatusCode::NOT_MODIFIED.into_response());
    }
    Ok(NOTHING.into_response())
}

/// Ends it; false if it does not run.
async fn end(app: &Arc<Shared>, folder: &Folder, params: &Params) -> Result<bool> {
    if !status(app, folder).await?.is_active() {
        return Ok(false);
    }
    if let Some(signal) = params.get("signal") {
        let number = signal_number(signal)?;
        ask(app, folder, Request::Signal { number }).await?;
    }
    let said = folder.description().wanted.said.as_ref().and_then(|said| said.get("StopTimeout"));
    let default = said.and_then(Value::as_i64).unwrap_or(PATIENCE as i64);
    let seconds: i64 = params.number("t")?.unwrap_or(default);
    let timeout_ms = u64::try_from(seconds).unwrap_or(LONG).min(LONG) * 1000;
    ask(app, folder, Request::Stop { timeout_ms }).await?;
    Ok(true)
}

/// `POST /containers/NAME/restart`
pub(super) async fn restart(State(app): App, Path(name): Path<String>, params: Params) -> Result {
    let folder = app.find(name).await?;
    end(&app, &folder, &params).await?;
    start_folder(&app, &folder).await?;
    app.blocking(move |_| {
        folder.tell("restart", &[]);
        Ok(())
    })
    .await?;
    Ok(NOTHING.into_response())
}

/// `POST /containers/NAME/kill`
pub(super) async fn kill(State(app): App, Path(name): Path<String>, params: Params) -> Result {
    let folder = app.find(name).await?;
    let number = signal_number(params.get("signal").unwrap_or("KILL"))?;
    if !status(&app, &folder).await?.is_active() {
        let id = &folder.description().id;
        return Err(ApiError::conflict(format!(
            "cannot kill container: {}: container {id} is not running",
            folder.description().name
        )));
    }
    let request = if number == 9 { Request::Kill } else { Request::Signal { number } };
    ask(&app, &folder, request).await?;
    Ok(NOTHING.into_response())
}

fn signal_number(text: &str) -> Result<u8> {
    workload::signal_number(text).ok_or_else(|| ApiError::bad(format!("invalid signal: {text}")))
}

/// `POST /containers/NAME/pause`
pub(super) async fn pause(State(app): App, Path(name): Path<String>) -> Result {
    change(&app, name, Status::Running, Request::Pause).await
}

/// `POST /containers/NAME/unpause`
pub(super) async fn unpause(State(app): App, Path(name): Path<String>) -> Result {
    change(&app, name, Status::Paused, Request::Resume).await
}

async fn change(app: &Arc<Shared>, name: String, from: Status, request: Request) -> Result {
    let folder = app.find(name).await?;
    let found = status(app, &folder).await?;
    if found != from {
        let id = &folder.description().id;
        return Err(ApiError::conflict(format!("Container {id} is {found}, not {from}")));
    }
    ask(app, &folder, request).await?;
    Ok(NOTHING.into_response())
}

/// Asks the one who watches.
async fn ask(app: &Arc<Shared>, folder: &Folder, request: Request) -> Result<Answer> {
    let folder = folder.clone();
    app.blocking(move |_| Ok(Client::connect(&folder)?.ask(&request, &[])?)).await
}

/// `POST /containers/NAME/resize`
pub(super) async fn resize(State(app): App, Path(name): Path<String>, params: Params) -> Result {
    let folder = app.find(name).await?;
    let (rows, columns) = size(&params)?;
    if !matches!(status(&app, &folder).await?, Status::Running | Status::Paused) {
        return Err(ApiError::conflict(format!("Container {} is not running", folder.description().id)));
    }
    ask(&app, &folder, Request::Resize { rows, columns }).await?;
    Ok(StatusCode::OK.into_response())
}

/// Lines and columns.
pub(super) fn size(params: &Params) -> Result<(u16, u16)> {
    let of = |name| params.number::<u16>(name).map(Option::unwrap_or_default);
    Ok((of("h")?, of("w")?))
}

/// `POST /containers/NAME/rename`
pub(super) async fn rename(State(app): App, Path(name): Path<String>, params: Params) -> Result {
    let folder = app.find(name).await?;
    let new = params.get("name").ok_or_else(|| ApiError::bad("Neither old nor new names may be empty"))?;
    let new = new.trim_start_matches('/').to_owned();
    app.blocking(move |backend| Ok(backend.workloads().rename(&folder, new)?)).await?;
    Ok(NOTHING.into_response())
}

/// `DELETE /containers/NAME`
pub(super) async fn remove(State(app): App, Path(name): Path<String>, params: Params) -> Result {
    let folder = app.find(name).await?;
    let found = status(&app, &folder).await?;
    let volumes = folder.description().wanted.volumes();
    let running = if params.flag("force") { Running::Killed } else { Running::Stays };
    if found.is_active() && running == Running::Stays {
        let (name, id) = (&folder.description().name, &folder.description().id);
        return Err(ApiError::conflict(format!(
            "cannot remove container \"/{name}\": container is {found}: stop the container before removing or force remove: {id}"
        )));
    }
    app.blocking(move |backend| Ok(backend.remove(&folder, running)?)).await?;
    if params.flag("v") {
        app.blocking(move |backend| Ok(backend.workloads().volumes()?.remove_anonymous(&volumes)?)).await?;
    }
    Ok(NOTHING.into_response())
}

/// `POST /containers/prune`
pub(super) async fn prune(State(app): App, params: Params) -> Result {
    let filters = Filters::of(&params, &["label", "label!", "until"])?;
    let (deleted, bytes) = app
        .blocking(move |backend| {
            let (mut deleted, mut bytes) = (Vec::new(), 0);
            let fits_until = filters.until()?;
            for folder in backend.workloads().list()? {
                let description = folder.description();
                let fits = filters.fits_labels(|key| description.wanted.labels.get(key).map(String::as_str))
                    && fits_until(description.created_ms);
                let ended = |status| matches!(status, Status::Created | Status::Exited | Status::Lost);
                if !fits || !folder.state().is_ok_and(|state| ended(state.status)) {
                    continue;
                }
                let written = backend.written(&folder).unwrap_or_default();
                if backend.remove(&folder, Running::Stays).is_ok() {
                    deleted.push(description.id.clone());
                    bytes += written;
                }
            }
            backend.workloads().tell_pruned(EventKind::Container, bytes);
            Ok((deleted, bytes))
        })
        .await?;
    Ok(json(StatusCode::OK, &json!({ "ContainersDeleted": deleted, "SpaceReclaimed": bytes })))
}
