//! One TCP connection: the end that the guest speaks to (RFC 9293), joined to a socket of the host's.
//!
//! ```text
//! guest ── segments ── to_host ──► socket      received in order, acknowledged once taken
//!       ◄─ segments ── to_guest ◄──            kept until acknowledged
//!
//! Connecting ──host is there──► SynReceived ──ACK──► Open      the guest connects
//! SynSent ──SYN, ACK──► Open                                   somebody connects to a published port
//! ```
//! The cable loses nothing and keeps the order, so there is no congestion control and no store of segments out of order:
//! what is missing is sent again from there on, after three equal acknowledgements or a time (go-back-n). Both buffers are
//! bounded by the windows; what the guest sends beyond its window is not taken.
//!
//! Known omissions: selective acknowledgement, time stamps, urgent data, path MTU.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddrV4, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use super::packet::{self, Header, Macs, Tcp, flag};
use crate::{Checksum, Offloads, Received};

/// Most bytes of a connection that wait in each direction: the windows.
const BUFFER: usize = 256 << 10;
/// The shift of the windows we announce.
const SCALE: u8 = 7;
/// The largest segment over Ethernet.
pub const MSS: u16 = 1460;
/// What a peer that says nothing takes (RFC 9293, section 3.7.1).
const DEFAULT_MSS: u16 = 536;
/// Smaller ones would be an attack: forty bytes of header for each byte.
const LEAST_MSS: u16 = 88;
/// Segments in one large frame: their payload stays within one IPv4 packet.
const SEGMENTS_AT_ONCE: usize = 44;
/// How long an acknowledgement may take before its bytes are sent again, at first; doubled each time.
const RETRANSMIT: Duration = Duration::from_millis(500);
/// So often, which is four minutes, then the guest is taken for dead.
const MAX_RETRIES: u32 = 9;
/// Equal acknowledgements that say that something is missing (RFC 5681).
const DUPLICATES: u32 = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Connecting,
    SynReceived,
    SynSent,
    Open,
}

/// What becomes of a connection after something happened to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It goes on.
    Lives,
    /// It is over for both.
    Over,
    /// It is over and the guest is to be told by a reset.
    Reset,
}

/// A connection.
pub struct Connection {
    socket: TcpStream,
    guest: SocketAddrV4,
    peer: SocketAddrV4,
    state: State,
    /// The next byte from the guest.
    receive_next: u32,
    to_host: VecDeque<u8>,
    /// The guest has said its last byte.
    guest_is_done: bool,
    /// And the host has been told.
    host_is_told: bool,
    /// The first byte, or SYN or FIN, that the guest has not acknowledged.
    unacknowledged: u32,
    /// The next to be sent.
    send_next: u32,
    /// The end of what was ever sent.
    send_most: u32,
    to_guest: VecDeque<u8>,
    /// The number of FIN, once the host has said its last byte.
    fin: Option<u32>,
    /// How much the guest takes.
    window: u32,
    /// The shifts of its windows and of ours.
    scale: u8,
    our_scale: u8,
    mss: u16,
    duplicates: u32,
    retries: u32,
    /// When something was sent that waits for its acknowledgement, or when that came.
    moved: Instant,
    /// One byte is sent into a closed window, to learn that it has opened.
    probe: bool,
    readable: bool,
    syn_due: bool,
    ack_due: bool,
}

impl Connection {
    /// The guest has sent `syn` to `peer`, to which `socket` is being connected.
    pub fn from_guest(
        socket: TcpStream,
        guest: SocketAddrV4,
        peer: SocketAddrV4,
        first: u32,
        syn: &Tcp,
    ) -> Self {
        let mut connection = Self::new(socket, guest, peer, first, State::Connecting);
        connection.learn(syn);
        connection
    }

    /// `peer` has connected by `socket` to what is `guest` in here.
    pub fn from_host(socket: TcpStream, guest: SocketAddrV4, peer: SocketAddrV4, first: u32) -> Self {
        let mut connection = Self::new(socket, guest, peer, first, State::SynSent);
        connection.syn_due = true;
        connection
    }

    fn new(socket: TcpStream, guest: SocketAddrV4, peer: SocketAddrV4, first: u32, state: State) -> Self {
        Self {
            socket,
            guest,
            peer,
            state,
            receive_next: 0,
            to_host: VecDeque::new(),
            guest_is_done: false,
            host_is_told: false,
            unacknowledged: first,
            send_next: first,
            send_most: first,
            to_guest: VecDeque::new(),
            fin: None,
            window: 0,
            scale: 0,
            our_scale: SCALE,
            mss: DEFAULT_MSS,
            duplicates: 0,
            retries: 0,
            moved: Instant::now(),
            probe: false,
            readable: false,
            syn_due: false,
            ack_due: false,
        }
    }

    /// What is waited for.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// What a SYN says of the guest.
    fn learn(&mut self, syn: &Tcp) {
        self.receive_next = syn.seq.wrapping_add(1);
        self.mss = syn.mss.unwrap_or(DEFAULT_MSS).clamp(LEAST_MSS, MSS);
        self.scale = syn.scale.unwrap_or(0);
        self.our_scale = syn.scale.map_or(0, |_| SCALE);
        self.window = syn.window.into();
    }

    /// The host's socket has something to say.
    pub fn host_moved(&mut self) -> Fate {
        if self.state == State::Connecting {
            return match (self.socket.take_error(), self.socket.peer_addr()) {
                (Ok(None), Ok(_)) => {
                    self.state = State::SynReceived;
                    (self.syn_due, self.readable) = (true, true);
                    Fate::Lives
                }
                (Ok(None), Err(error)) if error.kind() == io::ErrorKind::NotConnected => Fate::Lives,
                _ => Fate::Reset,
            };
        }
        self.readable = true;
        self.flush()
    }

    /// A segment of the guest for this connection.
    pub fn segment(&mut self, segment: &Tcp) -> Fate {
        if segment.has(flag::RST) {
            // From whoever owns the connection; a stale one names another byte.
            let expected = segment.seq == self.receive_next || self.state == State::SynSent;
            return if expected { Fate::Over } else { Fate::Lives };
        }
        match self.state {
            State::Connecting => return Fate::Lives,
            State::SynSent if segment.has(flag::SYN) && segment.has(flag::ACK) => self.learn(segment),
            State::SynReceived if segment.has(flag::SYN) => {
                self.syn_due = true;
                return Fate::Lives;
            }
            State::Open if segment.has(flag::SYN) => {
                self.ack_due = true;
                return Fate::Lives;
            }
            _ => {}
        }
        if !segment.has(flag::ACK) {
            return Fate::Lives;
        }
        if self.state != State::Open {
            if segment.ack != self.unacknowledged.wrapping_add(1) {
                return Fate::Reset;
            }
            self.ack_due |= self.state == State::SynSent;
            self.state = State::Open;
            self.unacknowledged = segment.ack;
            (self.send_next, self.send_most) = (segment.ack, segment.ack);
            self.progress();
            if segment.has(flag::SYN) {
                return Fate::Lives;
            }
        }
        self.acknowledge(segment);
        self.take(segment)
    }

    fn progress(&mut self) {
        self.moved = Instant::now();
        (self.retries, self.duplicates, self.probe) = (0, 0, false);
    }

    fn acknowledge(&mut self, segment: &Tcp) {
        let sent = self.send_most.wrapping_sub(self.unacknowledged);
        let acknowledged = segment.ack.wrapping_sub(self.unacknowledged);
        if acknowledged > sent {
            // Of before, or of what was never sent.
            self.ack_due |= acknowledged < 1 << 31;
            return;
        }
        let window = u32::from(segment.window) << self.scale;
        if acknowledged > 0 {
            // FIN has a number and no byte.
            let bytes = (acknowledged as usize).min(self.to_guest.len());
            self.to_guest.drain(..bytes);
            self.unacknowledged = segment.ack;
            if self.in_flight() > self.send_most.wrapping_sub(segment.ack) {
                self.send_next = segment.ack;
            }
            self.progress();
        } else if sent > 0 && segment.payload.is_empty() && window == self.window && !segment.has(flag::FIN) {
            self.duplicates += 1;
            if self.duplicates == DUPLICATES {
                self.send_next = self.unacknowledged;
            }
        }
        self.window = window;
        if window == 0 {
            // It is there, and takes nothing for now: that may last.
            self.retries = 0;
        }
    }

    /// Sent and not acknowledged, in numbers. Huge for a moment where an acknowledgement has passed what is sent again.
    fn in_flight(&self) -> u32 {
        self.send_next.wrapping_sub(self.unacknowledged)
    }

    /// Takes what is next of a segment's bytes.
    fn take(&mut self, segment: &Tcp) -> Fate {
        if segment.payload.is_empty() && !segment.has(flag::FIN) {
            // A question whether we are still there, or a probe, has a number of before.
            self.ack_due |= segment.seq != self.receive_next;
            return Fate::Lives;
        }
        self.ack_due = true;
        let seen = self.receive_next.wrapping_sub(segment.seq) as usize;
        let Some(new) = segment.payload.get(seen..).filter(|_| !self.guest_is_done) else {
            return Fate::Lives;
        };
        let taken = match self.write(&new[..new.len().min(self.room())]) {
            Ok(taken) => taken,
            Err(_) => return Fate::Reset,
        };
        self.receive_next = self.receive_next.wrapping_add(taken as u32);
        if taken == new.len() && segment.has(flag::FIN) {
            self.receive_next = self.receive_next.wrapping_add(1);
            self.guest_is_done = true;
            return self.flush();
        }
        Fate::Lives
    }

    fn room(&self) -> usize {
        BUFFER - self.to_host.len()
    }

    /// To the socket what it takes, the rest to the buffer; there is room for all of it.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut rest = bytes;
        while self.to_host.is_empty() && !rest.is_empty() {
            match self.socket.write(rest) {
                Ok(count) => rest = &rest[count..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.to_host.extend(rest);
        Ok(bytes.len())
    }

    /// What waits for the socket to take more.
    fn flush(&mut self) -> Fate {
        let was_short = self.room() < BUFFER / 2;
        while !self.to_host.is_empty() {
            match self.socket.write(self.to_host.as_slices().0) {
                Ok(count) => drop(self.to_host.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Fate::Reset,
            }
        }
        self.ack_due |= was_short && self.room() >= BUFFER / 2;
        if self.guest_is_done && self.to_host.is_empty() && !self.host_is_told {
            self.host_is_told = true;
            if self.socket.shutdown(Shutdown::Write).is_err() {
                return Fate::Reset;
            }
        }
        Fate::Lives
    }

    /// Reads what the host has, as far as there is room.
    fn fill(&mut self) -> io::Result<()> {
        while self.readable && self.fin.is_none() && self.to_guest.len() < BUFFER {
            let mut piece = [0; 64 << 10];
            let room = piece.len().min(BUFFER - self.to_guest.len());
            match self.socket.read(&mut piece[..room]) {
                Ok(0) => self.fin = Some(self.unacknowledged.wrapping_add(self.to_guest.len() as u32)),
                Ok(count) => self.to_guest.extend(&piece[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Time goes on.
    pub fn tick(&mut self, now: Instant) -> Fate {
        let waits = self.state != State::Connecting
            && (self.state != State::Open || self.in_flight() > 0 || self.unsent() > 0 || self.fin_is_due());
        if !waits || now.duration_since(self.moved) < RETRANSMIT * 2u32.pow(self.retries.min(6)) {
            return Fate::Lives;
        }
        if self.retries == MAX_RETRIES {
            return Fate::Reset;
        }
        self.retries += 1;
        self.duplicates = 0;
        self.moved = now;
        self.send_next = self.unacknowledged;
        self.syn_due |= self.state != State::Open;
        self.probe = self.state == State::Open && self.window == 0;
        Fate::Lives
    }

    /// Bytes in the buffer that are not in flight.
    fn unsent(&self) -> usize {
        self.to_guest.len().saturating_sub(self.in_flight() as usize)
    }

    fn fin_is_due(&self) -> bool {
        self.fin == Some(self.send_next)
    }

    /// Both have said all, know it of each other, and the guest has been told.
    fn is_over(&self) -> bool {
        let heard = self.fin.is_some_and(|fin| self.unacknowledged == fin.wrapping_add(1));
        heard && self.guest_is_done && self.host_is_told && !self.ack_due
    }

    /// Writes the next frame for the guest, if there is one.
    pub fn emit(&mut self, frame: &mut [u8], macs: Macs, offloads: Offloads) -> (Option<Received>, Fate) {
        if self.state == State::Connecting {
            return (None, Fate::Lives);
        }
        if self.state != State::Open {
            return (self.emit_syn(frame, macs), Fate::Lives);
        }
        if self.fill().is_err() {
            return (None, Fate::Reset);
        }
        let limit = usize::from(self.mss) * if offloads.segmentation { SEGMENTS_AT_ONCE } else { 1 };
        let window = self.window.max(self.probe.into());
        let open = window.saturating_sub(self.in_flight()) as usize;
        let mut len = self.unsent().min(open).min(limit);
        // Not in small pieces, if the guest is about to take more.
        if len < self.unsent() && len < self.mss.into() && self.in_flight() > 0 {
            len = 0;
        }
        let start = self.in_flight() as usize;
        let fin = len == self.unsent() && self.fin == Some(self.send_next.wrapping_add(len as u32));
        if len == 0 && !fin && !self.ack_due {
            return (None, if self.is_over() { Fate::Over } else { Fate::Lives });
        }
        if len > 0 {
            copy(&self.to_guest, start, &mut frame[packet::TCP..packet::TCP + len]);
        }
        let push = if len > 0 && len == self.unsent() { flag::PSH } else { 0 };
        let flags = flag::ACK | push | if fin { flag::FIN } else { 0 };
        let window = (self.room() >> self.our_scale).min(usize::from(u16::MAX)) as u16;
        let header = self.header(self.send_next, flags, window);
        let large = (len > self.mss.into()).then_some(self.mss);
        if self.in_flight() == 0 {
            self.moved = Instant::now();
        }
        self.send_next = self.send_next.wrapping_add(len as u32 + u32::from(fin));
        if self.send_next.wrapping_sub(self.send_most) < 1 << 31 {
            self.send_most = self.send_next;
        }
        (self.ack_due, self.probe) = (false, false);
        let checksum = checksum(offloads);
        let len = packet::write_tcp(frame, macs, &header, 0, len, checksum);
        (Some(Received { len, checksum, segment_bytes: large }), Fate::Lives)
    }

    fn emit_syn(&mut self, frame: &mut [u8], macs: Macs) -> Option<Received> {
        if !std::mem::take(&mut self.syn_due) {
            return None;
        }
        let ack = if self.state == State::SynReceived { flag::ACK } else { 0 };
        self.send_most = self.unacknowledged.wrapping_add(1);
        let header = self.header(self.unacknowledged, flag::SYN | ack, u16::MAX);
        let options = packet::syn_options(MSS, SCALE);
        // Whoever did not offer to shift windows is not told of it.
        let options = if self.our_scale == 0 { &options[..4] } else { &options[..] };
        frame[packet::TCP..packet::TCP + options.len()].copy_from_slice(options);
        let len = options.len();
        Some(Received::plain(packet::write_tcp(frame, macs, &header, len, len, Checksum::Complete)))
    }

    fn header(&self, seq: u32, flags: u8, window: u16) -> Header {
        let ack = if flags & flag::ACK == 0 { 0 } else { self.receive_next };
        Header { source: self.peer, destination: self.guest, seq, ack, flags, window }
    }

    /// Writes the reset that tells the guest.
    pub fn reset(&self, frame: &mut [u8], macs: Macs) -> Received {
        let header = self.header(self.send_next, flag::RST | flag::ACK, 0);
        Received::plain(packet::write_tcp(frame, macs, &header, 0, 0, Checksum::Complete))
    }
}

fn checksum(offloads: Offloads) -> Checksum {
    if offloads.checksum {
        Checksum::Partial { start: packet::IP as u16, offset: 16 }
    } else {
        Checksum::Complete
    }
}

/// Copies the bytes of `from` at `start`, as many as `to` is long.
fn copy(from: &VecDeque<u8>, start: usize, to: &mut [u8]) {
    let (first, second) = from.as_slices();
    let head = first.get(start..).unwrap_or_default();
    let count = head.len().min(to.len());
    to[..count].copy_from_slice(&head[..count]);
    let rest = &mut to[count..];
    let skipped = start.saturating_sub(first.len());
    rest.copy_from_slice(&second[skipped..skipped + rest.len()]);
}

/// The answer to a segment of no connection (RFC 9293, section 3.10.7.1).
pub fn refuse(guest: SocketAddrV4, peer: SocketAddrV4, segment: &Tcp, macs: Macs) -> Option<Vec<u8>> {
    if segment.has(flag::RST) {
        return None;
    }
    let mut frame = vec![0; packet::TCP];
    let numbers = u32::from(segment.has(flag::SYN)) + u32::from(segment.has(flag::FIN));
    let ack = segment.seq.wrapping_add(segment.payload.len() as u32).wrapping_add(numbers);
    let (seq, ack, flags) =
        if segment.has(flag::ACK) { (segment.ack, 0, flag::RST) } else { (0, ack, flag::RST | flag::ACK) };
    let header = Header { source: peer, destination: guest, seq, ack, flags, window: 0 };
    packet::write_tcp(&mut frame, macs, &header, 0, 0, Checksum::Complete);
    Some(frame)
}
