//! The software engine: executes guest instructions with nothing of the host but its user mode.
//!
//! [`Interpreter`] is the precise engine and the reference for every other. Reading order: this file, then
//! [`x86`].
//!
//! Deliberately absent: devices (reached through `engine::Bus`), threads, and host kernel interfaces.
// UNSAFETY: guest memory, registers by offset and generated code; each file says which.
#![deny(unsafe_op_in_unsafe_fn)]

pub mod x86;

use std::sync::Arc;

use arch::x86::CpuState;
use arch::x86::cpuid::CpuModel;
use engine::{Engine, Error, Exit, Statistics, Vcpu, VcpuSignal, Vm, VmConfig};

use x86::hostexec::{Thunks, host_features};
use x86::interp::cpu::Cpu;
use x86::interp::shared::Shared;

const NAME: &str = "interp";

/// The interpreter.
#[derive(Debug, Default)]
pub struct Interpreter;

impl Engine for Interpreter {
    fn name(&self) -> &'static str {
        NAME
    }

    fn create_vm(&self, mut config: VmConfig) -> Result<Box<dyn Vm>, Error> {
        let host = host_features();
        let model = CpuModel::clone(&config.cpu_model).fitted_to(host);
        let missing: Vec<_> = model.missing_on(host).iter().map(|feature| feature.name).collect();
        if !missing.is_empty() {
            let what =
                format!("cpu model {} needs {} of the host's processor", model.name, missing.join(", "));
            return Err(Error::Unsupported { engine: NAME, what });
        }
        config.cpu_model = Arc::new(model);
        let shared = Arc::new(Shared::new(config.vcpu_count));
        Ok(Box::new(InterpreterVm { config, shared }))
    }
}

struct InterpreterVm {
    config: VmConfig,
    shared: Arc<Shared>,
}

impl Vm for InterpreterVm {
    fn create_vcpu(&self, index: u32, signal: Arc<VcpuSignal>) -> Result<Box<dyn Vcpu>, Error> {
        if !self.shared.has(index) {
            return Err(Error::Unsupported {
                engine: NAME,
                what: format!("vcpu {index} of a machine with {}", self.config.vcpu_count),
            });
        }
        let model = self.config.cpu_model.clone();
        let thunks = Thunks::new(|feature| model.has(feature)).map_err(|source| Error::Host {
            engine: NAME,
            act: "map executable memory".to_owned(),
            source,
        })?;
        self.shared.register(index, signal.clone());
        Ok(Box::new(InterpreterVcpu(Cpu::new(&self.config, index, signal, self.shared.clone(), thunks))))
    }
}

struct InterpreterVcpu(Box<Cpu>);

impl Vcpu for InterpreterVcpu {
    fn run(&mut self) -> Exit {
        self.0.run()
    }

    fn state(&self) -> &CpuState {
        &self.0.state
    }

    fn state_mut(&mut self) -> &mut CpuState {
        self.0.forget_translations();
        &mut self.0.state
    }

    fn statistics(&self) -> Statistics {
        self.0.statistics()
    }
}
