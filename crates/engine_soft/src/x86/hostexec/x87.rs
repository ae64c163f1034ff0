//! The x87 environment and state in memory (SDM vol. 1 section 8.1.10, figures 8-9 to 8-12), and the control
//! instructions, which need no arithmetic and so no host.
//!
//! FCS and FDS are stored as zero, as by every processor with CPUID.7.EBX bit 13 (`zero_fcs_fds`).

use arch::x86::CpuState;
use arch::x86::state::FxImage;

use super::enabled::FSW_ERROR_SUMMARY;
use super::form::EnvironmentWidth;

/// FSW.B, which mirrors FSW.ES.
const FSW_BUSY: u16 = 1 << 15;
/// The six error flags of FSW and masks of FCW.
const ERRORS: u16 = 0x3f;
/// FCW bits that exist; bit 6 always reads as one.
const FCW_WRITABLE: u16 = 0x1f3f;
const FCW_FIXED: u16 = 0x40;
/// FCW after FNINIT.
const FCW_INIT: u16 = 0x37f;

/// Bytes of the largest image, FNSAVE's with 32-bit operands.
pub(super) const LARGEST: usize = 108;

/// Bytes of the environment.
pub(super) const fn environment_len(width: EnvironmentWidth) -> usize {
    match width {
        EnvironmentWidth::Bits16 => 14,
        EnvironmentWidth::Bits32 => 28,
    }
}

/// FSW with its top-of-stack field, which says where the image's ST(0) is: the registers move in the image.
pub(super) fn set_status(fx: &mut FxImage, fsw: u16) {
    let turn = (fsw >> 11).wrapping_sub(fx.fsw >> 11) & 7;
    fx.st.rotate_left(turn.into());
    fx.fsw = fsw;
}

/// FNINIT.
pub(super) fn init(fx: &mut FxImage) {
    fx.fcw = FCW_INIT;
    set_status(fx, 0);
    fx.ftw = 0;
    fx.fop = 0;
    fx.fip = 0;
    fx.fdp = 0;
}

/// FNCLEX.
pub(super) fn clear_errors(fx: &mut FxImage) {
    fx.fsw &= 0x7f00;
}

/// Sets FSW.ES and B to whether an unmasked error is flagged.
fn summarise(fx: &mut FxImage) {
    fx.fsw &= !(FSW_ERROR_SUMMARY | FSW_BUSY);
    if fx.fsw & !fx.fcw & ERRORS != 0 {
        fx.fsw |= FSW_ERROR_SUMMARY | FSW_BUSY;
    }
}

/// Runs `act` with all errors masked, so that one that is pending does not stop it; for CR0.NE clear.
pub(super) fn with_errors_masked<T>(state: &mut CpuState, act: impl FnOnce(&mut CpuState) -> T) -> T {
    let masks = state.fx.fcw & ERRORS;
    state.fx.fcw |= ERRORS;
    summarise(&mut state.fx);
    let result = act(state);
    state.fx.fcw = state.fx.fcw & !ERRORS | masks;
    summarise(&mut state.fx);
    result
}

/// FNSTENV: the environment as bytes, of which the first [`environment_len`] count. Masks all errors.
pub(super) fn store_environment(state: &mut CpuState, width: EnvironmentWidth) -> [u8; LARGEST] {
    let mut image = [0; LARGEST];
    let real = !state.is_protected() || state.is_vm86();
    let fx = &mut state.fx;
    let (fip, fdp, fop) = (fx.fip as u32, fx.fdp as u32, fx.fop & 0x7ff);
    let tags = full_tags(fx);
    match width {
        EnvironmentWidth::Bits16 => {
            let high = |pointer: u32| ((pointer >> 16 & 0xf) << 12) as u16;
            let (code, data) = if real { (high(fip) | fop, high(fdp)) } else { (0, 0) };
            let words = [fx.fcw, fx.fsw, tags, fip as u16, code, fdp as u16, data];
            for (bytes, word) in image.chunks_exact_mut(2).zip(words) {
                bytes.copy_from_slice(&word.to_le_bytes());
            }
        }
        EnvironmentWidth::Bits32 => {
            let ones = |word: u16| 0xffff_0000 | u32::from(word);
            let fop = u32::from(fop);
            let pointers = if real {
                let high = |pointer: u32| (pointer >> 16) << 12;
                [ones(fip as u16), high(fip) | fop, ones(fdp as u16), high(fdp)]
            } else {
                [fip, fop << 16, fdp, 0xffff_0000]
            };
            let words = [ones(fx.fcw), ones(fx.fsw), ones(tags)];
            for (bytes, word) in image.chunks_exact_mut(4).zip(words.into_iter().chain(pointers)) {
                bytes.copy_from_slice(&word.to_le_bytes());
            }
        }
    }
    fx.fcw |= ERRORS;
    summarise(fx);
    image
}

/// FLDENV from the first [`environment_len`] bytes of `image`.
pub(super) fn load_environment(state: &mut CpuState, width: EnvironmentWidth, image: &[u8; LARGEST]) {
    let real = !state.is_protected() || state.is_vm86();
    let word = |i: usize| u16::from_le_bytes([image[2 * i], image[2 * i + 1]]);
    let fx = &mut state.fx;
    let (fsw, tags);
    match width {
        EnvironmentWidth::Bits16 => {
            (fx.fcw, fsw, tags) = (word(0), word(1), word(2));
            let high = |i: usize| if real { u64::from(word(i) >> 12) << 16 } else { 0 };
            fx.fip = u64::from(word(3)) | high(4);
            fx.fdp = u64::from(word(5)) | high(6);
            fx.fop = if real { word(4) & 0x7ff } else { 0 };
        }
        EnvironmentWidth::Bits32 => {
            (fx.fcw, fsw, tags) = (word(0), word(2), word(4));
            let long = |i: usize| u64::from(word(2 * i)) | u64::from(word(2 * i + 1)) << 16;
            if real {
                fx.fip = u64::from(word(6)) | (long(4) >> 12 & 0xffff) << 16;
                fx.fdp = u64::from(word(10)) | (long(6) >> 12 & 0xffff) << 16;
                fx.fop = word(8) & 0x7ff;
            } else {
                fx.fip = long(3);
                fx.fdp = long(5);
                fx.fop = word(9) & 0x7ff;
            }
        }
    }
    fx.fcw = fx.fcw & FCW_WRITABLE | FCW_FIXED;
    set_status(fx, fsw);
    fx.ftw = (0..8).fold(0, |set, i| set | u8::from(tags >> (2 * i) & 3 != 3) << i);
    summarise(fx);
}

/// FNSAVE: environment and registers, of which the first [`environment_len`] + 80 bytes count. Then FNINIT.
pub(super) fn save(state: &mut CpuState, width: EnvironmentWidth) -> [u8; LARGEST] {
    let mut image = store_environment(state, width);
    let registers = &mut image[environment_len(width)..];
    for (bytes, st) in registers.chunks_exact_mut(10).zip(&state.fx.st) {
        bytes.copy_from_slice(&st[..10]);
    }
    init(&mut state.fx);
    image
}

/// FRSTOR.
pub(super) fn restore(state: &mut CpuState, width: EnvironmentWidth, image: &[u8; LARGEST]) {
    load_environment(state, width, image);
    let registers = &image[environment_len(width)..];
    for (bytes, st) in registers.chunks_exact(10).zip(&mut state.fx.st) {
        st[..10].copy_from_slice(bytes);
    }
}

/// The tag word with two bits a register, by what the registers hold.
fn full_tags(fx: &FxImage) -> u16 {
    let top = usize::from(fx.fsw >> 11 & 7);
    (0..8).fold(0, |tags, physical| {
        let tag = if fx.ftw >> physical & 1 == 0 { 3 } else { content_tag(&fx.st[(physical + 8 - top) & 7]) };
        tags | tag << (2 * physical)
    })
}

/// 0 for a normal number, 1 for zero, 2 for anything else.
fn content_tag(st: &[u8; 16]) -> u16 {
    let significand = u64::from_le_bytes(st[..8].try_into().expect("eight bytes"));
    let exponent = u16::from_le_bytes([st[8], st[9]]) & 0x7fff;
    match (exponent, significand) {
        (0, 0) => 1,
        (0 | 0x7fff, _) => 2,
        (_, significand) if significand >> 63 == 0 => 2,
        _ => 0,
    }
}
