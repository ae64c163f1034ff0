//! Lazy flags: what made them, instead of what they are.
//!
//! Who destroys EFLAGS by a check would have to save live flags first. Mostly they come from an instruction that can be
//! executed again, because its registers still have what it saw or what it left: then nothing is saved, and who needs the flags
//! executes it again.

use std::mem::offset_of;

use iced_x86::{Instruction, InstructionInfoOptions, Mnemonic, OpKind, Register};

use super::asm::{Alu, Mem, RAX, Size};
use super::branch::End;
use super::flags::{ALL, Effect};
use super::plan::Plan;
use super::rewrite::{self, Encoded, S0, host_of};
use super::stubs::frame;
use super::translate::Translation;
use super::{Frame, group};

/// Number of RSP.
const RSP: u8 = 4;

/// Where the live flags are: at one place at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// In EFLAGS.
    pub(super) host: bool,
    /// In the vCPU's `flags`.
    pub(super) saved: bool,
    /// In what this can be made of again.
    pub(super) lazy: Option<Lazy>,
}

impl Place {
    /// In EFLAGS alone.
    pub(super) const EFLAGS: Self = Self { host: true, saved: false, lazy: None };
    /// In the vCPU's `flags` alone.
    pub(super) const MEMORY: Self = Self { host: false, saved: true, lazy: None };
}

/// How the flags of an instruction are made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Maker {
    /// It added this to the register, or subtracted it if `negative`.
    Sum { by: i32, negative: bool },
    /// AND, OR or XOR, with the result in the register.
    Logic,
    /// CMP or TEST of the register, with this one or an immediate.
    Comparison(Option<u8>),
}

/// What made the flags that are live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lazy {
    /// The instruction.
    at: usize,
    maker: Maker,
    /// Its width, if that is not that of a comparison.
    size: Size,
    register: u8,
    /// How far RSP has moved since.
    moved: i32,
}

impl Lazy {
    /// What made the flags, if it is `instruction`, number `at` of the unit.
    fn of(at: usize, instruction: &Instruction) -> Option<Self> {
        use Mnemonic as M;
        let register = mapped(instruction, 0)?;
        let size = match instruction.op0_register().size() {
            8 => Some(Size::Qword),
            4 => Some(Size::Dword),
            _ => None,
        };
        let immediate = || match instruction.op_kind(1) {
            OpKind::Register | OpKind::Memory => None,
            _ => Some(instruction.immediate(1) as i32),
        };
        let maker = match instruction.mnemonic() {
            M::Add if size.is_some() => Maker::Sum { by: immediate()?, negative: false },
            M::Sub if size.is_some() => Maker::Sum { by: immediate()?, negative: true },
            _ if register == RSP => return None,
            M::And | M::Or | M::Xor if size.is_some() => Maker::Logic,
            M::Cmp | M::Test => match mapped(instruction, 1).filter(|number| *number != RSP) {
                None if immediate().is_none() => return None,
                second => Maker::Comparison(second),
            },
            _ => return None,
        };
        Some(Self { at, maker, size: size.unwrap_or(Size::Dword), register, moved: 0 })
    }

    /// Whether its flags can be worked out no more once a general purpose register with this number is written.
    fn depends_on(self, number: u8) -> bool {
        number == self.register || self.maker == Maker::Comparison(Some(number))
    }
}

/// The number of operand `n`, if that is a general purpose register, not one of AH to BH, that lives in a host register.
fn mapped(instruction: &Instruction, n: u32) -> Option<u8> {
    use Register::{AH, BH, CH, DH};
    if instruction.op_kind(n) != OpKind::Register {
        return None;
    }
    let register = instruction.op_register(n);
    let whole = register.is_gpr() && !matches!(register, AH | BH | CH | DH);
    let number = whole.then(|| rewrite::number(register))?;
    host_of(number).map(|_| number)
}

/// What is to be done before code is left, so that the flags in memory are those that are live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Save {
    /// They are already, or nobody will look.
    Nothing,
    /// They are in EFLAGS.
    Flags,
    /// This can be said to have made them.
    Maker(Lazy),
}

impl Translation<'_> {
    /// What has to be done for `live` flags before code is left.
    pub(super) fn saving(&self, live: u32) -> Save {
        match self.place {
            Place { saved, .. } if saved || live == 0 => Save::Nothing,
            Place { host: false, lazy: Some(lazy), .. } => Save::Maker(lazy),
            _ => Save::Flags,
        }
    }

    pub(super) fn write_save(&mut self, save: Save) {
        match save {
            Save::Nothing => {}
            Save::Flags => self.store_flags(),
            Save::Maker(lazy) => {
                self.remake_flags(lazy);
                self.store_flags();
            }
        }
    }

    /// Sees that `live` flags are in memory, so that control can go elsewhere.
    pub(super) fn publish_flags(&mut self, live: u32) {
        let save = self.saving(live);
        self.write_save(save);
        self.place.saved |= live != 0;
    }

    /// Before instruction `i`: if that changes what the flags could be worked out from, they are from now on in EFLAGS.
    pub(super) fn keep_lazy(&mut self, i: usize) {
        let Some(lazy) = self.place.lazy else { return };
        if self.live[i] != 0 && !self.breaks(lazy, i) {
            return;
        }
        if !self.place.saved {
            self.need_host(self.live[i]);
        }
        self.place.lazy = None;
    }

    /// Whether instruction `i` writes what the flags of `lazy` are worked out from, but for a stack pointer that moves by
    /// a constant.
    fn breaks(&mut self, lazy: Lazy, i: usize) -> bool {
        let Some(instruction) = self.instructions.get(i) else { return false };
        match self.plans.get(i) {
            Some(Plan::Nothing | Plan::SideExit | Plan::Push | Plan::PushFlags | Plan::Handler) => {
                return false;
            }
            None if self.end(i) != End::Handler => return false,
            _ => {}
        }
        let moves = lazy.register == RSP
            && group::shift(instruction, self.slot()).is_some_and(|(number, _)| number == usize::from(RSP));
        let options = InstructionInfoOptions::NO_MEMORY_USAGE;
        let used = self.tools.info.info_options(instruction, options).used_registers();
        used.iter().any(|used| {
            let register = used.register();
            let written = register.is_gpr() && rewrite::writes(used.access());
            written
                && lazy.depends_on(rewrite::number(register))
                && !(moves && rewrite::number(register) == RSP)
        })
    }

    /// Behind instruction `i`: follows the stack pointer.
    pub(super) fn follow_lazy(&mut self, i: usize) {
        if self.place.lazy.is_none_or(|lazy| lazy.register != RSP || lazy.at == i) {
            return;
        }
        match group::shift(&self.instructions[i], self.slot()) {
            Some((number, by)) if number == usize::from(RSP) => self.move_lazy(by),
            _ => {}
        }
    }

    /// The stack pointer has moved by `by` bytes.
    pub(super) fn move_lazy(&mut self, by: i32) {
        if let Some(lazy) = self.place.lazy.as_mut().filter(|lazy| lazy.register == RSP) {
            lazy.moved += by;
        }
    }

    /// Executes what made the flags again. Both scratch registers keep their values.
    pub(super) fn remake_flags(&mut self, lazy: Lazy) {
        let Lazy { at, maker, size, register, moved } = lazy;
        let host = host_of(register).unwrap_or(RAX);
        let (by, negative) = match maker {
            Maker::Sum { by, negative } => (by, negative),
            Maker::Logic => return self.asm.test(size, host, host),
            Maker::Comparison(_) => {
                let bytes = self.bytes_of(&rewrite::widened(&self.instructions[at]));
                return self.asm.raw(&bytes);
            }
        };
        let parked = frame(offset_of!(Frame, saved_rax));
        self.asm.store(Size::Qword, parked, S0);
        let before = if negative { by } else { by.wrapping_neg() };
        self.asm.lea(size, S0, Mem::Base(host, before.wrapping_sub(moved)));
        self.asm.alu_immediate(size, if negative { Alu::Sub } else { Alu::Add }, S0, by);
        self.asm.load(Size::Qword, S0, parked);
    }

    /// A comparison of registers that live in host registers.
    fn bytes_of(&mut self, instruction: &Instruction) -> Encoded {
        let made = rewrite::registers(instruction, &mut self.tools.info, &[]);
        let made = made.expect("its registers live in host registers");
        self.native_bytes(&made).expect("it was encoded before")
    }

    /// After an instruction with this effect.
    pub(super) fn flags_after(&mut self, i: usize, effect: Effect) {
        if effect.changes != 0 {
            let is_native = matches!(self.plans.get(i), Some(Plan::Native { .. }));
            let is_known = is_native && effect.replaces == ALL && !self.config.exact_flags;
            let lazy = if is_known { Lazy::of(i, &self.instructions[i]) } else { None };
            self.place = Place { host: true, saved: false, lazy };
        }
    }
}
