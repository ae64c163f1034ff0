//! `/console/`: the web console, whose files are part of this program. Its sources are in `console/`; `make console` builds them.
//!
//! It is a page of its own that speaks to the APIs beside it: nothing is known here of what it shows.

use axum::Router;
use axum::extract::Path;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;

use crate::access::CONSOLE;
use crate::error::ApiError;

/// Only what this server sends runs, and it speaks to this server only. The terminal makes style sheets while it runs, so those are
/// not limited to files; scripts are.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
                      font-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// A file of the console.
struct Asset {
    name: &'static str,
    media_type: &'static str,
    bytes: &'static [u8],
}

macro_rules! asset {
    ($name:literal, $media_type:literal) => {
        Asset {
            name: $name,
            media_type: $media_type,
            bytes: include_bytes!(concat!("../assets/console/", $name)),
        }
    };
}

const INDEX: Asset = asset!("index.html", "text/html; charset=utf-8");
/// Those the page names.
const ASSETS: [Asset; 4] = [
    asset!("console.js", "text/javascript; charset=utf-8"),
    asset!("console.css", "text/css; charset=utf-8"),
    asset!("icon.svg", "image/svg+xml"),
    asset!("licenses.txt", "text/plain; charset=utf-8"),
];

/// The console, or a word about how to have it.
pub(crate) fn router(is_wanted: bool) -> Router {
    if !is_wanted {
        let off = || async { ApiError::not_found("the console is off: strata serve --console") };
        return Router::new()
            .route("/console", get(off))
            .route("/console/{*file}", get(off))
            .route(CONSOLE, get(off));
    }
    Router::new()
        .route("/", get(|| async { Redirect::to(CONSOLE) }))
        .route("/console", get(|| async { Redirect::to(CONSOLE) }))
        .route(CONSOLE, get(|headers: HeaderMap| async move { send(&INDEX, &headers) }))
        .route("/console/{file}", get(file))
}

async fn file(Path(name): Path<String>, headers: HeaderMap) -> Response {
    match ASSETS.iter().find(|asset| asset.name == name) {
        Some(asset) => send(asset, &headers),
        None => ApiError::not_found("page not found").into_response(),
    }
}

fn send(asset: &Asset, headers: &HeaderMap) -> Response {
    // Another build has other files: a browser asks whether it has the right ones.
    let tag = format!("\"{}\"", &image::Digest::of(asset.bytes).hex()[..32]);
    let head = [
        (header::CONTENT_TYPE, asset.media_type),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    if headers.get(header::IF_NONE_MATCH).is_some_and(|known| known.as_bytes() == tag.as_bytes()) {
        return (StatusCode::NOT_MODIFIED, head, [(header::ETAG, tag)]).into_response();
    }
    (head, [(header::ETAG, tag)], asset.bytes).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_come_from_files_alone() {
        let page = std::str::from_utf8(INDEX.bytes).unwrap();
        for (number, _) in page.match_indices("<script") {
            let tag = &page[number..number + page[number..].find('>').unwrap()];
            assert!(tag.contains("src=\"console.js\""), "{tag}");
        }
        assert!(
            !page.contains("onclick=") && !page.contains("javascript:") && !page.contains("http"),
            "{page}"
        );
        assert!(!POLICY.split(';').any(|rule| rule.contains("script") && rule.contains("unsafe")));
    }

    #[test]
    fn a_file_that_a_browser_has_is_not_sent_again() {
        let first = send(&INDEX, &HeaderMap::new());
        assert_eq!(first.status(), StatusCode::OK);
        let mut headers = HeaderMap::new();
        headers.insert(header::IF_NONE_MATCH, first.headers()[header::ETAG].clone());
        assert_eq!(send(&INDEX, &headers).status(), StatusCode::NOT_MODIFIED);
    }

    #[test]
    fn all_of_it_is_small() {
        let size: usize = ASSETS.iter().chain([&INDEX]).map(|asset| asset.bytes.len()).sum();
        assert!(size < 600 << 10, "{size} bytes");
    }
}
