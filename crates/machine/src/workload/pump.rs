//! Carrying bytes between the caller's descriptors and the agent's stream connections, one thread each.
//!
//! A pump moves what it has read before it reads again, so a slow reader slows the writer down (vsock credit in
//! the guest, a full pipe on the host) and nothing is held but one buffer.

use std::fmt;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use protocol::Stream;
use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::Error as WorkloadError;

const BUFFER_BYTES: usize = 64 << 10;

/// Why a pump stopped before the end of its stream.
#[derive(Debug)]
pub enum Error {
    /// The caller's descriptor failed.
    Caller(io::Error),
    /// The caller's descriptor has no reader any more.
    ReaderGone,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Caller(error) => error.fmt(f),
            Self::ReaderGone => f.write_str("nobody reads it"),
        }
    }
}

/// The pumps of one process.
#[derive(Default)]
pub struct Pumps {
    input: Option<UnixStream>,
    outputs: Vec<(Stream, UnixStream)>,
    over: Vec<Stream>,
    error: Option<WorkloadError>,
}

impl Pumps {
    /// Carries `fd` to `socket`, then ends the sending half.
    ///
    /// # Errors
    /// [`WorkloadError::Host`].
    pub fn start_input(
        &mut self,
        fd: OwnedFd,
        socket: UnixStream,
        done: impl FnOnce(Result<(), Error>) + Send + 'static,
    ) -> Result<(), WorkloadError> {
        self.input = Some(socket.try_clone().map_err(WorkloadError::Host)?);
        spawn("stdin", move || done(carry_input(&fd, &socket)))
    }

    /// Carries `socket` to `fd`. A second connection for the same stream is dropped.
    ///
    /// # Errors
    /// [`WorkloadError::Host`].
    pub fn start_output(
        &mut self,
        stream: Stream,
        fd: &OwnedFd,
        socket: UnixStream,
        done: impl FnOnce(Result<(), Error>) + Send + 'static,
    ) -> Result<(), WorkloadError> {
        if self.over.contains(&stream) || self.outputs.iter().any(|(known, _)| *known == stream) {
            return Ok(());
        }
        let fd = fd.try_clone().map_err(WorkloadError::Host)?;
        self.outputs.push((stream, socket.try_clone().map_err(WorkloadError::Host)?));
        spawn(name(stream), move || done(carry_output(&socket, fd.as_fd())))
    }

    /// Notes that a pump has ended.
    pub fn ended(&mut self, stream: Stream, result: Result<(), Error>) {
        if stream == Stream::Stdin {
            self.input = None;
        }
        self.outputs.retain(|(known, _)| *known != stream);
        self.over.push(stream);
        if let Err(Error::Caller(source)) = result {
            self.error.get_or_insert(match stream {
                Stream::Stdin => WorkloadError::Input(source),
                _ => WorkloadError::Output { stream: name(stream), source },
            });
        }
    }

    /// Whether `stream` was opened and has ended: all of it was delivered.
    pub fn is_over(&self, stream: Stream) -> bool {
        self.over.contains(&stream)
    }

    /// The first failure of a caller's descriptor.
    pub fn take_error(&mut self) -> Option<WorkloadError> {
        self.error.take()
    }

    /// Whether the pumps have taken all that came.
    pub fn is_output_read(&self) -> bool {
        self.outputs
            .iter()
            .all(|(_, socket)| rustix::io::ioctl_fionread(socket).is_ok_and(|unread| unread == 0))
    }

    /// Ends the input pump: nobody reads it any more.
    pub fn end_input(&mut self) {
        if let Some(socket) = self.input.take() {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// Ends all pumps; they finish what they are writing.
    pub fn end_all(&mut self) {
        self.end_input();
        for (_, socket) in self.outputs.drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

fn name(stream: Stream) -> &'static str {
    match stream {
        Stream::Stdin => "stdin",
        Stream::Stdout => "stdout",
        Stream::Stderr => "stderr",
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), WorkloadError> {
    std::thread::Builder::new().name(name.to_owned()).spawn(work).map(drop).map_err(WorkloadError::Host)
}

/// From `socket` to `fd` until the agent closes the stream. If `fd` has no reader the connection is closed, so
/// that the process in the guest learns it the way it would on a pipe.
fn carry_output(socket: &UnixStream, fd: BorrowedFd<'_>) -> Result<(), Error> {
    // Not filled: what nothing was read into costs no memory.
    let mut buffer = Vec::with_capacity(BUFFER_BYTES);
    loop {
        buffer.clear();
        match rustix::io::read(socket, spare_capacity(&mut buffer)) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            // The machine is gone; its end is reported by itself.
            Err(_) => return Ok(()),
        }
        if let Err(error) = write_all(fd, &buffer) {
            let _ = socket.shutdown(Shutdown::Both);
            return Err(match error {
                Errno::PIPE => Error::ReaderGone,
                other => Error::Caller(other.into()),
            });
        }
    }
}

/// From `fd` to `socket` until the end of `fd`, or until the other end of `socket` is closed.
fn carry_input(fd: &OwnedFd, socket: &UnixStream) -> Result<(), Error> {
    let mut buffer = Vec::with_capacity(BUFFER_BYTES);
    loop {
        buffer.clear();
        let mut waits =
            [PollFd::new(fd, PollFlags::IN), PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::empty())];
        match poll(&mut waits, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(e) => return Err(Error::Caller(e.into())),
        }
        if !waits[1].revents().is_empty() {
            return Ok(());
        }
        match rustix::io::read(fd, spare_capacity(&mut buffer)) {
            Ok(0) => break,
            Ok(_) if write_all(socket.as_fd(), &buffer).is_ok() => {}
            // The process closed its input: not our caller's fault.
            Ok(_) => return Ok(()),
            Err(Errno::INTR | Errno::AGAIN) => {}
            // A terminal whose other end is gone has no more input.
            Err(Errno::IO) => break,
            Err(e) => {
                let _ = socket.shutdown(Shutdown::Write);
                return Err(Error::Caller(e.into()));
            }
        }
    }
    let _ = socket.shutdown(Shutdown::Write);
    Ok(())
}

/// Writes all of `bytes`, waiting where a descriptor is in non-blocking mode.
fn write_all(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::write(fd, bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let _ = poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::OUT)], None);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::sync::mpsc::channel;

    fn pattern(len: usize) -> Vec<u8> {
        (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
    }

    #[test]
    fn output_arrives_whole_through_a_small_pipe() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let (mut agent, ours) = UnixStream::pair().unwrap();
        let (done, ended) = channel();
        let mut pumps = Pumps::default();
        pumps.start_output(Stream::Stdout, &write, ours, move |r| done.send(r.is_ok()).unwrap()).unwrap();
        drop(write);
        let sent = pattern(8 << 20);
        let expected = sent.clone();
        let guest = std::thread::spawn(move || agent.write_all(&sent).unwrap());
        let mut received = Vec::new();
        std::fs::File::from(read).read_to_end(&mut received).unwrap();
        guest.join().unwrap();
        assert!(ended.recv().unwrap());
        assert!(received == expected);
    }

    #[test]
    fn input_arrives_whole_and_then_ends() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let (mut agent, ours) = UnixStream::pair().unwrap();
        let mut pumps = Pumps::default();
        pumps.start_input(read, ours, |_| ()).unwrap();
        let sent = pattern(4 << 20);
        let expected = sent.clone();
        let owner = std::thread::spawn(move || std::fs::File::from(write).write_all(&sent).unwrap());
        let mut received = Vec::new();
        agent.read_to_end(&mut received).unwrap();
        owner.join().unwrap();
        assert!(received == expected);
    }

    #[test]
    fn a_reader_that_went_away_is_told_to_the_guest() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        drop(read);
        let (mut agent, ours) = UnixStream::pair().unwrap();
        let (done, ended) = channel();
        let mut pumps = Pumps::default();
        pumps.start_output(Stream::Stdout, &write, ours, move |r| done.send(r).unwrap()).unwrap();
        agent.write_all(b"x").unwrap();
        assert!(matches!(ended.recv().unwrap(), Err(Error::ReaderGone)));
        let mut rest = Vec::new();
        assert_eq!(agent.read_to_end(&mut rest).unwrap(), 0);
    }

    #[test]
    fn an_idle_input_pump_ends_when_it_is_told() {
        let (read, _write) = rustix::pipe::pipe().unwrap();
        let (_agent, ours) = UnixStream::pair().unwrap();
        let (done, ended) = channel();
        let mut pumps = Pumps::default();
        pumps.start_input(read, ours, move |r| done.send(r.is_ok()).unwrap()).unwrap();
        pumps.end_input();
        assert!(ended.recv().unwrap());
    }
}
