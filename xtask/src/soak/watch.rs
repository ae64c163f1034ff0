//! What the process holds while it runs, and whether that grows.

use std::fs;
use std::time::Duration;

use crate::bench::overhead;

/// Growth of memory that is none: allocators round, and pages of shared libraries come and go.
const MEMORY_SLACK_KIB: u64 = 16 << 10;
/// The same for threads and open files.
const COUNT_SLACK: u64 = 4;
/// Before, caches still fill.
const SHORTEST: Duration = Duration::from_secs(20 * 60);

/// The process at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    pub at: Duration,
    /// Memory beyond guest RAM.
    pub kib: u64,
    pub threads: u64,
    pub files: u64,
}

/// Looks at process `pid`, whose guest has `ram_kib`; `None` once it is gone.
pub fn sample(pid: u32, ram_kib: u64, at: Duration) -> Option<Sample> {
    let entries = |name: &str| Some(fs::read_dir(format!("/proc/{pid}/{name}")).ok()?.count() as u64);
    Some(Sample { at, kib: overhead::kib(pid, ram_kib)?, threads: entries("task")?, files: entries("fd")? })
}

/// What a leak would look like: more at the end than ever in the second quarter, when all caches were warm.
/// `None` if the run was too short to tell.
pub fn leaks(samples: &[Sample]) -> Option<Vec<String>> {
    let end = samples.last()?.at;
    if end < SHORTEST {
        return None;
    }
    let most = |quarter: u32, value: fn(&Sample) -> u64| {
        let within = |sample: &&Sample| sample.at > end * (quarter - 1) / 4 && sample.at <= end * quarter / 4;
        samples.iter().filter(within).map(value).max().unwrap_or_default()
    };
    let mut leaks = Vec::new();
    let mut check = |what: &str, value: fn(&Sample) -> u64, slack: u64| {
        let (early, late) = (most(2, value), most(4, value));
        if late > early + early / 20 + slack {
            leaks.push(format!("{what} grew from {early} to {late}"));
        }
    };
    check("memory beyond guest RAM, KiB,", |sample| sample.kib, MEMORY_SLACK_KIB);
    check("the number of threads", |sample| sample.threads, COUNT_SLACK);
    check("the number of open files", |sample| sample.files, COUNT_SLACK);
    Some(leaks)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hour(kib: impl Fn(u64) -> u64, files: impl Fn(u64) -> u64) -> Vec<Sample> {
        let sample = |minute| Sample {
            at: Duration::from_secs(minute * 60),
            kib: kib(minute),
            threads: 12,
            files: files(minute),
        };
        (1..=60).map(sample).collect()
    }

    #[test]
    fn caches_that_fill_and_stay_full_are_no_leak() {
        let full = hour(|minute| 50_000 + 20_000 * minute.min(10), |_| 25);
        assert_eq!(leaks(&full), Some(vec![]));
    }

    #[test]
    fn what_grows_to_the_end_is_a_leak() {
        let growing = hour(|minute| 100_000 + 2_000 * minute, |minute| 25 + minute / 4);
        assert_eq!(
            leaks(&growing),
            Some(vec![
                "memory beyond guest RAM, KiB, grew from 160000 to 220000".into(),
                "the number of open files grew from 32 to 40".into()
            ])
        );
    }

    #[test]
    fn a_few_minutes_tell_nothing() {
        assert_eq!(leaks(&hour(|_| 1, |_| 1)[..10]), None);
        assert_eq!(leaks(&[]), None);
    }
}
