//! Sockets of the host's, all of which never block, and what it says of itself.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketFlags, SocketType, bind, connect, ipproto, listen, socket_with, sockopt,
};

const DNS: u16 = 53;
/// Connections to a published port that wait to be taken.
const BACKLOG: i32 = 128;

fn open(kind: SocketType, protocol: Option<rustix::net::Protocol>) -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::INET, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, protocol)?)
}

/// A TCP connection to `peer` that is being made.
pub fn tcp(peer: SocketAddrV4) -> io::Result<OwnedFd> {
    let socket = open(SocketType::STREAM, None)?;
    match connect(&socket, &peer) {
        Ok(()) | Err(Errno::INPROGRESS) => {}
        Err(error) => return Err(error.into()),
    }
    // What the guest has cut into segments already waits for nothing.
    sockopt::set_tcp_nodelay(&socket, true)?;
    Ok(socket)
}

/// A UDP socket that hears `peer` alone.
pub fn udp(peer: SocketAddrV4) -> io::Result<OwnedFd> {
    let socket = open(SocketType::DGRAM, None)?;
    connect(&socket, &peer)?;
    Ok(socket)
}

/// A socket for echo requests to `peer`; the host allows it to the groups of `net.ipv4.ping_group_range`.
pub fn ping(peer: Ipv4Addr) -> io::Result<OwnedFd> {
    let socket = open(SocketType::DGRAM, Some(ipproto::ICMP))?;
    connect(&socket, &SocketAddrV4::new(peer, 0))?;
    Ok(socket)
}

/// Takes connections at `address`.
pub fn listen_tcp(address: SocketAddrV4) -> io::Result<OwnedFd> {
    let socket = open(SocketType::STREAM, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    bind(&socket, &address)?;
    listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// Takes datagrams at `address`.
pub fn bind_udp(address: SocketAddrV4) -> io::Result<OwnedFd> {
    let socket = open(SocketType::DGRAM, None)?;
    bind(&socket, &address)?;
    Ok(socket)
}

/// The first name server of the host that has an IPv4 address, by what is in its `resolv.conf`.
pub fn resolver(resolv_conf: &str) -> Option<SocketAddrV4> {
    let lines = resolv_conf.lines().map(str::split_whitespace);
    let servers = lines.filter_map(|mut words| (words.next()? == "nameserver").then(|| words.next())?);
    servers.filter_map(|server| server.parse().ok()).map(|server| SocketAddrV4::new(server, DNS)).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_server_with_an_address_of_four_bytes_is_asked() {
        let text =
            "# nameserver 1.1.1.1\nsearch a b\nnameserver ::1\n nameserver\t127.0.0.53 \nnameserver 8.8.8.8";
        assert_eq!(resolver(text), Some("127.0.0.53:53".parse().unwrap()));
        assert_eq!(resolver("nameserver\noptions edns0"), None);
    }
}
