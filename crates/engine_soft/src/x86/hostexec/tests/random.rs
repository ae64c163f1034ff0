//! Random instructions of a given form and random register files.

use arch::x86::CpuState;
use arch::x86::state::Ymm;
use iced_x86::{Code, Instruction, OpCodeOperandKind as Kind, OpKind, Register};

/// xorshift64*: enough for test data, and the same everywhere.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(super) fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 16) % limit
    }

    /// Bits that are often an interesting integer or number of either precision.
    pub(super) fn word(&mut self) -> u64 {
        const INTERESTING: [u64; 16] = [
            0,
            u64::MAX,
            1,
            0x8000_0000_0000_0000,
            0x7fff_ffff_ffff_ffff,
            0x7ff0_0000_0000_0000, // infinity
            0x7ff8_0000_0000_0000, // quiet NaN
            0x7ff0_0000_0000_0001, // signalling NaN
            0x3ff0_0000_3f80_0000, // about one, and one
            0x0000_0000_0000_0001, // denormal
            0x7f80_0000_ff80_0000, // single infinities
            0x7fc0_0000_7f80_0001, // single NaNs
            0x0000_0001_8000_0000, // single denormal, minus zero
            0x7f7f_ffff_0080_0000, // single largest, smallest normal
            0x4330_0000_4b00_0000,
            0x0010_0000_0000_0000, // smallest normal
        ];
        match self.below(4) {
            0 => INTERESTING[self.below(16) as usize],
            1 => (self.next() & 0x000f_ffff_ffff_ffff) | (1023 - 8 + self.below(16)) << 52,
            2 => {
                let half = |r: &mut Self| (r.next() & 0x807f_ffff) | (127 - 8 + r.below(16)) << 23;
                half(self) | half(self) << 32
            }
            _ => self.next(),
        }
    }
}

/// Some 80-bit number, in its 16 bytes.
fn extended(random: &mut Random) -> [u8; 16] {
    let significand = match random.below(6) {
        0 => 0,
        1 => 1 << 63,
        2 => random.next(), // perhaps an unnormal
        _ => random.next() | 1 << 63,
    };
    let exponent = match random.below(6) {
        0 => 0,
        1 => 0x7fff,
        2 => random.next() as u16,
        _ => 0x3fff - 8 + random.below(16) as u16,
    };
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&significand.to_le_bytes());
    bytes[8..10].copy_from_slice(&exponent.to_le_bytes());
    bytes
}

/// A register file with no error pending and no SIMD error unmasked.
pub(super) fn fill(state: &mut CpuState, random: &mut Random) {
    state.gpr = std::array::from_fn(|_| random.word());
    state.rflags = 2 | random.next() & 0x8d5;
    state.ymm = std::array::from_fn(|_| {
        let mut ymm = Ymm::default();
        ymm.0.chunks_exact_mut(8).for_each(|lane| lane.copy_from_slice(&random.word().to_le_bytes()));
        ymm
    });
    state.fx.mxcsr = 0x1f80 | random.next() as u32 & 0xe07f;
    state.fx.st = std::array::from_fn(|_| extended(random));
    state.fx.fcw = 0x40 | random.next() as u16 & 0x0c00 | [0, 0x200, 0x300][random.below(3) as usize];
    state.fx.fcw |= if random.below(2) == 0 { 0x3f } else { random.next() as u16 & 0x3f };
    state.fx.fsw = random.next() as u16 & 0x7f40 | random.next() as u16 & 0x3f & state.fx.fcw;
    state.fx.ftw = if random.below(2) == 0 { 0xff } else { random.next() as u8 };
    state.fx.fip = random.next() & 0x7fff_ffff_ffff;
    state.fx.fdp = random.next() & 0x7fff_ffff_ffff;
    state.fx.fop = random.next() as u16 & 0x7ff;
}

/// What an operand may be: a register out of some, memory, an immediate.
enum Choice {
    Register(Register, u64),
    Byte,
    Memory,
    RegisterOrMemory(Register, u64),
    ByteOrMemory,
    Immediate(OpKind),
    Fixed(Register),
}

fn choice(kind: Kind) -> Option<Choice> {
    Some(match kind {
        Kind::mem => Choice::Memory,
        Kind::r8_or_mem => Choice::ByteOrMemory,
        Kind::r16_or_mem => Choice::RegisterOrMemory(Register::AX, 16),
        Kind::r32_or_mem => Choice::RegisterOrMemory(Register::EAX, 16),
        Kind::r64_or_mem => Choice::RegisterOrMemory(Register::RAX, 16),
        Kind::mm_or_mem => Choice::RegisterOrMemory(Register::MM0, 8),
        Kind::xmm_or_mem => Choice::RegisterOrMemory(Register::XMM0, 16),
        Kind::ymm_or_mem => Choice::RegisterOrMemory(Register::YMM0, 16),
        Kind::r8_reg | Kind::r8_opcode => Choice::Byte,
        Kind::r16_reg | Kind::r16_reg_mem | Kind::r16_rm | Kind::r16_opcode => {
            Choice::Register(Register::AX, 16)
        }
        Kind::r32_reg | Kind::r32_reg_mem | Kind::r32_rm | Kind::r32_opcode | Kind::r32_vvvv => {
            Choice::Register(Register::EAX, 16)
        }
        Kind::r64_reg | Kind::r64_reg_mem | Kind::r64_rm | Kind::r64_opcode | Kind::r64_vvvv => {
            Choice::Register(Register::RAX, 16)
        }
        Kind::mm_reg | Kind::mm_rm => Choice::Register(Register::MM0, 8),
        Kind::xmm_reg | Kind::xmm_rm | Kind::xmm_vvvv | Kind::xmm_is4 => Choice::Register(Register::XMM0, 16),
        Kind::ymm_reg | Kind::ymm_rm | Kind::ymm_vvvv | Kind::ymm_is4 => Choice::Register(Register::YMM0, 16),
        Kind::al => Choice::Fixed(Register::AL),
        Kind::cl => Choice::Fixed(Register::CL),
        Kind::ax => Choice::Fixed(Register::AX),
        Kind::eax => Choice::Fixed(Register::EAX),
        Kind::rax => Choice::Fixed(Register::RAX),
        Kind::st0 => Choice::Fixed(Register::ST0),
        Kind::sti_opcode => Choice::Register(Register::ST0, 8),
        Kind::imm8 | Kind::imm8_const_1 => Choice::Immediate(OpKind::Immediate8),
        Kind::imm8sex16 => Choice::Immediate(OpKind::Immediate8to16),
        Kind::imm8sex32 => Choice::Immediate(OpKind::Immediate8to32),
        Kind::imm8sex64 => Choice::Immediate(OpKind::Immediate8to64),
        Kind::imm16 => Choice::Immediate(OpKind::Immediate16),
        Kind::imm32 => Choice::Immediate(OpKind::Immediate32),
        Kind::imm32sex64 => Choice::Immediate(OpKind::Immediate32to64),
        Kind::imm64 => Choice::Immediate(OpKind::Immediate64),
        _ => return None,
    })
}

/// A random instruction of form `code`; its memory operand, if any, is `[base]` with a base register no other
/// operand uses. `None` for forms with operands of other kinds.
pub(super) fn instruction(code: Code, random: &mut Random) -> Option<Instruction> {
    let op_code = code.op_code();
    let mut instruction = Instruction::default();
    instruction.set_code(code);
    let set_register = |instruction: &mut Instruction, i: u32, register: Register| {
        instruction.set_op_kind(i, OpKind::Register);
        instruction.set_op_register(i, register);
    };
    let byte = |random: &mut Random| {
        const BYTES: [Register; 20] = {
            use Register::*;
            [AL, CL, DL, BL, AH, CH, DH, BH, SPL, BPL, SIL, DIL, R8L, R9L, R10L, R11L, R12L, R13L, R14L, R15L]
        };
        BYTES[random.below(20) as usize]
    };
    for i in 0..op_code.op_count() {
        let memory = random.below(2) == 0;
        match choice(op_code.op_kind(i))? {
            Choice::Memory => instruction.set_op_kind(i, OpKind::Memory),
            Choice::RegisterOrMemory(..) | Choice::ByteOrMemory if memory => {
                instruction.set_op_kind(i, OpKind::Memory);
            }
            Choice::Register(first, count) | Choice::RegisterOrMemory(first, count) => {
                set_register(&mut instruction, i, first + random.below(count) as u32);
            }
            Choice::Byte | Choice::ByteOrMemory => set_register(&mut instruction, i, byte(random)),
            Choice::Fixed(register) => set_register(&mut instruction, i, register),
            Choice::Immediate(kind) => {
                instruction.set_op_kind(i, kind);
                let one = op_code.op_kind(i) == Kind::imm8_const_1;
                let value = if one { 1 } else { random.next() };
                match kind {
                    OpKind::Immediate8 => instruction.set_immediate8(value as u8),
                    OpKind::Immediate8to16 => instruction.set_immediate8to16(i16::from(value as i8)),
                    OpKind::Immediate8to32 => instruction.set_immediate8to32(i32::from(value as i8)),
                    OpKind::Immediate8to64 => instruction.set_immediate8to64(i64::from(value as i8)),
                    OpKind::Immediate16 => instruction.set_immediate16(value as u16),
                    OpKind::Immediate32 => instruction.set_immediate32(value as u32),
                    OpKind::Immediate32to64 => instruction.set_immediate32to64(i64::from(value as i32)),
                    _ => instruction.set_immediate64(value),
                }
            }
        }
    }
    if super::form::has_memory(&instruction) {
        let free = |register: Register| {
            // RAX to RBX are left to instructions that use them without saying so.
            register.number() > 3
                && (0..instruction.op_count()).all(|i| instruction.op_register(i).full_register() != register)
        };
        let bases: Vec<Register> = (0..16).map(|i| Register::RAX + i).filter(|&r| free(r)).collect();
        instruction.set_memory_base(bases[random.below(bases.len() as u64) as usize]);
        let locks = op_code.can_use_lock_prefix() && instruction.op0_kind() == OpKind::Memory;
        instruction.set_has_lock_prefix(locks && random.below(2) == 0);
    }
    Some(instruction)
}
