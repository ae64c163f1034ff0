//! Sockets and limits: one thread, which answers what it knows at once and waits for others' answers for all at the same time.
//!
//! Every limit here is there because of a workload that asks without end: it gets no answers then, and the others get theirs.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::sockopt;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Notify;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::timeout;

use crate::message::{MAX_QUERY, Query, Rcode};
use crate::upstream::{self, Transport};
use crate::zone::{Verdict, Zones, resolve};

/// Queries that others are asked for at the same time, and those of one asker.
const IN_FLIGHT: Limit = Limit { all: 256, each: 32 };
/// Connections at the same time, and those of one asker.
const CONNECTIONS: Limit = Limit { all: 64, each: 8 };
/// A connection on which nothing is asked for so long, or no answer is taken.
const IDLE: Duration = Duration::from_secs(10);
/// After an error of the host's, such as too many open files.
const PAUSE: Duration = Duration::from_millis(100);
/// Connections that the kernel takes before they are taken here.
const BACKLOG: i32 = 64;

/// Where queries come in.
#[derive(Debug)]
pub struct Sockets {
    datagrams: Vec<std::net::UdpSocket>,
    listeners: Vec<std::net::TcpListener>,
}

impl Sockets {
    /// Opens `port` of these addresses. They need not be there yet, and may go and come again.
    ///
    /// # Errors
    /// Somebody has one already, with the address, or this process may not.
    pub fn bind(addresses: &[IpAddr], port: u16) -> Result<Sockets, (SocketAddr, io::Error)> {
        let mut sockets = Sockets { datagrams: Vec::new(), listeners: Vec::new() };
        for address in addresses {
            let address = SocketAddr::new(*address, port);
            let open = |kind| open(address, kind).map_err(|error| (address, error));
            sockets.datagrams.push(open(SocketType::DGRAM)?.into());
            let listener = open(SocketType::STREAM)?;
            rustix::net::listen(&listener, BACKLOG).map_err(|error| (address, error.into()))?;
            sockets.listeners.push(listener.into());
        }
        Ok(sockets)
    }
}

fn open(address: SocketAddr, kind: SocketType) -> io::Result<std::os::fd::OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, kind, flags, None)?;
    if address.is_ipv4() {
        sockopt::set_ip_freebind(&socket, true)?;
    } else {
        sockopt::set_ipv6_v6only(&socket, true)?;
        sockopt::set_ipv6_freebind(&socket, true)?;
    }
    if kind == SocketType::STREAM {
        // What is left of connections to the server before this one is nobody's.
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    rustix::net::bind(&socket, &address)?;
    Ok(socket)
}

/// Ends a server.
#[derive(Clone, Debug)]
pub struct End(Arc<Notify>);

impl End {
    /// Ends it.
    pub fn now(&self) {
        self.0.notify_one();
    }
}

/// What ends a server, and what it waits for.
pub fn end() -> (End, impl Future<Output = ()>) {
    let notify = Arc::new(Notify::new());
    (End(notify.clone()), async move { notify.notified().await })
}

/// What all tasks share.
#[derive(Debug)]
struct Server<Z> {
    zones: RefCell<Z>,
    in_flight: Counter,
    connections: Counter,
}

/// Answers queries until `end` is over. Opens nothing but sockets that ask others, so that it may be confined before.
///
/// # Errors
/// The host has no means to wait for sockets.
pub fn serve<Z: Zones + 'static>(
    sockets: Sockets,
    zones: Z,
    end: impl Future<Output = ()>,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    let server = Rc::new(Server {
        zones: RefCell::new(zones),
        in_flight: Counter::new(IN_FLIGHT),
        connections: Counter::new(CONNECTIONS),
    });
    let tasks = LocalSet::new();
    tasks.block_on(&runtime, async move {
        for socket in sockets.datagrams {
            let socket = Rc::new(UdpSocket::from_std(socket)?);
            spawn_local(server.clone().datagrams(socket));
        }
        for listener in sockets.listeners {
            spawn_local(server.clone().listen(TcpListener::from_std(listener)?));
        }
        end.await;
        Ok(())
    })
}

impl<Z: Zones + 'static> Server<Z> {
    async fn datagrams(self: Rc<Self>, socket: Rc<UdpSocket>) {
        // One byte more than a query has, so that a longer one is seen to be.
        let mut buffer = vec![0; MAX_QUERY + 1];
        loop {
            let (len, from) = match socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                Err(error) => {
                    tracing::debug!("receive a query: {error}");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            match self.verdict(&buffer[..len], from.ip(), Transport::Udp) {
                None => {}
                Some((answer, None)) => send(&socket, &answer, from),
                Some((failed, Some(servers))) => match self.in_flight.enter(from.ip()) {
                    None => send(&socket, &failed, from),
                    Some(entered) => {
                        let (socket, query) = (socket.clone(), buffer[..len].to_vec());
                        spawn_local(async move {
                            let Ok(query) = Query::parse(&query) else { return };
                            send(&socket, &upstream::ask(&query, &servers, Transport::Udp).await, from);
                            drop(entered);
                        });
                    }
                },
            }
        }
    }

    /// The answer, or what is said if none of those can be asked who may know it. Nothing where nothing is to be said.
    fn verdict(
        &self,
        bytes: &[u8],
        from: IpAddr,
        by: Transport,
    ) -> Option<(Vec<u8>, Option<Vec<SocketAddr>>)> {
        let asker = self.zones.borrow_mut().of(from)?;
        let query = match Query::parse(bytes) {
            Ok(query) => query,
            Err(answer) => return Some((answer?, None)),
        };
        let mut zones = self.zones.borrow_mut();
        Some(match resolve(&query, &asker, &mut |zone, member| zones.is_there(zone, member)) {
            Verdict::Answer(answer) if by == Transport::Udp && answer.len() > query.limit() => {
                (query.too_long(), None)
            }
            Verdict::Answer(answer) => (answer, None),
            Verdict::Ask(servers) => (query.error(Rcode::ServFail), Some(servers)),
        })
    }

    async fn listen(self: Rc<Self>, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, from)) => {
                    // One too many is closed.
                    let Some(entered) = self.connections.enter(from.ip()) else { continue };
                    let server = self.clone();
                    spawn_local(async move {
                        if let Err(error) = server.connection(stream, from.ip()).await {
                            tracing::debug!("a connection of {}: {error}", from.ip());
                        }
                        drop(entered);
                    });
                }
                Err(error) => {
                    tracing::debug!("take a connection: {error}");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// One query after the other.
    async fn connection(&self, mut stream: TcpStream, from: IpAddr) -> io::Result<()> {
        loop {
            let read = async {
                let len = stream.read_u16().await?;
                if usize::from(len) > MAX_QUERY {
                    return Err(io::Error::other("a query that is too long"));
                }
                let mut query = vec![0; len.into()];
                stream.read_exact(&mut query).await.map(|_| query)
            };
            let query = match timeout(IDLE, read).await {
                Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                read => read??,
            };
            let answer = match self.verdict(&query, from, Transport::Tcp) {
                None => return Ok(()),
                Some((answer, None)) => answer,
                Some((failed, Some(servers))) => match (self.in_flight.enter(from), Query::parse(&query)) {
                    (Some(_entered), Ok(query)) => upstream::ask(&query, &servers, Transport::Tcp).await,
                    _ => failed,
                },
            };
            timeout(IDLE, upstream::write(&mut stream, &answer)).await??;
        }
    }
}

/// What the socket has no room for is lost, as datagrams are: whoever asked asks again.
fn send(socket: &UdpSocket, answer: &[u8], to: SocketAddr) {
    let _ = socket.try_send_to(answer, to);
}

/// How many there may be at the same time.
#[derive(Clone, Copy, Debug)]
struct Limit {
    all: usize,
    each: usize,
}

/// How many there are, and of whom.
#[derive(Clone, Debug)]
struct Counter {
    limit: Limit,
    of: Rc<RefCell<HashMap<IpAddr, usize>>>,
}

/// One of them.
#[derive(Debug)]
struct Entered {
    counter: Counter,
    who: IpAddr,
}

impl Counter {
    fn new(limit: Limit) -> Counter {
        Counter { limit, of: Rc::default() }
    }

    /// One more, unless there are too many.
    fn enter(&self, who: IpAddr) -> Option<Entered> {
        let mut of = self.of.borrow_mut();
        let all: usize = of.values().sum();
        let own = of.get(&who).copied().unwrap_or_default();
        if all >= self.limit.all || own >= self.limit.each {
            return None;
        }
        of.insert(who, own + 1);
        Some(Entered { counter: self.clone(), who })
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut of = self.counter.of.borrow_mut();
        match of.get_mut(&self.who) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(of.remove(&self.who)),
        }
    }
}

#[cfg(test)]
mod tests;
