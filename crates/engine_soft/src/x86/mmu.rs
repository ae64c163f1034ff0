//! From linear to physical to host addresses: the page walker and the software TLB.
//!
//! SDM vol. 3 ch. 4. Like hardware, the TLB caches translations until the guest flushes them; page tables are
//! never watched. Three *views* exist so that a change of privilege or of RFLAGS.AC is a change of pointer:
//! user, kernel (SMAP enforced), and kernel with RFLAGS.AC set.
//!
//! Omissions: five-level paging, protection keys, PCID tags (a CR3 write drops all non-global entries, which
//! the architecture allows at any time), memory types.
// UNSAFETY: reads and updates paging structures in guest RAM through host pointers.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use arch::x86::exception::PageFaultCode;
use arch::x86::paging::{PAGE_SHIFT, PAGE_SIZE, Pte, is_canonical};
use arch::x86::{CpuState, Cr0, Cr4, Efer, Exception};
use memory::{GuestRam, PageFlags, PageInfo};

/// Entries a view of the TLB has; a power of two.
pub const TLB_ENTRIES: usize = 1024;
const EXEC_ENTRIES: usize = 512;
/// A tag no page-aligned address equals.
const INVALID: u64 = 1;
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

/// One page's translation for data.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct TlbEntry {
    /// Linear page address if loads may use this entry.
    pub read: u64,
    /// Linear page address if stores may use this entry.
    pub write: u64,
    /// Host address minus linear address.
    pub addend: u64,
    /// Guest physical page address; bit 0 set for global pages.
    page: u64,
}

impl TlbEntry {
    /// An entry that never matches.
    pub const EMPTY: Self = Self { read: INVALID, write: INVALID, addend: 0, page: 0 };
}

/// One page's translation for instruction fetches.
#[derive(Clone, Copy, Debug)]
pub struct CodePage {
    tag: u64,
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
    writable: bool,
    global: bool,
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
    /// Indices (view * TLB_ENTRIES + slot) in use, so that a flush touches only those.
    filled: Vec<u16>,
    exec: Box<[[CodePage; EXEC_ENTRIES]; 2]>,
    physical_bits: u32,
}

// SAFETY: the raw pointers in `exec` point into guest RAM's tables, which outlive the Mmu (its owner holds the
// GuestRam) and may be used from any thread.
unsafe impl Send for Mmu {}

impl Mmu {
    /// An empty TLB for a guest with `physical_bits` of physical address (CPUID 0x80000008).
    pub fn new(physical_bits: u32) -> Self {
        let empty = CodePage { tag: INVALID, gfn: 0, host: std::ptr::null(), info: std::ptr::null() };
        Self {
            entries: Box::new([[TlbEntry::EMPTY; TLB_ENTRIES]; 3]),
            filled: Vec::new(),
            exec: Box::new([[empty; EXEC_ENTRIES]; 2]),
            physical_bits,
        }
    }

    /// The first entry of a view, for inline look-ups.
    pub fn view(&self, view: View) -> *const TlbEntry {
        self.entries[view as usize].as_ptr()
    }

    /// Drops everything.
    pub fn flush_all(&mut self) {
        for index in self.filled.drain(..) {
            self.entries.as_flattened_mut()[usize::from(index)] = TlbEntry::EMPTY;
        }
        self.flush_code(|_| true);
    }

    /// Drops all but global pages.
    pub fn flush_non_global(&mut self) {
        let entries = self.entries.as_flattened_mut();
        self.filled.retain(|&index| {
            let entry = &mut entries[usize::from(index)];
            let keep = entry.page & 1 != 0;
            if !keep {
                *entry = TlbEntry::EMPTY;
            }
            keep
        });
        self.flush_code(|_| true);
    }

    /// Drops the page of `linear`.
    pub fn flush_page(&mut self, linear: u64) {
        let slot = slot(linear);
        for view in self.entries.iter_mut() {
            let entry = &mut view[slot];
            if entry.read == linear & PAGE_MASK || entry.write == linear & PAGE_MASK {
                *entry = TlbEntry::EMPTY;
            }
        }
        self.flush_code(|tag| tag == linear & PAGE_MASK);
    }

    /// Takes back every permission to store on the fast path, because a page came to hold code.
    pub fn revoke_writes(&mut self) {
        for &index in &self.filled {
            self.entries.as_flattened_mut()[usize::from(index)].write = INVALID;
        }
    }

    fn flush_code(&mut self, which: impl Fn(u64) -> bool) {
        for entry in self.exec.as_flattened_mut() {
            if which(entry.tag) {
                entry.tag = INVALID;
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
        let entry = &mut self.entries[view as usize][slot];
        if entry.read == INVALID && entry.write == INVALID {
            self.filled.push((view as usize * TLB_ENTRIES + slot) as u16);
        }
        *entry = TlbEntry {
            read: tag,
            write: if found.writable && plain { tag } else { INVALID },
            addend: (page.host.as_ptr() as u64).wrapping_sub(tag),
            page: (found.gpa & PAGE_MASK) | u64::from(found.global),
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
        let entry = CodePage { tag, gfn: found.gpa >> PAGE_SHIFT, host: page.host.as_ptr(), info: page.info };
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

/// One walk of the paging structures.
struct Walk<'a> {
    ram: &'a GuestRam,
    state: &'a CpuState,
    linear: u64,
    view: View,
    intent: Intent,
    physical_bits: u32,
}

/// What the entries on the way to a page allow, taken together.
#[derive(Clone, Copy)]
struct Rights {
    writable: bool,
    user: bool,
    executable: bool,
}

impl Walk<'_> {
    fn fault(&self, code: u32) -> Exception {
        let mut code = code;
        if self.intent == Intent::Write {
            code |= PageFaultCode::WRITE;
        }
        if self.view == View::User {
            code |= PageFaultCode::USER;
        }
        let nx = self.no_execute() || self.state.cr4 & Cr4::SMEP.bits() != 0;
        if self.intent == Intent::Fetch && nx {
            code |= PageFaultCode::FETCH;
        }
        Exception::page_fault(self.linear, code)
    }

    fn no_execute(&self) -> bool {
        let wide = self.state.is_long_mode() || self.state.cr4 & Cr4::PAE.bits() != 0;
        wide && self.state.msrs.efer & Efer::NXE.bits() != 0
    }

    /// Whether the access is allowed; the caller has established that the page is present.
    fn check(&self, rights: Rights) -> Result<(), Exception> {
        let cr4 = self.state.cr4;
        let allowed = if self.view == View::User {
            rights.user && (self.intent != Intent::Write || rights.writable)
        } else {
            let smap = rights.user
                && self.intent != Intent::Fetch
                && self.view == View::Kernel
                && cr4 & Cr4::SMAP.bits() != 0;
            let smep = rights.user && self.intent == Intent::Fetch && cr4 & Cr4::SMEP.bits() != 0;
            let read_only =
                self.intent == Intent::Write && !rights.writable && self.state.cr0 & Cr0::WP.bits() != 0;
            !smap && !smep && !read_only
        };
        let executable = self.intent != Intent::Fetch || rights.executable;
        if allowed && executable { Ok(()) } else { Err(self.fault(PageFaultCode::PRESENT)) }
    }

    /// Whether stores under this view may use a TLB entry for a page with these rights.
    fn may_write(&self, rights: Rights) -> bool {
        rights.writable || (self.view != View::User && self.state.cr0 & Cr0::WP.bits() == 0)
    }

    fn finish(
        &self,
        rights: Rights,
        base: u64,
        page_bits: u32,
        leaf: u64,
        dirty: bool,
    ) -> Result<Translation, Exception> {
        let mask = (1u64 << page_bits) - 1;
        Ok(Translation {
            gpa: (base & !mask) | (self.linear & mask),
            writable: dirty && self.may_write(rights),
            global: leaf & Pte::GLOBAL != 0 && self.state.cr4 & Cr4::PGE.bits() != 0,
        })
    }

    /// Four-level and PAE paging: 64-bit entries, 9 bits of index a level.
    fn wide(&self, root: u64, levels: u32) -> Result<Translation, Exception> {
        let nxe = self.no_execute();
        let mut reserved = Pte::ADDRESS & !((1u64 << self.physical_bits) - 1);
        if !nxe {
            reserved |= Pte::NX;
        }
        if !self.state.is_long_mode() {
            reserved |= 0x7ff0_0000_0000_0000;
        }
        let mut rights = Rights { writable: true, user: true, executable: true };
        let mut table = root;
        let mut path = [(0u64, 0u64); 4];
        let mut level = levels;
        loop {
            let shift = PAGE_SHIFT + 9 * (level - 1);
            let address = table + ((self.linear >> shift) & 511) * 8;
            let entry = self.read_wide(address);
            if entry & Pte::PRESENT == 0 {
                return Err(self.fault(0));
            }
            let leaf = level == 1 || (level <= 3 && entry & Pte::LARGE != 0);
            let mut bad = entry & reserved;
            if leaf && level > 1 {
                bad |= entry & ((1 << shift) - 1) & !0x1fff; // bit 12 is PAT
            } else if level == 4 {
                bad |= entry & Pte::LARGE;
            }
            if bad != 0 {
                return Err(self.fault(PageFaultCode::PRESENT | PageFaultCode::RESERVED));
            }
            rights.writable &= entry & Pte::WRITE != 0;
            rights.user &= entry & Pte::USER != 0;
            rights.executable &= !(nxe && entry & Pte::NX != 0);
            path[level as usize - 1] = (address, entry);
            if leaf {
                self.check(rights)?;
                let write = self.intent == Intent::Write;
                let mut unchanged = (level..levels).all(|up| {
                    let (address, entry) = path[up as usize];
                    self.mark_wide(address, entry, Pte::ACCESSED)
                });
                let bits = if write { Pte::ACCESSED | Pte::DIRTY } else { Pte::ACCESSED };
                unchanged &= self.mark_wide(address, entry, bits);
                if !unchanged {
                    return self.wide(root, levels);
                }
                let dirty = write || entry & Pte::DIRTY != 0;
                return self.finish(rights, entry & Pte::ADDRESS, shift, entry, dirty);
            }
            table = entry & Pte::ADDRESS;
            level -= 1;
        }
    }

    /// 32-bit paging: 32-bit entries, 10 bits of index a level, 4 MiB pages with PSE.
    fn narrow(&self) -> Result<Translation, Exception> {
        let directory = (self.state.cr3 & 0xffff_f000) + ((self.linear >> 22) & 1023) * 4;
        let pde = self.read_narrow(directory);
        if pde & 1 == 0 {
            return Err(self.fault(0));
        }
        let entry = u64::from(pde);
        let mut rights =
            Rights { writable: entry & Pte::WRITE != 0, user: entry & Pte::USER != 0, executable: true };
        let write = self.intent == Intent::Write;
        let bits = (Pte::ACCESSED | if write { Pte::DIRTY } else { 0 }) as u32;
        if entry & Pte::LARGE != 0 && self.state.cr4 & Cr4::PSE.bits() != 0 {
            if entry & (1 << 21) != 0 {
                return Err(self.fault(PageFaultCode::PRESENT | PageFaultCode::RESERVED));
            }
            self.check(rights)?;
            if !self.mark_narrow(directory, pde, bits) {
                return self.narrow();
            }
            let base = (entry & 0xffc0_0000) | ((entry & 0x1f_e000) << 19); // PSE-36
            return self.finish(rights, base, 22, entry, write || entry & Pte::DIRTY != 0);
        }
        let table = (entry & 0xffff_f000) + ((self.linear >> 12) & 1023) * 4;
        let pte = self.read_narrow(table);
        if pte & 1 == 0 {
            return Err(self.fault(0));
        }
        let leaf = u64::from(pte);
        rights.writable &= leaf & Pte::WRITE != 0;
        rights.user &= leaf & Pte::USER != 0;
        self.check(rights)?;
        if !self.mark_narrow(directory, pde, Pte::ACCESSED as u32) || !self.mark_narrow(table, pte, bits) {
            return self.narrow();
        }
        self.finish(rights, leaf & 0xffff_f000, 12, leaf, write || leaf & Pte::DIRTY != 0)
    }

    /// An entry of 8 bytes; all ones where there is no RAM, like any load nobody answers.
    fn read_wide(&self, gpa: u64) -> u64 {
        match self.ram.host(gpa) {
            // SAFETY: entries are 8-byte aligned and inside one RAM page.
            Some(host) => unsafe { AtomicU64::from_ptr(host.as_ptr().cast()) }.load(Ordering::Relaxed),
            None => u64::MAX,
        }
    }

    fn read_narrow(&self, gpa: u64) -> u32 {
        match self.ram.host(gpa) {
            // SAFETY: entries are 4-byte aligned and inside one RAM page.
            Some(host) => unsafe { AtomicU32::from_ptr(host.as_ptr().cast()) }.load(Ordering::Relaxed),
            None => u32::MAX,
        }
    }

    /// Sets accessed/dirty bits unless they are set. False if another vCPU changed the entry meanwhile: what
    /// was read of it is stale and the walk must start again.
    fn mark_wide(&self, gpa: u64, entry: u64, bits: u64) -> bool {
        if entry & bits == bits {
            return true;
        }
        let Some(host) = self.ram.host(gpa) else { return true };
        // SAFETY: as in `read_wide`.
        let cell = unsafe { AtomicU64::from_ptr(host.as_ptr().cast()) };
        let done = cell.compare_exchange(entry, entry | bits, Ordering::SeqCst, Ordering::Relaxed).is_ok();
        self.note(gpa, 8);
        done
    }

    fn mark_narrow(&self, gpa: u64, entry: u32, bits: u32) -> bool {
        if entry & bits == bits {
            return true;
        }
        let Some(host) = self.ram.host(gpa) else { return true };
        // SAFETY: as in `read_narrow`.
        let cell = unsafe { AtomicU32::from_ptr(host.as_ptr().cast()) };
        let done = cell.compare_exchange(entry, entry | bits, Ordering::SeqCst, Ordering::Relaxed).is_ok();
        self.note(gpa, 4);
        done
    }

    fn note(&self, gpa: u64, len: usize) {
        if let Some(page) = self.ram.page(gpa >> PAGE_SHIFT) {
            page.info.note_write((gpa & !PAGE_MASK) as usize, len);
        }
    }
}
