//! Vector, x87, MMX and rare integer instructions, by running them on the host's processor.
//!
//! [`Thunks::compile`] makes a [`Thunk`] for an instruction: a short piece of host code that loads the
//! registers the instruction uses from [`CpuState`], runs the instruction itself with its memory operand
//! replaced by a pointer, and stores back what it wrote. Thunks are shared by all uses of one form, so their
//! number does not grow with the guest's code. What must not or cannot run on the host is carried out here.
//!
//! The caller decodes, then for each execution: [`check_enabled`] with [`Thunk::class`]; resolves the memory
//! operand as [`Thunk::memory`] says; and calls [`Thunks::run`], or [`Thunks::run_scattered`] if
//! [`Thunk::is_scattered`].
//!
//! Reading order: this file; `form` (what is allowed, and what each form needs); `registers` and `emit` (the
//! host code); `code` (where it lives); `simd_error`; then what runs here: `builtin`, `x87`, `scattered`.
//!
//! Deliberately absent: control flow, stack, string, segment and privileged instructions; DIV and IDIV; FXSAVE
//! and XSAVE; translation of addresses.
// UNSAFETY: runs generated code on pointers to guest memory.
#![cfg(target_arch = "x86_64")]

mod builtin;
mod emit;
mod enabled;
mod features;
mod form;
mod kinds;
mod registers;
mod scattered;
mod simd_error;
#[cfg(test)]
mod tests;
mod x87;

use std::collections::HashMap;
use std::io;

use arch::x86::cpuid::Feature;
use arch::x86::state::FxImage;
use arch::x86::{CpuState, Cr4, Exception, Vector};
use iced_x86::Instruction;

use crate::x86::code::CodeArea;
use features::Features;
use form::{Builtin, Form, Means};

pub use enabled::{check_enabled, x87_pending_error};
pub use features::host_features;
pub use scattered::{OperandMemory, enter_mmx, leave_stack};

/// Bytes of executable memory of one vCPU; some thousand forms.
const AREA_BYTES: usize = 1 << 20;
/// Forms, refused ones included, remembered before all are thrown away: a bound a guest cannot move.
const MAX_FORMS: usize = 1 << 14;
/// Size of the largest memory operand: what a bounce buffer must hold.
pub const MAX_OPERAND_BYTES: usize = 128;

/// What decides whether an instruction may run now; see [`check_enabled`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// General purpose registers only.
    Integer,
    /// General purpose registers only, VEX-encoded (BMI).
    VexInteger,
    /// XMM registers or MXCSR, without VEX.
    Sse,
    /// XMM or YMM registers, with VEX.
    Avx,
    /// x87 instructions that report a pending error first.
    X87,
    /// x87 instructions that do not.
    X87Control,
    /// FWAIT.
    Wait,
    /// MMX registers.
    Mmx,
    /// MMX registers, and XMM registers or MXCSR.
    MmxSse,
}

/// What an instruction does to its memory operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Loads it.
    Read,
    /// Stores it without looking.
    Write,
    /// Loads and stores it, or may leave it as it was.
    ReadWrite,
}

/// The memory operand of an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryOperand {
    /// Bytes, 1..=[`MAX_OPERAND_BYTES`].
    pub size: u8,
    /// What the effective linear address must be a multiple of, else #GP(0). The host pointer must be too.
    pub alignment: u8,
    /// Loaded, stored or both.
    pub access: Access,
    /// LOCK or XCHG: the pointer must be into guest RAM, not to a copy.
    pub atomic: bool,
}

/// Why there is no thunk for an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsupported {
    /// The guest's CPU model does not have it: #UD.
    #[error("the cpu model does not offer the instruction")]
    NotOffered,
    /// This host cannot run it; #UD, and a model that offers it should not have been accepted here.
    #[error("the host does not have the instruction")]
    NotOnHost,
    /// Not an instruction this module carries out.
    #[error("the instruction is not run on the host")]
    NotHere,
    /// The host refused to change the protection of executable memory.
    #[error("the host refuses executable memory")]
    NoMemory,
}

/// Why [`Thunks::run`] did not complete an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trap {
    /// It raised this; nothing but MXCSR's error flags has changed.
    Exception(Exception),
    /// The thunk was thrown away since; compile the instruction again. Nothing has changed.
    Stale,
}

impl From<Exception> for Trap {
    fn from(exception: Exception) -> Self {
        Self::Exception(exception)
    }
}

/// Addresses the x87 remembers: what FIP and FDP become.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pointers {
    /// Offset of the instruction in CS.
    pub rip: u64,
    /// Offset of the memory operand in its segment; any value if there is none.
    pub operand: u64,
}

#[derive(Clone, Copy, Debug)]
enum Action {
    /// Run the code at this offset, made in this generation of the area.
    Host { offset: u32, generation: u32 },
    /// Run our own code.
    Builtin(Builtin),
}

/// An instruction, ready to run. Small; keep it with the decoded instruction.
#[derive(Clone, Copy, Debug)]
pub struct Thunk {
    action: Action,
    class: Class,
    memory: Option<MemoryOperand>,
    uses_mxcsr: bool,
    x87_opcode: u16,
}

impl Thunk {
    /// What to pass to [`check_enabled`].
    pub fn class(&self) -> Class {
        self.class
    }

    /// The memory operand to resolve, if [`Thunks::run`] needs one.
    pub fn memory(&self) -> Option<MemoryOperand> {
        self.memory
    }

    /// Whether the host's own instruction does the work.
    pub fn is_host_code(&self) -> bool {
        matches!(self.action, Action::Host { .. })
    }

    /// Whether this runs through [`Thunks::run_scattered`].
    pub fn is_scattered(&self) -> bool {
        matches!(
            self.action,
            Action::Builtin(
                Builtin::Gather | Builtin::MaskedLoad | Builtin::MaskedStore | Builtin::MaskedBytes
            )
        )
    }
}

/// The thunks of one vCPU.
#[derive(Debug)]
pub struct Thunks {
    area: CodeArea,
    shared_exit: u32,
    features: Features,
    /// By normalised instruction and whether the code is 64-bit.
    forms: HashMap<(Instruction, bool), Result<Thunk, Unsupported>>,
    generation: u32,
}

impl Thunks {
    /// No thunks yet, for a guest whose CPU model answers `offered`.
    ///
    /// # Errors
    /// If the host does not give executable memory.
    pub fn new(offered: impl Fn(Feature) -> bool) -> io::Result<Self> {
        let mut area = CodeArea::new(AREA_BYTES)?;
        let (prologue, shared_exit) = emit::shared(area.next_address(), features::host_has(Feature::Avx))
            .expect("the shared exit is made of four plain instructions");
        area.push(&prologue)?.expect("a new area has room");
        area.seal_prologue();
        let features = Features::new(offered);
        Ok(Self { area, shared_exit, features, forms: HashMap::new(), generation: 0 })
    }

    /// Makes a thunk for `instruction`, decoded from `bytes` in code of `bits` (16, 32 or 64).
    ///
    /// When executable memory is full all thunks are thrown away; old ones then answer [`Trap::Stale`].
    ///
    /// # Errors
    /// [`Unsupported`], see there.
    pub fn compile(
        &mut self,
        instruction: &Instruction,
        bits: u32,
        bytes: &[u8],
    ) -> Result<Thunk, Unsupported> {
        let form = form::normalise(instruction, &self.features);
        let key = (form, bits == 64);
        let mut thunk = match self.forms.get(&key) {
            Some(known) => *known,
            None => {
                if self.forms.len() >= MAX_FORMS {
                    self.flush();
                }
                let made = self.make(&form, bits);
                self.forms.insert(key, made);
                made
            }
        }?;
        if thunk.class == Class::X87 {
            thunk.x87_opcode = x87_opcode(bytes);
        }
        Ok(thunk)
    }

    fn make(&mut self, instruction: &Instruction, bits: u32) -> Result<Thunk, Unsupported> {
        let form = Form::of(instruction, bits, &self.features)?;
        let action = match form.means {
            Means::Builtin(builtin) => Action::Builtin(builtin),
            Means::Host => self.emit(instruction, &form)?,
        };
        let Form { class, memory, uses_mxcsr, .. } = form;
        Ok(Thunk { action, class, memory, uses_mxcsr, x87_opcode: 0 })
    }

    fn emit(&mut self, instruction: &Instruction, form: &Form) -> Result<Action, Unsupported> {
        for _ in 0..2 {
            let code = emit::thunk(instruction, form, self.area.next_address(), self.area.address(0))?;
            match self.area.push(&code) {
                Ok(Some(offset)) => return Ok(Action::Host { offset, generation: self.generation }),
                Ok(None) => self.flush(),
                Err(_) => return Err(Unsupported::NoMemory),
            }
        }
        Err(Unsupported::NoMemory)
    }

    /// Throws all thunks away.
    pub fn flush(&mut self) {
        self.area.clear();
        self.forms.clear();
        self.generation = self.generation.wrapping_add(1);
    }

    /// Whether `thunk` can still run.
    pub fn is_current(&self, thunk: &Thunk) -> bool {
        match thunk.action {
            Action::Host { generation, .. } => generation == self.generation,
            Action::Builtin(_) => true,
        }
    }

    /// Runs `thunk` on `state`. The caller has called [`check_enabled`] and resolved the operand.
    ///
    /// # Errors
    /// [`Trap`]. After an exception a copy of the memory operand must not be written back.
    ///
    /// # Safety
    /// `thunk` was made by this value. If [`Thunk::memory`] is `Some`, `memory` is valid for its size and
    /// access and has its alignment, and stays so throughout; else it is not looked at.
    #[inline]
    pub unsafe fn run(
        &self,
        thunk: &Thunk,
        state: &mut CpuState,
        memory: *mut u8,
        at: Pointers,
    ) -> Result<(), Trap> {
        let offset = match thunk.action {
            Action::Host { generation, .. } if generation != self.generation => return Err(Trap::Stale),
            Action::Host { offset, .. } => offset,
            // SAFETY: the caller's promise about `memory`.
            Action::Builtin(builtin) => return Ok(unsafe { builtin::run(builtin, state, memory) }?),
        };
        match thunk.class {
            // SAFETY: the generation is current, so `offset` is this thunk's; the rest the caller promises.
            Class::X87 | Class::Mmx => unsafe { self.run_x87(thunk, offset, state, memory, at) },
            // SAFETY: as above.
            Class::MmxSse => unsafe { self.run_mmx_sse(offset, state, memory) }?,
            _ if thunk.uses_mxcsr => {
                // SAFETY: as above.
                unsafe { self.run_float(offset, state, memory) }?;
            }
            _ => {
                // SAFETY: as above.
                unsafe { self.area.enter(offset, state, memory) };
            }
        }
        Ok(())
    }

    /// Runs a thunk that uses MXCSR.
    ///
    /// # Safety
    /// As for [`CodeArea::enter`].
    #[inline]
    unsafe fn run_float(&self, offset: u32, state: &mut CpuState, memory: *mut u8) -> Result<(), Exception> {
        const MASKS: u32 = 0x1f80;
        // Reserved bits would fault on the host.
        state.fx.mxcsr &= FxImage::MXCSR_MASK;
        if state.fx.mxcsr & MASKS == MASKS {
            // SAFETY: the caller's promise.
            unsafe { self.area.enter(offset, state, memory) };
            return Ok(());
        }
        // SAFETY: the caller's promise.
        match unsafe { simd_error::enter(&self.area, self.shared_exit, offset, state, memory) } {
            Ok(()) => Ok(()),
            Err(mxcsr) => {
                state.fx.mxcsr = mxcsr;
                let handled = state.cr4 & Cr4::OSXMMEXCPT.bits() != 0;
                Err(if handled { Exception::new(Vector::SimdError) } else { Exception::UD })
            }
        }
    }

    /// Runs a thunk on the x87 state, and makes the addresses the host noted the guest's.
    ///
    /// # Safety
    /// As for [`CodeArea::enter`].
    unsafe fn run_x87(
        &self,
        thunk: &Thunk,
        offset: u32,
        state: &mut CpuState,
        memory: *mut u8,
        at: Pointers,
    ) {
        state.fx.mxcsr &= FxImage::MXCSR_MASK;
        let before = (state.fx.fip, state.fx.fdp, state.fx.fop);
        let enter = |state: &mut CpuState| {
            // SAFETY: the caller's promise.
            unsafe { self.area.enter(offset, state, memory) }
        };
        let pending = x87_pending_error(state);
        if pending {
            x87::with_errors_masked(state, enter);
        } else {
            enter(state);
        }
        // An error notes the opcode even if the host's happens to be the one noted before.
        let erred = !pending && x87_pending_error(state);
        let fx = &mut state.fx;
        tidy(fx);
        let noted = fx.fip != before.0;
        if noted {
            fx.fip = at.rip;
        }
        if fx.fdp != before.1 {
            fx.fdp = if thunk.memory.is_some() { at.operand } else { before.1 };
        }
        if fx.fop != before.2 || (noted && erred) {
            fx.fop = thunk.x87_opcode;
        }
    }

    /// Runs a thunk on MMX registers and on XMM registers or MXCSR.
    ///
    /// # Safety
    /// As for [`CodeArea::enter`].
    unsafe fn run_mmx_sse(
        &self,
        offset: u32,
        state: &mut CpuState,
        memory: *mut u8,
    ) -> Result<(), Exception> {
        // SAFETY: the caller's promise.
        let run = |state: &mut CpuState| unsafe { self.run_float(offset, state, memory) };
        let result = if x87_pending_error(state) { x87::with_errors_masked(state, run) } else { run(state) };
        tidy(&mut state.fx);
        result
    }

    /// Runs a gather or masked move. `instruction` is the one the thunk was made for; `offset` is the
    /// effective address of its memory operand, needed for VMASKMOV and VPMASKMOV only.
    ///
    /// # Errors
    /// The exception of the first element that faults. A gather has then loaded the elements before it.
    pub fn run_scattered(
        &self,
        thunk: &Thunk,
        instruction: &Instruction,
        offset: u64,
        state: &mut CpuState,
        memory: &mut dyn OperandMemory,
    ) -> Result<(), Exception> {
        match thunk.action {
            Action::Builtin(builtin) if thunk.is_scattered() => {
                scattered::run(builtin, instruction, offset, state, memory)
            }
            _ => Err(Exception::UD),
        }
    }
}

/// Removes what FXSAVE stored of the host's own: the state must depend on the guest alone.
fn tidy(fx: &mut FxImage) {
    fx.mxcsr_mask = FxImage::MXCSR_MASK;
    fx.xmm_scratch.fill(0);
}

/// FOP of an instruction: the low bits of the escape byte and ModRM (SDM vol. 1 section 8.1.9).
fn x87_opcode(bytes: &[u8]) -> u16 {
    match bytes.iter().position(|byte| byte & 0xf8 == 0xd8) {
        Some(escape) => {
            let modrm = bytes.get(escape + 1).copied().unwrap_or(0);
            u16::from(bytes[escape] & 7) << 8 | u16::from(modrm)
        }
        None => 0,
    }
}
