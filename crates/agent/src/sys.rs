//! The C library where `rustix` has no safe call for it.
// UNSAFETY: fork, execve, the command line, the signal mask, signalfd, ioctls of interfaces and routes, and the allocator have no
// safe wrapper in the crates we use; each is wrapped here once, with a safe signature.

use alloc::ffi::CString;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::alloc::{GlobalAlloc, Layout};
use core::ffi::{CStr, c_char, c_int};
use core::{mem, ptr};

use rustix::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use rustix::io::Errno;
use rustix::process::Pid;

fn last_errno() -> Errno {
    // SAFETY: the location is this thread's own and always valid.
    Errno::from_raw_os_error(unsafe { *libc::__errno_location() })
}

fn check(result: c_int) -> Result<c_int, Errno> {
    if result < 0 { Err(last_errno()) } else { Ok(result) }
}

/// The C library's words for an error: "No such file or directory".
#[must_use]
pub fn errno_text(errno: Errno) -> String {
    let mut text = [0u8; 128];
    // SAFETY: `text` is valid for its length, which is given.
    unsafe { libc::strerror_r(errno.raw_os_error(), text.as_mut_ptr().cast(), text.len()) };
    // strerror_r ends the text within the buffer; `unwrap_or_default` is for one that doesn't.
    CStr::from_bytes_until_nul(&text).unwrap_or_default().to_string_lossy().to_string()
}

/// The signals the agent takes from a descriptor instead of being interrupted, plus SIGPIPE, which
/// it has no use for.
fn own_signals() -> libc::sigset_t {
    // SAFETY: a zeroed set is valid memory for sigemptyset, which initialises it; the numbers are
    // the C library's own.
    unsafe {
        let mut set = mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        libc::sigaddset(&raw mut set, libc::SIGPIPE);
        set
    }
}

/// The words of the command line.
///
/// # Safety
/// `words` points to `count` pointers to C strings, which stay as they are while the program runs: what the C library gives
/// `main`.
#[must_use]
pub unsafe fn words(count: c_int, words: *const *const c_char) -> Vec<&'static [u8]> {
    let count = usize::try_from(count).unwrap_or_default();
    // SAFETY: each of the first `count` pointers is a C string's, by this function's contract.
    (0..count).map(|at| unsafe { CStr::from_ptr(*words.add(at)) }.to_bytes()).collect()
}

/// Blocks all signals that can be and that are no fault of this process's own, and returns a descriptor to read them from.
///
/// # Errors
/// The kernel's, of `signalfd(2)`.
pub fn all_signals() -> Result<OwnedFd, Errno> {
    let faults =
        [libc::SIGFPE, libc::SIGILL, libc::SIGSEGV, libc::SIGBUS, libc::SIGABRT, libc::SIGTRAP, libc::SIGSYS];
    // SAFETY: a zeroed set is valid memory for sigfillset, which initialises it; the numbers are the C library's own; the old
    // mask isn't asked for.
    unsafe {
        let mut set = mem::zeroed();
        libc::sigfillset(&raw mut set);
        for fault in faults {
            libc::sigdelset(&raw mut set, fault);
        }
        check(libc::sigprocmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()))?;
        let fd = check(libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC))?;
        // The kernel just made this descriptor for us; nobody else has it.
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Blocks SIGCHLD and SIGPIPE and returns a descriptor, not blocking, that becomes readable when a
/// child changes state.
///
/// # Errors
/// The kernel's, of `signalfd(2)`.
pub fn child_signals() -> Result<OwnedFd, Errno> {
    let set = own_signals();
    // SAFETY: `set` is initialised; the old mask isn't asked for.
    check(unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()) })?;
    // SAFETY: `set` is initialised.
    let fd = check(unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) })?;
    // SAFETY: the kernel just made this descriptor for us; nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Undoes [`child_signals`] in a child that is about to become another program, and what whoever
/// started this one may have ignored: a shell does so for what it runs in the background.
pub fn default_signals() {
    // SAFETY: a zeroed set is valid memory for sigemptyset, which initialises it; SIG_DFL is a
    // disposition any signal may be given.
    unsafe {
        let mut set = mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, ptr::null_mut());
        for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGPIPE] {
            libc::signal(signal, libc::SIG_DFL);
        }
    }
}

/// Sends any signal Linux has, real-time ones included. A negative `pid` is a process group.
///
/// # Errors
/// The kernel's, of `kill(2)`.
pub fn kill(pid: i32, signal: u8) -> Result<(), Errno> {
    // SAFETY: kill touches no memory of ours.
    check(unsafe { libc::kill(pid, c_int::from(signal)) }).map(drop)
}

/// Starts a process that does `child`, then exits at once with the code it returned.
///
/// `child` runs in a copy of this process. Where this process has threads (tests), the copy may
/// hold locks for ever: `child` must not allocate, and what it needs must be made before.
///
/// # Errors
/// The kernel's, of `fork(2)`.
pub fn fork(child: impl FnOnce() -> i32) -> Result<Pid, Errno> {
    // SAFETY: the child runs only `child`, whose contract is above, and never returns from here.
    match check(unsafe { libc::fork() })? {
        0 => exit_now(child()),
        pid => Ok(Pid::from_raw(pid).expect("fork gives the parent a positive number")),
    }
}

/// Closes what a forked copy of a test has open: it would keep the other tests' connections open too.
#[cfg(test)]
pub fn close_inherited() {
    // SAFETY: the caller is a forked copy that uses nothing it inherited and never returns.
    let _ = unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
}

/// Standard input, output and error, of a process that was started with them.
#[must_use]
pub fn standard_streams() -> [BorrowedFd<'static>; 3] {
    // SAFETY: whoever starts a process gives it all three, and nothing in this program closes them.
    [0, 1, 2].map(|number| unsafe { BorrowedFd::borrow_raw(number) })
}

/// Says something where a user may see it, if there is one.
pub fn complain(text: &str) {
    // SAFETY: descriptor 2 is borrowed for one write; if it is closed the write fails.
    let stderr = unsafe { rustix::fd::BorrowedFd::borrow_raw(2) };
    let _ = crate::files::write_all(stderr, text.as_bytes());
}

/// Ends this process at once, running nothing on the way out.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit doesn't return and touches no memory.
    unsafe { libc::_exit(code) }
}

/// Texts as `execve` takes them.
#[derive(Debug)]
pub struct ExecStrings {
    texts: Vec<CString>,
    pointers: Vec<*const c_char>,
}

impl ExecStrings {
    /// Takes the texts; the pointers stay valid as long as `self` because `texts` never changes.
    #[must_use]
    pub fn new(texts: Vec<CString>) -> Self {
        let pointers = texts.iter().map(|t| t.as_ptr()).chain([ptr::null()]).collect();
        Self { texts, pointers }
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.texts.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.texts.is_empty()
    }
}

/// Becomes another program; returns only if that fails. Allocates nothing.
#[must_use]
pub fn exec(path: &CStr, argv: &ExecStrings, env: &ExecStrings) -> Errno {
    // SAFETY: both lists hold pointers to C strings that `argv` and `env` own, and end in null.
    unsafe { libc::execve(path.as_ptr(), argv.pointers.as_ptr(), env.pointers.as_ptr()) };
    last_errno()
}

/// Becomes another program with this one's own environment; returns only if that fails. Allocates nothing.
#[must_use]
pub fn exec_as_it_is(path: &CStr, argv: &ExecStrings) -> Errno {
    // SAFETY: the list holds pointers to C strings that `argv` owns, and ends in null.
    unsafe { libc::execv(path.as_ptr(), argv.pointers.as_ptr()) };
    last_errno()
}

/// A request about the interface `name`, which must be shorter than the kernel's 16 bytes.
fn interface_request(name: &str) -> Result<libc::ifreq, Errno> {
    // SAFETY: all-zero bytes are a valid `ifreq`, a plain C struct.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    if name.is_empty() || name.len() >= request.ifr_name.len() {
        return Err(Errno::NODEV);
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as c_char;
    }
    Ok(request)
}

/// An IPv4 address as the kernel takes it.
fn socket_address(ip: [u8; 4]) -> libc::sockaddr {
    // SAFETY: all-zero bytes are a valid `sockaddr`, a plain C struct.
    let mut address: libc::sockaddr = unsafe { mem::zeroed() };
    address.sa_family = libc::AF_INET as libc::sa_family_t;
    // `sockaddr_in`: two bytes of port, then the address.
    for (to, from) in address.sa_data[2..].iter_mut().zip(ip) {
        *to = from as c_char;
    }
    address
}

/// Gives an interface its IPv4 address and mask.
///
/// # Errors
/// The kernel's, of the ioctls.
pub fn set_address(socket: impl AsFd, name: &str, ip: [u8; 4], mask: [u8; 4]) -> Result<(), Errno> {
    let fd = socket.as_fd().as_raw_fd();
    for (number, value) in [(libc::SIOCSIFADDR, ip), (libc::SIOCSIFNETMASK, mask)] {
        let mut request = interface_request(name)?;
        request.ifr_ifru.ifru_addr = socket_address(value);
        // SAFETY: the request outlives the call and is what both requests read.
        check(unsafe { libc::ioctl(fd, number as _, &raw const request) })?;
    }
    Ok(())
}

/// Gives an Ethernet card another address.
///
/// # Errors
/// The kernel's, of the ioctl.
pub fn set_hardware_address(socket: impl AsFd, name: &str, address: [u8; 6]) -> Result<(), Errno> {
    let mut request = interface_request(name)?;
    // SAFETY: all-zero bytes are a valid `sockaddr`, a plain C struct.
    let mut hardware: libc::sockaddr = unsafe { mem::zeroed() };
    hardware.sa_family = libc::ARPHRD_ETHER;
    for (to, from) in hardware.sa_data.iter_mut().zip(address) {
        *to = from as c_char;
    }
    request.ifr_ifru.ifru_hwaddr = hardware;
    // SAFETY: the request outlives the call and is what SIOCSIFHWADDR reads.
    check(unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::SIOCSIFHWADDR as _, &raw const request) })
        .map(drop)
}

/// Says how long a packet of an interface may be, in bytes.
///
/// # Errors
/// The kernel's, of the ioctl.
pub fn set_mtu(socket: impl AsFd, name: &str, mtu: u32) -> Result<(), Errno> {
    let mut request = interface_request(name)?;
    request.ifr_ifru.ifru_mtu = c_int::try_from(mtu).map_err(|_| Errno::INVAL)?;
    // SAFETY: the request outlives the call and is what SIOCSIFMTU reads.
    check(unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::SIOCSIFMTU as _, &raw const request) })
        .map(drop)
}

/// Gives an interface an IPv6 address more. The socket is one of IPv6.
///
/// # Errors
/// The kernel's, of the ioctl.
pub fn add_address6(socket: impl AsFd, name: &str, address: [u8; 16], prefix: u8) -> Result<(), Errno> {
    let request = libc::in6_ifreq {
        ifr6_addr: libc::in6_addr { s6_addr: address },
        ifr6_prefixlen: u32::from(prefix),
        ifr6_ifindex: index_of(&socket, name)?,
    };
    // SAFETY: the request outlives the call and is what SIOCSIFADDR reads of a socket of IPv6.
    match check(unsafe {
        libc::ioctl(socket.as_fd().as_raw_fd(), libc::SIOCSIFADDR as _, &raw const request)
    }) {
        Err(Errno::EXIST) => Ok(()),
        other => other.map(drop),
    }
}

/// `struct in6_rtmsg` of `linux/ipv6_route.h`, whose fields the C library's crate keeps to itself.
#[derive(Default)]
#[repr(C)]
struct Route6 {
    destination: [u8; 16],
    source: [u8; 16],
    gateway: [u8; 16],
    kind: u32,
    destination_bits: u16,
    source_bits: u16,
    metric: u32,
    info: libc::c_ulong,
    flags: u32,
    interface: c_int,
}

/// Sends what is for other IPv6 networks through `gateway`, a neighbour at the interface. The socket is one of IPv6.
///
/// # Errors
/// The kernel's, of the ioctl.
pub fn add_default_route6(socket: impl AsFd, name: &str, gateway: [u8; 16]) -> Result<(), Errno> {
    let route = Route6 {
        gateway,
        metric: 1024,
        flags: u32::from(libc::RTF_UP | libc::RTF_GATEWAY),
        interface: index_of(&socket, name)?,
        ..Route6::default()
    };
    // SAFETY: the route outlives the call and is what SIOCADDRT reads of a socket of IPv6.
    check(unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::SIOCADDRT as _, &raw const route) })
        .map(drop)
}

fn index_of(socket: impl AsFd, name: &str) -> Result<c_int, Errno> {
    let mut request = interface_request(name)?;
    // SAFETY: the request outlives the call and is what SIOCGIFINDEX fills in.
    check(unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::SIOCGIFINDEX as _, &raw mut request) })?;
    // SAFETY: SIOCGIFINDEX filled in this member of the union.
    Ok(unsafe { request.ifr_ifru.ifru_ifindex })
}

/// Sends what is for other networks through `gateway`.
///
/// # Errors
/// The kernel's, of the ioctl.
pub fn add_default_route(socket: impl AsFd, gateway: [u8; 4]) -> Result<(), Errno> {
    // SAFETY: all-zero bytes are a valid `rtentry`, a plain C struct whose pointers may be null.
    let mut route: libc::rtentry = unsafe { mem::zeroed() };
    route.rt_dst = socket_address([0; 4]);
    route.rt_genmask = socket_address([0; 4]);
    route.rt_gateway = socket_address(gateway);
    route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
    // SAFETY: the route outlives the call and is what SIOCADDRT reads.
    check(unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::SIOCADDRT as _, &raw const route) })
        .map(drop)
}

/// Brings an interface up; the kernel gives `lo` its addresses then.
///
/// # Errors
/// The kernel's, of the ioctls.
pub fn interface_up(socket: impl AsFd, name: &str) -> Result<(), Errno> {
    let fd = socket.as_fd().as_raw_fd();
    let mut request = interface_request(name)?;
    // SAFETY: the request outlives the call and is what SIOCGIFFLAGS fills in.
    check(unsafe { libc::ioctl(fd, libc::SIOCGIFFLAGS, &raw mut request) })?;
    // SAFETY: SIOCGIFFLAGS filled in this member of the union.
    unsafe { request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short };
    // SAFETY: the request outlives the call and is what SIOCSIFFLAGS reads.
    check(unsafe { libc::ioctl(fd, libc::SIOCSIFFLAGS, &raw const request) }).map(drop)
}

/// `struct rand_pool_info` of `linux/random.h` with its bytes.
#[repr(C)]
struct PoolInfo {
    entropy_bits: c_int,
    bytes: c_int,
    words: [u64; 8],
}

/// Adds 512 random bits to the kernel's pool, counted in full, and renews what random numbers are made from.
///
/// # Errors
/// The kernel's, of the ioctls.
pub fn add_entropy(pool: impl AsFd, words: &[u64; 8]) -> Result<(), Errno> {
    /// `_IOW('R', 3, int[2])` and `_IO('R', 7)`.
    const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
    const RNDRESEEDCRNG: libc::c_ulong = 0x5207;
    let fd = pool.as_fd().as_raw_fd();
    let info = PoolInfo { entropy_bits: 512, bytes: mem::size_of_val(words) as c_int, words: *words };
    // SAFETY: the request reads the structure, whose `bytes` says how long what follows is; it outlives the call.
    check(unsafe { libc::ioctl(fd, RNDADDENTROPY as _, &raw const info) })?;
    // SAFETY: the request takes no argument.
    match check(unsafe { libc::ioctl(fd, RNDRESEEDCRNG as _) }) {
        // Before Linux 4.14; the pool is renewed by what was added, if later.
        Err(Errno::INVAL | Errno::NOTTY) => Ok(()),
        other => other.map(drop),
    }
}

/// The C library's allocator.
#[derive(Debug)]
pub struct Malloc;

// SAFETY: malloc and aligned_alloc give blocks of at least the size and alignment asked for, valid
// until free; realloc keeps the contents. Zero sizes don't occur by GlobalAlloc's contract.
unsafe impl GlobalAlloc for Malloc {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the size isn't zero; alignments above malloc's own go to aligned_alloc, which
        // takes any power of two.
        unsafe {
            if layout.align() <= mem::align_of::<libc::max_align_t>() {
                libc::malloc(layout.size()).cast()
            } else {
                libc::aligned_alloc(layout.align(), layout.size()).cast()
            }
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, _: Layout) {
        // SAFETY: `block` came from `alloc` above, by GlobalAlloc's contract.
        unsafe { libc::free(block.cast()) }
    }
}
