//! PUSH, POP and what is made of them.

use arch::x86::paging::is_canonical;
use arch::x86::{Exception, SegmentRegister, Vector};

use super::attempt;
use crate::x86::interp::cpu::{Cpu, Fault, mode};
use crate::x86::interp::op::{Flow, Op};
use crate::x86::mmu::Intent;
use crate::x86::width::Width;

/// Offset of RSP in the Cpu.
pub const RSP: u16 = 32;
/// Offset of RBP.
pub const RBP: u16 = 40;
const SS: u8 = SegmentRegister::Ss as u8;

impl Cpu {
    /// Bits of RSP the stack uses.
    #[inline(always)]
    pub fn stack_mask(&self) -> u64 {
        if self.mode & mode::BITS == 2 {
            u64::MAX
        } else if self.mode & mode::BIG_STACK != 0 {
            0xffff_ffff
        } else {
            0xffff
        }
    }

    /// Sets the stack pointer, keeping the bits the stack does not use.
    #[inline(always)]
    pub fn set_stack_pointer(&mut self, value: u64) {
        let mask = self.stack_mask();
        let rsp = &mut self.state.gpr[4];
        *rsp = if mask == 0xffff { *rsp & !mask | value & mask } else { value & mask };
    }

    /// Linear address of the stack slot at `offset` from the stack pointer.
    #[inline(always)]
    fn stack_address(&mut self, pointer: u64, size: usize, intent: Intent) -> Result<u64, Fault> {
        if self.mode & mode::BITS == 2 {
            return Ok(pointer);
        }
        self.segment_address(SS, pointer & self.stack_mask(), size, intent)
    }

    /// Pushes one value; on a fault nothing has changed.
    #[inline(always)]
    pub fn push<T: Width>(&mut self, value: T) -> Result<(), Fault> {
        let pointer = self.state.gpr[4].wrapping_sub(T::SIZE as u64);
        self.store_on_stack(pointer, value)?;
        self.set_stack_pointer(pointer);
        Ok(())
    }

    /// Stores at `pointer` without moving the stack pointer.
    #[inline(always)]
    pub fn store_on_stack<T: Width>(&mut self, pointer: u64, value: T) -> Result<(), Fault> {
        let linear = self.stack_address(pointer, T::SIZE, Intent::Write)?;
        self.store(linear, value).map_err(|fault| self.stack_fault(linear, fault))
    }

    /// Loads from `pointer` in the stack segment.
    #[inline(always)]
    fn load_from_stack<T: Width>(&mut self, pointer: u64) -> Result<T, Fault> {
        let linear = self.stack_address(pointer, T::SIZE, Intent::Read)?;
        self.load(linear).map_err(|fault| self.stack_fault(linear, fault))
    }

    /// The value `skip` bytes above the stack pointer.
    #[inline(always)]
    pub fn peek<T: Width>(&mut self, skip: u64) -> Result<T, Fault> {
        self.load_from_stack(self.state.gpr[4].wrapping_add(skip))
    }

    /// Makes the #GP of a non-canonical address the #SS it is for the stack.
    #[cold]
    fn stack_fault(&mut self, linear: u64, fault: Fault) -> Fault {
        if self.fault == Exception::GP0 && !is_canonical(linear) {
            self.fault = Exception::with_code(Vector::StackFault, 0);
        }
        fault
    }

    /// Moves the stack pointer up.
    #[inline(always)]
    pub fn drop_stack(&mut self, bytes: u64) {
        self.set_stack_pointer(self.state.gpr[4].wrapping_add(bytes));
    }
}

/// `push reg`
pub fn push_register<T: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    attempt!(cpu.push::<T>(cpu.register(op.src)));
    Flow::Next
}

/// `push imm`
pub fn push_immediate<T: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    attempt!(cpu.push::<T>(T::truncate(op.imm)));
    Flow::Next
}

/// `push [mem]`
pub fn push_memory<T: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let linear = attempt!(cpu.operand_address(op, T::SIZE, Intent::Read));
    let value = attempt!(cpu.load::<T>(linear));
    attempt!(cpu.push(value));
    Flow::Next
}

/// `push sreg`: the selector, zero-extended. Of a 32-bit slot only the lower half is written (SDM vol. 2 "PUSH").
pub fn push_segment<T: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let selector = cpu.state.segments[usize::from(op.imm as u8)].selector;
    if T::SIZE == 4 {
        let pointer = cpu.state.gpr[4].wrapping_sub(4);
        attempt!(cpu.store_on_stack(pointer, selector));
        cpu.set_stack_pointer(pointer);
        return Flow::Next;
    }
    attempt!(cpu.push(T::truncate(u64::from(selector))));
    Flow::Next
}

/// `pop reg`
pub fn pop_register<T: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let value = attempt!(cpu.peek::<T>(0));
    cpu.drop_stack(T::SIZE as u64);
    cpu.set_register(op.dst, value);
    Flow::Next
}

/// `pop [mem]`: an address made from RSP uses the value after the pop.
pub fn pop_memory<T: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let value = attempt!(cpu.peek::<T>(0));
    let before = cpu.state.gpr[4];
    cpu.drop_stack(T::SIZE as u64);
    let stored = cpu.operand_address(op, T::SIZE, Intent::Write).and_then(|linear| cpu.store(linear, value));
    if stored.is_err() {
        cpu.state.gpr[4] = before;
        return Flow::Fault;
    }
    Flow::Next
}

/// `pusha`
pub fn push_all<T: Width>(cpu: &mut Cpu, _: &Op) -> Flow {
    let before = cpu.state.gpr[4];
    for register in [0u16, 8, 16, 24, RSP, RBP, 48, 56] {
        let value = if register == RSP { T::truncate(before) } else { cpu.register::<T>(register) };
        if cpu.push(value).is_err() {
            cpu.state.gpr[4] = before;
            return Flow::Fault;
        }
    }
    Flow::Next
}

/// `popa`: what was popped before a fault stays popped, as on the processor; the stack pointer does not move.
pub fn pop_all<T: Width>(cpu: &mut Cpu, _: &Op) -> Flow {
    for (i, register) in [56u16, 48, RBP, RSP, 24, 16, 8, 0].into_iter().enumerate() {
        let value = attempt!(cpu.peek::<T>((i * T::SIZE) as u64));
        if register != RSP {
            cpu.set_register(register, value);
        }
    }
    cpu.drop_stack(8 * T::SIZE as u64);
    Flow::Next
}

/// `leave`: operand size `T`.
pub fn leave<T: Width>(cpu: &mut Cpu, _: &Op) -> Flow {
    let frame = cpu.state.gpr[5];
    let value = attempt!(cpu.load_from_stack::<T>(frame));
    cpu.set_stack_pointer(frame.wrapping_add(T::SIZE as u64));
    cpu.set_register(RBP, value);
    Flow::Next
}

/// `enter size, level`: the level is in bits 16.. of the immediate.
pub fn enter<T: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let (size, level) = (op.imm & 0xffff, op.imm >> 16 & 31);
    let before = cpu.state.gpr[4];
    let undo = |cpu: &mut Cpu| {
        cpu.state.gpr[4] = before;
        Flow::Fault
    };
    if cpu.push::<T>(cpu.register(RBP)).is_err() {
        return undo(cpu);
    }
    let frame = cpu.state.gpr[4];
    let mut pointer = cpu.state.gpr[5];
    for _ in 1..level {
        pointer = pointer.wrapping_sub(T::SIZE as u64);
        let pushed = cpu.load_from_stack::<T>(pointer).and_then(|value| cpu.push(value));
        if pushed.is_err() {
            return undo(cpu);
        }
    }
    if level > 0 && cpu.push(T::truncate(frame)).is_err() {
        return undo(cpu);
    }
    let end = cpu.state.gpr[4].wrapping_sub(size);
    // The last byte of the new frame must be writable (SDM: a final write is probed).
    let probe =
        cpu.stack_address(end, T::SIZE, Intent::Write).and_then(|linear| cpu.check_writable(linear, T::SIZE));
    if probe.is_err() {
        cpu.stack_fault(end, Fault);
        return undo(cpu);
    }
    cpu.set_stack_pointer(end);
    cpu.set_register(RBP, T::truncate(frame));
    Flow::Next
}
