//! One direction of a process's stdio: from a pipe or terminal to a connection, or back.
//!
//! ```text
//!           source ends                     all written
//! Running ───────────────► Finishing ───────────────────► Done (sink closed: the reader sees the end)
//!    │ sink breaks                │ sink breaks
//!    └──► Done (source closed) ◄──┘        a terminal's output is read on and dropped instead
//! ```
//! When a process has ended its output is *drained*: what is in the pipe or terminal at that moment
//! is delivered, what others that still hold it write later is not. That is what a container
//! engine's user sees too, where the others are killed with the process.

use alloc::vec;
use alloc::vec::Vec;

use protocol::Stream;
use rustix::event::{PollFd, PollFlags};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{Errno, ioctl_fionread};
use rustix::termios::{LocalModes, SpecialCodeIndex, tcgetattr};

/// Bytes carried by one pair of system calls. Two of the largest vsock packets.
const BUFFER: usize = 128 << 10;

/// Bytes a process's pipe holds: the process and the agent take turns less often than with the kernel's 64 KiB.
pub const PIPE_SIZE: usize = 256 << 10;

/// The most a terminal holds that was written and not read: the kernel's flip buffers and line
/// discipline, rounded up.
const TERMINAL_SIZE: u64 = 256 << 10;

/// How often a pump goes round before others get their turn.
const ROUNDS: usize = 16;

/// Makes reads and writes return at once.
///
/// # Errors
/// The kernel's.
pub fn set_nonblocking(fd: impl AsFd) -> Result<(), Errno> {
    fcntl_setfl(&fd, fcntl_getfl(&fd)? | OFlags::NONBLOCK)
}

/// Carries bytes from `source` to `sink`, neither of which blocks.
#[derive(Debug)]
pub struct Pump {
    stream: Stream,
    terminal: bool,
    source: Option<OwnedFd>,
    sink: Option<OwnedFd>,
    buffer: Vec<u8>,
    /// What of `buffer` is read and not written.
    start: usize,
    end: usize,
    /// When draining: how many more bytes to read.
    left: Option<u64>,
}

impl Pump {
    /// A pump for `stream`; `terminal` says that the process's end is one.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(stream: Stream, terminal: bool, source: OwnedFd, sink: OwnedFd) -> Result<Self, Errno> {
        set_nonblocking(&source)?;
        set_nonblocking(&sink)?;
        Ok(Self {
            stream,
            terminal,
            source: Some(source),
            sink: Some(sink),
            buffer: Vec::new(),
            start: 0,
            end: 0,
            left: None,
        })
    }

    /// Which stream it carries.
    #[must_use]
    pub fn stream(&self) -> Stream {
        self.stream
    }

    /// Whether everything was carried and both ends are closed.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.source.is_none() && self.sink.is_none()
    }

    /// What to wait for; nothing when done.
    #[must_use]
    pub fn interest(&self) -> Option<PollFd<'_>> {
        match (&self.source, &self.sink) {
            (_, Some(sink)) if self.start < self.end => Some(PollFd::new(sink, PollFlags::OUT)),
            (Some(source), _) => Some(PollFd::new(source, PollFlags::IN)),
            (None, _) => None,
        }
    }

    /// The process has ended: deliver what it left, then end.
    pub fn drain(&mut self) {
        let Some(source) = &self.source else { return };
        let left = if self.terminal { TERMINAL_SIZE } else { ioctl_fionread(source).unwrap_or(0) };
        self.left = Some(left);
        self.run();
    }

    /// End a process's input before its source ends; what was read and not written is dropped.
    pub fn end_input(&mut self) {
        if self.source.is_some() {
            self.source_ended();
            self.run();
        }
    }

    /// Carries what can be carried without waiting, up to a fair share. What is ending goes on as
    /// far as it can: nothing would wake it but room in the sink.
    pub fn run(&mut self) {
        let mut rounds = 0;
        while rounds < ROUNDS || self.left.is_some() || self.source.is_none() {
            let progress = if self.start < self.end { self.write() } else { self.read() };
            if !progress {
                return;
            }
            rounds += 1;
        }
    }

    /// `false` when there is nothing to do now.
    fn write(&mut self) -> bool {
        let Some(sink) = &self.sink else {
            self.start = self.end;
            return true;
        };
        match rustix::io::write(sink, &self.buffer[self.start..self.end]) {
            Ok(count) => self.start += count,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return false,
            Err(_) => self.sink_broke(),
        }
        true
    }

    /// The reader is gone. A process that writes into a pipe gets SIGPIPE for it; one on a terminal
    /// writes into the void, as on a detached one.
    fn sink_broke(&mut self) {
        self.sink = None;
        self.start = self.end;
        if !(self.terminal && self.stream == Stream::Stdout) {
            self.source = None;
        }
    }

    /// `false` when there is nothing to do now or ever.
    fn read(&mut self) -> bool {
        let Some(source) = &self.source else {
            self.sink = None;
            return false;
        };
        let room = self.left.map_or(BUFFER, |left| usize::try_from(left).unwrap_or(BUFFER).min(BUFFER));
        if room == 0 {
            self.source_ended();
            return true;
        }
        if self.buffer.is_empty() {
            self.buffer = vec![0; BUFFER];
        }
        match rustix::io::read(source, &mut self.buffer[..room]) {
            Ok(0) => self.source_ended(),
            Ok(count) => {
                (self.start, self.end) = (0, count);
                self.left = self.left.map(|left| left.saturating_sub(count as u64));
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) if self.left.is_none() => return false,
            // A terminal whose last user is gone says EIO.
            Err(_) => self.source_ended(),
        }
        true
    }

    /// On a terminal the end of input is a character, which its reader sees as such in canonical mode.
    fn source_ended(&mut self) {
        self.source = None;
        (self.start, self.end) = (0, 0);
        if let (true, Stream::Stdin, Some(sink)) = (self.terminal, self.stream, &self.sink)
            && let Ok(modes) = tcgetattr(sink)
            && modes.local_modes.contains(LocalModes::ICANON)
        {
            self.buffer = vec![modes.special_codes[SpecialCodeIndex::VEOF]];
            self.end = 1;
        }
    }
}
