//! Memory of its own, zeros at first: it costs host memory only as it is touched, and can be given back as a whole.
// UNSAFETY: maps memory, takes zeros for values, and makes values zeros again.

use std::alloc::{Layout, handle_alloc_error};
use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU32;

/// What may stand in such memory.
///
/// # Safety
/// Zeros are a value of it, it need not be dropped, and its alignment is that of a page at most.
pub unsafe trait FromZeros {}

// SAFETY: integers.
unsafe impl FromZeros for u64 {}
// SAFETY: as above.
unsafe impl FromZeros for usize {}
// SAFETY: zero is `false`.
unsafe impl FromZeros for bool {}
// SAFETY: as above.
unsafe impl FromZeros for AtomicU32 {}
// SAFETY: what holds for each holds for all.
unsafe impl<T: FromZeros, const N: usize> FromZeros for [T; N] {}
// SAFETY: as above.
unsafe impl<T: FromZeros> FromZeros for [T] {}

/// A value in memory of its own.
pub struct Zeroed<T: FromZeros + ?Sized>(NonNull<T>);

// SAFETY: it owns its value.
unsafe impl<T: FromZeros + Send + ?Sized> Send for Zeroed<T> {}
// SAFETY: as above.
unsafe impl<T: FromZeros + Sync + ?Sized> Sync for Zeroed<T> {}

impl<T: FromZeros> Zeroed<T> {
    /// Zeros.
    pub fn new() -> Self {
        let layout = Layout::new::<T>();
        Self(map(layout.size(), 0).unwrap_or_else(|_| handle_alloc_error(layout)).cast())
    }

    /// Zeros below 2 GiB, which generated code names in the four bytes of a displacement: no register holds their address.
    ///
    /// # Errors
    /// If the host has no memory there.
    pub fn below_2_gib() -> io::Result<Self> {
        Ok(Self(map(size_of::<T>(), libc::MAP_32BIT)?.cast()))
    }

    /// The address of a value below 2 GiB.
    pub fn low_address(&self) -> i32 {
        i32::try_from(self.0.as_ptr().addr()).expect("only what is below 2 GiB is asked")
    }
}

impl<T: FromZeros> Zeroed<[T]> {
    /// So many zeros.
    pub fn slice(count: usize) -> Self {
        let layout = Layout::array::<T>(count).expect("less than the address space");
        let first = map(layout.size(), 0).unwrap_or_else(|_| handle_alloc_error(layout)).cast();
        Self(NonNull::slice_from_raw_parts(first, count))
    }
}

impl<T: FromZeros + ?Sized> Zeroed<T> {
    /// Makes it zeros again, which cost no memory. The address stays.
    pub fn give_back(&mut self) {
        let size = size_of_val(&**self);
        // SAFETY: exactly this value's own mapping, which nobody else has borrowed; zeros are a value.
        let given = unsafe { libc::madvise(self.0.as_ptr().cast(), size, libc::MADV_DONTNEED) };
        assert_eq!(given, 0, "a private mapping of this value alone");
    }
}

/// A mapping of its own, of `size` bytes.
fn map(size: usize, flags: libc::c_int) -> io::Result<NonNull<u8>> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags;
    // SAFETY: a mapping at an address the kernel picks touches nothing that exists.
    let base = unsafe { libc::mmap(std::ptr::null_mut(), size, protection, flags, -1, 0) };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(NonNull::new(base.cast()).expect("mmap never returns null"))
}

impl<T: FromZeros + ?Sized> Deref for Zeroed<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the mapping holds a `T` as long as this value lives.
        unsafe { self.0.as_ref() }
    }
}

impl<T: FromZeros + ?Sized> DerefMut for Zeroed<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`; borrowed for writing, so nobody else looks.
        unsafe { self.0.as_mut() }
    }
}

impl<T: FromZeros + ?Sized> Drop for Zeroed<T> {
    fn drop(&mut self) {
        let size = size_of_val(&**self);
        // SAFETY: exactly this value's own mapping.
        unsafe { libc::munmap(self.0.as_ptr().cast(), size) };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn it_is_zero_at_first_and_keeps_what_is_stored() {
        let low = Zeroed::<AtomicU32>::below_2_gib().unwrap();
        assert!(low.low_address() > 0);
        assert_eq!(low.swap(7, Ordering::SeqCst), 0);
        assert_eq!(low.load(Ordering::SeqCst), 7);
    }

    #[test]
    fn what_is_given_back_is_zero_again_and_where_it_was() {
        let mut words = Zeroed::<[u64]>::slice(5000);
        words[4999] = 1;
        let before = words.as_ptr();
        words.give_back();
        assert_eq!((words.as_ptr(), words.len()), (before, 5000));
        assert!(words.iter().all(|word| *word == 0));
    }
}
