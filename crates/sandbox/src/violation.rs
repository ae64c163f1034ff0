//! What happens when a forbidden call is made: the kernel raises SIGSYS in the thread instead of doing it, and the handler
//! here lets the owner say which it was and ends the process.
// UNSAFETY: installs a signal handler and reads what the kernel hands it.
#![expect(unsafe_code, reason = "there is no safe way to install a handler that learns the system call")]

use std::io;
use std::sync::OnceLock;

use crate::names;

/// A system call that the sandbox does not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Violation {
    /// Its number on the host's processor.
    pub number: i64,
    /// Its name, unless it is one nobody expects.
    pub name: Option<&'static str>,
}

static ON_VIOLATION: OnceLock<fn(&Violation) -> i32> = OnceLock::new();

/// `siginfo_t` of SIGSYS (`sigaction(2)`, `_sigsys` in the kernel's `asm-generic/siginfo.h`).
#[repr(C)]
struct SigsysInfo {
    signal: libc::c_int,
    errno: libc::c_int,
    code: libc::c_int,
    call_address: *mut libc::c_void,
    number: libc::c_int,
    arch: libc::c_uint,
}

/// Makes `on_violation` the end of every forbidden call.
pub(crate) fn handle(on_violation: fn(&Violation) -> i32) -> io::Result<()> {
    ON_VIOLATION.get_or_init(|| on_violation);
    crate::memory::use_one_heap();
    // SAFETY: all of `action` is set: zeros are an empty mask and no flags, and the handler has the signature that
    // SA_SIGINFO asks for.
    let result = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_sigsys as *const () as libc::sighandler_t;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigaction(libc::SIGSYS, &action, std::ptr::null_mut())
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

static ON_LOST_MEMORY: OnceLock<fn() -> i32> = OnceLock::new();

/// Makes `on_lost_memory` the end of a process that touches memory whose file is gone from under it: cut short by somebody, or
/// on a disk that cannot be read (SIGBUS). The process ends with the code it gives. It is called in a signal handler: it may
/// neither wait nor allocate.
///
/// # Errors
/// The host's.
pub fn on_lost_memory(on_lost_memory: fn() -> i32) -> io::Result<()> {
    ON_LOST_MEMORY.get_or_init(|| on_lost_memory);
    // SAFETY: all of `action` is set: zeros are an empty mask and no flags, and the handler has the signature of one
    // without SA_SIGINFO. It runs on the signal stack that the standard library gives each thread.
    let result = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_sigbus as *const () as libc::sighandler_t;
        action.sa_flags = libc::SA_ONSTACK;
        libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut())
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

extern "C" fn on_sigbus(_signal: libc::c_int) {
    let code = ON_LOST_MEMORY.get().map_or(libc::EXIT_FAILURE, |on_lost_memory| on_lost_memory());
    // SAFETY: ends the process; nothing of it runs after that.
    unsafe { libc::_exit(code) }
}

extern "C" fn on_sigsys(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel hands a valid siginfo_t to a handler with SA_SIGINFO, and for SIGSYS it is of this shape; if the
    // signal was sent by somebody, the number is some bytes of it all the same.
    let number = i64::from(unsafe { (*info.cast::<SigsysInfo>()).number });
    let violation = Violation { number, name: names::name(number) };
    let code = ON_VIOLATION.get().map_or(libc::EXIT_FAILURE, |on_violation| on_violation(&violation));
    // SAFETY: ends the process; nothing of it runs after that.
    unsafe { libc::_exit(code) }
}
