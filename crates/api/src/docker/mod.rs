//! The Docker Engine API, versions 1.24 to 1.50: what docker 28 speaks.
//!
//! A handler takes the request apart, calls the back end or reads the store, and puts docker's answer together. What is not
//! offered answers 501 with the reason.

mod archive;
mod attach;
mod build;
mod commit;
mod containers;
mod create;
mod endpoints;
mod events;
mod exec;
mod exits;
mod filters;
mod images;
mod inspect;
mod ipam;
mod keys;
mod lifecycle;
mod logs;
mod networks;
mod params;
mod pull;
mod stats;
mod streams;
mod system;
mod top;
mod tuning;
mod update;
mod volumes;

use std::sync::Arc;

use axum::extract::DefaultBodyLimit;
use axum::http::Method;
use axum::response::Response;
use axum::routing::{any, delete, get, post};
use axum::{Json, Router};
use hyper::{Request, Uri};
use serde::Serialize;

use crate::backend::Backend;
use crate::error::{ApiError, Result};

/// The newest version that is spoken.
pub const API_VERSION: &str = "1.50";
const NEWEST: u32 = 50;
/// The oldest.
pub const MIN_API_VERSION: &str = "1.24";
const OLDEST: u32 = 24;

/// Bytes of a body that is read as a whole. Attack: a client that sends JSON without end.
const MAX_BODY_BYTES: usize = 4 << 20;

/// What handlers share.
pub(crate) struct Shared {
    backend: Arc<dyn Backend>,
    exits: exits::Exits,
    execs: exec::Execs,
}

pub(crate) type App = axum::extract::State<Arc<Shared>>;
/// Endpoints that share it.
pub(crate) type Routes = Router<Arc<Shared>>;

/// All endpoints: one row each.
pub fn router(backend: Arc<dyn Backend>) -> Router {
    let shared = Arc::new(Shared { backend, exits: exits::Exits::default(), execs: exec::Execs::default() });
    Router::new()
        .route("/_ping", get(system::ping).head(system::ping))
        .route("/version", get(system::version))
        .route("/info", get(system::info))
        .route("/auth", post(system::auth))
        .route("/system/df", get(system::disk_usage))
        .route("/events", get(events::events))
        .route("/containers/json", get(containers::list))
        .route("/containers/create", post(create::create))
        .route("/containers/prune", post(lifecycle::prune))
        .route("/containers/{name}", delete(lifecycle::remove))
        .route("/containers/{name}/json", get(inspect::inspect))
        .route("/containers/{name}/start", post(lifecycle::start))
        .route("/containers/{name}/stop", post(lifecycle::stop))
        .route("/containers/{name}/restart", post(lifecycle::restart))
        .route("/containers/{name}/kill", post(lifecycle::kill))
        .route("/containers/{name}/pause", post(lifecycle::pause))
        .route("/containers/{name}/unpause", post(lifecycle::unpause))
        .route("/containers/{name}/rename", post(lifecycle::rename))
        .route("/containers/{name}/update", post(update::update))
        .route("/containers/{name}/resize", post(lifecycle::resize))
        .route("/containers/{name}/wait", post(exits::wait))
        .route("/containers/{name}/attach", post(attach::attach))
        .route("/containers/{name}/logs", get(logs::logs))
        .route("/containers/{name}/stats", get(stats::stats))
        .route("/containers/{name}/top", get(top::top))
        .route("/containers/{name}/archive", get(archive::get).head(archive::head).put(archive::put))
        .route("/containers/{name}/export", get(archive::export))
        .route("/containers/{name}/changes", get(commit::changes))
        .route("/commit", post(commit::commit))
        .route("/containers/{name}/exec", post(exec::create))
        .route("/exec/{id}/start", post(exec::start))
        .route("/exec/{id}/resize", post(exec::resize))
        .route("/exec/{id}/json", get(exec::inspect))
        .route("/images/json", get(images::list))
        .route("/images/create", post(pull::create))
        .route("/images/load", post(images::load))
        .route("/images/get", get(images::save_several))
        .route("/images/prune", post(images::prune))
        .route("/images/{*name}", get(images::get).post(images::post).delete(images::remove))
        .route("/build", post(build::build))
        .route("/build/prune", post(build::prune))
        .route("/networks", get(networks::list))
        .route("/networks/create", post(networks::create))
        .route("/networks/prune", post(networks::prune))
        .route("/networks/{name}", get(networks::inspect).delete(networks::remove))
        .route("/networks/{name}/connect", post(networks::connect))
        .route("/networks/{name}/disconnect", post(networks::disconnect))
        .route("/volumes", get(volumes::list))
        .route("/volumes/create", post(volumes::create))
        .route("/volumes/prune", post(volumes::prune))
        .route("/volumes/{name}", get(volumes::inspect).delete(volumes::remove))
        .route("/plugins", get(system::plugins))
        .merge(crate::strata::routes())
        .merge(crate::metrics::routes())
        .fallback(any(unknown))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(shared)
}

/// The endpoints that docker has and Strata does not yet, and the reason; the others are no endpoints.
async fn unknown(method: Method, uri: Uri) -> ApiError {
    let path = uri.path();
    let mut parts = path.split('/').skip(1);
    let reason = match (parts.next().unwrap_or_default(), parts.next()) {
        // What docker itself says where there is no swarm: clients that look everywhere for a name look on.
        ("swarm" | "nodes" | "services" | "tasks" | "secrets" | "configs", _) => {
            let message = "This node is not a swarm manager. Strata runs workloads on one host.";
            return ApiError::new(axum::http::StatusCode::SERVICE_UNAVAILABLE, message);
        }
        ("plugins", Some(name)) if method == Method::GET => {
            return ApiError::not_found(format!("plugin {name:?} not found"));
        }
        ("plugins", _) => "Strata has no plugins, and takes none",
        ("session" | "grpc", _) => "Strata builds without BuildKit: DOCKER_BUILDKIT=0 docker build",
        ("distribution", _) => "Strata does not ask registries for others",
        ("volumes", _) => "volumes are changed in a swarm only",
        ("containers" | "commit" | "images" | "networks" | "system" | "build", _) => {
            "this part of the API is not there yet"
        }
        _ => return ApiError::not_found("page not found"),
    };
    ApiError::not_offered(format!("{method} {path}: {reason}"))
}

/// Takes the version off a request's path.
///
/// # Errors
/// It is one that is not spoken.
pub(crate) fn unversioned<B>(mut request: Request<B>) -> std::result::Result<Request<B>, ApiError> {
    let uri = request.uri();
    let Some((version, rest)) = uri.path().strip_prefix("/v1.").and_then(|rest| rest.split_once('/')) else {
        return Ok(request);
    };
    let minor: u32 = version.parse().map_err(|_| ApiError::bad(format!("invalid version: v1.{version}")))?;
    if minor > NEWEST {
        return Err(ApiError::bad(format!(
            "client version 1.{minor} is too new. Maximum supported API version is {API_VERSION}"
        )));
    }
    if minor < OLDEST {
        return Err(ApiError::bad(format!(
            "client version 1.{minor} is too old. Minimum supported API version is {MIN_API_VERSION}, please upgrade your client to a newer version"
        )));
    }
    let path = match uri.query() {
        Some(query) => format!("/{rest}?{query}"),
        None => format!("/{rest}"),
    };
    *request.uri_mut() = path.parse().map_err(|_| ApiError::bad("invalid path"))?;
    Ok(request)
}

impl Shared {
    /// Makes calls that may wait, on a thread of their own.
    pub(crate) async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&dyn Backend) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let backend = self.backend.clone();
        tokio::task::spawn_blocking(move || work(&*backend))
            .await
            .unwrap_or_else(|error| Err(ApiError::failed(format!("the server failed: {error}"))))
    }

    /// The workload of this name or id.
    pub(crate) async fn find(self: &Arc<Self>, name: String) -> Result<workload::Folder> {
        self.blocking(move |backend| Ok(backend.workloads().find(name.trim_start_matches('/'))?)).await
    }
}

/// JSON of this status.
fn json(status: axum::http::StatusCode, value: &impl Serialize) -> Response {
    axum::response::IntoResponse::into_response((status, Json(value)))
}

/// Nothing, successfully.
const NOTHING: axum::http::StatusCode = axum::http::StatusCode::NO_CONTENT;

#[cfg(test)]
mod tests {
    use super::*;

    fn path(uri: &str) -> std::result::Result<String, u16> {
        let request = Request::builder().uri(uri).body(()).unwrap();
        unversioned(request).map(|r| r.uri().to_string()).map_err(|error| error.status.as_u16())
    }

    #[test]
    fn versions_that_are_spoken_are_taken_off_the_path() {
        assert_eq!(path("/v1.24/_ping").as_deref(), Ok("/_ping"));
        assert_eq!(path("/v1.50/containers/json?all=1&x=%2F").as_deref(), Ok("/containers/json?all=1&x=%2F"));
        assert_eq!(path("/containers/v1.50/json").as_deref(), Ok("/containers/v1.50/json"));
        assert_eq!(path("/v1.23/_ping"), Err(400));
        assert_eq!(path("/v1.51/_ping"), Err(400));
        assert_eq!(path("/v1.x/_ping"), Err(400));
        assert_eq!(path("/v1.99999999999/_ping"), Err(400));
    }
}
