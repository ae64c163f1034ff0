//! A guest with a vsock driver, for tests.

use std::collections::VecDeque;
use std::io;
use std::os::unix::net::UnixStream;

use super::super::testing::*;
use super::packet::*;
use super::{RX, TX, Vsock, VsockHandle};

pub const CID: u64 = 42;
pub const PORT: u32 = 1024;
pub const GUEST_BUFFER: u32 = 128 << 10;
pub const RX_BUFFERS: u64 = 128;
pub const RX_BYTES: u32 = 4096;
pub const TX_BASE: u64 = 4 << 20;
pub const TX_SLOTS: u64 = 32;
pub const TX_SLOT_BYTES: u64 = 0x1_2000;

/// A guest with a vsock driver.
pub struct Guest {
    pub rig: Rig,
    pub handle: VsockHandle,
    /// Packets received and not looked at.
    pub inbox: VecDeque<(Header, Vec<u8>)>,
    pub sent_packets: u64,
    pub unused_packets: u64,
}

/// The guest's view of one connection.
#[derive(Default)]
pub struct Peer {
    pub ours: u32,
    pub theirs: u32,
    pub sent: u32,
    pub forwarded: u32,
    pub host_buffer: u32,
    pub host_forwarded: u32,
}

impl Peer {
    pub fn header(&self, op: u16) -> Header {
        Header {
            src_cid: CID,
            dst_cid: HOST_CID,
            src_port: self.ours,
            dst_port: self.theirs,
            kind: TYPE_STREAM,
            op,
            buf_alloc: GUEST_BUFFER,
            fwd_cnt: self.forwarded,
            ..Header::default()
        }
    }

    pub fn note(&mut self, header: &Header) {
        self.host_buffer = header.buf_alloc;
        self.host_forwarded = header.fwd_cnt;
    }

    pub fn credit(&self) -> usize {
        (self.host_buffer - self.sent.wrapping_sub(self.host_forwarded)) as usize
    }
}

impl Guest {
    pub fn new(host: impl FnMut(u32) -> io::Result<UnixStream> + Send + 'static) -> Self {
        let (device, handle) = Vsock::new(CID, Box::new(host)).unwrap();
        let rig = Rig::live(Box::new(device));
        let mut guest = Self { rig, handle, inbox: VecDeque::new(), sent_packets: 0, unused_packets: 0 };
        guest.stock();
        guest
    }

    /// Gives the device all receive buffers.
    pub fn stock(&mut self) {
        for index in 0..RX_BUFFERS {
            self.rig.add(RX, &[(DATA + index * u64::from(RX_BYTES), RX_BYTES, WRITE)]);
        }
        self.rig.kick(RX);
    }

    pub fn send(&mut self, header: Header, data: &[u8]) {
        while self.rig.used(TX).is_some() {
            self.unused_packets -= 1;
        }
        while self.unused_packets >= TX_SLOTS {
            self.rig.wait_used(TX);
            self.unused_packets -= 1;
        }
        let gpa = TX_BASE + self.sent_packets % TX_SLOTS * TX_SLOT_BYTES;
        let header = Header { len: data.len() as u32, ..header };
        self.rig.ram.write(gpa, &header.to_bytes()).unwrap();
        self.rig.ram.write(gpa + HEADER_BYTES as u64, data).unwrap();
        let mut segments = vec![(gpa, HEADER_BYTES as u32, 0)];
        if !data.is_empty() {
            segments.push((gpa + HEADER_BYTES as u64, data.len() as u32, 0));
        }
        self.rig.add(TX, &segments);
        self.rig.kick(TX);
        self.sent_packets += 1;
        self.unused_packets += 1;
    }

    /// Receives what is there.
    pub fn poll(&mut self) {
        let mut any = false;
        while let Some((id, len)) = self.rig.used(RX) {
            let table = self.rig.queues[RX].desc;
            let gpa = u64::from_le_bytes(self.rig.bytes(table + 16 * u64::from(id), 8).try_into().unwrap());
            let bytes = self.rig.bytes(gpa, len as usize);
            let header = Header::parse(bytes.first_chunk().unwrap());
            assert_eq!((header.src_cid, header.dst_cid), (HOST_CID, CID));
            self.inbox.push_back((header, bytes[HEADER_BYTES..].to_vec()));
            self.rig.add(RX, &[(gpa, RX_BYTES, WRITE)]);
            any = true;
        }
        if any {
            self.rig.kick(RX);
        }
    }

    pub fn next(&mut self) -> (Header, Vec<u8>) {
        wait_for(|| {
            self.poll();
            self.inbox.pop_front()
        })
    }

    /// The next packet that is not about credit.
    pub fn next_event(&mut self) -> (Header, Vec<u8>) {
        loop {
            let packet = self.next();
            if !matches!(packet.0.op, op::CREDIT_UPDATE | op::CREDIT_REQUEST) {
                return packet;
            }
        }
    }

    pub fn connect(&mut self, ours: u32) -> Peer {
        let mut peer = Peer { ours, theirs: PORT, ..Peer::default() };
        self.send(peer.header(op::REQUEST), &[]);
        let (response, _) = self.next_event();
        assert_eq!((response.op, response.src_port, response.dst_port), (op::RESPONSE, PORT, ours));
        peer.note(&response);
        peer
    }

    /// Takes a connection the host asks for.
    pub fn accept(&mut self) -> Peer {
        let (request, _) = self.next();
        assert_eq!(request.op, op::REQUEST);
        let mut peer = Peer { ours: request.dst_port, theirs: request.src_port, ..Peer::default() };
        peer.note(&request);
        self.send(peer.header(op::RESPONSE), &[]);
        peer
    }

    pub fn shut_down(&mut self, peer: &Peer, flags: u32) {
        self.send(Header { flags, ..peer.header(op::SHUTDOWN) }, &[]);
    }
}
