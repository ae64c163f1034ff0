//! The differences we know and accept, each with its reason. All concern what is left behind by an instruction
//! that faults, which software can only see by looking for it.

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic};

use crate::amd;
use crate::case::{Bits, Output};
use crate::compare;
use crate::generate::{Case, Placed};
use crate::layout::PAGE;

/// One accepted difference.
pub struct Known {
    /// What differs, and why we leave it.
    pub what: &'static str,
    pub applies: fn(&Ends) -> bool,
}

/// Something left behind that may differ, whatever else does.
pub struct Part {
    pub what: &'static str,
    /// Whether it is what the line of this name is about.
    pub explains: fn(&Ends, &str) -> bool,
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
    /// Whether the case began as 64-bit code.
    pub wide: bool,
    /// The bytes of all instructions: a branch may lead into the middle of one.
    pub code: &'a [u8],
    /// Where the first of them is.
    pub start: u64,
}

pub const DEBUG: u32 = 1;
pub const BOUND_RANGE: u32 = 5;
pub const UNDEFINED: u32 = 6;
pub const STACK_FAULT: u32 = 12;
pub const PROTECTION: u32 = 13;
pub const PAGE_FAULT: u32 = 14;
pub const ALIGNMENT: u32 = 17;
pub const SIMD: u32 = 19;

#[rustfmt::skip]
const KNOWN: &[Known] = &[
    Known {
        what: "CR2 of a masked store that faults: microcode reports another byte of the operand",
        applies: |ends| is_masked(&ends.insn) && ends.native.fault.vector == PAGE_FAULT
            && distance(ends.native.fault.address, ends.guest.fault.address) < 32 && ends.only("cr2"),
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
        what: "MASKMOVQ and its kin, misaligned, over the end of a segment: limit or alignment first",
        applies: |ends| matches!(ends.insn.mnemonic(), Mnemonic::Maskmovq | Mnemonic::Maskmovdqu | Mnemonic::Vmaskmovdqu)
            && matches!(ends.native.fault.vector, STACK_FAULT | PROTECTION) && ends.guest.fault.vector == ALIGNMENT
            && ends.native.registers.rip == ends.guest.registers.rip,
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
    Known {
        what: "BOUND whose upper limit is beyond the segment: it is not read once the lower one is not kept",
        applies: |ends| ends.insn.mnemonic() == Mnemonic::Bound && ends.native.fault.vector == BOUND_RANGE
            && is_memory_fault(ends.guest) && ends.native.registers.rip == ends.guest.registers.rip,
    },
    Known {
        what: "a restored x87 pointer beyond 48 bits, of which a processor with 57-bit addresses keeps more",
        applies: |ends| ends.every(|name| matches!(name, "fip" | "fdp"))
            && [("fip", 8), ("fdp", 16)].into_iter().all(|(name, at)| ends.agree_on(name) || ends.agree_in_48_bits(at)),
    },
];

impl Ends<'_> {
    pub fn ran(&self, mnemonic: Mnemonic) -> bool {
        self.completed.iter().any(|placed| placed.insn.mnemonic() == mnemonic)
    }

    /// Whether `name` does not differ.
    fn agree_on(&self, name: &str) -> bool {
        self.lines.iter().all(|line| name_of(line) != name)
    }

    /// Whether the x87 pointers at `at` of the FXSAVE images are the same address of a processor with 48-bit ones, and
    /// the processor's one of 57 bits.
    fn agree_in_48_bits(&self, at: usize) -> bool {
        let pointer = |output: &Output| {
            u64::from_le_bytes(output.registers.fx[at..at + 8].try_into().expect("eight bytes"))
        };
        let extended = |from: u32| ((pointer(self.native) << (64 - from)) as i64 >> (64 - from)) as u64;
        extended(48) == pointer(self.guest) && extended(57) == pointer(self.native)
    }

    /// Whether `name` is all that differs.
    fn only(&self, name: &str) -> bool {
        self.every(|other| other == name)
    }

    /// Whether all that differs is `accepted`.
    pub fn every(&self, accepted: impl Fn(&str) -> bool) -> bool {
        self.lines.iter().all(|line| accepted(name_of(line)))
    }
}

/// Why the differences `lines` are accepted, if they are.
pub fn reason(case: &Case, native: &Output, guest: &Output, lines: &[String]) -> Option<&'static str> {
    let input = &case.input;
    let at = usize::try_from(native.registers.rip.wrapping_sub(input.registers.rip)).ok()?;
    let code = input.code.get(at..input.code_len).unwrap_or_default();
    let ip = native.registers.rip;
    let insn = Decoder::with_ip(input.bits.count(), code, ip, DecoderOptions::NONE).decode();
    let count = compare::completed(case, native).unwrap_or(case.instructions.len());
    let completed = &case.instructions[..count];
    let wide = input.bits == Bits::B64;
    let (code, start) = (&input.code[..input.code_len], input.registers.rip);
    let mut ends = Ends { insn, all: &case.instructions, completed, native, guest, lines, wide, code, start };
    let found = |ends: &Ends, known: &[Known]| {
        let found = known.iter().find(|known| (known.applies)(ends));
        found.map(|known| known.what)
    };
    let anywhere = found(&ends, KNOWN);
    if anywhere.is_some() || !amd::is_here() {
        return anywhere;
    }
    if insn.is_invalid() && input.code_offset + input.code.len() <= PAGE as usize {
        // A branch into the middle of the last instruction made one of its end and the breakpoints behind it.
        let code = input.code.get(at..).unwrap_or_default();
        ends.insn = Decoder::with_ip(input.bits.count(), code, ip, DecoderOptions::NONE).decode();
    }
    let mut explained = None;
    let mut rest = Vec::new();
    for line in lines {
        match amd::PARTS.iter().find(|part| (part.explains)(&ends, name_of(line))) {
            Some(part) => explained = Some(part.what),
            None => rest.push(line.clone()),
        }
    }
    if rest.is_empty() {
        return explained;
    }
    ends.lines = &rest;
    found(&ends, KNOWN).or_else(|| found(&ends, amd::KNOWN))
}

/// How far two addresses are apart, also over the end of 4 GiB.
fn distance(a: u64, b: u64) -> u32 {
    let ahead = (a as u32).wrapping_sub(b as u32);
    ahead.min(ahead.wrapping_neg())
}

/// What a line is about.
fn name_of(line: &str) -> &str {
    line.split(':').next().unwrap_or_default()
}

pub fn is_memory_fault(output: &Output) -> bool {
    matches!(output.fault.vector, STACK_FAULT | PROTECTION | PAGE_FAULT | ALIGNMENT)
}

/// Eighty-bit numbers, x87 environments and states.
fn is_in_pieces(insn: &Instruction) -> bool {
    !matches!(insn.mnemonic(), Mnemonic::Lgdt | Mnemonic::Lidt)
        && matches!(insn.memory_size().size(), 10 | 14 | 28 | 94 | 108 | 512)
}

pub fn is_gather(insn: &Instruction) -> bool {
    insn.is_vsib()
}

/// VMASKMOV, VPMASKMOV and MASKMOV.
pub fn is_masked(insn: &Instruction) -> bool {
    use Mnemonic::*;
    matches!(
        insn.mnemonic(),
        Vmaskmovps | Vmaskmovpd | Vpmaskmovd | Vpmaskmovq | Maskmovq | Maskmovdqu | Vmaskmovdqu
    )
}
