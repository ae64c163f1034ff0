//! `POST /build`: an image from a Containerfile and its context, which come as a tar archive.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek};
use std::path::Path;
use std::process::Stdio;

use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use bollard_stubs::models::ResourcesUlimits;
use image::{Platform, Reference};
use serde::de::DeserializeOwned;
use serde_json::json;

use super::filters::Filters;
use super::params::Params;
use super::pull::{Kept, Lines, PULL, keep, told};
use super::{App, create, json};
use crate::backend::{Backend, BuildOptions};
use crate::error::{ApiError, Result, chain};
use crate::tuning::HostName;
use crate::unnamed::{self, is_unnamed};
use crate::{images, scratch};

/// Files of a context. Attack: an archive of nothing but names.
const MAX_ENTRIES: usize = 1 << 20;

/// `POST /build`
pub(super) async fn build(State(app): App, params: Params, body: Body) -> Result {
    // First of all: a client that still sends hears no answer.
    let archive = keep(&app, body).await?;
    let options = options(&params)?;
    let quiet = params.flag("q");
    let passed_over = asks(&params, "cachefrom");
    Ok(told(&app, PULL, move |backend, lines| {
        if passed_over && !quiet {
            let text = "cachefrom is passed over: what was done here before is known without it\n";
            lines.say(json!({ "stream": text }));
        }
        run(backend, archive, options, quiet, lines)
    }))
}

/// What cannot be done: passing it over would not be what was asked for.
const NOT_OFFERED: [&str; 11] = [
    "remote",
    "squash",
    "outputs",
    "memswap",
    "cpushares",
    "cpuperiod",
    "cpuquota",
    "cpusetcpus",
    "cpusetmems",
    "cgroupparent",
    "securityopt",
];
/// What machines have no part of.
const OF_CONTAINERS: [&str; 2] = ["shmsize", "ulimits"];

/// Whether a parameter has a value that asks for something.
fn asks(params: &Params, name: &str) -> bool {
    let value = params.get(name).unwrap_or_default();
    !matches!(value, "" | "0" | "false" | "default" | "null" | "[]")
}

/// Whether what the parameter `name` says is the second of two things, each of which has some words.
fn choice(params: &Params, name: &str, first: &[&str], second: &[&str]) -> Result<bool> {
    let value = params.get(name).unwrap_or("default");
    if !first.contains(&value) && !second.contains(&value) {
        let words = [first, second].concat().join(", ");
        return Err(ApiError::not_offered(format!("build with {name}={value}: {words} are there")));
    }
    Ok(second.contains(&value))
}

/// `POST /build/prune`: what builds remember of their steps has no age and no id here, and is removed as a whole.
pub(super) async fn prune(State(app): App, params: Params) -> Result {
    let known = ["until", "unused-for", "id", "parent", "type", "description", "inuse", "shared", "private"];
    let filters = Filters::of(&params, &known)?;
    // What is no time is refused all the same.
    let _ = filters.until()?;
    let is_part = known.into_iter().any(|name| filters.has(name));
    let bytes = app
        .blocking(
            move |backend| {
                if is_part { Ok(0) } else { Ok(backend.store().prune_builds()?.collected.bytes) }
            },
        )
        .await?;
    Ok(json(StatusCode::OK, &json!({ "CachesDeleted": [], "SpaceReclaimed": bytes })))
}

/// What a parameter says in JSON; nothing, and `null`, is the default.
fn parsed<T: DeserializeOwned + Default>(params: &Params, name: &str) -> Result<T> {
    let value: Option<T> = serde_json::from_str(params.get(name).unwrap_or("null"))
        .map_err(|error| ApiError::bad(format!("{name}: {error}")))?;
    Ok(value.unwrap_or_default())
}

fn options(params: &Params) -> Result<BuildOptions> {
    if params.get("version").is_some_and(|version| version != "1") {
        return Err(ApiError::not_offered("Strata builds without BuildKit: DOCKER_BUILDKIT=0 docker build"));
    }
    if let Some(name) = NOT_OFFERED.into_iter().find(|name| asks(params, name)) {
        let value = params.get(name).unwrap_or_default();
        return Err(ApiError::not_offered(format!("build with {name}={value}: not there yet")));
    }
    if let Some(wanted) = params.get("platform") {
        let platform: Platform = wanted.parse().map_err(|error| ApiError::bad(chain(&error)))?;
        if platform != Platform::host() {
            let host = Platform::host();
            return Err(ApiError::not_offered(format!("build for {wanted}: this host builds for {host}")));
        }
    }
    let pairs = |name: &str| -> Result<Vec<String>> {
        let map: BTreeMap<String, Option<String>> = parsed(params, name)?;
        Ok(map.into_iter().filter_map(|(name, value)| Some(format!("{name}={}", value?))).collect())
    };
    let tags: Vec<String> = params.all("t").filter(|tag| !tag.is_empty()).map(str::to_owned).collect();
    for tag in &tags {
        tag.parse::<Reference>().map_err(|error| ApiError::bad(chain(&error)))?;
    }
    let in_machines = choice(params, "isolation", &["default", "container"], &["vm"])?;
    if let Some(name) = OF_CONTAINERS.into_iter().find(|name| in_machines && asks(params, name)) {
        return Err(ApiError::not_offered(format!("build with {name} in machines: not there yet")));
    }
    let hosts = params.all("extrahosts").map(|text| text.parse::<HostName>());
    let hosts = hosts.collect::<std::result::Result<Vec<_>, _>>();
    let ulimits: Vec<ResourcesUlimits> = parsed(params, "ulimits")?;
    let bytes = |name| -> Result<Option<u64>> {
        let number = if asks(params, name) { params.number::<i64>(name)? } else { None };
        Ok(number.filter(|bytes| *bytes > 0).map(i64::unsigned_abs))
    };
    Ok(BuildOptions {
        containerfile: params.get("dockerfile").map(str::to_owned),
        tags,
        args: pairs("buildargs")?,
        labels: pairs("labels")?,
        target: params.get("target").map(str::to_owned),
        no_cache: params.flag("nocache"),
        pull: params.flag("pull"),
        no_network: choice(params, "networkmode", &["default", "bridge", "host"], &["none"])?,
        in_machines,
        memory: bytes("memory")?,
        hosts: hosts.map_err(|reason| ApiError::bad(format!("extrahosts: {reason}")))?,
        shm_bytes: bytes("shmsize")?,
        ulimits: ulimits.into_iter().map(create::limit).collect(),
        ..BuildOptions::default()
    })
}

fn run(
    backend: &dyn Backend,
    archive: Kept,
    mut options: BuildOptions,
    quiet: bool,
    lines: &Lines,
) -> std::result::Result<(), String> {
    let folder = scratch::folder(backend.store().root(), scratch::CONTEXT);
    let folder = folder.map_err(|error| format!("keep the context: {error}"))?;
    unpack(&archive.path(), folder.path()).map_err(|error| format!("unpack the context: {error}"))?;
    // Its space is needed no more.
    drop(archive);
    options.context = folder.path().to_owned();
    if options.tags.is_empty() {
        options.tags.push(unnamed::fresh().map_err(|error| error.message)?.to_string());
    }
    build_with(backend, &options, |line| {
        if !quiet {
            lines.say(json!({ "stream": format!("{line}\n") }));
        }
    })?;
    let name: Reference = options.tags[0].parse().map_err(|error: image::Error| chain(&error))?;
    let image = unnamed::settle(backend.store(), &name).map_err(|error| error.message)?;
    let id = images::id_of(&image);
    lines.say(json!({ "aux": { "ID": id } }));
    let short: String = id.trim_start_matches("sha256:").chars().take(12).collect();
    lines.say(
        json!({ "stream": if quiet { format!("{id}\n") } else { format!("Successfully built {short}\n") } }),
    );
    for tag in options.tags.iter().filter(|_| !quiet && !is_unnamed(&name)) {
        lines.say(json!({ "stream": format!("Successfully tagged {tag}\n") }));
    }
    Ok(())
}

/// Builds, and hears each line that is said of it; the last one is what was wrong.
fn build_with(
    backend: &dyn Backend,
    options: &BuildOptions,
    mut hear: impl FnMut(&str),
) -> std::result::Result<(), String> {
    let mut command = backend.build(options).map_err(|refusal| refusal.message)?;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| format!("start the build: {error}"))?;
    let mut last = String::new();
    if let Some(stderr) = child.stderr.take() {
        for line in BufReader::new(stderr).split(b'\n').map_while(std::result::Result::ok) {
            let line = String::from_utf8_lossy(&line).into_owned();
            hear(&line);
            if !line.trim().is_empty() && !line.starts_with("  next:") {
                last = line;
            }
        }
    }
    let status = child.wait().map_err(|error| format!("wait for the build: {error}"))?;
    // Where the context lies is nobody's business.
    let context = format!("build {}: ", options.context.display());
    let reason = last.strip_prefix("strata: ").unwrap_or(&last);
    if status.success() { Ok(()) } else { Err(reason.strip_prefix(&context).unwrap_or(reason).to_owned()) }
}

/// Changes the config of the image `name` by instructions.
pub(super) fn change(
    backend: &dyn Backend,
    name: &Reference,
    changes: &[String],
) -> std::result::Result<(), String> {
    if let Some(wrong) = changes.iter().find(|change| !images::is_change(change)) {
        return Err(format!("{wrong:?} is not a valid change command"));
    }
    let folder = scratch::folder(backend.store().root(), scratch::CONTEXT);
    let folder = folder.map_err(|error| format!("keep the context: {error}"))?;
    let text = format!("FROM {name}\n{}\n", changes.join("\n"));
    std::fs::write(folder.path().join("Containerfile"), text)
        .map_err(|error| format!("keep the changes: {error}"))?;
    let tags = vec![name.to_string()];
    build_with(
        backend,
        &BuildOptions { context: folder.path().to_owned(), tags, ..BuildOptions::default() },
        |_| {},
    )
}

/// Unpacks an archive, compressed or not, into `folder`, and nowhere else.
fn unpack(archive: &Path, folder: &Path) -> std::io::Result<()> {
    let mut file = File::open(archive)?;
    let mut magic = [0; 6];
    let count = file.read(&mut magic)?;
    file.rewind()?;
    let reader: Box<dyn Read> = match &magic[..count] {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(BufReader::new(file))),
        [b'B', b'Z', b'h', ..] | [0xfd, b'7', b'z', ..] | [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            return Err(std::io::Error::other("it is compressed by something else than gzip"));
        }
        _ => Box::new(BufReader::new(file)),
    };
    let mut archive = tar::Archive::new(reader);
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(false);
    for (number, entry) in archive.entries()?.enumerate() {
        if number >= MAX_ENTRIES {
            return Err(std::io::Error::other(format!("more than {MAX_ENTRIES} files")));
        }
        let mut entry = entry?;
        // Device nodes are nothing a build could copy.
        let kind = entry.header().entry_type();
        if kind.is_block_special() || kind.is_character_special() {
            continue;
        }
        if !entry.unpack_in(folder)? {
            let path = entry.path().map(|path| path.display().to_string()).unwrap_or_default();
            return Err(std::io::Error::other(format!("{path:?} leads out of the context")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(add: impl FnOnce(&mut tar::Builder<File>)) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let mut builder = tar::Builder::new(File::create(dir.path().join("a.tar")).unwrap());
        add(&mut builder);
        builder.finish().unwrap();
        std::fs::create_dir(dir.path().join("out")).unwrap();
        dir
    }

    fn unpacked(dir: &tempfile::TempDir) -> std::io::Result<()> {
        unpack(&dir.path().join("a.tar"), &dir.path().join("out"))
    }

    fn file(name: &str) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        // As a hostile client would: the crate refuses such names.
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_size(2);
        header.set_mode(0o755);
        header.set_cksum();
        header
    }

    #[test]
    fn a_context_stays_in_its_folder() {
        let good = archive(|tar| tar.append(&file("a/b"), &b"hi"[..]).unwrap());
        unpacked(&good).unwrap();
        assert_eq!(std::fs::read(good.path().join("out/a/b")).unwrap(), b"hi");
        let up = archive(|tar| tar.append(&file("../x"), &b"hi"[..]).unwrap());
        assert!(unpacked(&up).is_err() && !up.path().join("x").exists());
        let link = archive(|tar| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            tar.append_link(&mut header, "l", "..").unwrap();
            tar.append(&file("l/x"), &b"hi"[..]).unwrap();
        });
        assert!(unpacked(&link).is_err() && !link.path().join("x").exists());
    }

    #[test]
    fn what_a_client_asks_is_understood_or_refused() {
        let of = |pairs: &[(&str, &str)]| options(&Params::of(pairs));
        let good = of(&[("t", "a:1"), ("t", "b"), ("buildargs", r#"{"X":"1","Y":null}"#), ("nocache", "1")])
            .unwrap();
        assert_eq!(
            (good.tags, good.args, good.no_cache),
            (vec!["a:1".into(), "b".into()], vec!["X=1".into()], true)
        );
        assert_eq!(of(&[("version", "2")]).unwrap_err().status.as_u16(), 501);
        assert_eq!(of(&[("remote", "http://x")]).unwrap_err().status.as_u16(), 501);
        assert_eq!(of(&[("buildargs", "{")]).unwrap_err().status.as_u16(), 400);
        assert_eq!(of(&[("t", "Not A Name")]).unwrap_err().status.as_u16(), 400);
        let nothing = [("networkmode", "default"), ("labels", "null"), ("memory", "0"), ("ulimits", "null")];
        assert_eq!(of(&nothing), of(&[("cachefrom", "[\"x\"]")]));
        let here = Platform::host().to_string();
        let asked = [("networkmode", "none"), ("isolation", "vm"), ("pull", "1"), ("platform", &here)];
        let asked = of(&asked).unwrap();
        assert!(asked.no_network && asked.in_machines && asked.pull);
        let limits = r#"[{"Name":"nofile","Soft":5,"Hard":-1}]"#;
        let around =
            [("memory", "1000"), ("shmsize", "2000"), ("extrahosts", "a:1.2.3.4"), ("ulimits", limits)];
        let around = of(&around).unwrap();
        assert_eq!((around.memory, around.shm_bytes), (Some(1000), Some(2000)));
        assert_eq!(around.hosts, ["a:1.2.3.4".parse().unwrap()]);
        assert_eq!(
            (&*around.ulimits[0].name, around.ulimits[0].soft, around.ulimits[0].hard),
            ("nofile", 5, -1)
        );
        for (name, value) in [("extrahosts", "a"), ("ulimits", "{"), ("memory", "x"), ("shmsize", "x")] {
            assert_eq!(of(&[(name, value)]).unwrap_err().status.as_u16(), 400, "{name}");
        }
        assert_eq!(of(&[("isolation", "vm"), ("shmsize", "5")]).unwrap_err().status.as_u16(), 501);
        for (name, value) in [
            ("networkmode", "container:x"),
            ("isolation", "hyperv"),
            ("platform", "linux/s390x"),
            ("memswap", "1000000"),
            ("squash", "1"),
        ] {
            let refused = of(&[(name, value)]).unwrap_err();
            assert!(refused.status.as_u16() == 501 && refused.message.contains(value), "{refused:?}");
        }
    }
}
