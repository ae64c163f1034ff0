//! RDMSR and WRMSR (SDM vol. 4). MSRs of the local APIC, kvm-clock and anything unknown go to the bus.

use arch::x86::cpuid::Feature;
use arch::x86::paging::is_canonical;
use arch::x86::{Exception, Gpr, SegmentRegister, msr};
use engine::MsrResult;

use super::{Core, control, mtrr, require_cpl0};

/// MISC_ENABLE bits that always read as one: no branch trace store, no PEBS.
const MISC_ENABLE_FIXED: u64 = 1 << 11 | 1 << 12;
/// MISC_ENABLE bits a guest may set: fast strings, TCC, EMON, EIST, MONITOR, xTPR; and, without effect,
/// the CPUID limit and XD disable, which firmware toggles.
const MISC_ENABLE_WRITABLE: u64 =
    1 | 1 << 3 | 1 << 7 | MISC_ENABLE_FIXED | 1 << 16 | 1 << 18 | 1 << 22 | 1 << 23 | 1 << 34;
/// SPEC_CTRL: IBRS; STIBP, which processors without it must accept too.
const SPEC_CTRL_WRITABLE: u64 = 0b11;
/// SPEC_CTRL with `bhi_ctrl`: BHI_DIS_S. There is no branch history to keep apart.
const SPEC_CTRL_BHI_DIS_S: u64 = 1 << 10;
/// DEBUGCTL: LBR and BTF are accepted; there is no branch trace, so they read as zero.
const DEBUGCTL_IGNORED: u64 = 0b11;
/// A microcode revision in the upper half of BIOS_SIGN_ID, as CPUID leaf 1 leaves it there.
const MICROCODE_REVISION: u64 = 1 << 32;
/// FEATURE_CONTROL: locked, with everything off.
const FEATURE_CONTROL_LOCKED: u64 = 1;

/// MSRs that guests read without expecting #GP, and the constant they read: nothing there to tell.
/// Writing back the same value is accepted.
const CONSTANT: &[(u32, u64)] = &[
    (msr::PLATFORM_ID, 0),
    (msr::EBL_CR_POWERON, 0),
    (msr::SMI_COUNT, 0),
    (msr::FSB_FREQ, 0),
    (msr::PLATFORM_INFO, 0),
    (msr::MISC_FEATURES_ENABLES, 0),
    (msr::MCG_CAP, 0),
    (msr::MCG_STATUS, 0),
    (msr::PERF_STATUS, 0),
    (msr::PERF_CTL, 0),
    (msr::THERM_STATUS, 0),
    (msr::LAST_BRANCH_FROM_IP, 0),
    (msr::LAST_BRANCH_TO_IP, 0),
    (msr::LAST_INT_FROM_IP, 0),
    (msr::LAST_INT_TO_IP, 0),
    (msr::POWER_CTL, 0),
    (msr::RAPL_POWER_UNIT, 0),
    (msr::PKG_ENERGY_STATUS, 0),
    (msr::DRAM_ENERGY_STATUS, 0),
    (msr::PP0_ENERGY_STATUS, 0),
    (msr::PP1_ENERGY_STATUS, 0),
    (msr::FEATURE_CONTROL, FEATURE_CONTROL_LOCKED),
    (msr::MTRR_CAP, mtrr::CAPABILITIES),
];

/// RDMSR of the register ECX names: the value for EDX:EAX.
pub(crate) fn rdmsr(core: &mut dyn Core) -> Result<u64, Exception> {
    require_cpl0(core.state())?;
    let index = core.state().gpr[Gpr::Rcx as usize] as u32;
    read_msr(core, index)
}

/// WRMSR of `value` (EDX:EAX) to the register ECX names.
pub(crate) fn wrmsr(core: &mut dyn Core, value: u64) -> Result<(), Exception> {
    require_cpl0(core.state())?;
    let index = core.state().gpr[Gpr::Rcx as usize] as u32;
    write_msr(core, index, value)
}

fn offered(core: &dyn Core, feature: Feature) -> Result<(), Exception> {
    if core.model().has(feature) { Ok(()) } else { Err(Exception::GP0) }
}

fn read_msr(core: &mut dyn Core, index: u32) -> Result<u64, Exception> {
    let state = core.state();
    let m = &state.msrs;
    Ok(match index {
        msr::TSC => core.tsc(),
        msr::TSC_ADJUST => m.tsc_adjust,
        msr::EFER => m.efer,
        msr::STAR => m.star,
        msr::LSTAR => m.lstar,
        msr::CSTAR => m.cstar,
        msr::SFMASK => m.sfmask,
        msr::FS_BASE => state.segment(SegmentRegister::Fs).base,
        msr::GS_BASE => state.segment(SegmentRegister::Gs).base,
        msr::KERNEL_GS_BASE => m.kernel_gs_base,
        msr::TSC_AUX => offered(core, Feature::Rdtscp).map(|()| m.tsc_aux)?,
        msr::SYSENTER_CS => m.sysenter_cs,
        msr::SYSENTER_ESP => m.sysenter_esp,
        msr::SYSENTER_EIP => m.sysenter_eip,
        msr::MISC_ENABLE => m.misc_enable | MISC_ENABLE_FIXED,
        msr::SPEC_CTRL => offered(core, Feature::SpecCtrl).map(|()| m.spec_ctrl)?,
        msr::DEBUGCTL => m.debugctl,
        msr::XSS => offered(core, Feature::Xsaves).map(|()| m.xss)?,
        msr::ARCH_CAPABILITIES => {
            offered(core, Feature::ArchCapabilities)?;
            core.model().arch_capabilities()
        }
        msr::BIOS_SIGN_ID => MICROCODE_REVISION,
        // Write-only: a command register reads as #GP.
        msr::PRED_CMD => return Err(Exception::GP0),
        _ => return read_other(core, index),
    })
}

fn read_other(core: &mut dyn Core, index: u32) -> Result<u64, Exception> {
    if let Some(value) = mtrr::read(&core.state().msrs, index) {
        return Ok(value);
    }
    if let Some((_, value)) = CONSTANT.iter().find(|row| row.0 == index) {
        return Ok(*value);
    }
    match core.bus().msr_read(core.vcpu_index(), index) {
        MsrResult::Done(value) => Ok(value),
        MsrResult::Fault => Err(Exception::GP0),
    }
}

pub(super) fn require(condition: bool) -> Result<(), Exception> {
    if condition { Ok(()) } else { Err(Exception::GP0) }
}

/// `value` if it is canonical.
fn canonical(value: u64) -> Result<u64, Exception> {
    require(is_canonical(value)).map(|()| value)
}

/// `value` if it has no bits outside of `mask`.
pub(super) fn within(value: u64, mask: u64) -> Result<u64, Exception> {
    require(value & !mask == 0).map(|()| value)
}

fn write_msr(core: &mut dyn Core, index: u32, value: u64) -> Result<(), Exception> {
    match index {
        msr::TSC => write_tsc(core, value),
        msr::TSC_ADJUST => {
            let delta = value.wrapping_sub(core.state().msrs.tsc_adjust);
            adjust_tsc(core, delta);
        }
        msr::EFER => return control::write_efer(core, value),
        msr::FS_BASE => return write_base(core, SegmentRegister::Fs, value),
        msr::GS_BASE => return write_base(core, SegmentRegister::Gs, value),
        msr::STAR => core.state_mut().msrs.star = value,
        msr::LSTAR => core.state_mut().msrs.lstar = canonical(value)?,
        msr::CSTAR => core.state_mut().msrs.cstar = canonical(value)?,
        msr::SFMASK => core.state_mut().msrs.sfmask = value & 0xffff_ffff,
        msr::KERNEL_GS_BASE => core.state_mut().msrs.kernel_gs_base = canonical(value)?,
        msr::TSC_AUX => {
            offered(core, Feature::Rdtscp)?;
            core.state_mut().msrs.tsc_aux = within(value, 0xffff_ffff)?;
        }
        msr::SYSENTER_CS => core.state_mut().msrs.sysenter_cs = value & 0xffff_ffff,
        msr::SYSENTER_ESP => core.state_mut().msrs.sysenter_esp = canonical(value)?,
        msr::SYSENTER_EIP => core.state_mut().msrs.sysenter_eip = canonical(value)?,
        msr::MISC_ENABLE => core.state_mut().msrs.misc_enable = within(value, MISC_ENABLE_WRITABLE)?,
        msr::SPEC_CTRL => {
            offered(core, Feature::SpecCtrl)?;
            let bhi = if core.model().has(Feature::BhiCtrl) { SPEC_CTRL_BHI_DIS_S } else { 0 };
            core.state_mut().msrs.spec_ctrl = within(value, SPEC_CTRL_WRITABLE | bhi)?;
        }
        msr::PRED_CMD => {
            offered(core, Feature::SpecCtrl)?;
            within(value, 1)?;
        }
        msr::DEBUGCTL => require(value & !DEBUGCTL_IGNORED == 0)?,
        msr::XSS => {
            offered(core, Feature::Xsaves)?;
            within(value, 0)?;
        }
        msr::ARCH_CAPABILITIES => return Err(Exception::GP0),
        msr::BIOS_SIGN_ID | msr::BIOS_UPDATE_TRIGGER => {}
        _ => return write_other(core, index, value),
    }
    Ok(())
}

fn write_other(core: &mut dyn Core, index: u32, value: u64) -> Result<(), Exception> {
    let physical_bits = core.model().physical_bits;
    if let Some(result) = mtrr::write(&mut core.state_mut().msrs, index, value, physical_bits) {
        return result;
    }
    if let Some((_, constant)) = CONSTANT.iter().find(|row| row.0 == index) {
        let writable = !matches!(index, msr::MTRR_CAP | msr::FEATURE_CONTROL);
        return require(writable && value == *constant);
    }
    match core.bus().msr_write(core.vcpu_index(), index, value) {
        MsrResult::Done(_) => Ok(()),
        MsrResult::Fault => Err(Exception::GP0),
    }
}

fn write_base(core: &mut dyn Core, register: SegmentRegister, value: u64) -> Result<(), Exception> {
    core.state_mut().segment_mut(register).base = canonical(value)?;
    core.mode_changed();
    Ok(())
}

/// A write to the TSC moves TSC_ADJUST by as much.
fn write_tsc(core: &mut dyn Core, value: u64) {
    let delta = value.wrapping_sub(core.tsc());
    adjust_tsc(core, delta);
}

fn adjust_tsc(core: &mut dyn Core, delta: u64) {
    let state = core.state_mut();
    state.tsc_offset = state.tsc_offset.wrapping_add(delta);
    state.msrs.tsc_adjust = state.msrs.tsc_adjust.wrapping_add(delta);
    let offset = state.tsc_offset;
    core.bus().tsc_changed(core.vcpu_index(), offset);
}
