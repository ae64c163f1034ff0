//! `strata fork`: copies of a running workload, which share its memory.
//!
//! The machine is saved once, to files in memory that nothing can change any more. Each copy is a workload of its own that
//! restores them: it maps the memory privately, so what no copy has written is there once for all of them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use clap::Args;
use machine::snapshot::Frozen;
use serde_json::{Value, json};
use workload::{Description, Folder, Running, Workloads};

use super::run::detach;
use super::run::network::{self, Flags};
use super::snapshot;
use super::workloads::{all, find};
use crate::cli::Global;
use crate::exit::Exit;
use crate::failure::{Failure, Outcome, While};
use crate::output;

/// Make running copies of a workload
///
/// The workload goes on. A copy goes on from the same moment, in the background, as a workload with a name, a log and an exit
/// code of its own; it shares the memory that neither has written since. Host name, machine id and random numbers are its own.
/// The names of the copies go to standard output.
#[derive(Args)]
pub struct Options {
    /// How many copies
    #[arg(short, long, default_value_t = 1, value_name = "K", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    count: u32,
    /// Let a port of this host lead to one of the copy's, e.g. 8081:80; those of the workload are not the copies'
    #[arg(short, long, value_name = "[HOSTIP:]HOSTPORT:PORT[/tcp|udp]", value_parser = network::check)]
    publish: Vec<String>,
    /// Write names and ids as JSON
    #[arg(long)]
    json: bool,
    /// Name or id of the workload
    #[arg(value_name = "NAME")]
    workload: String,
}

/// Makes them.
///
/// # Errors
/// It does not run, it can write to a disk, or a copy does not start; copies that run already go on then.
pub fn run(global: &Global, options: &Options) -> Outcome {
    let act = || format!("fork {:?}", options.workload);
    let parent = find(global, &options.workload)?;
    let like = description_of_copies(&parent, options, &act)?;
    let began = Instant::now();
    let (frozen, paused_ms) = snapshot::freeze(&parent)?;
    check_disks(&frozen, &act)?;
    tracing::info!("saved in {} ms; the machine stood still for {paused_ms} ms", began.elapsed().as_millis());
    let all = all(global)?;
    let made = all.create_copies(&like, options.count).while_trying(act)?;
    let copies = start_all(global, &all, made, &frozen);
    let mut running: Vec<&Description> = copies.iter().flatten().map(Folder::description).collect();
    // By number.
    running.sort_by_key(|copy| (copy.name.len(), &copy.name));
    if options.json {
        let one = |copy: &&Description| json!({ "name": copy.name, "id": copy.id });
        output::json(&json!(running.iter().map(one).collect::<Vec<_>>()))?;
    } else {
        let names: String = running.iter().map(|copy| format!("{}\n", copy.name)).collect();
        output::write(&names)?;
    }
    let failed = copies.into_iter().find_map(Result::err);
    failed.map_or(Ok(Exit::Success), |failure| Err(Failure::new(format!("{}: {failure}", act()))))
}

/// That of `parent`, but for what two cannot both have: addresses and ports of the host.
fn description_of_copies(
    parent: &Folder,
    options: &Options,
    act: &impl Fn() -> String,
) -> Outcome<Description> {
    if options.count > 1 && !options.publish.is_empty() {
        let text = "--publish: a port leads to one copy; fork them one by one";
        return Err(Failure::new(text).exit(Exit::Usage));
    }
    let mut copy = parent.description().clone();
    // Of one that was restored itself.
    let card = copy.wanted.options.get("card").and_then(Value::as_bool);
    match copy.wanted.options.get_mut("network") {
        None => network::check_card(false, &options.publish)?,
        Some(said) => {
            let flags: Flags = serde_json::from_value(said.take()).while_trying(act)?;
            network::check_card(card.map_or_else(|| flags.needs_card(), Ok)?, &options.publish)?;
            let flags = flags.of_a_copy(options.publish.clone());
            copy.wanted.networks = flags.endpoints();
            *said = serde_json::to_value(flags).while_trying(act)?;
        }
    }
    copy.wanted.publish.clone_from(&options.publish);
    Ok(copy)
}

/// Two machines that write to one disk would destroy what is on it.
fn check_disks(frozen: &Frozen, act: &impl Fn() -> String) -> Outcome<()> {
    let snapshot = frozen.copy().while_trying(act)?;
    match snapshot.config.disks.iter().find(|disk| !disk.read_only) {
        None => Ok(()),
        Some(disk) => {
            let failure =
                Failure::new(format!("{}: it can write to its disk {}", act(), disk.path.display()));
            Err(failure
                .hint("its copies would write to the same disk; strata snapshot --stop moves it instead"))
        }
    }
}

/// Starts copies, some at the same time. After one that fails no more are begun.
fn start_all(global: &Global, all: &Workloads, made: Vec<Folder>, frozen: &Frozen) -> Vec<Outcome<Folder>> {
    // Each waits now and then for a process it has started.
    let threads = 2 * std::thread::available_parallelism().map_or(1, usize::from);
    let (made, done, failed) = (Mutex::new(made.into_iter()), Mutex::new(Vec::new()), AtomicBool::new(false));
    let next = || made.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = || {
        while let Some(copy) = next() {
            if failed.load(Ordering::Relaxed) {
                let _ = all.remove(&copy, Running::Stays);
                continue;
            }
            let started = start(global, all, copy, frozen);
            failed.fetch_or(started.is_err(), Ordering::Relaxed);
            done.lock().unwrap_or_else(PoisonError::into_inner).push(started);
        }
    };
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    done.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn start(global: &Global, all: &Workloads, copy: Folder, frozen: &Frozen) -> Outcome<Folder> {
    let name = &copy.description().name;
    let files: Vec<_> = frozen.files().collect();
    let started = detach::start(global, &copy, Some(&files));
    let reason = match started {
        Ok(Ok(())) => return Ok(copy),
        Ok(Err(reason)) => reason,
        Err(failure) => failure.to_string(),
    };
    // Nothing ever ran in it.
    let _ = all.remove(&copy, Running::Stays);
    Err(Failure::new(format!("start {name}: {reason}")))
}
