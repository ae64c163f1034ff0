//! What workloads of one store might leave on a host where other tests run too: only what can be told to be theirs is counted.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::docker::Server;
use crate::support::PATIENCE;

/// A network with a name, of this test alone.
pub struct Network<'a> {
    pub name: String,
    bridge: String,
    server: &'a Server,
}

impl<'a> Network<'a> {
    /// Nothing, and a line that says so, where none can be made.
    pub fn make(server: &'a Server) -> Option<Self> {
        if Command::new("nft").arg("--version").output().is_err() {
            println!("skipped: addresses and rules, for want of nftables");
            return None;
        }
        let name = format!("soak-{}", std::process::id());
        server.place.strata(&["network", "create", &name]);
        let told = server.place.strata(&["network", "inspect", &name]);
        let told: serde_json::Value = serde_json::from_str(&told).unwrap();
        Some(Self { name, bridge: told[0]["bridge"].as_str().unwrap().to_owned(), server })
    }

    /// Removes it, with all its rules.
    pub fn remove(self) {
        self.server.place.strata(&["network", "rm", &self.name]);
        assert_eq!((self.rules(), self.ports()), (0, None));
    }

    /// Lines of the host's rules that name the bridge.
    fn rules(&self) -> usize {
        let rules = Command::new("nft").args(["list", "ruleset"]).output().unwrap().stdout;
        String::from_utf8_lossy(&rules).lines().filter(|line| line.contains(&self.bridge)).count()
    }

    /// Cables in the bridge.
    fn ports(&self) -> Option<usize> {
        let ports = fs::read_dir(format!("/sys/class/net/{}/brif", self.bridge));
        ports.ok().map(Iterator::count)
    }

    /// Addresses that workloads have.
    fn addresses(&self) -> usize {
        let told = self.server.place.strata(&["network", "inspect", &self.name]);
        let told: serde_json::Value = serde_json::from_str(&told).unwrap();
        told[0]["connected"].as_array().map_or(0, Vec::len)
    }
}

impl Drop for Network<'_> {
    /// Of a test that fails nothing is left either. One that removed it is told that it is gone.
    fn drop(&mut self) {
        let _ = self.server.place.try_to(&["network", "rm", &self.name]);
    }
}

/// What there is.
#[derive(Clone, Debug)]
pub struct Traces {
    /// Resident memory of the server.
    pub memory_kib: u64,
    /// Open files of the server.
    pub files: usize,
    processes: usize,
    mounts: usize,
    loops: usize,
    groups: usize,
    workloads: usize,
    entries: usize,
    rules: usize,
    ports: Option<usize>,
    addresses: usize,
}

impl Traces {
    /// What is there once all that ends has ended.
    pub fn settled(server: &Server, network: Option<&Network<'_>>, made: &[String]) -> Self {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let now = Self::take(server, network, made);
            let is_quiet = now.processes == 0 && now.workloads == 0 && now.groups == 0 && now.loops == 0;
            if is_quiet || Instant::now() > deadline {
                // Connections that clients have left end a moment after them.
                std::thread::sleep(Duration::from_secs(1));
                return Self::take(server, network, made);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// All that belongs to the host and not to the server's process.
    pub fn of_host(&self) -> (usize, usize, usize, usize, usize, usize, usize, Option<usize>, usize) {
        let Self {
            memory_kib: _,
            files: _,
            processes,
            mounts,
            loops,
            groups,
            workloads,
            entries,
            rules,
            ports,
            addresses,
        } = *self;
        (processes, mounts, loops, groups, workloads, entries, rules, ports, addresses)
    }

    fn take(server: &Server, network: Option<&Network<'_>>, made: &[String]) -> Self {
        let store = server.place.dir.path().join("store");
        let mark = store.display().to_string();
        let pid = server.pid();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
        Self {
            memory_kib: memory.trim().trim_end_matches(" kB").parse().unwrap(),
            files: fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count(),
            processes: processes_of(&mark, pid),
            mounts: mounts.lines().filter(|line| line.contains(&mark)).count(),
            loops: loops_of(&mark),
            groups: groups_of(Path::new("/sys/fs/cgroup"), made),
            workloads: fs::read_dir(store.join("workloads")).map_or(0, |entries| {
                entries.flatten().filter(|entry| entry.path().join("workload.json").exists()).count()
            }),
            entries: fs::read_dir(&store).unwrap().count(),
            rules: network.map_or(0, Network::rules),
            ports: network.and_then(Network::ports),
            addresses: network.map_or(0, Network::addresses),
        }
    }
}

/// Processes but the server that were told of this store by flag or variable, and its children, dead ones too.
pub fn processes_of(store: &str, server: u32) -> usize {
    let parent = |pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
    };
    let is_ours = |pid: u32| {
        let holds = |file: &str| {
            let bytes = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            String::from_utf8_lossy(&bytes).contains(store)
        };
        pid != server && (holds("cmdline") || holds("environ") || parent(pid) == Some(server))
    };
    let pids = fs::read_dir("/proc").unwrap().flatten();
    pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(|pid| is_ours(*pid)).count()
}

/// Loop devices on files of this store.
fn loops_of(store: &str) -> usize {
    let devices = fs::read_dir("/sys/block").unwrap().flatten();
    let files = devices.filter_map(|device| fs::read_to_string(device.path().join("loop/backing_file")).ok());
    files.filter(|file| file.contains(store)).count()
}

/// Control groups of these workloads.
fn groups_of(folder: &Path, made: &[String]) -> usize {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    folders
        .map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            usize::from(made.iter().any(|id| name.contains(&id[..12]))) + groups_of(&entry.path(), made)
        })
        .sum()
}
