//! The differences we know and accept, each with its reason. All concern what is left behind by an instruction
//! that faults, which software can only see by looking for it.

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic};

use crate::amd;
use crate::case::Output;
use crate::compare;
use crate::generate::{Case, Placed};

/// One accepted difference.
pub struct Known {
    /// What differs, and why we leave it.
    pub what: &'static str,
    pub applies: fn(&Ends) -> bool,
}

/// Both ends of a case, and the instruction at which the processor's came.
pub struct Ends<'a> {
    pub insn: Instruction,
    /// All instructions of the case.
    pub all: &'a [Placed],
    /// The instructions that were completed, as far as known.
    pub completed: &'a [Placed],
    pub native: &'a Output,
    pub guest: &'a Output,
    pub lines: &'a [String],
}

const DEBUG: u32 = 1;
pub const UNDEFINED: u32 = 6;
pub const STACK_FAULT: u32 = 12;
pub const PROTECTION: u32 = 13;
pub const PAGE_FAULT: u32 = 14;
pub const ALIGNMENT: u32 = 17;

#[rustfmt::skip]
const KNOWN: &[Known] = &[
    Known {
        what: "CR2 of a masked store that faults: microcode reports another byte of the operand",
        applies: |ends| is_masked(&ends.insn) && ends.native.fault.vector == PAGE_FAULT
            && (ends.native.fault.address as u32).abs_diff(ends.guest.fault.address as u32) < 32 && ends.only("cr2"),
    },
    Known {
        what: "upper half of a 128-bit gather's destination once it has faulted: cleared at some element or other",
        applies: |ends| is_gather(&ends.insn) && ends.native.fault.vector == ends.guest.fault.vector
            && ends.only(&format!("ymm{} high", ends.insn.op0_register().number())),
    },
    Known {
        what: "a masked move that begins in a segment and ends behind it: its limit goes before page faults",
        applies: |ends| is_masked(&ends.insn) && matches!(ends.native.fault.vector, STACK_FAULT | PROTECTION)
            && ends.guest.fault.vector == PAGE_FAULT,
    },
    Known {
        what: "an x87 or FXSAVE image at the end of page or segment: which piece is tried, checked and stored first",
        applies: |ends| is_in_pieces(&ends.insn) && ends.native.registers.rip == ends.guest.registers.rip
            && is_memory_fault(ends.native) && is_memory_fault(ends.guest),
    },
    Known {
        what: "LSL of the segment in whose limit Linux keeps the processor's number",
        applies: |ends| ends.ran(Mnemonic::Lsl) && ends.lines.len() == 1
            && ends.native.fault == ends.guest.fault,
    },
    Known {
        what: "a gather that faults under TF: the processor may trap between its elements first",
        applies: |ends| is_gather(&ends.insn) && ends.native.fault.vector == DEBUG,
    },
    Known {
        what: "an encoding without meaning that the page or segment cuts: #UD at once, not the fault of the rest",
        applies: |ends| ends.insn.is_invalid() && ends.guest.fault.vector == UNDEFINED
            && matches!(ends.native.fault.vector, PAGE_FAULT | PROTECTION)
            && ends.native.registers.rip == ends.guest.registers.rip,
    },
    Known {
        what: "a single byte without meaning at the end of a page: the decoder asks for a second one",
        applies: |ends| ends.insn.is_invalid() && ends.native.fault.vector == UNDEFINED
            && matches!(ends.guest.fault.vector, PAGE_FAULT | PROTECTION)
            && ends.native.registers.rip == ends.guest.registers.rip,
    },
    Known {
        what: "RETF that releases parameters over the end of a 16-bit stack: the upper half of ESP changes",
        applies: |ends| ends.ran(Mnemonic::Retf) && ends.only("rsp")
            && ends.native.registers.gpr[4] as u16 == ends.guest.registers.gpr[4] as u16,
    },
];

impl Ends<'_> {
    pub fn ran(&self, mnemonic: Mnemonic) -> bool {
        self.completed.iter().any(|placed| placed.insn.mnemonic() == mnemonic)
    }

    /// Whether `name` is all that differs.
    fn only(&self, name: &str) -> bool {
        self.lines.iter().all(|line| line.split(':').next() == Some(name))
    }
}

/// Why the differences `lines` are accepted, if they are.
pub fn reason(case: &Case, native: &Output, guest: &Output, lines: &[String]) -> Option<&'static str> {
    let input = &case.input;
    let at = usize::try_from(native.registers.rip.wrapping_sub(input.registers.rip)).ok()?;
    let code = input.code.get(at..input.code_len).unwrap_or_default();
    let insn = Decoder::new(input.bits.count(), code, DecoderOptions::NONE).decode();
    let count = compare::completed(case, native).unwrap_or(case.instructions.len());
    let completed = &case.instructions[..count];
    let ends = Ends { insn, all: &case.instructions, completed, native, guest, lines };
    let vendor = if amd::is_here() { amd::KNOWN } else { &[] };
    KNOWN.iter().chain(vendor).find(|known| (known.applies)(&ends)).map(|known| known.what)
}

pub fn is_memory_fault(output: &Output) -> bool {
    matches!(output.fault.vector, STACK_FAULT | PROTECTION | PAGE_FAULT | ALIGNMENT)
}

/// Eighty-bit numbers, x87 environments and states.
fn is_in_pieces(insn: &Instruction) -> bool {
    !matches!(insn.mnemonic(), Mnemonic::Lgdt | Mnemonic::Lidt)
        && matches!(insn.memory_size().size(), 10 | 14 | 28 | 94 | 108 | 512)
}

fn is_gather(insn: &Instruction) -> bool {
    insn.is_vsib()
}

/// VMASKMOV, VPMASKMOV and MASKMOV.
fn is_masked(insn: &Instruction) -> bool {
    use Mnemonic::*;
    matches!(
        insn.mnemonic(),
        Vmaskmovps | Vmaskmovpd | Vpmaskmovd | Vpmaskmovq | Maskmovq | Maskmovdqu | Vmaskmovdqu
    )
}
