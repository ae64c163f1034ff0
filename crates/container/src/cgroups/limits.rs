//! The specification's limits, written where the controller is.

use std::path::Path;

use super::{Cgroups, Group, devices, read, v2, write};
use crate::error::{Error, Result};
use crate::spec::{BlockIo, Cpu, Memory, Resources, Throttle};

/// Whether the container is being made or changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Made: the device filter is set too.
    Creating,
    /// Changed.
    Updating,
}

/// Whether anything is limited that needs a group.
pub fn any(resources: &Resources) -> bool {
    let Resources { devices: _, memory, cpu, pids, block_io, hugepage_limits, unified, network: _, rdma: _ } =
        resources;
    memory.as_ref().is_some_and(|m| *m != Memory::default())
        || cpu.as_ref().is_some_and(|c| *c != Cpu::default())
        || pids.as_ref().is_some_and(|p| p.limit > 0)
        || block_io.as_ref().is_some_and(|b| *b != BlockIo::default())
        || !hugepage_limits.is_empty()
        || !unified.is_empty()
}

/// Where a controller is.
enum Place<'a> {
    V1(&'a Path),
    V2(&'a Path),
}

fn find<'a>(cgroups: &'a Cgroups, controller: &str, v2_file: &str) -> Result<Place<'a>> {
    if let Some(group) = cgroups.with(controller) {
        return Ok(Place::V1(&group.path));
    }
    match cgroups.unified() {
        Some(Group { path, .. }) if path.join(v2_file).exists() => Ok(Place::V2(path)),
        _ => Err(Error::host(
            format!("limit of {controller}"),
            "no control group of this host has this controller",
        )),
    }
}

/// Writes all that is asked for.
pub fn apply(cgroups: &Cgroups, resources: &Resources, when: When) -> Result<()> {
    if let Some(limits) = &resources.memory {
        memory(cgroups, limits)?;
    }
    if let Some(limits) = &resources.cpu {
        cpu(cgroups, limits)?;
        cpuset(cgroups, limits)?;
    }
    if let Some(pids) = &resources.pids {
        let value = if pids.limit > 0 { pids.limit.to_string() } else { "max".to_owned() };
        match find(cgroups, "pids", "pids.max") {
            Ok(Place::V1(path) | Place::V2(path)) => write(&path.join("pids.max"), &value)?,
            Err(error) if pids.limit > 0 => return Err(error),
            Err(_) => {}
        }
    }
    if let Some(limits) = &resources.block_io {
        block_io(cgroups, limits)?;
    }
    for limit in &resources.hugepage_limits {
        let size = &limit.page_size;
        let (path, file) = match find(cgroups, "hugetlb", &format!("hugetlb.{size}.max"))? {
            Place::V1(path) => (path, format!("hugetlb.{size}.limit_in_bytes")),
            Place::V2(path) => (path, format!("hugetlb.{size}.max")),
        };
        check_name(&file)?;
        write(&path.join(file), &limit.limit.to_string())?;
    }
    for (file, value) in &resources.unified {
        check_name(file)?;
        let Some(group) = cgroups.unified() else {
            return Err(Error::host(format!("limit {file}"), "this host has no v2 control groups"));
        };
        write(&group.path.join(file), value)?;
    }
    if when == When::Creating && !resources.devices.is_empty() {
        match devices::apply(cgroups, &resources.devices) {
            // Nobody there makes nodes of devices, and the kernel lets nobody there filter them.
            Err(error) if error.errno() == Some(libc::EPERM) && in_user_namespace() => {
                tracing::debug!("no device filter in a user namespace: {}", error.chain());
            }
            result => result?,
        }
    }
    Ok(())
}

/// Whether this process is not in the host's own user namespace, which maps every id to itself.
fn in_user_namespace() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    !map.split_whitespace().eq(["0", "0", "4294967295"])
}

fn check_name(file: &str) -> Result<()> {
    if file.contains(['/', '\0']) || !file.contains('.') {
        return Err(Error::refused(format!("limit {file:?}"), "it is no file of a control group"));
    }
    Ok(())
}

/// -1 is without a limit, in the words of v2.
fn v2_bytes(value: i64) -> String {
    if value < 0 { "max".to_owned() } else { value.to_string() }
}

fn memory(cgroups: &Cgroups, limits: &Memory) -> Result<()> {
    if *limits == Memory::default() {
        return Ok(());
    }
    match find(cgroups, "memory", "memory.max")? {
        Place::V1(path) => memory_v1(path, limits),
        Place::V2(path) => {
            if limits.swappiness.is_some() || limits.disable_oom_killer == Some(true) {
                let fault = "v2 control groups have neither swappiness nor disableOOMKiller";
                return Err(Error::host("limit of memory", fault));
            }
            if let Some(limit) = limits.limit.filter(|limit| *limit != 0) {
                if limits.check_before_update == Some(true) && limit > 0 {
                    check_used(path, limit)?;
                }
                write(&path.join("memory.max"), &v2_bytes(limit))?;
            }
            if let Some(reservation) = limits.reservation.filter(|r| *r != 0) {
                write(&path.join("memory.low"), &v2_bytes(reservation))?;
            }
            if let Some(swap) = limits.swap.filter(|swap| *swap != 0) {
                // v1 counts memory and swap together, v2 swap alone.
                let alone = match limits.limit {
                    Some(limit) if swap > 0 && limit > 0 => swap.saturating_sub(limit).max(0),
                    _ => swap,
                };
                write(&path.join("memory.swap.max"), &v2_bytes(alone))?;
            }
            Ok(())
        }
    }
}

/// Where the kernel would kill for a limit below what is used, whoever says so has it refused.
fn check_used(path: &Path, limit: i64) -> Result<()> {
    let used = read(&path.join("memory.current"))?.trim().parse::<i64>().unwrap_or_default();
    if used <= limit {
        return Ok(());
    }
    Err(Error::refused(format!("limit of memory {limit}"), format!("{used} bytes are used already")))
}

fn memory_v1(path: &Path, limits: &Memory) -> Result<()> {
    let (memory, both) = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes");
    let limit = limits.limit.filter(|limit| *limit != 0);
    // A kernel that does not count swap has no such file: then there is nothing to limit.
    let swap = limits.swap.filter(|swap| *swap != 0 && path.join(both).exists());
    let set = |file: &str, value: i64| write(&path.join(file), &value.to_string());
    match (limit, swap) {
        (Some(limit), Some(swap)) => {
            // Memory may never be above both: what grows first depends on where they are.
            if set(memory, limit).is_err() {
                set(both, swap)?;
                set(memory, limit)?;
            }
            set(both, swap)?;
        }
        (Some(limit), None) => set(memory, limit)?,
        (None, Some(swap)) => set(both, swap)?,
        (None, None) => {}
    }
    if let Some(reservation) = limits.reservation.filter(|r| *r != 0) {
        set("memory.soft_limit_in_bytes", reservation)?;
    }
    if let Some(swappiness) = limits.swappiness {
        write(&path.join("memory.swappiness"), &swappiness.to_string())?;
    }
    if limits.disable_oom_killer == Some(true) {
        write(&path.join("memory.oom_control"), "1")?;
    }
    Ok(())
}

fn cpu(cgroups: &Cgroups, limits: &Cpu) -> Result<()> {
    let Cpu { shares, quota, burst, period, realtime_runtime, realtime_period, idle, cpus: _, mems: _ } =
        limits;
    let some = |value: Option<u64>| value.filter(|value| *value != 0);
    let quota = quota.filter(|quota| *quota != 0);
    let (shares, period, realtime_period) = (some(*shares), some(*period), some(*realtime_period));
    let realtime_runtime = realtime_runtime.filter(|runtime| *runtime != 0);
    let realtime = realtime_runtime.is_some() || realtime_period.is_some();
    let time = shares.is_some() || quota.is_some() || period.is_some() || burst.is_some() || idle.is_some();
    if !time && !realtime {
        return Ok(());
    }
    match find(cgroups, "cpu", "cpu.max")? {
        Place::V1(path) => {
            let set = |file: &str, value: Option<String>| {
                value.map_or(Ok(()), |value| write(&path.join(file), &value))
            };
            set("cpu.shares", shares.map(|v| v.to_string()))?;
            set("cpu.cfs_period_us", period.map(|v| v.to_string()))?;
            set("cpu.cfs_quota_us", quota.map(|v| v.to_string()))?;
            set("cpu.cfs_burst_us", burst.map(|v| v.to_string()))?;
            set("cpu.rt_period_us", realtime_period.map(|v| v.to_string()))?;
            set("cpu.rt_runtime_us", realtime_runtime.map(|v| v.to_string()))?;
            set("cpu.idle", idle.map(|v| v.to_string()))
        }
        Place::V2(_) if realtime => {
            Err(Error::host("limit of cpu", "v2 control groups have no real-time limits"))
        }
        Place::V2(path) => {
            if let Some(shares) = shares {
                write(&path.join("cpu.weight"), &v2::weight(shares).to_string())?;
            }
            if quota.is_some() || period.is_some() {
                let quota = quota.filter(|q| *q > 0).map_or_else(|| "max".to_owned(), |q| q.to_string());
                write(&path.join("cpu.max"), &format!("{quota} {}", period.unwrap_or(100_000)))?;
            }
            if let Some(burst) = burst {
                write(&path.join("cpu.max.burst"), &burst.to_string())?;
            }
            idle.map_or(Ok(()), |idle| write(&path.join("cpu.idle"), &idle.to_string()))
        }
    }
}

fn cpuset(cgroups: &Cgroups, limits: &Cpu) -> Result<()> {
    for (file, value) in [("cpuset.cpus", &limits.cpus), ("cpuset.mems", &limits.mems)] {
        let Some(value) = value.as_ref().filter(|value| !value.is_empty()) else { continue };
        match find(cgroups, "cpuset", file)? {
            Place::V1(path) | Place::V2(path) => write(&path.join(file), value)?,
        }
    }
    Ok(())
}

fn block_io(cgroups: &Cgroups, limits: &BlockIo) -> Result<()> {
    let tables: [(&str, &str, &[Throttle]); 4] = [
        ("blkio.throttle.read_bps_device", "rbps", &limits.throttle_read_bps_device),
        ("blkio.throttle.write_bps_device", "wbps", &limits.throttle_write_bps_device),
        ("blkio.throttle.read_iops_device", "riops", &limits.throttle_read_iops_device),
        ("blkio.throttle.write_iops_device", "wiops", &limits.throttle_write_iops_device),
    ];
    for (v1_file, v2_word, throttles) in tables {
        for Throttle { major, minor, rate } in throttles {
            match find(cgroups, "blkio", "io.max")? {
                Place::V1(path) => write(&path.join(v1_file), &format!("{major}:{minor} {rate}"))?,
                Place::V2(path) => write(&path.join("io.max"), &format!("{major}:{minor} {v2_word}={rate}"))?,
            }
        }
    }
    weights(cgroups, limits)
}

/// Which scheduler weighs decides which files there are.
fn weights(cgroups: &Cgroups, limits: &BlockIo) -> Result<()> {
    let leaf = limits.weight_device.iter().filter_map(|disk| disk.leaf_weight).chain(limits.leaf_weight);
    if leaf.into_iter().any(|weight| weight != 0) {
        return Err(Error::refused("limit of blkio leafWeight", "Linux has none since 5.0"));
    }
    let one = |weight: u16, disk: Option<(i64, i64)>| -> Result<()> {
        let (path, files): (&Path, [&str; 2]) = match (find(cgroups, "blkio", "io.max")?, disk.is_some()) {
            (Place::V1(path), false) => (path, ["blkio.bfq.weight", "blkio.weight"]),
            (Place::V1(path), true) => (path, ["blkio.bfq.weight_device", "blkio.weight_device"]),
            (Place::V2(path), false) => (path, ["io.bfq.weight", "io.weight"]),
            (Place::V2(path), true) => (path, ["io.bfq.weight", "io.bfq.weight"]),
        };
        let fault = "no scheduler of this host's disks weighs";
        let file = files.into_iter().find(|file| path.join(file).exists());
        let file = file.ok_or_else(|| Error::host("limit of blkio weight", fault))?;
        let value = match disk {
            Some((major, minor)) => format!("{major}:{minor} {weight}"),
            None if file == "io.weight" => {
                let scaled = 1 + (u64::from(weight.clamp(10, 1000)) - 10) * 9999 / 990;
                format!("default {scaled}")
            }
            None => weight.to_string(),
        };
        write(&path.join(file), &value)
    };
    if let Some(weight) = limits.weight.filter(|weight| *weight != 0) {
        one(weight, None)?;
    }
    for disk in &limits.weight_device {
        if let Some(weight) = disk.weight.filter(|weight| *weight != 0) {
            one(weight, Some((disk.major, disk.minor)))?;
        }
    }
    Ok(())
}
