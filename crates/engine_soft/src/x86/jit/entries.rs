//! The ways into a translation: from Rust and other pages, and from code of its own page.
// UNSAFETY: reads the page information that blocks point to.

use std::mem::offset_of;

use memory::PageInfo;

use super::asm::{Alu, Condition, Label, Mem, Size};
use super::keep::Cold;
use super::lazy::{Place, Save};
use super::listing::Stretch;
use super::rewrite::S0;
use super::stubs::frame;
use super::translate::Translation;
use super::{Frame, Kind, Vectors};

impl Translation<'_> {
    /// From Rust and from other pages: the flags are saved. A block in two pages may be stale.
    pub(super) fn write_outer_entry(&mut self) {
        let block = self.pieces[0].block;
        let Some(second) = block.second() else { return };
        let stale = self.asm.label();
        for (info, generation) in [(block.info, block.generation), (second.info, second.generation)] {
            // SAFETY: page information lives as long as guest RAM, which the engine holds.
            let counter = PageInfo::code_generation_counter(unsafe { &*info });
            self.asm.load_immediate(S0, std::ptr::from_ref(counter) as u64);
            self.asm.alu_memory_immediate(Size::Dword, Alu::Cmp, Mem::Base(S0, 0), generation as i32);
            self.asm.jump_if(Condition::NE, stale);
        }
        let site = self.site(Kind::Leave, 0, self.start_of(0));
        self.cold.push(Cold::Exit { label: stale, site, save: Save::Nothing });
    }

    /// Both ways in meet where the flags are in the same place: in EFLAGS, or, if the block needs them out of its
    /// way first of all, in memory. Returns the inner one.
    pub(super) fn join_entries(&mut self) -> Label {
        let inner = self.asm.label();
        if self.live[0] == 0 || !self.clobbers_first() {
            if self.live[0] != 0 {
                self.load_flags();
            }
            self.asm.bind(inner);
            return inner;
        }
        let joined = self.asm.label();
        self.asm.bind(joined);
        self.late_save = Some((inner, joined));
        self.place = Place::MEMORY;
        inner
    }

    /// The inner entry of a block that needs its flags in memory, if that has not been written yet.
    pub(super) fn write_late_save(&mut self) {
        let Some((inner, joined)) = self.late_save else { return };
        self.mark(Stretch::Inner);
        self.asm.bind(inner);
        self.store_flags();
        self.asm.jump(joined);
    }

    /// From the same page: sees that vector registers and x87 state are loaded. Returns where that is known.
    pub(super) fn write_inner_entry(&mut self) -> Label {
        let resume = self.asm.label();
        if self.vectors != Vectors::NONE {
            self.clobber(0);
            let level = Vectors::level(self.vectors);
            let missing = self.asm.label();
            if level != Vectors::NONE {
                let vectors = frame(offset_of!(Frame, vectors));
                self.asm.alu_memory_immediate(Size::Byte, Alu::Cmp, vectors, i32::from(level));
                self.asm.jump_if(Condition::B, missing);
            }
            if self.vectors & Vectors::X87 != 0 {
                self.asm.alu_memory_immediate(Size::Byte, Alu::Cmp, frame(offset_of!(Frame, x87)), 0);
                self.asm.jump_if(Condition::E, missing);
            }
            let site = self.site(Kind::Vectors, 0, self.start_of(0));
            let resume = Some(resume);
            let save = self.missed(0);
            self.cold.push(Cold::Slow { label: missing, site, resume, restore: false, addend: None, save });
        }
        self.asm.bind(resume);
        resume
    }
}
