//! Translations that need not be made: put down when they are, and adopted, with the blocks they are of, by a vCPU that comes
//! upon the same code.
//!
//! A block that is adopted is not even decoded: its operations are wanted only when one of them is left to its handler, or when
//! the block is interpreted after all ([`decode::late`]).
// UNSAFETY: looks at blocks, and at guest code through host pointers.

use std::sync::Arc;

use super::finished::Finished;
use super::jumps::FEW_BITS;
use super::kept::{Entry, HEAD, Keeping, Kept, KeptPiece, KeptSite, MAX_PIECES, Place};
use super::pieces::Piece;
use super::relocation::Addresses;
use super::translate::Source;
use super::{Jit, Site};
use crate::x86::interp::cpu::Cpu;
use crate::x86::interp::decode;
use crate::x86::interp::op::{Block, Translated};
use crate::x86::mmu::{CodePage, View};

impl Jit {
    /// The translations to be used where they fit, as long as jump tables have as many entries as those look among.
    pub(super) fn kept(&self) -> Option<&Arc<Kept>> {
        match &self.keeping {
            Keeping::Reuse(kept) if self.jump_bits() == FEW_BITS => Some(kept),
            _ => None,
        }
    }

    /// Puts down a translation of `source` that has just been made, whose `sites` are still as they were written.
    pub(super) fn record(keeping: &Keeping, source: &Source<'_>, done: &Finished, sites: &[Site]) {
        if let Keeping::Record(recorder) = keeping {
            // What cannot be kept is made anew.
            let _ = with_entry(source, done, sites, |entry| recorder.add(entry, source.page));
        }
    }
}

/// Hands `take` a translation as it is kept; `None` if it cannot be.
fn with_entry(
    source: &Source<'_>,
    done: &Finished,
    sites: &[Site],
    take: impl FnOnce(&Entry<'_>),
) -> Option<()> {
    if source.host.jump_bits != FEW_BITS {
        return None;
    }
    if source.pieces.len() > MAX_PIECES || source.pieces.iter().any(|piece| piece.block.straddles()) {
        return None;
    }
    let mut pieces = Vec::new();
    for Piece { block, start, .. } in source.pieces {
        let piece = KeptPiece { start: u16::try_from(*start).ok()?, len: block.len, count: block.count };
        pieces.extend(piece.to_bytes());
    }
    let mut code = done.asm.code().to_vec();
    let mut relocations = Vec::new();
    for relocation in &done.relocations {
        relocation.take_out(&mut code, source.host.jumps, source.host.user_tlb)?;
        relocations.extend(relocation.to_bytes()?);
    }
    let mut kept_sites = Vec::new();
    for site in sites {
        let piece = source.pieces.iter().position(|piece| std::ptr::eq(piece.block, site.block))?;
        kept_sites.extend(KeptSite { site: *site, piece: u8::try_from(piece).ok()? }.to_bytes());
    }
    let seen = if done.seen.0 < done.seen.1 { done.seen } else { (0, 0) };
    let mut entry = Entry {
        user: source.user,
        narrow: source.narrow,
        vectors: done.vectors,
        inner: u16::try_from(done.inner).ok()?,
        ready: u16::try_from(done.ready).ok()?,
        second: u16::try_from(done.asm.second_part()).ok()?,
        seen: (u16::try_from(seen.0).ok()?, u16::try_from(seen.1).ok()?),
        pieces: &pieces,
        guest: &[],
        code: &code,
        relocations: &relocations,
        sites: &kept_sites,
    };
    let guest = entry.guest_of(source.page)?;
    entry.guest = &guest;
    take(&entry);
    Some(())
}

impl Cpu {
    /// Whether there are translations that need not be made.
    pub(in crate::x86) fn reuses(&self) -> bool {
        self.jit.as_ref().is_some_and(|jit| jit.kept().is_some())
    }

    /// The block of `page` at `linear`, whose translation is kept: `known`, if that block is there and has none yet.
    pub(in crate::x86) fn adopt(
        &mut self,
        linear: u64,
        page: &CodePage,
        known: Option<&Block>,
    ) -> Option<*const Block> {
        let jit = self.jit.as_ref()?;
        let user = self.view == View::User;
        let is_translated = known.is_some_and(|block| block.straddles() || block.code(user).get().outer != 0);
        if is_translated || !self.translates() || !jit.has_room() || !self.has_room_for(MAX_PIECES) {
            return None;
        }
        let kept = jit.kept()?.clone();
        let place = Place { start: (linear & 0xfff) as u16, user, narrow: self.is_narrow() };
        let range = place.head();
        let mut head = [0; HEAD];
        let head = &mut head[..range.len()];
        // SAFETY: the range is inside a page of guest RAM.
        unsafe { std::ptr::copy_nonoverlapping(page.host.add(range.start), head.as_mut_ptr(), head.len()) };
        let mut entries = kept.with(place.key(head)).filter(|entry| entry.place() == place);
        let adopted = entries.find_map(|entry| self.adopt_entry(page, &entry))?;
        kept.note_use();
        Some(adopted)
    }

    /// Adopts the block and those that `entry` is of beside it, if the page has that code.
    fn adopt_entry(&mut self, page: &CodePage, entry: &Entry<'_>) -> Option<*const Block> {
        let generation = self.mark_code(page, entry)?;
        // From here on who writes what the translation depends on makes its blocks stale; so it counts what is there now.
        for part in entry.parts() {
            let (range, bytes) = part?;
            if !has_code(page, range.start, bytes) {
                return None;
            }
        }
        let mut blocks: Vec<&Block> = Vec::with_capacity(entry.pieces().len());
        for (piece, (range, bytes)) in entry.pieces().zip(entry.parts().flatten()) {
            let gpa = page.gfn << 12 | range.start as u64;
            // SAFETY: there is room for all of them, so that the arena is not cleared meanwhile.
            let known =
                self.known_block(gpa).map(|block| unsafe { &*block }).filter(|block| block.is_fresh());
            let same =
                |block: &&Block| (block.len, block.count) == (piece.len, piece.count) && !block.straddles();
            blocks.push(match known {
                Some(block) => Some(block).filter(same)?,
                None => {
                    let (len, count, source) = (piece.len, piece.count, bytes.as_ptr());
                    let block = Block { len, count, source, ..decode::undecoded(page, generation) };
                    // SAFETY: as above.
                    unsafe { &*self.insert_undecoded(gpa, block) }
                }
            });
        }
        let first = *blocks.first()?;
        if blocks.iter().any(|block| block.generation != generation) {
            return None;
        }
        let tables = (self.mmu.user_view()?, self.views_of(entry.user));
        // Without its translation the block is as good as one that was decoded.
        self.jit.as_mut()?.adopt(entry, &blocks, tables);
        Some(first)
    }

    /// Marks what `entry` depends on as code. The page's generation before; `None` if that has changed meanwhile.
    fn mark_code(&mut self, page: &CodePage, entry: &Entry<'_>) -> Option<u32> {
        let mut generation = None;
        for range in entry.ranges() {
            if range.end > 4096 {
                return None;
            }
            // SAFETY: page information lives as long as guest RAM.
            let mark = unsafe { (*page.info).begin_code(range.start, range.len()) };
            if mark.first {
                self.revoke_writes_everywhere();
            }
            if *generation.get_or_insert(mark.generation) != mark.generation {
                return None;
            }
        }
        generation
    }
}

/// Whether `page` has `bytes` at `start`, all of which are in it.
fn has_code(page: &CodePage, start: usize, bytes: &[u8]) -> bool {
    let mut part = [0; 64];
    bytes.chunks(part.len()).enumerate().all(|(n, expected)| {
        let part = &mut part[..expected.len()];
        // SAFETY: inside a page of guest RAM, as the caller says.
        unsafe {
            std::ptr::copy_nonoverlapping(page.host.add(start + 64 * n), part.as_mut_ptr(), part.len())
        };
        part == expected
    })
}

impl Jit {
    /// Puts the code of `entry`, which is of `blocks`, where code is executed.
    fn adopt(
        &mut self,
        entry: &Entry<'_>,
        blocks: &[&Block],
        (user_tlb, views): (i32, Option<[u64; 2]>),
    ) -> Option<()> {
        let mut code = std::mem::take(&mut self.tools.code);
        code.clear();
        code.extend_from_slice(entry.code);
        let (attention, jumps) =
            (self.attention.low_address(), self.jumps_of(entry.user, entry.narrow)?.table());
        let count = entry.sites().len();
        let sites = self.sites.room(count);
        let first = sites.len();
        let addresses = Addresses {
            code: self.area.next_address(),
            sites: (sites.as_ptr_range().end as u64, count),
            slow: self.stubs.slow,
            leave: self.stubs.leave,
            attention,
            jumps,
            user_tlb,
            views,
        };
        for relocation in entry.relocations() {
            relocation.apply(&mut code, &addresses)?;
        }
        let in_code = |offset: u64| offset <= code.len() as u64;
        for kept in entry.sites() {
            let KeptSite { site, piece } = kept?;
            let block = *blocks.get(usize::from(piece))?;
            if site.op >= block.count || !in_code(site.resume) || !in_code(u64::from(site.patch) + 4) {
                return None;
            }
            sites.push(Site { block, ..site });
        }
        let (inner, ready, second) =
            (u32::from(entry.inner), u32::from(entry.ready), u32::from(entry.second));
        if !in_code(second.into()) || inner > second || ready > second {
            return None;
        }
        let address = self.place(first, &mut code, second, entry.relocations())?;
        self.tools.code = code;
        blocks.first()?.code(entry.user).set(Translated::new(address, inner, ready, entry.vectors)?);
        Some(())
    }
}
