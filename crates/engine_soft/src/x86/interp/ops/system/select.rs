//! Which of these functions executes an instruction.

use arch::x86::Vector;
use iced_x86::{Code, Mnemonic, OpKind, Register};

use super::flags::*;
use super::ports::*;
use super::registers::*;
use super::segments::*;
use super::transfer::*;
use crate::x86::interp::op::{Handler, Op};
use crate::x86::interp::ops::{data, vector};
use crate::x86::interp::select::{Form, Selected};

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
pub(in crate::x86::interp) fn select(form: &Form) -> Option<Selected> {
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
        Mnemonic::Clflush => (form.with_memory(flush_line), false),
        Mnemonic::Clflushopt => (form.with_memory(flush_line_weakly), false),
        Mnemonic::Clwb => (form.with_memory(write_line_back), false),
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
