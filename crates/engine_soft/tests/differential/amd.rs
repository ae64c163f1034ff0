//! What AMD's processors do otherwise than the interpreter, which follows Intel's manual where the two differ.
//! Applies only where the tests run on such a processor. The reasons are read off the cases that differed on one of
//! them, not looked up, so each rule takes in no more than those cases show: the lines it explains, or the vectors.

use std::sync::OnceLock;

use iced_x86::{Code, FlowControl, Instruction, Mnemonic, OpKind, Register};

use crate::case::{Output, fx};
use crate::known::{
    ALIGNMENT, DEBUG, Ends, Known, PAGE_FAULT, PROTECTION, Part, SIMD, STACK_FAULT, UNDEFINED, is_gather,
    is_masked, is_memory_fault,
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

fn is_prefix(byte: &u8) -> bool {
    matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3 | 0x40..=0x4f)
}

/// The prefixes of the instruction at `at`, those of 64-bit code included, and what follows them.
fn prefixes<'a>(ends: &Ends<'a>, at: usize) -> (&'a [u8], &'a [u8]) {
    let code = ends.code.get(at..).unwrap_or_default();
    code.split_at(code.iter().take_while(|byte| is_prefix(byte)).count())
}

fn branches(ends: &Ends) -> bool {
    ends.all.iter().any(|placed| placed.insn.flow_control() != FlowControl::Next)
}

/// The case has a near branch of 64-bit code with an operand size.
fn has_short_branch(ends: &Ends) -> bool {
    let near = |insn: &Instruction| {
        let near = insn.is_jcc_short_or_near() || insn.is_jmp_short_or_near() || insn.is_call_near();
        let indirect = insn.is_jmp_near_indirect() || insn.is_call_near_indirect();
        let near = near || indirect || insn.is_loop() || insn.is_loopcc() || insn.is_jcx_short();
        near || insn.mnemonic() == Mnemonic::Ret
    };
    ends.wide
        && ends.all.iter().any(|placed| near(&placed.insn) && prefixes(ends, placed.at).0.contains(&0x66))
}

/// The case has LOOP or JCXZ with REP, perhaps where a branch into the middle of an instruction leads.
fn has_repeated_loop(ends: &Ends) -> bool {
    branches(ends)
        && (0..ends.code.len()).any(|at| {
            let (prefixes, rest) = prefixes(ends, at);
            matches!(rest, [0xe0..=0xe3, ..]) && prefixes.iter().any(|byte| matches!(byte, 0xf2 | 0xf3))
        })
}

/// The interpreter ended at VERW of memory with LOCK.
fn is_locked_verw(ends: &Ends) -> bool {
    let at = ends.guest.registers.rip.wrapping_sub(ends.start);
    let (prefixes, rest) = prefixes(ends, usize::try_from(at).unwrap_or(usize::MAX));
    let verw = matches!(rest, [0x0f, 0x00, modrm, ..] if modrm >> 3 & 7 == 5 && *modrm < 0xc0);
    verw && prefixes.contains(&0xf0)
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

/// Where the operand in memory is of the instruction that faulted.
fn address(ends: &Ends) -> Option<u64> {
    let operand = (0..ends.insn.op_count()).find(|i| ends.insn.op_kind(*i) == OpKind::Memory)?;
    let registers = &ends.native.registers;
    ends.insn.virtual_address(operand, 0, |register, _, _| {
        let base = |i: usize| layout::base_of(registers.selectors[i]);
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
    })
}

/// The instruction that faulted has a vector in memory, whole or of half precision, that is not aligned.
fn is_misaligned(ends: &Ends) -> bool {
    let size = ends.insn.memory_size().size() as u64;
    let half = matches!(ends.insn.mnemonic(), Mnemonic::Vcvtps2ph | Mnemonic::Vcvtph2ps);
    (matches!(size, 16 | 32) || size == 8 && half) && address(ends).is_some_and(|at| at % size != 0)
}

/// What the instruction that faulted reads or writes goes over the end of 4 GiB.
fn is_over_the_end(ends: &Ends) -> bool {
    const LONGEST: u64 = 32;
    let near_the_end = |at: u64| at as u32 >= (LONGEST as u32).wrapping_neg();
    match ends.guest.fault.vector {
        PAGE_FAULT => ends.guest.fault.address >> 32 == 0 && near_the_end(ends.guest.fault.address),
        ALIGNMENT => match address(ends) {
            Some(at) => near_the_end(at),
            None => {
                ends.native.registers.gpr[4] as u32 <= LONGEST as u32
                    || near_the_end(ends.native.registers.gpr[4])
            }
        },
        _ => false,
    }
}

fn is_repeated(insn: &Instruction) -> bool {
    insn.is_string_instruction() && (insn.has_rep_prefix() || insn.has_repne_prefix())
}

fn is_cmps(insn: &Instruction) -> bool {
    matches!(insn.code(), Code::Cmpsb_m8_m8 | Code::Cmpsw_m16_m16 | Code::Cmpsd_m32_m32 | Code::Cmpsq_m64_m64)
}

fn is_comparison(insn: &Instruction) -> bool {
    use Mnemonic::{Scasb, Scasd, Scasq, Scasw};
    is_repeated(insn) && (is_cmps(insn) || matches!(insn.mnemonic(), Scasb | Scasw | Scasd | Scasq))
}

/// A repeated string instruction of 64-bit code that addresses by 32 bits.
fn is_short_string(insn: &Instruction) -> bool {
    is_repeated(insn)
        && (0..insn.op_count()).any(|i| matches!(insn.op_kind(i), OpKind::MemorySegESI | OpKind::MemoryESEDI))
}

#[rustfmt::skip]
fn is_segment_push(insn: &Instruction) -> bool {
    use Code::{Pushd_CS, Pushd_DS, Pushd_ES, Pushd_FS, Pushd_GS, Pushd_SS};
    matches!(insn.code(), Pushd_CS | Pushd_DS | Pushd_ES | Pushd_FS | Pushd_GS | Pushd_SS)
}

#[rustfmt::skip]
fn is_segment_pop(insn: &Instruction) -> bool {
    use Code::{Popd_DS, Popd_ES, Popd_FS, Popd_GS, Popd_SS, Popq_FS, Popq_GS};
    matches!(insn.code(), Popd_DS | Popd_ES | Popd_FS | Popd_GS | Popd_SS | Popq_FS | Popq_GS)
}

/// How many segment registers may have been pushed. Where a branch leads, nobody has decoded what ran and counted
/// how often: there, bytes that could be such a push stand for any number.
fn segment_pushes(ends: &Ends) -> usize {
    let short = |byte: &u8| matches!(byte, 0x06 | 0x0e | 0x16 | 0x1e);
    let long = |pair: &[u8]| matches!(pair, [0x0f, 0xa0 | 0xa8]);
    if branches(ends) && (ends.code.iter().any(short) || ends.code.windows(2).any(long)) {
        return ends.native.memory.len();
    }
    completed(ends, is_segment_push)
}

/// All bytes of memory that differ are upper halves of segment registers the processor pushed.
fn differs_in_pushes(ends: &Ends) -> bool {
    let different = different_bytes(ends);
    different.iter().all(|byte| *byte == 0) && different.len() <= 2 * segment_pushes(ends)
}

/// All bytes of memory that differ are pointers in x87 images, or such halves.
fn differs_in_images(ends: &Ends) -> bool {
    pointer_bytes(ends) > 0 && different_bytes(ends).len() <= pointer_bytes(ends) + 2 * segment_pushes(ends)
}

/// Bytes of memory that differ, as the processor left them.
fn different_bytes(ends: &Ends) -> Vec<u8> {
    let pairs = ends.native.memory.iter().zip(&ends.guest.memory);
    pairs.filter(|(native, guest)| native != guest).map(|(native, _)| *native).collect()
}

fn completed(ends: &Ends, is: impl Fn(&Instruction) -> bool) -> usize {
    ends.completed.iter().filter(|placed| is(&placed.insn)).count()
}

/// Bytes of pointers, and of the mask of MXCSR, that the completed instructions wrote. As with
/// [`segment_pushes`], after a branch what could be such an instruction counts.
fn pointer_bytes(ends: &Ends) -> usize {
    const ENVIRONMENT: usize = 14;
    const STATE: usize = 22;
    use Mnemonic::{Fnsave, Fnstenv, Fxsave, Fxsave64};
    if branches(ends) {
        let stores = |modrm: u8, number: u8| modrm < 0xc0 && modrm >> 3 & 7 == number;
        let written = (0..ends.code.len()).map(|at| match ends.code[at..] {
            [0x0f, 0xae, modrm, ..] if stores(modrm, 0) => STATE,
            [0xd9 | 0xdd, modrm, ..] if stores(modrm, 6) => ENVIRONMENT,
            _ => 0,
        });
        return written.sum();
    }
    ENVIRONMENT * completed(ends, |insn| matches!(insn.mnemonic(), Fnsave | Fnstenv))
        + STATE * completed(ends, |insn| matches!(insn.mnemonic(), Fxsave | Fxsave64))
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
            is_gather(&ends.insn) && at_one(ends) && is_memory_fault(ends.native) && is_memory_fault(ends.guest)
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
        explains: |ends, name| name == "cr2" && one_fault(ends)
            && is_cmps(&ends.insn),
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
        explains: |ends, name| name.starts_with("data") && differs_in_images(ends),
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
        what: "AMD: what was pushed of a segment register, or is a pointer in an x87 image, loaded again",
        applies: |ends| !different_bytes(ends).is_empty()
            && (differs_in_images(ends) || pointer_bytes(ends) == 0 && differs_in_pushes(ends)),
    },
    Known {
        what: "AMD: far returns look at the stack, and at its alignment, before the selector",
        applies: |ends| ends.insn.mnemonic() == Mnemonic::Retf && at_one(ends) && only_which_fault(ends)
            && matches!((ends.native.fault.vector, ends.guest.fault.vector),
                (STACK_FAULT | PAGE_FAULT | ALIGNMENT, PROTECTION) | (ALIGNMENT, PAGE_FAULT)),
    },
    Known {
        what: "AMD: IRET compares the instruction pointer with its segment's limit before it looks at SS",
        applies: |ends| matches!(ends.insn.mnemonic(), Mnemonic::Iretd | Mnemonic::Iretq) && ends.wide
            && at_one(ends) && ends.every(|name| name == "error code")
            && ends.native.fault.vector == PROTECTION && ends.native.fault.code == 0,
    },
    Known {
        what: "AMD: an operand over the end of 4 GiB is outside a flat segment",
        applies: |ends| at_one(ends) && only_which_fault(ends) && !ends.wide && is_over_the_end(ends)
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
        what: "AMD: an operand size truncates the target of a near branch in 64-bit code",
        applies: has_short_branch,
    },
    Known {
        what: "AMD: REP takes part in LOOP",
        applies: has_repeated_loop,
    },
    Known {
        what: "AMD: VERW is executed with LOCK",
        applies: |ends| ends.guest.fault.vector == UNDEFINED && is_locked_verw(ends),
    },
    Known {
        what: "AMD: MXCSR has a bit for misaligned operands",
        applies: |ends| ends.guest.fault.vector == PROTECTION && ends.native.registers.fx[fx::MXCSR + 2] & 2 != 0,
    },
    Known {
        what: "AMD: F3 90 with REX.B is no PAUSE but an exchange",
        applies: |ends| ends.wide && ends.all.iter().any(|placed| placed.insn.mnemonic() == Mnemonic::Pause
            && prefixes(ends, placed.at).0.last().is_some_and(|rex| rex & 0xf1 == 0x41)),
    },
    Known {
        what: "AMD: a repeated string instruction of no elements left wide registers as they are, and they were used",
        applies: |ends| ends.wide && completed(ends, is_short_string) > 0,
    },
    Known {
        what: "AMD: CMPS looks at its operands in the other order",
        applies: |ends| is_cmps(&ends.insn) && at_one(ends) && only_which_fault(ends)
            && is_memory_fault(ends.native) && is_memory_fault(ends.guest),
    },
    Known {
        what: "AMD: a masked store over the end of a page reports the page it begins in",
        applies: |ends| ends.native.fault.vector == PAGE_FAULT && ends.guest.fault.vector == PAGE_FAULT
            && is_masked(&ends.insn) && at_one(ends) && only_which_fault(ends)
            && ends.guest.fault.address.wrapping_sub(ends.native.fault.address) < 32,
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
        what: "AMD: UD0 and UD1 have no operands",
        applies: |ends| matches!(ends.insn.mnemonic(), Mnemonic::Ud0 | Mnemonic::Ud1) && at_one(ends) && only_which_fault(ends)
            && ends.native.fault.vector == UNDEFINED,
    },
];
