//! x87 instructions, which run in place once the guest's x87 state is in the processor.
//!
//! That happens where a block needs it (`Vectors::X87`), and lasts until translated code is left or something may
//! look at the state. Only a guest that masks all x87 errors gets it, so that no instruction traps on the host;
//! FLDCW looks at what it loads.
//!
//! The processor notes addresses of its last instruction. Ours must not be seen, so each instruction says where in the
//! guest it is ([`Frame::x87_offset`]), which becomes FIP. FOP and FDP change with errors that are not masked only.
// UNSAFETY: loads and stores the processor's x87 state.

use std::arch::asm;
use std::mem::{MaybeUninit, offset_of};
use std::sync::OnceLock;

use arch::x86::state::FxImage;
use iced_x86::{Instruction, Mnemonic, OpKind};

use super::asm::{Alu, Condition, Mem, Size};
use super::plan::{Operand, Plan};
use super::rewrite::{S0, S1};
use super::stubs::frame;
use super::translate::Translation;
use super::{Frame, Vectors};
use crate::x86::hostexec::{Class, Thunk, check_enabled};
use crate::x86::interp::cpu::Cpu;
use crate::x86::mmu::Intent;

/// The error masks of FCW.
const MASKS: u16 = 0x3f;
/// [`Frame::x87_offset`] while no instruction has run since the state was loaded.
const NOT_NOTED: i32 = -1;

/// The plan for an x87 instruction that runs in place; `None` for others.
pub(super) fn plan_of_x87(thunk: &Thunk, instruction: &Instruction) -> Option<Plan> {
    let operand = |size, intent| Operand { size, intent, alignment: 1 };
    let in_memory = instruction.op0_kind() == OpKind::Memory;
    let memory = match instruction.mnemonic() {
        Mnemonic::Fldcw => return Some(Plan::LoadControlWord(operand(2, Intent::Read))),
        Mnemonic::Fnstsw | Mnemonic::Fnstcw => in_memory.then_some(operand(2, Intent::Write)),
        Mnemonic::Wait => None,
        _ if !thunk.is_host_code() || !matches!(thunk.class(), Class::X87) => return None,
        // The environment and the whole state are for `hostexec`.
        _ => match thunk.memory() {
            Some(memory) if memory.size > 10 || host_notes_operands() => return None,
            memory => memory.map(Operand::of_thunk),
        },
    };
    Some(Plan::Native { memory, vectors: Vectors::X87 })
}

/// Whether the host's processor notes the address of every operand, which would be one of ours: Intel's do before
/// FDP_EXCPTN_ONLY (CPUID.7.EBX bit 6), AMD's note nothing while all errors are masked.
fn host_notes_operands() -> bool {
    const FDP_EXCEPTION_ONLY: u32 = 1 << 6;
    static NOTES: OnceLock<bool> = OnceLock::new();
    *NOTES.get_or_init(|| {
        let vendor = std::arch::x86_64::__cpuid(0);
        let intel = vendor.ebx == u32::from_le_bytes(*b"Genu");
        intel && std::arch::x86_64::__cpuid_count(7, 0).ebx & FDP_EXCEPTION_ONLY == 0
    })
}

/// Whether the processor notes where the instruction is: not for those that only control it.
fn is_noted(mnemonic: Mnemonic) -> bool {
    !matches!(mnemonic, Mnemonic::Fldcw | Mnemonic::Fnstcw | Mnemonic::Fnstsw | Mnemonic::Wait)
}

impl Translation<'_> {
    /// Behind instruction `i`: if it is an x87 one, that it was the last.
    pub(super) fn note_x87(&mut self, i: usize) {
        let Plan::Native { vectors, .. } = self.plans[i] else { return };
        if vectors & Vectors::X87 == 0 || !is_noted(self.instructions[i].mnemonic()) {
            return;
        }
        if !self.x87_page_noted {
            self.asm.load(Size::Qword, S0, frame(offset_of!(Frame, page)));
            self.asm.store(Size::Qword, frame(offset_of!(Frame, x87_page)), S0);
            self.x87_page_noted = true;
        }
        let offset = self.instructions[i].ip() as i32;
        self.asm.store_immediate(Size::Dword, frame(offset_of!(Frame, x87_offset)), offset);
    }

    /// FLDCW, unless it lets errors trap. What is looked at is what is loaded: others may store to the operand.
    pub(super) fn write_load_control_word(&mut self, i: usize, operand: Operand) {
        let (other, copy) = (self.asm.label(), frame(offset_of!(Frame, target)));
        let instruction = self.instructions[i];
        self.clobber(i);
        self.write_operand_address(&instruction, operand.size, other);
        self.write_check_to_host(operand, other);
        self.asm.movzx_word(S1, Mem::Base(S0, 0));
        self.asm.store(Size::Dword, copy, S1);
        self.asm.alu_immediate(Size::Dword, Alu::And, S1, i32::from(MASKS));
        self.asm.alu_immediate(Size::Dword, Alu::Cmp, S1, i32::from(MASKS));
        self.asm.jump_if(Condition::NE, other);
        self.asm.fldcw(copy);
        self.cold_handler(i, other);
    }
}

impl Cpu {
    /// Sees that the processor has the guest's x87 state, and returns whether it has.
    pub(super) fn load_x87(&mut self) -> bool {
        if self.frame.x87 {
            return true;
        }
        let fx = &self.state.fx;
        let quiet = fx.fcw & MASKS == MASKS && fx.mxcsr & !FxImage::MXCSR_MASK == 0;
        if !quiet || check_enabled(Class::X87, &self.state).is_err() {
            return false;
        }
        // SAFETY: a whole image, aligned, with an MXCSR that the processor takes; the host's comes back at once. Code
        // of ours leaves the x87 registers alone until `save_x87`.
        unsafe {
            asm!(
                "fxrstor64 [{image}]",
                "ldmxcsr [{mxcsr}]",
                image = in(reg) std::ptr::from_ref(fx),
                mxcsr = in(reg) &raw const self.frame.host_mxcsr,
                clobber_abi("sysv64"),
                options(nostack, readonly),
            );
        }
        self.frame.x87 = true;
        self.frame.x87_offset = NOT_NOTED;
        // Where the first instruction that notes its page was this one's handler's.
        self.frame.x87_page = self.frame.page;
        true
    }

    /// Takes the x87 state out of the processor if it is the guest's.
    pub(super) fn save_x87(&mut self) {
        if !self.frame.x87 {
            return;
        }
        let mut image = MaybeUninit::<FxImage>::uninit();
        // SAFETY: room for a whole image, of which all fields that are read are then written. The processor is left
        // as programs expect it.
        let image = unsafe {
            asm!("fxsave64 [{image}]", "fninit", image = in(reg) image.as_mut_ptr(), options(nostack));
            &*image.as_ptr()
        };
        let fx = &mut self.state.fx;
        (fx.fcw, fx.fsw, fx.ftw, fx.st) = (image.fcw, image.fsw, image.ftw, image.st);
        if self.frame.x87_offset != NOT_NOTED {
            fx.fip = self.frame.x87_page.wrapping_add(self.frame.x87_offset as u64) & self.ip_mask;
        }
        self.frame.x87 = false;
    }
}
