//! Proving who asks: passwords and tokens.
//!
//! Sources: the token and OAuth2 specifications of the Docker registry (`distribution/docs/content/spec/auth`), RFC 6750, RFC
//! 7617. A registry that wants credentials says so in a challenge; a token is fetched once for each thing it is for, kept until
//! shortly before it ends, and fetched anew when the registry refuses it. Lock order: a fetch holds the table of tokens, so
//! that threads which want the same one fetch it once.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use ureq::http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use ureq::http::{Method, StatusCode, Uri};

use crate::challenge::Challenge;
use crate::credentials::Credentials;
use crate::error::{Cause, shown};
use crate::http::{self, Call, Http, Payload, Response};
use crate::trust::Trust;

/// Bytes of the document a token comes in.
const MAX_TOKEN_DOCUMENT_BYTES: u64 = 1 << 20;
/// Bytes of a token. Attack: one that no server would take in a header.
const MAX_TOKEN_BYTES: usize = 32 << 10;
/// How long a token is good when nobody says (the token specification).
const TOKEN_SECONDS: u64 = 60;
/// What is left as it is in a URL.
const VALUE: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// What a request is for, in the words of tokens; several are separated by spaces.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Scope(String);

impl Scope {
    /// To look who one is.
    pub(crate) fn none() -> Scope {
        Scope(String::new())
    }

    pub(crate) fn pull(repository: &str) -> Scope {
        Scope(format!("repository:{repository}:pull"))
    }

    /// To push to a repository, and to take blobs from others beside it.
    pub(crate) fn push(repository: &str, from: &[String]) -> Scope {
        let others = from.iter().map(|other| format!(" repository:{other}:pull"));
        Scope(format!("repository:{repository}:pull,push{}", others.collect::<String>()))
    }
}

struct Token {
    header: HeaderValue,
    until: Instant,
}

/// What is known of how a registry wants to be asked.
pub(crate) struct Auth {
    /// The registry as its users call it.
    domain: String,
    trust: Trust,
    credentials: Option<Credentials>,
    /// The challenge of the registry; nothing before there was one.
    challenge: Mutex<Option<Challenge>>,
    tokens: Mutex<HashMap<Scope, Token>>,
}

impl Auth {
    pub(crate) fn new(domain: &str, trust: Trust, credentials: Option<Credentials>) -> Auth {
        Auth {
            domain: domain.to_string(),
            trust,
            credentials,
            challenge: Mutex::new(None),
            tokens: Mutex::new(HashMap::new()),
        }
    }

    /// Takes note of the challenges in an answer. False when it holds none that is understood.
    pub(crate) fn take_challenge(&self, response: &Response) -> bool {
        let headers = response.headers().get_all(WWW_AUTHENTICATE);
        let all: Vec<Challenge> =
            headers.iter().filter_map(|value| Challenge::parse(value.to_str().ok()?)).collect();
        let bearer = all.iter().find(|challenge| matches!(challenge, Challenge::Bearer { .. }));
        let Some(best) = bearer.or(all.first()) else { return false };
        *self.challenge.lock().unwrap_or_else(PoisonError::into_inner) = Some(best.clone());
        true
    }

    /// The header that a request for `scope` needs, if it needs one. `refused` is the one that was not good enough.
    pub(crate) fn header(
        &self,
        http: &Http,
        base: &Uri,
        scope: &Scope,
        refused: Option<&HeaderValue>,
    ) -> Result<Option<HeaderValue>, Cause> {
        let challenge = self.challenge.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match challenge {
            None => Ok(None),
            Some(Challenge::Basic) => self.credentials.as_ref().map(basic).transpose(),
            Some(Challenge::Bearer { realm, service, scope: asked }) => {
                let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(token) = tokens.get(scope)
                    && refused != Some(&token.header)
                    && Instant::now() < token.until
                {
                    return Ok(Some(token.header.clone()));
                }
                // What the registry asked for itself counts when what we thought of was not enough.
                let asked = asked.filter(|_| refused.is_some());
                let wanted = asked.as_deref().unwrap_or(&scope.0);
                let token = self.fetch(http, base, &realm, service.as_deref(), wanted)?;
                let header = token.header.clone();
                tokens.insert(scope.clone(), token);
                Ok(Some(header))
            }
        }
    }

    /// The cause that a refusal is.
    pub(crate) fn unauthorized(&self, response: Response) -> Cause {
        let message = http::message(response);
        // What the sentence says already.
        let message = if message == ": Unauthorized" { String::new() } else { message };
        Cause::Unauthorized { host: self.domain.clone(), given: self.credentials.is_some(), message }
    }

    fn fetch(
        &self,
        http: &Http,
        base: &Uri,
        realm: &str,
        service: Option<&str>,
        scope: &str,
    ) -> Result<Token, Cause> {
        let realm_url: Option<Uri> = realm.parse().ok();
        let realm_url = realm_url.filter(|url| url.authority().is_some());
        let Some(realm_url) = realm_url else {
            return Err(http::protocol(base, format!("tokens from {:?}", shown(realm))));
        };
        let plain = realm_url.scheme_str() != Some("https");
        // A password must not leave TLS because somebody says so in a header.
        if plain && !(self.trust == Trust::Anything && realm_url.scheme_str() == Some("http")) {
            return Err(http::protocol(base, format!("tokens from {:?}", shown(realm))));
        }
        let call = self.token_call(&realm_url, service, scope)?;
        let url = call.url.clone();
        let response = match self.token_form(service, scope) {
            Some(form) => http.send(call.payload(Payload::Bytes(form.as_bytes()))),
            None => http.send(call),
        }?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST => {
                return Err(self.unauthorized(response));
            }
            _ => return Err(http::status(&url, response)),
        }
        let bytes = http::read_document(http, &url, response, MAX_TOKEN_DOCUMENT_BYTES)?;
        read_token(&bytes).map_err(|reason| http::protocol(&url, reason))
    }

    fn token_call(&self, realm: &Uri, service: Option<&str>, scope: &str) -> Result<Call<'static>, Cause> {
        if matches!(self.credentials, Some(Credentials::IdentityToken(_))) {
            let form = HeaderValue::from_static("application/x-www-form-urlencoded");
            return Ok(Call::new(Method::POST, realm.clone()).header(CONTENT_TYPE, form));
        }
        let mut url = realm.to_string();
        let mut add = |name: &str, value: &str| {
            url.push(if url.contains('?') { '&' } else { '?' });
            url.push_str(&format!("{name}={}", utf8_percent_encode(value, VALUE)));
        };
        service.iter().for_each(|service| add("service", service));
        scope.split(' ').filter(|scope| !scope.is_empty()).for_each(|scope| add("scope", scope));
        let mut header = None;
        if let Some(credentials @ Credentials::Password { user, .. }) = &self.credentials {
            add("account", user);
            header = Some(basic(credentials)?);
        }
        let bad =
            |e: ureq::http::uri::InvalidUri| http::protocol(realm, format!("the URL of its tokens: {e}"));
        let call = Call::new(Method::GET, url.parse::<Uri>().map_err(bad)?);
        Ok(header.into_iter().fold(call, |call, header| call.header(AUTHORIZATION, header)))
    }

    /// What is sent for a token that comes from another token.
    fn token_form(&self, service: Option<&str>, scope: &str) -> Option<String> {
        let Some(Credentials::IdentityToken(token)) = &self.credentials else { return None };
        let encode = |value: &str| utf8_percent_encode(value, VALUE).to_string();
        Some(format!(
            "grant_type=refresh_token&client_id=strata&service={}&scope={}&refresh_token={}",
            encode(service.unwrap_or_default()),
            encode(scope),
            encode(token)
        ))
    }
}

/// The header for user and password.
fn basic(credentials: &Credentials) -> Result<HeaderValue, Cause> {
    let text = match credentials {
        Credentials::Password { user, password } => format!("{user}:{password}"),
        Credentials::IdentityToken(token) => format!("<token>:{token}"),
    };
    let mut value = HeaderValue::from_str(&format!("Basic {}", STANDARD.encode(text)))
        .map_err(|e| Cause::Credentials(format!("user and password: {e}")))?;
    value.set_sensitive(true);
    Ok(value)
}

/// A token's document.
fn read_token(bytes: &[u8]) -> Result<Token, String> {
    #[derive(Deserialize)]
    struct Document {
        token: Option<String>,
        access_token: Option<String>,
        expires_in: Option<u64>,
    }
    let document: Document =
        serde_json::from_slice(bytes).map_err(|e| format!("parse its token: {}", shown(&e.to_string())))?;
    let text = document.token.filter(|t| !t.is_empty()).or(document.access_token).unwrap_or_default();
    if text.is_empty() {
        return Err("a document without a token".to_string());
    }
    if text.len() > MAX_TOKEN_BYTES {
        return Err(format!("a token of {} bytes", text.len()));
    }
    let mut header = HeaderValue::from_str(&format!("Bearer {text}"))
        .map_err(|_| "a token with characters that no token has".to_string())?;
    header.set_sensitive(true);
    let seconds = document.expires_in.unwrap_or(TOKEN_SECONDS).clamp(TOKEN_SECONDS, 24 * 3600);
    // A little earlier than it ends, for the way there and clocks that differ.
    Ok(Token { header, until: Instant::now() + Duration::from_secs(seconds - seconds / 6) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_have_two_names_and_are_checked() {
        let header = |text: &str| read_token(text.as_bytes()).map(|token| token.header);
        assert_eq!(header(r#"{"token":"a.b"}"#).unwrap(), "Bearer a.b");
        assert_eq!(header(r#"{"access_token":"c","token":"","expires_in":1,"x":[]}"#).unwrap(), "Bearer c");
        let long = format!(r#"{{"token":"{}"}}"#, "x".repeat(MAX_TOKEN_BYTES + 1));
        for (text, want) in [
            ("", "parse"),
            ("{}", "without"),
            (r#"{"token":"a\nX: b"}"#, "characters"),
            (r#"{"token":"a","expires_in":-1}"#, "parse"),
            (&long, "bytes"),
        ] {
            let message = header(text).unwrap_err();
            assert!(message.contains(want), "{message}");
        }
        assert!(read_token(br#"{"token":"a","expires_in":18446744073709551615}"#).is_ok());
    }

    #[test]
    fn passwords_do_not_leave_tls_for_a_token() {
        let http = Http::new("reg.example", Trust::Verify, crate::Timeouts::default());
        let base: Uri = "https://reg.example/v2/".parse().unwrap();
        let auth = Auth::new("reg.example", Trust::Verify, Credentials::password("a", "b").ok());
        for realm in ["http://127.0.0.1:1/token", "ftp://x/", "/token", "", "https://"] {
            let Err(cause) = auth.fetch(&http, &base, realm, None, "") else { panic!("{realm}") };
            assert!(cause.to_string().contains("tokens from"), "{cause}");
        }
    }

    #[test]
    fn a_scope_names_all_that_a_push_touches() {
        assert_eq!(Scope::pull("a/b"), Scope("repository:a/b:pull".into()));
        let push = Scope::push("a", &["b".into(), "c/d".into()]);
        assert_eq!(push, Scope("repository:a:pull,push repository:b:pull repository:c/d:pull".into()));
    }
}
