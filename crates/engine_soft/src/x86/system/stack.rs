//! Pushing and popping with the rules of SS, and the stacks a TSS holds for inner privilege levels.

use arch::x86::paging::is_canonical;
use arch::x86::segment::system_type;
use arch::x86::{CpuState, Exception, Segment, SegmentRegister, Vector};

use super::descriptor::{Descriptor, is_null, rpl, selector_fault, within_limit};
use super::{Access, Core, OperandSize, RSP, read, read_system, write};

/// Access bits of a null SS; hardware keeps CPL in its DPL all the same.
pub(super) const fn null_ss(selector: u16, cpl: u8) -> Segment {
    Segment::new(selector, 0, 0, Segment::UNUSABLE | (cpl as u32) << 5)
}

/// A stack being pushed to or popped from. Registers change only when the user takes [`Stack::rsp`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Stack {
    segment: Segment,
    rsp: u64,
    width: OperandSize,
    access: Access,
    /// Raised when an address is outside of the segment or not canonical.
    fault: Exception,
}

impl Stack {
    /// The stack SS:RSP points to.
    pub(super) fn current(state: &CpuState) -> Self {
        let ss = *state.segment(SegmentRegister::Ss);
        Self::new(ss, state.gpr[RSP], state.is_64bit_code(), state.cpl(), Exception::new(Vector::StackFault))
    }

    /// The stack `segment`:`rsp` of code at level `cpl`; `is_64bit` if that code is 64-bit code.
    pub(super) fn new(segment: Segment, rsp: u64, is_64bit: bool, cpl: u8, fault: Exception) -> Self {
        let width = if is_64bit {
            OperandSize::Qword
        } else if segment.access & Segment::BIG != 0 {
            OperandSize::Dword
        } else {
            OperandSize::Word
        };
        Self { segment, rsp, width, access: Access::at(cpl), fault }
    }

    /// The stack pointer, with the bits a narrow stack does not use left as they were.
    pub(super) const fn rsp(&self) -> u64 {
        self.rsp
    }

    /// Pushes the low bytes of `value`.
    pub(super) fn push(
        &mut self,
        core: &mut dyn Core,
        value: u64,
        size: OperandSize,
    ) -> Result<(), Exception> {
        let below = self.moved(-(size.bytes() as i64));
        write(core, self.address(below, size)?, value, size.bytes(), self.access)?;
        self.rsp = below;
        Ok(())
    }

    /// Pops a zero-extended value.
    pub(super) fn pop(&mut self, core: &mut dyn Core, size: OperandSize) -> Result<u64, Exception> {
        let address = self.address(self.rsp, size)?;
        let value = match size {
            OperandSize::Word => read::<2>(core, address, self.access),
            OperandSize::Dword => read::<4>(core, address, self.access),
            OperandSize::Qword => read::<8>(core, address, self.access),
        }?;
        self.rsp = self.moved(size.bytes() as i64);
        Ok(value)
    }

    /// Releases `bytes` without reading them.
    pub(super) fn skip(&mut self, bytes: u16) {
        self.rsp = self.moved(i64::from(bytes));
    }

    fn moved(&self, by: i64) -> u64 {
        merge(self.rsp, self.rsp.wrapping_add_signed(by), self.width)
    }

    fn address(&self, rsp: u64, size: OperandSize) -> Result<u64, Exception> {
        let bytes = size.bytes() as u64;
        if self.width == OperandSize::Qword {
            let ok = is_canonical(rsp) && is_canonical(rsp.wrapping_add(bytes - 1));
            return if ok { Ok(rsp) } else { Err(self.fault) };
        }
        let offset = self.width.truncate(rsp);
        if self.segment.is_unusable() || !within_limit(&self.segment, offset, bytes) {
            return Err(self.fault);
        }
        Ok(self.segment.base.wrapping_add(offset) & 0xffff_ffff)
    }
}

/// `old` with the part a stack pointer of `width` uses replaced from `new`.
const fn merge(old: u64, new: u64, width: OperandSize) -> u64 {
    match width {
        OperandSize::Word => old & !0xffff | new & 0xffff,
        _ => width.truncate(new),
    }
}

/// Sets RSP to a popped `value` as far as the stack `ss` of the code now in CS uses it.
pub(super) fn set_rsp(state: &mut CpuState, ss: &Segment, is_64bit: bool, value: u64) {
    let shape = Stack::new(*ss, 0, is_64bit, 0, Exception::GP0);
    state.gpr[RSP] = merge(state.gpr[RSP], value, shape.width);
}

/// SS and ESP for privilege level `dpl` from the current TSS, checked, outside of long mode
/// (SDM vol. 2 "CALL", MORE-PRIVILEGE; vol. 3 6.12.1).
pub(super) fn inner_stack(core: &mut dyn Core, dpl: u8, ext: u32) -> Result<(Segment, u64), Exception> {
    let tr = core.state().tr;
    let level = u64::from(dpl);
    let is_16bit = matches!(tr.kind(), system_type::TSS16_AVAILABLE | system_type::TSS16_BUSY);
    let (at, last) = if is_16bit { (level * 4 + 2, 3) } else { (level * 8 + 4, 5) };
    if tr.is_unusable() || at + last > u64::from(tr.limit) {
        return Err(selector_fault(Vector::InvalidTss, tr.selector, ext));
    }
    let (sp, selector) = if is_16bit {
        let both = read_system::<4>(core, tr.base, at)?;
        (both & 0xffff, (both >> 16) as u16)
    } else {
        let both = read_system::<6>(core, tr.base, at)?;
        (both & 0xffff_ffff, (both >> 32) as u16)
    };
    Ok((inner_ss(core, selector, dpl, ext)?, sp))
}

fn inner_ss(core: &mut dyn Core, selector: u16, dpl: u8, ext: u32) -> Result<Segment, Exception> {
    let bad = selector_fault(Vector::InvalidTss, selector, ext);
    if is_null(selector) {
        return Err(bad);
    }
    let mut ss = Descriptor::fetch(core, selector, Vector::InvalidTss, ext)?;
    if rpl(selector) != dpl || ss.segment.dpl() != dpl || !ss.is_writable_data() {
        return Err(bad);
    }
    if !ss.segment.is_present() {
        return Err(selector_fault(Vector::StackFault, selector, ext));
    }
    ss.mark_accessed(core)?;
    Ok(ss.segment)
}

/// A stack pointer of the 64-bit TSS: RSP0-2 for index 0-2, IST1-7 for index 4-10 (SDM vol. 3 figure 8-11).
pub(super) fn tss64_stack(core: &mut dyn Core, index: u8, ext: u32) -> Result<u64, Exception> {
    let tr = core.state().tr;
    let at = 4 + u64::from(index) * 8;
    if tr.is_unusable() || at + 7 > u64::from(tr.limit) {
        return Err(selector_fault(Vector::InvalidTss, tr.selector, ext));
    }
    read_system::<8>(core, tr.base, at)
}
