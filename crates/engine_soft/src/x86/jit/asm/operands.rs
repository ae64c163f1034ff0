//! What instructions are about: registers, places in memory, widths, conditions.

/// A host general purpose register, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reg(pub u8);

/// RAX
pub const RAX: Reg = Reg(0);
/// RCX
pub const RCX: Reg = Reg(1);
/// RDX
pub const RDX: Reg = Reg(2);
/// RSP
pub const RSP: Reg = Reg(4);
/// RBP
pub const RBP: Reg = Reg(5);
/// RSI
pub const RSI: Reg = Reg(6);
/// RDI
pub const RDI: Reg = Reg(7);

/// A memory operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mem {
    /// A field of the vCPU, at this offset from the GS base.
    Field(i32),
    /// `[base + displacement]`
    Base(Reg, i32),
    /// `[base + index * scale + displacement]`, scale as its logarithm.
    Indexed(Reg, Reg, u8, i32),
    /// `[index * scale + displacement]`
    Scaled(Reg, u8, i32),
    /// `[displacement]`
    Absolute(i32),
}

/// Width of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// 8 bits.
    Byte,
    /// 16 bits.
    Word,
    /// 32 bits; a register's upper half is cleared.
    Dword,
    /// 64 bits.
    Qword,
}

/// Condition codes, as in the low four bits of the opcodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Condition(pub u8);

impl Condition {
    /// Below (unsigned).
    pub const B: Self = Self(2);
    /// Above or equal (unsigned).
    pub const AE: Self = Self(3);
    /// Equal.
    pub const E: Self = Self(4);
    /// Not equal.
    pub const NE: Self = Self(5);
    /// Below or equal (unsigned).
    pub const BE: Self = Self(6);
    /// Above (unsigned).
    pub const A: Self = Self(7);

    /// The opposite.
    pub fn inverse(self) -> Self {
        Self(self.0 ^ 1)
    }
}

/// The two-operand operations, by the opcode of their `r, r/m` form and the extension of their immediate form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alu {
    /// ADD
    Add = 0,
    /// OR
    Or = 1,
    /// AND
    And = 4,
    /// SUB
    Sub = 5,
    /// XOR
    Xor = 6,
    /// CMP
    Cmp = 7,
}
