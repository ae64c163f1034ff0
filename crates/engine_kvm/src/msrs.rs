//! MSRs: which of them are part of a vCPU's state, and which the kernel leaves to us.
//!
//! The TSC's are ours because the board's clocks count in it and must be told; those of kvm-clock because the board has
//! that clock. All that KVM does not know is asked of the board.

use arch::x86::msr;
use arch::x86::state::Msrs;
use engine::Error;
use kvm_ioctls::{MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VmFd};

use crate::refused;

/// Calls `with` for each MSR that the kernel keeps and its place in the state. EFER is a control register to KVM, and
/// TSC_ADJUST is ours.
pub fn each(msrs: &mut Msrs, mut with: impl FnMut(u32, &mut u64)) {
    let Msrs {
        efer: _,
        star,
        lstar,
        cstar,
        sfmask,
        kernel_gs_base,
        tsc_aux,
        sysenter_cs,
        sysenter_esp,
        sysenter_eip,
        pat,
        misc_enable,
        spec_ctrl,
        tsc_adjust: _,
        debugctl,
        xss,
        mtrr_def_type,
        mtrr_fixed,
        mtrr_variable,
    } = msrs;
    for (index, place) in [
        (msr::STAR, star),
        (msr::LSTAR, lstar),
        (msr::CSTAR, cstar),
        (msr::SFMASK, sfmask),
        (msr::KERNEL_GS_BASE, kernel_gs_base),
        (msr::TSC_AUX, tsc_aux),
        (msr::SYSENTER_CS, sysenter_cs),
        (msr::SYSENTER_ESP, sysenter_esp),
        (msr::SYSENTER_EIP, sysenter_eip),
        (msr::PAT, pat),
        (msr::MISC_ENABLE, misc_enable),
        (msr::SPEC_CTRL, spec_ctrl),
        (msr::DEBUGCTL, debugctl),
        (msr::XSS, xss),
        (msr::MTRR_DEF_TYPE, mtrr_def_type),
    ] {
        with(index, place);
    }
    let fixed = [msr::MTRR_FIX_64K_00000, msr::MTRR_FIX_16K_80000, msr::MTRR_FIX_16K_A0000]
        .into_iter()
        .chain(msr::MTRR_FIX_4K_C0000..msr::MTRR_FIX_4K_C0000 + 8);
    fixed.zip(mtrr_fixed).for_each(|(index, place)| with(index, place));
    (msr::MTRR_PHYS_BASE0..).zip(mtrr_variable).for_each(|(index, place)| with(index, place));
}

/// Leaves to us: writes of the TSC, its adjustment, and all of KVM's own MSRs.
pub fn filter(vm: &VmFd) -> Result<(), Error> {
    let both = MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE;
    // A zero bit is an access that is not the kernel's to answer.
    let ours = &[0u8];
    let range = |flags, base, msr_count| MsrFilterRange { flags, base, msr_count, bitmap: ours };
    let ranges = [
        range(MsrFilterRangeFlags::WRITE, msr::TSC, 1),
        range(both, msr::KVM_WALL_CLOCK, 2),
        range(both, msr::TSC_ADJUST, 1),
        range(both, msr::KVM_WALL_CLOCK_NEW, 8),
    ];
    vm.set_msr_filter(MsrFilterDefaultAction::ALLOW, &ranges).map_err(refused("choose msrs"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_msr_of_the_state_has_a_number_of_its_own() {
        let mut msrs = Msrs::default();
        let mut seen = Vec::new();
        each(&mut msrs, |index, place| {
            assert_eq!(std::mem::replace(place, 1), 0, "{index:#x} shares its place");
            seen.push(index);
        });
        assert_eq!(size_of::<Msrs>(), (seen.len() + 2) * 8, "all but efer and tsc_adjust");
        assert!(seen.contains(&0x26f) && seen.contains(&0x20f));
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len() + 2, size_of::<Msrs>() / 8);
    }
}
