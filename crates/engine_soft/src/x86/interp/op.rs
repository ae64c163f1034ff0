//! The decoded form of an instruction, and blocks of them.
// UNSAFETY: reads page information through the pointers a block keeps.

use std::cell::Cell;
use std::ptr;

use memory::PageInfo;

use super::cpu::Cpu;

/// What an instruction did to the flow of control.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Flow {
    /// Go on with the next operation of the block.
    Next,
    /// The block ended in its direct target; `rip` is set.
    Taken,
    /// The block ended and the next instruction follows it; `rip` is set.
    FellThrough,
    /// The block ended anywhere else; `rip` is set.
    Jumped,
    /// The instruction had no effect but a fault, which is in `Cpu::fault`; `rip` is not set.
    Fault,
    /// As `Fault`, but `rip` is set (a task switch may fault in the new task).
    Raised,
    /// Like `Fault` of an instruction that must not count: run it again from its start, `rip` is not set.
    Retry,
}

/// The function that executes an operation.
pub type Handler = fn(&mut Cpu, &Op) -> Flow;

/// What an address needs beyond base + index * scale + displacement.
pub mod address {
    /// Truncate to 32 bits.
    pub const MASK32: u8 = 1 << 0;
    /// Truncate to 16 bits.
    pub const MASK16: u8 = 1 << 1;
    /// Add the base of `Op::segment`.
    pub const SEGMENT: u8 = 1 << 2;
    /// Check the limit and type of `Op::segment` (legacy modes).
    pub const CHECKED: u8 = 1 << 3;
    /// Misalignment to 16 bytes is #GP before anything else is looked at, on the stack too.
    pub const ALIGNED16: u8 = 1 << 4;
}

/// One decoded instruction. Register operands are byte offsets into [`Cpu`]: the decoder only produces
/// offsets of whole registers (or of their second byte, for AH..BH), which is what makes access to them sound.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Op {
    /// Executes it.
    pub run: Handler,
    /// Immediate, sign-extended; or the address of more about the instruction in the cache's arena.
    pub imm: u64,
    /// Displacement, sign-extended; or the branch target relative to the block's start.
    pub disp: u64,
    /// Destination register.
    pub dst: u16,
    /// Source register.
    pub src: u16,
    /// Base register, [`Cpu::ZERO`] if none.
    pub base: u16,
    /// Index register, [`Cpu::ZERO`] if none.
    pub index: u16,
    /// log2 of the scale.
    pub scale: u8,
    /// See [`address`].
    pub address: u8,
    /// Segment of the memory operand, numbered as in encodings.
    pub segment: u8,
    /// Bytes of the instruction.
    pub len: u8,
    /// Bytes from the start of the block.
    pub offset: u16,
    /// Position in the block, from 0.
    pub position: u16,
}

impl Op {
    /// What `dst` says of an operation of `hostexec`, whose immediate leads to a `vector::Extra`.
    pub const THUNK: u16 = u16::MAX;

    /// An operation without operands.
    pub fn plain(run: Handler) -> Self {
        Self {
            run,
            imm: 0,
            disp: 0,
            dst: Cpu::ZERO,
            src: Cpu::ZERO,
            base: Cpu::ZERO,
            index: Cpu::ZERO,
            scale: 0,
            address: 0,
            segment: 3,
            len: 0,
            offset: 0,
            position: 0,
        }
    }
}

/// A straight run of instructions, decoded. Lives in the [`super::cache::BlockCache`]'s arena; `ops` follow it.
#[repr(C)]
pub struct Block {
    /// The page it was decoded from.
    pub info: *const PageInfo,
    /// The page's generation then.
    pub generation: u32,
    /// Bytes of guest code.
    pub len: u16,
    /// How many operations.
    pub count: u16,
    /// The second page, in the arena, if the block's only instruction straddles two; else null.
    pub second: *const Second,
    /// Guest frame number of the page.
    pub gfn: u64,
    /// Blocks in the same page that followed: `[taken, fell through]`; null until known.
    pub links: [*const Block; 2],
    /// The first operation; null as long as nobody has wanted it of a block that came with its translation
    /// ([`Cpu::operations`]).
    pub ops: Cell<*mut Op>,
    /// The guest code that such a block is decoded from.
    pub source: *const u8,
    /// How often the interpreter has executed it, if a translator wants to know.
    pub heat: Cell<u32>,
    /// Its translations: `[kernel, user]`.
    pub codes: [Cell<Translated>; 2],
}

/// The page in which the only instruction of a block ends.
#[derive(Clone, Copy)]
pub struct Second {
    /// The page.
    pub info: *const PageInfo,
    /// Its generation when it was decoded.
    pub generation: u32,
    /// Its guest frame number.
    pub gfn: u64,
}

/// Where a block's translation is in the host's memory; zero if there is none. Every decoded block has room for two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Translated {
    /// Entry from Rust and from other pages.
    pub outer: u64,
    /// Entry from code of the same page, in bytes from `outer`.
    inner: u16,
    /// The same from code that has loaded the vector registers which the block needs.
    ready: u16,
    /// Those registers, as the translator numbers them.
    pub vectors: u8,
}

impl Translated {
    /// Of code at `outer` with entries so many bytes after it; `None` if they are too far away, as none is.
    pub fn new(outer: u64, inner: u32, ready: u32, vectors: u8) -> Option<Self> {
        Some(Self { outer, inner: inner.try_into().ok()?, ready: ready.try_into().ok()?, vectors })
    }

    /// Host address of the entry from code of the same page, which has loaded the vector registers already or has not.
    pub fn inside(&self, is_ready: bool) -> u64 {
        self.outer + u64::from(if is_ready { self.ready } else { self.inner })
    }
}

impl Block {
    /// Whether the code has not been overwritten since it was decoded.
    #[inline(always)]
    pub fn is_fresh(&self) -> bool {
        // SAFETY: page information lives as long as guest RAM, which the engine holds.
        unsafe { (*self.info).code_generation() == self.generation }
    }

    /// Its translation for user or kernel code.
    pub fn code(&self, user: bool) -> &Cell<Translated> {
        &self.codes[usize::from(user)]
    }

    /// Guest instructions in the block.
    pub fn instructions(&self) -> u64 {
        let ops = self.ops.get();
        debug_assert!(!ops.is_null(), "whoever counts has decoded");
        // SAFETY: a block has at least one operation; the last one's position is that of the last instruction.
        unsafe { u64::from((*ops.add(usize::from(self.count) - 1)).position) + 1 }
    }

    /// Whether the block spans two pages.
    pub fn straddles(&self) -> bool {
        !self.second.is_null()
    }

    /// The second page, if it spans two.
    pub fn second(&self) -> Option<&Second> {
        // SAFETY: null or in the arena, which is emptied along with its blocks.
        unsafe { self.second.as_ref() }
    }

    /// Whether the second page, if there is one, still has the code.
    pub fn second_is_fresh(&self) -> bool {
        // SAFETY: as in `is_fresh`.
        self.second().is_none_or(|second| unsafe { (*second.info).code_generation() == second.generation })
    }
}

/// No block.
pub const NO_BLOCK: *const Block = ptr::null();
