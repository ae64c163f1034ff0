//! Debug registers and breakpoints (SDM vol. 3 ch. 18.2-18.3).

use arch::x86::{CpuState, Cr4, Exception, Vector};

use super::{Core, require_cpl0};

/// DR6: MOV to or from a debug register with DR7.GD.
pub(super) const DR6_BD: u64 = 1 << 13;
/// DR6: single step.
pub(crate) const DR6_BS: u64 = 1 << 14;
/// DR6: the T bit of a TSS.
pub(super) const DR6_BT: u64 = 1 << 15;
/// DR7: general detect.
pub(super) const DR7_GD: u64 = 1 << 13;
/// DR7: L0-L3 and LE, which a task switch clears.
pub(super) const DR7_LOCAL_ENABLES: u64 = 0x155;

const DR6_WRITABLE: u64 = 0xe00f;
const DR6_FIXED: u64 = 0xffff_0ff0;
const DR7_WRITABLE: u64 = 0xffff_23ff;
const DR7_FIXED: u64 = 0x400;

/// What a breakpoint watches for: the R/W field of DR7.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Watch {
    Execute,
    Write,
    Port,
    /// A read; breakpoints for reads fire for writes too.
    Read,
}

/// The index into [`CpuState::dr`] for an encoded number: DR4 and DR5 are DR6 and DR7 unless CR4.DE.
fn checked_index(core: &mut dyn Core, number: u8) -> Result<usize, Exception> {
    let state = core.state_mut();
    require_cpl0(state)?;
    let index = match number {
        0..=3 | 6 | 7 => number,
        4 | 5 if state.cr4 & Cr4::DE.bits() == 0 => number + 2,
        _ => return Err(Exception::UD),
    };
    if state.dr[7] & DR7_GD != 0 {
        state.dr[6] |= DR6_BD;
        return Err(Exception::new(Vector::Debug));
    }
    Ok(usize::from(index))
}

/// MOV from DR`number`.
pub(crate) fn mov_from_dr(core: &mut dyn Core, number: u8) -> Result<u64, Exception> {
    let index = checked_index(core, number)?;
    Ok(core.state().dr[index])
}

/// MOV to DR`number`; the value is zero-extended outside of 64-bit mode.
pub(crate) fn mov_to_dr(core: &mut dyn Core, number: u8, value: u64) -> Result<(), Exception> {
    let index = checked_index(core, number)?;
    if index >= 6 && value >> 32 != 0 {
        return Err(Exception::GP0);
    }
    core.state_mut().dr[index] = match index {
        6 => value & DR6_WRITABLE | DR6_FIXED,
        7 => value & DR7_WRITABLE | DR7_FIXED,
        _ => value,
    };
    core.mode_changed();
    Ok(())
}

/// Whether any breakpoint is enabled; if not, none of the checks below can fire.
pub(crate) const fn any_enabled(state: &CpuState) -> bool {
    state.dr[7] & 0xff != 0
}

/// DR6 bits of the enabled breakpoints an access of `bytes` at `linear` (or port) hits; zero for none.
pub(crate) fn hits(state: &CpuState, linear: u64, bytes: u64, watch: Watch) -> u64 {
    let dr7 = state.dr[7];
    let mut found = 0;
    for i in 0..4 {
        let enabled = dr7 >> (2 * i) & 3 != 0;
        let kind = dr7 >> (16 + 4 * i) & 3;
        let matches_kind = match watch {
            Watch::Execute => kind == 0,
            Watch::Write => kind == 1 || kind == 3,
            Watch::Port => kind == 2 && state.cr4 & Cr4::DE.bits() != 0,
            Watch::Read => kind == 3,
        };
        let length = match dr7 >> (18 + 4 * i) & 3 {
            _ if kind == 0 => 1,
            0 => 1,
            1 => 2,
            2 => 8,
            _ => 4,
        };
        let start = state.dr[i] & !(length - 1);
        let distance_ok = linear.wrapping_sub(start) < length || start.wrapping_sub(linear) < bytes;
        if enabled && matches_kind && distance_ok {
            found |= 1 << i;
        }
    }
    found
}

/// Notes `causes` (hits, [`DR6_BS`]) in DR6 and gives the #DB to deliver. Before an instruction (execute
/// breakpoints) as a fault, after one (all others) as a trap: `state.rip` tells them apart.
pub(crate) fn debug_exception(core: &mut dyn Core, causes: u64) -> Exception {
    let dr6 = &mut core.state_mut().dr[6];
    // B0-B3 tell of this exception only; the other causes stay until software clears them.
    *dr6 = *dr6 & !0xf | causes;
    Exception::new(Vector::Debug)
}
