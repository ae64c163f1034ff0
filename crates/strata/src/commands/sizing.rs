//! The flags that every machine has: what executes it, and how big it is.

use std::fs::File;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::Instant;

use arch::x86::cpuid::CpuModel;
use clap::Args;
use clap::builder::PossibleValuesParser;
use engine::Engine;
use machine::config::Source;
use machine::loader;
use machine::machine::Confine;
use machine::{Machine, MachineConfig};

use crate::engines::Stress;
use crate::failure::{Failure, Outcome};
use crate::size::parse_size;

use crate::{confine, engines};

/// What executes a machine, and how big it is.
#[derive(Args, Clone, serde::Serialize, serde::Deserialize)]
pub struct Sizing {
    /// What executes the guest's instructions: the processor (kvm), or code made for it (jit, interp); auto takes kvm
    /// where it is real
    #[arg(long, default_value = "auto", value_parser = PossibleValuesParser::new(engines::names()))]
    pub engine: String,
    /// Virtual processors
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub cpus: u32,
    /// Guest memory, e.g. 512M or 2G
    #[arg(long, default_value = "512M", value_name = "SIZE", value_parser = parse_size)]
    pub memory: u64,
    /// Processor that the guest sees, e.g. x86-64-v2 [default: the best this host can give]
    #[arg(long, value_name = "MODEL", value_parser = PossibleValuesParser::new(CpuModel::names().collect::<Vec<_>>()))]
    pub cpu: Option<String>,
    /// Keep all privileges and system calls of this process: for debugging, and hosts that know no seccomp
    #[arg(long)]
    pub no_sandbox: bool,
    /// Write what the translator makes of the guest's code to FILE: for its developers
    #[arg(long, value_name = "FILE")]
    pub trace_jit: Option<PathBuf>,
    /// Make the translator do all the time what it does rarely, to find its faults: tlb, code, returns, kick, once,
    /// exact, step[=N], separated by commas
    #[arg(long, value_name = "LIST", value_parser = parse_stress)]
    pub stress: Option<String>,
}

/// Checks the list now; it is kept as text because a description of a workload holds it.
fn parse_stress(text: &str) -> Result<String, String> {
    text.parse::<Stress>().map(|_| text.to_owned()).map_err(|error| error.to_string())
}

impl Sizing {
    /// A machine of this size for `engine` that starts `kernel`.
    pub fn machine(&self, kernel: Source, engine: &dyn Engine) -> MachineConfig {
        MachineConfig {
            cpus: self.cpus,
            memory_bytes: self.memory,
            cpu_model: self.cpu.clone().unwrap_or_else(|| engines::best_model(engine).to_owned()),
            ..MachineConfig::new(kernel)
        }
    }

    /// The engine chosen. One that translates counts instructions only for the account that `-v` ends with.
    ///
    /// # Errors
    /// The trace cannot be written.
    pub fn open_engine(&self) -> Outcome<Box<dyn Engine>> {
        self.open_engine_keeping(engines::Keeping::Nothing)
    }

    /// The same, with `keeping` for a translator.
    ///
    /// # Errors
    /// The trace cannot be written.
    pub fn open_engine_keeping(&self, keeping: engines::Keeping) -> Outcome<Box<dyn Engine>> {
        let create = |path: &PathBuf| {
            File::create(path).map_err(|error| Failure::new(format!("write {}: {error}", path.display())))
        };
        let trace = self.trace_jit.as_ref().map(create).transpose()?;
        let stress = self.stress.as_deref().unwrap_or_default();
        let stress = stress.parse().map_err(|error| Failure::because("--stress", error))?;
        let count = tracing::enabled!(tracing::Level::INFO);
        engines::open(&self.engine, engines::Wishes { count, trace, stress, keeping })
    }

    /// What is given up while the machine is being built.
    pub fn confine(&self) -> Option<Confine> {
        (!self.no_sandbox).then(confine::while_building)
    }

    /// What is given up once the machine on `engine` with its `network` is built, before it starts.
    ///
    /// # Errors
    /// The host does not offer it.
    pub fn enter_sandbox(&self, engine: &dyn Engine, network: sandbox::Network) -> Outcome<()> {
        if self.no_sandbox { Ok(()) } else { confine::before_start(engine.host_requests(), network) }
    }
}

/// What went wrong when `act` needed a machine, and what to do about it.
pub fn explain(act: String, error: machine::Error) -> Failure {
    let is_too_small = match &error {
        machine::Error::Load { source, .. } => {
            matches!(source, loader::Error::KernelDoesNotFit { .. } | loader::Error::InitrdDoesNotFit { .. })
        }
        machine::Error::Read { what: "initrd", source, .. } => source.kind() == ErrorKind::FileTooLarge,
        _ => false,
    };
    let failure = Failure::because(act, error);
    if is_too_small { failure.hint("--memory SIZE gives the machine more") } else { failure }
}

/// The line that `-v` shows at the end of a machine.
pub fn account(engine: &str, machine: &Machine, started: Instant) {
    let vcpus = machine.statistics();
    let instructions: u64 = vcpus.iter().map(|vcpu| vcpu.instructions).sum();
    let seconds = started.elapsed().as_secs_f64();
    let sum = |figure: fn(&engine::Translation) -> u64| -> u64 {
        vcpus.iter().map(|vcpu| figure(&vcpu.translation)).sum()
    };
    let translated = sum(|t| t.instructions);
    // Who lets the processor execute counts what came back from it.
    let exits: u64 = vcpus.iter().map(|vcpu| vcpu.bus_accesses).sum();
    let done = match instructions {
        0 => format!("{exits} accesses to devices"),
        count => format!("{count} guest instructions"),
    };
    let mut line = format!("engine {engine}: {done} on {} vCPU in {seconds:.2} s", vcpus.len());
    if translated != 0 {
        let share = 100.0 * translated as f64 / instructions.max(1) as f64;
        let (handlers, events) = (sum(|t| t.handlers), sum(|t| t.events));
        let (unknown, attention) = (sum(|t| t.unknown), sum(|t| t.attention));
        line += &format!(
            ", {share:.1} % translated; {handlers} handler calls; left {events} times for events, {unknown} for \
             code not known, {attention} for attention; {} clears",
            sum(|t| t.clears)
        );
        let longest = vcpus.iter().map(|vcpu| vcpu.translation.longest_clear).max().unwrap_or_default();
        if !longest.is_zero() {
            line += &format!(", the longest {:.2} ms", longest.as_secs_f64() * 1e3);
        }
        let compared = sum(|t| t.compared);
        if compared != 0 {
            line += &format!("; {compared} blocks compared");
        }
    }
    tracing::info!("{line}");
}
