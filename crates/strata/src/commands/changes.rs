//! `strata diff`, `strata export` and `strata commit`: what a workload wrote, told, taken out and made an image.

use std::error::Error;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::process::{Child, Stdio};

use archive::Request;
use build::{Ended, Images, Run, Runner};
use clap::Args;
use image::{Digest, Image, Incoming, Reference, Store};
use serde_json::{Value, json};
use workload::control::{Client, Request as Ask};
use workload::{Folder, Status};

use super::{cp, image as images, workloads};
use crate::cli::Global;
use crate::exit::Exit;
use crate::failure::{Failure, Outcome, While};
use crate::progress::Bar;
use crate::{output, store};

/// Show what a workload has changed of its image's files
///
/// A is new, C is changed, D is gone.
#[derive(Args)]
pub struct DiffOptions {
    /// Write JSON
    #[arg(long)]
    json: bool,
    /// Name or id of the workload
    workload: String,
}

/// Write the files of a workload as a tar archive
#[derive(Args)]
pub struct ExportOptions {
    /// Where to, instead of standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Name or id of the workload
    workload: String,
}

/// Make an image of a workload's files
///
/// A container that runs stands still meanwhile.
#[derive(Args)]
pub struct CommitOptions {
    /// Who made it
    #[arg(short, long, default_value = "")]
    author: String,
    /// What it is
    #[arg(short, long, default_value = "")]
    message: String,
    /// An instruction of a Containerfile that says how it is run, e.g. 'CMD ["/bin/sh"]'; may be repeated
    #[arg(short, long = "change", value_name = "INSTRUCTION")]
    changes: Vec<String>,
    /// Let it go on meanwhile
    #[arg(long)]
    no_pause: bool,
    /// Name or id of the workload
    workload: String,
    /// Name of the image [default: commit with a part of its id for a tag]
    image: Option<String>,
}

/// `strata diff`
///
/// # Errors
/// The files cannot be reached, or the image is gone.
pub fn diff(global: &Global, options: &DiffOptions) -> Outcome {
    let folder = workloads::find(global, &options.workload)?;
    let store = store::open(global)?;
    let image = image_of(&store, &folder)?;
    let changes = with_changes(global, &folder, |archive| {
        let what = format!("the changes of {}", folder.description().name);
        store.diff_layer(&image, archive, &what, &Bar::new()).while_trying(|| what.clone())
    })?;
    images::more::show(&changes, options.json)?;
    Ok(Exit::Success)
}

/// `strata export`
///
/// # Errors
/// The files cannot be reached, or the archive cannot be written.
pub fn export(global: &Global, options: &ExportOptions) -> Outcome {
    let out = match &options.output {
        Some(path) => File::create(path).while_trying(|| format!("write {}", path.display()))?.into(),
        None => rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)
            .while_trying(|| "write the archive".to_owned())?,
    };
    cp::ask(global, &options.workload, &Request::Export, out)?;
    Ok(Exit::Success)
}

/// The image that a workload was made from, as its name has it now.
fn image_of(store: &Store, folder: &Folder) -> Outcome<Image> {
    let name = &folder.description().wanted.image;
    let image = store.image(&images::parse(name)?);
    image.map_err(|error| images::explain(format!("use {name}"), name, error))
}

/// Gives `work` the workload's changes as the archive of a layer. What fails there counts before what `work` made of it.
fn with_changes<T>(
    global: &Global,
    folder: &Folder,
    work: impl FnOnce(&mut dyn io::Read) -> Outcome<T>,
) -> Outcome<T> {
    let act = || format!("read the changes of {}", folder.description().name);
    let mut command = store::again(&store::root(global)?, 0)?;
    command.args(["files", &folder.description().id, "--", "changes"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().while_trying(act)?;
    let mut stdout = child.stdout.take().ok_or_else(|| Failure::new(act()))?;
    let done = work(&mut stdout);
    // Whatever is behind the archive's end.
    let _ = io::copy(&mut stdout, &mut io::sink());
    drop(stdout);
    finish(child, act())?;
    done
}

fn finish(child: Child, act: String) -> Outcome<()> {
    let output = child.wait_with_output().while_trying(|| act.clone())?;
    if output.status.success() {
        return Ok(());
    }
    let code = output.status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(125);
    Err(Failure::new(format!("{act}: {}", cp::said(&output.stderr))).exit(Exit::Workload(code)))
}

/// `strata commit`: the digest of the image's config goes to standard output.
///
/// # Errors
/// The files cannot be reached, an instruction makes no sense, or the store cannot be written.
pub fn commit(global: &Global, options: &CommitOptions) -> Outcome {
    for change in &options.changes {
        if !api::is_change(change) {
            let text =
                format!("commit: {change:?} is not one of the instructions {}", api::CHANGES.join(", "));
            return Err(Failure::new(text).exit(Exit::Usage));
        }
    }
    let name = options.image.as_deref().map(images::parse).transpose()?;
    let folder = workloads::find(global, &options.workload)?;
    let store = store::open(global)?;
    let base = image_of(&store, &folder)?;
    let act = || format!("commit {}", folder.description().name);
    let incoming = store.incoming().while_trying(act)?;
    let resumed = (!options.no_pause).then(|| stand_still(&folder)).flatten();
    let layer = with_changes(global, &folder, |archive| incoming.layer_of(archive).while_trying(act));
    drop(resumed);
    let mut layers = base.layer_parts().while_trying(act)?;
    layers.push(layer?);
    let config = config(&base, &folder, options)?;
    let digest = incoming.add_image(config.to_string().as_bytes(), &layers).while_trying(act)?;
    let unnamed = incoming.image(&digest, base.name()).while_trying(act)?;
    let id = unnamed.manifest().config().digest().to_string();
    let name = match name {
        Some(name) => name,
        None => {
            images::parse(&format!("commit:{}", id.trim_start_matches("sha256:").get(..12).unwrap_or("new")))?
        }
    };
    let image = if options.changes.is_empty() {
        // What a guest says is not made an image that nobody can read.
        drop(store.view(&unnamed, &Bar::new()).while_trying(act)?);
        incoming.commit(&name, &digest).while_trying(act)?
    } else {
        change(&store, &One { incoming: &incoming, digest }, base.name(), &name, &options.changes)?
    };
    let id = image.manifest().config().digest().to_string();
    let about =
        [("comment", options.message.clone()), ("imageID", id.clone()), ("imageRef", name.to_string())];
    folder.tell("commit", &about);
    api::tell_image(&store, &image, "tag");
    output::write(&format!("{id}\n"))?;
    Ok(Exit::Success)
}

/// Stops a container that runs, until what is given is dropped.
fn stand_still(folder: &Folder) -> Option<Paused<'_>> {
    let is_container = folder.description().wanted.isolation == workload::Isolation::Container;
    let runs = folder.state().is_ok_and(|state| state.status == Status::Running);
    let pause = || Client::connect(folder).and_then(|mut client| client.ask(&Ask::Pause, &[]));
    (is_container && runs && pause().is_ok()).then_some(Paused(folder))
}

struct Paused<'f>(&'f Folder);

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        let resumed = Client::connect(self.0).and_then(|mut client| client.ask(&Ask::Resume, &[]));
        if let Err(error) = resumed {
            tracing::warn!("unpause {}: {error}", self.0.description().name);
        }
    }
}

/// The image's config with what the workload was told instead, and one more step in its history.
fn config(base: &Image, folder: &Folder, options: &CommitOptions) -> Outcome<Value> {
    let act = || format!("config of image {}", base.name());
    let mut config: Value = serde_json::from_slice(base.config_bytes()).while_trying(act)?;
    if !config["config"].is_object() {
        config["config"] = json!({});
    }
    let what = folder.description();
    if let Some(said) = &what.wanted.said {
        for key in [
            "Cmd",
            "Entrypoint",
            "WorkingDir",
            "User",
            "ExposedPorts",
            "Volumes",
            "StopSignal",
            "Healthcheck",
        ] {
            let is_said = match &said[key] {
                Value::Null => false,
                Value::String(text) => !text.is_empty(),
                Value::Object(map) => !map.is_empty(),
                _ => true,
            };
            if is_said {
                config["config"][key] = said[key].clone();
            }
        }
        let strings = |value: &Value| -> Vec<String> {
            value
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|text| text.as_str().map(str::to_owned))
                .collect()
        };
        let mut env = strings(&config["config"]["Env"]);
        for entry in strings(&said["Env"]) {
            let name = entry.split('=').next().unwrap_or_default();
            env.retain(|other| other.split('=').next() != Some(name));
            env.extend(entry.contains('=').then_some(entry));
        }
        config["config"]["Env"] = json!(env);
    }
    config["config"]["Labels"] = json!(what.wanted.labels);
    let created = image::rfc3339(image::source_date());
    let mut step = json!({ "created": created, "created_by": what.wanted.command.join(" ") });
    for (key, text) in [("author", &options.author), ("comment", &options.message)] {
        if !text.is_empty() {
            step[key] = json!(text);
        }
    }
    if !options.author.is_empty() {
        config["author"] = json!(options.author);
    }
    config["created"] = json!(created);
    match config["history"].as_array_mut() {
        Some(history) => history.push(step),
        None => config["history"] = json!([step]),
    }
    Ok(config)
}

/// The image that instructions make of another one.
fn change(
    store: &Store,
    made: &One<'_>,
    base: &Reference,
    name: &Reference,
    changes: &[String],
) -> Outcome<Image> {
    let act = || "commit: apply the changes".to_owned();
    let context = tempfile::tempdir().while_trying(act)?;
    let text = format!("FROM {base}\n{}\n", changes.join("\n"));
    std::fs::write(context.path().join("Containerfile"), text).while_trying(act)?;
    let options = build::Options {
        context: context.path().to_owned(),
        tags: vec![name.clone()],
        ..build::Options::default()
    };
    build::build(store, &options, made, &NoCommands, &Bar::new()).while_trying(act)?;
    store.image(name).while_trying(act)
}

/// The image that is being made, under the name that it begins with.
struct One<'a> {
    incoming: &'a Incoming,
    digest: Digest,
}

impl Images for One<'_> {
    fn image(&self, name: &Reference) -> Result<Image, Box<dyn Error + Send + Sync>> {
        Ok(self.incoming.image(&self.digest, name)?)
    }
}

/// No instruction that is allowed runs a command.
struct NoCommands;

impl Runner for NoCommands {
    fn run(&self, _run: &Run<'_>) -> Result<Ended, Box<dyn Error + Send + Sync>> {
        Err("commit runs no commands".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_what_a_commit_adds() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let incoming = store.incoming().unwrap();
        let layer = |text: &[u8]| incoming.layer_of(text).unwrap();
        // An archive of nothing is one; the same bytes are the same layer.
        assert_eq!(layer(&[0; 1024]), layer(&[0; 1024]));
        assert_ne!(layer(&[0; 1024]).diff_id, layer(&[0; 2048]).diff_id);
    }
}
