//! Guest memory as a sparse file: the regions one after the other, pages of zeros left out.
//!
//! With it goes a [`RamState`]: a checksum for each MiB that holds anything, and the file's identity on its file system. A file
//! that nobody has touched since is used as it is, pages on demand; one that was copied or touched is read once and compared.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use memory::backing::Data;
use memory::written::{Range, Watcher};
use memory::{GuestRam, PAGE_SIZE};
use serde::{Deserialize, Serialize};

use super::Error;

/// Bytes under one checksum; reads and writes are this large at most.
const BLOCK: u64 = 1 << 20;
/// More do not make a memory faster.
const MAX_THREADS: usize = 4;
pub(super) const PAGE: u64 = PAGE_SIZE as u64;
/// `Documentation/admin-guide/mm/pagemap.rst`: the page is in memory, or swapped out.
const PRESENT_OR_SWAPPED: u64 = 1 << 63 | 1 << 62;
/// The same: it is a page of a file, so one that was not written to.
const OF_FILE: u64 = 1 << 61;

/// What is known about a memory file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RamState {
    /// Guest physical address and bytes of each region, in the file's order.
    pub ranges: Vec<(u64, u64)>,
    /// Number and CRC-32C of each block that is not all zeros.
    blocks: Vec<(u64, u32)>,
    file: FileStamp,
}

/// Number and CRC-32C of each block that is not all zeros.
pub(super) type Blocks = BTreeMap<u64, u32>;

impl RamState {
    /// Of a file that will not be written to any more.
    pub(super) fn of(ram: &GuestRam, file: &File, blocks: Blocks) -> Result<Self, Error> {
        let stamp =
            FileStamp::of(file).map_err(|source| Error::Host { act: "write guest memory", source })?;
        Ok(Self { ranges: ram.ranges().collect(), blocks: blocks.into_iter().collect(), file: stamp })
    }

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

/// What tells which pages of a process were ever touched and which are written, and how many threads may read them. Opened
/// before a sandbox forbids it.
#[derive(Debug)]
pub struct PageMap {
    file: Option<File>,
    pub(super) watcher: Option<Arc<Watcher>>,
    pub(super) threads: usize,
}

impl PageMap {
    /// This process's; a host without it has every page read instead, and all of them while the machine stands still.
    pub fn open() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
        let watcher = Watcher::open().inspect_err(|error| {
            tracing::debug!(%error, "memory is saved while the machine stands still");
        });
        let file = File::open("/proc/self/pagemap").ok();
        Self { file, watcher: watcher.ok().map(Arc::new), threads }
    }

    /// Whether each of the pages from host address `host` on may hold anything of its own.
    fn touched(&self, host: usize, pages: usize) -> Vec<bool> {
        let touched = self.pages(host, pages, |entry| entry & PRESENT_OR_SWAPPED != 0);
        touched.unwrap_or_else(|| vec![true; pages])
    }

    /// Whether each of the pages from host address `host` on, mapped privately from a file, is no longer the file's. `None` if
    /// the host does not tell.
    pub(super) fn own(&self, host: usize, pages: usize) -> Option<Vec<bool>> {
        self.pages(host, pages, |entry| entry & PRESENT_OR_SWAPPED != 0 && entry & OF_FILE == 0)
    }

    fn pages(&self, host: usize, pages: usize, is_so: impl Fn(u64) -> bool) -> Option<Vec<bool>> {
        let mut entries = vec![0; pages * 8];
        self.file.as_ref()?.read_exact_at(&mut entries, (host / PAGE_SIZE * 8) as u64).ok()?;
        let entry = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("eight bytes a page"));
        Some(entries.chunks_exact(8).map(|bytes| is_so(entry(bytes))).collect())
    }
}

/// Writes all of `ram`, whose machine is at rest, to `file`. It is not durable yet.
///
/// # Errors
/// The host's: no space, most likely.
pub fn write(ram: &GuestRam, file: &File, map: &PageMap) -> Result<RamState, Error> {
    let blocks = write_all(ram, file, map, map.threads)?;
    RamState::of(ram, file, blocks)
}

/// Writes all of `ram` to `file`, whatever that held, with so many threads; numbers and checksums of blocks that hold anything.
pub(super) fn write_all(ram: &GuestRam, file: &File, map: &PageMap, threads: usize) -> Result<Blocks, Error> {
    let sized = file.set_len(0).and_then(|()| file.set_len(ram.size_bytes()));
    sized.map_err(|source| Error::Host { act: "write guest memory", source })?;
    let mut pieces = Vec::new();
    let mut base = 0;
    let mut behind: Vec<Data<'_>> = ram
        .backing()
        .into_iter()
        .flat_map(|files| files.over().into_iter().chain([files.base()]))
        .map(Data::of)
        .collect();
    for (start, len) in ram.ranges() {
        let host = ram.host(start).map_or(0, |host| host.addr().get());
        let touched = map.touched(host, (len / PAGE) as usize);
        for (at, pages) in (0..len).step_by(BLOCK as usize).zip(touched.chunks((BLOCK / PAGE) as usize)) {
            let (offset, bytes) = (base + at, pages.len() as u64 * PAGE);
            let inherited = behind.iter_mut().any(|file| file.is_in(offset, bytes));
            if inherited || pages.contains(&true) {
                pieces.push(Piece { offset, gpa: start + at, touched: pages.to_vec(), inherited });
            }
        }
        base += len;
    }
    let blocks = each(&pieces, threads, |piece, buffer| write_piece(ram, file, piece, buffer))?;
    Ok(blocks.into_iter().flatten().collect())
}

/// What lies under one checksum.
struct Piece {
    /// In the file.
    offset: u64,
    gpa: u64,
    /// Which of its pages this process may have touched.
    touched: Vec<bool>,
    /// The file behind the memory has something there, which was perhaps never touched by this process.
    inherited: bool,
}

/// Does `work` on each of `items`, some at a time, with a buffer of [`BLOCK`] bytes; what came of it, in no order.
pub(super) fn each<T: Sync, R: Send>(
    items: &[T],
    threads: usize,
    work: impl Fn(&T, &mut [u8]) -> Result<R, Error> + Sync,
) -> Result<Vec<R>, Error> {
    let next = AtomicUsize::new(0);
    let work = || {
        let (mut buffer, mut done) = (vec![0; BLOCK as usize], Vec::new());
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            done.push(work(item, &mut buffer)?);
        }
        Ok(done)
    };
    std::thread::scope(|scope| {
        // A host that gives no more threads has this one.
        let more: Vec<_> = (1..threads.min(items.len()))
            .filter_map(|_| std::thread::Builder::new().spawn_scoped(scope, work).ok())
            .collect();
        let mut done: Result<Vec<R>, Error> = work();
        for thread in more {
            let theirs = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            done = done.and_then(|mut ours| {
                ours.extend(theirs?);
                Ok(ours)
            });
        }
        done
    })
}

/// What a hole in a file of memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Zeros {
    /// Zeros.
    MayBeHoles,
    /// Something else (see [`super::over`]).
    Count,
}

/// Writes `pages` of `ram` over what `file` has of them; the numbers of the blocks that have other bytes now.
pub(super) fn write_again(
    ram: &GuestRam,
    file: &File,
    pages: &[Range],
    threads: usize,
    zeros: Zeros,
) -> Result<BTreeSet<u64>, Error> {
    let mut pieces = Vec::new();
    for &(first, len) in pages {
        let mut base = 0;
        for (start, region) in ram.ranges() {
            // No range goes from one block to another.
            let (mut at, end) = (first.max(start), (first + len).min(start + region));
            while at < end {
                let offset = base + (at - start);
                let count = (end - at).min(BLOCK - offset % BLOCK);
                pieces.push((at, offset, count));
                at += count;
            }
            base += region;
        }
    }
    each(&pieces, threads, |&(gpa, offset, count), buffer| {
        let bytes = &mut buffer[..count as usize];
        ram.read(gpa, bytes)?;
        let written = match zeros {
            Zeros::Count => file.write_all_at(bytes, offset),
            Zeros::MayBeHoles => overwrite(file, offset, bytes),
        };
        written.map_err(|source| Error::Host { act: "write guest memory", source })
    })?;
    Ok(pieces.into_iter().map(|(_, offset, _)| offset / BLOCK).collect())
}

/// Writes whole pages; zeros only where there is something else. Nothing becomes a hole again: making one, file systems wait for
/// the disk.
fn overwrite(file: &File, offset: u64, bytes: &[u8]) -> io::Result<()> {
    let (mut at, mut rest) = (offset, bytes);
    while let Some(first) = rest.get(..PAGE_SIZE) {
        let zeros = is_zero(first);
        let pages = rest.chunks(PAGE_SIZE).take_while(|page| is_zero(page) == zeros).count();
        let (run, more) = rest.split_at(pages * PAGE_SIZE);
        if !zeros || Data::of(file).is_in(at, run.len() as u64) {
            file.write_all_at(run, at)?;
        }
        at += run.len() as u64;
        rest = more;
    }
    Ok(())
}

/// Reads blocks `numbers` of `file`, which has so many bytes: numbers and checksums of those that hold anything.
pub(super) fn sums(
    file: &File,
    bytes: u64,
    numbers: &BTreeSet<u64>,
    threads: usize,
) -> Result<Blocks, Error> {
    let numbers: Vec<u64> = numbers.iter().copied().collect();
    let sums = each(&numbers, threads, |&number, buffer| {
        let block = &mut buffer[..BLOCK.min(bytes - number * BLOCK) as usize];
        let read = file.read_exact_at(block, number * BLOCK);
        read.map_err(|source| Error::Host { act: "read guest memory", source })?;
        Ok((!is_zero(block)).then(|| (number, crc32c::crc32c(block))))
    })?;
    Ok(sums.into_iter().flatten().collect())
}

/// Number and checksum of `piece`, unless it is all zeros.
fn write_piece(
    ram: &GuestRam,
    file: &File,
    piece: &Piece,
    buffer: &mut [u8],
) -> Result<Option<(u64, u32)>, Error> {
    let Piece { offset, gpa, touched, inherited } = piece;
    let block = &mut buffer[..touched.len() * PAGE_SIZE];
    block.fill(0);
    if let Some(behind) = ram.backing().filter(|_| *inherited && touched.contains(&false)) {
        // Not through memory, where it would be this process's from then on.
        let read = behind.read_exact_at(block, *offset);
        read.map_err(|source| Error::Host { act: "read guest memory", source })?;
    }
    for (page, gpa) in
        (0..touched.len()).filter(|page| touched[*page]).map(|page| (page, gpa + page as u64 * PAGE))
    {
        ram.read(gpa, &mut block[page * PAGE_SIZE..(page + 1) * PAGE_SIZE])?;
    }
    let written = write_block(file, *offset, block);
    let holds = written.map_err(|source| Error::Host { act: "write guest memory", source })?;
    Ok(holds.then(|| (offset / BLOCK, crc32c::crc32c(block))))
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

/// Bytes of all regions together.
pub(super) fn size_of_ranges(ranges: &[(u64, u64)]) -> u64 {
    ranges.iter().fold(0, |sum, (_, len)| sum.saturating_add(*len))
}

/// Says that `file` holds what was written.
///
/// # Errors
/// [`Error::RamSize`] and [`Error::RamChanged`].
pub fn check(file: &File, state: &RamState) -> Result<(), Error> {
    let failed = |source| Error::Host { act: "read guest memory", source };
    let now = FileStamp::of(file).map_err(failed)?;
    let expected = size_of_ranges(&state.ranges);
    if now.len != expected {
        return Err(Error::RamSize { found: now.len, expected });
    }
    if now == state.file {
        return Ok(());
    }
    let mut sums = state.blocks.iter().peekable();
    let mut buffer = vec![0; BLOCK as usize];
    let (mut offset, mut data) = (0, Data::of(file));
    for (_, region) in &state.ranges {
        for at in (0..*region).step_by(BLOCK as usize) {
            let block = &mut buffer[..BLOCK.min(region - at) as usize];
            let sum = sums.next_if(|(number, _)| *number == (offset + at) / BLOCK).map(|(_, sum)| *sum);
            if sum.is_none() && !data.is_in(offset + at, block.len() as u64) {
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
pub(super) mod tests {
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

    /// All bytes of it.
    pub fn contents(ram: &GuestRam) -> Vec<u8> {
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
        for map in [PageMap::open(), PageMap { file: None, watcher: None, threads: 1 }] {
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
