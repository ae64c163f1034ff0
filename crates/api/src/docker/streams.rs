//! Streams of a workload on a connection that was an HTTP connection before, or in the body of an answer.
//!
//! With a terminal all output is one stream. Without one each piece has a head of eight bytes: 1 for standard output, 2 for
//! standard error, three of nothing, and the length, most significant byte first.

use std::os::fd::OwnedFd;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper::Request;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;

use super::keys::{DetachKeys, Typed};
use crate::error::{ApiError, Result};

/// Bytes that are read of a stream at once.
const CHUNK_BYTES: usize = 32 << 10;
/// Pieces that wait for a slow client before the workload does.
const PIECES: usize = 8;
/// How long the head of an upgrade is alone on its connection before output follows that was there already. Docker's SDK for
/// Python reads the head through a buffer and the rest past it: what came with the head is lost there.
const HEAD_ALONE: Duration = Duration::from_millis(50);

/// What is read for its end alone.
pub(super) const NOBODYS: u8 = 0;
/// Standard output.
pub(super) const STDOUT: u8 = 1;
/// Standard error.
pub(super) const STDERR: u8 = 2;

/// A piece of output with its head, where it has one.
pub(super) fn framed(stream: u8, bytes: &[u8], is_raw: bool) -> Bytes {
    if is_raw {
        return Bytes::copy_from_slice(bytes);
    }
    let mut piece = Vec::with_capacity(bytes.len() + 8);
    piece.extend([stream, 0, 0, 0]);
    piece.extend(u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
    piece.extend(bytes);
    piece.into()
}

/// The media type of what [`framed`] makes.
pub(super) fn media_type(is_raw: bool) -> &'static str {
    if is_raw { "application/vnd.docker.raw-stream" } else { "application/vnd.docker.multiplexed-stream" }
}

/// A pipe of which this process keeps the end that is not handed on.
pub(super) fn output_pipe() -> Result<(pipe::Receiver, OwnedFd)> {
    let (read, write) = std::io::pipe().map_err(no_pipe)?;
    Ok((pipe::Receiver::from_owned_fd(read.into()).map_err(no_pipe)?, write.into()))
}

/// As [`output_pipe`], the other way.
pub(super) fn input_pipe() -> Result<(OwnedFd, pipe::Sender)> {
    let (read, write) = std::io::pipe().map_err(no_pipe)?;
    Ok((read.into(), pipe::Sender::from_owned_fd(write.into()).map_err(no_pipe)?))
}

fn no_pipe(error: std::io::Error) -> ApiError {
    ApiError::failed(format!("make a pipe: {error}"))
}

/// What comes out of a workload.
pub(super) type Output = Box<dyn AsyncRead + Send + Unpin>;
/// What goes into it.
pub(super) type Input = Box<dyn AsyncWrite + Send + Unpin>;

/// The streams of a command, as far as the client wants them.
#[derive(Default)]
pub(super) struct Streams {
    /// What it reads.
    pub(super) stdin: Option<Input>,
    /// Keys that take the client away from it, where it has a terminal.
    pub(super) detach: Option<DetachKeys>,
    /// Whoever leaves by them leaves a command whose streams these are alone.
    pub(super) reads_on: bool,
    /// What it writes, by number.
    pub(super) outputs: Vec<(u8, Output)>,
    /// The client takes all for one stream, as it does what a terminal writes.
    pub(super) is_raw: bool,
    /// What was written before.
    pub(super) before: Vec<Bytes>,
}

impl Streams {
    /// All output in its order, until all of it has ended.
    fn collect(self) -> (Option<Input>, Option<DetachKeys>, mpsc::Receiver<Bytes>) {
        let (sender, receiver) = mpsc::channel(PIECES);
        let Streams { stdin, detach, outputs, is_raw, before, reads_on: _ } = self;
        tokio::spawn(async move {
            for piece in before {
                if sender.send(piece).await.is_err() {
                    return;
                }
            }
            for (number, output) in outputs {
                tokio::spawn(read(number, output, is_raw, sender.clone()));
            }
        });
        (stdin, detach, receiver)
    }
}

async fn read(number: u8, mut output: Output, is_raw: bool, sender: mpsc::Sender<Bytes>) {
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let count = tokio::select! {
            count = output.read(&mut buffer) => count,
            // The client is gone: what is written now finds nobody.
            () = sender.closed() => return,
        };
        // A terminal whose last user is gone is an error, not an end.
        let Ok(count @ 1..) = count else { return };
        if number == NOBODYS {
            continue;
        }
        if sender.send(framed(number, &buffer[..count], is_raw)).await.is_err() {
            return;
        }
    }
}

/// A body of what comes through a channel, until its other end is gone.
pub(super) fn body(mut pieces: mpsc::Receiver<Bytes>) -> Body {
    Body::from_stream(futures_util::stream::poll_fn(move |context| {
        pieces.poll_recv(context).map(|piece| piece.map(Ok::<Bytes, std::convert::Infallible>))
    }))
}

/// Whether a client wants the connection itself.
pub(super) fn wants_upgrade(headers: &HeaderMap) -> bool {
    headers.contains_key(header::UPGRADE)
}

/// Takes the connection of a request that asked for that.
pub(super) fn upgrade_of(request: &mut Request<Body>) -> Option<OnUpgrade> {
    wants_upgrade(request.headers()).then(|| hyper::upgrade::on(request))
}

/// Hands on what the client sends, until keys take it away: then what the command reads is given back, for it does not end with this
/// client. It never returns otherwise; the rest is output.
async fn type_into(
    stdin: Option<Input>,
    detach: Option<DetachKeys>,
    from: &mut (impl AsyncRead + Unpin),
) -> Input {
    match (stdin, detach) {
        (Some(mut stdin), Some(keys)) => {
            if keys.copy(from, &mut stdin).await == Typed::Detach {
                return stdin;
            }
            let _ = stdin.shutdown().await;
        }
        (Some(mut stdin), None) => {
            let _ = tokio::io::copy(from, &mut stdin).await;
            let _ = stdin.shutdown().await;
        }
        // What the client sends is read, so that its end is seen.
        (None, _) => drop(tokio::io::copy(from, &mut tokio::io::sink()).await),
    }
    std::future::pending().await
}

/// Joins the client to the streams: on its connection, if it wants that, or with the output in the body of the answer. `ended` is
/// called when the output has ended and is sent.
pub(super) fn join(
    connection: Option<OnUpgrade>,
    streams: Streams,
    ended: impl Future<Output = ()> + Send + 'static,
) -> Response {
    let media = [(header::CONTENT_TYPE, media_type(streams.is_raw))];
    let is_waiting = !streams.before.is_empty();
    let reads_on = streams.reads_on;
    let (stdin, detach, mut pieces) = streams.collect();
    let Some(connection) = connection else {
        drop(stdin);
        let stream =
            futures_util::stream::unfold((pieces, Some(ended)), |(mut pieces, mut ended)| async move {
                match pieces.recv().await {
                    Some(piece) => Some((Ok::<_, std::convert::Infallible>(piece), (pieces, ended))),
                    None => {
                        if let Some(ended) = ended.take() {
                            // Pinned where it is: an async block may not be moved once it runs.
                            ended.await;
                        }
                        None
                    }
                }
            });
        return (StatusCode::OK, media, Body::from_stream(stream)).into_response();
    };
    tokio::spawn(async move {
        let Ok(upgraded) = connection.await else { return };
        if is_waiting {
            tokio::time::sleep(HEAD_ALONE).await;
        }
        let (mut from, mut to) = tokio::io::split(TokioIo::new(upgraded));
        let mut typing = tokio::spawn(async move { type_into(stdin, detach, &mut from).await });
        let left = loop {
            tokio::select! {
                piece = pieces.recv() => match piece {
                    Some(piece) if to.write_all(&piece).await.is_ok() => {}
                    _ => break None,
                },
                Ok(stdin) = &mut typing => break Some(stdin),
            }
        };
        if left.is_none() {
            ended.await;
        }
        let _ = to.shutdown().await;
        if left.is_some() {
            // Somebody has to read what nobody sees, until there is no more.
            while reads_on && pieces.recv().await.is_some() {}
        }
        typing.abort();
    });
    let head = [(header::CONNECTION, "Upgrade"), (header::UPGRADE, "tcp")];
    (StatusCode::SWITCHING_PROTOCOLS, media, head).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_have_a_head_where_there_is_no_terminal() {
        assert_eq!(framed(STDERR, b"abc", false).as_ref(), b"\x02\0\0\0\0\0\0\x03abc");
        assert_eq!(framed(STDOUT, b"abc", true).as_ref(), b"abc");
    }
}
