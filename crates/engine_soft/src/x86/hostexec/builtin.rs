//! What is not run on the host: MXCSR, x87 control, and clearing of vector registers.
// UNSAFETY: loads and stores guest memory through the pointer a thunk gets.

use arch::x86::state::FxImage;
use arch::x86::{CpuState, Exception};

use super::form::{Builtin, EnvironmentWidth};
use super::x87;

/// Carries out what is not run on the host.
///
/// # Safety
/// `memory` is valid for the operand of the instruction `builtin` stands for.
pub(super) unsafe fn run(builtin: Builtin, state: &mut CpuState, memory: *mut u8) -> Result<(), Exception> {
    let image_len = |width: EnvironmentWidth, registers: usize| x87::environment_len(width) + registers;
    // SAFETY: in each arm the length is that of the operand of that instruction.
    unsafe {
        match builtin {
            Builtin::LoadMxcsr => {
                let value = u32::from_le_bytes(load(memory, 4));
                if value & !FxImage::MXCSR_MASK != 0 {
                    return Err(Exception::GP0);
                }
                state.fx.mxcsr = value;
            }
            Builtin::StoreMxcsr => store(memory, &state.fx.mxcsr.to_le_bytes()),
            Builtin::X87StoreStatus => store(memory, &state.fx.fsw.to_le_bytes()),
            Builtin::X87StoreControl => store(memory, &state.fx.fcw.to_le_bytes()),
            Builtin::X87LoadEnvironment(width) => {
                x87::load_environment(state, width, &load(memory, image_len(width, 0)));
            }
            Builtin::X87Restore(width) => x87::restore(state, width, &load(memory, image_len(width, 80))),
            Builtin::X87StoreEnvironment(width) => {
                store(memory, &x87::store_environment(state, width)[..image_len(width, 0)]);
            }
            Builtin::X87Save(width) => store(memory, &x87::save(state, width)[..image_len(width, 80)]),
            _ => run_on_registers(builtin, state),
        }
    }
    Ok(())
}

/// The part of [`run`] without memory operand.
fn run_on_registers(builtin: Builtin, state: &mut CpuState) {
    match builtin {
        Builtin::ZeroUpper(count) => {
            state.ymm.iter_mut().take(count.into()).for_each(|ymm| ymm.0[16..].fill(0));
        }
        Builtin::ZeroAll(count) => state.ymm.iter_mut().take(count.into()).for_each(|ymm| ymm.0.fill(0)),
        Builtin::X87Init => x87::init(&mut state.fx),
        Builtin::X87ClearErrors => x87::clear_errors(&mut state.fx),
        Builtin::X87StatusToAx => state.gpr[0] = state.gpr[0] & !0xffff | u64::from(state.fx.fsw),
        _ => {}
    }
}

/// Loads `len` bytes of guest memory, which others may be changing.
///
/// # Safety
/// `memory` is valid for `len` reads, and `len <= N`.
unsafe fn load<const N: usize>(memory: *const u8, len: usize) -> [u8; N] {
    // SAFETY: the caller's promise.
    std::array::from_fn(|i| if i < len { unsafe { memory.add(i).read_volatile() } } else { 0 })
}

/// Stores `data` to guest memory.
///
/// # Safety
/// `memory` is valid for `data.len()` writes.
unsafe fn store(memory: *mut u8, data: &[u8]) {
    for (i, &byte) in data.iter().enumerate() {
        // SAFETY: the caller's promise.
        unsafe { memory.add(i).write_volatile(byte) };
    }
}
