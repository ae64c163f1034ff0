//! `config.md`, `uidMappings` and `gidMappings` of mounts, and their options `idmap` and `ridmap`.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

use serde_json::{Value, json};

use crate::support::bundle::Bundle;

/// A bundle with a folder `source` whose file is 1000's, of group 2000.
fn with_source(script: &str) -> Option<Bundle> {
    let bundle = Bundle::new(script)?;
    std::fs::create_dir(bundle.path("source")).unwrap();
    std::fs::write(bundle.path("source/file"), "text\n").unwrap();
    chown(bundle.path("source/file"), Some(1000), Some(2000)).unwrap();
    Some(bundle)
}

fn range(inside: u32, outside: u32, size: u32) -> Value {
    json!([{ "containerID": inside, "hostID": outside, "size": size }])
}

/// Gives the last mount mappings.
fn map(bundle: &mut Bundle, uids: Value, gids: Value) {
    let mount = bundle.config["mounts"].as_array_mut().unwrap().last_mut().unwrap();
    mount["uidMappings"] = uids;
    mount["gidMappings"] = gids;
}

/// A user namespace of its own from 100000 on, to whose root all folders of the root belong that are mounted on.
fn of_a_user_namespace(bundle: &mut Bundle) {
    std::fs::set_permissions(bundle.folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    for folder in ["", "proc", "sys", "dev"] {
        let folder = bundle.rootfs().join(folder);
        std::fs::create_dir_all(&folder).unwrap();
        chown(&folder, Some(100_000), Some(100_000)).unwrap();
    }
    bundle.config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "user" }));
    bundle.config["linux"]["uidMappings"] = range(0, 100_000, 65536);
    bundle.config["linux"]["gidMappings"] = range(0, 100_000, 65536);
}

#[test]
fn a_mount_shows_other_owners_and_writes_theirs() {
    let script =
        "stat -c %u:%g /bound/file; touch /bound/made; chown 5:6 /bound/made; stat -c %u:%g /bound/made";
    let Some(mut bundle) = with_source(script) else { return };
    let chowns = json!(["CAP_CHOWN"]);
    for set in ["bounding", "effective", "permitted"] {
        bundle.config["process"]["capabilities"][set] = chowns.clone();
    }
    // A folder whose owner is mapped to nobody cannot be written.
    chown(bundle.path("source"), Some(1000), Some(2000)).unwrap();
    for options in [&["bind", "idmap"][..], &["rbind", "ridmap"], &["rbind", "idmap"], &["bind"]] {
        let before = bundle.config.clone();
        bundle.add_mount("/bound", "bind", "source", options);
        map(&mut bundle, range(1000, 0, 10), range(2000, 0, 10));
        assert_eq!(bundle.output(), "0:0\n5:6\n", "{options:?}");
        let made = bundle.path("source/made").metadata().unwrap();
        assert_eq!((made.uid(), made.gid()), (1005, 2006), "{options:?}");
        std::fs::remove_file(bundle.path("source/made")).unwrap();
        bundle.config = before;
    }
}

#[test]
fn without_mappings_of_its_own_a_mount_has_those_of_the_container() {
    let script = "id -u; stat -c %u:%g /bound/file /plain/file; cat /proc/self/mountinfo";
    let Some(mut bundle) = with_source(script) else { return };
    // A bundle without a user namespace has none to give.
    bundle.add_mount("/bound", "bind", "source", &["bind", "idmap", "ro"]);
    bundle.refused(&["/bound", "user namespace"]);
    of_a_user_namespace(&mut bundle);
    bundle.add_mount("/plain", "bind", "source", &["bind"]);
    let shown = bundle.output();
    // Seen from the container 1000 of the disk is 1000, where it is mapped, and nobody where it is not.
    assert!(shown.starts_with("0\n1000:2000\n65534:65534\n"), "{shown}");
    let line = shown.lines().find(|line| line.contains(" /bound ")).unwrap();
    assert!(line.split(' ').nth(5).unwrap().split(',').any(|option| option == "idmapped"), "{line}");
    assert!(line.split(' ').nth(5).unwrap().starts_with("ro"), "{line}");
}

#[test]
fn mappings_that_cannot_be_had_are_refused() {
    let Some(mut bundle) = with_source("true") else { return };
    let config = bundle.config.clone();
    bundle.add_mount("/bound", "bind", "source", &["bind", "idmap"]);
    map(&mut bundle, range(0, 1, 2), json!([]));
    bundle.refused(&["/bound", "uidMappings and gidMappings"]);
    map(&mut bundle, json!([]), range(0, 1, 2));
    bundle.refused(&["/bound", "uidMappings and gidMappings"]);
    map(&mut bundle, range(0, 1, 0), range(0, 1, 2));
    bundle.refused(&["uid_map"]);
    bundle.config = config.clone();
    bundle.add_mount("/bound", "tmpfs", "tmpfs", &["idmap"]);
    map(&mut bundle, range(0, 1, 2), range(0, 1, 2));
    bundle.refused(&["/bound", "bound"]);
    // A file system that belongs to the kernel has no other owners.
    bundle.config = config;
    bundle.add_mount("/bound", "bind", "/proc", &["bind", "idmap"]);
    map(&mut bundle, range(0, 1, 2), range(0, 1, 2));
    bundle.refused(&["/bound", "file system"]);
}
