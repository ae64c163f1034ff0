//! `POST /containers/NAME/attach`: a client's streams joined to a workload's.

use std::os::fd::{AsFd, OwnedFd};

use axum::body::Body;
use axum::extract::{Path, State};
use hyper::Request as HttpRequest;
use workload::control::{Client, Request};
use workload::{Folder, Status};

use super::keys::DetachKeys;
use super::params::Params;
use super::streams::{self, NOBODYS, STDERR, STDOUT, Streams, framed};
use super::{App, logs};
use crate::error::{ApiError, Result};

/// `POST /containers/NAME/attach`
///
/// A workload that was not started yet gets somebody who watches it: it loses none of its output then. Its input ends when the
/// client's does; that of one that runs goes on.
pub(super) async fn attach(
    State(app): App,
    Path(name): Path<String>,
    params: Params,
    mut request: HttpRequest<Body>,
) -> Result {
    let folder = app.find(name).await?;
    let connection = streams::upgrade_of(&mut request);
    let wanted = &folder.description().wanted;
    let is_raw = wanted.tty;
    let has = |name| params.flag(name);
    let before =
        if has("logs") { written(&app, &folder, has("stdout"), has("stderr")).await? } else { Vec::new() };
    if !has("stream") {
        let streams = Streams { is_raw, before, ..Streams::default() };
        return Ok(streams::join(connection, streams, std::future::ready(())));
    }
    let detach = params.get("detachKeys").unwrap_or_default();
    let detach = is_raw.then(|| DetachKeys::parse(detach)).transpose()?;
    let look = folder.clone();
    let status = app.blocking(move |_| Ok(look.state()?.status)).await?;
    if matches!(status, Status::Paused | Status::Restarting) {
        let id = &folder.description().id;
        return Err(ApiError::conflict(format!("container {id} is {status}, unpause it before attaching")));
    }
    app.watch(&folder).await?;
    let (stdout, to_stdout) = streams::output_pipe()?;
    let (stderr, to_stderr) = streams::output_pipe()?;
    let mut fds = vec![to_stdout, to_stderr];
    let stdin = if has("stdin") && wanted.interactive && connection.is_some() {
        let (from, stdin) = streams::input_pipe()?;
        fds.push(from);
        Some(Box::new(stdin) as streams::Input)
    } else {
        None
    };
    let client = app.blocking(move |_| Ok(connect(&folder, fds)?)).await?;
    let mut outputs: Vec<(u8, streams::Output)> = Vec::new();
    // Standard output tells of the end of all. Standard error that is not wanted is read by nobody, and who writes to it finds that
    // out.
    outputs.push((if has("stdout") { STDOUT } else { NOBODYS }, Box::new(stdout)));
    if has("stderr") && !is_raw {
        outputs.push((STDERR, Box::new(stderr)));
    }
    let streams = Streams { stdin, detach, outputs, is_raw, before, reads_on: false };
    // The attachment lasts as long as its connection.
    Ok(streams::join(connection, streams, async move { drop(client) }))
}

fn connect(folder: &Folder, fds: Vec<OwnedFd>) -> workload::Result<Client> {
    let mut client = Client::connect(folder)?;
    let request = Request::Attach { stdin: fds.len() > 2, once: true };
    client.ask(&request, &fds.iter().map(AsFd::as_fd).collect::<Vec<_>>())?;
    Ok(client)
}

/// What it wrote so far.
async fn written(
    app: &std::sync::Arc<super::Shared>,
    folder: &Folder,
    stdout: bool,
    stderr: bool,
) -> Result<Vec<axum::body::Bytes>> {
    let (path, is_raw) = (folder.log(), folder.description().wanted.tty);
    app.blocking(move |_| {
        let piece = |entry: workload::log::Entry| {
            let number = logs::number(&entry);
            let wanted = if number == STDERR { stderr } else { stdout };
            wanted.then(|| framed(number, entry.log.as_bytes(), is_raw))
        };
        Ok(logs::all(&path)?.into_iter().filter_map(piece).collect())
    })
    .await
}
