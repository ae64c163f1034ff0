//! Queries as workloads may send them to a network's server of names, and what other servers may say to those it passes on: every
//! answer is one that another reader understands, no longer than who asked takes it, and about what was asked.
#![no_main]

use std::net::Ipv4Addr;
use std::sync::{Arc, OnceLock};

use libfuzzer_sys::fuzz_target;
use names::{Asker, Member, Query, Rcode, Subnets, Verdict, Zone, is_answer, resolve};
use simple_dns::Packet;

/// A network of two, and a server that knows the rest.
fn asker() -> &'static Asker {
    static ASKER: OnceLock<Asker> = OnceLock::new();
    ASKER.get_or_init(|| {
        let member = |name: &str, last: u8| Member {
            names: vec![name.to_owned(), "both".to_owned()],
            addresses: vec![
                Ipv4Addr::new(10, 9, 0, last).into(),
                Ipv4Addr::new(10, 9, 0, last).to_ipv6_mapped().into(),
            ],
        };
        let four = (Ipv4Addr::new(10, 9, 0, 0), 24);
        let zone = Zone {
            name: "net".to_owned(),
            subnets: Subnets { four, six: None },
            members: vec![member("web", 2), member("db.in", 3)],
        };
        Asker { zones: vec![Arc::new(zone)], servers: vec![Ipv4Addr::new(10, 0, 0, 1).into()] }
    })
}

fn check(answer: &[u8], query: &[u8]) {
    assert!(
        answer.len() >= 12 && answer[..2] == query[..2] && answer[2] & 0x80 != 0,
        "an answer to this query"
    );
    assert!(matches!(Query::parse(answer), Err(None)), "an answer is never answered");
}

fuzz_target!(|data: &[u8]| {
    // What another server says follows after the length of the query.
    let Some((length, rest)) = data.split_first() else { return };
    let (bytes, said) = rest.split_at(rest.len().min(usize::from(*length)));
    let query = match Query::parse(bytes) {
        Ok(query) => query,
        Err(Some(answer)) => return check(&answer, bytes),
        Err(None) => return,
    };
    assert!(query.name().len() < 256 && (512..=1232).contains(&query.limit()));
    for answer in [query.too_long(), query.answer(Rcode::NxDomain, &[])] {
        check(&answer, bytes);
        assert!(answer.len() <= query.limit());
        assert!(is_answer(&answer, &bytes[..2], &query));
    }
    if let Verdict::Answer(answer) = resolve(&query, asker(), &mut |_, _| true) {
        check(&answer, bytes);
        assert!(is_answer(&answer, &bytes[..2], &query));
        // The other reader does not know all kinds; what has records it does.
        if answer[6..8] != [0, 0] {
            let read = Packet::parse(&answer).expect("another reader understands it");
            assert_eq!(read.answers.len(), usize::from(u16::from_be_bytes([answer[6], answer[7]])));
        }
    }
    if is_answer(said, &bytes[..2], &query) {
        assert!(said.len() >= 12 && said[2] & 0x80 != 0);
    }
});
