//! How workloads end: who waits for which end, and `POST /containers/NAME/wait`.
//!
//! A client that wants the next end asks before the start, when nobody watches the workload yet. So whoever starts it here first
//! has a connection wait for the end, and tells those who asked before.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use futures_util::stream;
use serde_json::json;
use tokio::sync::watch;
use workload::control::{Answer, Client, Request};
use workload::{Folder, Status};

use super::params::Params;
use super::{App, Shared};
use crate::backend::Backend;
use crate::error::{ApiError, Result};

/// How soon a workload that something else starts or removes is noticed.
const LOOK: Duration = Duration::from_millis(50);
/// How soon it is seen that a process that watched is gone.
const GOING: Duration = Duration::from_millis(5);
/// It is gone by then.
const PATIENCE: Duration = Duration::from_secs(10);

/// The ends that are waited for, by id.
#[derive(Default)]
pub(crate) struct Exits(Mutex<HashMap<String, Awaited>>);

/// An end that is waited for.
#[derive(Clone)]
struct Awaited {
    /// The process that watches: the next one of the same workload is another, with another end.
    monitor: Option<u32>,
    exit: watch::Receiver<Option<u8>>,
}

impl Exits {
    fn get(&self, id: &str) -> Option<watch::Receiver<Option<u8>>> {
        let exits = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        exits.get(id).map(|awaited| awaited.exit.clone())
    }

    fn forget(&self, id: &str, monitor: Option<u32>) {
        let mut exits = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if exits.get(id).is_some_and(|awaited| awaited.monitor == monitor) {
            exits.remove(id);
        }
    }
}

impl Shared {
    /// Has somebody watch the workload, and waits for its end from now on. Nothing begins by that.
    pub(super) async fn watch(self: &Arc<Self>, folder: &Folder) -> Result<()> {
        let id = folder.description().id.clone();
        let watched = folder.clone();
        let (mut client, monitor) = self.blocking(move |backend| connect(backend, &watched)).await?;
        let (sender, receiver) = watch::channel(None);
        {
            let mut exits = self.exits.0.lock().unwrap_or_else(PoisonError::into_inner);
            // Another request was faster: its connection is as good.
            if exits.get(&id).is_some_and(|other| other.monitor == monitor && other.exit.borrow().is_none()) {
                return Ok(());
            }
            exits.insert(id.clone(), Awaited { monitor, exit: receiver });
        }
        let (shared, folder) = (self.clone(), folder.clone());
        tokio::task::spawn_blocking(move || {
            let code = match client.ask(&Request::WaitForNextEnd, &[]) {
                Ok(Answer::Exited { code }) => code,
                // It was never started, or its monitor was killed.
                _ => folder.state().ok().and_then(|state| state.exit_code).unwrap_or(u8::MAX),
            };
            // Whoever waits has it; whoever comes later reads the state.
            shared.exits.forget(&id, monitor);
            let _ = sender.send(Some(code));
        });
        Ok(())
    }
}

/// A connection to the one who watches, who is there when this returns, and that one's process.
///
/// One whose workload has ended still has its lock and its socket for a moment, but answers nobody any more: it is waited for.
fn connect(backend: &dyn Backend, folder: &Folder) -> Result<(Client, Option<u32>)> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if !folder.is_watched()? {
            // Somebody else may do the same at this moment.
            if let Err(refusal) = backend.watch(folder)
                && !folder.is_watched()?
            {
                return Err(refusal.into());
            }
        }
        let asked = Client::connect(folder).and_then(|mut client| {
            let answer = client.ask(&Request::State, &[])?;
            Ok((client, answer))
        });
        let late = Instant::now() >= deadline;
        match asked {
            Ok((client, Answer::State { state })) if late || state.status != Status::Exited => {
                return Ok((client, state.monitor_pid));
            }
            Err(error) if late => return Err(error.into()),
            _ => std::thread::sleep(GOING),
        }
    }
}

/// Which end a client waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition {
    NotRunning,
    NextExit,
    Removed,
}

/// `POST /containers/NAME/wait`
pub(super) async fn wait(State(app): App, Path(name): Path<String>, params: Params) -> Result {
    let condition = match params.get("condition").unwrap_or("not-running") {
        "not-running" => Condition::NotRunning,
        "next-exit" => Condition::NextExit,
        "removed" => Condition::Removed,
        other => return Err(ApiError::bad(format!("invalid condition: {other:?}"))),
    };
    let folder = app.find(name).await?;
    // The head of the answer goes at once: clients start the workload when they have it.
    let body = stream::once(async move {
        let value = match end_of(&app, &folder, condition).await {
            Ok(code) => json!({ "StatusCode": code }),
            Err(error) => json!({ "StatusCode": 125, "Error": { "Message": error.message } }),
        };
        Ok::<_, std::convert::Infallible>(Bytes::from(value.to_string()))
    });
    let head = [(header::CONTENT_TYPE, "application/json")];
    Ok((StatusCode::OK, head, Body::from_stream(body)).into_response())
}

async fn end_of(app: &Arc<Shared>, folder: &Folder, condition: Condition) -> Result<u8> {
    let look = folder.clone();
    let state = app.blocking(move |_| Ok(look.state()?)).await?;
    let is_over = matches!(state.status, Status::Exited | Status::Lost);
    let code = match condition {
        // One that was never started does not run either.
        Condition::NotRunning if !state.status.is_active() => state.exit_code.unwrap_or_default(),
        Condition::Removed if is_over => state.exit_code.unwrap_or_default(),
        _ => next_end(app, folder).await?,
    };
    if condition == Condition::Removed {
        while folder.path().exists() {
            tokio::time::sleep(LOOK).await;
        }
    }
    Ok(code)
}

/// The end of what runs, or of what is started next, by whomever.
async fn next_end(app: &Arc<Shared>, folder: &Folder) -> Result<u8> {
    let id = &folder.description().id;
    loop {
        if let Some(mut exit) = app.exits.get(id) {
            let ended = exit.wait_for(Option::is_some).await.map(|code| code.unwrap_or(u8::MAX));
            return ended.map_err(|_| ApiError::failed(format!("nobody knows how {id} ended")));
        }
        let look = folder.clone();
        let watched = app.blocking(move |_| Ok(look.is_watched().unwrap_or(false))).await?;
        if watched {
            app.watch(folder).await?;
            continue;
        }
        if !folder.path().exists() {
            return Err(ApiError::not_found(format!("No such container: {id}")));
        }
        tokio::time::sleep(LOOK).await;
    }
}
