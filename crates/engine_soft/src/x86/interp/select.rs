//! Which function executes an instruction, and with which operands.
//!
//! A table in the form of matches, by mnemonic. Anything without a line of its own goes to `hostexec`; what
//! that refuses is #UD.

use arch::x86::SegmentRegister;
use iced_x86::{Code, ConditionCode, Instruction, Mnemonic, OpKind, Register};

use super::cpu::Cpu;
use super::op::{Handler, Op, address};
use super::ops::alu::{self, Binary, Unary};
use super::ops::bits::{self, Shift, action};
use super::ops::control::{self, loop_kind};
use super::ops::string::{self, repeat};
use super::ops::vector::Extra;
use super::ops::{atomic, data, legacy, multiply, stack, system, vector};

/// An operation, and whether the block ends with it.
pub struct Selected {
    /// Complete but for its place in the block.
    pub op: Op,
    /// Nothing may follow it in the block.
    pub ends: bool,
}

/// The function of a width: `by_width!(bytes, f)` or `by_width!(bytes, f, G)` with leading generics.
macro_rules! by_width {
    ($size:expr, $f:path $(, $g:ty)*) => {{
        use $f as function;
        let handler: Handler = match $size {
            1 => function::<$($g,)* u8>,
            2 => function::<$($g,)* u16>,
            4 => function::<$($g,)* u32>,
            _ => function::<$($g,)* u64>,
        };
        handler
    }};
}

/// As `by_width!` for functions that exist from 16 bits up, with trailing const generics.
macro_rules! by_wide {
    ($size:expr, $f:path $(; $c:expr)*) => {{
        use $f as function;
        let handler: Handler = match $size {
            2 => function::<u16 $(, $c)*>,
            4 => function::<u32 $(, $c)*>,
            _ => function::<u64 $(, $c)*>,
        };
        handler
    }};
}

/// As `by_width!` with trailing const generics.
macro_rules! by_width_const {
    ($size:expr, $f:path $(, $g:ty)* ; $($c:expr),+) => {{
        use $f as function;
        let handler: Handler = match $size {
            1 => function::<$($g,)* u8, $($c),+>,
            2 => function::<$($g,)* u16, $($c),+>,
            4 => function::<$($g,)* u32, $($c),+>,
            _ => function::<$($g,)* u64, $($c),+>,
        };
        handler
    }};
}

/// The instantiation for a condition code.
macro_rules! by_condition {
    ($condition:expr, $f:ident $(, $t:ty)*) => {
        match $condition {
            0 => $f::<$($t,)* 0>, 1 => $f::<$($t,)* 1>, 2 => $f::<$($t,)* 2>, 3 => $f::<$($t,)* 3>,
            4 => $f::<$($t,)* 4>, 5 => $f::<$($t,)* 5>, 6 => $f::<$($t,)* 6>, 7 => $f::<$($t,)* 7>,
            8 => $f::<$($t,)* 8>, 9 => $f::<$($t,)* 9>, 10 => $f::<$($t,)* 10>, 11 => $f::<$($t,)* 11>,
            12 => $f::<$($t,)* 12>, 13 => $f::<$($t,)* 13>, 14 => $f::<$($t,)* 14>, _ => $f::<$($t,)* 15>,
        }
    };
}

/// An instruction on its way to an operation.
pub(super) struct Form<'a> {
    /// The instruction.
    pub insn: &'a Instruction,
    /// Width of the code.
    pub bits: u32,
}

impl Form<'_> {
    /// Whether operand `n` is in memory.
    pub fn is_memory(&self, n: u32) -> bool {
        self.insn.op_kind(n) == OpKind::Memory
    }

    /// Bytes of operand `n`.
    pub fn size(&self, n: u32) -> usize {
        match self.insn.op_kind(n) {
            OpKind::Register => self.insn.op_register(n).size(),
            _ => self.insn.memory_size().size(),
        }
    }

    /// An operation with the memory operand's address parts.
    pub fn with_memory(&self, run: Handler) -> Op {
        let insn = self.insn;
        let mut op = Op::plain(run);
        let base = insn.memory_base();
        let address_bits = self.address_bits();
        if base == Register::RIP || base == Register::EIP {
            op.base = Cpu::BLOCK_IP;
        } else if base != Register::None {
            op.base = offset_of_register(base.full_register());
        }
        if insn.memory_index().is_gpr() {
            op.index = offset_of_register(insn.memory_index().full_register());
        }
        op.scale = insn.memory_index_scale().trailing_zeros() as u8;
        op.disp = insn.memory_displacement64();
        let segment = insn.memory_segment();
        op.segment = segment.number() as u8;
        op.address = match address_bits {
            16 => address::MASK16,
            32 => address::MASK32,
            _ => 0,
        };
        if self.bits != 64 {
            op.address |= address::CHECKED;
        } else if matches!(segment, Register::FS | Register::GS) {
            op.address |= address::SEGMENT;
        }
        op
    }

    /// The same, for an operand that has to be aligned to 16 bytes.
    fn with_aligned_memory(&self, run: Handler) -> Op {
        let op = self.with_memory(run);
        Op { address: op.address | address::ALIGNED16, ..op }
    }

    /// Width of the memory operand's address.
    fn address_bits(&self) -> u32 {
        let named = [self.insn.memory_base(), self.insn.memory_index()];
        match named.into_iter().find(|r| *r != Register::None && !r.is_vector_register()) {
            Some(Register::RIP) => 64,
            Some(Register::EIP) => 32,
            Some(register) => register.size() as u32 * 8,
            None => match self.insn.memory_displ_size() {
                8 => 64,
                2 => 16,
                4 => 32,
                // A vector index alone: the code's own width.
                _ => self.bits,
            },
        }
    }

    /// An operation on operands 0 (destination) and 1 (source), of which one may be in memory.
    fn two(&self, rr: Handler, rm: Handler, mr: Handler) -> Op {
        if self.is_memory(0) {
            let mut op = self.with_memory(mr);
            op.src = self.register(1);
            op
        } else if self.is_memory(1) {
            let mut op = self.with_memory(rm);
            op.dst = self.register(0);
            op
        } else {
            let mut op = Op::plain(rr);
            op.dst = self.register(0);
            op.src = self.register(1);
            op
        }
    }

    /// Operand `n` as destination and source of an operation: register or memory.
    fn one(&self, n: u32, register: Handler, memory: Handler) -> Op {
        if self.is_memory(n) {
            return self.with_memory(memory);
        }
        let mut op = Op::plain(register);
        op.dst = self.register(n);
        op.src = op.dst;
        op
    }

    /// Offset of register operand `n`.
    pub fn register(&self, n: u32) -> u16 {
        offset_of_register(self.insn.op_register(n))
    }
}

/// Byte offset of a general purpose register in `Cpu` (which begins with `CpuState`, which begins with them).
pub(super) fn offset_of_register(register: Register) -> u16 {
    const { assert!(std::mem::offset_of!(Cpu, state.gpr) == 0) };
    let number = register.full_register().number() as u16;
    let high = matches!(register, Register::AH | Register::CH | Register::DH | Register::BH);
    if high { (register.number() as u16 - Register::AH.number() as u16) * 8 + 1 } else { number * 8 }
}

/// Picks the operation for `insn`, decoded from the start of `bytes` in code of `bits`.
pub fn operation(cpu: &mut Cpu, insn: &Instruction, bytes: &[u8], bits: u32) -> Selected {
    let form = Form { insn, bits };
    if insn.is_invalid() {
        let only_prefixes = bytes.len() >= 15 && bytes[..15].iter().all(|b| is_prefix(*b, bits));
        let run = if only_prefixes { vector::too_long } else { vector::undefined };
        return Selected { op: Op::plain(run), ends: true };
    }
    if let Some(selected) = branch(&form) {
        return selected;
    }
    if let Some(op) = integer(&form).or_else(|| movement(&form)).or_else(|| strings(&form)) {
        return Selected { op, ends: false };
    }
    if let Some(selected) = system::select(&form) {
        return selected;
    }
    Selected { op: thunk(cpu, &form, bytes), ends: false }
}

fn is_prefix(byte: u8, bits: u32) -> bool {
    matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3)
        || (bits == 64 && byte & 0xf0 == 0x40)
}

/// `hostexec`'s operation.
fn thunk(cpu: &mut Cpu, form: &Form, bytes: &[u8]) -> Op {
    let Ok(thunk) = cpu.thunks.compile(form.insn, form.bits, bytes) else {
        return Op::plain(vector::undefined);
    };
    let mut first = [0; 15];
    let len = form.insn.len();
    first[..len].copy_from_slice(&bytes[..len]);
    let extra = Extra { thunk, instruction: *form.insn, bytes: first, bits: form.bits as u8 };
    let run: Handler = if vector::may_use_flags(thunk.class(), form.insn) {
        vector::run::<true>
    } else {
        vector::run::<false>
    };
    let has_memory = (0..form.insn.op_count()).any(|n| form.is_memory(n));
    let mut op = if has_memory { form.with_memory(run) } else { Op::plain(run) };
    if !has_memory && thunk.is_scattered() {
        // MASKMOVQ and MASKMOVDQU: the operand is implicit, at (E/R)DI.
        op = implicit_address(form, run, 7);
    }
    op.imm = cpu.cache.keep(extra) as u64;
    op.dst = Op::THUNK;
    op
}

/// An operation whose memory operand is at a register the instruction does not spell out.
fn implicit_address(form: &Form, run: Handler, register: u16) -> Op {
    let mut op = Op::plain(run);
    let bits = (0..form.insn.op_count())
        .map(|n| form.insn.op_kind(n))
        .find_map(|kind| match kind {
            OpKind::MemorySegDI | OpKind::MemorySegSI => Some(16),
            OpKind::MemorySegEDI | OpKind::MemorySegESI => Some(32),
            OpKind::MemorySegRDI | OpKind::MemorySegRSI => Some(64),
            _ => None,
        })
        .unwrap_or(form.bits);
    op.base = register * 8;
    op.segment = form.insn.memory_segment().number() as u8;
    op.address = match bits {
        16 => address::MASK16,
        32 => address::MASK32,
        _ => 0,
    };
    if form.bits != 64 {
        op.address |= address::CHECKED;
    } else if op.segment >= SegmentRegister::Fs as u8 {
        op.address |= address::SEGMENT;
    }
    op
}

fn binary<O: Binary>(form: &Form) -> Op {
    let size = form.size(0);
    let immediate = !matches!(form.insn.op_kind(1), OpKind::Register | OpKind::Memory);
    if form.insn.has_lock_prefix() {
        let mut op = if immediate {
            form.with_memory(by_width!(size, alu::locked_immediate, O))
        } else {
            form.with_memory(by_width!(size, alu::locked_register, O))
        };
        if immediate {
            op.imm = form.insn.immediate(1)
        } else {
            op.src = form.register(1)
        }
        return op;
    }
    if immediate {
        let mut op = form.one(
            0,
            by_width!(size, alu::register_immediate, O),
            by_width!(size, alu::memory_immediate, O),
        );
        op.imm = form.insn.immediate(1);
        return op;
    }
    form.two(
        by_width!(size, alu::register_register, O),
        by_width!(size, alu::register_memory, O),
        by_width!(size, alu::memory_register, O),
    )
}

fn unary<O: Unary>(form: &Form) -> Op {
    let size = form.size(0);
    if form.insn.has_lock_prefix() {
        return form.with_memory(by_width!(size, alu::unary_locked, O));
    }
    form.one(0, by_width!(size, alu::unary_register, O), by_width!(size, alu::unary_memory, O))
}

fn shift<O: Shift>(form: &Form) -> Op {
    let size = form.size(0);
    let by_cl = form.insn.op_kind(1) == OpKind::Register;
    let mut op = if by_cl {
        form.one(
            0,
            by_width_const!(size, bits::shift_register, O; true),
            by_width_const!(size, bits::shift_memory, O; true),
        )
    } else {
        form.one(
            0,
            by_width_const!(size, bits::shift_register, O; false),
            by_width_const!(size, bits::shift_memory, O; false),
        )
    };
    if !by_cl {
        op.imm = form.insn.immediate(1);
    }
    op
}

fn double_shift<const LEFT: bool>(form: &Form) -> Op {
    let size = form.size(0);
    let by_cl = form.insn.op_kind(2) == OpKind::Register;
    let mut op = if by_cl {
        form.one(
            0,
            by_wide!(size, bits::double_shift_register; LEFT; true),
            by_wide!(size, bits::double_shift_memory; LEFT; true),
        )
    } else {
        form.one(
            0,
            by_wide!(size, bits::double_shift_register; LEFT; false),
            by_wide!(size, bits::double_shift_memory; LEFT; false),
        )
    };
    op.src = form.register(1);
    if !by_cl {
        op.imm = form.insn.immediate(2);
    }
    op
}

fn bit<const ACTION: u8>(form: &Form) -> Op {
    let size = form.size(0);
    let locked = form.insn.has_lock_prefix();
    if form.insn.op_kind(1) == OpKind::Register {
        let memory = if locked {
            by_wide!(size, bits::bit_memory; ACTION; true)
        } else {
            by_wide!(size, bits::bit_memory; ACTION; false)
        };
        let mut op = form.one(0, by_wide!(size, bits::bit_register; ACTION), memory);
        op.src = form.register(1);
        return op;
    }
    let memory = if locked {
        by_wide!(size, bits::bit_memory_immediate; ACTION; true)
    } else {
        by_wide!(size, bits::bit_memory_immediate; ACTION; false)
    };
    let mut op = form.one(0, by_wide!(size, bits::bit_register_immediate; ACTION), memory);
    op.imm = form.insn.immediate(1);
    op
}

fn scan<const FORWARD: bool>(form: &Form) -> Op {
    let size = form.size(0);
    if form.is_memory(1) {
        let mut op = form.with_memory(by_wide!(size, bits::scan; FORWARD; true));
        op.dst = form.register(0);
        return op;
    }
    let mut op = Op::plain(by_wide!(size, bits::scan; FORWARD; false));
    op.dst = form.register(0);
    op.src = form.register(1);
    op
}

/// IMUL in its three shapes.
fn signed_multiply(form: &Form) -> Op {
    let insn = form.insn;
    let size = form.size(0);
    if insn.op_count() == 1 {
        return form.one(
            0,
            by_width_const!(size, multiply::multiply_signed; false),
            by_width_const!(size, multiply::multiply_signed; true),
        );
    }
    let (register, memory) = if insn.op_count() == 2 {
        (by_wide!(size, multiply::multiply_into; false), by_wide!(size, multiply::multiply_into; true))
    } else {
        (
            by_wide!(size, multiply::multiply_immediate; false),
            by_wide!(size, multiply::multiply_immediate; true),
        )
    };
    let mut op = form.one(1, register, memory);
    op.dst = form.register(0);
    if insn.op_count() == 3 {
        op.imm = insn.immediate(2);
    }
    op
}

/// Arithmetic, logic, bits.
fn integer(form: &Form) -> Option<Op> {
    let size = || form.size(0);
    Some(match form.insn.mnemonic() {
        Mnemonic::Add => binary::<alu::Add>(form),
        Mnemonic::Or => binary::<alu::Or>(form),
        Mnemonic::Adc => binary::<alu::Adc>(form),
        Mnemonic::Sbb => binary::<alu::Sbb>(form),
        Mnemonic::And => binary::<alu::And>(form),
        Mnemonic::Sub => binary::<alu::Sub>(form),
        Mnemonic::Xor => binary::<alu::Xor>(form),
        Mnemonic::Cmp => binary::<alu::Cmp>(form),
        Mnemonic::Test => binary::<alu::Test>(form),
        Mnemonic::Inc => unary::<alu::Inc>(form),
        Mnemonic::Dec => unary::<alu::Dec>(form),
        Mnemonic::Neg => unary::<alu::Neg>(form),
        Mnemonic::Not => unary::<alu::Not>(form),
        Mnemonic::Shl | Mnemonic::Sal => shift::<bits::Shl>(form),
        Mnemonic::Shr => shift::<bits::Shr>(form),
        Mnemonic::Sar => shift::<bits::Sar>(form),
        Mnemonic::Rol => shift::<bits::Rol>(form),
        Mnemonic::Ror => shift::<bits::Ror>(form),
        Mnemonic::Rcl => shift::<bits::Rcl>(form),
        Mnemonic::Rcr => shift::<bits::Rcr>(form),
        Mnemonic::Shld => double_shift::<true>(form),
        Mnemonic::Shrd => double_shift::<false>(form),
        Mnemonic::Bt => bit::<{ action::TEST }>(form),
        Mnemonic::Bts => bit::<{ action::SET }>(form),
        Mnemonic::Btr => bit::<{ action::RESET }>(form),
        Mnemonic::Btc => bit::<{ action::COMPLEMENT }>(form),
        Mnemonic::Bsf => scan::<true>(form),
        Mnemonic::Bsr => scan::<false>(form),
        Mnemonic::Imul => signed_multiply(form),
        Mnemonic::Mul => form.one(
            0,
            by_width_const!(size(), multiply::multiply; false),
            by_width_const!(size(), multiply::multiply; true),
        ),
        Mnemonic::Div => form.one(
            0,
            by_width_const!(size(), multiply::divide; false),
            by_width_const!(size(), multiply::divide; true),
        ),
        Mnemonic::Idiv => form.one(
            0,
            by_width_const!(size(), multiply::divide_signed; false),
            by_width_const!(size(), multiply::divide_signed; true),
        ),
        Mnemonic::Xadd => form.two(
            by_width!(size(), atomic::add_registers),
            data::nop,
            by_width!(size(), atomic::add_memory),
        ),
        Mnemonic::Cmpxchg => form.two(
            by_width!(size(), atomic::compare_exchange_registers),
            data::nop,
            by_width!(size(), atomic::compare_exchange_memory),
        ),
        Mnemonic::Cmpxchg8b => form.with_memory(atomic::compare_exchange8),
        Mnemonic::Cmpxchg16b => form.with_aligned_memory(atomic::compare_exchange16),
        Mnemonic::Daa => Op::plain(legacy::decimal_adjust::<true>),
        Mnemonic::Das => Op::plain(legacy::decimal_adjust::<false>),
        Mnemonic::Aaa => Op::plain(legacy::ascii_adjust::<true>),
        Mnemonic::Aas => Op::plain(legacy::ascii_adjust::<false>),
        Mnemonic::Aam => with_immediate(form, legacy::ascii_multiply),
        Mnemonic::Aad => with_immediate(form, legacy::ascii_divide),
        Mnemonic::Salc => Op::plain(legacy::set_al_from_carry),
        Mnemonic::Bound => {
            let run: Handler = if form.insn.op_register(0).size() == 2 {
                legacy::bound::<u16>
            } else {
                legacy::bound::<u32>
            };
            let mut op = form.with_memory(run);
            op.dst = form.register(0);
            op
        }
        _ => return None,
    })
}

fn with_immediate(form: &Form, run: Handler) -> Op {
    let mut op = Op::plain(run);
    op.imm = form.insn.immediate(0);
    op
}

/// Moves, extensions, stack.
fn movement(form: &Form) -> Option<Op> {
    let insn = form.insn;
    let size = || form.size(0);
    Some(match insn.mnemonic() {
        Mnemonic::Mov => return plain_move(form),
        Mnemonic::Movzx => extend(form, false),
        Mnemonic::Movsx | Mnemonic::Movsxd => extend(form, true),
        Mnemonic::Cbw => Op::plain(data::widen_accumulator::<u16, u8>),
        Mnemonic::Cwde => Op::plain(data::widen_accumulator::<u32, u16>),
        Mnemonic::Cdqe => Op::plain(data::widen_accumulator::<u64, u32>),
        Mnemonic::Cwd => Op::plain(data::sign_to_data::<u16>),
        Mnemonic::Cdq => Op::plain(data::sign_to_data::<u32>),
        Mnemonic::Cqo => Op::plain(data::sign_to_data::<u64>),
        Mnemonic::Lea => {
            let mut op = form.with_memory(by_wide!(size(), data::address));
            op.dst = form.register(0);
            op
        }
        Mnemonic::Xchg => {
            let memory = by_width!(size(), atomic::exchange_memory);
            let mut op = form.two(by_width!(size(), atomic::exchange_registers), memory, memory);
            if form.is_memory(1) {
                op.src = op.dst;
            }
            op
        }
        Mnemonic::Bswap if size() == 4 => form.one(0, data::byte_swap::<u32>, data::nop),
        Mnemonic::Bswap if size() == 8 => form.one(0, data::byte_swap::<u64>, data::nop),
        Mnemonic::Movnti => form.two(data::nop, data::nop, by_width!(size(), data::store)),
        Mnemonic::Xlatb => {
            let mut op = implicit_table(form);
            op.run = data::translate_byte;
            op
        }
        Mnemonic::Nop | Mnemonic::Endbr64 | Mnemonic::Endbr32 | Mnemonic::Reservednop => Op::plain(data::nop),
        Mnemonic::Push | Mnemonic::Pop => return push_or_pop(form),
        Mnemonic::Pusha => Op::plain(stack::push_all::<u16>),
        Mnemonic::Pushad => Op::plain(stack::push_all::<u32>),
        Mnemonic::Popa => Op::plain(stack::pop_all::<u16>),
        Mnemonic::Popad => Op::plain(stack::pop_all::<u32>),
        Mnemonic::Leave => Op::plain(match insn.code() {
            Code::Leavew => stack::leave::<u16>,
            Code::Leaved => stack::leave::<u32>,
            _ => stack::leave::<u64>,
        }),
        Mnemonic::Enter => {
            let mut op = Op::plain(match insn.code() {
                Code::Enterw_imm16_imm8 => stack::enter::<u16>,
                Code::Enterd_imm16_imm8 => stack::enter::<u32>,
                _ => stack::enter::<u64>,
            });
            op.imm = u64::from(insn.immediate16()) | u64::from(insn.immediate8_2nd()) << 16;
            op
        }
        _ if insn.condition_code() != ConditionCode::None => return conditional(form),
        _ => return None,
    })
}

/// The low four bits of the opcode.
pub(in crate::x86) fn condition(insn: &Instruction) -> u8 {
    use iced_x86::ConditionCode as C;
    match insn.condition_code() {
        C::o => 0,
        C::no => 1,
        C::b => 2,
        C::ae => 3,
        C::e => 4,
        C::ne => 5,
        C::be => 6,
        C::a => 7,
        C::s => 8,
        C::ns => 9,
        C::p => 10,
        C::np => 11,
        C::l => 12,
        C::ge => 13,
        C::le => 14,
        _ => 15,
    }
}

fn conditional(form: &Form) -> Option<Op> {
    use data::{conditional_load, conditional_move, set_memory, set_register};
    if form.insn.op_count() > 2 {
        return None; // CMPccXADD
    }
    let condition = condition(form.insn);
    if form.insn.op_count() == 1 {
        return Some(form.one(
            0,
            by_condition!(condition, set_register),
            by_condition!(condition, set_memory),
        ));
    }
    let (register, memory): (Handler, Handler) = match form.size(0) {
        2 => {
            (by_condition!(condition, conditional_move, u16), by_condition!(condition, conditional_load, u16))
        }
        4 => {
            (by_condition!(condition, conditional_move, u32), by_condition!(condition, conditional_load, u32))
        }
        _ => {
            (by_condition!(condition, conditional_move, u64), by_condition!(condition, conditional_load, u64))
        }
    };
    Some(form.two(register, memory, data::nop))
}

/// MOV between general registers, memory and immediates; others (segment, control) are the system's.
fn plain_move(form: &Form) -> Option<Op> {
    let insn = form.insn;
    let is_gpr = |n: u32| insn.op_kind(n) == OpKind::Register && insn.op_register(n).is_gpr();
    let size = form.size(0);
    match insn.op_kind(1) {
        OpKind::Register if !is_gpr(1) => None,
        _ if !is_gpr(0) && !form.is_memory(0) => None,
        OpKind::Register | OpKind::Memory => Some(form.two(
            by_width!(size, data::move_register),
            by_width!(size, data::load),
            by_width!(size, data::store),
        )),
        _ => {
            let mut op =
                form.one(0, by_width!(size, data::move_immediate), by_width!(size, data::store_immediate));
            op.imm = insn.immediate(1);
            Some(op)
        }
    }
}

fn extend(form: &Form, signed: bool) -> Op {
    macro_rules! pick {
        ($register:ident, $memory:ident) => {{
            let pair: (Handler, Handler) = match (form.size(0), form.size(1)) {
                (2, 1) => (data::$register::<u16, u8>, data::$memory::<u16, u8>),
                (2, 2) => (data::$register::<u16, u16>, data::$memory::<u16, u16>),
                (4, 1) => (data::$register::<u32, u8>, data::$memory::<u32, u8>),
                (4, 2) => (data::$register::<u32, u16>, data::$memory::<u32, u16>),
                (4, 4) => (data::$register::<u32, u32>, data::$memory::<u32, u32>),
                (8, 1) => (data::$register::<u64, u8>, data::$memory::<u64, u8>),
                (8, 2) => (data::$register::<u64, u16>, data::$memory::<u64, u16>),
                (2, _) => (data::$register::<u16, u32>, data::$memory::<u16, u32>),
                _ => (data::$register::<u64, u32>, data::$memory::<u64, u32>),
            };
            pair
        }};
    }
    let (register, memory) = if signed {
        pick!(sign_extend_register, sign_extend_memory)
    } else {
        pick!(zero_extend_register, zero_extend_memory)
    };
    form.two(register, memory, data::nop)
}

/// XLATB's table: (R/E)BX, in DS or the override.
fn implicit_table(form: &Form) -> Op {
    let mut op = form.with_memory(data::nop);
    op.index = Cpu::ZERO;
    op
}

fn push_or_pop(form: &Form) -> Option<Op> {
    let insn = form.insn;
    let push = insn.mnemonic() == Mnemonic::Push;
    // The stack moves by the operand size of the encoding, which for immediates is not the immediate's.
    let size = insn.stack_pointer_increment().unsigned_abs() as usize;
    Some(match insn.op0_kind() {
        OpKind::Register if insn.op0_register().is_gpr() && push => {
            form.one(0, by_wide!(size, stack::push_register), data::nop)
        }
        OpKind::Register if insn.op0_register().is_gpr() => {
            form.one(0, by_wide!(size, stack::pop_register), data::nop)
        }
        OpKind::Register if push => {
            let mut op = Op::plain(by_wide!(size, stack::push_segment));
            op.imm = insn.op0_register().number() as u64;
            op
        }
        OpKind::Register => return None,
        OpKind::Memory if push => form.with_memory(by_wide!(size, stack::push_memory)),
        OpKind::Memory => form.with_memory(by_wide!(size, stack::pop_memory)),
        _ => with_immediate(form, by_wide!(size, stack::push_immediate)),
    })
}

/// The handler of a string instruction for its address and operand width.
macro_rules! string_op {
    ($address:expr, $size:expr, $f:path) => {{
        use $f as function;
        let handler: Handler = match ($address, $size) {
            (16, 1) => function::<u16, u8>,
            (16, 2) => function::<u16, u16>,
            (16, _) => function::<u16, u32>,
            (32, 1) => function::<u32, u8>,
            (32, 2) => function::<u32, u16>,
            (32, 4) => function::<u32, u32>,
            (32, _) => function::<u32, u64>,
            (_, 1) => function::<u64, u8>,
            (_, 2) => function::<u64, u16>,
            (_, 4) => function::<u64, u32>,
            _ => function::<u64, u64>,
        };
        handler
    }};
}

fn strings(form: &Form) -> Option<Op> {
    let insn = form.insn;
    if !insn.is_string_instruction() {
        return None;
    }
    let size = insn.memory_size().size();
    let address = (0..insn.op_count()).find_map(|n| match insn.op_kind(n) {
        OpKind::MemorySegSI | OpKind::MemoryESDI => Some(16),
        OpKind::MemorySegESI | OpKind::MemoryESEDI => Some(32),
        OpKind::MemorySegRSI | OpKind::MemoryESRDI => Some(64),
        _ => None,
    })?;
    let run = match insn.mnemonic() {
        Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsd | Mnemonic::Movsq => {
            string_op!(address, size, string::move_string)
        }
        Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq => {
            string_op!(address, size, string::store_string)
        }
        Mnemonic::Lodsb | Mnemonic::Lodsw | Mnemonic::Lodsd | Mnemonic::Lodsq => {
            string_op!(address, size, string::load_string)
        }
        Mnemonic::Scasb | Mnemonic::Scasw | Mnemonic::Scasd | Mnemonic::Scasq => {
            string_op!(address, size, string::scan_string)
        }
        Mnemonic::Cmpsb | Mnemonic::Cmpsw | Mnemonic::Cmpsd | Mnemonic::Cmpsq => {
            string_op!(address, size, string::compare_string)
        }
        Mnemonic::Insb | Mnemonic::Insw | Mnemonic::Insd => string_op!(address, size, string::input_string),
        Mnemonic::Outsb | Mnemonic::Outsw | Mnemonic::Outsd => {
            string_op!(address, size, string::output_string)
        }
        _ => return None,
    };
    let mut op = Op::plain(run);
    op.segment = insn.memory_segment().number() as u8;
    op.imm = if insn.has_repne_prefix() {
        repeat::WHILE_NOT_EQUAL
    } else if insn.has_rep_prefix() {
        repeat::WHILE_EQUAL
    } else {
        repeat::NONE
    };
    Some(op)
}

/// Near branches.
fn branch(form: &Form) -> Option<Selected> {
    use control::jump_if;
    let insn = form.insn;
    let size = match insn.op0_kind() {
        OpKind::NearBranch16 => 2,
        OpKind::NearBranch32 => 4,
        OpKind::NearBranch64 => 8,
        OpKind::Register => insn.op0_register().size(),
        _ => insn.memory_size().size(),
    };
    let direct =
        matches!(insn.op0_kind(), OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64);
    let mut op = match insn.mnemonic() {
        Mnemonic::Jmp if direct => Op::plain(by_wide!(size, control::jump)),
        Mnemonic::Call if direct => Op::plain(by_wide!(size, control::call)),
        Mnemonic::Jmp if insn.is_jmp_near_indirect() => {
            form.one(0, by_wide!(size, control::jump_register), by_wide!(size, control::jump_memory))
        }
        Mnemonic::Call if insn.is_call_near_indirect() => {
            form.one(0, by_wide!(size, control::call_register), by_wide!(size, control::call_memory))
        }
        Mnemonic::Ret => return_operation(insn),
        _ if insn.is_jcc_short_or_near() => {
            let condition = condition(insn);
            Op::plain(match size {
                2 => by_condition!(condition, jump_if, u16),
                4 => by_condition!(condition, jump_if, u32),
                _ => by_condition!(condition, jump_if, u64),
            })
        }
        _ if insn.code().is_loop() || insn.code().is_loopcc() || insn.code().is_jcx_short() => {
            Op::plain(counting_branch(insn, size)?)
        }
        _ => return None,
    };
    if direct {
        op.disp = insn.near_branch_target();
        // iced truncates to the operand size; sign-extend so that adding the block's start works.
        op.disp = match size {
            2 => op.disp as i16 as u64,
            4 => op.disp as i32 as u64,
            _ => op.disp,
        };
    }
    Some(Selected { op, ends: true })
}

fn return_operation(insn: &Instruction) -> Op {
    let run: Handler = match insn.code() {
        Code::Retnw | Code::Retnw_imm16 => control::near_return::<u16>,
        Code::Retnd | Code::Retnd_imm16 => control::near_return::<u32>,
        _ => control::near_return::<u64>,
    };
    let mut op = Op::plain(run);
    if insn.op_count() == 1 {
        op.imm = insn.immediate(0);
    }
    op
}

fn counting_branch(insn: &Instruction, size: usize) -> Option<Handler> {
    macro_rules! pick {
        ($kind:expr, $count:expr) => {
            match ($count, size) {
                (2, 2) => control::count_and_jump::<u16, u16, { $kind }> as Handler,
                (2, _) => control::count_and_jump::<u16, u32, { $kind }>,
                (4, 2) => control::count_and_jump::<u32, u16, { $kind }>,
                (4, 4) => control::count_and_jump::<u32, u32, { $kind }>,
                (4, _) => control::count_and_jump::<u32, u64, { $kind }>,
                (_, 2) => control::count_and_jump::<u64, u16, { $kind }>,
                _ => control::count_and_jump::<u64, u64, { $kind }>,
            }
        };
    }
    // The address size decides the count register; iced has one code for each. Not by their names: a table of those is
    // work for the loader at each start of the program.
    let count = match insn.code() {
        Code::Loopne_rel8_16_RCX
        | Code::Loopne_rel8_64_RCX
        | Code::Loope_rel8_16_RCX
        | Code::Loope_rel8_64_RCX
        | Code::Loop_rel8_16_RCX
        | Code::Loop_rel8_64_RCX
        | Code::Jrcxz_rel8_16
        | Code::Jrcxz_rel8_64 => 8,
        Code::Loopne_rel8_16_CX
        | Code::Loopne_rel8_32_CX
        | Code::Loope_rel8_16_CX
        | Code::Loope_rel8_32_CX
        | Code::Loop_rel8_16_CX
        | Code::Loop_rel8_32_CX
        | Code::Jcxz_rel8_16
        | Code::Jcxz_rel8_32 => 2,
        _ => 4,
    };
    Some(match insn.mnemonic() {
        Mnemonic::Loop => pick!(loop_kind::LOOP, count),
        Mnemonic::Loope => pick!(loop_kind::LOOP_EQUAL, count),
        Mnemonic::Loopne => pick!(loop_kind::LOOP_NOT_EQUAL, count),
        Mnemonic::Jcxz | Mnemonic::Jecxz | Mnemonic::Jrcxz => pick!(loop_kind::ZERO, count),
        _ => return None,
    })
}
