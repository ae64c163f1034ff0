//! From guest bytes to blocks of operations.
//!
//! iced-x86 decodes; [`select`] picks the function that executes. A block ends at a branch, at an instruction
//! after which the world may look different (privileged ones, I/O), at the page's end, or after `MAX_OPS`.
//! An instruction that straddles two pages is a block of its own, checked anew each time it is entered.
// UNSAFETY: reads guest code through host pointers.

use std::cell::Cell;

use arch::x86::paging::PAGE_SIZE;
use arch::x86::{Exception, SegmentRegister};
use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction};
use memory::PageInfo;

use super::cpu::{Cpu, Fault, mode};
use super::op::{Block, NO_BLOCK, Op, Second};
use super::ops::control;
use super::select::{self, Selected};
use crate::x86::mmu::CodePage;

/// Operations a block may have.
const MAX_OPS: usize = 48;
/// Bytes looked at for one block.
const WINDOW: usize = 512;
/// The longest instruction.
const MAX_INSTRUCTION: usize = 15;

/// The fresh block for `linear` (which is CS:RIP) in the current mode.
pub fn block_at(cpu: &mut Cpu, linear: u64) -> Result<*const Block, Fault> {
    if cpu.mode & mode::BITS != 2 && code_limit_left(cpu) == 0 {
        return cpu.fail(Exception::GP0);
    }
    let page = code_page(cpu, linear)?;
    let gpa = page.gfn << 12 | linear & (PAGE_SIZE - 1);
    if let Some(block) = cpu.cache.find(gpa, cpu.mode) {
        // SAFETY: `find` returns blocks of the arena's current contents.
        let known = unsafe { &*block };
        if known.is_fresh() && second_page_agrees(cpu, known, linear)? {
            if cpu.mode & mode::BITS == 2 || code_limit_left(cpu) >= u64::from(known.len) {
                if known.heat.get() == 0 && cpu.reuses() {
                    known.heat.set(1); // once is enough
                    cpu.adopt(linear, &page, Some(known));
                }
                return Ok(block);
            }
            if known.count == 1 {
                cpu.check_code_limit(block)?;
            }
        }
    }
    if cpu.reuses()
        && let Some(block) = cpu.adopt(linear, &page, None)
    {
        return Ok(block);
    }
    decode(cpu, linear, gpa, &page)
}

/// A block of `page`, of this `generation` of its code, that is not decoded.
pub fn undecoded(page: &CodePage, generation: u32) -> Block {
    Block {
        info: page.info,
        generation,
        len: 0,
        count: 0,
        second: std::ptr::null(),
        gfn: page.gfn,
        links: [NO_BLOCK; 2],
        ops: Cell::new(std::ptr::null_mut()),
        source: std::ptr::null(),
        heat: Cell::new(0),
        codes: Default::default(),
    }
}

/// Decodes a block that came with its translation, from the code that this was found by.
#[cold]
pub fn late(cpu: &mut Cpu, block: &Block) -> *const Op {
    // SAFETY: a block without operations has so many bytes of a file of translations, which the vCPU holds.
    let bytes = unsafe { std::slice::from_raw_parts(block.source, usize::from(block.len)) };
    let ops = draft_limited(cpu, bytes, MAX_OPS).closed().ops;
    assert_eq!(
        ops.len(),
        usize::from(block.count),
        "the same code is decoded the same way by the same program"
    );
    block.ops.set(cpu.cache.keep_operations(&ops));
    block.ops.get()
}

fn code_page(cpu: &mut Cpu, linear: u64) -> Result<CodePage, Fault> {
    // SAFETY: the Cpu keeps the GuestRam alive.
    let ram = unsafe { &*cpu.ram };
    match cpu.mmu.code_page(ram, &cpu.state, linear) {
        Ok(Some(page)) => Ok(page),
        // Where nothing answers, all ones are fetched, which is no instruction.
        Ok(None) => cpu.fail(Exception::UD),
        Err(exception) => cpu.fail(exception),
    }
}

/// For a block of one straddling instruction: whether its second half is still what was decoded.
fn second_page_agrees(cpu: &mut Cpu, block: &Block, linear: u64) -> Result<bool, Fault> {
    let Some(known) = block.second() else { return Ok(true) };
    let second = code_page(cpu, next_page(linear))?;
    Ok(second.gfn == known.gfn && block.second_is_fresh())
}

fn next_page(linear: u64) -> u64 {
    (linear & !(PAGE_SIZE - 1)).wrapping_add(PAGE_SIZE)
}

/// Bytes of the code segment from RIP on.
fn code_limit_left(cpu: &Cpu) -> u64 {
    (u64::from(cpu.state.segment(SegmentRegister::Cs).limit) + 1).saturating_sub(cpu.state.rip)
}

/// What was decoded, before it is stored.
struct Draft {
    ops: Vec<Op>,
    len: usize,
    ended: bool,
    /// The first instruction needs bytes from behind the window.
    cut: bool,
}

fn decode(cpu: &mut Cpu, linear: u64, gpa: u64, page: &CodePage) -> Result<*const Block, Fault> {
    let offset = (linear & (PAGE_SIZE - 1)) as usize;
    let mut in_page = (PAGE_SIZE as usize - offset).min(WINDOW);
    if cpu.mode & mode::BITS != 2 {
        let left = code_limit_left(cpu);
        if left == 0 {
            return cpu.fail(Exception::GP0);
        }
        in_page = in_page.min(usize::try_from(left).unwrap_or(usize::MAX));
    }
    // SAFETY: page information lives as long as guest RAM.
    let info = unsafe { &*page.info };
    let mut bytes = [0u8; WINDOW];
    let mut again = [0u8; WINDOW];
    // The lines to mark are known only after decoding; so decode, mark, and see whether the bytes still stand.
    loop {
        read_code(page, offset, &mut bytes[..in_page]);
        let draft = draft(cpu, &bytes[..in_page]);
        if draft.cut {
            return straddling(cpu, linear, gpa, page, &bytes[..in_page]);
        }
        let mark = info.begin_code(offset, draft.len);
        if mark.first {
            cpu.revoke_writes_everywhere();
        }
        read_code(page, offset, &mut again[..draft.len]);
        if bytes[..draft.len] != again[..draft.len] {
            continue;
        }
        let block = Block { len: draft.len as u16, ..undecoded(page, mark.generation) };
        return Ok(finish(cpu, gpa, block, draft));
    }
}

/// A block for the one instruction that begins at the end of a page and ends in the next.
fn straddling(
    cpu: &mut Cpu,
    linear: u64,
    gpa: u64,
    page: &CodePage,
    head: &[u8],
) -> Result<*const Block, Fault> {
    let offset = (linear & (PAGE_SIZE - 1)) as usize;
    let head_len = head.len();
    if offset + head_len < PAGE_SIZE as usize {
        return cpu.fail(Exception::GP0); // cut by the segment limit
    }
    let mut want = MAX_INSTRUCTION;
    if cpu.mode & mode::BITS != 2 {
        want = want.min(usize::try_from(code_limit_left(cpu)).unwrap_or(usize::MAX));
        if want <= head_len {
            return cpu.fail(Exception::GP0); // the segment ends with the page
        }
    }
    let second = code_page(cpu, next_page(linear))?;
    // SAFETY: page information lives as long as guest RAM.
    let (info, second_info) = unsafe { (&*page.info, &*second.info) };
    let tail_len = want.saturating_sub(head_len);
    let mut bytes = [0u8; MAX_INSTRUCTION];
    let mut again = [0u8; MAX_INSTRUCTION];
    loop {
        let fill = |bytes: &mut [u8; MAX_INSTRUCTION]| {
            read_code(page, offset, &mut bytes[..head_len]);
            read_code(&second, 0, &mut bytes[head_len..head_len + tail_len]);
        };
        fill(&mut bytes);
        make_room(cpu);
        let draft = draft_limited(cpu, &bytes[..head_len + tail_len], 1);
        if draft.cut {
            return cpu.fail(Exception::GP0);
        }
        let mark = info.begin_code(offset, head_len);
        let second_mark = second_info.begin_code(0, draft.len.saturating_sub(head_len));
        if mark.first || second_mark.first {
            cpu.revoke_writes_everywhere();
        }
        fill(&mut again);
        if bytes != again {
            continue;
        }
        let generation = second_mark.generation;
        // The draft has asked for room.
        let second =
            Second { info: std::ptr::from_ref::<PageInfo>(second_info), generation, gfn: second.gfn };
        let (len, second) = (draft.len as u16, cpu.cache.keep(second));
        let block = Block { len, second, ..undecoded(page, mark.generation) };
        return Ok(finish(cpu, gpa, block, draft));
    }
}

fn read_code(page: &CodePage, offset: usize, data: &mut [u8]) {
    // SAFETY: callers stay inside the page, which is guest RAM.
    unsafe { std::ptr::copy_nonoverlapping(page.host.add(offset), data.as_mut_ptr(), data.len()) }
}

fn draft(cpu: &mut Cpu, bytes: &[u8]) -> Draft {
    make_room(cpu);
    let limit = if cpu.mode & mode::SINGLE != 0 { 1 } else { MAX_OPS };
    draft_limited(cpu, bytes, limit)
}

/// Sees that a block can be stored. Asked for each draft: another vCPU that keeps changing the code makes us draft again and
/// again.
fn make_room(cpu: &mut Cpu) {
    if !cpu.cache.has_room(MAX_OPS + 1) {
        cpu.forget_blocks();
    }
}

fn draft_limited(cpu: &mut Cpu, bytes: &[u8], limit: usize) -> Draft {
    let bits = 16 << (cpu.mode & mode::BITS);
    // With addresses relative to the block, targets and RIP-relative operands come out position-independent.
    let mut decoder = Decoder::with_ip(bits, bytes, 0, DecoderOptions::NONE);
    let mut instruction = Instruction::default();
    let mut draft = Draft { ops: Vec::with_capacity(16), len: 0, ended: false, cut: false };
    while draft.ops.len() < limit {
        let start = decoder.position();
        if start >= bytes.len() {
            break;
        }
        decoder.decode_out(&mut instruction);
        if decoder.last_error() == DecoderError::NoMoreBytes && bytes.len() - start < MAX_INSTRUCTION {
            draft.cut = draft.ops.is_empty();
            break;
        }
        let Selected { mut op, ends } = select::operation(cpu, &instruction, &bytes[start..], bits);
        op.offset = start as u16;
        op.len = instruction.len() as u8;
        op.position = draft.ops.len() as u16;
        draft.ops.push(op);
        draft.len = decoder.position();
        if ends {
            draft.ended = true;
            break;
        }
    }
    draft
}

impl Draft {
    /// With an operation that ends it.
    fn closed(mut self) -> Self {
        if !self.ended {
            let mut end = Op::plain(control::end_of_block);
            end.offset = self.len as u16;
            end.position = self.ops.len() as u16 - 1;
            self.ops.push(end);
        }
        self
    }
}

fn finish(cpu: &mut Cpu, gpa: u64, mut block: Block, draft: Draft) -> *const Block {
    let draft = draft.closed();
    block.count = draft.ops.len() as u16;
    cpu.counters.blocks += 1;
    cpu.cache.insert(gpa, cpu.mode, block, &draft.ops)
}
