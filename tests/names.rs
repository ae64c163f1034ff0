//! Names on networks: workloads that find each other, the rest of the world's names, and the server of both.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::process::{Child, Command};

use rustix::process::{Pid, Signal};
use simple_dns::rdata::{A, RData};
use simple_dns::{CLASS, Name, Packet, Question, RCODE, ResourceRecord, TYPE};

use crate::named_networks::{Network, network, wait_for};
use crate::support::{Ended, feed, finish, start, with_assets};

/// Workloads, which are gone when the test is.
struct Workloads {
    names: Vec<String>,
}

fn strata(arguments: &[&str]) -> Ended {
    let mut command = with_assets().unwrap();
    command.args(arguments);
    finish(command)
}

fn good(arguments: &[&str]) -> String {
    let ended = strata(arguments);
    assert_eq!(ended.code(), 0, "{arguments:?}: {ended:?}");
    ended.stdout
}

impl Workloads {
    fn new() -> Workloads {
        Workloads { names: Vec::new() }
    }

    /// A name that is this test process' own.
    fn start(&mut self, net: &Network, purpose: &str, isolation: &str, flags: &[&str]) -> String {
        let name = format!("{purpose}-{}-{isolation}", std::process::id());
        let run = ["run", "-d", "--isolation", isolation, "--network", &net.name, "--name", &name];
        good(&[&run[..], flags, &["debian", "--", "sleep", "100000"]].concat());
        self.names.push(name.clone());
        name
    }
}

impl Drop for Workloads {
    fn drop(&mut self) {
        let names: Vec<&str> = self.names.iter().map(String::as_str).collect();
        strata(&[&["rm", "-f"], &names[..]].concat());
    }
}

/// The addresses that a workload's C library finds for a name, in order; none if there is no such name.
fn found(asker: &str, database: &str, name: &str) -> Vec<String> {
    let ended = strata(&["exec", asker, "getent", database, name]);
    let lines = ended.stdout.lines().filter_map(|line| line.split_whitespace().next().map(str::to_owned));
    let mut all: Vec<String> = lines.collect();
    all.sort();
    all.dedup();
    assert_eq!(ended.code(), if all.is_empty() { 2 } else { 0 }, "{ended:?}");
    all
}

/// What the network's server says to a query of a workload: how it went, and how many records.
fn dig(net: &Network, asker: &str, name: &str, kind: TYPE) -> (RCODE, usize) {
    let mut packet = Packet::new_query(7);
    packet.questions.push(Question::new(Name::new(name).unwrap(), kind.into(), CLASS::IN.into(), false));
    let query = packet.build_bytes_vec().unwrap();
    let ask = |transport: &str, read: &str, query: &[u8]| {
        let script = format!("exec 3<>/dev/{transport}/{}/53; cat >&3; {read} <&3", net.address(1));
        let mut command = with_assets().unwrap();
        command.args(["exec", "-i", asker, "bash", "-c", &script]);
        let (answer, status) = feed(command, query.to_vec());
        assert!(status.success(), "{transport}: {status}");
        answer
    };
    let answer = ask("udp", "timeout 60 dd bs=1500 count=1 status=none", &query);
    let with_length = [&(query.len() as u16).to_be_bytes(), &query[..]].concat();
    let by_tcp = ask("tcp", &format!("timeout 60 head -c {}", answer.len() + 2), &with_length);
    assert_eq!(by_tcp[2..], answer, "it is the same by TCP");
    let read = Packet::parse(&answer).unwrap();
    (read.rcode(), read.answers.len())
}

/// What the server says to this host's own query for the IPv4 address of a name.
fn asked_by_host(net: &Network, name: &str) -> (RCODE, usize) {
    let mut packet = Packet::new_query(7);
    let name = Name::new(name).unwrap();
    packet.questions.push(Question::new(name, TYPE::A.into(), CLASS::IN.into(), false));
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.set_read_timeout(Some(std::time::Duration::from_secs(60))).unwrap();
    socket.send_to(&packet.build_bytes_vec().unwrap(), (net.address(1), 53)).unwrap();
    let mut answer = [0; 1500];
    let len = socket.recv(&mut answer).unwrap();
    let read = Packet::parse(&answer[..len]).unwrap();
    (read.rcode(), read.answers.len())
}

/// The processes that serve the network's names.
fn servers(net: &Network) -> Vec<i32> {
    let is_it = |pid: &i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        words.windows(2).any(|pair| pair == [b"serve-names", net.id.as_bytes()])
    };
    let all = std::fs::read_dir("/proc").unwrap();
    let pids = all.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    pids.filter(is_it).collect()
}

/// The process that keeps the cable of a workload in the foreground.
fn keeper_of(workload: &Child) -> Pid {
    let pid = workload.id();
    let children = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flat_map(|task| {
        let text = std::fs::read_to_string(task.unwrap().path().join("children")).unwrap_or_default();
        text.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<i32>>()
    });
    let is_it = |pid: &i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|word| word == b"cable")
    };
    Pid::from_raw(children.into_iter().find(is_it).unwrap()).unwrap()
}

#[test]
fn containers_and_machines_find_each_other_by_name_as_they_come_and_go() {
    let Some(net) = Network::new("find", &["--ipv6"]) else { return };
    let mut all = Workloads::new();
    let (one, two) = (net.address(11), net.address(12));
    let container = all.start(&net, "found", "container", &["--ip", &one, "--network-alias", "both"]);
    let machine = all.start(&net, "found", "vm", &["--ip", &two, "--network-alias", "both"]);
    for asker in [&container, &machine] {
        for (name, address) in [(&container, &one), (&machine, &two)] {
            assert_eq!(found(asker, "ahostsv4", name), [address.as_str()], "{asker}");
            assert_eq!(found(asker, "ahostsv4", &format!("{name}.{}", net.name)), [address.as_str()]);
            let six = found(asker, "ahostsv6", name);
            assert!(six.len() == 1 && six[0].starts_with("fd"), "{six:?}");
            // What it calls itself it has in a file of its own.
            if asker == name {
                continue;
            }
            let back = good(&["exec", asker, "getent", "hosts", address]);
            assert!(back.contains(&format!("{name}.{}", net.name)), "{back}");
        }
        assert_eq!(found(asker, "ahostsv4", "both"), [one.as_str(), two.as_str()]);
    }
    assert_eq!(asked_by_host(&net, &machine), (RCODE::NoError, 1));
    let id = net.connected()[0]["id"].as_str().unwrap()[..12].to_owned();
    assert_eq!(found(&machine, "ahostsv4", &id), [one.as_str()]);
    for asker in [&container, &machine] {
        assert_eq!(dig(&net, asker, &container.to_uppercase(), TYPE::A), (RCODE::NoError, 1));
        assert_eq!(dig(&net, asker, "both", TYPE::AAAA), (RCODE::NoError, 2));
        assert_eq!(dig(&net, asker, &container, TYPE::TXT), (RCODE::NoError, 0));
        let nobody = net.address(99).split('.').rev().collect::<Vec<_>>().join(".");
        assert_eq!(dig(&net, asker, &format!("{nobody}.in-addr.arpa"), TYPE::PTR), (RCODE::NameError, 0));
    }

    let renamed = format!("{container}-again");
    good(&["rename", &container, &renamed]);
    all.names.push(renamed.clone());
    assert_eq!(found(&machine, "ahostsv4", &renamed), [one.as_str()]);
    assert_eq!(found(&machine, "ahostsv4", &container), [""; 0]);
    good(&["network", "disconnect", &net.name, &renamed]);
    assert_eq!(found(&machine, "ahostsv4", "both"), [two.as_str()]);
    good(&["network", "connect", "--alias", "later", "--ip", &one, &net.name, &renamed]);
    assert_eq!(found(&machine, "ahostsv4", "later"), [one.as_str()]);
    assert_eq!(found(&renamed, "ahostsv4", "both"), [two.as_str()]);
    good(&["stop", "-t", "0", &machine]);
    assert_eq!(found(&renamed, "ahostsv4", &machine), [""; 0]);
}

#[test]
fn one_on_two_networks_knows_the_names_of_both_and_the_others_do_not() {
    let (Some(front), Some(back)) = (Network::new("front", &[]), Network::new("back", &["--internal"]))
    else {
        return;
    };
    let mut all = Workloads::new();
    let web = all.start(&front, "web", "container", &[]);
    let database = all.start(&back, "database", "container", &["--ip", &back.address(9)]);
    let both = all.start(&front, "both", "container", &[]);
    assert_eq!(found(&both, "ahostsv4", &database), [""; 0]);
    good(&["network", "connect", &back.name, &both]);
    assert_eq!(found(&both, "ahostsv4", &database), [back.address(9)]);
    assert_eq!(found(&both, "ahostsv4", &web), [front.address(2)]);
    assert_eq!(found(&web, "ahostsv4", &database), [""; 0]);
    assert_eq!(found(&database, "ahostsv4", &web), [""; 0]);
    // Who is on neither hears nothing: a query from one network to the server of another is lost.
    let script = format!(
        "exec 3<>/dev/udp/{}/53; printf '\\0\\1\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0\\3web\\0\\0\\1\\0\\1' >&3; \
         timeout 1 dd bs=512 count=1 <&3 2>/dev/null | wc -c",
        back.address(1)
    );
    assert_eq!(good(&["exec", &web, "bash", "-c", &script]), "0\n");
    good(&["network", "disconnect", &front.name, &both]);
    assert_eq!(found(&both, "ahostsv4", &database), [back.address(9)]);
    assert_eq!(found(&both, "ahostsv4", &web), [""; 0]);
}

/// A server of one name, for as long as the test lives, at an address of the loopback that only this process uses.
fn upstream(name: &'static str) -> IpAddr {
    let [.., a, b] = std::process::id().to_be_bytes();
    let at: SocketAddr = (Ipv4Addr::new(127, 53, a, b | 1), 53).into();
    let (socket, listener) = (UdpSocket::bind(at).unwrap(), TcpListener::bind(at).unwrap());
    let answer = move |query: &[u8]| {
        let mut reply = Packet::parse(query).unwrap().into_reply();
        let asked = reply.questions[0].qname.clone();
        if asked.to_string() == name {
            let data = RData::A(A { address: 0xc000_0207 });
            reply.answers.push(ResourceRecord::new(asked, CLASS::IN, 60, data));
        } else {
            *reply.rcode_mut() = RCODE::NameError;
        }
        reply.build_bytes_vec().unwrap()
    };
    std::thread::spawn(move || {
        let mut query = [0; 1500];
        while let Ok((len, from)) = socket.recv_from(&mut query) {
            socket.send_to(&answer(&query[..len]), from).unwrap();
        }
    });
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut len = [0; 2];
            stream.read_exact(&mut len).unwrap();
            let mut query = vec![0; u16::from_be_bytes(len).into()];
            stream.read_exact(&mut query).unwrap();
            let answer = answer(&query);
            stream.write_all(&[&(answer.len() as u16).to_be_bytes(), &answer[..]].concat()).unwrap();
        }
    });
    at.ip()
}

#[test]
fn what_is_no_name_of_the_network_is_asked_of_other_servers_unless_nothing_leads_out() {
    let (Some(net), Some(closed)) = (Network::new("out", &[]), Network::new("closed", &["--internal"]))
    else {
        return;
    };
    let mut all = Workloads::new();
    let server = upstream("far.test").to_string();
    let flags = ["--dns", &server, "--dns-search", "test", "--dns-option", "ndots:1"];
    let askers = [
        all.start(&net, "asks", "container", &flags),
        all.start(&net, "asks", "vm", &flags),
        all.start(&net, "asks-by-tcp", "container", &[&flags[..], &["--dns-option", "use-vc"]].concat()),
    ];
    for asker in &askers {
        for name in ["far.test", "far"] {
            assert_eq!(found(asker, "ahostsv4", name), ["192.0.2.7"], "{asker}");
        }
        assert_eq!(found(asker, "ahostsv4", "nowhere.test"), [""; 0]);
    }
    let inside = all.start(&closed, "asks-inside", "container", &flags);
    assert_eq!(found(&inside, "ahostsv4", "far.test"), [""; 0]);
    assert_eq!(found(&inside, "ahostsv4", &inside), [closed.address(2)]);
    let refused = strata(&["run", "--dns-search", "a b", "--network", &net.name, "debian"]);
    assert!(refused.code() == 2 && refused.stderr.contains("no word of resolv.conf"), "{refused:?}");
}

#[test]
fn a_server_of_names_is_confined_comes_back_when_it_is_killed_and_ends_with_the_last_who_is_connected() {
    let Some(net) = Network::new("served", &[]) else { return };
    assert_eq!(servers(&net), [0; 0]);
    let mut all = Workloads::new();
    let (first, second) = (all.start(&net, "one", "vm", &[]), all.start(&net, "two", "container", &[]));
    let &[server] = servers(&net).as_slice() else { panic!("{:?}", servers(&net)) };
    let status = std::fs::read_to_string(format!("/proc/{server}/status")).unwrap();
    for line in ["CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(status.contains(line), "{line}: {status}");
    }
    let seen = std::fs::read_dir(format!("/proc/{server}/root")).unwrap();
    assert_eq!(seen.count(), 0, "it sees nothing of the host");
    // Without a bridge it has nobody to answer, and with one again it answers again.
    let ip = |arguments: &[&str]| assert!(Command::new("ip").args(arguments).status().unwrap().success());
    ip(&["link", "delete", &net.bridge]);
    let third = all.start(&net, "three", "container", &[]);
    assert_eq!(found(&second, "ahostsv4", &third), [net.address(4)]);
    assert_eq!(servers(&net), [server]);

    rustix::process::kill_process(Pid::from_raw(server).unwrap(), Signal::KILL).unwrap();
    wait_for("another server", || matches!(servers(&net)[..], [other] if other != server));
    wait_for("an answer", || found(&second, "ahostsv4", &first) == [net.address(2)]);
    // Whose processes are killed is nobody's neighbour any more.
    let mut killed = start(net.run(&["--network-alias", "killed"], "echo ready; sleep 100000"));
    killed.wait_for("ready");
    assert_eq!(found(&second, "ahostsv4", "killed").len(), 1);
    killed.signal(Signal::KILL);
    killed.finish();
    wait_for("the end of its name", || found(&second, "ahostsv4", "killed").is_empty());
    // Nor is one whose keeper is killed too, so that nobody is left to give anything back.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    for isolation in ["container", "vm"] {
        let publish = format!("127.0.0.1:{port}:80");
        let flags = ["--network-alias", "killed", "-p", &publish];
        let mut killed = start(net.run_in(isolation, &flags, "echo ready; sleep 100000"));
        killed.wait_for("ready");
        assert_eq!(found(&second, "ahostsv4", "killed").len(), 1, "{isolation}");
        assert!(net.rules().contains(&port.to_string()), "{}", net.rules());
        for pid in [keeper_of(&killed.child), Pid::from_child(&killed.child)] {
            rustix::process::kill_process(pid, Signal::KILL).unwrap();
        }
        killed.finish();
        wait_for("the end of its name", || found(&second, "ahostsv4", "killed").is_empty());
        // Whoever looks at the network removes what the host has for it.
        assert_eq!(net.connected().as_array().unwrap().len(), 3, "{isolation}");
        assert!(!net.rules().contains(&port.to_string()), "{}", net.rules());
    }
    good(&["rm", "-f", &first, &second, &third]);
    // It ends in its own time, which the end of the network waits for.
    assert_eq!(network(&["rm", &net.name]).code(), 0);
    assert_eq!(servers(&net), [0; 0]);
}
