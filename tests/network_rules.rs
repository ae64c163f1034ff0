//! The rules of networks with a name, seen from another host: a network namespace at the other end of a cable.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::Command;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::named_networks::{Network, network, wait_for};
use crate::support::{finish, start, strata};

/// Another host, which is gone when the test is. What is not on its cable it sends through this one.
struct Outside {
    name: String,
    cable: String,
    /// This host's addresses on the cable, and its own: of IPv4, of IPv6.
    host: [IpAddr; 2],
    own: [IpAddr; 2],
}

fn ip(batch: &str) {
    for line in batch.lines() {
        let done = Command::new("ip").args(line.split_whitespace()).output().unwrap();
        assert!(done.status.success(), "ip {line}: {}", String::from_utf8_lossy(&done.stderr));
    }
}

impl Outside {
    /// The one of this number of this process.
    fn new(number: u8) -> Outside {
        let [.., a, b] = std::process::id().to_be_bytes();
        let first = 4 * (number % 64);
        let four = |last: u8| format!("198.{}.{b}.{}", 18 + a % 2, first + last);
        let six = |last: u8| format!("fd12:{a:x}{b:02x}:{number:x}::{last}");
        let (name, cable) =
            (format!("test-{number}-{}", std::process::id()), format!("out{number}{a:02x}{b:02x}"));
        ip(&format!(
            "netns add {name}\n\
             link add {cable} type veth peer name eth0 netns {name}\n\
             address add {host4}/30 dev {cable}\naddress add {host6}/64 dev {cable} nodad\nlink set {cable} up\n\
             -n {name} link set lo up\n-n {name} address add {own4}/30 dev eth0\n\
             -n {name} address add {own6}/64 dev eth0 nodad\n-n {name} link set eth0 up\n\
             -n {name} route add default via {host4}\n-n {name} route add ::/0 via {host6}",
            host4 = four(1),
            host6 = six(1),
            own4 = four(2),
            own6 = six(2),
        ));
        let parse = |texts: [String; 2]| texts.map(|text| text.parse().unwrap());
        Outside { name, cable, host: parse([four(1), six(1)]), own: parse([four(2), six(2)]) }
    }

    /// Has something done there; sockets that are made there stay there.
    fn inside<T: Send + 'static>(&self, act: impl FnOnce() -> T + Send + 'static) -> T {
        let file = std::fs::File::open(Path::new("/run/netns").join(&self.name)).unwrap();
        let enter = move || {
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(std::os::fd::AsFd::as_fd(&file), kind).unwrap();
            act()
        };
        std::thread::spawn(enter).join().unwrap()
    }

    /// Tells everybody who connects from where that is; the port, of both kinds of address.
    fn tell(&self) -> u16 {
        let listener = self.inside(|| TcpListener::bind("[::]:0").unwrap());
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            while let Ok((mut stream, from)) = listener.accept() {
                let _ = writeln!(stream, "{}", from.ip().to_canonical());
            }
        });
        port
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "delete", &self.cable]).status();
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).status();
    }
}

/// Answers all who connect, over both kinds of address, until it is told to end: the first process of a container has to say that
/// it wants to be; at once, since perl would otherwise not hear it between two clients.
const SERVER: &str = "perl -e 'use IO::Socket::IP; use POSIX; sigaction(SIGTERM, POSIX::SigAction->new(sub { _exit 0 })); my $s = IO::Socket::IP->new(LocalHost => qq{::}, LocalPort => 80, \
                      Listen => 5, V6Only => 0) or die $@; $| = 1; print qq{ready\\n}; \
                      while (my $c = $s->accept) { print $c qq{here\\n}; close $c }'";

fn said(at: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&at, std::time::Duration::from_secs(60))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

#[test]
fn what_leaves_a_network_is_from_this_host_unless_it_is_to_keep_its_address() {
    let Some(masked) = Network::new("masked", &["--ipv6"]) else { return };
    let plain = Network::new("plain", &["--ipv6", "--no-masquerade"]).unwrap();
    let closed = Network::new("shut", &["--ipv6", "--internal"]).unwrap();
    let outside = Outside::new(1);
    let port = outside.tell();
    let ask = |net: &Network, isolation: &str, flags: &[&str], to: IpAddr| {
        let script = format!("exec 3<>/dev/tcp/{to}/{port}; timeout 60 cat <&3");
        finish(net.run_in(isolation, flags, &script))
    };
    for isolation in ["container", "vm"] {
        for (to, seen) in outside.own.into_iter().zip(outside.host) {
            let asked = ask(&masked, isolation, &[], to);
            assert_eq!((asked.code(), asked.stdout), (0, format!("{seen}\n")), "{isolation} {to}");
        }
        let own = plain.address(50);
        let asked = ask(&plain, isolation, &["--ip", &own], outside.own[0]);
        assert_eq!((asked.code(), asked.stdout), (0, format!("{own}\n")), "{isolation}");
        let own = plain.six().replace("::/64", "::50");
        let asked = ask(&plain, isolation, &["--ip6", &own], outside.own[1]);
        assert_eq!((asked.code(), asked.stdout), (0, format!("{own}\n")), "{isolation}");
        for to in outside.own {
            let asked = ask(&closed, isolation, &[], to);
            assert!(asked.code() != 0 && asked.stdout.is_empty(), "{isolation} {to}: {asked:?}");
        }
    }
}

#[test]
fn a_published_port_is_one_of_ipv6_too_and_goes_with_its_rules() {
    let Some(net) = Network::new("six", &["--ipv6"]) else { return };
    let outside = Outside::new(2);
    let port = TcpListener::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port();
    let published = format!("{port}:80");
    let gateway: IpAddr = net.six().replace("::/64", "::1").parse().unwrap();
    for isolation in ["container", "vm"] {
        let mut server = start(net.run_in(isolation, &["-p", &published], SERVER));
        server.wait_for("ready");
        for host in outside.host {
            let heard = outside.inside(move || said(SocketAddr::new(host, port)));
            assert_eq!(heard.unwrap(), "here\n", "{isolation} at {host} from outside");
        }
        for host in ["127.0.0.1".parse().unwrap(), gateway, outside.host[0], outside.host[1]] {
            let heard = said(SocketAddr::new(host, port));
            assert_eq!(heard.unwrap(), "here\n", "{isolation} at {host}");
        }
        // A port that is not published is nobody's, though there is a way.
        let at = SocketAddr::new(net.address(2).parse().unwrap(), 80);
        let asked =
            outside.inside(move || TcpStream::connect_timeout(&at, std::time::Duration::from_secs(1)));
        assert!(asked.is_err(), "{isolation}: {asked:?}");
        server.signal(rustix::process::Signal::TERM);
        server.finish();
        wait_for("the end of its rules", || !net.rules().contains(&port.to_string()));
    }
    let (name, bridge) = (net.name.clone(), net.bridge.clone());
    assert!(!net.rules().is_empty());
    drop(net);
    let left = Command::new("nft").args(["list", "ruleset"]).output().unwrap();
    assert!(!String::from_utf8_lossy(&left.stdout).contains(&bridge), "rules of {name} are left");
}

#[test]
fn a_bridge_that_somebody_deletes_is_there_again_with_all_its_cables_at_the_next_start() {
    let Some(net) = Network::new("lost", &["--ipv6"]) else { return };
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let published = format!("127.0.0.1:{port}:80");
    for isolation in ["container", "vm"] {
        let mut server = start(net.run_in(isolation, &["--ip", &net.address(9), "-p", &published], SERVER));
        server.wait_for("ready");
        ip(&format!("link delete {}", net.bridge));
        let _ = Command::new("nft").args(["delete", "table", "inet", &net.bridge]).status().unwrap();
        let script = format!("exec 3<>/dev/tcp/{}/80; timeout 60 cat <&3", net.address(9));
        let asked = finish(net.run(&[], &script));
        assert_eq!((asked.code(), &*asked.stdout), (0, "here\n"), "{isolation}: {asked:?}");
        assert_eq!(said(([127, 0, 0, 1], port).into()).unwrap(), "here\n", "{isolation}");
        server.signal(rustix::process::Signal::TERM);
        server.finish();
    }
    // Nor is one in the way of the network's end.
    ip(&format!("link delete {}", net.bridge));
    assert_eq!(network(&["rm", &net.name]).code(), 0);
}

#[test]
fn addresses_that_this_host_has_a_way_to_are_no_networks() {
    let Some(net) = Network::new("taken", &["--ipv6"]) else { return };
    let outside = Outside::new(3);
    let create = |subnet: &str| network(&["create", "--subnet", subnet, "test-taken-too"]);
    let (four, six) = (outside.host[0].to_string(), outside.host[1].to_string().replace("::1", "::"));
    let (around, _) = four.rsplit_once('.').unwrap();
    create(&format!("{around}.0/24"))
        .expect_failure(125, &["test-taken-too", "overlaps", "route to", around]);
    create(&format!("{six}/64")).expect_failure(125, &["test-taken-too", "overlaps", "route to", &six]);
    create(&net.six()).expect_failure(125, &["overlaps", &net.six(), &net.name]);
    create(&net.subnet.replace("/24", "/28")).expect_failure(125, &["overlaps", &net.subnet, &net.name]);
}

#[test]
fn networks_that_several_stores_make_at_once_have_addresses_of_their_own() {
    const STORES: usize = 6;
    // Where networks can be made.
    let Some(_net) = Network::new("stores", &[]) else { return };
    let stores: Vec<_> = (0..STORES).map(|_| tempfile::tempdir().unwrap()).collect();
    let in_store = |store: &tempfile::TempDir, arguments: &[&str]| {
        let mut command = strata();
        command.arg("--root").arg(store.path()).arg("network").args(arguments);
        finish(command)
    };
    let subnet = |store| {
        assert_eq!(in_store(store, &["create", "test-alone"]).code(), 0);
        let described: serde_json::Value =
            serde_json::from_str(&in_store(store, &["inspect", "test-alone"]).stdout).unwrap();
        described[0]["subnet"].as_str().unwrap().to_owned()
    };
    let subnets: Vec<String> = std::thread::scope(|scope| {
        let threads: Vec<_> = stores.iter().map(|store| scope.spawn(|| subnet(store))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    stores.iter().for_each(|store| assert_eq!(in_store(store, &["rm", "test-alone"]).code(), 0));
    let different: std::collections::HashSet<&String> = subnets.iter().collect();
    assert_eq!(different.len(), STORES, "{subnets:?}");
}

#[test]
fn a_port_that_anybody_has_is_not_published_and_nothing_is_left_of_the_start() {
    let Some(net) = Network::new("ports", &[]) else { return };
    let (stream, datagram) =
        (TcpListener::bind("0.0.0.0:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
    let (tcp, udp) = (stream.local_addr().unwrap().port(), datagram.local_addr().unwrap());
    for isolation in ["container", "vm"] {
        for published in [format!("{tcp}:80"), format!("{udp}:53/udp")] {
            let ended = finish(net.run_in(isolation, &["-p", &published], "echo it ran"));
            ended.expect_failure(125, &["publish port", "in use"]);
            assert_eq!(net.connected(), serde_json::json!([]), "{isolation} {published}");
            assert!(!net.rules().contains("dnat ip to"), "{}", net.rules());
        }
    }
}
