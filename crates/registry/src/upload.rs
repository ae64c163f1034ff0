//! Blobs on their way to a registry: not sent when they are there, taken from another repository where the registry can, else
//! sent whole or in pieces.
//!
//! Source: OCI distribution specification 1.1, "Pushing blobs" and "Mounting a blob from another repository".

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::sync::atomic::{AtomicBool, Ordering};

use image::{Digest, Part};
use ureq::http::header::{CONTENT_RANGE, CONTENT_TYPE, HeaderName, HeaderValue, RANGE};
use ureq::http::{Method, StatusCode, Uri};

use crate::auth::Scope;
use crate::client::Client;
use crate::error::Cause;
use crate::http::{self, Call, Payload, Response};
use crate::timeouts::Kind;
use crate::work::Patience;

const OCTETS: HeaderValue = HeaderValue::from_static("application/octet-stream");
/// The least that a registry takes as one piece.
const CHUNK_MIN: HeaderName = HeaderName::from_static("oci-chunk-min-length");

/// How a blob came to be in a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrived {
    /// It was there.
    Present,
    /// The registry had it in another repository.
    Mounted,
    /// It was sent.
    Sent,
}

/// A blob for a repository.
pub(crate) struct Outgoing<'a> {
    pub(crate) client: &'a Client,
    pub(crate) scope: &'a Scope,
    pub(crate) repository: &'a str,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    /// A repository of the same registry that should have it.
    pub(crate) mount_from: Option<String>,
    pub(crate) chunk_bytes: u64,
    pub(crate) called_off: &'a AtomicBool,
}

/// An upload that the registry has begun.
struct Session {
    location: Uri,
    /// Bytes of a piece.
    chunk: u64,
}

/// Attempts that are counted until one of them gets further than all before it. A registry that takes pieces and forgets
/// them would never end otherwise, in one upload or in one after the other.
struct Effort<'a> {
    patience: Patience<'a>,
    /// The most bytes that the registry ever had.
    best: u64,
}

impl Effort<'_> {
    fn reached(&mut self, sent: u64) {
        if sent > self.best {
            self.best = sent;
            self.patience.renew();
        }
    }
}

/// What came of the attempt to send pieces.
enum Pieces {
    Done,
    /// The registry takes none.
    Refused,
}

type Outcome<T> = Result<T, Cause>;

impl Outgoing<'_> {
    /// Sees to it that the registry has the blob, whose bytes are those of `file`.
    pub(crate) fn send(&self, file: &mut File, part: &mut dyn Part) -> Outcome<Arrived> {
        let patience = Patience::new(self.client.http.timeouts).unless(self.called_off);
        let mut effort = Effort { patience, best: 0 };
        let mut in_pieces = true;
        loop {
            match self.attempt(file, part, &mut effort, &mut in_pieces) {
                Ok(arrived) => return Ok(arrived),
                Err(cause) => effort.patience.wait(cause)?,
            }
        }
    }

    fn attempt(
        &self,
        file: &mut File,
        part: &mut dyn Part,
        effort: &mut Effort<'_>,
        in_pieces: &mut bool,
    ) -> Outcome<Arrived> {
        // Nobody waits any more for what would be tried again.
        if self.called_off.load(Ordering::Relaxed) {
            return Err(Cause::CalledOff);
        }
        // Also after a failure: the end of the last attempt may have arrived, and its answer not.
        if self.exists()? {
            return Ok(Arrived::Present);
        }
        let Some(session) = self.begin(self.mount_from.as_deref())? else { return Ok(Arrived::Mounted) };
        if *in_pieces && self.size > session.chunk {
            match self.send_pieces(session, file, part, effort)? {
                Pieces::Done => return Ok(Arrived::Sent),
                Pieces::Refused => *in_pieces = false,
            }
            let Some(session) = self.begin(None)? else { return Ok(Arrived::Mounted) };
            return self.send_whole(&session, file, part);
        }
        self.send_whole(&session, file, part)
    }

    fn url(&self, rest: &str) -> Uri {
        self.client.url(&format!("{}/blobs/{rest}", self.repository))
    }

    fn exists(&self) -> Outcome<bool> {
        let url = self.url(&self.digest.to_string());
        let response = self.client.call(self.scope, Call::new(Method::HEAD, url.clone()))?;
        match response.status() {
            StatusCode::OK => match http::content_length(&response) {
                Some(length) if length != self.size => {
                    Err(http::protocol(&url, format!("it has {length} bytes of a blob of {}", self.size)))
                }
                _ => Ok(true),
            },
            StatusCode::NOT_FOUND => Ok(false),
            _ => Err(self.client.status(&url, response)),
        }
    }

    /// Begins an upload; nothing when the registry took the blob from another repository.
    fn begin(&self, from: Option<&str>) -> Outcome<Option<Session>> {
        let url = match from {
            Some(from) => self.url(&format!("uploads/?mount={}&from={from}", self.digest)),
            None => self.url("uploads/"),
        };
        let response = self.client.call(self.scope, Call::new(Method::POST, url.clone()))?;
        match response.status() {
            StatusCode::CREATED if from.is_some() => Ok(None),
            StatusCode::ACCEPTED => {
                let least = response.headers().get(CHUNK_MIN).and_then(|v| v.to_str().ok()?.parse().ok());
                let chunk = self.chunk_bytes.max(least.unwrap_or(0)).max(1);
                Ok(Some(Session { location: self.client.location(&url, &response)?, chunk }))
            }
            // The other repository is one that we may not see: then without it.
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND if from.is_some() => {
                drop(response);
                self.begin(None)
            }
            _ => Err(self.client.status(&url, response)),
        }
    }

    fn send_whole(&self, session: &Session, file: &mut File, part: &mut dyn Part) -> Outcome<Arrived> {
        let url = with_digest(&session.location, &self.digest)?;
        let mut source = self.source(file, part, 0, self.size)?;
        let call =
            Call::new(Method::PUT, url.clone()).kind(Kind::Upload(self.size)).header(CONTENT_TYPE, OCTETS);
        let call = call.payload(Payload::Stream(&mut source, self.size));
        let sent = self.client.call(self.scope, call);
        self.check_end(&url, source.explain(sent)?)
    }

    fn send_pieces(
        &self,
        session: Session,
        file: &mut File,
        part: &mut dyn Part,
        effort: &mut Effort<'_>,
    ) -> Outcome<Pieces> {
        let Session { mut location, chunk } = session;
        let mut sent = 0;
        while sent < self.size {
            let end = self.size.min(sent + chunk);
            match self.send_piece(&location, file, part, sent, end) {
                Ok(Some(next)) => {
                    location = next;
                    sent = end;
                    effort.reached(sent);
                }
                Ok(None) if sent == 0 => return Ok(Pieces::Refused),
                Ok(None) => {
                    return Err(http::protocol(&location, format!("it refuses the bytes from {sent} on")));
                }
                Err(cause) => {
                    effort.patience.wait(cause)?;
                    // A piece counts when the registry says that it has it.
                    (location, sent) = self.progress_of(&location)?;
                    part.bytes(sent);
                }
            }
        }
        let url = with_digest(&location, &self.digest)?;
        let response =
            self.client.call(self.scope, Call::new(Method::PUT, url.clone()).kind(Kind::Upload(0)))?;
        self.check_end(&url, response).map(|_| Pieces::Done)
    }

    /// Sends the bytes from `start` to before `end`. Gives where the next ones go; nothing when the registry takes no pieces.
    fn send_piece(
        &self,
        location: &Uri,
        file: &mut File,
        part: &mut dyn Part,
        start: u64,
        end: u64,
    ) -> Outcome<Option<Uri>> {
        let range = HeaderValue::from_str(&format!("{start}-{}", end - 1)).expect("numbers are a header");
        let mut source = self.source(file, part, start, end - start)?;
        let call = Call::new(Method::PATCH, location.clone())
            .kind(Kind::Upload(end - start))
            .header(CONTENT_TYPE, OCTETS);
        let call = call.header(CONTENT_RANGE, range).payload(Payload::Stream(&mut source, end - start));
        let sent = self.client.call(self.scope, call);
        let response = source.explain(sent)?;
        match response.status().as_u16() {
            202 | 204 => {
                check_taken(location, &response, end)?;
                self.client.location(location, &response).map(Some)
            }
            400 | 404 | 405 | 411 | 413 | 415 | 416 | 501 => Ok(None),
            _ => Err(self.client.status(location, response)),
        }
    }

    /// Where an upload that broke off goes on, and how much of it the registry has.
    fn progress_of(&self, location: &Uri) -> Outcome<(Uri, u64)> {
        let response = self.client.call(self.scope, Call::new(Method::GET, location.clone()))?;
        if !matches!(response.status(), StatusCode::NO_CONTENT | StatusCode::ACCEPTED | StatusCode::OK) {
            return Err(self.client.status(location, response));
        }
        let sent = taken(&response).filter(|sent| *sent <= self.size).unwrap_or(0);
        Ok((self.client.location(location, &response).unwrap_or_else(|_| location.clone()), sent))
    }

    fn check_end(&self, url: &Uri, response: Response) -> Outcome<Arrived> {
        match response.status() {
            StatusCode::CREATED | StatusCode::OK | StatusCode::NO_CONTENT => Ok(Arrived::Sent),
            _ => Err(self.client.status(url, response)),
        }
    }

    fn source<'a>(
        &'a self,
        file: &'a mut File,
        part: &'a mut dyn Part,
        start: u64,
        length: u64,
    ) -> Outcome<Source<'a>> {
        let failed = |e: io::Error| Cause::Unsupported(format!("read layer {}: {e}", self.digest));
        file.seek(SeekFrom::Start(start)).map_err(failed)?;
        part.bytes(start);
        Ok(Source { file, part, at: start, end: start + length, called_off: self.called_off, failed: None })
    }
}

/// The URL that ends an upload.
fn with_digest(location: &Uri, digest: &Digest) -> Outcome<Uri> {
    let separator = if location.query().is_some() { '&' } else { '?' };
    let url = format!("{location}{separator}digest={digest}");
    url.parse().map_err(|_| http::protocol(location, "a location that takes no digest".to_string()))
}

/// Bytes that a registry says it has: `Range: 0-LAST`.
fn taken(response: &Response) -> Option<u64> {
    let text = response.headers().get(RANGE)?.to_str().ok()?;
    let (first, last) = text.trim_start_matches("bytes=").split_once('-')?;
    // Nothing is said as `0-0` by most; a piece is never a single byte.
    let last: u64 = last.parse().ok()?;
    (first == "0").then_some(if last == 0 { 0 } else { last + 1 })
}

fn check_taken(location: &Uri, response: &Response, end: u64) -> Outcome<()> {
    match taken(response) {
        Some(taken) if taken != end && end > 1 => {
            Err(http::protocol(location, format!("it took {taken} bytes where {end} were sent")))
        }
        _ => Ok(()),
    }
}

/// A stretch of a file as it is sent. What goes wrong with the file itself is kept apart from what the connection says.
struct Source<'a> {
    file: &'a mut File,
    part: &'a mut dyn Part,
    at: u64,
    end: u64,
    called_off: &'a AtomicBool,
    failed: Option<Cause>,
}

impl Source<'_> {
    fn explain(self, sent: Outcome<Response>) -> Outcome<Response> {
        match self.failed {
            Some(cause) => Err(cause),
            None => sent,
        }
    }

    fn fail(&mut self, cause: Cause) -> io::Error {
        self.failed = Some(cause);
        io::Error::other("the source of an upload failed")
    }
}

impl Read for Source<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.called_off.load(Ordering::Relaxed) {
            return Err(self.fail(Cause::CalledOff));
        }
        let wanted = (buffer.len() as u64).min(self.end - self.at) as usize;
        match self.file.read(&mut buffer[..wanted]) {
            // The client would ask for ever for what it has announced.
            Ok(0) if wanted > 0 => {
                let at = self.at;
                Err(self.fail(Cause::Unsupported(format!("the layer in the store ends after {at} bytes"))))
            }
            Ok(count) => {
                self.at += count as u64;
                self.part.bytes(self.at);
                Ok(count)
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Err(e),
            Err(e) => Err(self.fail(Cause::Unsupported(format!("read the layer in the store: {e}")))),
        }
    }
}
