//! `strata update`: other limits for a workload that is there.
//!
//! A container that runs has them at once. A machine has the memory and the processors that it was started with.

use clap::Args;
use container::spec::{Cpu, Memory, Pids, Resources};
use serde_json::{Value, json};
use workload::{Folder, Isolation, Restart, Workloads};

use super::{Options, container as containers};
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
        restart: options.restart,
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
    if is_machine && limits.pids_limit.is_some() {
        let text = format!("update {name}: only its guest counts the processes of a machine");
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
        let updated = containers::runtime().update(&folder.description().id, &resources(limits));
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
        self.restart = limits.restart.unwrap_or(self.restart);
    }
}

/// The limits as control groups have them; those that are not given stay.
fn resources(limits: &api::Limits) -> Resources {
    let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    Resources {
        memory: limits.memory.map(|bytes| Memory { limit: Some(number(bytes)), ..Memory::default() }),
        cpu: limits.millicpus.map(|millicpus| Cpu {
            quota: Some(number(millicpus.saturating_mul(containers::PERIOD_US / 1000))),
            period: Some(containers::PERIOD_US),
            ..Cpu::default()
        }),
        pids: limits.pids_limit.map(|limit| Pids { limit }),
        ..Resources::default()
    }
}

/// What a client of the API said is told back as it is now.
fn note(said: &mut Value, limits: &api::Limits) {
    if !said["HostConfig"].is_object() {
        said["HostConfig"] = json!({});
    }
    let host = &mut said["HostConfig"];
    if let Some(memory) = limits.memory {
        host["Memory"] = json!(memory);
    }
    if let Some(millicpus) = limits.millicpus {
        host["NanoCpus"] = json!(millicpus.saturating_mul(1_000_000));
    }
    if let Some(limit) = limits.pids_limit {
        host["PidsLimit"] = json!(limit);
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
        let resources = resources(&limits);
        assert!(resources.memory.is_none() && resources.cpu.is_none());
        assert_eq!(resources.pids.map(|pids| pids.limit), Some(-1));
        let mut said = json!({ "Image": "x" });
        note(&mut said, &api::Limits { memory: Some(7), millicpus: Some(1500), ..limits });
        let host = json!({ "Memory": 7, "NanoCpus": 1_500_000_000u64, "PidsLimit": -1 });
        assert_eq!(said["HostConfig"], host);
    }
}
