//! Random operands for an instruction form.

use iced_x86::{Code, Instruction, OpCodeOperandKind as Kind, OpKind, Register};

use crate::case::Bits;
use crate::layout::{CODE32, CODE64, DATA32, DATA64, PAGE, USER_CS32, USER_CS64, ldt};
use crate::random::Random;

/// What the seeded registers hold, so that operands can be aimed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// An address in the data pages.
    Pointer,
    /// As `Pointer`, but below 4 GiB in 64-bit code.
    LowPointer,
    /// A small number.
    Small,
    /// The address of a breakpoint in the code page.
    Code,
    /// Anything.
    Any,
}

/// Where an instruction is going to be, and what is around it.
pub struct Place<'a> {
    pub bits: Bits,
    /// Offset in CS.
    pub ip: u64,
    /// Offset in CS of the case's first instruction.
    pub start: u64,
    pub roles: &'a [Role; 16],
    /// Base of the data segment.
    pub data_base: u64,
    /// Base of the code segment.
    pub code_base: u64,
}

/// Selectors worth loading: null, Linux's, ours, and such as must not be loaded.
pub const SELECTORS: [u16; 24] = [
    0,
    3,
    USER_CS32,
    0x2b,
    USER_CS64,
    0x10,
    0x18,
    0x40,
    0x50,
    0x1000,
    ldt(0),
    ldt(1),
    ldt(2),
    ldt(3),
    ldt(4),
    ldt(5),
    ldt(6),
    ldt(7),
    ldt(8),
    ldt(9),
    ldt(10),
    ldt(11),
    ldt(12),
    0x28,
];

impl Place<'_> {
    /// A linear address of the data pages for `size`-byte accesses.
    pub fn data_address(&self, random: &mut Random) -> u64 {
        let page = match random.below(8) {
            0 => 2,
            1..=4 => 0,
            _ => 1,
        };
        let offset = match random.below(10) {
            0..=5 => random.below(PAGE / 32) * 32,
            6 => PAGE - random.below(40),
            7 => random.below(40),
            _ => random.below(PAGE),
        };
        let start = if self.bits == Bits::B64 { DATA64 } else { DATA32 };
        start + page * PAGE + offset
    }

    /// The address of a breakpoint, as an offset in CS.
    pub fn breakpoint(&self, random: &mut Random) -> u64 {
        let start = if self.bits == Bits::B64 { CODE64 } else { CODE32 };
        (start + 0x800 + random.below(0x100)).wrapping_sub(self.code_base)
    }

    fn with_role(&self, random: &mut Random, wanted: Role) -> Option<u64> {
        let count = if self.bits == Bits::B64 { 16 } else { 8 };
        let first = random.below(count);
        (0..count).map(|i| (first + i) % count).find(|n| self.roles[*n as usize] == wanted)
    }

    fn branch_target(&self, random: &mut Random, len: u64) -> u64 {
        let next = self.ip + len;
        match random.below(20) {
            0..=11 => next + 1, // over a breakpoint that may follow
            12..=14 => next,
            15 => next + random.below(16),
            16 => self.start,
            17 => self.breakpoint(random),
            18 => next.wrapping_add(random.next() as i8 as u64),
            _ => next.wrapping_add(random.next() as i16 as u64),
        }
    }

    /// Fills in the memory operand.
    fn set_memory(&self, insn: &mut Instruction, random: &mut Random, vector_index: Option<Register>) {
        match self.bits {
            Bits::B16 if vector_index.is_none() && !random.chance(25) => self.set_memory16(insn, random),
            _ => self.set_memory32(insn, random, vector_index),
        }
        if random.chance(12) {
            let segments =
                [Register::ES, Register::CS, Register::SS, Register::DS, Register::FS, Register::GS];
            insn.set_segment_prefix(random.pick(&segments));
        }
    }

    fn set_memory16(&self, insn: &mut Instruction, random: &mut Random) {
        use Register::{BP, BX, DI, None, SI};
        let (base, index) = random.pick(&[
            (BX, SI),
            (BX, DI),
            (BP, SI),
            (BP, DI),
            (SI, None),
            (DI, None),
            (BP, None),
            (BX, None),
            (None, None),
        ]);
        insn.set_memory_base(base);
        insn.set_memory_index(index);
        let (displacement, size) = match (base, random.below(4)) {
            (None, _) => (self.data_address(random).wrapping_sub(self.data_base), 2),
            (_, 0) => (random.next() & 0xffff, 2),
            (_, 1) if base != BP => (0, 0),
            _ => (random.next() as i8 as u64, 1),
        };
        insn.set_memory_displacement64(displacement & 0xffff);
        insn.set_memory_displ_size(size);
    }

    fn set_memory32(&self, insn: &mut Instruction, random: &mut Random, vector_index: Option<Register>) {
        let wide = self.bits == Bits::B64 && !random.chance(8);
        let first = if wide { Register::RAX } else { Register::EAX };
        let count = if self.bits == Bits::B64 { 16 } else { 8 };
        let pointer = if self.bits == Bits::B64 && !wide { Role::LowPointer } else { Role::Pointer };
        let small = (random.next() as i8 as i64) & if random.chance(60) { !31 } else { !0 };
        let displacement = match random.below(8) {
            0..=2 => 0,
            3..=6 => small,
            _ => small * 13,
        };
        insn.set_memory_displ_size(if displacement == 0 {
            0
        } else if (-128..128).contains(&displacement) {
            1
        } else {
            4
        });
        let displacement = displacement as u64;
        insn.set_memory_displacement64(if wide { displacement } else { displacement & 0xffff_ffff });
        let kind = random.below(100);
        if vector_index.is_none() && kind < 10 && wide {
            insn.set_memory_base(Register::RIP);
            insn.set_memory_displacement64(self.data_address(random));
            insn.set_memory_displ_size(8);
            return;
        }
        if vector_index.is_none() && kind < 17 {
            let low = self.data_address(random) & 0xffff | DATA32;
            let low =
                if self.bits == Bits::B64 { low } else { low.wrapping_sub(self.data_base) & 0xffff_ffff };
            insn.set_memory_displacement64(low);
            insn.set_memory_displ_size(if wide { 8 } else { 4 });
            return;
        }
        let base = if kind < 92 { self.with_role(random, pointer) } else { None };
        let base = base.unwrap_or_else(|| random.below(count));
        insn.set_memory_base(first + base as u32);
        if let Some(index) = vector_index {
            insn.set_memory_index(index);
            insn.set_memory_index_scale(1 << random.below(4));
        } else if random.chance(30) {
            let index = if random.chance(85) { self.with_role(random, Role::Small) } else { None };
            let index = index.unwrap_or_else(|| random.below(count));
            if index != 4 {
                insn.set_memory_index(first + index as u32);
                insn.set_memory_index_scale(1 << random.below(4));
            }
        }
    }
}

fn byte_register(random: &mut Random, bits: Bits) -> Register {
    use Register::*;
    const ALL: [Register; 20] =
        [AL, CL, DL, BL, AH, CH, DH, BH, SPL, BPL, SIL, DIL, R8L, R9L, R10L, R11L, R12L, R13L, R14L, R15L];
    let count = if bits == Bits::B64 { 20 } else { 8 };
    ALL[random.below(count) as usize]
}

/// Instructions whose memory operand is an address only, at a register the encoding does not name.
fn implicit_kind(bits: Bits, random: &mut Random, kinds: [OpKind; 3]) -> OpKind {
    let [k16, k32, k64] = kinds;
    match (bits, random.chance(85)) {
        (Bits::B64, true) => k64,
        (Bits::B64, false) | (Bits::B32, true) | (Bits::B16, false) => k32,
        _ => k16,
    }
}

/// A random instruction of form `code`; `None` if the draw has no encoding.
pub fn instruction(code: Code, place: &Place, random: &mut Random) -> Option<Instruction> {
    let op_code = code.op_code();
    let mut insn = Instruction::default();
    insn.set_code(code);
    insn.set_memory_index_scale(1);
    for n in 0..op_code.op_count() {
        operand(&mut insn, n, op_code.op_kind(n), place, random)?;
    }
    let in_memory = (0..insn.op_count()).any(|n| insn.op_kind(n) == OpKind::Memory);
    let lockable = op_code.can_use_lock_prefix() && in_memory;
    insn.set_has_lock_prefix(if lockable { random.chance(40) } else { random.below(300) == 0 });
    if op_code.can_use_rep_prefix() && insn.is_string_instruction() {
        insn.set_has_rep_prefix(random.chance(45));
    }
    if op_code.can_use_repne_prefix() && insn.is_string_instruction() && !insn.has_rep_prefix() {
        insn.set_has_repne_prefix(random.chance(45));
    }
    Some(insn)
}

fn operand(insn: &mut Instruction, n: u32, kind: Kind, place: &Place, random: &mut Random) -> Option<()> {
    let count = if place.bits == Bits::B64 { 16 } else { 8 };
    let register = |insn: &mut Instruction, register: Register| {
        insn.set_op_kind(n, OpKind::Register);
        insn.set_op_register(n, register);
    };
    let numbered = |insn: &mut Instruction, first: Register, count: u64, random: &mut Random| {
        register(insn, first + random.below(count) as u32);
    };
    let or_memory = |insn: &mut Instruction, first: Option<(Register, u64)>, random: &mut Random| {
        if random.chance(50) {
            insn.set_op_kind(n, OpKind::Memory);
            place.set_memory(insn, random, None);
        } else if let Some((first, count)) = first {
            register(insn, first + random.below(count) as u32);
        } else {
            register(insn, byte_register(random, place.bits));
        }
    };
    match kind {
        Kind::mem | Kind::mem_mib => {
            insn.set_op_kind(n, OpKind::Memory);
            place.set_memory(insn, random, None);
        }
        Kind::mem_vsib32x | Kind::mem_vsib64x => {
            insn.set_op_kind(n, OpKind::Memory);
            let index = Register::XMM0 + random.below(count) as u32;
            place.set_memory(insn, random, Some(index));
        }
        Kind::mem_vsib32y | Kind::mem_vsib64y => {
            insn.set_op_kind(n, OpKind::Memory);
            let index = Register::YMM0 + random.below(count) as u32;
            place.set_memory(insn, random, Some(index));
        }
        Kind::mem_offs => {
            insn.set_op_kind(n, OpKind::Memory);
            let size = match place.bits {
                Bits::B64 if random.chance(70) => 8,
                Bits::B16 if random.chance(70) => 2,
                _ => 4,
            };
            let address = place.data_address(random);
            let address = match size {
                8 => address,
                4 if place.bits == Bits::B64 => address & 0xffff | DATA32,
                4 => address.wrapping_sub(place.data_base) & 0xffff_ffff,
                _ => address.wrapping_sub(place.data_base) & 0xffff,
            };
            insn.set_memory_displacement64(address);
            insn.set_memory_displ_size(size);
        }
        Kind::r8_or_mem => or_memory(insn, None, random),
        Kind::r16_or_mem => or_memory(insn, Some((Register::AX, count)), random),
        Kind::r32_or_mem => or_memory(insn, Some((Register::EAX, count)), random),
        Kind::r64_or_mem => or_memory(insn, Some((Register::RAX, count)), random),
        Kind::mm_or_mem => or_memory(insn, Some((Register::MM0, 8)), random),
        Kind::xmm_or_mem => or_memory(insn, Some((Register::XMM0, count)), random),
        Kind::ymm_or_mem => or_memory(insn, Some((Register::YMM0, count)), random),
        Kind::r8_reg | Kind::r8_opcode => register(insn, byte_register(random, place.bits)),
        Kind::r16_reg | Kind::r16_reg_mem | Kind::r16_rm | Kind::r16_opcode => {
            numbered(insn, Register::AX, count, random);
        }
        Kind::r32_reg | Kind::r32_reg_mem | Kind::r32_rm | Kind::r32_opcode | Kind::r32_vvvv => {
            numbered(insn, Register::EAX, count, random);
        }
        Kind::r64_reg | Kind::r64_reg_mem | Kind::r64_rm | Kind::r64_opcode | Kind::r64_vvvv => {
            numbered(insn, Register::RAX, count, random);
        }
        Kind::seg_reg => numbered(insn, Register::ES, 6, random),
        Kind::cr_reg => numbered(insn, Register::CR0, 16, random),
        Kind::dr_reg => numbered(insn, Register::DR0, 16, random),
        Kind::mm_reg | Kind::mm_rm => numbered(insn, Register::MM0, 8, random),
        Kind::xmm_reg | Kind::xmm_rm | Kind::xmm_vvvv | Kind::xmm_is4 | Kind::xmm_is5 => {
            numbered(insn, Register::XMM0, count, random);
        }
        Kind::ymm_reg | Kind::ymm_rm | Kind::ymm_vvvv | Kind::ymm_is4 | Kind::ymm_is5 => {
            numbered(insn, Register::YMM0, count, random);
        }
        Kind::es => register(insn, Register::ES),
        Kind::cs => register(insn, Register::CS),
        Kind::ss => register(insn, Register::SS),
        Kind::ds => register(insn, Register::DS),
        Kind::fs => register(insn, Register::FS),
        Kind::gs => register(insn, Register::GS),
        Kind::al => register(insn, Register::AL),
        Kind::cl => register(insn, Register::CL),
        Kind::ax => register(insn, Register::AX),
        Kind::dx => register(insn, Register::DX),
        Kind::eax => register(insn, Register::EAX),
        Kind::rax => register(insn, Register::RAX),
        Kind::st0 => register(insn, Register::ST0),
        Kind::sti_opcode => numbered(insn, Register::ST0, 8, random),
        Kind::seg_rSI => {
            let kinds = [OpKind::MemorySegSI, OpKind::MemorySegESI, OpKind::MemorySegRSI];
            // CMPS and MOVS name two such operands, which must be of one width.
            let kind = if n > 0 { source_like(insn.op_kind(0)) } else { None };
            insn.set_op_kind(n, kind.unwrap_or_else(|| implicit_kind(place.bits, random, kinds)));
            if random.chance(10) {
                insn.set_segment_prefix(Register::ES + random.below(6) as u32);
            }
        }
        Kind::es_rDI => {
            let kinds = [OpKind::MemoryESDI, OpKind::MemoryESEDI, OpKind::MemoryESRDI];
            let kind = if n > 0 { destination_like(insn.op_kind(0)) } else { None };
            insn.set_op_kind(n, kind.unwrap_or_else(|| implicit_kind(place.bits, random, kinds)));
        }
        Kind::seg_rDI => {
            let kinds = [OpKind::MemorySegDI, OpKind::MemorySegEDI, OpKind::MemorySegRDI];
            insn.set_op_kind(n, implicit_kind(place.bits, random, kinds));
        }
        Kind::seg_rBX_al => {
            insn.set_op_kind(n, OpKind::Memory);
            let bases = [OpKind::MemorySegSI, OpKind::MemorySegESI, OpKind::MemorySegRSI];
            insn.set_memory_base(match implicit_kind(place.bits, random, bases) {
                OpKind::MemorySegSI => Register::BX,
                OpKind::MemorySegESI => Register::EBX,
                _ => Register::RBX,
            });
            insn.set_memory_index(Register::AL);
        }
        _ => return immediate(insn, n, kind, place, random),
    }
    Some(())
}

fn source_like(kind: OpKind) -> Option<OpKind> {
    Some(match kind {
        OpKind::MemoryESDI => OpKind::MemorySegSI,
        OpKind::MemoryESEDI => OpKind::MemorySegESI,
        OpKind::MemoryESRDI => OpKind::MemorySegRSI,
        _ => return None,
    })
}

fn destination_like(kind: OpKind) -> Option<OpKind> {
    Some(match kind {
        OpKind::MemorySegSI => OpKind::MemoryESDI,
        OpKind::MemorySegESI => OpKind::MemoryESEDI,
        OpKind::MemorySegRSI => OpKind::MemoryESRDI,
        _ => return None,
    })
}

fn immediate(insn: &mut Instruction, n: u32, kind: Kind, place: &Place, random: &mut Random) -> Option<()> {
    let value = if random.chance(30) { random.below(40) } else { random.word() };
    let op_kind = match kind {
        Kind::imm8 | Kind::imm8_const_1 if n > 0 && insn.op_kind(n - 1) == OpKind::Immediate16 => {
            OpKind::Immediate8_2nd // ENTER
        }
        Kind::imm8 | Kind::imm8_const_1 => OpKind::Immediate8,
        Kind::imm8sex16 => OpKind::Immediate8to16,
        Kind::imm8sex32 => OpKind::Immediate8to32,
        Kind::imm8sex64 => OpKind::Immediate8to64,
        Kind::imm16 => OpKind::Immediate16,
        Kind::imm32 => OpKind::Immediate32,
        Kind::imm32sex64 => OpKind::Immediate32to64,
        Kind::imm64 => OpKind::Immediate64,
        Kind::br16_1 | Kind::br16_2 => OpKind::NearBranch16,
        Kind::br32_1 | Kind::br32_4 => OpKind::NearBranch32,
        Kind::br64_1 | Kind::br64_4 => OpKind::NearBranch64,
        Kind::farbr2_2 => OpKind::FarBranch16,
        Kind::farbr4_2 => OpKind::FarBranch32,
        _ => return None,
    };
    insn.set_op_kind(n, op_kind);
    match op_kind {
        OpKind::Immediate8 if kind == Kind::imm8_const_1 => insn.set_immediate8(1),
        OpKind::Immediate8 => insn.set_immediate8(value as u8),
        OpKind::Immediate8_2nd => insn.set_immediate8_2nd(value as u8),
        OpKind::Immediate8to16 => insn.set_immediate8to16(i16::from(value as i8)),
        OpKind::Immediate8to32 => insn.set_immediate8to32(i32::from(value as i8)),
        OpKind::Immediate8to64 => insn.set_immediate8to64(i64::from(value as i8)),
        OpKind::Immediate16 => insn.set_immediate16(value as u16),
        OpKind::Immediate32 => insn.set_immediate32(value as u32),
        OpKind::Immediate32to64 => insn.set_immediate32to64(i64::from(value as i32)),
        OpKind::Immediate64 => insn.set_immediate64(value),
        OpKind::FarBranch16 | OpKind::FarBranch32 => {
            insn.set_far_branch_selector(random.pick(&SELECTORS));
            let target = place.breakpoint(random);
            insn.set_far_branch16(target as u16);
            insn.set_far_branch32(target as u32);
        }
        _ => {
            let len = match kind {
                Kind::br16_1 | Kind::br32_1 | Kind::br64_1 => 2,
                Kind::br16_2 => 3,
                _ => 5,
            };
            let target = place.branch_target(random, len);
            match op_kind {
                OpKind::NearBranch16 => insn.set_near_branch16(target as u16),
                OpKind::NearBranch32 => insn.set_near_branch32(target as u32),
                _ => insn.set_near_branch64(target),
            }
        }
    }
    Some(())
}
