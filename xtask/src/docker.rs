//! `cargo xtask docker`: what the stock docker client waits for, against `strata serve` and against podman's system service.
//!
//! The same client runs `true` of the same files on both in turn; then many at once, which all have to succeed; then it lists a
//! server's many workloads. It needs root, docker's client and podman.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Outcome;
use crate::canned;
use crate::peers::{self, IMAGE, Peers, Table};
use crate::podman::Podman;
use crate::program::Program;

/// Workloads are named after it.
const NAME: &str = "bench-docker";
/// Goals of a list, and of a server's memory.
const LIST_GOAL_MS: f64 = 50.0;
const MEMORY_GOAL_MIB: f64 = 60.0;

/// What to measure.
#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    program: Program,
    /// Rounds of single runs
    #[arg(long, default_value_t = 11)]
    rounds: usize,
    /// How many run at once
    #[arg(long, default_value_t = 50)]
    at_once: usize,
    /// How many workloads are listed
    #[arg(long, default_value_t = 500)]
    listed: usize,
    /// Folder that the figures are added to
    #[arg(long)]
    out: Option<PathBuf>,
}

/// Measures, prints a table, and removes what it made.
pub fn run(top: &std::path::Path, options: &Options) -> Outcome {
    if Command::new("docker").arg("--version").output().is_err() {
        println!("docker's client is not installed (package docker-cli or docker.io)");
        return Ok(());
    }
    let peers = Peers::make(top, &options.program)?;
    let podman = Podman::make(peers.folder.path())?;
    let socket = |name: &str| format!("unix://{}", peers.folder.path().join(name).display());
    let (ours, theirs) = (socket("strata.sock"), socket("podman.sock"));
    let strata = Server::start(options.program.command(&["serve", "--listen", &ours]), &ours)?;
    let service = Server::start(podman.command(&["system", "service", "--time", "0", &theirs]), &theirs)?;
    let servers = [(&strata, IMAGE), (&service, "box")];

    let mut table = Table::new(["strata serve", "podman system service"]);
    let kinds =
        [("docker run --rm IMAGE true", &[][..]), ("the same with --network none", &["--network", "none"])];
    for (name, flags) in kinds {
        let row = table.row(name, "ms", 2.0, false);
        for _ in 0..options.rounds {
            let [ours, theirs] = servers.map(|(server, image)| server.time(&run_true(flags, image)));
            table.add(row, [ours?, theirs?]);
        }
    }
    let row = table.row(
        &format!("{} of them at once, until the last has ended", options.at_once),
        "ms",
        1.0,
        false,
    );
    let [ours, theirs] = servers.map(|(server, image)| server.many(&run_true(&[], image), options.at_once));
    table.add(row, [ours?, theirs?]);
    let title = format!("`cargo xtask docker`, {} rounds", options.rounds);
    table.show(&title, &peers, options.out.as_deref())?;
    drop(service);
    list(options, &strata)
}

fn run_true<'a>(flags: &[&'a str], image: &'a str) -> Vec<&'a str> {
    [&["run", "--rm"][..], flags, &[image, "/bin/true"]].concat()
}

/// Lists many workloads that run.
fn list(options: &Options, server: &Server) -> Outcome {
    let names: Vec<String> = (0..options.listed).map(|number| format!("{NAME}-{number}")).collect();
    let made: Outcome = names.chunks(20).try_for_each(|batch| {
        let start = |name: &String| {
            let run = [
                "run",
                "-d",
                "--isolation",
                "container",
                "--name",
                name,
                IMAGE,
                "--",
                "/bin/sleep",
                "100000",
            ];
            options.program.command(&run).stdout(Stdio::null()).spawn()
        };
        let children: Vec<_> = batch.iter().map(start).collect::<Result<_, _>>()?;
        for mut child in children {
            if !child.wait()?.success() {
                return Err("a workload to be listed did not start".into());
            }
        }
        Ok(())
    });
    let figures = made.and_then(|()| {
        // A list of what runs, not of what starts.
        std::thread::sleep(Duration::from_secs(3));
        let path = |address: &str| PathBuf::from(address.trim_start_matches("unix://"));
        let ready = format!("{}.ready", server.address);
        canned::serve(&path(&ready), canned::list(&path(&server.address))?)?;
        let (mut ours, mut client) = (Vec::new(), Vec::new());
        for _ in 0..21 {
            ours.push(time(&server.address, &["ps"])?);
            client.push(time(&ready, &["ps"])?);
        }
        Ok((peers::median(ours), peers::median(client), server.memory_mib()?))
    });
    for batch in names.chunks(50) {
        let names = batch.iter().map(String::as_str);
        let all = ["rm", "-f"].into_iter().chain(names).collect::<Vec<_>>();
        options.program.command(&all).stdout(Stdio::null()).status()?;
    }
    let (list_ms, client_ms, memory_mib) = figures?;
    let text = format!(
        "| what | strata serve | goal |\n|---|---|---|\n\
         | docker ps of {} workloads, median of 21 | {list_ms:.1} ms | {LIST_GOAL_MS} ms |\n\
         | the same from a server that has the answer ready | {client_ms:.1} ms | |\n\
         | memory of the server after all of that | {memory_mib:.1} MiB | {MEMORY_GOAL_MIB} MiB |\n",
        options.listed
    );
    peers::tell(&text, options.out.as_deref())
}

fn docker(address: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("docker");
    command.env_remove("DOCKER_HOST").args(["-H", address]).args(arguments);
    command
}

/// Milliseconds that the client takes at the server at `address`.
fn time(address: &str, arguments: &[&str]) -> Outcome<f64> {
    let begun = Instant::now();
    peers::run(&mut docker(address, arguments))?;
    Ok(begun.elapsed().as_secs_f64() * 1e3)
}

/// A server and the client's address of it; killed when dropped.
struct Server {
    process: Child,
    address: String,
}

impl Server {
    fn start(mut command: Command, address: &str) -> Outcome<Self> {
        let process = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let server = Self { process, address: address.to_owned() };
        let deadline = Instant::now() + Duration::from_secs(30);
        while let Err(error) = server.time(&["version"]) {
            if Instant::now() > deadline {
                return Err(format!("no server is at {address}: {error}").into());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(server)
    }

    /// Milliseconds that the client takes.
    fn time(&self, arguments: &[&str]) -> Outcome<f64> {
        time(&self.address, arguments)
    }

    /// The same of many clients at once, of which none may fail.
    fn many(&self, arguments: &[&str], count: usize) -> Outcome<f64> {
        let begun = Instant::now();
        let start = |_| docker(&self.address, arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let clients: Vec<Child> = (0..count).map(start).collect::<Result<_, _>>()?;
        let mut failed = 0;
        for mut client in clients {
            failed += usize::from(!client.wait()?.success());
        }
        if failed > 0 {
            return Err(format!("{failed} of {count} failed at {}", self.address).into());
        }
        Ok(begun.elapsed().as_secs_f64() * 1e3)
    }

    /// What the process has to itself, and its part of what it shares.
    fn memory_mib(&self) -> Outcome<f64> {
        let text = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", self.process.id()))?;
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).ok_or("no Pss")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
