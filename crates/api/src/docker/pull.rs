//! `POST /images/create`: an image from its registry or from a root file system; and how credentials come from clients.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use bollard_stubs::models::AuthConfig;
use futures_util::StreamExt;
use image::{Part, Progress, Reference};
use registry::{Credentials, Trust};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;

use super::params::Params;
use super::{App, Shared, build, streams};
use crate::error::{ApiError, Result, chain};
use crate::{images, scratch, unnamed};

/// How often a client is told how far a layer is.
const PERIOD: Duration = Duration::from_millis(100);
/// The file of a body.
const BODY: &str = "body";
/// Lines that wait for a slow client before the work does.
const LINES: usize = 64;

/// `POST /images/create`
pub(super) async fn create(State(app): App, params: Params, headers: HeaderMap, body: Body) -> Result {
    if let Some(source) = params.get("fromSrc") {
        return import(app, &params, source, body).await;
    }
    let from = params
        .get("fromImage")
        .ok_or_else(|| ApiError::bad("fromImage or fromSrc: one of them is needed"))?;
    let name = with_tag(from, params.get("tag"))?;
    let mut options = options(credentials(&headers)?);
    options.trust = trust(name.domain());
    if let Some(platform) = params.get("platform") {
        options.platform = platform.parse().map_err(|error: image::Error| ApiError::bad(chain(&error)))?;
    }
    Ok(told(&app, PULL, move |backend, lines| {
        let shown = name.tag().map(str::to_owned).unwrap_or_default();
        lines.say(json!({ "status": format!("Pulling from {}", name.repository()), "id": shown }));
        let pulled =
            registry::pull(backend.store(), &name, &options, lines).map_err(|error| match error.cause() {
                registry::Cause::Unauthorized { .. } => {
                    format!("pull access denied for {name}: {}", chain(&error))
                }
                _ => chain(&error),
            })?;
        images::tell_image(backend.store(), &pulled.image, "pull");
        lines.say(json!({ "status": format!("Digest: {}", pulled.digest) }));
        let news = if pulled.is_new { "Downloaded newer image for" } else { "Image is up to date for" };
        lines.say(json!({ "status": format!("Status: {news} {name}") }));
        Ok(())
    }))
}

/// A name with the tag or digest that came apart from it.
pub(super) fn with_tag(name: &str, tag: Option<&str>) -> Result<Reference> {
    let text = match tag {
        Some(digest) if digest.contains(':') => format!("{name}@{digest}"),
        Some(tag) if !name.rsplit('/').next().unwrap_or_default().contains([':', '@']) => {
            format!("{name}:{tag}")
        }
        _ => name.to_owned(),
    };
    text.parse()
        .map_err(|error: image::Error| ApiError::bad(format!("invalid reference format: {}", chain(&error))))
}

/// The name that a client gives an image, or one for an image without.
///
/// # Errors
/// It is none.
pub(super) fn name_of(params: &Params) -> Result<Reference> {
    match params.get("repo").filter(|repository| !repository.is_empty()) {
        Some(repository) => with_tag(repository, params.get("tag")),
        None => unnamed::fresh(),
    }
}

/// The instructions by which a client changes an image's config.
pub(super) fn changes(params: &Params) -> Vec<String> {
    let lines = params.all("changes").flat_map(str::lines);
    lines.filter(|change| !change.trim().is_empty()).map(str::to_owned).collect()
}

async fn import(app: std::sync::Arc<Shared>, params: &Params, source: &str, body: Body) -> Result {
    if source != "-" {
        return Err(ApiError::not_offered("import from an address: fetch it, and import the file"));
    }
    let name = name_of(params)?;
    let changes = changes(params);
    let file = keep(&app, body).await?;
    Ok(told(&app, PULL, move |backend, lines| {
        let imported = backend.store().import(&file.path(), &name, lines);
        imported.map_err(|error| chain(&error))?;
        if !changes.is_empty() {
            build::change(backend, &name, &changes)?;
        }
        let image = unnamed::settle(backend.store(), &name).map_err(|error| error.message)?;
        images::tell_image(backend.store(), &image, "import");
        lines.say(json!({ "status": image.manifest().config().digest().to_string() }));
        Ok(())
    }))
}

/// A body on disk, as long as this lives.
pub(super) struct Kept(tempfile::TempDir);

impl Kept {
    /// Where it is.
    pub(super) fn path(&self) -> PathBuf {
        self.0.path().join(BODY)
    }
}

/// Writes a body to a file.
pub(super) async fn keep(app: &std::sync::Arc<Shared>, body: Body) -> Result<Kept> {
    let root = app.backend.store().root().to_owned();
    let failed = |error: std::io::Error| ApiError::failed(format!("keep what the client sends: {error}"));
    let folder = scratch::folder(&root, scratch::UPLOAD).map_err(failed)?;
    let kept = Kept(folder);
    let mut file = tokio::fs::File::create(kept.path()).await.map_err(failed)?;
    let mut pieces = body.into_data_stream();
    while let Some(piece) = pieces.next().await {
        let piece =
            piece.map_err(|error| ApiError::bad(format!("the client's body ended early: {error}")))?;
        file.write_all(&piece).await.map_err(failed)?;
    }
    file.flush().await.map_err(failed)?;
    Ok(kept)
}

/// Lines of JSON that tell a client how far it is.
pub(super) struct Lines {
    to: mpsc::Sender<Bytes>,
    words: Words,
}

/// What docker calls the two states of a layer that moves.
#[derive(Clone, Copy, Debug)]
pub(super) struct Words {
    moving: &'static str,
    done: &'static str,
}

/// Towards the store.
pub(super) const PULL: Words = Words { moving: "Downloading", done: "Pull complete" };
/// Away from it.
pub(super) const PUSH: Words = Words { moving: "Pushing", done: "Pushed" };

impl Lines {
    /// Sends one. A client that is gone hears nothing, and what it asked for is done all the same.
    pub(super) fn say(&self, value: Value) {
        let _ = self.to.blocking_send(Bytes::from(format!("{value}\r\n")));
    }
}

/// Does `work` and answers with what it says; a failure is the last line, for the head is sent by then.
pub(super) fn told(
    app: &std::sync::Arc<Shared>,
    words: Words,
    work: impl FnOnce(&dyn crate::Backend, &Lines) -> std::result::Result<(), String> + Send + 'static,
) -> Response {
    let (sender, receiver) = mpsc::channel(LINES);
    let backend = app.backend.clone();
    tokio::task::spawn_blocking(move || {
        let lines = Lines { to: sender, words };
        if let Err(message) = work(&*backend, &lines) {
            lines.say(json!({ "errorDetail": { "message": message }, "error": message }));
        }
    });
    let head = [(header::CONTENT_TYPE, "application/json")];
    (StatusCode::OK, head, streams::body(receiver)).into_response()
}

impl Progress for Lines {
    fn step(&self, text: &str) {
        self.say(json!({ "status": text }));
    }

    fn bytes(&self, _done: u64, _total: Option<u64>) {}

    fn note(&self, text: &str) {
        self.say(json!({ "status": text }));
    }

    fn part(&self, text: &str, total: u64) -> Box<dyn Part + '_> {
        // A short digest stands in brackets behind the text.
        let id = text.rsplit_once('(').map_or(text, |(_, digest)| digest.trim_end_matches(')')).to_owned();
        let detail = json!({ "current": 0, "total": total });
        self.say(json!({ "status": self.words.moving, "id": id, "progressDetail": detail }));
        Box::new(Layer { lines: self, id, total, told: Mutex::new(Instant::now()) })
    }
}

struct Layer<'a> {
    lines: &'a Lines,
    id: String,
    total: u64,
    told: Mutex<Instant>,
}

impl Part for Layer<'_> {
    fn bytes(&mut self, done: u64) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.elapsed() < PERIOD {
            return;
        }
        *told = Instant::now();
        let detail = json!({ "current": done, "total": self.total });
        let status = self.lines.words.moving;
        self.lines.say(json!({ "status": status, "id": self.id, "progressDetail": detail }));
    }

    fn finish(self: Box<Self>) {
        let status = self.lines.words.done;
        self.lines.say(json!({ "status": status, "id": self.id, "progressDetail": {} }));
    }
}

/// The credentials that a client sends along.
pub(super) fn credentials(headers: &HeaderMap) -> Result<Option<AuthConfig>> {
    let Some(value) = headers.get("x-registry-auth").filter(|value| !value.is_empty()) else {
        return Ok(None);
    };
    let wrong = |reason: String| ApiError::bad(format!("X-Registry-Auth: {reason}"));
    // With padding or without: clients differ.
    let text = value.to_str().map_err(|error| wrong(error.to_string()))?.trim_end_matches('=');
    let url_safe: String = text
        .chars()
        .map(|c| match c {
            '+' => '-',
            '/' => '_',
            c => c,
        })
        .collect();
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(url_safe);
    let bytes = bytes.map_err(|error| wrong(error.to_string()))?;
    serde_json::from_slice(&bytes).map(Some).map_err(|error| wrong(error.to_string()))
}

/// How to speak to the registry. Clients have their own credentials; the server's are not for them.
pub(super) fn options(client: Option<AuthConfig>) -> registry::Options {
    let user = client.and_then(|config| {
        let user = config.username.filter(|user| !user.is_empty())?;
        Some(Credentials::Password { user, password: config.password.unwrap_or_default() })
    });
    registry::Options { credentials: user, credential_file: None, ..registry::Options::default() }
}

/// Docker's rule: a registry on the loopback need not show a certificate.
fn trust(domain: &str) -> Trust {
    let host = domain.rsplit_once(':').map_or(domain, |(host, _)| host);
    let is_loopback = host == "localhost"
        || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    if is_loopback { Trust::Anything } else { Trust::Verify }
}

/// The registry that an address of a client's credential file means.
pub(super) fn domain(address: &str) -> String {
    let host = address.split_once("://").map_or(address, |(_, rest)| rest);
    let host = host.split('/').next().unwrap_or_default();
    match host {
        "" | "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
        host => host.to_owned(),
    }
}

/// As [`options`], for this registry.
pub(super) fn options_for(domain: &str, headers: &HeaderMap) -> Result<registry::Options> {
    Ok(registry::Options { trust: trust(domain), ..options(credentials(headers)?) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_and_digests_join_their_names() {
        let name = |name, tag| with_tag(name, tag).map(|name| name.to_string());
        assert_eq!(name("debian", Some("12")).as_deref(), Ok("debian:12"));
        assert_eq!(name("localhost:5000/a", Some("b")).as_deref(), Ok("localhost:5000/a:b"));
        let digest = format!("sha256:{}", "0".repeat(64));
        assert_eq!(name("debian", Some(&digest)).unwrap(), format!("debian@{digest}"));
        assert!(name("Not A Name", None).is_err());
    }

    #[test]
    fn credentials_come_in_a_header() {
        let header = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("x-registry-auth", text.parse().unwrap());
            credentials(&headers)
        };
        let text = base64::engine::general_purpose::URL_SAFE.encode(br#"{"username":"u","password":"p??>"}"#);
        assert_eq!(header(&text).unwrap().unwrap().password.as_deref(), Some("p??>"));
        assert_eq!(header("e30=").unwrap(), Some(AuthConfig::default()));
        assert!(header("%%%").is_err() && header("e30x").is_err());
        assert_eq!(domain("https://index.docker.io/v1/"), "docker.io");
        assert_eq!(domain("reg.example:5000"), "reg.example:5000");
    }

    #[test]
    fn registries_on_the_loopback_are_trusted() {
        for domain in ["localhost:5000", "127.0.0.1", "127.1.2.3:80", "localhost"] {
            assert_eq!(trust(domain), Trust::Anything, "{domain}");
        }
        for domain in ["docker.io", "127.0.0.1.example:5000", "10.0.0.1:5000"] {
            assert_eq!(trust(domain), Trust::Verify, "{domain}");
        }
    }
}
