//! `config-linux.md`, control groups: where, and every limit as the container itself reads it in its own group.
//!
//! A limit whose controller this host does not have must be an error.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::support::bundle::Bundle;
use crate::support::finish;

/// Where the v2 hierarchy is mounted, on this host and in its containers.
fn v2_root() -> &'static str {
    let hybrid = "/sys/fs/cgroup/unified";
    if Path::new(hybrid).join("cgroup.procs").exists() { hybrid } else { "/sys/fs/cgroup" }
}

/// Whether the host has a v1 hierarchy of a controller, a v2 one with it, or none.
fn has(controller: &str) -> Option<&'static str> {
    if Path::new("/sys/fs/cgroup").join(controller).join("cgroup.procs").exists() {
        return Some("v1");
    }
    let v2 = std::fs::read_to_string(format!("{}/cgroup.controllers", v2_root())).unwrap_or_default();
    v2.split_whitespace().any(|name| name == controller).then_some("v2")
}

/// Runs with limits and compares files of the group, each by its name in v1 and in v2; says so if there is no controller.
fn limited(controller: &str, resources: Value, files: &[(&str, &str, &str, &str)]) {
    let Some(version) = has(controller) else {
        let Some(mut bundle) = Bundle::new("true") else { return };
        bundle.config["linux"]["resources"] = resources;
        bundle.refused(&["controller"]);
        return println!(
            "skipped: this host has no controller {controller}; that a limit of it is refused was tried"
        );
    };
    for (v1, v1_value, v2, v2_value) in files {
        let (file, value) = if version == "v1" {
            (format!("/sys/fs/cgroup/{controller}/{v1}"), v1_value)
        } else {
            (format!("{}/{v2}", v2_root()), v2_value)
        };
        let Some(mut bundle) = Bundle::new(&format!("cat {file}")) else { return };
        bundle.config["linux"]["resources"] = resources.clone();
        assert_eq!(bundle.output().trim(), *value, "{file}");
    }
}

#[test]
fn memory_is_limited() {
    let limits =
        json!({ "memory": { "limit": 67_108_864, "reservation": 33_554_432, "checkBeforeUpdate": true } });
    limited(
        "memory",
        limits,
        &[
            ("memory.limit_in_bytes", "67108864", "memory.max", "67108864"),
            ("memory.soft_limit_in_bytes", "33554432", "memory.low", "33554432"),
        ],
    );
    if has("memory") == Some("v1") {
        let files = [("memory.swappiness", "7", "", ""), ("memory.oom_control", "1", "", "")];
        limited("memory", json!({ "memory": { "swappiness": 7 } }), &files[..1]);
        let Some(mut bundle) = Bundle::new("grep oom_kill_disable /sys/fs/cgroup/memory/memory.oom_control")
        else {
            return;
        };
        bundle.config["linux"]["resources"] =
            json!({ "memory": { "limit": 67_108_864, "disableOOMKiller": true } });
        assert_eq!(bundle.output(), "oom_kill_disable 1\n");
    }
}

#[test]
fn who_takes_more_memory_than_its_limit_is_killed() {
    if has("memory").is_none() {
        return println!("skipped: this host has no controller memory");
    }
    let Some(mut bundle) = Bundle::new("head -c 200000000 /dev/zero | sort > /dev/null; echo ended") else {
        return;
    };
    bundle.config["linux"]["resources"] = json!({ "memory": { "limit": 20_000_000, "swap": 20_000_000 } });
    let ended = bundle.run();
    // The shell or its child, as the kernel chose.
    assert!(ended.status.code() == Some(137) || ended.stderr.contains("Killed"), "{ended:?}");
}

#[test]
fn processor_time_is_limited() {
    limited(
        "cpu",
        json!({ "cpu": { "shares": 512, "quota": 50_000, "period": 200_000 } }),
        &[
            ("cpu.shares", "512", "cpu.weight", "20"),
            ("cpu.cfs_quota_us", "50000", "cpu.max", "50000 200000"),
            ("cpu.cfs_period_us", "200000", "cpu.max", "50000 200000"),
        ],
    );
    limited("cpu", json!({ "cpu": { "quota": -1 } }), &[("cpu.cfs_quota_us", "-1", "cpu.max", "max 100000")]);
    limited("cpu", json!({ "cpu": { "idle": 1 } }), &[("cpu.idle", "1", "cpu.idle", "1")]);
    limited(
        "cpuset",
        json!({ "cpu": { "cpus": "0", "mems": "0" } }),
        &[("cpuset.cpus", "0", "cpuset.cpus", "0"), ("cpuset.mems", "0", "cpuset.mems", "0")],
    );
    let Some(mut bundle) = Bundle::new("true") else { return };
    // Real-time limits: where the kernel has none they are refused, and never passed over.
    bundle.config["linux"]["resources"] =
        json!({ "cpu": { "realtimeRuntime": 1_000_000_000, "realtimePeriod": 7 } });
    bundle.refused(&["cpu"]);
    bundle.config["linux"]["resources"] = json!({ "cpu": { "cpus": "nonsense" } });
    bundle.refused(&["cpuset"]);
}

#[test]
fn the_number_of_tasks_is_limited() {
    limited("pids", json!({ "pids": { "limit": 23 } }), &[("pids.max", "23", "pids.max", "23")]);
    limited("pids", json!({ "pids": { "limit": -1 } }), &[("pids.max", "max", "pids.max", "max")]);
    if has("pids").is_none() {
        return;
    }
    let Some(mut bundle) = Bundle::new("for n in 1 2 3 4 5 6 7 8; do sleep 5 & done; echo all") else {
        return;
    };
    bundle.config["linux"]["resources"] = json!({ "pids": { "limit": 5 } });
    let ended = bundle.run();
    assert!(ended.stderr.contains("fork") && !ended.stdout.contains("all"), "{ended:?}");
}

#[test]
fn disks_are_throttled() {
    let Some(version) = has("blkio").or(has("io")) else {
        return limited("blkio", json!({ "blockIO": { "weight": 500 } }), &[]);
    };
    // Of any disk that is there.
    let disks = std::fs::read_dir("/sys/block").unwrap().flatten();
    let dev = disks.filter_map(|disk| std::fs::read_to_string(disk.path().join("dev")).ok()).next();
    let Some(dev) = dev else { return println!("skipped: this host has no disk") };
    let (major, minor) = dev.trim().split_once(':').unwrap();
    let row = |rate: u64| json!([{ "major": major.parse::<u32>().unwrap(), "minor": minor.parse::<u32>().unwrap(), "rate": rate }]);
    let limits = json!({ "blockIO": {
        "throttleReadBpsDevice": row(1_000_000), "throttleWriteBpsDevice": row(2_000_000),
        "throttleReadIOPSDevice": row(300), "throttleWriteIOPSDevice": row(400),
    } });
    let value = |number: &str| format!("{} {number}", dev.trim());
    if version == "v1" {
        for (file, number) in
            [("read_bps", "1000000"), ("write_bps", "2000000"), ("read_iops", "300"), ("write_iops", "400")]
        {
            let file = format!("blkio.throttle.{file}_device");
            limited("blkio", limits.clone(), &[(&file, &value(number), "", "")]);
        }
    } else {
        let all = value("rbps=1000000 wbps=2000000 riops=300 wiops=400");
        limited("io", limits, &[("", "", "io.max", &all)]);
    }
}

#[test]
fn weights_of_disks_are_set_or_refused() {
    let Some(mut bundle) =
        Bundle::new("cat /sys/fs/cgroup/blkio/blkio.*weight* /sys/fs/cgroup/io.*weight 2>/dev/null; true")
    else {
        return;
    };
    bundle.config["linux"]["resources"] = json!({ "blockIO": { "weight": 500 } });
    let ended = bundle.run();
    match ended.code() {
        1 => ended.expect_failure(1, &["blkio"]),
        _ => assert!(ended.stdout.contains("500") || ended.stdout.contains("default"), "{ended:?}"),
    }
    let device = json!([{ "major": 7, "minor": 0, "weight": 500 }]);
    bundle.config["linux"]["resources"] = json!({ "blockIO": { "weightDevice": device } });
    let ended = bundle.run();
    if ended.code() == 1 {
        ended.expect_failure(1, &["blkio"]);
    } else {
        assert!(ended.stdout.contains("7:0 500"), "{ended:?}");
    }
    bundle.config["linux"]["resources"] = json!({ "blockIO": { "leafWeight": 500 } });
    bundle.refused(&["leafWeight"]);
}

#[test]
fn huge_pages_are_limited() {
    let limits = json!({ "hugepageLimits": [{ "pageSize": "2MB", "limit": 4_194_304 }] });
    let file = ("hugetlb.2MB.limit_in_bytes", "4194304", "hugetlb.2MB.max", "4194304");
    limited("hugetlb", limits, &[file]);
    let Some(mut bundle) = Bundle::new("true") else { return };
    let limits = json!({ "hugepageLimits": [{ "pageSize": "../../x", "limit": 1 }] });
    bundle.config["linux"]["resources"] = limits;
    bundle.refused(&["hugetlb"]);
}

#[test]
fn files_of_the_v2_hierarchy_are_written_as_they_are_or_refused() {
    let Some(mut bundle) = Bundle::new("true") else { return };
    bundle.config["linux"]["resources"] = json!({ "unified": { "no.such_file": "1" } });
    bundle.refused(&["no.such_file"]);
    bundle.config["linux"]["resources"] = json!({ "unified": { "../escape.max": "1" } });
    bundle.refused(&["escape"]);
    bundle.config["linux"]["resources"] = json!({ "unified": { "cgroup.max.depth": "3" } });
    let places = ["/sys/fs/cgroup/unified/cgroup.max.depth", "/sys/fs/cgroup/cgroup.max.depth"];
    bundle.config["process"]["args"] =
        json!(["/bin/sh", "-c", format!("cat {} 2>/dev/null", places.join(" "))]);
    let ended = bundle.run();
    if ended.code() == 1 && ended.stderr.contains("no v2") {
        return println!("skipped: this host has no v2 hierarchy");
    }
    assert!(ended.stdout.ends_with("3\n"), "{ended:?}");
}

#[test]
fn rules_for_devices_count_in_their_order() {
    let script = "for d in null zero random; do head -c 1 /dev/$d >/dev/null 2>&1 && echo $d; done; \
                  mknod /tmp/d b 7 0; dd if=/tmp/d of=/dev/null count=0 2>&1; echo $?";
    let Some(mut bundle) = Bundle::new(script) else { return };
    bundle.config["process"]["capabilities"]["bounding"] = json!(["CAP_MKNOD"]);
    bundle.config["process"]["capabilities"]["permitted"] = json!(["CAP_MKNOD"]);
    bundle.config["process"]["capabilities"]["effective"] = json!(["CAP_MKNOD"]);
    bundle.add_mount("/tmp", "tmpfs", "tmpfs", &[]);
    let rule = |allow: bool, kind: &str, major: i64, access: &str| json!({ "allow": allow, "type": kind, "major": major, "access": access });
    let deny_all = json!({ "allow": false, "access": "rwm" });
    let cases = [
        // All is forbidden, but for what every container has.
        (json!([deny_all]), "Operation not permitted"),
        (json!([deny_all, rule(true, "b", 7, "m")]), "Operation not permitted"),
        // Later ones win.
        (json!([deny_all, rule(true, "b", 7, "rwm"), rule(false, "b", 7, "r")]), "Operation not permitted"),
    ];
    for (rules, says) in cases {
        bundle.config["linux"]["resources"] = json!({ "devices": rules });
        let ended = bundle.run();
        assert!(
            ended.stdout.starts_with("null\nzero\nrandom\n") || ended.stdout.starts_with("zero\nrandom\n"),
            "{ended:?}"
        );
        let all = format!("{}{}", ended.stdout, ended.stderr);
        assert!(all.contains(says) && ended.stdout.ends_with("1\n"), "{rules}: {ended:?}");
    }
    bundle.config["linux"]["resources"] = json!({ "devices": [deny_all, rule(true, "b", 7, "rwm")] });
    let ended = bundle.run();
    assert!(!ended.stdout.contains("not permitted") && !ended.stderr.contains("not permitted"), "{ended:?}");
    bundle.config["linux"]["resources"] = json!({ "devices": [rule(true, "z", 7, "r")] });
    bundle.refused(&["\"z\""]);
    bundle.config["linux"]["resources"] = json!({ "devices": [rule(true, "b", 7, "q")] });
    bundle.refused(&["q"]);
}

#[test]
fn the_same_path_leads_to_the_same_place() {
    let Some(mut bundle) = Bundle::new("while :; do sleep 0.05; done") else { return };
    let name = bundle.id();
    bundle.config["linux"]["cgroupsPath"] = json!(format!("/{name}/deep"));
    let container = bundle.create(&[]);
    let pid = container.state()["pid"].as_i64().unwrap();
    let own = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert!(own.lines().any(|line| line.ends_with(&format!(":/{name}/deep"))), "{own}");
    drop(container);
    for group in std::fs::read_dir("/sys/fs/cgroup")
        .unwrap()
        .flatten()
        .map(|e| e.path())
        .chain(["/sys/fs/cgroup".into()])
    {
        assert!(!group.join(&name).join("deep").exists(), "{group:?}");
        // Folders above may be others' too, and stay.
        let _ = std::fs::remove_dir(group.join(&name));
    }
    for wrong in ["/../x", "/", "a/../../b"] {
        bundle.config["linux"]["cgroupsPath"] = json!(wrong);
        bundle.refused(&["cgroup path"]);
    }
}

#[test]
fn a_group_that_others_are_in_is_left_alone() {
    let Some(mut first) = Bundle::new("while :; do sleep 0.05; done") else { return };
    let place = json!(format!("/{}", first.id()));
    first.config["linux"]["cgroupsPath"] = place.clone();
    let holder = first.create(&[]);
    holder.start();
    let Some(mut second) = Bundle::new("true") else { return };
    second.config["linux"]["cgroupsPath"] = place;
    second.refused(&["control group", "processes"]);
    assert_eq!(holder.status(), "running");
}

#[test]
fn limits_are_changed_while_it_runs() {
    let (Some(pids), Some(memory)) = (has("pids"), has("memory")) else {
        return println!("skipped: this host has no controller pids or memory");
    };
    let Some(bundle) = Bundle::new("while :; do sleep 0.05; done") else { return };
    let container = bundle.create(&[]);
    container.start();
    let id = container.id.as_str();
    bundle.good(&[
        "update",
        "--pids-limit",
        "31",
        "--memory",
        "50000000",
        "--memory-reservation",
        "1000000",
        id,
    ]);
    let file = |version, controller: &str, v1: &str, v2: &str| {
        if version == "v1" {
            format!("/sys/fs/cgroup/{controller}/{v1}")
        } else {
            format!("{}/{v2}", v2_root())
        }
    };
    let shown = |path: &str| bundle.good(&["exec", id, "cat", path]).trim().to_owned();
    let (tasks, bytes) = (
        file(pids, "pids", "pids.max", "pids.max"),
        file(memory, "memory", "memory.limit_in_bytes", "memory.max"),
    );
    assert_eq!(shown(&tasks), "31");
    assert_eq!(shown(&bytes), (50_000_000_u64 / 4096 * 4096).to_string());
    let limits = json!({ "pids": { "limit": 32 } });
    std::fs::write(bundle.path("limits"), limits.to_string()).unwrap();
    bundle.good(&["update", "--resources", bundle.path("limits").to_str().unwrap(), id]);
    assert_eq!(shown(&tasks), "32");
    std::fs::write(bundle.path("limits"), "nonsense").unwrap();
    bundle.act(&["update", "--resources", "limits", id]).expect_failure(1, &["limits"]);
}

/// What a host with both kinds looks like where v2 is alone.
const V2_ONLY: &str = "umount --recursive /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup || exit 9; ";

#[test]
fn limits_hold_on_v2_whose_own_group_has_processes() {
    // This process's group cannot hand its controllers on: the container's goes beside it.
    let Some(mut bundle) = Bundle::new("true") else { return };
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let v2 = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"));
    let Some(v2) = v2.and_then(|line| line.split(' ').nth(1)) else {
        return println!("skipped: no v2 control groups");
    };
    let there = std::fs::read_to_string(std::path::Path::new(v2).join("cgroup.controllers")).unwrap();
    let files = [("pids", "pids.max", "77"), ("hugetlb", "hugetlb.2MB.max", "4194304")];
    let has = |name: &str| there.split_whitespace().any(|controller| controller == name);
    let Some((_, file, value)) = files.into_iter().find(|row| has(row.0)) else {
        return println!("skipped: the v2 hierarchy has no controller to try");
    };
    bundle.config["linux"]["resources"] = json!({ "unified": { file: value } });
    bundle.config["process"]["args"] =
        json!(["/bin/sh", "-c", format!("cat /sys/fs/cgroup/{file}; cat /proc/self/cgroup")]);
    bundle.write();
    let script = "g=/sys/fs/cgroup/$1-above; mkdir -p $g/own && echo $$ > $g/own/cgroup.procs || exit 9; \
                  \"$0\" oci --root states run \"$1\"; code=$?; echo $$ > /sys/fs/cgroup/cgroup.procs; \
                  ls $g | grep -c test-; rmdir $g/own $g; exit $code";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", &format!("{V2_ONLY}{script}")]);
    command.arg(&bundle.program).arg(bundle.id()).current_dir(bundle.folder.path());
    let ended = finish(command);
    let lines: Vec<&str> = ended.stdout.lines().collect();
    // What it has, its own place as it sees it, and that nothing of it is left.
    assert_eq!((lines.first(), lines.last()), (Some(&value), Some(&"0")), "{ended:?}");
    assert_eq!(ended.code(), 0, "{ended:?}");
}

#[test]
fn limits_that_v2_does_not_have_are_refused_there() {
    let Some(mut bundle) = Bundle::new("true") else { return };
    let refused = [
        (json!({ "pids": { "limit": 5 } }), "pids"),
        (json!({ "memory": { "limit": 1 << 26 } }), "memory"),
        (json!({ "cpu": { "shares": 100 } }), "cpu"),
    ];
    let hidden = std::fs::read_to_string("/proc/self/mounts").unwrap().contains(" cgroup rw");
    if !hidden {
        return println!("skipped: a host whose v2 hierarchy has these controllers");
    }
    for (resources, word) in refused {
        bundle.config["linux"]["resources"] = resources;
        bundle.write();
        let mut command = Command::new("unshare");
        let script = format!("{V2_ONLY}exec \"$0\" oci --root states run \"$1\"");
        command.args(["--mount", "--propagation", "private", "sh", "-c", &script]);
        command.arg(&bundle.program).arg(bundle.id()).current_dir(bundle.folder.path());
        let ended = finish(command);
        ended.expect_failure(1, &["limit", word]);
        assert!(ended.stderr.contains("next: strata check"), "{ended:?}");
        assert_eq!(bundle.path("states").read_dir().unwrap().count(), 0);
    }
}
