//! `exec`: another command in a workload. It is announced, started, looked at; the program that runs it is a child of the server.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use bollard_stubs::models::{ExecConfig, ExecStartConfig};
use hyper::Request as HttpRequest;
use rustix::termios::Winsize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::process::Child;
use tokio::sync::oneshot;
use workload::Status;

use super::keys::DetachKeys;
use super::params::Params;
use super::streams::{self, STDERR, STDOUT, Streams};
use super::{App, MAX_BODY_BYTES, Shared, json, lifecycle};
use crate::backend::CommandOptions;
use crate::error::{ApiError, Result};

/// How long a command is told about that was never started, or has ended.
const KEPT: Duration = Duration::from_secs(600);
/// Lines and columns of a terminal whose client does not say.
const DEFAULT_SIZE: (u16, u16) = (24, 80);
/// Commands that are told about at once.
const MAX_EXECS: usize = 4096;

/// The commands that were announced, by id. Who announced one asks soon; a server that ends forgets them.
#[derive(Default)]
pub(crate) struct Execs(Mutex<HashMap<String, Exec>>);

struct Exec {
    container: String,
    options: CommandOptions,
    outputs: (bool, bool),
    size: Option<(u16, u16)>,
    detach_keys: DetachKeys,
    changed: Instant,
    state: ExecState,
}

enum ExecState {
    Announced,
    /// The program that runs it, and its terminal.
    Running {
        pid: Option<u32>,
        terminal: Option<OwnedFd>,
    },
    Ended(i64),
}

impl Execs {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Exec>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The ids of those that run in this workload.
    pub(super) fn of(&self, container: &str) -> Vec<String> {
        let runs =
            |exec: &Exec| exec.container == container && matches!(exec.state, ExecState::Running { .. });
        self.lock().iter().filter(|(_, exec)| runs(exec)).map(|(id, _)| id.clone()).collect()
    }

    fn add(&self, exec: Exec) -> Result<String> {
        let mut all = self.lock();
        all.retain(|_, exec| {
            matches!(exec.state, ExecState::Running { .. }) || exec.changed.elapsed() < KEPT
        });
        if all.len() >= MAX_EXECS {
            // Of those that do not run the oldest is asked for least.
            let rests = all.iter().filter(|(_, exec)| !matches!(exec.state, ExecState::Running { .. }));
            if let Some(oldest) = rests.min_by_key(|(_, exec)| exec.changed).map(|(id, _)| id.clone()) {
                all.remove(&oldest);
            }
        }
        if all.len() >= MAX_EXECS {
            return Err(ApiError::failed(format!("more than {MAX_EXECS} commands at once")));
        }
        let id = new_id()?;
        all.insert(id.clone(), exec);
        Ok(id)
    }

    fn set(&self, id: &str, state: ExecState) {
        if let Some(exec) = self.lock().get_mut(id) {
            exec.state = state;
            exec.changed = Instant::now();
        }
    }
}

fn new_id() -> Result<String> {
    let mut bytes = [0; 32];
    let got = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    match got {
        Ok(32) => Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect()),
        _ => Err(ApiError::failed("the host gives no random numbers")),
    }
}

/// A body that may be missing, whatever its media type says.
fn parse<T: DeserializeOwned + Default>(bytes: &[u8]) -> Result<T> {
    if bytes.trim_ascii().is_empty() {
        return Ok(T::default());
    }
    serde_json::from_slice(bytes).map_err(|error| ApiError::bad(format!("invalid JSON: {error}")))
}

/// `POST /containers/NAME/exec`
pub(super) async fn create(State(app): App, Path(name): Path<String>, body: axum::body::Bytes) -> Result {
    let config: ExecConfig = parse(&body)?;
    let folder = app.find(name).await?;
    let look = folder.clone();
    let status = app.blocking(move |_| Ok(look.state()?.status)).await?;
    let id = folder.description().id.clone();
    match status {
        Status::Running => {}
        Status::Paused => {
            return Err(ApiError::conflict(format!("Container {id} is paused, unpause it first")));
        }
        _ => return Err(ApiError::conflict(format!("Container {id} is not running"))),
    }
    let command = config.cmd.unwrap_or_default();
    if command.is_empty() {
        return Err(ApiError::bad("No exec command specified"));
    }
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    let exec = Exec {
        container: id,
        options: CommandOptions {
            command,
            env: config.env.unwrap_or_default(),
            workdir: given(config.working_dir),
            user: given(config.user),
            tty: config.tty.unwrap_or_default(),
            stdin: config.attach_stdin.unwrap_or_default(),
            privileged: config.privileged.unwrap_or_default(),
            id: None,
        },
        outputs: (config.attach_stdout.unwrap_or_default(), config.attach_stderr.unwrap_or_default()),
        size: console_size(config.console_size.as_deref()),
        detach_keys: DetachKeys::parse(config.detach_keys.as_deref().unwrap_or_default())?,
        changed: Instant::now(),
        state: ExecState::Announced,
    };
    let action = format!("exec_create: {}", exec.options.command.join(" "));
    let id = app.execs.add(exec)?;
    let said = id.clone();
    app.blocking(move |_| {
        folder.tell(&action, &[("execID", said)]);
        Ok(())
    })
    .await?;
    Ok(json(StatusCode::CREATED, &json!({ "Id": id })))
}

/// Lines and columns, unless both are 0.
pub(super) fn console_size(size: Option<&[usize]>) -> Option<(u16, u16)> {
    let &[rows, columns] = size? else { return None };
    Some((u16::try_from(rows).ok()?, u16::try_from(columns).ok()?)).filter(|size| *size != (0, 0))
}

/// `POST /exec/ID/start`
pub(super) async fn start(State(app): App, Path(id): Path<String>, mut request: HttpRequest<Body>) -> Result {
    let connection = streams::upgrade_of(&mut request);
    let body = axum::body::to_bytes(request.into_body(), MAX_BODY_BYTES).await;
    let wanted: ExecStartConfig = parse(&body.map_err(|error| ApiError::bad(error.to_string()))?)?;
    let detach = wanted.detach.unwrap_or_default();
    let (container, mut options, outputs, size, keys) = {
        let mut execs = app.execs.lock();
        let exec = execs.get_mut(&id).ok_or_else(|| no_exec(&id))?;
        if !matches!(exec.state, ExecState::Announced) {
            return Err(ApiError::conflict(format!("exec {id} was started already")));
        }
        exec.state = ExecState::Running { pid: None, terminal: None };
        (exec.container.clone(), exec.options.clone(), exec.outputs, exec.size, exec.detach_keys.clone())
    };
    options.id = Some(id.clone());
    options.stdin &= !detach && connection.is_some();
    options.tty &= !detach;
    let keys = options.tty.then_some(keys);
    let size = console_size(wanted.console_size.as_deref()).or(size);
    let started = spawn(&app, &id, container, options.clone(), size).await;
    let Started { child, mut streams } =
        started.inspect_err(|_| app.execs.set(&id, ExecState::Ended(126)))?;
    let ended = wait_for(app.clone(), id, child);
    if detach {
        // Somebody has to read what nobody wants.
        tokio::spawn(async move {
            for (_, mut output) in streams.outputs {
                let _ = tokio::io::copy(&mut output, &mut tokio::io::sink()).await;
            }
        });
        return Ok(StatusCode::OK.into_response());
    }
    streams.outputs.retain(|(number, _)| match *number {
        STDERR => outputs.1,
        _ => outputs.0 || outputs.1 && options.tty,
    });
    // What it was said to be here counts, not what it is.
    streams.is_raw = wanted.tty.unwrap_or_default();
    streams.detach = keys;
    Ok(streams::join(connection, streams, async move {
        // Who sees the end of the output may ask for the exit code at once.
        let _ = ended.await;
    }))
}

struct Started {
    child: Child,
    streams: Streams,
}

async fn spawn(
    app: &Arc<Shared>,
    id: &str,
    container: String,
    options: CommandOptions,
    size: Option<(u16, u16)>,
) -> Result<Started> {
    let folder = app.find(container).await?;
    let asked = options.clone();
    let command = app.blocking(move |backend| Ok(backend.command(&folder, &asked)?)).await?;
    if options.tty {
        on_terminal(app, id, &command, &options, size)
    } else {
        on_pipes(app, id, command, &options)
    }
}

fn on_terminal(
    app: &Shared,
    id: &str,
    command: &std::process::Command,
    options: &CommandOptions,
    size: Option<(u16, u16)>,
) -> Result<Started> {
    let (pty, pts) = pty_process::open().map_err(not_started)?;
    // That of the command's own is behind it and makes of its lines what a terminal makes of them.
    let mut settings = rustix::termios::tcgetattr(&pty).map_err(not_started)?;
    settings.make_raw();
    let now = rustix::termios::OptionalActions::Now;
    rustix::termios::tcsetattr(&pty, now, &settings).map_err(not_started)?;
    let terminal = pty.as_fd().try_clone_to_owned().map_err(not_started)?;
    let (rows, columns) = size.unwrap_or(DEFAULT_SIZE);
    pty.resize(pty_process::Size::new(rows, columns)).map_err(not_started)?;
    let child = pty_process::Command::new(command.get_program()).args(command.get_args()).spawn(pts);
    let child = child.map_err(not_started)?;
    let (output, input) = pty.into_split();
    app.execs.set(id, ExecState::Running { pid: child.id(), terminal: Some(terminal) });
    let stdin = options.stdin.then(|| Box::new(input) as streams::Input);
    let outputs: Vec<(u8, streams::Output)> = vec![(STDOUT, Box::new(output))];
    Ok(Started { child, streams: Streams { stdin, outputs, reads_on: true, ..Streams::default() } })
}

fn on_pipes(
    app: &Shared,
    id: &str,
    command: std::process::Command,
    options: &CommandOptions,
) -> Result<Started> {
    let mut command = tokio::process::Command::from(command);
    command.stdin(if options.stdin { Stdio::piped() } else { Stdio::null() });
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(not_started)?;
    app.execs.set(id, ExecState::Running { pid: child.id(), terminal: None });
    let stdin = child.stdin.take().map(|stream| Box::new(stream) as streams::Input);
    let mut outputs: Vec<(u8, streams::Output)> = Vec::new();
    outputs.extend(child.stdout.take().map(|stream| (STDOUT, Box::new(stream) as streams::Output)));
    outputs.extend(child.stderr.take().map(|stream| (STDERR, Box::new(stream) as streams::Output)));
    Ok(Started { child, streams: Streams { stdin, outputs, ..Streams::default() } })
}

fn not_started(error: impl std::fmt::Display) -> ApiError {
    ApiError::failed(format!("start the command: {error}"))
}

/// `POST /exec/ID/resize`
pub(super) async fn resize(State(app): App, Path(id): Path<String>, params: Params) -> Result {
    let (rows, columns) = lifecycle::size(&params)?;
    let execs = app.execs.lock();
    let exec = execs.get(&id).ok_or_else(|| no_exec(&id))?;
    let ExecState::Running { pid: Some(pid), terminal: Some(terminal) } = &exec.state else {
        return Err(ApiError::conflict(format!("exec {id} has no terminal, or does not run")));
    };
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    let set = rustix::termios::tcsetwinsize(terminal, size);
    set.map_err(|error| ApiError::failed(format!("set the size of the terminal: {error}")))?;
    // The kernel tells those in the foreground of the terminal; the program need not be.
    if let Some(pid) = i32::try_from(*pid).ok().and_then(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::WINCH);
    }
    Ok(StatusCode::OK.into_response())
}

/// `GET /exec/ID/json`
pub(super) async fn inspect(State(app): App, Path(id): Path<String>) -> Result {
    let execs = app.execs.lock();
    let exec = execs.get(&id).ok_or_else(|| no_exec(&id))?;
    let (running, code, pid) = match &exec.state {
        ExecState::Announced => (false, None, None),
        ExecState::Running { pid, .. } => (true, None, *pid),
        ExecState::Ended(code) => (false, Some(*code), None),
    };
    let (entrypoint, arguments) = exec.options.command.split_first().unzip();
    Ok(json(
        StatusCode::OK,
        &json!({
            "ID": id,
            "ContainerID": exec.container,
            "Running": running,
            "ExitCode": code,
            "Pid": pid.unwrap_or_default(),
            "CanRemove": false,
            "DetachKeys": exec.detach_keys.words(),
            "OpenStdin": exec.options.stdin,
            "OpenStdout": exec.outputs.0,
            "OpenStderr": exec.outputs.1,
            "ProcessConfig": {
                "tty": exec.options.tty,
                "entrypoint": entrypoint,
                "arguments": arguments.unwrap_or_default(),
                "privileged": false,
                "user": exec.options.user.clone().unwrap_or_default(),
            },
        }),
    ))
}

/// Waits for the program's end, on a task of its own: whoever started it may be gone before.
fn wait_for(app: Arc<Shared>, id: String, mut child: Child) -> oneshot::Receiver<()> {
    let (sender, receiver) = oneshot::channel();
    tokio::spawn(async move {
        let code = child.wait().await.map_or(-1, code);
        app.execs.set(&id, ExecState::Ended(code));
        let _ = sender.send(());
    });
    receiver
}

fn code(status: ExitStatus) -> i64 {
    let signal = std::os::unix::process::ExitStatusExt::signal(&status);
    i64::from(status.code().unwrap_or(128 + signal.unwrap_or_default()))
}

fn no_exec(id: &str) -> ApiError {
    ApiError::not_found(format!("No such exec instance: {id}"))
}
