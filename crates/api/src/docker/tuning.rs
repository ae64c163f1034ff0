//! What a container's `HostConfig` asks of the kernel beside the limits that machines have too.

use bollard_stubs::models::{DeviceMapping, HostConfig, HostConfigLogConfig};
use workload::{Isolation, LogLimits};

use crate::error::{ApiError, Result};
use crate::tuning::{HostName, OTHER, Tuning, is_group};

/// Where docker has output go to, besides.
const OTHER_DRIVERS: [&str; 8] =
    ["awslogs", "etwlogs", "fluentd", "gcplogs", "gelf", "journald", "splunk", "syslog"];

/// What a client wants, in our words.
///
/// # Errors
/// It makes no sense, or is not for a machine.
pub(super) fn wanted(host: &HostConfig, domainname: Option<String>, isolation: Isolation) -> Result<Tuning> {
    let positive = |number: Option<i64>| number.filter(|number| *number > 0);
    let text = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let limit = host.memory.unwrap_or_default();
    // Twice the memory is what docker makes of nothing.
    let swap = host.memory_swap.filter(|swap| !matches!(*swap, 0 | -1) && *swap != limit.saturating_mul(2));
    if swap.is_some_and(|swap| swap < limit || limit <= 0) {
        let text = "Minimum memoryswap limit should be larger than memory limit, see usage";
        return Err(ApiError::bad(text));
    }
    let score = host.oom_score_adj.unwrap_or_default();
    if !(-1000..=1000).contains(&score) {
        let text = format!("Invalid value {score}, range for oom score adj is [-1000, 1000]");
        return Err(ApiError::bad(text));
    }
    let tuning = Tuning {
        pid: shared("PID", &host.pid_mode, &["host", OTHER])?,
        ipc: shared("IPC", &host.ipc_mode, &["host", "none", "shareable", OTHER])?,
        domainname: text(&domainname),
        uts: shared("UTS", &host.uts_mode, &["host"])?,
        // A machine has one: the agent.
        init: host.init == Some(true) && isolation == Isolation::Container,
        sysctls: host.sysctls.clone().unwrap_or_default().into_iter().collect(),
        shm_bytes: positive(host.shm_size).filter(|size| *size != 64 << 20).map(i64::unsigned_abs),
        oom_score_adj: Some(score as i32).filter(|score| *score != 0),
        cpu_shares: positive(host.cpu_shares).map(i64::unsigned_abs),
        cpuset_cpus: text(&host.cpuset_cpus),
        cpuset_mems: text(&host.cpuset_mems),
        memory_reservation: positive(host.memory_reservation),
        memory_swap: swap,
        swappiness: swappiness(host.memory_swappiness)?,
        blkio_weight: blkio_weight(host.blkio_weight.map(i64::from))?,
        groups: host.group_add.iter().flatten().map(|group| group_name(group)).collect::<Result<_>>()?,
        devices: host.devices.iter().flatten().map(device).collect::<Result<_>>()?,
        device_rules: host.device_cgroup_rules.clone().unwrap_or_default(),
        hosts: host.extra_hosts.iter().flatten().map(|text| host_name(text)).collect::<Result<_>>()?,
    };
    if isolation == Isolation::Vm && (Tuning { hosts: Vec::new(), ..tuning.clone() }) != Tuning::default() {
        let text = "HostConfig.Sysctls, ShmSize, OomScoreAdj, CpuShares, CpusetCpus, CpusetMems, MemoryReservation, MemorySwap, \
                    BlkioWeight, GroupAdd, Devices, DeviceCgroupRules, PidMode, IpcMode, UTSMode, \
                    Domainname: a microVM has a kernel of its own, which nobody asks for these";
        return Err(ApiError::not_offered(text));
    }
    Ok(tuning)
}

/// -1 is as ever.
fn swappiness(number: Option<i64>) -> Result<Option<u64>> {
    match number {
        None | Some(-1) => Ok(None),
        Some(number @ 0..=100) => Ok(Some(number.unsigned_abs())),
        Some(number) => {
            Err(ApiError::bad(format!("Invalid value: {number}, valid memory swappiness range is 0-100")))
        }
    }
}

/// A part of disks; 0 is none, as docker has it.
///
/// # Errors
/// It is not from 10 to 1000.
pub(super) fn blkio_weight(weight: Option<i64>) -> Result<Option<u16>> {
    match weight.filter(|weight| *weight != 0) {
        None => Ok(None),
        Some(weight @ 10..=1000) => Ok(Some(weight as u16)),
        Some(_) => Err(ApiError::bad("Range of blkio weight is from 10 to 1000")),
    }
}

/// Whose namespace of a kind a container has; nothing if its own.
fn shared(kind: &str, mode: &Option<String>, known: &[&str]) -> Result<Option<String>> {
    let Some(mode) = mode.clone().filter(|mode| !mode.is_empty() && mode != "private") else {
        return Ok(None);
    };
    let is_of_other = mode.strip_prefix(OTHER).is_some_and(|name| !name.is_empty()) && known.contains(&OTHER);
    if is_of_other || mode != OTHER && known.contains(&&*mode) {
        return Ok(Some(mode));
    }
    Err(ApiError::bad(format!("invalid {kind} mode: {mode}")))
}

fn group_name(group: &str) -> Result<String> {
    if !is_group(group) {
        return Err(ApiError::bad(format!("invalid group {group:?}")));
    }
    Ok(group.to_owned())
}

/// `HOST:INSIDE:ACCESS`
fn device(device: &DeviceMapping) -> Result<String> {
    let host = device.path_on_host.as_deref().unwrap_or_default();
    let inside = device.path_in_container.as_deref().filter(|path| !path.is_empty()).unwrap_or(host);
    let access = device.cgroup_permissions.as_deref().filter(|text| !text.is_empty()).unwrap_or("rwm");
    if [host, inside].iter().any(|path| !path.starts_with('/') || path.contains(':')) {
        return Err(ApiError::bad(format!("{host:?} is not an absolute path of a device")));
    }
    Ok(format!("{host}:{inside}:{access}"))
}

fn host_name(text: &str) -> Result<HostName> {
    text.parse().map_err(|reason| ApiError::bad(format!("invalid extra host {text:?}: {reason}")))
}

/// What keeps its output, and how much of it, as `KEY=VALUE`.
///
/// # Errors
/// It is to go somewhere else, or a word makes no sense.
pub(super) fn log_options(config: Option<HostConfigLogConfig>) -> Result<(Option<String>, Vec<String>)> {
    let config = config.unwrap_or_default();
    let driver = config.typ.filter(|driver| !driver.is_empty());
    let known = driver.as_deref().unwrap_or("json-file");
    if !matches!(known, "json-file" | "local" | "none") {
        if !OTHER_DRIVERS.contains(&known) {
            return Err(ApiError::bad(format!("logger: no log driver named '{known}' is registered")));
        }
        let text = format!(
            "HostConfig.LogConfig: what a workload writes is kept in json-file, or not at all, not {known}"
        );
        return Err(ApiError::not_offered(text));
    }
    let said = config.config.into_iter().flatten();
    // What is set aside is small enough as it is.
    let counts = |(key, value): &(String, String)| key != "compress" || !matches!(&**value, "true" | "false");
    let options: Vec<_> = said.filter(counts).map(|(key, value)| format!("{key}={value}")).collect();
    LogLimits::parse(known, options.iter().map(String::as_str)).map_err(ApiError::bad)?;
    Ok((driver, options))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn of(host: Value) -> Result<Tuning> {
        wanted(&serde_json::from_value(host).unwrap(), None, Isolation::Container)
    }

    #[test]
    fn what_dockers_command_sends_without_being_asked_is_nothing() {
        let sent = json!({"CpuShares": 0, "Memory": 0, "MemorySwap": 0, "MemoryReservation": 0, "ShmSize": 0, "OomScoreAdj": 0,
            "CpusetCpus": "", "Devices": [], "GroupAdd": null, "ExtraHosts": null, "Sysctls": {}});
        assert_eq!(of(sent.clone()), Ok(Tuning::default()));
        assert!(wanted(&serde_json::from_value(sent).unwrap(), None, Isolation::Vm).is_ok());
        let swap = |memory: i64, swap: i64| of(json!({"Memory": memory, "MemorySwap": swap}));
        assert_eq!((swap(100, 200), swap(100, -1)), (Ok(Tuning::default()), Ok(Tuning::default())));
        assert_eq!(swap(100, 150).unwrap().memory_swap, Some(150));
        assert!(swap(100, 50).is_err() && swap(0, 50).is_err());
    }

    #[test]
    fn what_is_asked_for_is_understood_or_refused() {
        let tuning = of(json!({"Sysctls": {"net.ipv4.ip_forward": "1"}, "ShmSize": 1024, "GroupAdd": ["27"],
            "Devices": [{"PathOnHost": "/dev/fuse", "PathInContainer": "", "CgroupPermissions": "rw"}],
            "ExtraHosts": ["a:10.0.0.1", "b=::1", "c:host-gateway"], "CpusetCpus": "0", "OomScoreAdj": -5}))
        .unwrap();
        assert_eq!(
            (tuning.shm_bytes, tuning.oom_score_adj, &*tuning.groups),
            (Some(1024), Some(-5), &["27".to_owned()][..])
        );
        let modes =
            of(json!({"PidMode": "container:x", "IpcMode": "shareable", "UTSMode": "host", "Init": true}))
                .unwrap();
        let said = |text: &str| Some(text.to_owned());
        assert_eq!((modes.pid, modes.ipc, modes.uts), (said("container:x"), said("shareable"), said("host")));
        assert!(modes.init && of(json!({"PidMode": "private", "IpcMode": ""})).unwrap() == Tuning::default());
        assert_eq!((&*tuning.devices[0], tuning.hosts.len()), ("/dev/fuse:/dev/fuse:rw", 3));
        for (host, status) in [
            (json!({"GroupAdd": ["a:b"]}), 400),
            (json!({"PidMode": "shareable"}), 400),
            (json!({"PidMode": "container:"}), 400),
            (json!({"UTSMode": "container:x"}), 400),
            (json!({"Devices": [{"PathOnHost": "fuse"}]}), 400),
            (json!({"ExtraHosts": ["a"]}), 400),
            (json!({"ExtraHosts": ["a:b"]}), 400),
            (json!({"ExtraHosts": ["a\nb:10.0.0.1"]}), 400),
            (json!({"OomScoreAdj": 2000}), 400),
        ] {
            assert_eq!(of(host.clone()).unwrap_err().status.as_u16(), status, "{host}");
        }
        let vm = wanted(&serde_json::from_value(json!({"CpuShares": 5})).unwrap(), None, Isolation::Vm);
        assert_eq!(vm.unwrap_err().status.as_u16(), 501);
    }

    #[test]
    fn output_is_kept_as_far_as_asked_for() {
        let of = |config: Value| log_options(Some(serde_json::from_value(config).unwrap()));
        let driver = |name: &str| Some(name.to_owned());
        let compressed = json!({"Type": "json-file", "Config": {"compress": "true"}});
        assert_eq!(of(compressed), Ok((driver("json-file"), Vec::new())));
        let limits = of(json!({"Type": "", "Config": {"max-size": "10m"}}));
        assert_eq!(limits, Ok((None, vec!["max-size=10m".to_owned()])));
        assert_eq!(of(json!({"Type": "none"})), Ok((driver("none"), Vec::new())));
        for (config, status) in [
            (json!({"Type": "syslog"}), 501),
            (json!({"Type": "none", "Config": {"max-size": "1m"}}), 400),
            (json!({"Type": "", "Config": {"tag": "x"}}), 400),
            (json!({"Type": "", "Config": {"max-size": "many"}}), 400),
            (json!({"Type": "", "Config": {"max-file": "0"}}), 400),
        ] {
            assert_eq!(of(config.clone()).unwrap_err().status.as_u16(), status, "{config}");
        }
    }
}
