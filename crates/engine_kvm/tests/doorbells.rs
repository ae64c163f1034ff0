//! Stores that are told by eventfd: those of the value that was named, at the place that was named, and no others.

mod support;

use std::sync::Arc;

use arch::x86::cpuid::CpuModel;
use arch::x86::{CpuState, Segment, SegmentRegister};
use engine::{Engine, Exit, VcpuSignal, VmConfig};
use engine_kvm::Kvm;
use memory::GuestRam;
use rustix::event::{EventfdFlags, eventfd};
use support::{END, Noting};

const CODE: u64 = 0x1000;
const BELL: u64 = 0x9_0050;

/// Real mode: stores 1, 2 and 1 at [`BELL`], 1 behind it, and ends at port [`END`].
#[rustfmt::skip]
const PROGRAM: &[u8] = &[
    0xb8, 0x00, 0x90, 0x8e, 0xd8,                               // mov ax, 0x9000; mov ds, ax
    0x66, 0xb8, 1, 0, 0, 0, 0x66, 0xa3, 0x50, 0,                // mov eax, 1; mov [0x50], eax
    0x66, 0xb8, 2, 0, 0, 0, 0x66, 0xa3, 0x50, 0,                // mov eax, 2; mov [0x50], eax
    0x66, 0xb8, 1, 0, 0, 0, 0x66, 0xa3, 0x50, 0,                // mov eax, 1; mov [0x50], eax
    0x66, 0xa3, 0x54, 0,                                        // mov [0x54], eax
    0xe6, END as u8,                                            // out END, al
];

#[test]
fn a_store_to_a_doorbell_is_counted_and_all_others_come_to_the_bus() {
    let kvm = match Kvm::open() {
        Ok(kvm) => kvm,
        Err(error) => return println!("skipped: {error}"),
    };
    let ram = Arc::new(GuestRam::new(&[(0, 0x8_0000)]).unwrap());
    ram.write(CODE, PROGRAM).unwrap();
    let bus = Arc::new(Noting::default());
    let model = CpuModel::best(|model| !kvm.missing_for(model).is_empty());
    let cpu_model = Arc::new(CpuModel::named(model).unwrap());
    let config = VmConfig { ram, bus: bus.clone(), cpu_model, vcpu_count: 1, tsc_khz: 1_000_000 };
    let vm = kvm.create_vm(config).unwrap();
    let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
    vm.doorbells().unwrap().add(BELL, 1, std::os::fd::AsFd::as_fd(&event)).unwrap();
    let mut vcpu = vm.create_vcpu(0, Arc::new(VcpuSignal::new())).unwrap();
    let mut state = CpuState::power_up();
    let cs = state.segment_mut(SegmentRegister::Cs);
    *cs = Segment::real_mode(0, cs.access);
    state.rip = CODE;
    *vcpu.state_mut() = state;
    assert!(matches!(vcpu.run(), Exit::Kicked));
    let word = |value: u32| value.to_le_bytes().to_vec();
    assert_eq!(*bus.0.lock().unwrap(), [(BELL, word(2)), (BELL + 4, word(1))]);
    let mut count = [0; 8];
    rustix::io::read(&event, &mut count).unwrap();
    assert_eq!(u64::from_ne_bytes(count), 2);
}
