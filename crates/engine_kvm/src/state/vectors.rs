//! x87, SSE and AVX registers: an XSAVE area in standard format (SDM vol. 1, "XSAVE Area").

use arch::x86::state::{FxImage, Ymm};
use arch::x86::{CpuState, Xcr0};
use kvm_bindings::kvm_xsave;

/// Bytes of the legacy region that the state has: up to the last x87 register.
const LEGACY: usize = 160;
const XMM: usize = LEGACY;
/// Which components of the area hold something.
const XSTATE_BV: usize = 512;
/// Upper halves of the YMM registers; the same on all processors (CPUID leaf 0xd, sub-leaf 2).
const YMM_HIGH: usize = 576;
const MXCSR_MASK: usize = 28;

type Area = [u8; 4096];

fn words(area: &Area) -> [u32; 1024] {
    let words = area.as_chunks::<4>().0;
    std::array::from_fn(|i| u32::from_le_bytes(words[i]))
}

fn bytes(words: &[u32; 1024]) -> Area {
    let mut area = [0; 4096];
    for (to, from) in area.as_chunks_mut::<4>().0.iter_mut().zip(words) {
        *to = from.to_le_bytes();
    }
    area
}

pub fn take(from: &kvm_xsave, state: &mut CpuState) {
    let area = bytes(&from.region);
    let u16_at = |at: usize| u16::from_le_bytes([area[at], area[at + 1]]);
    let u64_at = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| area[at + i]));
    let quarter = |at: usize| -> [u8; 16] { std::array::from_fn(|i| area[at + i]) };
    state.fx = FxImage {
        fcw: u16_at(0),
        fsw: u16_at(2),
        ftw: area[4],
        reserved: 0,
        fop: u16_at(6),
        fip: u64_at(8),
        fdp: u64_at(16),
        mxcsr: u64_at(24) as u32,
        mxcsr_mask: FxImage::MXCSR_MASK,
        st: std::array::from_fn(|i| quarter(32 + 16 * i)),
        ..FxImage::default()
    };
    let present = u64_at(XSTATE_BV);
    // A component that is not there has its initial value.
    let half = |component: Xcr0, at: usize| {
        if present & component.bits() != 0 { quarter(at) } else { [0; 16] }
    };
    for (i, Ymm(register)) in state.ymm.iter_mut().enumerate() {
        register[..16].copy_from_slice(&half(Xcr0::SSE, XMM + 16 * i));
        register[16..].copy_from_slice(&half(Xcr0::AVX, YMM_HIGH + 16 * i));
    }
}

pub fn give(state: &CpuState, xcr0: u64) -> kvm_xsave {
    let mut area = [0; 4096];
    let fx = &state.fx;
    area[0..2].copy_from_slice(&fx.fcw.to_le_bytes());
    area[2..4].copy_from_slice(&fx.fsw.to_le_bytes());
    area[4] = fx.ftw;
    area[6..8].copy_from_slice(&fx.fop.to_le_bytes());
    area[8..16].copy_from_slice(&fx.fip.to_le_bytes());
    area[16..24].copy_from_slice(&fx.fdp.to_le_bytes());
    area[24..28].copy_from_slice(&fx.mxcsr.to_le_bytes());
    area[MXCSR_MASK..32].copy_from_slice(&fx.mxcsr_mask.to_le_bytes());
    for (i, register) in fx.st.iter().enumerate() {
        area[32 + 16 * i..48 + 16 * i].copy_from_slice(register);
    }
    let mut present = Xcr0::X87 | Xcr0::SSE;
    present.set(Xcr0::AVX, xcr0 & Xcr0::AVX.bits() != 0);
    area[XSTATE_BV..XSTATE_BV + 8].copy_from_slice(&present.bits().to_le_bytes());
    for (i, Ymm(register)) in state.ymm.iter().enumerate() {
        area[XMM + 16 * i..][..16].copy_from_slice(&register[..16]);
        if present.contains(Xcr0::AVX) {
            area[YMM_HIGH + 16 * i..][..16].copy_from_slice(&register[16..]);
        }
    }
    kvm_xsave { region: words(&area), ..Default::default() }
}
