//! Interrupts, system calls and far branches.

use arch::x86::Vector;

use super::{end, far_pointer, operand_size};
use crate::x86::interp::cpu::Cpu;
use crate::x86::interp::op::{Flow, Op};
use crate::x86::interp::ops::attempt;
use crate::x86::system::deliver::{Event, SoftwareKind};
use crate::x86::system::{self, far, iret, syscall};
use crate::x86::width::{StatusFlags, Width};

/// INT n, INT3, INT1: kind in bits 8.. of the immediate.
pub fn interrupt(cpu: &mut Cpu, op: &Op) -> Flow {
    let kind = match op.imm >> 8 {
        0 => SoftwareKind::IntN,
        1 => SoftwareKind::Trap,
        _ => SoftwareKind::Int1,
    };
    let event = Event::Software { vector: op.imm as u8, kind, next_rip: cpu.next_ip(op) };
    cpu.state.rip = cpu.ip_of(op);
    cpu.sync_flags();
    cpu.counters.events += 1;
    let result = system::deliver::deliver(cpu, event);
    cpu.reload_flags();
    cpu.mode_changed();
    if let Err(shutdown) = result {
        cpu.exit = Some(engine::Exit::Shutdown { reason: shutdown.reason });
    }
    Flow::Jumped
}

/// INTO
pub fn interrupt_on_overflow(cpu: &mut Cpu, op: &Op) -> Flow {
    if cpu.flags.0 & StatusFlags::OF == 0 {
        return end(cpu, op);
    }
    interrupt(cpu, &Op { imm: 1 << 8 | Vector::Overflow as u64, ..*op })
}

/// IRET
pub fn interrupt_return<T: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let next = cpu.next_ip(op);
    outcome!(cpu, op, |cpu| iret::iret(cpu, operand_size::<T>(), next));
    cpu.mode_changed();
    Flow::Jumped
}

/// SYSCALL
pub fn system_call(cpu: &mut Cpu, op: &Op) -> Flow {
    let next = cpu.next_ip(op);
    outcome!(cpu, op, |cpu| syscall::syscall(cpu, next));
    Flow::Jumped
}

/// SYSRET
pub fn system_return<T: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    outcome!(cpu, op, |cpu| syscall::sysret(cpu, operand_size::<T>()));
    Flow::Jumped
}

/// SYSENTER
pub fn system_enter(cpu: &mut Cpu, op: &Op) -> Flow {
    outcome!(cpu, op, |cpu| syscall::sysenter(cpu));
    Flow::Jumped
}

/// SYSEXIT
pub fn system_exit<T: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    outcome!(cpu, op, |cpu| syscall::sysexit(cpu, operand_size::<T>()));
    Flow::Jumped
}

/// `jmp selector:offset`: the selector is in bits 32.. of the immediate.
pub fn far_jump(cpu: &mut Cpu, op: &Op) -> Flow {
    far_jump_to(cpu, op, op.imm & 0xffff_ffff, (op.imm >> 32) as u16)
}

/// `jmp far [mem]`
pub fn far_jump_memory<T: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let (offset, selector) = attempt!(far_pointer::<T>(cpu, op));
    far_jump_to(cpu, op, offset, selector)
}

fn far_jump_to(cpu: &mut Cpu, op: &Op, offset: u64, selector: u16) -> Flow {
    let next = cpu.next_ip(op);
    outcome!(cpu, op, |cpu| far::far_jump(cpu, selector, offset, next));
    Flow::Jumped
}

/// `call selector:offset`
pub fn far_call<T: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    far_call_to::<T>(cpu, op, op.imm & 0xffff_ffff, (op.imm >> 32) as u16)
}

/// `call far [mem]`
pub fn far_call_memory<T: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let (offset, selector) = attempt!(far_pointer::<T>(cpu, op));
    far_call_to::<T>(cpu, op, offset, selector)
}

fn far_call_to<T: Width>(cpu: &mut Cpu, op: &Op, offset: u64, selector: u16) -> Flow {
    let next = cpu.next_ip(op);
    outcome!(cpu, op, |cpu| far::far_call(cpu, selector, offset, operand_size::<T>(), next));
    Flow::Jumped
}

/// RETF
pub fn far_return<T: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let bytes = op.imm as u16;
    outcome!(cpu, op, |cpu| far::far_return(cpu, operand_size::<T>(), bytes));
    Flow::Jumped
}
