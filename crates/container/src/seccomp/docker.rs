//! Profiles in files, as docker's `--security-opt seccomp=FILE` takes them: the specification's rules, and beside them what
//! each rule depends on: capabilities, the processor, the kernel's version.

use std::collections::HashMap;

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::spec::{Seccomp, SyscallRule};

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Profile {
    #[serde(flatten)]
    rules: Rest,
    arch_map: Vec<Architecture>,
    syscalls: Vec<Rule>,
}

/// What is as the specification has it.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Rest {
    default_action: String,
    default_errno_ret: Option<u32>,
    architectures: Vec<String>,
    flags: Vec<String>,
    listener_path: Option<std::path::PathBuf>,
    listener_metadata: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Architecture {
    architecture: String,
    sub_architectures: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Rule {
    /// One name, of older profiles.
    name: String,
    #[serde(flatten)]
    rule: SyscallRule,
    includes: Condition,
    excludes: Condition,
}

/// What a rule is for, or not for.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Condition {
    caps: Vec<String>,
    arches: Vec<String>,
    min_kernel: String,
}

/// What this host is, in a profile's words.
#[derive(Clone, Copy, Debug)]
struct Here {
    arch: &'static str,
    scmp: &'static str,
    kernel: (u32, u32),
}

/// The rules of a profile for a process with these capabilities, on this host.
///
/// # Errors
/// It is no profile. What its actions and comparisons mean is seen when the filter is made.
pub fn profile(text: &str, capabilities: &[String]) -> Result<Seccomp> {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let (arch, scmp) = match std::env::consts::ARCH {
        "aarch64" => ("arm64", "SCMP_ARCH_AARCH64"),
        "riscv64" => ("riscv64", "SCMP_ARCH_RISCV64"),
        _ => ("amd64", "SCMP_ARCH_X86_64"),
    };
    of(text, capabilities, Here { arch, scmp, kernel: version(&release).unwrap_or_default() })
}

fn of(text: &str, capabilities: &[String], here: Here) -> Result<Seccomp> {
    let wrong = |source| Error::Json { what: "the seccomp profile".to_owned(), source };
    let Profile { rules, arch_map, syscalls } = serde_json::from_str(text).map_err(wrong)?;
    let refuse = |fault: &str| Err(Error::refused("seccomp profile", fault));
    if rules.default_action.is_empty() {
        return refuse("it has no defaultAction");
    }
    if !rules.architectures.is_empty() && !arch_map.is_empty() {
        return refuse("it has both architectures and archMap");
    }
    let subs: HashMap<_, _> = arch_map.into_iter().map(|a| (a.architecture, a.sub_architectures)).collect();
    let mut architectures = rules.architectures;
    if let Some(sub) = subs.get(here.scmp) {
        architectures = [&[here.scmp.to_owned()], sub.as_slice()].concat();
    }
    let mut kept = Vec::new();
    for Rule { name, mut rule, includes, excludes } in syscalls {
        if !name.is_empty() && !rule.names.is_empty() {
            return refuse("a rule has both name and names");
        }
        if !name.is_empty() {
            rule.names.push(name);
        }
        if includes.holds(capabilities, here)? && !excludes.meets(capabilities, here)? {
            kept.push(rule);
        }
    }
    Ok(Seccomp {
        default_action: rules.default_action,
        default_errno_ret: rules.default_errno_ret,
        architectures,
        flags: rules.flags,
        listener_path: rules.listener_path,
        listener_metadata: rules.listener_metadata,
        syscalls: kept,
    })
}

impl Condition {
    fn is_of_kernel(&self, here: Here) -> Result<bool> {
        let wrong =
            || Error::refused("seccomp profile", format!("minKernel {:?} is no version", self.min_kernel));
        if self.min_kernel.is_empty() {
            return Ok(true);
        }
        Ok(version(&self.min_kernel).ok_or_else(wrong)? <= here.kernel)
    }

    /// Whether all of it is so.
    fn holds(&self, capabilities: &[String], here: Here) -> Result<bool> {
        let arches = self.arches.is_empty() || self.arches.iter().any(|arch| arch == here.arch);
        Ok(arches && self.caps.iter().all(|cap| capabilities.contains(cap)) && self.is_of_kernel(here)?)
    }

    /// Whether any of it is so.
    fn meets(&self, capabilities: &[String], here: Here) -> Result<bool> {
        let kernel = !self.min_kernel.is_empty() && self.is_of_kernel(here)?;
        Ok(kernel
            || self.arches.iter().any(|arch| arch == here.arch)
            || self.caps.iter().any(|cap| capabilities.contains(cap)))
    }
}

/// `6.1.0-5-amd64` as 6 and 1.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Here = Here { arch: "amd64", scmp: "SCMP_ARCH_X86_64", kernel: (5, 10) };

    fn names(rules: &str, capabilities: &[&str]) -> Vec<String> {
        let text = format!("{{\"defaultAction\":\"SCMP_ACT_ERRNO\",\"syscalls\":{rules}}}");
        let capabilities: Vec<String> = capabilities.iter().map(|name| (*name).to_owned()).collect();
        let found = of(&text, &capabilities, HERE).unwrap();
        found.syscalls.into_iter().flat_map(|rule| rule.names).collect()
    }

    #[test]
    fn rules_are_for_some_hosts_and_capabilities() {
        let rules = r#"[
            {"names":["read","write"],"action":"SCMP_ACT_ALLOW","args":[],"comment":"","includes":{},"excludes":{}},
            {"name":"mount","action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_SYS_ADMIN"]}},
            {"names":["clone"],"action":"SCMP_ACT_ALLOW","excludes":{"caps":["CAP_SYS_ADMIN"],"arches":["s390"]},
             "args":[{"index":0,"value":2114060288,"op":"SCMP_CMP_MASKED_EQ"}]},
            {"names":["arm_call"],"action":"SCMP_ACT_ALLOW","includes":{"arches":["arm","arm64"]}},
            {"names":["ptrace"],"action":"SCMP_ACT_ALLOW","includes":{"minKernel":"4.8"}},
            {"names":["newer"],"action":"SCMP_ACT_ALLOW","includes":{"minKernel":"5.11"}}]"#;
        assert_eq!(names(rules, &[]), ["read", "write", "clone", "ptrace"]);
        assert_eq!(names(rules, &["CAP_SYS_ADMIN"]), ["read", "write", "mount", "ptrace"]);
    }

    #[test]
    fn architectures_come_with_those_their_programs_run_on() {
        let text = r#"{"defaultAction":"SCMP_ACT_ALLOW","archMap":[
            {"architecture":"SCMP_ARCH_AARCH64","subArchitectures":["SCMP_ARCH_ARM"]},
            {"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86"]}]}"#;
        let found = of(text, &[], HERE).unwrap();
        assert_eq!(found.architectures, ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]);
    }

    #[test]
    fn what_is_no_profile_is_refused() {
        for (text, word) in [
            ("{", "EOF"),
            ("{}", "defaultAction"),
            (r#"{"defaultAction":"x","syscalls":[{"name":"a","names":["b"]}]}"#, "both name and names"),
            (r#"{"defaultAction":"x","syscalls":[{"name":"a","includes":{"minKernel":"six"}}]}"#, "six"),
            (
                r#"{"defaultAction":"x","architectures":["a"],"archMap":[{"architecture":"b"}]}"#,
                "both architectures",
            ),
        ] {
            let error = of(text, &[], HERE).unwrap_err().chain();
            assert!(error.contains(word), "no {word:?} in {error:?}");
        }
    }
}
