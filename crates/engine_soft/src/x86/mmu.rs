//! From linear to physical to host addresses: the software TLB.
//!
//! SDM vol. 3 ch. 4. Like hardware, the TLB caches translations until the guest flushes them; page tables are
//! never watched. Three *views* exist so that a change of privilege or of RFLAGS.AC is a change of pointer:
//! user, kernel (SMAP enforced), and kernel with RFLAGS.AC set.
//!
//! Entries of address spaces that are not the current one are [`Parked`]. Omissions: five-level paging, protection
//! keys, memory types.
// UNSAFETY: keeps and offsets host addresses of guest RAM.

mod tables;

use arch::x86::paging::{PAGE_SHIFT, PAGE_SIZE, Pte, is_canonical};
use arch::x86::{CpuState, Cr4, Exception};
use memory::{GuestRam, PageFlags, PageInfo};

use super::known::Known;
use super::listed::Listed;
use super::parked::Parked;
use super::regions::Regions;
use super::walk::Walk;
use super::zeroed::Zeroed;

/// Entries a view of the TLB has; a power of two. With a quarter of them, programs that walk through 16 MiB would find none of
/// their pages; those not used cost nothing.
pub const TLB_ENTRIES: usize = 4096;
const EXEC_ENTRIES: usize = 512;
/// A tag no page-aligned address equals. In a table of zeros, zero is as good but in the first slot.
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
/// a page of that slot is in a page of this one. But for two slots it is zero, so that a table is made by clearing memory.
const fn invalid(slot: usize) -> u64 {
    match slot {
        0 | LAST_SLOT => (TLB_ENTRIES as u64 / 2) << PAGE_SHIFT,
        _ => 0,
    }
}

const LAST_SLOT: usize = TLB_ENTRIES - 1;

impl TlbEntry {
    /// An entry that never matches in `slot`.
    const fn empty(slot: usize) -> Self {
        Self { read: invalid(slot), write: invalid(slot), addend: 0, host: 0 }
    }

    /// A view that never hits.
    pub fn empty_view() -> Zeroed<[Self; TLB_ENTRIES]> {
        tables::empty_view()
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

/// A translation as the walker finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Guest physical address.
    pub gpa: u64,
    pub(super) writable: bool,
    pub(super) global: bool,
    /// Logarithm of the size of the page that the entry is for: 12, or more for a large one.
    pub(super) page_bits: u32,
}

/// Where a page of guest linear memory lives.
#[derive(Clone, Copy, Debug)]
pub enum Place<'a> {
    /// In RAM; the host address of the byte asked for.
    Ram(*mut u8, &'a PageInfo),
    /// Not in RAM; the guest physical address.
    Bus(u64),
}

/// The logarithms of the sizes of large pages; one of 4 MiB counts as two of 2 MiB.
const LARGE_BITS: [u32; 2] = [21, 30];

/// The TLB of one vCPU.
pub struct Mmu {
    entries: tables::Views,
    /// Which entries are of global pages.
    global: Zeroed<[bool; 3 * TLB_ENTRIES]>,
    /// Indices (view * TLB_ENTRIES + slot) in use, so that a flush touches only those.
    filled: Vec<u16>,
    /// Those that came to hold pages that are not global since such pages were flushed.
    local: Listed<{ 3 * TLB_ENTRIES }>,
    exec: tables::CodePages,
    /// Indices in `exec` (privilege * EXEC_ENTRIES + slot) in use: those whose host address is known.
    code_filled: Vec<u16>,
    /// As `local`, of `exec`.
    code_local: Listed<{ 2 * EXEC_ENTRIES }>,
    /// Entries of other address spaces, with their indices.
    parked: Parked<(u16, TlbEntry)>,
    /// The PCID that entries are of, if that is known.
    pcid: Option<u16>,
    /// What translated code knows: `[kernel, user]`.
    pub(super) known: [Known; 2],
    /// Where entries came from larger pages than 4 KiB: of 2 MiB, of 1 GiB.
    large: [Regions; 2],
    physical_bits: u32,
    /// Holds one page only, beside the stack's (see `jit::stress`).
    pub(super) one_page: bool,
    /// Learns nothing: what is executed now will be undone (see `jit::lockstep`).
    pub(super) frozen: bool,
    /// Learns nothing of the user's pages.
    closed: bool,
}

// SAFETY: the raw pointers in `exec` point into guest RAM's tables, which outlive the Mmu (its owner holds the
// GuestRam) and may be used from any thread.
unsafe impl Send for Mmu {}

impl Mmu {
    /// An empty TLB for a guest with `physical_bits` of physical address (CPUID 0x80000008).
    pub fn new(physical_bits: u32) -> Self {
        let (entries, exec) = tables::empty();
        Self {
            entries,
            global: Zeroed::new(),
            filled: Vec::new(),
            local: Listed::default(),
            exec,
            code_filled: Vec::new(),
            code_local: Listed::default(),
            parked: Parked::default(),
            pcid: None,
            known: [Known::NONE; 2],
            large: [Regions::default(); 2],
            physical_bits,
            one_page: false,
            frozen: false,
            closed: false,
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

    /// Host address of the byte at `linear` if `view` has a page for it that allows `intent`, which is a load or a
    /// store, and `size` bytes are in it. Such a page has no code if stores are allowed, and no watchpoint.
    #[inline]
    pub fn hit(&self, linear: u64, size: usize, view: View, intent: Intent) -> Option<*mut u8> {
        let entry = &self.entries[view as usize][slot(linear)];
        let tag = if intent == Intent::Write { entry.write } else { entry.read };
        let inside = (linear & !PAGE_MASK) + size as u64 <= PAGE_SIZE;
        (tag == linear & PAGE_MASK && inside).then(|| entry.addend.wrapping_add(linear) as *mut u8)
    }

    /// Forgets what translated code knows.
    pub fn forget_known(&mut self) {
        self.known.iter_mut().for_each(Known::forget);
    }

    /// Another view is in force than `before`.
    pub fn view_changed(&mut self, before: View, now: View) {
        // What was found with RFLAGS.AC set may be out of bounds without it.
        if before == View::KernelAc && now != before {
            self.known[0].forget();
        }
    }

    /// Drops everything.
    pub fn flush_all(&mut self) {
        self.forget_known();
        self.drop_entries();
        self.large = [Regions::default(); 2];
        self.flush_code(|_| true);
        self.parked.clear();
        self.pcid = None;
    }

    fn drop_entries(&mut self) {
        for index in self.filled.drain(..).map(usize::from) {
            self.entries.as_flattened_mut()[index] = TlbEntry::empty(index % TLB_ENTRIES);
        }
    }

    /// Drops all but global pages, of every PCID.
    pub fn flush_non_global(&mut self) {
        self.parked.clear();
        self.pcid = None;
        self.take_local().for_each(drop);
    }

    /// Forgets what is parked for `pcid`, which is not the current one.
    pub fn flush_other(&mut self, pcid: u16) {
        self.parked.forget(pcid);
    }

    /// CR3 leads to the address space of `pcid` now, what is cached of which counts only if it is to be kept.
    pub fn switch(&mut self, pcid: u16, keep: bool) {
        let before = self.pcid.replace(pcid);
        if keep && before == Some(pcid) {
            return;
        }
        let mut parked = std::mem::take(&mut self.parked);
        match before.filter(|before| *before != pcid && !self.one_page) {
            Some(before) => parked.park(before, self.take_local()),
            None => self.take_local().for_each(drop),
        }
        let set = parked.take(pcid);
        if keep {
            set.iter().for_each(|(index, entry)| self.put_back(usize::from(*index), *entry));
        }
        parked.recycle(set);
        self.parked = parked;
    }

    fn put_back(&mut self, index: usize, entry: TlbEntry) {
        let place = &mut self.entries.as_flattened_mut()[index];
        if place.host == 0 {
            self.filled.push(index as u16);
        }
        *place = entry;
        self.global[index] = false;
        self.local.add(index);
    }

    /// Drops all but global pages, and hands out what was known of them.
    fn take_local(&mut self) -> impl Iterator<Item = (u16, TlbEntry)> {
        self.forget_known();
        let code = self.exec.as_flattened_mut();
        for index in self.code_local.drain() {
            if !code[index].global {
                code[index].tag = NO_CODE;
            }
        }
        let (entries, global) = (self.entries.as_flattened_mut(), &self.global);
        self.local.drain().filter(|index| !global[*index]).filter_map(|index| {
            let (entry, nothing) = (&mut entries[index], invalid(index % TLB_ENTRIES));
            let before = *entry;
            // Keeps its host address, by which it is known to be on the list of filled entries.
            (entry.read, entry.write) = (nothing, nothing);
            (before.read != nothing || before.write != nothing).then_some((index as u16, before))
        })
    }

    /// Drops the page of `linear`, which may be a large one, and returns the logarithm of its size.
    pub fn flush_page(&mut self, linear: u64) -> u32 {
        let large = self.large.iter().zip(LARGE_BITS).rev().find(|(seen, bits)| seen.has(linear >> bits));
        let Some((_, bits)) = large else {
            self.flush_small_page(linear);
            return PAGE_SHIFT;
        };
        let within = |tag: u64| (tag ^ linear) >> bits == 0;
        let entries = self.entries.as_flattened_mut();
        for index in self.filled.iter().copied().map(usize::from) {
            let (entry, slot) = (&mut entries[index], index % TLB_ENTRIES);
            if within(entry.read) || within(entry.write) {
                (entry.read, entry.write) = (invalid(slot), invalid(slot));
            }
        }
        self.known.iter_mut().for_each(|known| known.forget_region(linear, bits));
        self.flush_code(|entry| within(entry.tag));
        bits
    }

    fn flush_small_page(&mut self, linear: u64) {
        let slot = slot(linear);
        for view in self.entries.iter_mut() {
            let entry = &mut view[slot];
            if entry.read == linear & PAGE_MASK || entry.write == linear & PAGE_MASK {
                // Keeps its host address, by which it is known to be on the list of filled entries.
                (entry.read, entry.write) = (invalid(slot), invalid(slot));
            }
        }
        self.known.iter_mut().for_each(|known| known.forget_region(linear, PAGE_SHIFT));
        for exec in self.exec.iter_mut() {
            let entry = &mut exec[code_slot(linear)];
            if entry.tag == linear & PAGE_MASK {
                entry.tag = NO_CODE;
            }
        }
    }

    /// Remembers that an entry for `linear` is a part of a larger page.
    fn note_size(&mut self, linear: u64, found: &Translation) {
        for (seen, bits) in self.large.iter_mut().zip(LARGE_BITS) {
            if found.page_bits == bits {
                seen.add(linear >> bits);
            }
        }
    }

    /// Takes back every permission to store on the fast path, because a page came to hold code.
    pub fn revoke_writes(&mut self) {
        self.forget_known();
        for index in self.filled.iter().copied().map(usize::from) {
            self.entries.as_flattened_mut()[index].write = invalid(index % TLB_ENTRIES);
        }
        for (index, entry) in self.parked.values_mut() {
            entry.write = invalid(usize::from(*index) % TLB_ENTRIES);
        }
    }

    /// Whether the page instructions at `linear` were last fetched from is known to be global.
    pub fn is_global_code(&self, linear: u64, user: bool) -> bool {
        let entry = &self.exec[usize::from(user)][code_slot(linear)];
        entry.tag == linear & PAGE_MASK && entry.global
    }

    fn flush_code(&mut self, which: impl Fn(&CodePage) -> bool) {
        let entries = self.exec.as_flattened_mut();
        self.code_filled.retain(|&index| {
            let entry = &mut entries[usize::from(index)];
            let gone = entry.tag == NO_CODE || which(entry);
            if gone {
                (entry.tag, entry.host) = (NO_CODE, std::ptr::null());
            }
            !gone
        });
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
            return Ok(Translation {
                gpa: linear & 0xffff_ffff,
                writable: true,
                global: false,
                page_bits: PAGE_SHIFT,
            });
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
        let learns_nothing = self.frozen || self.closed && view == View::User;
        if intent != Intent::Fetch && !watched && !learns_nothing {
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
        if self.one_page {
            // But for the stack's page, which a running block may count on.
            self.known.iter_mut().for_each(Known::forget_operands);
            self.drop_entries();
        }
        self.note_size(linear, &found);
        let entry = &mut self.entries[view as usize][slot];
        if entry.host == 0 {
            self.filled.push(index as u16);
        }
        self.global[index] = found.global;
        if !found.global {
            self.local.add(index);
        }
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
        let slot = code_slot(linear);
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
        let index = usize::from(user) * EXEC_ENTRIES + slot;
        if self.exec[usize::from(user)][slot].host.is_null() {
            self.code_filled.push(index as u16);
        }
        if !found.global {
            self.code_local.add(index);
        }
        self.exec[usize::from(user)][slot] = entry;
        self.note_size(linear, &found);
        Ok(Some(entry))
    }
}

#[inline(always)]
fn slot(linear: u64) -> usize {
    (linear >> PAGE_SHIFT) as usize & (TLB_ENTRIES - 1)
}

fn code_slot(linear: u64) -> usize {
    (linear >> PAGE_SHIFT) as usize & (EXEC_ENTRIES - 1)
}

/// Whether an enabled data breakpoint lies in the page of `linear`.
fn watches_page(state: &CpuState, linear: u64) -> bool {
    (0..4).any(|i| state.dr[7] >> (i * 2) & 3 != 0 && (state.dr[i] ^ linear) & PAGE_MASK == 0)
}

#[cfg(test)]
mod tests;
