//! Where the flags of a translation are, the code that stands behind it, and the sites that lead to Rust.

use std::mem::offset_of;

use super::asm::{Label, Mem, RAX, Size};
use super::branch::End;
use super::fixed::UnknownFixed;
use super::flags::Effect;
use super::lazy::{Place, Save};
use super::operand::Unknown;
use super::plan::Plan;
use super::relocation::What;
use super::rewrite::{S0, S1};
use super::stubs::{flags, frame};
use super::translate::Translation;
use super::{Frame, Kind, Site, Vectors};

/// Code that is needed rarely and stands behind the rest.
pub(super) enum Cold {
    /// At `label`: go to the slow stub with site number `site`. If that resumes, it is at `resume`, with the
    /// live flags in EFLAGS if `restore`, and the `addend` in S1.
    Slow { label: Label, site: usize, resume: Option<Label>, restore: bool, addend: Option<Mem>, save: Save },
    /// At `label`: leave with the site.
    Exit { label: Label, site: usize, save: Save },
    /// At `label`: a jump out of the page to `target`, relative to the page.
    FarJump { label: Label, last: usize, target: i64, save: Save },
    /// At `label`: the address in S0 is not in the entry in S1; see `write_second_jump`.
    SecondJump { label: Label, unknown: Label, found: Label },
    /// At `label`: the entry that a jump to a known place expected has another; see `write_other_jump`.
    OtherJump { label: Label, unknown: Label, found: Option<Label> },
    /// At `label`: leave with the site and the address in S0.
    UnknownTarget { label: Label, site: usize },
    /// At `label`: an access that is not in the known page.
    Unknown(Label, Unknown),
    /// At `label`: an operand relative to RIP that is not in the known page.
    UnknownFixed(Label, UnknownFixed),
    /// At `label`: RET, which moved RSP by `moved`, to another place than expected, in S0.
    Unexpected { label: Label, last: usize, moved: i32 },
    /// At `label`: the check of group `index` failed; `retry` is where it begins.
    Group { label: Label, index: usize, retry: Label, save: Save },
}

impl Translation<'_> {
    /// EFLAGS will be destroyed before instruction `i`.
    pub(super) fn clobber(&mut self, i: usize) {
        self.save_flags(self.live[i]);
        self.place.host = false;
        self.missed = (i, self.saving(self.live[i]));
    }

    /// What is to be done for the flags where instruction `i` fails after they were destroyed for it.
    pub(super) fn missed(&self, i: usize) -> Save {
        if self.missed.0 == i { self.missed.1 } else { Save::Nothing }
    }

    /// Whether EFLAGS are needed for something else before the block's instructions look at them or set them.
    pub(super) fn clobbers_first(&self) -> bool {
        if self.vectors != Vectors::NONE {
            return true;
        }
        for (i, plan) in self.plans.iter().enumerate() {
            let checks = self.groups.starts(i) || !self.groups.has(i);
            match plan {
                Plan::Nothing | Plan::Address | Plan::ReadSegment => {}
                Plan::Push | Plan::Pop | Plan::Leave if !checks => {}
                Plan::Native { memory, .. } => {
                    if memory.is_some_and(|operand| checks || operand.alignment > 1) {
                        return true;
                    }
                    let effect = Effect::of(&self.instructions[i]);
                    if effect.reads | effect.changes != 0 {
                        return false;
                    }
                }
                Plan::SideExit => return false,
                _ => return true,
            }
        }
        match self.end(self.ops.len() - 1) {
            End::Jump(target) => !self.is_in_page(target),
            End::Conditional(..) => false,
            _ => true,
        }
    }

    /// Sees that live flags are not in EFLAGS alone.
    pub(super) fn save_flags(&mut self, live: u32) {
        if live != 0 && !self.place.saved && self.place.lazy.is_none() {
            self.store_flags();
            self.place.saved = true;
        }
    }

    pub(super) fn store_flags(&mut self) {
        self.addend = None;
        self.asm.mov(Size::Qword, S1, RAX);
        self.asm.flags_to_ax();
        self.asm.store(Size::Word, flags(), RAX);
        self.asm.mov(Size::Qword, RAX, S1);
    }

    /// Sees that the `live` flags are in EFLAGS; both scratch registers keep their values.
    pub(super) fn need_host(&mut self, live: u32) {
        if !self.place.host {
            match self.place.lazy {
                _ if live == 0 => {}
                Some(lazy) if !self.place.saved => self.remake_flags(lazy),
                _ => self.load_flags(),
            }
            self.place.host = true;
        }
    }

    pub(super) fn load_flags(&mut self) {
        self.asm.store(Size::Qword, frame(offset_of!(Frame, saved_rax)), RAX);
        self.asm.movzx_word(RAX, flags());
        self.asm.flags_from_ax();
        self.asm.load(Size::Qword, RAX, frame(offset_of!(Frame, saved_rax)));
    }

    pub(super) fn write_cold(&mut self) {
        // Cold code may make more of it.
        while let Some(cold) = self.cold.pop() {
            match cold {
                Cold::Slow { label, site, resume, restore, addend, save } => {
                    self.asm.bind(label);
                    self.write_save(save);
                    self.jump_with_site(site, self.stubs.slow);
                    if let Some(resume) = resume {
                        self.write_resume(site, resume, restore, addend);
                    }
                }
                Cold::Exit { label, site, save } => {
                    self.asm.bind(label);
                    self.write_save(save);
                    self.jump_with_site(site, self.stubs.leave);
                }
                Cold::FarJump { label, last, target, save } => {
                    self.asm.bind(label);
                    self.write_save(save);
                    self.write_far_jump(last, target, 0);
                }
                Cold::Unexpected { label, last, moved } => self.write_unexpected(label, last, moved),
                Cold::Group { label, index, retry, save } => {
                    self.write_failed_group(label, index, retry, save);
                }
                Cold::Unknown(label, unknown) => self.write_unknown_page(label, unknown),
                Cold::UnknownFixed(label, unknown) => self.write_unknown_fixed(label, unknown),
                Cold::SecondJump { label, unknown, found } => self.write_second_jump(label, unknown, found),
                Cold::OtherJump { label, unknown, found } => self.write_other_jump(label, unknown, found),
                Cold::UnknownTarget { label, site } => {
                    self.asm.bind(label);
                    self.asm.store(Size::Qword, frame(offset_of!(Frame, target)), S0);
                    self.jump_with_site(site, self.stubs.leave);
                }
            }
        }
    }

    /// Where the handler of `site` comes back to: `resume`, with the flags in EFLAGS if `restore`, and `addend` in S1.
    fn write_resume(&mut self, site: usize, resume: Label, restore: bool, addend: Option<Mem>) {
        if !restore && addend.is_none() {
            self.resumes.push((site, resume));
            return;
        }
        let back = self.asm.label();
        self.asm.bind(back);
        if restore {
            self.load_flags();
        }
        if let Some(addend) = addend {
            self.asm.load(Size::Qword, S1, addend);
        }
        self.asm.jump(resume);
        self.resumes.push((site, back));
    }

    /// By the interpreter's handler, after which the block goes on.
    pub(super) fn write_handler(&mut self, i: usize) {
        self.publish_flags(self.live[i]);
        let site = self.site(Kind::Handler, i, self.start_of(i));
        let resume = self.asm.label();
        self.jump_with_site(site, self.stubs.slow);
        self.asm.bind(resume);
        self.resumes.push((site, resume));
        self.place = Place::MEMORY;
        self.addend = None;
    }

    /// At `label`: instruction `i` by its handler, then on behind it.
    pub(super) fn cold_handler(&mut self, i: usize, label: Label) {
        let site = self.site(Kind::Handler, i, self.start_of(i));
        self.sites[site].keeps_x87 = match self.plans[i] {
            Plan::Native { vectors, .. } => vectors & Vectors::X87 == 0,
            Plan::LoadControlWord(_) => false,
            _ => true,
        };
        let resume = self.asm.label();
        self.asm.bind(resume);
        let restore = self.live[i + 1] != 0 && self.place.host;
        let (addend, save) = (self.addend, self.missed(i));
        self.cold.push(Cold::Slow { label, site, resume: Some(resume), restore, addend, save });
    }

    /// A new site for operation `i`.
    pub(super) fn site(&mut self, kind: Kind, i: usize, ip: i32) -> usize {
        assert!(self.sites.len() < self.sites.capacity(), "room for the block's sites was made");
        self.sites.push(Site {
            kind,
            link: 0,
            outer: false,
            register: 0,
            vectors: self.vectors,
            keeps_x87: !matches!(kind, Kind::Handler),
            distance: 0,
            ip,
            patch: 0,
            resume: 0,
            block: self.piece(i).block,
            op: self.number_in_piece(i),
        });
        self.sites.len() - 1
    }

    /// `mov S0, site; jmp stub`
    pub(super) fn jump_with_site(&mut self, site: usize, stub: u64) {
        let address = &raw const self.sites[site];
        self.asm.load_address(S0, address as u64);
        self.relocate(What::Site(site - self.first_site), 0);
        self.asm.jump_to(stub);
        self.relocate(if stub == self.stubs.slow { What::Slow } else { What::Leave }, 0);
    }

    /// The jump just written, whose displacement are the last four bytes, is what `site` will patch.
    pub(super) fn patch_here(&mut self, site: usize) {
        self.patches.push((site, self.asm.position() - 4));
    }
}
