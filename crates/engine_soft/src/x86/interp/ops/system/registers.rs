//! Control, debug, model-specific and base registers; CPUID, counters, TLB and cache control.

use super::{
    RCX, data_accumulator, end, full_register, kernel_only, read_word, segment_register,
    set_data_accumulator, set_full_register,
};
use crate::x86::interp::cpu::{Cpu, mode};
use crate::x86::interp::op::{Flow, Op};
use crate::x86::interp::ops::attempt;
use crate::x86::mmu::Intent;
use crate::x86::system::xsave::{Restore, Save};
use crate::x86::system::{OperandSize, cache, control, debug, info, msr, syscall, xsave};
use crate::x86::width::Width;

/// `mov cr, r`: CR number in the immediate.
pub fn move_to_control(cpu: &mut Cpu, op: &Op) -> Flow {
    let value = full_register(cpu, op.src);
    outcome!(cpu, op, |cpu| control::mov_to_cr(cpu, op.imm as u8, value));
    cpu.interrupt_hint = true; // CR8 may have unmasked one
    end(cpu, op)
}

/// `mov r, cr`
pub fn move_from_control(cpu: &mut Cpu, op: &Op) -> Flow {
    let value = outcome!(cpu, op, |cpu| control::mov_from_cr(cpu, op.imm as u8));
    set_full_register(cpu, op.dst, value);
    Flow::Next
}

/// `mov dr, r`
pub fn move_to_debug(cpu: &mut Cpu, op: &Op) -> Flow {
    let value = full_register(cpu, op.src);
    outcome!(cpu, op, |cpu| debug::mov_to_dr(cpu, op.imm as u8, value));
    cpu.mmu.flush_all(); // watched pages stay out of the TLB
    cpu.new_epoch();
    end(cpu, op)
}

/// `mov r, dr`
pub fn move_from_debug(cpu: &mut Cpu, op: &Op) -> Flow {
    let value = outcome!(cpu, op, |cpu| debug::mov_from_dr(cpu, op.imm as u8));
    set_full_register(cpu, op.dst, value);
    Flow::Next
}

/// SMSW to a register of width `T`.
pub fn store_machine_status<T: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let value = outcome!(cpu, op, |cpu| control::smsw(cpu));
    cpu.set_register(op.dst, T::truncate(value));
    Flow::Next
}

/// `smsw [mem]`
pub fn store_machine_status_memory(cpu: &mut Cpu, op: &Op) -> Flow {
    let value = outcome!(cpu, op, |cpu| control::smsw(cpu));
    let linear = attempt!(cpu.operand_address(op, 2, Intent::Write));
    attempt!(cpu.store(linear, value as u16));
    Flow::Next
}

/// LMSW
pub fn load_machine_status<const FROM_MEMORY: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    if let Err(flow) = kernel_only(cpu, op) {
        return flow;
    }
    let value = attempt!(read_word::<FROM_MEMORY>(cpu, op));
    outcome!(cpu, op, |cpu| control::lmsw(cpu, value));
    end(cpu, op)
}

/// RDMSR
pub fn read_msr(cpu: &mut Cpu, op: &Op) -> Flow {
    let value = outcome!(cpu, op, |cpu| msr::rdmsr(cpu));
    set_data_accumulator(cpu, value);
    Flow::Next
}

/// WRMSR
pub fn write_msr(cpu: &mut Cpu, op: &Op) -> Flow {
    let value = data_accumulator(cpu);
    outcome!(cpu, op, |cpu| msr::wrmsr(cpu, value));
    cpu.interrupt_hint = true; // an end of interrupt may have let the next one through
    end(cpu, op)
}

/// RDTSC
pub fn read_time_stamp(cpu: &mut Cpu, op: &Op) -> Flow {
    let value = outcome!(cpu, op, |cpu| info::rdtsc(cpu));
    set_data_accumulator(cpu, value);
    Flow::Next
}

/// RDTSCP
pub fn read_time_stamp_and_id(cpu: &mut Cpu, op: &Op) -> Flow {
    let (value, id) = outcome!(cpu, op, |cpu| info::rdtscp(cpu));
    set_data_accumulator(cpu, value);
    cpu.set_register(RCX, id);
    Flow::Next
}

/// RDPID
pub fn read_processor_id(cpu: &mut Cpu, op: &Op) -> Flow {
    let value = outcome!(cpu, op, |cpu| info::rdpid(cpu));
    set_full_register(cpu, op.dst, value);
    Flow::Next
}

/// RDPMC
pub fn read_counter(cpu: &mut Cpu, op: &Op) -> Flow {
    let value = outcome!(cpu, op, |cpu| info::rdpmc(cpu));
    set_data_accumulator(cpu, value);
    Flow::Next
}

/// CPUID
pub fn identify(cpu: &mut Cpu, op: &Op) -> Flow {
    outcome!(cpu, op, |cpu| {
        info::cpuid(cpu);
        Ok(())
    });
    Flow::Next
}

/// XGETBV
pub fn read_extended_control(cpu: &mut Cpu, op: &Op) -> Flow {
    let value = outcome!(cpu, op, |cpu| control::xgetbv(cpu));
    set_data_accumulator(cpu, value);
    Flow::Next
}

/// XSETBV
pub fn write_extended_control(cpu: &mut Cpu, op: &Op) -> Flow {
    let value = data_accumulator(cpu);
    outcome!(cpu, op, |cpu| control::xsetbv(cpu, value));
    end(cpu, op)
}

/// INVLPG
pub fn invalidate_page(cpu: &mut Cpu, op: &Op) -> Flow {
    if let Err(flow) = kernel_only(cpu, op) {
        return flow;
    }
    let linear = attempt!(cpu.operand_address(op, 1, Intent::Fetch));
    outcome!(cpu, op, |cpu| cache::invlpg(cpu, linear));
    end(cpu, op)
}

/// INVPCID
pub fn invalidate_context(cpu: &mut Cpu, op: &Op) -> Flow {
    if let Err(flow) = kernel_only(cpu, op) {
        return flow;
    }
    let linear = attempt!(cpu.operand_address(op, 16, Intent::Read));
    let low = attempt!(cpu.load::<u64>(linear));
    let high = attempt!(cpu.load::<u64>(linear.wrapping_add(8)));
    let kind = full_register(cpu, op.dst);
    outcome!(cpu, op, |cpu| cache::invpcid(cpu, kind, [low, high]));
    end(cpu, op)
}

/// RDFSBASE, RDGSBASE: the segment's number in the immediate.
pub fn read_segment_base<T: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let value = outcome!(cpu, op, |cpu| syscall::read_base(cpu, segment_register(op.imm as u8)));
    cpu.set_register(op.dst, T::truncate(value));
    Flow::Next
}

/// WRFSBASE, WRGSBASE
pub fn write_segment_base<T: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let value = cpu.register::<T>(op.dst).zero_extend();
    outcome!(cpu, op, |cpu| syscall::write_base(cpu, segment_register(op.imm as u8), value));
    Flow::Next
}

/// VMCALL and VMMCALL, by KVM's convention; only the kernel may ask.
pub fn hypercall(cpu: &mut Cpu, op: &Op) -> Flow {
    const NOT_PERMITTED: u64 = (-1i64) as u64;
    let gpr = &cpu.state.gpr;
    let arguments = [gpr[3], gpr[1], gpr[2], gpr[6]];
    let result = if cpu.state.cpl() != 0 {
        NOT_PERMITTED
    } else {
        cpu.bus.clone().hypercall(cpu.index, gpr[0], arguments)
    };
    cpu.state.gpr[0] = result;
    end(cpu, op)
}

/// Which of the state-saving instructions.
pub mod save {
    #![allow(missing_docs)]
    pub const FXSAVE: u8 = 0;
    pub const FXRSTOR: u8 = 1;
    pub const XSAVE: u8 = 2;
    pub const XSAVEOPT: u8 = 3;
    pub const XSAVEC: u8 = 4;
    pub const XSAVES: u8 = 5;
    pub const XRSTOR: u8 = 6;
    pub const XRSTORS: u8 = 7;
}

/// FXSAVE, XSAVE and relatives. `WIDE` is the REX.W form.
pub fn save_or_restore<const WHICH: u8, const WIDE: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    if matches!(WHICH, save::XSAVES | save::XRSTORS)
        && let Err(flow) = kernel_only(cpu, op)
    {
        return flow;
    }
    let loads = matches!(WHICH, save::FXRSTOR | save::XRSTOR | save::XRSTORS);
    let intent = if loads { Intent::Read } else { Intent::Write };
    let fx = matches!(WHICH, save::FXSAVE | save::FXRSTOR);
    if fx {
        let linear = attempt!(cpu.operand_address(op, 1, intent));
        attempt!(cpu.check_operand_alignment(linear, 4));
    }
    if cpu.based_address(op) & if fx { 15 } else { 63 } != 0 {
        // After the segment's limit for the first byte, before that for the last.
        cpu.fault = arch::x86::Exception::GP0;
        return Flow::Fault;
    }
    let linear = attempt!(cpu.operand_address(op, 512, intent));
    if cpu.mode & mode::BITS == 2 && !arch::x86::paging::is_canonical(linear) {
        cpu.fault = arch::x86::Exception::GP0; // or the stack's, which the caller knows
        return Flow::Fault;
    }
    let pointers = if WIDE { OperandSize::Qword } else { OperandSize::Dword };
    outcome!(cpu, op, |cpu| match WHICH {
        save::FXSAVE => xsave::fxsave(cpu, linear, pointers),
        save::FXRSTOR => xsave::fxrstor(cpu, linear, pointers),
        save::XSAVE => xsave::xsave(cpu, linear, pointers, Save::Xsave),
        save::XSAVEOPT => xsave::xsave(cpu, linear, pointers, Save::Xsaveopt),
        save::XSAVEC => xsave::xsave(cpu, linear, pointers, Save::Xsavec),
        save::XSAVES => xsave::xsave(cpu, linear, pointers, Save::Xsaves),
        save::XRSTOR => xsave::xrstor(cpu, linear, pointers, Restore::Xrstor),
        _ => xsave::xrstor(cpu, linear, pointers, Restore::Xrstors),
    });
    Flow::Next
}
