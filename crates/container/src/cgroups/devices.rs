//! Which devices may be used: rules on v1, a BPF program on v2.
//!
//! On v2 the kernel asks a program of type CGROUP_DEVICE, which is given the access and kind (low half word kind, high
//! half word access), major and minor number, and answers 1 to allow. The last rule that matches counts.

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

use super::{Cgroups, write};
use crate::error::{Error, Result, While};
use crate::spec::DeviceRule;
use crate::sys;

/// Devices every container may use: null, zero, full, tty, random, urandom, terminals, and all may be made as nodes.
const ALWAYS: [(&str, Option<i64>, Option<i64>, &str); 11] = [
    ("c", None, None, "m"),
    ("b", None, None, "m"),
    ("c", Some(1), Some(3), "rwm"),
    ("c", Some(1), Some(5), "rwm"),
    ("c", Some(1), Some(7), "rwm"),
    ("c", Some(1), Some(8), "rwm"),
    ("c", Some(1), Some(9), "rwm"),
    ("c", Some(5), Some(0), "rwm"),
    ("c", Some(5), Some(2), "rwm"),
    ("c", Some(136), None, "rwm"),
    ("c", Some(5), Some(1), "rwm"),
];

/// Sets the rules of the bundle, and the devices without which no container works.
pub fn apply(cgroups: &Cgroups, rules: &[DeviceRule]) -> Result<()> {
    let mut all = rules.to_vec();
    all.extend(ALWAYS.map(|(kind, major, minor, access)| DeviceRule {
        allow: true,
        kind: Some(kind.to_owned()),
        major,
        minor,
        access: Some(access.to_owned()),
    }));
    if let Some(group) = cgroups.with("devices") {
        for rule in &all {
            let file = if rule.allow { "devices.allow" } else { "devices.deny" };
            write(&group.path.join(file), &line(rule)?)?;
        }
        return Ok(());
    }
    let Some(group) = cgroups.unified() else {
        if rules.iter().any(|rule| !rule.allow) {
            tracing::warn!("no control group of this host filters devices");
        }
        return Ok(());
    };
    let program = program(&all)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(&group.path, flags, Mode::empty())
        .during(|| format!("open control group {}", group.path.display()))?;
    attach(&program, &folder).during(|| "set the device filter".to_owned())
}

/// Whether both kinds of hierarchies can be told these rules.
pub fn check_rules(rules: &[DeviceRule]) -> Result<()> {
    program(rules)?;
    rules.iter().try_for_each(|rule| line(rule).map(drop))
}

fn line(rule: &DeviceRule) -> Result<String> {
    let number = |n: Option<i64>| match n {
        Some(n) if n >= 0 => n.to_string(),
        _ => "*".to_owned(),
    };
    let kind = rule.kind.as_deref().unwrap_or("a");
    let access = rule.access.as_deref().unwrap_or("rwm");
    check(kind, access)?;
    Ok(format!("{kind} {}:{} {access}", number(rule.major), number(rule.minor)))
}

fn check(kind: &str, access: &str) -> Result<()> {
    if !matches!(kind, "a" | "b" | "c" | "u")
        || access.is_empty()
        || !access.bytes().all(|b| b"rwm".contains(&b))
    {
        return Err(Error::refused(format!("device rule {kind:?} {access:?}"), "a, b or c, and some of rwm"));
    }
    Ok(())
}

/// One instruction of extended BPF.
fn instruction(code: u8, registers: u8, offset: i16, value: i32) -> u64 {
    u64::from(code)
        | u64::from(registers) << 8
        | u64::from(offset as u16) << 16
        | u64::from(value as u32) << 32
}

const LOAD_WORD: u8 = 0x61;
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const MOVE: u8 = 0xb4;
const MOVE_REGISTER: u8 = 0xbc;
const JUMP_NOT_EQUAL: u8 = 0x56;
const JUMP_NOT_EQUAL_REGISTER: u8 = 0x5e;
const EXIT: u8 = 0x95;

/// Kind in r2, access in r3, major in r4, minor in r5; rules from the last to the first.
fn program(rules: &[DeviceRule]) -> Result<Vec<u64>> {
    let mut code = vec![
        instruction(LOAD_WORD, 0x12, 0, 0),
        instruction(MOVE_REGISTER, 0x23, 0, 0),
        instruction(AND, 2, 0, 0xffff),
        instruction(SHIFT_RIGHT, 3, 0, 16),
        instruction(LOAD_WORD, 0x14, 4, 0),
        instruction(LOAD_WORD, 0x15, 8, 0),
    ];
    for rule in rules.iter().rev() {
        let (kind, access) = (rule.kind.as_deref().unwrap_or("a"), rule.access.as_deref().unwrap_or("rwm"));
        check(kind, access)?;
        let bits = access.bytes().fold(0, |bits, b| {
            bits | if b == b'm' {
                1
            } else if b == b'r' {
                2
            } else {
                4
            }
        });
        let mut tests: Vec<u64> = Vec::new();
        let mut skips = Vec::new();
        if kind != "a" {
            skips.push(tests.len());
            tests.push(instruction(JUMP_NOT_EQUAL, 2, 0, if kind == "b" { 1 } else { 2 }));
        }
        if bits != 7 {
            // An allowing rule must allow all that is asked, a denying one counts if it denies any of it.
            tests.push(instruction(MOVE_REGISTER, 0x31, 0, 0));
            tests.push(instruction(AND, 1, 0, bits));
            skips.push(tests.len());
            tests.push(if rule.allow {
                instruction(JUMP_NOT_EQUAL_REGISTER, 0x31, 0, 0)
            } else {
                instruction(0x16, 1, 0, 0)
            });
        }
        for (register, number) in [(4, rule.major), (5, rule.minor)] {
            if let Some(number) = number.filter(|n| *n >= 0) {
                let number = i32::try_from(number)
                    .map_err(|_| Error::refused(format!("device number {number}"), "it is too large"))?;
                skips.push(tests.len());
                tests.push(instruction(JUMP_NOT_EQUAL, register, 0, number));
            }
        }
        tests.push(instruction(MOVE, 0, 0, i32::from(rule.allow)));
        tests.push(instruction(EXIT, 0, 0, 0));
        let end = tests.len();
        for at in skips {
            tests[at] |= ((end - at - 1) as u64) << 16;
        }
        let decides_all = end == 2;
        code.extend(tests);
        if decides_all {
            return Ok(code);
        }
    }
    // Without a rule that fits everything is as it was: allowed.
    code.push(instruction(MOVE, 0, 0, 1));
    code.push(instruction(EXIT, 0, 0, 0));
    Ok(code)
}

fn attach(program: &[u64], group: &OwnedFd) -> std::io::Result<()> {
    const PROG_LOAD: i32 = 5;
    const PROG_ATTACH: i32 = 8;
    const TYPE_CGROUP_DEVICE: u64 = 15;
    const ATTACH_DEVICE: u64 = 6;
    const ALLOW_MULTI: u64 = 2;
    let license = c"Dual MIT/GPL";
    // union bpf_attr: type and count of instructions, their address, that of the licence, then a log nobody wants.
    let mut load = [0u64; 8];
    load[0] = TYPE_CGROUP_DEVICE | (program.len() as u64) << 32;
    load[1] = program.as_ptr() as u64;
    load[2] = license.as_ptr() as u64;
    let loaded = sys::own(sys::bpf(PROG_LOAD, &mut load)?);
    // Target and program, kind and flags.
    let mut attach = [0u64; 4];
    attach[0] = group.as_raw_fd() as u64 | (loaded.as_raw_fd() as u64) << 32;
    attach[1] = ATTACH_DEVICE | ALLOW_MULTI << 32;
    sys::bpf(PROG_ATTACH, &mut attach).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(allow: bool, kind: &str, major: Option<i64>, minor: Option<i64>, access: &str) -> DeviceRule {
        DeviceRule { allow, kind: Some(kind.into()), major, minor, access: Some(access.into()) }
    }

    /// Runs a program as the kernel would.
    fn allows(program: &[u64], kind: u32, access: u32, major: u32, minor: u32) -> bool {
        let context = [access << 16 | kind, major, minor];
        let mut registers = [0u32; 16];
        let mut at = 0;
        loop {
            let word = program[at];
            at += 1;
            let (code, to, from) = (word as u8, (word >> 8 & 15) as usize, (word >> 12 & 15) as usize);
            let (offset, value) = ((word >> 16) as i16, (word >> 32) as u32);
            match code {
                LOAD_WORD => registers[to] = context[offset as usize / 4],
                AND => registers[to] &= value,
                SHIFT_RIGHT => registers[to] >>= value,
                MOVE => registers[to] = value,
                MOVE_REGISTER => registers[to] = registers[from],
                JUMP_NOT_EQUAL if registers[to] != value => at += offset as usize,
                JUMP_NOT_EQUAL_REGISTER if registers[to] != registers[from] => at += offset as usize,
                0x16 if registers[to] == value => at += offset as usize,
                JUMP_NOT_EQUAL | JUMP_NOT_EQUAL_REGISTER | 0x16 => {}
                EXIT => return registers[0] != 0,
                _ => panic!("no instruction {code:#x}"),
            }
        }
    }

    #[test]
    fn the_last_rule_that_matches_counts() {
        let rules = [
            rule(false, "a", None, None, "rwm"),
            rule(true, "c", Some(1), Some(3), "rw"),
            rule(true, "b", Some(8), None, "r"),
        ];
        let program = program(&rules).unwrap();
        let (make, read, write) = (1, 2, 4);
        assert!(allows(&program, 2, read | write, 1, 3));
        assert!(!allows(&program, 2, read | make, 1, 3));
        assert!(!allows(&program, 2, read, 1, 4));
        assert!(allows(&program, 1, read, 8, 7));
        assert!(!allows(&program, 1, write, 8, 7));
    }

    #[test]
    fn rules_are_written_as_v1_reads_them() {
        assert_eq!(line(&rule(false, "a", None, Some(-1), "rwm")).unwrap(), "a *:* rwm");
        assert_eq!(line(&rule(true, "c", Some(5), Some(0), "r")).unwrap(), "c 5:0 r");
        assert!(line(&rule(true, "c", None, None, "x")).is_err());
    }
}
