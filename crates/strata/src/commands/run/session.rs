//! The host's side of a running command: streams, terminal, signals, and what its end means.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use machine::workload::command::Streams;
use machine::workload::{
    AgentSession, Control, Error, Origin, Outcome as Ended, Progress, Workload, WorkloadState, new_identity,
};
use machine::{Machine, MachineEvent};
use protocol::{Root, Start, WinSize, Writable};
use signal_hook::consts::{SIGINT, SIGUSR1, SIGUSR2};

use super::requests::{Guest, Named};
use super::worker::Link;
use super::{Prepared, initrd, volumes};
use crate::confine;
use crate::exit::Exit;
use crate::failure::{Failure, Outcome, While};
use crate::signals::{ENDING, SIGWINCH, Watch};
use crate::terminal::{self, Raw};

/// A guest that has not come up by then never will.
const BOOT_TIMEOUT: Duration = Duration::from_secs(300);
/// This many interrupts within [`IMPATIENCE`] end the machine without asking the command.
const INTERRUPTS: usize = 3;
const IMPATIENCE: Duration = Duration::from_secs(2);

/// How the command is joined to the caller.
pub struct Session<'a> {
    /// It reads our standard input.
    pub interactive: bool,
    /// It runs on a terminal.
    pub tty: bool,
    /// Where the guest comes from.
    pub origin: Origin,
    /// What its card is told, if it has one.
    pub network: Option<protocol::Network>,
    /// What a machine that starts knows beside what its image says: lines of `/etc/hosts`.
    pub hosts: String,
    /// The name that the machine is to have from now on; empty leaves it the one it has.
    pub hostname: String,
    /// Whether it gets a machine id: not that of a build, for it would be in the image.
    pub has_identity: bool,
    /// When it is killed.
    pub timeout: Option<Duration>,
    /// The monitor, of a workload in the background.
    pub link: Option<Link>,
    /// The name it has, for snapshots.
    pub named: Option<Named>,
    /// Called when everything is open, before the guest starts.
    pub enter_sandbox: &'a dyn Fn() -> Outcome<()>,
}

/// The size of our terminal.
pub fn window() -> WinSize {
    let (rows, cols) = terminal::size();
    WinSize { rows, cols }
}

/// Runs the command of `prepared` in `machine` to its end.
///
/// # Errors
/// The machine ended first, the time is over, or streams could not be carried.
pub(super) fn run(
    agent: AgentSession,
    machine: &Machine,
    prepared: &Prepared,
    session: Session<'_>,
    started: Instant,
) -> Outcome {
    let start = start(prepared, &session.hosts);
    let carried = carry(
        agent,
        machine,
        start,
        volumes::of_guest(&prepared.files.volumes),
        Some(BOOT_TIMEOUT),
        session,
        started,
    )?;
    let absent = if carried.is_running { Vec::new() } else { initrd::absent(&prepared.kernel) };
    carried.conclude(&prepared.process.argv).map_err(|failure| {
        if absent.is_empty() || failure.exit_code() != Exit::Strata {
            return failure;
        }
        failure.hint(format!(
            "kernel {} came without {}: strata kernel add FILE --modules DIR, or strata kernel fetch",
            prepared.kernel.info().id,
            absent.join(", ")
        ))
    })
}

/// Carries on the command `saved` of a machine that was restored, to its end.
///
/// # Errors
/// As [`run`].
pub fn resume(
    agent: AgentSession,
    machine: &Machine,
    saved: &WorkloadState,
    session: Session<'_>,
    started: Instant,
) -> Outcome {
    if saved.tty {
        agent.control().resize(window());
    }
    let process = protocol::Process {
        exec: saved.exec,
        argv: saved.command.clone(),
        tty: saved.tty.then(window),
        stdin: saved.stdin,
        ..protocol::Process::default()
    };
    // It was started long ago.
    let start = Start { root: Root::Initramfs, hostname: String::new(), hosts: String::new(), process };
    carry(agent, machine, start, Vec::new(), None, session, started)?.conclude(&saved.command)
}

/// What came of a command.
struct Carried {
    ended: Result<Ended, Error>,
    /// It was started here, and did run.
    is_running: bool,
    last_signal: i32,
}

/// Joins the command to the caller until it ends.
fn carry(
    agent: AgentSession,
    machine: &Machine,
    start: Start,
    volumes: Vec<protocol::Volume>,
    boot_timeout: Option<Duration>,
    mut session: Session<'_>,
    started: Instant,
) -> Outcome<Carried> {
    let control = agent.control();
    let last_signal = Arc::new(AtomicI32::new(0));
    let _signals = watch_signals(agent.control(), last_signal.clone(), session.tty)?;
    // On a terminal every key is the command's, Ctrl-C too. Without -i no key is: ours stays as it is, and
    // Ctrl-C is a signal, which the foreground processes of the command's terminal get.
    let keys = session.tty && session.interactive && session.link.is_none() && terminal::stdin_is_terminal();
    let raw = keys.then(Raw::enter).transpose()?;
    let mut is_running = false;
    let workload = Workload {
        start,
        network: session.network.take(),
        volumes,
        streams: Streams {
            stdin: match &mut session.link {
                Some(link) => link.stdin.take(),
                None if session.interactive => Some(duplicate(&io::stdin(), "standard input")?),
                None => None,
            },
            stdout: duplicate(&io::stdout(), "standard output")?,
            stderr: duplicate(&io::stderr(), "standard error")?,
        },
        origin: session.origin,
        identity: session
            .has_identity
            .then(|| new_identity(session.hostname).while_trying(|| "make a machine id".to_owned()))
            .transpose()?,
        boot_timeout,
        timeout: session.timeout,
        progress: &mut |progress| {
            if matches!(progress, Progress::Started { .. } | Progress::Resumed) {
                is_running = true;
                session.link.iter().for_each(Link::started);
            }
            report(progress, started);
        },
    };
    session.named.map_or(Ok(()), |named| named.serve(agent.control()))?;
    confine::watch_memory()?;
    (session.enter_sandbox)()?;
    let ended = match &session.link {
        Some(link) => {
            link.serve(&Guest::new(&link.saver, machine, &control), || agent.run(machine, workload))
        }
        None => agent.run(machine, workload),
    };
    drop(raw);
    Ok(Carried { ended, is_running, last_signal: last_signal.load(Ordering::Relaxed) })
}

fn start(prepared: &Prepared, hosts: &str) -> Start {
    Start {
        root: Root::Device {
            device: "/dev/vda".to_owned(),
            fs_type: prepared.root_type.to_owned(),
            writable: Writable::Overlay { size_bytes: 0 },
        },
        hostname: prepared.hostname.clone(),
        hosts: hosts.to_owned(),
        process: prepared.process.clone(),
    }
}

fn duplicate(stream: &impl AsFd, name: &str) -> Outcome<OwnedFd> {
    stream.as_fd().try_clone_to_owned().while_trying(|| format!("duplicate {name}"))
}

/// Hands signals on to the command; before it runs they end the start.
fn watch_signals(control: Control, last: Arc<AtomicI32>, tty: bool) -> Outcome<Watch> {
    let mut signals = ENDING.to_vec();
    signals.extend([SIGUSR1, SIGUSR2]);
    if tty {
        signals.push(SIGWINCH);
    }
    let mut interrupts: Vec<Instant> = Vec::new();
    Watch::start(&signals, move |signal| {
        if signal == SIGWINCH {
            control.resize(window());
            return;
        }
        last.store(signal, Ordering::Relaxed);
        control.signal(u8::try_from(signal).unwrap_or(u8::MAX));
        if signal == SIGINT {
            interrupts.retain(|at| at.elapsed() < IMPATIENCE);
            interrupts.push(Instant::now());
            if interrupts.len() >= INTERRUPTS {
                control.cancel();
            }
        }
    })
}

fn report(progress: Progress, started: Instant) {
    let ms = started.elapsed().as_millis();
    match progress {
        Progress::Ready { kernel } => tracing::info!("guest is up after {ms} ms: kernel {kernel}"),
        Progress::Started { pid } => tracing::info!("command runs after {ms} ms: pid {pid} in the guest"),
        Progress::Resumed => tracing::info!("command goes on after {ms} ms"),
        Progress::ModuleFailed(failure) => tracing::warn!("guest: kernel module {failure}"),
        Progress::Log(log) if log.level == protocol::Level::Error => tracing::warn!("guest: {log}"),
        Progress::Log(log) => tracing::info!("guest: {log}"),
    }
}

impl Carried {
    /// What the end of the command means to whoever started us.
    fn conclude(self, argv: &[String]) -> Outcome {
        let Self { ended, last_signal, .. } = self;
        let command = argv.first().map(String::as_str).unwrap_or_default();
        let error = match ended {
            Ok(Ended::Exited(exit)) => return Ok(Exit::Workload(exit.shell_code())),
            Ok(Ended::Saved) => return Ok(Exit::Success),
            Ok(Ended::NotStarted(failure)) => {
                let exit = Exit::Workload(failure.code);
                let text = match failure.act.as_str() {
                    "run" => failure.to_string(),
                    _ => format!("run {command:?}: {failure}"),
                };
                return Err(Failure::new(text).exit(exit));
            }
            Err(Error::Timeout { seconds }) => {
                let text = format!("run {command:?}: killed after {seconds} s, as --timeout says");
                return Err(Failure::new(text).exit(Exit::Timeout));
            }
            Err(Error::Cancelled) => {
                let exit =
                    u8::try_from(last_signal).ok().filter(|n| *n > 0).map_or(Exit::Strata, Exit::Signal);
                return Err(Failure::new(format!("run {command:?}: ended by a signal")).exit(exit));
            }
            Err(error) => error,
        };
        let hint = match &error {
            Error::GuestEnded { event: MachineEvent::GuestPanic { .. }, .. } => {
                Some("-vv shows the whole console; --memory gives the guest more room")
            }
            Error::GuestEnded { .. } => Some("-vv shows the whole console"),
            Error::BootTimeout { .. } => {
                Some("-vv shows the whole console; another kernel: strata run --kernel ID")
            }
            _ => None,
        };
        let failure = Failure::because(format!("run {command:?}"), error);
        Err(match hint {
            Some(hint) => failure.hint(hint),
            None => failure,
        })
    }
}
