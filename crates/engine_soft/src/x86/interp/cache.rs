//! Decoded blocks and how they are found again.
//!
//! Blocks are keyed by guest physical address and mode, so aliases share them. They live in one arena that is
//! emptied as a whole when it is full; a block whose page was overwritten is recognised by its generation and
//! simply replaced. In front stands a small table keyed by linear address, which is only as valid as the TLB:
//! its key carries an epoch that every TLB flush advances.
// UNSAFETY: hands out pointers into its own arena; see `Arena`.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::mem::{align_of, size_of};

use super::op::{Block, NO_BLOCK, Op};
use crate::x86::zeroed::{FromZeros, Zeroed};

/// Bytes of decoded code a vCPU keeps before it starts over. About 60,000 instructions.
pub const ARENA_BYTES: usize = 4 << 20;
/// The same where a translator loses its work with them: as many instructions as its code has room for.
pub const TRANSLATOR_ARENA_BYTES: usize = 128 << 20;
/// The largest value an operation keeps beside itself ([`BlockCache::keep`]).
const MAX_KEPT_BYTES: usize = 192;
const JUMP_ENTRIES: usize = 4096;

/// Memory that is handed out and taken back only as a whole.
struct Arena {
    memory: Zeroed<[u64]>,
    used: usize,
}

impl Arena {
    fn new(bytes: usize) -> Self {
        Self { memory: Zeroed::slice(bytes / 8), used: 0 }
    }

    /// Room for `count` values of `T`, or `None` if the arena is full.
    fn reserve<T>(&mut self, count: usize) -> Option<*mut T> {
        debug_assert!(align_of::<T>() <= 8);
        let words = (size_of::<T>() * count).div_ceil(8);
        if self.used + words > self.memory.len() {
            return None;
        }
        // SAFETY: inside `memory` by the check above.
        let start = unsafe { self.memory.as_mut_ptr().add(self.used) };
        self.used += words;
        Some(start.cast())
    }
}

/// The key is already well mixed below; one multiplication spreads it.
#[derive(Default)]
pub struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {
        unreachable!("keys are u64");
    }
    fn write_u64(&mut self, value: u64) {
        self.0 = (value ^ value >> 29).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(20);
    }
}

/// Zeros are one that nothing matches: no key is zero.
#[derive(Clone, Copy)]
struct Jump {
    linear: u64,
    key: u64,
    block: *const Block,
}

// SAFETY: integers and a pointer.
unsafe impl FromZeros for Jump {}

/// The blocks of one vCPU.
pub struct BlockCache {
    arena: Arena,
    /// What was wanted when the arena was full, and could not wait.
    beyond: Vec<Box<[u64]>>,
    blocks: HashMap<u64, *const Block, BuildHasherDefault<KeyHasher>>,
    jumps: Zeroed<[Jump; JUMP_ENTRIES]>,
    clears: u64,
}

// SAFETY: the pointers lead into the arena, which moves along with the cache.
unsafe impl Send for BlockCache {}

impl BlockCache {
    /// An empty cache that keeps `bytes` of decoded code, which cost host memory only as they are used.
    pub fn new(bytes: usize) -> Self {
        Self {
            arena: Arena::new(bytes),
            beyond: Vec::new(),
            blocks: HashMap::default(),
            jumps: Zeroed::new(),
            clears: 0,
        }
    }

    /// The block last entered at `linear` under `key` (epoch, mode and privilege), which is not zero.
    #[inline(always)]
    pub fn jump(&self, linear: u64, key: u64) -> *const Block {
        let entry = &self.jumps[slot(linear)];
        if entry.linear == linear && entry.key == key { entry.block } else { NO_BLOCK }
    }

    /// Remembers a block for [`Self::jump`].
    #[inline(always)]
    pub fn remember(&mut self, linear: u64, key: u64, block: *const Block) {
        self.jumps[slot(linear)] = Jump { linear, key, block };
    }

    /// The block decoded at a guest physical address in a mode; its code may have been overwritten.
    pub fn find(&self, gpa: u64, mode: u64) -> Option<*const Block> {
        self.blocks.get(&key(gpa, mode)).copied()
    }

    /// Whether another block of up to `ops` operations fits. If not, call [`Self::clear`] where no block runs.
    pub fn has_room(&self, ops: usize) -> bool {
        let bytes = size_of::<Block>() + ops * (size_of::<Op>() + MAX_KEPT_BYTES);
        self.arena.used + bytes / 8 < self.arena.memory.len()
    }

    /// Room for `count` values as long as the blocks. Whoever can wait has asked [`Self::has_room`].
    fn reserve<T>(&mut self, count: usize) -> *mut T {
        self.arena.reserve::<T>(count).unwrap_or_else(|| {
            let words = (size_of::<T>() * count).div_ceil(8);
            self.beyond.push(vec![0; words].into_boxed_slice());
            self.beyond.last_mut().expect("just pushed").as_mut_ptr().cast()
        })
    }

    /// Keeps a value as long as the blocks, and returns its address.
    pub fn keep<T: Copy>(&mut self, value: T) -> *const T {
        const { assert!(size_of::<T>() <= MAX_KEPT_BYTES) };
        let place = self.reserve::<T>(1);
        // SAFETY: `place` is room for one T.
        unsafe { place.write(value) };
        place
    }

    /// Stores a block with its operations; the caller has asked [`Self::has_room`].
    pub fn insert(&mut self, gpa: u64, mode: u64, block: Block, ops: &[Op]) -> *const Block {
        block.ops.set(self.keep_operations(ops));
        self.insert_undecoded(gpa, mode, block)
    }

    /// Keeps operations as long as the blocks.
    pub fn keep_operations(&mut self, ops: &[Op]) -> *mut Op {
        let place = self.reserve::<Op>(ops.len());
        // SAFETY: `place` is room for `ops.len()` operations.
        unsafe { std::ptr::copy_nonoverlapping(ops.as_ptr(), place, ops.len()) };
        place
    }

    /// Stores a block whose operations nobody wants yet.
    pub fn insert_undecoded(&mut self, gpa: u64, mode: u64, block: Block) -> *const Block {
        let home = self.reserve::<Block>(1);
        // SAFETY: `home` is room for a block.
        unsafe { home.write(block) };
        self.blocks.insert(key(gpa, mode), home);
        home
    }

    /// How often everything was dropped.
    pub fn clears(&self) -> u64 {
        self.clears
    }

    /// Drops everything. No pointer handed out before may be used again.
    pub fn clear(&mut self) {
        self.clears += 1;
        self.arena.used = 0;
        self.beyond.clear();
        self.blocks.clear();
        for jump in self.jumps.iter_mut().filter(|jump| jump.key != 0) {
            jump.key = 0;
        }
    }

    /// Drops everything, and gives the memory for it back to the host.
    pub fn give_back(&mut self) {
        self.clear();
        self.arena.memory.give_back();
        self.jumps.give_back();
        self.blocks = HashMap::default();
    }
}

#[inline(always)]
fn slot(linear: u64) -> usize {
    (linear ^ linear >> 12) as usize & (JUMP_ENTRIES - 1)
}

fn key(gpa: u64, mode: u64) -> u64 {
    gpa << 5 | mode
}
