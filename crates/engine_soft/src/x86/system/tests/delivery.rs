use super::*;

fn int(vector: u8, next_rip: u64) -> Event {
    Event::Software { vector, kind: SoftwareKind::IntN, next_rip }
}

#[test]
fn real_mode_pushes_three_words_and_follows_the_table() {
    let mut core = TestCore::real();
    core.state.rflags |= (Rflags::IF | Rflags::TF | Rflags::CF).bits();
    core.put(0x21 * 4, 0x2000_0040, 4);
    deliver(&mut core, int(0x21, 0x12)).unwrap();
    assert_eq!((core.selector(SegmentRegister::Cs), core.state.rip), (0x2000, 0x40));
    assert_eq!(core.state.segment(SegmentRegister::Cs).base, 0x2_0000);
    assert_eq!(core.stack(3, 2), [0x12, 0x100, 0x303]);
    assert!(!core.has(Rflags::IF) && !core.has(Rflags::TF) && core.has(Rflags::CF));
}

#[test]
fn real_mode_faults_push_no_error_code() {
    let mut core = TestCore::real();
    core.put(13 * 4, 0x3000_0000, 4);
    deliver(&mut core, Event::Exception(Exception::GP0)).unwrap();
    assert_eq!(core.state.gpr[RSP], STACK0 - 6);
    assert_eq!(core.stack(1, 2), [0x10]);
}

#[test]
fn an_interrupt_gate_clears_the_interrupt_flag_and_a_trap_gate_does_not() {
    for (kind, enabled) in [(14, false), (15, true)] {
        let mut core = TestCore::protected(0);
        core.put_gate(0x30, gate(kind, CODE0, HANDLER, 0));
        deliver(&mut core, Event::Interrupt(0x30)).unwrap();
        assert_eq!(core.state.rip, HANDLER);
        assert_eq!(core.has(Rflags::IF), enabled);
        assert_eq!(core.stack(3, 4), [0x7000, u64::from(CODE0), 0x202]);
        assert_eq!(core.state.gpr[RSP], STACK0 - 12);
    }
}

#[test]
fn an_inner_handler_gets_the_stack_of_the_tss_and_the_error_code() {
    let mut core = TestCore::protected(3);
    core.put_gate(13, gate(14, CODE0, HANDLER, 0));
    deliver(&mut core, Event::Exception(gp(0x1234))).unwrap();
    assert_eq!(core.state.cpl(), 0);
    assert_eq!(core.selector(SegmentRegister::Ss), DATA0);
    let rflags = 0x202 | Rflags::RF.bits();
    let expected = [0x1234, 0x7000, u64::from(CODE3), rflags, STACK3, u64::from(DATA3)];
    assert_eq!(core.stack(6, 4), expected);
    assert!(!core.has(Rflags::RF));
}

#[test]
fn a_16bit_gate_pushes_words() {
    let mut core = TestCore::protected(0);
    core.put_gate(0x30, gate(6, CODE0, 0x4321, 0));
    deliver(&mut core, Event::Interrupt(0x30)).unwrap();
    assert_eq!(core.state.rip, 0x4321);
    assert_eq!(core.stack(3, 2), [0x7000, u64::from(CODE0), 0x202]);
}

#[test]
fn a_software_interrupt_needs_the_gates_privilege_and_an_external_one_does_not() {
    let mut core = TestCore::protected(3);
    core.put_gate(0x30, gate(14, CODE0, HANDLER, 0));
    core.put_gate(13, gate(14, CODE0, HANDLER + 1, 0));
    deliver(&mut core, int(0x30, 0x7002)).unwrap();
    assert_eq!(core.state.rip, HANDLER + 1, "the #GP handler");
    assert_eq!(core.stack(2, 4), [0x30 << 3 | 2, 0x7000], "a fault, at the instruction itself");

    let mut core = TestCore::protected(3);
    core.put_gate(0x30, gate(14, CODE0, HANDLER, 0));
    deliver(&mut core, Event::Interrupt(0x30)).unwrap();
    assert_eq!(core.state.rip, HANDLER);
}

#[test]
fn an_absent_gate_is_a_segment_not_present_fault_with_the_ext_bit() {
    let mut core = TestCore::protected(0);
    core.put_gate(0x30, gate(14, CODE0, HANDLER, 0) & !(1 << 47));
    core.put_gate(11, gate(14, CODE0, HANDLER, 0));
    deliver(&mut core, Event::Interrupt(0x30)).unwrap();
    assert_eq!(core.stack(1, 4), [0x30 << 3 | 3]);
}

#[test]
fn long_mode_aligns_the_stack_and_always_pushes_it() {
    let mut core = TestCore::long(0);
    core.state.gpr[RSP] = STACK0 - 3;
    core.put_gate(14, gate(14, CODE0_64, HANDLER, 0));
    core.put(IDT + 14 * 16 + 8, 0xffff_8000, 8);
    deliver(&mut core, Event::Exception(Exception::page_fault(0xdead_0000, 6))).unwrap();
    assert_eq!(core.state.rip, 0xffff_8000_0001_2345);
    assert_eq!(core.state.cr2, 0xdead_0000);
    assert_eq!(core.state.gpr[RSP], STACK0 - 16 - 48);
    let rflags = 0x202 | Rflags::RF.bits();
    let expected = [6, 0x7000, u64::from(CODE0_64), rflags, STACK0 - 3, u64::from(DATA0)];
    assert_eq!(core.stack(6, 8), expected);
    assert_eq!(core.selector(SegmentRegister::Ss), DATA0, "SS stays at the same privilege");
}

#[test]
fn long_mode_loads_a_null_stack_segment_for_inner_handlers() {
    let mut core = TestCore::long(3);
    core.put_gate(0x30, gate(14, CODE0_64, HANDLER, 0));
    deliver(&mut core, Event::Interrupt(0x30)).unwrap();
    assert_eq!(core.selector(SegmentRegister::Ss), 0);
    assert!(core.state.segment(SegmentRegister::Ss).is_unusable());
    assert_eq!(core.state.cpl(), 0);
    assert_eq!(core.state.gpr[RSP], STACK0 - 40);
}

#[test]
fn an_interrupt_stack_is_used_at_every_privilege() {
    for cpl in [0, 3] {
        let mut core = TestCore::long(cpl);
        core.put(TSS + 0x24 + 8, 0xb008, 8);
        core.put_gate(2, gate(14, CODE0_64, HANDLER, 0) | 2 << 32);
        deliver(&mut core, Event::Nmi).unwrap();
        assert_eq!(core.state.gpr[RSP], 0xb000 - 40);
        assert!(core.state.events.nmi_blocked);
    }
}

#[test]
fn long_mode_refuses_handlers_that_are_not_64bit_code() {
    let mut core = TestCore::long(0);
    core.put_gate(0x30, gate(14, CODE0, HANDLER, 0));
    core.put_gate(13, gate(14, CODE0_64, HANDLER, 0));
    deliver(&mut core, Event::Interrupt(0x30)).unwrap();
    assert_eq!(core.stack(1, 8), [u64::from(CODE0) | 1]);
}

#[test]
fn two_contributory_faults_make_a_double_fault() {
    let mut core = TestCore::protected(0);
    core.put_gate(8, gate(14, CODE0, HANDLER, 0));
    // #DE: no gate -> #GP while delivering -> #DF.
    deliver(&mut core, Event::Exception(Exception::new(Vector::DivideError))).unwrap();
    assert_eq!(core.state.rip, HANDLER);
    assert_eq!(core.stack(2, 4), [0, 0x7000]);
}

#[test]
fn a_page_fault_after_a_contributory_fault_is_delivered_as_itself() {
    let mut core = TestCore::protected(3);
    core.put(TSS + 4, MEMORY as u64 + 0x1000, 4);
    core.put_gate(13, gate(14, CODE0, HANDLER, 0));
    core.put_gate(8, gate(5, SPARE, 0, 0));
    // The stack of the #GP handler is not present, nor is that of the #PF handler: #GP, #PF, #DF, shutdown.
    core.put_gate(14, gate(14, CODE0, HANDLER, 0));
    let shutdown = deliver(&mut core, Event::Exception(Exception::GP0)).unwrap_err();
    assert!(shutdown.reason.contains("triple fault"), "{}", shutdown.reason);
    assert_eq!(core.state.cr2, MEMORY as u64 + 0x1000 - 4);
}

#[test]
fn faults_of_an_external_interrupt_are_not_double() {
    let mut core = TestCore::protected(0);
    core.put_gate(13, gate(14, CODE0, HANDLER, 0));
    deliver(&mut core, Event::Interrupt(0x44)).unwrap();
    assert_eq!(core.stack(1, 4), [0x44 << 3 | 2 | 1]);
}

#[test]
fn an_empty_interrupt_table_ends_in_a_triple_fault() {
    for mut core in [TestCore::real(), TestCore::protected(0), TestCore::long(3), TestCore::vm86(3)] {
        core.state.idtr.limit = 0;
        let shutdown = deliver(&mut core, Event::Exception(Exception::UD)).unwrap_err();
        assert!(shutdown.reason.starts_with("triple fault"), "{shutdown}");
    }
}

#[test]
fn leaving_virtual_8086_mode_saves_and_clears_the_data_segments() {
    let mut core = TestCore::vm86(0);
    core.put_gate(13, gate(14, CODE0, HANDLER, 0));
    deliver(&mut core, int(0x21, 0x22)).unwrap();
    assert!(!core.state.is_vm86());
    assert_eq!(core.state.cpl(), 0);
    let rflags = core.stack(4, 4)[3];
    assert_eq!(rflags, (Rflags::VM | Rflags::IF | Rflags::FIXED | Rflags::RF).bits());
    // error, IP, CS, flags, SP, SS, ES, DS, FS, GS
    let frame = core.stack(10, 4);
    assert_eq!(&frame[..3], &[0, 0x20, 0x100], "IOPL 0: INT faults");
    assert_eq!(&frame[4..], &[0x100, 0x900, 0x100, 0x400, 0x500, 0x600]);
    assert_eq!(core.selector(SegmentRegister::Ds), 0);
    assert!(core.state.segment(SegmentRegister::Gs).is_unusable());
}

#[test]
fn vme_redirects_int_to_the_tasks_own_table() {
    let mut core = TestCore::vm86(0);
    core.state.cr4 |= Cr4::VME.bits();
    core.state.tr.limit = 0x200;
    core.put(TSS + 0x66, 0x88, 2);
    core.put(0x21 * 4, 0x0200_0040, 4);
    core.state.rflags |= Rflags::VIF.bits();
    deliver(&mut core, int(0x21, 0x22)).unwrap();
    assert!(core.state.is_vm86());
    assert_eq!((core.selector(SegmentRegister::Cs), core.state.rip), (0x200, 0x40));
    assert_eq!(core.stack(3, 2), [0x22, 0x100, 0x3202], "IOPL reads 3 and IF is VIF");
    assert!(!core.has(Rflags::VIF) && core.has(Rflags::IF));

    // The same with the bit set goes to the monitor: #GP, as IOPL is below 3.
    let mut core = TestCore::vm86(0);
    core.state.cr4 |= Cr4::VME.bits();
    core.state.tr.limit = 0x200;
    core.put(TSS + 0x66, 0x88, 2);
    core.put(TSS + 0x68 + 4, 2, 1);
    core.put_gate(13, gate(14, CODE0, HANDLER, 0));
    deliver(&mut core, int(0x21, 0x22)).unwrap();
    assert!(!core.state.is_vm86());
}

#[test]
fn a_debug_exception_ends_general_detect() {
    let mut core = TestCore::protected(0);
    core.put_gate(1, gate(14, CODE0, HANDLER, 0));
    core.state.dr[7] |= 1 << 13;
    refused_but_dr6(&mut core);
    deliver(&mut core, Event::Exception(Exception::new(Vector::Debug))).unwrap();
    assert_eq!(core.state.dr[7], 0x400);
    assert_eq!(core.stack(3, 4)[2] & Rflags::RF.bits(), 0);
    assert_eq!(mov_from_dr(&mut core, 7), Ok(0x400));
}

fn refused_but_dr6(core: &mut TestCore) {
    assert_eq!(mov_to_dr(core, 0, 5).unwrap_err(), Exception::new(Vector::Debug));
    assert_eq!(core.state.dr[6] >> 13 & 1, 1);
    assert_eq!(core.state.dr[0], 0);
}

#[test]
fn delivery_wakes_a_halted_processor() {
    let mut core = TestCore::protected(0);
    core.put_gate(0x30, gate(14, CODE0, HANDLER, 0));
    core.state.events.halted = true;
    core.state.events.interrupt_shadow = true;
    deliver(&mut core, Event::Interrupt(0x30)).unwrap();
    assert!(!core.state.events.halted && !core.state.events.interrupt_shadow);
}
