//! Turns: while translated code is compared with the interpreter (see [`crate::x86::jit::lockstep`]), the vCPUs of a machine
//! run one after the other, so that none stores to memory between the two executions of another.
//!
//! A vCPU has the turn from one boundary to the next, and hands it on between blocks. Whoever waits serves requests to drop
//! write permissions, which the one that has the turn may wait for.

use std::sync::atomic::{AtomicU32, Ordering};

use super::cpu::Cpu;

/// Whose turn it is: tickets, so that everyone gets one.
#[derive(Debug, Default)]
pub struct Turns {
    next: AtomicU32,
    served: AtomicU32,
}

impl Turns {
    fn draw(&self) -> u32 {
        self.next.fetch_add(1, Ordering::SeqCst)
    }

    fn is_up(&self, ticket: u32) -> bool {
        self.served.load(Ordering::SeqCst) == ticket
    }

    fn is_wanted(&self) -> bool {
        self.next.load(Ordering::SeqCst) != self.served.load(Ordering::SeqCst).wrapping_add(1)
    }

    fn end(&self) {
        self.served.fetch_add(1, Ordering::SeqCst);
    }
}

impl Cpu {
    /// Waits until this vCPU alone executes, if vCPUs take turns.
    pub(super) fn begin_turn(&mut self) {
        if !self.takes_turns {
            return;
        }
        let ticket = self.shared.turns.draw();
        while !self.shared.turns.is_up(ticket) {
            self.service_engine_request();
            std::thread::yield_now();
        }
    }

    /// Others may execute.
    pub(super) fn end_turn(&mut self) {
        if self.takes_turns {
            self.shared.turns.end();
        }
    }

    /// Lets others that wait execute in between. What was looked up before may be stale then.
    #[inline(always)]
    pub(super) fn pass_turn(&mut self) {
        if self.takes_turns && self.shared.turns.is_wanted() {
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
        assert!(turns.is_up(one) && !turns.is_up(other) && turns.is_wanted());
        turns.end();
        assert!(!turns.is_up(one) && turns.is_up(other) && !turns.is_wanted());
    }
}
