//! The one owner of executable memory: a fixed area that is either writable or executable, never both.
//!
//! An area belongs to one vCPU, so nobody runs in it while it is writable. It is filled from the front and
//! emptied as a whole; the first bytes, the prologue, hold what all thunks share.
// UNSAFETY: maps memory, fills it with code and calls into it.

use std::io;
use std::ptr::NonNull;

use arch::x86::CpuState;

/// What a thunk is: it gets the guest's state and the host address of the memory operand, and returns 0, or
/// non-zero if it was cut short by [`super::simd_error`].
type Entry = unsafe extern "sysv64" fn(state: *mut CpuState, memory: *mut u8) -> u64;

/// Executable memory of fixed size.
#[derive(Debug)]
pub(super) struct CodeArea {
    base: NonNull<u8>,
    len: usize,
    used: usize,
    shared: usize,
}

// SAFETY: the mapping belongs to this value alone and does not depend on a thread.
unsafe impl Send for CodeArea {}

impl CodeArea {
    /// Maps `len` bytes; they cost host memory only as they are used.
    pub(super) fn new(len: usize) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_EXEC;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a fresh mapping at an address the kernel picks touches nothing that exists.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).expect("mmap never returns null");
        Ok(Self { base, len, used: 0, shared: 0 })
    }

    /// Host address at which the next [`Self::push`] puts its code.
    pub(super) fn next_address(&self) -> u64 {
        self.base.as_ptr() as u64 + self.used as u64
    }

    /// Host address of `offset`.
    pub(super) fn address(&self, offset: u32) -> u64 {
        self.base.as_ptr() as u64 + u64::from(offset)
    }

    /// Host address just past the area.
    pub(super) fn end(&self) -> u64 {
        self.base.as_ptr() as u64 + self.len as u64
    }

    /// Appends `code` and returns its offset; `None` when the area is full.
    ///
    /// # Errors
    /// What the host says if it refuses to change the protection.
    pub(super) fn push(&mut self, code: &[u8]) -> io::Result<Option<u32>> {
        if code.len() > self.len - self.used {
            return Ok(None);
        }
        self.protect(libc::PROT_READ | libc::PROT_WRITE)?;
        // SAFETY: `used + code.len() <= len`, the area is writable now, and `code` is not part of it.
        unsafe {
            self.base.as_ptr().add(self.used).copy_from_nonoverlapping(code.as_ptr(), code.len());
        }
        self.protect(libc::PROT_READ | libc::PROT_EXEC)?;
        let offset = self.used as u32;
        self.used = (self.used + code.len()).next_multiple_of(16).min(self.len);
        Ok(Some(offset))
    }

    /// Makes everything pushed so far the prologue, which [`Self::clear`] keeps.
    pub(super) fn seal_prologue(&mut self) {
        self.shared = self.used;
    }

    /// Forgets all code but the prologue.
    pub(super) fn clear(&mut self) {
        self.used = self.shared;
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
    pub(super) unsafe fn enter(&self, offset: u32, state: &mut CpuState, memory: *mut u8) -> u64 {
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
        // SAFETY: the mapping belongs to this value, and nothing runs in it while it is being dropped.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}
