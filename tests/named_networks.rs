//! `strata network` and `strata run --network NAME`: workloads that reach each other and the host over a bridge.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;

use crate::support::{Ended, assets, finish, run, start, with_assets};

/// A network, which is gone when the test is.
pub struct Network {
    pub name: String,
    pub id: String,
    pub subnet: String,
    pub bridge: String,
}

pub fn network(arguments: &[&str]) -> Ended {
    let mut command = with_assets().unwrap();
    command.arg("network").args(arguments);
    finish(command)
}

impl Network {
    /// Nothing, and a line that says so, where none can be made.
    pub fn new(purpose: &str, flags: &[&str]) -> Option<Self> {
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
        Some(Self { name, id: text("id"), subnet: text("subnet"), bridge: text("bridge") })
    }

    pub fn run(&self, flags: &[&str], script: &str) -> Command {
        self.run_in("container", flags, script)
    }

    pub fn run_in(&self, isolation: &str, flags: &[&str], script: &str) -> Command {
        let own = ["--isolation", isolation, "--network", &self.name];
        run(&[&own, flags, &["debian", "--", "bash", "-c", script]].concat()).unwrap()
    }

    /// The address with this last number.
    pub fn address(&self, last: u8) -> String {
        self.subnet.replace(".0/24", &format!(".{last}"))
    }

    /// Its addresses of IPv6.
    pub fn six(&self) -> String {
        let described: serde_json::Value =
            serde_json::from_str(&network(&["inspect", &self.name]).stdout).unwrap();
        described[0]["six"][0].as_str().unwrap().to_owned()
    }

    /// The workloads that are connected.
    pub fn connected(&self) -> serde_json::Value {
        let described = network(&["inspect", &self.name]).stdout;
        serde_json::from_str::<serde_json::Value>(&described).unwrap()[0]["connected"].clone()
    }

    /// The network's rules, as the kernel has them.
    pub fn rules(&self) -> String {
        let listed = Command::new("nft").args(["list", "table", "inet", &self.bridge]).output().unwrap();
        String::from_utf8_lossy(&listed.stdout).into_owned()
    }
}

/// What a process that was killed had is given back by another, in its own time.
pub fn wait_for(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + crate::support::PATIENCE;
    while !is() {
        assert!(std::time::Instant::now() < deadline, "{what} never came");
        std::thread::sleep(std::time::Duration::from_millis(20));
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
/// The same, also over IPv6.
const SERVER6: &str = "perl -e 'use IO::Socket::IP; my $s = IO::Socket::IP->new(LocalHost => qq{::}, LocalPort => 80, \
                       Listen => 1, V6Only => 0) or die $@; $| = 1; print qq{ready\\n}; my $c = $s->accept; \
                       print $c scalar <$c>; close $c'";

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

/// Asks the server at an address, of either kind.
fn ask(address: &str) -> String {
    format!(
        "perl -e 'use IO::Socket::IP; my $s = IO::Socket::IP->new(PeerHost => qq{{{address}}}, PeerPort => 80) or die $@; \
         print $s qq{{question\\n}}; print <$s>'"
    )
}

#[test]
fn a_machine_and_a_container_reach_each_other_over_both_kinds_of_address() {
    let Some(net) = Network::new("both", &["--ipv6", "--mtu", "1400"]) else { return };
    let described = network(&["inspect", &net.name]).stdout;
    let described: serde_json::Value = serde_json::from_str(&described).unwrap();
    let six = described[0]["six"][0].as_str().unwrap().replace("::/64", "::77");
    for (server, client) in [("vm", "container"), ("container", "vm"), ("vm", "vm")] {
        for address in [net.address(77), six.clone()] {
            let flags = ["--ip", &net.address(77), "--ip6", &six];
            let mut serving = start(net.run_in(server, &flags, SERVER6));
            serving.wait_for("ready");
            let asked = format!("cat /sys/class/net/eth0/mtu; {}", ask(&address));
            let asked = finish(net.run_in(client, &[], &asked));
            assert_eq!(
                (asked.code(), &*asked.stdout),
                (0, "1400\nquestion\n"),
                "{server} {client}: {asked:?}"
            );
            assert_eq!(serving.finish().code(), 0);
        }
    }
    assert_eq!(net.connected(), serde_json::json!([]));
}

#[test]
fn a_published_port_leads_into_a_machine_and_goes_with_it_however_it_ends() {
    let Some(net) = Network::new("machine", &[]) else { return };
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let published = format!("127.0.0.1:{port}:80");
    for is_killed in [false, true] {
        let mut server = start(net.run_in("vm", &["-p", &published, "--ip", &net.address(9)], SERVER));
        server.wait_for("ready");
        finish(net.run_in("vm", &["-p", &published], "true"))
            .expect_failure(125, &["publish port", "in use"]);
        assert!(net.rules().contains(&format!("dport {port} ")), "{}", net.rules());
        if is_killed {
            server.signal(rustix::process::Signal::KILL);
            server.finish();
            wait_for("the end of its rules", || !net.rules().contains(&port.to_string()));
        } else {
            let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
            client.write_all(b"there and back\n").unwrap();
            let mut echo = String::new();
            client.read_to_string(&mut echo).unwrap();
            assert_eq!((echo.as_str(), server.finish().code()), ("there and back\n", 0));
            assert!(!net.rules().contains(&port.to_string()), "{}", net.rules());
        }
        assert_eq!(net.connected(), serde_json::json!([]));
    }
}

#[test]
fn machines_that_go_on_have_places_of_their_own() {
    let Some(net) = Network::new("copies", &["--ipv6"]) else { return };
    let strata = |arguments: &[&str]| {
        let mut command = with_assets().unwrap();
        command.args(arguments);
        let ended = finish(command);
        assert_eq!(ended.code(), 0, "{arguments:?}: {ended:?}");
        ended.stdout
    };
    let name = format!("copied-{}", std::process::id());
    let serve = "while :; do perl -e 'use IO::Socket::IP; my $s = IO::Socket::IP->new(LocalHost => qq{::}, LocalPort => 80, \
                 Listen => 5, ReuseAddr => 1, V6Only => 0) or die; while (my $c = $s->accept) { \
                 print $c qx{cat /sys/class/net/eth0/address; hostname}; close $c }'; done";
    let run = ["run", "-d", "--network", &net.name, "--name", &name, "debian", "--", "bash", "-c", serve];
    strata(&run);
    let folder = tempfile::tempdir().unwrap();
    let saved = folder.path().join("saved");
    strata(&["snapshot", &name, saved.to_str().unwrap()]);
    let copies = strata(&["fork", &name, "--count", "2"]);
    let restored = format!("{name}-again");
    strata(&["restore", "-d", "--name", &restored, "--network", &net.name, saved.to_str().unwrap()]);
    let all: Vec<&str> = [&*name, &*restored].into_iter().chain(copies.lines()).collect();
    let connected = net.connected();
    let mut seen = std::collections::HashSet::new();
    for lease in connected.as_array().unwrap() {
        let workload = lease["workload"].as_str().unwrap();
        assert!(all.contains(&workload), "{lease}");
        for address in [&lease["address"], &lease["address6"]] {
            let address = address.as_str().unwrap();
            let mut said = String::new();
            wait_for("an answer", || {
                let Ok(mut stream) = TcpStream::connect((address, 80)) else { return false };
                said.clear();
                stream.read_to_string(&mut said).is_ok() && !said.is_empty()
            });
            let (mac, host) = said.split_once('\n').unwrap();
            let host = host.trim();
            assert!(host == workload || (workload == name && host == "debian"), "{said} {lease}");
            let bytes: Vec<u8> = mac.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
            assert_eq!(serde_json::json!(bytes), lease["mac"]);
            seen.insert((address.to_owned(), mac.to_owned()));
        }
    }
    assert_eq!(seen.len(), 8, "{connected}");
    strata(&[&["rm", "-f"], &all[..]].concat());
    assert_eq!(net.connected(), serde_json::json!([]));
}

#[test]
fn a_container_that_runs_joins_another_network_and_leaves_it() {
    let (Some(first), Some(second)) = (Network::new("first", &[]), Network::new("second", &[])) else {
        return;
    };
    let strata = |arguments: &[&str]| {
        let mut command = with_assets().unwrap();
        command.args(arguments);
        finish(command)
    };
    let name = format!("joins-{}", std::process::id());
    let run = ["run", "-d", "--isolation", "container", "--network", &first.name, "--name", &name, "debian"];
    assert_eq!(strata(&[&run[..], &["--", "sleep", "1000"]].concat()).code(), 0);
    let address = second.address(50);
    let connect = ["network", "connect", "--ip", &address, &second.name, &name];
    assert_eq!(strata(&connect).code(), 0);
    strata(&connect).expect_failure(125, &[&name, "already"]);
    assert_eq!(second.connected()[0]["address"], address);
    let addresses = || strata(&["exec", &name, "cat", "/proc/net/fib_trie"]).stdout;
    assert!(addresses().contains(&address) && addresses().contains(&first.address(2)));
    // It is so whenever it is started.
    assert_eq!(strata(&["restart", "-t", "0", &name]).code(), 0);
    assert!(addresses().contains(&address) && addresses().contains(&first.address(2)));
    assert_eq!(strata(&["network", "disconnect", &first.name, &name]).code(), 0);
    assert!(addresses().contains(&address) && !addresses().contains(&first.address(2)));
    assert_eq!(strata(&["restart", "-t", "0", &name]).code(), 0);
    assert!(addresses().contains(&address) && !addresses().contains(&first.address(2)));
    strata(&["network", "disconnect", &first.name, &name]).expect_failure(125, &[&name, "not connected"]);
    assert_eq!(strata(&["rm", "-f", &name]).code(), 0);
    assert_eq!(second.connected(), serde_json::json!([]));
}
