//! What the host's processor offers, as far as CPU models care: `/proc/cpuinfo`.
//!
//! Vector instructions of a guest are executed by the host's own, so a guest cannot have more than the host has.

use std::fs;

use arch::x86::cpuid::{CpuModel, Feature, FeatureSet};

/// Models that promise a fixed set of features, plainest first.
const FIXED: [&str; 3] = ["x86-64", "x86-64-v2", "x86-64-v3"];

/// The host's processor.
pub struct HostCpu {
    /// Its name, for people.
    pub name: String,
    features: FeatureSet,
}

impl HostCpu {
    /// Looks at this host. Without `/proc` nothing is known and little is offered.
    pub fn look() -> Self {
        Self::parse(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default())
    }

    /// The best model that a guest can have here. The plainest if none: the engine says then what is missing.
    pub fn best_model(&self) -> &'static str {
        FIXED.into_iter().rev().find(|name| self.missing_for(name).is_empty()).unwrap_or(FIXED[0])
    }

    /// Features of the model `name` that this processor lacks, by their names in `/proc/cpuinfo`.
    pub fn missing_for(&self, name: &str) -> Vec<&'static str> {
        let missing = CpuModel::named(name).map(|model| model.missing_on(self.features));
        missing.iter().flat_map(|set| set.iter()).map(|feature| feature.name).collect()
    }

    /// The least model above the best one, and what it lacks.
    pub fn next_model(&self) -> Option<(&'static str, Vec<&'static str>)> {
        FIXED.into_iter().map(|name| (name, self.missing_for(name))).find(|(_, missing)| !missing.is_empty())
    }

    fn parse(cpuinfo: &str) -> Self {
        let field = |name: &str| {
            let line = cpuinfo.lines().find(|line| line.starts_with(name))?;
            line.split_once(':').map(|(_, value)| value.trim())
        };
        let flags = field("flags").unwrap_or_default().split_whitespace();
        let features = flags
            .filter_map(Feature::named)
            .fold(FeatureSet::of(&[]), |all, feature| all.union(FeatureSet::of(&[feature])));
        Self { name: field("model name").unwrap_or("unknown processor").to_owned(), features }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_model_has_every_feature_and_the_next_says_what_it_lacks() {
        let flags = "mmx sse sse2 pni ssse3 sse4_1 sse4_2 popcnt avx";
        let cpu = HostCpu::parse(&format!("model name : Old\nflags : {flags}\n"));
        assert_eq!((cpu.name.as_str(), cpu.best_model()), ("Old", "x86-64-v2"));
        let (next, missing) = cpu.next_model().unwrap();
        assert!(next == "x86-64-v3" && missing.contains(&"avx2") && !missing.contains(&"avx"), "{missing:?}");
    }

    #[test]
    fn nothing_known_offers_the_least() {
        assert_eq!(HostCpu::parse("").best_model(), "x86-64");
    }
}
