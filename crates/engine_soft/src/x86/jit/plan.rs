//! How each instruction is translated: in place, by a sequence of ours, or by the interpreter's handler.

use iced_x86::{Code, Instruction, InstructionInfoOptions, Mnemonic, OpKind, Register};

use super::{Tools, Vectors, rewrite, strings, system, x87};
use crate::x86::hostexec::{Access, Class, MemoryOperand};
use crate::x86::interp::ops::vector::Extra;
use crate::x86::mmu::Intent;

/// How an instruction is translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// Nothing to do.
    Nothing,
    /// The instruction itself on host registers; its memory operand, if it has one, checked.
    Native {
        /// Size, intent and alignment of the memory operand.
        memory: Option<Operand>,
        /// Vector registers, and x87 state, it needs: see [`Vectors`].
        vectors: u8,
    },
    /// LEA
    Address,
    /// PUSH of a register or immediate.
    Push,
    /// PUSH of an operand in memory.
    PushMemory(Operand),
    /// POP of a register.
    Pop,
    /// LEAVE
    Leave,
    /// DIV and IDIV, which may trap.
    Divide {
        /// The divisor, if it is in memory.
        memory: Option<Operand>,
    },
    /// CLI
    ClearInterrupts,
    /// PUSHFQ
    PushFlags,
    /// MOV from a segment register.
    ReadSegment,
    /// RDTSC
    TimeStamp,
    /// BT and relatives with a bit number in a register.
    BitString(Operand),
    /// REP STOS of elements of 2 to the `shift` bytes.
    FillString { shift: u8 },
    /// REP MOVS of elements of 2 to the `shift` bytes.
    MoveString { shift: u8 },
    /// FLDCW
    LoadControlWord(Operand),
    /// A conditional jump in the middle of a unit.
    SideExit,
    /// By the interpreter's handler.
    Handler,
}

/// A memory operand to check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Operand {
    pub(super) size: u32,
    pub(super) intent: Intent,
    pub(super) alignment: u32,
}

impl Operand {
    /// That of a thunk.
    pub(super) fn of_thunk(operand: MemoryOperand) -> Self {
        Self {
            size: u32::from(operand.size),
            intent: if operand.access == Access::Read { Intent::Read } else { Intent::Write },
            alignment: u32::from(operand.alignment),
        }
    }
}

/// What `hostexec` would run in a thunk runs in place, unless it is our own code or MMX.
pub(super) fn plan_of_thunk(extra: &Extra, instruction: &Instruction, narrow: bool) -> Plan {
    let thunk = &extra.thunk;
    if let Some(plan) = x87::plan_of_x87(thunk, instruction) {
        return if is_odd(instruction, narrow) { Plan::Handler } else { plan };
    }
    // In 32-bit code they leave half of the registers as they are.
    let upper = matches!(instruction.mnemonic(), Mnemonic::Vzeroupper | Mnemonic::Vzeroall) && !narrow;
    if !(thunk.is_host_code() || upper) || is_odd(instruction, narrow) {
        return Plan::Handler;
    }
    let vectors = match thunk.class() {
        Class::Integer | Class::VexInteger => Vectors::NONE,
        Class::Sse => Vectors::XMM,
        Class::Avx => Vectors::YMM,
        _ => return Plan::Handler,
    };
    let memory = thunk.memory().map(Operand::of_thunk);
    if memory.is_none() && instruction.op_kinds().any(|kind| kind == OpKind::Memory) {
        return Plan::Handler;
    }
    Plan::Native { memory, vectors }
}

/// Operands that have no place in a translation: addresses of fewer bits than the code, vectors of addresses, implied
/// operands, and those in the code segment of 32-bit code, which may be neither read nor written.
pub(super) fn is_odd(instruction: &Instruction, narrow: bool) -> bool {
    let in_memory = instruction.op_kinds().any(|kind| kind == OpKind::Memory);
    let width = if narrow { 4 } else { 8 };
    let other_width = |register: Register| register != Register::None && register.size() != width;
    let address = other_width(instruction.memory_base()) || other_width(instruction.memory_index());
    let direct = instruction.memory_base() == Register::None && instruction.memory_index() == Register::None;
    let truncated = direct && instruction.memory_displ_size() == width as u32 / 2;
    let far = match narrow {
        true => instruction.memory_segment() == Register::CS,
        false => i32::try_from(instruction.memory_displacement64() as i64).is_err(),
    };
    let other = |kind: OpKind| {
        !matches!(
            kind,
            OpKind::Register
                | OpKind::Memory
                | OpKind::Immediate8
                | OpKind::Immediate8_2nd
                | OpKind::Immediate16
                | OpKind::Immediate32
                | OpKind::Immediate64
                | OpKind::Immediate8to16
                | OpKind::Immediate8to32
                | OpKind::Immediate8to64
                | OpKind::Immediate32to64
        )
    };
    in_memory && (address || far || truncated) || instruction.op_kinds().any(other)
}

/// The integer instructions that are the same on host registers.
fn is_plain(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(
        mnemonic,
        Mov | Movzx
            | Movsx
            | Movsxd
            | Add
            | Or
            | Adc
            | Sbb
            | And
            | Sub
            | Xor
            | Cmp
            | Test
            | Inc
            | Dec
            | Neg
            | Not
            | Shl
            | Sal
            | Shr
            | Sar
            | Rol
            | Ror
            | Rcl
            | Rcr
            | Shld
            | Shrd
            | Imul
            | Mul
            | Bt
            | Bts
            | Btr
            | Btc
            | Bsf
            | Bsr
            | Bswap
            | Xchg
            | Xadd
            | Cmpxchg
            | Cmpxchg8b
            | Cmpxchg16b
            | Cbw
            | Cwde
            | Cdqe
            | Cwd
            | Cdq
            | Cqo
            | Clc
            | Stc
            | Cmc
            | Lahf
            | Sahf
            | Movnti
    )
}

/// The plan for an instruction that has a sequence of its own; `None` for others.
fn plan_of_special(instruction: &Instruction, narrow: bool) -> Option<Plan> {
    use Mnemonic as M;
    let (slot, leave) = if narrow { (4, Code::Leaved) } else { (8, Code::Leaveq) };
    let whole_register = |n: u32| {
        instruction.op_kind(n) == OpKind::Register
            && instruction.op_register(n).is_gpr()
            && instruction.op_register(n).size() == slot
    };
    let plan = match instruction.mnemonic() {
        M::Nop | M::Endbr64 | M::Endbr32 | M::Lfence => Plan::Nothing,
        M::Prefetchnta | M::Prefetcht0 | M::Prefetcht1 | M::Prefetcht2 | M::Prefetchw => Plan::Nothing,
        M::Lea if !is_odd(instruction, narrow) => Plan::Address,
        M::Push if instruction.stack_pointer_increment() == -(slot as i32) => match instruction.op0_kind() {
            OpKind::Memory if is_odd(instruction, narrow) => Plan::Handler,
            OpKind::Memory => {
                Plan::PushMemory(Operand { size: slot as u32, intent: Intent::Read, alignment: 1 })
            }
            OpKind::Register if !whole_register(0) => Plan::Handler,
            _ => Plan::Push,
        },
        M::Pop if instruction.stack_pointer_increment() == slot as i32 && whole_register(0) => Plan::Pop,
        M::Leave if instruction.code() == leave => Plan::Leave,
        M::Div | M::Idiv
            if instruction.op0_kind() == OpKind::Register && instruction.op0_register().size() >= 4 =>
        {
            Plan::Divide { memory: None }
        }
        M::Div | M::Idiv if instruction.memory_size().size() >= 4 && !is_odd(instruction, narrow) => {
            let size = instruction.memory_size().size() as u32;
            Plan::Divide { memory: Some(Operand { size, intent: Intent::Read, alignment: 1 }) }
        }
        M::Cli => Plan::ClearInterrupts,
        M::Pushfq => Plan::PushFlags,
        M::Rdtsc => Plan::TimeStamp,
        M::Mov
            if instruction.op1_kind() == OpKind::Register
                && instruction.op1_register().is_segment_register()
                && instruction.op0_kind() == OpKind::Register =>
        {
            Plan::ReadSegment
        }
        _ => return None,
    };
    Some(plan)
}

pub(super) fn plan_of_plain(instruction: &Instruction, narrow: bool, tools: &mut Tools) -> Plan {
    use Mnemonic as M;
    if let Some(plan) = plan_of_special(instruction, narrow).or_else(|| strings::plan_of_string(instruction))
    {
        return plan;
    }
    let mnemonic = instruction.mnemonic();
    let conditional = instruction.condition_code() != iced_x86::ConditionCode::None
        && matches!(instruction.flow_control(), iced_x86::FlowControl::Next)
        && instruction.op_count() <= 2;
    let general = (0..instruction.op_count())
        .all(|n| instruction.op_kind(n) != OpKind::Register || instruction.op_register(n).is_gpr());
    // With a prefix MOVSXD loads two bytes on some processors and four on others.
    if instruction.code() == Code::Movsxd_r16_rm16 {
        return Plan::Handler;
    }
    if !(is_plain(mnemonic) || conditional) || !general || is_odd(instruction, narrow) {
        return Plan::Handler;
    }
    let in_memory = (0..instruction.op_count()).find(|n| instruction.op_kind(*n) == OpKind::Memory);
    let Some(n) = in_memory else {
        return Plan::Native { memory: None, vectors: Vectors::NONE };
    };
    // A bit offset in a register reaches beyond the operand.
    let bits = matches!(mnemonic, M::Bt | M::Bts | M::Btr | M::Btc);
    if bits && instruction.op1_kind() == OpKind::Register && !system::is_bit_string(instruction, narrow) {
        return Plan::Handler;
    }
    let options = InstructionInfoOptions::NO_MEMORY_USAGE | InstructionInfoOptions::NO_REGISTER_USAGE;
    let access = tools.info.info_options(instruction, options).op_access(n);
    let intent = if rewrite::writes(access) { Intent::Write } else { Intent::Read };
    let size = instruction.memory_size().size() as u32;
    if size == 0 {
        return Plan::Handler;
    }
    let alignment = if mnemonic == M::Cmpxchg16b { size } else { 1 };
    let operand = Operand { size, intent, alignment };
    if bits && instruction.op1_kind() == OpKind::Register {
        return Plan::BitString(operand);
    }
    Plan::Native { memory: Some(operand), vectors: Vectors::NONE }
}
