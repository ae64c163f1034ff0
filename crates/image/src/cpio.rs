//! Initramfs archives: the "newc" format (Linux `Documentation/driver-api/early-userspace/buffer-format.rst`).
//!
//! Names are given without a leading slash; parents come before what lies in them, as the kernel does not make them.
//! Known omissions: hard links, checksums (the "crc" variant), owners other than 0:0.

use std::io::{self, Read, Write};

const S_IFMT: u32 = 0o170000;
const S_IFDIR: u32 = 0o040000;
const S_IFREG: u32 = 0o100000;
const S_IFLNK: u32 = 0o120000;
const S_IFCHR: u32 = 0o020000;
const S_IFBLK: u32 = 0o060000;

/// Which device a node stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// A character device: major, minor.
    Char(u32, u32),
    /// A block device: major, minor.
    Block(u32, u32),
}

/// Writes an archive, entry by entry.
#[derive(Debug)]
pub struct Cpio<W> {
    out: W,
    inode: u32,
    pos: u64,
}

impl<W: Write> Cpio<W> {
    /// Begins an archive.
    pub fn new(out: W) -> Self {
        Cpio { out, inode: 0, pos: 0 }
    }

    /// A folder with the permission bits `mode`.
    ///
    /// # Errors
    /// As all methods: the name does not fit the format, or `out` cannot be written.
    pub fn dir(&mut self, path: &str, mode: u32) -> io::Result<()> {
        self.entry(path, S_IFDIR | mode & 0o7777, (0, 0), 0, io::empty())
    }

    /// A regular file of the bytes `contents`.
    pub fn file(&mut self, path: &str, mode: u32, contents: &[u8]) -> io::Result<()> {
        self.entry(path, S_IFREG | mode & 0o7777, (0, 0), contents.len() as u64, contents)
    }

    /// A regular file of exactly `size` bytes from `contents`.
    pub fn file_from(&mut self, path: &str, mode: u32, size: u64, contents: impl Read) -> io::Result<()> {
        self.entry(path, S_IFREG | mode & 0o7777, (0, 0), size, contents)
    }

    /// A symbolic link to `target`.
    pub fn symlink(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.entry(path, S_IFLNK | 0o777, (0, 0), target.len() as u64, target.as_bytes())
    }

    /// A device node.
    pub fn device(&mut self, path: &str, mode: u32, device: Device) -> io::Result<()> {
        let (kind, numbers) = match device {
            Device::Char(major, minor) => (S_IFCHR, (major, minor)),
            Device::Block(major, minor) => (S_IFBLK, (major, minor)),
        };
        self.entry(path, kind | mode & 0o7777, numbers, 0, io::empty())
    }

    /// Writes the mark of the end, padded to 512 bytes so that another archive may follow, and gives `out` back.
    pub fn finish(mut self) -> io::Result<W> {
        self.inode = u32::MAX;
        self.entry("TRAILER!!!", 0, (0, 0), 0, io::empty())?;
        self.pad(512)?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn entry(
        &mut self,
        path: &str,
        mode: u32,
        device: (u32, u32),
        size: u64,
        contents: impl Read,
    ) -> io::Result<()> {
        let bad = |reason: String| io::Error::new(io::ErrorKind::InvalidInput, reason);
        let path = path.trim_start_matches('/');
        if path.is_empty() || path.len() > 4095 || path.contains('\0') {
            return Err(bad(format!("{path:?} cannot be a name in a cpio archive")));
        }
        let size32 = u32::try_from(size).map_err(|_| bad(format!("{path} has more than 4 GiB")))?;
        self.inode = self.inode.wrapping_add(1);
        let links = if mode & S_IFMT == S_IFDIR { 2 } else { 1 };
        let fields =
            [self.inode, mode, 0, 0, links, 0, size32, 0, 0, device.0, device.1, path.len() as u32 + 1, 0];
        let mut header = String::from("070701");
        for field in fields {
            header.push_str(&format!("{field:08X}"));
        }
        self.put(header.as_bytes())?;
        self.put(path.as_bytes())?;
        self.put(&[0])?;
        self.pad(4)?;
        let copied = io::copy(&mut contents.take(size), &mut self.out)?;
        self.pos += copied;
        if copied != size {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("{path} is shorter than {size} bytes"),
            ));
        }
        self.pad(4)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.pos += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    fn pad(&mut self, to: u64) -> io::Result<()> {
        let missing = (self.pos.next_multiple_of(to) - self.pos) as usize;
        self.put(&[0; 512][..missing])
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::process::{Command, Stdio};

    use super::*;

    fn sample() -> Vec<u8> {
        let mut cpio = Cpio::new(Vec::new());
        cpio.dir("/dev", 0o755).unwrap();
        cpio.device("dev/console", 0o600, Device::Char(5, 1)).unwrap();
        cpio.file("init", 0o755, b"#!/bin/sh").unwrap();
        cpio.file_from("odd", 0o644, 3, &b"abcdef"[..]).unwrap();
        cpio.symlink("link", "init").unwrap();
        cpio.finish().unwrap()
    }

    #[test]
    fn the_layout_is_that_of_the_format() {
        let bytes = sample();
        assert_eq!(bytes.len() % 512, 0);
        assert!(bytes.starts_with(b"070701"));
        let at = bytes.windows(5).position(|w| w == b"init\0").unwrap();
        assert_eq!(at % 4, 2);
        let data = (at + 5).next_multiple_of(4);
        assert_eq!(&bytes[data..data + 9], b"#!/bin/sh");
        assert_eq!(&bytes[at - 56..at - 48], b"00000009");
        assert!(bytes.windows(11).any(|w| w == b"TRAILER!!!\0"));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut cpio = Cpio::new(Vec::new());
        assert!(cpio.file("", 0, b"").is_err());
        assert!(cpio.file("a\0b", 0, b"").is_err());
        assert!(cpio.file_from("big", 0, 1 << 32, io::empty()).is_err());
        assert!(cpio.file_from("short", 0, 4, &b"abc"[..]).is_err());
    }

    #[test]
    fn another_reader_unpacks_it() {
        let dir = tempfile::tempdir().unwrap();
        let child = Command::new("cpio")
            .args(["-id", "--quiet"])
            .current_dir(dir.path())
            .stdin(Stdio::piped())
            .spawn();
        let Ok(mut child) = child else {
            println!("skipped: cpio is not installed");
            return;
        };
        child.stdin.take().unwrap().write_all(&sample()).unwrap();
        // Without root it cannot make the device; the rest is there.
        let _ = child.wait().unwrap();
        assert_eq!(std::fs::read(dir.path().join("odd")).unwrap(), b"abc");
        assert_eq!(std::fs::read_link(dir.path().join("link")).unwrap().to_str(), Some("init"));
        assert_eq!(std::fs::metadata(dir.path().join("init")).unwrap().permissions().mode() & 0o777, 0o755);
        if let Ok(meta) = std::fs::metadata(dir.path().join("dev/console")) {
            assert_eq!(meta.rdev(), rustix::fs::makedev(5, 1));
        }
    }
}
