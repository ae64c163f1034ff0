//! The flags of `strata oci`: runc's.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Run containers from bundles, as runc does
#[derive(Parser)]
#[command(name = "strata oci", version, max_term_width = 100)]
pub struct Oci {
    /// Folder in which states of containers are kept [default: /run/strata/oci, or below XDG_RUNTIME_DIR]
    #[arg(long, global = true, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// File that errors are written to as well
    #[arg(long, global = true, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// How they are written there
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// Take paths of control groups as systemd has them: SLICE:PREFIX:NAME
    #[arg(long, global = true)]
    pub systemd_cgroup: bool,
    /// Accepted for those who give it
    #[arg(long, global = true, hide = true)]
    debug: bool,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// Where states are kept unless somebody says otherwise.
pub fn default_root() -> PathBuf {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
    let base = if rustix::process::geteuid().is_root() { None } else { runtime };
    base.unwrap_or_else(|| PathBuf::from("/run")).join("strata/oci")
}

/// Format of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Words.
    Text,
    /// An object a line.
    Json,
}

/// Format of lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// The verbs. Of all their flags only those of the one that is used are made: that is a tenth of what a container takes.
#[derive(Subcommand)]
#[command(defer = true)]
pub enum Verb {
    /// Make a container; its process waits for `start`
    Create(CreateOptions),
    /// Make a container, start it, and wait for its end
    Run(RunOptions),
    /// Start a container that was created
    Start {
        /// The container
        id: String,
    },
    /// Write the state of a container as JSON
    State {
        /// The container
        id: String,
    },
    /// Send a signal to a container
    Kill(KillOptions),
    /// Remove a container that has stopped
    Delete {
        /// One that runs as well; it is killed. One that does not exist is no error
        #[arg(short, long)]
        force: bool,
        /// The container
        id: String,
    },
    /// Run another process in a container
    Exec(Box<ExecOptions>),
    /// List the processes of a container
    Ps {
        /// How to write them
        #[arg(short, long, value_enum, default_value_t = Format::Table)]
        format: Format,
        /// The container
        id: String,
        /// Arguments for `ps` [default: -ef]
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "PS-ARGUMENT")]
        arguments: Vec<String>,
    },
    /// Freeze all processes of a container
    Pause {
        /// The container
        id: String,
    },
    /// Let the processes of a paused container go on
    Resume {
        /// The container
        id: String,
    },
    /// Change the limits of a container
    Update(Box<UpdateOptions>),
    /// Refused: this runtime saves no containers
    #[command(disable_help_flag = true)]
    Checkpoint(Unsupported),
    /// Refused: this runtime saves no containers
    #[command(disable_help_flag = true)]
    Restore(Unsupported),
    /// Write what this runtime knows, as JSON
    Features,
    /// Write a config to start from
    Spec {
        /// Folder to write it in [default: this one]
        #[arg(short, long, value_name = "DIR")]
        bundle: Option<PathBuf>,
        /// For a container of an ordinary user
        #[arg(long)]
        rootless: bool,
    },
    /// List containers
    List {
        /// How to write them
        #[arg(short, long, value_enum, default_value_t = Format::Table)]
        format: Format,
        /// Their names only
        #[arg(short, long)]
        quiet: bool,
    },
}

/// What comes with a verb that is refused. `--help` too: callers take help for a verb as a sign that it works.
#[derive(Args)]
pub struct Unsupported {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    _arguments: Vec<String>,
}

/// How a container is made.
#[derive(Args)]
pub struct CreateOptions {
    /// Folder of the bundle [default: this one]
    #[arg(short, long, value_name = "DIR")]
    pub bundle: Option<PathBuf>,
    /// Socket that is given the terminal
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// File to write the process's id to
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Enter the root without pivot_root, which a RAM disk does not let be done
    #[arg(long)]
    pub no_pivot: bool,
    /// Accepted for those who give it: no keyring is made
    #[arg(long, hide = true)]
    no_new_keyring: bool,
    /// Further descriptors to hand on, from 3
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    pub preserve_fds: u32,
    /// The container's name
    pub id: String,
}

/// How a container is run.
#[derive(Args)]
pub struct RunOptions {
    #[command(flatten)]
    pub create: CreateOptions,
    /// Do not wait for the end
    #[arg(short, long)]
    pub detach: bool,
    /// Keep the container when it has ended
    #[arg(long)]
    pub keep: bool,
    /// Accepted for those who give it
    #[arg(long, hide = true)]
    no_subreaper: bool,
}

/// Which signal.
#[derive(Args)]
pub struct KillOptions {
    /// To all its processes
    #[arg(short, long)]
    pub all: bool,
    /// The container
    pub id: String,
    /// The signal, by name or number
    #[arg(default_value = "TERM")]
    pub signal: String,
}

/// What to run in a container.
#[derive(Args)]
pub struct ExecOptions {
    /// Socket that is given the terminal
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// Working directory
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<String>,
    /// Set a variable
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// Give it a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// User, by numbers
    #[arg(short, long, value_name = "UID[:GID]")]
    pub user: Option<String>,
    /// Further groups
    #[arg(short = 'g', long, value_name = "GID")]
    pub additional_gids: Vec<u32>,
    /// File with the process as the specification has it
    #[arg(short, long, value_name = "FILE")]
    pub process: Option<PathBuf>,
    /// Do not wait for the end
    #[arg(short, long)]
    pub detach: bool,
    /// File to write the process's id to
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// SELinux label
    #[arg(long, value_name = "LABEL")]
    pub process_label: Option<String>,
    /// AppArmor profile
    #[arg(long, value_name = "PROFILE")]
    pub apparmor: Option<String>,
    /// Executing something may never give it more privileges
    #[arg(long)]
    pub no_new_privs: bool,
    /// Give it a capability more
    #[arg(short, long, value_name = "NAME")]
    pub cap: Vec<String>,
    /// Further descriptors to hand on, from 3
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    pub preserve_fds: u32,
    /// In a paused container too
    #[arg(long)]
    pub ignore_paused: bool,
    /// The container
    pub id: String,
    /// The command and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// Other limits.
#[derive(Args)]
pub struct UpdateOptions {
    /// File with the limits as the specification has them; - is standard input
    #[arg(short, long, value_name = "FILE")]
    pub resources: Option<PathBuf>,
    /// Memory in bytes; -1 is without a limit
    #[arg(long, value_name = "BYTES", allow_negative_numbers = true)]
    pub memory: Option<i64>,
    /// Memory that is left alone under pressure
    #[arg(long, value_name = "BYTES", allow_negative_numbers = true)]
    pub memory_reservation: Option<i64>,
    /// Memory and swap together; -1 is without a limit
    #[arg(long, value_name = "BYTES", allow_negative_numbers = true)]
    pub memory_swap: Option<i64>,
    /// Weight for processors
    #[arg(long, alias = "cpu-share", value_name = "WEIGHT")]
    pub cpu_shares: Option<u64>,
    /// Microseconds of processor time per period; -1 is without a limit
    #[arg(long, value_name = "MICROSECONDS", allow_negative_numbers = true)]
    pub cpu_quota: Option<i64>,
    /// Length of a period
    #[arg(long, value_name = "MICROSECONDS")]
    pub cpu_period: Option<u64>,
    /// Processors
    #[arg(long, value_name = "LIST")]
    pub cpuset_cpus: Option<String>,
    /// Memory nodes
    #[arg(long, value_name = "LIST")]
    pub cpuset_mems: Option<String>,
    /// Number of tasks; -1 is without a limit
    #[arg(long, value_name = "COUNT", allow_negative_numbers = true)]
    pub pids_limit: Option<i64>,
    /// Weight for disks
    #[arg(long, value_name = "WEIGHT")]
    pub blkio_weight: Option<u16>,
    /// The container
    pub id: String,
}
