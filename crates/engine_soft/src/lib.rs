//! The software engine: executes guest instructions with nothing of the host but its user mode.
//!
//! [`Interpreter`] is the precise engine and the reference for every other; [`Translator`] turns what runs often
//! into host code. Reading order: this file, then [`x86`].
//!
//! Deliberately absent: devices (reached through `engine::Bus`), threads, and host kernel interfaces.
// UNSAFETY: guest memory, registers by offset and generated code; each file says which.
#![deny(unsafe_op_in_unsafe_fn)]

pub mod x86;

use std::sync::Arc;

use arch::x86::CpuState;
use arch::x86::cpuid::{CpuModel, FeatureSet};
use engine::{Engine, Error, Exit, Statistics, Vcpu, VcpuSignal, Vm, VmConfig};
use memory::CodeWatcher;

use x86::hostexec::{Thunks, host_features};
use x86::interp::cpu::Cpu;
use x86::interp::shared::Shared;
use x86::jit::kept::Keeping;
use x86::jit::{Config, Jit, Trace};

/// The interpreter.
#[derive(Debug, Default)]
pub struct Interpreter;

/// The translator: the interpreter with its hot blocks as host code.
#[derive(Clone, Debug, Default)]
pub struct Translator {
    /// How it translates.
    pub config: Config,
    /// Where it lists what it translates.
    pub trace: Option<Trace>,
    /// What it does with translations beyond using them.
    pub keeping: Keeping,
}

impl Engine for Interpreter {
    fn name(&self) -> &'static str {
        "interp"
    }

    fn missing_for(&self, model: &CpuModel) -> FeatureSet {
        missing_for(model)
    }

    fn create_vm(&self, config: VmConfig) -> Result<Box<dyn Vm>, Error> {
        SoftVm::create(self.name(), config, None)
    }
}

impl Engine for Translator {
    fn name(&self) -> &'static str {
        "jit"
    }

    fn missing_for(&self, model: &CpuModel) -> FeatureSet {
        missing_for(model)
    }

    fn create_vm(&self, config: VmConfig) -> Result<Box<dyn Vm>, Error> {
        SoftVm::create(self.name(), config, Some(self.clone()))
    }
}

fn missing_for(model: &CpuModel) -> FeatureSet {
    let host = host_features();
    model.clone().fitted_to(host).missing_on(host)
}

struct SoftVm {
    engine: &'static str,
    config: VmConfig,
    translator: Option<Translator>,
    shared: Arc<Shared>,
}

impl SoftVm {
    fn create(
        engine: &'static str,
        mut config: VmConfig,
        translator: Option<Translator>,
    ) -> Result<Box<dyn Vm>, Error> {
        let model = CpuModel::clone(&config.cpu_model).fitted_to(host_features());
        let missing: Vec<_> = missing_for(&model).iter().map(|feature| feature.name).collect();
        if !missing.is_empty() {
            let what =
                format!("cpu model {} needs {} of the host's processor", model.name, missing.join(", "));
            return Err(Error::Unsupported { engine, what });
        }
        config.cpu_model = Arc::new(model);
        let shared = Arc::new(Shared::new(config.vcpu_count));
        let watching = shared.clone();
        let watcher: CodeWatcher = Arc::new(move |page| watching.code_changed_by_device(page.addr()));
        config.ram.watch_code(&watcher);
        Ok(Box::new(Self { engine, config, translator, shared }))
    }

    fn refused(&self, source: std::io::Error) -> Error {
        Error::Host { engine: self.engine, act: "map executable memory".to_owned(), source }
    }
}

impl Vm for SoftVm {
    fn create_vcpu(&self, index: u32, signal: Arc<VcpuSignal>) -> Result<Box<dyn Vcpu>, Error> {
        if !self.shared.has(index) {
            return Err(Error::Unsupported {
                engine: self.engine,
                what: format!("vcpu {index} of a machine with {}", self.config.vcpu_count),
            });
        }
        let model = self.config.cpu_model.clone();
        let thunks = Thunks::new(|feature| model.has(feature)).map_err(|source| self.refused(source))?;
        let translator = self.translator.as_ref();
        let jit = translator
            .map(|t| Jit::new(t.config, t.trace.clone(), t.keeping.clone()))
            .transpose()
            .map_err(|source| self.refused(source))?;
        self.shared.register(index, signal.clone());
        Ok(Box::new(SoftVcpu(Cpu::new(&self.config, index, signal, self.shared.clone(), thunks, jit))))
    }
}

struct SoftVcpu(Box<Cpu>);

impl Vcpu for SoftVcpu {
    fn run(&mut self) -> Exit {
        self.0.run()
    }

    fn state(&mut self) -> &CpuState {
        &self.0.state
    }

    fn state_mut(&mut self) -> &mut CpuState {
        self.0.forget_translations();
        &mut self.0.state
    }

    fn give_back(&mut self) {
        self.0.give_back();
    }

    fn statistics(&self) -> Statistics {
        self.0.statistics()
    }
}
