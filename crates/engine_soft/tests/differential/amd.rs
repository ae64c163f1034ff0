//! What AMD's processors do otherwise than the interpreter, which follows Intel's manual where the two differ.
//! Applies only where the tests run on such a processor. The reasons are read off the cases that differed on one of
//! them, not looked up, and some rules take in more than those cases: narrow them as more is known.

use std::sync::OnceLock;

use iced_x86::{Code, FlowControl, Instruction, Mnemonic};

use crate::case::fx;
use crate::known::{ALIGNMENT, Ends, Known, PAGE_FAULT, PROTECTION, STACK_FAULT, UNDEFINED, is_memory_fault};

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

/// Both ends are faults of one instruction.
fn both_fault(ends: &Ends) -> bool {
    ends.native.registers.rip == ends.guest.registers.rip
        && is_memory_fault(ends.native)
        && is_memory_fault(ends.guest)
}

#[rustfmt::skip]
pub const KNOWN: &[Known] = &[
    Known {
        what: "AMD: several faults of one instruction come in another order",
        applies: |ends| both_fault(ends) && ends.native.fault.vector != ends.guest.fault.vector,
    },
    Known {
        what: "AMD: what an instruction has done already when it faults",
        applies: |ends| both_fault(ends) && ends.native.fault.vector == ends.guest.fault.vector,
    },
    Known {
        what: "AMD: VEX-encoded vector operands are checked for alignment under RFLAGS.AC",
        applies: |ends| ends.native.fault.vector == ALIGNMENT,
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
            wide(ends.insn.code()) || ends.completed.iter().any(|placed| wide(placed.insn.code()))
        },
    },
    Known {
        what: "AMD: SYSENTER, SYSEXIT, SYSCALL and SYSRET exist in other modes",
        applies: |ends| matches!(ends.insn.mnemonic(),
            Mnemonic::Sysret | Mnemonic::Sysretq | Mnemonic::Sysexit | Mnemonic::Sysexitq | Mnemonic::Sysenter
            | Mnemonic::Syscall)
            && matches!(ends.native.fault.vector, UNDEFINED | PROTECTION),
    },
    Known {
        what: "AMD: INT1 reports where it stands, or where it led",
        applies: |ends| ends.native.fault.vector == ends.guest.fault.vector && ends.native.fault.vector == 1,
    },
    Known {
        what: "AMD: near branches heed prefixes: an operand size truncates the target, REP takes part in LOOP",
        applies: |ends| ends.all.iter().any(|placed| is_prefixed_branch(&placed.insn)),
    },
    Known {
        what: "AMD: FBSTP and VCVTPS2PH look at their operand before or after they compute",
        applies: |ends| matches!(ends.insn.mnemonic(), Mnemonic::Fbstp | Mnemonic::Vcvtps2ph)
            || ends.completed.iter().any(|placed| matches!(placed.insn.mnemonic(), Mnemonic::Fbstp)),
    },
    Known {
        what: "AMD: an x87 store looks at its operand before or after it finds a pending error",
        applies: |ends| {
            let there = ends.native.registers.rip == ends.guest.registers.rip;
            let other = ends.native.fault.vector != ends.guest.fault.vector;
            is_x87(&ends.insn) && (is_memory_fault(ends.native) && !there || there && other)
        },
    },
    Known {
        what: "AMD: x87 images in memory without pointers",
        applies: |ends| {
            use Mnemonic::{Fldenv, Fnsave, Fnstenv, Frstor, Fxrstor, Fxrstor64, Fxsave, Fxsave64};
            [Fldenv, Fnsave, Fnstenv, Frstor, Fxrstor, Fxrstor64, Fxsave, Fxsave64].iter().any(|m| ends.ran(*m))
        },
    },
    Known {
        what: "AMD: a segment register pushed as 32 bits is written as 32 bits",
        applies: |ends| ends.completed.iter().map(|placed| &placed.insn).chain([&ends.insn]).any(|insn| {
            insn.mnemonic() == Mnemonic::Push && insn.op0_register().is_segment_register()
        }),
    },
    Known {
        what: "AMD: a branch to an address that is not canonical faults where it led",
        applies: |ends| ends.native.fault.vector == PROTECTION && ends.guest.fault.vector == PROTECTION
            && ends.native.registers.rip != ends.guest.registers.rip,
    },
    Known {
        what: "AMD: a repeated string instruction of no elements leaves wide registers as they are",
        applies: |ends| ends.completed.iter().any(|placed| placed.insn.is_string_instruction())
            && ends.lines.iter().all(|line| matches!(line.split(':').next(), Some("rsi" | "rdi" | "rcx"))),
    },
    Known {
        what: "AMD: UD0 has no operands",
        applies: |ends| ends.insn.mnemonic() == Mnemonic::Ud0 && ends.native.fault.vector == UNDEFINED,
    },
    Known {
        what: "AMD: far returns check the stack before or after the selector",
        applies: |ends| matches!(ends.insn.mnemonic(), Mnemonic::Retf | Mnemonic::Iret | Mnemonic::Iretd)
            && matches!(ends.native.fault.vector, STACK_FAULT | PROTECTION | PAGE_FAULT | UNDEFINED),
    },
];
