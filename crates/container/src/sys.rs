//! System calls without a safe wrapper in the crates we use, each wrapped here once.
// UNSAFETY: clone3, unshare, execve, mount_setattr, seccomp, bpf, signal masks, terminals and an interface ioctl have
// no safe wrapper in rustix; each gets a safe signature here.

use std::ffi::{CString, c_int, c_long};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Flags of `clone3` and `unshare`, as wide as `clone3` takes them.
pub const NEWTIME: u64 = 0x80;

/// Beyond the 32 bits the C library's name has.
const INTO_CGROUP: u64 = 0x2_0000_0000;

fn check(result: c_long) -> io::Result<c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Whether this process has no other threads, whose locks a copy would inherit: their folder has a link for each, beside the two of
/// every folder.
pub fn is_alone() -> bool {
    rustix::fs::stat("/proc/self/task").is_ok_and(|tasks| tasks.st_nlink == 3)
}

/// A process that was just made.
#[derive(Debug)]
pub struct Child {
    /// Its id, as this process sees it.
    pub pid: i32,
    /// Its descriptor.
    pub pidfd: OwnedFd,
}

/// Where a new process is put in the v2 hierarchy.
pub type IntoCgroup<'a> = Option<BorrowedFd<'a>>;

/// Starts a copy of this process that does `child` and ends with the code it returns.
///
/// With more than one thread the copy could hold the allocator's lock for ever: [`crate::launch`] goes through
/// [`fork`], which knows about that, if there are others.
pub fn clone3(flags: u64, cgroup: IntoCgroup<'_>, child: impl FnOnce() -> i32) -> io::Result<Child> {
    let mut pidfd: c_int = -1;
    // SAFETY: all zeroes is a valid value of this plain struct: no stack, no thread area, no flags.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags | libc::CLONE_PIDFD as u64;
    args.pidfd = (&raw mut pidfd) as u64;
    // A child made for the parent of this process inherits how that one is told.
    args.exit_signal = if flags & libc::CLONE_PARENT as u64 == 0 { libc::SIGCHLD as u64 } else { 0 };
    if let Some(cgroup) = cgroup {
        args.flags |= INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM the child has a copy of this memory and of this stack, as after fork(2); `args` and
    // `pidfd` live through the call; the child never returns from here.
    match check(unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) })? {
        0 => leave(child),
        // SAFETY: the kernel wrote a descriptor that nobody else has.
        pid => Ok(Child { pid: pid as i32, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } }),
    }
}

/// Like [`clone3`] without any flag, safe beside other threads as far as the C library can make it.
pub fn fork(child: impl FnOnce() -> i32) -> io::Result<i32> {
    // SAFETY: the child runs only `child` and never returns from here; glibc's fork leaves the allocator usable.
    match check(c_long::from(unsafe { libc::fork() }))? {
        0 => leave(child),
        pid => Ok(pid as i32),
    }
}

/// A panic must not unwind into frames that belong to the parent: their destructors would undo its work.
fn leave(child: impl FnOnce() -> i32) -> ! {
    let code = catch_unwind(AssertUnwindSafe(child)).unwrap_or(125);
    // SAFETY: _exit touches no memory and does not return.
    unsafe { libc::_exit(code) }
}

/// Leaves namespaces for new ones.
pub fn unshare(flags: u64) -> io::Result<()> {
    // SAFETY: unshare touches no memory of ours; only flags of namespaces are given, so descriptors stay shared as
    // the borrow checker assumes.
    check(c_long::from(unsafe { libc::unshare(flags as c_int) })).map(drop)
}

/// Replaces this process.
pub fn exec(path: &CString, args: &[CString], env: &[CString]) -> io::Error {
    let pointers =
        |texts: &[CString]| texts.iter().map(|t| t.as_ptr()).chain([std::ptr::null()]).collect::<Vec<_>>();
    let (args, env) = (pointers(args), pointers(env));
    // SAFETY: all strings end in NUL and live through the call; both arrays end in a null pointer.
    unsafe { libc::execve(path.as_ptr(), args.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// Replaces this process by an open file.
pub fn exec_fd(file: BorrowedFd<'_>, args: &[CString], env: &[CString]) -> io::Error {
    let pointers =
        |texts: &[CString]| texts.iter().map(|t| t.as_ptr()).chain([std::ptr::null()]).collect::<Vec<_>>();
    let (args, env) = (pointers(args), pointers(env));
    // SAFETY: all strings end in NUL and live through the call; both arrays end in a null pointer.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            file.as_raw_fd(),
            c"".as_ptr(),
            args.as_ptr(),
            env.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    io::Error::last_os_error()
}

/// Changes attributes of a mount, given as a descriptor of its root.
pub fn mount_setattr(mount: BorrowedFd<'_>, recursive: bool, attr: &libc::mount_attr) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is empty and ends in NUL; `attr` lives through the call and its size is given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attr),
            size_of::<libc::mount_attr>(),
        )
    };
    check(result).map(drop)
}

/// Maps the ids of a mount that is attached nowhere yet, and of those below, as a user namespace maps its own.
pub fn map_ids(mount: BorrowedFd<'_>, user_namespace: BorrowedFd<'_>, recursive: bool) -> io::Result<()> {
    let mut attr = mount_attr();
    attr.attr_set = u64::from(rustix::mount::MountAttrFlags::MOUNT_ATTR_IDMAP.bits());
    attr.userns_fd = user_namespace.as_raw_fd() as u64;
    mount_setattr(mount, recursive, &attr)
}

/// An attribute change that changes nothing.
pub fn mount_attr() -> libc::mount_attr {
    // SAFETY: all zeroes is a valid value of this plain struct.
    unsafe { std::mem::zeroed() }
}

/// One instruction of a classic BPF program.
pub type Instruction = libc::sock_filter;

/// Flag of [`install_filter`]: it returns a descriptor of notifications.
pub const NEW_LISTENER: u64 = 8;

/// Installs a filter of system calls for this thread.
pub fn install_filter(program: &[Instruction], flags: u64) -> io::Result<Option<OwnedFd>> {
    const MODE_FILTER: c_long = 1;
    let len = u16::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?;
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    // SAFETY: the program and its length belong together and live through the call; the kernel only reads them.
    let fd = check(unsafe { libc::syscall(libc::SYS_seccomp, MODE_FILTER, flags, &raw const program) })?;
    // SAFETY: with this flag the kernel returned a descriptor that nobody else has.
    Ok((flags & NEW_LISTENER != 0).then(|| unsafe { OwnedFd::from_raw_fd(fd as c_int) }))
}

/// `bpf(2)` with attributes laid out by the caller.
pub fn bpf(command: c_int, attributes: &mut [u64]) -> io::Result<c_long> {
    // SAFETY: the attributes are valid for the size given; pointers in them are the caller's, who keeps what they
    // point to alive (only `device_filter`).
    check(unsafe {
        libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), size_of_val::<[u64]>(attributes))
    })
}

/// Takes over a descriptor a system call just returned.
pub fn own(fd: c_long) -> OwnedFd {
    // SAFETY: called with what the kernel just made; nobody else has it.
    unsafe { OwnedFd::from_raw_fd(fd as c_int) }
}

/// Closes what a new process has a copy of and its parent keeps using.
pub fn close_copy(fd: i32) {
    // SAFETY: called first thing in a new process, which has no owner of this number that would use or close it again:
    // that one is on the parent's stack, to which the process never returns.
    unsafe { libc::close(fd) };
}

/// Marks all descriptors from `first` on to be closed by the next exec.
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: only a flag of descriptors changes; none is closed.
    let result =
        unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    check(result).map(drop)
}

/// The signals that are blocked.
#[derive(Clone, Copy)]
pub struct SignalMask(libc::sigset_t);

impl std::fmt::Debug for SignalMask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SignalMask")
    }
}

/// Blocks every signal and returns what was blocked before.
pub fn block_signals() -> io::Result<SignalMask> {
    // SAFETY: both sets are valid memory that the calls initialise.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        let mut before: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        let result = libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
        if result != 0 {
            return Err(io::Error::from_raw_os_error(result));
        }
        Ok(SignalMask(before))
    }
}

/// Blocks what `mask` says and nothing else.
pub fn restore_signals(mask: &SignalMask) {
    // SAFETY: the set was initialised by `block_signals`.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const mask.0, std::ptr::null_mut()) };
}

/// A new program starts with no signal blocked, ignored or handled.
pub fn default_signals() {
    // SAFETY: the set is initialised by sigemptyset; SIG_DFL is a disposition any signal may be given, and the
    // kernel refuses numbers that cannot have one.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        for signal in 1..=64 {
            libc::signal(signal, libc::SIG_DFL);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// A descriptor from which all blocked signals can be read.
pub fn signal_fd() -> io::Result<OwnedFd> {
    // SAFETY: the set is initialised by sigfillset and only read.
    let fd = unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::signalfd(-1, &raw const all, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
    };
    check(c_long::from(fd)).map(own)
}

/// Reads the number of the next signal of [`signal_fd`].
pub fn next_signal(fd: BorrowedFd<'_>) -> Option<i32> {
    let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
    let read = rustix::io::read(fd, &mut info).ok()?;
    (read == info.len()).then(|| i32::from_ne_bytes([info[0], info[1], info[2], info[3]]))
}

/// Sends any signal to a process held by its descriptor.
pub fn signal_process(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: no information is given with it, so no memory is read.
    let result = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, std::ptr::null::<u8>(), 0)
    };
    check(result).map(drop)
}

/// Opens the other end of a terminal without going through any path.
pub fn open_peer(controller: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes flags, no pointer.
    check(c_long::from(unsafe { libc::ioctl(controller.as_raw_fd(), libc::TIOCGPTPEER, flags) })).map(own)
}

/// Makes a terminal the one this session is controlled by.
pub fn take_terminal(terminal: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: TIOCSCTTY takes a number, no pointer.
    check(c_long::from(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0) })).map(drop)
}

/// A socket for requests about interfaces of this network namespace.
fn interfaces() -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?)
}

/// A request about an interface, with nothing but its name.
fn interface(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: all zeroes is a valid value of this plain struct.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as _;
    }
    Ok(request)
}

/// Brings an interface of this network namespace up.
pub fn interface_up(name: &str) -> io::Result<()> {
    let mut request = interface(name)?;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as _;
    let socket = interfaces()?;
    // SAFETY: the request has a name that ends in NUL and flags, which is what SIOCSIFFLAGS reads.
    check(c_long::from(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) }))
        .map(drop)
}

fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    let mut data = [0; 14];
    for (to, from) in data[2..6].iter_mut().zip(address.octets()) {
        *to = from as _;
    }
    libc::sockaddr { sa_family: libc::AF_INET as _, sa_data: data }
}

/// Gives an interface of this network namespace an address.
pub fn interface_address(name: &str, address: Ipv4Addr, mask: Ipv4Addr) -> io::Result<()> {
    let socket = interfaces()?;
    for (number, value) in [(libc::SIOCSIFADDR, address), (libc::SIOCSIFNETMASK, mask)] {
        let mut request = interface(name)?;
        request.ifr_ifru.ifru_addr = socket_address(value);
        // SAFETY: the request has a name that ends in NUL and an IPv4 address, which is what both numbers read.
        check(c_long::from(unsafe { libc::ioctl(socket.as_raw_fd(), number, &raw const request) }))?;
    }
    Ok(())
}

/// Gives an Ethernet interface of this network namespace, which is down, its hardware address.
pub fn interface_mac(name: &str, mac: [u8; 6]) -> io::Result<()> {
    let mut request = interface(name)?;
    let mut data = [0; 14];
    for (to, from) in data.iter_mut().zip(mac) {
        *to = from as _;
    }
    request.ifr_ifru.ifru_hwaddr = libc::sockaddr { sa_family: libc::ARPHRD_ETHER, sa_data: data };
    let socket = interfaces()?;
    // SAFETY: the request has a name that ends in NUL and an Ethernet address, which is what SIOCSIFHWADDR reads.
    check(c_long::from(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFHWADDR, &raw const request) }))
        .map(drop)
}

/// Sends what is for nobody else in this network namespace to a gateway.
pub fn default_route(gateway: Ipv4Addr) -> io::Result<()> {
    const UP_GATEWAY: u16 = 1 | 2;
    // SAFETY: all zeroes is a valid value of this plain struct; its pointer to a name may be null.
    let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
    route.rt_dst = socket_address(Ipv4Addr::UNSPECIFIED);
    route.rt_genmask = socket_address(Ipv4Addr::UNSPECIFIED);
    route.rt_gateway = socket_address(gateway);
    route.rt_flags = UP_GATEWAY;
    let socket = interfaces()?;
    // SAFETY: the route is whole, and SIOCADDRT reads no more than it.
    check(c_long::from(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCADDRT, &raw const route) }))
        .map(drop)
}

/// Makes an Ethernet interface of this network namespace whose other end is the descriptor: frames with the header of a virtio
/// card before them, which may leave checksums and the segmentation of TCP over IPv4 undone on their way to the kernel.
pub fn tap(name: &str) -> io::Result<OwnedFd> {
    const SET_INTERFACE: libc::c_ulong = 0x4004_54ca;
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC | rustix::fs::OFlags::NONBLOCK;
    let tap = rustix::fs::open("/dev/net/tun", flags, rustix::fs::Mode::empty())?;
    let mut request = interface(name)?;
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as _;
    // SAFETY: the request has a name that ends in NUL and flags, which is what TUNSETIFF reads; it writes the name back.
    check(c_long::from(unsafe { libc::ioctl(tap.as_raw_fd(), SET_INTERFACE, &raw mut request) }))?;
    Ok(tap)
}

/// The request of [`tap_offloads`].
pub const SET_OFFLOAD: libc::c_ulong = 0x4004_54d0;

/// Lets the kernel leave checksums, and the segmentation of TCP over IPv4, undone in what it gives to the other end of a tap.
pub fn tap_offloads(tap: BorrowedFd<'_>, checksum: bool, tcp4: bool) -> io::Result<()> {
    let bits = libc::c_ulong::from(checksum) | libc::c_ulong::from(checksum && tcp4) << 1;
    // SAFETY: TUNSETOFFLOAD takes a number, no pointer.
    check(c_long::from(unsafe { libc::ioctl(tap.as_raw_fd(), SET_OFFLOAD, bits) })).map(drop)
}

/// Makes this thread one of the network namespace that the file is.
pub fn enter_network(namespace: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: setns takes a descriptor and a number.
    check(c_long::from(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) })).map(drop)
}

/// Makes this thread one of the mount namespace that the file is. What it had in common with other threads, the working folder and
/// the root, is its own then.
pub fn enter_mounts(namespace: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: unshare and setns take numbers and a descriptor; of what threads share only the folders become this one's own.
    check(c_long::from(unsafe { libc::unshare(libc::CLONE_FS) }))?;
    // SAFETY: as above.
    check(c_long::from(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNS) })).map(drop)
}

/// Sets what a process and those it makes believe to run on: `personality(2)`.
pub fn personality(domain: u64) -> io::Result<()> {
    // SAFETY: personality touches no memory of ours.
    check(c_long::from(unsafe { libc::personality(domain) })).map(drop)
}

/// Sets the priority of this process for disks.
pub fn io_priority(class: u32, priority: u32) -> io::Result<()> {
    const WHO_PROCESS: c_long = 1;
    // SAFETY: ioprio_set takes numbers only.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, (class << 13) | priority) }).map(drop)
}

/// `sched_setattr(2)` of this process, with its structure as the kernel lays it out.
pub fn scheduler(attributes: &[u8; 48]) -> io::Result<()> {
    // SAFETY: the structure says its own size in its first four bytes, which the caller sets to 48.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, attributes.as_ptr(), 0) }).map(drop)
}

/// Attaches a file to a free loop device, read-only; it goes with its last user.
pub fn loop_device(file: BorrowedFd<'_>) -> io::Result<(OwnedFd, String)> {
    const SET_FD_GET_FREE: libc::c_ulong = 0x4C82;
    const CONFIGURE: libc::c_ulong = 0x4C0A;
    const READ_ONLY: u32 = 1;
    const AUTOCLEAR: u32 = 4;
    let flags = rustix::fs::OFlags::CLOEXEC | rustix::fs::OFlags::RDWR;
    let control = rustix::fs::open("/dev/loop-control", flags, rustix::fs::Mode::empty())?;
    // struct loop_config of linux/loop.h: fd, block size, loop_info64 with its flags at byte 52, reserved words.
    let mut config = [0u8; 304];
    config[..4].copy_from_slice(&file.as_raw_fd().to_ne_bytes());
    config[8 + 52..8 + 56].copy_from_slice(&(READ_ONLY | AUTOCLEAR).to_ne_bytes());
    for _ in 0..64 {
        // SAFETY: LOOP_CTL_GET_FREE takes nothing.
        let number = check(c_long::from(unsafe { libc::ioctl(control.as_raw_fd(), SET_FD_GET_FREE) }))?;
        let path = format!("/dev/loop{number}");
        let device = rustix::fs::open(&path, flags, rustix::fs::Mode::empty())?;
        // SAFETY: the structure is as long as the kernel reads and lives through the call.
        match check(c_long::from(unsafe { libc::ioctl(device.as_raw_fd(), CONFIGURE, config.as_ptr()) })) {
            Ok(_) => return Ok((device, path)),
            // Somebody else was quicker.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::from_raw_os_error(libc::EBUSY))
}
