//! The page walker: 32-bit, PAE and four-level paging, with accessed and dirty bits.
//!
//! SDM vol. 3 ch. 4. Several vCPUs may walk and change the same tables, so entries are read and marked atomically.
// UNSAFETY: reads and updates paging structures in guest RAM through host pointers.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use arch::x86::exception::PageFaultCode;
use arch::x86::paging::{PAGE_SHIFT, PAGE_SIZE, Pte};
use arch::x86::{CpuState, Cr0, Cr4, Efer, Exception};
use memory::GuestRam;

use super::mmu::{Intent, Translation, View};

const PAGE_MASK: u64 = !(PAGE_SIZE - 1);

/// One walk of the paging structures.
pub(super) struct Walk<'a> {
    pub(super) ram: &'a GuestRam,
    pub(super) state: &'a CpuState,
    pub(super) linear: u64,
    pub(super) view: View,
    pub(super) intent: Intent,
    pub(super) physical_bits: u32,
}

/// What the entries on the way to a page allow, taken together.
#[derive(Clone, Copy)]
struct Rights {
    writable: bool,
    user: bool,
    executable: bool,
}

impl Walk<'_> {
    pub(super) fn fault(&self, code: u32) -> Exception {
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
            page_bits,
            global: leaf & Pte::GLOBAL != 0 && self.state.cr4 & Cr4::PGE.bits() != 0,
        })
    }

    /// Four-level and PAE paging: 64-bit entries, 9 bits of index a level.
    pub(super) fn wide(&self, root: u64, levels: u32) -> Result<Translation, Exception> {
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
    pub(super) fn narrow(&self) -> Result<Translation, Exception> {
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
        let Some(page) = self.ram.page(gpa >> PAGE_SHIFT) else { return };
        if page.info.note_write((gpa & !PAGE_MASK) as usize, len) {
            self.ram.tell_of_code(gpa >> PAGE_SHIFT);
        }
    }
}
