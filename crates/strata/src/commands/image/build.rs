//! `strata image build`: an image made by a Containerfile.

mod containers;
mod machines;

use std::collections::BTreeMap;
use std::error::Error;
use std::path::PathBuf;

use api::HostName;
use build::{Images, Runner};
use clap::Args;
use container::spec::Rlimit;
use image::{Image, Reference, Store};
use rustix::process::Signal;

use self::containers::InContainers;
pub use self::containers::runtime;
use self::machines::InMachines;
use super::{explain, parse};
use crate::commands::registry;
use crate::commands::run::container::parse_rlimit;
use crate::commands::run::network::NO_GATEWAY;
use crate::exit::Exit;
use crate::failure::{Failure, Outcome, While};
use crate::output;
use crate::progress::Bar;
use crate::size::parse_size;

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
    /// Bring the images of FROM from their registries even if they are here
    #[arg(long)]
    pull: bool,
    /// What the commands of RUN see of networks
    #[arg(long, value_enum, default_value_t = Network::Host, value_name = "KIND")]
    network: Network,
    /// What stands between the commands of RUN and this host: container needs root, vm does not
    #[arg(long, value_enum, default_value_t = Isolation::Container, value_name = "KIND")]
    isolation: Isolation,
    #[command(flatten)]
    around: Around,
    /// End when whoever started it does: for servers.
    #[arg(long, hide = true)]
    tied: bool,
    /// Folder that COPY and ADD take files from
    context: PathBuf,
}

/// What a command of RUN finds beside its files.
#[derive(Args)]
struct Around {
    /// Memory that a command of RUN may take; of a machine all it has, and what it writes has to fit into half of it [default: 1G
    /// of a machine]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    memory: Option<u64>,
    /// A name that the commands of RUN know without asking
    #[arg(long = "add-host", value_name = "NAME:ADDRESS")]
    hosts: Vec<HostName>,
    /// Bytes of /dev/shm at most; of containers
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    shm_size: Option<u64>,
    /// Set a resource limit, e.g. nofile=1024:4096; of containers
    #[arg(long, value_name = "NAME=SOFT[:HARD]", value_parser = parse_rlimit)]
    ulimit: Vec<Rlimit>,
}

impl Around {
    /// Refuses what there is no place for.
    fn check(&self, isolation: Isolation) -> Outcome<()> {
        let refuse = |why: &str| Err(Failure::new(why).exit(Exit::Usage));
        if self.hosts.iter().any(|host| host.address.is_none()) {
            return refuse(&format!("{NO_GATEWAY}, which builds have none of"));
        }
        match (isolation, &self.shm_size, &*self.ulimit) {
            (Isolation::Vm, Some(_), _) => refuse("--shm-size: only with --isolation container"),
            (Isolation::Vm, _, [_, ..]) => refuse("--ulimit: only with --isolation container"),
            _ => Ok(()),
        }
    }
}

/// What a command of RUN runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Isolation {
    /// Namespaces and filters of this host's kernel, on its network
    Container,
    /// A virtual machine for each command, with a network as of run --network user
    Vm,
}

/// What a command of RUN sees of networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Network {
    /// What this host sees; in a machine, what this user reaches
    Host,
    /// Loopback alone
    None,
}

/// Builds an image; its digest goes to standard output.
///
/// # Errors
/// The Containerfile, the context or an image is not as it should be; the message says which and where.
pub fn build(store: &Store, options: &BuildOptions) -> Outcome<()> {
    if options.tied {
        let act = || "end with the server".to_owned();
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).while_trying(act)?;
    }
    options.around.check(options.isolation)?;
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
    let (network, around) = (options.network, &options.around);
    let runner: &dyn Runner = match options.isolation {
        Isolation::Container => &InContainers { network, around },
        Isolation::Vm => &InMachines { store, network, around },
    };
    let bar = Bar::new();
    let images = FromStore { store, pull: options.pull };
    let built = build::build(store, &wanted, &images, runner, &bar);
    drop(bar);
    let digest = built.map_err(|error| {
        let failure = Failure::because(format!("build {}", options.context.display()), error);
        if options.tags.is_empty() {
            failure
        } else {
            failure.hint("what was done is remembered: build again")
        }
    })?;
    for image in wanted.tags.iter().filter_map(|name| store.image(name).ok()) {
        api::tell_image(store, &image, "tag");
    }
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
struct FromStore<'s> {
    store: &'s Store,
    /// Whatever the store has.
    pull: bool,
}

impl Images for FromStore<'_> {
    fn image(&self, name: &Reference) -> Result<Image, Box<dyn Error + Send + Sync>> {
        let fetch = || -> Result<Image, Box<dyn Error + Send + Sync>> {
            let pulled = registry::fetch(self.store, name, &::registry::Options::default());
            Ok(pulled.map_err(|failure| failure.to_string())?.image)
        };
        if self.pull {
            return fetch();
        }
        match self.store.image(name) {
            Err(error) if error.is_not_found() => fetch(),
            found => {
                Ok(found.map_err(|error| explain(format!("use {name}"), name.name(), error).to_string())?)
            }
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
