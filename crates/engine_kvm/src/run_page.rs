//! The page that a vCPU shares with the kernel (`struct kvm_run`): requests to it, and why KVM_RUN returned.
// UNSAFETY: maps the page and reads and writes it through raw pointers, as the kernel does at the same time; no
// reference into it exists.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::kvm_run;

/// A vCPU's page, mapped as long as this lives.
pub struct RunPage {
    page: NonNull<kvm_run>,
    bytes: usize,
}

// SAFETY: the mapping belongs to nobody's thread. What other threads than the vCPU's touch is `immediate_exit`, an atomic.
unsafe impl Send for RunPage {}
// SAFETY: as above.
unsafe impl Sync for RunPage {}

/// Reads a field of the page.
macro_rules! read {
    ($page:expr, $($field:tt)+) => {
        // SAFETY: the field is inside the mapping, which is as large as `kvm_run` at least (checked in `map`) and lives
        // as long as `self`; it is plain numbers, so any bytes the kernel left there are a value.
        unsafe { std::ptr::addr_of!((*$page.as_ptr()).$($field)+).read_volatile() }
    };
}

impl RunPage {
    /// Maps the page of a vCPU.
    pub fn map(vcpu: &impl AsRawFd, bytes: usize) -> io::Result<Self> {
        if bytes < size_of::<kvm_run>() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the vcpu's page is too small"));
        }
        let fd: RawFd = vcpu.as_raw_fd();
        // SAFETY: a new shared mapping at an address the kernel chooses; the result is checked.
        let page = unsafe {
            let access = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(std::ptr::null_mut(), bytes, access, libc::MAP_SHARED, fd, 0)
        };
        match NonNull::new(page.cast::<kvm_run>()) {
            Some(page) if page.as_ptr().cast::<libc::c_void>() != libc::MAP_FAILED => {
                Ok(Self { page, bytes })
            }
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// If set, KVM_RUN completes what it returned for and comes back at once. Any thread.
    pub fn immediate_exit(&self) -> &AtomicU8 {
        // SAFETY: inside the mapping, aligned as any byte is, and never accessed but by this atomic and the kernel.
        unsafe { AtomicU8::from_ptr(std::ptr::addr_of_mut!((*self.page.as_ptr()).immediate_exit)) }
    }

    /// Whether KVM_RUN is to return once the guest can take an interrupt of the 8259A.
    pub fn request_interrupt_window(&self, wanted: bool) {
        // SAFETY: inside the mapping; only the vCPU's thread and the kernel, which runs it, come here.
        unsafe {
            std::ptr::addr_of_mut!((*self.page.as_ptr()).request_interrupt_window)
                .write_volatile(u8::from(wanted));
        }
    }

    /// Whether the guest could take one when KVM_RUN returned.
    pub fn is_ready_for_interrupt(&self) -> bool {
        read!(self.page, ready_for_interrupt_injection) != 0
    }

    /// Why KVM_RUN returned.
    pub fn exit(&self) -> PageExit {
        let reason = read!(self.page, exit_reason);
        match reason {
            kvm_bindings::KVM_EXIT_IO => {
                let io = read!(self.page, __bindgen_anon_1.io);
                PageExit::Io {
                    write: u32::from(io.direction) == kvm_bindings::KVM_EXIT_IO_OUT,
                    size: usize::from(io.size),
                    port: io.port,
                    count: io.count as usize,
                    offset: io.data_offset as usize,
                }
            }
            kvm_bindings::KVM_EXIT_MMIO => {
                let mmio = read!(self.page, __bindgen_anon_1.mmio);
                let len = (mmio.len as usize).min(8);
                PageExit::Mmio { write: mmio.is_write != 0, gpa: mmio.phys_addr, data: mmio.data, len }
            }
            kvm_bindings::KVM_EXIT_X86_RDMSR | kvm_bindings::KVM_EXIT_X86_WRMSR => {
                let msr = read!(self.page, __bindgen_anon_1.msr);
                let write = reason == kvm_bindings::KVM_EXIT_X86_WRMSR;
                PageExit::Msr { write, index: msr.index, value: msr.data }
            }
            kvm_bindings::KVM_EXIT_IOAPIC_EOI => {
                PageExit::Eoi { vector: read!(self.page, __bindgen_anon_1.eoi).vector }
            }
            kvm_bindings::KVM_EXIT_IRQ_WINDOW_OPEN | kvm_bindings::KVM_EXIT_INTR => PageExit::Nothing,
            kvm_bindings::KVM_EXIT_HLT => PageExit::Halt,
            kvm_bindings::KVM_EXIT_SHUTDOWN => PageExit::Shutdown,
            kvm_bindings::KVM_EXIT_FAIL_ENTRY => PageExit::FailEntry {
                reason: read!(self.page, __bindgen_anon_1.fail_entry.hardware_entry_failure_reason),
            },
            kvm_bindings::KVM_EXIT_INTERNAL_ERROR => self.internal_error(),
            kvm_bindings::KVM_EXIT_MEMORY_FAULT => {
                let fault = read!(self.page, __bindgen_anon_1.memory_fault);
                PageExit::MemoryFault { gpa: fault.gpa }
            }
            reason => PageExit::Other { reason },
        }
    }

    fn internal_error(&self) -> PageExit {
        let failure = read!(self.page, __bindgen_anon_1.emulation_failure);
        let mut bytes = Vec::new();
        const WITH_BYTES: u64 = kvm_bindings::KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES as u64;
        if failure.suberror == kvm_bindings::KVM_INTERNAL_ERROR_EMULATION
            && failure.ndata >= 1
            && failure.flags & WITH_BYTES != 0
        {
            let code = read!(self.page, __bindgen_anon_1.emulation_failure.__bindgen_anon_1.__bindgen_anon_1);
            let len = usize::from(code.insn_size).min(code.insn_bytes.len());
            bytes.extend_from_slice(&code.insn_bytes[..len]);
        }
        PageExit::InternalError { suberror: failure.suberror, bytes }
    }

    /// Answers [`PageExit::Mmio`].
    pub fn set_mmio_data(&self, data: [u8; 8]) {
        // SAFETY: inside the mapping; the kernel looks at it in the next KVM_RUN of this thread.
        unsafe {
            std::ptr::addr_of_mut!((*self.page.as_ptr()).__bindgen_anon_1.mmio.data).write_volatile(data)
        };
    }

    /// Answers [`PageExit::Msr`]: the value read, or that the guest is to get #GP.
    pub fn set_msr_answer(&self, value: Option<u64>) {
        // SAFETY: as above.
        unsafe {
            let msr = std::ptr::addr_of_mut!((*self.page.as_ptr()).__bindgen_anon_1.msr);
            std::ptr::addr_of_mut!((*msr).error).write_volatile(u8::from(value.is_none()));
            if let Some(value) = value {
                std::ptr::addr_of_mut!((*msr).data).write_volatile(value);
            }
        }
    }

    /// Copies the data of [`PageExit::Io`] from `offset` of the page. What lies outside reads as zeros.
    pub fn read_io(&self, offset: usize, data: &mut [u8]) {
        data.fill(0);
        if self.has(offset, data.len()) {
            // SAFETY: inside the mapping, as just checked; the kernel writes it only in KVM_RUN of this thread.
            unsafe {
                let from = self.page.as_ptr().cast::<u8>().add(offset);
                std::ptr::copy_nonoverlapping(from, data.as_mut_ptr(), data.len());
            }
        }
    }

    /// Copies `data` to `offset` of the page, for IN.
    pub fn write_io(&self, offset: usize, data: &[u8]) {
        if self.has(offset, data.len()) {
            // SAFETY: as above; what lies there is the kernel's buffer for this access.
            unsafe {
                let to = self.page.as_ptr().cast::<u8>().add(offset);
                std::ptr::copy_nonoverlapping(data.as_ptr(), to, data.len());
            }
        }
    }

    /// Whether `len` bytes at `offset` are behind `kvm_run` and inside the mapping.
    fn has(&self, offset: usize, len: usize) -> bool {
        offset >= size_of::<kvm_run>() && len <= self.bytes && offset <= self.bytes - len
    }
}

impl Drop for RunPage {
    fn drop(&mut self) {
        // SAFETY: our own mapping, whose last user this is.
        let result = unsafe { libc::munmap(self.page.as_ptr().cast(), self.bytes) };
        debug_assert_eq!(result, 0, "munmap of a whole mapping cannot fail");
    }
}

/// Asks for [`RunPage::immediate_exit`]. Any thread.
pub fn request_exit(page: &RunPage) {
    page.immediate_exit().store(1, Ordering::SeqCst);
}

/// Why KVM_RUN returned, copied out of the page.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum PageExit {
    Io {
        write: bool,
        size: usize,
        port: u16,
        count: usize,
        offset: usize,
    },
    Mmio {
        write: bool,
        gpa: u64,
        data: [u8; 8],
        len: usize,
    },
    Msr {
        write: bool,
        index: u32,
        value: u64,
    },
    /// A level-triggered interrupt ended.
    Eoi {
        vector: u8,
    },
    /// A signal, or an interrupt of the 8259A can be taken.
    Nothing,
    /// HLT, in a machine without local APIC.
    Halt,
    Shutdown,
    FailEntry {
        reason: u64,
    },
    /// KVM cannot go on; `bytes` are those at the instruction, if it said.
    InternalError {
        suberror: u32,
        bytes: Vec<u8>,
    },
    MemoryFault {
        gpa: u64,
    },
    Other {
        reason: u32,
    },
}
