//! Filters of system calls: the specification's rules, translated to classic BPF.
//!
//! One program serves all architectures the rules name. For each it looks the call's number up in a tree of ranges, so
//! a call costs a handful of comparisons however many rules there are. Of rules for the same call the first whose
//! conditions hold counts. A listener ([`listener`]) is sent what a rule notifies it of.

mod bpf;
pub mod docker;
pub mod listener;
pub mod profile;
mod tables;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use crate::error::{Error, Result, While};
use crate::spec::{Seccomp, SyscallArg};
use crate::sys::{self, Instruction};
use bpf::{Comparison, Condition, Decision};

/// What an action makes of a call, as the kernel has it.
const KILL_THREAD: u32 = 0;
const KILL_PROCESS: u32 = 0x8000_0000;
const TRAP: u32 = 0x0003_0000;
const ERRNO: u32 = 0x0005_0000;
const NOTIFY: u32 = 0x7fc0_0000;
const TRACE: u32 = 0x7ff0_0000;
const LOG: u32 = 0x7ffc_0000;
const ALLOW: u32 = 0x7fff_0000;

/// Flag of `seccomp(2)`: nothing but its end wakes a process that waits for a listener's answer.
const WAIT_KILLABLE: u64 = 32;

/// A compiled filter.
#[derive(Debug)]
pub struct Filter {
    program: Vec<Instruction>,
    flags: u64,
}

impl Filter {
    /// Translates the rules.
    ///
    /// # Errors
    /// An action, comparison or flag nobody knows, or a listener that could not be reached. Architectures and calls that
    /// are not known are passed over: a profile names those of many kernels.
    pub fn new(rules: &Seccomp) -> Result<Self> {
        let default = action(&rules.default_action, rules.default_errno_ret)?;
        let mut arches = vec![tables::native()];
        for name in &rules.architectures {
            match tables::by_name(name) {
                Some(arch) if !arches.contains(&arch) => arches.push(arch),
                Some(_) => {}
                None => tracing::debug!("seccomp: architecture {name} is not known"),
            }
        }
        let mut parts = Vec::new();
        for arch in arches {
            parts.push((arch, decisions(rules, arch, default)?));
        }
        let mut flags = flags(&rules.flags)?;
        let refuse = |fault: &str| Err(Error::refused("seccomp", fault));
        if rules.listener_metadata.is_some() && rules.listener_path.is_none() {
            return refuse("listenerMetadata without listenerPath");
        }
        if notifies(rules) {
            check_listener(rules, &parts[0].1)?;
            flags |= sys::NEW_LISTENER;
        } else if flags & WAIT_KILLABLE != 0 {
            return refuse("SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV without a rule that is SCMP_ACT_NOTIFY");
        }
        Ok(Self { program: bpf::program(&parts, KILL_PROCESS)?, flags })
    }

    /// Puts this thread and its descendants under the filter, and returns the descriptor of its notifications, if it has any.
    ///
    /// # Errors
    /// The kernel refuses it: neither `no_new_privs` nor CAP_SYS_ADMIN.
    pub fn install(&self) -> Result<Option<OwnedFd>> {
        sys::install_filter(&self.program, self.flags).during(|| "install the seccomp filter".to_owned())
    }
}

/// Whether a rule asks a listener.
fn notifies(rules: &Seccomp) -> bool {
    rules.syscalls.iter().any(|rule| rule.action == "SCMP_ACT_NOTIFY")
}

/// A listener has to have a place, and has to be told of itself by a process that is under the filter already.
fn check_listener(rules: &Seccomp, native: &BTreeMap<u32, Decision>) -> Result<()> {
    let refuse = |fault: &str| Err(Error::refused("seccomp", fault));
    if rules.listener_path.is_none() {
        return refuse("SCMP_ACT_NOTIFY without listenerPath: no listener could answer");
    }
    let sendmsg = tables::native().number("sendmsg").unwrap_or_default();
    let decision = native.range(..=sendmsg).next_back().map(|(_, decision)| decision);
    if decision.is_none_or(|decision| !decision.is_always(&[ALLOW, LOG])) {
        return refuse("with a listener sendmsg has to be allowed: that is how it is sent its descriptor");
    }
    Ok(())
}

fn action(name: &str, errno: Option<u32>) -> Result<u32> {
    let data = errno.unwrap_or(libc::EPERM as u32) & 0xffff;
    Ok(match name {
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => KILL_THREAD,
        "SCMP_ACT_KILL_PROCESS" => KILL_PROCESS,
        "SCMP_ACT_TRAP" => TRAP,
        "SCMP_ACT_ERRNO" => ERRNO | data,
        "SCMP_ACT_TRACE" => TRACE | data,
        "SCMP_ACT_NOTIFY" => NOTIFY,
        "SCMP_ACT_LOG" => LOG,
        "SCMP_ACT_ALLOW" => ALLOW,
        other => return Err(Error::refused("seccomp", format!("no action is called {other:?}"))),
    })
}

fn flags(names: &[String]) -> Result<u64> {
    names.iter().try_fold(0, |flags, name| {
        Ok(flags
            | match name.as_str() {
                // All of one thread is in step already.
                "SECCOMP_FILTER_FLAG_TSYNC" => 0,
                "SECCOMP_FILTER_FLAG_LOG" => 2,
                "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => 4,
                "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" => WAIT_KILLABLE,
                other => return Err(Error::refused("seccomp", format!("no flag is called {other:?}"))),
            })
    })
}

/// What happens to each call number of one architecture; ranges begin at the keys.
fn decisions(rules: &Seccomp, arch: tables::Arch, default: u32) -> Result<BTreeMap<u32, Decision>> {
    let mut calls: BTreeMap<u32, Decision> = BTreeMap::new();
    // Names times conditions, and both are a stranger's: what cannot become a program is given up before it fills memory.
    let mut total = 0;
    for rule in &rules.syscalls {
        let verdict = action(&rule.action, rule.errno_ret)?;
        let conditions = rule.args.iter().map(condition).collect::<Result<Vec<_>>>()?;
        for name in &rule.names {
            let Some(number) = arch.number(name) else { continue };
            total += conditions.len();
            if total > bpf::MOST_INSTRUCTIONS {
                let fault = format!("more than {} conditions", bpf::MOST_INSTRUCTIONS);
                return Err(Error::refused("seccomp", fault));
            }
            let decision = calls.entry(number).or_insert_with(|| Decision::always(default));
            decision.add(conditions.clone(), verdict);
        }
    }
    // What is newer than everything the profile knows does not exist: programs then use what does, where "not
    // permitted" would make them give up.
    let newer = if default == ERRNO | libc::EPERM as u32 { ERRNO | libc::ENOSYS as u32 } else { default };
    let mut ranges = BTreeMap::from([(0, Decision::always(default))]);
    let end = calls.keys().next_back().map_or(0, |last| last + 1);
    for (number, decision) in calls {
        ranges.insert(number, decision);
        ranges.entry(number + 1).or_insert_with(|| Decision::always(default));
    }
    ranges.insert(end, Decision::always(newer));
    Ok(ranges)
}

fn condition(arg: &SyscallArg) -> Result<Condition> {
    if arg.index > 5 {
        return Err(Error::refused("seccomp", format!("a system call has no argument {}", arg.index)));
    }
    let comparison = match arg.op.as_str() {
        "SCMP_CMP_NE" => Comparison::NotEqual,
        "SCMP_CMP_LT" => Comparison::Less,
        "SCMP_CMP_LE" => Comparison::LessOrEqual,
        "SCMP_CMP_EQ" => Comparison::Equal,
        "SCMP_CMP_GE" => Comparison::GreaterOrEqual,
        "SCMP_CMP_GT" => Comparison::Greater,
        "SCMP_CMP_MASKED_EQ" => {
            // The first value is the mask.
            return Ok(Condition {
                argument: arg.index,
                mask: arg.value,
                value: arg.value_two,
                comparison: Comparison::Equal,
            });
        }
        other => return Err(Error::refused("seccomp", format!("no comparison is called {other:?}"))),
    };
    Ok(Condition { argument: arg.index, mask: u64::MAX, value: arg.value, comparison })
}

#[cfg(test)]
mod tests;
