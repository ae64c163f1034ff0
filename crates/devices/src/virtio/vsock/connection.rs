//! One stream between a port of the guest and a socket of the host.
//!
//! Guest to host: what the socket does not take at once waits in a backlog, no longer than the buffer we
//! advertise; a guest that sends more than its credit is reset. Host to guest: the socket is read only as far
//! as the guest has advertised room. Each direction is closed by itself; see [`Connection::owed_shutdown`].
//!
//! ```text
//!                 REQUEST sent            RESPONSE
//!   host connects ───────────► Requested ─────────► Open ──► both directions closed ──► RST, gone
//!   guest's REQUEST, host accepts ────────────────►  │
//!                                                    └─ RST either way ──► gone (backlog is still delivered
//!                                                       if the guest had closed in an orderly way)
//! ```

mod saved;

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read};
use std::net::Shutdown;
use std::num::Wrapping;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::Sender;
use std::time::Duration;

use rustix::net::{SendFlags, send};

use super::super::Chain;
use super::packet::{HEADER_BYTES, Header, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, op};

/// Connections at once, lingering ones included; bounds the memory a guest can make us use.
pub(super) const MAX_CONNECTIONS: usize = 1024;
/// RSTs waiting for a buffer beyond which the guest's packets are left in the ring.
pub(super) const MAX_RESETS: usize = 256;
/// Bytes the guest may send before the host has read them.
pub(super) const BUFFER_BYTES: u32 = 256 << 10;
/// Forwarded bytes the guest is not told of yet at which it is told: late enough to be rare, early enough that
/// the guest can always send a full packet.
const ADVERTISE_BYTES: u32 = BUFFER_BYTES / 2;
/// Bytes in one packet to the guest.
const PACKET_BYTES: usize = 64 << 10;

/// Who talks to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Ports {
    pub host: u32,
    pub guest: u32,
}

pub(super) use saved::{SavedConnection, check};

/// What is to become of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It goes on.
    Keep,
    /// The guest is told RST and it is gone.
    Reset,
    /// It is gone; the guest knows.
    Gone,
    /// It is gone for the guest, but the host has yet to read the backlog.
    Linger,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Requested,
    Open,
}

/// Control packets waiting for a buffer of the guest.
#[derive(Clone, Copy, Debug, Default)]
struct Pending {
    request: bool,
    response: bool,
    credit_update: bool,
    credit_request: bool,
}

/// The connection.
pub(super) struct Connection {
    pub ports: Ports,
    stream: UnixStream,
    state: State,
    /// Whoever waits for the guest to answer a REQUEST.
    waiter: Option<Sender<io::Result<()>>>,
    pending: Pending,
    /// In the list of those with something to send.
    pub queued: bool,
    /// Gone for the guest.
    pub lingering: bool,
    /// Whether the poller reports when the socket takes more.
    pub watches_writable: bool,

    // Guest to host.
    received: Wrapping<u32>,
    forwarded: Wrapping<u32>,
    advertised: Wrapping<u32>,
    backlog: VecDeque<u8>,
    guest_sends: bool,
    host_receives: bool,

    // Host to guest.
    sent: Wrapping<u32>,
    guest_buffer: u32,
    guest_forwarded: Wrapping<u32>,
    readable: bool,
    host_sends: bool,
    guest_receives: bool,
    /// SHUTDOWN flags the guest was told.
    told_shutdown: u32,
    credit_requested: bool,
}

impl Connection {
    /// A connection the guest asked for with `request` and the host accepted.
    pub fn accepted(ports: Ports, stream: UnixStream, request: &Header) -> Self {
        let mut connection = Self::new(ports, stream, State::Open);
        connection.pending.response = true;
        connection.note_credit(request);
        connection
    }

    /// A connection the host asks for; `waiter` hears of the guest's answer.
    pub fn requested(ports: Ports, stream: UnixStream, waiter: Sender<io::Result<()>>) -> Self {
        let mut connection = Self::new(ports, stream, State::Requested);
        connection.pending.request = true;
        connection.waiter = Some(waiter);
        connection
    }

    fn new(ports: Ports, stream: UnixStream, state: State) -> Self {
        Self {
            ports,
            stream,
            state,
            waiter: None,
            pending: Pending::default(),
            queued: false,
            lingering: false,
            watches_writable: false,
            received: Wrapping(0),
            forwarded: Wrapping(0),
            advertised: Wrapping(0),
            backlog: VecDeque::new(),
            guest_sends: true,
            host_receives: true,
            sent: Wrapping(0),
            guest_buffer: 0,
            guest_forwarded: Wrapping(0),
            readable: false,
            host_sends: true,
            guest_receives: true,
            told_shutdown: 0,
            credit_requested: false,
        }
    }

    /// The host's socket.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Whether something waits for the socket to take more.
    pub fn has_backlog(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// Whether the guest has not even been asked yet, so that a reset of the device does not concern it.
    pub fn is_unasked(&self) -> bool {
        self.pending.request
    }

    /// Tells whoever waits for the guest's answer.
    pub fn answer_waiter(&mut self, answer: io::Result<()>) {
        if let Some(waiter) = self.waiter.take() {
            // Nobody listens any more: it gave up waiting.
            let _ = waiter.send(answer);
        }
    }

    /// Takes a packet of the guest; `chain` stands at its data.
    pub fn packet(&mut self, header: &Header, chain: &mut Chain) -> Fate {
        self.note_credit(header);
        match (header.op, self.state) {
            (op::RST, _) => self.reset_by_guest(),
            (op::RESPONSE, State::Requested) if !self.pending.request => {
                self.state = State::Open;
                self.answer_waiter(Ok(()));
                Fate::Keep
            }
            (op::RW, State::Open) => self.data(header.len, chain),
            (op::SHUTDOWN, State::Open) => self.shutdown_by_guest(header.flags),
            (op::CREDIT_UPDATE, State::Open) => Fate::Keep,
            (op::CREDIT_REQUEST, State::Open) => {
                self.pending.credit_update = true;
                Fate::Keep
            }
            _ => {
                self.answer_waiter(Err(ErrorKind::ConnectionReset.into()));
                Fate::Reset
            }
        }
    }

    fn note_credit(&mut self, header: &Header) {
        self.guest_buffer = header.buf_alloc;
        self.guest_forwarded = Wrapping(header.fwd_cnt);
        if self.credit() > 0 {
            self.credit_requested = false;
        }
    }

    /// Bytes the guest has room for.
    fn credit(&self) -> u32 {
        self.guest_buffer.saturating_sub((self.sent - self.guest_forwarded).0)
    }

    fn reset_by_guest(&mut self) -> Fate {
        self.answer_waiter(Err(ErrorKind::ConnectionRefused.into()));
        if !self.guest_sends && self.has_backlog() { Fate::Linger } else { Fate::Gone }
    }

    /// The device was reset: the guest will neither send nor receive.
    pub fn guest_is_gone(&mut self) -> Fate {
        self.answer_waiter(Err(ErrorKind::ConnectionAborted.into()));
        (self.guest_sends, self.guest_receives) = (false, false);
        if self.has_backlog() {
            return Fate::Linger;
        }
        self.discard_unread();
        Fate::Gone
    }

    /// Delivers the backlog, waiting up to `timeout` for each piece to be taken.
    pub fn flush(&mut self, timeout: Duration) {
        let ready =
            self.stream.set_nonblocking(false).and_then(|()| self.stream.set_write_timeout(Some(timeout)));
        while ready.is_ok() && self.has_backlog() {
            let (first, _) = self.backlog.as_slices();
            match send(&self.stream, first, SendFlags::NOSIGNAL) {
                Ok(count) => drop(self.backlog.drain(..count)),
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => break,
            }
        }
    }

    fn data(&mut self, len: u32, chain: &mut Chain) -> Fate {
        let in_flight = (self.received - self.forwarded).0;
        let fits = in_flight.checked_add(len).is_some_and(|total| total <= BUFFER_BYTES);
        if !fits || !self.guest_sends {
            return Fate::Reset;
        }
        self.received += len;
        let mut left = len as usize;
        while left > 0 && self.backlog.is_empty() && self.host_receives {
            match chain.drain_to(&mut &self.stream, left) {
                Ok(count) => {
                    left -= count;
                    self.note_forwarded(count);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => self.stop_receiving(),
            }
        }
        if !self.host_receives {
            self.note_forwarded(left);
        } else if left > 0 {
            let mut rest = vec![0; left];
            chain.read(&mut rest);
            self.backlog.extend(rest);
        }
        Fate::Keep
    }

    fn note_forwarded(&mut self, count: usize) {
        self.forwarded += count as u32;
        if (self.forwarded - self.advertised).0 >= ADVERTISE_BYTES {
            self.pending.credit_update = true;
        }
    }

    /// The host reads no more: what the guest sends is taken and lost, and the guest is told to stop.
    fn stop_receiving(&mut self) {
        self.host_receives = false;
        let lost = std::mem::take(&mut self.backlog).len();
        self.note_forwarded(lost);
    }

    fn shutdown_by_guest(&mut self, flags: u32) -> Fate {
        if flags & SHUTDOWN_SEND != 0 {
            self.guest_sends = false;
        }
        if flags & SHUTDOWN_RECEIVE != 0 && self.guest_receives {
            self.guest_receives = false;
            // Errors of shutdown mean that the other side has done it already.
            let _ = self.stream.shutdown(Shutdown::Read);
        }
        self.after_drain()
    }

    /// What follows once the backlog is empty.
    fn after_drain(&mut self) -> Fate {
        if self.has_backlog() {
            return Fate::Keep;
        }
        if !self.guest_sends {
            let _ = self.stream.shutdown(Shutdown::Write);
            if !self.guest_receives {
                self.discard_unread();
                return if self.lingering { Fate::Gone } else { Fate::Reset };
            }
        }
        Fate::Keep
    }

    /// Empties the socket before it is closed in an orderly way: closing it with unread bytes would make the
    /// host read a reset instead of the end of the stream.
    fn discard_unread(&mut self) {
        let mut bin = [0; 4096];
        // As much as any socket buffer holds; more cannot come after the shutdown.
        for _ in 0..1024 {
            if !matches!((&self.stream).read(&mut bin), Ok(1..)) {
                break;
            }
        }
    }

    /// The socket can be read (or its end was reached).
    pub fn socket_readable(&mut self) {
        self.readable = true;
    }

    /// The other end of the socket is closed in both directions.
    pub fn socket_closed(&mut self) -> Fate {
        self.readable = true;
        self.stop_receiving();
        self.after_drain()
    }

    /// The socket takes more: hands it the backlog.
    pub fn socket_writable(&mut self) -> Fate {
        while !self.backlog.is_empty() {
            let (first, _) = self.backlog.as_slices();
            match send(&self.stream, first, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(count) => {
                    self.backlog.drain(..count);
                    self.note_forwarded(count);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => return Fate::Keep,
                Err(_) => self.stop_receiving(),
            }
        }
        // The buffer of a burst is not kept.
        self.backlog = VecDeque::new();
        self.after_drain()
    }

    /// SHUTDOWN flags the guest has to be told.
    fn owed_shutdown(&self) -> u32 {
        let send = if self.host_sends { 0 } else { SHUTDOWN_SEND };
        let receive = if self.host_receives { 0 } else { SHUTDOWN_RECEIVE };
        if self.told_shutdown | send | receive == self.told_shutdown { 0 } else { send | receive }
    }

    fn may_read(&self) -> bool {
        self.state == State::Open && self.readable && self.host_sends && self.guest_receives
    }

    /// Whether [`Self::next_packet`] may have something.
    pub fn has_packet(&self) -> bool {
        let Pending { request, response, credit_update, credit_request } = self.pending;
        let open = self.state == State::Open;
        let stalled = self.may_read() && self.credit() == 0;
        request
            || response
            || (open && (credit_update || credit_request || self.owed_shutdown() != 0))
            || (self.may_read() && self.credit() > 0)
            || (stalled && !self.credit_requested)
    }

    /// Writes the next packet for the guest into `chain` and gives its header; `None` if there is none after
    /// all. Addresses are filled in here, the chain's header bytes by the caller.
    pub fn next_packet(&mut self, chain: &mut Chain) -> Option<Header> {
        let (operation, flags, len) = self.choose_packet(chain)?;
        self.pending.credit_update = false;
        self.advertised = self.forwarded;
        Some(Header {
            src_port: self.ports.host,
            dst_port: self.ports.guest,
            len,
            op: operation,
            flags,
            buf_alloc: BUFFER_BYTES,
            fwd_cnt: self.forwarded.0,
            ..Header::default()
        })
    }

    fn choose_packet(&mut self, chain: &mut Chain) -> Option<(u16, u32, u32)> {
        if std::mem::take(&mut self.pending.request) {
            return Some((op::REQUEST, 0, 0));
        }
        if std::mem::take(&mut self.pending.response) {
            return Some((op::RESPONSE, 0, 0));
        }
        if self.state != State::Open {
            return None;
        }
        if self.may_read() && self.credit() > 0 {
            let len = self.read_socket(chain);
            if len > 0 {
                self.sent += len;
                return Some((op::RW, 0, len));
            }
        }
        let shutdown = self.owed_shutdown();
        if shutdown != 0 {
            self.told_shutdown |= shutdown;
            return Some((op::SHUTDOWN, self.told_shutdown, 0));
        }
        if self.may_read() && self.credit() == 0 && !self.credit_requested {
            self.credit_requested = true;
            return Some((op::CREDIT_REQUEST, 0, 0));
        }
        let update = self.pending.credit_update;
        update.then_some((op::CREDIT_UPDATE, 0, 0))
    }

    /// Reads the socket into the data part of `chain`. 0 if there is nothing now, or nothing ever again.
    fn read_socket(&mut self, chain: &mut Chain) -> u32 {
        chain.skip_writable(HEADER_BYTES);
        let limit = (self.credit() as usize).min(PACKET_BYTES);
        let mut done = 0;
        while done < limit && chain.writable() > 0 {
            match chain.fill_from(&mut &self.stream, limit - done) {
                Ok(0) => {
                    self.host_sends = false;
                    break;
                }
                Ok(count) => done += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.readable = false;
                    break;
                }
                // A reset by the host: nothing more comes, and nothing is read.
                Err(_) => {
                    self.host_sends = false;
                    self.stop_receiving();
                    break;
                }
            }
        }
        chain.rewind();
        done as u32
    }
}
