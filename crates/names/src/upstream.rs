//! Other servers, who know the rest of the world's names.
//!
//! Each query goes out by a socket of its own, so by a port that nobody can guess, with a number that nobody can guess either, and
//! what comes back must be from whom was asked and about what was asked.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::message::{Query, Rcode};

/// How long one server has. The C library asks again after five seconds.
const PATIENCE: Duration = Duration::from_secs(2);
/// Bytes of an answer by UDP: more than anybody sends who sees to it that it arrives.
const MAX_DATAGRAM: usize = 4096;

/// By what a query came, and goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

/// The answer of the first of `servers` that has one.
pub(crate) async fn ask(query: &Query<'_>, servers: &[SocketAddr], transport: Transport) -> Vec<u8> {
    let mut last = query.error(Rcode::ServFail);
    for server in servers {
        let asked = timeout(PATIENCE, ask_one(query, *server, transport)).await;
        let reason = match asked {
            Ok(Ok(answer)) => {
                let has_answer = !matches!(answer.get(3), Some(code) if [2, 5].contains(&(code & 15)));
                last = answer;
                if has_answer {
                    break;
                }
                continue;
            }
            Ok(Err(error)) => error,
            Err(_) => io::ErrorKind::TimedOut.into(),
        };
        tracing::debug!("ask {server} for {}: {reason}", query.name());
    }
    // Its number is between that server and us.
    last[..2].copy_from_slice(&query.bytes()[..2]);
    if transport == Transport::Udp && last.len() > query.limit() { query.too_long() } else { last }
}

async fn ask_one(query: &Query<'_>, server: SocketAddr, transport: Transport) -> io::Result<Vec<u8>> {
    let mut asked = query.bytes().to_vec();
    rustix::rand::getrandom(&mut asked[..2], rustix::rand::GetRandomFlags::empty())?;
    match transport {
        Transport::Udp => {
            let any: SocketAddr = match server {
                SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
                SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
            };
            let socket = UdpSocket::bind(any).await?;
            socket.connect(server).await?;
            socket.send(&asked).await?;
            let mut answer = vec![0; MAX_DATAGRAM];
            loop {
                let len = socket.recv(&mut answer).await?;
                if is_answer(&answer[..len], &asked[..2], query) {
                    answer.truncate(len);
                    return Ok(answer);
                }
            }
        }
        Transport::Tcp => {
            let mut stream = TcpStream::connect(server).await?;
            write(&mut stream, &asked).await?;
            let len = stream.read_u16().await?;
            let mut answer = vec![0; len.into()];
            stream.read_exact(&mut answer).await?;
            let is_it = is_answer(&answer, &asked[..2], query);
            is_it.then_some(answer).ok_or_else(|| io::Error::other("that is no answer"))
        }
    }
}

/// Writes a message with its length before it, in one piece.
pub(crate) async fn write(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let len = u16::try_from(message.len()).map_err(|_| io::Error::other("a message of more than 64 KiB"))?;
    stream.write_all(&[&len.to_be_bytes(), message].concat()).await
}

/// Whether these bytes answer `query`, which was asked under the number `id`.
pub fn is_answer(bytes: &[u8], id: &[u8], query: &Query<'_>) -> bool {
    let Some((header, rest)) = bytes.split_first_chunk::<12>() else { return false };
    let question = query.question();
    let is_response = header[2] & 0x80 != 0;
    // Some servers have nothing but the header where they refuse.
    let is_same = match header[4..6] {
        [0, 1] => rest.get(..question.len()).is_some_and(|own| own.eq_ignore_ascii_case(question)),
        _ => header[4..12] == [0; 8] && header[3] & 15 != 0,
    };
    header[..2] == *id && is_response && is_same
}

#[cfg(test)]
mod tests {
    use simple_dns::TYPE;

    use super::*;
    use crate::message::testing::query;

    #[test]
    fn an_answer_is_to_what_was_asked_and_under_the_number_it_was_asked_with() {
        let bytes = query("example.org", TYPE::A);
        let asked = Query::parse(&bytes).unwrap();
        let good = asked.answer(Rcode::NxDomain, &[]);
        assert!(is_answer(&good, &bytes[..2], &asked));
        assert!(is_answer(&good.to_ascii_uppercase(), &bytes[..2], &asked), "names have no case");
        assert!(!is_answer(&good, &[0, 0], &asked));
        assert!(!is_answer(&bytes, &bytes[..2], &asked), "the query itself");
        for cut in 0..good.len() {
            assert!(!is_answer(&good[..cut], &bytes[..2], &asked), "{cut}");
        }
        let other = query("example.com", TYPE::A);
        let other = Query::parse(&other).unwrap().answer(Rcode::NoError, &[]);
        assert!(!is_answer(&other, &bytes[..2], &asked));
    }
}
