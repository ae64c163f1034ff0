//! `strata image build`: an image made by a Containerfile.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::File;
use std::path::{Path, PathBuf};

use build::{Images, Run, Runner};
use clap::Args;
use container::Exit as Ended;
use container::command::{Command, Network};
use container::template;
use image::{Image, Reference, Store};

use super::{explain, parse};
use crate::commands::registry;
use crate::exit::Exit;
use crate::failure::{Failure, Outcome};
use crate::output;
use crate::progress::Bar;

#[derive(Args)]
pub struct BuildOptions {
    /// The Containerfile [default: Containerfile or Dockerfile in the context]
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Name for the image; may be repeated
    #[arg(short, long = "tag", value_name = "NAME")]
    tags: Vec<String>,
    /// Set a variable that ARG declares; without a value take the one from here
    #[arg(long = "build-arg", value_name = "NAME[=VALUE]")]
    args: Vec<String>,
    /// Set a label
    #[arg(long = "label", value_name = "KEY[=VALUE]")]
    labels: Vec<String>,
    /// Stage to stop at, by name or number [default: the last one]
    #[arg(long, value_name = "STAGE")]
    target: Option<String>,
    /// Do again what was done before
    #[arg(long)]
    no_cache: bool,
    /// Folder that COPY and ADD take files from
    context: PathBuf,
}

/// Builds an image; its digest goes to standard output.
///
/// # Errors
/// The Containerfile, the context or an image is not as it should be; the message says which and where.
pub fn build(store: &Store, options: &BuildOptions) -> Outcome<()> {
    let tags: Outcome<Vec<Reference>> = options.tags.iter().map(|name| parse(name)).collect();
    let wanted = build::Options {
        context: options.context.clone(),
        file: options.file.clone(),
        tags: tags?,
        args: variables(&options.args, |name| std::env::var(name).ok())?,
        labels: options.labels.iter().map(|entry| pair(entry)).collect(),
        target: options.target.clone(),
        no_cache: options.no_cache,
    };
    let bar = Bar::new();
    let built = build::build(store, &wanted, &FromStore(store), &InContainers, &bar);
    drop(bar);
    let digest = built.map_err(|error| {
        let failure = Failure::because(format!("build {}", options.context.display()), error);
        if options.tags.is_empty() {
            failure
        } else {
            failure.hint("what was done is remembered: build again")
        }
    })?;
    if options.tags.is_empty() {
        eprintln!("strata: the image has no name, and goes when it is forgotten: give it one with -t NAME");
    }
    output::write(&format!("{digest}\n"))
}

fn pair(entry: &str) -> (String, String) {
    let (key, value) = entry.split_once('=').unwrap_or((entry, ""));
    (key.to_owned(), value.to_owned())
}

/// What the user gives ARGs.
fn variables(given: &[String], host: impl Fn(&str) -> Option<String>) -> Outcome<BTreeMap<String, String>> {
    let mut all = BTreeMap::new();
    for entry in given {
        let (name, value) = match entry.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (entry.as_str(), host(entry)),
        };
        if name.is_empty() {
            let failure = Failure::new(format!("understand --build-arg {entry:?}: a variable has a name"));
            return Err(failure.exit(Exit::Usage));
        }
        all.extend(value.map(|value| (name.to_owned(), value)));
    }
    Ok(all)
}

/// Images of the store, and those that their registries have.
struct FromStore<'s>(&'s Store);

impl Images for FromStore<'_> {
    fn image(&self, name: &Reference) -> Result<Image, Box<dyn Error + Send + Sync>> {
        match self.0.image(name) {
            Err(error) if error.is_not_found() => {
                let pulled = registry::fetch(self.0, name, &::registry::Options::default());
                Ok(pulled.map_err(|failure| failure.to_string())?.image)
            }
            found => {
                Ok(found.map_err(|error| explain(format!("use {name}"), name.name(), error).to_string())?)
            }
        }
    }
}

/// Containers on this host's kernel and network; what the commands say goes to standard error, for the digest goes to
/// standard output.
struct InContainers;

impl Runner for InContainers {
    fn run(&self, run: &Run<'_>) -> Result<u8, Box<dyn Error + Send + Sync>> {
        if !rustix::process::geteuid().is_root() {
            return Err(
                "RUN needs root on this host: commands run in a container, as the image's own users".into()
            );
        }
        const RESOLVER: &str = "/etc/resolv.conf";
        let resolver = template::mount(RESOLVER, "bind", RESOLVER, "bind,ro");
        let mounts = Path::new(RESOLVER).exists().then_some(resolver);
        let command = Command {
            root: run.root.to_owned(),
            args: run.argv.to_vec(),
            env: run.env.to_vec(),
            cwd: run.cwd.to_owned(),
            user: run.user.to_owned(),
            network: Network::Host,
            hostname: String::new(),
            mounts: mounts.into_iter().collect(),
            state: PathBuf::from("/run/strata/build"),
            id: format!("build-{}-{}", std::process::id(), container::state::now()),
        };
        let (input, output) =
            (File::open("/dev/null")?, rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)?);
        rustix::stdio::dup2_stdin(&input)?;
        rustix::stdio::dup2_stdout(rustix::stdio::stderr())?;
        let ended = command.run();
        rustix::stdio::dup2_stdout(&output)?;
        match ended {
            Ok(Ended::Code(code)) => Ok(code),
            Ok(Ended::Signal(signal)) => Ok(128 + signal),
            Err(error) => Err(error.chain().into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_come_with_a_value_or_from_here() {
        let given = ["A=1=2", "HOST", "GONE", "E="].map(str::to_owned);
        let all = variables(&given, |name| (name == "HOST").then(|| "h".to_owned())).unwrap();
        let all: Vec<_> = all.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(all, ["A=1=2", "E=", "HOST=h"]);
        assert!(variables(&["=x".to_owned()], |_| None).is_err());
    }
}
