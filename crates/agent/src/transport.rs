//! Connections to the host: AF_VSOCK streams (`linux/vm_sockets.h`).
// UNSAFETY: rustix knows no vsock address; its trait for addresses of one's own is unsafe.

use core::mem;
use core::time::Duration;

use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};
use rustix::time::{ClockId, clock_gettime};

use crate::fault::Fault;
use crate::files::sleep;

struct VsockAddr(libc::sockaddr_vm);

impl VsockAddr {
    fn new(cid: u32, port: u32) -> Self {
        // SAFETY: all-zero bytes are a valid `sockaddr_vm`, a plain C struct.
        let mut addr: libc::sockaddr_vm = unsafe { mem::zeroed() };
        addr.svm_family = libc::AF_VSOCK as libc::sa_family_t;
        addr.svm_cid = cid;
        addr.svm_port = port;
        Self(addr)
    }
}

// SAFETY: the pointer is to a whole `sockaddr_vm`, the length is its own, and it lives through `f`.
unsafe impl SocketAddrArg for VsockAddr {
    unsafe fn with_sockaddr<R>(&self, f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R) -> R {
        f((&raw const self.0).cast(), mem::size_of::<libc::sockaddr_vm>() as SocketAddrLen)
    }
}

/// One attempt. The kernel gives the host two seconds to answer.
fn attempt(port: u32) -> Result<OwnedFd, Errno> {
    let socket = socket_with(AddressFamily::VSOCK, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    connect(&socket, &VsockAddr::new(protocol::HOST_CID, port))?;
    Ok(socket)
}

/// Connects to a port of the host, waiting up to `patience` for the device to be found and the
/// host to listen.
///
/// # Errors
/// The kernel's: at once when it knows no vsock, else the last one when patience ends.
pub fn connect_host(port: u32, patience: Duration) -> Result<OwnedFd, Fault> {
    let seconds = || clock_gettime(ClockId::Monotonic);
    let start = seconds();
    let mut pause = Duration::from_millis(1);
    loop {
        let errno = match attempt(port) {
            Ok(socket) => return Ok(socket),
            Err(errno) => errno,
        };
        let fault = || Fault::os("connect to the host", alloc::format!("vsock port {port}"), errno);
        if errno == Errno::AFNOSUPPORT {
            return Err(Fault { cause: fault().cause + "; is the vsock module in /modules?", ..fault() });
        }
        let waited = seconds().tv_sec - start.tv_sec;
        if waited >= i64::try_from(patience.as_secs()).unwrap_or(i64::MAX) {
            return Err(fault());
        }
        sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}
