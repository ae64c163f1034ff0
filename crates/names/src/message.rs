//! Queries and answers as bytes: RFC 1035, section 4, and the OPT record of RFC 6891, section 6.1.
//!
//! Read here rather than by a library, because what is not understood is to be passed on as it came: the small ones refuse types
//! they do not know, the large ones bring tables of Unicode along. One question, which says where it ends, is all that is read.
//!
//! Omitted: compressed names in a question, which has nothing to point to; several questions in a query, which nobody sends.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Bytes of a query at most. Attack: senders of large queries, each of which waits in memory.
pub const MAX_QUERY: usize = 4096;
/// Bytes of an answer by UDP to somebody who says nothing of it.
const UDP_LIMIT: usize = 512;
/// The same to somebody who may want more: what no network on the way splits, as DNS servers have agreed.
const UDP_MOST: usize = 1232;
const HEADER: usize = 12;
/// Bytes of a name, its lengths included.
const MAX_NAME: usize = 255;
/// The first two bits of a length: with them it is a pointer.
const POINTER: u8 = 0xc0;
/// To the name of the question, which follows the header.
const TO_QUESTION: [u8; 2] = [POINTER, HEADER as u8];

const RESPONSE: u8 = 0x80;
const OPCODE: u8 = 0x78;
const AUTHORITATIVE: u8 = 0x04;
const TRUNCATED: u8 = 0x02;
const RECURSION_DESIRED: u8 = 0x01;
const RECURSION_AVAILABLE: u8 = 0x80;

/// What kinds of records are known here, by their numbers.
pub(crate) mod kind {
    pub(crate) const A: u16 = 1;
    pub(crate) const PTR: u16 = 12;
    pub(crate) const AAAA: u16 = 28;
    pub(crate) const OPT: u16 = 41;
    pub(crate) const IXFR: u16 = 251;
    pub(crate) const AXFR: u16 = 252;
    pub(crate) const ANY: u16 = 255;
}

/// Classes: the Internet, and any.
const IN: u16 = 1;
const ANY_CLASS: u16 = 255;

/// How a query went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rcode {
    /// There are records, or the name has none of this kind.
    NoError = 0,
    /// The query is none.
    FormErr = 1,
    /// Nobody was there who knows.
    ServFail = 2,
    /// There is no such name.
    NxDomain = 3,
    /// Only standard queries are answered.
    NotImp = 4,
    /// It is not for the asker.
    Refused = 5,
}

/// A record of an answer, about the name that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// An address, of either kind.
    Address(IpAddr),
    /// A name, of labels that `.` separates.
    Name(String),
}

/// A query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query<'a> {
    bytes: &'a [u8],
    /// Where the question ends.
    end: usize,
    name: String,
    kind: u16,
    class: u16,
    /// What the asker takes by UDP, if it says so.
    payload: Option<u16>,
}

impl<'a> Query<'a> {
    /// Understands a query. What is none is answered with the bytes in `Err`, if at all: never an answer, lest two servers send
    /// errors to each other for ever.
    ///
    /// # Errors
    /// It is none, or one of a kind that is not answered here.
    pub fn parse(bytes: &'a [u8]) -> Result<Query<'a>, Option<Vec<u8>>> {
        let Some(header) = bytes.first_chunk::<HEADER>() else { return Err(None) };
        if header[2] & RESPONSE != 0 {
            return Err(None);
        }
        let refused = |rcode| Err(Some(header_only(header, rcode)));
        if header[2] & OPCODE != 0 {
            return refused(Rcode::NotImp);
        }
        let count = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        let name = read_name(bytes, HEADER);
        let Some((name, at)) = name.filter(|_| count(4) == 1 && bytes.len() <= MAX_QUERY) else {
            return refused(Rcode::FormErr);
        };
        let Some(&[k0, k1, c0, c1]) = bytes.get(at..).and_then(<[u8]>::first_chunk) else {
            return refused(Rcode::FormErr);
        };
        let end = at + 4;
        let is_plain = count(6) == 0 && count(8) == 0;
        let payload = if is_plain && count(10) > 0 { payload(&bytes[end..]) } else { None };
        let (kind, class) = (u16::from_be_bytes([k0, k1]), u16::from_be_bytes([c0, c1]));
        Ok(Query { bytes, end, name, kind, class, payload })
    }

    /// The name it asks for, in lower case and without a dot at its end. A byte that no name of ours has is a `?`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it asks for, by number.
    pub fn kind(&self) -> u16 {
        self.kind
    }

    pub(crate) fn is_internet(&self) -> bool {
        matches!(self.class, IN | ANY_CLASS)
    }

    /// All of it, as it came.
    pub(crate) fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The question alone.
    pub(crate) fn question(&self) -> &'a [u8] {
        &self.bytes[HEADER..self.end]
    }

    /// Bytes of an answer by UDP at most.
    pub fn limit(&self) -> usize {
        self.payload.map_or(UDP_LIMIT, |payload| usize::from(payload).clamp(UDP_LIMIT, UDP_MOST))
    }

    /// The answer.
    pub fn answer(&self, rcode: Rcode, records: &[Record]) -> Vec<u8> {
        let flags = [RESPONSE | AUTHORITATIVE, rcode as u8];
        self.reply(flags, records)
    }

    /// What is said where an answer would be too long: the asker comes again by TCP.
    pub fn too_long(&self) -> Vec<u8> {
        self.reply([RESPONSE | TRUNCATED, Rcode::NoError as u8], &[])
    }

    /// What is said where nobody knows, or nobody may say.
    pub(crate) fn error(&self, rcode: Rcode) -> Vec<u8> {
        self.reply([RESPONSE, rcode as u8], &[])
    }

    fn reply(&self, flags: [u8; 2], records: &[Record]) -> Vec<u8> {
        let mut reply = self.bytes[..2].to_vec();
        reply.push(flags[0] | (self.bytes[2] & RECURSION_DESIRED));
        reply.push(flags[1] | RECURSION_AVAILABLE);
        // A count has two bytes; no network has so many members.
        let records = &records[..records.len().min(usize::from(u16::MAX))];
        let has_opt = self.payload.is_some();
        for count in [1, records.len() as u16, 0, u16::from(has_opt)] {
            reply.extend(count.to_be_bytes());
        }
        reply.extend(self.question());
        for record in records {
            reply.extend(TO_QUESTION);
            let (kind, data) = match record {
                Record::Address(IpAddr::V4(address)) => (kind::A, address.octets().to_vec()),
                Record::Address(IpAddr::V6(address)) => (kind::AAAA, address.octets().to_vec()),
                Record::Name(name) => (kind::PTR, name_bytes(name)),
            };
            reply.extend(kind.to_be_bytes());
            reply.extend(IN.to_be_bytes());
            // Nobody is to remember it: who is on a network changes.
            reply.extend(0u32.to_be_bytes());
            reply.extend((data.len() as u16).to_be_bytes());
            reply.extend(data);
        }
        if has_opt {
            reply.push(0);
            reply.extend(kind::OPT.to_be_bytes());
            reply.extend((UDP_MOST as u16).to_be_bytes());
            reply.extend([0; 6]);
        }
        reply
    }
}

fn header_only(header: &[u8; HEADER], rcode: Rcode) -> Vec<u8> {
    let mut reply = header[..2].to_vec();
    reply.push(RESPONSE | (header[2] & (OPCODE | RECURSION_DESIRED)));
    reply.push(RECURSION_AVAILABLE | rcode as u8);
    reply.extend([0; 8]);
    reply
}

/// The name at `at`, and where it ends.
fn read_name(bytes: &[u8], mut at: usize) -> Option<(String, usize)> {
    let start = at;
    let mut name = String::new();
    loop {
        let length = *bytes.get(at)?;
        if length & POINTER != 0 || at + 1 - start > MAX_NAME {
            return None;
        }
        at += 1;
        if length == 0 {
            return Some((name, at));
        }
        let label = bytes.get(at..at + usize::from(length))?;
        if !name.is_empty() {
            name.push('.');
        }
        // A dot within a label separates nothing.
        let is_plain = |byte: u8| byte.is_ascii_graphic() && byte != b'.';
        let text = label.iter().map(|byte| if is_plain(*byte) { *byte } else { b'?' });
        name.extend(text.map(|byte| char::from(byte.to_ascii_lowercase())));
        at += label.len();
    }
}

/// As a record has it. One that cannot be is the root's.
fn name_bytes(name: &str) -> Vec<u8> {
    let labels: Vec<&[u8]> = name.split('.').map(str::as_bytes).collect();
    let is_name = labels.iter().all(|label| matches!(label.len(), 1..=63)) && name.len() + 2 <= MAX_NAME;
    let mut bytes = Vec::new();
    for label in labels.iter().filter(|_| is_name) {
        bytes.push(label.len() as u8);
        bytes.extend(*label);
    }
    bytes.push(0);
    bytes
}

/// What the OPT record behind the question says; it comes first where nothing else is.
fn payload(rest: &[u8]) -> Option<u16> {
    let &[root, k0, k1, size0, size1] = rest.first_chunk()?;
    (root == 0 && u16::from_be_bytes([k0, k1]) == kind::OPT).then(|| u16::from_be_bytes([size0, size1]))
}

/// The address that a name below `in-addr.arpa` or `ip6.arpa` stands for.
pub(crate) fn reverse(name: &str) -> Option<IpAddr> {
    if let Some(text) = name.strip_suffix(".in-addr.arpa") {
        let mut numbers = text.split('.').rev().map(|part| part.parse::<u8>().ok());
        let mut number = || numbers.next().flatten();
        let address = Ipv4Addr::new(number()?, number()?, number()?, number()?);
        return (text.split('.').count() == 4).then_some(IpAddr::V4(address));
    }
    let text = name.strip_suffix(".ip6.arpa")?;
    let digits: Vec<&str> = text.split('.').collect();
    if digits.len() != 32 {
        return None;
    }
    let mut bits = 0;
    for digit in digits.iter().rev() {
        bits = bits << 4 | u128::from(u8::from_str_radix(digit, 16).ok().filter(|_| digit.len() == 1)?);
    }
    Some(IpAddr::V6(Ipv6Addr::from_bits(bits)))
}

#[cfg(test)]
pub(crate) mod testing {
    use simple_dns::{CLASS, Name, Packet, QTYPE, Question};

    /// A query as another's library writes it.
    pub(crate) fn query(name: &str, kind: impl Into<QTYPE>) -> Vec<u8> {
        let mut packet = Packet::new_query(0x1234);
        packet.set_flags(simple_dns::PacketFlag::RECURSION_DESIRED);
        packet.questions.push(Question::new(Name::new(name).unwrap(), kind.into(), CLASS::IN.into(), false));
        packet.build_bytes_vec().unwrap()
    }
}

#[cfg(test)]
mod tests {
    use simple_dns::rdata::{OPT, RData};
    use simple_dns::{Packet, PacketFlag, RCODE, TYPE};

    use super::testing::query;
    use super::*;

    #[test]
    fn an_answer_is_what_another_reader_understands() {
        let bytes = query("Web.Test", TYPE::A);
        let parsed = Query::parse(&bytes).unwrap();
        assert_eq!((parsed.name(), parsed.kind(), parsed.limit()), ("web.test", kind::A, 512));
        let addresses: [IpAddr; 2] = ["10.9.0.2".parse().unwrap(), "fd00::2".parse().unwrap()];
        let mut records: Vec<_> = addresses.map(Record::Address).to_vec();
        records.push(Record::Name("web.test".to_owned()));
        let answer = parsed.answer(Rcode::NoError, &records);
        let read = Packet::parse(&answer).unwrap();
        assert_eq!((read.id(), read.rcode()), (0x1234, RCODE::NoError));
        let flags = PacketFlag::RESPONSE | PacketFlag::RECURSION_DESIRED | PacketFlag::AUTHORITATIVE_ANSWER;
        assert!(read.has_flags(flags) && !read.has_flags(PacketFlag::TRUNCATION));
        assert_eq!(read.questions[0].qname.to_string(), "Web.Test", "as it was asked");
        assert!(read.answers.iter().all(|record| record.ttl == 0 && record.name.to_string() == "Web.Test"));
        let RData::A(four) = &read.answers[0].rdata else { panic!("{read:?}") };
        let RData::AAAA(six) = &read.answers[1].rdata else { panic!("{read:?}") };
        let RData::PTR(name) = &read.answers[2].rdata else { panic!("{read:?}") };
        assert_eq!(
            [IpAddr::from(Ipv4Addr::from(four.address)), Ipv6Addr::from(six.address).into()],
            addresses
        );
        assert_eq!(name.0.to_string(), "web.test");
        assert!(Packet::parse(&parsed.too_long()).unwrap().has_flags(PacketFlag::TRUNCATION));
    }

    #[test]
    fn longer_datagrams_are_for_those_who_say_that_they_take_them() {
        for (said, limit) in [(0, 512), (900, 900), (65535, 1232)] {
            let mut packet = Packet::new_query(1);
            let question = query("web", TYPE::AAAA);
            packet.questions = Packet::parse(&question).unwrap().questions;
            *packet.opt_mut() = Some(OPT { opt_codes: Vec::new(), udp_packet_size: said, version: 0 });
            let bytes = packet.build_bytes_vec().unwrap();
            let parsed = Query::parse(&bytes).unwrap();
            assert_eq!(parsed.limit(), limit);
            let answer = parsed.answer(Rcode::NxDomain, &[]);
            assert_eq!(Packet::parse(&answer).unwrap().opt().unwrap().udp_packet_size, 1232);
        }
    }

    #[test]
    fn what_is_no_query_is_refused_and_an_answer_is_not_answered() {
        let good = query("web", TYPE::A);
        let rcode = |bytes: &[u8]| Query::parse(bytes).unwrap_err().map(|reply| reply[3] & 15);
        assert_eq!(rcode(&good[..11]), None);
        assert_eq!(rcode(&[&good[..2], &[0x81], &good[3..]].concat()), None, "an answer");
        assert_eq!(rcode(&[&good[..2], &[0x28], &good[3..]].concat()), Some(4), "an update");
        for cut in 12..good.len() {
            assert_eq!(rcode(&good[..cut]), Some(1), "{cut}");
        }
        assert_eq!(rcode(&[&good[..4], &[0, 2], &good[6..]].concat()), Some(1), "two questions");
        assert_eq!(rcode(&[&good[..12], &[0xc0, 12, 0, 1, 0, 1]].concat()), Some(1), "a name in itself");
        let long = [&good[..12], &[&[63; 64][..]; 5].concat(), &[0, 0, 1, 0, 1]].concat();
        assert_eq!(rcode(&long), Some(1), "a name of 320 bytes");
        assert_eq!(rcode(&[&good[..], &[0; MAX_QUERY]].concat()), Some(1));
    }

    #[test]
    fn names_that_stand_for_addresses_are_read_backwards() {
        let four = |text: &str| reverse(&format!("{text}.in-addr.arpa"));
        assert_eq!(four("2.0.9.10"), Some("10.9.0.2".parse().unwrap()));
        for wrong in ["0.9.10", "1.2.0.9.10", "256.0.9.10", "x.0.9.10", ""] {
            assert_eq!(four(wrong), None, "{wrong}");
        }
        let six = format!("2{}d.f.ip6.arpa", ".0".repeat(29) + ".");
        assert_eq!(reverse(&six), Some("fd00::2".parse().unwrap()));
        assert_eq!(reverse(&six.replace("d.f", "d.ff")), None);
        assert_eq!(reverse("web.test"), None);
    }

    #[test]
    fn a_dot_within_a_label_separates_nothing() {
        let mut bytes = query("abc", TYPE::A);
        bytes[14] = b'.';
        assert_eq!(Query::parse(&bytes).unwrap().name(), "a?c");
    }
}
