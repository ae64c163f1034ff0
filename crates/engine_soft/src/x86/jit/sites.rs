//! Sites: the places in translated code from which Rust is reached, and where they are kept.

use super::Vectors;
use crate::x86::interp::op::Block;

/// Why translated code calls or returns to Rust.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// Execute one operation by its handler, then resume.
    Handler,
    /// Load the guest's vector registers if it may use them, then resume.
    Vectors,
    /// The successor in the same page is not known yet.
    Link,
    /// The jump table does not know `Frame::target`.
    Jump,
    /// Somebody wants the vCPU's attention; or the block, one in two pages, is stale.
    Leave,
    /// See that the TLB has the page at `register` + `distance` for loads, then resume.
    Fill,
    /// The same for stores.
    FillForStores,
    /// Go on in the variant of the block without groups.
    Variant,
}

impl Kind {
    pub(super) const COUNT: usize = Self::Variant as usize + 1;

    /// The kind with this number.
    pub(super) fn from_number(number: u8) -> Option<Self> {
        const ALL: [Kind; Kind::COUNT] = [
            Kind::Handler,
            Kind::Vectors,
            Kind::Link,
            Kind::Jump,
            Kind::Leave,
            Kind::Fill,
            Kind::FillForStores,
            Kind::Variant,
        ];
        ALL.into_iter().find(|kind| *kind as u8 == number)
    }
}

/// A place in translated code from which Rust is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Site {
    pub(super) kind: Kind,
    /// `Link`: which of the block's successors.
    pub(super) link: u8,
    /// `Link`: the flags are in memory.
    pub(super) outer: bool,
    /// `Fill`: the base register's number.
    pub(super) register: u8,
    /// Vector registers the code needs when it resumes.
    pub(super) vectors: u8,
    /// `Handler`: it does not look at the x87 state.
    pub(super) keeps_x87: bool,
    /// `Jump`: how far the guest's stack pointer has moved already. `Fill`: the lowest byte, from the base.
    pub(super) distance: i32,
    /// Where the guest goes on, relative to the page (`Link`, `Leave`, `Vectors`); the block's start (`Handler`, `Jump`).
    pub(super) ip: i32,
    /// Place of the jump's displacement in the code area (`Link`, `Variant`, `Fill`).
    pub(super) patch: u32,
    /// Host address at which to go on (`Handler`, `Vectors`, `Fill`).
    pub(super) resume: u64,
    pub(super) block: *const Block,
    /// Which of the block's operations.
    pub(super) op: u16,
}

/// Sites in chunks, so that their addresses stay.
#[derive(Default)]
pub(super) struct Sites {
    chunks: Vec<Vec<Site>>,
    /// How many of the chunks are in use; the others wait, for to give them back takes the host milliseconds.
    used: usize,
}

impl Sites {
    const CHUNK: usize = 1024;

    /// A chunk with room for `count` more sites.
    pub(super) fn room(&mut self, count: usize) -> &mut Vec<Site> {
        let fits = |chunk: &Vec<Site>| chunk.capacity() - chunk.len() >= count;
        if !self.chunks[..self.used].last().is_some_and(fits) {
            if !self.chunks.get(self.used).is_some_and(fits) {
                self.chunks.insert(self.used, Vec::with_capacity(Self::CHUNK.max(count)));
            }
            self.used += 1;
        }
        &mut self.chunks[self.used - 1]
    }

    /// Those from number `first` on in the chunk that was last given out.
    pub(super) fn newest(&mut self, first: usize) -> &mut [Site] {
        let chunk = self.used.checked_sub(1).and_then(|last| self.chunks[last].get_mut(first..));
        chunk.unwrap_or_default()
    }

    /// Forgets all, and keeps the memory.
    pub(super) fn clear(&mut self) {
        self.chunks[..self.used].iter_mut().for_each(Vec::clear);
        self.used = 0;
    }
}

impl Site {
    /// A jump to a canonical address from nowhere in particular.
    pub(super) fn lost() -> Self {
        Self {
            kind: Kind::Jump,
            link: 0,
            outer: false,
            register: 0,
            vectors: Vectors::NONE,
            keeps_x87: true,
            distance: 0,
            ip: 0,
            patch: 0,
            resume: 0,
            block: std::ptr::null(),
            op: 0,
        }
    }
}
