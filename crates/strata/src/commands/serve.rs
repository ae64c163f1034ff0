//! `strata serve`: the Docker Engine API on a socket, over what the other commands do.

mod listen;
mod machines;

use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::process::Command;

use api::{Backend, BuildOptions, CommandOptions, CommitOptions, Creation, Process, Refusal, RefusalKind};
use clap::Args;
use image::Store;
use workload::networks::{Endpoint, LeaseInfo, Network, NewNetwork};
use workload::{Folder, Restart, Running, Status, Workloads};

use super::run::{creation, detach, update};
use super::{files, network, usage, workloads};
use crate::cli::Global;
use crate::exit::Exit;
use crate::failure::{Failure, Outcome, While};
use crate::signals::{ENDING, Watch};
use crate::store;

/// Serve the Docker Engine API, for the docker command and its libraries
///
/// docker -H unix:///run/strata/docker.sock run --rm debian echo hello
///
/// Whoever may connect may do all that this user may: the socket is its owner's and its group's. Workloads go on when the server
/// ends, and any number of servers may serve the same store. With --runtime strata-vm docker's containers are machines.
/// GET /metrics is for Prometheus; below /strata/v1/ is what docker has no words for.
#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    listen: listen::Options,
}

/// Serves until a signal asks for the end.
///
/// # Errors
/// A socket cannot be made.
pub fn run(global: &Global, options: &Options) -> Outcome {
    let service = options.listen.service()?;
    let store = store::open(global)?;
    let workloads = Workloads::open(store.root()).while_trying(|| "open the workloads".to_owned())?;
    let global = Global { root: Some(store.root().to_owned()), verbose: 0 };
    start_lost(&global, &workloads)?;
    let host = Host { global, store, workloads };
    let (end, ended) = api::end();
    let _watch = Watch::start(&ENDING, move |_| end.now())?;
    let listening = |addresses: &[String]| {
        let (pages, others): (Vec<&String>, Vec<_>) =
            addresses.iter().partition(|address| address.starts_with("http"));
        for address in others {
            eprintln!("strata: the Docker Engine API is at {address}; end it with Ctrl-C");
        }
        for page in pages {
            eprintln!("strata: the console is at {page}");
        }
    };
    api::serve(host, &service, listening, ended).map_err(|error| {
        Failure::because("serve", error).hint("--listen unix:///another/path; or end the one that is there")
    })?;
    Ok(Exit::Success)
}

/// Workloads that are always to run, and whose monitor or whose host ended under them, run again. Who asks for one meanwhile does
/// not wait for all.
fn start_lost(global: &Global, all: &Workloads) -> Outcome<()> {
    let act = || "start workloads again".to_owned();
    let is_lost = |folder: &Folder| {
        folder.description().wanted.restart == Restart::Always
            && folder.state().is_ok_and(|state| state.status == Status::Lost)
    };
    let lost: Vec<Folder> = all.list().while_trying(act)?.into_iter().filter(is_lost).collect();
    let global = Global { root: global.root.clone(), verbose: global.verbose };
    let start = move || {
        for folder in lost {
            let name = &folder.description().name;
            match detach::start(&global, &folder, None) {
                Ok(Ok(())) => tracing::info!("{name} runs again"),
                Ok(Err(reason)) => tracing::warn!("start {name} again: {reason}"),
                Err(failure) => tracing::warn!("start {name} again: {failure}"),
            }
        }
    };
    std::thread::Builder::new().name("lost".into()).spawn(start).map(drop).while_trying(act)
}

/// What the other commands do, for the API.
struct Host {
    global: Global,
    store: Store,
    workloads: Workloads,
}

impl Host {
    fn again(&self, verb: &str) -> Result<Command, Refusal> {
        let mut command = store::again(self.root(), 0).map_err(refusal)?;
        command.arg(verb);
        Ok(command)
    }

    fn root(&self) -> &Path {
        self.store.root()
    }
}

/// What a command's failure is to a client.
fn refusal(failure: Failure) -> Refusal {
    use workload::Error as E;
    if let Some(E::NameTaken { name, id }) = failure.cause::<E>() {
        return Refusal::name_taken(name, id);
    }
    if let Some(known) = failure.cause::<E>().and_then(Refusal::of_network) {
        return known;
    }
    let kind = match (failure.cause::<E>(), failure.cause::<image::Error>()) {
        (Some(E::Busy { .. } | E::Refused(_) | E::NotWatched { .. } | E::VolumeInUse { .. }), _) => {
            RefusalKind::Conflict
        }
        (Some(E::BadName { .. } | E::Ambiguous { .. } | E::BadOption { .. }), _) => RefusalKind::Invalid,
        (Some(E::NotFound { .. } | E::NoVolume { .. }), _) => RefusalKind::NotFound,
        (_, Some(error)) if error.is_not_found() => RefusalKind::NotFound,
        _ if failure.exit_code() == Exit::Usage => RefusalKind::Invalid,
        _ => RefusalKind::Failed,
    };
    Refusal::new(kind, failure.to_string())
}

fn plain(error: workload::Error) -> Refusal {
    refusal(Failure::because("use the networks", error))
}

impl Backend for Host {
    fn store(&self) -> &Store {
        &self.store
    }

    fn workloads(&self) -> &Workloads {
        &self.workloads
    }

    fn create(&self, name: Option<String>, creation: Creation) -> Result<Folder, Refusal> {
        creation::create(&self.global, name, creation).map_err(refusal)
    }

    fn watch(&self, folder: &Folder) -> Result<(), Refusal> {
        let started = detach::start_monitor(&self.global, folder, None).map_err(refusal)?;
        started.map_err(|reason| Refusal::new(RefusalKind::Conflict, reason))
    }

    fn remove(&self, folder: &Folder, running: Running) -> Result<(), Refusal> {
        workloads::remove(&self.workloads, folder, running).map_err(refusal)
    }

    fn command(&self, folder: &Folder, options: &CommandOptions) -> Result<Command, Refusal> {
        let mut command = self.again("exec")?;
        for (flag, is_set) in
            [("-t", options.tty), ("-i", options.stdin), ("--privileged", options.privileged)]
        {
            command.args(is_set.then_some(flag));
        }
        for (flag, value) in [("--workdir", &options.workdir), ("--user", &options.user)] {
            command.args(value.iter().map(|value| format!("{flag}={value}")));
        }
        command.args(options.id.iter().map(|id| format!("--announced={id}")));
        let variables = options.env.iter().filter(|entry| entry.contains('=') && !entry.starts_with('='));
        command.args(variables.map(|entry| format!("--env={entry}")));
        command.arg(&folder.description().id).arg("--").args(&options.command);
        Ok(command)
    }

    fn files(&self, folder: &Folder, request: &archive::Request) -> Result<Command, Refusal> {
        let mut command = self.again("files")?;
        command.arg(&folder.description().id).arg("--");
        command.args(request.to_words().into_iter().map(std::ffi::OsString::from_vec));
        Ok(command)
    }

    fn changes(&self, folder: &Folder) -> Result<Command, Refusal> {
        let mut command = self.again("diff")?;
        command.args(["--json", &folder.description().id]);
        Ok(command)
    }

    fn commit(&self, folder: &Folder, options: &CommitOptions) -> Result<Command, Refusal> {
        let mut command = self.again("commit")?;
        command.args((!options.pause).then_some("--no-pause"));
        command.arg(format!("--author={}", options.author)).arg(format!("--message={}", options.message));
        command.args(options.changes.iter().map(|change| format!("--change={change}")));
        command.arg("--").arg(&folder.description().id).args(&options.image);
        Ok(command)
    }

    fn build(&self, options: &BuildOptions) -> Result<Command, Refusal> {
        let mut command = self.again("image")?;
        command.args(["build", "--tied"]);
        command.args(options.no_cache.then_some("--no-cache"));
        command.args(options.pull.then_some("--pull"));
        command.args(options.no_network.then_some("--network=none"));
        command.args(options.in_machines.then_some("--isolation=vm"));
        command.args(options.memory.map(|bytes| format!("--memory={bytes}")));
        command.args(options.hosts.iter().map(|host| format!("--add-host={host}")));
        command.args(options.shm_bytes.map(|bytes| format!("--shm-size={bytes}")));
        let limit = |limit: &api::Limit| format!("--ulimit={}={}:{}", limit.name, limit.soft, limit.hard);
        command.args(options.ulimits.iter().map(limit));
        command.args(
            options.containerfile.iter().map(|file| {
                format!("--file={}", options.context.join(file.trim_start_matches('/')).display())
            }),
        );
        command.args(options.target.iter().map(|target| format!("--target={target}")));
        command.args(options.tags.iter().map(|tag| format!("--tag={tag}")));
        command.args(options.args.iter().map(|entry| format!("--build-arg={entry}")));
        command.args(options.labels.iter().map(|entry| format!("--label={entry}")));
        command.arg("--").arg(&options.context);
        Ok(command)
    }

    fn update(&self, folder: &Folder, limits: &api::Limits) -> Result<(), Refusal> {
        update::change(&self.workloads, folder, limits).map_err(refusal)
    }

    fn make_network(&self, new: NewNetwork) -> Result<Network, Refusal> {
        network::make(&self.workloads.networks().map_err(plain)?, new).map_err(refusal)
    }

    fn connected(&self, network: &Network) -> Result<Vec<LeaseInfo>, Refusal> {
        let locked = self.workloads.networks().and_then(|networks| networks.lock()).map_err(plain)?;
        network::connected(&locked, network).map_err(refusal)
    }

    fn remove_network(&self, name: &str) -> Result<(), Refusal> {
        let networks = self.workloads.networks().map_err(plain)?;
        let locked = networks.lock().map_err(plain)?;
        let found = network::find(&networks, name).map_err(refusal)?;
        network::unmake(&networks, &locked, &found).map_err(refusal)
    }

    fn connect(&self, folder: &Folder, endpoint: Endpoint) -> Result<(), Refusal> {
        let networks = self.workloads.networks().map_err(plain)?;
        let id = &folder.description().id;
        network::connections::connect(&networks, &self.workloads, id, endpoint).map_err(refusal)
    }

    fn disconnect(&self, folder: &Folder, network: &str) -> Result<(), Refusal> {
        network::connections::disconnect(&self.workloads, &folder.description().id, network).map_err(refusal)
    }

    fn written(&self, folder: &Folder) -> Option<u64> {
        files::written(folder)
    }

    fn usage(&self, folder: &Folder) -> Option<api::Usage> {
        let usage = usage::usage(folder)?;
        Some(api::Usage {
            cpu_ns: usage.cpu_ns,
            memory_bytes: usage.memory_bytes,
            memory_limit: usage.limit_bytes,
            pids: usage.pids,
        })
    }

    fn processes(&self, folder: &Folder) -> Option<Vec<Process>> {
        usage::processes(folder)
    }
}
