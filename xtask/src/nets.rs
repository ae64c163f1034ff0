//! `cargo xtask nets`: how fast one TCP stream is on each kind of network, beside QEMU TCG and podman.
//!
//! User mode, from and to a server on this host's loopback; between two machines on one bridge; between two containers on one
//! bridge. As root, but for the first; what it makes on the host is gone afterwards.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::Outcome;
use crate::peers::{self, Contest, Peers, Running, Table};
use crate::podman::Podman;

/// The network, and what the workloads on it are named after.
const NAME: &str = "bench-nets";
/// The first three numbers of addresses that hosts rarely have.
const SUBNET: &str = "10.203.77";
const PORT: &str = "5201";
const MIB: f64 = (1 << 20) as f64;

/// What to measure.
#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    contest: Contest,
    /// Seconds that each stream is sent for
    #[arg(long, default_value_t = 4)]
    seconds: u64,
}

/// Measures, prints tables, and removes what it made.
pub fn run(top: &Path, options: &Options) -> Outcome {
    let bench = Bench { peers: Peers::make(top, &options.contest.program)?, options };
    let mut table = Table::new(["strata", "QEMU TCG"]);
    let ways = [("up", "user mode, guest to host"), ("down", "user mode, host to guest")];
    let rows = ways.map(|(_, name)| table.row(name, "MiB/s", 2.0, true));
    for _ in 0..options.contest.rounds {
        for ((way, _), row) in ways.iter().zip(rows) {
            table.add(row, [bench.user_strata(way)?, bench.user_qemu(way)?]);
        }
    }
    let is_root = Command::new("id").arg("-u").output()?.stdout == b"0\n";
    let mut containers = Table::new(["strata", "podman"]);
    if is_root {
        let made = Made::make(&bench)?;
        bench.bridges(&mut table, &mut containers)?;
        drop(made);
    } else {
        println!("bridges are not measured: they are root's to make\n");
    }
    let engine = &options.contest.engine;
    let title = format!(
        "`cargo xtask nets`, {} rounds of {} s, engine {engine}",
        options.contest.rounds, options.seconds
    );
    table.show(&title, &bench.peers, options.contest.out.as_deref())?;
    if is_root {
        containers.show("containers, one bridge", &bench.peers, options.contest.out.as_deref())
    } else {
        Ok(())
    }
}

struct Bench<'a> {
    peers: Peers,
    options: &'a Options,
}

impl Bench<'_> {
    fn strata(&self, arguments: &[&str]) -> Command {
        self.options.contest.program.command(arguments)
    }

    fn user_strata(&self, way: &str) -> Outcome<f64> {
        let (listener, words) = self.stream(way)?;
        let run = ["run", "--engine", &self.options.contest.engine, "--network", "user", "--host-loopback"];
        let words: Vec<&str> = words.split(' ').collect();
        let guest = Running::start(self.strata(&[&run[..], &[peers::IMAGE, "--"], &words].concat()))?;
        let speed = self.carry(&listener)?;
        drop(guest);
        Ok(speed)
    }

    fn user_qemu(&self, way: &str) -> Outcome<f64> {
        let (listener, words) = self.stream(way)?;
        let card = ["-netdev", "user,id=n", "-device", "virtio-net-device,netdev=n"].map(str::to_owned);
        let settings = "bench.ip=10.0.2.15/24 bench.gateway=10.0.2.2";
        let guest = Running::start(self.peers.qemu(&card, &peers::append(settings, &words)))?;
        let speed = self.carry(&listener)?;
        drop(guest);
        Ok(speed)
    }

    /// A server, and the guest's command.
    fn stream(&self, way: &str) -> Outcome<(TcpListener, String)> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let seconds = if way == "up" { format!(" {}", self.options.seconds) } else { String::new() };
        let words = format!("/bin/transfers {way} 10.0.2.2 {}{seconds}", listener.local_addr()?.port());
        Ok((listener, words))
    }

    /// Serves one stream: MiB a second, of what came to its other end.
    fn carry(&self, listener: &TcpListener) -> Outcome<f64> {
        let mut stream = accept(listener)?;
        let mut buffer = vec![0x5a; 128 << 10];
        let mut way = [0];
        stream.read_exact(&mut way)?;
        let begun = Instant::now();
        let mut count: u64 = 0;
        if way == *b"u" {
            while let len @ 1.. = stream.read(&mut buffer)? {
                count += len as u64;
            }
        } else {
            while begun.elapsed() < Duration::from_secs(self.options.seconds) {
                stream.write_all(&buffer)?;
            }
            stream.shutdown(Shutdown::Write)?;
            let mut answer = [0; 8];
            stream.read_exact(&mut answer)?;
            count = u64::from_le_bytes(answer);
        }
        Ok(count as f64 / MIB / begun.elapsed().as_secs_f64())
    }

    /// Rows of machines and of containers whose packets the host's kernel carries.
    fn bridges(&self, table: &mut Table, containers: &mut Table) -> Outcome {
        let machines = table.row("one bridge, between two machines", "MiB/s", 2.0, true);
        let boxes = containers.row("one bridge, between two containers", "MiB/s", 0.95, true);
        let podman = Podman::make(self.peers.folder.path())?;
        let network = ["network", "create", "--disable-dns", NAME];
        let bridge = peers::run(&mut podman.command(&network)).and_then(|()| {
            peers::run(&mut podman.command(&["run", "--rm", "--network", NAME, "box", "/bin/true"]))
        });
        if let Err(error) = &bridge {
            println!("podman makes no bridge on this host: {error}\n");
        }
        for _ in 0..self.options.contest.rounds {
            table.add(machines, [self.pair("vm")?, self.pair_of_qemu()?]);
            let ours = self.pair("container")?;
            if bridge.is_ok() {
                containers.add(boxes, [ours, pair_of_podman(&podman, self.options.seconds)?]);
            }
        }
        Ok(())
    }

    /// Two of Strata's workloads on the network.
    fn pair(&self, isolation: &str) -> Outcome<f64> {
        let engine = ["--engine", &self.options.contest.engine];
        let common = ["--isolation", isolation, "--network", NAME, "--ip"];
        let (server, client) = (format!("{SUBNET}.10"), format!("{SUBNET}.11"));
        let name = format!("{NAME}-server");
        let serve = [&server, "--name", &name, peers::IMAGE, "--", "/bin/transfers", "serve", PORT];
        peers::run(&mut self.strata(&[&["run", "-d"][..], &engine, &common, &serve].concat()))?;
        while !peers::said(&mut self.strata(&["logs", &name]))?.contains("SERVING") {
            std::thread::sleep(Duration::from_millis(20));
        }
        let seconds = self.options.seconds.to_string();
        let send = [&client, peers::IMAGE, "--", "/bin/transfers", "to", &server, PORT, &seconds];
        let guest = Running::start(self.strata(&[&["run"][..], &engine, &common, &send].concat()))?;
        let speed = guest.figure("to");
        drop(guest);
        peers::run(&mut self.strata(&["rm", "-f", &name]))?;
        Ok(speed? / MIB)
    }

    /// Two of QEMU's guests, each with a tap on one bridge.
    fn pair_of_qemu(&self) -> Outcome<f64> {
        let guest = |number: u32, words: &str| {
            let card = [
                "-netdev".to_owned(),
                format!("tap,id=n,ifname=tap{number},script=no,downscript=no"),
                "-device".to_owned(),
                format!("virtio-net-device,netdev=n,mac=52:54:00:00:00:0{number}"),
            ];
            let settings = format!("bench.ip={SUBNET}.2{number}/24");
            let inner = self.peers.qemu(&card, &peers::append(&settings, &format!("/bin/transfers {words}")));
            let mut command = Command::new("ip");
            command.args(["netns", "exec", NAME]).arg(inner.get_program()).args(inner.get_args());
            Running::start(command)
        };
        let server = guest(1, &format!("serve {PORT}"))?;
        server.wait(|line| (line == "SERVING").then_some(()))?;
        let client = guest(2, &format!("to {SUBNET}.21 {PORT} {}", self.options.seconds))?;
        Ok(client.figure("to")? / MIB)
    }
}

fn accept(listener: &TcpListener) -> Outcome<TcpStream> {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(error) => return Err(format!("no guest connected: {error}").into()),
        }
    }
}

/// What is made on the host: Strata's network, and a name space with a bridge and two taps for QEMU.
struct Made<'a>(&'a Bench<'a>);

impl<'a> Made<'a> {
    fn make(bench: &'a Bench<'a>) -> Outcome<Self> {
        let made = Self(bench);
        made.remove();
        let subnet = format!("{SUBNET}.0/24");
        peers::run(&mut bench.strata(&["network", "create", "--subnet", &subnet, NAME]))?;
        peers::run(Command::new("ip").args(["netns", "add", NAME]))?;
        let steps = "ip link add name br0 type bridge; ip link set br0 up; for n in 1 2; do \
                     ip tuntap add tap$n mode tap; ip link set tap$n master br0 up; done";
        peers::run(Command::new("ip").args(["netns", "exec", NAME, "sh", "-ec", steps]))?;
        Ok(made)
    }

    /// What is not there is no error.
    fn remove(&self) {
        let server = format!("{NAME}-server");
        let rm = self.0.strata(&["rm", "-f", &server]);
        let network = self.0.strata(&["network", "rm", NAME]);
        let mut netns = Command::new("ip");
        netns.args(["netns", "del", NAME]);
        for mut command in [rm, network, netns] {
            let _ = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
        }
    }
}

impl Drop for Made<'_> {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Two of podman's containers on a network of its own.
fn pair_of_podman(podman: &Podman, seconds: u64) -> Outcome<f64> {
    let name = format!("{NAME}-server");
    let run = ["--network", NAME, "box", "/bin/transfers"];
    let start = [&["run", "-d", "--rm", "--name", &name][..], &run, &["serve", PORT]].concat();
    peers::run(&mut podman.command(&start))?;
    let shape = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
    let address = peers::said(&mut podman.command(&["inspect", "-f", shape, &name]))?;
    let seconds = seconds.to_string();
    let send = [&["run", "--rm"][..], &run, &["to", address.trim(), PORT, &seconds]].concat();
    let guest = Running::start(podman.command(&send))?;
    let speed = guest.figure("to");
    drop(guest);
    peers::run(&mut podman.command(&["rm", "-f", "-t", "0", &name]))?;
    Ok(speed? / MIB)
}
