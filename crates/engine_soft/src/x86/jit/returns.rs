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

#[repr(C, align(65536))]
struct Memory([u64; 2 * HALF / size_of::<u64>()]);

/// The stack of one vCPU.
pub struct ReturnStack {
    memory: Box<Memory>,
    /// Index of the bottom.
    bottom: usize,
}

impl ReturnStack {
    /// An empty stack, whose bottom leads to host address `bottom`.
    pub fn new(bottom: u64, stress: Stress) -> Self {
        let mut memory: Box<Memory> = Box::new(Memory([0; 2 * HALF / size_of::<u64>()]));
        let (calls, stretch) = shape(stress);
        let below = 2 * HALF - stretch + (calls + 1) * ENTRY;
        memory.0[below / size_of::<u64>()] = bottom;
        Self { memory, bottom: below / size_of::<u64>() }
    }

    /// The stack pointer while it is empty.
    pub fn empty(&self) -> u64 {
        std::ptr::from_ref(&self.memory.0[self.bottom]) as u64
    }
}
