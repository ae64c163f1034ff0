//! Guest memory as a sparse file: the regions one after the other, pages of zeros left out.
//!
//! With it goes a [`RamState`]: a checksum for each MiB that holds anything, and the file's identity on its file system. A file
//! that nobody has touched since is used as it is, pages on demand; one that was copied or touched is read once and compared.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};

use memory::{GuestRam, PAGE_SIZE};
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::Error;

/// Bytes under one checksum; reads and writes are this large at most.
const BLOCK: u64 = 1 << 20;
/// More do not make a memory faster.
const MAX_THREADS: usize = 4;
const PAGE: u64 = PAGE_SIZE as u64;
/// `Documentation/admin-guide/mm/pagemap.rst`: the page is in memory, or swapped out.
const PRESENT_OR_SWAPPED: u64 = 1 << 63 | 1 << 62;

/// What is known about a memory file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RamState {
    /// Guest physical address and bytes of each region, in the file's order.
    pub ranges: Vec<(u64, u64)>,
    /// Number and CRC-32C of each block that is not all zeros.
    blocks: Vec<(u64, u32)>,
    file: FileStamp,
}

impl RamState {
    /// Whether two files hold the same memory.
    pub fn is_same(&self, other: &Self) -> bool {
        self.ranges == other.ranges && self.blocks == other.blocks
    }
}

/// What changes when somebody touches a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileStamp {
    device: u64,
    inode: u64,
    len: u64,
    modified_ns: i128,
    changed_ns: i128,
}

impl FileStamp {
    /// How long the file was, in bytes.
    pub fn len_bytes(&self) -> u64 {
        self.len
    }

    /// When it was last written to, in nanoseconds since 1970.
    pub fn modified_ns(&self) -> i128 {
        self.modified_ns
    }

    /// The stamp of `file` now.
    ///
    /// # Errors
    /// The host's.
    pub fn of(file: &File) -> io::Result<Self> {
        // Not by `metadata`, whose system call a sandbox does not let through.
        let stat = rustix::fs::fstat(file)?;
        let ns = |seconds: i64, ns: u64| i128::from(seconds) * 1_000_000_000 + i128::from(ns);
        Ok(Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            len: stat.st_size as u64,
            modified_ns: ns(stat.st_mtime, stat.st_mtime_nsec),
            changed_ns: ns(stat.st_ctime, stat.st_ctime_nsec),
        })
    }
}

/// What tells which pages of a process were ever touched, and how many threads may read them. Opened before a sandbox forbids it.
#[derive(Debug)]
pub struct PageMap {
    file: Option<File>,
    threads: usize,
}

impl PageMap {
    /// This process's; a host without it has every page read instead.
    pub fn open() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
        Self { file: File::open("/proc/self/pagemap").ok(), threads }
    }

    /// Whether each of the pages from host address `host` on may hold anything of its own.
    fn touched(&self, host: usize, pages: usize) -> Vec<bool> {
        let mut entries = vec![0; pages * 8];
        let read =
            self.file.as_ref().map(|map| map.read_exact_at(&mut entries, (host / PAGE_SIZE * 8) as u64));
        match read {
            Some(Ok(())) => entries.chunks_exact(8).map(is_touched).collect(),
            _ => vec![true; pages],
        }
    }
}

fn is_touched(entry: &[u8]) -> bool {
    u64::from_le_bytes(entry.try_into().expect("eight bytes a page")) & PRESENT_OR_SWAPPED != 0
}

/// Writes all of `ram`, whose machine is at rest, to the empty `file`. It is not durable yet.
///
/// # Errors
/// The host's: no space, most likely.
pub fn write(ram: &GuestRam, file: &File, map: &PageMap) -> Result<RamState, Error> {
    let failed = |source| Error::Host { act: "write guest memory", source };
    file.set_len(ram.size_bytes()).map_err(failed)?;
    let mut pieces = Vec::new();
    let mut base = 0;
    for (start, len) in ram.ranges() {
        let host = ram.host(start).map_or(0, |host| host.addr().get());
        let touched = map.touched(host, (len / PAGE) as usize);
        for (at, pages) in (0..len).step_by(BLOCK as usize).zip(touched.chunks((BLOCK / PAGE) as usize)) {
            pieces.push(Piece { offset: base + at, gpa: start + at, touched: pages.to_vec() });
        }
        base += len;
    }
    let blocks = write_pieces(ram, file, &pieces, map.threads)?;
    let file = FileStamp::of(file).map_err(failed)?;
    Ok(RamState { ranges: ram.ranges().collect(), blocks, file })
}

/// What lies under one checksum.
struct Piece {
    /// In the file.
    offset: u64,
    gpa: u64,
    /// Which of its pages this process may have touched.
    touched: Vec<bool>,
}

/// Writes `pieces`, some at a time, for a machine stands still meanwhile; numbers and checksums of those that hold anything.
fn write_pieces(
    ram: &GuestRam,
    file: &File,
    pieces: &[Piece],
    threads: usize,
) -> Result<Vec<(u64, u32)>, Error> {
    let next = AtomicUsize::new(0);
    let work = || {
        let (mut buffer, mut blocks) = (vec![0; BLOCK as usize], Vec::new());
        while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
            blocks.extend(write_piece(ram, file, piece, &mut buffer)?);
        }
        Ok(blocks)
    };
    let mut blocks = std::thread::scope(|scope| {
        // A host that gives no more threads has this one.
        let more: Vec<_> =
            (1..threads).filter_map(|_| std::thread::Builder::new().spawn_scoped(scope, work).ok()).collect();
        let mut blocks: Result<Vec<(u64, u32)>, Error> = work();
        for thread in more {
            let theirs = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            blocks = blocks.and_then(|mut ours| {
                ours.extend(theirs?);
                Ok(ours)
            });
        }
        blocks
    })?;
    blocks.sort_unstable();
    Ok(blocks)
}

/// Number and checksum of `piece`, unless it is all zeros.
fn write_piece(
    ram: &GuestRam,
    file: &File,
    piece: &Piece,
    buffer: &mut [u8],
) -> Result<Option<(u64, u32)>, Error> {
    let Piece { offset, gpa, touched } = piece;
    let block = &mut buffer[..touched.len() * PAGE_SIZE];
    // What lies in the file behind the memory was perhaps never touched by this process.
    let inherited = ram.file().is_some_and(|behind| has_data(behind, *offset, block.len() as u64));
    if !inherited && !touched.contains(&true) {
        return Ok(None);
    }
    read_block(ram, *gpa, block, touched, inherited)?;
    let written = write_block(file, *offset, block);
    let holds = written.map_err(|source| Error::Host { act: "write guest memory", source })?;
    Ok(holds.then(|| (offset / BLOCK, crc32c::crc32c(block))))
}

/// Fills `block` from guest memory, with zeros where nobody ever wrote.
fn read_block(ram: &GuestRam, gpa: u64, block: &mut [u8], touched: &[bool], all: bool) -> Result<(), Error> {
    for ((page, touched), gpa) in
        block.chunks_exact_mut(PAGE_SIZE).zip(touched).zip((gpa..).step_by(PAGE_SIZE))
    {
        if all || *touched {
            ram.read(gpa, page)?;
        } else {
            page.fill(0);
        }
    }
    Ok(())
}

/// Writes the pages of `block` that are not all zeros; whether there were any.
fn write_block(file: &File, offset: u64, block: &[u8]) -> io::Result<bool> {
    let mut run: Option<usize> = None;
    let mut any = false;
    for index in 0..=block.len() / PAGE_SIZE {
        let page = block.get(index * PAGE_SIZE..(index + 1) * PAGE_SIZE);
        let holds = page.is_some_and(|page| !is_zero(page));
        match run {
            None if holds => run = Some(index),
            Some(first) if !holds => {
                file.write_all_at(
                    &block[first * PAGE_SIZE..index * PAGE_SIZE],
                    offset + (first * PAGE_SIZE) as u64,
                )?;
                (run, any) = (None, true);
            }
            _ => {}
        }
    }
    Ok(any)
}

fn is_zero(bytes: &[u8]) -> bool {
    // As fast as memory: whole words, no early end but once a page.
    bytes.chunks_exact(16).fold(0, |or, word| or | u128::from_ne_bytes(word.try_into().expect("16 bytes")))
        == 0
}

/// Whether any of `len` bytes at `offset` are more than a hole. A file system that knows no holes says yes.
fn has_data(file: &File, offset: u64, len: u64) -> bool {
    match rustix::fs::seek(file, SeekFrom::Data(offset)) {
        Ok(at) => at < offset + len,
        Err(Errno::NXIO) => false,
        Err(_) => true,
    }
}

/// Says that `file` holds what was written.
///
/// # Errors
/// [`Error::RamSize`] and [`Error::RamChanged`].
pub fn check(file: &File, state: &RamState) -> Result<(), Error> {
    let failed = |source| Error::Host { act: "read guest memory", source };
    let now = FileStamp::of(file).map_err(failed)?;
    let expected = state.ranges.iter().fold(0u64, |sum, (_, len)| sum.saturating_add(*len));
    if now.len != expected {
        return Err(Error::RamSize { found: now.len, expected });
    }
    if now == state.file {
        return Ok(());
    }
    let mut sums = state.blocks.iter().peekable();
    let mut buffer = vec![0; BLOCK as usize];
    let mut offset = 0;
    for (_, region) in &state.ranges {
        for at in (0..*region).step_by(BLOCK as usize) {
            let block = &mut buffer[..BLOCK.min(region - at) as usize];
            let sum = sums.next_if(|(number, _)| *number == (offset + at) / BLOCK).map(|(_, sum)| *sum);
            if sum.is_none() && !has_data(file, offset + at, block.len() as u64) {
                continue;
            }
            file.read_exact_at(block, offset + at).map_err(failed)?;
            if sum.map_or(!is_zero(block), |sum| crc32c::crc32c(block) != sum) {
                return Err(Error::RamChanged { offset: offset + at });
            }
        }
        offset += region;
    }
    if sums.peek().is_some() { Err(Error::RamChanged { offset }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    const RANGES: [(u64, u64); 2] = [(0, 3 << 20), (1 << 32, 0x5000)];

    fn ram() -> GuestRam {
        let ram = GuestRam::new(&RANGES).unwrap();
        ram.write(0x1234, b"low").unwrap();
        ram.write((2 << 20) + 0xfff, b"across pages").unwrap();
        ram.write((1 << 32) + 0x4000, b"high").unwrap();
        // Touched, and still all zeros.
        ram.write(0x10_0000, &[0; 64]).unwrap();
        ram
    }

    fn contents(ram: &GuestRam) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (start, len) in ram.ranges() {
            let at = bytes.len();
            bytes.resize(at + len as usize, 0);
            ram.read(start, &mut bytes[at..]).unwrap();
        }
        bytes
    }

    #[test]
    fn memory_comes_back_and_what_nobody_wrote_takes_no_space() {
        for map in [PageMap::open(), PageMap { file: None, threads: 1 }] {
            let (ram, file) = (ram(), tempfile::tempfile().unwrap());
            let state = write(&ram, &file, &map).unwrap();
            check(&file, &state).unwrap();
            assert_eq!(state.blocks.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [0, 2, 3]);
            assert!(file.metadata().unwrap().blocks() * 512 < 256 << 10);
            let again = GuestRam::from_file(&RANGES, &file).unwrap();
            assert!(contents(&again) == contents(&ram));
            // A second generation: some of its pages are its own, some still the file's.
            again.write(0x9000, b"mine").unwrap();
            let second = tempfile::tempfile().unwrap();
            let state = write(&again, &second, &map).unwrap();
            check(&second, &state).unwrap();
            assert!(contents(&GuestRam::from_file(&RANGES, &second).unwrap()) == contents(&again));
        }
    }

    #[test]
    fn a_touched_file_is_compared_and_damage_is_found_wherever_it_is() {
        let (ram, file) = (ram(), tempfile::tempfile().unwrap());
        let state = write(&ram, &file, &PageMap::open()).unwrap();
        let first = contents(&ram);
        for offset in [0x1234, 0x10_0000, (3 << 20) + 0x4001] {
            file.write_all_at(&[first[offset] ^ 4], offset as u64).unwrap();
            let error = check(&file, &state).unwrap_err();
            assert!(matches!(error, Error::RamChanged { .. }), "{offset:#x}: {error}");
            file.write_all_at(&[first[offset]], offset as u64).unwrap();
            check(&file, &state).unwrap();
        }
        file.set_len(3 << 20).unwrap();
        assert!(matches!(check(&file, &state), Err(Error::RamSize { .. })));
    }
}
