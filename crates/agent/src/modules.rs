//! Kernel modules from the initramfs: `/modules/order` names files in `/modules`, one a line, in
//! the order to load them; what follows a space on a line are the module's parameters.
//!
//! A compressed module (`.xz`, `.zst`, `.gz`) is left to the kernel to decompress, which it can if it
//! was built so.
//!
//! The host has compared kernel and modules with their digests, and RSA in the kernel's C is an eighth of what a cold
//! start executes: a signature is cut off, unless the kernel insists on it. One that does not marks itself as tainted (`E`).

use alloc::ffi::CString;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use protocol::ModuleFailure;
use rustix::fd::{AsFd, BorrowedFd};
use rustix::fs::{self, OFlags};
use rustix::io::{self, Errno};
use rustix::system::finit_module;

use crate::{files, sys};

/// Where the modules are.
pub const DIR: &str = "/modules";

/// `MODULE_INIT_COMPRESSED_FILE` of `linux/module.h`.
const COMPRESSED: i32 = 4;

/// More failures than this are counted but not named: the report has to fit one message.
const MAX_FAILURES: usize = 100;

/// What is kept of a name, in characters, for the same reason.
const MAX_NAME: usize = 100;

/// One line of `order`.
#[derive(Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// The file's name in [`DIR`].
    pub name: &'a str,
    /// For the module.
    pub parameters: &'a str,
}

/// Understands `order`. Empty lines and lines starting with `#` mean nothing.
pub fn parse_order(text: &str) -> impl Iterator<Item = Line<'_>> {
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).map(|line| {
        let (name, parameters) = line.split_once(' ').unwrap_or((line, ""));
        Line { name, parameters: parameters.trim() }
    })
}

/// Loads all of `order`, then removes the files (they are RAM). No list at all is fine.
#[must_use]
pub fn load_all() -> Vec<ModuleFailure> {
    let order = format!("{DIR}/order");
    let Ok(text) = files::read(&order) else { return Vec::new() };
    let mut failures = Vec::new();
    for line in parse_order(&text) {
        let path = format!("{DIR}/{}", line.name);
        if let Err(cause) = load(&path, line.parameters)
            && failures.len() < MAX_FAILURES
        {
            failures.push(ModuleFailure { name: line.name.chars().take(MAX_NAME).collect(), cause });
        }
        let _ = fs::unlink(&*path);
    }
    let _ = fs::unlink(&*order);
    failures
}

/// Being there already is as good as being loaded.
fn load(path: &str, parameters: &str) -> Result<(), String> {
    let parameters = CString::new(parameters).map_err(|_| "parameters with a zero byte".to_string())?;
    // The kernel takes no module from a file that somebody may write to: each time it is opened anew.
    let open = |flags| files::open(path, flags).map_err(|fault| fault.cause);
    let compressed = [".xz", ".zst", ".gz"].iter().any(|end| path.ends_with(end));
    let flags = if compressed { COMPRESSED } else { 0 };
    let cut = if compressed { None } else { Cut::off(open(OFlags::RDWR)?.as_fd()).unwrap_or_default() };
    let mut loaded = finit_module(open(OFlags::RDONLY)?, &parameters, flags);
    if let (Some(cut), Err(Errno::KEYREJECTED | Errno::PERM)) = (cut, loaded) {
        cut.put_back(open(OFlags::RDWR)?.as_fd()).map_err(sys::errno_text)?;
        loaded = finit_module(open(OFlags::RDONLY)?, &parameters, flags);
    }
    match loaded {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(sys::errno_text(errno)),
    }
}

/// What was cut off a module's file: its signature, with what says so (`linux/module_signature.h`).
#[derive(Debug, PartialEq, Eq)]
struct Cut {
    /// Where it began.
    at: u64,
    bytes: Vec<u8>,
}

impl Cut {
    /// The last bytes of a signed module.
    const MARK: &'static [u8] = b"~Module signature appended~\n";
    /// Bytes of `struct module_signature`, before the mark; the last four say how long the signature before them is.
    const HEADER: usize = 12;

    /// Cuts the signature off `file`, if it has one.
    fn off(file: BorrowedFd<'_>) -> io::Result<Option<Self>> {
        let len = u64::try_from(fs::fstat(file)?.st_size).unwrap_or(0);
        let mut end = [0; Self::HEADER + Self::MARK.len()];
        let Some(header) = len.checked_sub(end.len() as u64) else { return Ok(None) };
        read_exactly(file, &mut end, header)?;
        let Some(at) = signature_length(&end).and_then(|signature| header.checked_sub(signature.into()))
        else {
            return Ok(None);
        };
        let mut bytes = vec![0; (len - at) as usize];
        read_exactly(file, &mut bytes, at)?;
        fs::ftruncate(file, at)?;
        Ok(Some(Self { at, bytes }))
    }

    fn put_back(&self, file: BorrowedFd<'_>) -> io::Result<()> {
        fs::seek(file, fs::SeekFrom::Start(self.at))?;
        files::write_all(file, &self.bytes)
    }
}

/// How long the signature before `end`, the end of a module's file, is; `None` if there is none.
fn signature_length(end: &[u8; Cut::HEADER + Cut::MARK.len()]) -> Option<u32> {
    let (header, mark) = end.split_at(Cut::HEADER);
    let length = header.last_chunk().map(|length| u32::from_be_bytes(*length))?;
    (mark == Cut::MARK).then_some(length)
}

fn read_exactly(file: BorrowedFd<'_>, mut buffer: &mut [u8], mut at: u64) -> io::Result<()> {
    while !buffer.is_empty() {
        match io::pread(file, &mut *buffer, at)? {
            0 => return Err(Errno::IO),
            count => (buffer, at) = (&mut buffer[count..], at + count as u64),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_a_name_and_parameters_a_line() {
        let text = "vsock.ko\n\n# comment\n  virtio_blk.ko.xz  num=4 x=y \r\n";
        let lines: Vec<_> = parse_order(text).collect();
        assert_eq!(
            lines,
            [
                Line { name: "vsock.ko", parameters: "" },
                Line { name: "virtio_blk.ko.xz", parameters: "num=4 x=y" }
            ]
        );
    }

    #[test]
    fn a_missing_file_is_a_cause_not_a_stop() {
        assert_eq!(load("/nonexistent/a.ko", ""), Err("No such file or directory".to_string()));
    }

    #[test]
    fn a_signature_is_cut_off_and_put_back() {
        let whole = [&b"module"[..], &[9; 300], &[0; 8], &300u32.to_be_bytes(), Cut::MARK].concat();
        let file = scratch(&whole);
        let cut = Cut::off(file.as_fd()).unwrap().expect("it is signed");
        assert_eq!((cut.at, contents(&file)), (6, b"module".to_vec()));
        cut.put_back(file.as_fd()).unwrap();
        assert_eq!(contents(&file), whole);
    }

    #[test]
    fn what_only_looks_like_a_signature_stays() {
        let longer_than_the_file = [&[0; 8][..], &9u32.to_be_bytes(), Cut::MARK].concat();
        let other_mark = [&[0; 30][..], b"~Module signature appended~ "].concat();
        for bytes in [&longer_than_the_file[..], &other_mark, Cut::MARK, b""] {
            let file = scratch(bytes);
            assert_eq!(Cut::off(file.as_fd()).unwrap(), None);
            assert_eq!(contents(&file), bytes);
        }
    }

    fn scratch(bytes: &[u8]) -> std::fs::File {
        let file = std::fs::File::from(fs::memfd_create("module", fs::MemfdFlags::CLOEXEC).unwrap());
        std::os::unix::fs::FileExt::write_all_at(&file, bytes, 0).unwrap();
        file
    }

    fn contents(file: &std::fs::File) -> Vec<u8> {
        let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
        std::os::unix::fs::FileExt::read_exact_at(file, &mut bytes, 0).unwrap();
        bytes
    }
}
