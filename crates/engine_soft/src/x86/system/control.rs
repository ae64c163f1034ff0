//! Control registers, EFER and XCR0 (SDM vol. 3 2.5, 2.6, 4.1, 4.10.4.1, 4.4.1, 9.8.5, 11.5).

use arch::x86::paging::Pte;
use arch::x86::segment::system_type;
use arch::x86::{CpuState, Cr0, Cr4, Efer, Exception, Gpr, Segment, SegmentRegister, Xcr0};

use super::segments::check_umip;
use super::{Core, Flush, require_cpl0};

/// CR3 bit 63 in a write with CR4.PCIDE: keep the translations of the PCID.
const CR3_KEEP: u64 = 1 << 63;
/// The PCID in CR3.
const CR3_PCID: u64 = 0xfff;

/// MOV from CR`number`; the caller cuts it to 32 bits outside of 64-bit mode.
pub(crate) fn mov_from_cr(core: &mut dyn Core, number: u8) -> Result<u64, Exception> {
    let state = core.state();
    let value = match number {
        0 => state.cr0,
        2 => state.cr2,
        3 => state.cr3,
        4 => state.cr4,
        8 => u64::from(core.bus().task_priority(core.vcpu_index())),
        _ => return Err(Exception::UD),
    };
    require_cpl0(core.state())?;
    Ok(value)
}

/// MOV to CR`number`; the value is zero-extended outside of 64-bit mode.
pub(crate) fn mov_to_cr(core: &mut dyn Core, number: u8, value: u64) -> Result<(), Exception> {
    if !matches!(number, 0 | 2 | 3 | 4 | 8) {
        return Err(Exception::UD);
    }
    require_cpl0(core.state())?;
    match number {
        0 => write_cr0(core, value),
        3 => write_cr3(core, value),
        4 => write_cr4(core, value),
        8 if value > 15 => Err(Exception::GP0),
        8 => {
            core.bus().set_task_priority(core.vcpu_index(), value as u8);
            Ok(())
        }
        _ => {
            core.state_mut().cr2 = value;
            Ok(())
        }
    }
}

fn write_cr0(core: &mut dyn Core, value: u64) -> Result<(), Exception> {
    if value >> 32 != 0 {
        return Err(Exception::GP0);
    }
    let old = Cr0::from_bits_truncate(core.state().cr0);
    let new = Cr0::from_bits_truncate(value) | Cr0::ET;
    if new.contains(Cr0::PG) && !new.contains(Cr0::PE) || new.contains(Cr0::NW) && !new.contains(Cr0::CD) {
        return Err(Exception::GP0);
    }
    let mut efer = Efer::from_bits_retain(core.state().msrs.efer);
    match (old.contains(Cr0::PG), new.contains(Cr0::PG)) {
        (false, true) if efer.contains(Efer::LME) => {
            check_enter_long_mode(core.state())?;
            efer |= Efer::LMA;
        }
        (true, false) => {
            check_leave_paging(core.state())?;
            efer -= Efer::LMA;
        }
        _ => {}
    }
    let changed = old ^ new;
    let pae = core.state().cr4 & Cr4::PAE.bits() != 0;
    if new.contains(Cr0::PG)
        && pae
        && !efer.contains(Efer::LMA)
        && changed.intersects(Cr0::PG | Cr0::CD | Cr0::NW)
    {
        let cr3 = core.state().cr3;
        let pdpte = read_pdptes(core, cr3)?;
        core.state_mut().pdpte = pdpte;
    }
    let state = core.state_mut();
    state.cr0 = new.bits();
    state.msrs.efer = efer.bits();
    if changed.intersects(Cr0::PG | Cr0::PE | Cr0::WP) {
        core.flush_tlb(Flush::All);
    }
    core.mode_changed();
    Ok(())
}

/// Paging goes on with EFER.LME set (SDM vol. 3 9.8.5).
fn check_enter_long_mode(state: &CpuState) -> Result<(), Exception> {
    let pae = state.cr4 & Cr4::PAE.bits() != 0;
    let long_cs = state.segment(SegmentRegister::Cs).access & Segment::LONG != 0;
    let tss16 = matches!(state.tr.kind(), system_type::TSS16_AVAILABLE | system_type::TSS16_BUSY)
        && !state.tr.is_unusable();
    if !pae || long_cs || tss16 { Err(Exception::GP0) } else { Ok(()) }
}

/// Paging goes off: not from 64-bit code, not with PCIDs.
fn check_leave_paging(state: &CpuState) -> Result<(), Exception> {
    let pcid = state.cr4 & Cr4::PCIDE.bits() != 0;
    if state.is_64bit_code() || pcid { Err(Exception::GP0) } else { Ok(()) }
}

fn write_cr3(core: &mut dyn Core, value: u64) -> Result<(), Exception> {
    let state = core.state();
    let pcide = state.cr4 & Cr4::PCIDE.bits() != 0;
    let keep = pcide && value & CR3_KEEP != 0;
    let new = if pcide { value & !CR3_KEEP } else { value };
    if new >> core.model().physical_bits != 0 {
        return Err(Exception::GP0);
    }
    if uses_pdptes(state) {
        let pdpte = read_pdptes(core, new)?;
        core.state_mut().pdpte = pdpte;
    }
    core.state_mut().cr3 = new;
    core.flush_tlb(match (pcide, keep) {
        (_, true) => Flush::Nothing,
        (true, _) => Flush::Pcid((new & CR3_PCID) as u16),
        _ => Flush::NonGlobal,
    });
    Ok(())
}

/// Whether PAE paging is on, which keeps four entries in registers.
fn uses_pdptes(state: &CpuState) -> bool {
    state.is_paging() && state.cr4 & Cr4::PAE.bits() != 0 && !state.is_long_mode()
}

/// The page-directory-pointer entries CR3 value `cr3` names; #GP(0) if one has reserved bits set.
fn read_pdptes(core: &mut dyn Core, cr3: u64) -> Result<[u64; 4], Exception> {
    let table = cr3 & 0xffff_ffe0;
    let reserved = 0b1_1110_0110 | !0 << core.model().physical_bits;
    let mut entries = [0; 4];
    for (i, entry) in entries.iter_mut().enumerate() {
        *entry = core.read_physical_u64(table + i as u64 * 8);
        if *entry & Pte::PRESENT != 0 && *entry & reserved != 0 {
            return Err(Exception::GP0);
        }
    }
    Ok(entries)
}

/// Loads the page-directory-pointer entries if PAE paging is on; a task switch changed CR3.
pub(super) fn load_pdptes(core: &mut dyn Core) -> Result<(), Exception> {
    if uses_pdptes(core.state()) {
        let cr3 = core.state().cr3;
        let pdpte = read_pdptes(core, cr3)?;
        core.state_mut().pdpte = pdpte;
    }
    Ok(())
}

fn write_cr4(core: &mut dyn Core, value: u64) -> Result<(), Exception> {
    let state = core.state();
    if value & !core.model().cr4_supported() != 0 {
        return Err(Exception::GP0);
    }
    let (old, new) = (Cr4::from_bits_retain(state.cr4), Cr4::from_bits_retain(value));
    let long = state.is_long_mode();
    let sets_pcide = new.contains(Cr4::PCIDE) && !old.contains(Cr4::PCIDE);
    if long && !new.contains(Cr4::PAE) || sets_pcide && (!long || state.cr3 & CR3_PCID != 0) {
        return Err(Exception::GP0);
    }
    let changed = old ^ new;
    let paging_bits = Cr4::PGE | Cr4::PAE | Cr4::PSE | Cr4::SMEP;
    if state.is_paging() && new.contains(Cr4::PAE) && !long && changed.intersects(paging_bits) {
        let cr3 = core.state().cr3;
        let pdpte = read_pdptes(core, cr3)?;
        core.state_mut().pdpte = pdpte;
    }
    core.state_mut().cr4 = new.bits();
    if changed.intersects(paging_bits | Cr4::PCIDE | Cr4::SMAP) {
        core.flush_tlb(Flush::All);
    }
    core.mode_changed();
    Ok(())
}

/// CLTS.
pub(crate) fn clts(core: &mut dyn Core) -> Result<(), Exception> {
    require_cpl0(core.state())?;
    core.state_mut().cr0 &= !Cr0::TS.bits();
    core.mode_changed();
    Ok(())
}

/// LMSW: the low four bits of CR0; PE can be set, not cleared.
pub(crate) fn lmsw(core: &mut dyn Core, value: u16) -> Result<(), Exception> {
    require_cpl0(core.state())?;
    let old = core.state().cr0;
    let low = u64::from(value) & 0xf | old & Cr0::PE.bits();
    write_cr0(core, old & !0xf | low)
}

/// SMSW: CR0, to be cut to the operand size.
pub(crate) fn smsw(core: &mut dyn Core) -> Result<u64, Exception> {
    check_umip(core.state())?;
    Ok(core.state().cr0)
}

/// WRMSR to EFER.
pub(super) fn write_efer(core: &mut dyn Core, value: u64) -> Result<(), Exception> {
    let state = core.state();
    let old = state.msrs.efer;
    let changes_lme = (old ^ value) & Efer::LME.bits() != 0;
    if value & !core.model().efer_supported() != 0 || changes_lme && state.is_paging() {
        return Err(Exception::GP0);
    }
    // LMA only follows LME and CR0.PG.
    let lma = Efer::LMA.bits();
    let new = value & !lma | old & lma;
    core.state_mut().msrs.efer = new;
    if (old ^ new) & Efer::NXE.bits() != 0 {
        core.flush_tlb(Flush::All);
    }
    core.mode_changed();
    Ok(())
}

/// XGETBV: ECX 0 is XCR0; 1, if the model has it, XCR0 limited to what is in use.
pub(crate) fn xgetbv(core: &mut dyn Core) -> Result<u64, Exception> {
    use arch::x86::cpuid::Feature;
    let state = core.state();
    require_osxsave(state)?;
    match state.gpr[Gpr::Rcx as usize] as u32 {
        0 => Ok(state.xcr0),
        1 if core.model().has(Feature::Xgetbv1) => Ok(state.xcr0 & super::xsave::in_use(state)),
        _ => Err(Exception::GP0),
    }
}

/// XSETBV of `value` (EDX:EAX) to the register ECX names.
pub(crate) fn xsetbv(core: &mut dyn Core, value: u64) -> Result<(), Exception> {
    let state = core.state();
    require_osxsave(state)?;
    require_cpl0(state)?;
    let index = state.gpr[Gpr::Rcx as usize] as u32;
    let new = Xcr0::from_bits_retain(value);
    let avx_alone = new.contains(Xcr0::AVX) && !new.contains(Xcr0::SSE);
    let unknown = value & !core.model().xcr0_supported() != 0;
    if index != 0 || unknown || !new.contains(Xcr0::X87) || avx_alone {
        return Err(Exception::GP0);
    }
    core.state_mut().xcr0 = value;
    core.mode_changed();
    Ok(())
}

/// #UD without CR4.OSXSAVE.
pub(super) fn require_osxsave(state: &CpuState) -> Result<(), Exception> {
    if state.cr4 & Cr4::OSXSAVE.bits() != 0 { Ok(()) } else { Err(Exception::UD) }
}
