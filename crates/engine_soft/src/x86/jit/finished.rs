//! What a translation leaves: its code, and memory for the next one.

use iced_x86::Instruction;

use super::asm::{Asm, Label};
use super::keep::Cold;
use super::listing::Mark;
use super::plan::Plan;
use super::relocation::Relocation;

/// A finished translation.
pub(super) struct Finished {
    /// With the code.
    pub(super) asm: Asm,
    /// Offset of the inner entry; the outer one, or that of a variant, is at 0.
    pub(super) inner: u32,
    /// That of the one behind the check that the `vectors` it needs are loaded.
    pub(super) ready: u32,
    pub(super) vectors: u8,
    /// What of the page was looked at beyond the block.
    pub(super) seen: (usize, usize),
    /// For a listing.
    pub(super) instructions: Vec<Instruction>,
    pub(super) marks: Vec<Mark>,
    /// Where the code has addresses of this process.
    pub(super) relocations: Vec<Relocation>,
    /// Whether what it does can be undone (see [`super::lockstep`]).
    pub(super) reversible: bool,
}

impl Finished {
    /// Hands the memory on.
    pub(super) fn recycle(self, spare: &mut Spare) {
        (spare.asm, spare.instructions, spare.marks) = (self.asm, self.instructions, self.marks);
        spare.relocations = self.relocations;
    }
}

/// Memory that translations hand on to each other: to allocate it anew takes longer than much of what is done in it.
#[derive(Default)]
pub(super) struct Spare {
    pub(super) asm: Asm,
    pub(super) instructions: Vec<Instruction>,
    pub(super) piece_of: Vec<u16>,
    pub(super) plans: Vec<Plan>,
    pub(super) live: Vec<u32>,
    pub(super) marks: Vec<Mark>,
    pub(super) cold: Vec<Cold>,
    pub(super) relocations: Vec<Relocation>,
    pub(super) resumes: Vec<(usize, Label)>,
    pub(super) patches: Vec<(usize, u32)>,
}
