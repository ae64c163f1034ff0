//! Images: lists, names, archives.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::IntoResponse;
use image::{Image, NoProgress, Reference, SaveFormat, Store};
use serde_json::{Value, json};
use tokio_util::io::ReaderStream;

use super::filters::Filters;
use super::params::Params;
use super::pull::{self, told};
use super::{App, Shared, json, streams};
use crate::backend::Backend;
use crate::error::{ApiError, Result, chain};
use crate::images::{self, ImageFilters, id_of, is_id_of, made_at, moment, seconds};
use crate::unnamed::is_unnamed;

/// The image of this name or id.
pub(super) fn find(store: &Store, text: &str) -> Result<Image> {
    let by_name = text.parse::<Reference>().map_err(ApiError::from).and_then(|name| Ok(store.image(&name)?));
    match by_name {
        Err(error)
            if error.status == StatusCode::INTERNAL_SERVER_ERROR && text.parse::<Reference>().is_ok() =>
        {
            Err(error)
        }
        Err(_) => {
            let missing = || ApiError::not_found(format!("No such image: {text}"));
            let names = names_of(store, text)?;
            let name = names.first().ok_or_else(missing)?;
            Ok(store.image(name)?)
        }
        found => found,
    }
}

/// The names of the image whose id begins so.
///
/// # Errors
/// Several ids do.
fn names_of(store: &Store, id: &str) -> Result<Vec<Reference>> {
    let mut ids = BTreeMap::new();
    for row in store.images()? {
        let Ok(name) = row.name.parse::<Reference>() else { continue };
        let Ok(image) = store.image(&name) else { continue };
        let own = id_of(&image);
        if is_id_of(&own, id) {
            ids.entry(own).or_insert_with(Vec::new).push(name);
        }
    }
    if ids.len() > 1 {
        return Err(ApiError::bad(format!("multiple IDs found with provided prefix: {id}")));
    }
    Ok(ids.into_values().next().unwrap_or_default())
}

/// `GET /images/json`
pub(super) async fn list(State(app): App, params: Params) -> Result {
    let known = ["dangling", "label", "label!", "reference", "before", "since", "until"];
    let filters = Filters::of(&params, &known)?;
    let rows = app
        .blocking(move |backend| {
            let dangling: Vec<bool> =
                filters.values("dangling").map(|value| matches!(value, "true" | "1")).collect();
            let made = |name: &str| -> Result<i64> { Ok(made_at(&find(backend.store(), name)?)) };
            let before = filters.values("before").map(made).collect::<Result<Vec<i64>>>()?;
            let since = filters.values("since").map(made).collect::<Result<Vec<i64>>>()?;
            let until =
                filters.values("until").map(|text| Ok(moment(text)?)).collect::<Result<Vec<i64>>>()?;
            rows(backend, &|image: &Image| {
                let created = made_at(image);
                let fits_name = dangling.iter().all(|wanted| *wanted == is_unnamed(image.name()));
                let in_time = before.iter().chain(&until).all(|time| created < *time)
                    && since.iter().all(|time| created > *time);
                if !fits_name || !in_time {
                    return false;
                }
                let labels = image.config().labels;
                let name = image.name();
                filters.fits_labels(|key| labels.get(key).map(String::as_str))
                    && filters.fits("reference", |pattern| {
                        [name.to_string(), name.name().to_owned(), name.full()]
                            .iter()
                            .any(|name| matches_pattern(pattern, name))
                    })
            })
        })
        .await?;
    Ok(json(StatusCode::OK, &rows))
}

/// `*` stands for anything but a slash.
fn matches_pattern(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((before, after)) => {
            let Some(rest) = text.strip_prefix(before) else { return false };
            (0..=rest.len())
                .filter(|at| rest.is_char_boundary(*at))
                .take_while(|at| !rest[..*at].contains('/'))
                .any(|at| matches_pattern(after, &rest[at..]))
        }
    }
}

/// A row for each image, whatever its names.
pub(super) fn rows(backend: &dyn Backend, fits: &dyn Fn(&Image) -> bool) -> Result<Vec<Value>> {
    let store = backend.store();
    let used: Vec<Reference> = backend
        .workloads()
        .list()?
        .iter()
        .filter_map(|f| f.description().wanted.image.parse().ok())
        .collect();
    let mut rows: Vec<(String, Value)> = Vec::new();
    for summary in store.images()? {
        let Some(image) = summary.name.parse().ok().and_then(|name| store.image(&name).ok()) else {
            continue;
        };
        if !fits(&image) {
            continue;
        }
        let id = id_of(&image);
        let shown = !is_unnamed(image.name());
        let names = |text: String| if shown { vec![text] } else { Vec::new() };
        let digests = names(format!("{}@{}", image.name().name(), image.digest()));
        let tags = names(summary.name);
        let count = used.iter().filter(|name| *name == image.name()).count();
        if let Some((_, row)) = rows.iter_mut().find(|(other, _)| *other == id) {
            if let Some(known) = row["RepoTags"].as_array_mut() {
                known.extend(tags.into_iter().map(Value::from));
            }
            row["Containers"] = json!(row["Containers"].as_u64().unwrap_or_default() + count as u64);
            continue;
        }
        let row = json!({
            "Id": id,
            "ParentId": "",
            "RepoTags": tags,
            "RepoDigests": digests,
            "Created": seconds(summary.created.as_deref()),
            "Size": summary.size_bytes,
            "SharedSize": -1,
            "Labels": image.config().labels,
            "Containers": count,
        });
        rows.push((id, row));
    }
    let mut rows: Vec<Value> = rows.into_iter().map(|(_, row)| row).collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row["Created"].as_i64()));
    Ok(rows)
}

/// What a path below `/images/` asks for: a name, which may have slashes, and a verb.
fn verb<'a>(path: &'a str, verbs: &[&str]) -> Result<(&'a str, &'a str)> {
    let found = path.rsplit_once('/').filter(|(name, verb)| !name.is_empty() && verbs.contains(verb));
    found.ok_or_else(|| ApiError::not_offered(format!("images/{path}: this part of the API is not there")))
}

/// `GET /images/NAME/json`, `history`, `get`
pub(super) async fn get(State(app): App, Path(path): Path<String>, _params: Params) -> Result {
    let (name, verb) = verb(&path, &["json", "history", "get"])?;
    let name = name.to_owned();
    let value = match verb {
        "get" => return save(app, vec![name]).await,
        "history" => app.blocking(move |backend| Ok(history(&find(backend.store(), &name)?))).await?,
        _ => app.blocking(move |backend| describe(backend.store(), &name)).await?,
    };
    Ok(json(StatusCode::OK, &value))
}

fn describe(store: &Store, name: &str) -> Result<Value> {
    let image = find(store, name)?;
    let id = id_of(&image);
    let names: Vec<_> = names_of(store, &id)?.into_iter().filter(|name| !is_unnamed(name)).collect();
    let config: Value = serde_json::from_slice(image.config_bytes()).unwrap_or_default();
    let text = |pointer: &str| config.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    Ok(json!({
        "Id": id,
        "RepoTags": names.iter().map(Reference::to_string).collect::<Vec<_>>(),
        "RepoDigests": names.iter().map(|name| format!("{}@{}", name.name(), image.digest())).collect::<BTreeSet<_>>(),
        "Parent": "",
        "Comment": "",
        "Created": text("/created"),
        "DockerVersion": "",
        "Author": text("/author"),
        "Config": run_config(&config),
        "Architecture": text("/architecture"),
        "Os": text("/os"),
        "Size": image.size_bytes(),
        "GraphDriver": { "Name": "overlay2", "Data": {} },
        "RootFS": { "Type": "layers", "Layers": config.pointer("/rootfs/diff_ids").cloned().unwrap_or_else(|| json!([])) },
        "Metadata": { "LastTagTime": "0001-01-01T00:00:00Z" },
    }))
}

/// How the image is to be run. Clients look for these where an image says nothing of them, too.
fn run_config(config: &Value) -> Value {
    let mut all = config.get("config").and_then(Value::as_object).cloned().unwrap_or_default();
    for key in ["User", "WorkingDir"] {
        all.entry(key).or_insert_with(|| json!(""));
    }
    for key in ["Env", "Cmd", "Entrypoint", "ExposedPorts", "Volumes", "Labels", "OnBuild"] {
        all.entry(key).or_insert(Value::Null);
    }
    Value::Object(all)
}

/// The newest step first.
fn history(image: &Image) -> Value {
    let id = id_of(image);
    let mut rows: Vec<Value> = image
        .history()
        .iter()
        .rev()
        .map(|step| {
            json!({
                "Id": "<missing>", "Created": seconds(step.created.as_deref()), "CreatedBy": step.created_by,
                "Tags": null, "Size": step.size_bytes, "Comment": step.comment,
            })
        })
        .collect();
    if let Some(first) = rows.first_mut() {
        first["Id"] = json!(id);
        first["Tags"] =
            if is_unnamed(image.name()) { Value::Null } else { json!([image.name().to_string()]) };
    }
    json!(rows)
}

/// `GET /images/get?names=…`
pub(super) async fn save_several(State(app): App, params: Params) -> Result {
    let names = params.all("names").flat_map(|names| names.split(',')).filter(|name| !name.is_empty());
    let names: Vec<String> = names.map(str::to_owned).collect();
    if names.is_empty() {
        return Err(ApiError::bad("names: which images?"));
    }
    save(app, names).await
}

/// As docker's archives are, through a pipe: nothing of it is on disk.
async fn save(app: std::sync::Arc<Shared>, names: Vec<String>) -> Result {
    let find = move |backend: &dyn Backend| names.iter().map(|name| find(backend.store(), name)).collect();
    let found: Vec<Image> = app.blocking(find).await?;
    let (receiver, to) = streams::output_pipe()?;
    let backend = app.backend.clone();
    tokio::task::spawn_blocking(move || {
        let to: OwnedFd = to;
        let file = PathBuf::from(format!("/proc/self/fd/{}", to.as_raw_fd()));
        let saved = backend.store().save(&found, &file, SaveFormat::DockerArchive, &NoProgress);
        match saved {
            Ok(()) => found.iter().for_each(|image| images::tell_image(backend.store(), image, "save")),
            // The client sees an archive that ends early.
            Err(error) => tracing::warn!("save images: {}", chain(&error)),
        }
    });
    let head = [(header::CONTENT_TYPE, "application/x-tar")];
    Ok((StatusCode::OK, head, Body::from_stream(ReaderStream::with_capacity(receiver, 64 << 10)))
        .into_response())
}

/// `POST /images/load`
pub(super) async fn load(State(app): App, body: Body) -> Result {
    let file = pull::keep(&app, body).await?;
    Ok(told(&app, pull::PULL, move |backend, lines| {
        let names = backend.store().load(&file.path(), &NoProgress).map_err(|error| chain(&error))?;
        for name in names {
            if let Ok(image) = backend.store().image(&name) {
                images::tell_image(backend.store(), &image, "load");
            }
            lines.say(json!({ "stream": format!("Loaded image: {name}\n") }));
        }
        Ok(())
    }))
}

/// `POST /images/NAME/push`, `tag`
pub(super) async fn post(
    State(app): App,
    Path(path): Path<String>,
    params: Params,
    headers: HeaderMap,
) -> Result {
    let (name, verb) = verb(&path, &["push", "tag"])?;
    if verb == "tag" {
        let repository = params.get("repo").ok_or_else(|| ApiError::bad("repo: which name?"))?;
        let (name, alias) = (name.to_owned(), pull::with_tag(repository, params.get("tag"))?);
        app.blocking(move |backend| {
            let image = find(backend.store(), &name)?;
            Ok(images::tag_image(backend.store(), image.name(), &alias)?)
        })
        .await?;
        return Ok(StatusCode::CREATED.into_response());
    }
    let name = pull::with_tag(name, params.get("tag"))?;
    let options = pull::options_for(name.domain(), &headers)?;
    let held = name.clone();
    // Before the head is sent: what is not here is a 404.
    let image = app.blocking(move |backend| Ok(backend.store().image(&held)?)).await?;
    Ok(told(&app, pull::PUSH, move |backend, lines| {
        lines.say(json!({ "status": format!("The push refers to repository [{}/{}]", name.domain(), name.repository()) }));
        let pushed =
            registry::push(backend.store(), &name, &options, lines).map_err(|error| chain(&error))?;
        let (tag, size) = (name.tag().unwrap_or_default().to_owned(), image.manifest_bytes().len());
        lines.say(json!({ "status": format!("{tag}: digest: {} size: {size}", pushed.digest) }));
        images::tell_image(backend.store(), &image, "push");
        lines.say(json!({ "progressDetail": {}, "aux": { "Tag": tag, "Digest": pushed.digest.to_string(), "Size": size } }));
        Ok(())
    }))
}

/// `DELETE /images/NAME`
pub(super) async fn remove(State(app): App, Path(name): Path<String>, params: Params) -> Result {
    let force = params.flag("force");
    let gone = app.blocking(move |backend| remove_names(backend, &name, force)).await?;
    Ok(json(StatusCode::OK, &gone))
}

fn remove_names(backend: &dyn Backend, text: &str, force: bool) -> Result<Vec<Value>> {
    let store = backend.store();
    // Docker's id of it, which is another than the store's.
    let id = find(store, text).map(|image| id_of(&image));
    let removed = images::remove_image(store, backend.workloads(), text, force)?;
    let untagged = removed.untagged.iter().map(|name| json!({ "Untagged": name.to_string() }));
    let deleted = removed.deleted.map(|digest| json!({ "Deleted": id.unwrap_or(digest) }));
    Ok(untagged.chain(deleted).collect())
}

/// `POST /images/prune`
pub(super) async fn prune(State(app): App, params: Params) -> Result {
    let filters = Filters::of(&params, &["dangling", "label", "label!", "until"])?;
    // Docker removes those without a name unless it is told to remove all that nothing uses.
    let unused = filters.values("dangling").any(|value| matches!(value, "false" | "0"));
    let all = |name: &str| filters.values(name).map(str::to_owned).collect();
    let wanted = ImageFilters { labels: all("label"), without: all("label!"), until: all("until") };
    let pruned =
        app.blocking(move |backend| Ok(images::prune_images(backend.store(), unused, &wanted)?)).await?;
    let names: Vec<Value> = pruned.names.iter().map(|name| json!({ "Untagged": name.to_string() })).collect();
    Ok(json(StatusCode::OK, &json!({ "ImagesDeleted": names, "SpaceReclaimed": pruned.collected.bytes })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_end_with_a_verb_and_names_have_slashes() {
        let verbs = ["json", "push"];
        assert_eq!(verb("debian/json", &verbs), Ok(("debian", "json")));
        assert_eq!(verb("reg:5000/a/b:c/push", &verbs), Ok(("reg:5000/a/b:c", "push")));
        assert_eq!(verb("json/json", &verbs), Ok(("json", "json")));
        assert!(verb("json", &verbs).is_err() && verb("a/fly", &verbs).is_err());
    }

    #[test]
    fn stars_stand_for_parts_of_names() {
        assert!(matches_pattern("deb*", "debian") && matches_pattern("*/app:*", "team/app:1"));
        assert!(
            !matches_pattern("deb*", "debian/x") && !matches_pattern("*", "a/b") && matches_pattern("*", "")
        );
    }
}
