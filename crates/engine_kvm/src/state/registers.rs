//! General purpose, segment, control and debug registers.

use arch::x86::{CpuState, Segment, SegmentRegister, TableRegister};
use kvm_bindings::{kvm_debugregs, kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};
use memory::GuestRam;

use super::has_page_directory_pointers;

pub fn take_general(from: &kvm_regs, state: &mut CpuState) {
    state.gpr = [
        from.rax, from.rcx, from.rdx, from.rbx, from.rsp, from.rbp, from.rsi, from.rdi, from.r8, from.r9,
        from.r10, from.r11, from.r12, from.r13, from.r14, from.r15,
    ];
    state.rip = from.rip;
    state.rflags = from.rflags;
}

pub fn give_general(state: &CpuState) -> kvm_regs {
    let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15] = state.gpr;
    let (rip, rflags) = (state.rip, state.rflags);
    kvm_regs { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags }
}

/// Takes all but the task priority and the base of the local APIC, which are the APIC's.
pub fn take_system(from: &kvm_sregs, state: &mut CpuState) {
    use SegmentRegister::{Cs, Ds, Es, Fs, Gs, Ss};
    for (register, segment) in
        [(Es, &from.es), (Cs, &from.cs), (Ss, &from.ss), (Ds, &from.ds), (Fs, &from.fs), (Gs, &from.gs)]
    {
        *state.segment_mut(register) = take_segment(segment);
    }
    state.ldtr = take_segment(&from.ldt);
    state.tr = take_segment(&from.tr);
    state.gdtr = take_table(&from.gdt);
    state.idtr = take_table(&from.idt);
    (state.cr0, state.cr2, state.cr3, state.cr4) = (from.cr0, from.cr2, from.cr3, from.cr4);
    state.msrs.efer = from.efer;
}

/// Gives all but the task priority and the base of the local APIC. `to` is what the vCPU has now.
pub fn give_system(state: &CpuState, to: &mut kvm_sregs) {
    use SegmentRegister::{Cs, Ds, Es, Fs, Gs, Ss};
    let segment = |register| give_segment(state.segment(register));
    *to = kvm_sregs {
        cs: segment(Cs),
        ds: segment(Ds),
        es: segment(Es),
        fs: segment(Fs),
        gs: segment(Gs),
        ss: segment(Ss),
        tr: give_segment(&state.tr),
        ldt: give_segment(&state.ldtr),
        gdt: give_table(&state.gdtr),
        idt: give_table(&state.idtr),
        cr0: state.cr0,
        cr2: state.cr2,
        cr3: state.cr3,
        cr4: state.cr4,
        cr8: to.cr8,
        efer: state.msrs.efer,
        apic_base: to.apic_base,
        // An interrupt on its way is given with the events.
        interrupt_bitmap: [0; 4],
    };
}

fn take_segment(from: &kvm_segment) -> Segment {
    let mut access = u32::from(from.type_ & 0xf)
        | u32::from(from.s & 1) << 4
        | u32::from(from.dpl & 3) << 5
        | u32::from(from.present & 1) << 7
        | u32::from(from.avl & 1) << 12
        | u32::from(from.l & 1) << 13
        | u32::from(from.db & 1) << 14
        | u32::from(from.g & 1) << 15;
    if from.unusable != 0 {
        access |= Segment::UNUSABLE;
    }
    Segment::new(from.selector, from.base, from.limit, access)
}

fn give_segment(from: &Segment) -> kvm_segment {
    let bit = |mask| u8::from(from.access & mask != 0);
    kvm_segment {
        base: from.base,
        limit: from.limit,
        selector: from.selector,
        type_: from.kind(),
        present: bit(Segment::PRESENT),
        dpl: from.dpl(),
        db: bit(Segment::BIG),
        s: bit(Segment::CODE_OR_DATA),
        l: bit(Segment::LONG),
        g: bit(Segment::GRANULAR),
        avl: bit(1 << 12),
        unusable: bit(Segment::UNUSABLE),
        padding: 0,
    }
}

fn take_table(from: &kvm_dtable) -> TableRegister {
    TableRegister { base: from.base, limit: from.limit, reserved: [0; 3] }
}

fn give_table(from: &TableRegister) -> kvm_dtable {
    kvm_dtable { base: from.base, limit: from.limit, padding: [0; 3] }
}

/// With PAE paging the four entries that CR3 points to; they were loaded with it and seldom change after.
pub fn take_page_directory_pointers(ram: &GuestRam, state: &mut CpuState) {
    if !has_page_directory_pointers(state) {
        return;
    }
    let mut bytes = [0; 32];
    if ram.read(state.cr3 & 0xffff_ffe0, &mut bytes).is_ok() {
        for (entry, bytes) in state.pdpte.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *entry = u64::from_le_bytes(*bytes);
        }
    }
}

pub fn take_debug(from: &kvm_debugregs, state: &mut CpuState) {
    state.dr[..4].copy_from_slice(&from.db);
    state.dr[6] = from.dr6;
    state.dr[7] = from.dr7;
}

pub fn give_debug(state: &CpuState) -> kvm_debugregs {
    let [a, b, c, d, _, _, dr6, dr7] = state.dr;
    kvm_debugregs { db: [a, b, c, d], dr6, dr7, ..Default::default() }
}
