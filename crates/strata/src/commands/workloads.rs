//! What is done with workloads in the background: a function for each verb.

use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use workload::control::{Answer, Client, Request};
use workload::log::{self, Part, rfc3339};
use workload::{Description, Folder, Isolation, Running, State, Status, Workloads, now_ms};

use super::listing::Listing;
use super::run::container;
use crate::cli::Global;
use crate::exit::Exit;
use crate::failure::{Failure, Outcome, While, each};
use crate::output::{self, Table};
use crate::{signals, store};

/// List workloads in the background
#[derive(Args)]
pub struct PsOptions {
    /// Those that have ended too
    #[arg(short, long)]
    all: bool,
    #[command(flatten)]
    listing: Listing,
}

/// Show what a workload wrote
#[derive(Args)]
pub struct LogsOptions {
    /// Go on until it ends
    #[arg(short, long)]
    follow: bool,
    /// Show the last lines only
    #[arg(short = 'n', long, value_name = "LINES")]
    tail: Option<usize>,
    /// Show when each line was written
    #[arg(short, long)]
    timestamps: bool,
    /// Name or id of the workload
    workload: String,
}

/// Join the terminal to a workload until it ends; its exit code is ours
///
/// What it writes from now on is shown, and with a workload that was started with -i what is typed is handed on.
#[derive(Args)]
pub struct AttachOptions {
    /// Name or id of the workload
    workload: String,
}

/// Ask workloads to end, and end them when they do not
#[derive(Args)]
pub struct StopOptions {
    /// Seconds until they are ended without asking
    #[arg(short, long, default_value_t = 10, value_name = "SECONDS")]
    time: u64,
    /// Names or ids of workloads
    #[arg(required = true)]
    workloads: Vec<String>,
}

/// End workloads at once, or send their commands a signal
#[derive(Args)]
pub struct KillOptions {
    /// Signal for the command; without it the whole machine ends
    #[arg(short, long, value_name = "SIGNAL")]
    signal: Option<String>,
    /// Names or ids of workloads
    #[arg(required = true)]
    workloads: Vec<String>,
}

/// Wait until workloads have ended, and write their exit codes
#[derive(Args)]
pub struct WaitOptions {
    /// Names or ids of workloads
    #[arg(required = true)]
    workloads: Vec<String>,
}

/// Let workloads stand still
#[derive(Args)]
pub struct PauseOptions {
    /// Names or ids of workloads
    #[arg(required = true)]
    workloads: Vec<String>,
}

/// Remove workloads that have ended, and what they wrote
#[derive(Args)]
pub struct RmOptions {
    /// End those that run
    #[arg(short, long)]
    force: bool,
    /// And their volumes that nobody gave a name
    #[arg(long)]
    volumes: bool,
    /// Names or ids of workloads
    #[arg(required = true)]
    workloads: Vec<String>,
}

/// Give a workload another name
#[derive(Args)]
pub struct RenameOptions {
    /// Name or id of the workload
    workload: String,
    /// Its new name
    #[arg(value_parser = workload::parse_name)]
    name: String,
}

/// Show everything about a workload as JSON
#[derive(Args)]
pub struct InspectOptions {
    /// Name or id of the workload
    workload: String,
}

pub(super) fn all(global: &Global) -> Outcome<Workloads> {
    Workloads::open(&store::root(global)?).while_trying(|| "open the workloads".to_owned())
}

/// The workload of this name or id.
///
/// # Errors
/// There is none.
pub fn find(global: &Global, name: &str) -> Outcome<Folder> {
    all(global)?.find(name).map_err(|error| {
        let missing = error.is_not_found();
        let failure = Failure::because(format!("find {name:?}"), error);
        if missing { failure.hint("strata ps -a shows what there is") } else { failure }
    })
}

/// How it is.
///
/// # Errors
/// Its state cannot be read.
pub fn state(folder: &Folder) -> Outcome<State> {
    folder.state().while_trying(|| format!("read the state of {}", folder.description().name))
}

/// Asks the one who watches a workload.
fn ask(folder: &Folder, act: &str, request: &Request) -> Outcome<Answer> {
    let asked = Client::connect(folder).and_then(|mut client| client.ask(request, &[]));
    asked.while_trying(|| format!("{act} {}", folder.description().name))
}

/// `strata ps`
///
/// # Errors
/// The workloads cannot be read.
pub fn ps(global: &Global, options: &PsOptions) -> Outcome {
    container::bury_orphans();
    let mut found = Vec::new();
    for folder in all(global)?.list().while_trying(|| "list the workloads".to_owned())? {
        // One that is being removed just now is gone.
        let Ok(state) = folder.state() else { continue };
        if options.all || state.status.is_active() {
            found.push((folder, state));
        }
    }
    if options.listing.json {
        let one =
            |(folder, state): &(Folder, State)| json!({ "workload": folder.description(), "state": state });
        output::json(&json!(found.iter().map(one).collect::<Vec<_>>()))?;
    } else if options.listing.quiet {
        let ids: String = found.iter().map(|(folder, _)| format!("{}\n", folder.description().id)).collect();
        output::write(&ids)?;
    } else {
        let mut table = Table::new(&["ID", "NAME", "IMAGE", "COMMAND", "STATUS", "CREATED"]);
        for (folder, state) in &found {
            let what = folder.description();
            let command: String = what.wanted.command.join(" ").chars().take(30).collect();
            table.row(vec![
                what.id[..12].to_owned(),
                what.name.clone(),
                what.wanted.image.clone(),
                output::visible(&command),
                status(state),
                rfc3339(what.created_ms)[..19].to_owned() + "Z",
            ]);
        }
        table.print()?;
    }
    Ok(Exit::Success)
}

/// What it does, since when, and how it ended.
fn status(state: &State) -> String {
    let since = |from: Option<u64>| {
        let seconds = now_ms().saturating_sub(from.unwrap_or_default()) / 1000;
        match seconds {
            0..120 => format!("{seconds} s"),
            120..7200 => format!("{} min", seconds / 60),
            7200..172_800 => format!("{} h", seconds / 3600),
            _ => format!("{} days", seconds / 86_400),
        }
    };
    match (state.status, state.exit_code) {
        (Status::Running | Status::Paused, _) => {
            let health = state.health.as_ref().map(|health| format!(" ({})", health.status));
            format!("{} for {}{}", state.status, since(state.started_ms), health.unwrap_or_default())
        }
        (Status::Exited, Some(code)) => format!("exited ({code}) {} ago", since(state.finished_ms)),
        (status, _) => status.to_string(),
    }
}

/// `strata logs`
///
/// # Errors
/// There is no such workload, or its log cannot be read.
pub fn logs(global: &Global, options: &LogsOptions) -> Outcome {
    let folder = find(global, &options.workload)?;
    let act = || format!("read the log of {}", folder.description().name);
    if folder.description().wanted.log.files == 0 {
        return Err(Failure::new(format!("{}: nothing of what it writes is kept", act())));
    }
    let mut shown = Ok(true);
    let show = |entry| {
        shown = show(&entry, options.timestamps);
        matches!(shown, Ok(true))
    };
    let part = Part { tail: options.tail, follow: options.follow };
    log::read(&folder, part, Some, show, || !output::is_left(std::io::stdout())).while_trying(act)?;
    shown.map(|_| Exit::Success)
}

/// Shows a line, and says whether anybody still reads.
fn show(entry: &workload::log::Entry, timestamps: bool) -> Outcome<bool> {
    let time = if timestamps { format!("{} ", entry.time) } else { String::new() };
    let text = format!("{time}{}", entry.log);
    match entry.stream.as_ref() {
        "stderr" => output::tell(&mut std::io::stderr(), "error", &text),
        _ => output::tell(&mut std::io::stdout().lock(), "output", &text),
    }
}

/// `strata attach`
///
/// # Errors
/// It does not run.
pub fn attach(global: &Global, options: &AttachOptions) -> Outcome {
    attach_to(&find(global, &options.workload)?, false)
}

/// Joins our standard streams to a workload until it ends; `start` lets it begin then.
///
/// # Errors
/// It does not run.
pub fn attach_to(folder: &Folder, start: bool) -> Outcome {
    let act = || format!("attach to {}", folder.description().name);
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let interactive = folder.description().wanted.interactive;
    let keys = interactive && folder.description().wanted.tty && stdin.is_terminal();
    let raw = keys.then(crate::terminal::Raw::enter).transpose()?;
    let mut fds = vec![stdout.as_fd(), stderr.as_fd()];
    if interactive {
        fds.push(stdin.as_fd());
    }
    let mut client = Client::connect(folder).while_trying(act)?;
    client.ask(&Request::Attach { stdin: interactive, once: false }, &fds).while_trying(act)?;
    let mut answer = if start { client.ask(&Request::Start, &[]) } else { Ok(Answer::Done) };
    if matches!(answer, Ok(Answer::Done)) {
        answer = client.ask(&Request::Wait, &[]);
    }
    drop(raw);
    match answer.while_trying(act)? {
        Answer::Exited { code } => Ok(Exit::Workload(code)),
        Answer::NotStarted { code, reason } => Err(Failure::new(reason).exit(Exit::Workload(code))),
        other => Err(Failure::new(format!("attach to {}: {other:?}", folder.description().name))),
    }
}

/// `strata stop`
///
/// # Errors
/// There is no such workload. One that has ended is none.
pub fn stop(global: &Global, options: &StopOptions) -> Outcome {
    each(&options.workloads, |name| {
        end(&find(global, name)?, Duration::from_secs(options.time))?;
        output::write(&format!("{name}\n"))
    })
}

/// Asks a workload to end, and ends it when it has not after `patience`. One that does not run is left alone.
///
/// # Errors
/// Nobody watches it any more.
pub fn end(folder: &Folder, patience: Duration) -> Outcome<()> {
    if state(folder)?.status.is_active() {
        let timeout_ms = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
        gone(folder, ask(folder, "stop", &Request::Stop { timeout_ms }).map(drop))?;
    }
    Ok(())
}

/// What came of asking for the end. One in the foreground may be gone before it has answered, and soon shows it.
fn gone(folder: &Folder, asked: Outcome<()>) -> Outcome<()> {
    const TRIES: u32 = 10;
    let is_over = || !folder.state().is_ok_and(|state| state.status.is_active());
    let waited = || (0..TRIES).any(|_| is_over() || (std::thread::sleep(Duration::from_millis(20)), false).1);
    asked.or_else(|failure| if waited() { Ok(()) } else { Err(failure) })
}

/// `strata kill`
///
/// # Errors
/// It does not run.
pub fn kill(global: &Global, options: &KillOptions) -> Outcome {
    let request = match options.signal.as_deref() {
        None => Request::Kill,
        Some(text) => match signals::number(text) {
            // Nothing in the machine could refuse it; outside it, nothing is left of it.
            Some(9) => Request::Kill,
            Some(number) => Request::Signal { number },
            None => return Err(Failure::new(format!("{text:?} is no signal")).exit(Exit::Usage)),
        },
    };
    each(&options.workloads, |name| {
        let folder = find(global, name)?;
        let ran = state(&folder)?.status.is_active();
        let asked = ask(&folder, "kill", &request).map(drop);
        if ran && request == Request::Kill {
            gone(&folder, asked)?
        } else {
            asked?
        }
        output::write(&format!("{name}\n"))
    })
}

/// `strata wait`
///
/// # Errors
/// There is no such workload, or nobody knows how it ended.
pub fn wait(global: &Global, options: &WaitOptions) -> Outcome {
    each(&options.workloads, |name| {
        let folder = find(global, name)?;
        let asked = Client::connect(&folder).and_then(|mut client| client.ask(&Request::Wait, &[]));
        let code = match asked {
            Ok(Answer::Exited { code }) => code,
            // It has ended meanwhile, or before.
            _ => ended(&folder)?,
        };
        output::write(&format!("{code}\n"))
    })
}

fn ended(folder: &Folder) -> Outcome<u8> {
    let state = state(folder)?;
    state.exit_code.filter(|_| state.status == Status::Exited).ok_or_else(|| {
        Failure::new(format!("wait for {}: it is {}", folder.description().name, state.status))
    })
}

/// `strata pause`
///
/// # Errors
/// It does not run.
pub fn pause(global: &Global, options: &PauseOptions) -> Outcome {
    each(&options.workloads, |name| ask(&find(global, name)?, "pause", &Request::Pause).map(drop))
}

/// `strata unpause`
///
/// # Errors
/// It does not run.
pub fn unpause(global: &Global, options: &PauseOptions) -> Outcome {
    each(&options.workloads, |name| ask(&find(global, name)?, "unpause", &Request::Resume).map(drop))
}

/// `strata rm`
///
/// # Errors
/// It runs, or its folder cannot be removed.
pub fn rm(global: &Global, options: &RmOptions) -> Outcome {
    container::bury_orphans();
    each(&options.workloads, |name| {
        let folder = find(global, name)?;
        let all = all(global)?;
        remove(&all, &folder, if options.force { Running::Killed } else { Running::Stays })?;
        if options.volumes {
            let removed =
                all.volumes().and_then(|v| v.remove_anonymous(&folder.description().wanted.volumes()));
            removed.while_trying(|| format!("remove the volumes of {name:?}"))?;
        }
        output::write(&format!("{name}\n"))
    })
}

/// Removes one, and what is left of its container if that was killed.
///
/// # Errors
/// It runs and is not to be killed, or its files cannot be removed.
pub fn remove(all: &Workloads, folder: &Folder, running: Running) -> Outcome<()> {
    let Description { id, name, wanted, .. } = folder.description();
    let act = || format!("remove {name:?}");
    let hint = "strata stop it, or strata rm --force";
    folder.end(running).map_err(|error| Failure::because(act(), error).hint(hint))?;
    if wanted.isolation == Isolation::Container && folder.state().is_ok_and(|s| !s.status.is_active()) {
        container::bury(id)?;
    }
    match all.remove(folder, running) {
        // Its monitor did: it was to be removed at its end.
        Err(error) if error.is_not_found() && wanted.remove => Ok(()),
        removed => removed.map_err(|error| Failure::because(act(), error).hint(hint)),
    }
}

/// `strata rename`
///
/// # Errors
/// There is no such workload, or the name is another's.
pub fn rename(global: &Global, options: &RenameOptions) -> Outcome {
    let folder = find(global, &options.workload)?;
    let renamed = all(global)?.rename(&folder, options.name.clone());
    renamed.while_trying(|| format!("rename {:?}", options.workload))?;
    Ok(Exit::Success)
}

/// `strata inspect`
///
/// # Errors
/// There is no such workload.
pub fn inspect(global: &Global, options: &InspectOptions) -> Outcome {
    let folder = find(global, &options.workload)?;
    output::json(&json!({
        "workload": folder.description(),
        "state": state(&folder)?,
        "folder": folder.path(),
    }))?;
    Ok(Exit::Success)
}
