//! Addresses for guests that ask for one (DHCP, RFC 2131 and 2132): always the same ones, as there is one guest.

use std::net::{Ipv4Addr, SocketAddrV4};

use super::packet::{self, Ipv4, Macs, Udp, protocol};
use super::{GATEWAY, GUEST, PREFIX, RESOLVER};

const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;
const BROADCAST_MAC: [u8; 6] = [0xff; 6];

/// Bytes of a message before its options, the last four of which say that these follow.
const FIXED: usize = 240;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// The shortest message that every client takes (RFC 1542, section 2.1).
const SHORTEST: usize = 300;
const REQUEST: u8 = 1;
const REPLY: u8 = 2;
/// In the high byte of the flags: the client hears broadcasts alone.
const WANTS_BROADCAST: u8 = 0x80;
/// Seconds for which the address is the guest's: it is nobody else's ever.
const LEASE: u32 = 24 * 60 * 60;

/// Options.
mod option {
    pub const PAD: u8 = 0;
    pub const MASK: u8 = 1;
    pub const ROUTER: u8 = 3;
    pub const RESOLVER: u8 = 6;
    pub const ADDRESS: u8 = 50;
    pub const LEASE: u8 = 51;
    pub const KIND: u8 = 53;
    pub const SERVER: u8 = 54;
    pub const END: u8 = 255;
}

/// Kinds of messages.
mod kind {
    pub const DISCOVER: u8 = 1;
    pub const OFFER: u8 = 2;
    pub const REQUEST: u8 = 3;
    pub const ACK: u8 = 5;
    pub const NAK: u8 = 6;
    pub const INFORM: u8 = 8;
}

/// What a client says, as far as it matters.
struct Message<'a> {
    fixed: &'a [u8; FIXED],
    kind: u8,
    server: Option<Ipv4Addr>,
    address: Option<Ipv4Addr>,
}

/// Whether `packet` is for the server of addresses.
pub fn is_asked(packet: &Ipv4) -> bool {
    let is_for_us = packet.destination == Ipv4Addr::BROADCAST || packet.destination == GATEWAY;
    let port = || Udp::parse(packet.payload).map(|datagram| datagram.destination);
    packet.protocol == protocol::UDP && is_for_us && port() == Some(SERVER_PORT)
}

/// The frame that answers `packet`; `None` if nothing does. A guest is told of the name server if it `has_resolver`.
pub fn answer(packet: &Ipv4, has_resolver: bool, ours: [u8; 6]) -> Option<Vec<u8>> {
    let datagram = Udp::parse(packet.payload)?;
    let message = Message::parse(datagram.payload)?;
    let kind = message.answered_by()?;
    let wants_broadcast = kind == kind::NAK || message.fixed[10] & WANTS_BROADCAST != 0;
    let client = message.fixed[28..34].try_into().ok()?;
    let (mac, address) = if wants_broadcast { (BROADCAST_MAC, Ipv4Addr::BROADCAST) } else { (client, GUEST) };
    let reply = message.reply(kind, has_resolver);
    let mut frame = vec![0; packet::UDP + reply.len()];
    frame[packet::UDP..].copy_from_slice(&reply);
    let (from, to) = (SocketAddrV4::new(GATEWAY, SERVER_PORT), SocketAddrV4::new(address, CLIENT_PORT));
    packet::write_udp(&mut frame, Macs { guest: mac, ours }, from, to, reply.len());
    Some(frame)
}

impl<'a> Message<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (fixed, mut options) = bytes.split_first_chunk::<FIXED>()?;
        // From a client, on Ethernet.
        if fixed[..3] != [REQUEST, 1, 6] || fixed[FIXED - 4..] != COOKIE {
            return None;
        }
        let mut message = Self { fixed, kind: 0, server: None, address: None };
        while let [code, rest @ ..] = options {
            options = match *code {
                option::PAD => rest,
                option::END => break,
                code => {
                    let (len, rest) = rest.split_first()?;
                    let (value, rest) = rest.split_at_checked(usize::from(*len))?;
                    message.note(code, value);
                    rest
                }
            };
        }
        (message.kind != 0).then_some(message)
    }

    fn note(&mut self, code: u8, value: &[u8]) {
        let address = || <[u8; 4]>::try_from(value).ok().map(Ipv4Addr::from);
        match (code, value) {
            (option::KIND, [kind]) => self.kind = *kind,
            (option::SERVER, _) => self.server = address(),
            (option::ADDRESS, _) => self.address = address(),
            _ => {}
        }
    }

    /// The address that the client has already, or zeros.
    fn has(&self) -> Ipv4Addr {
        Ipv4Addr::new(self.fixed[12], self.fixed[13], self.fixed[14], self.fixed[15])
    }

    /// The kind of the answer, if there is one: what was offered by another server is that one's.
    fn answered_by(&self) -> Option<u8> {
        match self.kind {
            kind::DISCOVER => Some(kind::OFFER),
            kind::REQUEST if self.server.is_some_and(|server| server != GATEWAY) => None,
            kind::REQUEST if self.address.unwrap_or_else(|| self.has()) == GUEST => Some(kind::ACK),
            kind::REQUEST => Some(kind::NAK),
            kind::INFORM => Some(kind::ACK),
            _ => None,
        }
    }

    fn reply(&self, kind: u8, has_resolver: bool) -> Vec<u8> {
        let mut reply = vec![0; FIXED];
        reply[..3].copy_from_slice(&[REPLY, 1, 6]);
        // Its number, its flags, its own address, who relayed it, and its hardware's address.
        for same in [4..8, 10..16, 24..44] {
            reply[same.clone()].copy_from_slice(&self.fixed[same]);
        }
        reply[FIXED - 4..].copy_from_slice(&COOKIE);
        let mut say = |code: u8, value: &[u8]| {
            reply.extend([code, value.len() as u8]);
            reply.extend(value);
        };
        say(option::KIND, &[kind]);
        say(option::SERVER, &GATEWAY.octets());
        if kind != kind::NAK {
            say(option::MASK, &(u32::MAX << (32 - PREFIX)).to_be_bytes());
            say(option::ROUTER, &GATEWAY.octets());
            if has_resolver {
                say(option::RESOLVER, &RESOLVER.octets());
            }
            // Who informs has an address that nobody gave it.
            if self.kind != kind::INFORM {
                say(option::LEASE, &LEASE.to_be_bytes());
                reply[16..20].copy_from_slice(&GUEST.octets());
            }
        }
        reply.push(option::END);
        reply.resize(reply.len().max(SHORTEST), option::PAD);
        reply
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];

    fn message(kind: u8, more: &[u8]) -> Vec<u8> {
        let mut message = vec![0; FIXED];
        message[..3].copy_from_slice(&[REQUEST, 1, 6]);
        message[4..8].copy_from_slice(b"xid!");
        message[28..34].copy_from_slice(&MAC);
        message[FIXED - 4..].copy_from_slice(&COOKIE);
        message.extend([option::PAD, option::KIND, 1, kind]);
        message.extend(more);
        message.push(option::END);
        message
    }

    fn ask(message: &[u8], has_resolver: bool) -> Option<Vec<u8>> {
        let mut datagram = vec![0, 68, 0, 67, 0, 0, 0, 0];
        datagram[4..6].copy_from_slice(&(8 + message.len() as u16).to_be_bytes());
        datagram.extend(message);
        let packet = Ipv4 {
            source: Ipv4Addr::UNSPECIFIED,
            destination: Ipv4Addr::BROADCAST,
            protocol: protocol::UDP,
            payload: &datagram,
        };
        assert!(is_asked(&packet));
        answer(&packet, has_resolver, [2; 6])
    }

    /// The value of an option of an answer.
    fn said(frame: &[u8], wanted: u8) -> Option<Vec<u8>> {
        let mut options = &frame[packet::UDP + FIXED..];
        while let [code, len, rest @ ..] = options {
            let (value, rest) = rest.split_at(usize::from(*len));
            if *code == wanted {
                return Some(value.to_vec());
            }
            options = if *code == option::END { &[] } else { rest };
        }
        None
    }

    #[test]
    fn a_guest_is_offered_the_one_address_and_gets_it() {
        let offer = ask(&message(kind::DISCOVER, &[]), true).unwrap();
        assert_eq!(offer[..6], MAC);
        let fixed = &offer[packet::UDP..];
        assert_eq!((&fixed[4..8], &fixed[16..20]), (&b"xid!"[..], &GUEST.octets()[..]));
        assert_eq!(said(&offer, option::KIND), Some(vec![kind::OFFER]));
        assert_eq!(said(&offer, option::MASK), Some(vec![255, 255, 255, 0]));
        assert_eq!(said(&offer, option::ROUTER), Some(GATEWAY.octets().to_vec()));
        assert_eq!(said(&offer, option::RESOLVER), Some(RESOLVER.octets().to_vec()));
        let [a, b, c, d] = GUEST.octets();
        let wants = [option::ADDRESS, 4, a, b, c, d, option::SERVER, 4, 10, 0, 2, 2];
        let ack = ask(&message(kind::REQUEST, &wants), false).unwrap();
        assert_eq!(said(&ack, option::KIND), Some(vec![kind::ACK]));
        assert_eq!(said(&ack, option::LEASE), Some(LEASE.to_be_bytes().to_vec()));
        assert_eq!(said(&ack, option::RESOLVER), None);
        let mut informs = message(kind::INFORM, &[]);
        informs[10] = WANTS_BROADCAST;
        let ack = ask(&informs, true).unwrap();
        assert_eq!((&ack[..6], said(&ack, option::LEASE)), (&BROADCAST_MAC[..], None));
    }

    #[test]
    fn another_address_is_refused_and_what_another_server_offered_is_its_own() {
        let nak = ask(&message(kind::REQUEST, &[option::ADDRESS, 4, 192, 168, 0, 9]), true).unwrap();
        assert_eq!((&nak[..6], said(&nak, option::KIND)), (&BROADCAST_MAC[..], Some(vec![kind::NAK])));
        assert_eq!(nak[packet::UDP + 16..packet::UDP + 20], [0; 4]);
        assert_eq!(ask(&message(kind::REQUEST, &[option::SERVER, 4, 10, 0, 2, 9]), true), None);
        assert_eq!(ask(&message(7, &[]), true), None);
    }

    #[test]
    fn what_is_cut_off_anywhere_is_not_answered() {
        let whole = message(kind::DISCOVER, &[option::ADDRESS, 4, 10, 0, 2, 15]);
        for len in 0..FIXED + 4 {
            assert_eq!(ask(&whole[..len], true), None, "{len}");
        }
        assert_eq!(ask(&message(kind::DISCOVER, &[option::ADDRESS, 200, 1]), true), None);
        let mut other = whole;
        other[0] = REPLY;
        assert_eq!(ask(&other, true), None);
    }
}
