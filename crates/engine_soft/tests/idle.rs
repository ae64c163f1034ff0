//! The programs of `guest/` on vCPUs that give all their memory back whenever they stop, which they must not notice.

#[path = "../../../guest/runner.rs"]
mod runner;

use std::sync::Arc;
use std::time::Duration;

use arch::x86::CpuState;
use engine::{Engine, Error, Exit, Statistics, Vcpu, VcpuSignal, Vm, VmConfig};
use engine_soft::x86::jit::Config;
use engine_soft::{Interpreter, Translator};
use machine::Machine;

/// An engine whose vCPUs do so.
struct Forgetful<'a>(&'a dyn Engine);

struct ForgetfulVm(Box<dyn Vm>);

struct ForgetfulVcpu(Box<dyn Vcpu>);

impl Engine for Forgetful<'_> {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn create_vm(&self, config: VmConfig) -> Result<Box<dyn Vm>, Error> {
        Ok(Box::new(ForgetfulVm(self.0.create_vm(config)?)))
    }
}

impl Vm for ForgetfulVm {
    fn create_vcpu(&self, index: u32, signal: Arc<VcpuSignal>) -> Result<Box<dyn Vcpu>, Error> {
        Ok(Box::new(ForgetfulVcpu(self.0.create_vcpu(index, signal)?)))
    }
}

impl Vcpu for ForgetfulVcpu {
    fn run(&mut self) -> Exit {
        let exit = self.0.run();
        self.0.give_back();
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

/// Stops the machine and lets it go on, over and over.
fn pause_and_resume(machine: &Machine) {
    for _ in 0..100 {
        if machine.ended().is_some() {
            return;
        }
        machine.pause();
        machine.resume();
        std::thread::sleep(Duration::from_millis(2));
    }
}

macro_rules! programs {
    ($($name:ident: $cpus:literal,)*) => {
        $(
            #[test]
            fn $name() {
                let at_once = Config::default().under("once".parse().unwrap());
                let jit = Translator { config: at_once, ..Translator::default() };
                let engines: [&dyn Engine; 2] = [&Interpreter, &jit];
                for engine in engines {
                    let ended = runner::outcome_while(&Forgetful(engine), stringify!($name), $cpus, pause_and_resume);
                    let whole = ended.is_whole() && ended.failures().next().is_none();
                    assert!(whole, "{}: {:?}\n{}", engine.name(), ended.event, ended.text);
                }
            }
        )*
    };
}

runner::all_programs!(programs);
