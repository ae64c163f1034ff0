//! What AMD's processors do otherwise than the interpreter, which follows Intel's manual where the two differ.
//! Applies only where the tests run on such a processor. The reasons are read off the cases that differed on one of
//! them, not looked up, so each rule takes in no more than those cases show: the lines it explains, or the vectors.

use std::sync::OnceLock;

use iced_x86::{Code, FlowControl, Instruction, Mnemonic, OpKind, Register};

use crate::case::{Output, fx};
use crate::known::{
    ALIGNMENT, DEBUG, Ends, Known, PAGE_FAULT, PROTECTION, Part, SIMD, STACK_FAULT, UNDEFINED, is_gather,
    is_memory_fault,
};
use crate::layout;

/// Whether this is one of them.
pub fn is_here() -> bool {
    static HERE: OnceLock<bool> = OnceLock::new();
    *HERE.get_or_init(|| {
        let vendor = std::arch::x86_64::__cpuid(0);
        [vendor.ebx, vendor.edx, vendor.ecx] == [0x6874_7541, 0x6974_6e65, 0x444d_4163] // AuthenticAMD
    })
}

/// Parts of the FXSAVE image that AMD's processors keep only while an unmasked x87 error is pending, or fill with
/// their own constant.
pub fn leaves_out(offset: usize) -> bool {
    is_here() && matches!(offset, 6 | 8 | 16 | fx::MXCSR_MASK)
}

/// Whether a near branch is longer than it need be.
fn is_prefixed_branch(insn: &Instruction) -> bool {
    let plain = match insn.flow_control() {
        FlowControl::ConditionalBranch if insn.is_jcc_near() => 6,
        FlowControl::ConditionalBranch => 2,
        FlowControl::UnconditionalBranch if insn.is_jmp_short() => 2,
        FlowControl::UnconditionalBranch | FlowControl::Call if insn.near_branch_target() != 0 => 5,
        FlowControl::Return => 1 + 2 * insn.op_count() as usize,
        _ => return false,
    };
    insn.len() > plain
}

fn is_x87(insn: &Instruction) -> bool {
    insn.cpuid_features().iter().any(|feature| {
        use iced_x86::CpuidFeature as F;
        matches!(feature, F::FPU | F::FPU287 | F::FPU387)
    })
}

/// Both ends are at one instruction.
fn at_one(ends: &Ends) -> bool {
    ends.native.registers.rip == ends.guest.registers.rip
}

/// Both ends are the same fault of one instruction.
fn one_fault(ends: &Ends) -> bool {
    at_one(ends) && is_memory_fault(ends.native) && ends.native.fault.vector == ends.guest.fault.vector
}

/// Nothing differs but which of its faults an instruction reports.
fn only_which_fault(ends: &Ends) -> bool {
    ends.every(|name| matches!(name, "vector" | "error code" | "cr2"))
}

/// The instruction that faulted has a vector in memory, whole or of half precision, that is not aligned.
fn is_misaligned(ends: &Ends) -> bool {
    let size = ends.insn.memory_size().size() as u64;
    let operand = (0..ends.insn.op_count()).find(|i| ends.insn.op_kind(*i) == OpKind::Memory);
    let Some(operand) = operand else { return false };
    let half = matches!(ends.insn.mnemonic(), Mnemonic::Vcvtps2ph | Mnemonic::Vcvtph2ps);
    if !(matches!(size, 16 | 32) || size == 8 && half) {
        return false;
    }
    let registers = &ends.native.registers;
    let address = ends.insn.virtual_address(operand, 0, |register, _, _| {
        let base = |i: usize| u64::from(layout::base_of(registers.selectors[i]));
        Some(match register {
            Register::FS if ends.wide => registers.fs_base,
            Register::GS if ends.wide => registers.gs_base,
            segment if segment.is_segment_register() => {
                if ends.wide {
                    0
                } else {
                    base(segment.number())
                }
            }
            register => {
                let value = registers.gpr[register.full_register().number()];
                if register.size() < 8 { value & ((1 << (8 * register.size())) - 1) } else { value }
            }
        })
    });
    address.is_some_and(|address| address % size != 0)
}

fn is_string_operation(insn: &Instruction, of: &[Mnemonic]) -> bool {
    insn.is_string_instruction()
        && (insn.has_rep_prefix() || insn.has_repne_prefix())
        && of.contains(&insn.mnemonic())
}

fn is_comparison(insn: &Instruction) -> bool {
    use Mnemonic::{Cmpsb, Cmpsd, Cmpsq, Cmpsw, Scasb, Scasd, Scasq, Scasw};
    is_string_operation(insn, &[Cmpsb, Cmpsw, Cmpsd, Cmpsq, Scasb, Scasw, Scasd, Scasq])
}

/// A repeated string instruction of 64-bit code that addresses by 32 bits.
fn is_short_string(insn: &Instruction) -> bool {
    insn.is_string_instruction()
        && (insn.has_rep_prefix() || insn.has_repne_prefix())
        && (0..insn.op_count()).any(|i| matches!(insn.op_kind(i), OpKind::MemorySegESI | OpKind::MemoryESEDI))
}

#[rustfmt::skip]
fn is_segment_push(insn: &Instruction) -> bool {
    use Code::{Pushd_CS, Pushd_DS, Pushd_ES, Pushd_FS, Pushd_GS, Pushd_SS};
    matches!(insn.code(), Pushd_CS | Pushd_DS | Pushd_ES | Pushd_FS | Pushd_GS | Pushd_SS)
}

#[rustfmt::skip]
fn is_segment_pop(insn: &Instruction) -> bool {
    matches!(insn.code(), Code::Popd_DS | Code::Popd_ES | Code::Popd_FS | Code::Popd_GS | Code::Popd_SS)
}

/// How many segment registers may have been pushed. After a branch into the middle of an instruction nobody has
/// decoded what ran, so bytes that could be such a push count.
fn segment_pushes(ends: &Ends) -> usize {
    let known = completed(ends, is_segment_push);
    if ends.all.iter().all(|placed| placed.insn.flow_control() == FlowControl::Next) {
        return known;
    }
    let short = ends.code.iter().filter(|byte| matches!(byte, 0x06 | 0x0e | 0x16 | 0x1e)).count();
    let long = ends.code.windows(2).filter(|pair| matches!(pair, [0x0f, 0xa0 | 0xa8])).count();
    known.max(short + long)
}

/// All bytes of memory that differ are upper halves of segment registers the processor pushed.
fn differs_in_pushes(ends: &Ends) -> bool {
    let different = different_bytes(ends);
    different.iter().all(|byte| *byte == 0) && different.len() <= 2 * segment_pushes(ends)
}

/// Bytes of memory that differ, as the processor left them.
fn different_bytes(ends: &Ends) -> Vec<u8> {
    let pairs = ends.native.memory.iter().zip(&ends.guest.memory);
    pairs.filter(|(native, guest)| native != guest).map(|(native, _)| *native).collect()
}

fn completed(ends: &Ends, is: impl Fn(&Instruction) -> bool) -> usize {
    ends.completed.iter().filter(|placed| is(&placed.insn)).count()
}

/// Bytes of pointers, and of the mask of MXCSR, that the completed instructions wrote.
fn pointer_bytes(ends: &Ends) -> usize {
    use Mnemonic::{Fnsave, Fnstenv, Fxsave, Fxsave64};
    14 * completed(ends, |insn| matches!(insn.mnemonic(), Fnsave | Fnstenv))
        + 22 * completed(ends, |insn| matches!(insn.mnemonic(), Fxsave | Fxsave64))
}

fn status_word(output: &Output) -> u16 {
    u16::from_le_bytes([output.registers.fx[2], output.registers.fx[3]])
}

/// The case has an instruction that clears what tells of an x87 error.
fn may_forget_errors(ends: &Ends) -> bool {
    use Mnemonic::{Fnclex, Fninit, Fnsave};
    ends.all.iter().any(|placed| matches!(placed.insn.mnemonic(), Fnclex | Fninit | Fnsave))
}

/// The x87 registers are the same, and so is their status but for which is the top.
fn differs_in_top_alone(ends: &Ends) -> bool {
    const TOP: u16 = 7 << 11;
    let physical = |output: &Output, i: usize| {
        let top = usize::from((status_word(output) & TOP) >> 11);
        let at = fx::ST + 16 * (i.wrapping_sub(top) & 7);
        output.registers.fx[at..at + 10].to_vec()
    };
    status_word(ends.native) & !TOP == status_word(ends.guest) & !TOP
        && (0..8).all(|i| physical(ends.native, i) == physical(ends.guest, i))
}

fn differs_within(native: u64, guest: u64, mask: u64) -> bool {
    (native ^ guest) & !mask == 0
}

/// Of the x87 status: an unmasked error is pending.
const ERROR: u16 = 0x80;
const STATUS: u64 = 0x8d5;
const RESUME: u64 = 1 << 16;

/// What need not agree although the ends do.
#[rustfmt::skip]
pub const PARTS: &[Part] = &[
    Part {
        what: "AMD: a gather that faults leaves the elements of its mask it did not come to as they are",
        explains: |ends, name| {
            let mask = ends.insn.op_register(2).number();
            is_gather(&ends.insn) && one_fault(ends)
                && (name == format!("xmm{mask}") || name == format!("ymm{mask} high"))
        },
    },
    Part {
        what: "AMD: an MMX store that faults has not made register 0 the top",
        explains: |ends, name| one_fault(ends) && ends.insn.op1_register().is_mm()
            && (name == "fsw" || name.starts_with("st")) && differs_in_top_alone(ends),
    },
    Part {
        what: "AMD: a repeated string instruction that completes no element leaves wide registers as they are",
        explains: |ends, name| {
            let number = match name { "rcx" => 1, "rsi" => 6, "rdi" => 7, _ => return false };
            let (native, guest) = (ends.native.registers.gpr[number], ends.guest.registers.gpr[number]);
            ends.wide && native as u32 == guest as u32 && guest >> 32 == 0
                && (is_short_string(&ends.insn) || completed(ends, is_short_string) > 0)
        },
    },
    Part {
        what: "AMD: a repeated CMPS or SCAS that faults or traps keeps the flags of its last element",
        explains: |ends, name| name == "rflags" && at_one(ends) && is_comparison(&ends.insn)
            && differs_within(ends.native.registers.rflags, ends.guest.registers.rflags,
                if ends.native.fault.vector == DEBUG { STATUS | RESUME } else { STATUS }),
    },
    Part {
        what: "AMD: a trap between two elements of a string instruction does not set RF",
        explains: |ends, name| name == "rflags" && at_one(ends) && ends.native.fault.vector == DEBUG
            && ends.insn.is_string_instruction()
            && differs_within(ends.native.registers.rflags, ends.guest.registers.rflags, RESUME)
            && ends.native.registers.rflags & RESUME == 0,
    },
    Part {
        what: "AMD: CMPS looks at its operands in the other order",
        explains: |ends, name| matches!(name, "cr2") && one_fault(ends)
            && matches!(ends.insn.mnemonic(), Mnemonic::Cmpsb | Mnemonic::Cmpsw | Mnemonic::Cmpsd | Mnemonic::Cmpsq),
    },
    Part {
        what: "AMD: VCVTPS2PH that faults has noted fewer exceptions",
        explains: |ends, name| {
            let mxcsr = |output: &Output| output.registers.fx[fx::MXCSR];
            name == "mxcsr" && at_one(ends) && ends.insn.mnemonic() == Mnemonic::Vcvtps2ph
                && is_memory_fault(ends.native) && mxcsr(ends.native) & !mxcsr(ends.guest) == 0
        },
    },
    Part {
        what: "AMD: a near call checks its target before it pushes",
        explains: |ends, name| name.starts_with("data") && ends.insn.mnemonic() == Mnemonic::Call
            && one_fault(ends) && ends.native.fault.vector == PROTECTION,
    },
    Part {
        what: "AMD: a segment register pushed as 32 bits is written as 32 bits",
        explains: |ends, name| name.starts_with("data") && pointer_bytes(ends) == 0 && differs_in_pushes(ends),
    },
    Part {
        what: "AMD: x87 images in memory without pointers",
        explains: |ends, name| name.starts_with("data") && pointer_bytes(ends) > 0
            && different_bytes(ends).len() <= pointer_bytes(ends) + 2 * segment_pushes(ends),
    },
];

#[rustfmt::skip]
pub const KNOWN: &[Known] = &[
    Known {
        what: "AMD: vector operands that need not be aligned are checked under RFLAGS.AC, before the page tables",
        applies: |ends| ends.native.fault.vector == ALIGNMENT && is_misaligned(ends),
    },
    Known {
        what: "AMD: a segment register is pushed and popped as 32 bits, all of which must be there",
        applies: |ends| (is_segment_push(&ends.insn) || is_segment_pop(&ends.insn))
            && matches!(ends.native.fault.vector, STACK_FAULT | PAGE_FAULT | ALIGNMENT)
            && (ends.native.fault.vector != ends.guest.fault.vector || !at_one(ends)),
    },
    Known {
        what: "AMD: what was pushed of a segment register, loaded again",
        applies: |ends| !different_bytes(ends).is_empty() && pointer_bytes(ends) == 0 && differs_in_pushes(ends),
    },
    Known {
        what: "AMD: far returns look at the stack before the selector",
        applies: |ends| ends.insn.mnemonic() == Mnemonic::Retf
            && at_one(ends) && only_which_fault(ends) && ends.guest.fault.vector == PROTECTION
            && matches!(ends.native.fault.vector, STACK_FAULT | PAGE_FAULT | ALIGNMENT),
    },
    Known {
        what: "AMD: an operand over the end of 4 GiB is outside a flat segment",
        applies: |ends| at_one(ends) && only_which_fault(ends) && ends.guest.fault.vector == PAGE_FAULT
            && ends.guest.fault.address as u32 >= 0xffff_ffe0 && ends.guest.fault.address >> 32 == 0
            && matches!(ends.native.fault.vector, STACK_FAULT | PROTECTION),
    },
    Known {
        what: "AMD: hints that name registers do not exist",
        applies: |ends| ends.native.fault.vector == UNDEFINED && matches!(ends.insn.code(),
            Code::Reservednop_rm16_r16_0F0D | Code::Reservednop_rm32_r32_0F0D | Code::Reservednop_rm64_r64_0F0D),
    },
    Known {
        what: "AMD: no far pointers with 64-bit offsets",
        applies: |ends| {
            let wide = |code| matches!(code, Code::Lss_r64_m1664 | Code::Lfs_r64_m1664 | Code::Lgs_r64_m1664
                | Code::Jmp_m1664 | Code::Call_m1664);
            wide(ends.insn.code()) || completed(ends, |insn| wide(insn.code())) > 0
        },
    },
    Known {
        what: "AMD: SYSRET exists in legacy code, and is privileged",
        applies: |ends| matches!(ends.insn.mnemonic(), Mnemonic::Sysret | Mnemonic::Sysretq) && at_one(ends)
            && !ends.wide && ends.native.fault.vector == PROTECTION && ends.guest.fault.vector == UNDEFINED,
    },
    Known {
        what: "AMD: INT1 reports where it stands, at least below a hypervisor",
        applies: |ends| ends.native.fault.vector == DEBUG && ends.guest.fault.vector == DEBUG
            && ends.insn.code() == Code::Int1 && ends.every(|name| name == "rip")
            && ends.native.registers.rip.wrapping_add(ends.insn.len() as u64) == ends.guest.registers.rip,
    },
    Known {
        what: "AMD: near branches heed prefixes: an operand size truncates the target, REP takes part in LOOP",
        applies: |ends| ends.all.iter().any(|placed| is_prefixed_branch(&placed.insn)),
    },
    Known {
        what: "AMD: VCVTPS2PH looks at its operand before it computes",
        applies: |ends| ends.insn.mnemonic() == Mnemonic::Vcvtps2ph && at_one(ends) && only_which_fault(ends)
            && is_memory_fault(ends.native) && ends.guest.fault.vector == SIMD,
    },
    Known {
        what: "AMD: an x87 store looks at its operand though an unmasked error keeps it from storing",
        applies: |ends| is_x87(&ends.insn) && ends.insn.op0_kind() == OpKind::Memory && is_memory_fault(ends.native)
            && !at_one(ends) && status_word(ends.native) & ERROR == 0
            && (status_word(ends.guest) & ERROR != 0 || may_forget_errors(ends)),
    },
    Known {
        what: "AMD: UD0 has no operands",
        applies: |ends| ends.insn.mnemonic() == Mnemonic::Ud0 && at_one(ends) && only_which_fault(ends)
            && ends.native.fault.vector == UNDEFINED,
    },
];
