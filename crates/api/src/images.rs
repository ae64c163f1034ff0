//! Images that get names and that go, by name or id or age, as docker has it, and what others hear of that: for the Docker API
//! and for the command line alike.
//!
//! Docker's words are in the refusals, for clients look for them. An image that a workload was made from stays in the store
//! whether or not a name leads to it, so that what is forced here takes nothing away from anybody.

use std::collections::{BTreeMap, BTreeSet};

use image::{Image, Pruned, Reference, Store};
use serde_json::Value;
use workload::{EventKind, Folder, Status, Workloads};

use crate::backend::{Refusal, RefusalKind};
use crate::error::chain;
use crate::unnamed::is_unnamed;

/// What came of the removal of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemovedImage {
    /// Names that lead to it no more.
    pub untagged: Vec<Reference>,
    /// The digest of its manifest, if the image itself is gone.
    pub deleted: Option<String>,
}

/// Which images are to go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageFilters {
    /// `KEY` or `KEY=VALUE` that must all be there.
    pub labels: Vec<String>,
    /// The same that must not be there.
    pub without: Vec<String>,
    /// Made before each of these: seconds since 1970, a time as RFC 3339 has it, or so long ago as `24h`.
    pub until: Vec<String>,
}

fn failed(error: &(dyn std::error::Error + 'static)) -> Refusal {
    Refusal::new(RefusalKind::Failed, chain(error))
}

/// An image as the index knows it, which may be broken.
struct Found {
    digest: String,
    /// All its names.
    names: Vec<Reference>,
    /// The name it was asked for by; nothing for an id.
    by: Option<Reference>,
}

/// Whether this digest begins as `text` does, which is at least four digits.
pub(crate) fn is_id_of(id: &str, text: &str) -> bool {
    let text = text.strip_prefix("sha256:").unwrap_or(text);
    text.len() >= 4
        && text.bytes().all(|b| b.is_ascii_hexdigit())
        && id.trim_start_matches("sha256:").starts_with(text)
}

/// Finds it by a name or by an id: the beginning of the digest of its manifest, which `strata image ls` shows, or of its config,
/// which is docker's.
fn find(store: &Store, text: &str) -> Result<Found, Refusal> {
    let missing = || Refusal::new(RefusalKind::NotFound, format!("No such image: {text}"));
    let rows: Vec<(Reference, String)> = store
        .images()
        .map_err(|error| failed(&error))?
        .into_iter()
        .filter_map(|row| Some((row.name.parse().ok()?, row.digest)))
        .collect();
    let by = text.parse::<Reference>().ok().filter(|name| rows.iter().any(|(other, _)| other == name));
    let is_wanted = |(name, digest): &&(Reference, String)| match &by {
        Some(wanted) => name == wanted,
        None => {
            let config = || store.image(name).is_ok_and(|image| is_id_of(&id_of(&image), text));
            is_id_of(digest, text) || config()
        }
    };
    let mut digests: Vec<&String> = rows.iter().filter(is_wanted).map(|(_, digest)| digest).collect();
    digests.sort();
    digests.dedup();
    let digest = match digests[..] {
        [] => return Err(missing()),
        [digest] => digest.clone(),
        _ => {
            let text = format!("multiple IDs found with provided prefix: {text}");
            return Err(Refusal::new(RefusalKind::Invalid, text));
        }
    };
    let names = rows.into_iter().filter(|(_, other)| *other == digest).map(|(name, _)| name).collect();
    Ok(Found { digest, names, by })
}

/// The instructions that change an image's config and nothing of its files.
pub const CHANGES: [&str; 11] = [
    "CMD",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "HEALTHCHECK",
    "LABEL",
    "ONBUILD",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

/// Whether a text is one of [`CHANGES`], and no more than one.
#[must_use]
pub fn is_change(text: &str) -> bool {
    let word = text.split_whitespace().next().unwrap_or_default().to_ascii_uppercase();
    !text.contains('\n') && CHANGES.contains(&word.as_str())
}

/// Docker's id of an image: the digest of its config.
pub(crate) fn id_of(image: &Image) -> String {
    image.manifest().config().digest().to_string()
}

/// Notes that this was done with an image, for whoever listens: `tag`, `untag`, `delete`, `import`, `load`, `save`, and `pull` and
/// `push`, of which docker tells the name instead of the id.
pub fn tell_image(store: &Store, image: &Image, action: &str) {
    let name = image.name();
    if is_unnamed(name) && action == "tag" {
        // Nobody gave it that one.
        return;
    }
    let (id, name) = match action {
        "pull" | "push" => (name.to_string(), repository(name)),
        _ => (id_of(image), name.to_string()),
    };
    tell(store, |workloads| workloads.tell_image(action, &id, &name, &image.config().labels));
}

/// A name as it is shown, without its tag or digest.
fn repository(name: &Reference) -> String {
    let text = name.to_string();
    let text = text.split('@').next().unwrap_or_default();
    let (folder, last) = text.rsplit_once('/').map_or(("", text), |(folder, last)| (folder, last));
    let last = last.split(':').next().unwrap_or_default();
    if folder.is_empty() { last.to_owned() } else { format!("{folder}/{last}") }
}

/// What happened has happened, whether or not it can be noted.
fn tell(store: &Store, what: impl FnOnce(&Workloads)) {
    match Workloads::open(store.root()) {
        Ok(workloads) => what(&workloads),
        Err(error) => tracing::warn!("note what happened: {}", chain(&error)),
    }
}

/// Gives an image another name, whatever that meant before.
///
/// # Errors
/// No image has the name `name`, or the store cannot be written.
pub fn tag_image(store: &Store, name: &Reference, alias: &Reference) -> image::Result<()> {
    store.tag(name, alias)?;
    if is_unnamed(name) {
        store.remove(name)?;
    }
    if let Ok(image) = store.image(alias) {
        tell_image(store, &image, "tag");
    }
    Ok(())
}

/// Removes a name of an image, and with the last of them the image; by an id all its names. Where docker would not, it wants `force`:
/// several names of one id, a workload that does not run. What runs from an image keeps its id from being removed at all.
///
/// # Errors
/// There is no such image, it is in use, or the store cannot be written.
pub fn remove_image(
    store: &Store,
    workloads: &Workloads,
    text: &str,
    force: bool,
) -> Result<RemovedImage, Refusal> {
    let Found { digest, names, by } = find(store, text)?;
    let conflict = |reason: String| Err(Refusal::new(RefusalKind::Conflict, format!("conflict: {reason}")));
    let users = users(workloads, &digest, &names)?;
    let going = by.clone().map_or_else(|| names.clone(), |name| vec![name]);
    let is_last = going.len() == names.len();
    if by.is_none() && names.len() > 1 && !force {
        return conflict(format!(
            "unable to delete {text} (must be forced) - image is referenced in multiple repositories"
        ));
    }
    let running = users.iter().find(|user| runs(user));
    match (running.or(users.first()), &by) {
        (Some(user), Some(name)) if is_last && !force => {
            return conflict(format!(
                "unable to remove repository reference \"{name}\" (must force) - container {} is using its referenced \
                 image {}",
                short(user),
                &digest["sha256:".len()..][..12]
            ));
        }
        (Some(user), None) if runs(user) => {
            return conflict(format!(
                "unable to delete {text} (cannot be forced) - image is being used by running container {}",
                short(user)
            ));
        }
        (Some(user), None) if !force => {
            return conflict(format!(
                "unable to delete {text} (must be forced) - image is being used by stopped container {}",
                short(user)
            ));
        }
        _ => {}
    }
    let known = known(store);
    for name in &going {
        store.remove(name).map_err(|error| failed(&error))?;
    }
    tell_gone(store, &known, &going);
    let untagged = going.into_iter().filter(|name| !is_unnamed(name)).collect();
    Ok(RemovedImage { untagged, deleted: (is_last && users.is_empty()).then_some(digest) })
}

/// How many images there are, whatever their names.
pub(crate) fn count(store: &Store) -> usize {
    known(store).into_values().map(|(id, _)| id).collect::<BTreeSet<_>>().len()
}

/// Docker's ids of all images that can be read, and their labels, by name.
type Known = BTreeMap<Reference, (String, BTreeMap<String, String>)>;

fn known(store: &Store) -> Known {
    let names = store.images().unwrap_or_default().into_iter().filter_map(|row| row.name.parse().ok());
    let of = |name: Reference| {
        let image = store.image(&name).ok()?;
        Some((name, (id_of(&image), image.config().labels)))
    };
    names.filter_map(of).collect()
}

/// Notes which names are gone, and which images with the last of them. `before` is what there was.
fn tell_gone(store: &Store, before: &Known, gone: &[Reference]) {
    let left = |id: &str| before.iter().any(|(name, (other, _))| other == id && !gone.contains(name));
    tell(store, |workloads| {
        let mut deleted = Vec::new();
        for name in gone {
            let Some((id, labels)) = before.get(name) else { continue };
            if !is_unnamed(name) {
                workloads.tell_image("untag", id, &name.to_string(), labels);
            }
            if !left(id) && !deleted.contains(&id) {
                deleted.push(id);
            }
        }
        for id in deleted {
            workloads.tell_image("delete", id, id, &BTreeMap::new());
        }
    });
}

fn short(user: &Folder) -> &str {
    let id = &user.description().id;
    id.get(..12).unwrap_or(id)
}

fn runs(user: &Folder) -> bool {
    user.state().is_ok_and(|state| state.status.is_active() || state.status == Status::Paused)
}

/// The workloads that were made from an image.
fn users(workloads: &Workloads, digest: &str, names: &[Reference]) -> Result<Vec<Folder>, Refusal> {
    let all = workloads.list().map_err(|error| failed(&error))?;
    let uses = |folder: &Folder| {
        let wanted = &folder.description().wanted;
        match wanted.options.get("digest").and_then(Value::as_str) {
            Some(made_from) => made_from == digest,
            None => wanted.image.parse::<Reference>().is_ok_and(|name| names.contains(&name)),
        }
    };
    Ok(all.into_iter().filter(uses).collect())
}

/// Removes what nobody uses: what no name leads to and images without a name that anybody gave, and with `unused` all images; of
/// images those that fit all filters. What no name leads to has no label and no age here, so that it fits no filter.
///
/// # Errors
/// A filter makes no sense; images are being added just now, or the store cannot be written.
pub fn prune_images(store: &Store, unused: bool, filters: &ImageFilters) -> Result<Pruned, Refusal> {
    let until: Vec<i64> = filters.until.iter().map(|text| moment(text)).collect::<Result<_, _>>()?;
    let fits = |image: &Image| {
        let labels = image.config().labels;
        let has = |wanted: &String| match wanted.split_once('=') {
            Some((key, value)) => labels.get(key).is_some_and(|found| found == value),
            None => labels.contains_key(wanted.as_str()),
        };
        filters.labels.iter().all(has)
            && !filters.without.iter().any(has)
            && until.iter().all(|time| made_at(image) < *time)
    };
    let known = known(store);
    let pruned = match unused && *filters == ImageFilters::default() {
        true => store.prune(true),
        false => store.prune_some(&|image| (unused || is_unnamed(image.name())) && fits(image)),
    };
    let pruned = pruned.map_err(|error| match error {
        image::Error::InUse { .. } => Refusal::new(RefusalKind::Conflict, chain(&error)),
        error => failed(&error),
    })?;
    tell_gone(store, &known, &pruned.names);
    tell(store, |workloads| workloads.tell_pruned(EventKind::Image, pruned.collected.bytes));
    Ok(pruned)
}

/// When an image was made: seconds since 1970.
pub(crate) fn made_at(image: &Image) -> i64 {
    let config: Value = serde_json::from_slice(image.config_bytes()).unwrap_or_default();
    seconds(config["created"].as_str())
}

/// Seconds since 1970 of a time as configs have it.
pub(crate) fn seconds(created: Option<&str>) -> i64 {
    created.map_or(0, workload::log::seconds)
}

/// A time in seconds since 1970, as RFC 3339 has it, or so long ago as Go writes it: `24h`, `1h30m`, `1.5h`.
pub(crate) fn moment(text: &str) -> Result<i64, Refusal> {
    let wrong = || Refusal::new(RefusalKind::Invalid, format!("invalid filter 'until={text}'"));
    // Clients send a fraction of nanoseconds too, which does not count.
    let whole = text.split_once('.').filter(|(_, rest)| rest.bytes().all(|b| b.is_ascii_digit()));
    if let Ok(seconds) = whole.map_or(text, |(whole, _)| whole).parse::<i64>() {
        return Ok(seconds);
    }
    if let Some(age) = age(text) {
        return Ok((workload::now_ms() / 1000) as i64 - age);
    }
    match workload::log::seconds(text) {
        0 => Err(wrong()),
        found => Ok(found),
    }
}

/// Seconds of a duration as Go writes it.
fn age(mut text: &str) -> Option<i64> {
    let mut seconds = 0.0;
    loop {
        let end = text.find(|letter: char| !letter.is_ascii_digit() && letter != '.')?;
        let count: f64 = text[..end].parse().ok()?;
        let rest = &text[end..];
        // The longer ones first.
        let units = [("ns", 1e-9), ("us", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
        let (unit, factor) = units.into_iter().find(|(unit, _)| rest.starts_with(unit))?;
        seconds += count * factor;
        text = &rest[unit.len()..];
        if text.is_empty() {
            return Some(seconds as i64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_is_a_name_without_its_tag() {
        for (name, expected) in [("debian:12", "debian"), ("localhost:5000/a/b:c", "localhost:5000/a/b")] {
            assert_eq!(repository(&name.parse().unwrap()), expected);
        }
    }

    #[test]
    fn moments_are_numbers_times_and_ages() {
        assert_eq!(moment("1700000000"), Ok(1_700_000_000));
        assert_eq!(moment("2023-11-14T22:13:20Z"), Ok(1_700_000_000));
        assert!(moment("24h").unwrap() < (workload::now_ms() / 1000) as i64 - 86_000);
        let ago = |text: &str| (workload::now_ms() / 1000) as i64 - moment(text).unwrap();
        for (text, seconds) in [("1h30m", 5400), ("1.5h", 5400), ("2m3s500ms", 123), ("0s", 0)] {
            // The clock may go on between the two looks.
            assert!((seconds..seconds + 60).contains(&ago(text)), "{text}");
        }
        assert_eq!(moment("1700000000.123456789"), Ok(1_700_000_000));
        for wrong in ["", "h", "soon", "1d", "xm", "1h2", "1h x"] {
            assert!(moment(wrong).is_err(), "{wrong}");
        }
    }
}
