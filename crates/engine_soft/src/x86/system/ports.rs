//! Who may use which I/O port (SDM vol. 1 19.5).

use arch::x86::Exception;
use arch::x86::segment::system_type;

use super::flags::iopl;
use super::{Core, read_system};

/// #GP(0) unless the running code may access `bytes` (1, 2 or 4) at `port`: by IOPL, else by the bitmap of
/// the TSS.
pub(crate) fn check_io(core: &mut dyn Core, port: u16, bytes: u8) -> Result<(), Exception> {
    let state = core.state();
    if !state.is_protected() || (!state.is_vm86() && state.cpl() <= iopl(state)) {
        return Ok(());
    }
    let tr = state.tr;
    let is_wide = matches!(tr.kind(), system_type::TSS_AVAILABLE | system_type::TSS_BUSY);
    if tr.is_unusable() || !is_wide || tr.limit < 0x67 {
        return Err(Exception::GP0);
    }
    let map = read_system::<2>(core, tr.base, 0x66)?;
    let at = map + u64::from(port / 8);
    // Two bytes are always read; a set of ports may straddle them.
    if at + 1 > u64::from(tr.limit) {
        return Err(Exception::GP0);
    }
    let bits = read_system::<2>(core, tr.base, at)?;
    let mask = (1u64 << bytes) - 1;
    if bits >> (port % 8) & mask != 0 { Err(Exception::GP0) } else { Ok(()) }
}
