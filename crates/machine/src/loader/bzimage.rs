//! The setup header of a bzImage (`Documentation/arch/x86/boot.rst`).
//!
//! Only what leads to the compressed kernel inside; the image's own real-mode and decompression code is never
//! run. Absent: zImage (loaded low, gone since 2.6.30) and protocols before 2.08, which do not say where the
//! payload is.

use super::{Error, printable};

/// Offsets in the image, named as in `boot.rst`.
mod field {
    pub const SETUP_SECTS: usize = 0x1f1;
    pub const SYSSIZE: usize = 0x1f4;
    pub const BOOT_FLAG: usize = 0x1fe;
    pub const HEADER: usize = 0x202;
    pub const VERSION: usize = 0x206;
    pub const KERNEL_VERSION: usize = 0x20e;
    pub const LOADFLAGS: usize = 0x211;
    pub const XLOADFLAGS: usize = 0x236;
    pub const PAYLOAD_OFFSET: usize = 0x248;
    pub const PAYLOAD_LENGTH: usize = 0x24c;
    pub const END: usize = 0x264;
}

const LOADED_HIGH: u8 = 1 << 0;
const XLF_KERNEL_64: u16 = 1 << 0;
const SECTOR: usize = 512;

/// What is needed of a setup header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setup {
    setup_sectors: usize,
    /// Bytes of all that follows the setup sectors.
    system_bytes: u64,
    kernel_version: u16,
    payload_offset: u32,
    payload_length: u32,
    xloadflags: u16,
}

impl Setup {
    /// Reads the header; `None` if `image` has none.
    ///
    /// # Errors
    /// [`Error::OldProtocol`], [`Error::Truncated`], [`Error::Header`].
    pub fn parse(image: &[u8]) -> Result<Option<Self>, Error> {
        let has = |at: usize, magic: &[u8]| image.get(at..at + magic.len()) == Some(magic);
        if !has(field::HEADER, b"HdrS") || !has(field::BOOT_FLAG, &[0x55, 0xaa]) {
            return Ok(None);
        }
        if image.len() < field::END {
            let (end, len) = (field::END as u64, image.len() as u64);
            return Err(Error::Truncated { what: "setup header", end, len });
        }
        let u16_at = |at: usize| u16::from_le_bytes([image[at], image[at + 1]]);
        let u32_at = |at: usize| u32::from(u16_at(at)) | u32::from(u16_at(at + 2)) << 16;
        let version = u16_at(field::VERSION);
        if version < 0x208 {
            return Err(Error::OldProtocol { version });
        }
        if image[field::LOADFLAGS] & LOADED_HIGH == 0 {
            return Err(Error::Header { field: "loadflags", reason: "a zImage, not a bzImage".to_owned() });
        }
        Ok(Some(Self {
            setup_sectors: match image[field::SETUP_SECTS] {
                0 => 4, // "for backwards compatibility"
                count => usize::from(count),
            },
            system_bytes: u64::from(u32_at(field::SYSSIZE)) * 16,
            kernel_version: u16_at(field::KERNEL_VERSION),
            payload_offset: u32_at(field::PAYLOAD_OFFSET),
            payload_length: u32_at(field::PAYLOAD_LENGTH),
            xloadflags: if version >= 0x20c { u16_at(field::XLOADFLAGS) } else { 0 },
        }))
    }

    /// Whether the kernel inside has a 64-bit entry point.
    pub fn is_64bit(&self) -> bool {
        self.xloadflags & XLF_KERNEL_64 != 0
    }

    /// The compressed kernel.
    ///
    /// # Errors
    /// [`Error::Truncated`] and [`Error::Header`].
    pub fn payload<'a>(&self, image: &'a [u8]) -> Result<&'a [u8], Error> {
        if self.payload_length == 0 {
            return Err(Error::Header { field: "payload_length", reason: "zero".to_owned() });
        }
        let system = ((self.setup_sectors + 1) * SECTOR) as u64;
        let (len, system_end) = (image.len() as u64, system + self.system_bytes);
        if system_end > len {
            return Err(Error::Truncated { what: "image", end: system_end, len });
        }
        let start = system + u64::from(self.payload_offset);
        let end = start + u64::from(self.payload_length);
        let truncated = Error::Truncated { what: "payload", end, len };
        let (Ok(start), Ok(end)) = (usize::try_from(start), usize::try_from(end)) else {
            return Err(truncated);
        };
        image.get(start..end).ok_or(truncated)
    }

    /// The version text, if the header points to one.
    pub fn version(&self, image: &[u8]) -> Option<String> {
        if self.kernel_version == 0 {
            return None;
        }
        let text = image.get(usize::from(self.kernel_version) + SECTOR..)?;
        let end = text.iter().take(256).position(|&b| b == 0)?;
        Some(printable(&text[..end]))
    }
}
