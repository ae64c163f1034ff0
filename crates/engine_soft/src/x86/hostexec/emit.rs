//! Writes the host code of a thunk: load what the instruction uses, run it, store what it wrote.
//!
//! RDI holds the address of the state, RSI that of the memory operand; every other register a thunk changes
//! is one its caller expects to lose, except RBX, which is pushed. Order matters in two places: loading the
//! flags needs RAX and RCX, so it comes before the general registers, and storing them comes after; FXRSTOR
//! and FXSAVE touch XMM registers and MXCSR, so the former comes first and the latter last.

use std::mem::offset_of;

use arch::x86::CpuState;
use arch::x86::state::FxImage;
use iced_x86::{Code, Encoder, Instruction, MemoryOperand, Mnemonic, Register, RflagsBits};

use super::form::{Form, has_memory, set_address};
use super::registers::{MEMORY, Registers, STATE};
use super::{Class, Unsupported};

/// MXCSR as Rust code expects it: defaults, no flag raised.
const HOST_MXCSR: u32 = FxImage::MXCSR_RESET;
/// Bytes before the shared exit: the MXCSR constant, padded.
const EXIT_OFFSET: u32 = 16;
/// The six arithmetic flags.
const STATUS_FLAGS: u32 = arch::x86::Rflags::STATUS.bits() as u32;

/// Collects instructions and encodes them for one address.
struct Emitter {
    encoder: Encoder,
    address: u64,
    broken: bool,
}

impl Emitter {
    fn new(address: u64) -> Self {
        Self { encoder: Encoder::new(64), address, broken: false }
    }

    fn put(&mut self, instruction: &Instruction) {
        match self.encoder.encode(instruction, self.address) {
            Ok(len) => self.address += len as u64,
            Err(_) => self.broken = true,
        }
    }

    /// Appends what a constructor of the decoder crate made; an error there is an error of the whole.
    fn put_new(&mut self, instruction: Result<Instruction, iced_x86::IcedError>) {
        self.put(&instruction.unwrap_or_default());
    }

    fn load(&mut self, code: Code, register: Register, offset: usize) {
        self.put_new(Instruction::with2(code, register, field(offset)));
    }

    fn store(&mut self, code: Code, offset: usize, register: Register) {
        self.put_new(Instruction::with2(code, field(offset), register));
    }

    /// An instruction whose only operand is the field at `offset` of the state.
    fn with_field(&mut self, code: Code, offset: usize) {
        self.put_new(Instruction::with1(code, field(offset)));
    }

    fn plain(&mut self, code: Code) {
        self.put(&Instruction::with(code));
    }

    fn immediate(&mut self, code: Code, register: Register, value: i32) {
        self.put_new(Instruction::with2(code, register, value));
    }

    /// Loads MXCSR with the constant at host address `constant`.
    fn restore_mxcsr(&mut self, constant: u64) {
        let operand = MemoryOperand::with_base_displ(Register::RIP, constant as i64);
        self.put_new(Instruction::with1(Code::Ldmxcsr_m32, operand));
    }

    fn return_value(&mut self, value: i32) {
        self.immediate(Code::Mov_r32_imm32, Register::EAX, value);
        self.plain(Code::Retnq);
    }

    fn finish(mut self) -> Option<Vec<u8>> {
        (!self.broken).then(|| self.encoder.take_buffer())
    }
}

/// The field at `offset` of the state.
fn field(offset: usize) -> MemoryOperand {
    MemoryOperand::with_base_displ(STATE, offset as i64)
}

const RFLAGS: usize = offset_of!(CpuState, rflags);
const FX: usize = offset_of!(CpuState, fx);
const MXCSR: usize = FX + offset_of!(FxImage, mxcsr);

fn gpr(number: usize) -> usize {
    offset_of!(CpuState, gpr) + 8 * number
}

fn ymm(number: usize) -> usize {
    offset_of!(CpuState, ymm) + 32 * number
}

/// The code at the start of an area that will be at `address`: the host's MXCSR, then, at the second value
/// returned, the exit that a thunk stopped by a floating-point error takes.
pub(super) fn shared(address: u64, host_has_avx: bool) -> Option<(Vec<u8>, u32)> {
    let mut bytes = HOST_MXCSR.to_le_bytes().to_vec();
    bytes.resize(EXIT_OFFSET as usize, 0);
    let mut emitter = Emitter::new(address + u64::from(EXIT_OFFSET));
    if host_has_avx {
        emitter.plain(Code::VEX_Vzeroupper);
    }
    emitter.plain(Code::Fninit);
    emitter.restore_mxcsr(address);
    emitter.return_value(1);
    bytes.extend(emitter.finish()?);
    Some((bytes, EXIT_OFFSET))
}

/// The thunk that runs the normalised `instruction`, for host address `address`; `host_mxcsr` is where the
/// constant is.
///
/// # Errors
/// [`Unsupported::NotHere`] if it has no 64-bit encoding or needs registers in a way no thunk can provide.
pub(super) fn thunk(
    instruction: &Instruction,
    form: &Form,
    address: u64,
    host_mxcsr: u64,
) -> Result<Vec<u8>, Unsupported> {
    let mut host = *instruction;
    let registers = Registers::assign(&mut host).ok_or(Unsupported::NotHere)?;
    if has_memory(&host) {
        set_address(&mut host, MEMORY);
    }
    let x87 = matches!(form.class, Class::X87 | Class::X87Control | Class::Mmx | Class::MmxSse);
    let avx = form.class == Class::Avx;
    let reads_flags = instruction.rflags_read() & STATUS_BITS != 0;
    let writes_flags =
        instruction.rflags_modified() & STATUS_BITS != 0 || is_rotation_with_carry(instruction);
    let mut emitter = Emitter::new(address);
    if registers.use_rbx() {
        emitter.put_new(Instruction::with1(Code::Push_r64, Register::RBX));
    }
    if x87 {
        emitter.with_field(Code::Fxrstor64_m512byte, FX);
    } else if form.uses_mxcsr {
        emitter.with_field(Code::Ldmxcsr_m32, MXCSR);
    }
    load_vectors(&mut emitter, &registers, avx);
    // Vector instructions write all six flags or none; others may leave some as they were.
    if reads_flags || writes_flags && !matches!(form.class, Class::Sse | Class::Avx) {
        load_flags(&mut emitter);
    }
    for pair in &registers.general {
        emitter.load(Code::Mov_r64_rm64, pair.host, gpr(pair.guest));
    }
    emitter.put(&host);
    for pair in registers.general.iter().filter(|pair| pair.written) {
        emitter.store(Code::Mov_rm64_r64, gpr(pair.guest), pair.host);
    }
    if writes_flags {
        store_flags(&mut emitter);
    }
    store_vectors(&mut emitter, &registers, avx);
    if x87 {
        emitter.with_field(Code::Fxsave64_m512byte, FX);
        emitter.plain(Code::Fninit);
        emitter.restore_mxcsr(host_mxcsr);
    } else if form.uses_mxcsr {
        emitter.with_field(Code::Stmxcsr_m32, MXCSR);
        emitter.restore_mxcsr(host_mxcsr);
    }
    if avx {
        emitter.plain(Code::VEX_Vzeroupper);
    }
    if registers.use_rbx() {
        emitter.put_new(Instruction::with1(Code::Pop_r64, Register::RBX));
    }
    emitter.return_value(0);
    emitter.finish().ok_or(Unsupported::NotHere)
}

/// Intel's leave the flags alone if they rotate by nothing, as by 18 of 9 bits; AMD's write an OF all the same.
fn is_rotation_with_carry(instruction: &Instruction) -> bool {
    matches!(instruction.mnemonic(), Mnemonic::Rcl | Mnemonic::Rcr)
}

const STATUS_BITS: u32 =
    RflagsBits::OF | RflagsBits::SF | RflagsBits::ZF | RflagsBits::AF | RflagsBits::CF | RflagsBits::PF;

/// Legacy SSE instructions neither see nor change bits 255:128, so those stay in the state; VEX ones do both.
fn load_vectors(emitter: &mut Emitter, registers: &Registers, avx: bool) {
    for &(number, _) in &registers.vector {
        if avx {
            emitter.load(Code::VEX_Vmovdqa_ymm_ymmm256, Register::YMM0 + number as u32, ymm(number));
        } else {
            emitter.load(Code::Movaps_xmm_xmmm128, Register::XMM0 + number as u32, ymm(number));
        }
    }
}

fn store_vectors(emitter: &mut Emitter, registers: &Registers, avx: bool) {
    for &(number, _) in registers.vector.iter().filter(|v| v.1) {
        if avx {
            emitter.store(Code::VEX_Vmovdqa_ymmm256_ymm, ymm(number), Register::YMM0 + number as u32);
        } else {
            emitter.store(Code::Movaps_xmmm128_xmm, ymm(number), Register::XMM0 + number as u32);
        }
    }
}

/// Loads the arithmetic flags: OF by an addition that overflows if it was set, the others by SAHF. POPFQ
/// takes ten times as long and would load the guest's TF and AC too.
fn load_flags(emitter: &mut Emitter) {
    emitter.load(Code::Mov_r32_rm32, Register::EAX, RFLAGS);
    emitter.put_new(Instruction::with2(Code::Mov_r32_rm32, Register::ECX, Register::EAX));
    emitter.immediate(Code::Shr_rm32_imm8, Register::ECX, 11);
    emitter.immediate(Code::And_rm32_imm8, Register::ECX, 1);
    emitter.immediate(Code::Add_rm8_imm8, Register::CL, 0x7f);
    emitter.put_new(Instruction::with2(Code::Mov_r8_rm8, Register::AH, Register::AL));
    emitter.plain(Code::Sahf);
}

/// Stores the arithmetic flags; the others of RFLAGS stay.
fn store_flags(emitter: &mut Emitter) {
    emitter.plain(Code::Pushfq);
    emitter.put_new(Instruction::with1(Code::Pop_r64, Register::RAX));
    emitter.immediate(Code::And_rm32_imm32, Register::EAX, STATUS_FLAGS as i32);
    emitter.load(Code::Mov_r64_rm64, Register::RCX, RFLAGS);
    emitter.immediate(Code::And_rm64_imm32, Register::RCX, !(STATUS_FLAGS as i32));
    emitter.put_new(Instruction::with2(Code::Or_r64_rm64, Register::RCX, Register::RAX));
    emitter.store(Code::Mov_rm64_r64, RFLAGS, Register::RCX);
}
