//! The blocks that a translation is of, and which of them an operation belongs to.

use super::translate::Translation;
use crate::x86::interp::op::{Block, Op};

/// A block of the interpreter's.
pub(super) struct Piece<'a> {
    pub(super) block: &'a Block,
    pub(super) ops: &'a [Op],
    /// Offset of the block in its page.
    pub(super) start: u32,
}

impl<'a> Translation<'a> {
    /// The block that operation `i` belongs to.
    pub(super) fn piece(&self, i: usize) -> &'a Piece<'a> {
        &self.pieces[usize::from(self.piece_of[i])]
    }

    /// Offset in the page of the block that operation `i` belongs to.
    pub(super) fn start_of(&self, i: usize) -> i32 {
        self.piece(i).start as i32
    }

    /// Which operation of its block operation `i` is.
    pub(super) fn number_in_piece(&self, i: usize) -> u16 {
        let bytes = std::ptr::from_ref(self.ops[i]).addr() - self.piece(i).ops.as_ptr().addr();
        (bytes / size_of::<Op>()) as u16
    }

    /// Whether a block begins with operation `i`.
    pub(super) fn begins_piece(&self, i: usize) -> bool {
        i == 0 || self.piece_of[i] != self.piece_of[i - 1]
    }
}
