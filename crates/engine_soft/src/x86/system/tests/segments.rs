use super::*;

use SegmentRegister::{Ds, Es, Fs, Ss};

#[test]
fn real_mode_loads_keep_limit_and_attributes() {
    let mut core = TestCore::real();
    *core.segment_mut(Fs) = Segment::new(0x10, 0, 0xffff_ffff, 0xc093);
    load_segment(&mut core, Fs, 0x1234).unwrap();
    let fs = *core.state.segment(Fs);
    assert_eq!((fs.base, fs.limit, fs.selector), (0x12340, 0xffff_ffff, 0x1234));
    *core.segment_mut(Es) = Segment::new(0, 0, 0, Segment::UNUSABLE);
    load_segment(&mut core, Es, 1).unwrap();
    assert!(!core.state.segment(Es).is_unusable());
}

#[test]
fn virtual_8086_loads_make_8086_segments() {
    let mut core = TestCore::vm86(3);
    load_segment(&mut core, Ss, 0x1234).unwrap();
    assert_eq!(*core.state.segment(Ss), Segment::real_mode(0x1234, 0xf3));
    assert_eq!(core.state.cpl(), 3);
}

#[test]
fn the_stack_segment_must_match_the_privilege_and_be_writable() {
    let mut core = TestCore::protected(3);
    core.put_descriptor(SPARE, descriptor(0, 0xfffff, 0xc073));
    core.put_descriptor(SPARE2, descriptor(0, 0xfffff, 0xc0f1));
    for (selector, expected) in [
        (0, Exception::GP0),
        (3, Exception::GP0),
        (DATA0, gp(0x10)),
        (DATA3 & !3, gp(0x20)),
        (CODE3, gp(0x18)),
        (SPARE2 | 3, gp(0x58)),
        (SPARE | 3, fault(Vector::StackFault, 0x50)),
        (0xfff8 | 3, gp(0xfff8)),
    ] {
        refused(&mut core, expected, |c| load_segment(c, Ss, selector));
    }
    load_segment(&mut core, Ss, DATA3).unwrap();
}

#[test]
fn a_null_stack_segment_is_for_64bit_code_below_level_three() {
    let mut core = TestCore::long(0);
    load_segment(&mut core, Ss, 0).unwrap();
    assert!(core.state.segment(Ss).is_unusable());
    refused(&mut core, Exception::GP0, |c| load_segment(c, Ss, 1));
    refused(&mut TestCore::long(3), Exception::GP0, |c| load_segment(c, Ss, 3));
}

#[test]
fn data_segments_check_both_privileges_and_readability() {
    let mut core = TestCore::protected(3);
    core.put_descriptor(SPARE, descriptor(0, 0xfffff, 0xc0f9)); // execute only
    core.put_descriptor(SPARE2, descriptor(0, 0xfffff, 0xc09e)); // conforming, readable, level 0
    refused(&mut core, gp(0x10), |c| load_segment(c, Ds, DATA0));
    refused(&mut core, gp(0x50), |c| load_segment(c, Ds, SPARE));
    refused(&mut core, gp(0x40), |c| load_segment(c, Ds, TSS_SELECTOR));
    refused(&mut core, Exception::UD, |c| load_segment(c, SegmentRegister::Cs, CODE3));
    load_segment(&mut core, Ds, SPARE2).unwrap();
    load_segment(&mut core, Ds, DATA3 & !3).unwrap();
    load_segment(&mut core, Ds, 3).unwrap();
    assert!(core.state.segment(Ds).is_unusable());
    assert_eq!(core.selector(Ds), 3);
    let mut core = TestCore::protected(0);
    refused(&mut core, gp(0x10), |c| load_segment(c, Ds, DATA0 | 3));
}

#[test]
fn loading_sets_the_accessed_bit_in_memory() {
    let mut core = TestCore::protected(0);
    core.put_descriptor(SPARE, descriptor(0, 0xfffff, 0xc092));
    load_segment(&mut core, Ds, SPARE).unwrap();
    assert_eq!(core.peek(GDT + 0x50 + 5, 1), 0x93);
    assert_eq!(core.state.segment(Ds).access & 1, 1);
}

#[test]
fn the_local_table_is_used_and_may_be_absent() {
    let mut core = TestCore::protected(0);
    refused(&mut core, gp(0x4), |c| load_segment(c, Ds, 4));
    core.put_descriptor(SPARE, descriptor(LDT, 7, 0x82));
    lldt(&mut core, SPARE).unwrap();
    core.put(LDT, descriptor(0x1234, 0xffff, 0x93), 8);
    load_segment(&mut core, Ds, 4).unwrap();
    assert_eq!(core.state.segment(Ds).base, 0x1234);
    refused(&mut core, gp(0xc), |c| load_segment(c, Ds, 0xc));
    lldt(&mut core, 0).unwrap();
    refused(&mut core, gp(0x4), |c| load_segment(c, Ds, 4));
    refused(&mut core, gp(0x8), |c| lldt(c, CODE0));
}

#[test]
fn ltr_takes_an_available_tss_and_marks_it_busy() {
    let mut core = TestCore::long(0);
    core.put_descriptor(SPARE, descriptor(TSS, 0x67, 0x89));
    core.put(GDT + 0x58, 0xffff_8000, 8);
    ltr(&mut core, SPARE).unwrap();
    assert_eq!(core.state.tr.base, 0xffff_8000_0000_4000);
    assert_eq!(core.peek(GDT + 0x50 + 5, 1), 0x8b);
    refused(&mut core, gp(0x50), |c| ltr(c, SPARE));
    refused(&mut core, Exception::GP0, |c| ltr(c, 0));
    refused(&mut core, gp(0x54), |c| ltr(c, SPARE | 4));
    refused(&mut TestCore::real(), Exception::UD, |c| ltr(c, SPARE));
    refused(&mut TestCore::protected(3), Exception::GP0, |c| ltr(c, SPARE));
}

#[test]
fn table_registers_need_level_zero_and_canonical_bases() {
    let mut core = TestCore::long(0);
    lgdt(&mut core, 0x7f, 0xffff_8000_0000_0000).unwrap();
    assert_eq!(sgdt(&mut core).unwrap().base, 0xffff_8000_0000_0000);
    refused(&mut core, Exception::GP0, |c| lidt(c, 0, 1 << 47));
    let mut user = TestCore::long(3);
    refused(&mut user, Exception::GP0, |c| lgdt(c, 0, 0));
    assert!(sidt(&mut user).is_ok());
    user.state.cr4 |= Cr4::UMIP.bits();
    refused(&mut user, Exception::GP0, |c| sidt(c));
    refused(&mut user, Exception::GP0, |c| str(c));
    refused(&mut user, Exception::GP0, |c| smsw(c));
}

#[test]
fn lar_lsl_verr_and_verw_answer_by_zf() {
    let mut core = TestCore::protected(3);
    let zf = |c: &TestCore| c.has(Rflags::ZF);
    assert_eq!(lar(&mut core, DATA3).unwrap(), Some(0xcf_f300));
    assert!(zf(&core));
    assert_eq!(lsl(&mut core, DATA3).unwrap(), Some(0xffff_ffff));
    for hidden in [0, DATA0, TSS_SELECTOR, 0xfff8, 4] {
        assert_eq!(lar(&mut core, hidden).unwrap(), None);
        assert!(!zf(&core));
        assert_eq!(lsl(&mut core, hidden).unwrap(), None);
    }
    verw(&mut core, DATA3).unwrap();
    assert!(zf(&core));
    verw(&mut core, CODE3).unwrap();
    assert!(!zf(&core));
    verr(&mut core, CODE3).unwrap();
    assert!(!zf(&core) || core.decoded(CODE3).access & Segment::WRITABLE != 0);
    assert_eq!(arpl(&mut core, 0x10, 0x23).unwrap(), Some(0x13));
    assert_eq!(arpl(&mut core, 0x13, 0x20).unwrap(), None);
    refused(&mut TestCore::real(), Exception::UD, |c| lar(c, 8));
}

#[test]
fn gates_have_access_rights_but_no_limit() {
    let mut core = TestCore::protected(0);
    core.put_descriptor(SPARE, gate(12, CODE0, 0, 3));
    assert_eq!(lar(&mut core, SPARE).unwrap(), Some(0xec00));
    assert_eq!(lsl(&mut core, SPARE).unwrap(), None);
    assert_eq!(lsl(&mut core, TSS_SELECTOR).unwrap(), Some(0x67));
}

#[test]
fn stack_limits_hold_for_expand_down_segments() {
    let down = Segment::new(0x10, 0, 0xfff, 0x4097);
    assert!(!descriptor::within_limit(&down, 0xfff, 1));
    assert!(descriptor::within_limit(&down, 0x1000, 4));
    assert!(descriptor::within_limit(&down, 0xffff_fffc, 4));
    assert!(!descriptor::within_limit(&down, 0xffff_fffd, 4));
    let small = Segment { access: 0x97, ..down };
    assert!(!descriptor::within_limit(&small, 0xffff, 2));
    let mut core = TestCore::protected(0);
    *core.segment_mut(Ss) = down;
    core.state.gpr[RSP] = 0x1004;
    let push = |c: &mut TestCore| far_call(c, CODE0, 0, OperandSize::Dword, 0);
    refused(&mut core, fault(Vector::StackFault, 0), push);
}
