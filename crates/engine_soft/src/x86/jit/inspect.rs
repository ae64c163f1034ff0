//! Translations that are only looked at: the code of a block as text that is the same on every host.
//!
//! Developers see what becomes of a piece of a guest, and tests that it is what was agreed on. Nothing is executed, so
//! the guest's memory needs no page tables: linear addresses are physical ones.
// UNSAFETY: follows the pointers of a block it has just decoded.

use std::collections::HashMap;
use std::io;
use std::mem::offset_of;
use std::rc::Rc;
use std::sync::Arc;

use arch::x86::cpuid::{CpuModel, Feature};
use arch::x86::{CpuState, Cr0, Cr4, Efer, Exception, Segment, SegmentRegister};
use engine::{NoDevices, VcpuSignal, VmConfig};
use iced_x86::FlowControl;
use memory::{GuestRam, PageInfo};

use super::jumps::FEW_BITS;
use super::listing::{Listing, Mark, Stretch};
use super::names::{Names, REGISTERS};
use super::pieces::Piece;
use super::stubs::Stubs;
use super::translate::{self, Source};
use super::{Config, Kind, Site, Tools, Vectors};
use crate::x86::hostexec::Thunks;
use crate::x86::interp::cpu::Cpu;
use crate::x86::interp::decode;
use crate::x86::interp::shared::Shared;
use crate::x86::mmu::{Intent, TlbEntry, View};
use crate::x86::system::Core;

/// Where translations are said to be: the stubs in front of them.
const STUBS: Stubs = Stubs { enter: 0x1000, slow: 0x1100, leave: 0x1200, bottom: 0x1300 };
const ADDRESS: u64 = 0x2000;
/// Where the jump table is said to be.
const JUMPS: i32 = 0x1000_0000;
const ATTENTION: i32 = 0x2000_0000;
/// Where the user's view of the TLB is said to be.
const USER_TLB: i32 = 0x3000_0000;
/// Where the views of the TLB are said to be.
const VIEWS: [u64; 2] = [0x20_0000_0000, 0x20_0001_0000];
/// No address beyond is physical memory to a vCPU without paging.
pub const MAX_GPA: u64 = u32::MAX as u64;

/// At which privilege level code runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// 0
    Kernel,
    /// 3
    User,
}

/// Width of the code that is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// 32 bits, in flat segments.
    Bits32,
    /// 64 bits.
    Bits64,
}

/// What of a translation is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// What is executed as a rule.
    Common,
    /// Also what is needed rarely.
    Whole,
    /// Also what takes the block's place from where the check of a group fails.
    Variants,
}

/// Why a block cannot be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Fetching it raises an exception.
    #[error("no code can be fetched there: {0:?}")]
    Fetch(Exception),
    /// It is beyond what is looked at.
    #[error("beyond the first 4 GiB of guest physical memory")]
    TooHigh,
}

/// A block and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspected {
    /// Guest and host code, several lines, the last one empty.
    pub text: String,
    /// Bytes of guest code in the block.
    pub len: u64,
}

/// Translates blocks of guest memory to look at them.
pub struct Inspector {
    cpu: Box<Cpu>,
    tools: Tools,
    config: Config,
    narrow: bool,
}

impl Inspector {
    /// For the code in `ram` on a processor of `model`, which this host can be.
    ///
    /// # Errors
    /// If the host does not give executable memory.
    pub fn new(ram: Arc<GuestRam>, model: Arc<CpuModel>, config: Config) -> io::Result<Self> {
        let thunks = Thunks::new(|feature| model.has(feature))?;
        let vm =
            VmConfig { ram, bus: Arc::new(NoDevices), cpu_model: model, vcpu_count: 1, tsc_khz: 1_000_000 };
        let mut cpu = Cpu::new(&vm, 0, Arc::new(VcpuSignal::new()), Arc::new(Shared::new(1)), thunks, None);
        long_mode(&mut cpu.state, &vm.cpu_model);
        cpu.forget_translations();
        cpu.mode_changed();
        let tools = Tools::new();
        Ok(Self { cpu, tools, config, narrow: false })
    }

    /// Looks at code of 32 bits in flat segments from now on, or at code of 64.
    pub fn set_width(&mut self, width: Width) {
        self.narrow = width == Width::Bits32;
        let (code, active) = if self.narrow { (CODE32, 0) } else { (CODE64, Efer::LMA.bits()) };
        *self.cpu.state.segment_mut(SegmentRegister::Cs) = Segment::from_descriptor(0x10, code);
        self.cpu.state.msrs.efer = Efer::LME.bits() | active;
        self.cpu.mode_changed();
    }

    /// The guest physical address that code of `privilege` at `linear` has for a vCPU in `state`.
    ///
    /// # Errors
    /// The exception that fetching it raises.
    pub fn translate(&self, state: &CpuState, linear: u64, privilege: Privilege) -> Result<u64, Exception> {
        let view = if privilege == Privilege::User { View::User } else { View::Kernel };
        let ram = self.cpu.guest_ram();
        Ok(self.cpu.mmu.translate(ram, state, linear, view, Intent::Fetch)?.gpa)
    }

    /// The block at guest physical address `gpa`, translated for `linear`, which is in the same place of its page, and
    /// for code of `privilege`.
    ///
    /// # Errors
    /// [`Error`]
    pub fn block(
        &mut self,
        gpa: u64,
        linear: u64,
        privilege: Privilege,
        detail: Detail,
    ) -> Result<Inspected, Error> {
        if gpa > MAX_GPA {
            return Err(Error::TooHigh);
        }
        let block = decode::block_at(&mut self.cpu, gpa).map_err(|_| Error::Fetch(self.cpu.fault))?;
        // SAFETY: just decoded; the arena is cleared by decoding only.
        let (block, ops) = unsafe {
            let block = &*block;
            (block, super::run::ops_of(block))
        };
        let mut page = [0; 4096];
        let base = gpa & !0xfff;
        self.cpu.guest_ram().read(base, &mut page).map_err(|_| Error::Fetch(Exception::UD))?;
        let mut tail = vec![0; ((gpa - base) as usize + usize::from(block.len)).saturating_sub(page.len())];
        if !tail.is_empty() {
            self.cpu.guest_ram().read(base + 4096, &mut tail).map_err(|_| Error::Fetch(Exception::UD))?;
        }
        let (start, user) = ((gpa - base) as u32, privilege == Privilege::User);
        let pieces = [Piece { block, ops, start }];
        let narrow = self.narrow;
        let linear_page = linear & !0xfff;
        let views = (!user).then_some(VIEWS);
        let host = translate::Host {
            jumps: JUMPS,
            jump_bits: FEW_BITS,
            has_bmi2: self.cpu.model().has(Feature::Bmi2),
            views,
            attention: ATTENTION,
            user_tlb: USER_TLB,
        };
        let source =
            Source { pieces: &pieces, page: &page, tail: &tail, linear: linear_page, user, narrow, host };
        let len = u64::from(block.len);
        let Some((mut text, starts)) = self.translation(&source, None, detail) else {
            let text = format!("block {linear:#x} at {gpa:#x}: interpreted always\n\n");
            return Ok(Inspected { text, len });
        };
        for from in starts.into_iter().filter(|_| detail == Detail::Variants) {
            let variant =
                self.translation(&source, Some(from), detail).map_or_else(String::new, |done| done.0);
            text += &format!("variant of {variant}");
        }
        Ok(Inspected { text, len })
    }

    /// A translation as text, and the operations from which it has variants.
    fn translation(
        &mut self,
        source: &Source<'_>,
        from: Option<usize>,
        detail: Detail,
    ) -> Option<(String, Vec<usize>)> {
        let mut sites = Vec::with_capacity(translate::max_sites(source.pieces[0].ops.len()));
        let how = (ADDRESS, self.config);
        let job = translate::Translation::new(source, STUBS, &mut self.tools, &mut sites, how);
        let done = job.run(from)?;
        let (page, gfn, address) = (source.linear, source.pieces[0].block.gfn, ADDRESS);
        let (guest, code, marks) = (&done.instructions[..], done.asm.code(), &done.marks[..]);
        let rare = (done.asm.second_part(), ADDRESS + u64::from(done.asm.second_part()));
        let listing = Listing { page, gfn, guest, code, address, rare, marks };
        let mut names = Places { source, sites: &sites, listing: &listing }.names(done.inner);
        names.cold = detail != Detail::Common;
        let starts = sites.iter().filter(|site| site.kind == Kind::Variant);
        Some((listing.text_with(&Rc::new(names)), starts.map(index_of).collect()))
    }
}

/// Which of the block's operations a site belongs to.
fn index_of(site: &Site) -> usize {
    usize::from(site.op)
}

/// What names are made of.
struct Places<'a> {
    source: &'a Source<'a>,
    sites: &'a [Site],
    listing: &'a Listing<'a>,
}

impl Places<'_> {
    fn names(&self, inner: u32) -> Names {
        let mut names = Names::default();
        let stubs =
            [(STUBS.slow, "slow"), (STUBS.leave, "leave"), (STUBS.enter, "enter"), (STUBS.bottom, "bottom")];
        names.code.extend(stubs.map(|(address, name)| (address, name.to_owned())));
        names.code.insert(ADDRESS + u64::from(inner), ".inner".to_owned());
        self.name_targets(&mut names);
        for site in self.sites {
            let text = self.describe(site, &names);
            if site.patch != 0 {
                names.notes.insert(self.patched(site), format!("patched by {text}"));
            }
            names.data.insert(std::ptr::from_ref(site) as u64, text);
        }
        let block = self.source.pieces[0].block;
        let infos = block
            .second()
            .map(|second| [(block.info, "generation"), (second.info, "generation of the next page")]);
        for (info, name) in infos.into_iter().flatten() {
            // SAFETY: page information lives as long as guest RAM, which the vCPU holds.
            let counter = PageInfo::code_generation_counter(unsafe { &*info });
            names.data.insert(std::ptr::from_ref(counter) as u64, name.to_owned());
        }
        let cells = [
            (self.source.host.attention, "attention"),
            (self.source.host.jumps, "jumps"),
            (self.source.host.jumps + 8, "jumps.code"),
        ];
        names.data.extend(cells.map(|(address, name)| (address as u64, name.to_owned())));
        let fields = [
            (offset_of!(TlbEntry, read), "user.tlb.read"),
            (offset_of!(TlbEntry, write), "user.tlb.write"),
            (offset_of!(TlbEntry, addend), "user.tlb.addend"),
            (offset_of!(TlbEntry, host), "user.tlb.host"),
        ];
        let tlb = self.source.host.user_tlb as u64;
        names.data.extend(fields.map(|(field, name)| (tlb + field as u64, name.to_owned())));
        names
    }

    /// Names each place that is jumped or resumed to after the guest instruction that does so first.
    fn name_targets(&self, names: &mut Names) {
        let mut seen: HashMap<String, u32> = HashMap::new();
        let mut name = |names: &mut Names, target: u64, after: String| {
            names.code.entry(target).or_insert_with(|| {
                let number = seen.entry(after.clone()).or_default();
                *number += 1;
                format!(".{after}.{number}")
            });
        };
        let end = self.listing.code.len();
        let within = ADDRESS..ADDRESS + end as u64;
        for (n, mark) in self.listing.marks.iter().enumerate() {
            let end = self.listing.marks.get(n + 1).map_or(end, |next| next.at as usize);
            for instruction in self.listing.host(mark.at as usize, end) {
                let target = instruction.near_branch_target();
                if instruction.flow_control() != FlowControl::Next && within.contains(&target) {
                    name(names, target, self.after(*mark));
                }
            }
        }
        for site in self.sites.iter().filter(|site| site.resume != 0) {
            name(names, ADDRESS + site.resume, format!("{:03x}", self.ip_of(site)));
        }
    }

    fn after(&self, mark: Mark) -> String {
        match mark.what {
            Stretch::Outer => "outer".to_owned(),
            Stretch::Inner => "inner".to_owned(),
            Stretch::Cold => "cold".to_owned(),
            Stretch::Instruction(i) => self
                .listing
                .guest
                .get(i)
                .map_or_else(|| "next".to_owned(), |guest| format!("{:03x}", guest.ip())),
        }
    }

    /// Where the instruction of a site is in its page.
    fn ip_of(&self, site: &Site) -> u32 {
        self.source.pieces[0].start + u32::from(self.source.pieces[0].ops[index_of(site)].offset)
    }

    /// The address of the jump that a site patches.
    fn patched(&self, site: &Site) -> u64 {
        let end = ADDRESS + u64::from(site.patch) + 4;
        let all = self.listing.host(0, self.listing.code.len());
        all.into_iter().find(|instruction| instruction.next_ip() == end).map_or(end, |found| found.ip())
    }

    fn describe(&self, site: &Site, names: &Names) -> String {
        let (ip, distance) = (site.ip, site.distance);
        let mut text = match site.kind {
            Kind::Handler => format!("handler({:03x})", self.ip_of(site)),
            Kind::Vectors => "vectors".to_owned(),
            Kind::Link => format!("link{}({ip:#x})", site.link),
            Kind::Jump => format!("jump({distance:+})"),
            Kind::Leave => format!("leave({ip:#x})"),
            Kind::Fill | Kind::FillForStores => {
                format!("{:?}({}{distance:+})", site.kind, REGISTERS[usize::from(site.register)])
            }
            Kind::Variant => format!("variant({:03x})", self.ip_of(site)),
        };
        text += match Vectors::level(site.vectors) {
            Vectors::NONE => "",
            Vectors::XMM => "+xmm",
            _ => "+ymm",
        };
        if site.vectors & Vectors::X87 != 0 {
            text += "+x87";
        }
        if site.resume != 0 {
            let resume = names.code.get(&(ADDRESS + site.resume));
            text += &resume.map_or_else(|| "->?".to_owned(), |name| format!("->{name}"));
        }
        text
    }
}

/// Descriptors of 64-bit and of 32-bit code.
const CODE64: u64 = 0x00af_9b00_0000_ffff;
const CODE32: u64 = 0x00cf_9b00_0000_ffff;

/// 64-bit mode at the reset vector's privilege, without paging, which no processor has: nothing runs in it.
fn long_mode(state: &mut CpuState, model: &CpuModel) {
    const DATA: u64 = 0x00cf_9300_0000_ffff;
    let data = Segment::from_descriptor(0x18, DATA);
    state.segments = [data; 6];
    *state.segment_mut(SegmentRegister::Cs) = Segment::from_descriptor(0x10, CODE64);
    state.cr0 = (Cr0::PE | Cr0::ET | Cr0::NE).bits();
    state.cr4 = (Cr4::PAE | Cr4::OSFXSR | Cr4::OSXMMEXCPT | Cr4::OSXSAVE).bits() & model.cr4_supported();
    state.xcr0 = model.xcr0_supported().max(1);
    state.msrs.efer = (Efer::LME | Efer::LMA).bits();
}
