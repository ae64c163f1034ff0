//! The differences we know and accept, each with its reason. All concern what is left behind by an instruction
//! that faults, which software can only see by looking for it.

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic};

use crate::case::Output;
use crate::generate::Case;

/// One accepted difference.
struct Known {
    /// What differs, and why we leave it.
    what: &'static str,
    applies: fn(&Ends) -> bool,
}

/// Both ends of a case, and the instruction at which the processor's came.
struct Ends<'a> {
    insn: Instruction,
    native: &'a Output,
    guest: &'a Output,
    lines: &'a [String],
}

const DEBUG: u32 = 1;
const UNDEFINED: u32 = 6;
const PROTECTION: u32 = 13;
const PAGE_FAULT: u32 = 14;

#[rustfmt::skip]
const KNOWN: &[Known] = &[
    Known {
        what: "CR2 of a masked store that faults: microcode reports another byte of the operand",
        applies: |ends| is_masked_store(&ends.insn) && ends.native.fault.vector == PAGE_FAULT
            && ends.native.fault.address.abs_diff(ends.guest.fault.address) < 32 && ends.only("cr2"),
    },
    Known {
        what: "upper half of a 128-bit gather's destination once it has faulted: cleared at some element or other",
        applies: |ends| is_gather(&ends.insn) && ends.native.fault == ends.guest.fault
            && ends.only(&format!("ymm{} high", ends.insn.op0_register().number())),
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
];

impl Ends<'_> {
    /// Whether `name` is all that differs.
    fn only(&self, name: &str) -> bool {
        self.lines.iter().all(|line| line.split(':').next() == Some(name))
    }
}

/// Why the differences `lines` are accepted, if they are.
pub fn reason(case: &Case, native: &Output, guest: &Output, lines: &[String]) -> Option<&'static str> {
    let input = &case.input;
    let at = usize::try_from(native.registers.rip.wrapping_sub(input.registers.rip)).ok()?;
    let code = input.code.get(at..input.code_len)?;
    let insn = Decoder::new(input.bits.count(), code, DecoderOptions::NONE).decode();
    let ends = Ends { insn, native, guest, lines };
    KNOWN.iter().find(|known| (known.applies)(&ends)).map(|known| known.what)
}

fn is_gather(insn: &Instruction) -> bool {
    insn.is_vsib()
}

fn is_masked_store(insn: &Instruction) -> bool {
    use Mnemonic::*;
    matches!(
        insn.mnemonic(),
        Vmaskmovps | Vmaskmovpd | Vpmaskmovd | Vpmaskmovq | Maskmovq | Maskmovdqu | Vmaskmovdqu
    )
}
