//! Files of a workload as archives: `/containers/NAME/archive`, `export`, `changes`.
//!
//! Each is a child of the server, for it mounts and opens what is somebody else's ([`crate::Backend::files`]).

use std::process::Stdio;
use std::sync::Arc;

use archive::{Overwrite, Owner, Request, Stat};
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use futures_util::{StreamExt, stream};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdout};
use workload::Folder;

use super::params::Params;
use super::{App, Shared};
use crate::error::{ApiError, Result};

/// Where a client looks for what lies at a path.
const STAT: &str = "x-docker-container-path-stat";
/// Bytes of an archive that are read at once.
const PIECE_BYTES: usize = 64 << 10;
/// Bytes that a child says about its failure.
const MAX_SAID_BYTES: u64 = 4 << 10;

/// A request that is being done.
struct Running {
    child: Child,
    folder: Folder,
    path: String,
}

impl Running {
    async fn start(app: &Arc<Shared>, folder: &Folder, request: Request, path: &str) -> Result<Running> {
        let reads = request.reads();
        let asked = folder.clone();
        let command = app.blocking(move |backend| Ok(backend.files(&asked, &request)?)).await?;
        let mut command = tokio::process::Command::from(command);
        command.stdin(if reads { Stdio::piped() } else { Stdio::null() });
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let child = command.spawn().map_err(|error| ApiError::failed(format!("reach the files: {error}")))?;
        Ok(Running { child, folder: folder.clone(), path: path.to_owned() })
    }

    /// Waits for the end of it; its failure is docker's.
    async fn finish(mut self) -> Result<()> {
        let status = self.child.wait().await;
        let status = status.map_err(|error| ApiError::failed(format!("reach the files: {error}")))?;
        if status.success() {
            return Ok(());
        }
        let mut said = Vec::new();
        if let Some(stderr) = self.child.stderr.take() {
            let _ = stderr.take(MAX_SAID_BYTES).read_to_end(&mut said).await;
        }
        let said = String::from_utf8_lossy(&said);
        let line = said.lines().find(|line| !line.starts_with("  next:")).unwrap_or("it ended early");
        let line = line.strip_prefix("strata: ").unwrap_or(line);
        let id = &self.folder.description().id;
        Err(match status.code() {
            Some(2) => {
                ApiError::not_found(format!("Could not find the file {} in container {id}", self.path))
            }
            Some(3) => ApiError::bad(line),
            Some(4) => ApiError::new(StatusCode::FORBIDDEN, "container rootfs is marked read-only"),
            Some(5) => ApiError::conflict(line),
            _ => ApiError::failed(line),
        })
    }
}

fn path_of(params: &Params) -> Result<String> {
    let path = params.get("path").ok_or_else(|| ApiError::bad("missing parameter: path"))?;
    if path.contains('\0') {
        return Err(ApiError::bad("a path has no NUL in it"));
    }
    Ok(path.to_owned())
}

/// What lies at a path, as the header that clients look for.
async fn stat(app: &Arc<Shared>, folder: &Folder, path: &str) -> Result<HeaderValue> {
    let mut running = Running::start(app, folder, Request::Stat(path.into()), path).await?;
    let mut bytes = Vec::new();
    if let Some(stdout) = running.child.stdout.as_mut() {
        let read = stdout.take(PIECE_BYTES as u64).read_to_end(&mut bytes).await;
        read.map_err(|error| ApiError::failed(format!("look at {path}: {error}")))?;
    }
    running.finish().await?;
    let stat = Stat::parse(&bytes).ok_or_else(|| ApiError::failed(format!("look at {path}: no answer")))?;
    let text = base64::engine::general_purpose::STANDARD.encode(describe(&stat).to_string());
    HeaderValue::try_from(text).map_err(|error| ApiError::failed(format!("look at {path}: {error}")))
}

fn describe(stat: &Stat) -> serde_json::Value {
    let ms = u64::try_from(stat.mtime).unwrap_or_default().saturating_mul(1000);
    json!({
        "name": String::from_utf8_lossy(&stat.name),
        "size": stat.size,
        "mode": go_mode(stat.mode),
        "mtime": workload::log::rfc3339(ms + u64::from(stat.mtime_ns) / 1_000_000),
        "linkTarget": String::from_utf8_lossy(&stat.link),
    })
}

/// Go's `os.FileMode` of a mode.
fn go_mode(mode: u32) -> u32 {
    let kind: u32 = match mode & 0o170_000 {
        0o040_000 => 1 << 31,
        0o120_000 => 1 << 27,
        0o060_000 => 1 << 26,
        0o020_000 => 1 << 26 | 1 << 21,
        0o010_000 => 1 << 25,
        0o140_000 => 1 << 24,
        _ => 0,
    };
    let bit = |is_set: u32, bit: u32| if mode & is_set != 0 { 1 << bit } else { 0 };
    kind | bit(0o4000, 23) | bit(0o2000, 22) | bit(0o1000, 20) | mode & 0o777
}

/// `HEAD /containers/NAME/archive`
pub(super) async fn head(State(app): App, Path(name): Path<String>, params: Params) -> Result {
    let path = path_of(&params)?;
    let folder = app.find(name).await?;
    let value = stat(&app, &folder, &path).await?;
    Ok((StatusCode::OK, [(STAT, value)]).into_response())
}

/// `GET /containers/NAME/archive`
pub(super) async fn get(State(app): App, Path(name): Path<String>, params: Params) -> Result {
    let path = path_of(&params)?;
    let folder = app.find(name).await?;
    let value = stat(&app, &folder, &path).await?;
    let request = Request::Get { path: path.clone().into(), name: None };
    let mut response = sent(&app, &folder, request, &path).await?;
    response.headers_mut().insert(STAT, value);
    Ok(response)
}

/// `GET /containers/NAME/export`
pub(super) async fn export(State(app): App, Path(name): Path<String>) -> Result {
    let folder = app.find(name).await?;
    sent(&app, &folder, Request::Export, "/").await
}

/// An archive as the body of an answer. What fails before its first byte is an error; later, the body ends early.
async fn sent(app: &Arc<Shared>, folder: &Folder, request: Request, path: &str) -> Result<Response> {
    let mut running = Running::start(app, folder, request, path).await?;
    let Some(mut stdout) = running.child.stdout.take() else {
        return Err(ApiError::failed("reach the files: no pipe"));
    };
    let first =
        piece(&mut stdout).await.map_err(|error| ApiError::failed(format!("read {path}: {error}")))?;
    let Some(first) = first else {
        running.finish().await?;
        return Ok(tar(Body::empty()));
    };
    let rest = stream::unfold(Some((running, stdout)), |state| async move {
        let (running, mut stdout) = state?;
        match piece(&mut stdout).await {
            Ok(Some(bytes)) => Some((Ok(bytes), Some((running, stdout)))),
            Ok(None) => match running.finish().await {
                Ok(()) => None,
                Err(error) => Some((Err(std::io::Error::other(error.message)), None)),
            },
            Err(error) => Some((Err(error), None)),
        }
    });
    Ok(tar(Body::from_stream(stream::once(async move { Ok::<_, std::io::Error>(first) }).chain(rest))))
}

fn tar(body: Body) -> Response {
    (StatusCode::OK, [(header::CONTENT_TYPE, "application/x-tar")], body).into_response()
}

async fn piece(stdout: &mut ChildStdout) -> std::io::Result<Option<Bytes>> {
    let mut buffer = bytes::BytesMut::with_capacity(PIECE_BYTES);
    let count = stdout.read_buf(&mut buffer).await?;
    Ok((count > 0).then(|| buffer.freeze()))
}

/// `PUT /containers/NAME/archive`
pub(super) async fn put(State(app): App, Path(name): Path<String>, params: Params, body: Body) -> Result {
    let path = path_of(&params)?;
    let folder = app.find(name).await?;
    let user = folder.description().wanted.said.as_ref().and_then(|said| said.get("User")?.as_str());
    let request = Request::Put {
        path: path.clone().into(),
        overwrite: if params.flag("noOverwriteDirNonDir") {
            Overwrite::SameKind
        } else {
            Overwrite::Anything
        },
        owner: match user.filter(|user| params.flag("copyUIDGID") && !user.is_empty()) {
            Some(user) => Owner::User(user.to_owned()),
            None => Owner::Archive,
        },
    };
    let mut running = Running::start(&app, &folder, request, &path).await?;
    let mut early = None;
    if let Some(mut stdin) = running.child.stdin.take() {
        let mut pieces = body.into_data_stream();
        while let Some(piece) = pieces.next().await {
            match piece {
                // Who does not read any more says why.
                Ok(piece) if stdin.write_all(&piece).await.is_err() => break,
                Ok(_) => {}
                Err(error) => {
                    early = Some(ApiError::bad(format!("the client's body ended early: {error}")));
                    break;
                }
            }
        }
        // Half an archive is not to be taken for a whole one.
        if let Some(error) = early {
            let _ = running.child.kill().await;
            return Err(error);
        }
    }
    // What is said is read beside, so that nobody waits.
    running.finish().await?;
    Ok(StatusCode::OK.into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_gos() {
        assert_eq!(go_mode(0o100_644), 0o644);
        assert_eq!(go_mode(0o041_777), 1 << 31 | 1 << 20 | 0o777);
        assert_eq!(go_mode(0o120_777), 1 << 27 | 0o777);
        assert_eq!(go_mode(0o020_620), 1 << 26 | 1 << 21 | 0o620);
        assert_eq!(go_mode(0o104_755), 1 << 23 | 0o755);
    }

    #[test]
    fn a_stat_is_told_as_docker_tells_it() {
        let stat =
            Stat { name: b"link".to_vec(), mode: 0o120_777, link: b"/etc".to_vec(), ..Stat::default() };
        let value = describe(&stat);
        assert_eq!((&value["name"], &value["linkTarget"]), (&json!("link"), &json!("/etc")));
        assert_eq!(value["mtime"], "1970-01-01T00:00:00.000Z");
    }
}
