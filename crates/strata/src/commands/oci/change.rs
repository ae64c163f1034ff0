//! The verbs that act on a container that is there: kill, ps, update.

use std::io::Read;
use std::path::Path;
use std::process::Command;

use container::Runtime;
use container::spec::{BlockIo, Cpu, Memory, Pids, Resources};

use super::cli::{Format, KillOptions, UpdateOptions};
use super::enter::explain;
use crate::exit::Exit;
use crate::failure::{Failure, Outcome, While};
use crate::{output, signals};

/// `kill`
pub fn kill(runtime: &Runtime, options: &KillOptions) -> Outcome {
    let unknown =
        || Failure::new(format!("no signal is called {:?}", options.signal)).exit(Exit::Workload(1));
    let signal = signals::number(&options.signal).ok_or_else(unknown)?;
    runtime.kill(&options.id, signal.into(), options.all).map_err(explain)?;
    Ok(Exit::Success)
}

/// `ps`
pub fn ps(runtime: &Runtime, id: &str, format: Format, arguments: &[String]) -> Outcome {
    let pids = runtime.processes(id).map_err(explain)?;
    if format == Format::Json {
        output::json(&pids)?;
        return Ok(Exit::Success);
    }
    let default = ["-ef".to_owned()];
    let arguments = if arguments.is_empty() { default.as_slice() } else { arguments };
    let listed = Command::new("ps").args(arguments).output().while_trying(|| "run ps".to_owned())?;
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    let mut lines = text.lines();
    let header = lines.next().unwrap_or_default();
    let missing = || Failure::new("run ps: its first line names no PID column").exit(Exit::Workload(1));
    let column = header.split_whitespace().position(|word| word == "PID").ok_or_else(missing)?;
    let is_inside = |line: &&str| {
        let pid = line.split_whitespace().nth(column).and_then(|word| word.parse::<i32>().ok());
        pid.is_some_and(|pid| pids.contains(&pid))
    };
    let kept: String = lines.filter(is_inside).map(|line| format!("{line}\n")).collect();
    output::write(&format!("{header}\n{kept}"))?;
    Ok(Exit::Success)
}

/// `update`
pub fn update(runtime: &Runtime, options: &UpdateOptions) -> Outcome {
    let resources = match &options.resources {
        Some(path) => read_resources(path)?,
        None => resources(options),
    };
    runtime.update(&options.id, &resources).map_err(explain)?;
    Ok(Exit::Success)
}

fn read_resources(path: &Path) -> Outcome<Resources> {
    let act = || format!("read limits {}", path.display());
    let text = if path == Path::new("-") {
        let mut text = Vec::new();
        std::io::stdin().read_to_end(&mut text).while_trying(act)?;
        text
    } else {
        std::fs::read(path).while_trying(act)?
    };
    serde_json::from_slice(&text).while_trying(act)
}

fn resources(options: &UpdateOptions) -> Resources {
    Resources {
        memory: Some(Memory {
            limit: options.memory,
            reservation: options.memory_reservation,
            swap: options.memory_swap,
            ..Memory::default()
        }),
        cpu: Some(Cpu {
            shares: options.cpu_shares,
            quota: options.cpu_quota,
            period: options.cpu_period,
            cpus: options.cpuset_cpus.clone(),
            mems: options.cpuset_mems.clone(),
            ..Cpu::default()
        }),
        pids: options.pids_limit.map(|limit| Pids { limit }),
        block_io: options.blkio_weight.map(|weight| BlockIo { weight: Some(weight), ..BlockIo::default() }),
        ..Resources::default()
    }
}
