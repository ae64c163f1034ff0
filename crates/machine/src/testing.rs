//! A fake engine for tests: each vCPU plays a script against the bus.

use std::sync::Arc;

use arch::x86::{CpuState, Rflags};
use engine::{Bus, Engine, Exit, Request, Statistics, Vcpu, VcpuSignal, Vm, VmConfig};

use crate::config::Source;
use crate::{Backends, Machine, MachineConfig};

/// What a vCPU does each time it is run; it returns when the script says so.
pub type Play = dyn Fn(&mut Stage<'_>) -> Option<Exit> + Send + Sync;

/// What a script can reach.
pub struct Stage<'a> {
    pub index: u32,
    pub state: &'a mut CpuState,
    pub bus: &'a dyn Bus,
}

/// A script for every vCPU of a machine.
#[derive(Clone)]
pub struct Script(Arc<Play>);

impl Script {
    pub fn new(play: impl Fn(&mut Stage<'_>) -> Option<Exit> + Send + Sync + 'static) -> Self {
        Self(Arc::new(play))
    }

    pub fn halt_for_ever() -> Self {
        Self::new(|_| Some(Exit::Halt))
    }

    /// Prints what Linux prints when it finds no root, then resets through port 0x92.
    pub fn panic_and_reset() -> Self {
        Self::new(|stage| {
            print(stage, b"Kernel panic - not syncing: VFS: Unable to mount root fs\n");
            stage.bus.port_write(stage.index, 0x92, &[1]);
            Some(Exit::Kicked)
        })
    }
}

/// Writes to the serial port.
pub fn print(stage: &Stage<'_>, text: &[u8]) {
    for byte in text {
        stage.bus.port_write(stage.index, 0x3f8, std::slice::from_ref(byte));
    }
}

pub struct FakeEngine(pub Script);

struct FakeVm(Script, VmConfig);

struct FakeVcpu {
    index: u32,
    script: Script,
    state: CpuState,
    signal: Arc<VcpuSignal>,
    config: VmConfig,
    runs: u64,
}

impl Engine for FakeEngine {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn create_vm(&self, config: VmConfig) -> Result<Box<dyn Vm>, engine::Error> {
        Ok(Box::new(FakeVm(self.0.clone(), config)))
    }
}

impl Vm for FakeVm {
    fn create_vcpu(&self, index: u32, signal: Arc<VcpuSignal>) -> Result<Box<dyn Vcpu>, engine::Error> {
        let (script, config) = (self.0.clone(), self.1.clone());
        Ok(Box::new(FakeVcpu { index, script, state: CpuState::power_up(), signal, config, runs: 0 }))
    }
}

impl Vcpu for FakeVcpu {
    fn run(&mut self) -> Exit {
        self.runs += 1;
        loop {
            if self.signal.word().load(std::sync::atomic::Ordering::SeqCst) & Request::KICK.bits() != 0 {
                return Exit::Kicked;
            }
            self.signal.take(Request::INTERRUPT);
            let interruptible = self.state.rflags & Rflags::IF.bits() != 0;
            let wakes = interruptible && self.config.bus.interrupt_pending(self.index);
            if self.state.events.halted && !wakes && !self.state.events.nmi_pending {
                return Exit::Halt;
            }
            self.state.events.halted = false;
            let bus = &*self.config.bus;
            let mut stage = Stage { index: self.index, state: &mut self.state, bus };
            if let Some(exit) = (self.script.0)(&mut stage) {
                return exit;
            }
        }
    }

    fn state(&mut self) -> &CpuState {
        &self.state
    }

    fn state_mut(&mut self) -> &mut CpuState {
        &mut self.state
    }

    fn statistics(&self) -> Statistics {
        Statistics { instructions: self.runs, ..Statistics::default() }
    }
}

/// An ELF file with a PVH note and one page of code at 1 MiB.
pub fn tiny_kernel() -> Vec<u8> {
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let half = |elf: &mut Vec<u8>, values: &[u16]| values.iter().for_each(|v| elf.extend(v.to_le_bytes()));
    let word = |elf: &mut Vec<u8>, values: &[u32]| values.iter().for_each(|v| elf.extend(v.to_le_bytes()));
    let long = |elf: &mut Vec<u8>, values: &[u64]| values.iter().for_each(|v| elf.extend(v.to_le_bytes()));
    half(&mut elf, &[2, 62]);
    word(&mut elf, &[1]);
    long(&mut elf, &[0x10_0000, 64, 0]);
    word(&mut elf, &[0]);
    half(&mut elf, &[64, 56, 2, 64, 0, 0]);
    word(&mut elf, &[1, 7]);
    long(&mut elf, &[0x1000, 0x10_0000, 0x10_0000, 16, 0x2000, 0x1000]);
    word(&mut elf, &[4, 4]);
    long(&mut elf, &[0x800, 0, 0, 20, 20, 4]);
    elf.resize(0x800, 0);
    word(&mut elf, &[4, 4, 18]);
    elf.extend(b"Xen\0");
    word(&mut elf, &[0x10_0000]);
    elf.resize(0x1000, 0);
    elf.extend([0xf4; 16]);
    elf
}

/// A configuration that boots [`tiny_kernel`].
pub fn config() -> MachineConfig {
    let mut config = MachineConfig::new(Source::Bytes(tiny_kernel().into()));
    config.memory_bytes = 16 << 20;
    config
}

/// A machine of one vCPU that plays `script`.
pub fn machine(script: Script) -> Machine {
    Machine::build(&config(), Backends::default(), &FakeEngine(script)).unwrap()
}
