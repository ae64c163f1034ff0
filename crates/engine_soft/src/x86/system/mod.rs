//! The system half of the processor: what an operating system does and user code cannot do alone.
//!
//! Functions on the architectural state plus the few things of the execution core that [`Core`] names, so that
//! any engine (interpreter now, translator later) calls the same ones. Operands arrive decoded, as values.
//!
//! Contract: the caller leaves `state.rip` at the current instruction and passes the next one where it
//! matters; flags are canonical. `Err` means nothing architectural happened, except where the manual says so
//! (pushes below a stack, accessed bits, DR6, and a task switch past its commit point, whose fault belongs to
//! the new task: deliver it with the state as it then is). `Ok` of a control transfer has set `state.rip`;
//! after any other function the caller moves on to the next instruction itself.
//!
//! Reading order: [`descriptor`] and [`stack`] (building blocks), [`segments`], [`far`], [`task`], [`deliver`],
//! [`iret`], [`syscall`], [`control`], [`msr`], [`flags`], [`ports`], [`cache`], [`info`], [`debug`], [`xsave`].
//!
//! Source: SDM vol. 2 (instruction pages) and vol. 3 ch. 2, 4-9, 18, 22; where AMD differs we follow Intel.
//! Absent: VMX, SMM, CET, performance counters, branch trace (DEBUGCTL.BTF is accepted and has no effect).

pub(crate) mod cache;
pub(crate) mod control;
pub(crate) mod debug;
pub(crate) mod deliver;
mod descriptor;
pub(crate) mod far;
pub(crate) mod flags;
pub(crate) mod info;
pub(crate) mod iret;
pub(crate) mod msr;
mod mtrr;
pub(crate) mod ports;
pub(crate) mod segments;
mod stack;
pub(crate) mod syscall;
mod task;
#[cfg(test)]
mod tests;
pub(crate) mod xsave;

use arch::x86::cpuid::{CpuModel, CpuidContext};
use arch::x86::{CpuState, Exception, Gpr};
use engine::Bus;

/// Which pages an access may touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Privilege {
    User,
    Supervisor,
}

/// With which rights linear memory is accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Access {
    pub privilege: Privilege,
    /// An implicit supervisor access (GDT, LDT, IDT, TSS): with SMAP, RFLAGS.AC does not open user pages.
    pub implicit: bool,
}

impl Access {
    /// To a descriptor table or TSS.
    pub(crate) const SYSTEM: Self = Self { privilege: Privilege::Supervisor, implicit: true };

    /// By code at privilege level `cpl`.
    pub(crate) const fn at(cpl: u8) -> Self {
        let privilege = if cpl == 3 { Privilege::User } else { Privilege::Supervisor };
        Self { privilege, implicit: false }
    }
}

/// Which cached translations end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flush {
    /// All, global ones and all PCIDs included.
    All,
    /// All of every PCID but the global ones.
    NonGlobal,
    /// Those of one page in the current PCID, and global ones of the page.
    Page(u64),
    /// Those of one PCID, but the global ones.
    Pcid(u16),
    /// Those of one page in one PCID, but global ones.
    PcidPage { pcid: u16, linear: u64 },
    /// None: CR3 changed and keeps what is cached for its PCID.
    Nothing,
}

/// What the system half needs from the execution core.
pub(crate) trait Core {
    fn state(&self) -> &CpuState;
    fn state_mut(&mut self) -> &mut CpuState;

    /// Reads linear memory, which may cross pages. #PF with its error code, #GP(0) if not canonical.
    fn read_linear(&mut self, linear: u64, data: &mut [u8], access: Access) -> Result<(), Exception>;
    /// Writes linear memory, which may cross pages; either all bytes or none.
    fn write_linear(&mut self, linear: u64, data: &[u8], access: Access) -> Result<(), Exception>;
    /// Reads 8 bytes of guest physical memory (page-directory pointers); all ones where there is no RAM.
    fn read_physical_u64(&mut self, gpa: u64) -> u64;

    fn bus(&self) -> &dyn Bus;
    fn vcpu_index(&self) -> u32;
    fn model(&self) -> &CpuModel;
    fn cpuid_context(&self) -> CpuidContext;
    /// The guest's TSC: the host's plus `tsc_offset`.
    fn tsc(&self) -> u64;

    /// Drops cached translations. CR3 and the paging bits of CR0, CR4, EFER already hold their new values.
    fn flush_tlb(&mut self, what: Flush);
    /// CR0, CR4, EFER, CS, SS, CPL, XCR0, DR7 or RFLAGS.TF/AC/IF changed: recompute what is derived from them.
    fn mode_changed(&mut self);
}

/// Operand size of an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OperandSize {
    Word,
    Dword,
    Qword,
}

impl OperandSize {
    pub(crate) const fn bytes(self) -> usize {
        match self {
            Self::Word => 2,
            Self::Dword => 4,
            Self::Qword => 8,
        }
    }

    /// `value` cut to this size.
    pub(crate) const fn truncate(self, value: u64) -> u64 {
        match self {
            Self::Word => value & 0xffff,
            Self::Dword => value & 0xffff_ffff,
            Self::Qword => value,
        }
    }
}

const RSP: usize = Gpr::Rsp as usize;

/// Reads a little-endian number of `N` bytes, at most 8.
fn read<const N: usize>(core: &mut dyn Core, linear: u64, access: Access) -> Result<u64, Exception> {
    let mut bytes = [0; 8];
    core.read_linear(linear, &mut bytes[..N], access)?;
    Ok(u64::from_le_bytes(bytes))
}

/// Writes the low `size` bytes (at most 8) of `value`, little endian.
fn write(core: &mut dyn Core, linear: u64, value: u64, size: usize, access: Access) -> Result<(), Exception> {
    core.write_linear(linear, &value.to_le_bytes()[..size], access)
}

/// A linear address of a system structure: 64 bits in long mode, 32 otherwise.
fn wrap(state: &CpuState, linear: u64) -> u64 {
    if state.is_long_mode() { linear } else { linear & 0xffff_ffff }
}

/// Reads `N` bytes (at most 8) at `offset` of the system structure at `base`.
fn read_system<const N: usize>(core: &mut dyn Core, base: u64, offset: u64) -> Result<u64, Exception> {
    let linear = wrap(core.state(), base.wrapping_add(offset));
    read::<N>(core, linear, Access::SYSTEM)
}

/// #GP(0) unless at privilege level 0 (real mode included).
fn require_cpl0(state: &CpuState) -> Result<(), Exception> {
    if state.cpl() == 0 { Ok(()) } else { Err(Exception::GP0) }
}

/// #UD in real and virtual-8086 mode.
fn require_protected(state: &CpuState) -> Result<(), Exception> {
    if state.is_protected() && !state.is_vm86() { Ok(()) } else { Err(Exception::UD) }
}
