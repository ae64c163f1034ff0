//! The `.modinfo` section of a kernel module: `key=value` strings, each ended by a zero byte. ELF of 32 and 64 bits, little
//! endian (gABI, "Sections"). Big-endian modules come with the engines that need them.

/// What a module says about itself, as far as loading it needs.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ModInfo {
    /// Modules whose symbols it uses.
    pub(super) depends: Vec<String>,
    /// Modules or aliases that it would like before it.
    pub(super) soft: Vec<String>,
    /// The kernel it is made for.
    pub(super) vermagic: Option<String>,
}

/// `None` when it is no module.
pub(super) fn parse(elf: &[u8]) -> Option<ModInfo> {
    let section = section(elf, b".modinfo")?;
    let mut info = ModInfo::default();
    for line in section.split(|&b| b == 0) {
        let Ok(line) = std::str::from_utf8(line) else { continue };
        match line.split_once('=') {
            Some(("depends", names)) => {
                info.depends = names.split(',').filter(|n| !n.is_empty()).map(normal).collect()
            }
            Some(("softdep", text)) => info.soft.extend(before(text)),
            Some(("vermagic", text)) => info.vermagic = text.split(' ').next().map(str::to_string),
            _ => {}
        }
    }
    Some(info)
}

/// Module names are compared with `_` for `-`.
pub(super) fn normal(name: &str) -> String {
    name.replace('-', "_")
}

/// `pre: a b post: c` wants a and b.
fn before(text: &str) -> Vec<String> {
    let mut pre = false;
    let mut names = Vec::new();
    for word in text.split_whitespace() {
        match word {
            "pre:" => pre = true,
            "post:" => pre = false,
            name if pre => names.push(normal(name)),
            _ => {}
        }
    }
    names
}

/// The bytes of the first section with that name.
fn section<'e>(elf: &'e [u8], name: &[u8]) -> Option<&'e [u8]> {
    if !elf.starts_with(b"\x7fELF") || *elf.get(5)? != 1 {
        return None;
    }
    let wide = *elf.get(4)? == 2;
    let word = |at: usize| -> Option<usize> {
        if wide {
            usize::try_from(number(elf, at, 8)?).ok()
        } else {
            usize::try_from(number(elf, at, 4)?).ok()
        }
    };
    let half = |at: usize| -> Option<usize> { usize::try_from(number(elf, at, 2)?).ok() };
    // e_shoff, e_shentsize, e_shnum, e_shstrndx
    let (table, row, count, names) = if wide {
        (word(0x28)?, half(0x3a)?, half(0x3c)?, half(0x3e)?)
    } else {
        (word(0x20)?, half(0x2e)?, half(0x30)?, half(0x32)?)
    };
    // Offset and size of a section, and its name's place.
    let header = |index: usize| -> Option<(usize, usize, usize)> {
        let at = table.checked_add(index.checked_mul(row)?)?;
        let name = usize::try_from(number(elf, at, 4)?).ok()?;
        let (offset, size) = if wide { (0x18, 0x20) } else { (0x10, 0x14) };
        Some((name, word(at.checked_add(offset)?)?, word(at.checked_add(size)?)?))
    };
    let bytes = |offset: usize, size: usize| elf.get(offset..offset.checked_add(size)?);
    let (_, offset, size) = header(names)?;
    let strings = bytes(offset, size)?;
    (0..count).find_map(|index| {
        let (at, offset, size) = header(index)?;
        let found = strings.get(at..)?.split(|&b| b == 0).next()?;
        if found == name { bytes(offset, size) } else { None }
    })
}

fn number(elf: &[u8], at: usize, len: usize) -> Option<u64> {
    let bytes = elf.get(at..at.checked_add(len)?)?;
    Some(bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
}
