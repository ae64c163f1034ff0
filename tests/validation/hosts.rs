//! Hosts that give less: an ordinary user, control groups that cannot be written, no namespaces left.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use serde_json::json;

use crate::support::bundle::Bundle;
use crate::support::{Ended, finish};

/// An ordinary user nobody else is.
const USER: u32 = 43_210;

/// Runs a shell in a mount namespace of its own; the program and the container's name are `$0` and `$1`.
fn shell(bundle: &Bundle, script: &str) -> Ended {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", script]);
    command.arg(&bundle.program).arg(bundle.id()).current_dir(bundle.folder.path());
    finish(command)
}

/// A bundle of an ordinary user who has 1000 further ids, and what makes the host know that.
fn of_a_user(script: &str) -> Option<Bundle> {
    let mut bundle = Bundle::new(script)?;
    for tool in ["/usr/bin/newuidmap", "/usr/bin/setpriv"] {
        if !std::path::Path::new(tool).exists() {
            println!("skipped: no {tool} (Debian packages uidmap and util-linux)");
            return None;
        }
    }
    let copy = bundle.path("strata-copy");
    std::fs::copy(&bundle.program, &copy).unwrap();
    bundle.program = copy;
    std::fs::set_permissions(bundle.folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    for file in ["subuid", "subgid"] {
        std::fs::write(bundle.path(file), "stratatest:300000:1000\n").unwrap();
    }
    for (file, line) in [("passwd", "stratatest:x:43210:43210::/:/bin/sh"), ("group", "stratatest:x:43210:")]
    {
        let all = std::fs::read_to_string(format!("/etc/{file}")).unwrap();
        std::fs::write(bundle.path(file), format!("{all}{line}\n")).unwrap();
    }
    std::fs::remove_file(bundle.path("config.json")).unwrap();
    let made = as_the_user(&bundle, "\"$0\" oci spec --rootless && echo made");
    assert_eq!(made.stdout, "made\n", "{made:?}");
    let text = std::fs::read(bundle.path("config.json")).unwrap();
    let process = bundle.config["process"].clone();
    bundle.config = serde_json::from_slice(&text).unwrap();
    bundle.config["process"] = process;
    Some(bundle)
}

/// Runs a script as the ordinary user, who owns the bundle.
fn as_the_user(bundle: &Bundle, script: &str) -> Ended {
    let host = "for f in subuid subgid passwd group; do [ -e /etc/$f ] || touch /etc/$f; mount --bind $f /etc/$f || exit 9; done; \
                chown -R 43210:43210 .; \
                exec setpriv --reuid 43210 --regid 43210 --clear-groups env HOME=/ sh -c";
    shell(bundle, &format!("{host} '{script}' \"$0\" \"$1\""))
}

#[test]
fn an_ordinary_user_runs_containers() {
    let script = "id -u; id -g; cat /proc/self/uid_map; grep CapEff /proc/self/status; touch /made; hostname";
    let Some(mut bundle) = of_a_user(script) else { return };
    bundle.config["root"]["readonly"] = json!(false);
    bundle.write();
    let run = "\"$0\" oci --root states run \"$1\"";
    let ended = as_the_user(&bundle, run);
    let words: Vec<&str> = ended.stdout.split_whitespace().collect();
    // Its capabilities are those of the config: in its own namespace they are all its to give.
    let wanted = ["0", "0", "0", "43210", "1", "CapEff:", "0000000020000420", "strata"];
    assert_eq!((words, ended.code()), (wanted.to_vec(), 0), "{ended:?}");
    let made = std::os::unix::fs::MetadataExt::uid(&bundle.rootfs().join("made").metadata().unwrap());
    assert_eq!(made, USER);
    // It cannot have what is the host's.
    bundle.config["linux"]["resources"] = json!({ "pids": { "limit": 5 } });
    bundle.write();
    let ended = as_the_user(&bundle, run);
    ended.expect_failure(1, &["control group"]);
}

#[test]
fn an_ordinary_user_has_further_ids_by_newuidmap() {
    let script = "id -u; id -G; cat /proc/self/uid_map; touch /tmp/made; stat -c %u:%g /tmp/made";
    let Some(mut bundle) = of_a_user(script) else { return };
    let map = json!([{ "containerID": 0, "hostID": USER, "size": 1 },
                     { "containerID": 1, "hostID": 300_000, "size": 1000 }]);
    bundle.config["linux"]["uidMappings"] = map.clone();
    bundle.config["linux"]["gidMappings"] = map;
    bundle.config["process"]["user"] = json!({ "uid": 7, "gid": 8, "additionalGids": [9] });
    bundle.add_mount("/tmp", "tmpfs", "tmpfs", &["mode=1777"]);
    bundle.write();
    let run = "\"$0\" oci --root states run \"$1\"";
    let ended = as_the_user(&bundle, run);
    let words: Vec<&str> = ended.stdout.split_whitespace().collect();
    let wanted = ["7", "8", "9", "0", "43210", "1", "1", "300000", "1000", "7:8"];
    assert_eq!((words, ended.code()), (wanted.to_vec(), 0), "{ended:?}");
    // More than it was given.
    bundle.config["linux"]["uidMappings"][1]["size"] = json!(1001);
    bundle.write();
    as_the_user(&bundle, run).expect_failure(1, &["newuidmap"]);
}

#[test]
fn an_ordinary_user_without_a_user_namespace_is_told() {
    let Some(mut bundle) = of_a_user("true") else { return };
    bundle.without_namespace("user");
    for field in ["uidMappings", "gidMappings"] {
        bundle.config["linux"].as_object_mut().unwrap().remove(field);
    }
    bundle.write();
    let ended = as_the_user(&bundle, "\"$0\" oci --root states run \"$1\"");
    ended.expect_failure(1, &["namespaces", "user namespace"]);
}

#[test]
fn control_groups_that_cannot_be_written_matter_where_there_are_limits() {
    let Some(mut bundle) = Bundle::new("echo ran") else { return };
    let script = "grep ' /sys/fs/cgroup' /proc/self/mountinfo | cut -d' ' -f5 | while read p; do \
                  mount -o remount,bind,ro $p || exit 9; done; exec \"$0\" oci --root states run \"$1\"";
    bundle.config["linux"]["resources"] = json!({ "pids": { "limit": 5 } });
    bundle.write();
    shell(&bundle, script).expect_failure(1, &["control group", "Read-only"]);
    assert_eq!(bundle.path("states").read_dir().unwrap().count(), 0);
    bundle.config["linux"]["resources"] = json!({});
    bundle.write();
    let ended = shell(&bundle, script);
    assert_eq!((ended.code(), ended.stdout.as_str()), (0, "ran\n"), "{ended:?}");
}

#[test]
fn a_host_without_room_for_namespaces_is_named() {
    let Some(bundle) = Bundle::new("true") else { return };
    bundle.write();
    // The limit is a user namespace's own: the host's is left alone.
    let mut command = Command::new("unshare");
    let script = "echo 0 > /proc/sys/user/max_ipc_namespaces && exec \"$0\" oci --root states run \"$1\"";
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script]);
    command.arg(&bundle.program).arg(bundle.id()).current_dir(bundle.folder.path());
    let ended = finish(command);
    ended.expect_failure(1, &["namespaces", "ipc", "max_*_namespaces"]);
}
