//! The programs of `guest/` on KVM.
//!
//! Where KVM runs guests, every check must pass but those of [`KVM_DIFFERS`]. Where it only emulates them, its emulator
//! may stop a program at an instruction it lacks: the rest is then skipped, in print, with that instruction; and what it
//! is known to get wrong is skipped by name.

#[path = "../../../guest/runner.rs"]
mod runner;

use std::sync::Arc;

use arch::x86::CpuState;
use arch::x86::cpuid::{CpuModel, FeatureSet};
use engine::{Doorbells, Engine, Exit, LocalApics, Statistics, Vcpu, VcpuSignal, Vm, VmConfig};
use engine_kvm::Kvm;
use engine_kvm::probe::Pace;
use machine::{Machine, MachineEvent};

/// (program, check, what KVM does instead): in KVM's own code, the same on every host.
const KVM_DIFFERS: &[(&str, &str, &str)] = {
    const WIDE: &str = "where the host has five-level paging, it takes any address that is canonical there";
    &[
        ("system", "FS base: non-canonical, vector", WIDE),
        ("system", "GS base: non-canonical, vector", WIDE),
        ("system", "kernel GS base: non-canonical, vector", WIDE),
        ("system", "LSTAR: non-canonical, vector", WIDE),
        ("interrupts", "an illegal vector is noted", "its local APIC notes no errors"),
        ("interrupts", "x2APIC: EOI takes zero only, vector", "it takes any value"),
        (
            "system",
            "SYSENTER_EIP: non-canonical, vector",
            "it makes the address canonical, as AMD's processors do",
        ),
        (
            "system",
            "SYSENTER_ESP: non-canonical, vector",
            "it makes the address canonical, as AMD's processors do",
        ),
    ]
};

/// (program, start of the check's name, what the emulator does instead): of kvm-pvm.
const EMULATOR_DIFFERS: &[(&str, &str, &str)] = {
    const BATCHES: &str = "it emulates many instructions before it looks for an interrupt";
    const FIXED_TSC: &str = "guests have the host's time stamp counter";
    const NO_SYSCALL: &str = "SYSCALL and SYSRET are not emulated as such";
    &[
        ("interrupts", "delivered after sti", BATCHES),
        ("interrupts", "IRR is clear", BATCHES),
        ("interrupts", "highest first", BATCHES),
        ("interrupts", "then by number", BATCHES),
        ("interrupts", "the least last", BATCHES),
        ("interrupts", "above the task priority", BATCHES),
        ("interrupts", "not above the task priority", BATCHES),
        ("interrupts", "after the task priority was lowered", BATCHES),
        ("interrupts", "a handler that lets interrupts in", BATCHES),
        ("interrupts", "nested: ", BATCHES),
        ("interrupts", "sti holds interrupts for one instruction", BATCHES),
        ("interrupts", "popf opens at once", BATCHES),
        ("interrupts", "sti and hlt: wakes behind hlt", BATCHES),
        ("interrupts", "TSC written beyond an armed deadline", FIXED_TSC),
        ("paging", "nothing was stored", "a store across two pages that faults leaves its first half"),
        ("system", "PAT: type 2 is reserved, vector", "it takes any value"),
        ("system", "rdfsbase without FSGSBASE, vector", "it does not look at CR4"),
        ("system", "syscall", NO_SYSCALL),
        ("system", "sysret", NO_SYSCALL),
    ]
};

/// What the kernel's message begins with when its emulator gives up.
const GAVE_UP: &str = "kvm emulates this guest and cannot execute ";

/// Runs a program to its end.
fn run(program: &str, cpus: u32) {
    if program == "split" {
        return println!(
            "skipped: split on kvm: hosts hold back who does so, and an emulator does not do it as one"
        );
    }
    run_while(program, cpus, |kvm| Box::new(kvm), |_| {});
}

/// KVM whose vCPUs' state is taken out and put back in each time they stop.
struct MovingState(Kvm);

struct MovingVm(Box<dyn Vm>);

struct MovingVcpu(Box<dyn Vcpu>);

impl Engine for MovingState {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn create_vm(&self, config: VmConfig) -> Result<Box<dyn Vm>, engine::Error> {
        Ok(Box::new(MovingVm(self.0.create_vm(config)?)))
    }

    fn missing_for(&self, model: &CpuModel) -> FeatureSet {
        self.0.missing_for(model)
    }

    fn apic_timer_hz(&self) -> Option<u64> {
        self.0.apic_timer_hz()
    }
}

impl Vm for MovingVm {
    fn create_vcpu(&self, index: u32, signal: Arc<VcpuSignal>) -> Result<Box<dyn Vcpu>, engine::Error> {
        Ok(Box::new(MovingVcpu(self.0.create_vcpu(index, signal)?)))
    }

    fn local_apics(&self) -> Option<Arc<dyn LocalApics>> {
        self.0.local_apics()
    }

    fn doorbells(&self) -> Option<Arc<dyn Doorbells>> {
        self.0.doorbells()
    }
}

impl Vcpu for MovingVcpu {
    fn run(&mut self) -> Exit {
        let exit = self.0.run();
        self.0.state_mut();
        exit
    }

    fn state(&mut self) -> &CpuState {
        self.0.state()
    }

    fn state_mut(&mut self) -> &mut CpuState {
        self.0.state_mut()
    }

    fn statistics(&self) -> Statistics {
        self.0.statistics()
    }
}

/// Stops the machine and lets it go on, over and over: each time local APICs are taken out of the kernel and put back.
fn pause_and_resume(machine: &Machine) {
    for _ in 0..1000 {
        if machine.ended().is_some() {
            return;
        }
        machine.pause();
        machine.resume();
        std::thread::sleep(std::time::Duration::from_millis(3));
    }
}

fn run_while(
    program: &str,
    cpus: u32,
    engine: impl FnOnce(Kvm) -> Box<dyn Engine>,
    meanwhile: impl FnOnce(&Machine),
) {
    let kvm = match Kvm::open() {
        Ok(kvm) => kvm,
        Err(error) => return println!("skipped: {program} on kvm: {error}"),
    };
    let emulated = matches!(kvm.probe().unwrap(), Pace::Emulated { .. });
    let kvm = engine(kvm);
    let ended = runner::outcome_while(kvm.as_ref(), program, cpus, meanwhile);
    let known = KVM_DIFFERS.iter().chain(if emulated { EMULATOR_DIFFERS } else { &[] });
    let known: Vec<_> = known.filter(|row| row.0 == program).collect();
    for failure in ended.failures() {
        match known.iter().find(|row| failure.starts_with(row.1)) {
            Some((_, _, why)) => println!("skipped: {program}: {failure}: {why}"),
            None => panic!("{program} on {}: {failure}\n{}", kvm.name(), ended.text),
        }
    }
    match &ended.event {
        Some(MachineEvent::Fatal { reason }) if emulated && reason.starts_with(GAVE_UP) => {
            let passed = ended.text.lines().filter(|line| line.starts_with("PASS ")).count();
            println!("skipped: the rest of {program}, after {passed} checks: {reason}");
        }
        None if emulated && ended.text.contains("PASS ") => {
            let passed = ended.text.lines().filter(|line| line.starts_with("PASS ")).count();
            println!(
                "skipped: the rest of {program}, after {passed} checks: it takes too long where kvm emulates"
            );
        }
        event => assert!(ended.is_whole(), "{program}: {event:?}\n{}", ended.text),
    }
}

macro_rules! programs {
    ($($name:ident: $cpus:literal,)*) => {
        $(
            #[test]
            fn $name() {
                run(stringify!($name), $cpus);
            }
        )*
    };
}

runner::all_programs!(programs);

#[test]
fn a_machine_that_is_stopped_all_the_time_computes_the_same() {
    for (program, cpus) in [("smc", 1), ("smp", 4), ("paging", 1), ("exceptions", 1)] {
        run_while(program, cpus, |kvm| Box::new(MovingState(kvm)), pause_and_resume);
    }
}
