//! Any bytes as instructions, in every mode and at both ends of privilege, in a small guest. What the guest does to
//! itself is its own affair; the interpreter must end, and must not panic.
//!
//! Input: a byte of mode, a byte for each of RAX..RDI, then the code.
#![no_main]

use std::sync::{Arc, Mutex, Once};
use std::time::Duration;

use arch::x86::cpuid::CpuModel;
use arch::x86::segment::TableRegister;
use arch::x86::{CpuState, Cr0, Cr4, Efer, Segment};
use engine::{Engine, Exit, NoDevices, VcpuSignal, VmConfig};
use engine_soft::Interpreter;
use fuzz::Bytes;
use libfuzzer_sys::fuzz_target;
use memory::GuestRam;

const RAM_BYTES: u64 = 2 << 20;
/// One page table tree that maps the first 2 MiB to themselves, writable by all.
const PAGE_TABLES: [u64; 3] = [0x1000, 0x2000, 0x3000];
const GDT_AT: u64 = 0x4000;
const TSS_AT: u64 = 0x5000;
const IDT_AT: u64 = 0x6000;
const KERNEL_STACK: u64 = 0x8000;
const USER_STACK: u64 = 0x9000;
/// A HLT in which every exception ends.
const HANDLER: u64 = 0x800;
const CODE: u64 = 0x1_0000;
const DATA: u64 = 0x2_0000;
const MAX_CODE_BYTES: usize = 4096;
/// How long code that does not end by itself goes on, once or twice this.
const PATIENCE: Duration = Duration::from_millis(10);

/// Code and data for the kernel in 64 and 32 bits, the same for the user, a TSS (filled in by the mode).
const GDT: [u64; 8] = [
    0,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x00cf_9b00_0000_ffff,
    0x00cf_fb00_0000_ffff,
    0x00cf_f300_0000_ffff,
    0x00af_fb00_0000_ffff,
    0,
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Real,
    Protected,
    Long,
}

/// The vCPU that runs just now, if one does.
static RUNNING: Mutex<Option<Arc<VcpuSignal>>> = Mutex::new(None);

fn running(signal: Option<Arc<VcpuSignal>>) -> Option<Arc<VcpuSignal>> {
    std::mem::replace(&mut *RUNNING.lock().expect("nobody panics with it"), signal)
}

/// Kicks a vCPU that has run for [`PATIENCE`].
fn watch() {
    let mut seen: Option<Arc<VcpuSignal>> = None;
    loop {
        std::thread::sleep(PATIENCE);
        let now = RUNNING.lock().expect("nobody panics with it").clone();
        if let (Some(now), Some(seen)) = (&now, &seen)
            && Arc::ptr_eq(now, seen)
        {
            now.kick();
        }
        seen = now;
    }
}

fn put(ram: &GuestRam, gpa: u64, value: u64) {
    ram.write(gpa, &value.to_le_bytes()).expect("inside memory");
}

/// Tables whose every vector leads to the HLT.
fn lay_out(ram: &GuestRam, mode: Mode) {
    ram.write(HANDLER, &[0xf4; 16]).expect("inside memory");
    for (table, next) in PAGE_TABLES.iter().zip([PAGE_TABLES[1] | 7, PAGE_TABLES[2] | 7, 0x87]) {
        put(ram, *table, next);
    }
    for (index, descriptor) in GDT.iter().enumerate() {
        put(ram, GDT_AT + 8 * index as u64, *descriptor);
    }
    put(ram, GDT_AT + 0x38, TSS_AT << 16 | 0x8b << 40 | 0x67);
    for vector in 0..256 {
        match mode {
            Mode::Real => ram.write(4 * vector, &(HANDLER as u32).to_le_bytes()).expect("inside memory"),
            Mode::Protected => put(ram, IDT_AT + 8 * vector, HANDLER | 0x18 << 16 | 0xee << 40),
            Mode::Long => put(ram, IDT_AT + 16 * vector, HANDLER | 0x08 << 16 | 0xee << 40),
        }
    }
    let stack: u64 = if mode == Mode::Long { KERNEL_STACK } else { KERNEL_STACK | 0x10 << 32 };
    put(ram, TSS_AT + 4, stack);
    let data: [u8; 256] = std::array::from_fn(|i| i as u8);
    ram.write(DATA, &data).expect("inside memory");
}

fn state(mode: Mode, is_user: bool, model: &CpuModel, input: &mut Bytes<'_>) -> CpuState {
    let mut state = CpuState::power_up();
    for gpr in &mut state.gpr[..8] {
        *gpr = input.pick(&[
            0,
            1,
            DATA,
            CODE,
            RAM_BYTES - 8,
            u64::MAX,
            1 << 31,
            1 << 63,
            0xfee0_0000,
            0x7f,
            DATA + 3,
        ]);
    }
    state.gpr[4] = if is_user { USER_STACK } else { KERNEL_STACK - 0x100 };
    state.idtr = TableRegister { base: IDT_AT, limit: 0xfff, reserved: [0; 3] };
    state.gdtr = TableRegister { base: GDT_AT, limit: 0x47, reserved: [0; 3] };
    state.cr4 = (Cr4::PSE | Cr4::PAE | Cr4::OSFXSR | Cr4::OSXMMEXCPT | Cr4::OSXSAVE | Cr4::FSGSBASE).bits()
        & model.cr4_supported();
    state.xcr0 = model.xcr0_supported().max(1);
    state.rip = CODE;
    if mode == Mode::Real {
        state.idtr = TableRegister { base: 0, limit: 0x3ff, reserved: [0; 3] };
        state.cr0 = Cr0::ET.bits();
        state.segments[1] = Segment::real_mode((CODE >> 4) as u16, 0x9b);
        state.segments[1].base = CODE;
        state.rip = 0;
        return state;
    }
    let (code, data) = match (mode, is_user) {
        (Mode::Long, false) => (0x08, 0x10),
        (Mode::Long, true) => (0x33, 0x2b),
        (_, false) => (0x18, 0x10),
        (_, true) => (0x23, 0x2b),
    };
    for (index, segment) in state.segments.iter_mut().enumerate() {
        let selector: u16 = if index == 1 { code } else { data };
        *segment = Segment::from_descriptor(selector, GDT[usize::from(selector >> 3)]);
    }
    state.tr = Segment::new(0x38, TSS_AT, 0x67, 0x8b);
    state.cr0 = (Cr0::PE | Cr0::MP | Cr0::ET | Cr0::NE | Cr0::WP).bits();
    if mode == Mode::Long {
        state.cr0 |= Cr0::PG.bits();
        state.cr3 = PAGE_TABLES[0];
        state.msrs.efer = (Efer::SCE | Efer::LME | Efer::LMA | Efer::NXE).bits();
    }
    state
}

fuzz_target!(|data: &[u8]| {
    static WATCH: Once = Once::new();
    WATCH.call_once(|| drop(std::thread::spawn(watch)));
    let mut input = Bytes(data);
    let how = input.u8();
    let mode = [Mode::Real, Mode::Protected, Mode::Long, Mode::Long][usize::from(how & 3)];
    let is_user = how & 4 != 0 && mode != Mode::Real;

    let ram = Arc::new(GuestRam::new(&[(0, RAM_BYTES)]).expect("map memory"));
    let model = Arc::new(CpuModel::named("x86-64-v2").expect("a named model"));
    let config = VmConfig {
        ram: ram.clone(),
        bus: Arc::new(NoDevices),
        cpu_model: model.clone(),
        vcpu_count: 1,
        tsc_khz: 1_000_000,
    };
    let signal = Arc::new(VcpuSignal::new());
    let vm = Interpreter.create_vm(config).expect("a host with this model");
    let mut vcpu = vm.create_vcpu(0, signal.clone()).expect("memory for a vcpu");
    lay_out(&ram, mode);
    *vcpu.state_mut() = state(mode, is_user, &model, &mut input);
    ram.write(CODE, input.slice(MAX_CODE_BYTES)).expect("inside memory");

    running(Some(signal));
    let exit = vcpu.run();
    running(None);
    if let Exit::Fatal { reason } = exit {
        assert!(!reason.is_empty());
    }
    let _ = vcpu.state();
    let _ = vcpu.statistics();
});
