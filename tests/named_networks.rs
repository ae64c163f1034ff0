//! `strata network` and `strata run --network NAME`: containers that reach each other and the host over a bridge.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;

use crate::support::{Ended, assets, finish, run, start, with_assets};

/// A network, which is gone when the test is.
struct Network {
    name: String,
    subnet: String,
    bridge: String,
}

fn network(arguments: &[&str]) -> Ended {
    let mut command = with_assets().unwrap();
    command.arg("network").args(arguments);
    finish(command)
}

impl Network {
    /// Nothing, and a line that says so, where none can be made.
    fn new(purpose: &str, flags: &[&str]) -> Option<Self> {
        assets()?;
        let has_nft = Command::new("nft").arg("--version").output().is_ok();
        if !rustix::process::geteuid().is_root() || !has_nft {
            println!("skipped: needs root and nftables");
            return None;
        }
        let name = format!("test-{purpose}-{}", std::process::id());
        let made = network(&[&["create"], flags, &[&name]].concat());
        assert_eq!((made.code(), made.stdout.trim()), (0, &*name), "{made:?}");
        let described = network(&["inspect", &name]).stdout;
        let described: serde_json::Value = serde_json::from_str(&described).unwrap();
        let text = |key: &str| described[0][key].as_str().unwrap().to_owned();
        Some(Self { name, subnet: text("subnet"), bridge: text("bridge") })
    }

    fn run(&self, flags: &[&str], script: &str) -> Command {
        let own = ["--isolation", "container", "--network", &self.name];
        run(&[&own, flags, &["debian", "--", "bash", "-c", script]].concat()).unwrap()
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        network(&["rm", &self.name]);
    }
}

/// Answers one client with what it says.
const SERVER: &str = "perl -e 'use IO::Socket::INET; my $s = IO::Socket::INET->new(LocalPort => 80, Listen => 1); \
                      $| = 1; print qq{ready\\n}; my $c = $s->accept; print $c scalar <$c>; close $c'";

#[test]
fn a_container_finds_another_by_its_name_and_alias() {
    let Some(net) = Network::new("names", &[]) else { return };
    for name in ["server", "other"] {
        let mut server = start(net.run(&["--name", "server", "--network-alias", "other"], SERVER));
        server.wait_for("ready");
        let ask = format!("exec 3<>/dev/tcp/{name}/80; echo question >&3; cat <&3");
        let client = finish(net.run(&[], &ask));
        assert_eq!((client.code(), &*client.stdout), (0, "question\n"), "{client:?}");
        assert_eq!(server.finish().code(), 0);
    }
}

#[test]
fn a_published_port_leads_into_a_named_network_and_is_taken() {
    let Some(net) = Network::new("publish", &[]) else { return };
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let published = format!("127.0.0.1:{port}:80");
    let mut server = start(net.run(&["-p", &published], SERVER));
    server.wait_for("ready");
    finish(net.run(&["-p", &published], "true")).expect_failure(125, &["publish port", "in use"]);
    let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    client.write_all(b"there and back\n").unwrap();
    let mut echo = String::new();
    client.read_to_string(&mut echo).unwrap();
    assert_eq!(echo, "there and back\n");
    assert_eq!(server.finish().code(), 0);
}

#[test]
fn an_address_is_as_asked_and_free_after_a_kill_and_a_lost_bridge_comes_back() {
    let Some(net) = Network::new("address", &[]) else { return };
    let address = net.subnet.replace(".0/24", ".77");
    let mut first = start(net.run(&["--ip", &address], "echo ready; sleep 1000"));
    first.wait_for("ready");
    finish(net.run(&["--ip", &address], "true")).expect_failure(125, &[&address, "taken"]);
    network(&["rm", &net.name]).expect_failure(125, &[&net.name, "in use"]);
    first.signal(rustix::process::Signal::KILL);
    first.finish();
    let deleted = Command::new("ip").args(["link", "delete", &net.bridge]).status().unwrap();
    assert!(deleted.success());
    let again = finish(net.run(&["--ip", &address], "cat /proc/net/fib_trie"));
    assert!(again.code() == 0 && again.stdout.contains(&address), "{again:?}");
    assert!(Path::new("/sys/class/net").join(&net.bridge).exists());
}

#[test]
fn a_subnet_that_overlaps_is_refused_and_a_removed_network_leaves_nothing() {
    let Some(net) = Network::new("overlap", &["--internal"]) else { return };
    let refused = network(&["create", "--subnet", &net.subnet, "test-overlap-too"]);
    refused.expect_failure(125, &["test-overlap-too", "overlaps", &net.name]);
    let bridge = net.bridge.clone();
    drop(net);
    assert!(!Path::new("/sys/class/net").join(&bridge).exists());
    let rules = Command::new("nft").args(["list", "tables"]).output().unwrap();
    assert!(!String::from_utf8_lossy(&rules.stdout).contains(&bridge));
}
