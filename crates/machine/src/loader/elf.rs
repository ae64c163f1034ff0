//! ELF executables (System V gABI ch. 4, 5), as far as a kernel needs: header, program headers, the PVH note.
//!
//! Sections are not looked at. 32-bit files are read too, for 32-bit PVH kernels.

use std::ops::ControlFlow;

use memory::GuestRam;

use super::{Error, Image};

const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
const EM_386: u16 = 3;
const EM_X86_64: u16 = 62;
/// Note type of the PVH entry point (Xen's `elfnote.h`, XEN_ELFNOTE_PHYS32_ENTRY).
const PHYS32_ENTRY: u32 = 18;
/// A kernel has 4 to 10 program headers; a file with more is no kernel.
const MAX_PROGRAM_HEADERS: usize = 128;
/// A kernel's notes take some hundred bytes; more is not looked at.
const MAX_NOTES_BYTES: u64 = 1 << 20;
/// Bytes that are moved at once: they stay in the processor's cache between file and guest.
const CHUNK: usize = 256 << 10;

/// Whether `image` starts like an ELF file.
pub fn is_elf(image: &[u8]) -> bool {
    image.starts_with(b"\x7fELF")
}

/// Width of addresses in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// 32 bits.
    Elf32,
    /// 64 bits.
    Elf64,
}

/// A program header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    kind: u32,
    /// Offset in the file.
    pub offset: u64,
    /// Virtual address.
    pub vaddr: u64,
    /// Physical address.
    pub paddr: u64,
    /// Bytes in the file.
    pub file_size: u64,
    /// Bytes in memory; what the file does not have is zero.
    pub memory_size: u64,
}

/// A parsed ELF file.
#[derive(Debug)]
pub struct Elf<'a> {
    image: Image<'a>,
    class: Class,
    kind: u16,
    entry: u64,
    segments: Vec<Segment>,
}

/// Little-endian fields at checked places of the file.
fn number(image: &[u8], at: usize, len: usize) -> Option<u64> {
    let bytes = image.get(at..at.checked_add(len)?)?;
    Some(bytes.iter().rev().fold(0, |value, &b| value << 8 | u64::from(b)))
}

impl<'a> Elf<'a> {
    /// Reads the headers; every segment's file part is inside the file afterwards.
    ///
    /// # Errors
    /// [`Error::Truncated`], [`Error::Header`], [`Error::OtherIsa`], [`Error::Read`].
    pub fn parse(image: impl Into<Image<'a>>) -> Result<Self, Error> {
        let image = image.into();
        let header = |field, reason: &str| Error::Header { field, reason: reason.to_owned() };
        let first = image.read(0, image.len().min(64))?;
        if !is_elf(&first) || first.len() < 64 {
            return Err(Error::Truncated { what: "ELF header", end: 64, len: image.len() });
        }
        let class = match first[4] {
            1 => Class::Elf32,
            2 => Class::Elf64,
            _ => return Err(header("e_ident", "neither 32 nor 64 bits")),
        };
        check_machine(&first, class)?;
        let word = if class == Class::Elf64 { 8 } else { 4 };
        let field = |at, len| number(&first, at, len).unwrap_or(0); // inside the 64 bytes checked above
        let (phoff_at, sizes_at) = if class == Class::Elf64 { (0x20, 0x36) } else { (0x1c, 0x2a) };
        let mut elf = Self {
            image,
            class,
            kind: field(0x10, 2) as u16,
            entry: field(0x18, word),
            segments: Vec::new(),
        };
        let table = field(phoff_at, word);
        let (size, count) = (field(sizes_at, 2) as usize, field(sizes_at + 2, 2) as usize);
        if count > MAX_PROGRAM_HEADERS {
            return Err(header("e_phnum", "more program headers than any kernel has"));
        }
        if count > 0 && size < if class == Class::Elf64 { 56 } else { 32 } {
            return Err(header("e_phentsize", "smaller than a program header"));
        }
        elf.read_segments(table, size, count)?;
        Ok(elf)
    }

    fn read_segments(&mut self, table: u64, size: usize, count: usize) -> Result<(), Error> {
        let len = self.image.len();
        let end = table.saturating_add((size * count) as u64);
        if end > len {
            return Err(Error::Truncated { what: "program header table", end, len });
        }
        let headers = self.image.read(table, (size * count) as u64)?;
        for index in 0..count {
            let at = index * size;
            let field = |offset, len| number(&headers, at + offset, len).unwrap_or(0);
            let segment = match self.class {
                Class::Elf64 => Segment {
                    kind: field(0, 4) as u32,
                    offset: field(8, 8),
                    vaddr: field(16, 8),
                    paddr: field(24, 8),
                    file_size: field(32, 8),
                    memory_size: field(40, 8),
                },
                Class::Elf32 => Segment {
                    kind: field(0, 4) as u32,
                    offset: field(4, 4),
                    vaddr: field(8, 4),
                    paddr: field(12, 4),
                    file_size: field(16, 4),
                    memory_size: field(20, 4),
                },
            };
            if matches!(segment.kind, PT_LOAD | PT_NOTE) {
                let end = segment.offset.saturating_add(segment.file_size);
                if end > len {
                    return Err(Error::Truncated { what: "segment", end, len });
                }
                self.segments.push(segment);
            }
        }
        Ok(())
    }

    /// The instruction set.
    pub fn isa(&self) -> &'static str {
        match self.class {
            Class::Elf32 => "i386",
            Class::Elf64 => "x86-64",
        }
    }

    /// Width of addresses.
    pub fn class(&self) -> Class {
        self.class
    }

    /// Whether this is a shared object (or a position-independent executable).
    pub fn is_shared_object(&self) -> bool {
        self.kind == ET_DYN
    }

    /// The segments to load.
    pub fn loads(&self) -> impl Iterator<Item = &Segment> {
        self.segments.iter().filter(|s| s.kind == PT_LOAD)
    }

    /// The entry point as a physical address. Linux's `e_entry` is physical already; other kernels give a
    /// virtual one, which is translated through the segment it is in.
    pub fn entry(&self) -> u64 {
        let inside = |start: u64, s: &Segment| self.entry.wrapping_sub(start) < s.memory_size;
        if self.loads().any(|s| inside(s.paddr, s)) {
            return self.entry;
        }
        let virtual_home = self.loads().find(|s| inside(s.vaddr, s));
        virtual_home.map_or(self.entry, |s| self.entry.wrapping_sub(s.vaddr).wrapping_add(s.paddr))
    }

    /// Bytes of an image in memory at virtual address `vaddr`, to the end of the segment's file part.
    pub fn bytes_at(&self, vaddr: u64) -> Option<&'a [u8]> {
        let segment = self.loads().find(|s| vaddr.wrapping_sub(s.vaddr) < s.file_size)?;
        let from = segment.offset + (vaddr - segment.vaddr);
        self.image.memory()?.get(from as usize..(segment.offset + segment.file_size) as usize)
    }

    /// Checks that this is something to be loaded as a kernel: segments that do not overlap or wrap, and an
    /// entry point inside one.
    ///
    /// # Errors
    /// [`Error::NotAKernel`] and [`Error::Header`].
    pub fn check_loadable(&self) -> Result<(), Error> {
        if self.kind != ET_EXEC {
            let found = match self.kind {
                ET_DYN => "a shared library or position-independent program",
                1 => "an object file",
                4 => "a core dump",
                _ => "an ELF file of an unknown type",
            };
            return Err(Error::NotAKernel { found });
        }
        let header = |field, reason: String| Err(Error::Header { field, reason });
        let mut ranges = Vec::new();
        for s in self.loads().filter(|s| s.memory_size > 0) {
            if s.file_size > s.memory_size {
                return header(
                    "p_filesz",
                    format!("{:#x} in the file, {:#x} in memory", s.file_size, s.memory_size),
                );
            }
            let Some(end) = s.paddr.checked_add(s.memory_size) else {
                return header("p_memsz", format!("segment at {:#x} wraps", s.paddr));
            };
            ranges.push((s.paddr, end));
        }
        if ranges.is_empty() {
            return header("program headers", "nothing to load".to_owned());
        }
        ranges.sort_unstable();
        if let Some(pair) = ranges.windows(2).find(|pair| pair[0].1 > pair[1].0) {
            return header(
                "program headers",
                format!("segments at {:#x} and {:#x} overlap", pair[0].0, pair[1].0),
            );
        }
        let entry = self.entry();
        if !ranges.iter().any(|&(start, end)| (start..end).contains(&entry)) {
            return header("e_entry", format!("{entry:#x} is in no segment"));
        }
        Ok(())
    }

    /// The 32-bit physical entry point of the PVH note, if there is one.
    ///
    /// # Errors
    /// [`Error::Header`] if the note's address is in no segment, and [`Error::Read`].
    pub fn pvh_entry(&self) -> Result<Option<u32>, Error> {
        for segment in self.segments.iter().filter(|s| s.kind == PT_NOTE) {
            let notes = self.image.read(segment.offset, segment.file_size.min(MAX_NOTES_BYTES))?;
            let Some(entry) =
                find_note(&notes, b"Xen\0", PHYS32_ENTRY).and_then(|d| number(d, 0, d.len().min(8)))
            else {
                continue;
            };
            if !self.loads().any(|s| entry.wrapping_sub(s.paddr) < s.memory_size)
                || u32::try_from(entry).is_err()
            {
                let reason = format!("entry point {entry:#x} is in no segment");
                return Err(Error::Header { field: "PVH note", reason });
            }
            return Ok(Some(entry as u32));
        }
        Ok(None)
    }

    /// First address, and first address after, of all that is loaded.
    pub fn extent(&self) -> (u64, u64) {
        let loads = || self.loads().filter(|s| s.memory_size > 0);
        let start = loads().map(|s| s.paddr).min().unwrap_or(0);
        (start, loads().map(|s| s.paddr.saturating_add(s.memory_size)).max().unwrap_or(start))
    }

    /// Copies the segments into `ram`. Fresh memory is zero already, and stays untouched where the file has only
    /// zeros; in memory that was used before every byte of each segment is written.
    ///
    /// # Errors
    /// [`Error::KernelDoesNotFit`] and [`Error::Read`].
    pub fn load(&self, ram: &GuestRam, zero: ZeroFill) -> Result<(), Error> {
        for s in self.loads().filter(|s| s.memory_size > 0) {
            let end = s.paddr.saturating_add(s.memory_size);
            if !ram.ranges().any(|(start, len)| s.paddr >= start && end <= start + len) {
                let memory_mib = ram.size_bytes() >> 20;
                return Err(Error::KernelDoesNotFit { start: s.paddr, end, memory_mib });
            }
            self.image.chunks(s.offset, s.file_size, CHUNK, |at, bytes| {
                let gpa = s.paddr + (at - s.offset);
                match zero {
                    ZeroFill::Fresh => write_data(ram, gpa, bytes)?,
                    ZeroFill::Write => ram.write(gpa, bytes)?,
                }
                Ok(ControlFlow::Continue(()))
            })?;
            if zero == ZeroFill::Write {
                zero_range(ram, s.paddr + s.file_size, end)?;
            }
        }
        Ok(())
    }

    /// Whether the kernel was built with ACPI: every such kernel has this parameter's name in it.
    ///
    /// # Errors
    /// [`Error::Read`].
    pub fn has_acpi(&self) -> Result<bool, Error> {
        const MARKS: [&[u8]; 2] = [b"acpi_rsdp", b"ACPI: RSDP"];
        const OVERLAP: usize = 16;
        // Two of these are in the heap at once, which keeps what it once had.
        const CHUNK: usize = 64 << 10;
        let finders = MARKS.map(memchr::memmem::Finder::new);
        // What the kernel is started with is in its last segments: they are much smaller than its code.
        for s in self.segments.iter().rev().filter(|s| s.kind == PT_LOAD) {
            let mut found = false;
            let mut window = Vec::with_capacity(CHUNK + OVERLAP);
            self.image.chunks(s.offset, s.file_size, CHUNK, |_, bytes| {
                // A mark may begin in one chunk and end in the next.
                window.drain(..window.len().saturating_sub(OVERLAP));
                window.extend_from_slice(bytes);
                found = finders.iter().any(|finder| finder.find(&window).is_some());
                Ok(if found { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            })?;
            if found {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Whether zeros must be written where a segment has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZeroFill {
    /// The memory is fresh.
    Fresh,
    /// The memory was used: write zeros.
    Write,
}

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Writes `bytes`, but for those blocks of them that are zeros, to memory that is zero. The file of a distribution's
/// kernel has its .bss written out, and more such: a third of it, 15 MiB that no guest may ever use.
fn write_data(ram: &GuestRam, gpa: u64, bytes: &[u8]) -> Result<(), memory::Error> {
    let is_data = |block: &&[u8]| **block != ZEROS[..block.len()];
    let mut at = 0;
    while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
        let len = rest.chunks(ZEROS.len()).take_while(is_data).map(<[u8]>::len).sum();
        ram.expect_use(gpa + at as u64, len as u64);
        ram.write(gpa + at as u64, &rest[..len])?;
        // What ended the run is a block of zeros, or the end.
        at += len + ZEROS.len();
    }
    Ok(())
}

fn zero_range(ram: &GuestRam, mut from: u64, to: u64) -> Result<(), memory::Error> {
    while from < to {
        let count = (to - from).min(ZEROS.len() as u64);
        ram.write(from, &ZEROS[..count as usize])?;
        from += count;
    }
    Ok(())
}

fn check_machine(image: &[u8], class: Class) -> Result<(), Error> {
    let machine = match image[5] {
        1 => u16::from_le_bytes([image[0x12], image[0x13]]),
        2 => u16::from_be_bytes([image[0x12], image[0x13]]),
        _ => return Err(Error::Header { field: "e_ident", reason: "no byte order".to_owned() }),
    };
    let isa = match (machine, class) {
        (EM_386, Class::Elf32) | (EM_X86_64, Class::Elf64) if image[5] == 1 => return Ok(()),
        (8, _) => "mips",
        (20, _) => "ppc",
        (21, _) => "ppc64",
        (22, _) => "s390x",
        (40, _) => "arm",
        (183, _) => "arm64",
        (243, _) => "riscv",
        (258, _) => "loongarch",
        _ => "another instruction set",
    };
    Err(Error::OtherIsa { isa })
}

/// The descriptor of the first note with this owner and type. Sizes are padded to 4 bytes.
fn find_note<'a>(mut notes: &'a [u8], owner: &[u8], kind: u32) -> Option<&'a [u8]> {
    loop {
        let name_len = number(notes, 0, 4)? as usize;
        let data_len = number(notes, 4, 4)? as usize;
        let found = number(notes, 8, 4)? as u32;
        let data_at = 12usize.checked_add(name_len.checked_next_multiple_of(4)?)?;
        let name = notes.get(12..12usize.checked_add(name_len)?)?;
        let data = notes.get(data_at..data_at.checked_add(data_len)?)?;
        if found == kind && name == owner {
            return Some(data);
        }
        notes = notes.get(data_at.checked_add(data_len.checked_next_multiple_of(4)?)?..)?;
    }
}
