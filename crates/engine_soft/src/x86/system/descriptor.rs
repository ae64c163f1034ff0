//! Descriptors and gates as they stand in GDT, LDT and IDT (SDM vol. 3 3.4.5, 5.8.3, 6.11, 6.14.1).

use arch::x86::paging::is_canonical;
use arch::x86::segment::system_type;
use arch::x86::{CpuState, Exception, Segment, Vector};

use super::{Access, Core, read, wrap, write};

/// The exception `vector` with a selector as error code; `ext` is 1 during delivery of an external event.
pub(super) const fn selector_fault(vector: Vector, selector: u16, ext: u32) -> Exception {
    Exception::with_code(vector, (selector & 0xfffc) as u32 | ext)
}

/// #GP(selector).
pub(super) const fn gp(selector: u16) -> Exception {
    selector_fault(Vector::GeneralProtection, selector, 0)
}

/// Whether `selector` is one of the four null selectors.
pub(super) const fn is_null(selector: u16) -> bool {
    selector & 0xfffc == 0
}

/// Requested privilege level.
pub(super) const fn rpl(selector: u16) -> u8 {
    (selector & 3) as u8
}

/// A descriptor and where it was found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Descriptor {
    /// Decoded; the upper half of a long-mode base included once [`Descriptor::read_upper`] was called.
    pub segment: Segment,
    raw: u64,
    upper: u64,
    address: u64,
}

impl Descriptor {
    /// Reads the 8 bytes `selector` names. Outside of the table: `vector` with the selector as error code.
    pub(super) fn fetch(
        core: &mut dyn Core,
        selector: u16,
        vector: Vector,
        ext: u32,
    ) -> Result<Self, Exception> {
        let address = locate(core.state(), selector, 8).ok_or(selector_fault(vector, selector, ext))?;
        let raw = read::<8>(core, address, Access::SYSTEM)?;
        Ok(Self { segment: Segment::from_descriptor(selector, raw), raw, upper: 0, address })
    }

    /// In long mode, reads the second half of a system descriptor and checks its reserved type bits.
    pub(super) fn read_upper(
        &mut self,
        core: &mut dyn Core,
        vector: Vector,
        ext: u32,
    ) -> Result<(), Exception> {
        if !core.state().is_long_mode() {
            return Ok(());
        }
        let fault = selector_fault(vector, self.segment.selector, ext);
        locate(core.state(), self.segment.selector, 16).ok_or(fault)?;
        self.upper = read::<8>(core, self.address.wrapping_add(8), Access::SYSTEM)?;
        if self.upper >> 40 & 0x1f != 0 {
            return Err(fault);
        }
        self.segment.base |= self.upper << 32;
        Ok(())
    }

    /// The gate this system descriptor is.
    pub(super) fn gate(&self) -> Gate {
        Gate::decode(self.raw, self.upper)
    }

    /// Sets the accessed bit, in memory if it is not yet.
    pub(super) fn mark_accessed(&mut self, core: &mut dyn Core) -> Result<(), Exception> {
        if self.segment.access & Segment::ACCESSED == 0 {
            self.segment.access |= Segment::ACCESSED;
            self.write_access_byte(core)?;
        }
        Ok(())
    }

    /// Sets the busy bit of a TSS descriptor in memory.
    pub(super) fn mark_busy(&mut self, core: &mut dyn Core) -> Result<(), Exception> {
        self.segment.access |= Segment::WRITABLE;
        self.write_access_byte(core)
    }

    /// Clears the busy bit of a TSS descriptor in memory.
    pub(super) fn mark_available(&mut self, core: &mut dyn Core) -> Result<(), Exception> {
        self.segment.access &= !Segment::WRITABLE;
        self.write_access_byte(core)
    }

    fn write_access_byte(&self, core: &mut dyn Core) -> Result<(), Exception> {
        let address = wrap(core.state(), self.address.wrapping_add(5));
        write(core, address, u64::from(self.segment.access & 0xff), 1, Access::SYSTEM)
    }

    /// Whether this is a system descriptor of type `kind`.
    pub(super) const fn is_system(&self, kind: u8) -> bool {
        !self.segment.is_code_or_data() && self.segment.kind() == kind
    }

    /// Whether this is a writable data segment.
    pub(super) const fn is_writable_data(&self) -> bool {
        self.segment.is_code_or_data()
            && !self.segment.is_code()
            && self.segment.access & Segment::WRITABLE != 0
    }

    /// Whether this is conforming code.
    pub(super) const fn is_conforming(&self) -> bool {
        self.segment.is_code() && self.segment.access & Segment::CONFORMING != 0
    }

    /// The raw low half, for LAR.
    pub(super) const fn raw(&self) -> u64 {
        self.raw
    }
}

/// Linear address of the descriptor `selector` names if all its `bytes` are inside the table.
fn locate(state: &CpuState, selector: u16, bytes: u32) -> Option<u64> {
    let (base, limit) = if selector & 4 == 0 {
        (state.gdtr.base, u32::from(state.gdtr.limit))
    } else if state.ldtr.is_unusable() {
        return None;
    } else {
        (state.ldtr.base, state.ldtr.limit)
    };
    let offset = u32::from(selector & 0xfff8);
    (offset + bytes - 1 <= limit).then(|| wrap(state, base.wrapping_add(u64::from(offset))))
}

/// A call, interrupt, trap or task gate.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gate {
    /// Code segment, or TSS.
    pub selector: u16,
    /// Entry point.
    pub offset: u64,
    /// Type bits; see [`system_type`].
    pub kind: u8,
    /// Who may use it by an instruction.
    pub dpl: u8,
    pub present: bool,
    /// Call gates: parameters to copy. Interrupt gates in long mode: index of the interrupt stack, or 0.
    pub count: u8,
}

impl Gate {
    /// From the 8 (or 16) bytes in memory.
    pub(super) const fn decode(raw: u64, upper: u64) -> Self {
        let kind = (raw >> 40 & 0x1f) as u8;
        let wide = kind & 8 != 0;
        let high = if wide { (raw >> 48) << 16 | (upper & 0xffff_ffff) << 32 } else { 0 };
        Self {
            selector: (raw >> 16) as u16,
            offset: raw & 0xffff | high,
            kind,
            dpl: (raw >> 45 & 3) as u8,
            present: raw >> 47 & 1 != 0,
            count: (raw >> 32 & 0x1f) as u8,
        }
    }

    /// Whether offsets and pushes are 16 bits wide.
    pub(super) const fn is_16bit(&self) -> bool {
        self.kind < system_type::TSS_AVAILABLE
    }
}

/// Whether an access of `bytes` at `offset` is inside `segment`, expand-down ones included.
pub(super) fn within_limit(segment: &Segment, offset: u64, bytes: u64) -> bool {
    let last = offset.saturating_add(bytes - 1);
    let limit = u64::from(segment.limit);
    let expand_down = segment.is_code_or_data()
        && !segment.is_code()
        && segment.access & Segment::CONFORMING != 0
        && !segment.is_unusable();
    if expand_down {
        let top = if segment.access & Segment::BIG != 0 { 0xffff_ffff } else { 0xffff };
        offset > limit && last <= top
    } else {
        // Of a flat segment the processor checks nothing: offsets wrap.
        last <= limit || segment.limit == u32::MAX && segment.base == 0
    }
}

/// Whether `code`, once in CS, makes the processor run 64-bit code.
pub(super) fn is_64bit(state: &CpuState, code: &Segment) -> bool {
    state.is_long_mode() && code.access & Segment::LONG != 0
}

/// #GP(ext) unless `rip` is a possible instruction pointer in `code`.
pub(super) fn check_target(state: &CpuState, code: &Segment, rip: u64, ext: u32) -> Result<(), Exception> {
    let fits = if is_64bit(state, code) { is_canonical(rip) } else { rip <= u64::from(code.limit) };
    if fits { Ok(()) } else { Err(Exception::with_code(Vector::GeneralProtection, ext)) }
}

/// #GP(selector) if `code` has both L and D set in long mode, which is reserved.
pub(super) fn check_code_size(state: &CpuState, code: &Segment, ext: u32) -> Result<(), Exception> {
    let both = Segment::LONG | Segment::BIG;
    if state.is_long_mode() && code.access & both == both {
        return Err(selector_fault(Vector::GeneralProtection, code.selector, ext));
    }
    Ok(())
}
