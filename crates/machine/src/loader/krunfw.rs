//! libkrunfw shared libraries: a kernel's memory image as the symbol `KERNEL_BUNDLE`, and a function
//! `krunfw_get_kernel(u64 *load, u64 *entry, size_t *size)` that stores three constants.
//!
//! The library is not run: the constants are taken from the function's `mov qword [reg], imm32` instructions,
//! which is what compilers make of it at every optimisation level seen so far (libkrunfw 3 to 5).

use super::Error;
use super::elf::{Class, Elf};

/// A kernel found in a library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bundle<'a> {
    /// The memory image.
    pub bytes: &'a [u8],
    /// Physical address of its first byte.
    pub load: u64,
    /// Physical address of the 64-bit entry point.
    pub entry: u64,
}

/// Finds the kernel in `file`; `None` if it is no libkrunfw library.
///
/// # Errors
/// [`Error::Header`] if it is one but not of the known form.
pub fn find<'a>(image: &'a [u8], file: &Elf<'a>) -> Result<Option<Bundle<'a>>, Error> {
    if !file.is_shared_object() || file.class() != Class::Elf64 {
        return Ok(None);
    }
    let symbols = Symbols::find(image);
    let (Some(data), Some(code)) = (
        symbols.as_ref().and_then(|s| s.lookup(b"KERNEL_BUNDLE")),
        symbols.as_ref().and_then(|s| s.lookup(b"krunfw_get_kernel")),
    ) else {
        return Ok(None);
    };
    let broken = |reason: &str| Error::Header { field: "libkrunfw", reason: reason.to_owned() };
    let code = file.bytes_at(code.0).ok_or_else(|| broken("krunfw_get_kernel is outside the file"))?;
    let [load, entry, size] = stored_constants(&code[..code.len().min(256)])
        .ok_or_else(|| broken("krunfw_get_kernel is of an unknown form"))?;
    let bytes = file.bytes_at(data.0).ok_or_else(|| broken("KERNEL_BUNDLE is outside the file"))?;
    let bytes = &bytes[..bytes.len().min(size as usize)];
    if entry.wrapping_sub(load) >= bytes.len() as u64 {
        return Err(broken("the entry point is outside the kernel"));
    }
    Ok(Some(Bundle { bytes, load, entry }))
}

impl Bundle<'_> {
    /// The kernel as an ELF executable with one segment.
    pub fn to_elf(&self) -> Vec<u8> {
        const HEADERS: usize = 0x1000;
        let len = self.bytes.len() as u64;
        let mut elf = Vec::with_capacity(HEADERS + self.bytes.len());
        elf.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
        for half in [2u16, 62] {
            elf.extend_from_slice(&half.to_le_bytes()); // ET_EXEC, EM_X86_64
        }
        elf.extend_from_slice(&1u32.to_le_bytes());
        for word in [self.entry, 64, 0] {
            elf.extend_from_slice(&word.to_le_bytes()); // entry, program headers, sections
        }
        elf.extend_from_slice(&0u32.to_le_bytes());
        for half in [64u16, 56, 1, 64, 0, 0] {
            elf.extend_from_slice(&half.to_le_bytes()); // sizes and counts
        }
        for half in [1u32, 7] {
            elf.extend_from_slice(&half.to_le_bytes()); // PT_LOAD, RWX
        }
        for word in [HEADERS as u64, self.load, self.load, len, len, HEADERS as u64] {
            elf.extend_from_slice(&word.to_le_bytes());
        }
        elf.resize(HEADERS, 0);
        elf.extend_from_slice(self.bytes);
        elf
    }
}

/// The first three immediates of `mov qword ptr [reg], imm32` (REX.W C7 /0, ModRM without displacement).
fn stored_constants(code: &[u8]) -> Option<[u64; 3]> {
    let mut found = [0; 3];
    let mut count = 0;
    let mut at = 0;
    while count < 3 {
        let window = code.get(at..at + 7)?;
        if window[0] == 0x48 && window[1] == 0xc7 && window[2] < 8 && !matches!(window[2], 4 | 5) {
            found[count] = u64::from(u32::from_le_bytes([window[3], window[4], window[5], window[6]]));
            count += 1;
            at += 7;
        } else {
            at += 1;
        }
    }
    Some(found)
}

/// A dynamic symbol table and its strings, found through the section headers.
struct Symbols<'a> {
    table: &'a [u8],
    strings: &'a [u8],
}

impl<'a> Symbols<'a> {
    fn find(image: &'a [u8]) -> Option<Self> {
        const SHT_DYNSYM: u64 = 11;
        let number = |at: usize, len: usize| -> Option<u64> {
            let bytes = image.get(at..at.checked_add(len)?)?;
            Some(bytes.iter().rev().fold(0, |value, &b| value << 8 | u64::from(b)))
        };
        let table = usize::try_from(number(0x28, 8)?).ok()?;
        let (size, count) = (number(0x3a, 2)? as usize, number(0x3c, 2)? as usize);
        let section = |index: usize| -> Option<(u64, &'a [u8], usize)> {
            let at = table.checked_add(index.checked_mul(size)?)?;
            let (offset, len) = (number(at + 0x18, 8)?, number(at + 0x20, 8)?);
            let bytes =
                image.get(usize::try_from(offset).ok()?..usize::try_from(offset.checked_add(len)?).ok()?)?;
            Some((number(at + 4, 4)?, bytes, number(at + 0x28, 4)? as usize))
        };
        let symbols = (0..count).filter_map(section).find(|(kind, ..)| *kind == SHT_DYNSYM)?;
        Some(Self { table: symbols.1, strings: section(symbols.2)?.1 })
    }

    /// `(value, size)` of the symbol called `name`.
    fn lookup(&self, name: &[u8]) -> Option<(u64, u64)> {
        self.table.chunks_exact(24).find_map(|symbol| {
            let word = |at: usize| symbol[at..at + 8].iter().rev().fold(0, |v, &b| v << 8 | u64::from(b));
            let at = (word(0) & 0xffff_ffff) as usize;
            let text = self.strings.get(at..)?;
            (text.starts_with(name) && text.get(name.len()) == Some(&0)).then(|| (word(8), word(16)))
        })
    }
}
