//! What an exit costs outside of KVM_RUN: the same guest run by the engine, and by a loop that does nothing else.
// UNSAFETY: gives memory to a guest of its own.

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use arch::x86::cpuid::CpuModel;
use arch::x86::{CpuState, SegmentRegister};
use engine::{Engine, Exit, VcpuSignal, VmConfig};
use engine_kvm::Kvm;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VcpuExit;
use memory::GuestRam;
use support::{END, Noting};

/// So few that a round is over before a busy host gives the processor to somebody else.
const EXITS: u16 = 200;
const ROUNDS: usize = 300;
const CODE: u64 = 0x1000;
/// `mov cx, EXITS; out 0x80, al; loop -4; out 0x81, al`.
const PROGRAM: [u8; 9] = [0xb9, EXITS as u8, (EXITS >> 8) as u8, 0xe6, 0x80, 0xe2, 0xfc, 0xe6, 0x81];

fn ram() -> Arc<GuestRam> {
    let ram = GuestRam::new(&[(0, 0x10_0000)]).unwrap();
    ram.write(CODE, &PROGRAM).unwrap();
    Arc::new(ram)
}

fn by_the_engine(kvm: &Kvm) -> Duration {
    let model = CpuModel::best(|model| !kvm.missing_for(model).is_empty());
    let config = VmConfig {
        ram: ram(),
        bus: Arc::new(Noting::default()),
        cpu_model: Arc::new(CpuModel::named(model).unwrap()),
        vcpu_count: 1,
        tsc_khz: 1_000_000,
    };
    let vm = kvm.create_vm(config).unwrap();
    let mut vcpu = vm.create_vcpu(0, Arc::new(VcpuSignal::new())).unwrap();
    let mut state = CpuState::power_up();
    state.rip = CODE;
    let code = state.segment_mut(SegmentRegister::Cs);
    (code.selector, code.base) = (0, 0);
    *vcpu.state_mut() = state;
    let began = Instant::now();
    let exit = vcpu.run();
    let took = began.elapsed();
    assert!(matches!(exit, Exit::Kicked), "{exit:?}");
    took
}

fn by_a_loop() -> Duration {
    let ram = ram();
    let vm = kvm_ioctls::Kvm::new().unwrap().create_vm().unwrap();
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: ram.size_bytes(),
        userspace_addr: ram.host(0).unwrap().addr().get() as u64,
    };
    // SAFETY: one mapping of `ram`, which outlives the machine, and to which nobody holds a reference.
    #[expect(unsafe_code, reason = "a guest of its own needs memory")]
    unsafe { vm.set_user_memory_region(region) }.unwrap();
    let mut vcpu = vm.create_vcpu(0).unwrap();
    let mut special = vcpu.get_sregs().unwrap();
    (special.cs.selector, special.cs.base) = (0, 0);
    vcpu.set_sregs(&special).unwrap();
    let mut registers = vcpu.get_regs().unwrap();
    registers.rip = CODE;
    vcpu.set_regs(&registers).unwrap();
    let began = Instant::now();
    loop {
        match vcpu.run().unwrap() {
            VcpuExit::IoOut(END, _) => return began.elapsed(),
            VcpuExit::IoOut(..) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
#[ignore = "prints figures and asserts nothing of them"]
fn an_exit_outside_of_kvm_run() {
    let kvm = match Kvm::open() {
        Ok(kvm) => kvm,
        Err(error) => return println!("skipped: {error}"),
    };
    // In turns, and the best of each: others use the host too.
    let rounds: Vec<_> = (0..ROUNDS).map(|_| (by_the_engine(&kvm), by_a_loop())).collect();
    let engine = rounds.iter().map(|(engine, _)| *engine).min().unwrap();
    let bare = rounds.iter().map(|(_, bare)| *bare).min().unwrap();
    let each = |time: Duration| time.as_secs_f64() * 1e6 / f64::from(EXITS);
    println!("FIGURE an exit, by the engine: {:.2} us", each(engine));
    println!("FIGURE an exit, by a loop that only calls KVM_RUN: {:.2} us", each(bare));
    println!("FIGURE outside of KVM_RUN, each exit: {:.2} us", each(engine) - each(bare));
}
