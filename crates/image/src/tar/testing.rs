//! Archives for tests, sane and not.

use super::header::Header;

/// Builds an archive header by header.
#[derive(Clone, Default)]
pub(crate) struct Tar {
    bytes: Vec<u8>,
    mode: Option<u32>,
    owner: (u32, u32),
    device: (u32, u32),
    mtime: u64,
}

impl Tar {
    pub(crate) fn new() -> Self {
        Tar { mtime: 1_700_000_000, ..Tar::default() }
    }

    /// Mode of the next entries.
    pub(crate) fn mode(mut self, mode: u32) -> Self {
        self.mode = Some(mode);
        self
    }

    /// Owner of the next entries.
    pub(crate) fn owner(mut self, uid: u32, gid: u32) -> Self {
        self.owner = (uid, gid);
        self
    }

    pub(crate) fn file(self, name: &str, data: &[u8]) -> Self {
        self.entry(name.as_bytes(), b'0', b"", data.len() as u64, data)
    }

    pub(crate) fn dir(self, name: &str) -> Self {
        self.entry(name.as_bytes(), b'5', b"", 0, b"")
    }

    pub(crate) fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(name.as_bytes(), b'2', target.as_bytes(), 0, b"")
    }

    pub(crate) fn link(self, name: &str, target: &str) -> Self {
        self.entry(name.as_bytes(), b'1', target.as_bytes(), 0, b"")
    }

    pub(crate) fn device(mut self, name: &str, typeflag: u8, major: u32, minor: u32) -> Self {
        self.device = (major, minor);
        let mut out = self.entry(name.as_bytes(), typeflag, b"", 0, b"");
        out.device = (0, 0);
        out
    }

    /// Extended records for the next entry.
    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let data: Vec<u8> = records.iter().flat_map(|(key, value)| pax_record(key, value)).collect();
        self.entry(b"pax", b'x', b"", data.len() as u64, &data)
    }

    /// Any header with any data after it, padded.
    pub(crate) fn entry(self, name: &[u8], typeflag: u8, link: &[u8], size: u64, data: &[u8]) -> Self {
        self.raw(name, typeflag, link, size, data, |_| {})
    }

    /// As `entry`, with a change to the header before its checksum.
    pub(crate) fn raw(
        mut self,
        name: &[u8],
        typeflag: u8,
        link: &[u8],
        size: u64,
        data: &[u8],
        change: impl FnOnce(&mut [u8; 512]),
    ) -> Self {
        let mut block = [0u8; 512];
        block[..name.len()].copy_from_slice(name);
        let mode = self.mode.unwrap_or(if typeflag == b'5' { 0o755 } else { 0o644 });
        block[100..107].copy_from_slice(format!("{mode:07o}").as_bytes());
        block[108..115].copy_from_slice(format!("{:07o}", self.owner.0).as_bytes());
        block[116..123].copy_from_slice(format!("{:07o}", self.owner.1).as_bytes());
        block[124] = 0x80;
        block[128..136].copy_from_slice(&size.to_be_bytes());
        block[136..147].copy_from_slice(format!("{:011o}", self.mtime).as_bytes());
        block[156] = typeflag;
        block[157..157 + link.len()].copy_from_slice(link);
        block[257..265].copy_from_slice(b"ustar\x0000");
        block[329..336].copy_from_slice(format!("{:07o}", self.device.0).as_bytes());
        block[337..344].copy_from_slice(format!("{:07o}", self.device.1).as_bytes());
        change(&mut block);
        seal(&mut block);
        self.bytes.extend_from_slice(&block);
        self.bytes.extend_from_slice(data);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    /// The archive with the mark of its end.
    pub(crate) fn end(mut self) -> Vec<u8> {
        self.bytes.extend_from_slice(&[0; 1024]);
        self.bytes
    }

    /// The archive without that mark.
    pub(crate) fn bare(self) -> Vec<u8> {
        self.bytes
    }
}

pub(crate) fn pax_record(key: &str, value: &[u8]) -> Vec<u8> {
    let body = key.len() + value.len() + 3;
    let mut len = body + 1;
    while len != body + len.to_string().len() {
        len = body + len.to_string().len();
    }
    [format!("{len} {key}=").as_bytes(), value, b"\n"].concat()
}

fn seal(block: &mut [u8; 512]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    assert!(Header(*block).checksum_ok());
}
