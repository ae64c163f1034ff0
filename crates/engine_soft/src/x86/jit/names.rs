//! Names for what translations refer to, in listings: the vCPU's cells behind GS always; stubs, sites and places in the
//! code where a listing must be the same whatever their addresses.

use std::collections::HashMap;
use std::mem::offset_of;
use std::rc::Rc;

use arch::x86::state::FxImage;
use arch::x86::state::Msrs;
use arch::x86::{CpuState, Segment};
use engine::Statistics;
use iced_x86::{Formatter, GasFormatter, Instruction, OpKind, Register, SymbolResolver, SymbolResult};

use super::Frame;
use super::group::GROUPS;
use crate::x86::interp::cpu::Cpu;
use crate::x86::known::{FixedPages, Known, OperandPages, StackPage};
use crate::x86::mmu::Mmu;
use crate::x86::width::StatusFlags;

/// General purpose registers by number.
pub(super) const REGISTERS: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15",
];
const SEGMENTS: [&str; 6] = ["es", "cs", "ss", "ds", "fs", "gs"];

/// A cell, or an array of them: its name, the offset in the vCPU, how many, and the bytes of each.
type Cells = (&'static str, usize, usize, usize);

const STATE: usize = offset_of!(Cpu, state);
const FRAME: usize = offset_of!(Cpu, frame);

/// What generated code reaches through GS.
const CELLS: &[Cells] = &[
    ("rflags", STATE + offset_of!(CpuState, rflags), 1, 8),
    ("cr4", STATE + offset_of!(CpuState, cr4), 1, 8),
    ("tsc_offset", STATE + offset_of!(CpuState, tsc_offset), 1, 8),
    ("ymm", STATE + offset_of!(CpuState, ymm), 16, 32),
    ("mxcsr", STATE + offset_of!(CpuState, fx) + offset_of!(FxImage, mxcsr), 1, 4),
    ("flags", offset_of!(Cpu, flags), 1, size_of::<StatusFlags>()),
    ("tlb", offset_of!(Cpu, tlb), 1, 8),
    ("open_segments", offset_of!(Cpu, open_segments), 1, 1),
    ("view", offset_of!(Cpu, view), 1, 8),
    ("kernel_gs_base", STATE + offset_of!(CpuState, msrs) + offset_of!(Msrs, kernel_gs_base), 1, 8),
    ("interrupt_hint", offset_of!(Cpu, interrupt_hint), 1, 1),
    ("instructions", offset_of!(Cpu, counters) + offset_of!(Statistics, instructions), 1, 8),
    ("frame.cpu", FRAME + offset_of!(Frame, cpu), 1, 8),
    ("frame.page", FRAME + offset_of!(Frame, page), 1, 8),
    ("frame.host_stack", FRAME + offset_of!(Frame, host_stack), 1, 8),
    ("frame.addends", FRAME + offset_of!(Frame, addends), GROUPS, 8),
    ("frame.returns", FRAME + offset_of!(Frame, returns), 1, 8),
    ("frame.no_returns", FRAME + offset_of!(Frame, no_returns), 1, 8),
    ("frame.resume", FRAME + offset_of!(Frame, resume), 1, 8),
    ("frame.target", FRAME + offset_of!(Frame, target), 1, 8),
    ("frame.saved_rax", FRAME + offset_of!(Frame, saved_rax), 1, 8),
    ("frame.slow", FRAME + offset_of!(Frame, slow), 1, 8),
    ("frame.host_mxcsr", FRAME + offset_of!(Frame, host_mxcsr), 1, 4),
    ("frame.vectors", FRAME + offset_of!(Frame, vectors), 1, 1),
    ("frame.wanted", FRAME + offset_of!(Frame, wanted), 1, 1),
    ("frame.x87", FRAME + offset_of!(Frame, x87), 1, 1),
    ("frame.x87_offset", FRAME + offset_of!(Frame, x87_offset), 1, 4),
    ("frame.x87_page", FRAME + offset_of!(Frame, x87_page), 1, 8),
];

/// What of [`Known`] it reaches, by the offset there.
const KNOWN: &[Cells] = &[
    ("stack.page", offset_of!(Known, stack) + offset_of!(StackPage, page), 1, 8),
    ("stack.addend", offset_of!(Known, stack) + offset_of!(StackPage, addend), 1, 8),
    ("fixed.page", offset_of!(Known, fixed) + offset_of!(FixedPages, page), FixedPages::COUNT, 8),
    ("fixed.host", offset_of!(Known, fixed) + offset_of!(FixedPages, host), FixedPages::COUNT, 8),
    ("page", offset_of!(Known, operands) + offset_of!(OperandPages, page), OperandPages::COUNT, 8),
    ("limit", offset_of!(Known, operands) + offset_of!(OperandPages, limit), OperandPages::COUNT, 8),
    ("addend", offset_of!(Known, operands) + offset_of!(OperandPages, addend), OperandPages::COUNT, 8),
];

fn one_of(cells: &[Cells], offset: usize) -> Option<String> {
    cells.iter().find_map(|&(name, start, count, size)| {
        let (index, within) = (offset.checked_sub(start)? / size, (offset - start) % size);
        let place = if count == 1 { name.to_owned() } else { format!("{name}[{index}]") };
        (index < count).then(|| if within == 0 { place } else { format!("{place}+{within}") })
    })
}

/// What is at `offset` of the vCPU, if generated code has any business there.
fn cell(offset: usize) -> Option<String> {
    let after = |start: usize, size: usize, count: usize| {
        let index = offset.checked_sub(start)? / size;
        (index < count).then_some((index, (offset - start) % size))
    };
    if let Some((register, 0)) = after(STATE + offset_of!(CpuState, gpr), 8, REGISTERS.len()) {
        return Some(REGISTERS[register].to_owned());
    }
    let segments = STATE + offset_of!(CpuState, segments);
    if let Some((segment, field)) = after(segments, size_of::<Segment>(), SEGMENTS.len()) {
        let fields = [
            (offset_of!(Segment, selector), "selector"),
            (offset_of!(Segment, base), "base"),
            (offset_of!(Segment, access), "access"),
        ];
        let name = fields.iter().find(|known| known.0 == field)?.1;
        return Some(format!("{}.{name}", SEGMENTS[segment]));
    }
    let known = offset_of!(Cpu, mmu) + offset_of!(Mmu, known);
    if let Some((user, within)) = after(known, size_of::<Known>(), 2) {
        return Some(format!("{}.{}", ["kernel", "user"][user], one_of(KNOWN, within)?));
    }
    one_of(CELLS, offset)
}

/// Names of one listing.
#[derive(Debug, Default)]
pub struct Names {
    /// Of host addresses that are loaded into the scratch registers, or named by instructions: sites, counters and tables.
    pub(super) data: HashMap<u64, String>,
    /// Of host addresses that are jumped to: stubs and places in the code.
    pub(super) code: HashMap<u64, String>,
    /// What is said behind the instruction at a host address.
    pub(super) notes: HashMap<u64, String>,
    /// Whether what is needed rarely is listed.
    pub(super) cold: bool,
}

/// An instruction of the guest's as text.
pub(super) fn guest(instruction: &Instruction) -> String {
    format(GasFormatter::new(), instruction)
}

/// An instruction of the host's as text. Cells that have no name become `unnamed+OFFSET`.
pub(super) fn host(instruction: &Instruction, names: &Rc<Names>) -> String {
    format(GasFormatter::with_options(Some(Box::new(Resolver(names.clone()))), None), instruction)
}

fn format(mut formatter: GasFormatter, instruction: &Instruction) -> String {
    let mut text = String::new();
    let options = formatter.options_mut();
    options.set_gas_naked_registers(true);
    options.set_uppercase_hex(false);
    options.set_branch_leading_zeros(false);
    options.set_small_hex_numbers_in_decimal(true);
    formatter.format(instruction, &mut text);
    text
}

struct Resolver(Rc<Names>);

impl SymbolResolver for Resolver {
    fn symbol(
        &mut self,
        instruction: &Instruction,
        _: u32,
        operand: Option<u32>,
        address: u64,
        _: u32,
    ) -> Option<SymbolResult<'_>> {
        let kind = instruction.try_op_kind(operand?).ok()?;
        let named = |text: &String| SymbolResult::with_string(address, text.clone());
        match kind {
            OpKind::NearBranch64 => self.0.code.get(&address).map(named),
            OpKind::Immediate64 | OpKind::Immediate32
                if matches!(instruction.op0_register(), Register::R10 | Register::R11) =>
            {
                self.0.data.get(&address).map(named)
            }
            OpKind::Memory if instruction.memory_segment() == Register::GS => {
                let offset = usize::try_from(address).ok()?;
                Some(named(&cell(offset).unwrap_or_else(|| format!("unnamed+{offset:#x}"))))
            }
            OpKind::Memory if matches!(instruction.memory_base(), Register::None | Register::R11) => {
                self.0.data.get(&address).map(named)
            }
            _ => None,
        }
    }
}
