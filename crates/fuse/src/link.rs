//! The link between a machine's process and the server of its folders: a pair of sockets that carry packets, one for a
//! request and one for its answer, in order. With the answer to an open comes the open file.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, send, sendmsg, socketpair,
};

use crate::server::Server;
use crate::wire::{IN_HEADER, MAX_PACKET};

/// The machine's end.
#[derive(Debug)]
pub struct Client {
    socket: OwnedFd,
    packet: Vec<u8>,
}

/// An answer of the server.
#[derive(Debug)]
pub struct Answer<'a> {
    /// From its header on.
    pub bytes: &'a [u8],
    /// What was opened.
    pub file: Option<OwnedFd>,
}

/// Both ends of a new link: the machine's, and what the server's process serves.
///
/// # Errors
/// The host has no descriptors left.
pub fn pair() -> Result<(Client, OwnedFd), Errno> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    Ok((Client { socket: ours, packet: vec![0; MAX_PACKET] }, theirs))
}

impl Client {
    /// Sends a request without waiting.
    ///
    /// # Errors
    /// EAGAIN while the server is behind; others once it is gone.
    pub fn send(&self, request: &[u8]) -> Result<(), Errno> {
        retry(|| send(&self.socket, request, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)).map(drop)
    }

    /// The next answer, without waiting.
    ///
    /// # Errors
    /// EAGAIN while there is none; others once the server is gone.
    pub fn receive(&mut self) -> Result<Answer<'_>, Errno> {
        self.take(RecvFlags::DONTWAIT)
    }

    /// Waits for the next answer.
    ///
    /// # Errors
    /// The server is gone.
    pub fn wait(&mut self) -> Result<Answer<'_>, Errno> {
        self.take(RecvFlags::empty())
    }

    fn take(&mut self, flags: RecvFlags) -> Result<Answer<'_>, Errno> {
        let (len, file) = receive(self.socket.as_fd(), &mut self.packet, flags)?;
        if len == 0 { Err(Errno::NOTCONN) } else { Ok(Answer { bytes: &self.packet[..len], file }) }
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Sends a packet that is no answer.
///
/// # Errors
/// The socket's.
pub fn say(socket: BorrowedFd<'_>, packet: &[u8]) -> Result<(), Errno> {
    retry(|| send(socket, packet, SendFlags::NOSIGNAL)).map(drop)
}

/// Answers requests until the other end is closed.
///
/// # Errors
/// The socket's.
pub fn serve(socket: BorrowedFd<'_>, server: &mut Server) -> Result<(), Errno> {
    let mut packet = vec![0; MAX_PACKET];
    loop {
        let (len, _) = receive(socket, &mut packet, RecvFlags::empty())?;
        if len == 0 {
            return Ok(());
        }
        // Nothing but the machine's process could send less, and it does not.
        let Some(header) = packet[..len].first_chunk::<IN_HEADER>() else { continue };
        let header = *header;
        let Some((answer, file)) = server.answer(&header, &packet[IN_HEADER..len]) else { continue };
        match answer_with(socket, &answer, file) {
            Err(Errno::PIPE | Errno::CONNRESET) => return Ok(()),
            sent => sent?,
        }
    }
}

fn answer_with(socket: BorrowedFd<'_>, answer: &[u8], file: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
    let Some(file) = file else {
        return retry(|| send(socket, answer, SendFlags::NOSIGNAL)).map(drop);
    };
    let files = [file];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&files));
    retry(|| sendmsg(socket, &[IoSlice::new(answer)], &mut control, SendFlags::NOSIGNAL)).map(drop)
}

fn receive(
    socket: BorrowedFd<'_>,
    packet: &mut [u8],
    flags: RecvFlags,
) -> Result<(usize, Option<OwnedFd>), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = flags | RecvFlags::CMSG_CLOEXEC;
    let received = retry(|| recvmsg(socket, &mut [IoSliceMut::new(packet)], &mut control, flags))?;
    let files = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(files) => Some(files),
        _ => None,
    });
    Ok((received.bytes, files.flatten().last()))
}

fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}
