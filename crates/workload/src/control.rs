//! How a running workload is reached: requests and answers on `control.sock`, version 1.
//!
//! A message is one line of JSON, at most [`MAX_LINE_BYTES`]: `{"version":1,"id":N,"fds":N,"body":…}`. `fds` is how many open
//! files come with it (SCM_RIGHTS, with its first byte). A client sends a [`Request`] and gets one [`Answer`] with the same
//! `id`; it may send the next one then. Monitor and worker speak the same way on a socket of their own, which is the worker's
//! standard input; there a worker also sends [`Event`]s, whose id is 0.
//!
//! ```text
//! command ──control.sock──► monitor ──standard input──► worker
//!          Request, Answer           Request, Answer, Event
//! ```
//!
//! What the monitor does not do itself ([`Request::is_for_worker`]) it hands on to the worker with the open files as they came,
//! and the answer back. So a new thing that is asked of a running machine is one variant here and one arm in the worker.
//!
//! A client that is gone while its request is under way loses the answer, no more.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::folder::Folder;
use crate::networks::Endpoint;
use crate::state::State;

/// The version of all messages.
pub const VERSION: u32 = 1;
/// Bytes of one message. Attack: a peer that sends a line without end.
pub const MAX_LINE_BYTES: usize = 1 << 20;
/// Open files that come with one message: three streams, and one to spare.
pub const MAX_FDS: usize = 4;

/// What is asked of a workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum Request {
    /// How it is: [`Answer::State`].
    State,
    /// Its command is started: a monitor waits for this, so that who wants all of the output attaches first. Answered by
    /// [`Answer::Done`] when the command runs, or [`Answer::NotStarted`].
    Start,
    /// Nobody will start it any more: a monitor that waits for that goes. Refused once it was started.
    GiveUp,
    /// A signal, by its number on Linux x86, to its command.
    Signal {
        /// The number.
        number: u8,
    },
    /// The signal of the image that asks for the end, and after some time the end without asking. Answered when it has ended;
    /// the restart policy is not asked.
    Stop {
        /// Milliseconds until it is ended without asking.
        timeout_ms: u64,
    },
    /// The end without asking. Answered when it has ended; the restart policy is not asked.
    Kill,
    /// Answered by [`Answer::Exited`] when it has ended and is not started again.
    Wait,
    /// Answered by [`Answer::Exited`] when it ends, whether it is started again or not.
    WaitForNextEnd,
    /// Its output, from now on, is also written to the two open files that come along, and a third one is read as its standard
    /// input, for as long as this connection is open or until the files fail. Answered by [`Answer::Done`] at once; whoever wants
    /// all of the output asks before [`Request::Start`], and with [`Request::Wait`] for the end. The end of such an early input
    /// is the end of the command's; others come and go.
    Attach {
        /// A third file comes along.
        stdin: bool,
        /// It is over when the workload ends, also if it is started again.
        #[serde(default)]
        once: bool,
    },
    /// Stands still until [`Request::Resume`].
    Pause,
    /// Goes on.
    Resume,
    /// The terminal of its command has a new size.
    Resize {
        /// Lines.
        rows: u16,
        /// Columns.
        columns: u16,
    },
    /// Another command beside the workload's own. Its output goes to the two open files that come along, and a third one is its
    /// standard input. Answered by [`Answer::Exited`] or [`Answer::NotStarted`].
    Exec(Exec),
    /// A signal to such a command.
    ExecSignal {
        /// Which one.
        key: u64,
        /// The number.
        number: u8,
    },
    /// The terminal of such a command has a new size.
    ExecResize {
        /// Which one.
        key: u64,
        /// Lines.
        rows: u16,
        /// Columns.
        columns: u16,
    },
    /// What it takes of the host, as far as only it knows: [`Answer::Stats`].
    Stats,
    /// Its machine is saved to the two empty files that come along, for state and for memory: [`Answer::Saved`]. If a socket
    /// comes along too, memory may be saved as the differences from a file, which is sent there.
    Snapshot {
        /// It ends there, and is not started again.
        stop: bool,
    },
    /// A container that runs is connected to another network.
    Connect(Endpoint),
    /// It is not connected to this one any more.
    Disconnect {
        /// The network's name.
        network: String,
    },
    /// From the monitor to its worker alone, first of all: what comes along.
    Begin {
        /// A standard input for the command.
        stdin: bool,
        /// Behind it two files, of [`Request::Snapshot`]: it goes on from there.
        saved: bool,
    },
}

impl Request {
    /// Whether the worker does it, and not the monitor.
    pub fn is_for_worker(&self) -> bool {
        !matches!(
            self,
            Request::State
                | Request::Start
                | Request::GiveUp
                | Request::Stop { .. }
                | Request::Kill
                | Request::Wait
                | Request::WaitForNextEnd
                | Request::Attach { .. }
        )
    }
}

/// Another command in a workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// Chosen by the client, for [`Request::ExecSignal`] and [`Request::ExecResize`].
    pub key: u64,
    /// The command and its arguments.
    pub command: Vec<String>,
    /// Its whole environment, `NAME=value`.
    pub env: Vec<String>,
    /// Its working directory.
    pub workdir: String,
    /// `USER[:GROUP]`; empty is root.
    pub user: String,
    /// Lines and columns of its terminal, if it has one.
    pub terminal: Option<(u16, u16)>,
    /// A third file comes along.
    pub stdin: bool,
    /// Answered by [`Answer::Done`] when it has started.
    pub detach: bool,
}

/// What comes of a [`Request`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum Answer {
    /// It is done.
    Done,
    /// It is not, for this reason.
    Error {
        /// One line.
        reason: String,
    },
    /// How the workload is.
    State {
        /// As noted.
        state: Box<State>,
    },
    /// A command could not be started.
    NotStarted {
        /// What a shell would end with: 127 where there is no such command.
        code: u8,
        /// One line.
        reason: String,
    },
    /// What it takes of the host.
    Stats {
        /// Bytes of memory that its guest has given back so far; none if it cannot.
        returned_bytes: Option<u64>,
        /// Bytes that came through its network cards; none if it has none. Monitors of older builds do not say.
        #[serde(default)]
        received_bytes: Option<u64>,
        /// Bytes that went out through them.
        #[serde(default)]
        sent_bytes: Option<u64>,
    },
    /// The snapshot is whole and durable.
    Saved {
        /// How long the machine stood still, in milliseconds.
        paused_ms: u64,
    },
    /// A command has ended.
    Exited {
        /// Its code, or 128 + the signal's number.
        code: u8,
    },
}

/// What a worker says without being asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// The command runs.
    Started,
    /// The kernel has killed one of its processes, which had more memory than they may.
    OutOfMemory,
    /// It could not be run, or was ended by something else than its own end.
    Failed {
        /// One line.
        reason: String,
    },
}

/// What a worker sends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum FromWorker {
    /// To a request.
    Answer(Answer),
    /// Of its own.
    Event(Event),
}

#[derive(Serialize, Deserialize)]
struct Envelope<T> {
    version: u32,
    id: u64,
    #[serde(default)]
    fds: usize,
    body: T,
}

/// A message that came.
#[derive(Debug)]
pub struct Message<T> {
    /// Joins an answer to its request.
    pub id: u64,
    /// What it says.
    pub body: T,
    /// Open files that came along.
    pub fds: Vec<OwnedFd>,
}

/// The receiving half of one end of a connection.
#[derive(Debug)]
pub struct Receiver {
    socket: UnixStream,
    peer: &'static str,
    buffer: Vec<u8>,
    fds: VecDeque<OwnedFd>,
}

/// The sending half.
#[derive(Debug)]
pub struct Sender {
    socket: UnixStream,
    peer: &'static str,
}

/// Both halves of one end of a connection to `peer`, a word for errors.
///
/// # Errors
/// The host has no more open files.
pub fn halves(socket: UnixStream, peer: &'static str) -> Result<(Sender, Receiver)> {
    let twin = socket.try_clone().map_err(|source| Error::Socket { peer, source })?;
    Ok((Sender { socket: twin, peer }, Receiver { socket, peer, buffer: Vec::new(), fds: VecDeque::new() }))
}

impl Sender {
    /// Sends one message; open files stay the caller's too.
    ///
    /// # Errors
    /// The other end is gone.
    pub fn send(&mut self, id: u64, body: &impl Serialize, fds: &[BorrowedFd<'_>]) -> Result<()> {
        let (peer, message) = (self.peer, |reason: String| Error::Message { peer: self.peer, reason });
        if fds.len() > MAX_FDS {
            return Err(message(format!("{} open files in one message", fds.len())));
        }
        let envelope = Envelope { version: VERSION, id, fds: fds.len(), body };
        let mut line = serde_json::to_vec(&envelope).map_err(|error| message(error.to_string()))?;
        line.push(b'\n');
        if line.len() > MAX_LINE_BYTES {
            return Err(message(format!("a message of {} bytes", line.len())));
        }
        let error = |source| Error::Socket { peer, source };
        let sent = if fds.is_empty() { 0 } else { self.send_fds(&line, fds).map_err(error)? };
        self.socket.write_all(&line[sent..]).map_err(error)
    }

    fn send_fds(&self, line: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let sent = rustix::io::retry_on_intr(|| {
            rustix::net::sendmsg(&self.socket, &[IoSlice::new(line)], &mut ancillary, SendFlags::NOSIGNAL)
        });
        Ok(sent?)
    }
}

impl Receiver {
    /// Waits for the next message; nothing when the other end is gone.
    ///
    /// # Errors
    /// What came is no message of this version.
    pub fn receive<T: DeserializeOwned>(&mut self) -> Result<Option<Message<T>>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return self.parse(&line).map(Some);
            }
            if self.buffer.len() > MAX_LINE_BYTES {
                return Err(self.wrong(format!("a message of more than {MAX_LINE_BYTES} bytes")));
            }
            if self.fill().map_err(|source| Error::Socket { peer: self.peer, source })? == 0 {
                return Ok(None);
            }
        }
    }

    /// Waiting for longer is [`Error::is_timeout`]; what has come of a message by then stays.
    ///
    /// # Errors
    /// The time is none.
    pub fn set_timeout(&self, time: std::time::Duration) -> Result<()> {
        let set = self.socket.set_read_timeout(Some(time));
        set.map_err(|source| Error::Socket { peer: self.peer, source })
    }

    fn wrong(&self, reason: String) -> Error {
        Error::Message { peer: self.peer, reason }
    }

    fn parse<T: DeserializeOwned>(&mut self, line: &[u8]) -> Result<Message<T>> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        // The version first: the rest of another one may look different.
        let said: Version = serde_json::from_slice(line).map_err(|error| self.wrong(error.to_string()))?;
        if said.version != VERSION {
            return Err(self.wrong(format!("version {} of the protocol, this is {VERSION}", said.version)));
        }
        let envelope: Envelope<T> =
            serde_json::from_slice(line).map_err(|error| self.wrong(error.to_string()))?;
        if envelope.fds > self.fds.len() {
            return Err(self.wrong("open files that did not come".to_owned()));
        }
        let fds = self.fds.drain(..envelope.fds).collect();
        Ok(Message { id: envelope.id, body: envelope.body, fds })
    }

    fn fill(&mut self) -> io::Result<usize> {
        let mut bytes = [0; 16 << 10];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::io::retry_on_intr(|| {
            let mut parts = [IoSliceMut::new(&mut bytes)];
            rustix::net::recvmsg(&self.socket, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)
        })?;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.fds.extend(fds);
            }
        }
        if self.fds.len() > 16 * MAX_FDS {
            return Err(io::Error::other("open files that no message speaks of"));
        }
        self.buffer.extend_from_slice(&bytes[..received.bytes]);
        Ok(received.bytes)
    }
}

/// A command's connection to the monitor of a workload.
#[derive(Debug)]
pub struct Client {
    sender: Sender,
    receiver: Receiver,
    next_id: u64,
}

impl Client {
    /// Reaches the monitor.
    ///
    /// # Errors
    /// Nobody watches the workload.
    pub fn connect(folder: &Folder) -> Result<Client> {
        let name = &folder.description().name;
        if !folder.is_watched()? {
            return Err(Error::NotWatched { name: name.clone() });
        }
        let socket = through_folder(folder.path(), |path| UnixStream::connect(path))
            .map_err(Error::file("connect to", folder.socket()))?;
        let (sender, receiver) = halves(socket, "the monitor")?;
        Ok(Client { sender, receiver, next_id: 1 })
    }

    /// Asks and waits for the answer.
    ///
    /// # Errors
    /// The monitor is gone, or did not do it.
    pub fn ask(&mut self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<Answer> {
        let id = self.next_id;
        self.next_id += 1;
        self.sender.send(id, request, fds)?;
        loop {
            let Some(message) = self.receiver.receive::<Answer>()? else {
                return Err(Error::Message { peer: "the monitor", reason: "it is gone".to_owned() });
            };
            if message.id == id {
                return match message.body {
                    Answer::Error { reason } => Err(Error::Refused(reason)),
                    answer => Ok(answer),
                };
            }
        }
    }
}

/// Makes the socket of a workload.
///
/// # Errors
/// The folder cannot be written.
pub fn listen(folder: &Folder) -> Result<UnixListener> {
    let path = folder.socket();
    // Of a monitor that was killed.
    let _ = std::fs::remove_file(&path);
    through_folder(folder.path(), |path| UnixListener::bind(path)).map_err(Error::file("listen on", path))
}

/// Reaches `control.sock` in `folder`, whose own path may be longer than the 107 bytes a socket's may have.
fn through_folder<T>(folder: &Path, act: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    let dir = std::fs::File::open(folder)?;
    act(Path::new(&format!("/proc/self/fd/{}/control.sock", dir.as_fd().as_raw_fd())))
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn pair() -> ((Sender, Receiver), (Sender, Receiver)) {
        let (a, b) = UnixStream::pair().unwrap();
        (halves(a, "b").unwrap(), halves(b, "a").unwrap())
    }

    #[test]
    fn requests_arrive_with_their_open_files() {
        let ((mut ours, _), (_, mut theirs)) = pair();
        let (mut read, write) = std::io::pipe().unwrap();
        ours.send(1, &Request::Pause, &[]).unwrap();
        ours.send(2, &Request::Attach { stdin: false, once: false }, &[write.as_fd(), write.as_fd()])
            .unwrap();
        ours.send(3, &Request::Signal { number: 15 }, &[]).unwrap();
        drop(write);
        let first = theirs.receive::<Request>().unwrap().unwrap();
        assert_eq!((first.id, first.body, first.fds.len()), (1, Request::Pause, 0));
        let second = theirs.receive::<Request>().unwrap().unwrap();
        assert_eq!((second.id, second.fds.len()), (2, 2));
        rustix::io::write(&second.fds[1], b"hello").unwrap();
        drop(second);
        let mut text = String::new();
        read.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
        assert_eq!(theirs.receive::<Request>().unwrap().unwrap().body, Request::Signal { number: 15 });
        drop(ours);
    }

    #[test]
    fn nonsense_is_one_error() {
        for (line, want) in [
            ("{}\n", "missing field `version`"),
            ("x\n", "expected value"),
            ("{\"version\":2,\"whatever\":1}\n", "version 2 of the protocol"),
            ("{\"version\":1,\"id\":1,\"fds\":1,\"body\":{\"request\":\"pause\"}}\n", "did not come"),
            ("{\"version\":1,\"id\":1,\"body\":{\"request\":\"fly\"}}\n", "unknown variant"),
        ] {
            let (mut peer, socket) = UnixStream::pair().unwrap();
            let (_, mut receiver) = halves(socket, "them").unwrap();
            peer.write_all(line.as_bytes()).unwrap();
            let message = receiver.receive::<Request>().unwrap_err().to_string();
            assert!(message.starts_with("talk to them") && message.contains(want), "{message}");
        }
        let (mut peer, socket) = UnixStream::pair().unwrap();
        let (_, mut receiver) = halves(socket, "them").unwrap();
        std::thread::spawn(move || while peer.write_all(&[b'x'; 65536]).is_ok() {});
        let message = receiver.receive::<Request>().unwrap_err().to_string();
        assert!(message.contains("more than 1048576 bytes"), "{message}");
    }

    #[test]
    fn answers_and_events_of_a_worker_are_told_apart() {
        let ((mut ours, _), (_, mut theirs)) = pair();
        ours.send(0, &Event::Started, &[]).unwrap();
        ours.send(4, &Answer::Exited { code: 3 }, &[]).unwrap();
        let mut next = || theirs.receive::<FromWorker>().unwrap().unwrap();
        assert_eq!(next().body, FromWorker::Event(Event::Started));
        let answer = next();
        assert_eq!((answer.id, answer.body), (4, FromWorker::Answer(Answer::Exited { code: 3 })));
    }
}
