//! Requests and answers: time-outs, redirects, and what the HTTP client's errors mean.
//!
//! The client is `ureq`: blocking, since four threads are all that a pull needs, with rustls, without a runtime, and small.
//! It follows no redirect itself and decompresses nothing. What holds for a redirect here: at most ten, credentials stay with
//! the host they were for, and nothing leaves TLS once it is in it.

use std::io::{self, Read};
use std::time::{Duration, Instant};

use ureq::http::header::{AUTHORIZATION, CONTENT_LENGTH, HeaderName, HeaderValue, LOCATION, RETRY_AFTER};
use ureq::http::uri::{Authority, PathAndQuery, Scheme};
use ureq::http::{Method, Request, StatusCode, Uri};
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{ConnectProxyConnector, Connector, RustlsConnector, TcpConnector};
use ureq::{Agent, AsSendBody, Body, SendBody, Timeout};

use crate::error::{Cause, shown};
use crate::pace::{Paced, Stall};
use crate::timeouts::{Kind, Limits, Timeouts};
use crate::trust::{self, Trust};

pub(crate) type Response = ureq::http::Response<Body>;

/// Redirects of one request. Attack: a circle of them.
const MAX_REDIRECTS: u32 = 10;
/// Bytes of an answer's headers. Attack: headers without end.
const MAX_HEADER_BYTES: usize = 64 << 10;
/// Bytes of an answer that only says what went wrong.
const MAX_ERROR_BYTES: u64 = 16 << 10;
/// The longest a registry may make us wait before the next attempt.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);

/// When the text of an answer that only says what went wrong must be here: it is not waited for as long as a blob is.
#[derive(Debug, Clone, Copy)]
struct Deadline(Instant);

/// Who gave an answer that came by a redirect, where it is not the host that was asked.
#[derive(Debug, Clone)]
struct Elsewhere(Uri);

/// The host that answered in place of the one that was asked, if another did. What it wants to be told is not its to ask for.
pub(crate) fn elsewhere(response: &Response) -> Option<&Uri> {
    response.extensions().get::<Elsewhere>().map(|elsewhere| &elsewhere.0)
}

/// What is sent with a request.
pub(crate) enum Payload<'a> {
    None,
    Bytes(&'a [u8]),
    /// Exactly so many bytes of a reader.
    Stream(&'a mut dyn Read, u64),
}

/// One request.
pub(crate) struct Call<'a> {
    pub(crate) method: Method,
    pub(crate) url: Uri,
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    pub(crate) payload: Payload<'a>,
    pub(crate) kind: Kind,
}

impl Call<'static> {
    pub(crate) fn new(method: Method, url: Uri) -> Self {
        Call { method, url, headers: Vec::new(), payload: Payload::None, kind: Kind::Document }
    }
}

impl<'a> Call<'a> {
    pub(crate) fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    pub(crate) fn kind(self, kind: Kind) -> Self {
        Call { kind, ..self }
    }

    pub(crate) fn payload<'b>(self, payload: Payload<'b>) -> Call<'b> {
        Call { payload, method: self.method, url: self.url, headers: self.headers, kind: self.kind }
    }
}

/// The HTTP client with all its settings.
#[derive(Debug)]
pub(crate) struct Http {
    agent: Agent,
    pub(crate) timeouts: Timeouts,
    /// Whether redirects may leave TLS, which was not insisted on.
    trust: Trust,
}

impl Http {
    /// `domain` is the registry, whose own certificates may lie in the host's configuration.
    pub(crate) fn new(domain: &str, trust: Trust, timeouts: Timeouts) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .tls_config(trust::tls_config(domain, trust))
            .user_agent(concat!("strata/", env!("CARGO_PKG_VERSION")))
            .max_response_header_size(MAX_HEADER_BYTES)
            .timeout_connect(Some(timeouts.connect))
            .timeout_per_read(Some(timeouts.idle))
            .timeout_per_write(Some(timeouts.idle))
            .build();
        // The client's own chain, but for the one part.
        let connector =
            ().chain(ConnectProxyConnector::default())
                .chain(TcpConnector::default())
                .chain(Paced)
                .chain(RustlsConnector::default());
        let agent = Agent::with_parts(config, connector, DefaultResolver::default());
        Http { agent, timeouts, trust }
    }

    /// Sends a request and follows where its answer leads. Any status is an answer.
    pub(crate) fn send(&self, mut call: Call<'_>) -> Result<Response, Cause> {
        let follows = matches!(call.method, Method::GET | Method::HEAD);
        let mut asked_elsewhere = false;
        for _ in 0..=MAX_REDIRECTS {
            let mut response = self.send_once(&mut call)?;
            let moved = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
            if !moved {
                if asked_elsewhere {
                    response.extensions_mut().insert(Elsewhere(call.url));
                }
                return Ok(response);
            }
            let next = location(&call.url, &response)?;
            if !follows {
                let reason = format!("it redirects {} to {}", call.method, host_of(&next));
                return Err(protocol(&call.url, reason));
            }
            self.check_redirect(&call.url, &next)?;
            if call.url.authority() != next.authority() || call.url.scheme() != next.scheme() {
                call.headers.retain(|(name, _)| *name != AUTHORIZATION);
                asked_elsewhere = true;
            }
            call.url = next;
        }
        Err(protocol(&call.url, format!("more than {MAX_REDIRECTS} redirects")))
    }

    /// Whether what `from` says may lead to `to`.
    pub(crate) fn check_redirect(&self, from: &Uri, to: &Uri) -> Result<(), Cause> {
        let scheme = to.scheme_str().unwrap_or_default();
        let secure = from.scheme() == Some(&Scheme::HTTPS) && self.trust == Trust::Verify;
        match scheme {
            "https" => Ok(()),
            "http" if !secure => Ok(()),
            _ => Err(protocol(from, format!("it redirects from {} to {scheme:?}", scheme_of(from)))),
        }
    }

    fn send_once(&self, call: &mut Call<'_>) -> Result<Response, Cause> {
        let mut request = Request::builder().method(call.method.clone()).uri(call.url.clone());
        for (name, value) in &call.headers {
            request = request.header(name, value);
        }
        let (url, limits) = (call.url.clone(), self.timeouts.limits(call.kind));
        match &mut call.payload {
            Payload::None if matches!(call.method, Method::GET | Method::HEAD) => {
                self.run(&url, limits, request.body(()))
            }
            Payload::None => self.run(&url, limits, request.header(CONTENT_LENGTH, 0).body(())),
            Payload::Bytes(bytes) => {
                let request = request.header(CONTENT_LENGTH, bytes.len());
                self.run(&url, limits, request.body(*bytes))
            }
            Payload::Stream(reader, length) => {
                let request = request.header(CONTENT_LENGTH, *length);
                self.run(&url, limits, request.body(SendBody::from_reader(&mut **reader)))
            }
        }
    }

    fn run<S: AsSendBody>(
        &self,
        url: &Uri,
        limits: Limits,
        request: ureq::http::Result<Request<S>>,
    ) -> Result<Response, Cause> {
        let request = request.map_err(|e| protocol(url, e.to_string()))?;
        let request = self
            .agent
            .configure_request(request)
            // None for the whole call: looking up a name would need a thread that outlives it.
            .timeout_send_body(Some(limits.send))
            .timeout_recv_response(Some(limits.response))
            .timeout_recv_body(Some(limits.body))
            .timeout_per_read(Some(limits.idle))
            .allow_non_standard_methods(true)
            .build();
        let mut response = self.agent.run(request).map_err(|error| match error {
            ureq::Error::Timeout(Timeout::PerRead) => {
                Cause::Stalled { host: host_of(url), what: "no answer", after: limits.idle }
            }
            error => self.explain(url, limits, error),
        })?;
        response.extensions_mut().insert(Deadline(Instant::now() + self.timeouts.document));
        Ok(response)
    }

    /// What an error of the client means.
    fn explain(&self, url: &Uri, limits: Limits, error: ureq::Error) -> Cause {
        let host = host_of(url);
        let stalled = |what, after| Cause::Stalled { host: host_of(url), what, after };
        match error {
            ureq::Error::Io(source) => self.explain_io(url, limits, source),
            ureq::Error::HostNotFound => {
                Cause::Lookup { host, source: io::Error::new(io::ErrorKind::NotFound, "no address") }
            }
            ureq::Error::Timeout(Timeout::Connect) => stalled("no connection", self.timeouts.connect),
            ureq::Error::Timeout(Timeout::PerRead) => stalled("no more data", limits.idle),
            ureq::Error::Timeout(Timeout::PerWrite) => stalled("it takes no more data", self.timeouts.idle),
            ureq::Error::Timeout(Timeout::SendBody) => stalled("it takes not all of the data", limits.send),
            ureq::Error::Timeout(Timeout::RecvResponse) => stalled("no whole answer", limits.response),
            ureq::Error::Timeout(_) => stalled("not all of the answer", limits.body),
            ureq::Error::Tls(reason) => Cause::Tls { host, reason: reason.to_string() },
            ureq::Error::Rustls(error) => Cause::Tls { host, reason: error.to_string() },
            ureq::Error::ConnectProxyFailed(reason) => Cause::Connection {
                host,
                source: io::Error::other(format!("the proxy says {}", shown(&reason))),
            },
            ureq::Error::ConnectionFailed => {
                Cause::Connection { host, source: io::Error::other("no way to make one") }
            }
            ureq::Error::LargeResponseHeader(..) => {
                Cause::Protocol { host, reason: format!("headers of more than {MAX_HEADER_BYTES} bytes") }
            }
            other => Cause::Protocol { host, reason: shown(&other.to_string()) },
        }
    }

    /// What an error while reading an answer means.
    pub(crate) fn explain_io(&self, url: &Uri, limits: Limits, error: io::Error) -> Cause {
        let host = host_of(url);
        // The client wraps its own errors in those of the system.
        let error = match ureq::Error::from(error) {
            ureq::Error::Io(error) => error,
            other => return self.explain(url, limits, other),
        };
        if let Some(inner) = error.get_ref() {
            if let Some(stall) = inner.downcast_ref::<Stall>() {
                return Cause::Stalled { host, what: "no more than a trickle", after: stall.0 };
            }
            // What the TLS library refuses, and what the resolver says, have no kind of their own.
            if error.kind() == io::ErrorKind::InvalidData {
                return Cause::Tls { host, reason: shown(&inner.to_string()) };
            }
            if inner.to_string().contains("lookup address") {
                return Cause::Lookup { host, source: error };
            }
        }
        Cause::Connection { host, source: error }
    }
}

/// Where an answer says that something is.
pub(crate) fn location(base: &Uri, response: &Response) -> Result<Uri, Cause> {
    let Some(value) = response.headers().get(LOCATION) else {
        return Err(protocol(base, "an answer without the Location it needs".to_string()));
    };
    let text = value.to_str().unwrap_or_default();
    resolve(base, text).ok_or_else(|| protocol(base, format!("the location {:?}", shown(text))))
}

/// A URL, or a path on the host of `base`.
fn resolve(base: &Uri, text: &str) -> Option<Uri> {
    // A fragment is for the reader, not for the host.
    let text = text.split('#').next()?;
    let mut parts = base.clone().into_parts();
    if let Some(rest) = text.strip_prefix("//") {
        return resolve(base, &format!("{}://{rest}", base.scheme_str()?));
    }
    if text.starts_with('/') {
        parts.path_and_query = Some(text.parse::<PathAndQuery>().ok()?);
        return Uri::from_parts(parts).ok();
    }
    let url: Uri = text.parse().ok()?;
    // User and password in a URL are nothing that a registry may tell us.
    let plain = |authority: &Authority| !authority.as_str().contains('@') && !authority.host().is_empty();
    (url.scheme().is_some() && url.authority().is_some_and(plain)).then_some(url)
}

/// Host and port of a URL, for messages.
pub(crate) fn host_of(url: &Uri) -> String {
    url.authority().map_or_else(String::new, |authority| shown(authority.as_str()))
}

fn scheme_of(url: &Uri) -> &str {
    url.scheme_str().unwrap_or_default()
}

pub(crate) fn protocol(url: &Uri, reason: String) -> Cause {
    Cause::Protocol { host: host_of(url), reason }
}

/// The cause that an answer of an unexpected status is.
pub(crate) fn status(url: &Uri, response: Response) -> Cause {
    let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| {
        let seconds = value.to_str().ok()?.trim().parse().ok()?;
        Some(Duration::from_secs(seconds).min(MAX_RETRY_AFTER))
    });
    let status = response.status().as_u16();
    let host = host_of(elsewhere(&response).unwrap_or(url));
    Cause::Status { host, status, message: message(response), retry_after }
}

/// What an answer says about its status: the messages of the registry's errors (OCI distribution specification 1.1, "Error
/// codes"), with a colon before them.
pub(crate) fn message(response: Response) -> String {
    #[derive(serde::Deserialize)]
    struct Errors {
        #[serde(default)]
        errors: Vec<Item>,
        #[serde(default)]
        details: String,
    }
    #[derive(serde::Deserialize)]
    struct Item {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let status = response.status();
    let bytes = said_in_time(response);
    let said = match serde_json::from_slice::<Errors>(&bytes) {
        Ok(Errors { errors, details }) => {
            let texts = errors.into_iter().map(|e| if e.message.is_empty() { e.code } else { e.message });
            texts.chain([details]).find(|text| !text.is_empty()).unwrap_or_default()
        }
        Err(_) => String::new(),
    };
    match (said.trim(), status.canonical_reason()) {
        ("", Some(reason)) if status != StatusCode::OK => format!(": {reason}"),
        ("", _) => String::new(),
        (said, _) => format!(": {}", shown(said)),
    }
}

/// As much of an answer's text as came: one that breaks off or drips says less, no more.
fn said_in_time(response: Response) -> Vec<u8> {
    let deadline = response.extensions().get::<Deadline>().map(|deadline| deadline.0);
    let mut reader = response.into_body().into_reader().take(MAX_ERROR_BYTES);
    let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
    while let Ok(count @ 1..) = reader.read(&mut buffer) {
        bytes.extend_from_slice(&buffer[..count]);
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            break;
        }
    }
    bytes
}

/// The whole of a small answer.
pub(crate) fn read_document(
    http: &Http,
    url: &Uri,
    response: Response,
    limit: u64,
) -> Result<Vec<u8>, Cause> {
    let too_large = || protocol(url, format!("a document of more than {limit} bytes"));
    if content_length(&response).is_some_and(|length| length > limit) {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    let mut reader = response.into_body().into_reader().take(limit + 1);
    let limits = http.timeouts.limits(Kind::Document);
    reader.read_to_end(&mut bytes).map_err(|e| http.explain_io(url, limits, e))?;
    if bytes.len() as u64 > limit {
        return Err(too_large());
    }
    Ok(bytes)
}

/// How long an answer says it is.
pub(crate) fn content_length(response: &Response) -> Option<u64> {
    response.headers().get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_urls_or_paths() {
        let base: Uri = "https://reg.example:5000/v2/a/blobs/uploads/".parse().unwrap();
        for (text, want) in [
            ("/v2/x?y=1#z", Some("https://reg.example:5000/v2/x?y=1")),
            ("https://cdn.example/b?sig=%2F", Some("https://cdn.example/b?sig=%2F")),
            ("//cdn.example/b", Some("https://cdn.example/b")),
            ("ftp://cdn.example/b", Some("ftp://cdn.example/b")),
            ("relative", None),
            ("", None),
            ("https://user:password@cdn.example/", None),
            ("https:///b", None),
            ("https://a b/", None),
        ] {
            assert_eq!(resolve(&base, text).map(|url| url.to_string()).as_deref(), want, "{text}");
        }
    }

    #[test]
    fn nothing_leaves_tls_once_it_is_in_it() {
        let may = |trust, from: &str, to: &str| {
            let http = Http::new("reg.example", trust, Timeouts::default());
            http.check_redirect(&from.parse().unwrap(), &to.parse().unwrap()).is_ok()
        };
        assert!(may(Trust::Verify, "https://a/", "https://b/"));
        assert!(!may(Trust::Verify, "https://a/", "http://a/"));
        assert!(may(Trust::Verify, "http://a/", "http://b/"));
        assert!(may(Trust::Anything, "https://a/", "http://b/"));
        assert!(!may(Trust::Anything, "http://a/", "ftp://b/"));
    }
}
