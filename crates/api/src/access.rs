//! Who may speak, and what a browser is kept from.
//!
//! A socket in the file system and a TLS connection have let in those who may: whoever speaks there may do everything. A port of
//! the loopback is open to every user and every page of this host, so whoever speaks there has to know a token. Where a browser
//! speaks, other sites may speak through it: what it says of the page that asked (`Origin`, `Sec-Fetch-Site`) must be this
//! server's own, and on the loopback the name it used (`Host`) too, for a site can give its own name the address 127.0.0.1.

use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper::Request;
use subtle::ConstantTimeEq;

use crate::error::ApiError;

/// Bytes of a token.
const TOKEN_BYTES: usize = 32;
/// Where the console is.
pub(crate) const CONSOLE: &str = "/console/";

/// Who may speak on a listener.
#[derive(Clone, Debug)]
pub(crate) enum Access {
    /// Whoever is connected.
    Connected,
    /// Who knows the token.
    Token(Arc<Door>),
}

/// A port of the loopback, and what opens it.
#[derive(Debug)]
pub(crate) struct Door {
    token: String,
    port: u16,
}

impl Door {
    /// A door with a new token.
    pub(crate) fn new(port: u16) -> std::io::Result<Door> {
        let mut bytes = [0; TOKEN_BYTES];
        let mut filled = 0;
        while filled < TOKEN_BYTES {
            filled += rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())?;
        }
        let mut token = String::new();
        for byte in bytes {
            let _ = write!(token, "{byte:02x}");
        }
        Ok(Door { token, port })
    }

    /// What to open in a browser.
    pub(crate) fn url(&self, address: SocketAddr) -> String {
        format!("http://{address}{CONSOLE}?token={}", self.token)
    }

    /// Not faster for one that is nearly right.
    fn is_token(&self, text: &str) -> bool {
        bool::from(self.token.as_bytes().ct_eq(text.as_bytes()))
    }

    /// Cookies know no ports: another server on this host has another name for its own.
    fn cookie_name(&self) -> String {
        format!("strata-{}", self.port)
    }

    fn is_known(&self, headers: &HeaderMap) -> bool {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        if let Some(token) = text(header::AUTHORIZATION).and_then(|text| text.strip_prefix("Bearer ")) {
            return self.is_token(token.trim());
        }
        let name = self.cookie_name();
        headers
            .get_all(header::COOKIE)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|text| text.split(';'))
            .filter_map(|pair| pair.trim().split_once('='))
            .any(|(key, value)| key == name && self.is_token(value))
    }

    fn is_own_name(&self, host: &str) -> bool {
        let names = ["127.0.0.1", "localhost", "[::1]"];
        let own = host.rsplit_once(':').filter(|(_, port)| *port == self.port.to_string());
        own.is_some_and(|(name, _)| names.iter().any(|own| own.eq_ignore_ascii_case(name)))
    }

    /// What follows from the token in an address: a cookie, and the address without it.
    fn enter(&self, token: &str) -> Response {
        if !self.is_token(token) {
            return refused(
                StatusCode::UNAUTHORIZED,
                "this token is not of this server: strata serve prints its own",
            );
        }
        // Not `Secure`: the loopback has no TLS. `Strict`: no other site's page makes the browser send it.
        let cookie = format!("{}={}; Path=/; HttpOnly; SameSite=Strict", self.cookie_name(), self.token);
        let head = [
            (header::LOCATION, CONSOLE),
            (header::CACHE_CONTROL, "no-store"),
            (header::REFERRER_POLICY, "no-referrer"),
        ];
        (StatusCode::SEE_OTHER, head, [(header::SET_COOKIE, cookie)]).into_response()
    }
}

fn refused(status: StatusCode, message: &str) -> Response {
    ApiError::new(status, message).into_response()
}

impl Access {
    /// The answer to a request that must not be followed; nothing if it may.
    pub(crate) fn refusal<B>(&self, request: &Request<B>) -> Option<Response> {
        let headers = request.headers();
        let opens_console = request.method() == Method::GET && request.uri().path().starts_with(CONSOLE);
        if let Access::Token(door) = self {
            let host = headers.get(header::HOST).and_then(|value| value.to_str().ok()).unwrap_or_default();
            if !door.is_own_name(host) {
                let message = "this server is 127.0.0.1 or localhost, and goes by no other name";
                return Some(refused(StatusCode::MISDIRECTED_REQUEST, message));
            }
            if opens_console && let Some(token) = token_of(request.uri().query().unwrap_or_default()) {
                return Some(door.enter(token));
            }
            if !door.is_known(headers) {
                let message =
                    "whoever speaks here needs the token: open the address that strata serve printed";
                return Some(refused(StatusCode::UNAUTHORIZED, message));
            }
        }
        // To follow another site's link to the console is fine: nothing is done by that.
        if !opens_console && is_of_another_site(headers) {
            return Some(refused(StatusCode::FORBIDDEN, "this request comes from another site's page"));
        }
        None
    }
}

fn token_of(query: &str) -> Option<&str> {
    query.split('&').find_map(|pair| pair.strip_prefix("token="))
}

/// Whether a browser says that another site's page asked. Programs say nothing of the kind.
fn is_of_another_site(headers: &HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let site = text("sec-fetch-site").is_some_and(|site| !matches!(site, "same-origin" | "none"));
    let host = text("host").unwrap_or_default();
    let origin = text("origin").is_some_and(|origin| {
        let own = origin.split_once("://").map_or(origin, |(_, host)| host);
        !own.eq_ignore_ascii_case(host)
    });
    site || origin
}

#[cfg(test)]
mod tests {
    use super::*;

    fn door() -> Access {
        Access::Token(Arc::new(Door { token: "secret".to_owned(), port: 80 }))
    }

    fn status(access: &Access, path: &str, headers: &[(&str, &str)]) -> u16 {
        let method = if path.starts_with("POST ") { "POST" } else { "GET" };
        let mut request = Request::builder().method(method).uri(path.trim_start_matches("POST "));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        access.refusal(&request.body(()).unwrap()).map_or(200, |answer| answer.status().as_u16())
    }

    #[test]
    fn the_loopback_wants_the_token_and_its_own_name() {
        let known = ("cookie", "a=b; strata-80=secret");
        let own = ("host", "127.0.0.1:80");
        assert_eq!(status(&door(), "/info", &[own]), 401);
        assert_eq!(status(&door(), "/console/", &[own]), 401);
        assert_eq!(status(&door(), "/info", &[own, known]), 200);
        assert_eq!(status(&door(), "/info", &[own, ("authorization", "Bearer secret")]), 200);
        for wrong in ["strata-80=secre", "strata-80=secrets", "strata-81=secret", "strata-80="] {
            assert_eq!(status(&door(), "/info", &[own, ("cookie", wrong)]), 401, "{wrong}");
        }
        // A name of a stranger that leads here.
        for host in ["evil.example:80", "127.0.0.1", "127.0.0.1:81", "localhost.evil:80", ""] {
            assert_eq!(status(&door(), "/info", &[("host", host), known]), 421, "{host}");
        }
        assert_eq!(status(&door(), "/info", &[("host", "LocalHost:80"), known]), 200);
    }

    #[test]
    fn the_token_in_an_address_becomes_a_cookie() {
        let own = ("host", "localhost:80");
        assert_eq!(status(&door(), "/console/?token=secret", &[own]), 303);
        assert_eq!(status(&door(), "/console/?token=wrong", &[own]), 401);
        assert_eq!(status(&door(), "/info?token=secret", &[own]), 401);
        let Access::Token(door) = door() else { panic!() };
        let answer = door.enter("secret");
        let cookie = answer.headers()["set-cookie"].to_str().unwrap();
        assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"), "{cookie}");
    }

    #[test]
    fn pages_of_other_sites_are_refused_everywhere() {
        let access = Access::Connected;
        let host = ("host", "server:2376");
        assert_eq!(status(&access, "POST /containers/create", &[host]), 200);
        assert_eq!(
            status(&access, "POST /containers/create", &[host, ("origin", "https://server:2376")]),
            200
        );
        for origin in ["https://evil.example", "null", "https://server", "https://server:2376.evil"] {
            assert_eq!(
                status(&access, "POST /containers/create", &[host, ("origin", origin)]),
                403,
                "{origin}"
            );
        }
        for site in ["cross-site", "same-site"] {
            assert_eq!(status(&access, "/info", &[host, ("sec-fetch-site", site)]), 403);
            assert_eq!(status(&access, "/console/", &[host, ("sec-fetch-site", site)]), 200);
        }
    }

    #[test]
    fn tokens_are_long_and_never_the_same() {
        let (one, two) = (Door::new(1).unwrap(), Door::new(1).unwrap());
        assert!(one.token.len() == 2 * TOKEN_BYTES && one.token != two.token);
    }
}
