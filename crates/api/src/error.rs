//! Errors as docker's clients know them: a status code, and a body with one line.

use std::error::Error;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::backend::{Refusal, RefusalKind};

/// An answer that is no success.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// Docker's code for it.
    pub status: StatusCode,
    /// One line.
    pub message: String,
}

/// What handlers return.
pub(crate) type Result<T = Response> = std::result::Result<T, ApiError>;

impl ApiError {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> ApiError {
        ApiError { status, message: message.into() }
    }

    pub(crate) fn bad(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, message)
    }

    pub(crate) fn not_found(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::NOT_FOUND, message)
    }

    pub(crate) fn conflict(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::CONFLICT, message)
    }

    pub(crate) fn failed(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// What Strata does not do, and why.
    pub(crate) fn not_offered(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::NOT_IMPLEMENTED, message)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, Json(json!({ "message": self.message }))).into_response()
    }
}

impl From<JsonRejection> for ApiError {
    fn from(rejection: JsonRejection) -> ApiError {
        let status = match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => StatusCode::PAYLOAD_TOO_LARGE,
            _ => StatusCode::BAD_REQUEST,
        };
        ApiError::new(status, rejection.body_text())
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> ApiError {
        let status = match refusal.kind {
            RefusalKind::NotFound => StatusCode::NOT_FOUND,
            RefusalKind::Invalid => StatusCode::BAD_REQUEST,
            RefusalKind::Conflict => StatusCode::CONFLICT,
            RefusalKind::Forbidden => StatusCode::FORBIDDEN,
            RefusalKind::Unsupported => StatusCode::NOT_IMPLEMENTED,
            RefusalKind::Failed => StatusCode::INTERNAL_SERVER_ERROR,
        };
        ApiError::new(status, refusal.message)
    }
}

impl From<workload::Error> for ApiError {
    fn from(error: workload::Error) -> ApiError {
        use workload::Error as E;
        let message = chain(&error);
        if let Some(refusal) = Refusal::of_network(&error) {
            return refusal.into();
        }
        match error {
            E::NotFound { name } => ApiError::not_found(format!("No such container: {name}")),
            // Its folder went away since it was found: it has been removed.
            E::File { path, source, .. }
                if source.kind() == std::io::ErrorKind::NotFound
                    && path.parent().is_some_and(|folder| !folder.exists()) =>
            {
                ApiError::not_found(message)
            }
            E::Ambiguous { name } => {
                ApiError::bad(format!("multiple IDs found with provided prefix: {name}"))
            }
            E::NoVolume { name } => ApiError::not_found(format!("get {name}: no such volume")),
            // Clients look for these words.
            E::VolumeInUse { name, users } => {
                ApiError::conflict(format!("remove {name}: volume is in use - [{}]", users.join(", ")))
            }
            E::BadName { .. } | E::BadOption { .. } => ApiError::bad(message),
            E::NameTaken { name, id } => Refusal::name_taken(&name, &id).into(),
            E::Busy { .. } | E::NotWatched { .. } | E::Refused(_) => ApiError::conflict(message),
            _ => ApiError::failed(message),
        }
    }
}

impl From<image::Error> for ApiError {
    fn from(error: image::Error) -> ApiError {
        match &error {
            image::Error::NoImage { name, .. } => ApiError::not_found(format!("No such image: {name}")),
            image::Error::InUse { .. } => ApiError::conflict(chain(&error)),
            _ => ApiError::failed(chain(&error)),
        }
    }
}

/// An error and its causes on one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
