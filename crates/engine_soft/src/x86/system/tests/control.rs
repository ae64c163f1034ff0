use super::*;
use arch::x86::msr;

fn set_ecx(core: &mut TestCore, value: u32) {
    core.state.gpr[Gpr::Rcx as usize] = u64::from(value);
}

fn write_to(index: u32, value: u64) -> impl FnOnce(&mut TestCore) -> Result<(), Exception> {
    move |core| {
        set_ecx(core, index);
        let result = wrmsr(core, value);
        core.state.gpr[Gpr::Rcx as usize] = 0;
        result
    }
}

fn read_from(core: &mut TestCore, index: u32) -> Result<u64, Exception> {
    set_ecx(core, index);
    let value = rdmsr(core);
    core.state.gpr[Gpr::Rcx as usize] = 0;
    value
}

#[test]
fn cr0_refuses_impossible_combinations() {
    let mut core = TestCore::protected(0);
    for value in [Cr0::PG.bits(), (Cr0::PE | Cr0::NW).bits(), 1 << 32 | 1] {
        refused(&mut core, Exception::GP0, |c| mov_to_cr(c, 0, value));
    }
    mov_to_cr(&mut core, 0, Cr0::PE.bits() | 1 << 10).unwrap();
    assert_eq!(core.state.cr0, (Cr0::PE | Cr0::ET).bits(), "reserved bits are ignored, ET is fixed");
    refused(&mut TestCore::protected(3), Exception::GP0, |c| mov_to_cr(c, 0, 1));
    refused(&mut core, Exception::UD, |c| mov_to_cr(c, 5, 0));
}

#[test]
fn long_mode_is_entered_by_paging_and_left_only_from_compatibility_mode() {
    let mut core = TestCore::protected(0);
    write_to(msr::EFER, Efer::LME.bits())(&mut core).unwrap();
    let paged = (Cr0::PE | Cr0::PG).bits();
    refused(&mut core, Exception::GP0, |c| mov_to_cr(c, 0, paged));
    mov_to_cr(&mut core, 4, Cr4::PAE.bits()).unwrap();
    mov_to_cr(&mut core, 0, paged).unwrap();
    assert!(core.state.is_long_mode() && !core.state.is_64bit_code());
    assert!(core.flushes.contains(&Flush::All));
    refused(&mut core, Exception::GP0, |c| mov_to_cr(c, 4, 0));
    refused(&mut core, Exception::GP0, write_to(msr::EFER, 0));
    *core.segment_mut(SegmentRegister::Cs) = core.decoded(CODE0_64);
    refused(&mut core, Exception::GP0, |c| mov_to_cr(c, 0, Cr0::PE.bits()));
    *core.segment_mut(SegmentRegister::Cs) = core.decoded(CODE0);
    mov_to_cr(&mut core, 0, Cr0::PE.bits()).unwrap();
    assert!(!core.state.is_long_mode());
    assert_eq!(core.state.msrs.efer, Efer::LME.bits());
}

#[test]
fn a_16bit_tss_keeps_long_mode_off() {
    let mut core = TestCore::protected(0);
    core.state.tr.access = 0x83;
    core.state.cr4 = Cr4::PAE.bits();
    core.state.msrs.efer = Efer::LME.bits();
    refused(&mut core, Exception::GP0, |c| mov_to_cr(c, 0, (Cr0::PE | Cr0::PG).bits()));
}

#[test]
fn pae_paging_loads_and_checks_its_pointers() {
    let mut core = TestCore::protected(0);
    core.state.cr4 = Cr4::PAE.bits();
    core.state.cr3 = 0xb000;
    core.put(0xb000, 0xc001, 8);
    core.put(0xb008, 0xfff0_0000_0000_0002, 8);
    mov_to_cr(&mut core, 0, (Cr0::PE | Cr0::PG).bits()).unwrap();
    assert_eq!(core.state.pdpte[0], 0xc001);
    core.put(0xb020, 0x3, 8);
    refused(&mut core, Exception::GP0, |c| mov_to_cr(c, 3, 0xb020));
    core.put(0xb020, 1 << 52 | 1, 8);
    refused(&mut core, Exception::GP0, |c| mov_to_cr(c, 3, 0xb020));
    core.put(0xb020, 0xd001, 8);
    mov_to_cr(&mut core, 3, 0xb020).unwrap();
    assert_eq!(core.state.pdpte[0], 0xd001);
}

#[test]
fn cr4_allows_what_the_model_has() {
    let mut core = TestCore::protected(0);
    for bit in [12, 13, 15, 19, 22, 23, 24, 40] {
        refused(&mut core, Exception::GP0, |c| mov_to_cr(c, 4, 1 << bit));
    }
    mov_to_cr(&mut core, 4, (Cr4::OSXSAVE | Cr4::SMEP | Cr4::UMIP | Cr4::FSGSBASE).bits()).unwrap();
    core.model = CpuModel::named("x86-64-v2").unwrap();
    refused(&mut core, Exception::GP0, |c| mov_to_cr(c, 4, Cr4::OSXSAVE.bits()));
}

#[test]
fn pcids_need_long_mode_and_a_clear_cr3() {
    let pcide = (Cr4::PCIDE | Cr4::PAE).bits();
    refused(&mut TestCore::protected(0), Exception::GP0, |c| mov_to_cr(c, 4, pcide));
    let mut core = TestCore::long(0);
    core.state.cr3 = 0x1001;
    refused(&mut core, Exception::GP0, |c| mov_to_cr(c, 4, pcide));
    refused(&mut core, Exception::GP0, |c| mov_to_cr(c, 3, 1 << 63));
    mov_to_cr(&mut core, 3, 0x1000).unwrap();
    mov_to_cr(&mut core, 4, pcide).unwrap();
    core.flushes.clear();
    mov_to_cr(&mut core, 3, 1 << 63 | 0x2005).unwrap();
    mov_to_cr(&mut core, 3, 0x3006).unwrap();
    assert_eq!(core.state.cr3, 0x3006);
    assert_eq!(core.flushes, [Flush::Nothing, Flush::Pcid(6)]);
    refused(&mut core, Exception::GP0, |c| mov_to_cr(c, 3, 1 << 46));
    refused(&mut core, Exception::GP0, |c| mov_to_cr(c, 0, Cr0::PE.bits()));
}

#[test]
fn cr8_is_the_task_priority_of_the_local_apic() {
    let mut core = TestCore::long(0);
    mov_to_cr(&mut core, 8, 9).unwrap();
    assert_eq!(mov_from_cr(&mut core, 8), Ok(9));
    refused(&mut core, Exception::GP0, |c| mov_to_cr(c, 8, 16));
    refused(&mut TestCore::long(3), Exception::GP0, |c| mov_from_cr(c, 8));
}

#[test]
fn lmsw_cannot_clear_pe_and_clts_clears_ts() {
    let mut core = TestCore::protected(0);
    lmsw(&mut core, 0xfffe).unwrap();
    assert_eq!(core.state.cr0 & 0xf, 0xf);
    clts(&mut core).unwrap();
    assert_eq!(smsw(&mut core).unwrap() & 0xf, 0x7);
}

#[test]
fn xcr0_takes_x87_and_avx_only_with_sse() {
    let mut core = TestCore::protected(0);
    refused(&mut core, Exception::UD, |c| xsetbv(c, 7));
    core.state.cr4 |= Cr4::OSXSAVE.bits();
    for value in [0, 2, 5, 15, 0xe7] {
        refused(&mut core, Exception::GP0, |c| xsetbv(c, value));
    }
    xsetbv(&mut core, 7).unwrap();
    assert_eq!(xgetbv(&mut core), Ok(7));
    set_ecx(&mut core, 1);
    core.state.ymm[3].0[20] = 1;
    assert_eq!(xgetbv(&mut core).unwrap() & 6, 4);
    set_ecx(&mut core, 2);
    refused(&mut core, Exception::GP0, |c| xgetbv(c));
    refused(&mut core, Exception::GP0, |c| xsetbv(c, 7));
}

#[test]
fn addresses_in_msrs_must_be_canonical() {
    let mut core = TestCore::long(0);
    for index in [
        msr::LSTAR,
        msr::CSTAR,
        msr::FS_BASE,
        msr::GS_BASE,
        msr::KERNEL_GS_BASE,
        msr::SYSENTER_EIP,
        msr::SYSENTER_ESP,
    ] {
        refused(&mut core, Exception::GP0, write_to(index, 1 << 47));
        write_to(index, 0xffff_8000_0000_1000)(&mut core).unwrap();
        assert_eq!(read_from(&mut core, index), Ok(0xffff_8000_0000_1000));
    }
}

#[test]
fn reserved_bits_and_types_in_msrs_fault() {
    let mut core = TestCore::long(0);
    for (index, value) in [
        (msr::EFER, 1 << 1),
        (msr::PAT, 0x02),
        (msr::MTRR_DEF_TYPE, 0x2),
        (msr::MTRR_DEF_TYPE, 1 << 12),
        (msr::MTRR_PHYS_BASE0, 1 << 46),
        (msr::MTRR_PHYS_BASE0 + 1, 1 << 5),
        (msr::MTRR_FIX_4K_C0000 + 7, 0x0300),
        (msr::SPEC_CTRL, 1 << 2),
        (msr::PRED_CMD, 2),
        (msr::TSC_AUX, 1 << 32),
        (msr::XSS, 1),
        (msr::DEBUGCTL, 1 << 2),
        (msr::MISC_ENABLE, 1 << 63),
        (msr::ARCH_CAPABILITIES, 0),
        (msr::MTRR_CAP, 0),
        (msr::MCG_STATUS, 1),
    ] {
        refused(&mut core, Exception::GP0, write_to(index, value));
    }
    write_to(msr::PRED_CMD, 1)(&mut core).unwrap();
    assert_eq!(read_from(&mut core, msr::PRED_CMD), Err(Exception::GP0));
    write_to(msr::MTRR_FIX_4K_C0000 + 7, 0x0606_0606_0606_0606)(&mut core).unwrap();
    assert_eq!(core.state.msrs.mtrr_fixed[10], 0x0606_0606_0606_0606);
}

#[test]
fn unknown_msrs_are_the_buss_business() {
    let mut core = TestCore::long(0);
    assert_eq!(read_from(&mut core, msr::APIC_BASE), Ok(0xfee0_0900));
    assert_eq!(read_from(&mut core, 0x1234_5678), Err(Exception::GP0));
    refused(&mut core, Exception::GP0, write_to(0x1234_5678, 0));
    assert_eq!(read_from(&mut core, msr::PLATFORM_INFO), Ok(0));
    assert_eq!(read_from(&mut core, msr::ARCH_CAPABILITIES).unwrap() & 3, 3);
    let mut user = TestCore::long(3);
    set_ecx(&mut user, msr::TSC);
    refused(&mut user, Exception::GP0, |c| rdmsr(c));
}

#[test]
fn msrs_of_absent_features_fault() {
    let mut core = TestCore::long(0);
    core.model = core.model.clone().without(arch::x86::cpuid::Feature::SpecCtrl);
    assert_eq!(read_from(&mut core, msr::SPEC_CTRL), Err(Exception::GP0));
    refused(&mut core, Exception::GP0, write_to(msr::PRED_CMD, 1));
    core.model = TestCore::long(0).model;
    write_to(msr::SPEC_CTRL, 1 << 10)(&mut core).unwrap();
    core.model = core.model.clone().without(arch::x86::cpuid::Feature::BhiCtrl);
    refused(&mut core, Exception::GP0, write_to(msr::SPEC_CTRL, 1 << 10));
}

#[test]
fn writing_the_tsc_moves_tsc_adjust_and_the_other_way_round() {
    let mut core = TestCore::long(0);
    write_to(msr::TSC, 5000)(&mut core).unwrap();
    assert_eq!(rdtsc(&mut core), Ok(5000));
    assert_eq!(read_from(&mut core, msr::TSC_ADJUST), Ok(4000));
    assert_eq!(*core.bus.tsc_offset.lock().unwrap(), Some(4000));
    write_to(msr::TSC_ADJUST, 0)(&mut core).unwrap();
    assert_eq!(read_from(&mut core, msr::TSC), Ok(1000));
}

#[test]
fn rdtsc_can_be_kept_from_users() {
    let mut core = TestCore::long(3);
    core.state.msrs.tsc_aux = 7;
    assert_eq!(rdtscp(&mut core), Ok((1000, 7)));
    core.state.cr4 |= Cr4::TSD.bits();
    refused(&mut core, Exception::GP0, |c| rdtsc(c));
    refused(&mut core, Exception::GP0, |c| rdpmc(c));
    refused(&mut core, Exception::UD, |c| rdpid(c));
}

#[test]
fn debug_registers_have_aliases_and_fixed_bits() {
    let mut core = TestCore::long(0);
    mov_to_dr(&mut core, 5, 0xffff_ffff).unwrap();
    assert_eq!(core.state.dr[7], 0xffff_27ff);
    core.state.dr[7] = 0x400;
    mov_to_dr(&mut core, 4, 0).unwrap();
    assert_eq!(mov_from_dr(&mut core, 6), Ok(0xffff_0ff0));
    refused(&mut core, Exception::GP0, |c| mov_to_dr(c, 7, 1 << 32));
    core.state.cr4 |= Cr4::DE.bits();
    refused(&mut core, Exception::UD, |c| mov_from_dr(c, 4));
    refused(&mut TestCore::long(3), Exception::GP0, |c| mov_from_dr(c, 0));
}

#[test]
fn breakpoints_hit_by_kind_length_and_overlap() {
    let mut core = TestCore::long(0);
    core.state.dr[0] = 0x1000;
    core.state.dr[1] = 0x2000;
    core.state.dr[2] = 0x3000;
    // 0: execute, 1: write of 4 bytes, 2: read/write of 8 bytes; 2 is enabled globally.
    core.state.dr[7] = 0x400 | 1 | 1 << 2 | 2 << 4 | 0b1101 << 20 | 0b1011 << 24;
    assert!(any_enabled(&core.state));
    let hit = |linear, bytes, watch| hits(&core.state, linear, bytes, watch);
    assert_eq!(hit(0x1000, 1, Watch::Execute), 1);
    assert_eq!(hit(0x1001, 1, Watch::Execute), 0);
    assert_eq!(hit(0x1fff, 2, Watch::Write), 2);
    assert_eq!(hit(0x2004, 4, Watch::Write), 0);
    assert_eq!(hit(0x2000, 4, Watch::Read), 0);
    assert_eq!(hit(0x3007, 1, Watch::Read), 4);
    assert_eq!(hit(0x2ffe, 4, Watch::Write), 4);
    core.state.dr[6] |= 3;
    debug_exception(&mut core, 4 | DR6_BS);
    assert_eq!(core.state.dr[6] & 0x400f, 0x4004);
}

#[test]
fn invalidation_instructions_say_what_ends() {
    let mut core = TestCore::long(0);
    invlpg(&mut core, 0x1000).unwrap();
    invlpg(&mut core, 1 << 47).unwrap();
    refused(&mut core, Exception::GP0, |c| invpcid(c, 4, [0, 0]));
    refused(&mut core, Exception::GP0, |c| invpcid(c, 1, [5, 0]));
    core.state.cr4 |= Cr4::PCIDE.bits();
    refused(&mut core, Exception::GP0, |c| invpcid(c, 0, [1 << 12, 0]));
    refused(&mut core, Exception::GP0, |c| invpcid(c, 0, [5, 1 << 47]));
    invpcid(&mut core, 0, [5, 0x2000]).unwrap();
    invpcid(&mut core, 2, [1 << 12, 0]).unwrap();
    let page = Flush::PcidPage { pcid: 5, linear: 0x2000 };
    assert_eq!(core.flushes, [Flush::Page(0x1000), page, Flush::All]);
    refused(&mut TestCore::long(3), Exception::GP0, |c| invlpg(c, 0));
    refused(&mut TestCore::long(3), Exception::GP0, |c| wbinvd(c));
}

#[test]
fn cpuid_answers_in_four_registers() {
    let mut core = TestCore::long(3);
    core.state.gpr[..4].fill(!0);
    core.state.gpr[0] = 0;
    cpuid(&mut core);
    assert_eq!(core.state.gpr[Gpr::Rbx as usize], u64::from(u32::from_le_bytes(*b"Genu")));
    assert_eq!(core.state.gpr[Gpr::Rdx as usize], u64::from(u32::from_le_bytes(*b"ineI")));
}
