//! Flags, fences, and what the kernel says in one word: HLT, CLI, STI and relatives.

use std::sync::atomic::{Ordering, fence};

use arch::x86::Rflags;
use arch::x86::cpuid::Feature;

use super::{end, operand_size};
use crate::x86::interp::cpu::{Cpu, mode};
use crate::x86::interp::op::{Flow, Op};
use crate::x86::interp::ops::attempt;
use crate::x86::interp::ops::vector::undefined;
use crate::x86::mmu::Intent;
use crate::x86::system::{cache, control, flags, syscall};
use crate::x86::width::{StatusFlags, Width};

plain!(clear_task_switched, "CLTS", control::clts);
plain!(stac, "STAC", flags::stac);
plain!(clac, "CLAC", flags::clac);
plain!(halt, "HLT", flags::hlt);
plain!(monitor, "MONITOR", flags::monitor);
plain!(mwait, "MWAIT", flags::mwait);
plain!(write_back_caches, "WBINVD and INVD", cache::wbinvd);
plain!(swap_gs, "SWAPGS", syscall::swapgs);

/// CLI
pub fn clear_interrupts(cpu: &mut Cpu, op: &Op) -> Flow {
    if cpu.mode & mode::BITS == 2 && cpu.state.cpl() == 0 {
        cpu.state.rflags &= !Rflags::IF.bits();
        return Flow::Next;
    }
    outcome!(cpu, op, |cpu| flags::cli(cpu));
    end(cpu, op)
}

/// STI
pub fn set_interrupts(cpu: &mut Cpu, op: &Op) -> Flow {
    outcome!(cpu, op, |cpu| flags::sti(cpu));
    end(cpu, op)
}

/// CLC, STC, CMC: 0 clears, 1 sets, 2 complements.
pub fn carry<const HOW: u8>(cpu: &mut Cpu, _: &Op) -> Flow {
    let on = match HOW {
        0 => false,
        1 => true,
        _ => cpu.flags.0 & StatusFlags::CF == 0,
    };
    cpu.flags.assign(StatusFlags::CF, on);
    Flow::Next
}

/// CLD and STD
pub fn direction<const DOWN: bool>(cpu: &mut Cpu, _: &Op) -> Flow {
    cpu.state.rflags &= !Rflags::DF.bits();
    if DOWN {
        cpu.state.rflags |= Rflags::DF.bits();
    }
    Flow::Next
}

/// LAHF
pub fn load_flags(cpu: &mut Cpu, _: &Op) -> Flow {
    let low = cpu.flags.merge_into(Rflags::FIXED.bits()) as u8;
    cpu.set_register(1, low);
    Flow::Next
}

/// SAHF
pub fn store_flags(cpu: &mut Cpu, _: &Op) -> Flow {
    let low = u64::from(cpu.register::<u8>(1));
    let rest = cpu.flags.merge_into(0) & !0xff;
    cpu.flags = StatusFlags::from_rflags(rest | low);
    Flow::Next
}

/// PUSHF
pub fn push_flags<T: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let value = outcome!(cpu, op, |cpu| flags::pushf(cpu, operand_size::<T>()));
    attempt!(cpu.push(T::truncate(value)));
    Flow::Next
}

/// POPF
pub fn pop_flags<T: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let value = attempt!(cpu.peek::<T>(0)).zero_extend();
    outcome!(cpu, op, |cpu| flags::popf(cpu, operand_size::<T>(), value));
    cpu.drop_stack(T::SIZE as u64);
    end(cpu, op)
}

/// MFENCE, LFENCE, SFENCE
pub fn memory_fence(_: &mut Cpu, _: &Op) -> Flow {
    fence(Ordering::SeqCst);
    Flow::Next
}

/// PAUSE: somebody spins for another vCPU, which may wait for this core.
pub fn pause(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.pauses = cpu.pauses.wrapping_add(1);
    if cpu.pauses.is_multiple_of(16) {
        std::thread::yield_now();
    }
    cpu.state.rip = cpu.next_ip(op);
    Flow::FellThrough
}

/// CLFLUSHOPT
pub fn flush_line_weakly(cpu: &mut Cpu, op: &Op) -> Flow {
    if cpu.model.has(Feature::Clflushopt) { flush_line(cpu, op) } else { undefined(cpu, op) }
}

/// CLWB
pub fn write_line_back(cpu: &mut Cpu, op: &Op) -> Flow {
    if cpu.model.has(Feature::Clwb) { flush_line(cpu, op) } else { undefined(cpu, op) }
}

/// CLFLUSH and relatives: nothing to flush, but the address is checked as for a load.
pub fn flush_line(cpu: &mut Cpu, op: &Op) -> Flow {
    // Code that cannot be read can be flushed.
    let linear = attempt!(cpu.operand_address(op, 1, Intent::Fetch));
    attempt!(cpu.load::<u8>(linear));
    Flow::Next
}
