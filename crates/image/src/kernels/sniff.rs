//! What a kernel file says about itself without being taken apart: ELF header, or the x86 boot header
//! (Linux `Documentation/arch/x86/boot.rst`).

use super::bundle::KernelKind;

/// What was found.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Sniffed {
    pub(super) kind: KernelKind,
    pub(super) arch: &'static str,
    pub(super) version: Option<String>,
}

/// `None` when it is no kernel.
pub(super) fn sniff(bytes: &[u8]) -> Option<Sniffed> {
    if bytes.starts_with(b"\x7fELF") {
        return Some(Sniffed { kind: KernelKind::Elf, arch: elf_arch(bytes)?, version: banner(bytes) });
    }
    if u16_at(bytes, 0x1fe)? != 0xaa55 || bytes.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    // xloadflags, bit 0: there is a 64-bit entry point (protocol 2.12).
    let is_64 = u16_at(bytes, 0x206)? >= 0x20c && u16_at(bytes, 0x236)? & 1 != 0;
    Some(Sniffed {
        kind: KernelKind::BzImage,
        arch: if is_64 { "amd64" } else { "386" },
        version: boot_header_version(bytes),
    })
}

fn elf_arch(bytes: &[u8]) -> Option<&'static str> {
    let little = *bytes.get(5)? == 1;
    let machine = u16_at(bytes, 18)?;
    Some(match if little { machine } else { machine.swap_bytes() } {
        3 => "386",
        62 => "amd64",
        183 => "arm64",
        40 => "arm",
        243 => "riscv64",
        21 if little => "ppc64le",
        22 => "s390x",
        _ => "unknown",
    })
}

/// `kernel_version`: the offset of a string, less 0x200.
fn boot_header_version(bytes: &[u8]) -> Option<String> {
    let pointer = u16_at(bytes, 0x20e)?;
    if pointer == 0 {
        return None;
    }
    word(bytes.get(usize::from(pointer) + 0x200..)?)
}

/// `Linux version …`, which every kernel carries for its log.
fn banner(bytes: &[u8]) -> Option<String> {
    const MARK: &[u8] = b"Linux version ";
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|&b| b == MARK[0]) {
        rest = &rest[at..];
        // The format string has a % here.
        if let Some(after) = rest.strip_prefix(MARK)
            && after.first().is_some_and(u8::is_ascii_digit)
        {
            return word(after);
        }
        rest = &rest[1..];
    }
    None
}

fn word(bytes: &[u8]) -> Option<String> {
    let end = bytes.iter().take(128).position(|&b| !b.is_ascii_graphic())?;
    let text = std::str::from_utf8(&bytes[..end]).ok()?;
    (!text.is_empty()).then(|| text.to_string())
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}
