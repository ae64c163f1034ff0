//! The smallest kernels: an ELF executable with a PVH note, made byte by byte.

/// Where the program is loaded and entered.
const LOAD: u32 = 0x10_0000;

/// An ELF64 file whose one segment is `code`, entered by PVH in 32-bit protected mode at its first byte, for the
/// processor `machine` (62 is x86-64, 183 is arm64).
pub fn pvh(code: &[u8], machine: u16) -> Vec<u8> {
    const HEADER: u64 = 64;
    const PROGRAM: u64 = 56;
    let note_at = HEADER + 2 * PROGRAM;
    // Name "Xen", type 18 (XEN_ELFNOTE_PHYS32_ENTRY), a 32-bit address.
    let mut note = Vec::new();
    for word in [4u32, 4, 18] {
        note.extend(word.to_le_bytes());
    }
    note.extend(b"Xen\0");
    note.extend(LOAD.to_le_bytes());
    let code_at = note_at + note.len() as u64;
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    for half in [2u16, machine] {
        elf.extend(half.to_le_bytes());
    }
    elf.extend(1u32.to_le_bytes());
    for long in [u64::from(LOAD), HEADER, 0] {
        elf.extend(long.to_le_bytes());
    }
    elf.extend(0u32.to_le_bytes());
    for half in [HEADER as u16, PROGRAM as u16, 2, 64, 0, 0] {
        elf.extend(half.to_le_bytes());
    }
    segment(&mut elf, 1, code_at, u64::from(LOAD), code.len() as u64);
    segment(&mut elf, 4, note_at, 0, note.len() as u64);
    elf.extend(note);
    elf.extend(code);
    elf
}

fn segment(elf: &mut Vec<u8>, kind: u32, offset: u64, address: u64, size: u64) {
    for word in [kind, 7] {
        elf.extend(word.to_le_bytes());
    }
    for long in [offset, address, address, size, size, 4] {
        elf.extend(long.to_le_bytes());
    }
}
