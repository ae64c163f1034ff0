//! Compressed streams, told apart by their first bytes: gzip (RFC 1952), zstd (RFC 8878), xz, bzip2.
//!
//! The memory a stream can make its decoder take is bounded: a zstd window of 128 MiB (`zstd --ultra -22`), 128 MiB for xz
//! (`xz -9` needs 65); bzip2 never needs more than 4 MiB. Not supported, with a clear error: lzma-alone, lz4.

use std::io::{self, BufReader, Cursor, Read};

const XZ_MEMORY_BYTES: u64 = 128 << 20;
const ZSTD_WINDOW_LOG: u32 = 27;
const BUFFER_BYTES: usize = 128 << 10;

/// How a stream is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
    Xz,
    Bzip2,
}

impl Compression {
    fn detect(head: &[u8]) -> io::Result<Compression> {
        let unsupported =
            |name| Err(io::Error::new(io::ErrorKind::Unsupported, format!("{name} is not supported")));
        match head {
            [0x1f, 0x8b, ..] => Ok(Compression::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Ok(Compression::Zstd),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Ok(Compression::Xz),
            // A skippable zstd frame, as pzstd and estargz-like tools write first.
            [low, 0x2a, 0x4d, 0x18, ..] if low & 0xf0 == 0x50 => Ok(Compression::Zstd),
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => Ok(Compression::Bzip2),
            [0x04, 0x22, 0x4d, 0x18, ..] => unsupported("lz4 compression"),
            _ => Ok(Compression::None),
        }
    }
}

/// A reader whose first bytes have been looked at.
pub(crate) type Sniffed<R> = io::Chain<Cursor<Vec<u8>>, R>;

/// Tells how `reader` is compressed.
pub(crate) fn sniff<R: Read>(mut reader: R) -> io::Result<(Compression, Sniffed<R>)> {
    let mut head = Vec::with_capacity(6);
    reader.by_ref().take(6).read_to_end(&mut head)?;
    let kind = Compression::detect(&head)?;
    Ok((kind, Cursor::new(head).chain(reader)))
}

/// Decompresses `reader`, which is compressed as `kind`.
pub(crate) fn decoder<'a>(kind: Compression, reader: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let whole = BufReader::with_capacity(BUFFER_BYTES, reader);
    Ok(match kind {
        Compression::None => Box::new(whole),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(whole)),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(whole)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG)?;
            Box::new(decoder)
        }
        Compression::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(whole)),
        Compression::Xz => {
            let flags = liblzma::stream::CONCATENATED;
            let stream = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY_BYTES, flags)?;
            Box::new(liblzma::bufread::XzDecoder::new_stream(whole, stream))
        }
    })
}

/// Decompresses `reader` if it is compressed, and says how it was.
pub(crate) fn decode<'a>(reader: impl Read + 'a) -> io::Result<(Compression, Box<dyn Read + 'a>)> {
    let (kind, whole) = sniff(reader)?;
    Ok((kind, decoder(kind, whole)?))
}

/// Decompresses a stream of gzip, zstd, xz or bzip2; any other is as it is.
///
/// # Errors
/// It is compressed by something else, or cannot be read.
pub fn decompress<'a>(reader: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    decode(reader).map(|(_, decoded)| decoded)
}

/// Reads at most `limit` bytes; more is an error.
pub(crate) fn read_limited(reader: impl Read, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("more than {limit} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn round(kind: Compression, bytes: &[u8]) {
        let (found, mut reader) = decode(bytes).unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!((found, text.as_str()), (kind, "hello"));
    }

    #[test]
    fn every_kind_is_told_by_its_first_bytes() {
        round(Compression::None, b"hello");
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(b"hello").unwrap();
        let gz = gz.finish().unwrap();
        round(Compression::Gzip, &gz);
        let zst = zstd::encode_all(&b"hello"[..], 1).unwrap();
        round(Compression::Zstd, &zst);
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
        xz.write_all(b"hello").unwrap();
        let xz = xz.finish().unwrap();
        round(Compression::Xz, &xz);
        let mut bz = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        bz.write_all(b"hello").unwrap();
        let bz = bz.finish().unwrap();
        round(Compression::Bzip2, &bz);
        for whole in [gz, zst, xz, bz] {
            let (_, mut reader) = decode(&whole[..whole.len() - 4]).unwrap();
            assert!(reader.read_to_end(&mut Vec::new()).is_err(), "a truncated stream passed");
        }
    }

    #[test]
    fn what_is_not_supported_says_so() {
        assert!(decode(&[0x04, 0x22, 0x4d, 0x18, 0x64][..]).is_err());
        assert!(decode(&b""[..]).is_ok());
        assert!(read_limited(io::repeat(0), 100).is_err());
    }
}
