//! A new layer: entries go in, a compressed blob of the store comes out.
//!
//! The same entries give the same bytes: nothing of the host goes in but what the caller says. POSIX ustar headers, pax records
//! only where something does not fit (IEEE Std 1003.1-2008); whiteouts as OCI image specification 1.1, `layer.md`, has them.

use std::io::{self, Read, Write};
use std::path::Path;

use crate::MAX_LAYER_BYTES;
use crate::archive::GZIP_LEVEL;
use crate::digest::{Digest, HashWriter};
use crate::error::{Error, Result};
use crate::store::{BlobWriter, Incoming};
use crate::view::{NodeInfo, NodeKind};

/// The largest number of seven octal digits.
const MAX_OCTAL: u64 = 0o777_7777;
/// The largest number of eleven.
const MAX_LONG_OCTAL: u64 = 0o777_7777_7777;

/// A layer of an image as a manifest and a config name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerPart {
    /// OCI's word for what it is.
    pub media_type: String,
    /// Of the blob.
    pub digest: Digest,
    /// Bytes of the blob.
    pub size: u64,
    /// Of the archive in it.
    pub diff_id: Digest,
}

/// A layer being written.
pub struct LayerWriter {
    out: HashWriter<flate2::write::GzEncoder<BlobWriter>>,
    entries: u64,
}

impl Incoming {
    /// Begins a new layer.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn layer_writer(&self) -> Result<LayerWriter> {
        let blob = self.blob_writer()?;
        let level = flate2::Compression::new(GZIP_LEVEL);
        Ok(LayerWriter { out: HashWriter::new(flate2::write::GzEncoder::new(blob, level)), entries: 0 })
    }

    /// Makes a layer of an archive that somebody else wrote. Whether it is a sane one shows when it is read.
    ///
    /// # Errors
    /// It cannot be read, is larger than a layer may be, or the store cannot be written.
    pub fn layer_of(&self, archive: impl Read) -> Result<LayerPart> {
        let mut layer = self.layer_writer()?;
        let path = layer.path().to_path_buf();
        let copied = io::copy(&mut archive.take(MAX_LAYER_BYTES), &mut layer.out);
        match copied.map_err(Error::file("write", path.clone()))? {
            MAX_LAYER_BYTES => Err(Error::file("write", path)(io::ErrorKind::FileTooLarge.into())),
            _ => layer.close(),
        }
    }
}

impl LayerWriter {
    /// Where it is being written, for messages.
    pub(crate) fn path(&self) -> &Path {
        self.out.get_ref().get_ref().path()
    }

    /// Entries so far.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// Adds a file of any kind; of a regular one exactly as many bytes as `info` says are taken from `contents`.
    ///
    /// # Errors
    /// `contents` ends before, or the store cannot be written.
    pub fn add(&mut self, path: &[u8], info: &NodeInfo, contents: &mut dyn Read) -> io::Result<()> {
        let (flag, size, link): (u8, u64, &[u8]) = match &info.kind {
            NodeKind::File(size) => (b'0', *size, b""),
            NodeKind::Symlink(target) => (b'2', 0, target),
            NodeKind::Char(..) => (b'3', 0, b""),
            NodeKind::Block(..) => (b'4', 0, b""),
            NodeKind::Dir => (b'5', 0, b""),
            NodeKind::Fifo => (b'6', 0, b""),
        };
        self.header(path, info, flag, size, link)?;
        let copied = io::copy(&mut contents.take(size), &mut self.out)?;
        if copied != size {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it is shorter than it was"));
        }
        self.pad(size)
    }

    /// Adds one more name for a file that was added as `target`.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn hard_link(&mut self, path: &[u8], target: &[u8], info: &NodeInfo) -> io::Result<()> {
        self.header(path, info, b'1', 0, target)
    }

    /// Takes away what lower layers have at `path`.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn whiteout(&mut self, path: &[u8]) -> io::Result<()> {
        let at = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
        let marked = [&path[..at], b".wh.", &path[at..]].concat();
        let kind = NodeKind::File(0);
        let info = NodeInfo { kind, mode: 0, uid: 0, gid: 0, mtime: 0, xattrs: Vec::new() };
        self.add(&marked, &info, &mut io::empty())
    }

    /// Makes it a layer of the store.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn finish(mut self) -> Result<LayerPart> {
        let path = self.path().to_path_buf();
        self.out.write_all(&[0; 1024]).map_err(Error::file("write", path))?;
        self.close()
    }

    fn close(self) -> Result<LayerPart> {
        let (encoder, diff_id, _) = self.out.finish();
        let path = encoder.get_ref().path().to_path_buf();
        let blob = encoder.finish().map_err(Error::file("write", path))?;
        let (digest, size) = blob.finish()?;
        let media_type = "application/vnd.oci.image.layer.v1.tar+gzip".to_string();
        Ok(LayerPart { media_type, digest, size, diff_id })
    }

    fn header(&mut self, path: &[u8], info: &NodeInfo, flag: u8, size: u64, link: &[u8]) -> io::Result<()> {
        self.entries += 1;
        let mut name = path.to_vec();
        if flag == b'5' {
            name.push(b'/');
        }
        let records = records(&name, info, size, link);
        if !records.is_empty() {
            let mut block = block(b"pax", 0o644, (0, 0), records.len() as u64, 0, b'x');
            finish_block(&mut block);
            self.out.write_all(&block)?;
            self.out.write_all(&records)?;
            self.pad(records.len() as u64)?;
        }
        let mut block = block(&name, info.mode, (info.uid, info.gid), size, info.mtime, flag);
        let short = &link[..link.len().min(100)];
        block[157..157 + short.len()].copy_from_slice(short);
        if let NodeKind::Char(major, minor) | NodeKind::Block(major, minor) = info.kind {
            octal(&mut block[329..337], major.into());
            octal(&mut block[337..345], minor.into());
        }
        finish_block(&mut block);
        self.out.write_all(&block)
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let padding = (size.next_multiple_of(512) - size) as usize;
        self.out.write_all(&[0; 512][..padding])
    }
}

/// The pax records for what has no room in a header.
fn records(name: &[u8], info: &NodeInfo, size: u64, link: &[u8]) -> Vec<u8> {
    let mut records = Vec::new();
    let mut add = |key: &[u8], value: &[u8]| {
        // The length counts its own digits.
        let rest = key.len() + value.len() + 3;
        let mut len = rest + 1;
        while len != rest + len.to_string().len() {
            len = rest + len.to_string().len();
        }
        records.extend_from_slice(len.to_string().as_bytes());
        records.push(b' ');
        records.extend_from_slice(key);
        records.push(b'=');
        records.extend_from_slice(value);
        records.push(b'\n');
    };
    if name.len() > 100 {
        add(b"path", name);
    }
    if link.len() > 100 {
        add(b"linkpath", link);
    }
    let numbers = [
        (&b"size"[..], size, MAX_LONG_OCTAL),
        (b"uid", info.uid.into(), MAX_OCTAL),
        (b"gid", info.gid.into(), MAX_OCTAL),
        (b"mtime", info.mtime, MAX_LONG_OCTAL),
    ];
    for (key, value, most) in numbers {
        if value > most {
            add(key, value.to_string().as_bytes());
        }
    }
    for (key, value) in &info.xattrs {
        add(&[b"SCHILY.xattr.", key.as_slice()].concat(), value);
    }
    records
}

fn block(name: &[u8], mode: u16, owner: (u32, u32), size: u64, mtime: u64, flag: u8) -> [u8; 512] {
    let mut block = [0u8; 512];
    let short = &name[..name.len().min(100)];
    block[..short.len()].copy_from_slice(short);
    octal(&mut block[100..108], mode.into());
    // What does not fit stands in the records before, which count.
    octal(&mut block[108..116], u64::from(owner.0).min(MAX_OCTAL));
    octal(&mut block[116..124], u64::from(owner.1).min(MAX_OCTAL));
    octal(&mut block[124..136], size.min(MAX_LONG_OCTAL));
    octal(&mut block[136..148], mtime.min(MAX_LONG_OCTAL));
    block[156] = flag;
    block[257..265].copy_from_slice(b"ustar\x0000");
    block
}

/// Octal digits and a NUL.
fn octal(field: &mut [u8], value: u64) {
    let digits = field.len() - 1;
    field[..digits].copy_from_slice(format!("{value:0digits$o}").as_bytes());
}

fn finish_block(block: &mut [u8; 512]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NoProgress;
    use crate::testing::{reference, temp_store};

    fn info(kind: NodeKind) -> NodeInfo {
        NodeInfo { kind, mode: 0o4755, uid: 3_000_000, gid: 7, mtime: 1_700_000_000, xattrs: Vec::new() }
    }

    #[test]
    fn what_is_written_is_what_is_read() {
        let temp = temp_store();
        let incoming = temp.store.incoming().unwrap();
        let write = || {
            let mut layer = incoming.layer_writer().unwrap();
            let long = [&b"d/"[..], &[b'x'; 200]].concat();
            let mut file = info(NodeKind::File(3));
            file.xattrs = vec![(b"user.a".to_vec(), b"1\0\n".to_vec())];
            layer.add(b"d", &info(NodeKind::Dir), &mut io::empty()).unwrap();
            layer.add(&long, &file, &mut &b"abcdef"[..]).unwrap();
            layer.hard_link(b"hard", &long, &file).unwrap();
            layer.add(b"link", &info(NodeKind::Symlink(vec![b'y'; 150])), &mut io::empty()).unwrap();
            layer.add(b"null", &info(NodeKind::Char(1, 3)), &mut io::empty()).unwrap();
            layer.add(b"pipe", &info(NodeKind::Fifo), &mut io::empty()).unwrap();
            (layer.finish().unwrap(), long, file)
        };
        let (layer, long, file) = write();
        assert_eq!(write().0, layer, "the same entries give the same bytes");
        let config = br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
        let digest = incoming.add_image(config, std::slice::from_ref(&layer)).unwrap();
        let image = incoming.commit(&reference("built"), &digest).unwrap();
        let view = temp.store.view(&image, &NoProgress).unwrap();
        assert_eq!(view.stat(&long).unwrap(), file);
        assert_eq!(view.read(b"hard", 10).unwrap().unwrap(), b"abc");
        assert_eq!(view.shared_inode(b"hard"), view.shared_inode(&long));
        assert_eq!(view.stat(b"link").unwrap(), info(NodeKind::Symlink(vec![b'y'; 150])));
        assert_eq!(view.stat(b"null").unwrap().kind, NodeKind::Char(1, 3));
        assert_eq!(view.stat(b"pipe").unwrap().kind, NodeKind::Fifo);
    }

    #[test]
    fn whiteouts_take_away_and_short_contents_are_an_error() {
        let temp = temp_store();
        let base = crate::tar::testing::Tar::new().dir("d").file("d/x", b"1").file("y", b"2");
        let base = temp.import("base", &base.end()).unwrap();
        let incoming = temp.store.incoming().unwrap();
        let mut layer = incoming.layer_writer().unwrap();
        assert!(layer.add(b"short", &info(NodeKind::File(9)), &mut &b"abc"[..]).is_err());
        let mut layer = incoming.layer_writer().unwrap();
        layer.whiteout(b"d/x").unwrap();
        layer.whiteout(b"y").unwrap();
        let mut layers = base.layer_parts().unwrap();
        layers.push(layer.finish().unwrap());
        let digest = incoming.add_image(base.config_bytes(), &layers).unwrap();
        let image = incoming.commit(&reference("built"), &digest).unwrap();
        let view = temp.store.view(&image, &NoProgress).unwrap();
        assert_eq!((view.list(b"").unwrap(), view.list(b"d").unwrap().len()), (vec![b"d".to_vec()], 0));
    }
}
