//! Images that nobody gave a name, which docker knows by their ids alone. The store keeps an image as long as a name leads to it, so
//! each of these has one too, of a host that there cannot be (RFC 2606); no client is told.

use std::sync::atomic::{AtomicU32, Ordering};

use image::{Image, Reference, Store};

use crate::error::{ApiError, Result};
use crate::images::id_of;

/// The host.
const HOST: &str = "unnamed.invalid";
/// Digits of an id that a name has.
const DIGITS: usize = 32;

/// Whether a name says that there is none.
#[must_use]
pub fn is_unnamed(name: &Reference) -> bool {
    name.domain() == HOST
}

/// A name for an image that is still to be made.
///
/// # Errors
/// None: the name is a good one.
pub(crate) fn fresh() -> Result<Reference> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    parse(&format!("{HOST}/new:{}-{}-{number}", std::process::id(), workload::now_ms()))
}

fn parse(name: &str) -> Result<Reference> {
    name.parse().map_err(ApiError::from)
}

/// The image that was made as `name`. One of [`fresh`] gives way to the name that goes with the image's id, or to any that somebody
/// gave it.
///
/// # Errors
/// It was not made, or the store cannot be written.
pub(crate) fn settle(store: &Store, name: &Reference) -> Result<Image> {
    let image = store.image(name)?;
    if !is_unnamed(name) {
        return Ok(image);
    }
    let id = id_of(&image);
    let is_named = |row: &image::ImageSummary| {
        let other = row.name.parse::<Reference>().ok().filter(|other| !is_unnamed(other))?;
        store.image(&other).ok().filter(|other| id_of(other) == id)
    };
    let settled = match store.images()?.iter().find_map(is_named) {
        Some(named) => named,
        None => {
            let own = parse(&format!("{HOST}/image:{}", &id.trim_start_matches("sha256:")[..DIGITS]))?;
            store.tag(name, &own)?;
            store.image(&own)?
        }
    };
    store.remove(name)?;
    Ok(settled)
}
