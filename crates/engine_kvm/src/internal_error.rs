//! KVM_EXIT_INTERNAL_ERROR in words: KVM itself could not go on, most often because it emulates the guest and lacks an
//! instruction.

use arch::x86::{CpuState, SegmentRegister};
use iced_x86::{Decoder, DecoderOptions, Formatter, GasFormatter};
use kvm_bindings::{
    KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION, KVM_INTERNAL_ERROR_SIMUL_EX,
    KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON,
};
use kvm_ioctls::VcpuFd;
use memory::GuestRam;

/// Bytes of the longest instruction.
const LONGEST: u64 = 15;

/// What happened, and at which instruction. `bytes` are those that KVM told, if it did.
pub fn describe(suberror: u32, bytes: &[u8], vcpu: &VcpuFd, ram: &GuestRam, state: &CpuState) -> String {
    let what = match suberror {
        KVM_INTERNAL_ERROR_EMULATION => "kvm emulates this guest and cannot execute",
        KVM_INTERNAL_ERROR_SIMUL_EX => "kvm met an exception while it delivered another, at",
        KVM_INTERNAL_ERROR_DELIVERY_EV => "kvm could not deliver an event, at",
        KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => "kvm does not know why the processor stopped, at",
        _ => "kvm failed, at",
    };
    let linear = state.segment(SegmentRegister::Cs).base.wrapping_add(state.rip);
    let linear = if state.is_64bit_code() { linear } else { linear & 0xffff_ffff };
    let fetched;
    let bytes = if bytes.is_empty() {
        fetched = fetch(vcpu, ram, linear);
        &fetched
    } else {
        bytes
    };
    format!(
        "{what} {} at rip {:#x} ({}-bit code, internal error {suberror}); --engine jit runs it",
        instruction(bytes, state.code_bits(), state.rip),
        state.rip,
        state.code_bits()
    )
}

fn instruction(bytes: &[u8], bits: u32, rip: u64) -> String {
    if bytes.is_empty() {
        return "an instruction that cannot be read".to_owned();
    }
    let decoded = Decoder::with_ip(bits, bytes, rip, DecoderOptions::NONE).decode();
    let mut text = String::new();
    GasFormatter::new().format(&decoded, &mut text);
    let len = if decoded.is_invalid() { bytes.len() } else { decoded.len() };
    let hex: Vec<String> = bytes.iter().take(len).map(|byte| format!("{byte:02x}")).collect();
    format!("`{text}` ({})", hex.join(" "))
}

/// The bytes at `linear`, as far as they lie in RAM.
fn fetch(vcpu: &VcpuFd, ram: &GuestRam, linear: u64) -> Vec<u8> {
    let byte_at = |at: u64| {
        let translation = vcpu.translate_gva(at).ok().filter(|t| t.valid != 0)?;
        let mut byte = [0];
        ram.read(translation.physical_address, &mut byte).ok()?;
        Some(byte[0])
    };
    (0..LONGEST).map_while(|i| byte_at(linear.wrapping_add(i))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_named_with_their_own_bytes_only() {
        let text = instruction(&[0xf0, 0x48, 0x0f, 0xc7, 0x0f, 0x90, 0x90], 64, 0x1000);
        assert_eq!(text, "`lock cmpxchg16b (%rdi)` (f0 48 0f c7 0f)");
        assert_eq!(instruction(&[0xcc, 0xcc], 16, 0), "`int3` (cc)");
        assert!(instruction(&[], 64, 0).contains("cannot be read"));
        assert!(instruction(&[0x06, 0x90], 64, 0).contains("(bad)"));
    }
}
