//! String instructions. With REP they run page by page: one bounds and permission check a page, then the host's
//! own copy, fill, compare or scan. Between pages interrupts are let in, with registers as far as they got.
// UNSAFETY: copies and fills pages of guest RAM through host pointers.

use arch::x86::{Rflags, SegmentRegister};

use super::attempt;
use crate::x86::interp::cpu::{Cpu, Fault};
use crate::x86::interp::op::{Flow, Op};
use crate::x86::mmu::Intent;
use crate::x86::width::Width;

/// Repeat prefixes, in bits 0-1 of the immediate.
pub mod repeat {
    #![allow(missing_docs)]
    pub const NONE: u64 = 0;
    pub const WHILE_EQUAL: u64 = 1;
    pub const WHILE_NOT_EQUAL: u64 = 2;
}

const RCX: usize = 1;
const RSI: usize = 6;
const RDI: usize = 7;
const ES: u8 = SegmentRegister::Es as u8;
/// Elements between two looks at pending requests where no page boundary intervenes.
const STRETCH: u64 = 4096;

/// Address arithmetic of one string instruction: address size `A`.
struct Walk {
    mask: u64,
    step: i64,
}

impl Walk {
    fn new<A: Width, T: Width>(cpu: &Cpu) -> Self {
        let down = cpu.state.rflags & Rflags::DF.bits() != 0;
        Self { mask: u64::MAX >> (64 - A::BITS), step: if down { -(T::SIZE as i64) } else { T::SIZE as i64 } }
    }

    fn advance(&self, cpu: &mut Cpu, register: usize, elements: u64) {
        let old = cpu.state.gpr[register];
        let new = old.wrapping_add((self.step as u64).wrapping_mul(elements)) & self.mask;
        // A 32-bit address size zero-extends the register, a 16-bit one keeps the rest.
        cpu.state.gpr[register] = if self.mask == 0xffff { old & !0xffff | new } else { new };
    }

    /// Truncates `registers` to a 32-bit address size in 64-bit code. A repeated instruction does so before its
    /// first element, which shows if that faults.
    fn truncate(&self, cpu: &mut Cpu, op: &Op, registers: &[usize]) {
        if op.imm != repeat::NONE && self.mask == 0xffff_ffff {
            for register in registers {
                cpu.state.gpr[*register] &= self.mask;
            }
        }
    }

    /// How many elements of size `T` from `linear` on, in the walk's direction, are wholly in its page.
    fn in_page<T: Width>(&self, linear: u64) -> u64 {
        let offset = linear & 0xfff;
        if self.step > 0 {
            (0x1000 - offset) / T::SIZE as u64
        } else if offset + T::SIZE as u64 <= 0x1000 {
            offset / T::SIZE as u64 + 1
        } else {
            0
        }
    }

    fn count(&self, cpu: &Cpu, op: &Op) -> u64 {
        if op.imm == repeat::NONE { 1 } else { cpu.state.gpr[RCX] & self.mask }
    }

    fn consume(&self, cpu: &mut Cpu, op: &Op, elements: u64) {
        if op.imm != repeat::NONE {
            let left = (cpu.state.gpr[RCX] & self.mask).wrapping_sub(elements);
            let old = cpu.state.gpr[RCX];
            cpu.state.gpr[RCX] =
                if self.mask == 0xffff { old & !0xffff | left & 0xffff } else { left & self.mask };
        }
    }
}

/// Whether a repeated instruction should stop here to let requests in; it is restarted afterwards.
fn must_pause(cpu: &Cpu) -> bool {
    cpu.signal.is_pending() || cpu.state.rflags & Rflags::TF.bits() != 0
}

fn source<A: Width, T: Width>(cpu: &mut Cpu, op: &Op) -> Result<u64, Fault> {
    let offset = cpu.state.gpr[RSI] & (u64::MAX >> (64 - A::BITS));
    cpu.segment_address(op.segment, offset, T::SIZE, Intent::Read)
}

fn destination<A: Width, T: Width>(cpu: &mut Cpu, intent: Intent) -> Result<u64, Fault> {
    let offset = cpu.state.gpr[RDI] & (u64::MAX >> (64 - A::BITS));
    cpu.segment_address(ES, offset, T::SIZE, intent)
}

/// In legacy modes each element's limits are checked, so pages are not taken at once.
fn may_batch(cpu: &Cpu, op: &Op) -> bool {
    op.imm != repeat::NONE
        && cpu.state.is_64bit_code()
        && !cpu.alignment_checks
        && cpu.state.rflags & Rflags::TF.bits() == 0
}

/// Ends a repeated instruction that has elements left: restart it, after whatever waits.
/// What interrupts it sees RF set (SDM vol. 3 section 18.3.1.1), and SCAS and CMPS the flags of before.
fn pause(cpu: &mut Cpu) -> Flow {
    cpu.state.rflags |= Rflags::RF.bits();
    Flow::Retry
}

/// MOVS
pub fn move_string<A: Width, T: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let walk = Walk::new::<A, T>(cpu);
    loop {
        walk.truncate(cpu, op, &[RCX, RSI, RDI]);
        let left = walk.count(cpu, op);
        if left == 0 {
            return Flow::Next;
        }
        let from = attempt!(source::<A, T>(cpu, op));
        let mut done = 0;
        if may_batch(cpu, op) {
            let to = attempt!(destination::<A, T>(cpu, Intent::Write));
            let count = left.min(walk.in_page::<T>(from)).min(walk.in_page::<T>(to));
            done = attempt!(copy_within_pages::<T>(cpu, &walk, from, to, count));
        }
        if done == 0 {
            // In this order, as the processor's faults show.
            let value = attempt!(cpu.load::<T>(from));
            let to = attempt!(destination::<A, T>(cpu, Intent::Write));
            attempt!(cpu.store(to, value));
            done = 1;
        }
        walk.advance(cpu, RSI, done);
        walk.advance(cpu, RDI, done);
        walk.consume(cpu, op, done);
        if done == left {
            return Flow::Next;
        }
        if must_pause(cpu) {
            return pause(cpu);
        }
    }
}

/// Copies up to `count` elements between two pages of RAM; 0 if that cannot be done at once.
fn copy_within_pages<T: Width>(
    cpu: &mut Cpu,
    walk: &Walk,
    from: u64,
    to: u64,
    count: u64,
) -> Result<u64, Fault> {
    if count < 2 {
        return Ok(0);
    }
    let bytes = count as usize * T::SIZE;
    let back = if walk.step < 0 { bytes - T::SIZE } else { 0 } as u64;
    let (from, to) = (from - back, to - back);
    let Some(source) = cpu.host_range(from, bytes, Intent::Read).unwrap_or(None) else { return Ok(0) };
    let Some(target) = cpu.host_range(to, bytes, Intent::Write).unwrap_or(None) else { return Ok(0) };
    let (source, target) = (source.cast_const(), target);
    let distance = (target as usize).wrapping_sub(source as usize);
    // An overlap in the direction of the copy repeats a pattern: element by element then.
    let repeats = if walk.step > 0 { distance < bytes } else { distance.wrapping_neg() < bytes };
    if repeats && distance != 0 {
        return Ok(0);
    }
    // SAFETY: both ranges are `bytes` long and inside pages of guest RAM (`host_range`).
    unsafe { std::ptr::copy(source, target, bytes) };
    Ok(count)
}

/// STOS
pub fn store_string<A: Width, T: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let walk = Walk::new::<A, T>(cpu);
    let value = cpu.register::<T>(0);
    loop {
        walk.truncate(cpu, op, &[RCX, RDI]);
        let left = walk.count(cpu, op);
        if left == 0 {
            return Flow::Next;
        }
        let to = attempt!(destination::<A, T>(cpu, Intent::Write));
        let mut done = 0;
        if may_batch(cpu, op) {
            let count = left.min(walk.in_page::<T>(to));
            done = attempt!(fill_page::<T>(cpu, &walk, to, count, value));
        }
        if done == 0 {
            attempt!(cpu.store(to, value));
            done = 1;
        }
        walk.advance(cpu, RDI, done);
        walk.consume(cpu, op, done);
        if done == left {
            return Flow::Next;
        }
        if must_pause(cpu) {
            return pause(cpu);
        }
    }
}

fn fill_page<T: Width>(cpu: &mut Cpu, walk: &Walk, to: u64, count: u64, value: T) -> Result<u64, Fault> {
    if count < 2 {
        return Ok(0);
    }
    let bytes = count as usize * T::SIZE;
    let back = if walk.step < 0 { bytes - T::SIZE } else { 0 } as u64;
    let Some(target) = cpu.host_range(to - back, bytes, Intent::Write).unwrap_or(None) else { return Ok(0) };
    let pattern = value.zero_extend().to_le_bytes();
    // SAFETY: `target` has `bytes` bytes of guest RAM (`host_range`).
    unsafe {
        if pattern[..T::SIZE].iter().all(|b| *b == pattern[0]) {
            std::ptr::write_bytes(target, pattern[0], bytes);
        } else {
            for i in 0..count as usize {
                std::ptr::copy_nonoverlapping(pattern.as_ptr(), target.add(i * T::SIZE), T::SIZE);
            }
        }
    }
    Ok(count)
}

/// LODS
pub fn load_string<A: Width, T: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let walk = Walk::new::<A, T>(cpu);
    loop {
        walk.truncate(cpu, op, &[RCX]);
        let left = walk.count(cpu, op);
        if left == 0 {
            return Flow::Next;
        }
        let from = attempt!(source::<A, T>(cpu, op));
        let value = attempt!(cpu.load::<T>(from));
        cpu.set_register(0, value);
        walk.advance(cpu, RSI, 1);
        walk.consume(cpu, op, 1);
        if left == 1 {
            return Flow::Next;
        }
        if must_pause(cpu) {
            return pause(cpu);
        }
    }
}

/// Whether a comparison ends the repetition.
fn is_last(cpu: &Cpu, op: &Op, left: u64) -> bool {
    let equal = cpu.flags.holds::<4>();
    left == 1
        || match op.imm {
            repeat::WHILE_EQUAL => !equal,
            repeat::WHILE_NOT_EQUAL => equal,
            _ => true,
        }
}

/// SCAS. A fault leaves the flags as they were before the first element (SDM vol. 2 "REP").
pub fn scan_string<A: Width, T: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let walk = Walk::new::<A, T>(cpu);
    let wanted = cpu.register::<T>(0);
    let mut stretch = STRETCH;
    let before = cpu.flags;
    loop {
        walk.truncate(cpu, op, &[RCX]);
        let left = walk.count(cpu, op);
        if left == 0 {
            return Flow::Next;
        }
        let loaded = destination::<A, T>(cpu, Intent::Read).and_then(|to| cpu.load::<T>(to));
        let Ok(value) = loaded else {
            cpu.flags = before;
            return Flow::Fault;
        };
        T::sub(wanted, value, &mut cpu.flags);
        walk.advance(cpu, RDI, 1);
        walk.consume(cpu, op, 1);
        if is_last(cpu, op, left) {
            return Flow::Next;
        }
        stretch -= 1;
        if stretch == 0 || must_pause(cpu) {
            cpu.flags = before;
            return pause(cpu);
        }
    }
}

/// The two elements CMPS compares.
fn load_pair<A: Width, T: Width>(cpu: &mut Cpu, op: &Op) -> Result<(T, T), Fault> {
    // In this order, as the processor's page faults show.
    let to = destination::<A, T>(cpu, Intent::Read)?;
    let b = cpu.load::<T>(to)?;
    let from = source::<A, T>(cpu, op)?;
    Ok((cpu.load::<T>(from)?, b))
}

/// CMPS; a fault leaves the flags of before the instruction, as for SCAS.
pub fn compare_string<A: Width, T: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let walk = Walk::new::<A, T>(cpu);
    let mut stretch = STRETCH;
    let before = cpu.flags;
    loop {
        walk.truncate(cpu, op, &[RCX]);
        let left = walk.count(cpu, op);
        if left == 0 {
            return Flow::Next;
        }
        let Ok((a, b)) = load_pair::<A, T>(cpu, op) else {
            cpu.flags = before;
            return Flow::Fault;
        };
        T::sub(a, b, &mut cpu.flags);
        walk.advance(cpu, RSI, 1);
        walk.advance(cpu, RDI, 1);
        walk.consume(cpu, op, 1);
        if is_last(cpu, op, left) {
            return Flow::Next;
        }
        stretch -= 1;
        if stretch == 0 || must_pause(cpu) {
            cpu.flags = before;
            return pause(cpu);
        }
    }
}

/// INS
pub fn input_string<A: Width, T: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let walk = Walk::new::<A, T>(cpu);
    loop {
        let port = cpu.register::<u16>(16);
        attempt!(cpu.check_port::<T>(port));
        let left = walk.count(cpu, op);
        if left == 0 {
            return Flow::Next;
        }
        let to = attempt!(destination::<A, T>(cpu, Intent::Write));
        attempt!(cpu.check_writable(to, T::SIZE));
        let value = attempt!(cpu.port_read::<T>(port));
        attempt!(cpu.store(to, value));
        walk.advance(cpu, RDI, 1);
        walk.consume(cpu, op, 1);
        if left == 1 {
            return Flow::Next;
        }
        if must_pause(cpu) {
            return pause(cpu);
        }
    }
}

/// OUTS
pub fn output_string<A: Width, T: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let walk = Walk::new::<A, T>(cpu);
    loop {
        let port = cpu.register::<u16>(16);
        attempt!(cpu.check_port::<T>(port));
        let left = walk.count(cpu, op);
        if left == 0 {
            return Flow::Next;
        }
        let from = attempt!(source::<A, T>(cpu, op));
        let value = attempt!(cpu.load::<T>(from));
        attempt!(cpu.port_write::<T>(port, value));
        walk.advance(cpu, RSI, 1);
        walk.consume(cpu, op, 1);
        if left == 1 {
            return Flow::Next;
        }
        if must_pause(cpu) {
            return pause(cpu);
        }
    }
}
