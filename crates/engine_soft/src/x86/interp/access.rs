//! Guest memory as instructions see it: segmentation, the TLB's fast path, and everything behind it.
//!
//! Each access of up to eight bytes inside a page is one host access of the same width, so that the guest gets
//! the host's memory model; wider ones and those that cross a page are made of pieces.
// UNSAFETY: dereferences host addresses from TLB entries, which only ever hold pages of guest RAM.

use arch::x86::paging::{PAGE_SIZE, is_canonical};
use arch::x86::{Exception, Rflags, Segment, SegmentRegister, Vector};
use engine::BusResult;

use super::cpu::{Cpu, Fault};
use super::host::{
    copy_from_guest, copy_to_guest, exchange_loop, host_compare_exchange16, host_load, host_store,
};
use super::op::{Op, address};
use crate::x86::mmu::{Intent, Place, TLB_ENTRIES, TlbEntry, View};
use crate::x86::system::debug;
use crate::x86::width::Width;

const PAGE_MASK: u64 = !(PAGE_SIZE - 1);

impl Cpu {
    /// The linear address of an operation's memory operand, checked for an access of `size` bytes.
    #[inline(always)]
    pub fn operand_address(&mut self, op: &Op, size: usize, intent: Intent) -> Result<u64, Fault> {
        let offset = self.effective_address(op);
        if op.address == 0 {
            return Ok(offset);
        }
        self.special_address(op, offset, size, intent)
    }

    /// Base + index * scale + displacement, not yet truncated.
    #[inline(always)]
    pub fn effective_address(&self, op: &Op) -> u64 {
        let base = self.register::<u64>(op.base);
        let index = self.register::<u64>(op.index);
        base.wrapping_add(index << op.scale).wrapping_add(op.disp)
    }

    /// The linear address of an operation's memory operand, unchecked.
    pub(super) fn based_address(&self, op: &Op) -> u64 {
        let offset = truncate_address(op, self.effective_address(op));
        let based = op.address & (address::SEGMENT | address::CHECKED) != 0;
        if based { offset.wrapping_add(self.state.segments[usize::from(op.segment)].base) } else { offset }
    }

    fn special_address(&mut self, op: &Op, offset: u64, size: usize, intent: Intent) -> Result<u64, Fault> {
        let offset = truncate_address(op, offset);
        if op.address & address::CHECKED != 0 {
            return self.segment_address(op.segment, offset, size, intent);
        }
        if op.address & address::SEGMENT != 0 {
            return Ok(offset.wrapping_add(self.state.segments[usize::from(op.segment)].base));
        }
        Ok(offset)
    }

    /// Linear address of `offset` in segment register number `segment`, with all checks of the current mode.
    pub fn segment_address(
        &mut self,
        segment: u8,
        offset: u64,
        size: usize,
        intent: Intent,
    ) -> Result<u64, Fault> {
        let register = self.state.segments[usize::from(segment)];
        if self.state.is_64bit_code() {
            let base = if segment >= SegmentRegister::Fs as u8 { register.base } else { 0 };
            return Ok(offset.wrapping_add(base));
        }
        let linear = (register.base.wrapping_add(offset)) & 0xffff_ffff;
        if segment_allows(&register, self.state.is_protected() && !self.state.is_vm86(), offset, size, intent)
        {
            return Ok(linear);
        }
        let vector =
            if segment == SegmentRegister::Ss as u8 { Vector::StackFault } else { Vector::GeneralProtection };
        self.fail(Exception::new(vector))
    }

    /// Loads a `T` from a linear address.
    #[inline(always)]
    pub fn load<T: Width>(&mut self, linear: u64) -> Result<T, Fault> {
        let entry = self.tlb_entry(linear);
        if entry.read == linear.wrapping_add(T::SIZE as u64 - 1) & PAGE_MASK {
            // SAFETY: the tag matches first and last byte, so the whole access is inside this RAM page.
            return Ok(unsafe { host_load(entry.addend.wrapping_add(linear) as *const u8) });
        }
        self.load_slow(linear)
    }

    /// Stores a `T` to a linear address.
    #[inline(always)]
    pub fn store<T: Width>(&mut self, linear: u64, value: T) -> Result<(), Fault> {
        let entry = self.tlb_entry(linear);
        if entry.write == linear.wrapping_add(T::SIZE as u64 - 1) & PAGE_MASK {
            // SAFETY: as in `load`; a write tag means the page is RAM, dirty and without code.
            unsafe { host_store(entry.addend.wrapping_add(linear) as *mut u8, value) };
            return Ok(());
        }
        self.store_slow(linear, value)
    }

    /// Replaces the `T` at a linear address by `change` of it; not atomic.
    #[inline(always)]
    pub fn modify<T: Width>(&mut self, linear: u64, change: impl FnOnce(T) -> T) -> Result<(), Fault> {
        let entry = self.tlb_entry(linear);
        if entry.write == linear.wrapping_add(T::SIZE as u64 - 1) & PAGE_MASK {
            let host = entry.addend.wrapping_add(linear) as *mut u8;
            // SAFETY: as in `store`.
            unsafe { host_store(host, change(host_load(host))) };
            return Ok(());
        }
        self.check_writable(linear, T::SIZE)?;
        let old = self.load(linear)?;
        self.store(linear, change(old))
    }

    /// As [`Self::modify`], atomically with respect to all vCPUs. `change` may run several times.
    pub fn modify_locked<T: Width>(
        &mut self,
        linear: u64,
        mut change: impl FnMut(T) -> T,
    ) -> Result<(), Fault> {
        let entry = self.tlb_entry(linear);
        if entry.write == linear.wrapping_add(T::SIZE as u64 - 1) & PAGE_MASK {
            let host = entry.addend.wrapping_add(linear) as *mut u8;
            // SAFETY: as in `store`.
            unsafe { exchange_loop(host, &mut change) };
            return Ok(());
        }
        self.check_alignment(linear, T::SIZE)?;
        if linear & (PAGE_SIZE - 1) <= PAGE_SIZE - T::SIZE as u64
            && let Place::Ram(host, info) = self.place(linear, Intent::Write)?
        {
            // SAFETY: the access is inside this RAM page.
            unsafe { exchange_loop(host, &mut change) };
            let hit = info.note_write((linear & !PAGE_MASK) as usize, T::SIZE);
            self.after_code_write(hit, info);
            return self.watch(linear, T::SIZE, Intent::Write);
        }
        let shared = self.shared.clone();
        let _guard = shared.split_lock.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.check_writable(linear, T::SIZE)?;
        let old = self.load(linear)?;
        self.store(linear, change(old))
    }

    /// CMPXCHG16B's memory side: returns what was found; `new` was stored if that equals `expected`.
    pub fn compare_exchange16(&mut self, linear: u64, expected: u128, new: u128) -> Result<u128, Fault> {
        if linear & 15 != 0 {
            return self.fail(Exception::GP0);
        }
        if let Place::Ram(host, info) = self.place(linear, Intent::Write)? {
            // SAFETY: 16 bytes aligned to 16 are inside the page, which is page-aligned in the host.
            let found = unsafe { host_compare_exchange16(host, expected, new) };
            let hit = info.note_write((linear & !PAGE_MASK) as usize, 16);
            self.after_code_write(hit, info);
            return Ok(found);
        }
        let mut bytes = [0; 16];
        self.load_bytes(linear, &mut bytes)?;
        let found = u128::from_le_bytes(bytes);
        if found == expected {
            self.store_bytes(linear, &new.to_le_bytes())?;
        }
        Ok(found)
    }

    #[inline(always)]
    fn tlb_entry(&self, linear: u64) -> &TlbEntry {
        let slot = (linear >> 12) as usize & (TLB_ENTRIES - 1);
        // SAFETY: `tlb` points to TLB_ENTRIES entries that live as long as the Cpu.
        unsafe { &*self.tlb.add(slot) }
    }

    #[cold]
    #[inline(never)]
    fn load_slow<T: Width>(&mut self, linear: u64) -> Result<T, Fault> {
        self.check_alignment(linear, T::SIZE)?;
        if linear & !PAGE_MASK <= PAGE_SIZE - T::SIZE as u64
            && let Place::Ram(host, _) = self.place(linear, Intent::Read)?
        {
            self.watch(linear, T::SIZE, Intent::Read)?;
            // SAFETY: the access is inside this RAM page.
            return Ok(unsafe { host_load(host) });
        }
        let mut bytes = [0; 8];
        self.load_bytes(linear, &mut bytes[..T::SIZE])?;
        Ok(T::truncate(u64::from_le_bytes(bytes)))
    }

    #[cold]
    #[inline(never)]
    fn store_slow<T: Width>(&mut self, linear: u64, value: T) -> Result<(), Fault> {
        self.check_alignment(linear, T::SIZE)?;
        if linear & !PAGE_MASK <= PAGE_SIZE - T::SIZE as u64
            && let Place::Ram(host, info) = self.place(linear, Intent::Write)?
        {
            // SAFETY: the access is inside this RAM page.
            unsafe { host_store(host, value) };
            if self.tlb_entry(linear).write == linear & PAGE_MASK {
                // Found for stores of any kind now, like this one: there is no code in it, and no need for a fence to see that.
                return Ok(());
            }
            let hit = info.note_write((linear & !PAGE_MASK) as usize, T::SIZE);
            self.after_code_write(hit, info);
            return self.watch(linear, T::SIZE, Intent::Write);
        }
        self.store_bytes(linear, &value.zero_extend().to_le_bytes()[..T::SIZE])
    }

    /// Loads any number of bytes, which may cross pages.
    pub fn load_bytes(&mut self, linear: u64, data: &mut [u8]) -> Result<(), Fault> {
        self.load_bytes_as(linear, data, self.view)
    }

    /// As [`Self::load_bytes`], under a given view.
    pub fn load_bytes_as(&mut self, linear: u64, data: &mut [u8], view: View) -> Result<(), Fault> {
        if let Some(host) = self.mmu.hit(linear, data.len(), view, Intent::Read) {
            // SAFETY: that many bytes from `host` are inside a page of guest RAM.
            unsafe { copy_from_guest(host, data) };
            return Ok(());
        }
        let mut done = 0;
        while done < data.len() {
            let at = self.wrap(linear.wrapping_add(done as u64));
            let count = (PAGE_SIZE - (at & !PAGE_MASK)).min((data.len() - done) as u64) as usize;
            let piece = &mut data[done..done + count];
            match self.place_as(at, view, Intent::Read)? {
                Place::Ram(host, _) => {
                    // SAFETY: `count` bytes from `host` stay inside the page.
                    unsafe { copy_from_guest(host, piece) };
                }
                Place::Bus(gpa) => self.bus_load(gpa, piece),
            }
            done += count;
        }
        self.watch(linear, data.len(), Intent::Read)
    }

    /// Stores any number of bytes, which may cross pages; all pages are checked before any byte is written.
    pub fn store_bytes(&mut self, linear: u64, data: &[u8]) -> Result<(), Fault> {
        self.store_bytes_as(linear, data, self.view)
    }

    /// As [`Self::store_bytes`], under a given view.
    pub fn store_bytes_as(&mut self, linear: u64, data: &[u8], view: View) -> Result<(), Fault> {
        if self.trial.is_none()
            && let Some(host) = self.mmu.hit(linear, data.len(), view, Intent::Write)
        {
            // SAFETY: that many bytes from `host` are inside a page of guest RAM.
            unsafe { copy_to_guest(host, data) };
            return Ok(());
        }
        if (linear & !PAGE_MASK) + data.len() as u64 > PAGE_SIZE {
            self.place_as(linear, view, Intent::Write)?;
            let mut at = PAGE_SIZE - (linear & !PAGE_MASK);
            while at < data.len() as u64 {
                self.place_as(self.wrap(linear.wrapping_add(at)), view, Intent::Write)?;
                at += PAGE_SIZE;
            }
        }
        let mut done = 0;
        while done < data.len() {
            let at = self.wrap(linear.wrapping_add(done as u64));
            let count = (PAGE_SIZE - (at & !PAGE_MASK)).min((data.len() - done) as u64) as usize;
            let piece = &data[done..done + count];
            match self.place_as(at, view, Intent::Write)? {
                Place::Ram(host, info) => {
                    // SAFETY: `count` bytes from `host` stay inside the page.
                    unsafe { copy_to_guest(host, piece) };
                    let hit = info.note_write((at & !PAGE_MASK) as usize, count);
                    self.after_code_write(hit, info);
                }
                Place::Bus(gpa) => self.bus_store(gpa, piece),
            }
            done += count;
        }
        self.watch(linear, data.len(), Intent::Write)
    }

    /// Fails exactly if a store of `size` bytes would.
    pub fn check_writable(&mut self, linear: u64, size: usize) -> Result<(), Fault> {
        self.check_alignment(linear, size)?;
        self.probe_write(linear, size)
    }

    /// As [`Self::check_writable`], but for alignment.
    pub fn probe_write(&mut self, linear: u64, size: usize) -> Result<(), Fault> {
        self.place(linear, Intent::Write)?;
        if (linear & !PAGE_MASK) + size as u64 > PAGE_SIZE {
            self.place(self.wrap((linear & PAGE_MASK).wrapping_add(PAGE_SIZE)), Intent::Write)?;
        }
        Ok(())
    }

    /// Host address for a load or store of `size` bytes at `linear` if one exists: RAM, within one page, no
    /// code and no watchpoint in it. `Ok(None)` where the access must be made of pieces.
    pub fn host_range(&mut self, linear: u64, size: usize, intent: Intent) -> Result<Option<*mut u8>, Fault> {
        if (linear & !PAGE_MASK) + size as u64 > PAGE_SIZE {
            return Ok(None);
        }
        let entry = *self.tlb_entry(linear);
        let tag = if intent == Intent::Write { entry.write } else { entry.read };
        if tag == linear & PAGE_MASK {
            return Ok(Some(entry.addend.wrapping_add(linear) as *mut u8));
        }
        match self.place(linear, intent)? {
            Place::Ram(host, info) if intent != Intent::Write || !info.holds_code() => {
                Ok((self.state.dr[7] & 0xff == 0).then_some(host))
            }
            _ => Ok(None),
        }
    }

    fn place(&mut self, linear: u64, intent: Intent) -> Result<Place<'static>, Fault> {
        self.place_as(linear, self.view, intent)
    }

    fn place_as(&mut self, linear: u64, view: View, intent: Intent) -> Result<Place<'static>, Fault> {
        // SAFETY: `ram` is a clone of the Arc's target that the Cpu keeps for as long as it lives; places are
        // used only while the Cpu runs.
        let ram = unsafe { &*self.ram };
        match self.mmu.place(ram, &self.state, linear, view, intent) {
            Ok(place) if self.trial.as_mut().is_some_and(|trial| !trial.allows(&place, intent)) => {
                self.fail(Exception::GP0)
            }
            Ok(place) => Ok(place),
            Err(exception) => self.fail(exception),
        }
    }

    /// Addresses wrap at 4 GiB outside long mode.
    fn wrap(&self, linear: u64) -> u64 {
        if self.state.is_long_mode() { linear } else { linear & 0xffff_ffff }
    }

    fn bus_load(&mut self, gpa: u64, data: &mut [u8]) {
        self.counters.bus_accesses += 1;
        let bus = self.bus.clone();
        let mut at = gpa;
        for piece in pieces_mut(data, gpa) {
            if bus.mmio_read(self.index, at, piece) == BusResult::Stop {
                self.signal.kick();
            }
            at += piece.len() as u64;
        }
    }

    fn bus_store(&mut self, gpa: u64, data: &[u8]) {
        self.counters.bus_accesses += 1;
        self.interrupt_hint = true;
        let bus = self.bus.clone();
        let mut at = gpa;
        let mut rest = data;
        while !rest.is_empty() {
            let (piece, tail) = rest.split_at(piece_len(at, rest.len()));
            if bus.mmio_write(self.index, at, piece) == BusResult::Stop {
                self.signal.kick();
            }
            at += piece.len() as u64;
            rest = tail;
        }
    }

    /// #AC for user code that asked for it (CR0.AM, RFLAGS.AC). While that is possible the TLB's fast path is
    /// off (see `Cpu::mode_changed`), so every access comes here.
    /// #AC if `linear` is not a multiple of `alignment`, a power of two; non-canonical addresses go first.
    #[cold]
    pub(super) fn check_alignment_of(&mut self, linear: u64, alignment: usize) -> Result<(), Fault> {
        if self.state.is_64bit_code() && !is_canonical(linear) {
            return self.fail(Exception::GP0);
        }
        if alignment.is_power_of_two() && linear & (alignment as u64 - 1) != 0 {
            return self.fail(Exception::new(Vector::AlignmentCheck));
        }
        Ok(())
    }

    /// As the processor checks the operand of an instruction that is no plain load or store: to its size up to
    /// eight bytes, and to the size of their members in the x87's structures.
    #[inline(always)]
    pub(super) fn check_operand_alignment(&mut self, linear: u64, size: usize) -> Result<(), Fault> {
        if !self.alignment_checks {
            return Ok(());
        }
        let alignment = match size {
            2 | 4 | 8 => size,
            10 => 8,
            14 | 94 => 2,
            28 | 108 => 4,
            _ => 1,
        };
        self.check_alignment_of(linear, alignment)
    }

    #[inline(always)]
    fn check_alignment(&mut self, linear: u64, size: usize) -> Result<(), Fault> {
        if self.alignment_checks { self.check_alignment_of(linear, size) } else { Ok(()) }
    }

    /// Notes data breakpoints that an access hits; the trap follows the instruction.
    fn watch(&mut self, linear: u64, size: usize, intent: Intent) -> Result<(), Fault> {
        if debug::any_enabled(&self.state) {
            let kind = if intent == Intent::Write { debug::Watch::Write } else { debug::Watch::Read };
            self.debug_hits |= debug::hits(&self.state, linear, size as u64, kind);
        }
        Ok(())
    }

    /// Whether alignment is checked for the current privilege and flags.
    pub fn wants_alignment_checks(&self) -> bool {
        self.state.cr0 & arch::x86::Cr0::AM.bits() != 0
            && self.state.rflags & Rflags::AC.bits() != 0
            && self.state.cpl() == 3
    }
}

/// Truncates an offset to the operation's address size.
#[inline(always)]
pub fn truncate_address(op: &Op, offset: u64) -> u64 {
    if op.address & address::MASK32 != 0 {
        offset & 0xffff_ffff
    } else if op.address & address::MASK16 != 0 {
        offset & 0xffff
    } else {
        offset
    }
}

/// Limit and type checks of a legacy-mode segment access (SDM vol. 3, 5.3 to 5.5).
fn segment_allows(segment: &Segment, protected: bool, offset: u64, size: usize, intent: Intent) -> bool {
    let last = offset.wrapping_add(size as u64 - 1);
    if protected {
        if segment.is_unusable() {
            return false;
        }
        let code = segment.access & Segment::CODE != 0;
        let writable_or_readable = segment.access & Segment::WRITABLE != 0;
        let type_ok = match intent {
            Intent::Write => !code && writable_or_readable,
            Intent::Read => !code || writable_or_readable,
            Intent::Fetch => true,
        };
        if !type_ok {
            return false;
        }
        if !code && segment.access & Segment::CONFORMING != 0 {
            // Expand-down: valid offsets lie above the limit.
            let top = if segment.access & Segment::BIG != 0 { 0xffff_ffff } else { 0xffff };
            return offset > u64::from(segment.limit) && last <= top && last >= offset;
        }
    }
    // Of a flat segment the processor checks nothing: offsets wrap.
    last >= offset && last <= u64::from(segment.limit) || segment.limit == u32::MAX && segment.base == 0
}

/// Length of the next bus access: naturally aligned, at most 8 bytes.
fn piece_len(at: u64, left: usize) -> usize {
    let aligned = 1usize << at.trailing_zeros().min(3);
    let fits = 1usize << (usize::BITS - 1 - left.leading_zeros()).min(3);
    // An unaligned access that fits one bus width is passed as it is; devices decide.
    if left <= 8 && left.is_power_of_two() { left } else { aligned.min(fits) }
}

fn pieces_mut(data: &mut [u8], gpa: u64) -> impl Iterator<Item = &mut [u8]> {
    let mut at = gpa;
    let mut rest = Some(data);
    std::iter::from_fn(move || {
        let all = rest.take()?;
        if all.is_empty() {
            return None;
        }
        let (piece, tail) = all.split_at_mut(piece_len(at, all.len()));
        at += piece.len() as u64;
        rest = Some(tail);
        Some(piece)
    })
}
