//! Turns: while translated code is compared with the interpreter (see [`crate::x86::jit::lockstep`]), the vCPUs of a machine
//! execute one at a time, so that none stores to memory between the two executions of another.
//!
//! Whoever waits for its turn answers requests to drop write permissions, which the one that has it may be waiting for.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::cpu::Cpu;

/// Blocks a vCPU executes before it lets others that wait go first: no more than one that spins until another has done
/// something should waste, and enough to pay for the switch of the host's threads.
const TURN_BLOCKS: u32 = 256;
/// How often somebody who waits looks for requests.
const BETWEEN_LOOKS: Duration = Duration::from_micros(100);

/// Whose turn it is: tickets, so that everyone gets one.
#[derive(Debug, Default)]
pub struct Turns {
    next: AtomicU32,
    served: Mutex<u32>,
    ended: Condvar,
}

impl Turns {
    fn draw(&self) -> u32 {
        self.next.fetch_add(1, Ordering::SeqCst)
    }

    /// Whether the turn of `ticket` has come; waits a moment for that.
    fn wait_for(&self, ticket: u32) -> bool {
        let served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.ended.wait_timeout_while(served, BETWEEN_LOOKS, |served| *served != ticket);
        *waited.unwrap_or_else(PoisonError::into_inner).0 == ticket
    }

    /// Whether somebody waits. For whoever has the turn.
    fn is_wanted(&self, ticket: u32) -> bool {
        self.next.load(Ordering::SeqCst) != ticket.wrapping_add(1)
    }

    fn end(&self) {
        let mut served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        *served = served.wrapping_add(1);
        drop(served);
        self.ended.notify_all();
    }
}

/// A vCPU's part in them.
#[derive(Debug, Default)]
pub struct Turn {
    /// Whether there are turns at all.
    taken: bool,
    ticket: u32,
    /// Blocks until it is over.
    left: u32,
}

impl Turn {
    pub(super) fn new(taken: bool) -> Self {
        Self { taken, ..Self::default() }
    }
}

impl Cpu {
    /// Waits until this vCPU alone executes, if vCPUs take turns.
    pub(super) fn begin_turn(&mut self) {
        if !self.turn.taken {
            return;
        }
        let ticket = self.shared.turns.draw();
        while !self.shared.turns.wait_for(ticket) {
            // The request itself stays posted: it may also say that code has changed, which the next boundary looks at.
            self.answer_revocation();
        }
        (self.turn.ticket, self.turn.left) = (ticket, TURN_BLOCKS);
    }

    /// Others may execute.
    pub(super) fn end_turn(&mut self) {
        if self.turn.taken {
            self.shared.turns.end();
        }
    }

    /// Counts a block, and lets others that wait execute when the turn is over. Between blocks only.
    #[inline(always)]
    pub(super) fn pass_turn(&mut self) {
        if self.turn.taken {
            self.count_block();
        }
    }

    fn count_block(&mut self) {
        self.turn.left = self.turn.left.saturating_sub(1);
        if self.turn.left == 0 && self.shared.turns.is_wanted(self.turn.ticket) {
            self.end_turn();
            self.begin_turn();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_come_in_the_order_of_the_tickets() {
        let turns = Turns::default();
        let (one, other) = (turns.draw(), turns.draw());
        assert!(turns.wait_for(one) && !turns.wait_for(other) && turns.is_wanted(one));
        turns.end();
        assert!(!turns.wait_for(one) && turns.wait_for(other) && !turns.is_wanted(other));
    }
}
