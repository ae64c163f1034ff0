//! The network from both sides: frames as a guest sends them, servers and clients as a host has them.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use super::packet::{Header, Udp};
use super::*;
use crate::Checksum;

/// What a guest's kernel would do, as far as a test needs it.
struct Guest {
    nat: Nat,
    frame: Vec<u8>,
}

const MACS: Macs = Macs { guest: OUR_MAC, ours: [2, 0, 0, 0, 0, 1] };

impl Guest {
    fn new(config: &Config) -> Self {
        Self { nat: Nat::new(config).unwrap(), frame: vec![0; MAX_FRAME] }
    }

    fn with_loopback() -> Self {
        Self::new(&Config { loopback: Loopback::Allowed, ..Config::default() })
    }

    fn udp(&mut self, from: u16, to: SocketAddrV4, payload: &[u8]) {
        let mut frame = vec![0; packet::UDP + payload.len()];
        frame[packet::UDP..].copy_from_slice(payload);
        packet::write_udp(&mut frame, MACS, SocketAddrV4::new(GUEST, from), to, payload.len());
        self.nat.send(&frame, Unfinished::NOTHING).unwrap();
    }

    fn tcp(&mut self, to: SocketAddrV4, seq: u32, ack: u32, flags: u8, payload: &[u8]) {
        let mut frame = vec![0; packet::TCP + payload.len()];
        frame[packet::TCP..].copy_from_slice(payload);
        let source = SocketAddrV4::new(GUEST, 4000);
        let header = Header { source, destination: to, seq, ack, flags, window: 40_000 };
        packet::write_tcp(&mut frame, MACS, &header, 0, payload.len(), Checksum::Complete);
        self.nat.send(&frame, Unfinished::NOTHING).unwrap();
    }

    /// The next frame; waits for one.
    fn receive(&mut self) -> Vec<u8> {
        loop {
            if let Some(received) = self.nat.receive(&mut self.frame).unwrap() {
                return self.frame[..received.len].to_vec();
            }
            let ready = rustix::event::PollFd::new(&self.nat.epoll, rustix::event::PollFlags::IN);
            rustix::event::poll(&mut [ready], None).unwrap();
        }
    }

    fn is_silent(&mut self) -> bool {
        self.nat.receive(&mut self.frame).unwrap().is_none()
    }

    /// The next segment: number, acknowledgement, flags, payload.
    fn segment(&mut self) -> (u32, u32, u8, Vec<u8>) {
        let frame = self.receive();
        let Some(Frame::Ipv4 { packet, .. }) = Frame::parse(&frame) else { panic!("{frame:?}") };
        assert_eq!((packet.protocol, packet.destination), (protocol::TCP, GUEST));
        let segment = Tcp::parse(packet.payload).unwrap();
        (segment.seq, segment.ack, segment.flags, segment.payload.to_vec())
    }

    /// Connects to `server`: the next numbers of the guest and of the network.
    fn connect(&mut self, server: SocketAddrV4) -> (u32, u32) {
        self.tcp(server, 99, 0, flag::SYN, &[]);
        let (seq, ack, flags, _) = self.segment();
        assert_eq!((ack, flags), (100, flag::SYN | flag::ACK));
        self.tcp(server, 100, seq.wrapping_add(1), flag::ACK, &[]);
        (100, seq.wrapping_add(1))
    }
}

fn by_gateway(address: SocketAddr) -> SocketAddrV4 {
    SocketAddrV4::new(GATEWAY, address.port())
}

#[test]
fn the_gateway_is_found_and_answers_an_echo() {
    let mut guest = Guest::new(&Config::default());
    let mut request = vec![0xff; 14];
    request[12..14].copy_from_slice(&[8, 6]);
    request.extend([0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 10, 0, 2, 15, 0, 0, 0, 0, 0, 0, 10, 0, 2, 2]);
    guest.nat.send(&request, Unfinished::NOTHING).unwrap();
    let reply = guest.receive();
    assert_eq!(
        (&reply[20..22], &reply[22..28], &reply[28..32]),
        (&[0, 2][..], &OUR_MAC[..], &[10, 0, 2, 2][..])
    );
    let mut echo = vec![0; packet::IP + 12];
    echo[packet::IP] = datagram::ECHO_REQUEST;
    packet::write_icmp(&mut echo, MACS, GUEST, GATEWAY, 12);
    guest.nat.send(&echo, Unfinished::NOTHING).unwrap();
    assert_eq!(guest.receive()[packet::IP], 0);
}

#[test]
fn a_stream_goes_both_ways_and_ends_in_order() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = by_gateway(listener.local_addr().unwrap());
    let mut guest = Guest::with_loopback();
    let (mine, theirs) = guest.connect(server);
    let (mut stream, _) = listener.accept().unwrap();
    guest.tcp(server, mine, theirs, flag::ACK | flag::PSH, b"hello");
    let mut heard = [0; 5];
    stream.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"hello");
    assert_eq!(guest.segment().1, mine + 5);
    stream.write_all(b"answer").unwrap();
    let (seq, _, _, payload) = guest.segment();
    assert_eq!((seq, payload.as_slice()), (theirs, &b"answer"[..]));
    guest.tcp(server, mine + 5, theirs + 6, flag::ACK | flag::FIN, &[]);
    assert_eq!(stream.read(&mut heard).unwrap(), 0, "the guest's end is the stream's");
    assert_eq!(guest.segment().1, mine + 6);
    drop(stream);
    let (seq, _, flags, _) = guest.segment();
    assert_eq!((seq, flags & flag::FIN), (theirs + 6, flag::FIN));
    guest.tcp(server, mine + 6, theirs + 7, flag::ACK, &[]);
    assert!(guest.is_silent());
    assert!(guest.nat.lock().index.is_empty(), "nothing is remembered");
}

#[test]
fn what_the_guest_has_not_heard_is_said_again() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = by_gateway(listener.local_addr().unwrap());
    let mut guest = Guest::with_loopback();
    let (mine, theirs) = guest.connect(server);
    let (mut stream, _) = listener.accept().unwrap();
    stream.write_all(&[7; 3000]).unwrap();
    let first = guest.segment();
    assert_eq!((first.0, first.3.len()), (theirs, 536));
    for _ in 0..4 {
        guest.tcp(server, mine, theirs, flag::ACK, &[]);
    }
    let numbers: Vec<u32> = (0..12).map(|_| guest.segment().0).collect();
    assert!(numbers.contains(&theirs), "{numbers:?} from {theirs}");
}

#[test]
fn a_flood_that_nobody_reads_stops_at_the_window() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = by_gateway(listener.local_addr().unwrap());
    let mut guest = Guest::with_loopback();
    let (mut mine, theirs) = guest.connect(server);
    let piece = vec![1; 60_000];
    let mut taken = 0u64;
    // Far beyond what the host's own buffers take.
    for _ in 0..2000 {
        guest.tcp(server, mine, theirs, flag::ACK, &piece);
        let ack = guest.segment().1;
        taken += u64::from(ack.wrapping_sub(mine));
        mine = ack;
    }
    assert!(taken < 2000 * 60_000, "some of it was refused");
    let (mut stream, _) = listener.accept().unwrap();
    let mut read = 0;
    let mut buffer = vec![0; 1 << 20];
    stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    while read < taken {
        read += stream.read(&mut buffer).map_or(0, |count| count as u64);
        while !guest.is_silent() {}
    }
    assert_eq!(read, taken, "and nothing that was taken is lost");
}

#[test]
fn nobody_there_is_a_reset_and_so_is_a_forbidden_place() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut guest = Guest::with_loopback();
    let forbidden =
        ["127.0.0.1:80", "169.254.169.254:80", "0.0.0.0:80", "224.0.0.1:80", "255.255.255.255:80"];
    let forbidden = forbidden.map(|text| text.parse().unwrap());
    for server in
        forbidden.into_iter().chain([by_gateway(free), SocketAddrV4::new(Ipv4Addr::new(10, 0, 2, 9), 80)])
    {
        guest.tcp(server, 5, 0, flag::SYN, &[]);
        let (_, ack, flags, _) = guest.segment();
        assert_eq!((ack, flags & flag::RST), (6, flag::RST), "{server}");
        guest.udp(5000, server, b"x");
    }
    let mut closed = Guest::new(&Config::default());
    closed.tcp(by_gateway(free), 5, 0, flag::SYN, &[]);
    assert_eq!(closed.segment().2 & flag::RST, flag::RST);
    assert!(closed.is_silent());
}

#[test]
fn datagrams_come_back_from_whom_they_were_sent_to_and_names_from_the_resolver() {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let SocketAddr::V4(address) = server.local_addr().unwrap() else { unreachable!() };
    let config = Config { resolver: Some(address), ..Config::default() };
    let mut guest = Guest::new(&config);
    guest.udp(5000, SocketAddrV4::new(RESOLVER, 53), b"name?");
    let mut buffer = [0; 16];
    let (len, from) = server.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..len], b"name?");
    server.send_to(b"address", from).unwrap();
    let frame = guest.receive();
    let Some(Frame::Ipv4 { packet, .. }) = Frame::parse(&frame) else { panic!("{frame:?}") };
    let datagram = Udp::parse(packet.payload).unwrap();
    assert_eq!((packet.source, datagram.source, datagram.destination), (RESOLVER, 53, 5000));
    assert_eq!(datagram.payload, b"address");
}

#[test]
fn a_published_port_leads_to_the_guest() {
    let host = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let SocketAddr::V4(host) = host else { unreachable!() };
    let publish = vec![Publish { host, guest: 4000, transport: Transport::Tcp }];
    let guest_mac = [2, 0, 0, 0, 0, 1];
    let mut guest = Guest::new(&Config { guest_mac, publish: publish.clone(), ..Config::default() });
    assert!(
        matches!(Nat::new(&Config { publish, ..Config::default() }), Err(Error::Publish(..))),
        "it is taken"
    );
    let mut client = TcpStream::connect(host).unwrap();
    let (seq, _, flags, _) = guest.segment();
    assert_eq!(flags, flag::SYN);
    assert_eq!(guest.frame[..6], guest_mac, "before the guest has said anything");
    let peer = by_gateway(client.local_addr().unwrap());
    guest.tcp(peer, 7, seq.wrapping_add(1), flag::SYN | flag::ACK, &[]);
    assert_eq!(guest.segment().1, 8);
    guest.tcp(peer, 8, seq.wrapping_add(1), flag::ACK | flag::FIN, b"served");
    let mut heard = String::new();
    client.read_to_string(&mut heard).unwrap();
    assert_eq!(heard, "served");
}

#[test]
fn tables_are_bounded_whatever_is_sent() {
    let sink = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut guest = Guest::with_loopback();
    let to = by_gateway(sink.local_addr().unwrap());
    for port in 1..=2000 {
        guest.udp(port, to, b"flood");
    }
    assert!(
        guest.nat.lock().index.len() <= MAX_EXCHANGES && guest.nat.lock().slots.len() <= MAX_EXCHANGES + 1
    );
    for seq in 0..5000 {
        guest.tcp("127.0.0.1:1".parse().unwrap(), seq, 0, flag::SYN, &[]);
    }
    assert_eq!(guest.nat.lock().replies.len(), MAX_REPLIES);
}

#[test]
fn a_new_card_starts_with_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = by_gateway(listener.local_addr().unwrap());
    let mut guest = Guest::with_loopback();
    let (mine, theirs) = guest.connect(server);
    guest.nat.reset();
    assert!(guest.nat.lock().index.is_empty());
    guest.tcp(server, mine, theirs, flag::ACK, b"who are you");
    assert_eq!(guest.segment().2, flag::RST);
}
