//! The terminal of a container's process: made inside, its controlling end handed out through a socket.

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::OFlags;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

use crate::error::{Error, Result, While};
use crate::mounts;
use crate::options::Bind;
use crate::paths::{self, Missing};
use crate::spec::ConsoleSize;
use crate::sys;

/// Connects to a socket that wants a descriptor: `what` it is called.
pub fn connect(what: &str, path: &Path) -> Result<OwnedFd> {
    let act = || format!("connect to {what} {}", path.display());
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .during(act)?;
    let address = SocketAddrUnix::new(path).during(act)?;
    rustix::net::connect(&socket, &address).during(act)?;
    Ok(socket)
}

/// Two connected sockets, for a terminal that the runtime itself carries.
pub fn pair() -> Result<(OwnedFd, OwnedFd)> {
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .during(|| "make a pair of sockets".to_owned())
}

/// Makes a terminal of the container's own devpts, hands its controlling end out, and makes the other one the
/// terminal and the standard streams of this process. `console` says whether it also becomes `/dev/console`.
pub fn set_up(
    root: BorrowedFd<'_>,
    socket: BorrowedFd<'_>,
    size: Option<&ConsoleSize>,
    console: bool,
) -> Result<OwnedFd> {
    let act = || "make a terminal".to_owned();
    let flags = OFlags::RDWR | OFlags::NOCTTY;
    let controller = paths::open(root, "dev/pts/ptmx", flags).during(|| "open /dev/pts/ptmx".to_owned())?;
    let unlock = rustix::pty::unlockpt(&controller);
    unlock.during(act)?;
    let terminal = sys::open_peer(controller.as_fd()).during(act)?;
    if let Some(size) = size.filter(|size| size.width > 0 && size.height > 0) {
        let size =
            rustix::termios::Winsize { ws_row: size.height, ws_col: size.width, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&terminal, size).during(act)?;
    }
    if console {
        // Bound by descriptor: a link in its place would make the terminal appear elsewhere (CVE-2025-52565).
        let place = paths::find_or_make(root, "dev/console", Missing::File)?;
        let copy = mounts::clone(terminal.as_fd(), Bind::One).during(act)?;
        mounts::attach(copy.as_fd(), place.as_fd())
            .during(|| "bind the terminal on /dev/console".to_owned())?;
    }
    send(socket, controller.as_fd())?;
    Ok(terminal)
}

/// Makes a terminal the controlling one and the standard streams of this process.
pub fn take(terminal: &OwnedFd) -> Result<()> {
    let act = || "take the terminal".to_owned();
    sys::take_terminal(terminal.as_fd()).during(act)?;
    rustix::stdio::dup2_stdin(terminal).during(act)?;
    rustix::stdio::dup2_stdout(terminal).during(act)?;
    rustix::stdio::dup2_stderr(terminal).during(act)
}

fn send(socket: BorrowedFd<'_>, fd: BorrowedFd<'_>) -> Result<()> {
    let act = || "hand the terminal out".to_owned();
    let fds = [fd];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&fds));
    let name = [IoSlice::new(b"/dev/ptmx")];
    rustix::net::sendmsg(socket, &name, &mut control, SendFlags::NOSIGNAL).during(act).map(drop)
}

/// Takes the controlling end out of a socket of [`pair`].
pub fn receive(socket: BorrowedFd<'_>) -> Result<OwnedFd> {
    let mut bytes = [0; 64];
    let mut data = [std::io::IoSliceMut::new(&mut bytes)];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    rustix::net::recvmsg(socket, &mut data, &mut control, RecvFlags::CMSG_CLOEXEC)
        .during(|| "take the terminal over".to_owned())?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut fds) = message
            && let Some(fd) = fds.next()
        {
            return Ok(fd);
        }
    }
    Err(Error::refused("terminal", "the process handed none out"))
}
