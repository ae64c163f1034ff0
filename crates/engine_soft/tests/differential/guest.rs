//! The engine's side: a machine in long mode whose user pages are those of the native worker, and whose
//! exceptions end in a HLT that tells them apart.
//!
//! Physical memory: 0x1000.. page tables, 0x40_000 system page (GDT, LDT, TSS, handlers), 0x41_000 IDT, 0x42_000
//! kernel stack, 0x50_000 code page and data pages, 0x60_000 a user page whose code touches the data pages and goes on
//! to the case, so that a translator finds them in its TLB.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arch::x86::cpuid::CpuModel;
use arch::x86::paging::Pte;
use arch::x86::segment::TableRegister;
use arch::x86::state::{FxImage, Ymm};
use arch::x86::{CpuState, Cr0, Cr4, Efer, Rflags, Segment};
use engine::{Engine, Exit, NoDevices, Vcpu, VcpuSignal, Vm, VmConfig};
use memory::GuestRam;

use crate::case::{Bits, Fault, Input, Output, TIMEOUT, fx};
use crate::layout::{self, CODE32, CODE64, DATA_PAGES, DATA32, DATA64, GDT, LDT, PAGE};

const SYSTEM_PA: u64 = 0x4_0000;
const IDT_PA: u64 = 0x4_1000;
const STACK_PA: u64 = 0x4_2000;
const USER_PA: u64 = 0x5_0000;
const WARM_PA: u64 = 0x6_0000;
/// Where no sum of the registers and displacements of a sequence is likely to lead.
const WARM64: u64 = CODE64 + 0x2b67_a000;
/// Where the supervisor pages are seen.
const KERNEL: u64 = 0xffff_8000_0000_0000;
const GDT_AT: u64 = KERNEL + SYSTEM_PA;
const LDT_AT: u64 = GDT_AT + 0x100;
const TSS_AT: u64 = GDT_AT + 0x400;
const HANDLERS_AT: u64 = GDT_AT + 0x800;
const STACK_TOP: u64 = KERNEL + STACK_PA + PAGE;
const HANDLER_BYTES: u64 = 4;
/// The limit Linux gives its TSS hides the I/O bitmap; so does this.
const TSS_LIMIT: u16 = 0x67;

/// A machine to run cases in.
pub struct Guest {
    ram: Arc<GuestRam>,
    vcpu: Box<dyn Vcpu>,
    _vm: Box<dyn Vm>,
    signal: Arc<VcpuSignal>,
    /// Runs so far.
    begun: Arc<AtomicU64>,
    template: CpuState,
    pool: &'static [u8],
    warm: bool,
}

impl Guest {
    /// A guest on `engine`; if `warm`, cases of 64-bit code find the data pages in the TLB.
    pub fn new(engine: &dyn Engine, warm: bool, model: &CpuModel, pool: &'static [u8]) -> Self {
        let ram = Arc::new(GuestRam::new(&[(0, 1 << 20)]).unwrap());
        let config = VmConfig {
            ram: ram.clone(),
            bus: Arc::new(NoDevices),
            cpu_model: Arc::new(model.clone()),
            vcpu_count: 1,
            tsc_khz: 1_000_000,
        };
        let signal = Arc::new(VcpuSignal::new());
        let vm = engine.create_vm(config).unwrap();
        let vcpu = vm.create_vcpu(0, signal.clone()).unwrap();
        let mut tables = Tables { ram: &ram, next: 0x2000 };
        for pa in [SYSTEM_PA, IDT_PA, STACK_PA] {
            tables.map(KERNEL + pa, pa, Pte::WRITE);
        }
        for (code, data) in [(CODE64, DATA64), (CODE32, DATA32)] {
            tables.map(code, USER_PA, Pte::USER);
            for i in 0..DATA_PAGES {
                let write = if i + 1 < DATA_PAGES { Pte::WRITE } else { 0 };
                tables.map(data + i * PAGE, USER_PA + (1 + i) * PAGE, Pte::USER | Pte::NX | write);
            }
        }
        tables.map(WARM64, WARM_PA, Pte::USER);
        write_system_page(&ram);
        ram.write(USER_PA, &[0xcc; PAGE as usize]).unwrap();
        Self { ram, vcpu, _vm: vm, signal, begun: Arc::default(), template: template(model), pool, warm }
    }

    /// What ends a case that does not end: call it from another thread.
    pub fn signal(&self) -> Arc<VcpuSignal> {
        self.signal.clone()
    }

    /// How many runs have begun: what shows another thread that one does not end.
    pub fn begun(&self) -> Arc<AtomicU64> {
        self.begun.clone()
    }

    /// Runs a case.
    pub fn run(&mut self, input: &Input, output: &mut Output) {
        let len = PAGE as usize;
        for (i, page) in input.pages.iter().enumerate() {
            let from = &self.pool[usize::from(*page) * len..][..len];
            self.ram.write(USER_PA + (1 + i as u64) * PAGE, from).unwrap();
        }
        let fits = input.code_len.min(len - input.code_offset);
        self.ram.write(USER_PA + input.code_offset as u64, &input.code[..fits]).unwrap();
        let mut state = self.state(input);
        if self.warm && input.bits == Bits::B64 && state.rflags & (Rflags::TF | Rflags::AC).bits() == 0 {
            self.ram.write(WARM_PA, &warm_up(&state)).unwrap();
            state.rip = WARM64;
        }
        *self.vcpu.state_mut() = state;
        self.begun.fetch_add(1, Ordering::Relaxed);
        // Of a kick that came while nothing ran, because the host's processor was slow, this case must know nothing.
        self.signal.take(engine::Request::KICK);
        let exit = self.vcpu.run();
        self.signal.take(engine::Request::KICK);
        self.read_output(&exit, output);
        self.ram.read(USER_PA + PAGE, &mut output.memory).unwrap();
        self.ram.write(USER_PA + input.code_offset as u64, &[0xcc; crate::case::CODE_BYTES][..fits]).unwrap();
    }

    /// Whether the page no case can write is still what `input` says.
    pub fn read_only_page_is_intact(&self, input: &Input) -> bool {
        let len = PAGE as usize;
        let mut now = [0; PAGE as usize];
        self.ram.read(USER_PA + DATA_PAGES * PAGE, &mut now).unwrap();
        now[..] == self.pool[usize::from(input.pages[2]) * len..][..len]
    }

    fn state(&self, input: &Input) -> CpuState {
        let mut state = self.template.clone();
        let from = &input.registers;
        state.gpr = from.gpr;
        state.rip = from.rip;
        state.rflags = from.rflags;
        for (segment, selector) in state.segments.iter_mut().zip(from.selectors) {
            *segment = match layout::descriptor(selector) {
                0 => Segment::new(selector, 0, 0, Segment::UNUSABLE),
                raw => Segment::from_descriptor(selector, raw),
            };
        }
        if input.bits == Bits::B64 {
            state.segments[4].base = from.fs_base;
            state.segments[5].base = from.gs_base;
        }
        let mut image = [0; 512];
        image[..416].copy_from_slice(&from.fx);
        state.fx = fx_from_bytes(&image);
        for (i, ymm) in state.ymm.iter_mut().enumerate() {
            ymm.0[..16].copy_from_slice(&from.fx[fx::XMM + 16 * i..][..16]);
            ymm.0[16..].copy_from_slice(&from.ymm_high[16 * i..][..16]);
        }
        state
    }

    fn read_output(&mut self, exit: &Exit, output: &mut Output) {
        let state = self.vcpu.state();
        let registers = &mut output.registers;
        registers.gpr = state.gpr;
        for (selector, segment) in registers.selectors.iter_mut().zip(&state.segments) {
            *selector = segment.selector;
        }
        registers.fs_base = state.segments[4].base;
        registers.gs_base = state.segments[5].base;
        registers.fx.copy_from_slice(&fx_to_bytes(&state.fx)[..416]);
        for (i, Ymm(ymm)) in state.ymm.iter().enumerate() {
            registers.fx[fx::XMM + 16 * i..][..16].copy_from_slice(&ymm[..16]);
            registers.ymm_high[16 * i..][..16].copy_from_slice(&ymm[16..]);
        }
        let handler = state.rip.wrapping_sub(HANDLERS_AT);
        if !matches!(exit, Exit::Halt) || handler >= 256 * HANDLER_BYTES {
            let vector = if matches!(exit, Exit::Kicked) { TIMEOUT } else { 0x1000 };
            output.fault = Fault { vector, code: 0, address: 0 };
            (registers.rip, registers.rflags) = (state.rip, state.rflags);
            return;
        }
        let vector = (handler / HANDLER_BYTES) as u32;
        let mut frame = [0u64; 6];
        let has_code = matches!(vector, 8 | 10..=14 | 17);
        let words = if has_code { 6 } else { 5 };
        for (i, word) in frame[6 - words..].iter_mut().enumerate() {
            let mut bytes = [0; 8];
            let at = STACK_PA + PAGE - 8 * (words - i) as u64;
            self.ram.read(at, &mut bytes).unwrap();
            *word = u64::from_le_bytes(bytes);
        }
        let [code, rip, cs, rflags, rsp, ss] = frame;
        (registers.rip, registers.rflags) = (rip, rflags);
        registers.gpr[4] = rsp;
        registers.selectors[1] = cs as u16;
        registers.selectors[2] = ss as u16;
        output.fault = Fault { vector, code: code as u32, address: if vector == 14 { state.cr2 } else { 0 } };
    }
}

fn fx_from_bytes(image: &[u8; 512]) -> FxImage {
    let word = |i: usize| u16::from_le_bytes([image[i], image[i + 1]]);
    let quad = |i: usize| u64::from_le_bytes(image[i..i + 8].try_into().unwrap());
    FxImage {
        fcw: word(0),
        fsw: word(2),
        ftw: image[fx::FTW],
        fop: word(6),
        fip: quad(8),
        fdp: quad(16),
        mxcsr: quad(fx::MXCSR) as u32,
        st: std::array::from_fn(|i| image[fx::ST + 16 * i..][..16].try_into().unwrap()),
        ..FxImage::default()
    }
}

fn fx_to_bytes(from: &FxImage) -> [u8; 512] {
    let mut image = [0; 512];
    image[..2].copy_from_slice(&from.fcw.to_le_bytes());
    image[2..4].copy_from_slice(&from.fsw.to_le_bytes());
    image[fx::FTW] = from.ftw;
    image[6..8].copy_from_slice(&from.fop.to_le_bytes());
    image[8..16].copy_from_slice(&from.fip.to_le_bytes());
    image[16..24].copy_from_slice(&from.fdp.to_le_bytes());
    image[fx::MXCSR..fx::MXCSR_MASK].copy_from_slice(&from.mxcsr.to_le_bytes());
    image[fx::MXCSR_MASK..fx::ST].copy_from_slice(&from.mxcsr_mask.to_le_bytes());
    for (i, st) in from.st.iter().enumerate() {
        image[fx::ST + 16 * i..][..16].copy_from_slice(st);
    }
    image
}

/// Code that loads from each data page and stores to those that can be, and then is as if it had not been.
fn warm_up(state: &CpuState) -> Vec<u8> {
    const LOAD: [u8; 2] = [0x8a, 0x08]; // mov cl, [rax]
    const STORE: [u8; 2] = [0x88, 0x08]; // mov [rax], cl
    let mut code = Vec::new();
    let set = |code: &mut Vec<u8>, opcode: u8, value: u64| {
        code.extend([0x48, opcode]);
        code.extend(value.to_le_bytes());
    };
    for page in 0..DATA_PAGES {
        set(&mut code, 0xb8, DATA64 + page * PAGE);
        code.extend(LOAD);
        if page + 1 < DATA_PAGES {
            code.extend(STORE);
        }
    }
    set(&mut code, 0xb8, state.gpr[0]);
    set(&mut code, 0xb9, state.gpr[1]);
    code.extend([0xff, 0x25, 0, 0, 0, 0]); // jmp [rip]
    code.extend(state.rip.to_le_bytes());
    code
}

/// Four-level page tables, root at 0x1000.
struct Tables<'a> {
    ram: &'a GuestRam,
    next: u64,
}

impl Tables<'_> {
    fn map(&mut self, linear: u64, pa: u64, flags: u64) {
        let mut table = 0x1000;
        for level in (1..4).rev() {
            let slot = table + (linear >> (12 + 9 * level) & 511) * 8;
            let mut bytes = [0; 8];
            self.ram.read(slot, &mut bytes).unwrap();
            let mut entry = u64::from_le_bytes(bytes);
            if entry == 0 {
                entry = self.next | Pte::PRESENT | Pte::WRITE | Pte::USER;
                self.next += PAGE;
                self.ram.write(slot, &entry.to_le_bytes()).unwrap();
            }
            table = entry & Pte::ADDRESS;
        }
        let entry = pa | Pte::PRESENT | flags;
        self.ram.write(table + (linear >> 12 & 511) * 8, &entry.to_le_bytes()).unwrap();
    }
}

fn write_system_page(ram: &GuestRam) {
    let write = |at: u64, bytes: &[u8]| ram.write(at - KERNEL, bytes).unwrap();
    let system = |base: u64, limit: u64, kind: u64| {
        let low = limit & 0xffff | (base & 0xff_ffff) << 16 | kind << 40 | (base >> 24 & 0xff) << 56;
        [low, base >> 32]
    };
    let mut gdt = GDT;
    gdt[8..10].copy_from_slice(&system(TSS_AT, u64::from(TSS_LIMIT), 0x8b));
    gdt[10..12].copy_from_slice(&system(LDT_AT, LDT.len() as u64 * 8 - 1, 0x82));
    for (i, raw) in gdt.iter().enumerate() {
        write(GDT_AT + 8 * i as u64, &raw.to_le_bytes());
    }
    for (i, entry) in LDT.iter().enumerate() {
        write(LDT_AT + 8 * i as u64, &entry.descriptor().to_le_bytes());
    }
    write(TSS_AT + 4, &STACK_TOP.to_le_bytes());
    write(TSS_AT + 0x66, &(TSS_LIMIT + 1).to_le_bytes());
    for vector in 0..256u64 {
        let handler = HANDLERS_AT + vector * HANDLER_BYTES;
        write(handler, &[0xf4; HANDLER_BYTES as usize]);
        // An interrupt gate; INT3 and INTO may be used from user mode, as under Linux.
        let access: u64 = if matches!(vector, 3 | 4) { 0xee } else { 0x8e };
        let low = handler & 0xffff | 0x10 << 16 | access << 40 | (handler >> 16 & 0xffff) << 48;
        ram.write(IDT_PA + 16 * vector, &low.to_le_bytes()).unwrap();
        ram.write(IDT_PA + 16 * vector + 8, &(handler >> 32).to_le_bytes()).unwrap();
    }
}

/// The machine as Linux sets a processor up, in user mode.
fn template(model: &CpuModel) -> CpuState {
    let mut state = CpuState::power_up();
    state.cr0 = (Cr0::PE | Cr0::MP | Cr0::ET | Cr0::NE | Cr0::WP | Cr0::AM | Cr0::PG).bits();
    let cr4 = Cr4::VME | Cr4::DE | Cr4::PSE | Cr4::PAE | Cr4::MCE | Cr4::PGE | Cr4::OSFXSR | Cr4::OSXMMEXCPT;
    let cr4 = cr4 | Cr4::UMIP | Cr4::FSGSBASE | Cr4::OSXSAVE | Cr4::SMEP | Cr4::SMAP;
    state.cr4 = cr4.bits() & model.cr4_supported();
    state.cr3 = 0x1000;
    state.xcr0 = model.xcr0_supported().max(1);
    state.msrs.efer = (Efer::SCE | Efer::LME | Efer::LMA | Efer::NXE).bits();
    state.gdtr = TableRegister { base: GDT_AT, limit: 16 * 8 - 1, reserved: [0; 3] };
    state.idtr = TableRegister { base: KERNEL + IDT_PA, limit: 0xfff, reserved: [0; 3] };
    state.ldtr = Segment::new(0x50, LDT_AT, LDT.len() as u32 * 8 - 1, 0x82);
    state.tr = Segment::new(0x40, TSS_AT, u32::from(TSS_LIMIT), 0x8b);
    state
}
