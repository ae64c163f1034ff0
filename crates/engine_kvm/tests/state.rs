//! What a vCPU is given is what it gives back: through the kernel, not executing anything.

use std::sync::Arc;

use arch::x86::cpuid::CpuModel;
use arch::x86::state::{FxImage, Ymm};
use arch::x86::{
    CpuState, Cr0, Cr4, Efer, Rflags, Segment, SegmentRegister, TableRegister, Undelivered, Xcr0,
};
use engine::{ApicRegisters, Engine, Exit, LevelRoute, NoDevices, Vcpu, VcpuSignal, Vm, VmConfig};
use engine_kvm::Kvm;
use memory::GuestRam;

/// A machine whose vCPUs execute nothing.
struct Machine {
    vm: Box<dyn Vm>,
    model: &'static str,
    signal: Arc<VcpuSignal>,
    vcpu: Box<dyn Vcpu>,
}

impl Machine {
    /// None, in print, where KVM does not open.
    fn new(vcpu_count: u32) -> Option<Self> {
        let kvm = match Kvm::open() {
            Ok(kvm) => kvm,
            Err(error) => {
                println!("skipped: {error}");
                return None;
            }
        };
        let model = CpuModel::best(|model| !kvm.missing_for(model).is_empty());
        let config = VmConfig {
            ram: Arc::new(GuestRam::new(&[(0, 0x10_0000)]).unwrap()),
            bus: Arc::new(NoDevices),
            cpu_model: Arc::new(CpuModel::named(model).unwrap()),
            vcpu_count,
            tsc_khz: 1_000_000,
        };
        let vm = kvm.create_vm(config).unwrap();
        let signal = Arc::new(VcpuSignal::new());
        let vcpu = vm.create_vcpu(0, signal.clone()).unwrap();
        Some(Self { vm, model, signal, vcpu })
    }

    /// Gives `state` to the kernel and reads what it has then.
    fn through_the_kernel(&mut self, state: &CpuState) -> CpuState {
        *self.vcpu.state_mut() = state.clone();
        self.signal.kick();
        assert!(matches!(self.vcpu.run(), Exit::Kicked));
        self.vcpu.state().clone()
    }
}

/// A name and what it changes.
type Change = (&'static str, fn(&mut CpuState));

/// A state in 64-bit mode in which everything differs from everything else.
fn busy(model: &str) -> CpuState {
    let mut s = CpuState::power_up();
    s.gpr = std::array::from_fn(|i| 0x1111_2222_3333_0000 + i as u64);
    s.rip = 0xffff_8000_1234_5678;
    s.rflags = (Rflags::FIXED | Rflags::CF | Rflags::DF | Rflags::AC | Rflags::ID).bits();
    let data = |selector, base| Segment::new(selector, base, u32::MAX, 0xc093);
    s.segments = [0x18, 0x10, 0x20, 0x28, 0x30, 0x38].map(|selector| data(selector, 0));
    *s.segment_mut(SegmentRegister::Cs) = Segment::new(0x10, 0, u32::MAX, 0xa09b);
    s.segment_mut(SegmentRegister::Fs).base = 0x7fff_1234_5000;
    s.segment_mut(SegmentRegister::Gs).base = 0xffff_8888_0000_1000;
    s.ldtr = Segment::new(0x50, 0xffff_8000_0000_3000, 0xff, 0x82);
    s.tr = Segment::new(0x40, 0xffff_8000_0000_2000, 0x67, 0x8b);
    s.gdtr = TableRegister { base: 0xffff_8000_0000_0000, limit: 0x7f, reserved: [0; 3] };
    s.idtr = TableRegister { base: 0xffff_8000_0000_1000, limit: 0xfff, reserved: [0; 3] };
    s.cr0 = (Cr0::PE | Cr0::MP | Cr0::ET | Cr0::NE | Cr0::WP | Cr0::AM | Cr0::PG).bits();
    (s.cr2, s.cr3) = (0xffff_8000_dead_b000, 0x5000);
    s.cr4 = (Cr4::PAE | Cr4::PGE | Cr4::OSFXSR | Cr4::OSXMMEXCPT).bits();
    s.dr = [0x1000, 0x2000, 0x3000, 0x4000, 0, 0, 0xffff_0ff1, 0x403];
    s.msrs.efer = (Efer::SCE | Efer::LME | Efer::LMA | Efer::NXE).bits();
    s.msrs.star = 0x0023_0010_0000_0000;
    s.msrs.lstar = 0xffff_8000_0100_0000;
    s.msrs.cstar = 0xffff_8000_0200_0000;
    s.msrs.sfmask = 0x4_7700;
    s.msrs.kernel_gs_base = 0x7fff_0000_8000;
    (s.msrs.sysenter_cs, s.msrs.sysenter_esp, s.msrs.sysenter_eip) = (0x10, 0x7000_1000, 0x7000_2000);
    s.msrs.pat = 0x0000_0406_0007_0406;
    s.fx = FxImage { fcw: 0x27f, fsw: 0x3800, ftw: 0xfe, fop: 0x123, mxcsr: 0x9fc0, ..FxImage::default() };
    s.fx.st = std::array::from_fn(|i| {
        let mut register = [i as u8 + 1; 16];
        register[10..].fill(0);
        register
    });
    let has_avx = CpuModel::named(model).unwrap().xcr0_supported() & Xcr0::AVX.bits() != 0;
    for (i, Ymm(register)) in s.ymm.iter_mut().enumerate() {
        register[..16].fill(0x40 + i as u8);
        register[16..].fill(if has_avx { 0x80 + i as u8 } else { 0 });
    }
    if has_avx {
        s.cr4 |= Cr4::OSXSAVE.bits();
        s.xcr0 = (Xcr0::X87 | Xcr0::SSE | Xcr0::AVX).bits();
    }
    s
}

#[test]
fn registers_survive_the_way_through_the_kernel() {
    let Some(mut machine) = Machine::new(1) else { return };
    let power_up = CpuState::power_up();
    assert_eq!(machine.through_the_kernel(&power_up), power_up);
    let busy = busy(machine.model);
    assert_eq!(machine.through_the_kernel(&busy), busy);
    assert_eq!(machine.through_the_kernel(&power_up), power_up);
}

#[test]
fn every_register_is_moved() {
    let Some(mut machine) = Machine::new(1) else { return };
    let base = busy(machine.model);
    let changes: &[Change] = &[
        ("a general register", |s| s.gpr[11] ^= 1 << 63),
        ("rip", |s| s.rip += 0x1000),
        ("a flag", |s| s.rflags ^= Rflags::ZF.bits()),
        ("a selector", |s| s.segments[0].selector ^= 8),
        ("a base", |s| s.segments[5].base += 0x1000),
        ("the interrupt table", |s| s.idtr.limit = 0x7ff),
        ("cr2", |s| s.cr2 ^= 0x1000),
        ("cr3", |s| s.cr3 = 0x6000),
        ("a breakpoint", |s| s.dr[2] = 0x5000),
        ("an msr", |s| s.msrs.sfmask ^= 0x100),
        ("an x87 register", |s| s.fx.st[3][4] ^= 1),
        ("mxcsr", |s| s.fx.mxcsr ^= 0x40),
        ("a vector register", |s| s.ymm[9].0[7] ^= 1),
    ];
    for (what, change) in changes {
        let mut state = base.clone();
        change(&mut state);
        assert_eq!(machine.through_the_kernel(&state), state, "{what}");
        assert_ne!(state, base, "{what}");
    }
}

#[test]
fn events_survive_the_way_through_the_kernel() {
    let Some(mut machine) = Machine::new(1) else { return };
    let mut base = busy(machine.model);
    base.rflags |= Rflags::IF.bits();
    let changes: &[Change] = &[
        ("an nmi waits", |s| s.events.nmi_pending = true),
        ("nmis are blocked", |s| s.events.nmi_blocked = true),
        ("one waits behind another", |s| (s.events.nmi_pending, s.events.nmi_blocked) = (true, true)),
        ("in the shadow of sti", |s| s.events.interrupt_shadow = true),
        ("halted", |s| s.events.halted = true),
        ("an interrupt on its way", |s| s.events.undelivered = Some(Undelivered::Interrupt(0x41))),
        ("a debug trap on its way", |s| s.events.undelivered = Some(Undelivered::DebugTrap)),
    ];
    for (what, change) in changes {
        let mut state = base.clone();
        change(&mut state);
        let read = machine.through_the_kernel(&state);
        assert_eq!(read.events, state.events, "{what}");
        assert_eq!(read, state, "{what}");
    }
    assert_eq!(machine.through_the_kernel(&base).events, base.events, "nothing stays behind");
}

#[test]
fn a_vcpu_that_waits_for_a_start_up_ipi_still_does() {
    let Some(mut machine) = Machine::new(2) else { return };
    let signal = Arc::new(VcpuSignal::new());
    machine.vcpu = machine.vm.create_vcpu(1, signal.clone()).unwrap();
    machine.signal = signal;
    let mut state = CpuState::power_up();
    (state.events.waits_for_start_up, state.events.halted) = (true, true);
    let read = machine.through_the_kernel(&state);
    assert_eq!(read.events, state.events);
}

#[test]
fn a_state_no_processor_can_have_is_refused_with_its_name() {
    let Some(mut machine) = Machine::new(1) else { return };
    let mut state = busy(machine.model);
    state.msrs.efer = Efer::LMA.bits();
    state.cr4 = 0;
    *machine.vcpu.state_mut() = state;
    machine.signal.kick();
    match machine.vcpu.run() {
        Exit::Fatal { reason } => assert!(reason.contains("write a vcpu's system registers"), "{reason}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn local_apic_registers_survive_the_way_through_the_kernel() {
    let Some(machine) = Machine::new(1) else { return };
    let apics = machine.vm.local_apics().unwrap();
    let fresh = apics.save(0).unwrap();
    assert_eq!(fresh.base, 0xfee0_0900);
    let mut registers = ApicRegisters { tsc_deadline: 0, ..fresh.clone() };
    let mut put =
        |offset: usize, value: u32| registers.page[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    put(0x80, 0x30);
    put(0xf0, 0x1ff);
    put(0x130, 1 << 5);
    put(0x270, 1 << 1);
    put(0x320, 0x1_0044);
    put(0x350, 0x700);
    apics.load(0, &registers).unwrap();
    let read = apics.save(0).unwrap();
    let word =
        |r: &ApicRegisters, offset: usize| u32::from_le_bytes(r.page[offset..offset + 4].try_into().unwrap());
    for offset in [0x20, 0x80, 0xd0, 0xe0, 0xf0, 0x130, 0x270, 0x320, 0x350, 0x360] {
        assert_eq!(word(&read, offset), word(&registers, offset), "{offset:#x}");
    }
    assert!(apics.save(1).is_err(), "there is no vcpu 1");
    let impossible = ApicRegisters { base: 0xfee0_0400, ..fresh };
    assert!(apics.load(0, &impossible).is_err(), "x2apic mode of an apic that is off");
}

#[test]
fn a_message_waits_in_the_local_apic_it_names() {
    let Some(machine) = Machine::new(1) else { return };
    let apics = machine.vm.local_apics().unwrap();
    let mut registers = apics.save(0).unwrap();
    registers.page[0xf0..0xf4].copy_from_slice(&0x1ffu32.to_le_bytes());
    apics.load(0, &registers).unwrap();
    apics.set_level_routes(&[LevelRoute { pin: 9, address: 0xfee0_0000, data: 0xc039 }]);
    apics.send(0xfee0_0000, 0xc039);
    apics.send(0xfee0_0000, 0x0055);
    apics.send(0xfee7_f000, 0x0066);
    let read = apics.save(0).unwrap();
    let word = |offset: usize| u32::from_le_bytes(read.page[offset..offset + 4].try_into().unwrap());
    assert_eq!([word(0x210), word(0x220), word(0x230)], [1 << 25, 1 << 21, 0], "irr");
    assert_eq!([word(0x190), word(0x1a0)], [1 << 25, 0], "tmr: level and edge");
}
