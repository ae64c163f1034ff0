//! FXSAVE, FXRSTOR and the XSAVE family (SDM vol. 1 ch. 13; vol. 2 "FXSAVE").
//!
//! ```text
//!   0  FCW FSW FTW FOP FIP FDP   24 MXCSR, MASK   32 ST0-7   160 XMM0-15   512 header   576 YMM0-15 high halves
//! ```
//! With AVX as the only extended component, standard and compacted areas differ in the header alone. FCS and
//! FDS are stored as zero, as CPUID says (ZERO_FCS_FDS). Addresses are linear; the caller has applied the
//! segment to the whole area. Absent: supervisor components (IA32_XSS is zero).

use arch::x86::cpuid::{Feature, XSAVE_AVX_BYTES, XSAVE_HEADER_END, xsave_area_bytes};
use arch::x86::exception::PageFaultCode;
use arch::x86::state::FxImage;
use arch::x86::{CpuState, Cr0, Exception, Gpr, Vector, Xcr0};

use super::control::require_osxsave;
use super::{Access, Core, OperandSize, read, require_cpl0, write};

const LEGACY_BYTES: usize = 512;
const AREA_BYTES: usize = (XSAVE_HEADER_END + XSAVE_AVX_BYTES) as usize;
const MXCSR_AT: usize = 24;
const ST_AT: usize = 32;
const XMM_AT: usize = 160;
const AVX_AT: usize = XSAVE_HEADER_END as usize;
/// XSTATE_BV and XCOMP_BV.
const HEADER_AT: u64 = 512;
const COMPACT: u64 = 1 << 63;

/// FCW bits that exist; bit 6 always reads as one.
const FCW_WRITABLE: u16 = 0x1f3f;
const FCW_FIXED: u16 = 0x40;
/// FSW.ES and B, which follow from error flags and masks.
const FSW_SUMMARY: u16 = 0x8080;
/// The six error flags of FSW and masks of FCW.
const X87_ERRORS: u16 = 0x3f;

const X87: u64 = Xcr0::X87.bits();
const SSE: u64 = Xcr0::SSE.bits();
const AVX: u64 = Xcr0::AVX.bits();

/// Which instruction saves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Save {
    Xsave,
    Xsaveopt,
    Xsavec,
    Xsaves,
}

/// Which instruction restores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Restore {
    Xrstor,
    Xrstors,
}

/// Vector registers the running code can name.
fn vector_count(state: &CpuState) -> usize {
    if state.is_64bit_code() { 16 } else { 8 }
}

/// The first 512 bytes of an area. `pointers` is `Qword` for the REX.W forms.
fn legacy_image(state: &CpuState, pointers: OperandSize) -> [u8; LEGACY_BYTES] {
    let mut image = [0; LEGACY_BYTES];
    let fx = &state.fx;
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &fx.fcw.to_le_bytes());
    put(2, &fx.fsw.to_le_bytes());
    put(4, &[fx.ftw]);
    put(6, &fx.fop.to_le_bytes());
    let pointer_bytes = if pointers == OperandSize::Qword { 8 } else { 4 };
    put(8, &fx.fip.to_le_bytes()[..pointer_bytes]);
    put(16, &fx.fdp.to_le_bytes()[..pointer_bytes]);
    put(MXCSR_AT, &fx.mxcsr.to_le_bytes());
    put(MXCSR_AT + 4, &FxImage::MXCSR_MASK.to_le_bytes());
    for (i, register) in fx.st.iter().enumerate() {
        put(ST_AT + 16 * i, &register[..10]);
    }
    for (i, register) in state.ymm.iter().enumerate() {
        put(XMM_AT + 16 * i, &register.0[..16]);
    }
    image
}

fn u16_at(image: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([image[at], image[at + 1]])
}

fn u64_at(image: &[u8], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&image[at..at + 8]);
    u64::from_le_bytes(bytes)
}

fn mxcsr_of(image: &[u8]) -> Result<u32, Exception> {
    let mxcsr = u64_at(image, MXCSR_AT) as u32;
    if mxcsr & !FxImage::MXCSR_MASK != 0 { Err(Exception::GP0) } else { Ok(mxcsr) }
}

fn load_x87(state: &mut CpuState, image: &[u8], pointers: OperandSize) {
    let pointer = |at: usize| {
        let value = u64_at(image, at);
        if pointers == OperandSize::Qword { value } else { value & 0xffff_ffff }
    };
    let fx = &mut state.fx;
    fx.fcw = u16_at(image, 0) & FCW_WRITABLE | FCW_FIXED;
    fx.fsw = u16_at(image, 2) & !FSW_SUMMARY;
    if fx.fsw & !fx.fcw & X87_ERRORS != 0 {
        fx.fsw |= FSW_SUMMARY;
    }
    fx.ftw = image[4];
    fx.fop = u16_at(image, 6) & 0x7ff;
    // FIP is kept canonical, FDP as it is.
    fx.fip = ((pointer(8) << 16) as i64 >> 16) as u64;
    fx.fdp = pointer(16);
    for (i, register) in fx.st.iter_mut().enumerate() {
        *register = [0; 16];
        register[..10].copy_from_slice(&image[ST_AT + 16 * i..][..10]);
    }
}

fn initialize_x87(state: &mut CpuState) {
    let FxImage { mxcsr, mxcsr_mask, .. } = state.fx;
    state.fx = FxImage { fcw: 0x37f, mxcsr, mxcsr_mask, ..FxImage::default() };
}

fn load_xmm(state: &mut CpuState, image: &[u8]) {
    let count = vector_count(state);
    for (i, register) in state.ymm[..count].iter_mut().enumerate() {
        register.0[..16].copy_from_slice(&image[XMM_AT + 16 * i..][..16]);
    }
}

fn load_avx(state: &mut CpuState, image: &[u8]) {
    let count = vector_count(state);
    for (i, register) in state.ymm[..count].iter_mut().enumerate() {
        register.0[16..].copy_from_slice(&image[AVX_AT + 16 * i..][..16]);
    }
}

/// The components not in their initial configuration (XINUSE).
pub(super) fn in_use(state: &CpuState) -> u64 {
    let fx = &state.fx;
    let x87_idle = (fx.fcw, fx.fsw, fx.ftw, fx.fop, fx.fip, fx.fdp) == (0x37f, 0, 0, 0, 0, 0)
        && fx.st.iter().flatten().all(|b| *b == 0);
    let mut used = if x87_idle { 0 } else { X87 };
    if state.ymm.iter().any(|r| r.0[..16] != [0; 16]) {
        used |= SSE;
    }
    if state.ymm.iter().any(|r| r.0[16..] != [0; 16]) {
        used |= AVX;
    }
    used
}

fn check_fx(core: &mut dyn Core, linear: u64) -> Result<Access, Exception> {
    let state = core.state();
    if state.cr0 & (Cr0::EM | Cr0::TS).bits() != 0 {
        return Err(Exception::NM);
    }
    if !linear.is_multiple_of(16) {
        return Err(Exception::GP0);
    }
    Ok(Access::at(state.cpl()))
}

/// The page fault of a load as that of the store it was made for.
fn as_store(fault: Exception) -> Exception {
    match fault.vector {
        Vector::PageFault => Exception { error_code: fault.error_code | PageFaultCode::WRITE, ..fault },
        _ => fault,
    }
}

/// FXSAVE, or FXSAVE64 with `pointers` `Qword`.
pub(crate) fn fxsave(core: &mut dyn Core, linear: u64, pointers: OperandSize) -> Result<(), Exception> {
    let access = check_fx(core, linear)?;
    let image = legacy_image(core.state(), pointers);
    let end = XMM_AT + 16 * vector_count(core.state());
    // The processor tries the last byte of the area first.
    let last = linear.wrapping_add(LEGACY_BYTES as u64 - 1);
    let kept = read::<1>(core, last, access).map_err(as_store)?;
    write(core, last, kept, 1, access)?;
    core.write_linear(linear, &image[..end], access)
}

/// FXRSTOR, or FXRSTOR64 with `pointers` `Qword`.
pub(crate) fn fxrstor(core: &mut dyn Core, linear: u64, pointers: OperandSize) -> Result<(), Exception> {
    let access = check_fx(core, linear)?;
    let mut image = [0; LEGACY_BYTES];
    // The processor tries the last byte of the area first.
    read::<1>(core, linear.wrapping_add(LEGACY_BYTES as u64 - 1), access)?;
    core.read_linear(linear, &mut image, access)?;
    let mxcsr = mxcsr_of(&image)?;
    let state = core.state_mut();
    load_x87(state, &image, pointers);
    load_xmm(state, &image);
    state.fx.mxcsr = mxcsr;
    Ok(())
}

/// Checks common to the XSAVE family; the requested components that are enabled.
fn check_xsave(core: &mut dyn Core, linear: u64, feature: Feature) -> Result<u64, Exception> {
    require_osxsave(core.state())?;
    if !core.model().has(feature) {
        return Err(Exception::UD);
    }
    if core.state().cr0 & Cr0::TS.bits() != 0 {
        return Err(Exception::NM);
    }
    if feature == Feature::Xsaves {
        require_cpl0(core.state())?;
    }
    if !linear.is_multiple_of(64) {
        return Err(Exception::GP0);
    }
    let gpr = &core.state().gpr;
    let requested = gpr[Gpr::Rax as usize] & 0xffff_ffff | gpr[Gpr::Rdx as usize] << 32;
    Ok(requested & core.state().xcr0)
}

/// XSAVE, XSAVEOPT, XSAVEC or XSAVES (their 64-bit forms with `pointers` `Qword`) of the components EDX:EAX names.
pub(crate) fn xsave(
    core: &mut dyn Core,
    linear: u64,
    pointers: OperandSize,
    save: Save,
) -> Result<(), Exception> {
    let feature = match save {
        Save::Xsave => Feature::Xsave,
        Save::Xsaveopt => Feature::Xsaveopt,
        Save::Xsavec => Feature::Xsavec,
        Save::Xsaves => Feature::Xsaves,
    };
    let requested = check_xsave(core, linear, feature)?;
    let access = Access::at(core.state().cpl());
    let compact = matches!(save, Save::Xsavec | Save::Xsaves);
    let mut used = in_use(core.state()) & requested;
    if compact && core.state().fx.mxcsr != FxImage::MXCSR_RESET {
        used |= requested & SSE;
    }
    let saved = if save == Save::Xsave { requested } else { used };
    let bitmap =
        if compact { used } else { read::<8>(core, linear + HEADER_AT, access)? & !requested | used };
    let mxcsr = if compact { saved & SSE } else { requested & (SSE | AVX) };
    write_components(core, linear, pointers, saved, mxcsr != 0)?;
    write(core, linear + HEADER_AT, bitmap, 8, access)?;
    if compact {
        write(core, linear + HEADER_AT + 8, requested | COMPACT, 8, access)?;
    }
    Ok(())
}

fn write_components(
    core: &mut dyn Core,
    linear: u64,
    pointers: OperandSize,
    saved: u64,
    mxcsr: bool,
) -> Result<(), Exception> {
    let access = Access::at(core.state().cpl());
    let count = vector_count(core.state());
    let image = legacy_image(core.state(), pointers);
    if saved & X87 != 0 {
        core.write_linear(linear, &image[..MXCSR_AT], access)?;
        core.write_linear(linear + ST_AT as u64, &image[ST_AT..XMM_AT], access)?;
    }
    if mxcsr {
        core.write_linear(linear + MXCSR_AT as u64, &image[MXCSR_AT..ST_AT], access)?;
    }
    if saved & SSE != 0 {
        core.write_linear(linear + XMM_AT as u64, &image[XMM_AT..XMM_AT + 16 * count], access)?;
    }
    if saved & AVX != 0 {
        let mut high = [0; 256];
        for (to, from) in high.chunks_exact_mut(16).zip(&core.state().ymm) {
            to.copy_from_slice(&from.0[16..]);
        }
        core.write_linear(linear + AVX_AT as u64, &high[..16 * count], access)?;
    }
    Ok(())
}

/// XRSTOR or XRSTORS (their 64-bit forms with `pointers` `Qword`) of the components EDX:EAX names.
pub(crate) fn xrstor(
    core: &mut dyn Core,
    linear: u64,
    pointers: OperandSize,
    restore: Restore,
) -> Result<(), Exception> {
    let feature = if restore == Restore::Xrstors { Feature::Xsaves } else { Feature::Xsave };
    let requested = check_xsave(core, linear, feature)?;
    let access = Access::at(core.state().cpl());
    let mut area = [0; AREA_BYTES];
    core.read_linear(linear, &mut area[..XSAVE_HEADER_END as usize], access)?;
    let header = &area[HEADER_AT as usize..AVX_AT];
    let (present, layout) = (u64_at(header, 0), u64_at(header, 8));
    let compact = layout & COMPACT != 0;
    check_header(core, header, restore)?;
    if present & requested & AVX != 0 {
        let end = xsave_area_bytes(AVX) as usize;
        core.read_linear(linear + AVX_AT as u64, &mut area[AVX_AT..end], access)?;
    }
    let loads_mxcsr = if compact { requested & present & SSE != 0 } else { requested & (SSE | AVX) != 0 };
    let mxcsr = if loads_mxcsr { mxcsr_of(&area)? } else { FxImage::MXCSR_RESET };

    let state = core.state_mut();
    let zeros = [0; AREA_BYTES];
    let source = |component: u64| if present & component != 0 { &area } else { &zeros };
    if requested & X87 != 0 {
        if present & X87 != 0 { load_x87(state, &area, pointers) } else { initialize_x87(state) }
    }
    if loads_mxcsr || requested & SSE != 0 {
        state.fx.mxcsr = mxcsr;
    }
    if requested & SSE != 0 {
        load_xmm(state, source(SSE));
    }
    if requested & AVX != 0 {
        load_avx(state, source(AVX));
    }
    Ok(())
}

/// #GP(0) for a header this XCR0 and instruction do not allow.
fn check_header(core: &dyn Core, header: &[u8], restore: Restore) -> Result<(), Exception> {
    let (present, layout) = (u64_at(header, 0), u64_at(header, 8));
    let xcr0 = core.state().xcr0;
    let bad = if layout & COMPACT != 0 {
        let components = layout & !COMPACT;
        !core.model().has(Feature::Xsavec)
            || components & !xcr0 != 0
            || present & !components != 0
            || header[16..].iter().any(|b| *b != 0)
    } else {
        restore == Restore::Xrstors || present & !xcr0 != 0 || header[8..24].iter().any(|b| *b != 0)
    };
    if bad { Err(Exception::GP0) } else { Ok(()) }
}
