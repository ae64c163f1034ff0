//! Decompression of a bzImage's payload, by magic number, to a bounded size.
//!
//! The kernel's `scripts/Makefile.lib` says how each is made: gzip, bzip2, lzma (the old `.lzma` format), xz
//! with the x86 filter, lzop container, lz4 *legacy* frame, zstd; all but zstd and gzip may be followed by the
//! 4-byte uncompressed size, which is left alone.

use std::io::{self, Read};

use super::Error;

/// How a kernel is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip.
    Gzip,
    /// bzip2.
    Bzip2,
    /// The `.lzma` format.
    Lzma,
    /// xz.
    Xz,
    /// LZO1X in lzop's container.
    Lzo,
    /// LZ4's legacy frame.
    Lz4,
    /// zstd.
    Zstd,
}

impl Compression {
    /// Recognises a payload by its first bytes.
    pub fn detect(payload: &[u8]) -> Option<Self> {
        const MAGICS: [(&[u8], Compression); 9] = [
            (b"\x7fELF", Compression::None),
            (&[0x1f, 0x8b], Compression::Gzip),
            (b"BZh", Compression::Bzip2),
            (&[0x5d, 0x00, 0x00], Compression::Lzma),
            (&[0xfd, b'7', b'z', b'X', b'Z', 0x00], Compression::Xz),
            (&[0x89, b'L', b'Z', b'O'], Compression::Lzo),
            (&[0x02, 0x21, 0x4c, 0x18], Compression::Lz4),
            (&[0x28, 0xb5, 0x2f, 0xfd], Compression::Zstd),
            (&[0x1f, 0x9e], Compression::Gzip),
        ];
        MAGICS.iter().find(|(magic, _)| payload.starts_with(magic)).map(|&(_, kind)| kind)
    }

    /// Its usual name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Bzip2 => "bzip2",
            Self::Lzma => "lzma",
            Self::Xz => "xz",
            Self::Lzo => "lzo",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }
}

/// Decompresses `payload` to at most `limit` bytes. What follows the compressed stream is ignored.
///
/// # Errors
/// [`Error::Decompress`] and [`Error::TooLarge`].
pub fn decompress(payload: &[u8], compression: Compression, limit: usize) -> Result<Vec<u8>, Error> {
    let failed = |source| Error::Decompress { compression: compression.name(), source };
    match compression {
        Compression::None => Ok(payload.to_vec()),
        Compression::Gzip => drain(flate2::bufread::GzDecoder::new(payload), limit, failed),
        Compression::Bzip2 => drain(bzip2::bufread::BzDecoder::new(payload), limit, failed),
        Compression::Lzma => {
            let stream = liblzma::stream::Stream::new_lzma_decoder(MEMORY_LIMIT)
                .map_err(|e| failed(io::Error::other(e)))?;
            drain(liblzma::bufread::XzDecoder::new_stream(payload, stream), limit, failed)
        }
        Compression::Xz => {
            let stream = liblzma::stream::Stream::new_stream_decoder(MEMORY_LIMIT, 0)
                .map_err(|e| failed(io::Error::other(e)))?;
            drain(liblzma::bufread::XzDecoder::new_stream(payload, stream), limit, failed)
        }
        Compression::Zstd => {
            let mut decoder =
                zstd::stream::read::Decoder::with_buffer(payload).map_err(failed)?.single_frame();
            decoder.window_log_max(27).map_err(failed)?;
            drain(decoder, limit, failed)
        }
        Compression::Lz4 => lz4_legacy(payload, limit),
        Compression::Lzo => lzop(payload, limit),
    }
}

/// liblzma refuses streams whose dictionary needs more; the kernel is made with at most 128 MiB (`xz -T1 --lzma2=dict=128MiB`).
const MEMORY_LIMIT: u64 = 192 << 20;

fn drain(from: impl Read, limit: usize, failed: impl Fn(io::Error) -> Error) -> Result<Vec<u8>, Error> {
    let mut out = Vec::new();
    from.take(limit as u64 + 1).read_to_end(&mut out).map_err(failed)?;
    if out.len() > limit { Err(Error::TooLarge { limit }) } else { Ok(out) }
}

/// LZ4's legacy frame (lz4_Frame_format.md, "Legacy frame"): after the magic, blocks of `u32` compressed size
/// and data, each 8 MiB uncompressed but the last. A size that cannot be one ends the frame: the kernel build
/// puts the uncompressed size of the whole there.
fn lz4_legacy(payload: &[u8], limit: usize) -> Result<Vec<u8>, Error> {
    const BLOCK: usize = 8 << 20;
    let failed = |what: String| Error::Decompress {
        compression: Compression::Lz4.name(),
        source: io::Error::new(io::ErrorKind::InvalidData, what),
    };
    let mut rest = payload.get(4..).unwrap_or_default();
    let mut out = Vec::new();
    let mut block = Vec::new();
    while let Some((size, after)) = rest.split_first_chunk::<4>() {
        let size = u32::from_le_bytes(*size) as usize;
        if size == 0 || after.is_empty() {
            break;
        }
        let data = after.get(..size).ok_or_else(|| failed(format!("block of {size} bytes is cut off")))?;
        // LZ4 expands to at most 255 times.
        block.resize(BLOCK.min(size.saturating_mul(255)), 0);
        let count = lz4_flex::block::decompress_into(data, &mut block).map_err(|e| failed(e.to_string()))?;
        if out.len() + count > limit {
            return Err(Error::TooLarge { limit });
        }
        out.extend_from_slice(&block[..count]);
        rest = &after[size..];
        if count < BLOCK {
            break;
        }
    }
    Ok(out)
}

/// lzop's container as `lib/decompress_unlzo.c` reads it: a 9-byte magic, a header of version-dependent
/// length, then blocks of `u32` sizes, checksums and LZO1X data, all big endian.
fn lzop(payload: &[u8], limit: usize) -> Result<Vec<u8>, Error> {
    let failed = |what: &str| Error::Decompress {
        compression: Compression::Lzo.name(),
        source: io::Error::new(io::ErrorKind::InvalidData, what.to_owned()),
    };
    let mut input = BigEndian { rest: payload.get(9..).unwrap_or_default() };
    lzop_header(&mut input).ok_or_else(|| failed("header"))?;
    let mut out = Vec::new();
    loop {
        let size = input.u32().ok_or_else(|| failed("block header"))? as usize;
        if size == 0 {
            return Ok(out);
        }
        if out.len().saturating_add(size) > limit {
            return Err(Error::TooLarge { limit });
        }
        let packed = input.u32().ok_or_else(|| failed("block header"))? as usize;
        input.u32().ok_or_else(|| failed("block checksum"))?;
        let data = input.bytes(packed).ok_or_else(|| failed("block is cut off"))?;
        let start = out.len();
        // LZO cannot shrink data by more than about 256 to 1, so a size beyond that is a lie.
        if size > packed.saturating_mul(1024) {
            return Err(failed("block size is impossible"));
        }
        out.resize(start + size, 0);
        if packed == size {
            out[start..].copy_from_slice(data);
            continue;
        }
        let count =
            lzokay::decompress::decompress(data, &mut out[start..]).map_err(|e| failed(&e.to_string()))?;
        if count != size {
            return Err(failed("block is shorter than it says"));
        }
    }
}

/// Skips lzop's header; the kernel build uses `lzop -9`, so flags say: no filter, Adler-32 of uncompressed data.
fn lzop_header(input: &mut BigEndian<'_>) -> Option<()> {
    const F_H_FILTER: u32 = 0x800;
    let version = input.u16()?;
    input.bytes(if version >= 0x940 { 6 } else { 5 })?; // library version, version needed, method, level
    if input.u32()? & F_H_FILTER != 0 {
        input.u32()?;
    }
    input.bytes(8)?; // mode, mtime low
    if version >= 0x940 {
        input.u32()?; // mtime high
    }
    let name = input.u8()?;
    input.bytes(usize::from(name) + 4)?; // name, header checksum
    Some(())
}

struct BigEndian<'a> {
    rest: &'a [u8],
}

impl<'a> BigEndian<'a> {
    fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.bytes(1).map(|b| b[0])
    }

    fn u16(&mut self) -> Option<u16> {
        self.bytes(2).map(|b| u16::from_be_bytes([b[0], b[1]]))
    }

    fn u32(&mut self) -> Option<u32> {
        self.bytes(4).map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]))
    }
}
