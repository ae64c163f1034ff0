//! `strata exec`: another command beside that of a workload in the background.
//!
//! In a machine the agent starts it, asked by the workload's worker. In a container this process does, as a child of its own.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Args;
use container::{ExecOptions, Signals};
use signal_hook::consts::SIGWINCH;
use workload::control::{Answer, Client, Exec, Request};
use workload::{Folder, Isolation, Status};

use super::{container as containers, environment, flags, joined, session};
use crate::cli::Global;
use crate::commands::oci::enter;
use crate::commands::workloads;
use crate::exit::{self, Exit};
use crate::failure::{Failure, Outcome, While};
use crate::signals::{ENDING, Watch};
use crate::size::parse_duration;
use crate::terminal::{self, Raw};

/// Run another command in a workload in the background
///
/// It sees the same files, and has the variables, the user and the working directory of the workload's own command unless told
/// otherwise. It ends with the workload.
#[derive(Args)]
#[command(after_long_help = exit::OF_RUN)]
pub struct Options {
    /// Hand on standard input
    #[arg(short, long, conflicts_with = "detach")]
    interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    tty: bool,
    /// Do not wait for its end; what it writes is lost
    #[arg(short, long)]
    detach: bool,
    /// Kill the command, and all that it began, after this time, e.g. 90s or 5m
    #[arg(long, value_name = "TIME", value_parser = parse_duration, conflicts_with = "detach")]
    timeout: Option<Duration>,
    /// Give it all capabilities, which in a microVM root has anyway
    #[arg(long)]
    privileged: bool,
    /// Its id, which those who listen to events know already: for servers.
    #[arg(long, hide = true, value_name = "ID")]
    announced: Option<String>,
    #[command(flatten)]
    process: flags::Process,
    /// Name or id of the workload
    workload: String,
    /// The command and its arguments
    #[arg(trailing_var_arg = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Runs the command; its exit code is ours.
///
/// # Errors
/// The workload does not run, or the command cannot be started.
pub fn run(global: &Global, options: &Options) -> Outcome {
    let folder = workloads::find(global, &options.workload)?;
    let name = &folder.description().name;
    let status = workloads::state(&folder)?.status;
    if status != Status::Running {
        let failure = Failure::new(format!("exec in {name}: it is {status}"));
        return Err(match status {
            Status::Paused => failure.hint(format!("strata unpause {name}")),
            _ => failure,
        });
    }
    let isolation = folder.description().wanted.isolation;
    if isolation == Isolation::Container {
        // Before anything is told: it starts this program anew.
        containers::protect()?;
        containers::check_rights()?;
    }
    let told = Told::begin(&folder, options);
    let outcome = match isolation {
        Isolation::Vm => in_machine(&folder, options),
        Isolation::Container => in_container(&folder, options),
    };
    // The end of one that nobody waits for is not known.
    if !options.detach || outcome.is_err() {
        told.end(&outcome);
    }
    outcome
}

/// What those hear of it who listen to events.
struct Told<'a> {
    folder: &'a Folder,
    id: String,
}

impl<'a> Told<'a> {
    fn begin(folder: &'a Folder, options: &Options) -> Told<'a> {
        let new = || image::Digest::of(format!("exec {}", new_key()).as_bytes()).hex();
        let told = Told { folder, id: options.announced.clone().unwrap_or_else(new) };
        let command = options.command.join(" ");
        let words: &[&str] = if options.announced.is_some() { &["start"] } else { &["create", "start"] };
        for word in words {
            folder.tell(&format!("exec_{word}: {command}"), &[("execID", told.id.clone())]);
        }
        told
    }

    fn end(&self, outcome: &Outcome) {
        let code = match outcome {
            Ok(exit) => exit.code(),
            Err(failure) => failure.exit_code().code(),
        };
        self.folder.tell("exec_die", &[("execID", self.id.clone()), ("exitCode", code.to_string())]);
    }
}

fn in_container(folder: &Folder, options: &Options) -> Outcome {
    let id = containers::id_of(folder);
    let runtime = containers::runtime();
    let mut process = runtime.process_of(&id).map_err(containers::explain)?;
    process.args.clone_from(&options.command);
    process.env = environment(&process.env, &options.process.env, |name| std::env::var(name).ok());
    process.terminal = options.tty;
    if options.privileged {
        let all = container::capabilities::NAMES.map(str::to_owned);
        process.capabilities = Some(container::template::capabilities(&all));
    }
    if let Some(folder) = &options.process.workdir {
        process.cwd.clone_from(folder);
    }
    let user = options.process.user.clone().or_else(|| defaults(folder).ok()?.user);
    let exec = ExecOptions {
        id,
        process,
        user,
        groups: joined::options(folder)?.container.tuning.groups().to_vec(),
        console_socket: None,
        pid_file: None,
        preserve_fds: 0,
        ignore_paused: false,
    };
    let act = || "close standard streams".to_owned();
    let null = File::options().read(true).write(true).open("/dev/null").while_trying(act)?;
    if !options.interactive {
        rustix::stdio::dup2_stdin(&null).while_trying(act)?;
    }
    if options.detach {
        rustix::stdio::dup2_stdout(&null).while_trying(act)?;
        rustix::stdio::dup2_stderr(&null).while_trying(act)?;
        runtime.exec(&exec).map_err(containers::explain)?;
        return Ok(Exit::Success);
    }
    let signals = Signals::block().map_err(containers::explain)?;
    let running = runtime.exec(&exec).map_err(containers::explain)?;
    let tree = running.tree().map_err(containers::explain)?;
    let late = Late::watch(options, move || {
        if let Err(error) = tree.kill() {
            tracing::warn!("{}", error.chain());
        }
    })?;
    let exit = enter::attend(&running, &signals, options.interactive);
    late.or(exit)
}

/// What `--timeout` says, and whether it has come to that.
struct Late {
    options: Option<(String, Duration)>,
    is: Arc<AtomicBool>,
}

impl Late {
    /// Does `kill` when the time is over. The thread ends with this process.
    fn watch(options: &Options, kill: impl FnOnce() + Send + 'static) -> Outcome<Late> {
        let is = Arc::new(AtomicBool::new(false));
        if let Some(timeout) = options.timeout {
            let told = is.clone();
            let work = move || {
                std::thread::sleep(timeout);
                told.store(true, Ordering::Release);
                kill();
            };
            let thread = std::thread::Builder::new().name("timeout".into()).spawn(work);
            thread.while_trying(|| "watch the time".to_owned())?;
        }
        Ok(Late { options: options.timeout.map(|time| (options.workload.clone(), time)), is })
    }

    /// What to end with: `exit`, unless the command was killed.
    fn or(self, exit: Outcome) -> Outcome {
        match self.options {
            Some((workload, timeout)) if self.is.load(Ordering::Acquire) => {
                let time = timeout.as_secs_f64();
                let text = format!("exec in {workload}: killed after {time} s, as --timeout says");
                Err(Failure::new(text).exit(Exit::Timeout))
            }
            _ => exit,
        }
    }
}

/// What the workload's own command was started with.
fn defaults(folder: &Folder) -> Outcome<flags::Process> {
    let options = folder.description().wanted.options.clone();
    serde_json::from_value(options)
        .while_trying(|| format!("read how {} was started", folder.description().name))
}

fn in_machine(folder: &Folder, options: &Options) -> Outcome {
    let defaults = defaults(folder)?;
    let key = new_key();
    let size = session::window();
    let request = Request::Exec(Exec {
        key,
        command: options.command.clone(),
        env: environment(&defaults.env, &options.process.env, |name| std::env::var(name).ok()),
        workdir: options.process.workdir.clone().or(defaults.workdir).unwrap_or_default(),
        user: options.process.user.clone().or(defaults.user).unwrap_or_default(),
        terminal: options.tty.then_some((size.rows, size.cols)),
        stdin: options.interactive,
        detach: options.detach,
    });
    let act = || format!("exec in {}", folder.description().name);
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let null = File::options().write(true).open("/dev/null").while_trying(act)?;
    let mut fds =
        if options.detach { vec![null.as_fd(), null.as_fd()] } else { vec![stdout.as_fd(), stderr.as_fd()] };
    if options.interactive {
        fds.push(stdin.as_fd());
    }
    let mut client = Client::connect(folder).while_trying(act)?;
    let _signals = watch_signals(folder, key, options.tty)?;
    let keys = options.tty && options.interactive && terminal::stdin_is_terminal();
    let raw = keys.then(Raw::enter).transpose()?;
    let killed = folder.clone();
    let late = Late::watch(options, move || {
        loop {
            // It may not have begun yet; when it has ended, so does this process.
            let kill = Request::ExecSignal { key, number: 9 };
            let _ = Client::connect(&killed).and_then(|mut client| client.ask(&kill, &[]));
            std::thread::sleep(Duration::from_secs(1));
        }
    })?;
    let answer = client.ask(&request, &fds);
    drop(raw);
    late.or(told(answer, act))
}

/// What to end with.
fn told(answer: workload::Result<Answer>, act: impl Fn() -> String) -> Outcome {
    match answer.while_trying(&act)? {
        Answer::Done => Ok(Exit::Success),
        Answer::Exited { code } => Ok(Exit::Workload(code)),
        Answer::NotStarted { code, reason } => Err(Failure::new(reason).exit(Exit::Workload(code))),
        other => Err(Failure::new(format!("{}: {other:?}", act()))),
    }
}

/// A number that no other client of a workload has.
pub fn new_key() -> u64 {
    u64::from(std::process::id()) << 32 | u64::from(workload::now_ms() as u32)
}

/// Hands signals on to the command, and changes of the terminal's size.
fn watch_signals(folder: &Folder, key: u64, tty: bool) -> Outcome<Watch> {
    let mut signals = ENDING.to_vec();
    if tty {
        signals.push(SIGWINCH);
    }
    let folder = folder.clone();
    Watch::start(&signals, move |signal| {
        let request = if signal == SIGWINCH {
            let size = session::window();
            Request::ExecResize { key, rows: size.rows, columns: size.cols }
        } else {
            Request::ExecSignal { key, number: u8::try_from(signal).unwrap_or_default() }
        };
        // The first connection waits for the end. A command that has ended hears nothing.
        let _ = Client::connect(&folder).and_then(|mut client| client.ask(&request, &[]));
    })
}
