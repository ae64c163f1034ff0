//! `GET /containers/NAME/logs`: what a workload wrote, and what it writes.

use std::path::Path as FilePath;

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use tokio::sync::mpsc;
use workload::Folder;
use workload::log::{self, Entry, Part, Reader, rfc3339};

use super::App;
use super::params::Params;
use super::streams::{self, STDERR, STDOUT, framed};
use crate::error::{ApiError, Result};

/// What a client wants to see.
#[derive(Clone, Debug)]
struct Wanted {
    stdout: bool,
    stderr: bool,
    part: Part,
    timestamps: bool,
    since: Option<String>,
    until: Option<String>,
    is_raw: bool,
}

impl Wanted {
    fn of(params: &Params, folder: &Folder) -> Result<Wanted> {
        let (stdout, stderr) = (params.flag("stdout"), params.flag("stderr"));
        if !stdout && !stderr {
            return Err(ApiError::bad("Bad parameters: you must choose at least one stream"));
        }
        let time = |name| params.get(name).filter(|text| *text != "0").map(time).transpose();
        // Anything that is no number is all of them, docker says.
        let tail = params.get("tail").and_then(|text| text.parse().ok());
        Ok(Wanted {
            stdout,
            stderr,
            part: Part { tail, follow: params.flag("follow") },
            timestamps: params.flag("timestamps"),
            since: time("since")?,
            until: time("until")?,
            is_raw: folder.description().wanted.tty,
        })
    }

    /// The line as it is sent, if it is.
    fn piece(&self, entry: &Entry) -> Option<Bytes> {
        let number = number(entry);
        let wanted = if number == STDERR { self.stderr } else { self.stdout };
        // Times of one form compare as text.
        let early = self.since.as_ref().is_some_and(|since| entry.time < *since);
        let late = self.until.as_ref().is_some_and(|until| entry.time > *until);
        if !wanted || early || late {
            return None;
        }
        let stamp = if self.timestamps { format!("{} ", entry.time) } else { String::new() };
        Some(framed(number, format!("{stamp}{}", entry.log).as_bytes(), self.is_raw))
    }
}

/// Seconds since 1970, with a fraction, as the log has its times.
fn time(text: &str) -> Result<String> {
    let wrong = || ApiError::bad(format!("invalid time {text:?}: seconds since 1970"));
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: u64 = seconds.parse().map_err(|_| wrong())?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return Err(wrong());
    }
    let ms: u64 = format!("{fraction:0<3}")[..3].parse().map_err(|_| wrong())?;
    Ok(rfc3339(seconds.saturating_mul(1000).saturating_add(ms)))
}

/// The number of an entry's stream.
pub(super) fn number(entry: &Entry) -> u8 {
    if entry.stream == "stderr" { STDERR } else { STDOUT }
}

/// All that is kept.
pub(super) fn all(path: &FilePath) -> Result<Vec<Entry>> {
    let mut reader = Reader::open(path)?;
    let mut entries = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        entries.push(entry);
    }
    Ok(entries)
}

/// `GET /containers/NAME/logs`
pub(super) async fn logs(State(app): App, Path(name): Path<String>, params: Params) -> Result {
    let folder = app.find(name).await?;
    if folder.description().wanted.log.files == 0 {
        return Err(ApiError::not_offered("configured logging driver does not support reading"));
    }
    let wanted = Wanted::of(&params, &folder)?;
    let media = [(header::CONTENT_TYPE, streams::media_type(wanted.is_raw))];
    let (sender, receiver) = mpsc::channel(16);
    tokio::task::spawn_blocking(move || {
        // A log that cannot be read ends the answer early: its head is sent by then.
        if let Err(error) = send(&folder, &wanted, &sender) {
            tracing::warn!("read the log of {}: {}", folder.description().name, error.message);
        }
    });
    Ok((StatusCode::OK, media, streams::body(receiver)).into_response())
}

fn send(folder: &Folder, wanted: &Wanted, to: &mpsc::Sender<Bytes>) -> Result<()> {
    let choose = |entry: Entry| wanted.piece(&entry);
    let show = |piece| to.blocking_send(piece).is_ok();
    Ok(log::read(folder, wanted.part, choose, show, || !to.is_closed())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> Wanted {
        Wanted {
            stdout: true,
            stderr: false,
            part: Part::default(),
            timestamps: true,
            since: Some(time("1795243226.007").unwrap()),
            until: Some(time("1795243227").unwrap()),
            is_raw: true,
        }
    }

    #[test]
    fn lines_are_chosen_by_stream_and_time() {
        let piece = |stream: &str, ms| {
            let entry = Entry { log: "x\n".to_owned(), stream: stream.to_owned(), time: rfc3339(ms) };
            wanted().piece(&entry)
        };
        assert_eq!(piece("stdout", 1_795_243_226_007).unwrap().as_ref(), b"2026-11-21T06:40:26.007Z x\n");
        assert!(piece("stdout", 1_795_243_226_006).is_none() && piece("stdout", 1_795_243_227_001).is_none());
        assert!(piece("stderr", 1_795_243_226_100).is_none());
        for wrong in ["x", "1.x", "-1", "1.2.3"] {
            assert!(time(wrong).is_err(), "{wrong}");
        }
    }
}
