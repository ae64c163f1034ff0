use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream as Client, UdpSocket as Datagrams};

use simple_dns::rdata::RData;
use simple_dns::{Packet, PacketFlag, RCODE, TYPE};

use super::*;
use crate::message::testing::query;
use crate::zone::testing::zone;
use crate::zone::{Asker, Member, Zone};

const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// So long nobody waits in vain.
const PATIENCE: Duration = Duration::from_secs(60);

/// Those on the loopback are on a network where `many` is the name of many.
struct Fixed {
    servers: Vec<IpAddr>,
}

impl Zones for Fixed {
    fn of(&mut self, _address: IpAddr) -> Option<Asker> {
        let mut zone = zone("test");
        let member = |last: u16| Member {
            names: vec!["many".to_owned()],
            addresses: vec![Ipv4Addr::from_bits(0x0a09_0000 + u32::from(last)).into()],
        };
        zone.members.extend((100..200).map(member));
        Some(Asker { zones: vec![zone.into()], servers: self.servers.clone() })
    }

    fn is_there(&mut self, _zone: &Zone, _member: &Member) -> bool {
        true
    }
}

/// A server while this lives.
struct Running {
    end: End,
    thread: Option<std::thread::JoinHandle<()>>,
    at: SocketAddr,
}

impl Running {
    fn new(servers: Vec<IpAddr>) -> Running {
        let sockets = Sockets::bind(&[LOCAL], 0).unwrap();
        let udp = sockets.datagrams[0].local_addr().unwrap();
        // The same number for both, as clients expect.
        let listener = open(udp, SocketType::STREAM).unwrap();
        rustix::net::listen(&listener, BACKLOG).unwrap();
        let sockets = Sockets { listeners: vec![listener.into()], ..sockets };
        let (end, ended) = end();
        let work = move || serve(sockets, Fixed { servers }, ended).unwrap();
        // What ends it can be waited for in another thread than it is made in.
        let thread = std::thread::spawn(work);
        Running { end, thread: Some(thread), at: udp }
    }

    fn by_udp(&self, query: &[u8]) -> Vec<u8> {
        let socket = Datagrams::bind((LOCAL, 0)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.send_to(query, self.at).unwrap();
        let mut answer = vec![0; 4096];
        let len = socket.recv(&mut answer).unwrap();
        answer.truncate(len);
        answer
    }

    fn connect(&self) -> Client {
        let stream = Client::connect(self.at).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end.now();
        self.thread.take().unwrap().join().unwrap();
    }
}

fn by_tcp(stream: &mut Client, query: &[u8]) -> io::Result<Vec<u8>> {
    stream.write_all(&[&(query.len() as u16).to_be_bytes(), query].concat())?;
    let mut len = [0; 2];
    stream.read_exact(&mut len)?;
    let mut answer = vec![0; u16::from_be_bytes(len).into()];
    stream.read_exact(&mut answer)?;
    Ok(answer)
}

#[test]
fn members_are_found_by_datagram_and_by_connection_and_long_answers_by_connection_only() {
    let running = Running::new(Vec::new());
    let answer = running.by_udp(&query("web", TYPE::A));
    let read = Packet::parse(&answer).unwrap();
    assert!(matches!(&read.answers[0].rdata, RData::A(a) if a.address == 0x0a09_0002), "{read:?}");
    let many = query("many", TYPE::A);
    let answer = running.by_udp(&many);
    let read = Packet::parse(&answer).unwrap();
    assert!(read.has_flags(PacketFlag::TRUNCATION) && read.answers.is_empty(), "{read:?}");
    let mut stream = running.connect();
    for _ in 0..3 {
        let answer = by_tcp(&mut stream, &many).unwrap();
        assert_eq!(Packet::parse(&answer).unwrap().answers.len(), 100);
    }
}

#[test]
fn nonsense_is_survived_and_too_many_connections_are_closed() {
    let running = Running::new(Vec::new());
    let socket = Datagrams::bind((LOCAL, 0)).unwrap();
    for len in [0, 1, 11, 12, 4097, 60000] {
        socket.send_to(&vec![0; len], running.at).unwrap();
    }
    let mut stream = running.connect();
    stream.write_all(&[0xff; 20]).unwrap();
    assert_eq!(stream.read(&mut [0; 1]).unwrap_or(0), 0, "one that says that it asks for 64 KiB is closed");
    drop(stream);
    let web = query("web", TYPE::A);
    let mut open = Vec::new();
    // The one before may be there still.
    while open.len() < 2 * CONNECTIONS.each {
        let mut stream = running.connect();
        match by_tcp(&mut stream, &web) {
            Ok(_) => open.push(stream),
            Err(_) => break,
        }
    }
    assert!((CONNECTIONS.each - 1..=CONNECTIONS.each).contains(&open.len()), "{}", open.len());
    assert_eq!(Packet::parse(&running.by_udp(&web)).unwrap().rcode(), RCODE::NoError);
}

#[test]
fn nobody_has_more_than_his_share() {
    let counter = Counter::new(Limit { all: 5, each: 2 });
    let who = |last: u8| IpAddr::V4(Ipv4Addr::new(10, 9, 0, last));
    let mut entered: Vec<_> = [1, 1, 2, 2].map(|last| counter.enter(who(last)).unwrap()).into();
    assert!(counter.enter(who(1)).is_none());
    entered.push(counter.enter(who(3)).unwrap());
    assert!(counter.enter(who(4)).is_none());
    entered.remove(0);
    assert!(counter.enter(who(4)).is_some());
    drop(entered);
    assert!(counter.of.borrow().is_empty());
}

#[tokio::test(flavor = "current_thread")]
async fn who_does_not_answer_is_passed_over_and_what_was_not_asked_is_not_believed() {
    let (silent, lying) =
        (UdpSocket::bind((LOCAL, 0)).await.unwrap(), UdpSocket::bind((LOCAL, 0)).await.unwrap());
    let servers = [silent.local_addr().unwrap(), lying.local_addr().unwrap()];
    let bytes = query("example.org", TYPE::A);
    let lies = async {
        let mut asked = vec![0; 4096];
        let (len, from) = lying.recv_from(&mut asked).await.unwrap();
        let asked = Query::parse(&asked[..len]).unwrap();
        let said = asked.answer(Rcode::NxDomain, &[]);
        let wrong_id = [&[!said[0]], &said[1..]].concat();
        let other = query("example.com", TYPE::A);
        let wrong_name =
            [&said[..2], &Query::parse(&other).unwrap().answer(Rcode::NoError, &[])[2..]].concat();
        let right = asked.answer(Rcode::NoError, &[crate::Record::Address(LOCAL)]);
        for answer in [wrong_id, wrong_name, b"nonsense".to_vec(), right] {
            lying.send_to(&answer, from).await.unwrap();
        }
    };
    let parsed = Query::parse(&bytes).unwrap();
    let (answer, ()) = tokio::join!(upstream::ask(&parsed, &servers, Transport::Udp), lies);
    let read = Packet::parse(&answer).unwrap();
    assert_eq!((read.id(), read.rcode(), read.answers.len()), (0x1234, RCODE::NoError, 1));
}
