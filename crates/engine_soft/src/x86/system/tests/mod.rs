//! Tests of the system half, on a core with flat memory.

mod control;
mod delivery;
mod flags;
mod segments;
mod tasks;
mod transfers;
mod xsave;

use std::sync::Mutex;

use arch::x86::cpuid::{CpuModel, CpuidContext};
use arch::x86::{
    CpuState, Cr0, Cr4, Efer, Exception, Gpr, Rflags, Segment, SegmentRegister, TableRegister, Vector,
};
use engine::{Bus, BusResult, MsrResult};

use super::cache::*;
use super::control::*;
use super::debug::*;
use super::deliver::*;
use super::far::*;
use super::flags::*;
use super::info::*;
use super::iret::*;
use super::msr::*;
use super::ports::*;
use super::segments::*;
use super::syscall::*;
use super::xsave::*;
use super::*;

const MEMORY: usize = 0x10_0000;
const GDT: u64 = 0x1000;
const IDT: u64 = 0x2000;
const TSS: u64 = 0x4000;
const LDT: u64 = 0x5000;

// Selectors of the GDT `TestCore` sets up.
const CODE0: u16 = 0x08;
const DATA0: u16 = 0x10;
const CODE3: u16 = 0x1b;
const DATA3: u16 = 0x23;
const CODE0_64: u16 = 0x28;
const CODE3_64: u16 = 0x33;
const TSS_SELECTOR: u16 = 0x40;
const SPARE: u16 = 0x50;
const SPARE2: u16 = 0x58;

const STACK0: u64 = 0x8000;
const STACK3: u64 = 0x9000;
const HANDLER: u64 = 0x1_2345;

#[derive(Default)]
struct TestBus {
    priority: Mutex<u8>,
    tsc_offset: Mutex<Option<u64>>,
}

impl Bus for TestBus {
    fn port_read(&self, _: u32, _: u16, _: &mut [u8]) -> BusResult {
        BusResult::Done
    }
    fn port_write(&self, _: u32, _: u16, _: &[u8]) -> BusResult {
        BusResult::Done
    }
    fn mmio_read(&self, _: u32, _: u64, _: &mut [u8]) -> BusResult {
        BusResult::Done
    }
    fn mmio_write(&self, _: u32, _: u64, _: &[u8]) -> BusResult {
        BusResult::Done
    }
    fn msr_read(&self, _: u32, index: u32) -> MsrResult {
        if index == arch::x86::msr::APIC_BASE { MsrResult::Done(0xfee0_0900) } else { MsrResult::Fault }
    }
    fn msr_write(&self, _: u32, _: u32, _: u64) -> MsrResult {
        MsrResult::Fault
    }
    fn tsc_changed(&self, _: u32, offset: u64) {
        *self.tsc_offset.lock().unwrap() = Some(offset);
    }
    fn interrupt_pending(&self, _: u32) -> bool {
        false
    }
    fn acknowledge_interrupt(&self, _: u32) -> Option<u8> {
        None
    }
    fn task_priority(&self, _: u32) -> u8 {
        *self.priority.lock().unwrap()
    }
    fn set_task_priority(&self, _: u32, priority: u8) {
        *self.priority.lock().unwrap() = priority;
    }
    fn hypercall(&self, _: u32, _: u64, _: [u64; 4]) -> u64 {
        0
    }
}

/// A core whose linear memory is an array; what lies outside is not present.
struct TestCore {
    state: CpuState,
    memory: Vec<u8>,
    /// User accesses to this page and above fault.
    supervisor_from: u64,
    model: CpuModel,
    bus: TestBus,
    host_tsc: u64,
    flushes: Vec<Flush>,
}

impl TestCore {
    fn page_fault(linear: u64, write: bool, access: Access) -> Exception {
        let user = u32::from(access.privilege == Privilege::User) << 2;
        Exception::page_fault(linear, user | u32::from(write) << 1)
    }

    fn range(
        &self,
        linear: u64,
        len: usize,
        write: bool,
        access: Access,
    ) -> Result<std::ops::Range<usize>, Exception> {
        let user = access.privilege == Privilege::User;
        if linear.saturating_add(len as u64) > MEMORY as u64 || user && linear >= self.supervisor_from {
            return Err(Self::page_fault(linear, write, access));
        }
        Ok(linear as usize..linear as usize + len)
    }
}

impl Core for TestCore {
    fn state(&self) -> &CpuState {
        &self.state
    }
    fn state_mut(&mut self) -> &mut CpuState {
        &mut self.state
    }
    fn read_linear(&mut self, linear: u64, data: &mut [u8], access: Access) -> Result<(), Exception> {
        data.copy_from_slice(&self.memory[self.range(linear, data.len(), false, access)?]);
        Ok(())
    }
    fn write_linear(&mut self, linear: u64, data: &[u8], access: Access) -> Result<(), Exception> {
        let range = self.range(linear, data.len(), true, access)?;
        self.memory[range].copy_from_slice(data);
        Ok(())
    }
    fn read_physical_u64(&mut self, gpa: u64) -> u64 {
        read::<8>(self, gpa, Access::SYSTEM).unwrap_or(u64::MAX)
    }
    fn bus(&self) -> &dyn Bus {
        &self.bus
    }
    fn vcpu_index(&self) -> u32 {
        0
    }
    fn model(&self) -> &CpuModel {
        &self.model
    }
    fn cpuid_context(&self) -> CpuidContext {
        let CpuState { cr4, xcr0, .. } = self.state;
        CpuidContext { apic_id: 0, vcpu_count: 1, tsc_khz: 1_000_000, cr4, xcr0 }
    }
    fn tsc(&self) -> u64 {
        self.host_tsc.wrapping_add(self.state.tsc_offset)
    }
    fn flush_tlb(&mut self, what: Flush) {
        self.flushes.push(what);
    }
    fn mode_changed(&mut self) {}
}

/// A descriptor from base, limit field, and `access` in the layout of [`Segment::access`].
fn descriptor(base: u64, limit: u64, access: u64) -> u64 {
    limit & 0xffff
        | (limit >> 16 & 0xf) << 48
        | (base & 0xff_ffff) << 16
        | (base >> 24 & 0xff) << 56
        | (access & 0xff) << 40
        | (access >> 12 & 0xf) << 52
}

/// A gate of type `kind` to `selector`:`offset` usable from level `dpl`.
fn gate(kind: u8, selector: u16, offset: u64, dpl: u8) -> u64 {
    let attributes = 0x80 | u64::from(dpl) << 5 | u64::from(kind);
    offset & 0xffff | u64::from(selector) << 16 | attributes << 40 | (offset >> 16 & 0xffff) << 48
}

impl TestCore {
    fn new() -> Self {
        Self {
            state: CpuState::power_up(),
            memory: vec![0; MEMORY],
            supervisor_from: MEMORY as u64,
            model: CpuModel::named("x86-64-v3").unwrap(),
            bus: TestBus::default(),
            host_tsc: 1000,
            flushes: Vec::new(),
        }
    }

    /// Real mode with the usual vector table at 0 and a stack at 0:`STACK0`.
    fn real() -> Self {
        let mut core = Self::new();
        core.state.idtr.limit = 0x3ff;
        core.state.gpr[RSP] = STACK0;
        *core.segment_mut(SegmentRegister::Cs) = Segment::real_mode(0x100, 0x9b);
        core.state.rip = 0x10;
        core
    }

    /// Flat 32-bit protected mode at level `cpl`, with GDT, IDT and TSS.
    fn protected(cpl: u8) -> Self {
        let mut core = Self::new();
        core.state.cr0 = (Cr0::PE | Cr0::ET).bits();
        let flat = 0xc093;
        let rows = [
            (CODE0, descriptor(0, 0xfffff, flat | 8)),
            (DATA0, descriptor(0, 0xfffff, flat)),
            (CODE3, descriptor(0, 0xfffff, flat | 8 | 0x60)),
            (DATA3, descriptor(0, 0xfffff, flat | 0x60)),
            (CODE0_64, descriptor(0, 0xfffff, 0xa09b)),
            (CODE3_64, descriptor(0, 0xfffff, 0xa0fb)),
            (TSS_SELECTOR, descriptor(TSS, 0x67, 0x8b)),
        ];
        for (selector, raw) in rows {
            core.put_descriptor(selector, raw);
        }
        core.state.gdtr = TableRegister { base: GDT, limit: 0xff, reserved: [0; 3] };
        core.state.idtr = TableRegister { base: IDT, limit: 0x7ff, reserved: [0; 3] };
        core.state.tr = Segment::new(TSS_SELECTOR, TSS, 0x67, 0x8b);
        core.put(TSS + 4, STACK0, 4);
        core.put(TSS + 8, u64::from(DATA0), 2);
        core.set_cpl(cpl);
        core.state.rip = 0x7000;
        core.state.rflags = (Rflags::FIXED | Rflags::IF).bits();
        core
    }

    /// 64-bit mode at level `cpl`.
    fn long(cpl: u8) -> Self {
        let mut core = Self::protected(cpl);
        core.state.cr0 |= Cr0::PG.bits();
        core.state.cr4 = Cr4::PAE.bits();
        core.state.msrs.efer = (Efer::LME | Efer::LMA | Efer::SCE).bits();
        core.state.idtr.limit = 0xfff;
        core.put(TSS + 4, STACK0, 8);
        let selector = if cpl == 0 { CODE0_64 } else { CODE3_64 };
        *core.segment_mut(SegmentRegister::Cs) = core.decoded(selector);
        core
    }

    /// Virtual-8086 mode, CS 0x100, SS 0x900.
    fn vm86(iopl: u64) -> Self {
        let mut core = Self::protected(0);
        core.state.rflags |= Rflags::VM.bits() | iopl << 12;
        for (i, segment) in core.state.segments.iter_mut().enumerate() {
            *segment = Segment::real_mode(0x100 * (i as u16 + 1), 0xf3);
        }
        *core.segment_mut(SegmentRegister::Cs) = Segment::real_mode(0x100, 0xf3);
        *core.segment_mut(SegmentRegister::Ss) = Segment::real_mode(0x900, 0xf3);
        core.state.gpr[RSP] = 0x100;
        core.state.rip = 0x20;
        core
    }

    fn set_cpl(&mut self, cpl: u8) {
        let (code, data, stack) = if cpl == 0 { (CODE0, DATA0, STACK0) } else { (CODE3, DATA3, STACK3) };
        let data = self.decoded(data);
        self.state.segments = [data; 6];
        *self.segment_mut(SegmentRegister::Cs) = self.decoded(code);
        self.state.gpr[RSP] = stack;
    }

    fn decoded(&mut self, selector: u16) -> Segment {
        let raw = self.peek(GDT + u64::from(selector & 0xfff8), 8);
        Segment::from_descriptor(selector, raw)
    }

    fn segment_mut(&mut self, register: SegmentRegister) -> &mut Segment {
        self.state.segment_mut(register)
    }

    fn selector(&self, register: SegmentRegister) -> u16 {
        self.state.segment(register).selector
    }

    fn put(&mut self, at: u64, value: u64, bytes: usize) {
        self.memory[at as usize..][..bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
    }

    fn peek(&mut self, at: u64, bytes: usize) -> u64 {
        let mut value = [0; 8];
        value[..bytes].copy_from_slice(&self.memory[at as usize..][..bytes]);
        u64::from_le_bytes(value)
    }

    fn put_descriptor(&mut self, selector: u16, raw: u64) {
        self.put(GDT + u64::from(selector & 0xfff8), raw, 8);
    }

    fn put_gate(&mut self, vector: u8, raw: u64) {
        let size = if self.state.is_long_mode() { 16 } else { 8 };
        self.put(IDT + u64::from(vector) * size, raw, 8);
    }

    /// What stands on the stack, from its top: `count` values of `bytes`.
    fn stack(&mut self, count: u64, bytes: usize) -> Vec<u64> {
        let ss = *self.state.segment(SegmentRegister::Ss);
        let top = ss.base + if bytes == 2 { self.state.gpr[RSP] & 0xffff } else { self.state.gpr[RSP] };
        (0..count).map(|i| self.peek(top + i * bytes as u64, bytes)).collect()
    }

    /// Puts `values` on the stack, the first on top.
    fn set_stack(&mut self, values: &[u64], bytes: usize) {
        let base = self.state.segment(SegmentRegister::Ss).base;
        let rsp = self.state.gpr[RSP] - (values.len() * bytes) as u64;
        for (i, value) in values.iter().enumerate() {
            self.put(base + rsp + (i * bytes) as u64, *value, bytes);
        }
        self.state.gpr[RSP] = rsp;
    }

    fn has(&self, flag: Rflags) -> bool {
        self.state.rflags & flag.bits() != 0
    }
}

fn fault(vector: Vector, code: u32) -> Exception {
    Exception::with_code(vector, code)
}

fn gp(code: u32) -> Exception {
    fault(Vector::GeneralProtection, code)
}

/// Runs `act` and checks that it fails with `expected` and leaves the registers alone.
#[track_caller]
fn refused<T: std::fmt::Debug>(
    core: &mut TestCore,
    expected: Exception,
    act: impl FnOnce(&mut TestCore) -> Result<T, Exception>,
) {
    let before = core.state.clone();
    assert_eq!(act(core).unwrap_err(), expected);
    assert!(core.state == before, "state changed by a refused instruction");
}
