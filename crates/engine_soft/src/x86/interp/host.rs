//! Single accesses to guest RAM in the host: each of one to eight bytes is one host access of its width.
// UNSAFETY: dereferences host addresses of guest RAM; callers say where they come from.

use std::arch::asm;

use crate::x86::width::Width;

#[repr(C, packed)]
#[derive(Clone, Copy)]
struct Unaligned<T>(T);

/// One host load of the width of `T`.
///
/// # Safety
/// `host` must point to `size_of::<T>()` readable bytes of guest RAM.
#[inline(always)]
pub(super) unsafe fn host_load<T: Width>(host: *const u8) -> T {
    // SAFETY: the caller's promise. Volatile, because other vCPUs and devices write guest RAM.
    unsafe { host.cast::<Unaligned<T>>().read_volatile().0 }
}

/// One host store of the width of `T`.
///
/// # Safety
/// `host` must point to `size_of::<T>()` writable bytes of guest RAM.
#[inline(always)]
pub(super) unsafe fn host_store<T: Width>(host: *mut u8, value: T) {
    // SAFETY: the caller's promise.
    unsafe { host.cast::<Unaligned<T>>().write_volatile(Unaligned(value)) }
}

/// `LOCK CMPXCHG` on `host`, which need not be aligned. Returns the value found.
///
/// # Safety
/// As for [`host_store`].
#[inline(always)]
pub(super) unsafe fn host_compare_exchange<T: Width>(host: *mut u8, expected: T, new: T) -> T {
    let mut rax = expected.zero_extend();
    let new = new.zero_extend();
    // SAFETY: the caller's promise; only RAX and flags change beside the memory.
    unsafe {
        match T::SIZE {
            1 => {
                asm!("lock cmpxchg byte ptr [{p}], {n}", p = in(reg) host, n = in(reg_byte) new as u8, inout("rax") rax)
            }
            2 => {
                asm!("lock cmpxchg word ptr [{p}], {n:x}", p = in(reg) host, n = in(reg) new, inout("rax") rax)
            }
            4 => {
                asm!("lock cmpxchg dword ptr [{p}], {n:e}", p = in(reg) host, n = in(reg) new, inout("rax") rax)
            }
            _ => {
                asm!("lock cmpxchg qword ptr [{p}], {n}", p = in(reg) host, n = in(reg) new, inout("rax") rax)
            }
        }
    }
    T::truncate(rax)
}

/// `LOCK CMPXCHG16B`.
///
/// # Safety
/// `host` must point to 16 writable bytes of guest RAM, aligned to 16.
pub(super) unsafe fn host_compare_exchange16(host: *mut u8, expected: u128, new: u128) -> u128 {
    let (mut low, mut high) = (expected as u64, (expected >> 64) as u64);
    // SAFETY: the caller's promise; RBX is saved because the compiler reserves it.
    unsafe {
        asm!("xchg {nl}, rbx", "lock cmpxchg16b [{p}]", "mov rbx, {nl}",
            nl = inout(reg) new as u64 => _, p = in(reg) host, in("rcx") (new >> 64) as u64,
            inout("rax") low, inout("rdx") high);
    }
    u128::from(low) | u128::from(high) << 64
}

/// # Safety
/// As for [`host_store`].
pub(super) unsafe fn exchange_loop<T: Width>(host: *mut u8, change: &mut impl FnMut(T) -> T) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut old = host_load::<T>(host);
        loop {
            let found = host_compare_exchange(host, old, change(old));
            if found == old {
                return;
            }
            old = found;
        }
    }
}

/// # Safety
/// `host` must point to `data.len()` bytes of guest RAM.
pub(super) unsafe fn copy_from_guest(host: *const u8, data: &mut [u8]) {
    // SAFETY: the caller's promise; `data` is ours alone.
    unsafe { std::ptr::copy_nonoverlapping(host, data.as_mut_ptr(), data.len()) }
}

/// # Safety
/// `host` must point to `data.len()` bytes of guest RAM.
pub(super) unsafe fn copy_to_guest(host: *mut u8, data: &[u8]) {
    // SAFETY: the caller's promise; `data` is not guest RAM.
    unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), host, data.len()) }
}
