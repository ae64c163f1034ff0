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

/// Bytes calls may fill, and bytes below them; a power of two that both halves are aligned to.
const HALF: usize = 64 << 10;

/// What of the stack pointer is zero where calls must not go on.
pub const FULL_MASK: i32 = HALF as i32 - 16;

#[repr(C, align(65536))]
struct Memory([u64; 2 * HALF / size_of::<u64>()]);

/// The stack of one vCPU.
pub struct ReturnStack(Box<Memory>);

impl ReturnStack {
    /// An empty stack, whose bottom leads to host address `bottom`.
    pub fn new(bottom: u64) -> Self {
        let mut memory: Box<Memory> = Box::new(Memory([0; 2 * HALF / size_of::<u64>()]));
        let len = memory.0.len();
        memory.0[len - 2] = bottom;
        Self(memory)
    }

    /// The stack pointer while it is empty.
    pub fn empty(&self) -> u64 {
        self.0.0.as_ptr_range().end as u64 - 16
    }
}
