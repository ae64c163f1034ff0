//! What a runtime and the process it makes say to each other while that is prepared.
//!
//! One message per packet, the first byte its kind. The connection ends when the process executes its program: it is
//! closed by that.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::error::{Error, Result, While};

/// The longest message.
const MOST_BYTES: usize = 16 << 10;

/// What is said.
#[derive(Debug, PartialEq, Eq)]
pub enum Message {
    /// The process waits for its ids to be mapped.
    NeedsIds,
    /// The process waits for hooks of the runtime's side.
    NeedsHooks,
    /// All is prepared.
    Ready,
    /// Go on; with the process's id as the host sees it.
    Go(i32),
    /// It failed; with the exit code and the text.
    Failed(u8, String),
}

/// One end.
#[derive(Debug)]
pub struct Channel(OwnedFd);

/// Two ends, closed by exec.
pub fn pair() -> Result<(Channel, Channel)> {
    let (a, b) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .during(|| "make a pair of sockets".to_owned())?;
    Ok((Channel(a), Channel(b)))
}

impl Channel {
    /// Around a connection.
    pub fn new(connection: OwnedFd) -> Self {
        Self(connection)
    }

    /// Says something.
    pub fn send(&self, message: &Message) -> Result<()> {
        let bytes = match message {
            Message::NeedsIds => b"i".to_vec(),
            Message::NeedsHooks => b"h".to_vec(),
            Message::Ready => b"r".to_vec(),
            Message::Go(pid) => [b"g".as_slice(), &pid.to_ne_bytes()].concat(),
            Message::Failed(code, text) => {
                let text = &text.as_bytes()[..text.len().min(MOST_BYTES - 2)];
                [&[b'f', *code], text].concat()
            }
        };
        rustix::net::send(&self.0, &bytes, SendFlags::NOSIGNAL)
            .during(|| "talk to the process being made".to_owned())
            .map(drop)
    }

    /// Hears something; `None` when the other end is gone.
    pub fn receive(&self) -> Result<Option<Message>> {
        let mut bytes = [0; MOST_BYTES];
        let len = loop {
            match rustix::net::recv(&self.0, &mut bytes[..], RecvFlags::empty()) {
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::CONNRESET) => return Ok(None),
                received => break received.during(|| "hear from the process being made".to_owned())?.0,
            }
        };
        Ok(match &bytes[..len] {
            [] => None,
            [b'i'] => Some(Message::NeedsIds),
            [b'h'] => Some(Message::NeedsHooks),
            [b'r'] => Some(Message::Ready),
            [b'g', a, b, c, d] => Some(Message::Go(i32::from_ne_bytes([*a, *b, *c, *d]))),
            [b'f', code, text @ ..] => {
                Some(Message::Failed(*code, String::from_utf8_lossy(text).into_owned()))
            }
            _ => return Err(Error::refused("the process being made", "it says what nobody understands")),
        })
    }

    /// Waits to be told to go on.
    pub fn wait(&self) -> Result<i32> {
        match self.receive()? {
            Some(Message::Go(pid)) => Ok(pid),
            _ => Err(Error::refused("the runtime", "it is gone")),
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_arrives() {
        let (a, b) = pair().unwrap();
        for message in [Message::NeedsIds, Message::Go(77), Message::Failed(127, "x".into())] {
            a.send(&message).unwrap();
            assert_eq!(b.receive().unwrap(), Some(message));
        }
        a.send(&Message::Failed(1, "y".repeat(MOST_BYTES * 2))).unwrap();
        assert!(
            matches!(b.receive().unwrap(), Some(Message::Failed(1, text)) if text.len() == MOST_BYTES - 2)
        );
        drop(a);
        assert_eq!(b.receive().unwrap(), None);
    }
}
