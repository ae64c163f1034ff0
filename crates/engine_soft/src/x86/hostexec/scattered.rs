//! Instructions that touch some elements of memory and not others: gathers, masked moves. Each enabled
//! element can fault and the others must not, so they go through the caller's memory, element by element.

use arch::x86::{CpuState, Exception};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::form::Builtin;
use super::x87;

/// The guest's memory as one instruction sees it. Offsets are effective addresses in the segment of the
/// instruction's memory operand; the implementation truncates them to the address size, checks and adds the
/// segment, and translates.
pub trait OperandMemory {
    /// Loads `data.len()` bytes, at most 8.
    ///
    /// # Errors
    /// The exception the access raises; nothing has been loaded then.
    fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), Exception>;

    /// Stores up to 8 bytes.
    ///
    /// # Errors
    /// The exception the access raises; nothing has been stored then.
    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), Exception>;

    /// Finds out whether a store of `len` bytes would fault.
    ///
    /// # Errors
    /// The exception the store would raise.
    fn probe_write(&mut self, offset: u64, len: usize) -> Result<(), Exception>;
}

/// Carries out `builtin`, one of the last four of [`Builtin`].
pub(super) fn run(
    builtin: Builtin,
    instruction: &Instruction,
    offset: u64,
    state: &mut CpuState,
    memory: &mut dyn OperandMemory,
) -> Result<(), Exception> {
    match builtin {
        Builtin::Gather => gather(instruction, state, memory),
        Builtin::MaskedLoad => masked_load(instruction, offset, state, memory),
        Builtin::MaskedStore => masked_store(instruction, offset, state, memory),
        _ => masked_bytes(instruction, state, memory),
    }
}

/// VGATHER and VPGATHER: stops at the first fault with the elements before it loaded and their mask cleared,
/// so that it can be restarted (SDM vol. 2, VPGATHERDD).
fn gather(
    instruction: &Instruction,
    state: &mut CpuState,
    memory: &mut dyn OperandMemory,
) -> Result<(), Exception> {
    let (destination, mask) = (instruction.op0_register(), instruction.op2_register());
    let index = instruction.memory_index();
    let [d, m, i] = [destination, mask, index].map(Register::number);
    if d == m || d == i || m == i || [d, m, i].iter().any(|&number| number > 15) {
        return Err(Exception::UD);
    }
    let (index_len, data_len) = match instruction.mnemonic() {
        Mnemonic::Vpgatherdd | Mnemonic::Vgatherdps => (4, 4),
        Mnemonic::Vpgatherdq | Mnemonic::Vgatherdpd => (4, 8),
        Mnemonic::Vpgatherqd | Mnemonic::Vgatherqps => (8, 4),
        _ => (8, 8),
    };
    let count = (index.size() / index_len).min(destination.size() / data_len);
    let base = base_offset(instruction, state);
    normalise_mask(&mut state.ymm[m].0, data_len, index.size().max(destination.size()));
    for element in 0..count {
        let at = element * data_len..(element + 1) * data_len;
        // Read anew each time, so that a fault leaves the registers as they are.
        if state.ymm[m].0[at.end - 1] & 0x80 != 0 {
            let index = signed(&state.ymm[i].0[element * index_len..(element + 1) * index_len]);
            let offset = base.wrapping_add(index.wrapping_mul(u64::from(instruction.memory_index_scale())));
            let mut data = [0; 8];
            memory.read(truncate(instruction, offset), &mut data[..data_len])?;
            state.ymm[d].0[at.clone()].copy_from_slice(&data[..data_len]);
            state.ymm[d].0[destination.size()..].fill(0);
        }
        state.ymm[m].0[at].fill(0);
    }
    state.ymm[d].0[count * data_len..].fill(0);
    state.ymm[m].0.fill(0);
    Ok(())
}

/// Makes each element of a mask all ones or all zeros by its sign: seen only if the gather faults.
fn normalise_mask(mask: &mut [u8; 32], data_len: usize, vector_len: usize) {
    for element in mask[..vector_len].chunks_exact_mut(data_len) {
        let on = element[data_len - 1] & 0x80 != 0;
        element.fill(if on { 0xff } else { 0 });
    }
    mask[vector_len..].fill(0);
}

fn signed(bytes: &[u8]) -> u64 {
    match bytes {
        &[a, b, c, d] => i64::from(i32::from_le_bytes([a, b, c, d])) as u64,
        _ => u64::from_le_bytes(bytes.try_into().expect("an index has four or eight bytes")),
    }
}

/// Base register and displacement; a gather has no RIP-relative form.
fn base_offset(instruction: &Instruction, state: &CpuState) -> u64 {
    let base = instruction.memory_base();
    let value = if base.is_gpr() { state.gpr[base.full_register().number()] } else { 0 };
    value.wrapping_add(instruction.memory_displacement64())
}

fn truncate(instruction: &Instruction, offset: u64) -> u64 {
    let base = instruction.memory_base();
    let bytes = if base.is_gpr() { base.size() as u32 } else { instruction.memory_displ_size() };
    if bytes == 4 { offset & 0xffff_ffff } else { offset }
}

/// Bytes of one element of VMASKMOVPS, VMASKMOVPD, VPMASKMOVD, VPMASKMOVQ.
fn element_len(instruction: &Instruction) -> usize {
    match instruction.mnemonic() {
        Mnemonic::Vmaskmovpd | Mnemonic::Vpmaskmovq => 8,
        _ => 4,
    }
}

fn masked_load(
    instruction: &Instruction,
    offset: u64,
    state: &mut CpuState,
    memory: &mut dyn OperandMemory,
) -> Result<(), Exception> {
    let len = element_len(instruction);
    let mask = state.ymm[instruction.op1_register().number() & 15].0;
    let mut result = [0; 32];
    for at in (0..instruction.op0_register().size()).step_by(len) {
        if mask[at + len - 1] & 0x80 != 0 {
            memory.read(offset.wrapping_add(at as u64), &mut result[at..at + len])?;
        }
    }
    state.ymm[instruction.op0_register().number() & 15].0 = result;
    Ok(())
}

fn masked_store(
    instruction: &Instruction,
    offset: u64,
    state: &mut CpuState,
    memory: &mut dyn OperandMemory,
) -> Result<(), Exception> {
    let len = element_len(instruction);
    let mask = state.ymm[instruction.op1_register().number() & 15].0;
    let data = state.ymm[instruction.op2_register().number() & 15].0;
    let size = instruction.op2_register().size();
    let enabled = || (0..size).step_by(len).filter(|at| mask[at + len - 1] & 0x80 != 0);
    store_all(enabled().map(|at| (offset.wrapping_add(at as u64), &data[at..at + len])), memory)
}

/// MASKMOVQ, MASKMOVDQU and VMASKMOVDQU, to the address in (R/E)DI.
fn masked_bytes(
    instruction: &Instruction,
    state: &mut CpuState,
    memory: &mut dyn OperandMemory,
) -> Result<(), Exception> {
    let address_mask = match instruction.op0_kind() {
        OpKind::MemorySegDI => 0xffff,
        OpKind::MemorySegEDI => 0xffff_ffff,
        _ => u64::MAX,
    };
    let base = state.gpr[7];
    let (source, mask) = (instruction.op1_register(), instruction.op2_register());
    let mmx = source.is_mm();
    let bytes = |register: Register, state: &CpuState| -> [u8; 16] {
        if mmx {
            let mut value = [0; 16];
            value[..8].copy_from_slice(&mmx_register(register, state)[..8]);
            return value;
        }
        state.ymm[register.number() & 15].0[..16].try_into().expect("half of a register")
    };
    let (data, mask) = (bytes(source, state), bytes(mask, state));
    // The whole operand is tried, whatever the mask; and the MMX state entered, whatever comes of it.
    if mmx {
        enter_mmx(state);
        memory.probe_write(base & address_mask, 8)?;
    } else {
        memory.probe_write(base.wrapping_add(8) & address_mask, 8)?;
        memory.probe_write(base & address_mask, 8)?;
    }
    let enabled = (0..16).filter(|&at| mask[at] & 0x80 != 0);
    store_all(enabled.map(|at| (base.wrapping_add(at as u64) & address_mask, &data[at..at + 1])), memory)
}

/// MMi is the low half of physical x87 register i.
fn mmx_register(register: Register, state: &CpuState) -> [u8; 16] {
    let top = usize::from(state.fx.fsw >> 11 & 7);
    state.fx.st[(register.number() + 8 - top) & 7]
}

/// What every MMX instruction but EMMS does to the x87 state: all registers valid, top of stack 0.
pub fn enter_mmx(state: &mut CpuState) {
    leave_stack(state);
    state.fx.ftw = 0xff;
}

/// The part of [`enter_mmx`] that is seen even if an MMX store faults: top of stack 0.
pub fn leave_stack(state: &mut CpuState) {
    let fsw = state.fx.fsw & !(7 << 11);
    x87::set_status(&mut state.fx, fsw);
}

/// Stores every piece or, if one would fault, none.
fn store_all<'a>(
    pieces: impl Iterator<Item = (u64, &'a [u8])> + Clone,
    memory: &mut dyn OperandMemory,
) -> Result<(), Exception> {
    for (offset, data) in pieces.clone() {
        memory.probe_write(offset, data.len())?;
    }
    for (offset, data) in pieces {
        memory.write(offset, data)?;
    }
    Ok(())
}
