//! `strata stats` and `strata top`: what workloads take of the host, and which processes they are.

mod traffic;

use std::io::IsTerminal;
use std::time::Duration;

use api::Process;
use clap::Args;
use serde_json::json;
use workload::control::{Answer, Client, Request};
use workload::{Folder, Isolation, Status};

use super::files;
use super::run::container;
use super::workloads::{all, find, state};
use crate::cli::Global;
use crate::exit::Exit;
use crate::failure::{Failure, Outcome, While};
use crate::output::{self, Table};

pub use traffic::traffic;

/// The kernel tells times in hundredths of a second, whatever its clock (USER_HZ).
const MS_PER_TICK: u64 = 10;
/// How often figures are shown anew.
const REFRESH: Duration = Duration::from_secs(1);
/// What makes a terminal forget what it shows.
const CLEAR: &str = "\x1b[2J\x1b[H";

/// Show what workloads take of the host
///
/// MEMORY is what is in memory, OWN what of it no other process shares, RETURNED what the guest has given back since it was
/// started because it did not use it. For a container it is what its control group counts. On a terminal the figures are shown
/// anew each second, until Ctrl-C.
#[derive(Args)]
pub struct StatsOptions {
    /// Show the figures of this moment alone
    #[arg(long)]
    no_stream: bool,
    /// Write JSON, of this moment alone
    #[arg(long)]
    json: bool,
    /// Names or ids of workloads [default: all that run]
    #[arg(value_name = "WORKLOAD")]
    workloads: Vec<String>,
}

/// Show the processes of a workload
///
/// Those of a container are shown as this host sees them, those of a machine as its guest does.
#[derive(Args)]
pub struct TopOptions {
    /// Write JSON
    #[arg(long)]
    json: bool,
    /// Name or id of the workload
    workload: String,
}

/// What a workload takes.
pub struct Usage {
    /// Nanoseconds of processor time.
    pub cpu_ns: u64,
    /// Bytes in memory, shared ones among them.
    pub memory_bytes: u64,
    /// Bytes it may take, if there is a limit.
    pub limit_bytes: Option<u64>,
    /// Processes and threads.
    pub pids: u64,
}

/// What a workload takes of this host; nothing if it does not run.
pub fn usage(folder: &Folder) -> Option<Usage> {
    let state = folder.state().ok().filter(|state| state.status.is_active())?;
    if folder.description().wanted.isolation == Isolation::Vm {
        return usage_of_process(state.worker_pid?);
    }
    let ::container::Usage { cpu_ns, memory_bytes, memory_limit, pids, .. } =
        container::runtime().usage(&container::id_of(folder)).ok()?;
    Some(Usage { cpu_ns, memory_bytes, limit_bytes: memory_limit, pids })
}

fn usage_of_process(pid: u32) -> Option<Usage> {
    let ticks = stat(pid)?.ticks;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let threads = status.lines().find_map(|line| line.strip_prefix("Threads:"));
    Some(Usage {
        cpu_ns: ticks * MS_PER_TICK * 1_000_000,
        memory_bytes: kib(&status, "VmRSS:")?,
        limit_bytes: None,
        pids: threads.and_then(|count| count.trim().parse().ok()).unwrap_or(1),
    })
}

/// Bytes in memory of a machine that no other process shares, if the kernel tells. It looks at each page for that, which takes it
/// milliseconds: not for who asks all the time.
fn own_bytes(folder: &Folder) -> Option<u64> {
    let state = folder.state().ok().filter(|state| state.status.is_active())?;
    let pid = state.worker_pid.filter(|_| folder.description().wanted.isolation == Isolation::Vm)?;
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    Some(kib(&text, "Private_Dirty:")? + kib(&text, "Private_Clean:")?)
}

/// Bytes of the line of `text` that begins with `name` and counts in KiB.
fn kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let count: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(count << 10)
}

/// What `/proc/PID/stat` says.
struct Stat {
    ppid: i32,
    ticks: u64,
    /// Since this host was started.
    started_ticks: u64,
}

fn stat(pid: u32) -> Option<Stat> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // After the name, which may hold anything.
    let fields: Vec<&str> = text.rsplit_once(") ")?.1.split(' ').collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    Some(Stat {
        ppid: fields.get(1)?.parse().ok()?,
        ticks: number(11)? + number(12)?,
        started_ticks: number(19)?,
    })
}

/// The processes of a workload; nothing if it does not run. Those of a machine are told by its guest, in the guest's numbers.
pub fn processes(folder: &Folder) -> Option<Vec<Process>> {
    if folder.description().wanted.isolation == Isolation::Vm {
        let text = files::ask_agent(folder, "processes").ok()?;
        return Some(text.lines().filter_map(row).collect());
    }
    let mut pids = container::runtime().processes(&container::id_of(folder)).ok()?;
    pids.sort_unstable();
    let host = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let boot = host.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse::<u64>().ok());
    // One that ends meanwhile is gone.
    Some(pids.into_iter().filter_map(|pid| process(pid, boot.unwrap_or_default())).collect())
}

/// A line of the agent's list.
fn row(line: &str) -> Option<Process> {
    let mut words = line.splitn(6, ' ');
    let mut word = || words.next();
    Some(Process {
        pid: word()?.parse().ok()?,
        ppid: word()?.parse().ok()?,
        uid: word()?.parse().ok()?,
        started_ms: word()?.parse().ok()?,
        cpu_ms: word()?.parse().ok()?,
        command: word()?.to_owned(),
    })
}

fn process(pid: i32, booted: u64) -> Option<Process> {
    let Stat { ppid, ticks, started_ticks } = stat(u32::try_from(pid).ok()?)?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let uid =
        status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_whitespace().next()?.parse().ok()?;
    let words = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let words = words.split(|byte| *byte == 0).filter(|word| !word.is_empty());
    let command: Vec<String> = words.map(|word| String::from_utf8_lossy(word).into_owned()).collect();
    let started_ms = booted * 1000 + started_ticks * MS_PER_TICK;
    Some(Process { pid, ppid, uid, started_ms, cpu_ms: ticks * MS_PER_TICK, command: command.join(" ") })
}

/// A line of `strata stats`.
struct Row {
    name: String,
    usage: Usage,
    own: Option<u64>,
    returned: Option<u64>,
}

/// `strata stats`
///
/// # Errors
/// The workloads cannot be read, or one that was named does not run.
pub fn stats(global: &Global, options: &StatsOptions) -> Outcome {
    let mut rows = Vec::new();
    for name in &options.workloads {
        let folder = find(global, name)?;
        let status = state(&folder)?.status;
        rows.push(row_of(&folder).ok_or_else(|| Failure::new(format!("stats {name}: it is {status}")))?);
    }
    if options.workloads.is_empty() {
        rows = running(global, options)?;
    }
    if options.json {
        let row = |row: &Row| {
            json!({
                "name": row.name,
                "cpu_ms": row.usage.cpu_ns / 1_000_000,
                "memory_bytes": row.usage.memory_bytes,
                "own_memory_bytes": row.own,
                "returned_bytes": row.returned,
                "pids": row.usage.pids,
            })
        };
        output::json(&json!(rows.iter().map(row).collect::<Vec<_>>()))?;
        return Ok(Exit::Success);
    }
    if options.no_stream || !std::io::stdout().is_terminal() {
        table(rows).print()?;
        return Ok(Exit::Success);
    }
    // Until none of those that were named is left, or whoever looks has seen enough.
    while options.workloads.is_empty() || !rows.is_empty() {
        output::write(CLEAR)?;
        table(rows).print()?;
        std::thread::sleep(REFRESH);
        rows = running(global, options)?;
    }
    Ok(Exit::Success)
}

/// Those of the wanted ones that run.
fn running(global: &Global, options: &StatsOptions) -> Outcome<Vec<Row>> {
    let all = all(global)?;
    let folders = if options.workloads.is_empty() {
        all.list().while_trying(|| "list the workloads".to_owned())?
    } else {
        options.workloads.iter().filter_map(|name| all.find(name).ok()).collect()
    };
    Ok(folders.iter().filter_map(row_of).collect())
}

fn row_of(folder: &Folder) -> Option<Row> {
    let usage = usage(folder)?;
    let asked = Client::connect(folder).and_then(|mut client| client.ask(&Request::Stats, &[]));
    let returned = match asked {
        Ok(Answer::Stats { returned_bytes, .. }) => returned_bytes,
        _ => None,
    };
    Some(Row { name: folder.description().name.clone(), usage, own: own_bytes(folder), returned })
}

fn table(rows: Vec<Row>) -> Table {
    let mut table = Table::new(&["NAME", "CPU TIME", "MEMORY", "OWN", "RETURNED"]);
    let bytes = |count: Option<u64>| count.map_or_else(|| "-".to_owned(), output::bytes);
    for Row { name, usage, own, returned } in rows {
        table.row(vec![
            name,
            seconds(usage.cpu_ns / 1_000_000),
            output::bytes(usage.memory_bytes),
            bytes(own),
            bytes(returned),
        ]);
    }
    table
}

fn seconds(ms: u64) -> String {
    format!("{}.{:02} s", ms / 1000, ms % 1000 / 10)
}

/// `strata top`
///
/// # Errors
/// It does not run, or its guest does not answer.
pub fn top(global: &Global, options: &TopOptions) -> Outcome {
    let folder = find(global, &options.workload)?;
    let status = state(&folder)?.status;
    if !matches!(status, Status::Running | Status::Paused) {
        return Err(Failure::new(format!("top {}: it is {status}", options.workload)));
    }
    let rows = processes(&folder)
        .ok_or_else(|| Failure::new(format!("top {}: nobody tells its processes", options.workload)))?;
    if options.json {
        output::json(&json!(rows))?;
        return Ok(Exit::Success);
    }
    let mut table = Table::new(&["UID", "PID", "PPID", "CPU TIME", "COMMAND"]);
    for row in rows {
        table.row(vec![
            row.uid.to_string(),
            row.pid.to_string(),
            row.ppid.to_string(),
            seconds(row.cpu_ms),
            output::visible(&row.command),
        ]);
    }
    table.print()?;
    Ok(Exit::Success)
}
