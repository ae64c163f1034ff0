//! Unmasked SIMD floating-point errors, exactly: the host's processor finds them.
//!
//! A thunk runs under the guest's MXCSR. If that unmasks an error and the error happens, the host raises
//! SIGFPE at the instruction, before anything is written. The handler notes the MXCSR of that moment, which
//! has precisely the flags the SDM wants (vol. 1 section 11.5), and sends the thread to the shared exit.
//! The handler is installed when a guest first unmasks something, and passes on what is not ours.
// UNSAFETY: installs a signal handler and edits the context it interrupts.

use std::cell::Cell;
use std::sync::OnceLock;
use std::sync::atomic::{Ordering, compiler_fence};

use arch::x86::CpuState;
use arch::x86::state::FxImage;

use crate::x86::code::CodeArea;

/// What the handler needs to know of the thread it runs on.
#[derive(Clone, Copy)]
struct Window {
    /// Code in which an error is ours.
    start: u64,
    end: u64,
    /// Where to go on.
    exit: u64,
    /// MXCSR at the error.
    mxcsr: u32,
}

thread_local! {
    static WINDOW: Cell<Window> = const { Cell::new(Window { start: 0, end: 0, exit: 0, mxcsr: 0 }) };
    static UNBLOCKED: Cell<bool> = const { Cell::new(false) };
}

static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

/// Runs the thunk at `offset` of `area`, whose shared exit is at `exit`. Returns MXCSR as it was at an
/// unmasked error, if one happened: then nothing else of `state` has changed.
///
/// # Safety
/// As for [`CodeArea::enter`].
pub(super) unsafe fn enter(
    area: &CodeArea,
    exit: u32,
    offset: u32,
    state: &mut CpuState,
    memory: *mut u8,
) -> Result<(), u32> {
    PREVIOUS.get_or_init(install);
    let window = Window { start: area.address(0), end: area.end(), exit: area.address(exit), mxcsr: 0 };
    WINDOW.set(window);
    unblock();
    compiler_fence(Ordering::SeqCst);
    // SAFETY: the caller's promise.
    let stopped = unsafe { area.enter(offset, state, memory) } != 0;
    compiler_fence(Ordering::SeqCst);
    let mxcsr = WINDOW.get().mxcsr;
    WINDOW.set(Window { start: 0, end: 0, exit: 0, mxcsr: 0 });
    if stopped { Err(mxcsr) } else { Ok(()) }
}

/// Lets SIGFPE through on this thread, once and for good: blocked, it would end the process.
fn unblock() {
    if UNBLOCKED.replace(true) {
        return;
    }
    // SAFETY: the set is local and made valid by sigemptyset; the call concerns this thread only.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGFPE);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut());
    }
}

/// Installs the handler and returns what was there.
fn install() -> libc::sigaction {
    // SAFETY: both structures are local; the handler is async-signal-safe: it touches a constant-initialised
    // thread-local and the context it is given.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        let mut before: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_error as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigemptyset(&mut action.sa_mask);
        libc::sigaction(libc::SIGFPE, &action, &mut before);
        before
    }
}

extern "C" fn on_error(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid context to a handler installed with SA_SIGINFO.
    let machine = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext };
    let mut window = WINDOW.get();
    if !(window.start..window.end).contains(&(machine.gregs[libc::REG_RIP as usize] as u64)) {
        return pass_on(signal, info, context);
    }
    machine.gregs[libc::REG_RIP as usize] = window.exit as i64;
    // SAFETY: on x86-64 the kernel always provides the floating-point part of the frame.
    let floating = unsafe { &mut *machine.fpregs };
    window.mxcsr = floating.mxcsr;
    floating.mxcsr = FxImage::MXCSR_RESET;
    WINDOW.set(window);
}

/// A SIGFPE that no thunk caused goes where it would have gone without us.
fn pass_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let Some(previous) = PREVIOUS.get() else { return default_action(signal) };
    match previous.sa_sigaction {
        libc::SIG_DFL | libc::SIG_IGN => default_action(signal),
        handler if previous.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: whoever installed it said it takes these three.
            unsafe {
                let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                    std::mem::transmute(handler);
                handler(signal, info, context);
            }
        }
        handler => {
            // SAFETY: whoever installed it without SA_SIGINFO said it takes the number alone.
            unsafe {
                let handler: extern "C" fn(libc::c_int) = std::mem::transmute(handler);
                handler(signal);
            }
        }
    }
}

/// Puts the default action back; the instruction is tried again on return and ends the process.
fn default_action(signal: libc::c_int) {
    // SAFETY: signal(2) is async-signal-safe.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}
