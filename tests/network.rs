//! `strata run --network`: a command in a machine and servers outside of it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::Path;

use crate::support::{Ended, finish, run, start};

/// A line from 10.0.2.2, where the host's loopback is.
fn talk(transport: &str, port: u16, more: &str) -> String {
    format!("exec 3<>/dev/{transport}/10.0.2.2/{port}; echo question >&3; {more}")
}

/// Machines, and as root containers.
fn isolations() -> &'static [&'static str] {
    if rustix::process::geteuid().is_root() { &["vm", "container"] } else { &["vm"] }
}

fn ask(isolation: &str, start: &str, script: &str) -> Option<Ended> {
    let flags =
        ["--isolation", isolation, "--start", start, "--host-loopback", "debian", "--", "bash", "-c", script];
    Some(finish(run(&flags)?))
}

#[test]
fn a_command_talks_to_a_server_whether_its_guest_booted_or_not() {
    for (isolation, how) in [("vm", "warm"), ("vm", "cold"), ("container", "warm")] {
        if !isolations().contains(&isolation) {
            continue;
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let answer: Vec<u8> = (0..1 << 20).map(|i: u32| (i * 7 + i / 251) as u8).collect();
        let expected = answer.clone();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut question = [0; 9];
            stream.read_exact(&mut question).unwrap();
            stream.write_all(&answer).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            // All of it comes back.
            let mut back = Vec::new();
            stream.read_to_end(&mut back).unwrap();
            (question, back)
        });
        let Some(ended) =
            ask(isolation, how, &talk("tcp", port, "cat <&3 >/tmp/answer; cat /tmp/answer >&3"))
        else {
            return;
        };
        assert_eq!(ended.code(), 0, "{ended:?}");
        let (question, back) = server.join().unwrap();
        assert_eq!(&question, b"question\n");
        assert!(back == expected, "{how}: {} bytes came back", back.len());
    }
}

#[test]
fn each_processor_has_a_queue_pair_of_its_own_and_streams_of_all_come_whole() {
    const STREAMS: usize = 4;
    for how in ["warm", "cold"] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = std::thread::spawn(move || {
            let echo = |mut stream: TcpStream| {
                let mut all = Vec::new();
                stream.read_to_end(&mut all).unwrap();
                stream.write_all(&all).unwrap();
                all.len()
            };
            let streams: Vec<_> = (0..STREAMS).map(|_| listener.accept().unwrap().0).collect();
            let threads: Vec<_> =
                streams.into_iter().map(|stream| std::thread::spawn(move || echo(stream))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        // A stream for each processor and one more; what was sent and what comes back are compared.
        let stream = format!(
            "use IO::Socket::INET; my $s = IO::Socket::INET->new(qq{{10.0.2.2:{port}}}) or die; \
             my $sent = pack(q{{N*}}, map {{ $_ * $$ }} 1 .. 500000); print $s $sent; $s->shutdown(1); \
             local $/; my $back = <$s>; print qq{{whole\n}} if $back eq $sent"
        );
        let script = format!(
            "ls -d /sys/class/net/eth0/queues/[rt]x-* | wc -l; \
             for i in $(seq {STREAMS}); do taskset -c $((i % 2)) perl -e '{stream}' & done; wait"
        );
        let flags = ["--start", how, "--cpus", "2", "--host-loopback", "debian", "--", "bash", "-c", &script];
        let Some(command) = run(&flags) else { return };
        let ended = finish(command);
        assert_eq!(ended.stdout, format!("4\n{}", "whole\n".repeat(STREAMS)), "{ended:?}");
        assert_eq!(server.join().unwrap(), [2_000_000; STREAMS]);
    }
}

#[test]
fn a_command_sends_and_receives_datagrams() {
    for isolation in isolations() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = server.local_addr().unwrap().port();
        let answering = std::thread::spawn(move || {
            let mut question = [0; 32];
            let (len, from) = server.recv_from(&mut question).unwrap();
            server.send_to(b"answer\n", from).unwrap();
            question[..len].to_vec()
        });
        let Some(ended) = ask(isolation, "warm", &talk("udp", port, "dd bs=64 count=1 <&3 2>/dev/null"))
        else {
            return;
        };
        assert_eq!((ended.code(), ended.stdout.as_str()), (0, "answer\n"), "{ended:?}");
        assert_eq!(answering.join().unwrap(), b"question\n");
    }
}

#[test]
fn the_hosts_loopback_and_link_local_addresses_are_out_of_reach() {
    for isolation in isolations() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let script = format!(
            "for ip in 10.0.2.2 169.254.169.254 0.0.0.0; do (exec 3<>/dev/tcp/$ip/{port}) 2>/dev/null && echo $ip; done; \
         cat /etc/resolv.conf"
        );
        let Some(command) =
            run(&["--isolation", isolation, "--network", "user", "debian", "--", "bash", "-c", &script])
        else {
            return;
        };
        let ended = finish(command);
        // Behind the server there are the domains and options of this host.
        assert!(ended.stdout.starts_with("nameserver 10.0.2.3\n"), "{ended:?}");
        listener.set_nonblocking(true).unwrap();
        assert!(listener.accept().is_err(), "nobody came");
    }
}

#[test]
fn a_published_port_leads_to_a_server_in_the_machine() {
    for isolation in isolations() {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let script = "use IO::Socket::INET; my $s = IO::Socket::INET->new(LocalPort => 80, Listen => 1, ReuseAddr => 1); \
                  $| = 1; print qq{ready\\n}; my $c = $s->accept; print $c scalar <$c>; close $c";
        let published = format!("127.0.0.1:{port}:80");
        let Some(command) =
            run(&["--isolation", isolation, "-p", &published, "debian", "--", "perl", "-e", script])
        else {
            return;
        };
        let mut running = start(command);
        running.wait_for("ready");
        let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        client.write_all(b"there and back\n").unwrap();
        let mut echo = String::new();
        client.read_to_string(&mut echo).unwrap();
        assert_eq!(echo, "there and back\n");
        assert_eq!(running.finish().code(), 0);
    }
}

#[test]
fn a_port_that_is_taken_is_named() {
    for isolation in isolations() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let published = format!("{}:80", taken.local_addr().unwrap());
        let Some(command) = run(&["--isolation", isolation, "-p", &published, "debian", "--", "true"]) else {
            return;
        };
        let address = taken.local_addr().unwrap().to_string();
        finish(command).expect_failure(125, &["publish port", &address, "in use"]);
    }
}

#[test]
fn a_client_that_asks_for_an_address_gets_the_one_there_is() {
    let Some(busybox) = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|at| Path::new(at).exists())
    else {
        println!("skipped: needs busybox");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("told");
    std::fs::write(&script, "#!/bin/sh\n[ $1 != bound ] || echo $ip/$mask by $router of $serverid\n")
        .unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let volumes = [format!("{busybox}:/usr/bin/udhcpc:ro"), format!("{}:/told:ro", script.display())];
    for isolation in isolations() {
        let flags = ["--isolation", isolation, "--network", "user", "-v", &volumes[0], "-v", &volumes[1]];
        let client = ["debian", "--", "udhcpc", "-i", "eth0", "-n", "-q", "-f", "-s", "/told"];
        let Some(command) = run(&[&flags[..], &client].concat()) else { return };
        let ended = finish(command);
        assert_eq!(ended.stdout, "10.0.2.15/24 by 10.0.2.2 of 10.0.2.2\n", "{isolation}: {ended:?}");
    }
}

#[test]
fn without_a_network_there_is_no_card() {
    for flags in [&["--network", "none"][..], &[]] {
        let Some(command) = run(&[flags, &["debian", "--", "ls", "/sys/class/net"]].concat()) else { return };
        let ended = finish(command);
        assert_eq!((ended.code(), ended.stdout.as_str()), (0, "lo\n"), "{ended:?}");
    }
    let Some(command) = run(&["--network", "none", "-p", "8080:80", "debian", "--", "true"]) else { return };
    finish(command).expect_failure(2, &["--publish", "--network none"]);
}

/// A server that answers each line, and tells what it was asked.
fn server() -> (u16, std::sync::mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, tell) = (stream.unwrap(), tell.clone());
            std::thread::spawn(move || {
                for line in BufReader::new(&stream).lines().map_while(Result::ok) {
                    let _ = (&stream).write_all(format!("answer to {line}\n").as_bytes());
                    let _ = tell.send(line);
                }
            });
        }
    });
    (port, told)
}

#[test]
fn a_machine_with_a_network_is_forked_and_restored_and_each_that_goes_on_has_connections_and_an_address_of_its_own()
 {
    let Some(place) = crate::detached::Place::new() else { return };
    let (port, asked) = server();
    let script = format!(
        "exec 4<>/dev/tcp/10.0.2.2/{port}; echo first >&4; read answer <&4; address=/sys/class/net/eth0/address; \
         trap 'echo more >&4; timeout 200 cat <&4 >/dev/null; echo ended $?; exec 4>&-; ask' USR1; \
         trap 'echo still >&4; read answer <&4; echo $answer; ask' USR2; trap 'exit 3' TERM; \
         ask() {{ exec 5<>/dev/tcp/10.0.2.2/{port}; echo from $(hostname) >&5; read answer <&5; exec 5>&-; \
         echo $answer at $(cat $address); }}; echo up; while :; do sleep 0.1; done"
    );
    let bash = format!("exec bash -c '{}'", script.replace('\'', "'\\''"));
    place.start(&["--cpus", "2", "--host-loopback", "--name", "web"], &bash);
    let lines =
        |name: &str| -> Vec<String> { place.strata(&["logs", name]).lines().map(str::to_owned).collect() };
    place.wait_for("the first line", || lines("web") == ["up"]);
    assert_eq!(asked.recv().unwrap(), "first");
    place.strata(&["fork", "web", "--count", "2"]);
    let folder = place.dir.path().join("snap");
    let folder = folder.to_str().unwrap();
    place.strata(&["snapshot", "web", folder]);
    let restore = ["restore", "--host-loopback", "--name", "again", folder];
    let mut restored = start(place.command(&restore));
    place.wait_for("its name", || place.strata(&["ps"]).contains(" again "));

    // The original has its connection still; that of a copy is another's, and it is told so.
    place.strata(&["kill", "-s", "USR2", "web"]);
    let copies = ["web-1", "web-2"];
    copies.iter().for_each(|name| drop(place.strata(&["kill", "-s", "USR1", name])));
    place.wait_for("an answer", || lines("web").len() == 3);
    let original = lines("web");
    assert_eq!(original[1], "answer to still");
    let mut addresses = vec![address(&original[2], "debian")];
    for name in copies {
        place.wait_for("an answer", || lines(name).len() == 2);
        let said = lines(name);
        assert_eq!(said[0], "ended 1", "reset, not waited for in vain: {said:?}");
        addresses.push(address(&said[1], name));
    }
    place.strata(&["kill", "-s", "USR1", "again"]);
    restored.wait_for(" at ");
    place.strata(&["kill", "-s", "TERM", "again"]);
    let ended = restored.finish();
    assert_eq!(ended.code(), 3, "{ended:?}");
    addresses.push(address(ended.stdout.lines().last().unwrap(), "again"));
    let different: std::collections::HashSet<&String> = addresses.iter().collect();
    assert_eq!(different.len(), 4, "{addresses:?}");
    let mut all: Vec<String> = asked.try_iter().collect();
    all.sort();
    assert_eq!(all, ["from again", "from debian", "from web-1", "from web-2", "still"]);
}

/// The card's, of what a machine called `name` says.
fn address(line: &str, name: &str) -> String {
    let address =
        line.strip_prefix(&format!("answer to from {name} at ")).unwrap_or_else(|| panic!("{line:?}"));
    assert!(address.starts_with("02:") && address.len() == 17, "{line:?}");
    address.to_owned()
}
