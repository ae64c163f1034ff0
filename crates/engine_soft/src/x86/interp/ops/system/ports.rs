//! IN and OUT.

use engine::BusResult;

use super::{RAX, RDX, end};
use crate::x86::interp::cpu::{Cpu, Fault};
use crate::x86::interp::op::{Flow, Op};
use crate::x86::interp::ops::attempt;
use crate::x86::system::{debug, ports};
use crate::x86::width::Width;

impl Cpu {
    /// IN of width `T`, with its permission check.
    pub fn port_read<T: Width>(&mut self, port: u16) -> Result<T, Fault> {
        self.check_port::<T>(port)?;
        let mut data = [0; 8];
        let result = self.bus.clone().port_read(self.index, port, &mut data[..T::SIZE]);
        self.after_port(result);
        Ok(T::truncate(u64::from_le_bytes(data)))
    }

    /// OUT of width `T`, with its permission check.
    pub fn port_write<T: Width>(&mut self, port: u16, value: T) -> Result<(), Fault> {
        self.check_port::<T>(port)?;
        let data = value.zero_extend().to_le_bytes();
        let result = self.bus.clone().port_write(self.index, port, &data[..T::SIZE]);
        self.after_port(result);
        Ok(())
    }

    /// #GP(0) if the code may not use `port`; notes breakpoints on it.
    pub fn check_port<T: Width>(&mut self, port: u16) -> Result<(), Fault> {
        if let Err(exception) = ports::check_io(self, port, T::SIZE as u8) {
            return self.fail(exception);
        }
        if debug::any_enabled(&self.state) {
            self.debug_hits |= debug::hits(&self.state, u64::from(port), T::SIZE as u64, debug::Watch::Port);
        }
        Ok(())
    }

    fn after_port(&mut self, result: BusResult) {
        self.counters.bus_accesses += 1;
        self.interrupt_hint = true;
        if result == BusResult::Stop {
            self.signal.kick();
        }
    }
}

/// IN: the port is DX or the immediate.
pub fn input<T: Width, const BY_DX: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    let port = if BY_DX { cpu.register::<u16>(RDX) } else { op.imm as u16 };
    let value = attempt!(cpu.port_read::<T>(port));
    cpu.set_register(RAX, value);
    end(cpu, op)
}

/// OUT
pub fn output<T: Width, const BY_DX: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    let port = if BY_DX { cpu.register::<u16>(RDX) } else { op.imm as u16 };
    attempt!(cpu.port_write::<T>(port, cpu.register(RAX)));
    end(cpu, op)
}
