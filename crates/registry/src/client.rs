//! One registry: how it is reached, and requests that carry what it wants to see.
//!
//! Source: OCI distribution specification 1.1, "Determining Support" and "Endpoints".

use std::io;

use ureq::http::header::AUTHORIZATION;
use ureq::http::uri::{Authority, PathAndQuery, Scheme};
use ureq::http::{HeaderValue, Method, StatusCode, Uri};

use crate::auth::{Auth, Scope};
use crate::credentials::Credentials;
use crate::error::{Cause, Result, While};
use crate::http::{self, Call, Http, Payload, Response};
use crate::timeouts::Timeouts;
use crate::trust::Trust;

/// The registry of names without a host, and where its protocol is spoken.
const DOCKER_IO: (&str, &str) = ("docker.io", "registry-1.docker.io");

/// A registry that has answered.
pub(crate) struct Client {
    pub(crate) http: Http,
    /// `scheme://host:port/v2/`
    base: Uri,
    /// The registry as its users call it.
    pub(crate) domain: String,
    auth: Auth,
}

impl Client {
    /// Finds out how the registry `domain` is reached: by TLS, or, where that is not insisted on, without. A registry on this
    /// very host needs no TLS, as Docker has it.
    pub(crate) fn connect(
        domain: &str,
        trust: Trust,
        credentials: Option<Credentials>,
        timeouts: Timeouts,
    ) -> Result<Client> {
        let trust = if is_loopback(domain) { Trust::Anything } else { trust };
        let secure = Client::try_scheme(Scheme::HTTPS, domain, trust, credentials.clone(), timeouts);
        let tried = match secure {
            Err(cause) if trust == Trust::Anything && may_be_plain(&cause) => {
                tracing::debug!("{domain} over https: {cause}");
                Client::try_scheme(Scheme::HTTP, domain, trust, credentials, timeouts)
            }
            tried => tried,
        };
        tried.while_trying(|| format!("reach registry {domain}"))
    }

    fn try_scheme(
        scheme: Scheme,
        domain: &str,
        trust: Trust,
        credentials: Option<Credentials>,
        timeouts: Timeouts,
    ) -> std::result::Result<Client, Cause> {
        let address = if domain == DOCKER_IO.0 { DOCKER_IO.1 } else { domain };
        let authority: Authority =
            address.parse().map_err(|_| Cause::Unsupported(format!("{domain:?} is no host")))?;
        let base = Uri::builder().scheme(scheme).authority(authority).path_and_query("/v2/").build();
        let base = base.map_err(|e| Cause::Unsupported(format!("{domain:?} is no host: {e}")))?;
        let http = Http::new(domain, trust, timeouts);
        let auth = Auth::new(domain, trust, credentials);
        let client = Client { http, base, domain: domain.to_string(), auth };
        client.ping()?;
        Ok(client)
    }

    fn ping(&self) -> std::result::Result<(), Cause> {
        let response = self.http.send(Call::new(Method::GET, self.base.clone()))?;
        let other = http::elsewhere(&response).map(http::host_of);
        match response.status() {
            StatusCode::OK => Ok(()),
            // Credentials are for the registry that was named: nobody else says where they go.
            StatusCode::UNAUTHORIZED if other.is_some() => Err(http::protocol(
                &self.base,
                format!("it leads to {}, which wants credentials", other.unwrap_or_default()),
            )),
            StatusCode::UNAUTHORIZED if self.auth.take_challenge(&response) => Ok(()),
            StatusCode::UNAUTHORIZED => Err(http::protocol(
                &self.base,
                "it wants credentials of a kind that is not known".to_string(),
            )),
            StatusCode::NOT_FOUND => {
                Err(http::protocol(&self.base, "it is no registry: it answers 404 to /v2/".to_string()))
            }
            _ => Err(http::status(&self.base, response)),
        }
    }

    /// Whether the credentials are those of somebody the registry knows.
    pub(crate) fn check_credentials(&self) -> Result<()> {
        let call = Call::new(Method::GET, self.base.clone());
        let checked = self.call(&Scope::none(), call).and_then(|response| match response.status() {
            StatusCode::OK => Ok(()),
            _ => Err(http::status(&self.base, response)),
        });
        checked.while_trying(|| format!("log in to {}", self.domain))
    }

    /// A URL of this registry: `path` is what follows `/v2/`, and made of what a reference or a digest may have.
    pub(crate) fn url(&self, path: &str) -> Uri {
        let mut parts = self.base.clone().into_parts();
        let path: PathAndQuery = format!("/v2/{path}").parse().expect("names and digests are safe in a URL");
        parts.path_and_query = Some(path);
        Uri::from_parts(parts).expect("scheme, host and path were taken from a URL")
    }

    /// Where an answer says that an upload goes on.
    pub(crate) fn location(&self, url: &Uri, response: &Response) -> std::result::Result<Uri, Cause> {
        let location = http::location(url, response)?;
        self.http.check_redirect(&self.base, &location)?;
        Ok(location)
    }

    /// Sends a request with the credentials it needs. Any status but that of missing credentials is an answer.
    pub(crate) fn call(&self, scope: &Scope, call: Call<'_>) -> std::result::Result<Response, Cause> {
        // Whatever the registry sends us to is not the registry: it gets no credentials.
        let ours = call.url.authority() == self.base.authority() && call.url.scheme() == self.base.scheme();
        if !ours {
            return self.http.send(call);
        }
        let first = self.auth.header(&self.http, &self.base, scope, None)?;
        let Call { method, url, headers, payload, kind } = call;
        // What can be sent a second time.
        let again = match &payload {
            Payload::None => Some(None),
            Payload::Bytes(bytes) => Some(Some(*bytes)),
            Payload::Stream(..) => None,
        };
        let signed = |header: Option<&HeaderValue>, payload| {
            let mut headers = headers.clone();
            headers.extend(header.map(|header| (AUTHORIZATION, header.clone())));
            Call { method: method.clone(), url: url.clone(), headers, payload, kind }
        };
        let refused = |response: &Response| {
            response.status() == StatusCode::UNAUTHORIZED && http::elsewhere(response).is_none()
        };
        let response = self.http.send(signed(first.as_ref(), payload))?;
        if !refused(&response) {
            return Ok(response);
        }
        // A token that has ended, or one that was for less than this.
        if !self.auth.take_challenge(&response) {
            return Err(self.auth.unauthorized(response));
        }
        let second = self.auth.header(&self.http, &self.base, scope, first.as_ref())?;
        if second.is_none() || second == first {
            return Err(self.auth.unauthorized(response));
        }
        drop(response);
        let Some(bytes) = again else {
            let source = io::Error::other("its token ended on the way");
            return Err(Cause::Connection { host: http::host_of(&url), source });
        };
        let payload = bytes.map_or(Payload::None, Payload::Bytes);
        let response = self.http.send(signed(second.as_ref(), payload))?;
        if refused(&response) {
            return Err(self.auth.unauthorized(response));
        }
        Ok(response)
    }

    /// The cause that an answer of an unexpected status is, for a request about an image.
    pub(crate) fn status(&self, url: &Uri, response: Response) -> Cause {
        match response.status() {
            _ if http::elsewhere(&response).is_some() => http::status(url, response),
            StatusCode::NOT_FOUND => {
                Cause::NotFound { host: self.domain.clone(), message: http::message(response) }
            }
            StatusCode::FORBIDDEN => self.auth.unauthorized(response),
            _ => http::status(url, response),
        }
    }
}

/// Docker's rule for registries that need no TLS: those of this host.
fn is_loopback(domain: &str) -> bool {
    let host = match domain.rfind(':') {
        Some(colon) if !domain.ends_with(']') => &domain[..colon],
        _ => domain,
    };
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// Whether a failure over TLS may mean that there is none.
fn may_be_plain(cause: &Cause) -> bool {
    matches!(
        cause,
        Cause::Tls { .. } | Cause::Connection { .. } | Cause::Stalled { .. } | Cause::Protocol { .. }
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_of_this_host_are_known_by_their_names() {
        for domain in ["localhost", "localhost:5000", "127.0.0.1:5000", "127.9.9.9", "[::1]:5000", "[::1]"] {
            assert!(is_loopback(domain), "{domain}");
        }
        for domain in
            ["docker.io", "localhost.example:5000", "10.0.0.1:5000", "[fe80::1]", "127.0.0.1.example"]
        {
            assert!(!is_loopback(domain), "{domain}");
        }
    }
}
