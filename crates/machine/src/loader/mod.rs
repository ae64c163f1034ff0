//! Kernel images: what kind a file is, getting at the ELF `vmlinux` inside, and putting it into memory.
//!
//! Every image ends up as an ELF vmlinux: a bzImage is decompressed on the host (the guest's own decompressor
//! would run a hundred times slower under a software engine), a libkrunfw library is unwrapped.
//! Files are hostile: every offset and length is checked, decompression is bounded ([`MAX_KERNEL_BYTES`]).
//!
//! Reading order: [`inspect`], [`extract_vmlinux`], [`image`], [`elf`], [`bzimage`], [`decompress`], [`krunfw`];
//! then what goes into guest memory: [`pvh`], [`linux64`], [`linux32`], [`initrd`].
//!
//! Absent: multiboot, EFI images without a Linux setup header, kernels of other ISAs (told apart, not loaded).

pub mod bzimage;
pub mod decompress;
pub mod elf;
pub mod error;
pub mod image;
pub mod initrd;
pub mod krunfw;
pub mod linux32;
pub mod linux64;
pub mod memory_map;
pub mod pvh;

#[cfg(test)]
mod tests;

use std::borrow::Cow;

pub use decompress::Compression;
pub use error::Error;
pub use image::Image;
pub use memory_map::{MemoryKind, MemoryRange};

/// Largest decompressed kernel: five times the largest distribution kernel; more is a decompression bomb.
pub const MAX_KERNEL_BYTES: usize = 256 << 20;
/// Largest kernel image file.
pub const MAX_IMAGE_BYTES: u64 = 256 << 20;
/// Longest command line in bytes, without the terminating zero (Linux's `COMMAND_LINE_SIZE` on x86 is 2048).
pub const MAX_CMDLINE_BYTES: usize = 2047;

/// What a kernel file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelKind {
    /// An ELF executable with a PVH note.
    ElfPvh,
    /// An ELF executable without one: entered by the Linux 64-bit protocol.
    Elf,
    /// A Linux bzImage.
    BzImage,
    /// A libkrunfw shared library with a kernel in it.
    Krunfw,
}

/// What can be told of a kernel file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelInfo {
    /// What the file is.
    pub kind: KernelKind,
    /// The instruction set it is for, e.g. `x86-64`.
    pub isa: &'static str,
    /// The version text inside, e.g. `6.1.0-56-cloud-amd64 (...) #1 SMP …`, if one is found.
    pub version: Option<String>,
    /// How the kernel inside is compressed.
    pub compression: Compression,
}

impl KernelInfo {
    /// The release: the first word of the version, e.g. `6.1.0-56-cloud-amd64`; what `uname -r` says.
    pub fn release(&self) -> Option<&str> {
        self.version.as_deref().and_then(|v| v.split_whitespace().next())
    }
}

/// Says what `image` is, without decompressing it.
///
/// # Errors
/// An [`Error`] that says why it is no kernel this program can boot.
pub fn inspect(image: &[u8]) -> Result<KernelInfo, Error> {
    if elf::is_elf(image) {
        return inspect_elf(image);
    }
    if let Some(setup) = bzimage::Setup::parse(image)? {
        let payload = setup.payload(image)?;
        return Ok(KernelInfo {
            kind: KernelKind::BzImage,
            isa: if setup.is_64bit() { "x86-64" } else { "i386" },
            version: setup.version(image),
            compression: Compression::detect(payload).ok_or(Error::UnknownCompression)?,
        });
    }
    Err(not_a_kernel(image))
}

fn inspect_elf(image: &[u8]) -> Result<KernelInfo, Error> {
    let file = elf::Elf::parse(image)?;
    let (kind, kernel) = match krunfw::find(image, &file)? {
        Some(bundle) => (KernelKind::Krunfw, bundle.bytes),
        None => {
            file.check_loadable()?;
            (if file.pvh_entry()?.is_some() { KernelKind::ElfPvh } else { KernelKind::Elf }, image)
        }
    };
    Ok(KernelInfo { kind, isa: file.isa(), version: find_banner(kernel), compression: Compression::None })
}

/// The ELF vmlinux inside `image`, borrowed if `image` already is one.
///
/// # Errors
/// As [`inspect`], and whatever decompression finds wrong.
pub fn extract_vmlinux(image: &[u8]) -> Result<Cow<'_, [u8]>, Error> {
    if elf::is_elf(image) {
        let file = elf::Elf::parse(image)?;
        if let Some(bundle) = krunfw::find(image, &file)? {
            return Ok(Cow::Owned(bundle.to_elf()));
        }
        file.check_loadable()?;
        return Ok(Cow::Borrowed(image));
    }
    let Some(setup) = bzimage::Setup::parse(image)? else { return Err(not_a_kernel(image)) };
    let payload = setup.payload(image)?;
    let compression = Compression::detect(payload).ok_or(Error::UnknownCompression)?;
    let vmlinux = decompress::decompress(payload, compression, MAX_KERNEL_BYTES)?;
    if !elf::is_elf(&vmlinux) {
        return Err(Error::PayloadNotElf);
    }
    elf::Elf::parse(&vmlinux)?.check_loadable()?;
    Ok(Cow::Owned(vmlinux))
}

/// The version text of the banner (`Linux version …`) in an uncompressed kernel.
fn find_banner(kernel: &[u8]) -> Option<String> {
    let mark = b"Linux version ";
    let mut rest = kernel;
    while let Some(at) = find(rest, mark) {
        let text = &rest[at + mark.len()..];
        let end = text.iter().take(256).position(|&b| b == 0 || b == b'\n');
        // The format string of /proc/version also starts so.
        if let Some(end) = end
            && text.first().is_some_and(u8::is_ascii_digit)
        {
            return Some(printable(&text[..end]));
        }
        rest = text;
    }
    None
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    let (first, rest) = needle.split_first()?;
    let mut from = 0;
    while let Some(at) = haystack[from..].iter().position(|b| b == first) {
        let start = from + at + 1;
        if haystack[start..].starts_with(rest) {
            return Some(from + at);
        }
        from = start;
    }
    None
}

/// Text out of a file, fit to be shown: control and non-ASCII bytes become `?`.
fn printable(bytes: &[u8]) -> String {
    bytes.iter().map(|&b| if (0x20..0x7f).contains(&b) { b as char } else { '?' }).collect()
}

/// Says as exactly as possible what a file is that is no kernel of ours.
fn not_a_kernel(image: &[u8]) -> Error {
    let at = |offset: usize, magic: &[u8]| image.get(offset..).is_some_and(|rest| rest.starts_with(magic));
    if image.is_empty() {
        Error::NotAKernel { found: "an empty file" }
    } else if at(0x38, b"ARMd") {
        Error::OtherIsa { isa: "arm64" }
    } else if at(0x38, b"RSC\x05") || at(0x30, b"RISCV\0\0\0") {
        Error::OtherIsa { isa: "riscv64" }
    } else if at(0x24, &[0x18, 0x28, 0x6f, 0x01]) {
        Error::OtherIsa { isa: "arm" }
    } else if at(0x10008, b"S390EP") {
        Error::OtherIsa { isa: "s390x" }
    } else if at(0, b"!<arch>\ndebian-binary") {
        Error::NotAKernel { found: "a Debian package (the kernel is inside)" }
    } else if at(0, b"MZ") {
        Error::NotAKernel { found: "an EFI or DOS program without a Linux setup header" }
    } else if at(0, &[0x1f, 0x8b]) {
        Error::NotAKernel { found: "a gzip file" }
    } else if at(0, b"QFI\xfb") {
        Error::NotAKernel { found: "a qcow2 disk image" }
    } else if at(0, b"070701") {
        Error::NotAKernel { found: "an initial RAM disk" }
    } else {
        Error::NotAKernel { found: "a file that is neither a bzImage nor an ELF executable" }
    }
}
