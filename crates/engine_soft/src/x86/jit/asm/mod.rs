//! A small assembler for what the translator adds around guest instructions: address checks, register traffic,
//! jumps. Guest instructions themselves are encoded by iced-x86 (see [`super::rewrite`]). SDM vol. 2 ch. 2. Only the forms the translator needs, each a method named for its mnemonic.

mod operands;

pub use operands::{Alu, Condition, Mem, RAX, RBP, RCX, RDI, RDX, RSI, RSP, Reg, Size};

/// A place in the code that jumps may name before it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label(u32);

const UNBOUND: u32 = u32::MAX;

/// Code being written for a known host address.
#[derive(Default)]
pub struct Asm {
    bytes: Vec<u8>,
    base: u64,
    labels: Vec<u32>,
    /// Where one was bound last.
    bound: u32,
    /// Places of 32-bit displacements, relative to their end, and what they lead to.
    fixups: Vec<(u32, Label)>,
    /// Where the second part begins, if it does.
    second: u32,
}

impl Asm {
    /// Nothing yet, for host address `base`.
    pub fn new(base: u64) -> Self {
        Self { bytes: Vec::with_capacity(2048), base, ..Self::default() }
    }

    /// Starts over for host address `base`, in the memory of what was written before.
    pub fn restart(&mut self, base: u64) {
        self.bytes.clear();
        self.labels.clear();
        self.fixups.clear();
        (self.bound, self.second) = (0, 0);
        self.base = base;
    }

    /// What was written; once finished, the code.
    pub fn code(&self) -> &[u8] {
        &self.bytes
    }

    /// Bytes written so far: the place of the next instruction.
    pub fn position(&self) -> u32 {
        self.bytes.len() as u32
    }

    /// A label to be bound later.
    pub fn label(&mut self) -> Label {
        self.labels.push(UNBOUND);
        Label(self.labels.len() as u32 - 1)
    }

    /// Binds `label` here.
    pub fn bind(&mut self, label: Label) {
        self.bound = self.position();
        self.labels[label.0 as usize] = self.bound;
    }

    /// Whether a label is bound here.
    pub fn is_label_here(&self) -> bool {
        self.bound == self.position()
    }

    /// Where `label` was bound.
    pub fn offset_of(&self, label: Label) -> u32 {
        self.labels[label.0 as usize]
    }

    /// What is written from here on is a part of its own.
    pub fn begin_second_part(&mut self) {
        self.second = self.position();
    }

    /// Where the second part begins: at the end, if there is none.
    pub fn second_part(&self) -> u32 {
        if self.second == 0 { self.position() } else { self.second }
    }

    /// Resolves all labels. `across` is told where displacements are that lead from one part to the other.
    pub fn finish(&mut self, mut across: impl FnMut(u32)) {
        let second = self.second_part();
        for (at, label) in self.fixups.drain(..) {
            let target = self.labels[label.0 as usize];
            assert!(target != UNBOUND, "every label that is jumped to is bound");
            let displacement = target.wrapping_sub(at + 4);
            self.bytes[at as usize..at as usize + 4].copy_from_slice(&displacement.to_le_bytes());
            if (at < second) != (target < second) {
                across(at);
            }
        }
    }

    /// The code, once finished, to be changed.
    pub fn code_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// Bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    fn byte(&mut self, byte: u8) {
        self.bytes.push(byte);
    }

    fn dword(&mut self, value: i32) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// Prefixes, opcode, ModRM and what follows it, for `reg` and a register or memory operand.
    fn encode(&mut self, size: Size, prefix: Option<u8>, opcode: &[u8], reg: u8, rm: Operand) {
        if let Operand::Memory(Mem::Field(_)) = rm {
            self.byte(0x65);
        }
        if size == Size::Word {
            self.byte(0x66);
        }
        if let Some(prefix) = prefix {
            self.byte(prefix);
        }
        let (x, b) = match rm {
            Operand::Register(r) => (0, r.0 >> 3),
            Operand::Memory(Mem::Base(base, _)) => (0, base.0 >> 3),
            Operand::Memory(Mem::Indexed(base, index, ..)) => (index.0 >> 3, base.0 >> 3),
            Operand::Memory(Mem::Scaled(index, ..)) => (index.0 >> 3, 0),
            Operand::Memory(Mem::Field(_) | Mem::Absolute(_)) => (0, 0),
        };
        let w = u8::from(size == Size::Qword);
        let rex = 0x40 | w << 3 | (reg >> 3) << 2 | x << 1 | b;
        // SPL..DIL need the prefix even without bits.
        let byte_register =
            size == Size::Byte && (reg >= 4 || matches!(rm, Operand::Register(r) if r.0 >= 4));
        if rex != 0x40 || byte_register {
            self.byte(rex);
        }
        self.raw(opcode);
        self.modrm(reg & 7, rm);
    }

    fn modrm(&mut self, reg: u8, rm: Operand) {
        let reg = reg << 3;
        match rm {
            Operand::Register(r) => self.byte(0xc0 | reg | r.0 & 7),
            Operand::Memory(Mem::Field(offset) | Mem::Absolute(offset)) => {
                self.raw(&[reg | 4, 0x25]);
                self.dword(offset);
            }
            Operand::Memory(Mem::Scaled(index, scale, displacement)) => {
                self.raw(&[reg | 4, scale << 6 | (index.0 & 7) << 3 | 5]);
                self.dword(displacement);
            }
            Operand::Memory(Mem::Base(base, displacement)) => {
                let mode = displacement_mode(base, displacement);
                self.byte(mode << 6 | reg | base.0 & 7);
                if base.0 & 7 == 4 {
                    self.byte(0x24);
                }
                self.displacement(mode, displacement);
            }
            Operand::Memory(Mem::Indexed(base, index, scale, displacement)) => {
                let mode = displacement_mode(base, displacement);
                self.raw(&[mode << 6 | reg | 4, scale << 6 | (index.0 & 7) << 3 | base.0 & 7]);
                self.displacement(mode, displacement);
            }
        }
    }

    fn displacement(&mut self, mode: u8, displacement: i32) {
        match mode {
            1 => self.byte(displacement as u8),
            2 => self.dword(displacement),
            _ => {}
        }
    }

    /// `mov to, from`
    pub fn mov(&mut self, size: Size, to: Reg, from: Reg) {
        let opcode = if size == Size::Byte { 0x8a } else { 0x8b };
        self.encode(size, None, &[opcode], to.0, Operand::Register(from));
    }

    /// `rorx to, from, count` of 32 bits: BMI2.
    pub fn rotated_right(&mut self, to: Reg, from: Reg, count: u8) {
        let extended = |register: Reg| u8::from(register.0 < 8);
        let map = extended(to) << 7 | 1 << 6 | extended(from) << 5 | 3;
        self.raw(&[0xc4, map, 0x7b, 0xf0, 0xc0 | (to.0 & 7) << 3 | from.0 & 7, count]);
    }

    /// `mov to, [from]`; 32 bits and wider (narrower loads: `movzx`).
    pub fn load(&mut self, size: Size, to: Reg, from: Mem) {
        self.encode(size, None, &[0x8b], to.0, Operand::Memory(from));
    }

    /// `movzx to, word [from]`
    pub fn movzx_word(&mut self, to: Reg, from: Mem) {
        self.encode(Size::Dword, None, &[0x0f, 0xb7], to.0, Operand::Memory(from));
    }

    /// `mov [to], from`
    pub fn store(&mut self, size: Size, to: Mem, from: Reg) {
        let opcode = if size == Size::Byte { 0x88 } else { 0x89 };
        self.encode(size, None, &[opcode], from.0, Operand::Memory(to));
    }

    /// `mov [to], value`; sign-extended to 64 bits.
    pub fn store_immediate(&mut self, size: Size, to: Mem, value: i32) {
        let opcode = if size == Size::Byte { 0xc6 } else { 0xc7 };
        self.encode(size, None, &[opcode], 0, Operand::Memory(to));
        match size {
            Size::Byte => self.byte(value as u8),
            Size::Word => self.raw(&(value as i16).to_le_bytes()),
            _ => self.dword(value),
        }
    }

    /// `mov to, value`, in the shortest form.
    pub fn load_immediate(&mut self, to: Reg, value: u64) {
        if let Ok(value) = u32::try_from(value) {
            if to.0 >= 8 {
                self.byte(0x41);
            }
            self.byte(0xb8 | to.0 & 7);
            self.dword(value as i32);
        } else {
            self.load_address(to, value);
        }
    }

    /// `mov to, value` in a form that has room for every other value too.
    pub fn load_address(&mut self, to: Reg, value: u64) {
        self.raw(&[0x48 | to.0 >> 3, 0xb8 | to.0 & 7]);
        self.raw(&value.to_le_bytes());
    }

    /// `lea to, [address]`; a move, which many processors do for nothing, where that is the same.
    pub fn lea(&mut self, size: Size, to: Reg, address: Mem) {
        if let Mem::Base(base, 0) = address {
            return self.mov(size, to, base);
        }
        self.encode(size, None, &[0x8d], to.0, Operand::Memory(address));
    }

    /// `op to, from`
    pub fn alu(&mut self, size: Size, op: Alu, to: Reg, from: Reg) {
        self.encode(size, None, &[(op as u8) << 3 | 3], to.0, Operand::Register(from));
    }

    /// `op to, [from]`
    pub fn alu_load(&mut self, size: Size, op: Alu, to: Reg, from: Mem) {
        self.encode(size, None, &[(op as u8) << 3 | 3], to.0, Operand::Memory(from));
    }

    /// `imul to, from, value`
    pub fn multiply(&mut self, size: Size, to: Reg, from: Reg, value: i32) {
        self.encode(size, None, &[0x69], to.0, Operand::Register(from));
        self.dword(value);
    }

    /// `op to, value`
    pub fn alu_immediate(&mut self, size: Size, op: Alu, to: Reg, value: i32) {
        self.alu_value(size, op, Operand::Register(to), value);
    }

    /// `op [to], value`
    pub fn alu_memory_immediate(&mut self, size: Size, op: Alu, to: Mem, value: i32) {
        self.alu_value(size, op, Operand::Memory(to), value);
    }

    fn alu_value(&mut self, size: Size, op: Alu, rm: Operand, value: i32) {
        let short = i8::try_from(value).is_ok();
        let opcode = match size {
            Size::Byte => 0x80,
            _ if short => 0x83,
            _ => 0x81,
        };
        self.encode(size, None, &[opcode], op as u8, rm);
        match size {
            _ if short || size == Size::Byte => self.byte(value as u8),
            Size::Word => self.raw(&(value as i16).to_le_bytes()),
            _ => self.dword(value),
        }
    }

    /// `test register, register`
    pub fn test(&mut self, size: Size, a: Reg, b: Reg) {
        self.encode(size, None, &[0x85], b.0, Operand::Register(a));
    }

    /// `test register, value` of the register's low 32 bits.
    pub fn test_immediate(&mut self, register: Reg, value: i32) {
        self.encode(Size::Dword, None, &[0xf7], 0, Operand::Register(register));
        self.dword(value);
    }

    /// `test dword [memory], value`
    pub fn test_memory(&mut self, memory: Mem, value: i32) {
        self.encode(Size::Dword, None, &[0xf7], 0, Operand::Memory(memory));
        self.dword(value);
    }

    /// `test byte [memory], value`
    pub fn test_memory_byte(&mut self, memory: Mem, value: u8) {
        self.encode(Size::Byte, None, &[0xf6], 0, Operand::Memory(memory));
        self.byte(value);
    }

    /// `movsxd to, from`
    pub fn movsxd(&mut self, to: Reg, from: Reg) {
        self.encode(Size::Qword, None, &[0x63], to.0, Operand::Register(from));
    }

    /// `rep` of the string instruction whose form for bytes is `opcode`, of elements of 2 to the `shift` bytes.
    pub fn repeat(&mut self, opcode: u8, shift: u8) {
        match shift {
            0 => self.raw(&[0xf3, opcode]),
            1 => self.raw(&[0x66, 0xf3, opcode | 1]),
            2 => self.raw(&[0xf3, opcode | 1]),
            _ => self.raw(&[0xf3, 0x48, opcode | 1]),
        }
    }

    /// `rdtsc`
    pub fn rdtsc(&mut self) {
        self.raw(&[0x0f, 0x31]);
    }

    /// `test register, value` of the register's low byte.
    pub fn test_low_byte(&mut self, register: Reg, value: u8) {
        self.encode(Size::Byte, None, &[0xf6], 0, Operand::Register(register));
        self.byte(value);
    }

    /// `shr register, count`
    pub fn shr(&mut self, size: Size, register: Reg, count: u8) {
        self.encode(size, None, &[0xc1], 5, Operand::Register(register));
        self.byte(count);
    }

    /// `shl register, count`
    pub fn shl(&mut self, size: Size, register: Reg, count: u8) {
        self.encode(size, None, &[0xc1], 4, Operand::Register(register));
        self.byte(count);
    }

    /// `sar register, count`
    pub fn sar(&mut self, size: Size, register: Reg, count: u8) {
        self.encode(size, None, &[0xc1], 7, Operand::Register(register));
        self.byte(count);
    }

    /// Status flags into AX in the form of `width::StatusFlags`: `lahf; seto al`.
    pub fn flags_to_ax(&mut self) {
        self.raw(&[0x9f, 0x0f, 0x90, 0xc0]);
    }

    /// The way back: `add al, 127; sahf`.
    pub fn flags_from_ax(&mut self) {
        self.raw(&[0x04, 0x7f, 0x9e]);
    }

    /// `jcc label`
    pub fn jump_if(&mut self, condition: Condition, label: Label) {
        self.raw(&[0x0f, 0x80 | condition.0]);
        self.fixup(label);
    }

    /// `jmp label`
    pub fn jump(&mut self, label: Label) {
        self.byte(0xe9);
        self.fixup(label);
    }

    fn fixup(&mut self, label: Label) {
        self.fixups.push((self.position(), label));
        self.dword(0);
    }

    /// `jmp target`, a host address within reach.
    pub fn jump_to(&mut self, target: u64) {
        self.byte(0xe9);
        let next = self.base + u64::from(self.position()) + 4;
        self.dword(target.wrapping_sub(next) as i32);
    }

    /// `jmp [memory]`
    pub fn jump_indirect(&mut self, memory: Mem) {
        self.encode(Size::Dword, None, &[0xff], 4, Operand::Memory(memory));
    }

    /// `call [memory]`
    pub fn call_indirect(&mut self, memory: Mem) {
        self.encode(Size::Dword, None, &[0xff], 2, Operand::Memory(memory));
    }

    /// `push register`
    pub fn push(&mut self, register: Reg) {
        if register.0 >= 8 {
            self.byte(0x41);
        }
        self.byte(0x50 | register.0 & 7);
    }

    /// `pop register`
    pub fn pop(&mut self, register: Reg) {
        if register.0 >= 8 {
            self.byte(0x41);
        }
        self.byte(0x58 | register.0 & 7);
    }

    /// `call label`
    pub fn call(&mut self, label: Label) {
        self.byte(0xe8);
        self.fixup(label);
    }

    /// `ret`
    pub fn ret(&mut self) {
        self.byte(0xc3);
    }

    /// `movaps xmm, [from]`
    pub fn load_xmm(&mut self, xmm: u8, from: Mem) {
        self.encode(Size::Dword, None, &[0x0f, 0x28], xmm, Operand::Memory(from));
    }

    /// `movaps [to], xmm`
    pub fn store_xmm(&mut self, to: Mem, xmm: u8) {
        self.encode(Size::Dword, None, &[0x0f, 0x29], xmm, Operand::Memory(to));
    }

    /// `vmovaps ymm, [offset from GS]`
    pub fn load_ymm_field(&mut self, ymm: u8, offset: i32) {
        self.ymm_field(0x28, ymm, offset);
    }

    /// `vmovaps [offset from GS], ymm`
    pub fn store_ymm_field(&mut self, offset: i32, ymm: u8) {
        self.ymm_field(0x29, ymm, offset);
    }

    fn ymm_field(&mut self, opcode: u8, ymm: u8, offset: i32) {
        let r = if ymm >= 8 { 0 } else { 0x80 };
        self.raw(&[0x65, 0xc5, r | 0x7c, opcode]);
        self.modrm(ymm & 7, Operand::Memory(Mem::Field(offset)));
    }

    /// `vzeroupper`
    pub fn vzeroupper(&mut self) {
        self.raw(&[0xc5, 0xf8, 0x77]);
    }

    /// `fldcw [from]`
    pub fn fldcw(&mut self, from: Mem) {
        self.encode(Size::Dword, None, &[0xd9], 5, Operand::Memory(from));
    }

    /// `ldmxcsr [from]`
    pub fn ldmxcsr(&mut self, from: Mem) {
        self.encode(Size::Dword, None, &[0x0f, 0xae], 2, Operand::Memory(from));
    }

    /// `stmxcsr [to]`
    pub fn stmxcsr(&mut self, to: Mem) {
        self.encode(Size::Dword, None, &[0x0f, 0xae], 3, Operand::Memory(to));
    }
}

#[derive(Clone, Copy)]
enum Operand {
    Register(Reg),
    Memory(Mem),
}

/// The two bits of ModRM: no displacement, 8 bits, 32 bits.
fn displacement_mode(base: Reg, displacement: i32) -> u8 {
    match displacement {
        0 if base.0 & 7 != 5 => 0,
        _ if i8::try_from(displacement).is_ok() => 1,
        _ => 2,
    }
}

#[cfg(test)]
mod tests;
