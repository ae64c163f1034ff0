//! Headers of Ethernet, ARP (RFC 826), IPv4 (RFC 791), ICMP (RFC 792), UDP (RFC 768) and TCP (RFC 9293): read from a guest's
//! bytes with every length checked, and written.
//!
//! Known omissions: IPv4 options are skipped, fragments are refused; checksums of the guest are not looked at, because a
//! frame comes by memory and, as the card offers to finish checksums, usually has none yet.

use std::net::{Ipv4Addr, SocketAddrV4};

use crate::Checksum;

/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;
/// Bytes before the payload of IPv4, without options.
pub const IP: usize = ETHERNET + 20;
/// Bytes before the payload of UDP.
pub const UDP: usize = IP + 8;
/// Bytes before the payload of TCP, without options.
pub const TCP: usize = IP + 20;
/// What an IPv4 packet can be long, in bytes.
pub const MAX_PACKET: usize = 65535;

const TYPE_IPV4: u16 = 0x0800;
const TYPE_ARP: u16 = 0x0806;
const TTL: u8 = 64;
const DONT_FRAGMENT: u16 = 0x4000;

/// Numbers of protocols in IPv4.
pub mod protocol {
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
}

/// Flags of TCP.
pub mod flag {
    pub const FIN: u8 = 1;
    pub const SYN: u8 = 2;
    pub const RST: u8 = 4;
    pub const PSH: u8 = 8;
    pub const ACK: u8 = 16;
}

/// The addresses of both ends of the cable.
#[derive(Clone, Copy, Debug)]
pub struct Macs {
    pub guest: [u8; 6],
    pub ours: [u8; 6],
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn address(bytes: &[u8], at: usize) -> Option<Ipv4Addr> {
    be32(bytes, at).map(Ipv4Addr::from)
}

/// What is in a frame.
pub enum Frame<'a> {
    /// Who has `target`? asks `sender`.
    ArpRequest { sender_mac: [u8; 6], sender: Ipv4Addr, target: Ipv4Addr },
    /// An IPv4 packet.
    Ipv4 { source_mac: [u8; 6], packet: Ipv4<'a> },
}

/// An IPv4 packet.
pub struct Ipv4<'a> {
    pub source: Ipv4Addr,
    pub destination: Ipv4Addr,
    pub protocol: u8,
    pub payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// `None` if it is nothing that this network carries.
    pub fn parse(frame: &'a [u8]) -> Option<Self> {
        let source_mac = frame.get(6..12)?.try_into().ok()?;
        let rest = frame.get(ETHERNET..)?;
        match be16(frame, 12)? {
            TYPE_IPV4 => Some(Self::Ipv4 { source_mac, packet: Ipv4::parse(rest)? }),
            // Ethernet, IPv4, their lengths, request.
            TYPE_ARP if rest.get(..8)? == [0, 1, 8, 0, 6, 4, 0, 1] => Some(Self::ArpRequest {
                sender_mac: rest.get(8..14)?.try_into().ok()?,
                sender: address(rest, 14)?,
                target: address(rest, 24)?,
            }),
            _ => None,
        }
    }
}

impl<'a> Ipv4<'a> {
    fn parse(packet: &'a [u8]) -> Option<Self> {
        let first = *packet.first()?;
        let header = usize::from(first & 15) * 4;
        let total = usize::from(be16(packet, 2)?);
        let is_fragment = be16(packet, 6)? & 0x3fff != 0;
        if first >> 4 != 4 || header < 20 || total < header || is_fragment {
            return None;
        }
        Some(Self {
            source: address(packet, 12)?,
            destination: address(packet, 16)?,
            protocol: *packet.get(9)?,
            payload: packet.get(header..total)?,
        })
    }
}

/// A UDP datagram.
pub struct Udp<'a> {
    pub source: u16,
    pub destination: u16,
    pub payload: &'a [u8],
}

impl<'a> Udp<'a> {
    /// `None` if it is cut off.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let len = usize::from(be16(bytes, 4)?);
        Some(Self { source: be16(bytes, 0)?, destination: be16(bytes, 2)?, payload: bytes.get(8..len)? })
    }
}

/// A TCP segment.
#[derive(Clone, Copy, Debug)]
pub struct Tcp<'a> {
    pub source: u16,
    pub destination: u16,
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub window: u16,
    /// Of the options: the largest segment, and the shift of later windows.
    pub mss: Option<u16>,
    pub scale: Option<u8>,
    pub payload: &'a [u8],
}

impl<'a> Tcp<'a> {
    /// `None` if it is cut off.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let header = usize::from(*bytes.get(12)? >> 4) * 4;
        let mut segment = Self {
            source: be16(bytes, 0)?,
            destination: be16(bytes, 2)?,
            seq: be32(bytes, 4)?,
            ack: be32(bytes, 8)?,
            flags: *bytes.get(13)?,
            window: be16(bytes, 14)?,
            mss: None,
            scale: None,
            payload: bytes.get(header..)?,
        };
        segment.read_options(bytes.get(20..header)?);
        Some(segment)
    }

    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    fn read_options(&mut self, mut options: &[u8]) {
        while let [kind, rest @ ..] = options {
            let len = match (kind, rest.first()) {
                (0, _) | (2.., None) => return,
                (1, _) => 1,
                (_, Some(len)) => usize::from(*len),
            };
            match (kind, len) {
                (2, 4) => self.mss = be16(options, 2),
                (3, 3) => self.scale = options.get(2).map(|scale| (*scale).min(14)),
                _ => {}
            }
            let Some(next) = options.get(len.max(1)..) else { return };
            options = next;
        }
    }
}

/// The sum of RFC 1071, not folded: `bytes` in pairs, the last one filled up with 0.
fn sum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<4>();
    let mut sum: u64 = words.iter().map(|word| u64::from(u32::from_be_bytes(*word))).sum();
    let (pairs, last) = rest.as_chunks::<2>();
    sum += pairs.iter().map(|pair| u64::from(u16::from_be_bytes(*pair))).sum::<u64>();
    sum + last.first().map_or(0, |byte| u64::from(*byte) << 8)
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn put(frame: &mut [u8], at: usize, bytes: &[u8]) {
    frame[at..at + bytes.len()].copy_from_slice(bytes);
}

/// The answer to an ARP request: `target` is at our address.
pub fn arp_reply(macs: Macs, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut frame = vec![0; 60];
    put(&mut frame, 0, &macs.guest);
    put(&mut frame, 6, &macs.ours);
    put(&mut frame, 12, &[0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 2]);
    put(&mut frame, 22, &macs.ours);
    put(&mut frame, 28, &target.octets());
    put(&mut frame, 32, &macs.guest);
    put(&mut frame, 38, &sender.octets());
    frame
}

/// Writes the headers before `payload_len` bytes of an IPv4 packet that are in `frame` from [`IP`] on, and gives the
/// length of the frame. The packet must not be longer than [`MAX_PACKET`].
pub fn write_ipv4(
    frame: &mut [u8],
    macs: Macs,
    protocol: u8,
    source: Ipv4Addr,
    destination: Ipv4Addr,
    payload_len: usize,
) -> usize {
    let total = u16::try_from(IP - ETHERNET + payload_len).expect("callers stay within a packet");
    put(frame, 0, &macs.guest);
    put(frame, 6, &macs.ours);
    put(frame, 12, &TYPE_IPV4.to_be_bytes());
    put(frame, 14, &[0x45, 0]);
    put(frame, 16, &total.to_be_bytes());
    put(frame, 18, &[0, 0]);
    put(frame, 20, &DONT_FRAGMENT.to_be_bytes());
    put(frame, 22, &[TTL, protocol, 0, 0]);
    put(frame, 26, &source.octets());
    put(frame, 30, &destination.octets());
    let checksum = !fold(sum(&frame[ETHERNET..IP]));
    put(frame, 24, &checksum.to_be_bytes());
    IP + payload_len
}

/// The sum over what TCP and UDP count beside their own bytes.
fn pseudo_header(frame: &[u8], protocol: u8, len: usize) -> u64 {
    sum(&frame[26..34]) + u64::from(protocol) + len as u64
}

/// Writes the headers before `payload_len` bytes that are in `frame` from [`UDP`] on.
pub fn write_udp(
    frame: &mut [u8],
    macs: Macs,
    source: SocketAddrV4,
    destination: SocketAddrV4,
    payload_len: usize,
) -> usize {
    let len = UDP - IP + payload_len;
    let end = write_ipv4(frame, macs, protocol::UDP, *source.ip(), *destination.ip(), len);
    put(frame, IP, &source.port().to_be_bytes());
    put(frame, IP + 2, &destination.port().to_be_bytes());
    put(frame, IP + 4, &(len as u16).to_be_bytes());
    put(frame, IP + 6, &[0, 0]);
    let checksum = !fold(pseudo_header(frame, protocol::UDP, len) + sum(&frame[IP..end]));
    // 0 would say that there is none.
    put(frame, IP + 6, &(if checksum == 0 { 0xffff } else { checksum }).to_be_bytes());
    end
}

/// Writes the headers before `payload_len` bytes of an ICMP message that are in `frame` from [`IP`] on, its checksum too.
pub fn write_icmp(
    frame: &mut [u8],
    macs: Macs,
    source: Ipv4Addr,
    destination: Ipv4Addr,
    payload_len: usize,
) -> usize {
    let end = write_ipv4(frame, macs, protocol::ICMP, source, destination, payload_len);
    put(frame, IP + 2, &[0, 0]);
    let checksum = !fold(sum(&frame[IP..end]));
    put(frame, IP + 2, &checksum.to_be_bytes());
    end
}

/// The header of a segment to the guest.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    pub source: SocketAddrV4,
    pub destination: SocketAddrV4,
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub window: u16,
}

/// Options of a SYN: largest segment, nothing, shift of later windows.
pub fn syn_options(mss: u16, scale: u8) -> [u8; 8] {
    let [high, low] = mss.to_be_bytes();
    [2, 4, high, low, 1, 3, 3, scale]
}

/// Writes the headers before `len` bytes that are in `frame` from [`TCP`] on: `options` of them options, the rest payload.
/// The checksum is finished or left to the guest's card, as `checksum` says.
pub fn write_tcp(
    frame: &mut [u8],
    macs: Macs,
    header: &Header,
    options: usize,
    len: usize,
    checksum: Checksum,
) -> usize {
    let Header { source, destination, seq, ack, flags, window } = header;
    let segment = TCP - IP + len;
    let end = write_ipv4(frame, macs, protocol::TCP, *source.ip(), *destination.ip(), segment);
    put(frame, IP, &source.port().to_be_bytes());
    put(frame, IP + 2, &destination.port().to_be_bytes());
    put(frame, IP + 4, &seq.to_be_bytes());
    put(frame, IP + 8, &ack.to_be_bytes());
    put(frame, IP + 12, &[((5 + options / 4) << 4) as u8, *flags]);
    put(frame, IP + 14, &window.to_be_bytes());
    put(frame, IP + 16, &[0; 4]);
    let pseudo = pseudo_header(frame, protocol::TCP, segment);
    let value = match checksum {
        Checksum::Partial { .. } => fold(pseudo),
        Checksum::Complete => !fold(pseudo + sum(&frame[IP..end])),
    };
    put(frame, IP + 16, &value.to_be_bytes());
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACS: Macs = Macs { guest: [2, 0, 0, 0, 0, 1], ours: [2, 0, 0, 0, 0, 2] };

    #[test]
    fn a_header_sums_to_all_ones_whatever_its_length() {
        for len in 0..9 {
            let mut frame = vec![0x5a; TCP + len];
            let header = Header {
                source: "10.0.2.2:80".parse().unwrap(),
                destination: "10.0.2.15:4000".parse().unwrap(),
                seq: 0xdead_beef,
                ack: 7,
                flags: flag::ACK,
                window: 0xffff,
            };
            let end = write_tcp(&mut frame, MACS, &header, 0, len, Checksum::Complete);
            assert_eq!(end, frame.len());
            assert_eq!(fold(sum(&frame[ETHERNET..IP])), 0xffff);
            let all = pseudo_header(&frame, protocol::TCP, end - IP) + sum(&frame[IP..end]);
            assert_eq!(fold(all), 0xffff, "{len}");
        }
    }

    #[test]
    fn what_is_cut_off_anywhere_is_no_packet_and_no_panic() {
        let mut frame = vec![7; UDP + 20];
        let (from, to) = ("10.0.2.2:53".parse().unwrap(), "10.0.2.15:4000".parse().unwrap());
        write_udp(&mut frame, MACS, from, to, 20);
        for len in 0..frame.len() {
            let cut = match Frame::parse(&frame[..len]) {
                Some(Frame::Ipv4 { packet, .. }) => Udp::parse(packet.payload).is_some(),
                _ => false,
            };
            assert!(!cut, "{len}");
        }
        let Some(Frame::Ipv4 { packet, .. }) = Frame::parse(&frame) else { panic!("a whole packet") };
        assert_eq!(Udp::parse(packet.payload).unwrap().payload, [7; 20]);
    }

    #[test]
    fn options_that_lie_about_their_length_end_the_list() {
        let mut bytes = [0u8; 40];
        bytes[12] = 10 << 4;
        for list in [&[2, 0, 2, 1][..], &[2, 255], &[3, 2, 3, 3, 200], &[1, 1, 2, 4, 5, 0xb4], &[8]] {
            bytes[20..].fill(0);
            bytes[20..20 + list.len()].copy_from_slice(list);
            let segment = Tcp::parse(&bytes).unwrap();
            assert!(segment.scale.is_none_or(|scale| scale <= 14), "{list:?}");
        }
        assert_eq!(Tcp::parse(&bytes[..39]).map(|segment| segment.seq), None);
    }
}
