//! `strata oci`: the command line of an OCI runtime, as runc has it, for podman, containerd and their like.
//!
//! A link to the program called `strata-oci` is the same. Its flags are parsed apart from Strata's own: `--root` means
//! the folder of states here.

mod change;
mod cli;
pub mod enter;

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;

use clap::Parser;
use container::Runtime;

use crate::exit::Exit;
use crate::failure::{Failure, Outcome, While};
use crate::output;
use cli::{Format, LogFormat, Oci, Verb};

/// The interface of an OCI runtime: runc's command line, for podman and containerd
///
/// `strata oci --help` lists its commands. A link to this program called `strata-oci` is the same:
/// `podman --runtime /path/to/strata-oci run …`.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub struct Options {
    /// A command of the runtime and its flags
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENT")]
    arguments: Vec<OsString>,
}

/// Verbs that make a process in a container. Where one of these words is something else, an id, nothing is lost but a moment.
const ENTERING: [&str; 3] = ["create", "run", "exec"];

/// The name of a link that makes every argument one of `strata oci`.
pub const LINK: &str = "strata-oci";

/// Runs `strata oci` with the arguments after it.
///
/// # Errors
/// As the runtime's.
pub fn run(options: &Options) -> Outcome {
    protect(&options.arguments);
    run_with(&options.arguments)
}

/// Takes this program out of reach of containers, if a verb needs that: before anything is done that would be done twice, for it may
/// start anew. If it fails, so it does once more where the verb says why.
pub fn protect(arguments: &[OsString]) {
    if arguments.iter().any(|word| ENTERING.iter().any(|verb| word == verb)) {
        let _ = container::own_binary::protect();
    }
}

/// Parses the arguments, and does what they say.
///
/// # Errors
/// As the runtime's.
pub fn run_with(arguments: &[OsString]) -> Outcome {
    let oci = Oci::parse_from([OsString::from("strata oci")].into_iter().chain(arguments.iter().cloned()));
    // Those who drive a runtime take 1 for its failure.
    let outcome = dispatch(&oci).map_err(|failure| match failure.exit_code() {
        Exit::Strata => failure.exit(Exit::Workload(1)),
        _ => failure,
    });
    if let (Err(failure), Some(log)) = (&outcome, &oci.log) {
        write_log(log, oci.log_format, &failure.to_string());
    }
    outcome
}

fn dispatch(oci: &Oci) -> Outcome {
    let root = oci.root.clone().unwrap_or_else(cli::default_root);
    let runtime = Runtime::new(root).systemd_cgroup(oci.systemd_cgroup);
    match &oci.verb {
        Verb::Create(options) => enter::create(&runtime, options),
        Verb::Run(options) => enter::run(&runtime, options),
        Verb::Exec(options) => enter::exec(&runtime, options),
        Verb::Start { id } => runtime.start(id).map_err(enter::explain).map(done),
        Verb::State { id } => output::json(&runtime.state(id).map_err(enter::explain)?).map(done),
        Verb::Kill(options) => change::kill(&runtime, options),
        Verb::Delete { force, id } => runtime.delete(id, *force).map_err(enter::explain).map(done),
        Verb::Pause { id } => runtime.pause(id).map_err(enter::explain).map(done),
        Verb::Resume { id } => runtime.resume(id).map_err(enter::explain).map(done),
        Verb::Update(options) => change::update(&runtime, options),
        Verb::Ps { format, id, arguments } => change::ps(&runtime, id, *format, arguments),
        Verb::List { format, quiet } => list(&runtime, *format, *quiet),
        Verb::Checkpoint(_) | Verb::Restore(_) => Err(Failure::new(
            "checkpoint or restore a container: this runtime does not; strata snapshot saves virtual machines",
        )),
        Verb::Features => output::json(&container::features()).map(done),
        Verb::Spec { bundle, rootless } => spec(bundle.as_deref(), *rootless),
    }
}

fn done(_: ()) -> Exit {
    Exit::Success
}

fn list(runtime: &Runtime, format: Format, quiet: bool) -> Outcome {
    let states = runtime.list().map_err(enter::explain)?;
    if quiet {
        let text: String = states.iter().map(|state| format!("{}\n", state.id)).collect();
        return output::write(&text).map(done);
    }
    if format == Format::Json {
        return output::json(&states).map(done);
    }
    let mut table = output::Table::new(&["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]);
    for state in states {
        let status = serde_json::to_value(state.status).ok().and_then(|v| v.as_str().map(str::to_owned));
        table.row([
            state.id,
            state.pid.to_string(),
            status.unwrap_or_default(),
            state.bundle.display().to_string(),
            state.created,
            state.owner,
        ]);
    }
    table.print().map(done)
}

fn spec(bundle: Option<&Path>, rootless: bool) -> Outcome {
    let path = bundle.unwrap_or(Path::new(".")).join("config.json");
    let act = || format!("write {}", path.display());
    let mut text = serde_json::to_string_pretty(&container::template::spec(rootless)).while_trying(act)?;
    text.push('\n');
    let mut file = std::fs::File::create_new(&path).while_trying(act)?;
    file.write_all(text.as_bytes()).while_trying(act)?;
    Ok(Exit::Success)
}

/// One line for whoever asked for a log. That it cannot be written is no second error.
fn write_log(path: &Path, format: LogFormat, message: &str) {
    let time = container::state::rfc3339(container::state::now());
    let line = match format {
        LogFormat::Json => serde_json::json!({ "level": "error", "msg": message, "time": time }).to_string(),
        LogFormat::Text => format!("time={time:?} level=error msg={message:?}"),
    };
    let file = std::fs::OpenOptions::new().append(true).create(true).open(path);
    if let Err(error) = file.and_then(|mut file| writeln!(file, "{line}")) {
        Failure::because(format!("write log {}", path.display()), error).print();
    }
}
