//! Memory types: PAT and MTRRs (SDM vol. 3 12.11, 12.12). Stored and checked; guest memory is always coherent,
//! so they have no effect.

use arch::x86::Exception;
use arch::x86::msr;
use arch::x86::state::Msrs;

use super::msr::{require, within};

/// IA32_MTRRCAP: eight variable ranges, fixed ranges, write combining.
pub(super) const CAPABILITIES: u64 = 8 | 1 << 8 | 1 << 10;

const VARIABLE_LAST: u32 = msr::MTRR_PHYS_BASE0 + 15;
const FIX_4K_LAST: u32 = msr::MTRR_FIX_4K_C0000 + 7;

/// IA32_MTRR_DEF_TYPE: default type, fixed ranges on, MTRRs on.
const DEF_TYPE_BITS: u64 = 0xcff;
/// Reserved bits below the address in a variable range's base and mask.
const BASE_RESERVED: u64 = 0xf00;
const MASK_RESERVED: u64 = 0x7ff;

/// The index of a fixed-range MTRR in `Msrs::mtrr_fixed`.
const fn fixed(index: u32) -> Option<usize> {
    match index {
        msr::MTRR_FIX_64K_00000 => Some(0),
        msr::MTRR_FIX_16K_80000 => Some(1),
        msr::MTRR_FIX_16K_A0000 => Some(2),
        msr::MTRR_FIX_4K_C0000..=FIX_4K_LAST => Some(3 + (index - msr::MTRR_FIX_4K_C0000) as usize),
        _ => None,
    }
}

/// UC, WC, WT, WP, WB.
const fn is_memory_type(kind: u8) -> bool {
    matches!(kind, 0 | 1 | 4 | 5 | 6)
}

/// RDMSR, if `index` is one of these.
pub(super) fn read(msrs: &Msrs, index: u32) -> Option<u64> {
    match index {
        msr::PAT => Some(msrs.pat),
        msr::MTRR_DEF_TYPE => Some(msrs.mtrr_def_type),
        msr::MTRR_PHYS_BASE0..=VARIABLE_LAST => {
            Some(msrs.mtrr_variable[(index - msr::MTRR_PHYS_BASE0) as usize])
        }
        _ => fixed(index).map(|i| msrs.mtrr_fixed[i]),
    }
}

/// WRMSR, if `index` is one of these; #GP(0) for reserved types and bits.
pub(super) fn write(
    msrs: &mut Msrs,
    index: u32,
    value: u64,
    physical_bits: u8,
) -> Option<Result<(), Exception>> {
    let (slot, checked) = match index {
        msr::PAT => {
            let known = value.to_le_bytes().iter().all(|kind| matches!(kind, 0 | 1 | 4..=7));
            (&mut msrs.pat, require(known))
        }
        msr::MTRR_DEF_TYPE => {
            let known = is_memory_type(value as u8) && value & !DEF_TYPE_BITS == 0;
            (&mut msrs.mtrr_def_type, require(known))
        }
        msr::MTRR_PHYS_BASE0..=VARIABLE_LAST => {
            let i = (index - msr::MTRR_PHYS_BASE0) as usize;
            (&mut msrs.mtrr_variable[i], check_variable(i, value, physical_bits))
        }
        _ => {
            let known = value.to_le_bytes().into_iter().all(is_memory_type);
            (&mut msrs.mtrr_fixed[fixed(index)?], require(known))
        }
    };
    Some(checked.map(|()| *slot = value))
}

/// Bases stand at even places, masks at odd ones.
fn check_variable(place: usize, value: u64, physical_bits: u8) -> Result<(), Exception> {
    let address = (1u64 << physical_bits) - 1;
    if place.is_multiple_of(2) {
        require(is_memory_type(value as u8))?;
        within(value, address & !BASE_RESERVED).map(drop)
    } else {
        within(value, address & !MASK_RESERVED).map(drop)
    }
}
