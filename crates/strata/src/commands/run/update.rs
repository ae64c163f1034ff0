//! `strata update`: other limits for a workload that is there.
//!
//! A container that runs has them at once. A machine has the memory and the processors that it was started with.

use clap::Args;
use container::spec::{BlockIo, Cpu, Memory, Pids, Resources};
use serde_json::{Value, json};
use workload::{Folder, Isolation, Restart, Workloads};

use super::{Options, container as containers, container_spec};
use crate::cli::Global;
use crate::commands::workloads;
use crate::exit::Exit;
use crate::failure::{Failure, Outcome, While, each};
use crate::size::parse_size;
use crate::store;

/// Give workloads other limits
///
/// Those of a container hold at once. The memory and the processors of a machine change while it does not run.
#[derive(Args)]
pub struct UpdateOptions {
    /// Bytes of memory, e.g. 512M
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    memory: Option<u64>,
    /// Processors; for a container also parts of one, e.g. 0.5
    #[arg(long, value_name = "N", value_parser = parse_cpus)]
    cpus: Option<u64>,
    /// Processes and threads of a container at most; -1 is without limit
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pids_limit: Option<i64>,
    /// A container's part of the processors where others want them too
    #[arg(long, value_name = "N")]
    cpu_shares: Option<u64>,
    /// Processors that a container may use, e.g. 0-3,7
    #[arg(long, value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// Memory nodes that a container may use
    #[arg(long, value_name = "LIST")]
    cpuset_mems: Option<String>,
    /// A container's part of disks where others want them too, from 10 to 1000
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(10..=1000))]
    blkio_weight: Option<u16>,
    /// When to start it again: no, on-failure, on-failure:TIMES or always
    #[arg(long, value_name = "POLICY")]
    restart: Option<Restart>,
    /// Names or ids
    #[arg(required = true, value_name = "NAME")]
    workloads: Vec<String>,
}

/// Thousandths of a processor.
fn parse_cpus(text: &str) -> Result<u64, String> {
    let number: f64 = text.parse().map_err(|_| format!("{text:?} is no number"))?;
    if !(0.001..=1024.0).contains(&number) {
        return Err("from 0.001 to 1024".to_owned());
    }
    Ok((number * 1000.0).round() as u64)
}

/// Changes limits.
///
/// # Errors
/// There is no such workload, or it cannot have them.
pub fn run(global: &Global, options: &UpdateOptions) -> Outcome {
    let limits = api::Limits {
        memory: options.memory,
        millicpus: options.cpus,
        pids_limit: options.pids_limit,
        cpu_shares: options.cpu_shares,
        cpuset_cpus: options.cpuset_cpus.clone(),
        cpuset_mems: options.cpuset_mems.clone(),
        blkio_weight: options.blkio_weight,
        restart: options.restart,
        ..api::Limits::default()
    };
    if limits == api::Limits::default() {
        return Err(Failure::new("update: what is to be changed?").exit(Exit::Usage));
    }
    let root = store::root(global)?;
    let all = Workloads::open(&root).while_trying(|| "open the workloads".to_owned())?;
    each(&options.workloads, |name| change(&all, &workloads::find(global, name)?, &limits))
}

/// Gives one workload other limits.
///
/// # Errors
/// It cannot have them as it is just now, or the kernel refuses one. Nothing is noted then.
pub fn change(all: &Workloads, folder: &Folder, limits: &api::Limits) -> Outcome<()> {
    let name = &folder.description().name;
    let act = || format!("update {name}");
    let runs = workloads::state(folder)?.status.is_active();
    let is_machine = folder.description().wanted.isolation == Isolation::Vm;
    if is_machine && is_of_containers(limits) {
        let text = format!("update {name}: a machine has its memory and its processors, and no other limits");
        return Err(Failure::new(text).exit(Exit::Usage));
    }
    if is_machine && runs && (limits.memory.is_some() || limits.millicpus.is_some()) {
        let text =
            format!("update {name}: a machine has the memory and the processors that it was started with");
        return Err(Failure::because(text, workload::Error::Refused("it runs".to_owned()))
            .hint(format!("strata stop {name}")));
    }
    let mut options: Options =
        serde_json::from_value(folder.description().wanted.options.clone()).while_trying(act)?;
    options.apply(limits, is_machine);
    if runs && !is_machine {
        containers::check_rights()?;
        let resources = resources(limits, options.sizing.memory);
        let updated = containers::runtime().update(&folder.description().id, &resources);
        updated.map_err(containers::explain)?;
    }
    let options = serde_json::to_value(&options).while_trying(act)?;
    all.change(folder, |wanted| {
        wanted.options = options;
        wanted.restart = limits.restart.unwrap_or(wanted.restart);
        if let Some(said) = &mut wanted.said {
            note(said, limits);
        }
    })
    .while_trying(act)
}

/// Whether there is one among them that only containers have.
fn is_of_containers(limits: &api::Limits) -> bool {
    let (memory, millicpus, quota, restart) = (limits.memory, limits.millicpus, limits.quota, limits.restart);
    let restart_word = limits.restart_word.clone();
    *limits != api::Limits { memory, millicpus, quota, restart, restart_word, ..api::Limits::default() }
}

impl Options {
    fn apply(&mut self, limits: &api::Limits, is_machine: bool) {
        self.sizing.memory = limits.memory.unwrap_or(self.sizing.memory);
        if let Some(millicpus) = limits.millicpus {
            if is_machine {
                self.sizing.cpus = millicpus.div_ceil(1000).clamp(1, super::MAX_CPUS) as u32;
            } else {
                self.container.millicpus = Some(millicpus);
            }
        }
        self.container.pids_limit = limits.pids_limit.unwrap_or(self.container.pids_limit);
        self.container.tuning.change(limits);
        self.restart = limits.restart.unwrap_or(self.restart);
    }
}

/// The limits as control groups have them; those that are not given stay. `memory` are the bytes that it may have.
fn resources(limits: &api::Limits, memory: u64) -> Resources {
    let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    // What is said of swap is of both together.
    let limit = limits.memory.or(limits.memory_swap.map(|_| memory)).map(number);
    let memory = Memory {
        limit,
        reservation: limits.memory_reservation,
        swap: limits.memory_swap,
        ..Memory::default()
    };
    let quota = limits.millicpus.map(|milli| number(milli.saturating_mul(container_spec::PERIOD_US / 1000)));
    let cpu = Cpu {
        quota,
        period: quota.map(|_| container_spec::PERIOD_US),
        shares: limits.cpu_shares,
        cpus: limits.cpuset_cpus.clone(),
        mems: limits.cpuset_mems.clone(),
        ..Cpu::default()
    };
    Resources {
        memory: Some(memory).filter(|memory| *memory != Memory::default()),
        cpu: Some(cpu).filter(|cpu| *cpu != Cpu::default()),
        pids: limits.pids_limit.map(|limit| Pids { limit }),
        block_io: limits.blkio_weight.map(|weight| BlockIo { weight: Some(weight), ..BlockIo::default() }),
        ..Resources::default()
    }
}

/// What a client of the API said is told back as it is now.
fn note(said: &mut Value, limits: &api::Limits) {
    if !said["HostConfig"].is_object() {
        said["HostConfig"] = json!({});
    }
    let host = &mut said["HostConfig"];
    // What was said in other words before does not hold any more.
    let (nano, quota, period) = match (limits.millicpus, limits.quota) {
        (_, Some((quota, period))) => (Some(0), Some(quota), Some(period)),
        (Some(millicpus), None) => (Some(millicpus.saturating_mul(1_000_000)), Some(0), Some(0)),
        (None, None) => (None, None, None),
    };
    let all = [
        ("Memory", limits.memory.map(|value| json!(value))),
        ("NanoCpus", nano.map(|value| json!(value))),
        ("CpuQuota", quota.map(|value| json!(value))),
        ("CpuPeriod", period.map(|value| json!(value))),
        ("PidsLimit", limits.pids_limit.map(|value| json!(value))),
        ("CpuShares", limits.cpu_shares.map(|value| json!(value))),
        ("CpusetCpus", limits.cpuset_cpus.as_ref().map(|value| json!(value))),
        ("CpusetMems", limits.cpuset_mems.as_ref().map(|value| json!(value))),
        ("MemoryReservation", limits.memory_reservation.map(|value| json!(value))),
        ("MemorySwap", limits.memory_swap.map(|value| json!(value))),
        ("RestartPolicy", limits.restart_word.as_ref().map(|word| json!({ "Name": word }))),
        ("BlkioWeight", limits.blkio_weight.map(|value| json!(value))),
    ];
    for (key, value) in all {
        if let Some(value) = value {
            host[key] = value;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_numbers_with_parts() {
        assert_eq!((parse_cpus("0.5"), parse_cpus("2")), (Ok(500), Ok(2000)));
        for wrong in ["", "0", "-1", "NaN", "inf", "1e9", "x"] {
            assert!(parse_cpus(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_what_is_given_is_limited_anew() {
        let limits = api::Limits { pids_limit: Some(-1), ..api::Limits::default() };
        let resources = resources(&limits, 1 << 20);
        assert!(resources.memory.is_none() && resources.cpu.is_none());
        assert_eq!(resources.pids.map(|pids| pids.limit), Some(-1));
        let mut said = json!({ "Image": "x" });
        note(&mut said, &api::Limits { memory: Some(7), millicpus: Some(1500), ..limits });
        let host = json!({ "Memory": 7, "NanoCpus": 1_500_000_000u64, "CpuQuota": 0, "CpuPeriod": 0, "PidsLimit": -1 });
        assert_eq!(said["HostConfig"], host);
    }
}
