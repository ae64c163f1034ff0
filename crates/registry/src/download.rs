//! Blobs on their way here: streamed into the store, counted and hashed as they come, taken up where they broke off.
//!
//! Source: OCI distribution specification 1.1, "Pulling blobs"; RFC 9110, section 14 (ranges).

use std::io::{ErrorKind, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use image::{Digest, Part, PartialBlob};
use ureq::http::header::{ACCEPT_ENCODING, CONTENT_RANGE, HeaderValue, RANGE};
use ureq::http::{Method, StatusCode, Uri};

use crate::auth::Scope;
use crate::client::Client;
use crate::error::Cause;
use crate::http::{self, Call, Response};
use crate::pace::{self, Stall};
use crate::timeouts::{Kind, Timeouts};
use crate::work::Patience;

/// Read and written in pieces of this size.
const BUFFER_BYTES: usize = 128 << 10;
/// An attempt that brought this much was not in vain.
const PROGRESS_BYTES: u64 = 1 << 20;

/// A blob of a repository.
pub(crate) struct Wanted<'a> {
    pub(crate) client: &'a Client,
    pub(crate) scope: &'a Scope,
    pub(crate) repository: &'a str,
    pub(crate) digest: Digest,
    /// Set when another piece of the same work has failed.
    pub(crate) called_off: &'a AtomicBool,
}

impl Wanted<'_> {
    /// Fills `blob` and makes it one of the store.
    pub(crate) fn fetch(&self, mut blob: PartialBlob, part: &mut dyn Part) -> Result<(), Cause> {
        // What an earlier process left may not be what it should, and has one chance to be mended.
        let mut taken_up = blob.have() > 0;
        loop {
            self.fill(&mut blob, part)?;
            let found = blob.found();
            if found == self.digest {
                return Ok(blob.finish()?);
            }
            if !taken_up {
                blob.discard();
                return Err(Cause::WrongDigest { host: self.client.domain.clone(), found });
            }
            taken_up = false;
            blob.restart()?;
        }
    }

    /// Until it has all its bytes.
    fn fill(&self, blob: &mut PartialBlob, part: &mut dyn Part) -> Result<(), Cause> {
        let mut patience = Patience::new(self.client.http.timeouts).unless(self.called_off);
        // Not what this attempt brought: a registry that always breaks off and knows no ranges would never end.
        let mut best = blob.have();
        while blob.have() < blob.size() || blob.size() == 0 {
            part.bytes(blob.have());
            match self.attempt(blob, part) {
                Ok(()) if blob.size() == 0 => return Ok(()),
                Ok(()) => {}
                Err(cause) => {
                    if blob.have() >= best + PROGRESS_BYTES {
                        patience.renew();
                        best = blob.have();
                    }
                    patience.wait(cause)?;
                }
            }
        }
        part.bytes(blob.have());
        Ok(())
    }

    fn attempt(&self, blob: &mut PartialBlob, part: &mut dyn Part) -> Result<(), Cause> {
        // Nobody waits any more for what would be tried again.
        if self.called_off.load(Ordering::Relaxed) {
            return Err(Cause::CalledOff);
        }
        let url = self.client.url(&format!("{}/blobs/{}", self.repository, self.digest));
        let kind = Kind::Blob(blob.size() - blob.have());
        let mut call = Call::new(Method::GET, url.clone()).kind(kind);
        // The digest is that of the bytes as they are.
        call = call.header(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if blob.have() > 0 {
            let range = HeaderValue::from_str(&format!("bytes={}-", blob.have()));
            call = call.header(RANGE, range.expect("a number is a header"));
        }
        let response = self.client.call(self.scope, call)?;
        match response.status() {
            // It gives all of it, whatever was asked for.
            StatusCode::OK => blob.restart()?,
            StatusCode::PARTIAL_CONTENT if blob.have() > 0 => check_range(&url, &response, blob)?,
            StatusCode::RANGE_NOT_SATISFIABLE if blob.have() > 0 => {
                blob.restart()?;
                return Ok(());
            }
            _ => return Err(self.client.status(&url, response)),
        }
        let left = blob.size() - blob.have();
        if let Some(length) = http::content_length(&response).filter(|length| *length != left) {
            return Err(http::protocol(
                &url,
                format!("it announces {length} bytes of a blob where {left} should come"),
            ));
        }
        self.stream(&url, response, blob, part)
    }

    fn stream(
        &self,
        url: &Uri,
        response: Response,
        blob: &mut PartialBlob,
        part: &mut dyn Part,
    ) -> Result<(), Cause> {
        let http = &self.client.http;
        let slowest = http.timeouts.slowest;
        let limits = http.timeouts.limits(Kind::Blob(blob.size() - blob.have()));
        let mut reader =
            Watched { inner: response.into_body().into_reader(), since: Instant::now(), came: 0, slowest };
        let mut buffer = vec![0; BUFFER_BYTES];
        while blob.have() < blob.size() {
            if self.called_off.load(Ordering::Relaxed) {
                return Err(Cause::CalledOff);
            }
            let count = match reader.read(&mut buffer) {
                Ok(0) => return Err(self.broke_off(url, blob)),
                Ok(count) => count,
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) => return Err(http.explain_io(url, limits, e)),
            };
            if count as u64 > blob.size() - blob.have() {
                return Err(http::protocol(
                    url,
                    format!("it sends more than the {} bytes of a blob", blob.size()),
                ));
            }
            blob.put(&buffer[..count])?;
            part.bytes(blob.have());
        }
        // The end of the answer, so that the connection can serve again. All that counts is here, and no trailer is waited for
        // longer than for anything else that is overdue.
        let end = || reader.inner.read(&mut buffer[..1]);
        match pace::within(Instant::now(), http.timeouts.idle, end) {
            Ok(1..) => {
                Err(http::protocol(url, format!("it sends more than the {} bytes of a blob", blob.size())))
            }
            Ok(0) | Err(_) => Ok(()),
        }
    }

    fn broke_off(&self, url: &Uri, blob: &PartialBlob) -> Cause {
        let text = format!("it ended after {} of {} bytes", blob.have(), blob.size());
        Cause::Connection {
            host: http::host_of(url),
            source: std::io::Error::new(ErrorKind::UnexpectedEof, text),
        }
    }
}

/// Whether a partial answer is the part that was asked for: `bytes FIRST-LAST/SIZE`.
fn check_range(url: &Uri, response: &Response, blob: &PartialBlob) -> Result<(), Cause> {
    let value =
        response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let wanted = (blob.have(), blob.size() - 1);
    let fits = parse_range(value).is_some_and(|(first, last, size)| {
        (first, last) == wanted && size.is_none_or(|size| size == blob.size())
    });
    if fits {
        return Ok(());
    }
    let asked = format!("bytes {}-{}/{}", wanted.0, wanted.1, blob.size());
    Err(http::protocol(
        url,
        format!("it sends the range {:?} instead of {asked:?}", crate::error::shown(value)),
    ))
}

/// First and last byte, and the size if it is known.
fn parse_range(text: &str) -> Option<(u64, u64, Option<u64>)> {
    let (range, size) = text.trim().strip_prefix("bytes ")?.trim().split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let size = if size == "*" { None } else { Some(size.parse().ok()?) };
    Some((first.parse().ok()?, last.parse().ok()?, size))
}

/// A reader that ends when next to nothing comes, or nothing that is the blob's.
struct Watched<R> {
    inner: R,
    since: Instant,
    came: u64,
    slowest: Duration,
}

impl<R: Read> Read for Watched<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = pace::within(self.since, self.slowest, || self.inner.read(buffer))?;
        self.came += count as u64;
        if self.came >= Timeouts::SLOWEST_BYTES {
            (self.since, self.came) = (Instant::now(), 0);
        } else if count > 0 && self.since.elapsed() > self.slowest {
            return Err(std::io::Error::other(Stall(self.slowest)));
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_numbers_in_their_places() {
        assert_eq!(parse_range("bytes 5-9/10"), Some((5, 9, Some(10))));
        assert_eq!(parse_range(" bytes 0-0/*"), Some((0, 0, None)));
        for text in [
            "",
            "bytes",
            "bytes 5-9",
            "bytes -9/10",
            "bytes */10",
            "items 5-9/10",
            "bytes 5-9/x",
            "bytes 5-99999999999999999999/10",
        ] {
            assert_eq!(parse_range(text), None, "{text}");
        }
    }
}
