//! Whether the processor's state lets an instruction of some class run at all (SDM vol. 2 section 2.4, vol. 3
//! sections 2.5 and 13): what the caller checks before it looks at operands.

use arch::x86::{CpuState, Cr0, Cr4, Exception, Vector, Xcr0};

use super::Class;

/// FSW.ES: an unmasked x87 error waits to be reported.
pub(super) const FSW_ERROR_SUMMARY: u16 = 1 << 7;

/// The six error flags of FSW and masks of FCW.
const ERRORS: u16 = 0x3f;

/// Whether an unmasked x87 error waits to be reported by the next waiting x87 or MMX instruction. Like the
/// processor this looks at flags and masks, whatever a restored image says in FSW.ES.
pub fn x87_pending_error(state: &CpuState) -> bool {
    state.fx.fsw & !state.fx.fcw & ERRORS != 0
}

/// Whether an instruction of `class` may run in `state`.
///
/// With CR0.NE clear a pending x87 error is ignored, as on a board whose IGNNE# is held: nothing here has the
/// external interrupt logic of the PC/AT.
///
/// # Errors
/// #UD, #NM or #MF, in the order the processor tests for them.
pub fn check_enabled(class: Class, state: &CpuState) -> Result<(), Exception> {
    let cr0 = Cr0::from_bits_retain(state.cr0);
    let cr4 = Cr4::from_bits_retain(state.cr4);
    match class {
        Class::Integer => return Ok(()),
        Class::VexInteger => return if has_vex(state) { Ok(()) } else { Err(Exception::UD) },
        Class::Sse if cr0.contains(Cr0::EM) || !cr4.contains(Cr4::OSFXSR) => return Err(Exception::UD),
        Class::MmxSse if cr0.contains(Cr0::EM) || !cr4.contains(Cr4::OSFXSR) => return Err(Exception::UD),
        Class::Mmx if cr0.contains(Cr0::EM) => return Err(Exception::UD),
        Class::Avx => {
            let enabled = Xcr0::from_bits_retain(state.xcr0).contains(Xcr0::SSE | Xcr0::AVX);
            if !has_vex(state) || !cr4.contains(Cr4::OSXSAVE) || !enabled {
                return Err(Exception::UD);
            }
        }
        Class::X87 | Class::X87Control if cr0.contains(Cr0::EM) => return Err(Exception::NM),
        Class::Wait if !cr0.contains(Cr0::MP) => return pending(class, state),
        _ => {}
    }
    if cr0.contains(Cr0::TS) {
        return Err(Exception::NM);
    }
    pending(class, state)
}

/// VEX prefixes exist in protected mode only, and not in its virtual-8086 part.
fn has_vex(state: &CpuState) -> bool {
    state.is_protected() && !state.is_vm86()
}

fn pending(class: Class, state: &CpuState) -> Result<(), Exception> {
    let waits = matches!(class, Class::X87 | Class::Wait | Class::Mmx | Class::MmxSse);
    if waits && x87_pending_error(state) && state.cr0 & Cr0::NE.bits() != 0 {
        return Err(Exception::new(Vector::X87Error));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready() -> CpuState {
        let mut state = CpuState::power_up();
        state.cr0 = (Cr0::PE | Cr0::NE | Cr0::MP).bits();
        state.cr4 = (Cr4::OSFXSR | Cr4::OSXSAVE).bits();
        state.xcr0 = 7;
        state
    }

    #[test]
    fn task_switched_gives_nm_to_all_but_integer() {
        let mut state = ready();
        state.cr0 |= Cr0::TS.bits();
        for class in
            [Class::Sse, Class::Avx, Class::X87, Class::X87Control, Class::Mmx, Class::MmxSse, Class::Wait]
        {
            assert_eq!(check_enabled(class, &state), Err(Exception::NM), "{class:?}");
        }
        assert_eq!(check_enabled(Class::Integer, &state), Ok(()));
        assert_eq!(check_enabled(Class::VexInteger, &state), Ok(()));
        state.cr0 &= !Cr0::MP.bits();
        assert_eq!(check_enabled(Class::Wait, &state), Ok(()));
    }

    #[test]
    fn undefined_beats_not_available() {
        let mut state = ready();
        state.cr0 |= (Cr0::TS | Cr0::EM).bits();
        assert_eq!(check_enabled(Class::Sse, &state), Err(Exception::UD));
        assert_eq!(check_enabled(Class::Mmx, &state), Err(Exception::UD));
        assert_eq!(check_enabled(Class::X87, &state), Err(Exception::NM));
        assert_eq!(check_enabled(Class::Avx, &state), Err(Exception::NM), "AVX does not look at EM");
        state.xcr0 = 3;
        assert_eq!(check_enabled(Class::Avx, &state), Err(Exception::UD));
    }

    #[test]
    fn vex_does_not_exist_outside_protected_mode() {
        let mut state = ready();
        state.cr0 &= !Cr0::PE.bits();
        assert_eq!(check_enabled(Class::Avx, &state), Err(Exception::UD));
        assert_eq!(check_enabled(Class::VexInteger, &state), Err(Exception::UD));
    }

    #[test]
    fn a_pending_error_is_reported_by_waiting_instructions_only() {
        let mut state = ready();
        state.fx.fcw &= !1;
        state.fx.fsw = FSW_ERROR_SUMMARY | 1;
        let error = Err(Exception::new(Vector::X87Error));
        for class in [Class::X87, Class::Wait, Class::Mmx, Class::MmxSse] {
            assert_eq!(check_enabled(class, &state), error, "{class:?}");
        }
        assert_eq!(check_enabled(Class::X87Control, &state), Ok(()));
        assert_eq!(check_enabled(Class::Sse, &state), Ok(()));
        state.cr0 &= !Cr0::NE.bits();
        assert_eq!(check_enabled(Class::X87, &state), Ok(()));
    }
}
