//! The control connection, never blocking: messages from the host are taken as they complete, the
//! agent's own are queued and written as the host takes them.

use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;

use protocol::{AgentMessage, Error, FrameBuffer, HostMessage, Level, Log, Message};
use rustix::event::{PollFd, PollFlags};
use rustix::fd::OwnedFd;
use rustix::io::Errno;

use crate::fault::Fault;
use crate::streams::set_nonblocking;

/// Bytes read at once. Only [`HostMessage::Start`] is ever larger than a few dozen.
const READ: usize = 16 << 10;

/// The agent's end.
#[derive(Debug)]
pub struct Control {
    fd: OwnedFd,
    incoming: FrameBuffer,
    outgoing: Vec<u8>,
}

impl Control {
    /// Takes a connected socket.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(fd: OwnedFd) -> Result<Self, Fault> {
        set_nonblocking(&fd).map_err(|errno| Fault::os("set up", "control connection", errno))?;
        Ok(Self { fd, incoming: FrameBuffer::default(), outgoing: Vec::new() })
    }

    /// What to wait for.
    #[must_use]
    pub fn interest(&self) -> PollFd<'_> {
        let write = if self.outgoing.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
        PollFd::new(&self.fd, PollFlags::IN | write)
    }

    /// Queues a message and writes what the host takes at once. A host that is gone is noticed
    /// when reading.
    pub fn send(&mut self, message: &AgentMessage) {
        match message.to_frame() {
            Ok(frame) => self.outgoing.extend_from_slice(&frame),
            // Texts from the guest can be this long; the act and object are in the log then.
            Err(error) => self.send(&AgentMessage::Log(Log { level: Level::Error, text: error.to_string() })),
        }
        self.flush();
    }

    /// Writes what the host takes.
    pub fn flush(&mut self) {
        while !self.outgoing.is_empty() {
            match rustix::io::write(&self.fd, &self.outgoing) {
                Ok(count) => drop(self.outgoing.drain(..count)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => self.outgoing.clear(),
            }
        }
    }

    /// Reads what has come. `false` is the end of the connection.
    pub fn fill(&mut self) -> bool {
        let mut piece = vec![0; READ];
        loop {
            match rustix::io::read(&self.fd, &mut piece[..]) {
                Ok(0) => return false,
                Ok(count) => self.incoming.push(&piece[..count]),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return true,
                Err(_) => return false,
            }
            // Without this a host that never stops would fill the guest's memory with one push after the other.
            if self.incoming.len() > HostMessage::MAX_LEN as usize {
                return true;
            }
        }
    }

    /// The next complete message.
    ///
    /// # Errors
    /// As [`FrameBuffer::take`].
    pub fn take(&mut self) -> Result<Option<HostMessage>, Error> {
        self.incoming.take()
    }
}
