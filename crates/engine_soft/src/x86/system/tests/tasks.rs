use super::*;

const NEW_TSS: u64 = 0x6000;
const NEW_STACK: u64 = 0xa000;

/// A core whose GDT entry `SPARE` is a 32-bit TSS of a task at level `cpl`, entry 0x1234.
fn with_task(cpl: u8) -> TestCore {
    let mut core = TestCore::protected(0);
    let (code, data) = if cpl == 0 { (CODE0, DATA0) } else { (CODE3, DATA3) };
    core.put_descriptor(SPARE, descriptor(NEW_TSS, 0x67, 0x89));
    core.put(NEW_TSS + 0x20, 0x1234, 4);
    core.put(NEW_TSS + 0x24, 0x202, 4);
    for i in 0..8 {
        core.put(NEW_TSS + 0x28 + i * 4, 0x1_0000 * (i + 1), 4);
    }
    core.put(NEW_TSS + 0x28 + 16, NEW_STACK, 4);
    for (i, selector) in [data, code, data, data, 0, 0].into_iter().enumerate() {
        core.put(NEW_TSS + 0x48 + i as u64 * 4, u64::from(selector), 4);
    }
    core.state.gpr[0] = 0xaaaa;
    core
}

fn access_byte(core: &mut TestCore, selector: u16) -> u64 {
    core.peek(GDT + u64::from(selector) + 5, 1)
}

#[test]
fn a_jump_to_a_tss_saves_one_task_and_loads_the_other() {
    let mut core = with_task(3);
    far_jump(&mut core, SPARE, 0, 0x7007).unwrap();
    assert_eq!((core.state.rip, core.state.cpl(), core.state.gpr[0]), (0x1234, 3, 0x1_0000));
    assert_eq!((core.state.gpr[RSP], core.state.tr.selector), (NEW_STACK, SPARE));
    assert_ne!(core.state.cr0 & Cr0::TS.bits(), 0);
    assert_eq!((core.peek(TSS + 0x20, 4), core.peek(TSS + 0x28, 4)), (0x7007, 0xaaaa));
    assert_eq!(core.peek(TSS + 0x4c, 2), u64::from(CODE0));
    assert_eq!((access_byte(&mut core, TSS_SELECTOR), access_byte(&mut core, SPARE)), (0x89, 0x8b));
    assert!(!core.has(Rflags::NT));
    assert!(core.state.segment(SegmentRegister::Gs).is_unusable());
}

#[test]
fn a_call_nests_and_iret_goes_back() {
    let mut core = with_task(0);
    far_call(&mut core, SPARE, 0, OperandSize::Dword, 0x7007).unwrap();
    assert!(core.has(Rflags::NT));
    assert_eq!(core.peek(NEW_TSS, 2), u64::from(TSS_SELECTOR));
    assert_eq!((access_byte(&mut core, TSS_SELECTOR), access_byte(&mut core, SPARE)), (0x8b, 0x8b));
    iret(&mut core, OperandSize::Dword, 0x1235).unwrap();
    assert_eq!((core.state.rip, core.state.gpr[0], core.state.gpr[RSP]), (0x7007, 0xaaaa, STACK0));
    assert_eq!(core.state.tr.selector, TSS_SELECTOR);
    assert_eq!((access_byte(&mut core, TSS_SELECTOR), access_byte(&mut core, SPARE)), (0x8b, 0x89));
    assert_eq!(core.peek(NEW_TSS + 0x20, 4), 0x1235);
    assert_eq!(core.peek(NEW_TSS + 0x24, 4) & Rflags::NT.bits(), 0);
}

#[test]
fn an_exception_through_a_task_gate_pushes_its_error_code_in_the_new_task() {
    let mut core = with_task(0);
    core.put_gate(13, gate(5, SPARE, 0, 0));
    deliver(&mut core, Event::Exception(gp(0x1234))).unwrap();
    assert_eq!((core.state.rip, core.state.gpr[RSP]), (0x1234, NEW_STACK - 4));
    assert_eq!(core.stack(1, 4), [0x1234]);
    assert_ne!(core.peek(TSS + 0x24, 4) & Rflags::RF.bits(), 0);
}

#[test]
fn bad_targets_leave_the_old_task_alone() {
    let mut core = with_task(0);
    let go = |c: &mut TestCore| far_jump(c, SPARE, 0, 0x7007);
    core.put_descriptor(SPARE, descriptor(NEW_TSS, 0x66, 0x89));
    refused(&mut core, fault(Vector::InvalidTss, 0x50), go);
    core.put_descriptor(SPARE, descriptor(NEW_TSS, 0x67, 0x09));
    refused(&mut core, fault(Vector::SegmentNotPresent, 0x50), go);
    core.put_descriptor(SPARE, descriptor(NEW_TSS, 0x67, 0x8b));
    refused(&mut core, gp(0x50), go);
    core.put_descriptor(SPARE, gate(5, CODE0, 0, 0));
    refused(&mut core, gp(0x8), go);
    core.put_descriptor(SPARE, gate(5, SPARE2 | 4, 0, 0));
    refused(&mut core, gp(0x5c), go);
    core.state.rflags |= Rflags::NT.bits();
    core.put(TSS, u64::from(SPARE), 2);
    core.put_descriptor(SPARE, descriptor(NEW_TSS, 0x67, 0x89));
    refused(&mut core, fault(Vector::InvalidTss, 0x50), |c| iret(c, OperandSize::Dword, 0));
}

#[test]
fn bad_segments_fault_in_the_new_task() {
    for (at, selector, expected) in [
        (0x4c, 0, fault(Vector::InvalidTss, 0)),
        (0x4c, DATA0, fault(Vector::InvalidTss, 0x10)),
        (0x50, DATA3, fault(Vector::InvalidTss, 0x20)),
        (0x54, 0xf8, fault(Vector::InvalidTss, 0xf8)),
        (0x60, CODE0, fault(Vector::InvalidTss, 0x8)),
        (0x58, SPARE2, fault(Vector::SegmentNotPresent, 0x58)),
    ] {
        let mut core = with_task(0);
        core.put_descriptor(SPARE2, descriptor(0, 0xfffff, 0xc013));
        core.put(NEW_TSS + at, u64::from(selector), 2);
        assert_eq!(far_jump(&mut core, SPARE, 0, 0x7007).unwrap_err(), expected, "{at:#x}");
        assert_eq!((core.state.tr.selector, core.state.rip), (SPARE, 0x1234));
    }
}

#[test]
fn the_trap_bit_raises_a_debug_exception_in_the_new_task() {
    let mut core = with_task(0);
    core.put(NEW_TSS + 0x64, 1, 2);
    assert_eq!(far_jump(&mut core, SPARE, 0, 0).unwrap_err(), Exception::new(Vector::Debug));
    assert_eq!(core.state.dr[6] >> 15 & 1, 1);
    assert_eq!(core.state.rip, 0x1234);
}

#[test]
fn a_task_may_be_a_virtual_8086_one() {
    let mut core = with_task(0);
    core.put(NEW_TSS + 0x24, 0x2_0202, 4);
    far_jump(&mut core, SPARE, 0, 0).unwrap();
    assert!(core.state.is_vm86());
    assert_eq!(core.state.cpl(), 3);
    assert_eq!(core.state.segment(SegmentRegister::Ss).base, u64::from(DATA0) << 4);
}

#[test]
fn a_16bit_task_has_word_registers_and_no_fs_or_gs() {
    let mut core = with_task(0);
    core.put_descriptor(SPARE, descriptor(NEW_TSS, 0x2b, 0x81));
    core.memory[NEW_TSS as usize..][..0x68].fill(0);
    core.put(NEW_TSS + 0x0e, 0x1234, 2);
    core.put(NEW_TSS + 0x10, 0x202, 2);
    core.put(NEW_TSS + 0x12, 0x5678, 2);
    for (i, selector) in [DATA0, CODE0, DATA0, DATA0].into_iter().enumerate() {
        core.put(NEW_TSS + 0x22 + i as u64 * 2, u64::from(selector), 2);
    }
    far_jump(&mut core, SPARE, 0, 0).unwrap();
    assert_eq!((core.state.rip, core.state.gpr[0]), (0x1234, 0x5678));
    assert!(core.state.segment(SegmentRegister::Fs).is_unusable());
    assert_eq!(access_byte(&mut core, SPARE), 0x83);
}

#[test]
fn a_new_page_directory_flushes_the_tlb() {
    let mut core = with_task(0);
    core.state.cr0 |= Cr0::PG.bits();
    core.put(NEW_TSS + 0x1c, 0xb000, 4);
    far_jump(&mut core, SPARE, 0, 0).unwrap();
    assert_eq!(core.state.cr3, 0xb000);
    assert_eq!(core.flushes, [Flush::NonGlobal]);
}
