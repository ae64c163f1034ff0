//! Frames as a guest may send them into the network of its user: well-formed ones that get somewhere, and damaged ones. Whatever
//! comes back is for the guest, as long as it says, and no longer than its card takes.
//!
//! Nothing leaves this host: the only peer that is reached is the gateway, behind which are three ports of this process.
#![no_main]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use fuzz::Bytes;
use libfuzzer_sys::fuzz_target;
use net::nat::{Config, GATEWAY, GUEST, Loopback, Nat, RESOLVER};
use net::{Checksum, MAX_FRAME, Offloads, Port, Unfinished};

/// Frames of one input. Attack on the run: inputs that go on for ever.
const FRAMES: usize = 64;
/// Frames that are taken back for each that is sent.
const ANSWERS: usize = 32;
/// Connections of a run that somebody takes: each keeps a number of this host's ports from others for a minute.
const STREAMS: usize = 2000;
const ETHERNET: usize = 14;
const IP: usize = 20;
const MTU: usize = 1500;
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// Addresses that a guest must not reach, or that are nobody's.
const UNREACHED: [Ipv4Addr; 7] = [
    RESOLVER,
    GUEST,
    Ipv4Addr::LOCALHOST,
    Ipv4Addr::UNSPECIFIED,
    Ipv4Addr::BROADCAST,
    Ipv4Addr::new(169, 254, 169, 254),
    Ipv4Addr::new(10, 0, 2, 77),
];

/// Ports of this process on the loopback.
struct Peers {
    echo_tcp: u16,
    echo_udp: u16,
    /// Nobody answers there, and nobody else can have it.
    silent: u16,
    _silent: (UdpSocket, TcpListener),
    streams: AtomicUsize,
}

fn peers() -> &'static Peers {
    static PEERS: OnceLock<Peers> = OnceLock::new();
    PEERS.get_or_init(|| {
        let local = (Ipv4Addr::LOCALHOST, 0);
        let (tcp, udp) = (TcpListener::bind(local).expect("a port"), UdpSocket::bind(local).expect("a port"));
        let silent_tcp = TcpListener::bind(local).expect("a port");
        let silent = silent_tcp.local_addr().expect("a port");
        let silent_udp = UdpSocket::bind(silent).expect("a port");
        let port = |address: std::net::SocketAddr| address.port();
        let peers = Peers {
            echo_tcp: port(tcp.local_addr().expect("a port")),
            echo_udp: port(udp.local_addr().expect("a port")),
            silent: silent.port(),
            _silent: (silent_udp, silent_tcp),
            streams: AtomicUsize::new(0),
        };
        std::thread::spawn(move || {
            for mut stream in tcp.incoming().flatten() {
                let mut bytes = [0; 4096];
                let _ = stream.set_read_timeout(Some(Duration::from_millis(20)));
                if let Ok(len) = stream.read(&mut bytes) {
                    let _ = stream.write_all(&bytes[..len]);
                }
            }
        });
        std::thread::spawn(move || {
            let mut bytes = [0; 65536];
            while let Ok((len, from)) = udp.recv_from(&mut bytes) {
                let _ = udp.send_to(&bytes[..len], from);
            }
        });
        peers
    })
}

/// What the guest remembers of its last connection.
#[derive(Default)]
struct Heard {
    seq: u32,
    ack: u32,
}

fn ethernet(kind: u16) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(MAC);
    frame.extend(kind.to_be_bytes());
    frame
}

fn ipv4(protocol: u8, destination: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let mut frame = ethernet(0x0800);
    let total = (IP + payload.len()) as u16;
    frame.extend([0x45, 0]);
    frame.extend(total.to_be_bytes());
    frame.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
    frame.extend(GUEST.octets());
    frame.extend(destination.octets());
    frame.extend(payload);
    frame
}

fn tcp(input: &mut Bytes<'_>, heard: &Heard) -> Vec<u8> {
    let (source, flags, near) = (4000 + u16::from(input.u8() % 4), input.u8(), input.u8());
    // Near what is expected, so that some of it is taken.
    let seq = heard.ack.wrapping_add(u32::from(near % 4)).wrapping_sub(u32::from(near / 128));
    let mut segment = [source.to_be_bytes(), [0, 0]].concat();
    segment.extend(seq.to_be_bytes());
    segment.extend(heard.seq.wrapping_add(u32::from(near / 16 % 4)).to_be_bytes());
    let len = usize::from(input.u8() % 10) * 4;
    let options = input.slice(len);
    let options = &options[..options.len() / 4 * 4];
    segment.extend([((5 + options.len() / 4) as u8) << 4, flags]);
    segment.extend(input.u16().to_be_bytes());
    segment.extend([0; 4]);
    segment.extend(options);
    segment.extend(vec![b'x'; usize::from(input.u8()) * usize::from(input.u8() % 16)]);
    segment
}

fn frame(input: &mut Bytes<'_>, heard: &Heard) -> Vec<u8> {
    let destination = input.pick(&[GATEWAY, GATEWAY, GATEWAY, RESOLVER]);
    let mut frame = match input.u8() % 5 {
        0 => {
            let mut frame = ethernet(0x0806);
            frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
            frame.extend([&MAC[..], &GUEST.octets(), &[0; 6], &destination.octets()].concat());
            frame
        }
        1 => {
            let len = usize::from(input.u16() % 2100);
            ipv4(1, destination, &[&[8, 0, 0, 0, 0, 7, 0, 1][..], &vec![1; len]].concat())
        }
        2 => {
            let len = usize::from(input.u16() % 2000);
            let head = [(5000 + u16::from(input.u8() % 4)).to_be_bytes(), [0, 0]].concat();
            let datagram = [&head[..], &((8 + len) as u16).to_be_bytes(), &[0, 0], &vec![2; len]].concat();
            ipv4(17, destination, &datagram)
        }
        _ => ipv4(6, destination, &tcp(input, heard)),
    };
    let changes = input.u8();
    if changes > 200 {
        input.damage(&mut frame, changes % 8);
    }
    frame
}

/// Has the frame go nowhere but where it may: addresses and ports are read from where the network reads them.
fn pin(frame: &mut [u8]) {
    let Some(packet) = frame.get_mut(ETHERNET..).filter(|packet| packet.len() >= IP) else { return };
    let mut destination = [packet[16], packet[17], packet[18], packet[19]];
    if destination != GATEWAY.octets() {
        destination = UNREACHED[usize::from(destination[3]) % UNREACHED.len()].octets();
    }
    packet[16..20].copy_from_slice(&destination);
    let (header, protocol) = (usize::from(packet[0] & 15) * 4, packet[9]);
    if let Some(port) = packet.get_mut(header + 2..header + 4) {
        let peers = peers();
        let is_taken = protocol == 6 && peers.streams.fetch_add(1, Ordering::Relaxed) < STREAMS;
        let answering = match protocol {
            6 if is_taken => peers.echo_tcp,
            17 if port[1].is_multiple_of(2) => peers.echo_udp,
            _ => peers.silent,
        };
        port.copy_from_slice(&answering.to_be_bytes());
    }
}

fn hear(nat: &Nat, buffer: &mut [u8], offloads: Offloads, heard: &mut Heard) {
    for _ in 0..ANSWERS {
        let Some(received) = nat.receive(buffer).expect("the network is whole") else { return };
        let frame = &buffer[..received.len];
        assert!(frame.len() > ETHERNET && frame.len() <= MAX_FRAME);
        let kind = [frame[12], frame[13]];
        if kind == [8, 6] {
            continue;
        }
        let packet = &frame[ETHERNET..];
        assert!(
            kind == [8, 0]
                && packet[0] == 0x45
                && (packet[16..20] == GUEST.octets() || packet[16..20] == [255; 4]),
            "it is for the guest"
        );
        assert_eq!(usize::from(u16::from_be_bytes([packet[2], packet[3]])), packet.len());
        assert!(offloads.segmentation || received.segment_bytes.is_none());
        assert!(offloads.checksum || received.checksum == Checksum::Complete);
        if packet[9] == 6 {
            assert!(offloads.segmentation || packet.len() <= MTU, "a segment of {} bytes", packet.len());
            let number =
                |at: usize| u32::from_be_bytes([packet[at], packet[at + 1], packet[at + 2], packet[at + 3]]);
            (heard.seq, heard.ack) = (number(IP + 4).wrapping_add(1), number(IP + 8));
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Bytes(data);
    let how = input.u8();
    let loopback = if how & 1 == 0 { Loopback::Allowed } else { Loopback::Refused };
    let nat = Nat::new(&Config { loopback, guest_mac: MAC, ..Config::default() }).expect("descriptors");
    let offloads = Offloads { checksum: how & 6 != 0, segmentation: how & 4 != 0 };
    nat.accept(offloads);
    let (mut buffer, mut heard) = (vec![0; MAX_FRAME], Heard::default());
    for _ in 0..FRAMES {
        if input.is_empty() {
            break;
        }
        let mut frame = frame(&mut input, &heard);
        pin(&mut frame);
        let checksum = match input.u8() {
            0..=200 => Checksum::Complete,
            _ => Checksum::Partial { start: input.u16(), offset: input.u16() },
        };
        let segment_bytes = (input.u8() > 200).then(|| input.u16());
        frame.truncate(MAX_FRAME);
        nat.send(&frame, Unfinished { checksum, segment_bytes }).expect("the network is whole");
        hear(&nat, &mut buffer, offloads, &mut heard);
        if how & 8 != 0 && input.u8() == 255 {
            nat.reset();
        }
    }
    std::thread::yield_now();
    hear(&nat, &mut buffer, offloads, &mut heard);
});
