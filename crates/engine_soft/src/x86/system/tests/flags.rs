use super::*;

const EVERYTHING: u64 = 0x3f_7fd5;

#[test]
fn popf_writes_what_the_privilege_allows() {
    let mut core = TestCore::protected(0);
    popf(&mut core, OperandSize::Dword, EVERYTHING).unwrap();
    let ungiven = (Rflags::VM | Rflags::RF | Rflags::VIF | Rflags::VIP).bits();
    assert_eq!(core.state.rflags, EVERYTHING & !ungiven | 2);

    let mut core = TestCore::protected(3);
    popf(&mut core, OperandSize::Qword, EVERYTHING & !Rflags::IF.bits()).unwrap();
    assert!(core.has(Rflags::IF), "kept above IOPL");
    assert_eq!(core.state.rflags >> 12 & 3, 0);
    assert!(core.has(Rflags::ID) && core.has(Rflags::NT));
}

#[test]
fn a_16bit_popf_leaves_the_upper_flags() {
    let mut core = TestCore::protected(0);
    core.state.rflags |= (Rflags::AC | Rflags::ID).bits();
    popf(&mut core, OperandSize::Word, 0).unwrap();
    assert_eq!(core.state.rflags, (Rflags::AC | Rflags::ID | Rflags::FIXED).bits());
}

#[test]
fn pushf_hides_rf_and_vm() {
    let mut core = TestCore::protected(0);
    core.state.rflags |= Rflags::RF.bits();
    assert_eq!(pushf(&mut core, OperandSize::Dword), Ok(0x202));
    let mut core = TestCore::vm86(3);
    assert_eq!(pushf(&mut core, OperandSize::Word), Ok(0x3202));
}

#[test]
fn virtual_8086_flags_need_iopl_three_or_vme() {
    let mut core = TestCore::vm86(0);
    refused(&mut core, Exception::GP0, |c| pushf(c, OperandSize::Word));
    refused(&mut core, Exception::GP0, |c| popf(c, OperandSize::Word, 0));
    refused(&mut core, Exception::GP0, |c| cli(c));
    core.state.cr4 |= Cr4::VME.bits();
    refused(&mut core, Exception::GP0, |c| pushf(c, OperandSize::Dword));
    assert_eq!(pushf(&mut core, OperandSize::Word), Ok(0x3002), "VIF is clear");
    popf(&mut core, OperandSize::Word, Rflags::IF.bits()).unwrap();
    assert!(core.has(Rflags::VIF));
    refused(&mut core, Exception::GP0, |c| popf(c, OperandSize::Word, Rflags::TF.bits()));
    cli(&mut core).unwrap();
    assert!(!core.has(Rflags::VIF) && core.has(Rflags::IF));
    core.state.rflags |= Rflags::VIP.bits();
    refused(&mut core, Exception::GP0, |c| sti(c));
}

#[test]
fn protected_mode_virtual_interrupts_work_at_level_three() {
    let mut core = TestCore::protected(3);
    refused(&mut core, Exception::GP0, |c| cli(c));
    core.state.cr4 |= Cr4::PVI.bits();
    sti(&mut core).unwrap();
    assert!(core.has(Rflags::VIF) && !core.state.events.interrupt_shadow);
    cli(&mut core).unwrap();
    assert!(!core.has(Rflags::VIF) && core.has(Rflags::IF));
}

#[test]
fn sti_shadows_the_next_instruction_only_if_interrupts_were_off() {
    let mut core = TestCore::protected(0);
    sti(&mut core).unwrap();
    assert!(!core.state.events.interrupt_shadow);
    cli(&mut core).unwrap();
    sti(&mut core).unwrap();
    assert!(core.state.events.interrupt_shadow && core.has(Rflags::IF));
}

#[test]
fn ports_are_guarded_by_iopl_and_then_by_the_bitmap() {
    let mut core = TestCore::protected(3);
    core.put(TSS + 0x66, 0x68, 2);
    refused(&mut core, Exception::GP0, |c| check_io(c, 0x60, 1));
    core.state.tr.limit = 0x67 + 0x11;
    core.put(TSS + 0x68, !0, 8);
    core.put(TSS + 0x70, !0, 8);
    core.put(TSS + 0x68 + 0x60 / 8, !0b1_0001, 2);
    check_io(&mut core, 0x60, 1).unwrap();
    refused(&mut core, Exception::GP0, |c| check_io(c, 0x60, 2));
    check_io(&mut core, 0x64, 1).unwrap();
    refused(&mut core, Exception::GP0, |c| check_io(c, 0x2000, 1));
    core.state.rflags |= Rflags::IOPL.bits();
    check_io(&mut core, 0x2000, 4).unwrap();
    let mut vm86 = TestCore::vm86(3);
    vm86.put(TSS + 0x66, 0x68, 2);
    refused(&mut vm86, Exception::GP0, |c| check_io(c, 0x60, 1));
    check_io(&mut TestCore::real(), 0x60, 4).unwrap();
}

#[test]
fn clac_and_stac_are_the_kernels() {
    let mut core = TestCore::long(0);
    stac(&mut core).unwrap();
    assert!(core.has(Rflags::AC));
    clac(&mut core).unwrap();
    assert!(!core.has(Rflags::AC));
    refused(&mut TestCore::long(3), Exception::UD, |c| stac(c));
}

#[test]
fn hlt_needs_level_zero_and_monitor_is_not_there() {
    let mut core = TestCore::long(0);
    hlt(&mut core).unwrap();
    assert!(core.state.events.halted);
    refused(&mut core, Exception::UD, |c| monitor(c));
    refused(&mut core, Exception::UD, |c| mwait(c));
    refused(&mut TestCore::long(3), Exception::GP0, |c| hlt(c));
}
