//! What a container has of the kernel beside its limits.

use std::os::unix::fs::{FileTypeExt, MetadataExt};

use api::{Limits, OTHER, Tuning};
use container::spec::{BlockIo, Cpu, Device, DeviceRule, Linux, Memory, Spec};
use container::template;
use serde::{Deserialize, Deserializer};

use crate::exit::Exit;
use crate::failure::{Failure, Outcome, While};
use crate::size::parse_size;

/// Flags for it.
#[derive(clap::Args, Clone, Default, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct Flags {
    /// Set a parameter of the kernel, of the container's own namespaces
    #[arg(long = "sysctl", value_name = "NAME=VALUE", value_parser = pair)]
    sysctls: Vec<(String, String)>,
    /// Bytes of /dev/shm at most
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    shm_size: Option<u64>,
    /// How soon it is killed where memory is short, from -1000 to 1000
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(i32).range(-1000..=1000))]
    oom_score_adj: Option<i32>,
    /// Its part of the processors where others want them too; 1024 is usual
    #[arg(long, value_name = "N")]
    cpu_shares: Option<u64>,
    /// Processors that it may use, e.g. 0-3,7
    #[arg(long, value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// Memory nodes that it may use
    #[arg(long, value_name = "LIST")]
    cpuset_mems: Option<String>,
    /// Bytes that are left to it where memory is short. For clients of the API.
    #[arg(skip)]
    memory_reservation: Option<i64>,
    /// Bytes of memory and swap together. For clients of the API.
    #[arg(skip)]
    memory_swap: Option<i64>,
    /// How readily its memory is swapped out. For clients of the API.
    #[arg(skip)]
    swappiness: Option<u64>,
    /// Its part of disks where others want them too, from 10 to 1000
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(10..=1000))]
    blkio_weight: Option<u16>,
    /// A further group, by its number or by the name that the image has for it
    #[arg(long = "group-add", value_name = "GROUP", value_parser = parse_groups)]
    #[serde(deserialize_with = "texts")]
    groups: Vec<String>,
    /// See the processes of this host (host), or of another container (container:NAME)
    #[arg(long, value_name = "WHOSE", value_parser = pid_mode)]
    pub(super) pid: Option<String>,
    /// Have the shared memory of this host (host), of another container that is shareable (container:NAME), or none
    #[arg(long, value_name = "WHOSE", value_parser = ipc_mode)]
    pub(super) ipc: Option<String>,
    /// What its host name is said to be of
    #[arg(long, value_name = "NAME", conflicts_with = "uts")]
    domainname: Option<String>,
    /// Have the host name of this host: host
    #[arg(long, value_name = "host", value_parser = ["host"])]
    pub(super) uts: Option<String>,
    /// Begin with a process that hands signals on to the command and waits for those that have lost their parents; in a microVM
    /// the agent does
    #[arg(long)]
    pub(super) init: bool,
    /// Give it a device of this host
    #[arg(long = "device", value_name = "HOST[:INSIDE[:rwm]]")]
    devices: Vec<String>,
    /// Let it do this with devices: a (all), b or c, their numbers or *, and what of rwm
    #[arg(long = "device-cgroup-rule", value_name = "KIND MAJOR:MINOR ACCESS", value_parser = parse_rule)]
    device_rules: Vec<String>,
}

/// Says whether it is a rule for devices, which is kept as it is.
fn parse_rule(text: &str) -> Result<String, String> {
    rule(text).map(|_| text.to_owned()).ok_or_else(|| format!("{text:?} is not like \"c 1:3 rwm\""))
}

/// A rule that allows something of devices.
fn rule(text: &str) -> Option<DeviceRule> {
    let mut words = text.split(' ');
    let (kind, numbers, access) = (words.next()?, words.next()?, words.next()?);
    let (major, minor) = numbers.split_once(':')?;
    let number = |text: &str| match text {
        "*" => Some(None),
        text => text.parse().ok().map(Some),
    };
    let is_right = ["a", "b", "c"].contains(&kind)
        && (1..=3).contains(&access.len())
        && access.bytes().all(|letter| b"rwm".contains(&letter))
        && words.next().is_none();
    is_right.then_some(DeviceRule {
        allow: true,
        kind: Some(kind.to_owned()),
        major: number(major)?,
        minor: number(minor)?,
        access: Some(access.to_owned()),
    })
}

/// Whose processes it sees.
fn pid_mode(text: &str) -> Result<String, String> {
    mode(text, &["host", "private"])
}

/// Whose shared memory it has.
fn ipc_mode(text: &str) -> Result<String, String> {
    mode(text, &["host", "private", "shareable", "none"])
}

fn mode(text: &str, known: &[&str]) -> Result<String, String> {
    let is_of_other = text.strip_prefix(OTHER).is_some_and(|name| !name.is_empty());
    if is_of_other || known.contains(&text) {
        return Ok(text.to_owned());
    }
    Err(format!("it is one of {}, container:NAME", known.join(", ")))
}

fn parse_groups(text: &str) -> Result<String, String> {
    api::is_group(text).then(|| text.to_owned()).ok_or_else(|| format!("{text:?} is no group"))
}

/// Texts, or the numbers that earlier builds wrote.
fn texts<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    let values = Vec::<serde_json::Value>::deserialize(from)?;
    Ok(values.iter().map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned)).collect())
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is not NAME=VALUE"))?;
    Ok((name.to_owned(), value.to_owned()))
}

impl Flags {
    /// What a client of the API says.
    pub fn of(tuning: &Tuning) -> Self {
        Self {
            pid: tuning.pid.clone(),
            ipc: tuning.ipc.clone(),
            domainname: tuning.domainname.clone(),
            uts: tuning.uts.clone(),
            init: tuning.init,
            sysctls: tuning.sysctls.clone().into_iter().collect(),
            shm_size: tuning.shm_bytes,
            oom_score_adj: tuning.oom_score_adj,
            cpu_shares: tuning.cpu_shares,
            cpuset_cpus: tuning.cpuset_cpus.clone(),
            cpuset_mems: tuning.cpuset_mems.clone(),
            memory_reservation: tuning.memory_reservation,
            memory_swap: tuning.memory_swap,
            swappiness: tuning.swappiness,
            blkio_weight: tuning.blkio_weight,
            groups: tuning.groups.clone(),
            devices: tuning.devices.clone(),
            device_rules: tuning.device_rules.clone(),
        }
    }

    /// A flag that was given and says nothing to a machine.
    pub fn beyond_machines(&self) -> Option<&'static str> {
        let given = [
            ("--sysctl", !self.sysctls.is_empty()),
            ("--shm-size", self.shm_size.is_some()),
            ("--oom-score-adj", self.oom_score_adj.is_some()),
            ("--cpu-shares", self.cpu_shares.is_some()),
            ("--cpuset-cpus", self.cpuset_cpus.is_some()),
            ("--cpuset-mems", self.cpuset_mems.is_some()),
            ("--blkio-weight", self.blkio_weight.is_some()),
            ("--group-add", !self.groups.is_empty()),
            ("--pid", self.pid.is_some()),
            ("--ipc", self.ipc.is_some()),
            ("--domainname", self.domainname.is_some()),
            ("--uts", self.uts.is_some()),
            ("--device", !self.devices.is_empty()),
            ("--device-cgroup-rule", !self.device_rules.is_empty()),
        ];
        given.into_iter().find(|(_, given)| *given).map(|(flag, _)| flag)
    }

    /// Makes them what is said of limits that are changed.
    pub fn change(&mut self, limits: &Limits) {
        fn set<T: Clone>(to: &mut Option<T>, from: &Option<T>) {
            if from.is_some() {
                to.clone_from(from);
            }
        }
        set(&mut self.cpu_shares, &limits.cpu_shares);
        set(&mut self.cpuset_cpus, &limits.cpuset_cpus);
        set(&mut self.cpuset_mems, &limits.cpuset_mems);
        set(&mut self.memory_reservation, &limits.memory_reservation);
        set(&mut self.memory_swap, &limits.memory_swap);
        set(&mut self.blkio_weight, &limits.blkio_weight);
    }

    /// Further groups of its first process.
    pub fn groups(&self) -> &[String] {
        &self.groups
    }

    /// Puts it into a container's bundle.
    ///
    /// # Errors
    /// There is no such device.
    pub fn add_to(&self, spec: &mut Spec) -> Outcome<()> {
        if let Some(process) = &mut spec.process {
            process.oom_score_adj = self.oom_score_adj;
        }
        if let Some(size) = self.shm_size {
            template::limit_shm(&mut spec.mounts, size);
        }
        spec.domainname.clone_from(&self.domainname);
        let Some(linux) = &mut spec.linux else { return Ok(()) };
        linux.sysctl.extend(self.sysctls.iter().cloned());
        if let Some(resources) = &mut linux.resources {
            let memory = resources.memory.get_or_insert_with(Memory::default);
            (memory.reservation, memory.swap) = (self.memory_reservation, self.memory_swap);
            memory.swappiness = self.swappiness;
            let cpu = resources.cpu.get_or_insert_with(Cpu::default);
            cpu.shares = self.cpu_shares;
            (cpu.cpus, cpu.mems) = (self.cpuset_cpus.clone(), self.cpuset_mems.clone());
            if self.blkio_weight.is_some() {
                resources.block_io.get_or_insert_with(BlockIo::default).weight = self.blkio_weight;
            }
        }
        self.devices.iter().try_for_each(|text| add_device(linux, text))?;
        for text in &self.device_rules {
            let rule = rule(text).ok_or_else(|| {
                Failure::new(format!("--device-cgroup-rule {text:?} is no rule")).exit(Exit::Usage)
            })?;
            allow(linux, rule);
        }
        Ok(())
    }
}

fn add_device(linux: &mut Linux, text: &str) -> Outcome<()> {
    let mut words = text.split(':');
    let host = words.next().unwrap_or_default();
    let inside = words.next().filter(|word| !word.is_empty()).unwrap_or(host);
    let access = words.next().unwrap_or("rwm");
    let is_right = !access.is_empty() && access.bytes().all(|letter| b"rwm".contains(&letter));
    if words.next().is_some() || !is_right || !inside.starts_with('/') {
        let text = format!("--device {text:?} is not HOST[:INSIDE[:rwm]]");
        return Err(Failure::new(text).exit(Exit::Usage));
    }
    let found = std::fs::metadata(host).while_trying(|| format!("give the device {host}"))?;
    let kind = match found.file_type() {
        kind if kind.is_char_device() => "c",
        kind if kind.is_block_device() => "b",
        _ => return Err(Failure::new(format!("give the device {host}: it is none")).exit(Exit::Usage)),
    };
    let (major, minor) = (rustix::fs::major(found.rdev()).into(), rustix::fs::minor(found.rdev()).into());
    linux.devices.push(Device {
        path: inside.to_owned(),
        kind: kind.to_owned(),
        major,
        minor,
        file_mode: Some(found.mode() & 0o777),
        uid: Some(found.uid()),
        gid: Some(found.gid()),
    });
    let rule = DeviceRule {
        allow: true,
        kind: Some(kind.to_owned()),
        major: Some(major),
        minor: Some(minor),
        access: Some(access.to_owned()),
    };
    allow(linux, rule);
    Ok(())
}

/// Allows it where not everything is.
fn allow(linux: &mut Linux, rule: DeviceRule) {
    if let Some(resources) = linux.resources.as_mut().filter(|resources| !resources.devices.is_empty()) {
        resources.devices.push(rule);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_for_devices_have_kind_numbers_and_access() {
        let numbers = |text: &str| rule(text).map(|rule| (rule.major, rule.minor));
        assert_eq!(numbers("c 1:3 mr"), Some((Some(1), Some(3))));
        assert_eq!(numbers("a *:* rwm"), Some((None, None)));
        for wrong in ["", "c 1:3", "d 1:3 r", "c 1 r", "c x:3 r", "c 1:3 x", "c 1:3 rwmr", "c 1:3 r w"] {
            assert_eq!(numbers(wrong), None, "{wrong:?}");
        }
    }
}
