//! Processors a process that enters a container runs on (`config.md`, `execCPUAffinity`): before it is in the container's
//! control groups, and afterwards.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::error::{Error, Result, While};
use crate::spec::CpuAffinity;

/// Both, as the kernel takes them.
#[derive(Debug, Default)]
pub struct Affinity {
    initial: Option<CpuSet>,
    last: Option<CpuSet>,
}

/// Gives the calling thread its processors back.
#[derive(Debug)]
pub struct Before(CpuSet);

impl Drop for Before {
    fn drop(&mut self) {
        // It had them a moment ago. Without them it only is slower.
        let _ = sched_setaffinity(None, &self.0);
    }
}

impl Affinity {
    /// Reads both lists.
    ///
    /// # Errors
    /// One is no list of processors.
    pub fn new(affinity: Option<&CpuAffinity>) -> Result<Self> {
        let Some(CpuAffinity { initial, last }) = affinity else { return Ok(Self::default()) };
        let set = |name: &str, list: &Option<String>| match list.as_deref().unwrap_or_default() {
            "" => Ok(None),
            list => parse(list).map(Some).ok_or_else(|| {
                let most = CpuSet::MAX_CPU - 1;
                Error::refused(
                    format!("execCPUAffinity {name} {list:?}"),
                    format!("numbers to {most} and ranges, as in 0-3,7"),
                )
            }),
        };
        Ok(Self { initial: set("initial", initial)?, last: set("final", last)? })
    }

    /// Puts the calling thread, and what it makes from now on, on the processors to begin with. They are as before when what is
    /// returned goes.
    ///
    /// # Errors
    /// The host has none of them.
    pub fn begin(&self) -> Result<Option<Before>> {
        let Some(initial) = &self.initial else { return Ok(None) };
        let act = || "run on the processors of execCPUAffinity initial".to_owned();
        let before = Before(sched_getaffinity(None).during(act)?);
        sched_setaffinity(None, initial).during(act)?;
        Ok(Some(before))
    }

    /// Puts the calling process on the processors to stay on, if any are named: without, they are the kernel's affair.
    ///
    /// # Errors
    /// The container has none of them.
    pub fn finish(&self) -> Result<()> {
        let act = || "run on the processors of execCPUAffinity final".to_owned();
        self.last.as_ref().map_or(Ok(()), |last| sched_setaffinity(None, last).during(act))
    }
}

/// `0-3,7` as the kernel lists processors.
fn parse(list: &str) -> Option<CpuSet> {
    let mut set = CpuSet::new();
    for range in list.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let number = |text: &str| {
            let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            plain.then(|| text.parse::<usize>().ok()).flatten().filter(|number| *number < CpuSet::MAX_CPU)
        };
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return None;
        }
        (first..=last).for_each(|number| set.set(number));
    }
    Some(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_processors_are_read() {
        let numbers = |list: &str| {
            parse(list).map(|set| (0..CpuSet::MAX_CPU).filter(|n| set.is_set(*n)).collect::<Vec<_>>())
        };
        assert_eq!(numbers("0-3,7"), Some(vec![0, 1, 2, 3, 7]));
        assert_eq!(numbers("5"), Some(vec![5]));
        for wrong in ["", ",", "1,", "a", "3-1", "-1", "1-", "+1", "1-2-3", "99999999999", "1024", " 1"] {
            assert_eq!(numbers(wrong), None, "{wrong:?}");
        }
    }
}
