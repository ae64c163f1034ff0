//! The way from decoded instructions to the system half: operands in, results out.
//!
//! Every operation here runs with RIP and RFLAGS canonical. Those after which the mode, the privilege or the
//! interrupt state may be another end their block.
// UNSAFETY: none of its own; `Op::imm` carries plain values here.

use std::sync::atomic::{Ordering, fence};

use arch::x86::{Exception, Rflags, SegmentRegister, Vector};
use engine::BusResult;
use iced_x86::{Code, Mnemonic, OpKind, Register};

use super::attempt;
use super::{data, vector};
use crate::x86::interp::cpu::{Cpu, Fault, mode};
use crate::x86::interp::op::{Flow, Handler, Op};
use crate::x86::interp::select::{Form, Selected};
use crate::x86::mmu::Intent;
use crate::x86::system::deliver::{Event, SoftwareKind};
use crate::x86::system::xsave::{Restore, Save};
use crate::x86::system::{
    self, OperandSize, cache, control, debug, far, flags, info, iret, msr, ports, segments, syscall, xsave,
};
use crate::x86::width::{StatusFlags, Width};

const RAX: u16 = 0;
const RCX: u16 = 8;
const RDX: u16 = 16;

/// What the system functions return.
type Outcome<T = ()> = Result<T, Exception>;

/// Operand size of a width.
const fn operand_size<T: Width>() -> OperandSize {
    match T::SIZE {
        2 => OperandSize::Word,
        4 => OperandSize::Dword,
        _ => OperandSize::Qword,
    }
}

/// Calls into the system half with canonical state.
#[inline]
fn with_state<T>(cpu: &mut Cpu, op: &Op, act: impl FnOnce(&mut Cpu) -> Outcome<T>) -> Result<T, Flow> {
    cpu.state.rip = cpu.ip_of(op);
    cpu.sync_flags();
    let outcome = act(cpu);
    cpu.reload_flags();
    outcome.map_err(|exception| {
        cpu.fault = exception;
        Flow::Raised
    })
}

/// Unwraps `with_state`.
macro_rules! outcome {
    ($cpu:ident, $op:ident, $act:expr) => {
        match with_state($cpu, $op, $act) {
            Ok(value) => value,
            Err(flow) => return flow,
        }
    };
}

/// Ends the block after an instruction that is no branch.
fn end(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.state.rip = cpu.next_ip(op);
    Flow::Jumped
}

/// An operation of the form `fn(&mut dyn Core) -> Outcome`, after which the block ends.
macro_rules! plain {
    ($name:ident, $doc:literal, $function:path) => {
        #[doc = $doc]
        pub fn $name(cpu: &mut Cpu, op: &Op) -> Flow {
            outcome!(cpu, op, |cpu| $function(cpu));
            end(cpu, op)
        }
    };
}
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

/// CLFLUSH and relatives: nothing to flush, but the address is checked as for a load.
pub fn flush_line(cpu: &mut Cpu, op: &Op) -> Flow {
    let linear = attempt!(cpu.operand_address(op, 1, Intent::Read));
    attempt!(cpu.load::<u8>(linear));
    Flow::Next
}

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

/// A far pointer from memory: offset of width `T`, then the selector.
fn far_pointer<T: Width>(cpu: &mut Cpu, op: &Op) -> Result<(u64, u16), Fault> {
    let linear = cpu.operand_address(op, T::SIZE + 2, Intent::Read)?;
    let offset = cpu.load::<T>(linear)?.zero_extend();
    Ok((offset, cpu.load::<u16>(linear.wrapping_add(T::SIZE as u64))?))
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

fn load_segment(cpu: &mut Cpu, op: &Op, register: u8, selector: u16) -> Result<(), Flow> {
    let register = segment_register(register);
    with_state(cpu, op, |cpu| {
        segments::load_segment(cpu, register, selector)?;
        system::Core::mode_changed(cpu);
        Ok(())
    })
}

fn segment_register(number: u8) -> SegmentRegister {
    [
        SegmentRegister::Es,
        SegmentRegister::Cs,
        SegmentRegister::Ss,
        SegmentRegister::Ds,
        SegmentRegister::Fs,
        SegmentRegister::Gs,
    ][usize::from(number)]
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
    let selector = attempt!(cpu.peek::<T>(0)).zero_extend() as u16;
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

#[inline]
fn read_word<const FROM_MEMORY: bool>(cpu: &mut Cpu, op: &Op) -> Result<u16, Fault> {
    if !FROM_MEMORY {
        return Ok(cpu.register::<u16>(op.src));
    }
    let linear = cpu.operand_address(op, 2, Intent::Read)?;
    cpu.load::<u16>(linear)
}

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

/// A register operand whose size is the mode's, not the operand size's.
fn full_register(cpu: &Cpu, offset: u16) -> u64 {
    let value = cpu.register::<u64>(offset);
    if cpu.mode & mode::BITS == 2 { value } else { value & 0xffff_ffff }
}

fn set_full_register(cpu: &mut Cpu, offset: u16, value: u64) {
    if cpu.mode & mode::BITS == 2 {
        cpu.set_register(offset, value)
    } else {
        cpu.set_register(offset, value as u32)
    }
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
    attempt!(kernel_only(cpu));
    let value = attempt!(read_word::<FROM_MEMORY>(cpu, op));
    outcome!(cpu, op, |cpu| control::lmsw(cpu, value));
    end(cpu, op)
}

/// LGDT (`GDT`) and LIDT. The base has 24, 32 or 64 bits: the immediate.
pub fn load_table<const GDT: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    attempt!(kernel_only(cpu));
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
    if matches!(ACT, selector_act::LLDT | selector_act::LTR) {
        attempt!(kernel_only(cpu));
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
    if let Some(value) = outcome!(cpu, op, |cpu| segments::arpl(cpu, destination, source)) {
        let linear = attempt!(cpu.operand_address(op, 2, Intent::Write));
        attempt!(cpu.store(linear, value));
    }
    Flow::Next
}

/// #GP(0) for privileged instructions, before their operand is looked at.
fn kernel_only(cpu: &mut Cpu) -> Result<(), Fault> {
    if cpu.state.cpl() != 0 { cpu.fail(Exception::GP0) } else { Ok(()) }
}

/// EDX:EAX
fn data_accumulator(cpu: &Cpu) -> u64 {
    u64::from(cpu.register::<u32>(RDX)) << 32 | u64::from(cpu.register::<u32>(RAX))
}

fn set_data_accumulator(cpu: &mut Cpu, value: u64) {
    cpu.set_register(RAX, value as u32);
    cpu.set_register(RDX, (value >> 32) as u32);
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
    attempt!(kernel_only(cpu));
    let linear = attempt!(cpu.operand_address(op, 1, Intent::Fetch));
    outcome!(cpu, op, |cpu| cache::invlpg(cpu, linear));
    end(cpu, op)
}

/// INVPCID
pub fn invalidate_context(cpu: &mut Cpu, op: &Op) -> Flow {
    attempt!(kernel_only(cpu));
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
    pub(super) fn check_port<T: Width>(&mut self, port: u16) -> Result<(), Fault> {
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
    if matches!(WHICH, save::XSAVES | save::XRSTORS) {
        attempt!(kernel_only(cpu));
    }
    let loads = matches!(WHICH, save::FXRSTOR | save::XRSTOR | save::XRSTORS);
    let intent = if loads { Intent::Read } else { Intent::Write };
    let linear = attempt!(cpu.operand_address(op, 512, intent));
    if matches!(WHICH, save::FXSAVE | save::FXRSTOR) && cpu.alignment_checks {
        attempt!(cpu.check_alignment_of(linear, 8));
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

/// The handler for a general register's width, from 16 bits up.
macro_rules! by_register {
    ($size:expr, $f:ident $(; $c:expr)*) => {{
        let handler: Handler = match $size {
            2 => $f::<u16 $(, $c)*>,
            4 => $f::<u32 $(, $c)*>,
            _ => $f::<u64 $(, $c)*>,
        };
        handler
    }};
}

/// Picks `register` or `memory` for the selector operand `n` and fills it in.
fn selector_operand(form: &Form, n: u32, register: Handler, memory: Handler) -> Op {
    if form.is_memory(n) {
        return form.with_memory(memory);
    }
    let mut op = Op::plain(register);
    op.src = form.register(n);
    op.dst = op.src;
    op
}

/// Picks the operation for a system instruction; `None` if it is not one.
pub(in crate::x86::interp) fn select(_: &mut Cpu, form: &Form) -> Option<Selected> {
    let (op, ends) = flow_control(form)
        .or_else(|| segment_operation(form))
        .or_else(|| register_operation(form))
        .or_else(|| simple(form))?;
    Some(Selected { op, ends })
}

/// Instructions without operands that `Op` must carry.
fn simple(form: &Form) -> Option<(Op, bool)> {
    let (run, ends): (Handler, bool) = match form.insn.mnemonic() {
        Mnemonic::Clts => (clear_task_switched, true),
        Mnemonic::Stac => (stac, true),
        Mnemonic::Clac => (clac, true),
        Mnemonic::Hlt => (halt, true),
        Mnemonic::Monitor => (monitor, true),
        Mnemonic::Mwait => (mwait, true),
        Mnemonic::Wbinvd | Mnemonic::Invd | Mnemonic::Wbnoinvd => (write_back_caches, true),
        Mnemonic::Swapgs => (swap_gs, true),
        Mnemonic::Cli => (clear_interrupts, false),
        Mnemonic::Sti => (set_interrupts, true),
        Mnemonic::Clc => (carry::<0>, false),
        Mnemonic::Stc => (carry::<1>, false),
        Mnemonic::Cmc => (carry::<2>, false),
        Mnemonic::Cld => (direction::<false>, false),
        Mnemonic::Std => (direction::<true>, false),
        Mnemonic::Lahf => (load_flags, false),
        Mnemonic::Sahf => (store_flags, false),
        Mnemonic::Pushf => (push_flags::<u16>, false),
        Mnemonic::Pushfd => (push_flags::<u32>, false),
        Mnemonic::Pushfq => (push_flags::<u64>, false),
        Mnemonic::Popf => (pop_flags::<u16>, true),
        Mnemonic::Popfd => (pop_flags::<u32>, true),
        Mnemonic::Popfq => (pop_flags::<u64>, true),
        Mnemonic::Mfence | Mnemonic::Lfence | Mnemonic::Sfence => (memory_fence, false),
        Mnemonic::Pause => (pause, true),
        Mnemonic::Rdmsr => (read_msr, false),
        Mnemonic::Wrmsr => (write_msr, true),
        Mnemonic::Rdtsc => (read_time_stamp, false),
        Mnemonic::Rdtscp => (read_time_stamp_and_id, false),
        Mnemonic::Rdpmc => (read_counter, false),
        Mnemonic::Cpuid => (identify, false),
        Mnemonic::Xgetbv => (read_extended_control, false),
        Mnemonic::Xsetbv => (write_extended_control, true),
        Mnemonic::Vmcall | Mnemonic::Vmmcall => (hypercall, true),
        // Shadow-stack pointers read as nothing where there is no shadow stack.
        Mnemonic::Rdsspd | Mnemonic::Rdsspq => (data::nop, false),
        Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2 => (vector::undefined, true),
        _ => return None,
    };
    Some((Op::plain(run), ends))
}

/// Far branches, interrupts and system calls.
fn flow_control(form: &Form) -> Option<(Op, bool)> {
    let insn = form.insn;
    let mut op = match insn.code() {
        Code::Jmp_ptr1616 | Code::Jmp_ptr1632 => Op::plain(far_jump),
        Code::Call_ptr1616 => Op::plain(far_call::<u16>),
        Code::Call_ptr1632 => Op::plain(far_call::<u32>),
        Code::Jmp_m1616 => form.with_memory(far_jump_memory::<u16>),
        Code::Jmp_m1632 => form.with_memory(far_jump_memory::<u32>),
        Code::Jmp_m1664 => form.with_memory(far_jump_memory::<u64>),
        Code::Call_m1616 => form.with_memory(far_call_memory::<u16>),
        Code::Call_m1632 => form.with_memory(far_call_memory::<u32>),
        Code::Call_m1664 => form.with_memory(far_call_memory::<u64>),
        Code::Retfw | Code::Retfw_imm16 => Op::plain(far_return::<u16>),
        Code::Retfd | Code::Retfd_imm16 => Op::plain(far_return::<u32>),
        Code::Retfq | Code::Retfq_imm16 => Op::plain(far_return::<u64>),
        Code::Iretw => Op::plain(interrupt_return::<u16>),
        Code::Iretd => Op::plain(interrupt_return::<u32>),
        Code::Iretq => Op::plain(interrupt_return::<u64>),
        Code::Syscall => Op::plain(system_call),
        Code::Sysretd => Op::plain(system_return::<u32>),
        Code::Sysretq => Op::plain(system_return::<u64>),
        Code::Sysenter => Op::plain(system_enter),
        Code::Sysexitd => Op::plain(system_exit::<u32>),
        Code::Sysexitq => Op::plain(system_exit::<u64>),
        Code::Int_imm8 | Code::Int3 | Code::Int1 => Op::plain(interrupt),
        Code::Into => Op::plain(interrupt_on_overflow),
        _ => return None,
    };
    match insn.code() {
        Code::Int3 => op.imm = 1 << 8 | Vector::Breakpoint as u64,
        Code::Int1 => op.imm = 2 << 8 | Vector::Debug as u64,
        Code::Int_imm8 => op.imm = u64::from(insn.immediate8()),
        _ if insn.op0_kind() == OpKind::FarBranch16 => {
            op.imm = u64::from(insn.far_branch16()) | u64::from(insn.far_branch_selector()) << 32;
        }
        _ if insn.op0_kind() == OpKind::FarBranch32 => {
            op.imm = u64::from(insn.far_branch32()) | u64::from(insn.far_branch_selector()) << 32;
        }
        _ if insn.op0_kind() == OpKind::Immediate16 => op.imm = u64::from(insn.immediate16()),
        _ => {}
    }
    Some((op, true))
}

fn is_segment(form: &Form, n: u32) -> bool {
    form.insn.op_kind(n) == OpKind::Register && form.insn.op_register(n).is_segment_register()
}

/// Segment registers, descriptor tables, selectors.
fn segment_operation(form: &Form) -> Option<(Op, bool)> {
    let insn = form.insn;
    let far_pointer = |register: Register| {
        let size = insn.op_register(0).size();
        let mut op = form.with_memory(by_register!(size, load_far_pointer));
        op.dst = form.register(0);
        op.imm = register.number() as u64;
        Some((op, true))
    };
    let selector = |n: u32, register: Handler, memory: Handler| selector_operand(form, n, register, memory);
    Some(match insn.mnemonic() {
        Mnemonic::Mov if is_segment(form, 0) => {
            if insn.op0_register() == Register::CS {
                return Some((Op::plain(vector::undefined), true));
            }
            let mut op = selector(1, move_to_segment::<false>, move_to_segment::<true>);
            op.imm = insn.op0_register().number() as u64;
            (op, true)
        }
        Mnemonic::Mov if is_segment(form, 1) => {
            let size = if form.is_memory(0) { 2 } else { insn.op0_register().size() };
            let mut op = selector(0, by_register!(size, move_from_segment), store_segment);
            op.imm = insn.op1_register().number() as u64;
            (op, false)
        }
        Mnemonic::Pop if is_segment(form, 0) => {
            let size = insn.stack_pointer_increment() as usize;
            let mut op = Op::plain(by_register!(size, pop_segment));
            op.imm = insn.op0_register().number() as u64;
            (op, true)
        }
        Mnemonic::Lds => return far_pointer(Register::DS),
        Mnemonic::Les => return far_pointer(Register::ES),
        Mnemonic::Lss => return far_pointer(Register::SS),
        Mnemonic::Lfs => return far_pointer(Register::FS),
        Mnemonic::Lgs => return far_pointer(Register::GS),
        Mnemonic::Lldt => {
            use selector_act::LLDT;
            (selector(0, act_on_selector::<LLDT, false>, act_on_selector::<LLDT, true>), false)
        }
        Mnemonic::Ltr => {
            use selector_act::LTR;
            (selector(0, act_on_selector::<LTR, false>, act_on_selector::<LTR, true>), false)
        }
        Mnemonic::Verr => {
            use selector_act::VERR;
            (selector(0, act_on_selector::<VERR, false>, act_on_selector::<VERR, true>), false)
        }
        Mnemonic::Verw => {
            use selector_act::VERW;
            (selector(0, act_on_selector::<VERW, false>, act_on_selector::<VERW, true>), false)
        }
        Mnemonic::Sldt => {
            let size = form.size(0);
            (selector(0, by_register!(size, store_selector; true), store_selector_memory::<true>), false)
        }
        Mnemonic::Str => {
            let size = form.size(0);
            (selector(0, by_register!(size, store_selector; false), store_selector_memory::<false>), false)
        }
        Mnemonic::Lar => (inspection::<true>(form), false),
        Mnemonic::Lsl => (inspection::<false>(form), false),
        Mnemonic::Arpl => {
            let mut op = selector(0, adjust_rpl::<false>, adjust_rpl::<true>);
            op.src = form.register(1);
            (op, false)
        }
        Mnemonic::Lgdt => (table(form, load_table::<true>), true),
        Mnemonic::Lidt => (table(form, load_table::<false>), true),
        Mnemonic::Sgdt => (table(form, store_table::<true>), false),
        Mnemonic::Sidt => (table(form, store_table::<false>), false),
        _ => return None,
    })
}

fn inspection<const RIGHTS: bool>(form: &Form) -> Op {
    let size = form.insn.op_register(0).size();
    let mut op = selector_operand(
        form,
        1,
        by_register!(size, inspect_selector; RIGHTS; false),
        by_register!(size, inspect_selector; RIGHTS; true),
    );
    op.dst = form.register(0);
    op
}

/// LGDT and relatives: the width of the base goes into the immediate.
fn table(form: &Form, run: Handler) -> Op {
    let mut op = form.with_memory(run);
    op.imm = match form.insn.code() {
        Code::Lgdt_m1664 | Code::Lidt_m1664 | Code::Sgdt_m1664 | Code::Sidt_m1664 => 64,
        Code::Lgdt_m1632_16 | Code::Lidt_m1632_16 => 24,
        _ => 32,
    };
    op
}

/// Control, debug and base registers, ports, caches, saved state.
fn register_operation(form: &Form) -> Option<(Op, bool)> {
    let insn = form.insn;
    let special = |n: u32| {
        let register = insn.op_register(n);
        (insn.op_kind(n) == OpKind::Register).then_some(register)
    };
    let numbered = |run: Handler, gpr: u32, other: u32| {
        let mut op = Op::plain(run);
        op.src = form.register(gpr);
        op.dst = op.src;
        op.imm = insn.op_register(other).number() as u64;
        op
    };
    Some(match insn.mnemonic() {
        Mnemonic::Mov => match (special(0), special(1)) {
            (Some(to), _) if to.is_cr() => (numbered(move_to_control, 1, 0), true),
            (_, Some(from)) if from.is_cr() => (numbered(move_from_control, 0, 1), false),
            (Some(to), _) if to.is_dr() => (numbered(move_to_debug, 1, 0), true),
            (_, Some(from)) if from.is_dr() => (numbered(move_from_debug, 0, 1), false),
            _ => (Op::plain(vector::undefined), true), // test registers
        },
        Mnemonic::Smsw => {
            let size = form.size(0);
            (
                selector_operand(
                    form,
                    0,
                    by_register!(size, store_machine_status),
                    store_machine_status_memory,
                ),
                false,
            )
        }
        Mnemonic::Lmsw => {
            (selector_operand(form, 0, load_machine_status::<false>, load_machine_status::<true>), true)
        }
        Mnemonic::Invlpg => (form.with_memory(invalidate_page), true),
        Mnemonic::Invpcid => {
            let mut op = form.with_memory(invalidate_context);
            op.dst = form.register(0);
            (op, true)
        }
        Mnemonic::Rdpid => (numbered(read_processor_id, 0, 0), false),
        Mnemonic::Rdfsbase => (base_operation(form, by_register!(form.size(0), read_segment_base), 4), false),
        Mnemonic::Rdgsbase => (base_operation(form, by_register!(form.size(0), read_segment_base), 5), false),
        Mnemonic::Wrfsbase => {
            (base_operation(form, by_register!(form.size(0), write_segment_base), 4), false)
        }
        Mnemonic::Wrgsbase => {
            (base_operation(form, by_register!(form.size(0), write_segment_base), 5), false)
        }
        Mnemonic::Clflush | Mnemonic::Clflushopt | Mnemonic::Clwb => (form.with_memory(flush_line), false),
        Mnemonic::Prefetchnta
        | Mnemonic::Prefetcht0
        | Mnemonic::Prefetcht1
        | Mnemonic::Prefetcht2
        | Mnemonic::Prefetchw
        | Mnemonic::Prefetchwt1
        | Mnemonic::Prefetch
        | Mnemonic::Cldemote => (Op::plain(data::nop), false),
        Mnemonic::In => (port_operation(form, 0, 1), true),
        Mnemonic::Out => (port_operation(form, 1, 0), true),
        _ => return saved_state(form),
    })
}

fn base_operation(form: &Form, run: Handler, segment: u64) -> Op {
    let mut op = Op::plain(run);
    op.dst = form.register(0);
    op.imm = segment;
    op
}

/// IN and OUT: which operand is the accumulator, which the port.
fn port_operation(form: &Form, accumulator: u32, port: u32) -> Op {
    let size = form.insn.op_register(accumulator).size();
    let by_dx = form.insn.op_kind(port) == OpKind::Register;
    let run: Handler = match (form.insn.mnemonic() == Mnemonic::In, size, by_dx) {
        (true, 1, true) => input::<u8, true>,
        (true, 2, true) => input::<u16, true>,
        (true, _, true) => input::<u32, true>,
        (true, 1, false) => input::<u8, false>,
        (true, 2, false) => input::<u16, false>,
        (true, _, false) => input::<u32, false>,
        (false, 1, true) => output::<u8, true>,
        (false, 2, true) => output::<u16, true>,
        (false, _, true) => output::<u32, true>,
        (false, 1, false) => output::<u8, false>,
        (false, 2, false) => output::<u16, false>,
        (false, _, false) => output::<u32, false>,
    };
    let mut op = Op::plain(run);
    if !by_dx {
        op.imm = u64::from(form.insn.immediate8());
    }
    op
}

fn saved_state(form: &Form) -> Option<(Op, bool)> {
    macro_rules! pick {
        ($which:ident, $wide:expr) => {
            if $wide {
                save_or_restore::<{ save::$which }, true>
            } else {
                save_or_restore::<{ save::$which }, false>
            }
        };
    }
    let mnemonic = form.insn.mnemonic();
    let run: Handler = match mnemonic {
        Mnemonic::Fxsave | Mnemonic::Fxsave64 => pick!(FXSAVE, mnemonic == Mnemonic::Fxsave64),
        Mnemonic::Fxrstor | Mnemonic::Fxrstor64 => pick!(FXRSTOR, mnemonic == Mnemonic::Fxrstor64),
        Mnemonic::Xsave | Mnemonic::Xsave64 => pick!(XSAVE, mnemonic == Mnemonic::Xsave64),
        Mnemonic::Xsaveopt | Mnemonic::Xsaveopt64 => pick!(XSAVEOPT, mnemonic == Mnemonic::Xsaveopt64),
        Mnemonic::Xsavec | Mnemonic::Xsavec64 => pick!(XSAVEC, mnemonic == Mnemonic::Xsavec64),
        Mnemonic::Xsaves | Mnemonic::Xsaves64 => pick!(XSAVES, mnemonic == Mnemonic::Xsaves64),
        Mnemonic::Xrstor | Mnemonic::Xrstor64 => pick!(XRSTOR, mnemonic == Mnemonic::Xrstor64),
        Mnemonic::Xrstors | Mnemonic::Xrstors64 => pick!(XRSTORS, mnemonic == Mnemonic::Xrstors64),
        _ => return None,
    };
    Some((form.with_memory(run), false))
}
