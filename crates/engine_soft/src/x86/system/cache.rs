//! INVLPG, INVPCID, INVD, WBINVD (SDM vol. 2; vol. 3 4.10.4.1). Caches themselves are not modelled.

use arch::x86::cpuid::Feature;
use arch::x86::paging::is_canonical;
use arch::x86::{Cr4, Exception};

use super::{Core, Flush, require_cpl0};

/// INVLPG.
pub(crate) fn invlpg(core: &mut dyn Core, linear: u64) -> Result<(), Exception> {
    require_cpl0(core.state())?;
    if is_canonical(linear) {
        core.flush_tlb(Flush::Page(linear));
    }
    Ok(())
}

/// INVPCID of type `kind` with the two quadwords of its descriptor.
pub(crate) fn invpcid(core: &mut dyn Core, kind: u64, descriptor: [u64; 2]) -> Result<(), Exception> {
    if !core.model().has(Feature::Invpcid) {
        return Err(Exception::UD);
    }
    require_cpl0(core.state())?;
    let [pcid, linear] = descriptor;
    let pcide = core.state().cr4 & Cr4::PCIDE.bits() != 0;
    if kind > 3 || (kind < 2 && (pcid >> 12 != 0 || (!pcide && pcid != 0))) {
        return Err(Exception::GP0);
    }
    if kind == 0 && !is_canonical(linear) {
        return Err(Exception::GP0);
    }
    let pcid = (pcid & 0xfff) as u16;
    core.flush_tlb(match kind {
        0 => Flush::PcidPage { pcid, linear },
        1 => Flush::Pcid(pcid),
        2 => Flush::All,
        _ => Flush::NonGlobal,
    });
    Ok(())
}

/// INVD and WBINVD: guest memory is always coherent.
pub(crate) fn wbinvd(core: &mut dyn Core) -> Result<(), Exception> {
    require_cpl0(core.state())
}
