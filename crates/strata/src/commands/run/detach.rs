//! `strata run -d` and `strata create`: the workload's folder, the process that watches it, and the end of this one.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use clap::Args;
use image::Store;
use workload::control::{self, Answer, Client, Request};
use workload::monitor::{Commands, Saved};
use workload::{Description, Folder, Wanted, Workloads};

use super::security::Security;
use super::volumes::{Keep, Settled};
use super::{Isolation, Options, container, container_spec, flags};
use crate::cli::Global;
use crate::commands::{files as kept, image as images};
use crate::exit::Exit;
use crate::failure::{Failure, Outcome, While};
use crate::progress::Bar;
use crate::{output, signals, store};

/// What the processes in the background are told: the rest is in the workload's folder.
#[derive(Args)]
pub struct InnerOptions {
    /// The workload's id
    pub id: String,
    /// It goes on from a machine at rest, which comes on standard input
    #[arg(long)]
    pub saved: bool,
}

/// What `strata monitor` says when it answers requests.
const LISTENING: &str = "listening";

/// Starts the workload and waits until its command runs; its id goes to standard output.
///
/// # Errors
/// Image, kernel or command are not as they should be. A workload that was made stays, to be looked at, unless it has --rm.
pub fn run(global: &Global, options: &Options) -> Outcome {
    let folder = create(global, options)?;
    let Description { id, name, .. } = folder.description();
    if let Err(reason) = start(global, &folder, None)? {
        let failure = Failure::new(format!("run {:?}: {reason}", options.image));
        return Err(if options.rm {
            failure
        } else {
            failure.hint(format!("strata logs {name}; strata rm {name}"))
        });
    }
    output::write(&format!("{id}\n"))?;
    Ok(Exit::Success)
}

/// Makes the workload's folder. All that takes time and can be seen to fail is done here.
///
/// # Errors
/// Image, kernel or command are not as they should be.
pub fn create(global: &Global, options: &Options) -> Outcome<Folder> {
    create_as(global, options, |wanted| wanted)
}

/// As [`create`]; `adjust` has the last word about what is written down.
///
/// # Errors
/// As [`create`].
pub fn create_as(
    global: &Global,
    options: &Options,
    adjust: impl FnOnce(Wanted) -> Wanted,
) -> Outcome<Folder> {
    let act = || format!("run {:?}", options.image);
    let store = store::open(global)?;
    let image = super::find(&store, options)?;
    let options = &Options { digest: Some(image.digest().to_string()), ..options.clone() };
    let config = image.config();
    let process = super::process(options, &config)?;
    match options.isolation {
        Isolation::Vm => check_kernel(&store, options)?,
        Isolation::Container => {
            container::check_rights()?;
            container_spec::warn(options);
            // What makes no sense is told now, not by a start whenever that may be.
            container_spec::spec(options, store.root(), process.clone(), String::new())?;
            if !options.rm {
                kept::warn_of_overlay(store.root());
            }
        }
    }
    // Here, where it is seen how long it takes.
    let root = store.root_for_vm(&image, &Bar::new());
    drop(root.map_err(|error| images::explain(act(), &options.image, error))?);
    let health = options.health.check(config.healthcheck.as_ref());
    let labels = labels(&config.labels, &options.labels);
    // Held until the workload's description names them.
    let files =
        options.files.settle(&store, &image, if options.rm { Keep::Removed } else { Keep::Workload })?;
    if options.isolation == Isolation::Vm {
        files.check_machine()?;
    }
    let wanted = Wanted { health, labels, ..wanted(options, &process, &config.stop_signal, &files)? };
    let wanted = adjust(wanted);
    let workloads = Workloads::open(store.root()).while_trying(act)?;
    let made = workloads.create(options.name.clone(), wanted).while_trying(act);
    // Until here: from now on the workload keeps the image, and uses the volumes.
    drop((image, files));
    made
}

/// The image's, then the user's `KEY[=VALUE]`.
fn labels(image: &BTreeMap<String, String>, user: &[String]) -> BTreeMap<String, String> {
    let mut all = image.clone();
    for entry in user {
        let (key, value) = entry.split_once('=').unwrap_or((entry, ""));
        all.insert(key.to_owned(), value.to_owned());
    }
    all
}

/// Whether there is a kernel to boot.
fn check_kernel(store: &Store, options: &Options) -> Outcome<()> {
    let kernel =
        store.kernel(options.kernel.as_deref()).map_err(|error| super::explain_kernel(options, error))?;
    super::hardware::check_width(&kernel)
}

/// What the user decided about the workload, for its folder.
pub(super) fn wanted(
    options: &Options,
    process: &protocol::Process,
    stop_signal: &str,
    files: &Settled,
) -> Outcome<Wanted> {
    let inner = Options {
        process: flags::Process {
            // What the variables are here: the worker has others.
            env: process.env.clone(),
            unset: options.process.unset.clone(),
            // What the image says may change.
            workdir: Some(process.cwd.clone()),
            user: Some(process.user.clone()),
        },
        container: container::Flags {
            security_opt: Security::settle(&options.container.security_opt)?,
            ..options.container.clone()
        },
        detach: false,
        pull: super::Pull::Never,
        files: files.flags(),
        ..options.clone()
    };
    Ok(Wanted {
        isolation: match options.isolation {
            Isolation::Vm => workload::Isolation::Vm,
            Isolation::Container => workload::Isolation::Container,
        },
        image: options.image.clone(),
        command: process.argv.clone(),
        remove: options.rm,
        restart: options.restart,
        log: options.log.limits()?,
        health: None,
        labels: BTreeMap::new(),
        publish: options.network.publish.clone(),
        networks: options.network.endpoints(),
        mounts: files.mounts.clone(),
        said: None,
        stop_signal: signals::number(stop_signal).unwrap_or(15),
        tty: options.tty,
        interactive: options.interactive,
        options: serde_json::to_value(inner).while_trying(|| format!("run {:?}", options.image))?,
    })
}

/// Starts a workload, which goes on from the files `saved` if they are given. The reason why its command does not run, if so.
///
/// # Errors
/// The process that watches it does not start.
pub fn start(global: &Global, folder: &Folder, saved: Option<&[&File]>) -> Outcome<Result<(), String>> {
    if let Err(reason) = start_monitor(global, folder, saved)? {
        return Ok(Err(reason));
    }
    begin(folder)
}

/// Lets the command of a workload begin that is watched.
///
/// # Errors
/// The process that watches it is gone.
pub fn begin(folder: &Folder) -> Outcome<Result<(), String>> {
    match Client::connect(folder).and_then(|mut client| client.ask(&Request::Start, &[])) {
        Ok(Answer::NotStarted { reason, .. }) | Err(workload::Error::Refused(reason)) => Ok(Err(reason)),
        Ok(_) => Ok(Ok(())),
        Err(error) => Err(Failure::because(format!("start {}", folder.description().name), error)),
    }
}

/// Starts the process that watches a workload, where nothing begins before [`begin`]. The reason why not, if somebody else
/// watches it.
///
/// # Errors
/// The host has no more processes.
pub fn start_monitor(
    global: &Global,
    folder: &Folder,
    saved: Option<&[&File]>,
) -> Outcome<Result<(), String>> {
    let act = || "start the process that watches the workload".to_owned();
    let id = folder.description().id.as_str();
    let mut command = store::again(&store::root(global)?, global.verbose)?;
    command.args(["monitor", id]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    if let Some(files) = saved {
        let (ours, theirs) = UnixStream::pair().while_trying(act)?;
        let (mut sender, _) = control::halves(ours, "the process that watches").while_trying(act)?;
        let begin = Request::Begin { stdin: false, saved: true };
        let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        sender.send(0, &begin, &files).while_trying(act)?;
        command.arg("--saved").stdin(OwnedFd::from(theirs));
    }
    let mut child = command.spawn().while_trying(act)?;
    drop(command);
    let stdout =
        child.stdout.take().ok_or_else(|| Failure::new("start the process that watches: no pipe"))?;
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line).while_trying(act)?;
    crate::children::leave(child);
    Ok(match line.trim_end() {
        "" => Err("the process that watches it ended".to_owned()),
        LISTENING => Ok(()),
        reason => Err(reason.to_owned()),
    })
}

/// `strata monitor`: watches a workload until it has ended for good.
///
/// # Errors
/// The workload is watched already, or its folder cannot be written.
pub fn monitor(global: &Global, options: &InnerOptions) -> Outcome {
    let act = || format!("watch {}", options.id);
    // Whoever started us may end, and its terminal with it.
    let _ = rustix::process::setsid();
    let folder =
        Workloads::open(&store::root(global)?).and_then(|all| all.find(&options.id)).while_trying(act)?;
    let saved = options.saved.then(receive_saved).transpose()?;
    let mut worker = store::again(&store::root(global)?, global.verbose)?;
    worker.args(["worker", &options.id]);
    let worker = || copy(&worker);
    let mut exec = store::again(&store::root(global)?, 0)?;
    exec.arg("exec");
    if let Some(health) = &folder.description().wanted.health {
        exec.args(["--timeout", &format!("{}ms", health.timeout_ms.max(1))]);
    }
    exec.arg(&options.id);
    let check = |arguments: &[String]| {
        let mut command = copy(&exec);
        command.args(arguments);
        command
    };
    let bury = || bury(folder.description());
    let commands = Commands { worker: &worker, check: &check, bury: &bury };
    // Who waits may have been interrupted.
    let say =
        |line: &str| drop(writeln!(std::io::stdout(), "{line}").and_then(|()| std::io::stdout().flush()));
    let watched = workload::monitor::watch(&folder, &commands, saved, &mut || say(LISTENING));
    if let Err(error) = &watched {
        say(&output::visible(&error.to_string()));
    }
    watched.while_trying(act)?;
    Ok(Exit::Success)
}

/// A worker that is killed takes its container along, and not what the host keeps of it.
fn bury(description: &Description) {
    if description.wanted.isolation == workload::Isolation::Container
        && let Err(failure) = container::bury(&description.id)
    {
        tracing::warn!("remove what is left of {}: {failure}", description.name);
    }
}

/// The same program with the same arguments.
fn copy(command: &Command) -> Command {
    let mut copy = Command::new(command.get_program());
    copy.args(command.get_args());
    copy
}

/// What [`start_monitor`] sends.
fn receive_saved() -> Outcome<Saved> {
    let act = || "take over the machine at rest".to_owned();
    let socket: UnixStream = std::io::stdin().as_fd().try_clone_to_owned().while_trying(act)?.into();
    let (_, mut receiver) = control::halves(socket, "the command").while_trying(act)?;
    let message = receiver.receive::<Request>().while_trying(act)?;
    let files = message.into_iter().flat_map(|message| message.fds);
    Saved::take(files).ok_or_else(|| Failure::new(format!("{}: its files did not come", act())))
}
