//! An event that another engine had accepted comes before the next instruction.

use std::sync::Arc;

use arch::x86::cpuid::CpuModel;
use arch::x86::{CpuState, Segment, SegmentRegister, Undelivered};
use engine::{Engine, Exit, NoDevices, VcpuSignal, VmConfig};
use engine_soft::{Interpreter, Translator};
use memory::GuestRam;

/// Runs a vCPU that sleeps in real mode at 0x1000 with interrupts off; every vector's handler is a HLT at 0x2000 + vector.
fn ends_at(engine: &dyn Engine, undelivered: Undelivered) -> (u64, CpuState) {
    let ram = Arc::new(GuestRam::new(&[(0, 0x10000)]).unwrap());
    for vector in 0..256u32 {
        ram.write(u64::from(vector) * 4, &(0x2000 + vector).to_le_bytes()).unwrap();
    }
    ram.write(0x2000, &[0xf4; 256]).unwrap();
    ram.write(0x1000, &[0xf4; 16]).unwrap();
    let vm = engine
        .create_vm(VmConfig {
            ram,
            bus: Arc::new(NoDevices),
            cpu_model: Arc::new(CpuModel::named("x86-64").unwrap()),
            vcpu_count: 1,
            tsc_khz: 1_000_000,
        })
        .unwrap();
    let mut vcpu = vm.create_vcpu(0, Arc::new(VcpuSignal::new())).unwrap();
    let state = vcpu.state_mut();
    *state.segment_mut(SegmentRegister::Cs) = Segment::real_mode(0, 0x9b);
    state.rip = 0x1000;
    state.gpr[4] = 0x8000;
    state.events.halted = true;
    state.events.undelivered = Some(undelivered);
    assert!(matches!(vcpu.run(), Exit::Halt));
    (vcpu.state().rip, vcpu.state().clone())
}

#[test]
fn an_accepted_event_is_delivered_though_interrupts_are_off() {
    let engines: [&dyn Engine; 2] = [&Interpreter, &Translator::default()];
    for engine in engines {
        for (event, rip) in [(Undelivered::Interrupt(0x21), 0x2022), (Undelivered::DebugTrap, 0x2002)] {
            let (ended, state) = ends_at(engine, event);
            assert_eq!(ended, rip, "{}: {event:?}", engine.name());
            assert_eq!((state.gpr[4], state.events.undelivered), (0x8000 - 6, None));
        }
    }
}
