use super::*;
use arch::x86::state::FxImage;

const AREA: u64 = 0xc000;
const QWORD: OperandSize = OperandSize::Qword;

/// A core with all of XCR0 on and something in every component.
fn filled() -> TestCore {
    let mut core = TestCore::long(3);
    core.state.cr4 |= (Cr4::OSFXSR | Cr4::OSXSAVE).bits();
    core.state.xcr0 = 7;
    request(&mut core, 7);
    for (i, register) in core.state.ymm.iter_mut().enumerate() {
        register.0 = [i as u8 + 1; 32];
    }
    core.state.fx = FxImage {
        fcw: 0x37f,
        fsw: 0x3800,
        ftw: 0x80,
        fop: 0x123,
        fip: 0x1_2345_6789,
        fdp: 0x2_3456_789a,
        mxcsr: 0x1fa0,
        ..FxImage::default()
    };
    core.state.fx.st[0] = [9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 0, 0, 0, 0, 0, 0];
    core
}

fn request(core: &mut TestCore, mask: u64) {
    core.state.gpr[0] = mask & 0xffff_ffff;
    core.state.gpr[2] = mask >> 32;
}

/// The vector and x87 state alone.
fn fpu(core: &TestCore) -> ([arch::x86::state::Ymm; 16], FxImage) {
    (core.state.ymm, core.state.fx)
}

#[test]
fn every_save_is_restored_by_its_restore() {
    for (save, restore, cpl) in [
        (Save::Xsave, Restore::Xrstor, 3),
        (Save::Xsaveopt, Restore::Xrstor, 3),
        (Save::Xsavec, Restore::Xrstor, 3),
        (Save::Xsaves, Restore::Xrstors, 0),
    ] {
        let mut core = filled();
        if cpl == 0 {
            let ss = core.decoded(DATA0);
            *core.segment_mut(SegmentRegister::Ss) = ss;
        }
        let before = fpu(&core);
        xsave(&mut core, AREA, QWORD, save).unwrap();
        core.state.ymm = Default::default();
        core.state.fx = FxImage::default();
        xrstor(&mut core, AREA, QWORD, restore).unwrap();
        assert_eq!(fpu(&core), before, "{save:?}");
    }
}

#[test]
fn the_image_has_the_manuals_layout() {
    let mut core = filled();
    core.memory[AREA as usize..][..1024].fill(0xee);
    core.put(AREA + 512, 0, 8);
    xsave(&mut core, AREA, QWORD, Save::Xsave).unwrap();
    assert_eq!(core.peek(AREA, 8), 0x0123_0080_3800_037f);
    assert_eq!(core.peek(AREA + 8, 8), 0x1_2345_6789);
    assert_eq!(core.peek(AREA + 24, 8), 0xffff_0000_1fa0);
    assert_eq!(core.peek(AREA + 160 + 15 * 16, 1), 16);
    assert_eq!(core.peek(AREA + 416, 8), 0xeeee_eeee_eeee_eeee, "software's bytes are left alone");
    assert_eq!(core.peek(AREA + 512, 8), 7);
    assert_eq!(core.peek(AREA + 520, 8), 0xeeee_eeee_eeee_eeee, "XSAVE leaves XCOMP_BV");
    assert_eq!(core.peek(AREA + 576 + 255, 1), 16);
    assert_eq!(core.peek(AREA + 832, 1), 0xee);
}

#[test]
fn only_requested_components_are_saved_and_the_bitmap_keeps_the_others() {
    let mut core = filled();
    core.put(AREA + 512, 1, 8);
    request(&mut core, 4);
    xsave(&mut core, AREA, QWORD, Save::Xsave).unwrap();
    assert_eq!(core.peek(AREA + 512, 8), 5);
    assert_eq!((core.peek(AREA, 8), core.peek(AREA + 160, 8)), (0, 0));
    assert_eq!(core.peek(AREA + 24, 4), 0x1fa0, "MXCSR goes with AVX too");
}

#[test]
fn compaction_skips_what_is_in_its_initial_state() {
    let mut core = filled();
    core.state.ymm = Default::default();
    core.state.fx.mxcsr = FxImage::MXCSR_RESET;
    core.memory[AREA as usize..][..1024].fill(0xee);
    xsave(&mut core, AREA, QWORD, Save::Xsavec).unwrap();
    assert_eq!(core.peek(AREA + 512, 8), 1);
    assert_eq!(core.peek(AREA + 520, 8), 1 << 63 | 7);
    assert_eq!(core.peek(AREA + 24, 1), 0xee);
    core.state.fx.mxcsr = 0x1f81;
    xsave(&mut core, AREA, QWORD, Save::Xsavec).unwrap();
    assert_eq!(core.peek(AREA + 512, 8), 3, "a changed MXCSR counts as SSE");
}

#[test]
fn restoring_an_absent_component_initialises_it() {
    let mut core = filled();
    core.put(AREA + 24, 0x1f80, 4);
    xrstor(&mut core, AREA, QWORD, Restore::Xrstor).unwrap();
    assert_eq!(core.state.ymm, [Default::default(); 16]);
    assert_eq!((core.state.fx.fcw, core.state.fx.ftw, core.state.fx.mxcsr), (0x37f, 0, 0x1f80));
}

#[test]
fn restoring_sse_leaves_the_upper_halves() {
    let mut core = filled();
    request(&mut core, 2);
    core.put(AREA + 512, 2, 8);
    core.put(AREA + 24, 0x1f80, 4);
    xrstor(&mut core, AREA, QWORD, Restore::Xrstor).unwrap();
    assert_eq!(core.state.ymm[5].0[..16], [0; 16]);
    assert_eq!(core.state.ymm[5].0[16..], [6; 16]);
    assert_eq!(core.state.fx.fsw, 0x3800);
}

#[test]
fn bad_headers_and_mxcsr_are_refused() {
    for (at, value) in [(512, 8), (520, 1), (528, 1), (520, 1 << 63 | 8), (24, 0x1_0000)] {
        let mut core = filled();
        core.put(AREA + at, value, 8);
        refused(&mut core, Exception::GP0, |c| xrstor(c, AREA, QWORD, Restore::Xrstor));
    }
    // Compacted: XSTATE_BV beyond XCOMP_BV, then a dirty reserved byte.
    let mut core = filled();
    core.put(AREA + 512, 4, 8);
    core.put(AREA + 520, 1 << 63 | 3, 8);
    refused(&mut core, Exception::GP0, |c| xrstor(c, AREA, QWORD, Restore::Xrstor));
    core.put(AREA + 512, 3, 8);
    core.put(AREA + 575, 1, 1);
    refused(&mut core, Exception::GP0, |c| xrstor(c, AREA, QWORD, Restore::Xrstor));
}

#[test]
fn the_family_checks_enablement_alignment_and_privilege() {
    let mut core = filled();
    refused(&mut core, Exception::GP0, |c| xsave(c, AREA + 16, QWORD, Save::Xsave));
    refused(&mut core, Exception::GP0, |c| xsave(c, AREA, QWORD, Save::Xsaves));
    core.state.cr0 |= Cr0::TS.bits();
    refused(&mut core, Exception::NM, |c| xsave(c, AREA, QWORD, Save::Xsave));
    refused(&mut core, Exception::NM, |c| fxsave(c, AREA, QWORD));
    core.state.cr4 &= !Cr4::OSXSAVE.bits();
    refused(&mut core, Exception::UD, |c| xrstor(c, AREA, QWORD, Restore::Xrstor));
    let mut core = filled();
    core.supervisor_from = AREA + 512;
    let denied = Exception::page_fault(AREA + 512, 4);
    refused(&mut core, denied, |c| xsave(c, AREA, QWORD, Save::Xsave));
}

#[test]
fn fxsave_and_fxrstor_agree_in_both_widths() {
    let mut core = filled();
    let before = fpu(&core);
    fxsave(&mut core, AREA, QWORD).unwrap();
    core.state.fx = FxImage::default();
    for register in &mut core.state.ymm {
        register.0[..16].fill(0);
    }
    fxrstor(&mut core, AREA, QWORD).unwrap();
    assert_eq!(fpu(&core), before);
    refused(&mut core, Exception::GP0, |c| fxsave(c, AREA + 8, QWORD));

    let mut core = TestCore::protected(0);
    core.memory[AREA as usize..][..512].fill(0xee);
    core.state.fx.fip = 0x1234;
    fxsave(&mut core, AREA, OperandSize::Dword).unwrap();
    assert_eq!(core.peek(AREA + 8, 8), 0x1234, "no code selector");
    assert_eq!(core.peek(AREA + 160 + 8 * 16, 1), 0xee, "XMM8-15 do not exist outside of 64-bit mode");
    core.put(AREA + 24, 0x1_0000, 4);
    refused(&mut core, Exception::GP0, |c| fxrstor(c, AREA, OperandSize::Dword));
}
