//! The code around translations: the way in, the way out, and the way to a handler and back.
// UNSAFETY: none here, but what is written is run by `run` and must keep the contracts stated at each stub.

use std::io;
use std::mem::offset_of;

use arch::x86::CpuState;
use arch::x86::state::FxImage;

use super::asm::{Alu, Asm, Condition, Label, Mem, RAX, RDI, RSI, RSP, Reg, Size};
use super::rewrite::{MAPPED, S0};
use super::{Frame, Site, Vectors};
use crate::x86::code::CodeArea;
use crate::x86::interp::cpu::Cpu;

/// Registers that a function keeps for its caller.
const CALLEE_SAVED: [Reg; 6] = [Reg(3), Reg(5), Reg(12), Reg(13), Reg(14), Reg(15)];

/// Host addresses of the stubs.
#[derive(Clone, Copy, Debug)]
pub struct Stubs {
    /// `extern "sysv64" fn(cpu, code) -> *const Site`: loads the guest's registers and jumps to `code`. The GS
    /// base must be the address of the vCPU.
    pub enter: u64,
    /// Jumped to with a site in S0: executes it by `run::slow`, and goes on where that says or leaves.
    pub slow: u64,
    /// Jumped to with a site in S0: stores the guest's registers and returns from `enter` with the site.
    pub leave: u64,
    /// Returned to with the guest's target in S0 by a RET for which no CALL is known.
    pub bottom: u64,
}

/// A field of the frame.
pub fn frame(offset: usize) -> Mem {
    Mem::Field((offset_of!(Cpu, frame) + offset) as i32)
}

/// A guest register in the state.
pub fn gpr(number: u8) -> Mem {
    Mem::Field((offset_of!(Cpu, state) + offset_of!(CpuState, gpr)) as i32 + 8 * i32::from(number))
}

/// The status flags in the vCPU.
pub fn flags() -> Mem {
    Mem::Field(offset_of!(Cpu, flags) as i32)
}

fn ymm(number: u8) -> i32 {
    (offset_of!(Cpu, state) + offset_of!(CpuState, ymm)) as i32 + 32 * i32::from(number)
}

fn mxcsr() -> Mem {
    Mem::Field((offset_of!(Cpu, state) + offset_of!(CpuState, fx) + offset_of!(FxImage, mxcsr)) as i32)
}

impl Stubs {
    /// Writes the stubs at the start of `area`; `lost` stays where it is as long as they.
    pub(super) fn push(area: &mut CodeArea, lost: &Site) -> io::Result<Self> {
        let base = area.next_address();
        let mut asm = Asm::new(base);
        let avx = std::arch::is_x86_feature_detected!("avx");
        let enter = asm.position();
        write_enter(&mut asm);
        let leave = asm.label();
        asm.bind(leave);
        write_leave(&mut asm, avx);
        let slow = asm.label();
        asm.bind(slow);
        write_slow(&mut asm, avx);
        let bottom = asm.position();
        asm.store(Size::Qword, frame(offset_of!(Frame, target)), S0);
        asm.load_immediate(S0, std::ptr::from_ref(lost) as u64);
        asm.jump(leave);
        asm.finish(|_| {});
        area.push(asm.code())?.ok_or_else(|| io::Error::other("no room for the stubs"))?;
        let at = |offset: u32| base + u64::from(offset);
        Ok(Self {
            enter: at(enter),
            slow: at(asm.offset_of(slow)),
            leave: at(asm.offset_of(leave)),
            bottom: at(bottom),
        })
    }
}

fn load_registers(asm: &mut Asm) {
    for (guest, host) in MAPPED {
        asm.load(Size::Qword, host, gpr(guest));
    }
}

fn store_registers(asm: &mut Asm) {
    for (guest, host) in MAPPED {
        asm.store(Size::Qword, gpr(guest), host);
    }
}

fn write_enter(asm: &mut Asm) {
    for register in CALLEE_SAVED {
        asm.push(register);
    }
    // Six pushes and the return address: eight more bytes make calls from here aligned.
    asm.lea(Size::Qword, RSP, Mem::Base(RSP, -8));
    asm.store(Size::Qword, frame(offset_of!(Frame, host_stack)), RSP);
    asm.load(Size::Qword, RSP, frame(offset_of!(Frame, no_returns)));
    asm.store(Size::Qword, frame(offset_of!(Frame, resume)), RSI);
    load_registers(asm);
    asm.jump_indirect(frame(offset_of!(Frame, resume)));
}

fn write_leave(asm: &mut Asm, avx: bool) {
    store_registers(asm);
    save_vectors(asm, avx);
    asm.mov(Size::Qword, RAX, S0);
    write_return(asm);
}

fn write_return(asm: &mut Asm) {
    asm.load(Size::Qword, RSP, frame(offset_of!(Frame, host_stack)));
    asm.lea(Size::Qword, RSP, Mem::Base(RSP, 8));
    for register in CALLEE_SAVED.into_iter().rev() {
        asm.pop(register);
    }
    asm.ret();
}

fn write_slow(asm: &mut Asm, avx: bool) {
    store_registers(asm);
    save_vectors(asm, avx);
    asm.load(Size::Qword, RDI, frame(offset_of!(Frame, cpu)));
    asm.mov(Size::Qword, RSI, S0);
    // The site again, for the way out: a register the call keeps.
    asm.mov(Size::Qword, CALLEE_SAVED[0], S0);
    asm.store(Size::Qword, frame(offset_of!(Frame, returns)), RSP);
    asm.load(Size::Qword, RSP, frame(offset_of!(Frame, host_stack)));
    asm.call_indirect(frame(offset_of!(Frame, slow)));
    asm.test(Size::Qword, RAX, RAX);
    let resume = asm.label();
    asm.jump_if(Condition::NE, resume);
    asm.mov(Size::Qword, RAX, CALLEE_SAVED[0]);
    write_return(asm);
    asm.bind(resume);
    asm.store(Size::Qword, frame(offset_of!(Frame, resume)), RAX);
    load_vectors(asm, avx);
    asm.load(Size::Qword, RSP, frame(offset_of!(Frame, returns)));
    load_registers(asm);
    asm.jump_indirect(frame(offset_of!(Frame, resume)));
}

/// Stores the guest's vector registers if they are loaded; destroys EFLAGS.
fn save_vectors(asm: &mut Asm, avx: bool) {
    let (done, narrow, restore) = (asm.label(), asm.label(), asm.label());
    let vectors = frame(offset_of!(Frame, vectors));
    asm.alu_memory_immediate(Size::Byte, Alu::Cmp, vectors, i32::from(Vectors::XMM));
    asm.jump_if(Condition::B, done);
    asm.stmxcsr(mxcsr());
    if avx {
        asm.jump_if(Condition::E, narrow);
        for n in 0..16 {
            asm.store_ymm_field(ymm(n), n);
        }
        asm.vzeroupper();
        asm.jump(restore);
    }
    asm.bind(narrow);
    for n in 0..16 {
        asm.store_xmm(Mem::Field(ymm(n)), n);
    }
    asm.bind(restore);
    asm.ldmxcsr(frame(offset_of!(Frame, host_mxcsr)));
    asm.store_immediate(Size::Byte, vectors, i32::from(Vectors::NONE));
    asm.bind(done);
}

/// Loads what `Frame::wanted` says; destroys EFLAGS.
fn load_vectors(asm: &mut Asm, avx: bool) {
    let (done, wide) = (asm.label(), asm.label());
    let (vectors, wanted) = (frame(offset_of!(Frame, vectors)), frame(offset_of!(Frame, wanted)));
    asm.alu_memory_immediate(Size::Byte, Alu::Cmp, wanted, i32::from(Vectors::NONE));
    asm.jump_if(Condition::E, done);
    asm.ldmxcsr(mxcsr());
    if avx {
        asm.alu_memory_immediate(Size::Byte, Alu::Cmp, wanted, i32::from(Vectors::YMM));
        asm.jump_if(Condition::E, wide);
        asm.vzeroupper();
    }
    load_narrow(asm, Vectors::XMM, vectors, wanted, done);
    asm.bind(wide);
    if avx {
        for n in 0..16 {
            asm.load_ymm_field(n, ymm(n));
        }
        asm.store_immediate(Size::Byte, vectors, i32::from(Vectors::YMM));
    }
    asm.bind(done);
}

/// XMM0-15 with clean upper halves, which keeps legacy SSE instructions fast.
fn load_narrow(asm: &mut Asm, level: u8, vectors: Mem, wanted: Mem, done: Label) {
    for n in 0..16 {
        asm.load_xmm(n, Mem::Field(ymm(n)));
    }
    asm.store_immediate(Size::Byte, vectors, i32::from(level));
    asm.alu_memory_immediate(Size::Byte, Alu::Cmp, wanted, i32::from(Vectors::YMM_LOW));
    asm.jump_if(Condition::NE, done);
    asm.store_immediate(Size::Byte, vectors, i32::from(Vectors::YMM));
    asm.jump(done);
}
