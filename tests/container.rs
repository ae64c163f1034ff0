//! The os layer: `strata oci` on bundles, hostile ones too, and `strata run --isolation container`.
//!
//! Bundles are made of the distribution's `busybox-static`. All of it needs root.

use std::process::Stdio;

use serde_json::{Value, json};

use crate::detached::Place;
use crate::support::bundle::Bundle;
use crate::support::{finish, run, start};

#[test]
fn a_bundle_runs_with_its_streams_and_exit_code() {
    let Some(bundle) = Bundle::new("echo out; echo err >&2; hostname; id -u; echo $$; exit 7") else {
        return;
    };
    let ended = bundle.run();
    assert_eq!(ended.code(), 7, "{ended:?}");
    assert_eq!(ended.stdout, "out\nstrata\n0\n1\n");
    assert_eq!(ended.stderr, "err\n");
    let left = bundle.folder.path().join("states").read_dir().unwrap().count();
    assert_eq!(left, 0, "states are left");
}

#[test]
fn a_container_goes_through_its_life() {
    let Some(mut bundle) = Bundle::new("trap 'exit 3' TERM; while :; do sleep 0.1; done") else { return };
    bundle.config["linux"]["cgroupsPath"] = json!(format!("/strata-test-{}", std::process::id()));
    bundle.write();
    let act = |arguments: &[&str]| finish(bundle.oci(arguments));
    let status = || {
        let state: Value = serde_json::from_str(&act(&["state", "life"]).stdout).unwrap();
        state["status"].as_str().unwrap().to_owned()
    };
    // The container keeps the streams it is made with.
    let mut create = bundle.oci(&["create", "life"]);
    assert!(create.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success());
    assert_eq!(status(), "created");
    act(&["create", "life"]).expect_failure(1, &["life", "exists"]);
    assert_eq!(act(&["start", "life"]).code(), 0);
    assert_eq!(status(), "running");
    act(&["start", "life"]).expect_failure(1, &["start", "running"]);
    act(&["delete", "life"]).expect_failure(1, &["delete", "running"]);
    let inside = act(&["exec", "life", "/bin/sh", "-c", "id -u; exit 5"]);
    assert_eq!((inside.code(), inside.stdout.as_str()), (5, "0\n"));
    act(&["exec", "life", "no-such"]).expect_failure(127, &["no-such"]);
    assert_eq!(act(&["pause", "life"]).code(), 0);
    assert_eq!(status(), "paused");
    assert_eq!(act(&["resume", "life"]).code(), 0);
    assert_eq!(act(&["update", "--pids-limit", "30", "life"]).code(), 0);
    assert_eq!(act(&["kill", "life", "KILL"]).code(), 0);
    while status() != "stopped" {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert_eq!(act(&["delete", "life"]).code(), 0);
    act(&["state", "life"]).expect_failure(1, &["life", "does not exist"]);
}

#[test]
fn what_a_bundle_does_not_say_is_not_given() {
    let script = "grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status; ls /sys/firmware; \
                  echo x > /proc/sys/kernel/hostname; cat /proc/keys; touch /x; dd if=/dev/vda of=/dev/null count=1";
    let Some(mut bundle) = Bundle::new(script) else { return };
    bundle.config["process"]["capabilities"] = json!({});
    bundle.config["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        { "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38 } ] });
    let ended = bundle.run();
    assert!(ended.stdout.contains("CapEff:\t0000000000000000"), "{ended:?}");
    assert!(ended.stdout.contains("NoNewPrivs:\t1") && ended.stdout.contains("Seccomp:\t2"), "{ended:?}");
    assert_eq!(ended.stdout.lines().count(), 3, "{ended:?}");
    assert!(ended.stderr.contains("/x: Read-only file system"), "{ended:?}");
}

#[test]
fn parameters_of_the_host_are_not_set() {
    let Some(mut bundle) = Bundle::new("true") else { return };
    bundle.config["linux"]["sysctl"] = json!({ "kernel.core_pattern": "|/x" });
    bundle.run().expect_failure(1, &["kernel.core_pattern", "host's"]);
    bundle.config["linux"]["sysctl"] = json!({ "net.../../kernel/core_pattern": "|/x" });
    assert_ne!(bundle.run().code(), 0);
    bundle.config["linux"]["sysctl"] = json!({ "net.ipv4.ip_forward": "1" });
    assert_eq!(bundle.run().code(), 0);
}

#[test]
fn a_user_namespace_maps_its_root_to_an_ordinary_user() {
    let Some(mut bundle) = Bundle::new("id -u; cat /proc/self/uid_map; mount | grep -c proc") else { return };
    // The root must be reachable for that user.
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(bundle.folder.path(), open).unwrap();
    for folder in ["", "proc", "sys", "dev"] {
        let folder = bundle.rootfs().join(folder);
        std::fs::create_dir_all(&folder).unwrap();
        std::os::unix::fs::chown(&folder, Some(100_000), Some(100_000)).unwrap();
    }
    bundle.config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "user" }));
    let map = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
    bundle.config["linux"]["uidMappings"] = map.clone();
    bundle.config["linux"]["gidMappings"] = map;
    let ended = bundle.run();
    assert_eq!(ended.code(), 0, "{ended:?}");
    let mut lines = ended.stdout.lines();
    assert_eq!(lines.next(), Some("0"));
    let map: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!(map, ["0", "100000", "65536"]);
}

#[test]
fn an_image_runs_as_a_container() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: containers are tested as root");
        return;
    }
    let script = "id -u; pwd; hostname; echo $A; exit 9";
    let arguments =
        ["--isolation", "container", "-e", "A=b", "-w", "/var/tmp", "debian", "--", "sh", "-c", script];
    let Some(command) = run(&arguments) else { return };
    let ended = finish(command);
    assert_eq!((ended.code(), ended.stdout.as_str()), (9, "0\n/var/tmp\ndebian\nb\n"), "{ended:?}");
    let Some(command) = run(&["--isolation", "container", "debian", "--", "no-such"]) else { return };
    finish(command).expect_failure(127, &["no-such"]);
    let Some(command) = run(&["--isolation", "container", "debian", "--", "/etc/passwd"]) else { return };
    finish(command).expect_failure(126, &["/etc/passwd"]);
}

#[test]
fn both_isolations_show_the_same_files() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: containers are tested as root");
        return;
    }
    // The guest's agent writes host name and machine id to /etc, a container has the image's.
    let list = "find / -xdev -path /proc -prune -o -path /dev -prune -o -path /sys -prune -o \
                -path /run -prune -o -printf '%p %y %m %U %G %s %l\\n' | grep -vE '^/(etc)? d|^/etc/(hostname|hosts|machine-id|resolv.conf) ' | sort";
    let listing = |isolation| {
        let ended = finish(run(&["--isolation", isolation, "debian", "--", "sh", "-c", list])?);
        assert_eq!(ended.code(), 0, "{isolation}: {}", ended.stderr);
        Some(ended.stdout)
    };
    let (Some(container), Some(vm)) = (listing("container"), listing("vm")) else { return };
    let (container, vm): (Vec<&str>, Vec<&str>) = (container.lines().collect(), vm.lines().collect());
    let differ: Vec<_> = container.iter().filter(|line| !vm.contains(line)).take(5).collect();
    assert!(
        differ.is_empty() && container.len() == vm.len(),
        "{} and {}: {differ:?}",
        container.len(),
        vm.len()
    );
}

#[test]
fn one_in_the_foreground_with_a_name_is_reached_by_it() {
    let Some(place) = Place::each().find(|place| place.isolation == "container") else { return };
    let script = "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.1; done";
    let run = ["run", "--name", "front", "--isolation", "container", "debian", "--", "sh", "-c", script];
    let mut running = start(place.command(&run));
    running.wait_for("up");
    assert!(place.strata(&["ps"]).contains("front"));
    place.try_to(&run).expect_failure(125, &["front", "another workload has it"]);
    assert_eq!(place.strata(&["exec", "front", "sh", "-c", "cat /proc/1/comm"]), "sh\n");
    assert!(place.strata(&["top", "front"]).contains("sleep 0.1"));
    place.strata(&["pause", "front"]);
    place.strata(&["unpause", "front"]);
    place.strata(&["stop", "front"]);
    let ended = running.finish();
    assert_eq!((ended.code(), ended.stdout.as_str()), (3, "up\nbye\n"), "{ended:?}");
    assert_eq!(place.strata(&["ps", "-aq"]), "");
}
