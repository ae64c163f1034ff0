//! What the load says, line by line.

use std::collections::BTreeMap;
use std::time::Duration;

/// Names of loads and the checksum each ends with.
pub type Results = BTreeMap<String, String>;

/// A line of the load.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    /// A round of the load `name` ended with `sum`.
    Result { name: String, sum: String },
    /// Memory the guest has available.
    Memory { kib: u64 },
    /// All loads ended.
    Done,
    /// Something that must not be said: a step that failed, a complaint of the kernel, anything else.
    Fault(String),
}

impl Line {
    /// Understands a line; what it cannot understand is a fault.
    pub fn parse(line: &str) -> Self {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["RESULT", name, sum] => Self::Result { name: name.into(), sum: sum.into() },
            ["MEMORY", _, kib, "kB"] if kib.parse::<u64>().is_ok() => {
                Self::Memory { kib: kib.parse().unwrap_or_default() }
            }
            ["DONE"] => Self::Done,
            _ => Self::Fault(line.into()),
        }
    }
}

/// All that was said.
#[derive(Debug, Default)]
pub struct Heard {
    /// For each load its rounds: when each ended, and its checksum.
    pub rounds: BTreeMap<String, Vec<(Duration, String)>>,
    /// Memory the guest had available at the end of rounds, in KiB.
    pub available_kib: Vec<u64>,
    pub faults: Vec<String>,
    pub done: bool,
}

impl Heard {
    /// Takes a line that was said after `elapsed`.
    pub fn add(&mut self, line: Line, elapsed: Duration) {
        match line {
            Line::Result { name, sum } => self.rounds.entry(name).or_default().push((elapsed, sum)),
            Line::Memory { kib } => self.available_kib.push(kib),
            Line::Done => self.done = true,
            Line::Fault(text) => self.faults.push(text),
        }
    }

    /// The checksums of the first rounds.
    pub fn first(&self) -> Results {
        let first = |(name, rounds): (&String, &Vec<(Duration, String)>)| {
            Some((name.clone(), rounds.first()?.1.clone()))
        };
        self.rounds.iter().filter_map(first).collect()
    }

    /// Which rounds ended otherwise than `expected`, and which loads have none.
    pub fn differences(&self, expected: &Results) -> Vec<String> {
        let mut all = Vec::new();
        for (name, sum) in expected {
            if !self.rounds.contains_key(name) {
                all.push(format!("no round of {name} ended"));
            }
            for (index, (at, other)) in self.rounds.get(name).into_iter().flatten().enumerate() {
                if other != sum {
                    let (round, s) = (index + 1, at.as_secs());
                    all.push(format!("round {round} of {name}, after {s} s: {other} where {sum} is right"));
                }
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(lines: &[&str]) -> Heard {
        let mut heard = Heard::default();
        for (second, line) in lines.iter().enumerate() {
            heard.add(Line::parse(line), Duration::from_secs(second as u64));
        }
        heard
    }

    #[test]
    fn a_round_that_ends_otherwise_is_a_difference() {
        let native = heard(&["RESULT build aa", "RESULT forks bb", "DONE"]).first();
        assert!(
            heard(&["RESULT build aa", "RESULT forks bb", "RESULT build aa"]).differences(&native).is_empty()
        );
        let other = heard(&["RESULT build aa", "RESULT build ab"]);
        assert_eq!(
            other.differences(&native),
            ["round 2 of build, after 1 s: ab where aa is right", "no round of forks ended"]
        );
    }

    #[test]
    fn what_is_not_understood_is_a_fault() {
        let heard = heard(&[
            "MEMORY build 2048 kB",
            "KERNEL [ 1.0] BUG",
            "FAILED build make: oh",
            "MEMORY build x kB",
        ]);
        assert_eq!(heard.available_kib, [2048]);
        assert_eq!(heard.faults, ["KERNEL [ 1.0] BUG", "FAILED build make: oh", "MEMORY build x kB"]);
        assert!(!heard.done);
    }
}
