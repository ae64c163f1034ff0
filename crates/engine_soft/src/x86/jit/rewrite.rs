//! From a guest instruction to the same instruction on host registers.

use iced_x86::{
    Code, Instruction, InstructionInfoFactory, InstructionInfoOptions, OpAccess, OpKind, Register,
};

use super::asm::Reg;

/// The first scratch register: addresses.
pub const S0: Reg = Reg(10);
/// The second scratch register.
pub const S1: Reg = Reg(11);
/// Where the guest's RSP lives.
pub const GUEST_RSP: Reg = Reg(9);

/// Guest registers that live in host registers, with their numbers on both sides.
pub const MAPPED: [(u8, Reg); 13] = [
    (0, Reg(0)),
    (1, Reg(1)),
    (2, Reg(2)),
    (3, Reg(3)),
    (4, GUEST_RSP),
    (5, Reg(5)),
    (6, Reg(6)),
    (7, Reg(7)),
    (8, Reg(8)),
    (12, Reg(12)),
    (13, Reg(13)),
    (14, Reg(14)),
    (15, Reg(15)),
];

/// The host register that holds guest register `number`; `None` for those in memory.
pub fn host_of(number: u8) -> Option<Reg> {
    match number {
        4 => Some(GUEST_RSP),
        9..=11 => None,
        _ => Some(Reg(number)),
    }
}

/// The number of a general purpose register of any width.
pub fn number(register: Register) -> u8 {
    register.full_register().number() as u8
}

/// Whether `register` is AH, CH, DH or BH.
pub fn is_high_byte(register: Register) -> bool {
    matches!(register, Register::AH | Register::CH | Register::DH | Register::BH)
}

/// Host register `reg` in the width of `like`.
pub(super) fn sized(reg: Reg, like: Register) -> Register {
    let n = u32::from(reg.0);
    match like.size() {
        1 if n < 4 => Register::AL + n,
        1 => Register::SPL + (n - 4),
        2 => Register::AX + n,
        4 => Register::EAX + n,
        _ => Register::RAX + n,
    }
}

/// A guest register that lives in memory, while an instruction uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Borrowed {
    /// The guest register's number.
    pub guest: u8,
    /// The scratch register that stands for it.
    pub host: Reg,
    /// Its value matters.
    pub read: bool,
    /// The instruction changes it.
    pub written: bool,
}

/// A guest instruction made ready for the host.
#[derive(Clone, Debug)]
pub struct Rewritten {
    /// The instruction on host registers; its memory operand is still to be placed.
    pub instruction: Instruction,
    /// Registers to load before and store after.
    pub borrowed: [Option<Borrowed>; 2],
    /// Whether the guest's bytes serve as they are.
    pub verbatim: bool,
}

/// An instruction of the host's.
pub(super) struct Encoded {
    bytes: [u8; 15],
    len: usize,
}

impl Encoded {
    /// `None` if there are more than an instruction has.
    pub(super) fn of(bytes: &[u8]) -> Option<Self> {
        let mut encoded = Self { bytes: [0; 15], len: bytes.len() };
        encoded.bytes.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(encoded)
    }
}

impl std::ops::Deref for Encoded {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Whether an access reads or writes.
pub fn reads(access: OpAccess) -> bool {
    matches!(access, OpAccess::Read | OpAccess::CondRead | OpAccess::ReadWrite | OpAccess::ReadCondWrite)
}

/// Whether an access may write.
pub fn writes(access: OpAccess) -> bool {
    matches!(access, OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite)
}

/// Whether the operand in memory is in a segment that has a base in 64-bit code too.
pub fn in_segment(instruction: &Instruction) -> bool {
    matches!(instruction.memory_segment(), Register::FS | Register::GS)
}

/// Replaces the explicit registers of `instruction`. `scratch` are free for registers that live in memory;
/// `None` if they do not suffice.
pub fn registers(
    instruction: &Instruction,
    info: &mut InstructionInfoFactory,
    scratch: &[Reg],
) -> Option<Rewritten> {
    let mut rewritten = Rewritten { instruction: *instruction, borrowed: [None; 2], verbatim: true };
    for n in 0..instruction.op_count() {
        if instruction.op_kind(n) != OpKind::Register {
            continue;
        }
        let register = instruction.op_register(n);
        if !register.is_gpr() {
            continue;
        }
        let guest = number(register);
        let host = match host_of(guest) {
            Some(host) if host.0 == guest => continue,
            Some(host) => host,
            None => {
                let options =
                    InstructionInfoOptions::NO_MEMORY_USAGE | InstructionInfoOptions::NO_REGISTER_USAGE;
                let access = info.info_options(instruction, options).op_access(n);
                let partial = register.size() < 4 && writes(access);
                // A destination that may stay as it is must hold its value before.
                let read = reads(access) || partial || access == OpAccess::CondWrite;
                borrow(&mut rewritten.borrowed, guest, scratch, read, writes(access))?
            }
        };
        rewritten.verbatim = false;
        rewritten.instruction.set_op_register(n, sized(host, register));
    }
    Some(rewritten)
}

fn borrow(
    borrowed: &mut [Option<Borrowed>; 2],
    guest: u8,
    scratch: &[Reg],
    read: bool,
    written: bool,
) -> Option<Reg> {
    if let Some(known) = borrowed.iter_mut().flatten().find(|b| b.guest == guest) {
        known.read |= read;
        known.written |= written;
        return Some(known.host);
    }
    let taken = borrowed.iter().flatten().count();
    let host = *scratch.get(taken)?;
    *borrowed.get_mut(taken)? = Some(Borrowed { guest, host, read, written });
    Some(host)
}

/// The same instruction in a form that 64-bit code has too, and whose operand in memory can be anywhere.
pub(super) fn widened(instruction: &Instruction) -> Instruction {
    use Code::*;
    let mut wide = *instruction;
    wide.set_code(match instruction.code() {
        Inc_r16 => Inc_rm16,
        Inc_r32 => Inc_rm32,
        Dec_r16 => Dec_rm16,
        Dec_r32 => Dec_rm32,
        Mov_AL_moffs8 => Mov_r8_rm8,
        Mov_AX_moffs16 => Mov_r16_rm16,
        Mov_EAX_moffs32 => Mov_r32_rm32,
        Mov_moffs8_AL => Mov_rm8_r8,
        Mov_moffs16_AX => Mov_rm16_r16,
        Mov_moffs32_EAX => Mov_rm32_r32,
        other => other,
    });
    wide
}

/// Makes the memory operand `[base + displacement]` or `[base + index + displacement]`.
pub fn place_memory(instruction: &mut Instruction, base: Reg, index: Option<Reg>, displacement: i32) {
    let wide = |reg: Reg| Register::RAX + u32::from(reg.0);
    instruction.set_memory_base(wide(base));
    instruction.set_memory_index(index.map_or(Register::None, wide));
    instruction.set_memory_index_scale(1);
    instruction.set_memory_displacement64(i64::from(displacement) as u64);
    instruction.set_memory_displ_size(u32::from(displacement != 0));
    instruction.set_segment_prefix(Register::None);
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions};

    fn decode(bytes: &[u8]) -> Instruction {
        Decoder::new(64, bytes, DecoderOptions::NONE).decode()
    }

    #[test]
    fn registers_at_home_stay_as_they_are() {
        let mut info = InstructionInfoFactory::new();
        let made = registers(&decode(&[0x48, 0x01, 0xd8]), &mut info, &[]).unwrap(); // add rax, rbx
        assert!(made.verbatim && made.borrowed == [None; 2]);
    }

    #[test]
    fn the_stack_pointer_and_registers_in_memory_are_replaced() {
        let mut info = InstructionInfoFactory::new();
        let made = registers(&decode(&[0x4c, 0x89, 0xd4]), &mut info, &[S0, S1]).unwrap(); // mov rsp, r10
        assert_eq!(made.instruction.op0_register(), Register::R9);
        assert_eq!(made.instruction.op1_register(), Register::R10);
        let wanted = Borrowed { guest: 10, host: S0, read: true, written: false };
        assert_eq!(made.borrowed, [Some(wanted), None]);
    }

    #[test]
    fn a_byte_written_needs_the_rest_of_its_register() {
        let mut info = InstructionInfoFactory::new();
        let made = registers(&decode(&[0x41, 0xb1, 0x05]), &mut info, &[S1]).unwrap(); // mov r9b, 5
        assert_eq!(made.borrowed[0], Some(Borrowed { guest: 9, host: S1, read: true, written: true }));
        assert_eq!(made.instruction.op0_register(), Register::R11L);
    }

    #[test]
    fn too_many_registers_in_memory_are_refused() {
        let mut info = InstructionInfoFactory::new();
        let two = decode(&[0x4d, 0x01, 0xca]); // add r10, r9
        assert!(registers(&two, &mut info, &[S0]).is_none());
        assert_eq!(two.code(), Code::Add_rm64_r64);
    }
}
