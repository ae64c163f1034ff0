//! Where returns are expected to go: a stack of the host's beside the guest's.
//!
//! A translated CALL pushes the guest's return address and then is a host `call`; a translated RET compares the
//! address it has loaded with the one pushed, and if they agree is a host `ret`, which the host's processor predicts.
//! A disagreement costs a look-up and empties the stack; so does leaving translated code, and whatever may change
//! which code an address leads to. The guest's own stack stays the only truth.
//!
//! ```text
//!   top      0, stub         the bottom: no call that this stack knows of (see `Stubs::bottom`)
//!            return address of the guest, of the host
//!            ...
//!   rsp ───► host return address
//! ```
//! Half of the memory is room that calls never fill, for a signal handler that finds the thread in translated code.

use super::stress::Stress;
use crate::x86::zeroed::Zeroed;

/// Bytes calls may fill, and bytes below them; a power of two that both halves are aligned to.
const HALF: usize = 64 << 10;

/// Bytes of an entry: where the guest's call returns to, and where the host's does.
const ENTRY: usize = 16;

/// How many calls are remembered, and the stretch of addresses, a power of two, at whose start the stack is full.
fn shape(stress: Stress) -> (usize, usize) {
    if stress.few_returns { (4, 8 * ENTRY) } else { (HALF / ENTRY - 2, HALF) }
}

/// What of the stack pointer is zero where calls must not go on.
pub fn full_mask(stress: Stress) -> i32 {
    (shape(stress).1 - ENTRY) as i32
}

/// The stack of one vCPU.
pub struct ReturnStack {
    _memory: Zeroed<[u64]>,
    /// Address of the bottom.
    bottom: u64,
}

impl ReturnStack {
    /// An empty stack, whose bottom leads to host address `bottom`.
    pub fn new(bottom: u64, stress: Stress) -> Self {
        const WORD: usize = size_of::<u64>();
        // Wherever it is, two aligned halves are in it.
        let mut memory = Zeroed::<[u64]>::slice(3 * HALF / WORD);
        let start = memory.as_ptr().addr().next_multiple_of(HALF) - memory.as_ptr().addr();
        let (calls, stretch) = shape(stress);
        let at = &mut memory[(start + 2 * HALF - stretch + (calls + 1) * ENTRY) / WORD];
        *at = bottom;
        Self { bottom: std::ptr::from_mut(at) as u64, _memory: memory }
    }

    /// The stack pointer while it is empty.
    pub fn empty(&self) -> u64 {
        self.bottom
    }
}
