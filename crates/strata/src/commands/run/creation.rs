//! A workload that a client of the API describes, as the flags of `strata run` would.

use api::{Creation, Limit, Network};
use clap::Parser;
use container::spec::Rlimit;
use workload::{Folder, Isolation as Layer, Mount, Wanted, Workloads};

use super::{Isolation, MAX_CPUS, Options, Pull, detach, network, tuning};
use crate::cli::Global;
use crate::exit::Exit;
use crate::failure::{Failure, Outcome, While};
use crate::store;

/// Gives the flags nobody said.
#[derive(Parser)]
struct Defaults {
    #[command(flatten)]
    options: Options,
}

/// Makes the workload.
///
/// # Errors
/// Image, kernel or command are not as they should be, or the name is taken.
pub fn create(global: &Global, name: Option<String>, creation: Creation) -> Outcome<Folder> {
    let mut options = options(name, &creation)?;
    add_volumes_of_others(global, &creation.volumes_from, &mut options.files.mounts)?;
    let Creation { health, stop_signal, said, labels, .. } = creation;
    detach::create_as(global, &options, |wanted| {
        let stop_signal = stop_signal.and_then(|text| workload::signal_number(&text));
        Wanted {
            health: health.unwrap_or(wanted.health),
            stop_signal: stop_signal.unwrap_or(wanted.stop_signal),
            // Its keys may hold what a flag could not say.
            labels: wanted.labels.into_iter().chain(labels).collect(),
            said: Some(said),
            ..wanted
        }
    })
}

fn options(name: Option<String>, creation: &Creation) -> Outcome<Options> {
    let Defaults { mut options } = Defaults::try_parse_from(["run", "--", &creation.image])
        .while_trying(|| format!("run {:?}", creation.image))?;
    let is_container = creation.isolation == Layer::Container;
    options.isolation = if is_container { Isolation::Container } else { Isolation::Vm };
    options.name = name;
    options.pull = Pull::Never;
    options.command.clone_from(&creation.command);
    options.entrypoint.clone_from(&creation.entrypoint);
    options.hostname.clone_from(&creation.hostname);
    // The server's own variables are nobody's business.
    options.process.env = creation.env.iter().filter(|entry| entry.contains('=')).cloned().collect();
    options.process.unset = creation.env.iter().filter(|entry| !entry.contains('=')).cloned().collect();
    options.process.workdir.clone_from(&creation.workdir);
    options.process.user.clone_from(&creation.user);
    (options.tty, options.interactive) = (creation.tty, creation.stdin);
    options.window = creation.window;
    (options.rm, options.restart) = (creation.remove, creation.restart);
    options.network.publish.clone_from(&creation.publish);
    options.network.network = match &creation.network {
        Network::None => Some(network::Kind::None),
        Network::Host => Some(network::Kind::Host),
        Network::Container(id) => Some(network::Kind::Container(id.clone())),
        // Docker's workloads have a network unless they are told otherwise.
        Network::Default | Network::User => Some(network::Kind::User),
        Network::Named => None,
    };
    let has_other = matches!(creation.network, Network::Default | Network::User);
    if !is_container && options.network.shares() {
        let text = "network: a machine has a kernel of its own, which shares no network of the host or of a container";
        return Err(Failure::new(text).exit(Exit::Usage));
    }
    if !is_container && creation.endpoints.len() + usize::from(has_other) > 1 {
        let text = "connect the machine to several networks: it has one card";
        return Err(Failure::new(text).exit(Exit::Usage));
    }
    options.network.set_mac(creation.mac);
    options.network.set_endpoints(creation.endpoints.clone());
    options.network.set_resolving(&creation.resolving);
    options.network.set_hosts(&creation.tuning.hosts);
    options.container.tuning = tuning::Flags::of(&creation.tuning);
    options.files.mounts.clone_from(&creation.mounts);
    options.rates.throttle(&creation.throttles);
    // A container has all of the host that nobody takes from it.
    let all = std::thread::available_parallelism().map_or(1, usize::from) as u64 * 1000;
    if is_container {
        options.sizing.memory = creation.memory.unwrap_or(u64::MAX);
        options.container.millicpus = Some(creation.millicpus.unwrap_or(all));
    } else {
        options.sizing.memory = creation.memory.unwrap_or(options.sizing.memory);
        let cpus = creation.millicpus.map_or(1, |milli| milli.div_ceil(1000)).clamp(1, MAX_CPUS);
        options.sizing.cpus = cpus as u32;
    }
    options.log.log_opts.clone_from(&creation.log_opts);
    options.log.log_driver.clone_from(&creation.log_driver);
    let flags = &mut options.container;
    flags.pids_limit = creation.pids_limit.unwrap_or(flags.pids_limit);
    flags.cap_add.clone_from(&creation.cap_add);
    flags.cap_drop.clone_from(&creation.cap_drop);
    flags.security_opt.clone_from(&creation.security_opt);
    flags.read_only = creation.read_only;
    flags.privileged = creation.privileged;
    flags.tmpfs = creation.tmpfs.iter().map(|(folder, options)| format!("{folder}:{options}")).collect();
    flags.ulimit = creation.ulimits.iter().map(limit).collect();
    Ok(options)
}

/// What the workloads `others` see, but where something else will be.
fn add_volumes_of_others(global: &Global, others: &[String], mounts: &mut Vec<Mount>) -> Outcome<()> {
    for other in others {
        let (name, read_only) = match other.split_once(':') {
            None | Some((_, "rw" | "z" | "Z")) => (other.split(':').next().unwrap_or_default(), false),
            Some((name, "ro")) => (name, true),
            Some(_) => {
                return Err(Failure::new(format!("volumes of {other:?}: NAME[:ro]")).exit(Exit::Usage));
            }
        };
        let all = Workloads::open(&store::root(global)?);
        let folder =
            all.and_then(|all| all.find(name)).while_trying(|| format!("use the volumes of {name:?}"))?;
        for mount in &folder.description().wanted.mounts {
            if mounts.iter().all(|own| own.target != mount.target) {
                mounts.push(Mount { read_only: read_only || mount.read_only, ..mount.clone() });
            }
        }
    }
    Ok(())
}

fn limit(limit: &Limit) -> Rlimit {
    let value = |value: i64| u64::try_from(value).unwrap_or(u64::MAX);
    Rlimit {
        kind: format!("RLIMIT_{}", limit.name.to_ascii_uppercase()),
        soft: value(limit.soft),
        hard: value(limit.hard),
    }
}
