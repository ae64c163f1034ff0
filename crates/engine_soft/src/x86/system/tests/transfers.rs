use super::*;

const DWORD: OperandSize = OperandSize::Dword;
const QWORD: OperandSize = OperandSize::Qword;
const WORD: OperandSize = OperandSize::Word;

#[test]
fn a_real_mode_far_jump_only_changes_base_and_selector() {
    let mut core = TestCore::real();
    far_jump(&mut core, 0x1234, 0x5678, 0).unwrap();
    let cs = *core.state.segment(SegmentRegister::Cs);
    assert_eq!((cs.selector, cs.base, cs.limit, core.state.rip), (0x1234, 0x12340, 0xffff, 0x5678));
    refused(&mut core, Exception::GP0, |c| far_jump(c, 0, 0x1_0000, 0));
}

#[test]
fn a_direct_far_jump_checks_privilege_presence_and_limit() {
    let mut core = TestCore::protected(3);
    core.put_descriptor(SPARE, descriptor(0, 0xfff, 0x407a)); // absent
    core.put_descriptor(SPARE2, descriptor(0, 0xfff, 0x40fa));
    refused(&mut core, Exception::GP0, |c| far_jump(c, 0, 0, 0));
    refused(&mut core, gp(0x8), |c| far_jump(c, CODE0, 0, 0));
    refused(&mut core, gp(0x20), |c| far_jump(c, DATA3, 0, 0));
    refused(&mut core, gp(0xf8), |c| far_jump(c, 0xf8, 0, 0));
    refused(&mut core, gp(0x100), |c| far_jump(c, 0x100, 0, 0));
    refused(&mut core, fault(Vector::SegmentNotPresent, 0x50), |c| far_jump(c, SPARE | 3, 0, 0));
    refused(&mut core, Exception::GP0, |c| far_jump(c, SPARE2 | 3, 0x1000, 0));
    far_jump(&mut core, SPARE2 | 3, 0xfff, 0).unwrap();
    assert_eq!(core.selector(SegmentRegister::Cs), SPARE2 | 3);
    assert_eq!(core.peek(GDT + 0x58 + 5, 1), 0xfb, "accessed bit set");
}

#[test]
fn conforming_code_runs_at_the_callers_privilege() {
    let mut core = TestCore::protected(3);
    core.put_descriptor(SPARE, descriptor(0, 0xfffff, 0xc09f));
    far_jump(&mut core, SPARE, 0x100, 0).unwrap();
    assert_eq!(core.selector(SegmentRegister::Cs), SPARE | 3);
    assert_eq!(core.state.cpl(), 3);
}

#[test]
fn a_far_call_and_return_come_back() {
    let mut core = TestCore::protected(0);
    far_call(&mut core, CODE0, 0x100, DWORD, 0x7007).unwrap();
    assert_eq!(core.stack(2, 4), [0x7007, u64::from(CODE0)]);
    far_return(&mut core, DWORD, 0).unwrap();
    assert_eq!((core.state.rip, core.state.gpr[RSP]), (0x7007, STACK0));
}

#[test]
fn a_call_gate_switches_stacks_copies_parameters_and_returns_outwards() {
    let mut core = TestCore::protected(3);
    core.put_descriptor(SPARE, gate(12, CODE0, HANDLER, 3) | 2 << 32);
    core.set_stack(&[0x1111, 0x2222], 4);
    far_call(&mut core, SPARE | 3, 0xffff_ffff, DWORD, 0x7007).unwrap();
    assert_eq!((core.state.cpl(), core.state.rip), (0, HANDLER));
    let expected = [0x7007, u64::from(CODE3), 0x1111, 0x2222, STACK3 - 8, u64::from(DATA3)];
    assert_eq!(core.stack(6, 4), expected);

    *core.segment_mut(SegmentRegister::Es) = core.decoded(DATA0);
    far_return(&mut core, DWORD, 8).unwrap();
    assert_eq!((core.state.cpl(), core.state.rip), (3, 0x7007));
    assert_eq!(core.state.gpr[RSP], STACK3, "parameters released on the outer stack too");
    assert_eq!(core.selector(SegmentRegister::Es), 0, "no longer accessible");
    assert_eq!(core.selector(SegmentRegister::Ds), DATA3);
}

#[test]
fn a_call_gate_checks_privilege_and_the_tss() {
    let mut core = TestCore::protected(3);
    core.put_descriptor(SPARE, gate(12, CODE0, HANDLER, 0));
    refused(&mut core, gp(0x50), |c| far_call(c, SPARE, 0, DWORD, 0));
    core.put_descriptor(SPARE, gate(12, CODE0, HANDLER, 3));
    refused(&mut core, gp(0x8), |c| far_jump(c, SPARE, 0, 0));
    core.put(TSS + 8, 0, 2);
    refused(&mut core, fault(Vector::InvalidTss, 0), |c| far_call(c, SPARE, 0, DWORD, 0));
    core.put(TSS + 8, u64::from(DATA3), 2);
    refused(&mut core, fault(Vector::InvalidTss, 0x20), |c| far_call(c, SPARE, 0, DWORD, 0));
    core.state.tr.limit = 8;
    refused(&mut core, fault(Vector::InvalidTss, 0x40), |c| far_call(c, SPARE, 0, DWORD, 0));
}

#[test]
fn a_long_mode_call_gate_takes_two_entries_and_a_null_stack_segment() {
    let mut core = TestCore::long(3);
    core.put_descriptor(SPARE, gate(12, CODE0_64, HANDLER, 3));
    core.put(GDT + 0x58, 0x1, 8);
    far_call(&mut core, SPARE | 3, 0, QWORD, 0x7007).unwrap();
    assert_eq!((core.state.cpl(), core.state.rip), (0, 1 << 32 | HANDLER));
    assert_eq!(core.selector(SegmentRegister::Ss), 0);
    assert_eq!(core.stack(4, 8), [0x7007, u64::from(CODE3_64), STACK3, u64::from(DATA3)]);
    far_return(&mut core, QWORD, 0).unwrap();
    assert_eq!((core.state.cpl(), core.state.gpr[RSP]), (3, STACK3));

    core.put(GDT + 0x58, 0x1f << 40, 8);
    refused(&mut core, gp(0x50), |c| far_call(c, SPARE | 3, 0, QWORD, 0));
}

#[test]
fn long_mode_has_no_16bit_gates_tss_or_task_gates() {
    let mut core = TestCore::long(0);
    for raw in [gate(4, CODE0_64, 0, 0), gate(5, TSS_SELECTOR, 0, 0), descriptor(TSS, 0x67, 0x89)] {
        core.put_descriptor(SPARE, raw);
        refused(&mut core, gp(0x50), |c| far_call(c, SPARE, 0, QWORD, 0));
    }
}

#[test]
fn code_with_both_size_bits_is_refused_in_long_mode() {
    let mut core = TestCore::long(0);
    core.put_descriptor(SPARE, descriptor(0, 0xfffff, 0xe09b));
    refused(&mut core, gp(0x50), |c| far_jump(c, SPARE, 0, 0));
}

#[test]
fn far_returns_do_not_go_inwards() {
    let mut core = TestCore::protected(3);
    core.set_stack(&[0x100, u64::from(CODE0)], 4);
    refused(&mut core, gp(0x8), |c| far_return(c, DWORD, 0));
    let mut core = TestCore::protected(3);
    core.set_stack(&[0x100, 0], 4);
    refused(&mut core, Exception::GP0, |c| far_return(c, DWORD, 0));
}

#[test]
fn iret_in_real_mode_restores_the_flags() {
    let mut core = TestCore::real();
    core.set_stack(&[0x42, 0x3000, 0x0ed7], 2);
    core.state.events.nmi_blocked = true;
    iret(&mut core, WORD, 0).unwrap();
    assert_eq!((core.state.rip, core.selector(SegmentRegister::Cs)), (0x42, 0x3000));
    assert_eq!(core.state.rflags, 0x0ed7);
    assert!(!core.state.events.nmi_blocked);
}

#[test]
fn iret_to_outer_privilege_loads_the_stack_and_nulls_segments() {
    let mut core = TestCore::protected(0);
    let frame = [0x1000, u64::from(CODE3), 0x3246, STACK3, u64::from(DATA3)];
    core.set_stack(&frame, 4);
    iret(&mut core, DWORD, 0).unwrap();
    assert_eq!((core.state.cpl(), core.state.rip, core.state.gpr[RSP]), (3, 0x1000, STACK3));
    assert_eq!(core.state.rflags, 0x3246, "level 0 sets IOPL");
    assert_eq!(core.selector(SegmentRegister::Fs), 0);
    assert!(core.state.segment(SegmentRegister::Fs).is_unusable());
}

#[test]
fn iret_at_level_three_changes_neither_iopl_nor_the_interrupt_flag() {
    let mut core = TestCore::protected(3);
    core.set_stack(&[0x1000, u64::from(CODE3), 0x3046], 4);
    iret(&mut core, DWORD, 0).unwrap();
    assert_eq!(core.state.rflags, 0x246);
}

#[test]
fn iret_checks_the_outer_stack_segment() {
    for (ss, expected) in [
        (0, Exception::GP0),
        (u64::from(DATA0), gp(0x10)),
        (u64::from(CODE3), gp(0x18)),
        (u64::from(SPARE | 3), fault(Vector::StackFault, 0x50)),
    ] {
        let mut core = TestCore::protected(0);
        core.put_descriptor(SPARE, descriptor(0, 0xfffff, 0xc073));
        core.set_stack(&[0x1000, u64::from(CODE3), 0x202, STACK3, ss], 4);
        refused(&mut core, expected, |c| iret(c, DWORD, 0));
    }
}

#[test]
fn iret_enters_virtual_8086_mode_from_level_zero_only() {
    let frame = [0x20, 0x100, 0x2_0202, 0x80, 0x900, 0xe0, 0xd0, 0xf0, 0xa0];
    let mut core = TestCore::protected(0);
    core.set_stack(&frame, 4);
    iret(&mut core, DWORD, 0).unwrap();
    assert!(core.state.is_vm86());
    assert_eq!((core.state.cpl(), core.state.rip, core.state.gpr[RSP]), (3, 0x20, 0x80));
    assert_eq!(core.state.segment(SegmentRegister::Ss).base, 0x9000);
    assert_eq!(core.selector(SegmentRegister::Gs), 0xa0);

    let mut core = TestCore::protected(3);
    core.set_stack(&[0x20, u64::from(CODE3), 0x2_0202], 4);
    iret(&mut core, DWORD, 0).unwrap();
    assert!(!core.state.is_vm86(), "VM in the image is ignored at level 3");
}

#[test]
fn iret_in_virtual_8086_mode_needs_iopl_three_or_vme() {
    let mut core = TestCore::vm86(0);
    core.set_stack(&[0x42, 0x300, 0x0202], 2);
    refused(&mut core, Exception::GP0, |c| iret(c, WORD, 0));
    core.state.cr4 |= Cr4::VME.bits();
    iret(&mut core, WORD, 0).unwrap();
    assert!(core.has(Rflags::VIF) && core.state.is_vm86());
    let mut core = TestCore::vm86(3);
    core.set_stack(&[0x42, 0x300, 0x0002], 2);
    iret(&mut core, WORD, 0).unwrap();
    assert!(!core.has(Rflags::IF) && core.state.is_vm86());
    assert_eq!(core.state.rflags >> 12 & 3, 3, "IOPL is kept");
}

#[test]
fn iretq_pops_the_stack_at_equal_privilege_and_refuses_nt() {
    let mut core = TestCore::long(0);
    let frame = [0xffff_8000_0000_0000, u64::from(CODE0_64), 0x202, 0x7770, 0];
    core.set_stack(&frame, 8);
    iret(&mut core, QWORD, 0).unwrap();
    assert_eq!((core.state.rip, core.state.gpr[RSP]), (0xffff_8000_0000_0000, 0x7770));
    assert!(core.state.segment(SegmentRegister::Ss).is_unusable());
    core.state.rflags |= Rflags::NT.bits();
    refused(&mut core, Exception::GP0, |c| iret(c, QWORD, 0));
}

#[test]
fn iretq_refuses_a_non_canonical_target() {
    let mut core = TestCore::long(0);
    core.set_stack(&[1 << 47, u64::from(CODE3_64), 0x202, STACK3, u64::from(DATA3)], 8);
    refused(&mut core, Exception::GP0, |c| iret(c, QWORD, 0));
}

#[test]
fn iretq_to_compatibility_mode_uses_the_32bit_stack() {
    let mut core = TestCore::long(0);
    core.set_stack(&[0x1000, u64::from(CODE3), 0x202, STACK3, u64::from(DATA3)], 8);
    iret(&mut core, QWORD, 0).unwrap();
    assert_eq!((core.state.code_bits(), core.state.cpl(), core.state.gpr[RSP]), (32, 3, STACK3));
}

#[test]
fn iret_to_a_16bit_stack_keeps_the_upper_half_of_the_stack_pointer() {
    let mut core = TestCore::protected(0);
    core.put_descriptor(SPARE, descriptor(0, 0xffff, 0x00f3));
    core.state.gpr[RSP] = 0x1_8000;
    core.set_stack(&[0x1000, u64::from(CODE3), 0x202, 0xabcd_1234, u64::from(SPARE | 3)], 4);
    iret(&mut core, DWORD, 0).unwrap();
    assert_eq!(core.state.gpr[RSP], 0x1_1234);
}

#[test]
fn syscall_and_sysret_swap_code_stack_and_flags() {
    let mut core = TestCore::long(3);
    core.state.msrs.star = 0x0023_0010 << 32;
    core.state.msrs.lstar = 0xffff_ffff_8000_0000;
    core.state.msrs.sfmask = Rflags::IF.bits();
    core.state.rflags |= Rflags::CF.bits();
    syscall(&mut core, 0x7002).unwrap();
    assert_eq!((core.state.rip, core.state.cpl()), (0xffff_ffff_8000_0000, 0));
    assert_eq!(core.state.gpr[Gpr::Rcx as usize], 0x7002);
    assert_eq!(core.state.gpr[Gpr::R11 as usize], 0x203);
    assert_eq!(core.state.rflags, 3);
    assert_eq!((core.selector(SegmentRegister::Cs), core.selector(SegmentRegister::Ss)), (0x10, 0x18));
    assert_eq!(core.state.code_bits(), 64);
    sysret(&mut core, QWORD).unwrap();
    assert_eq!((core.state.rip, core.state.cpl(), core.state.rflags), (0x7002, 3, 0x203));
    assert_eq!((core.selector(SegmentRegister::Cs), core.selector(SegmentRegister::Ss)), (0x33, 0x2b));
    refused(&mut core, Exception::GP0, |c| sysret(c, QWORD));
}

#[test]
fn sysret_checks_its_target_before_leaving_level_zero() {
    let mut core = TestCore::long(0);
    core.state.gpr[Gpr::Rcx as usize] = 1 << 47;
    refused(&mut core, Exception::GP0, |c| sysret(c, QWORD));
    core.state.msrs.efer &= !Efer::SCE.bits();
    refused(&mut core, Exception::UD, |c| sysret(c, QWORD));
    refused(&mut core, Exception::UD, |c| syscall(c, 0));
    refused(&mut TestCore::protected(0), Exception::UD, |c| syscall(c, 0));
}

#[test]
fn sysenter_and_sysexit_use_their_msrs() {
    let mut core = TestCore::protected(3);
    refused(&mut core, Exception::GP0, sysenter_of);
    core.state.msrs.sysenter_cs = 0x8;
    core.state.msrs.sysenter_esp = 0x1_0000_8000;
    core.state.msrs.sysenter_eip = 0x6000;
    sysenter(&mut core).unwrap();
    assert_eq!((core.state.cpl(), core.state.rip, core.state.gpr[RSP]), (0, 0x6000, 0x8000));
    assert!(!core.has(Rflags::IF));
    core.state.gpr[Gpr::Rcx as usize] = STACK3;
    core.state.gpr[Gpr::Rdx as usize] = 0x7002;
    sysexit(&mut core, DWORD).unwrap();
    assert_eq!((core.state.cpl(), core.state.rip, core.state.gpr[RSP]), (3, 0x7002, STACK3));
    assert_eq!(core.selector(SegmentRegister::Cs), 0x1b);
}

fn sysenter_of(core: &mut TestCore) -> Result<(), Exception> {
    sysenter(core)
}

#[test]
fn swapgs_and_base_instructions_check_mode_and_canonicality() {
    let mut core = TestCore::long(0);
    core.state.msrs.kernel_gs_base = 0x1234;
    swapgs(&mut core).unwrap();
    assert_eq!(core.state.segment(SegmentRegister::Gs).base, 0x1234);
    refused(&mut core, Exception::UD, |c| read_base(c, SegmentRegister::Fs));
    core.state.cr4 |= Cr4::FSGSBASE.bits();
    refused(&mut core, Exception::GP0, |c| write_base(c, SegmentRegister::Fs, 1 << 47));
    write_base(&mut core, SegmentRegister::Fs, !0).unwrap();
    assert_eq!(read_base(&mut core, SegmentRegister::Fs), Ok(!0));
    refused(&mut TestCore::long(3), Exception::GP0, |c| swapgs(c));
    refused(&mut TestCore::protected(0), Exception::UD, |c| swapgs(c));
}
