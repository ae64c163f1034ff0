//! How other threads get a vCPU out of KVM_RUN.
//!
//! ```text
//!               enter                       kick: first one only
//!   Outside ───────────► Inside ───────────────────────────────► Kicked
//!      ▲                    │                                       │
//!      └────────────────────┴───────────────────────────────────────┘
//!                                  leave
//! ```
//! Whoever has set a bit of the request word looks whether the vCPU is inside; whoever enters says so and then looks at
//! the word. So either the vCPU sees the bit, or it is kicked: its `immediate_exit` is set, so that it comes back if it is
//! just about to enter, and it is sent a signal, which alone makes the kernel leave a guest. The signal's handler does
//! nothing; system calls other than KVM_RUN go on after it. Interrupts reach running vCPUs through the kernel's local APICs
//! and need none of this, so no hot path does.
// UNSAFETY: installs a signal handler, unblocks the signal and sends it.

use std::io;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use engine::VcpuSignal;

use crate::run_page::{RunPage, request_exit};

const OUTSIDE: u32 = 0;
const INSIDE: u32 = 1;
const KICKED: u32 = 2;

/// A vCPU as those see it who kick it.
pub struct Kick {
    place: AtomicU32,
    /// The thread that runs the vCPU; zero before it did.
    thread: AtomicI32,
    page: Arc<RunPage>,
}

impl Kick {
    /// Of the vCPU with this page, told of new requests by `signal`.
    pub fn new(page: Arc<RunPage>, signal: &VcpuSignal) -> io::Result<Arc<Self>> {
        install_handler()?;
        let kick = Arc::new(Self { place: AtomicU32::new(OUTSIDE), thread: AtomicI32::new(0), page });
        let for_hook = kick.clone();
        signal.set_hook(Box::new(move || for_hook.kick()));
        Ok(kick)
    }

    /// Prepares the calling thread, which is about to run the vCPU.
    pub fn bind(&self) {
        // SAFETY: no arguments, cannot fail.
        let thread = unsafe { libc::gettid() };
        if self.thread.swap(thread, Ordering::SeqCst) != thread {
            unblock_signal();
        }
    }

    /// The vCPU is about to enter KVM_RUN: `true` if nobody has asked for it, and it may.
    pub fn enter(&self, signal: &VcpuSignal) -> bool {
        self.place.store(INSIDE, Ordering::SeqCst);
        if signal.word().load(Ordering::SeqCst) == 0 {
            return true;
        }
        self.place.store(OUTSIDE, Ordering::SeqCst);
        false
    }

    /// KVM_RUN has returned.
    pub fn leave(&self) {
        self.place.store(OUTSIDE, Ordering::SeqCst);
        if self.page.immediate_exit().load(Ordering::Relaxed) != 0 {
            self.page.immediate_exit().store(0, Ordering::SeqCst);
        }
    }

    /// Makes KVM_RUN return if the vCPU is inside. Any thread.
    fn kick(&self) {
        if self.place.compare_exchange(INSIDE, KICKED, Ordering::SeqCst, Ordering::SeqCst).is_err() {
            return;
        }
        request_exit(&self.page);
        let thread = self.thread.load(Ordering::SeqCst);
        // SAFETY: a signal to a thread of this process, with a handler that does nothing. A thread that has ended since is
        // an error that tells nothing new; its number is not another thread's of this process while the vCPU is inside.
        unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, signal_number()) };
    }
}

/// A signal that nothing else in a process of ours uses.
fn signal_number() -> libc::c_int {
    libc::SIGRTMIN() + 3
}

extern "C" fn do_nothing(_signal: libc::c_int) {}

fn install_handler() -> io::Result<()> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    let installed = INSTALLED.get_or_init(|| {
        // SAFETY: all of `action` is set: zeros are an empty mask, and the handler has the signature of one without
        // SA_SIGINFO. SA_RESTART keeps the signal from ending other system calls; KVM_RUN ends all the same.
        let result = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = do_nothing as *const () as libc::sighandler_t;
            action.sa_flags = libc::SA_RESTART | libc::SA_ONSTACK;
            libc::sigaction(signal_number(), &action, std::ptr::null_mut())
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error().raw_os_error().unwrap_or(0)) }
    });
    installed.map_err(io::Error::from_raw_os_error)
}

/// A thread may have inherited a mask.
fn unblock_signal() {
    // SAFETY: the set is initialised by sigemptyset before it is used; masks are the calling thread's own.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, signal_number());
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut());
    }
}
