//! Who is on a network, and what that makes of a query.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use crate::message::{Query, Rcode, Record, kind, reverse};

/// The port of servers of names.
const PORT: u16 = 53;
/// Servers that are asked for one query: as many as the C library asks. Attack: a workload that has others ask for ever.
const MAX_SERVERS: usize = 3;

/// A workload on a network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// What it is called; the first is what its address stands for.
    pub names: Vec<String>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// The addresses of a network: each with how many of its bits all have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subnets {
    /// Of IPv4.
    pub four: (Ipv4Addr, u8),
    /// Of IPv6, if it has such.
    pub six: Option<(Ipv6Addr, u8)>,
}

impl Subnets {
    /// Whether the address is one of them.
    pub fn contain(&self, address: IpAddr) -> bool {
        match (address, self.six) {
            (IpAddr::V4(address), _) => {
                let differs = address.to_bits() ^ self.four.0.to_bits();
                differs.leading_zeros() >= u32::from(self.four.1)
            }
            (IpAddr::V6(address), Some((first, prefix))) => {
                (address.to_bits() ^ first.to_bits()).leading_zeros() >= u32::from(prefix)
            }
            (IpAddr::V6(_), None) => false,
        }
    }
}

/// A network, as far as names go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone {
    /// Its name: `web.NAME` is `web` on it.
    pub name: String,
    /// Its addresses.
    pub subnets: Subnets,
    /// Who is on it.
    pub members: Vec<Member>,
}

/// What somebody may know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asker {
    /// The networks it is on. Of two members with one name the first's counts.
    pub zones: Vec<Arc<Zone>>,
    /// Who knows the rest; nobody, if it is not to reach the rest of the world.
    pub servers: Vec<IpAddr>,
}

/// All networks.
pub trait Zones {
    /// What the one with this address may know; nothing at all, if it is no address of the network: its queries are lost.
    fn of(&mut self, address: IpAddr) -> Option<Asker>;

    /// Whether a member is still on the network: one that was killed may have been written down, and nobody there to note its
    /// end.
    fn is_there(&mut self, zone: &Zone, member: &Member) -> bool;
}

/// What becomes of a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// This is the answer.
    Answer(Vec<u8>),
    /// One of these knows it.
    Ask(Vec<SocketAddr>),
}

/// Whether a member of a zone is still there.
type IsThere<'a> = dyn FnMut(&Zone, &Member) -> bool + 'a;

/// Answers a query, as far as that is to be done here. `is_there` is [`Zones::is_there`], asked of those who would be named.
pub fn resolve(query: &Query<'_>, asker: &Asker, is_there: &mut IsThere<'_>) -> Verdict {
    if !query.is_internet() || matches!(query.kind(), kind::AXFR | kind::IXFR) {
        return Verdict::Answer(query.error(Rcode::Refused));
    }
    if let Some(address) = reverse(query.name()) {
        if let Some(zone) = asker.zones.iter().find(|zone| zone.subnets.contain(address)) {
            return Verdict::Answer(by_address(query, zone, address, is_there));
        }
    } else if let Some(addresses) = asker.zones.iter().find_map(|zone| by_name(zone, query.name(), is_there))
    {
        let is_wanted = |address: &IpAddr| match query.kind() {
            kind::A => address.is_ipv4(),
            kind::AAAA => address.is_ipv6(),
            kind => kind == kind::ANY,
        };
        let records: Vec<_> = addresses.into_iter().filter(is_wanted).map(Record::Address).collect();
        return Verdict::Answer(query.answer(Rcode::NoError, &records));
    }
    if asker.servers.is_empty() {
        return Verdict::Answer(query.error(Rcode::ServFail));
    }
    Verdict::Ask(asker.servers.iter().take(MAX_SERVERS).map(|server| (*server, PORT).into()).collect())
}

/// The addresses of all who are called so on the network; none if nobody is.
fn by_name(zone: &Zone, name: &str, is_there: &mut IsThere<'_>) -> Option<Vec<IpAddr>> {
    // The network's name may have capitals; the query's has none.
    let bare = name.len().checked_sub(zone.name.len() + 1).filter(|at| *at > 0 && name.is_char_boundary(*at));
    let bare =
        bare.map(|at| name.split_at(at)).filter(|(_, rest)| rest[1..].eq_ignore_ascii_case(&zone.name));
    let bare = bare.filter(|(_, rest)| rest.starts_with('.')).map(|(bare, _)| bare);
    let is_called = |own: &String| {
        own.eq_ignore_ascii_case(name) || bare.is_some_and(|bare| own.eq_ignore_ascii_case(bare))
    };
    let called = zone.members.iter().filter(|member| member.names.iter().any(is_called));
    let found: Vec<&Member> = called.filter(|member| is_there(zone, member)).collect();
    (!found.is_empty()).then(|| found.iter().flat_map(|member| &member.addresses).copied().collect())
}

fn by_address(query: &Query<'_>, zone: &Zone, address: IpAddr, is_there: &mut IsThere<'_>) -> Vec<u8> {
    let found = zone.members.iter().find(|member| member.addresses.contains(&address));
    let found = found.filter(|member| is_there(zone, member));
    match found.and_then(|member| member.names.first()) {
        Some(name) if matches!(query.kind(), kind::PTR | kind::ANY) => {
            query.answer(Rcode::NoError, &[Record::Name(format!("{name}.{}", zone.name))])
        }
        Some(_) => query.answer(Rcode::NoError, &[]),
        None => query.answer(Rcode::NxDomain, &[]),
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// A network of two: `web`, also called `www`, and `Db`.
    pub(crate) fn zone(name: &str) -> Zone {
        let addresses = |last: &str| {
            [format!("10.9.0.{last}"), format!("fd00::{last}")].map(|text| text.parse().unwrap()).to_vec()
        };
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Zone {
            name: name.to_owned(),
            subnets: Subnets {
                four: (Ipv4Addr::new(10, 9, 0, 0), 24),
                six: Some(("fd00::".parse().unwrap(), 64)),
            },
            members: vec![
                Member { names: names(&["web", "www"]), addresses: addresses("2") },
                Member { names: names(&["Db", "www"]), addresses: addresses("3") },
            ],
        }
    }
}

#[cfg(test)]
mod tests {
    use simple_dns::rdata::RData;
    use simple_dns::{Packet, QTYPE, RCODE, TYPE};

    use super::testing::zone;
    use super::*;
    use crate::message::testing::query;

    /// What is said to somebody on networks `Test` and `other`; of a query that is passed on nothing.
    fn said(name: &str, kind: impl Into<QTYPE>) -> Option<(RCODE, Vec<String>)> {
        let other = Zone {
            subnets: Subnets { four: (Ipv4Addr::new(10, 8, 0, 0), 24), six: None },
            members: [("gone", "10.8.0.3"), ("far", "10.8.0.2")]
                .map(|(name, address)| Member {
                    names: [name, "web", "late"].map(str::to_owned).to_vec(),
                    addresses: vec![address.parse().unwrap()],
                })
                .to_vec(),
            name: "other".to_owned(),
        };
        let servers = ["10.0.0.1", "::1", "10.0.0.3", "10.0.0.4"].map(|text| text.parse().unwrap());
        let asker = Asker { zones: vec![zone("Test").into(), other.into()], servers: servers.to_vec() };
        let bytes = query(name, kind);
        let mut is_there = |_: &Zone, member: &Member| member.names[0] != "gone";
        match resolve(&Query::parse(&bytes).unwrap(), &asker, &mut is_there) {
            Verdict::Ask(servers) => {
                assert_eq!(servers.len(), MAX_SERVERS);
                None
            }
            Verdict::Answer(answer) => {
                let read = Packet::parse(&answer).unwrap();
                let text = |data: &RData<'_>| match data {
                    RData::A(a) => Ipv4Addr::from(a.address).to_string(),
                    RData::AAAA(a) => Ipv6Addr::from(a.address).to_string(),
                    RData::PTR(name) => name.0.to_string(),
                    other => panic!("{other:?}"),
                };
                Some((read.rcode(), read.answers.iter().map(|record| text(&record.rdata)).collect()))
            }
        }
    }

    #[test]
    fn members_are_found_by_each_of_their_names_whoever_shouts() {
        let found = |name: &str, kind, expected: &[&str]| {
            let expected = expected.iter().map(|text| (*text).to_owned()).collect();
            assert_eq!(said(name, kind), Some((RCODE::NoError, expected)), "{name}");
        };
        for name in ["web", "WEB", "web.test", "Web.TEST"] {
            found(name, TYPE::A, &["10.9.0.2"]);
            found(name, TYPE::AAAA, &["fd00::2"]);
        }
        found("db", TYPE::A, &["10.9.0.3"]);
        found("www", TYPE::A, &["10.9.0.2", "10.9.0.3"]);
        found("far", TYPE::A, &["10.8.0.2"]);
        found("web.other", TYPE::A, &["10.8.0.2"]);
        // Who is gone has no name any more, and takes none away.
        found("late", TYPE::A, &["10.8.0.2"]);
        assert_eq!(said("gone", TYPE::A), None);
        assert_eq!(said("3.0.8.10.in-addr.arpa", TYPE::PTR).unwrap().0, RCODE::NameError);
        // There is such a name, but it has none of these.
        found("far", TYPE::AAAA, &[]);
        found("web", TYPE::MX, &[]);
        found("2.0.9.10.in-addr.arpa", TYPE::PTR, &["web.Test"]);
        assert_eq!(said("9.0.9.10.in-addr.arpa", TYPE::PTR).unwrap().0, RCODE::NameError);
    }

    #[test]
    fn what_is_no_name_of_the_network_is_others_to_answer() {
        for name in [
            "example.org",
            "web.example",
            "test",
            ".test",
            "webtest",
            "xweb",
            "web.testy",
            "1.1.1.1.in-addr.arpa",
        ] {
            assert_eq!(said(name, TYPE::A), None, "{name}");
        }
        assert_eq!(said("web", QTYPE::AXFR).unwrap().0, RCODE::Refused);
        let bytes = query("example.org", TYPE::A);
        let alone = Asker { zones: vec![zone("test").into()], servers: Vec::new() };
        let Verdict::Answer(answer) = resolve(&Query::parse(&bytes).unwrap(), &alone, &mut |_, _| true)
        else {
            panic!()
        };
        assert_eq!(Packet::parse(&answer).unwrap().rcode(), RCODE::ServerFailure);
    }

    #[test]
    fn addresses_are_of_a_network_or_they_are_not() {
        let subnets = zone("x").subnets;
        for (address, is_own) in
            [("10.9.0.255", true), ("10.9.1.0", false), ("fd00::ffff", true), ("fd00:0:0:1::1", false)]
        {
            assert_eq!(subnets.contain(address.parse().unwrap()), is_own, "{address}");
        }
    }
}
