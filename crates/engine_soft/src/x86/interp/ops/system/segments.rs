//! Segment registers, descriptor tables and selectors.

use arch::x86::SegmentRegister;

use super::{end, far_pointer, kernel_only, read_word, segment_register, with_state};
use crate::x86::interp::cpu::Cpu;
use crate::x86::interp::op::{Flow, Op};
use crate::x86::interp::ops::attempt;
use crate::x86::mmu::Intent;
use crate::x86::system::{self, segments};
use crate::x86::width::Width;

fn load_segment(cpu: &mut Cpu, op: &Op, register: u8, selector: u16) -> Result<(), Flow> {
    let register = segment_register(register);
    with_state(cpu, op, |cpu| {
        segments::load_segment(cpu, register, selector)?;
        system::Core::mode_changed(cpu);
        Ok(())
    })
}

/// `mov sreg, r/m16`: the register's number is the immediate.
pub fn move_to_segment<const FROM_MEMORY: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    let selector = attempt!(read_word::<FROM_MEMORY>(cpu, op));
    if let Err(flow) = load_segment(cpu, op, op.imm as u8, selector) {
        return flow;
    }
    cpu.state.events.interrupt_shadow = op.imm == SegmentRegister::Ss as u64;
    end(cpu, op)
}

/// `pop sreg`
pub fn pop_segment<T: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    // Only this much of the slot is read, whatever its size.
    let selector = attempt!(cpu.peek::<u16>(0));
    // The pointer moves in the width of the stack that was popped.
    let pointer = cpu.state.gpr[4];
    cpu.drop_stack(T::SIZE as u64);
    let after = std::mem::replace(&mut cpu.state.gpr[4], pointer);
    if let Err(flow) = load_segment(cpu, op, op.imm as u8, selector) {
        return flow;
    }
    cpu.state.gpr[4] = after;
    cpu.state.events.interrupt_shadow = op.imm == SegmentRegister::Ss as u64;
    end(cpu, op)
}

/// LDS, LES, LSS, LFS, LGS
pub fn load_far_pointer<T: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let (offset, selector) = attempt!(far_pointer::<T>(cpu, op));
    if let Err(flow) = load_segment(cpu, op, op.imm as u8, selector) {
        return flow;
    }
    cpu.set_register(op.dst, T::truncate(offset));
    end(cpu, op)
}

/// `mov r, sreg`
pub fn move_from_segment<T: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let selector = cpu.state.segments[op.imm as usize].selector;
    cpu.set_register(op.dst, T::truncate(u64::from(selector)));
    Flow::Next
}

/// `mov [mem], sreg`
pub fn store_segment(cpu: &mut Cpu, op: &Op) -> Flow {
    let selector = cpu.state.segments[op.imm as usize].selector;
    let linear = attempt!(cpu.operand_address(op, 2, Intent::Write));
    attempt!(cpu.store(linear, selector));
    Flow::Next
}

/// LGDT (`GDT`) and LIDT. The base has 24, 32 or 64 bits: the immediate.
pub fn load_table<const GDT: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    if let Err(flow) = kernel_only(cpu, op) {
        return flow;
    }
    let linear = attempt!(cpu.operand_address(op, if op.imm == 64 { 10 } else { 6 }, Intent::Read));
    let limit = attempt!(cpu.load::<u16>(linear));
    let at = linear.wrapping_add(2);
    let base = match op.imm {
        64 => attempt!(cpu.load::<u64>(at)),
        32 => u64::from(attempt!(cpu.load::<u32>(at))),
        _ => u64::from(attempt!(cpu.load::<u32>(at))) & 0xff_ffff,
    };
    outcome!(cpu, op, |cpu| if GDT {
        segments::lgdt(cpu, limit, base)
    } else {
        segments::lidt(cpu, limit, base)
    });
    end(cpu, op)
}

/// SGDT (`GDT`) and SIDT: 64 in the immediate stores 8 bytes of base, else 4.
pub fn store_table<const GDT: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    let table = outcome!(cpu, op, |cpu| if GDT { segments::sgdt(cpu) } else { segments::sidt(cpu) });
    let linear = attempt!(cpu.operand_address(op, if op.imm == 64 { 10 } else { 6 }, Intent::Write));
    let mut bytes = [0; 10];
    bytes[..2].copy_from_slice(&table.limit.to_le_bytes());
    bytes[2..].copy_from_slice(&table.base.to_le_bytes());
    attempt!(cpu.store_bytes(linear, &bytes[..if op.imm == 64 { 10 } else { 6 }]));
    Flow::Next
}

/// SLDT (`LDT`) and STR to a register of width `T`.
pub fn store_selector<T: Width, const LDT: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    let value = outcome!(cpu, op, |cpu| if LDT { segments::sldt(cpu) } else { segments::str(cpu) });
    cpu.set_register(op.dst, T::truncate(u64::from(value)));
    Flow::Next
}

/// SLDT and STR to memory.
pub fn store_selector_memory<const LDT: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    let value = outcome!(cpu, op, |cpu| if LDT { segments::sldt(cpu) } else { segments::str(cpu) });
    let linear = attempt!(cpu.operand_address(op, 2, Intent::Write));
    attempt!(cpu.store(linear, value));
    Flow::Next
}

/// What takes one selector and returns nothing.
pub mod selector_act {
    #![allow(missing_docs)]
    pub const LLDT: u8 = 0;
    pub const LTR: u8 = 1;
    pub const VERR: u8 = 2;
    pub const VERW: u8 = 3;
}

/// LLDT, LTR, VERR, VERW
pub fn act_on_selector<const ACT: u8, const FROM_MEMORY: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    if matches!(ACT, selector_act::LLDT | selector_act::LTR)
        && let Err(flow) = kernel_only(cpu, op)
    {
        return flow;
    }
    let selector = attempt!(read_word::<FROM_MEMORY>(cpu, op));
    outcome!(cpu, op, |cpu| match ACT {
        selector_act::LLDT => segments::lldt(cpu, selector),
        selector_act::LTR => segments::ltr(cpu, selector),
        selector_act::VERR => segments::verr(cpu, selector),
        _ => segments::verw(cpu, selector),
    });
    Flow::Next
}

/// LAR (`RIGHTS`) and LSL: the destination changes only if the descriptor qualifies.
pub fn inspect_selector<T: Width, const RIGHTS: bool, const FROM_MEMORY: bool>(
    cpu: &mut Cpu,
    op: &Op,
) -> Flow {
    let selector = attempt!(read_word::<FROM_MEMORY>(cpu, op));
    let found = outcome!(cpu, op, |cpu| if RIGHTS {
        segments::lar(cpu, selector)
    } else {
        segments::lsl(cpu, selector)
    });
    if let Some(value) = found {
        cpu.set_register(op.dst, T::truncate(u64::from(value)));
    }
    Flow::Next
}

/// ARPL
pub fn adjust_rpl<const MEMORY: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    let source = cpu.register::<u16>(op.src);
    if !MEMORY {
        let destination = cpu.register::<u16>(op.dst);
        if let Some(value) = outcome!(cpu, op, |cpu| segments::arpl(cpu, destination, source)) {
            cpu.set_register(op.dst, value);
        }
        return Flow::Next;
    }
    // Only a changed selector is stored, so a read-only page will do for others.
    let linear = attempt!(cpu.operand_address(op, 2, Intent::Read));
    let destination = attempt!(cpu.load::<u16>(linear));
    let before = cpu.flags;
    if let Some(value) = outcome!(cpu, op, |cpu| segments::arpl(cpu, destination, source)) {
        let stored = cpu.operand_address(op, 2, Intent::Write).and_then(|linear| cpu.store(linear, value));
        if stored.is_err() {
            cpu.flags = before;
            return Flow::Fault;
        }
    }
    Flow::Next
}
