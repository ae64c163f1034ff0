//! What goes in and out of workloads.

use std::path::PathBuf;

use api::{BlockTraffic, NetworkTraffic, Traffic};
use workload::control::{Answer, Client, Request};
use workload::{Folder, Isolation};

use crate::commands::run::container;

/// What went in and out of a workload since it was started; nothing if it does not run.
pub fn traffic(folder: &Folder) -> Option<Traffic> {
    let state = folder.state().ok().filter(|state| state.status.is_active())?;
    if folder.description().wanted.isolation == Isolation::Vm {
        return Some(Traffic { network: of_machine(folder), block: of_process(state.worker_pid?) });
    }
    let (runtime, id) = (container::runtime(), container::id_of(folder));
    let block = runtime.usage(&id).ok().and_then(|usage| usage.block);
    let block = block.map(|(read_bytes, written_bytes)| BlockTraffic { read_bytes, written_bytes });
    let pids = runtime.processes(&id).unwrap_or_default();
    Some(Traffic { network: pids.first().and_then(|pid| of_network(*pid)), block })
}

/// What its cards count.
fn of_machine(folder: &Folder) -> Option<NetworkTraffic> {
    match Client::connect(folder).and_then(|mut client| client.ask(&Request::Stats, &[])) {
        Ok(Answer::Stats { received_bytes: Some(received_bytes), sent_bytes: Some(sent_bytes), .. }) => {
            Some(NetworkTraffic { received_bytes, sent_bytes })
        }
        _ => None,
    }
}

/// Its disks are files of this process.
fn of_process(pid: u32) -> Option<BlockTraffic> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/io")).ok()?;
    let number = |name: &str| text.lines().find_map(|line| line.strip_prefix(name))?.trim().parse().ok();
    Some(BlockTraffic { read_bytes: number("read_bytes:")?, written_bytes: number("write_bytes:")? })
}

/// What went through the cards of the network that process `pid` is in; nothing if that is this host's.
fn of_network(pid: i32) -> Option<NetworkTraffic> {
    let namespace = |pid: &str| std::fs::read_link(PathBuf::from("/proc").join(pid).join("ns/net")).ok();
    let other = namespace(&pid.to_string())?;
    if namespace("self")? == other {
        return None;
    }
    Some(sum_of_cards(&std::fs::read_to_string(format!("/proc/{pid}/net/dev")).ok()?))
}

/// Two lines of titles, then a line for each card: its name, eight numbers of what came in, eight of what went out.
fn sum_of_cards(text: &str) -> NetworkTraffic {
    let mut sum = NetworkTraffic::default();
    for (name, counts) in text.lines().skip(2).filter_map(|line| line.split_once(':')) {
        if name.trim() == "lo" {
            continue;
        }
        let counts: Vec<u64> =
            counts.split_whitespace().map(|count| count.parse().unwrap_or_default()).collect();
        let at = |index: usize| counts.get(index).copied().unwrap_or_default();
        sum.received_bytes = sum.received_bytes.saturating_add(at(0));
        sum.sent_bytes = sum.sent_bytes.saturating_add(at(8));
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_cards_count_but_the_loopback() {
        let text = "Inter-|   Receive |  Transmit\n face |bytes packets\n    lo: 9 1 0 0 0 0 0 0 9 1 0 0 0 0 0 0\n  \
                    eth0: 100 1 0 0 0 0 0 0 200 2 0 0 0 0 0 0\n  eth1:1 1 0 0 0 0 0 0 2 2 0 0 0 0 0 0\n odd: 5\n";
        let sum = sum_of_cards(text);
        assert_eq!((sum.received_bytes, sum.sent_bytes), (106, 202));
    }
}
