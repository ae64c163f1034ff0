//! Which host registers stand for which guest registers while an instruction runs.
//!
//! Vector, MMX and x87 registers stand for themselves. A general purpose register named by an operand may be
//! any of the host's, so operands are moved to registers a thunk may clobber: the guest's RSP is then no
//! special case. Registers an instruction uses without naming them (RDX in MULX) must be themselves.

use iced_x86::{
    Instruction, InstructionInfoFactory, InstructionInfoOptions, OpAccess, OpCodeOperandKind, OpKind,
    Register,
};

use super::kinds;

/// A general purpose register of the guest and its stand-in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pair {
    /// Number of the guest's register.
    pub(super) guest: usize,
    /// The full host register.
    pub(super) host: Register,
    /// Whether the instruction writes it.
    pub(super) written: bool,
}

/// The registers one instruction uses.
#[derive(Clone, Debug, Default)]
pub(super) struct Registers {
    pub(super) general: Vec<Pair>,
    /// Number and whether it is written.
    pub(super) vector: Vec<(usize, bool)>,
}

/// Where the thunk keeps the address of the state and of the memory operand.
pub(super) const STATE: Register = Register::RDI;
pub(super) const MEMORY: Register = Register::RSI;

/// Stand-ins; without a REX prefix only the first three can be named, or have a high byte.
const FREE: &[Register] =
    &[Register::RAX, Register::RCX, Register::RDX, Register::R8, Register::R9, Register::R10, Register::R11];
const FREE_WITHOUT_REX: &[Register] = &[Register::RAX, Register::RCX, Register::RDX, Register::RBX];

fn writes(access: OpAccess) -> bool {
    !matches!(access, OpAccess::None | OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess)
}

fn is_high_byte(register: Register) -> bool {
    matches!(register, Register::AH | Register::CH | Register::DH | Register::BH)
}

/// Whether the operand names a register freely, rather than being always the same one.
fn is_free(kind: OpCodeOperandKind) -> bool {
    use OpCodeOperandKind as Kind;
    !matches!(kind, Kind::al | Kind::cl | Kind::ax | Kind::dx | Kind::eax | Kind::rax)
}

impl Registers {
    /// The registers of `instruction`, which is changed to name the stand-ins; `None` if it uses one that a
    /// thunk needs for itself.
    pub(super) fn assign(instruction: &mut Instruction) -> Option<Self> {
        let mut used = Self::of(instruction);
        let kinds = kinds::of(instruction.code());
        let named = |instruction: &Instruction, i: u32| {
            instruction.op_kind(i) == OpKind::Register && instruction.op_register(i).is_gpr()
        };
        let operands: Vec<u32> = (0..instruction.op_count()).filter(|&i| named(instruction, i)).collect();
        let high = operands.iter().any(|&i| is_high_byte(instruction.op_register(i)));
        let free_operands: Vec<u32> =
            operands.iter().copied().filter(|&i| is_free(kinds[i as usize])).collect();
        let is_named = |guest: usize| {
            free_operands.iter().any(|&i| instruction.op_register(i).full_register().number() == guest)
        };
        let is_fixed = |guest: usize| {
            !is_named(guest)
                || operands.iter().any(|&i| {
                    !is_free(kinds[i as usize])
                        && instruction.op_register(i).full_register().number() == guest
                })
                || implicit(instruction, guest)
        };
        let mut taken = Vec::new();
        for pair in used.general.iter().filter(|pair| is_fixed(pair.guest)) {
            taken.push(pair.host);
        }
        if taken.iter().any(|r| [Register::RSP, Register::RBP, STATE, MEMORY].contains(r) || r.number() > 11)
        {
            return None;
        }
        let pool = if high { FREE_WITHOUT_REX } else { FREE };
        for pair in &mut used.general {
            if is_fixed(pair.guest) {
                continue;
            }
            pair.host = *pool.iter().find(|r| !taken.contains(r))?;
            taken.push(pair.host);
        }
        for &i in &free_operands {
            let before = instruction.op_register(i);
            let guest = before.full_register().number();
            let host = used.general.iter().find(|pair| pair.guest == guest)?.host;
            instruction.set_op_register(i, same_part(before, host));
        }
        Some(used)
    }

    /// Whether the thunk must keep the host's RBX, the only stand-in that belongs to its caller.
    pub(super) fn use_rbx(&self) -> bool {
        self.general.iter().any(|pair| pair.host == Register::RBX)
    }

    fn of(instruction: &Instruction) -> Self {
        let mut found = Self::default();
        let mut factory = InstructionInfoFactory::new();
        let info = factory.info_options(instruction, InstructionInfoOptions::NO_MEMORY_USAGE);
        for used in info.used_registers() {
            let (register, write) = (used.register(), writes(used.access()));
            if register.is_gpr() {
                found.note_general(register, write);
            } else if register.is_vector_register() {
                match found.vector.iter_mut().find(|v| v.0 == register.number()) {
                    Some(known) => known.1 |= write,
                    None => found.vector.push((register.number(), write)),
                }
            }
        }
        found
    }

    fn note_general(&mut self, register: Register, write: bool) {
        let full = register.full_register();
        match self.general.iter_mut().find(|pair| pair.guest == full.number()) {
            Some(known) => known.written |= write,
            None => self.general.push(Pair { guest: full.number(), host: full, written: write }),
        }
    }
}

/// Whether `instruction` uses the general purpose register `guest` beside its operands: what it still uses
/// once the operands that name it are other registers.
fn implicit(instruction: &Instruction, guest: usize) -> bool {
    const PROBES: [Register; 4] = [Register::R12, Register::R13, Register::R14, Register::R15];
    let mut probe = *instruction;
    let others = PROBES.iter().filter(|r| r.number() != guest);
    for (i, other) in (0..instruction.op_count()).zip(others) {
        let register = instruction.op_register(i);
        if instruction.op_kind(i) == OpKind::Register && register.is_gpr() {
            let low = if is_high_byte(register) { Register::AL } else { register };
            probe.set_op_register(i, same_part(low, *other));
        }
    }
    Registers::of(&probe).general.iter().any(|pair| pair.guest == guest)
}

/// The part of `full` that `like` is of its own full register.
fn same_part(like: Register, full: Register) -> Register {
    const LOW: [Register; 16] = [
        Register::AL,
        Register::CL,
        Register::DL,
        Register::BL,
        Register::SPL,
        Register::BPL,
        Register::SIL,
        Register::DIL,
        Register::R8L,
        Register::R9L,
        Register::R10L,
        Register::R11L,
        Register::R12L,
        Register::R13L,
        Register::R14L,
        Register::R15L,
    ];
    const HIGH: [Register; 4] = [Register::AH, Register::CH, Register::DH, Register::BH];
    let number = full.number();
    match like.size() {
        1 if is_high_byte(like) => HIGH[number & 3],
        1 => LOW[number],
        2 => Register::AX + number as u32,
        4 => Register::EAX + number as u32,
        _ => full,
    }
}
