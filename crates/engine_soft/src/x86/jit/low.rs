//! Memory below 2 GiB, which generated code names in the four bytes of a displacement: no register holds its address.
// UNSAFETY: maps memory and takes zeros for values.

use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU32;

use super::jumps::Jump;

/// What may stand in such memory.
///
/// # Safety
/// Zeros are a value of it, it need not be dropped, and its alignment is that of a page at most.
pub(super) unsafe trait FromZeros {}

// SAFETY: an integer.
unsafe impl FromZeros for AtomicU32 {}
// SAFETY: integers.
unsafe impl<const N: usize> FromZeros for [Jump; N] {}

/// A value in memory of its own, zeros at first, which cost host memory only as they are touched.
pub(super) struct Low<T: FromZeros>(NonNull<T>);

// SAFETY: it owns its value.
unsafe impl<T: FromZeros + Send> Send for Low<T> {}
// SAFETY: as above.
unsafe impl<T: FromZeros + Sync> Sync for Low<T> {}

impl<T: FromZeros> Low<T> {
    /// Zeros.
    ///
    /// # Errors
    /// If the host has no memory there.
    pub(super) fn new() -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT;
        // SAFETY: a mapping at an address the kernel picks touches nothing that exists.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), size_of::<T>(), protection, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self(NonNull::new(base.cast()).expect("mmap never returns null")))
    }

    /// Its address.
    pub(super) fn address(&self) -> i32 {
        i32::try_from(self.0.as_ptr().addr()).expect("MAP_32BIT is the first 2 GiB")
    }
}

impl<T: FromZeros> Deref for Low<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the mapping holds a `T` as long as this value lives.
        unsafe { self.0.as_ref() }
    }
}

impl<T: FromZeros> DerefMut for Low<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`; borrowed for writing, so nobody else looks.
        unsafe { self.0.as_mut() }
    }
}

impl<T: FromZeros> Drop for Low<T> {
    fn drop(&mut self) {
        // SAFETY: exactly this value's own mapping.
        unsafe { libc::munmap(self.0.as_ptr().cast(), size_of::<T>()) };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn it_is_zero_at_first_and_keeps_what_is_stored() {
        let low = Low::<AtomicU32>::new().unwrap();
        assert!(low.address() > 0);
        assert_eq!(low.swap(7, Ordering::SeqCst), 0);
        assert_eq!(low.load(Ordering::SeqCst), 7);
    }
}
