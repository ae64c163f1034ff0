//! From linear to physical to host addresses: the software TLB.
//!
//! SDM vol. 3 ch. 4. Like hardware, the TLB caches translations until the guest flushes them; page tables are
//! never watched. Three *views* exist so that a change of privilege or of RFLAGS.AC is a change of pointer:
//! user, kernel (SMAP enforced), and kernel with RFLAGS.AC set.
//!
//! Omissions: five-level paging, protection keys, PCID tags (a CR3 write drops all non-global entries, which
//! the architecture allows at any time), memory types.
// UNSAFETY: keeps and offsets host addresses of guest RAM.

use arch::x86::paging::{PAGE_SHIFT, PAGE_SIZE, Pte, is_canonical};
use arch::x86::{CpuState, Cr4, Exception};
use memory::{GuestRam, PageFlags, PageInfo};

use super::walk::Walk;

/// Entries a view of the TLB has; a power of two.
pub const TLB_ENTRIES: usize = 1024;
const EXEC_ENTRIES: usize = 512;
/// A tag no page-aligned address equals.
const NO_CODE: u64 = 1;
/// The size of an entry as a power of two, which generated code shifts by.
pub const TLB_ENTRY_SHIFT: u32 = size_of::<TlbEntry>().trailing_zeros();
const PAGE_MASK: u64 = !(PAGE_SIZE - 1);

/// Whose accesses a part of the TLB serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum View {
    /// Privilege level 3.
    User = 0,
    /// Privilege levels 0-2, SMAP enforced; also implicit supervisor accesses of user code.
    Kernel = 1,
    /// Privilege levels 0-2 with RFLAGS.AC set.
    KernelAc = 2,
}

impl View {
    /// The view of explicit data accesses in `state`, whose RFLAGS must be canonical.
    pub fn of(state: &CpuState) -> Self {
        if state.cpl() == 3 {
            Self::User
        } else if state.rflags & arch::x86::Rflags::AC.bits() != 0 {
            Self::KernelAc
        } else {
            Self::Kernel
        }
    }
}

/// What is done with the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intent {
    /// A load.
    Read,
    /// A store, or a load that will be followed by one.
    Write,
    /// An instruction fetch.
    Fetch,
}

/// One page's translation for data. Both tags are multiples of the page size, so that an access of `n` bytes
/// is allowed, and inside the page, exactly if its address minus the tag is at most the page size minus `n`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct TlbEntry {
    /// Linear page address if loads may use this entry.
    pub read: u64,
    /// Linear page address if stores may use this entry.
    pub write: u64,
    /// Host address minus linear address.
    pub addend: u64,
    /// Host address of the page.
    pub host: u64,
}

/// A tag that nothing looked up in `slot` matches: neither the first nor the last byte of an access that begins in
/// a page of that slot is in a page of this one.
const fn invalid(slot: usize) -> u64 {
    ((slot ^ (TLB_ENTRIES / 2)) as u64) << PAGE_SHIFT
}

impl TlbEntry {
    /// An entry that never matches in `slot`.
    const fn empty(slot: usize) -> Self {
        Self { read: invalid(slot), write: invalid(slot), addend: 0, host: 0 }
    }

    /// A view that never hits.
    pub fn empty_view() -> Box<[Self; TLB_ENTRIES]> {
        Box::new(std::array::from_fn(Self::empty))
    }
}

/// One page's translation for instruction fetches.
#[derive(Clone, Copy, Debug)]
pub struct CodePage {
    tag: u64,
    global: bool,
    /// Guest frame number.
    pub gfn: u64,
    /// Host address of the page.
    pub host: *const u8,
    /// What is known about the page.
    pub info: *const PageInfo,
}

/// The page that translated code last found its stack in, writable, in the view that is in force. Invalid while the
/// addend is zero.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct StackPage {
    /// Linear address.
    pub page: u64,
    /// Host address minus linear address.
    pub addend: u64,
}

/// By the host register of an operand's base, for loads and stores (`2 * register + store`): the page that translated code last found in the
/// TLB by it, in the view that is in force.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct KnownPages {
    /// Linear address.
    pub page: [u64; 32],
    /// What offsets in the page must be below; 0 while no page is known.
    pub limit: [u64; 32],
    /// Host address minus linear address.
    pub addend: [u64; 32],
}

impl KnownPages {
    /// The bytes an access may have.
    pub const MAX_SIZE: u64 = 32;
    /// The `limit` of a page that is known: of its last bytes only the TLB can tell if they are enough.
    pub const LIMIT: u64 = PAGE_SIZE - Self::MAX_SIZE + 1;

    const NONE: Self = Self { page: [0; 32], limit: [0; 32], addend: [0; 32] };
}

/// A translation as the walker finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Guest physical address.
    pub gpa: u64,
    pub(super) writable: bool,
    pub(super) global: bool,
}

/// Where a page of guest linear memory lives.
#[derive(Clone, Copy, Debug)]
pub enum Place<'a> {
    /// In RAM; the host address of the byte asked for.
    Ram(*mut u8, &'a PageInfo),
    /// Not in RAM; the guest physical address.
    Bus(u64),
}

/// The TLB of one vCPU.
pub struct Mmu {
    entries: Box<[[TlbEntry; TLB_ENTRIES]; 3]>,
    /// Which entries are of global pages.
    global: Box<[bool; 3 * TLB_ENTRIES]>,
    /// Indices (view * TLB_ENTRIES + slot) in use, so that a flush touches only those.
    filled: Vec<u16>,
    exec: Box<[[CodePage; EXEC_ENTRIES]; 2]>,
    /// Both go with the first entry that goes.
    pub(super) stack: StackPage,
    pub(super) known: KnownPages,
    physical_bits: u32,
}

// SAFETY: the raw pointers in `exec` point into guest RAM's tables, which outlive the Mmu (its owner holds the
// GuestRam) and may be used from any thread.
unsafe impl Send for Mmu {}

impl Mmu {
    /// An empty TLB for a guest with `physical_bits` of physical address (CPUID 0x80000008).
    pub fn new(physical_bits: u32) -> Self {
        let empty =
            CodePage { tag: NO_CODE, global: false, gfn: 0, host: std::ptr::null(), info: std::ptr::null() };
        Self {
            entries: Box::new([(); 3].map(|()| *TlbEntry::empty_view())),
            global: Box::new([false; 3 * TLB_ENTRIES]),
            filled: Vec::new(),
            exec: Box::new([[empty; EXEC_ENTRIES]; 2]),
            stack: StackPage::default(),
            known: KnownPages::NONE,
            physical_bits,
        }
    }

    /// The first entry of a view, for inline look-ups.
    pub fn view(&self, view: View) -> *const TlbEntry {
        self.entries[view as usize].as_ptr()
    }

    /// Whether the entry for `linear` allows `intent`, which is a load or a store.
    pub fn allows(&self, linear: u64, view: View, intent: Intent) -> bool {
        let entry = &self.entries[view as usize][slot(linear)];
        let tag = if intent == Intent::Write { entry.write } else { entry.read };
        tag == linear & PAGE_MASK
    }

    /// Another view is in force, or entries went.
    pub fn forget_known(&mut self) {
        self.stack.addend = 0;
        self.known.limit = [0; 32];
    }

    /// Drops everything.
    pub fn flush_all(&mut self) {
        self.forget_known();
        for index in self.filled.drain(..).map(usize::from) {
            self.entries.as_flattened_mut()[index] = TlbEntry::empty(index % TLB_ENTRIES);
        }
        self.flush_code(|_| true);
    }

    /// Drops all but global pages.
    pub fn flush_non_global(&mut self) {
        self.forget_known();
        let entries = self.entries.as_flattened_mut();
        self.filled.retain(|&index| {
            let index = usize::from(index);
            let keep = self.global[index];
            if !keep {
                entries[index] = TlbEntry::empty(index % TLB_ENTRIES);
            }
            keep
        });
        self.flush_code(|entry| !entry.global);
    }

    /// Drops the page of `linear`.
    pub fn flush_page(&mut self, linear: u64) {
        self.forget_known();
        let slot = slot(linear);
        for view in self.entries.iter_mut() {
            let entry = &mut view[slot];
            if entry.read == linear & PAGE_MASK || entry.write == linear & PAGE_MASK {
                // Keeps its host address, by which it is known to be on the list of filled entries.
                (entry.read, entry.write) = (invalid(slot), invalid(slot));
            }
        }
        self.flush_code(|entry| entry.tag == linear & PAGE_MASK);
    }

    /// Takes back every permission to store on the fast path, because a page came to hold code.
    pub fn revoke_writes(&mut self) {
        self.forget_known();
        for index in self.filled.iter().copied().map(usize::from) {
            self.entries.as_flattened_mut()[index].write = invalid(index % TLB_ENTRIES);
        }
    }

    /// Whether the page instructions at `linear` were last fetched from is known to be global.
    pub fn is_global_code(&self, linear: u64, user: bool) -> bool {
        let entry = &self.exec[usize::from(user)][(linear >> PAGE_SHIFT) as usize & (EXEC_ENTRIES - 1)];
        entry.tag == linear & PAGE_MASK && entry.global
    }

    fn flush_code(&mut self, which: impl Fn(&CodePage) -> bool) {
        for entry in self.exec.as_flattened_mut() {
            if which(entry) {
                entry.tag = NO_CODE;
            }
        }
    }

    /// Translates `linear` for an access with `intent` under `view`, setting accessed and dirty bits.
    ///
    /// # Errors
    /// A page fault, or #GP(0) for a non-canonical address in long mode.
    pub fn translate(
        &self,
        ram: &GuestRam,
        state: &CpuState,
        linear: u64,
        view: View,
        intent: Intent,
    ) -> Result<Translation, Exception> {
        if !state.is_paging() {
            return Ok(Translation { gpa: linear & 0xffff_ffff, writable: true, global: false });
        }
        let walk = Walk { ram, state, linear, view, intent, physical_bits: self.physical_bits };
        if state.is_long_mode() {
            if !is_canonical(linear) {
                return Err(Exception::GP0);
            }
            walk.wide(state.cr3 & Pte::ADDRESS, 4)
        } else if state.cr4 & Cr4::PAE.bits() != 0 {
            let pdpte = state.pdpte[(linear >> 30) as usize & 3];
            if pdpte & Pte::PRESENT == 0 {
                return Err(walk.fault(0));
            }
            walk.wide(pdpte & Pte::ADDRESS, 2)
        } else {
            walk.narrow()
        }
    }

    /// Finds the place of the single byte at `linear` and, if it is RAM, enters its page into the TLB.
    /// With [`Intent::Write`] the page is marked dirty, since the caller will write it.
    ///
    /// # Errors
    /// As [`Self::translate`].
    pub fn place<'a>(
        &mut self,
        ram: &'a GuestRam,
        state: &CpuState,
        linear: u64,
        view: View,
        intent: Intent,
    ) -> Result<Place<'a>, Exception> {
        let found = self.translate(ram, state, linear, view, intent)?;
        let Some(page) = ram.page(found.gpa >> PAGE_SHIFT) else {
            return Ok(Place::Bus(found.gpa));
        };
        let offset = (found.gpa & !PAGE_MASK) as usize;
        // SAFETY: the offset is inside the page.
        let host = unsafe { page.host.as_ptr().add(offset) };
        let watched = state.dr[7] & 0xff != 0 && watches_page(state, linear);
        if intent != Intent::Fetch && !watched {
            self.enter(linear, view, found, page);
        }
        Ok(Place::Ram(host, page.info))
    }

    fn enter(&mut self, linear: u64, view: View, found: Translation, page: memory::Page<'_>) {
        let tag = linear & PAGE_MASK;
        let slot = slot(linear);
        let info = page.info;
        if found.writable && !info.flags().contains(PageFlags::DIRTY) {
            info.set(PageFlags::DIRTY);
        }
        let plain = !info.holds_code() && !info.flags().intersects(PageFlags::ROM | PageFlags::WATCH);
        let index = view as usize * TLB_ENTRIES + slot;
        let entry = &mut self.entries[view as usize][slot];
        if entry.host == 0 {
            self.filled.push(index as u16);
        }
        self.global[index] = found.global;
        let host = page.host.as_ptr() as u64;
        *entry = TlbEntry {
            read: tag,
            write: if found.writable && plain { tag } else { invalid(slot) },
            addend: host.wrapping_sub(tag),
            host,
        };
    }

    /// The page instructions at `linear` are fetched from; `None` if it is not RAM.
    ///
    /// # Errors
    /// As [`Self::translate`].
    #[inline]
    pub fn code_page(
        &mut self,
        ram: &GuestRam,
        state: &CpuState,
        linear: u64,
    ) -> Result<Option<CodePage>, Exception> {
        let user = state.cpl() == 3;
        let tag = linear & PAGE_MASK;
        let slot = (linear >> PAGE_SHIFT) as usize & (EXEC_ENTRIES - 1);
        let entry = self.exec[usize::from(user)][slot];
        if entry.tag == tag {
            return Ok(Some(entry));
        }
        let view = if user { View::User } else { View::Kernel };
        let found = self.translate(ram, state, linear, view, Intent::Fetch)?;
        let Some(page) = ram.page(found.gpa >> PAGE_SHIFT) else {
            return Ok(None);
        };
        let entry = CodePage {
            tag,
            global: found.global,
            gfn: found.gpa >> PAGE_SHIFT,
            host: page.host.as_ptr(),
            info: page.info,
        };
        self.exec[usize::from(user)][slot] = entry;
        Ok(Some(entry))
    }
}

#[inline(always)]
fn slot(linear: u64) -> usize {
    (linear >> PAGE_SHIFT) as usize & (TLB_ENTRIES - 1)
}

/// Whether an enabled data breakpoint lies in the page of `linear`.
fn watches_page(state: &CpuState, linear: u64) -> bool {
    (0..4).any(|i| state.dr[7] >> (i * 2) & 3 != 0 && (state.dr[i] ^ linear) & PAGE_MASK == 0)
}
