//! What the program that serves does for this crate.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;

use image::Store;
use workload::networks::{Endpoint, LeaseInfo, NewNetwork};
use workload::{Folder, HealthCheck, Isolation, Mount, Restart, Running, Workloads};

use crate::tuning::HostName;

/// What is asked of the program. Calls may wait: they are made on threads of their own.
pub trait Backend: crate::Machines + Send + Sync + 'static {
    /// Where images are.
    fn store(&self) -> &Store;

    /// Where workloads are.
    fn workloads(&self) -> &Workloads;

    /// Makes a workload that does nothing yet; without a name it gets one.
    ///
    /// # Errors
    /// The image is not here, the host cannot do it, or the name is taken.
    fn create(&self, name: Option<String>, creation: Creation) -> Result<Folder, Refusal>;

    /// Starts the process that watches a workload, where nothing begins before [`workload::control::Request::Start`].
    ///
    /// # Errors
    /// Somebody watches it already, or the host has no more processes.
    fn watch(&self, folder: &Folder) -> Result<(), Refusal>;

    /// Removes a workload, and what a crash left of it.
    ///
    /// # Errors
    /// It runs and is not to be killed, or its files cannot be removed.
    fn remove(&self, folder: &Folder, running: Running) -> Result<(), Refusal>;

    /// The program that runs another command in a workload. Its standard streams and its exit code are the command's.
    ///
    /// # Errors
    /// This program is gone.
    fn command(&self, folder: &Folder, options: &CommandOptions) -> Result<Command, Refusal>;

    /// The program that does something with the files of a workload, which need not run. An archive comes on its standard input,
    /// or goes to its standard output; its exit codes are those of [`archive::Error::code`], and 5 where
    /// nothing is kept of one that does not run.
    ///
    /// # Errors
    /// This program is gone.
    fn files(&self, folder: &Folder, request: &archive::Request) -> Result<Command, Refusal>;

    /// The program that tells what a workload has changed of its image's files, as JSON: a list of `kind` and `path`.
    ///
    /// # Errors
    /// This program is gone.
    fn changes(&self, folder: &Folder) -> Result<Command, Refusal>;

    /// The program that makes an image of a workload's files. Its standard output is the digest of the image's config.
    ///
    /// # Errors
    /// This program is gone.
    fn commit(&self, folder: &Folder, options: &CommitOptions) -> Result<Command, Refusal>;

    /// The program that builds an image. It writes its progress to standard error.
    ///
    /// # Errors
    /// This program is gone.
    fn build(&self, options: &BuildOptions) -> Result<Command, Refusal>;

    /// Gives a workload other limits.
    ///
    /// # Errors
    /// It cannot have them, or not as it is just now.
    fn update(&self, folder: &Folder, limits: &Limits) -> Result<(), Refusal>;

    /// Makes a network, and what the host's kernel has of it.
    ///
    /// # Errors
    /// Its name or addresses are another's, or this host cannot do it.
    fn make_network(&self, new: NewNetwork) -> Result<workload::networks::Network, Refusal>;

    /// Who is connected to a network.
    ///
    /// # Errors
    /// Its folder cannot be read.
    fn connected(&self, network: &workload::networks::Network) -> Result<Vec<LeaseInfo>, Refusal>;

    /// Removes a network that nobody is connected to.
    ///
    /// # Errors
    /// There is none, or somebody is.
    fn remove_network(&self, name: &str) -> Result<(), Refusal>;

    /// Connects a workload to a network, at once if it runs.
    ///
    /// # Errors
    /// It is connected already, it cannot be as it runs, or an address is taken.
    fn connect(&self, folder: &Folder, endpoint: Endpoint) -> Result<(), Refusal>;

    /// Takes a workload off a network, at once if it runs.
    ///
    /// # Errors
    /// It is not connected, or it cannot be taken off as it runs.
    fn disconnect(&self, folder: &Folder, network: &str) -> Result<(), Refusal>;

    /// Bytes that a workload has written to its image's root, as far as they are kept.
    fn written(&self, folder: &Folder) -> Option<u64>;

    /// What a workload takes of the host; nothing if it does not run.
    fn usage(&self, folder: &Folder) -> Option<Usage>;

    /// The processes of a workload: of a container as the host sees them, of a machine as its guest does.
    fn processes(&self, folder: &Folder) -> Option<Vec<Process>>;
}

/// A workload that is to be made.
#[derive(Clone, Debug)]
pub struct Creation {
    /// What stands between it and the host.
    pub isolation: Isolation,
    /// The image, as the client named it.
    pub image: String,
    /// Instead of the image's.
    pub entrypoint: Option<Vec<String>>,
    /// Instead of the image's, or its arguments.
    pub command: Vec<String>,
    /// `NAME=value`, or `NAME` for one that is taken away from the image's.
    pub env: Vec<String>,
    /// Where the command runs.
    pub workdir: Option<String>,
    /// `USER[:GROUP]`
    pub user: Option<String>,
    /// It has a terminal.
    pub tty: bool,
    /// Lines and columns of the terminal at first.
    pub window: Option<(u16, u16)>,
    /// It has a standard input.
    pub stdin: bool,
    /// Instead of one made from the image's name.
    pub hostname: Option<String>,
    /// Free text by key.
    pub labels: BTreeMap<String, String>,
    /// Bytes; none is the host's own for a container, the default for a machine.
    pub memory: Option<u64>,
    /// Thousandths of a processor; none is all of the host's for a container, one for a machine.
    pub millicpus: Option<u64>,
    /// Processes and threads at most.
    pub pids_limit: Option<i64>,
    /// More than by default.
    pub cap_add: Vec<String>,
    /// Fewer than by default.
    pub cap_drop: Vec<String>,
    /// `no-new-privileges`, `seccomp=unconfined`
    pub security_opt: Vec<String>,
    /// The root cannot be written.
    pub read_only: bool,
    /// Folders and mount options.
    pub tmpfs: Vec<(String, String)>,
    /// Resource limits.
    pub ulimits: Vec<Limit>,
    /// Root in it is root on the host.
    pub privileged: bool,
    /// It is removed when it has ended.
    pub remove: bool,
    /// When it is started again.
    pub restart: Restart,
    /// What keeps its output, in docker's word.
    pub log_driver: Option<String>,
    /// How much of its output is kept, `KEY=VALUE`.
    pub log_opts: Vec<String>,
    /// Instead of the image's; `Some(None)` is none at all.
    pub health: Option<Option<HealthCheck>>,
    /// The signal that asks it to end, instead of the image's.
    pub stop_signal: Option<String>,
    /// What it is connected to.
    pub network: Network,
    /// Networks with a name that it is on; the first leads out if it is not connected to anything else.
    pub endpoints: Vec<Endpoint>,
    /// Its hardware address on a network of its own without a name.
    pub mac: Option<[u8; 6]>,
    /// Who is asked for names that are not on its networks, and how.
    pub resolving: Resolving,
    /// `[HOSTIP:]HOSTPORT:PORT/PROTOCOL`
    pub publish: Vec<String>,
    /// What it sees beside its image.
    pub mounts: Vec<Mount>,
    /// Workloads whose volumes it sees too, by name or id; `:ro` behind one that it may not change.
    pub volumes_from: Vec<String>,
    /// What a container may do with disks of this host.
    pub throttles: Vec<Throttle>,
    /// What else a container has of the kernel.
    pub tuning: crate::Tuning,
    /// The client's own description.
    pub said: serde_json::Value,
}

/// Most that is done with a disk of this host in a second.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Throttle {
    /// What is counted.
    pub of: Throttled,
    /// The disk's node.
    pub path: String,
    /// How much.
    pub rate: u64,
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Throttled {
    /// Bytes read.
    ReadBytes,
    /// Bytes written.
    WriteBytes,
    /// Reading requests.
    Reads,
    /// Writing requests.
    Writes,
}

/// What a workload is connected to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Network {
    /// Whatever it is without being asked.
    #[default]
    Default,
    /// Nothing.
    None,
    /// What the user of this program may connect to.
    User,
    /// All that this host has.
    Host,
    /// All that another container has: its id.
    Container(String),
    /// The first of its networks with a name.
    Named,
}

/// Who is asked for names, and how; what is empty is as on this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolving {
    /// Servers.
    pub servers: Vec<IpAddr>,
    /// Domains in which names are looked for.
    pub search: Vec<String>,
    /// Options of the C library's resolver.
    pub options: Vec<String>,
}

/// Limits that change; those that are not given stay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes.
    pub memory: Option<u64>,
    /// Thousandths of a processor.
    pub millicpus: Option<u64>,
    /// How a client of the API said that, if as a quota in a period: microseconds.
    pub quota: Option<(i64, i64)>,
    /// Its part of the processors where others want them too.
    pub cpu_shares: Option<u64>,
    /// Processors that it may use: `0-3,7`.
    pub cpuset_cpus: Option<String>,
    /// Memory nodes that it may use.
    pub cpuset_mems: Option<String>,
    /// Bytes that are left to it where memory is short.
    pub memory_reservation: Option<i64>,
    /// Bytes of memory and swap together.
    pub memory_swap: Option<i64>,
    /// Its part of disks where others want them too, from 10 to 1000.
    pub blkio_weight: Option<u16>,
    /// Processes and threads at most; -1 is without limit.
    pub pids_limit: Option<i64>,
    /// When it is started again.
    pub restart: Option<Restart>,
    /// How a client of the API said that.
    pub restart_word: Option<String>,
}

/// A resource limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// `nofile`
    pub name: String,
    /// -1 is none.
    pub soft: i64,
    /// -1 is none.
    pub hard: i64,
}

/// Another command in a workload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommandOptions {
    /// The command and its arguments.
    pub command: Vec<String>,
    /// `NAME=value`, beside those of the workload.
    pub env: Vec<String>,
    /// Instead of the workload's.
    pub workdir: Option<String>,
    /// Instead of the workload's.
    pub user: Option<String>,
    /// It has a terminal.
    pub tty: bool,
    /// It has a standard input.
    pub stdin: bool,
    /// It has all capabilities.
    pub privileged: bool,
    /// What others were told it is called, if they were told of it.
    pub id: Option<String>,
}

/// An image that is to be built.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BuildOptions {
    /// The folder that files come from.
    pub context: PathBuf,
    /// In that folder.
    pub containerfile: Option<String>,
    /// The image's names.
    pub tags: Vec<String>,
    /// `NAME=value`
    pub args: Vec<String>,
    /// `KEY=value`
    pub labels: Vec<String>,
    /// The stage to stop after.
    pub target: Option<String>,
    /// Steps that were done before are done again.
    pub no_cache: bool,
    /// Images that it starts from are brought from their registries even if they are here.
    pub pull: bool,
    /// Commands see no network but loopback.
    pub no_network: bool,
    /// Commands run in machines.
    pub in_machines: bool,
    /// Bytes of memory that a command may take.
    pub memory: Option<u64>,
    /// Names that commands know without asking.
    pub hosts: Vec<HostName>,
    /// Bytes of `/dev/shm` at most; of containers.
    pub shm_bytes: Option<u64>,
    /// Limits of processes; of containers.
    pub ulimits: Vec<Limit>,
}

/// An image that is to be made of a workload's files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommitOptions {
    /// Its name.
    pub image: Option<String>,
    /// Who made it.
    pub author: String,
    /// What it is.
    pub message: String,
    /// Instructions of a Containerfile that say how it is run.
    pub changes: Vec<String>,
    /// A container stands still meanwhile.
    pub pause: bool,
}

/// What a workload takes of the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Nanoseconds of processor time.
    pub cpu_ns: u64,
    /// Bytes in memory.
    pub memory_bytes: u64,
    /// Bytes that it may take; none is without limit.
    pub memory_limit: Option<u64>,
    /// Processes and threads.
    pub pids: u64,
}

/// One process of a workload.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Process {
    /// Its number, on the host or in the guest.
    pub pid: i32,
    /// Its parent's.
    pub ppid: i32,
    /// The user, by number.
    pub uid: u32,
    /// When it was started, milliseconds since 1970.
    pub started_ms: u64,
    /// Milliseconds of processor time.
    pub cpu_ms: u64,
    /// The command line.
    pub command: String,
}

/// Why something is not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// Whose fault it is.
    pub kind: RefusalKind,
    /// One line.
    pub message: String,
}

/// Whose fault it is that something is not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalKind {
    /// There is no such thing.
    NotFound,
    /// What was asked for makes no sense.
    Invalid,
    /// It cannot be done to this thing as it is just now.
    Conflict,
    /// The same, where docker says that it is forbidden.
    Forbidden,
    /// This program or host cannot do it.
    Unsupported,
    /// It failed.
    Failed,
}

impl Refusal {
    /// A refusal of this kind.
    pub fn new(kind: RefusalKind, message: impl Into<String>) -> Refusal {
        Refusal { kind, message: message.into() }
    }

    /// In docker's words, what went wrong with a network; nothing if that is something else.
    pub fn of_network(error: &workload::Error) -> Option<Refusal> {
        use workload::Error as E;
        let (kind, message) = match error {
            E::NoNetwork { name } => (RefusalKind::NotFound, format!("network {name} not found")),
            E::NetworkTaken { name } => {
                (RefusalKind::Conflict, format!("network with name {name} already exists"))
            }
            E::Overlap { .. } => {
                let words = "invalid pool request: Pool overlaps with other one on this address space";
                (RefusalKind::Forbidden, format!("{words}: {error}"))
            }
            E::NetworkInUse { name, users } => {
                let users = users.join(", ");
                let text =
                    format!("error while removing network: network {name} has active endpoints ({users})");
                (RefusalKind::Forbidden, text)
            }
            _ => return None,
        };
        Some(Refusal { kind, message })
    }

    /// The name that a workload was to get is that of the workload `id`. Docker's words: clients look for them.
    pub fn name_taken(name: &str, id: &str) -> Refusal {
        let message = format!(
            "Conflict. The container name \"/{name}\" is already in use by container \"{id}\". You have to remove (or rename) \
             that container to be able to reuse that name."
        );
        Refusal { kind: RefusalKind::Conflict, message }
    }
}
