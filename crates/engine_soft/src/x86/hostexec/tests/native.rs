//! The reference: one instruction run on this processor with the whole register file loaded, by a stub that
//! shares nothing with the thunks (XRSTOR and POPFQ load, XSAVE and PUSHFQ store).
// UNSAFETY: maps memory, fills it with code and runs it.

use arch::x86::CpuState;
use iced_x86::{Code, Encoder, Instruction, MemoryOperand, Register};

const PAGE: usize = 4096;
const GPR_IN: usize = 0;
const FLAGS_IN: usize = 0x80;
const HOST_RSP: usize = 0x88;
const HOST_MXCSR: usize = 0x90;
const GPR_OUT: usize = 0x100;
const FLAGS_OUT: usize = 0x180;
const XSAVE_IN: usize = PAGE;
const XSAVE_OUT: usize = 2 * PAGE;
const OPERAND: usize = 3 * PAGE;
const CODE: usize = 4 * PAGE;
const LEN: usize = 5 * PAGE;

/// Where in an XSAVE area the header and the upper halves of the YMM registers are.
const XSTATE_BV: usize = 512;
const YMM_HIGH: usize = 576;

pub(super) struct Native {
    base: *mut u8,
}

impl Native {
    pub(super) fn new() -> Self {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a fresh mapping.
        let base = unsafe {
            libc::mmap(std::ptr::null_mut(), LEN, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
        };
        assert_ne!(base, libc::MAP_FAILED);
        Self { base: base.cast() }
    }

    /// Address of the page memory operands are in.
    pub(super) fn operand_page(&self) -> u64 {
        self.base as u64 + OPERAND as u64
    }

    pub(super) fn operand_bytes(&mut self) -> &mut [u8] {
        // SAFETY: inside the mapping, borrowed with `self`.
        unsafe { std::slice::from_raw_parts_mut(self.base.add(OPERAND), PAGE) }
    }

    /// Encodes the stub around `instruction`; `None` if it has no encoding.
    pub(super) fn build(&self, instruction: &Instruction) -> Option<(Vec<u8>, Vec<u8>)> {
        let mut stub = Stub { encoder: Encoder::new(64), at: self.base as u64 + CODE as u64, ok: true };
        let at = |offset: usize| {
            MemoryOperand::with_base_displ(Register::RIP, (self.base as u64 + offset as u64) as i64)
        };
        let saved =
            [Register::RBX, Register::RBP, Register::R12, Register::R13, Register::R14, Register::R15];
        for register in saved {
            stub.put(Instruction::with1(Code::Push_r64, register));
        }
        stub.put(Instruction::with2(Code::Mov_rm64_r64, at(HOST_RSP), Register::RSP));
        stub.put(Instruction::with2(Code::Mov_r32_imm32, Register::EAX, 7));
        stub.put(Instruction::with2(Code::Mov_r32_imm32, Register::EDX, 0));
        stub.put(Instruction::with1(Code::Xrstor64_mem, at(XSAVE_IN)));
        stub.put(Instruction::with1(Code::Push_rm64, at(FLAGS_IN)));
        stub.put(Ok(Instruction::with(Code::Popfq)));
        for i in 0..16 {
            let register = Register::RAX + i as u32;
            stub.put(Instruction::with2(Code::Mov_r64_rm64, register, at(GPR_IN + 8 * i)));
        }
        let start = stub.encoder.take_buffer();
        stub.put(Ok(*instruction));
        let bytes = stub.encoder.take_buffer();
        for i in 0..16 {
            let register = Register::RAX + i as u32;
            stub.put(Instruction::with2(Code::Mov_rm64_r64, at(GPR_OUT + 8 * i), register));
        }
        stub.put(Instruction::with2(Code::Mov_r64_rm64, Register::RSP, at(HOST_RSP)));
        stub.put(Ok(Instruction::with(Code::Pushfq)));
        stub.put(Instruction::with1(Code::Pop_rm64, at(FLAGS_OUT)));
        stub.put(Instruction::with2(Code::Mov_r32_imm32, Register::EAX, 7));
        stub.put(Instruction::with2(Code::Mov_r32_imm32, Register::EDX, 0));
        stub.put(Instruction::with1(Code::Xsave64_mem, at(XSAVE_OUT)));
        stub.put(Ok(Instruction::with(Code::Fninit)));
        stub.put(Ok(Instruction::with(Code::VEX_Vzeroupper)));
        stub.put(Instruction::with1(Code::Ldmxcsr_m32, at(HOST_MXCSR)));
        for register in saved.into_iter().rev() {
            stub.put(Instruction::with1(Code::Pop_r64, register));
        }
        stub.put(Ok(Instruction::with(Code::Retnq)));
        let whole = [start, bytes.clone(), stub.encoder.take_buffer()].concat();
        stub.ok.then_some((whole, bytes))
    }

    /// Runs a stub from [`Self::build`] on `state`.
    pub(super) fn run(&mut self, stub: &[u8], state: &mut CpuState) {
        // SAFETY: all offsets are inside the mapping, which this value owns; the stub keeps to the C ABI and
        // to this mapping, if the instruction under test does.
        unsafe {
            let page = |offset: usize| self.base.add(offset);
            page(CODE).copy_from_nonoverlapping(stub.as_ptr(), stub.len());
            let protect = |protection| {
                assert_eq!(libc::mprotect(page(CODE).cast(), PAGE, protection), 0);
            };
            protect(libc::PROT_READ | libc::PROT_EXEC);
            page(GPR_IN).cast::<[u64; 16]>().write(state.gpr);
            page(FLAGS_IN).cast::<u64>().write(state.rflags | 0x202);
            page(HOST_MXCSR).cast::<u32>().write(0x1f80);
            page(XSAVE_OUT).write_bytes(0, PAGE);
            let image = std::slice::from_raw_parts_mut(page(XSAVE_IN), PAGE);
            image.fill(0);
            let fx: [u8; 512] = std::mem::transmute(state.fx);
            image[..512].copy_from_slice(&fx);
            image[416..512].fill(0);
            image[XSTATE_BV] = 7;
            for (i, ymm) in state.ymm.iter().enumerate() {
                image[160 + 16 * i..][..16].copy_from_slice(&ymm.0[..16]);
                image[YMM_HIGH + 16 * i..][..16].copy_from_slice(&ymm.0[16..]);
            }
            let entry: extern "sysv64" fn() = std::mem::transmute(page(CODE));
            entry();
            protect(libc::PROT_READ | libc::PROT_WRITE);
            state.gpr = page(GPR_OUT).cast::<[u64; 16]>().read();
            state.rflags = state.rflags & !0x8d5 | page(FLAGS_OUT).cast::<u64>().read() & 0x8d5;
            self.read_xsave(state);
        }
    }

    fn read_xsave(&self, state: &mut CpuState) {
        // SAFETY: inside the mapping.
        let image = unsafe { std::slice::from_raw_parts(self.base.add(XSAVE_OUT), PAGE) };
        // A component in its initial state is not written: x87 is 0x37f and zeroes, the others are zero.
        let present = image[XSTATE_BV];
        let word = |i: usize| u16::from_le_bytes([image[i], image[i + 1]]);
        let fx = &mut state.fx;
        if present & 1 != 0 {
            (fx.fcw, fx.fsw, fx.ftw) = (word(0), word(2), image[4]);
            for (i, st) in fx.st.iter_mut().enumerate() {
                st.copy_from_slice(&image[32 + 16 * i..][..16]);
            }
        } else {
            (fx.fcw, fx.fsw, fx.ftw, fx.st) = (0x37f, 0, 0, [[0; 16]; 8]);
        }
        fx.mxcsr = u32::from_le_bytes(image[24..28].try_into().unwrap());
        for (i, ymm) in state.ymm.iter_mut().enumerate() {
            ymm.0.fill(0);
            if present & 2 != 0 {
                ymm.0[..16].copy_from_slice(&image[160 + 16 * i..][..16]);
            }
            if present & 4 != 0 {
                ymm.0[16..].copy_from_slice(&image[YMM_HIGH + 16 * i..][..16]);
            }
        }
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        // SAFETY: this value's own mapping.
        unsafe { libc::munmap(self.base.cast(), LEN) };
    }
}

struct Stub {
    encoder: Encoder,
    at: u64,
    ok: bool,
}

impl Stub {
    fn put(&mut self, instruction: Result<Instruction, iced_x86::IcedError>) {
        match self.encoder.encode(&instruction.unwrap(), self.at) {
            Ok(len) => self.at += len as u64,
            Err(_) => self.ok = false,
        }
    }
}
