//! A program that runs on from the same file at another mount.
//!
//! The kernel keeps a program's file in two places: in what is mapped of it, and as what `/proc/PID/exe` leads to. The
//! second can be exchanged once nothing of the old file is mapped (`PR_SET_MM_MAP` of prctl(2), made for restoring saved
//! processes; it takes CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE). So what nobody has written to is mapped anew, at the same
//! addresses, and what has been written to becomes memory without a file. That takes a fraction of what executing the
//! program again does, most of which is the loader's work.
// UNSAFETY: replaces the program's own mappings by others with the same contents.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::{ptr, slice};

use rustix::mm::{MapFlags, MprotectFlags, MremapFlags, ProtFlags};

/// A range of whole pages: its address, and its bytes.
#[derive(Clone, Copy, Debug)]
struct Pages {
    start: usize,
    length: usize,
}

/// Pages of the program that come from its file.
#[derive(Clone, Copy, Debug)]
struct Segment {
    pages: Pages,
    /// Where they are in the file.
    offset: u64,
    /// PF_* of the file's header.
    flags: u32,
}

/// Where the program is in memory.
#[derive(Debug)]
struct Program {
    segments: Vec<Segment>,
    /// What has been protected once the loader had written it.
    relocated: Option<Pages>,
}

/// Lets this program run on from `file`, which has the bytes it was started from. It must have one thread.
///
/// # Errors
/// The kernel refuses, or the program is of an unusual form: it may be mapped from `file` in part then, and is still what
/// it was.
pub fn run_from(file: BorrowedFd<'_>) -> io::Result<()> {
    let program = Program::find().ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))?;
    for segment in &program.segments {
        if segment.flags & libc::PF_W == 0 {
            segment.map_from(file)?;
        } else {
            segment.pages.copy()?;
        }
    }
    if let Some(pages) = program.relocated {
        pages.protect()?;
    }
    Layout::current(file).ok_or_else(|| io::Error::other("/proc does not say where this program is"))?.set()
}

/// What the kernel shows of a process in `/proc`, as prctl(2) takes it (`struct prctl_mm_map`).
#[repr(C)]
#[derive(Debug)]
struct Layout {
    start_code: u64,
    end_code: u64,
    start_data: u64,
    end_data: u64,
    start_brk: u64,
    brk: u64,
    start_stack: u64,
    arg_start: u64,
    arg_end: u64,
    env_start: u64,
    env_end: u64,
    auxv: u64,
    auxv_size: u32,
    exe_fd: u32,
}

impl Layout {
    /// As it is now, but for the file.
    fn current(file: BorrowedFd<'_>) -> Option<Self> {
        let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
        // Field 3 of proc_pid_stat(5) and what follows: the second is a name in parentheses.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse().ok();
        // SAFETY: asks where the end of the heap is, and moves nothing.
        let brk = unsafe { libc::sbrk(0) };
        Some(Self {
            start_code: field(26)?,
            end_code: field(27)?,
            start_data: field(45)?,
            end_data: field(46)?,
            start_brk: field(47)?,
            brk: brk.expose_provenance() as u64,
            start_stack: field(28)?,
            arg_start: field(48)?,
            arg_end: field(49)?,
            env_start: field(50)?,
            env_end: field(51)?,
            // What the loader was told stays.
            auxv: 0,
            auxv_size: 0,
            exe_fd: file.as_raw_fd() as u32,
        })
    }

    fn set(&self) -> io::Result<()> {
        let size = size_of::<Self>();
        // SAFETY: of what the kernel takes from here all but the file is what it has; it changes nothing in memory.
        let done = unsafe { libc::prctl(libc::PR_SET_MM, libc::PR_SET_MM_MAP, ptr::from_ref(self), size, 0) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

impl Program {
    /// The program as the kernel has loaded it, if its headers say where they are.
    fn find() -> Option<Self> {
        // SAFETY: reads what the kernel gave this process.
        let value = |kind| unsafe { libc::getauxval(kind) } as usize;
        let (table, count) = (value(libc::AT_PHDR), value(libc::AT_PHNUM));
        if table == 0 || value(libc::AT_PHENT) != size_of::<libc::Elf64_Phdr>() {
            return None;
        }
        // SAFETY: the kernel's word on where the program's headers are, which stay mapped as long as the program runs.
        let headers =
            unsafe { slice::from_raw_parts(ptr::with_exposed_provenance::<libc::Elf64_Phdr>(table), count) };
        let own = headers.iter().find(|header| header.p_type == libc::PT_PHDR)?;
        let base = table.wrapping_sub(own.p_vaddr as usize);
        let at = |header: &libc::Elf64_Phdr| base.wrapping_add(header.p_vaddr as usize);
        let page = rustix::param::page_size();
        let in_file = |header: &libc::Elf64_Phdr| {
            let pages = Pages::around(at(header), at(header) + header.p_filesz as usize);
            Segment { pages, offset: header.p_offset & !(page as u64 - 1), flags: header.p_flags }
        };
        let loaded = headers.iter().filter(|header| header.p_type == libc::PT_LOAD && header.p_filesz > 0);
        let relocated = headers.iter().find(|header| header.p_type == libc::PT_GNU_RELRO);
        Some(Self {
            segments: loaded.map(in_file).collect(),
            // As the loader has it: the last page is not all constant.
            relocated: relocated.map(|header| {
                let end = (at(header) + header.p_memsz as usize) & !(page - 1);
                Pages::around(at(header), end)
            }),
        })
    }
}

impl Segment {
    /// Maps these pages from a file with the same bytes.
    fn map_from(&self, file: BorrowedFd<'_>) -> io::Result<()> {
        let executable = if self.flags & libc::PF_X == 0 { ProtFlags::empty() } else { ProtFlags::EXEC };
        let flags = MapFlags::PRIVATE | MapFlags::FIXED;
        let Pages { start, length } = self.pages;
        // SAFETY: the pages have been read-only since the program began, so that every byte of them is the file's, before
        // and after; the kernel exchanges them in one step.
        unsafe {
            rustix::mm::mmap(address(start), length, ProtFlags::READ | executable, flags, file, self.offset)?;
        }
        Ok(())
    }
}

impl Pages {
    /// Whole pages that have all from `start` to `end`.
    fn around(start: usize, end: usize) -> Self {
        let page = rustix::param::page_size();
        let start = start & !(page - 1);
        Self { start, length: end.next_multiple_of(page) - start }
    }

    /// Puts memory with the same bytes in their place.
    fn copy(self) -> io::Result<()> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::POPULATE;
        // SAFETY: the new mapping lies where nothing else is. The old one can be read, and no other thread writes to it
        // meanwhile; the kernel exchanges them in one step, so that every byte is what it was.
        unsafe {
            let copy = rustix::mm::mmap_anonymous(ptr::null_mut(), self.length, protection, flags)?;
            ptr::copy_nonoverlapping(address(self.start).cast::<u8>(), copy.cast::<u8>(), self.length);
            let flags = MremapFlags::MAYMOVE;
            rustix::mm::mremap_fixed(copy, self.length, self.length, flags, address(self.start))?;
        }
        Ok(())
    }

    /// Takes the right to write to them away.
    fn protect(self) -> io::Result<()> {
        // SAFETY: nobody has had that right since the loader took it away.
        unsafe { rustix::mm::mprotect(address(self.start), self.length, MprotectFlags::READ)? };
        Ok(())
    }
}

fn address(at: usize) -> *mut libc::c_void {
    ptr::with_exposed_provenance_mut(at)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use super::*;

    /// What a copy of this process finds once it runs from `file`: 0 if all is well.
    fn found(file: &std::fs::File, path: &Path, before: &Path) -> i32 {
        // What the loader has written leads to where it led.
        static WORDS: [&str; 2] = ["one", "three"];
        let describe: &dyn Fn(usize) -> String = &|n| WORDS[n].to_uppercase();
        if let Err(error) = run_from(file.as_fd()) {
            eprintln!("{error}");
            return 1;
        }
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
        let is_mapped = |file: &Path| maps.lines().any(|line| line.ends_with(&*file.to_string_lossy()));
        let checks = [
            std::hint::black_box(describe)(1) == "THREE",
            std::fs::read_link("/proc/self/exe").is_ok_and(|now| now == path),
            is_mapped(path) && !is_mapped(before),
            // Nothing that could be written to can be executed, nor what was constant be written.
            !maps.lines().any(|line| line.contains("rwx")),
        ];
        checks.iter().position(|good| !good).map_or(0, |n| 2 + n as i32)
    }

    #[test]
    fn a_program_runs_on_from_another_file() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: the kernel lets only root exchange a program's file");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let (path, before) = (folder.path().join("copy"), std::env::current_exe().unwrap());
        std::fs::copy(&before, &path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let file = std::fs::File::open(&path).unwrap();
        let child = crate::sys::fork(|| found(&file, &path, &before)).unwrap();
        let child = rustix::process::Pid::from_raw(child);
        let (_, status) =
            rustix::process::waitpid(child, rustix::process::WaitOptions::empty()).unwrap().unwrap();
        assert_eq!(status.exit_status(), Some(0), "{status:?}");
    }
}
