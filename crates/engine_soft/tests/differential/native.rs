//! The reference: a child process that runs each case on this processor.
//!
//! The child lives in its signal handler. Each case is entered by returning from the handler to a context made
//! of the case's registers, and ends in a fault (at the latest in the breakpoints the code page is full of),
//! which enters the handler again: one signal and one `sigreturn` a case. A timer that fires twice in the same
//! case ends it.
//!
//! Between taking over the context and giving it back the handler runs with whatever FS base the case left,
//! so nothing in it touches thread-local storage.
// UNSAFETY: forks, maps memory at fixed addresses, and runs arbitrary code in the child.

use std::arch::{asm, naked_asm};
use std::io;
use std::mem::size_of;
use std::ptr::{self, addr_of_mut};

use crate::case::{CODE_BYTES, Input, Output, Registers, TIMEOUT};
use crate::layout::{CODE32, CODE64, DATA_PAGES, DATA32, DATA64, LDT, PAGE};

/// Cases handed over at once.
pub const BATCH: usize = 128;
/// CPU time after which a case is interrupted for the first time.
const TICK_US: i64 = 10_000;

const ARCH_SET_GS: usize = 0x1001;
const ARCH_SET_FS: usize = 0x1002;
const ARCH_GET_FS: usize = 0x1003;
const ARCH_GET_GS: usize = 0x1004;
const TRAP_PAGE_FAULT: i64 = 14;

#[repr(C)]
struct Shared {
    count: usize,
    /// The case being run, plus one.
    current: usize,
    inputs: [Input; BATCH],
    outputs: [Output; BATCH],
}

/// The worker, seen from its parent.
pub struct Native {
    shared: *mut Shared,
    pid: libc::pid_t,
    to_child: i32,
    from_child: i32,
}

// SAFETY: the mapping and the descriptors belong to no thread.
unsafe impl Send for Native {}

impl Native {
    /// Starts a worker. `pool` holds the pages cases choose from; it must live as long as the worker.
    pub fn start(pool: &'static [u8]) -> io::Result<Self> {
        // SAFETY: plain system calls; the child only runs `child_main`, which makes no use of locks or the heap.
        unsafe {
            let shared =
                map(0, size_of::<Shared>(), libc::PROT_READ | libc::PROT_WRITE, libc::MAP_ANONYMOUS, -1)?
                    .cast::<Shared>();
            let (mut down, mut up) = ([0; 2], [0; 2]);
            if libc::pipe2(down.as_mut_ptr(), libc::O_CLOEXEC) != 0
                || libc::pipe2(up.as_mut_ptr(), libc::O_CLOEXEC) != 0
            {
                return Err(io::Error::last_os_error());
            }
            let parent = libc::getpid();
            let pid = libc::fork();
            match pid {
                -1 => Err(io::Error::last_os_error()),
                0 => {
                    libc::close(down[1]);
                    libc::close(up[0]);
                    libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                    // What engines of the parent have there for translated code would be memory of the cases too.
                    libc::munmap(CODE32 as *mut libc::c_void, (2 << 30) - CODE32 as usize);
                    if libc::getppid() == parent {
                        child_main(shared, pool.as_ptr(), down[0], up[1]);
                    }
                    libc::_exit(1)
                }
                _ => {
                    libc::close(down[0]);
                    libc::close(up[1]);
                    let mut native = Self { shared, pid, to_child: down[1], from_child: up[0] };
                    native.wait()?; // for it to be ready
                    Ok(native)
                }
            }
        }
    }

    /// Runs `cases`, at most [`BATCH`] of them, and returns once all have been run.
    ///
    /// # Errors
    /// If the worker died; the text names the case.
    pub fn run(&mut self, cases: &[Input]) -> io::Result<&[Output]> {
        assert!(cases.len() <= BATCH);
        // SAFETY: the child looks at the mapping only between the two messages.
        unsafe {
            (*self.shared).count = cases.len();
            (*self.shared).current = 0;
            ptr::copy_nonoverlapping(cases.as_ptr(), addr_of_mut!((*self.shared).inputs).cast(), cases.len());
            if libc::write(self.to_child, [1u8].as_ptr().cast(), 1) != 1 {
                return Err(io::Error::last_os_error());
            }
            self.wait()?;
            Ok(std::slice::from_raw_parts(addr_of_mut!((*self.shared).outputs).cast(), cases.len()))
        }
    }

    fn wait(&mut self) -> io::Result<()> {
        let mut byte = 0u8;
        loop {
            // SAFETY: reads one byte into `byte`; `current` may be written at the same time, but is only a number.
            unsafe {
                match libc::read(self.from_child, (&raw mut byte).cast(), 1) {
                    1 if byte == 0 => return Ok(()),
                    1 => {
                        return Err(io::Error::other(format!(
                            "the native worker cannot start (step {byte})"
                        )));
                    }
                    -1 if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
                    _ => {
                        let mut status = 0;
                        libc::waitpid(self.pid, &mut status, 0);
                        let case = (*self.shared).current;
                        let text = format!(
                            "the native worker died in case {case} of its batch (status {status:#x})"
                        );
                        return Err(io::Error::other(text));
                    }
                }
            }
        }
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        // SAFETY: descriptors, child and mapping of this value. The child is ended rather than left to see the end of
        // its input: workers made at the same time hold each other's pipes.
        unsafe {
            libc::close(self.to_child);
            libc::close(self.from_child);
            libc::kill(self.pid, libc::SIGKILL);
            libc::waitpid(self.pid, ptr::null_mut(), 0);
            libc::munmap(self.shared.cast(), size_of::<Shared>());
        }
    }
}

unsafe fn map(at: u64, len: usize, protection: i32, flags: i32, fd: i32) -> io::Result<*mut u8> {
    let fixed = if at == 0 { 0 } else { libc::MAP_FIXED_NOREPLACE };
    let flags = flags | fixed | libc::MAP_SHARED | libc::MAP_POPULATE;
    // SAFETY: never replaces a mapping.
    let place = unsafe { libc::mmap(at as *mut _, len, protection, flags, fd, 0) };
    if place == libc::MAP_FAILED || (at != 0 && place as u64 != at) {
        return Err(io::Error::last_os_error());
    }
    Ok(place.cast())
}

/// What the handler needs, in the child.
struct Worker {
    shared: *mut Shared,
    pool: *const u8,
    /// Where the child writes the code page and the data pages.
    code: *mut u8,
    data: *mut u8,
    running: bool,
    /// The case that was running at the last tick.
    ticked: usize,
    host_fs: u64,
    host_gregs: [i64; 23],
    host_fx: [u8; 416],
    host_ymm: [u8; 256],
}

static mut WORKER: Worker = Worker {
    shared: ptr::null_mut(),
    pool: ptr::null(),
    code: ptr::null_mut(),
    data: ptr::null_mut(),
    running: false,
    ticked: 0,
    host_fs: 0,
    host_gregs: [0; 23],
    host_fx: [0; 416],
    host_ymm: [0; 256],
};

unsafe fn child_main(shared: *mut Shared, pool: *const u8, input: i32, output: i32) -> ! {
    // SAFETY: the child has one thread and its own copy of everything but `shared`.
    unsafe {
        let step = prepare(shared, pool);
        let mut byte = step;
        loop {
            if libc::write(output, (&raw const byte).cast(), 1) != 1 || step != 0 {
                libc::_exit(1);
            }
            if libc::read(input, (&raw mut byte).cast(), 1) != 1 {
                libc::_exit(0);
            }
            byte = 0;
            // The handler runs the whole batch and comes back here.
            asm!("int3");
        }
    }
}

/// Makes mappings, descriptors, handlers and the timer; returns the step that failed, or 0.
unsafe fn prepare(shared: *mut Shared, pool: *const u8) -> u8 {
    // SAFETY: as in `child_main`.
    unsafe {
        let len = (1 + DATA_PAGES) * PAGE;
        let fd = libc::memfd_create(c"strata-differential".as_ptr(), 0);
        if fd < 0 || libc::ftruncate(fd, len as i64) != 0 {
            return 1;
        }
        let both = libc::PROT_READ | libc::PROT_WRITE;
        let Ok(code) = map(0, len as usize, both, 0, fd) else { return 2 };
        for (code_at, data_at) in [(CODE64, DATA64), (CODE32, DATA32)] {
            let place = map(code_at, PAGE as usize, libc::PROT_READ | libc::PROT_EXEC, 0, fd);
            let flags = libc::MAP_SHARED | libc::MAP_FIXED_NOREPLACE | libc::MAP_POPULATE;
            let data =
                libc::mmap(data_at as *mut _, (DATA_PAGES * PAGE) as usize, both, flags, fd, PAGE as i64);
            let last = data_at + (DATA_PAGES - 1) * PAGE;
            if place.is_err()
                || data as u64 != data_at
                || libc::mprotect(last as *mut _, PAGE as usize, libc::PROT_READ) != 0
            {
                return 3;
            }
        }
        code.write_bytes(0xcc, PAGE as usize);
        for (index, entry) in LDT.iter().enumerate() {
            let desc = entry.user_desc(index as u32);
            if libc::syscall(libc::SYS_modify_ldt, 0x11, desc.as_ptr(), size_of::<[u32; 4]>()) != 0 {
                return 4;
            }
        }
        let worker = &mut *addr_of_mut!(WORKER);
        (worker.shared, worker.pool) = (shared, pool);
        (worker.code, worker.data) = (code, code.add(PAGE as usize));
        arch_prctl(ARCH_GET_FS, &raw mut worker.host_fs as usize);
        if !handle_signals() { 5 } else { 0 }
    }
}

unsafe fn handle_signals() -> bool {
    const STACK: usize = 256 << 10;
    // SAFETY: `entry` is a handler of the three-argument kind; the stack is a mapping of its own.
    unsafe {
        let Ok(stack) = map(0, STACK, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_ANONYMOUS, -1) else {
            return false;
        };
        let stack = libc::stack_t { ss_sp: stack.cast(), ss_flags: 0, ss_size: STACK };
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = entry as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
        libc::sigfillset(&mut action.sa_mask);
        let mut ok = libc::sigaltstack(&stack, ptr::null_mut()) == 0;
        for signal in [
            libc::SIGSEGV,
            libc::SIGBUS,
            libc::SIGILL,
            libc::SIGFPE,
            libc::SIGTRAP,
            libc::SIGSYS,
            libc::SIGVTALRM,
        ] {
            ok &= libc::sigaction(signal, &action, ptr::null_mut()) == 0;
        }
        let tick = libc::timeval { tv_sec: 0, tv_usec: TICK_US };
        let timer = libc::itimerval { it_interval: tick, it_value: tick };
        ok && libc::syscall(libc::SYS_setitimer, libc::ITIMER_VIRTUAL, &timer, 0) == 0
    }
}

/// Clears what the kernel leaves of the case's flags (AC above all), then goes on in [`on_signal`].
#[unsafe(naked)]
unsafe extern "C" fn entry() {
    naked_asm!("push 2", "popfq", "jmp {}", sym on_signal)
}

unsafe extern "C" fn on_signal(signal: i32, _: *mut libc::siginfo_t, context: *mut libc::ucontext_t) {
    // SAFETY: `context` is this signal's; all signals are blocked meanwhile, so nothing else uses WORKER.
    unsafe {
        let worker = &mut *addr_of_mut!(WORKER);
        let current = (*worker.shared).current;
        if !worker.running {
            if signal == libc::SIGTRAP {
                worker.save_host(context);
                worker.running = true;
                worker.load_next(context);
            } else if signal != libc::SIGVTALRM {
                libc::_exit(2);
            }
            return;
        }
        if signal == libc::SIGVTALRM && worker.ticked != current {
            worker.ticked = current;
            return;
        }
        worker.store(context, signal == libc::SIGVTALRM);
        if current < (*worker.shared).count {
            worker.load_next(context);
        } else {
            worker.running = false;
            worker.load_host(context);
        }
    }
}

impl Worker {
    unsafe fn save_host(&mut self, context: *mut libc::ucontext_t) {
        // SAFETY: the kernel's frame holds an XSAVE image.
        unsafe {
            self.host_gregs = (*context).uc_mcontext.gregs;
            let image = (*context).uc_mcontext.fpregs.cast::<u8>();
            ptr::copy_nonoverlapping(image, self.host_fx.as_mut_ptr(), 416);
            read_ymm(image, &mut self.host_fx, &mut self.host_ymm);
        }
    }

    unsafe fn load_host(&mut self, context: *mut libc::ucontext_t) {
        // SAFETY: as above.
        unsafe {
            (*context).uc_mcontext.gregs = self.host_gregs;
            write_fpu((*context).uc_mcontext.fpregs.cast(), &self.host_fx, &self.host_ymm);
            load_selectors([0, 0, 0, 0, 0, 0]);
            arch_prctl(ARCH_SET_GS, 0);
            arch_prctl(ARCH_SET_FS, self.host_fs as usize);
        }
    }

    unsafe fn load_next(&mut self, context: *mut libc::ucontext_t) {
        const STRICT_RESTORE_SS: u64 = 4;
        // SAFETY: the parent wrote `count` cases and `current` is below that.
        unsafe {
            let index = (*self.shared).current;
            (*self.shared).current = index + 1;
            let input = &*addr_of_mut!((*self.shared).inputs[index]);
            for (i, page) in input.pages.iter().enumerate() {
                let from = self.pool.add(usize::from(*page) * PAGE as usize);
                ptr::copy_nonoverlapping(from, self.data.add(i * PAGE as usize), PAGE as usize);
            }
            let fits = input.code_len.min(PAGE as usize - input.code_offset);
            ptr::copy_nonoverlapping(input.code.as_ptr(), self.code.add(input.code_offset), fits);
            let registers = &input.registers;
            let gregs = &mut (*context).uc_mcontext.gregs;
            for (number, place) in GREGS.into_iter().enumerate() {
                gregs[place as usize] = registers.gpr[number] as i64;
            }
            gregs[libc::REG_RIP as usize] = registers.rip as i64;
            gregs[libc::REG_EFL as usize] = registers.rflags as i64;
            let [_, cs, ss, ..] = registers.selectors;
            gregs[libc::REG_CSGSFS as usize] = i64::from(cs) | i64::from(ss) << 48;
            (*context).uc_flags |= STRICT_RESTORE_SS;
            write_fpu((*context).uc_mcontext.fpregs.cast(), &registers.fx, &registers.ymm_high);
            load_selectors(registers.selectors);
            // Null selectors: 64-bit code, whose bases are set directly.
            if registers.selectors[4] == 0 {
                arch_prctl(ARCH_SET_FS, registers.fs_base as usize);
            }
            if registers.selectors[5] == 0 {
                arch_prctl(ARCH_SET_GS, registers.gs_base as usize);
            }
        }
    }

    unsafe fn store(&mut self, context: *mut libc::ucontext_t, timeout: bool) {
        // SAFETY: `current` is the number of the case that ran, plus one.
        unsafe {
            let selectors = read_selectors();
            let index = (*self.shared).current - 1;
            let output = &mut *addr_of_mut!((*self.shared).outputs[index]);
            let registers = &mut output.registers;
            arch_prctl(ARCH_GET_FS, &raw mut registers.fs_base as usize);
            arch_prctl(ARCH_GET_GS, &raw mut registers.gs_base as usize);
            let gregs = &(*context).uc_mcontext.gregs;
            for (number, place) in GREGS.into_iter().enumerate() {
                registers.gpr[number] = gregs[place as usize] as u64;
            }
            registers.rip = gregs[libc::REG_RIP as usize] as u64;
            registers.rflags = gregs[libc::REG_EFL as usize] as u64;
            let code = gregs[libc::REG_CSGSFS as usize] as u64;
            let [es, _, _, ds, fs, gs] = selectors;
            registers.selectors = [es, code as u16, (code >> 48) as u16, ds, fs, gs];
            let image = (*context).uc_mcontext.fpregs.cast::<u8>();
            ptr::copy_nonoverlapping(image, registers.fx.as_mut_ptr(), 416);
            read_ymm(image, &mut registers.fx, &mut registers.ymm_high);
            let trap = gregs[libc::REG_TRAPNO as usize];
            output.fault.vector = if timeout { TIMEOUT } else { trap as u32 };
            output.fault.code = gregs[libc::REG_ERR as usize] as u32;
            output.fault.address =
                if trap == TRAP_PAGE_FAULT { gregs[libc::REG_CR2 as usize] as u64 } else { 0 };
            ptr::copy_nonoverlapping(self.data, output.memory.as_mut_ptr(), 2 * PAGE as usize);
            let input = &*addr_of_mut!((*self.shared).inputs[index]);
            let end = (input.code_offset + CODE_BYTES).min(PAGE as usize);
            self.code.add(input.code_offset).write_bytes(0xcc, end - input.code_offset);
        }
    }
}

/// Where the kernel's frame has the registers, in encoding order.
const GREGS: [i32; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

/// Places in a signal frame's XSAVE image.
const FRAME_FEATURES: usize = 464 + 8;
const XSTATE_BV: usize = 512;
const YMM_HIGH: usize = 576;

unsafe fn write_fpu(image: *mut u8, fx: &[u8; 416], ymm: &[u8; 256]) {
    // SAFETY: the kernel made the image and says which components it has.
    unsafe {
        ptr::copy_nonoverlapping(fx.as_ptr(), image, 416);
        let present = image.add(FRAME_FEATURES).cast::<u64>().read_unaligned() & 7;
        let state = image.add(XSTATE_BV).cast::<u64>();
        state.write_unaligned(state.read_unaligned() | present);
        if present & 4 != 0 {
            ptr::copy_nonoverlapping(ymm.as_ptr(), image.add(YMM_HIGH), 256);
        }
    }
}

/// Reads the upper halves, and makes components the processor found in their initial state explicit.
unsafe fn read_ymm(image: *const u8, fx: &mut [u8; 416], ymm: &mut [u8; 256]) {
    // SAFETY: as above.
    unsafe {
        let present = image.add(FRAME_FEATURES).cast::<u64>().read_unaligned();
        let state = image.add(XSTATE_BV).cast::<u64>().read_unaligned() & present;
        if state & 1 == 0 {
            fx[..24].fill(0);
            fx[..2].copy_from_slice(&[0x7f, 0x03]);
            fx[crate::case::fx::ST..crate::case::fx::XMM].fill(0);
        }
        if state & 2 == 0 {
            fx[crate::case::fx::XMM..].fill(0);
        }
        if state & 4 != 0 {
            ptr::copy_nonoverlapping(image.add(YMM_HIGH), ymm.as_mut_ptr(), 256);
        } else {
            ymm.fill(0);
        }
    }
}

unsafe fn arch_prctl(code: usize, address: usize) {
    // SAFETY: a system call without the C library, whose errno is thread-local.
    unsafe {
        asm!("syscall", inout("rax") libc::SYS_arch_prctl as usize => _, in("rdi") code, in("rsi") address,
            out("rcx") _, out("r11") _);
    }
}

unsafe fn load_selectors(selectors: [u16; 6]) {
    let [es, _, _, ds, fs, gs] = selectors;
    // SAFETY: the selectors name data segments every process or `prepare` has; 64-bit code does not use them,
    // and nothing below uses thread-local storage.
    unsafe {
        asm!("mov es, {0:x}", "mov ds, {1:x}", "mov fs, {2:x}", "mov gs, {3:x}",
            in(reg) es, in(reg) ds, in(reg) fs, in(reg) gs);
    }
}

fn read_selectors() -> [u16; 6] {
    let (es, ds, fs, gs): (u16, u16, u16, u16);
    // SAFETY: reads four registers.
    unsafe {
        asm!("mov {0:x}, es", "mov {1:x}, ds", "mov {2:x}, fs", "mov {3:x}, gs",
            out(reg) es, out(reg) ds, out(reg) fs, out(reg) gs);
    }
    [es, 0, 0, ds, fs, gs]
}

/// An output to be overwritten.
pub fn blank() -> Output {
    let registers = Registers {
        gpr: [0; 16],
        rip: 0,
        rflags: 0,
        selectors: [0; 6],
        fs_base: 0,
        gs_base: 0,
        fx: [0; 416],
        ymm_high: [0; 256],
    };
    let fault = crate::case::Fault { vector: 0, code: 0, address: 0 };
    Output { registers, fault, memory: [0; 2 * PAGE as usize] }
}
