//! `GET /strata/v1/workloads/NAME/terminal`: a command on a terminal in a workload, over a WebSocket.
//!
//! Binary messages are what is typed and what the terminal shows. Text messages are JSON: the client's `{"rows":24,"columns":80}`
//! is the size of its window; the server's last one is `{"exit_code":0}`. A client that leaves hangs up, as with any terminal.

use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitStatus;
use std::sync::Arc;

use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Path, Query, State};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use rustix::process::{Pid, Signal, kill_process};
use rustix::termios::{Winsize, tcsetwinsize};
use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Child;
use workload::Status;

use crate::backend::CommandOptions;
use crate::docker::{App, Shared};
use crate::error::{ApiError, Result};

/// Bytes of one message: more than anybody types, pastes too.
const MAX_MESSAGE_BYTES: usize = 1 << 20;
/// Bytes that are read of the terminal at once.
const CHUNK_BYTES: usize = 16 << 10;
/// What an image has, if it has any shell.
const SHELL: [&str; 3] =
    ["/bin/sh", "-c", "if command -v bash >/dev/null 2>&1; then exec bash -l; else exec sh -l; fi"];

/// What a client wants.
#[derive(Debug, Deserialize)]
pub(crate) struct Wanted {
    /// Instead of a shell: words, as JSON.
    command: Option<String>,
    user: Option<String>,
    #[serde(flatten)]
    size: Size,
}

/// A window.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
struct Size {
    #[serde(default = "rows", deserialize_with = "number")]
    rows: u16,
    #[serde(default = "columns", deserialize_with = "number")]
    columns: u16,
}

fn rows() -> u16 {
    24
}

fn columns() -> u16 {
    80
}

/// A number, or the text of one: queries have no numbers.
fn number<'de, D: serde::Deserializer<'de>>(from: D) -> std::result::Result<u16, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Number(u16),
        Text(String),
    }
    match Either::deserialize(from)? {
        Either::Number(number) => Ok(number),
        Either::Text(text) => text.parse().map_err(serde::de::Error::custom),
    }
}

/// `GET /strata/v1/workloads/NAME/terminal`
pub(crate) async fn open(
    State(app): App,
    Path(name): Path<String>,
    Query(wanted): Query<Wanted>,
    upgrade: WebSocketUpgrade,
) -> Result {
    let folder = app.find(name).await?;
    let command = match &wanted.command {
        None => SHELL.map(str::to_owned).to_vec(),
        Some(text) => serde_json::from_str(text)
            .ok()
            .filter(|words: &Vec<String>| !words.is_empty())
            .ok_or_else(|| ApiError::bad("command: it is words, as a list in JSON"))?,
    };
    let options = CommandOptions {
        command,
        env: vec!["TERM=xterm-256color".to_owned()],
        user: wanted.user.filter(|user| !user.is_empty()),
        tty: true,
        stdin: true,
        ..CommandOptions::default()
    };
    let program = app
        .blocking(move |backend| {
            let (status, name) = (folder.state()?.status, &folder.description().name);
            if status != Status::Running {
                return Err(ApiError::conflict(format!(
                    "open a terminal in {name}: it is {status}, not running"
                )));
            }
            Ok(backend.command(&folder, &options)?)
        })
        .await?;
    let terminal = Terminal::start(&program, wanted.size)?;
    Ok(upgrade.max_message_size(MAX_MESSAGE_BYTES).on_upgrade(move |socket| terminal.join(socket, app)))
}

/// A command on a terminal.
struct Terminal {
    child: Child,
    master: OwnedFd,
    input: pty_process::OwnedWritePty,
    output: pty_process::OwnedReadPty,
}

impl Terminal {
    fn start(program: &std::process::Command, size: Size) -> Result<Terminal> {
        let failed = |error: pty_process::Error| ApiError::failed(format!("open a terminal: {error}"));
        let (pty, pts) = pty_process::open().map_err(failed)?;
        let master = pty.as_fd().try_clone_to_owned().map_err(|error| failed(error.into()))?;
        pty.resize(pty_process::Size::new(size.rows, size.columns)).map_err(failed)?;
        let child = pty_process::Command::new(program.get_program()).args(program.get_args());
        let child = child.kill_on_drop(true).spawn(pts).map_err(failed)?;
        let (output, input) = pty.into_split();
        Ok(Terminal { child, master, input, output })
    }

    /// Carries what is typed and shown, until the command ends or the client leaves.
    async fn join(self, socket: WebSocket, _app: Arc<Shared>) {
        let Terminal { mut child, master, input, output } = self;
        let (mut to, from) = socket.split();
        let typing = type_in(from, input, master, child.id());
        tokio::select! {
            () = show(output, &mut to) => {
                let code = child.wait().await.map_or(125, exit_code);
                let _ = to.send(Message::text(json!({ "exit_code": code }).to_string())).await;
                let _ = to.close().await;
            }
            () = typing => {
                // As when a window is closed: the program hands it on to the command, and ends.
                if let Some(pid) = pid_of(child.id()) {
                    let _ = kill_process(pid, Signal::HUP);
                }
                let _ = tokio::time::timeout(std::time::Duration::from_secs(2), child.wait()).await;
            }
        }
    }
}

fn pid_of(id: Option<u32>) -> Option<Pid> {
    Pid::from_raw(i32::try_from(id?).ok()?)
}

fn exit_code(status: ExitStatus) -> i32 {
    let signal = std::os::unix::process::ExitStatusExt::signal(&status);
    status.code().unwrap_or(128 + signal.unwrap_or_default())
}

async fn show(mut output: pty_process::OwnedReadPty, to: &mut SplitSink<WebSocket, Message>) {
    let mut buffer = vec![0; CHUNK_BYTES];
    // A terminal whose last user is gone is an error, not an end.
    while let Ok(count @ 1..) = output.read(&mut buffer).await {
        if to.send(Message::binary(buffer[..count].to_vec())).await.is_err() {
            return;
        }
    }
}

/// Ends when the client does.
async fn type_in(
    mut from: SplitStream<WebSocket>,
    mut input: pty_process::OwnedWritePty,
    master: OwnedFd,
    child: Option<u32>,
) {
    while let Some(Ok(message)) = from.next().await {
        match message {
            Message::Binary(bytes) => {
                if input.write_all(&bytes).await.is_err() {
                    // The command is about to end, which is told by its output's end.
                    continue;
                }
            }
            Message::Text(text) => {
                // What is not understood is nothing to end a session for.
                let Ok(Size { rows, columns }) = serde_json::from_str(&text) else { continue };
                let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
                let _ = tcsetwinsize(&master, size);
                // The kernel tells those in the foreground of the terminal; the program need not be.
                if let Some(pid) = pid_of(child) {
                    let _ = kill_process(pid, Signal::WINCH);
                }
            }
            Message::Close(_) => return,
            Message::Ping(_) | Message::Pong(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_numbers_or_their_texts() {
        let size = |text: &str| serde_json::from_str::<Size>(text).ok();
        assert_eq!(size(r#"{"rows":50,"columns":"132"}"#), Some(Size { rows: 50, columns: 132 }));
        assert_eq!(size("{}"), Some(Size { rows: 24, columns: 80 }));
        assert!(size(r#"{"rows":-1}"#).is_none() && size(r#"{"rows":70000}"#).is_none());
    }
}
