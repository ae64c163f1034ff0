//! The one owner of executable memory: a fixed area that no address is both writable and executable in.
//!
//! The area is a file in memory, mapped twice: writable for us and executable for the guest's thread. Changing
//! protection instead would flush the TLBs of all vCPUs at each new thunk (measured: 50 us against 5); it is the
//! fallback where the host has no such files.
//!
//! An area belongs to one vCPU, so nobody runs in it while it changes. It is filled from the front and emptied
//! as a whole; the first bytes, the prologue, hold what all its code shares, and its end what is needed rarely. Two users:
//! the thunks of [`super::hostexec`] and the translations of [`super::jit`].
// UNSAFETY: maps memory, fills it with code and calls into it.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;

use arch::x86::CpuState;
use arch::x86::paging::PAGE_SIZE;

/// What a thunk is: it gets the guest's state and the host address of the memory operand, and returns 0, or
/// non-zero if it was cut short by `hostexec::simd_error`.
type Entry = unsafe extern "sysv64" fn(state: *mut CpuState, memory: *mut u8) -> u64;

/// Executable memory of fixed size.
#[derive(Debug)]
pub(in crate::x86) struct CodeArea {
    /// Where it is executed.
    base: NonNull<u8>,
    /// Where it is written; `None` if that is `base`, once made writable.
    alias: Option<NonNull<u8>>,
    len: usize,
    used: usize,
    /// Where what is needed rarely begins, which is behind the rest of the area and grows towards the front.
    rare: usize,
    shared: usize,
    /// Whether code has been thrown away: what is pushed from then on may take the place of code that ran.
    reused: bool,
}

// SAFETY: the mappings belong to this value alone and do not depend on a thread.
unsafe impl Send for CodeArea {}

/// A fresh mapping of `len` bytes, of `file` or of anonymous memory.
fn map(len: usize, protection: libc::c_int, file: Option<&OwnedFd>) -> io::Result<NonNull<u8>> {
    let (flags, descriptor) = match file {
        Some(file) => (libc::MAP_SHARED, file.as_raw_fd()),
        None => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1),
    };
    // SAFETY: a mapping at an address the kernel picks touches nothing that exists.
    let base = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, descriptor, 0) };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(NonNull::new(base.cast()).expect("mmap never returns null"))
}

/// A file of `len` zero bytes that exists in memory only.
fn memory_file(len: usize) -> io::Result<OwnedFd> {
    // SAFETY: the name is a C string; the descriptor, if there is one, is ours alone.
    let file = unsafe {
        let descriptor = libc::memfd_create(c"strata-code".as_ptr(), libc::MFD_CLOEXEC);
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(descriptor)
    };
    // SAFETY: an own descriptor.
    match unsafe { libc::ftruncate(file.as_raw_fd(), len as libc::off_t) } {
        0 => Ok(file),
        _ => Err(io::Error::last_os_error()),
    }
}

impl CodeArea {
    /// Maps `len` bytes; they cost host memory only as they are used.
    pub(in crate::x86) fn new(len: usize) -> io::Result<Self> {
        Self::mapped_twice(len).or_else(|_| Self::mapped_once(len))
    }

    fn mapped_twice(len: usize) -> io::Result<Self> {
        let file = memory_file(len)?;
        let base = map(len, libc::PROT_READ | libc::PROT_EXEC, Some(&file))?;
        let mut area = Self { base, alias: None, len, used: 0, rare: len, shared: 0, reused: false };
        area.alias = Some(map(len, libc::PROT_READ | libc::PROT_WRITE, Some(&file))?);
        Ok(area)
    }

    fn mapped_once(len: usize) -> io::Result<Self> {
        let base = map(len, libc::PROT_READ | libc::PROT_EXEC, None)?;
        Ok(Self { base, alias: None, len, used: 0, rare: len, shared: 0, reused: false })
    }

    /// Host address at which the next [`Self::push`] puts its code.
    pub(in crate::x86) fn next_address(&self) -> u64 {
        self.address(self.next())
    }

    /// The offset that the next code is put at.
    pub(in crate::x86) fn next(&self) -> u32 {
        self.used as u32
    }

    /// The same of `len` bytes that are needed rarely.
    pub(in crate::x86) fn next_rare(&self, len: usize) -> u32 {
        self.rare.saturating_sub(len) as u32
    }

    /// Host address of `offset`.
    pub(in crate::x86) fn address(&self, offset: u32) -> u64 {
        self.base.as_ptr() as u64 + u64::from(offset)
    }

    /// Host address just past the area.
    pub(in crate::x86) fn end(&self) -> u64 {
        self.base.as_ptr() as u64 + self.len as u64
    }

    /// Appends `code` and returns its offset; `None` when the area is full.
    ///
    /// # Errors
    /// What the host says if it refuses to change the protection.
    pub(in crate::x86) fn push(&mut self, code: &[u8]) -> io::Result<Option<u32>> {
        self.push_apart(code, &[])
    }

    /// The same with `rare`, which is needed rarely: code that is executed is in fewer pages, and takes less of the caches,
    /// without it.
    ///
    /// # Errors
    /// What the host says if it refuses to change the protection.
    pub(in crate::x86) fn push_apart(&mut self, code: &[u8], rare: &[u8]) -> io::Result<Option<u32>> {
        if code.len() + rare.len() > self.left() {
            return Ok(None);
        }
        let rare_at = self.rare - rare.len();
        self.writing(|area, writable| {
            area.write(writable, area.used, code);
            area.write(writable, rare_at, rare);
        })?;
        self.rare = rare_at;
        if self.reused {
            // Code changed through another address needs a serialising instruction (SDM vol. 3 section 9.1.3).
            std::arch::x86_64::__cpuid(0);
        }
        let offset = self.used as u32;
        self.used = (self.used + code.len()).next_multiple_of(16).min(self.rare);
        Ok(Some(offset))
    }

    /// Replaces four bytes of what was pushed: the displacement of a jump. Both its old and its new target must
    /// be right for whoever has already fetched it.
    ///
    /// # Errors
    /// What the host says if it refuses to change the protection.
    pub(in crate::x86) fn patch(&mut self, offset: u32, value: [u8; 4]) -> io::Result<()> {
        let at = offset as usize;
        assert!(at + 4 <= self.used || at >= self.rare && at + 4 <= self.len, "a jump inside the area");
        self.writing(|area, writable| area.write(writable, at, &value))
    }

    /// Has `write` done, which is told where the area can be written meanwhile.
    fn writing(&mut self, write: impl FnOnce(&mut Self, NonNull<u8>)) -> io::Result<()> {
        match self.alias {
            Some(alias) => write(self, alias),
            None => {
                self.protect(libc::PROT_READ | libc::PROT_WRITE)?;
                write(self, self.base);
                self.protect(libc::PROT_READ | libc::PROT_EXEC)?;
            }
        }
        Ok(())
    }

    /// Bytes left.
    pub(in crate::x86) fn left(&self) -> usize {
        self.rare - self.used
    }

    fn write(&mut self, writable: NonNull<u8>, offset: usize, code: &[u8]) {
        debug_assert!(offset + code.len() <= self.len);
        // SAFETY: the callers have seen that `offset + code.len() <= len`, and `code` is not part of the area.
        unsafe {
            writable.as_ptr().add(offset).copy_from_nonoverlapping(code.as_ptr(), code.len());
        }
    }

    /// Makes everything pushed so far the prologue, which [`Self::clear`] keeps.
    pub(in crate::x86) fn seal_prologue(&mut self) {
        self.shared = self.used;
    }

    /// Forgets all code but the prologue.
    pub(in crate::x86) fn clear(&mut self) {
        (self.used, self.rare) = (self.shared, self.len);
        self.reused = true;
    }

    /// Gives the host back the memory behind the prologue, after [`Self::clear`].
    pub(in crate::x86) fn give_back(&mut self) {
        assert_eq!(self.used, self.shared, "nothing else is to stay");
        let first = self.shared.next_multiple_of(PAGE_SIZE as usize).min(self.len);
        // A file keeps what mappings of it let go.
        let (base, advice) = match self.alias {
            Some(alias) => (alias, libc::MADV_REMOVE),
            None => (self.base, libc::MADV_DONTNEED),
        };
        // SAFETY: whole pages of this value's own mapping; nothing runs in them, and whoever reads them is the next to fill them.
        // A host that does not do it keeps the memory.
        unsafe { libc::madvise(base.as_ptr().add(first).cast(), self.len - first, advice) };
    }

    fn protect(&mut self, protection: libc::c_int) -> io::Result<()> {
        // SAFETY: exactly this value's own mapping.
        match unsafe { libc::mprotect(self.base.as_ptr().cast(), self.len, protection) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Runs the thunk at `offset`: the only way into the area.
    ///
    /// # Safety
    /// `offset` is where a thunk was pushed since the last [`Self::clear`], and `memory` is what that thunk
    /// needs: valid for its memory operand's size and access, and aligned as the operand must be.
    #[inline]
    pub(in crate::x86) unsafe fn enter(&self, offset: u32, state: &mut CpuState, memory: *mut u8) -> u64 {
        // SAFETY: the caller vouches for `offset`, so this is the start of code with the ABI of `Entry`,
        // which touches nothing but `state`, the operand and its own registers.
        unsafe {
            let entry: Entry = std::mem::transmute(self.base.as_ptr().add(offset as usize));
            entry(state, memory)
        }
    }
}

impl Drop for CodeArea {
    fn drop(&mut self) {
        for base in [Some(self.base), self.alias].into_iter().flatten() {
            // SAFETY: the mapping belongs to this value, and nothing runs in it while it is being dropped.
            unsafe { libc::munmap(base.as_ptr().cast(), self.len) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_area_run_what_is_pushed_and_refuse_what_does_not_fit() {
        for mut area in [CodeArea::mapped_twice(4096).unwrap(), CodeArea::mapped_once(4096).unwrap()] {
            let mut state = CpuState::power_up();
            for value in 1..3u8 {
                let offset = area.push(&[0xb8, value, 0, 0, 0, 0xc3]).unwrap().unwrap(); // mov eax, value; ret
                // SAFETY: the code just pushed, which touches nothing.
                let result = unsafe { area.enter(offset, &mut state, std::ptr::null_mut()) };
                assert_eq!(result, u64::from(value));
            }
            assert_eq!(area.push(&[0; 4096]).unwrap(), None);
            area.clear();
            assert_eq!(area.push(&[0; 4096]).unwrap(), Some(0));
        }
    }

    #[test]
    fn what_is_given_back_can_be_filled_again_and_the_prologue_stays() {
        for mut area in [CodeArea::mapped_twice(4 * 4096).unwrap(), CodeArea::mapped_once(4 * 4096).unwrap()]
        {
            let mut state = CpuState::power_up();
            let returns = |value: u8| [0xb8, value, 0, 0, 0, 0xc3]; // mov eax, value; ret
            let prologue = area.push(&returns(1)).unwrap().unwrap();
            area.seal_prologue();
            area.push(&[0; 4096]).unwrap().unwrap();
            let before = area.push(&returns(2)).unwrap().unwrap();
            area.clear();
            area.give_back();
            // SAFETY: inside the area.
            let left = unsafe { area.base.as_ptr().add(before as usize).read() };
            assert_eq!(left, 0);
            area.push(&[0; 4096]).unwrap().unwrap();
            let again = area.push(&returns(3)).unwrap().unwrap();
            // SAFETY: code that was pushed and not cleared since, which touches nothing.
            let results =
                [prologue, again].map(|at| unsafe { area.enter(at, &mut state, std::ptr::null_mut()) });
            assert_eq!(results, [1, 3]);
        }
    }
}
