//! How much memory a virtual machine monitor takes beyond the guest's RAM.
//!
//! Counted is what the host could use for something else if the process were gone (`Pss`, so that a page shared
//! with others counts in parts, and one that is mapped twice counts once), without the mapping of guest RAM.

use std::fs;

/// A mapping in `/proc/PID/smaps`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Mapping {
    start: u64,
    end: u64,
    pss_kib: u64,
    /// Addresses that are only kept free.
    is_reserved: bool,
}

impl Mapping {
    fn kib(&self) -> u64 {
        (self.end - self.start) / 1024
    }
}

/// Memory of process `pid` in KiB beyond guest RAM of `ram_kib`; `None` once it is gone.
pub fn kib(pid: u32, ram_kib: u64) -> Option<u64> {
    let mappings = parse(&fs::read_to_string(format!("/proc/{pid}/smaps")).ok()?);
    let total: u64 = mappings.iter().map(|mapping| mapping.pss_kib).sum();
    Some(total - guest_kib(&mappings, ram_kib))
}

/// What is used of guest RAM: a run of neighbouring mappings just as large. The kernel splits a mapping whose parts are advised
/// differently or come from different files. Strata keeps addresses around guest RAM free, so that the run is exactly that; what
/// others have there the kernel may have joined with a neighbour, and what the run is too large by counts as not the guest's.
fn guest_kib(mappings: &[Mapping], ram_kib: u64) -> u64 {
    let mut best: Option<(u64, u64)> = None;
    for first in 0..mappings.len() {
        let (mut size, mut pss) = (0, 0);
        for (index, mapping) in mappings.iter().enumerate().skip(first) {
            if index > first && mappings[index - 1].end != mapping.start {
                break;
            }
            size += mapping.kib();
            pss += mapping.pss_kib;
            if size >= ram_kib {
                let excess = size - ram_kib;
                if best.is_none_or(|(least, _)| excess < least) {
                    best = Some((excess, pss.saturating_sub(excess)));
                }
                break;
            }
        }
    }
    best.map_or(0, |(_, pss)| pss)
}

fn parse(smaps: &str) -> Vec<Mapping> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let Some(word) = words.next() else { continue };
        if word == "Pss:" {
            let kib = words.next().and_then(|number| number.parse().ok()).unwrap_or(0);
            if let Some(mapping) = mappings.last_mut() {
                mapping.pss_kib = kib;
            }
        } else if let Some((start, end)) = word.split_once('-')
            && let (Ok(start), Ok(end)) = (u64::from_str_radix(start, 16), u64::from_str_radix(end, 16))
            && start <= end
        {
            let is_reserved = words.next().is_some_and(|rights| rights.starts_with("---"));
            mappings.push(Mapping { start, end, pss_kib: 0, is_reserved });
        }
    }
    mappings.retain(|mapping| !mapping.is_reserved);
    mappings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_ram_is_found_in_pieces_and_with_a_neighbour() {
        let smaps = "\
10000-20000 r-xp 00000000 fe:00 1 /bin/vmm
Pss:                  64 kB
100000-200000 rw-p 00000000 00:00 0
Rss:                1024 kB
Pss:                1000 kB
Pss_Dirty:           999 kB
200000-501000 rw-p 00000000 00:00 0
Pss:                 504 kB
600000-700000 rw-p 00000000 00:00 0
Pss:                   8 kB
";
        let mappings = parse(smaps);
        assert_eq!(mappings.len(), 4);
        assert_eq!(guest_kib(&mappings, 4096), 1500);
        assert_eq!(guest_kib(&mappings, 1 << 20), 0);
    }

    #[test]
    fn guest_ram_between_addresses_that_are_kept_free_is_found_exactly() {
        let smaps = "\
100000-200000 rw-p 00000000 00:00 0
Pss:                1024 kB
200000-400000 ---p 00000000 00:00 0
Pss:                   0 kB
400000-500000 rw-p 00000000 00:00 0
Pss:                 300 kB
500000-800000 rw-p 00100000 00:01 7 /memfd:strata-fork-ram (deleted)
Pss:                 200 kB
800000-810000 ---p 00000000 00:00 0
Pss:                   0 kB
810000-910000 rw-p 00000000 00:00 0
Pss:                1024 kB
";
        assert_eq!(guest_kib(&parse(smaps), 4096), 500);
    }
}
