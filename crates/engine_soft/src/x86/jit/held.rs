//! Guest registers that live in memory and are in a scratch register as well, because the instruction before had them there.
//!
//! Nobody notes what takes a scratch register for something else: what is held counts only as long as nothing was written
//! since, and no way leads to here from elsewhere.

use iced_x86::Instruction;

use super::asm::Reg;
use super::rewrite::{self, Borrowed, Rewritten, S0, S1};
use super::translate::Translation;

/// What the scratch registers hold behind an instruction.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Held {
    /// Where that was.
    at: u32,
    /// The guest registers, by number, in S0 and in S1.
    guests: Guests,
}

pub(super) type Guests = [Option<u8>; 2];

/// The place of a scratch register in [`Guests`].
pub(super) fn place(scratch: Reg) -> usize {
    usize::from(scratch == S1)
}

impl Translation<'_> {
    /// The guest registers that the scratch registers hold here.
    pub(super) fn held(&self) -> Guests {
        let known = self.held.at == self.asm.position() && !self.asm.is_label_here();
        if known { self.held.guests } else { Guests::default() }
    }

    /// The scratch registers hold `guests` here.
    pub(super) fn hold(&mut self, guests: Guests) {
        self.held = Held { at: self.asm.position(), guests };
    }

    /// `instruction` on host registers, with those from memory where they are already, or else where they take the place of
    /// none.
    pub(super) fn on_scratch_registers(&mut self, instruction: &Instruction) -> Option<Rewritten> {
        let made = rewrite::registers(instruction, &mut self.tools.info, &[S0, S1])?;
        let [Some(first), second] = made.borrowed else { return Some(made) };
        let held = self.held();
        let is_in = |borrowed: Option<Borrowed>, scratch| {
            borrowed.is_some_and(|borrowed| held[place(scratch)] == Some(borrowed.guest))
        };
        let swapped = is_in(Some(first), S1) || is_in(second, S0);
        let spares = second.is_none() && !is_in(Some(first), S0) && held[0].is_some() && held[1].is_none();
        if swapped || spares && self.addend.is_none() {
            return rewrite::registers(instruction, &mut self.tools.info, &[S1, S0]);
        }
        Some(made)
    }
}
