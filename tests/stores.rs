//! Stores that are on no disk: on an overlay, as inside of most containers, and in memory.

use std::process::Command;

use crate::support::{Ended, copy_store, finish, strata};

/// Runs a script where its mounts are seen by nobody else. `$1` mounts, and what it mounts is at `m`, over or beside the folder
/// `lower` with a store; the script's `strata` is the program on the store there.
fn where_mounted(mount: &str, script: &str) -> Option<Ended> {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root");
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    for name in ["lower", "upper", "work", "m"] {
        std::fs::create_dir(folder.path().join(name)).unwrap();
    }
    copy_store(&folder.path().join("lower/store"))?;
    let program = strata().get_program().to_str().unwrap().to_owned();
    let script = format!(
        "set -e; {mount}; export STRATA_ROOT=$PWD/m/store; strata() {{ {program} \"$@\"; }}; \
         trap 'strata rm --force one >/dev/null 2>&1 || true' EXIT; {script}"
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", &script]).current_dir(folder.path());
    Some(finish(command))
}

const START: &str = "strata run -d --name one --isolation container debian -- sh -c 'echo kept > /x; exec sleep 1000' >/dev/null; \
     while ! strata exec one cat /x; do sleep 0.1; done 2>/dev/null";

#[test]
fn on_an_overlay_containers_write_to_memory_and_it_is_said() {
    let mount = "mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work none m";
    let build = "mkdir context; printf 'FROM debian\\nRUN echo built > /b && rm /etc/debian_version\\nRUN cat /b\\n' \
                 > context/Containerfile; strata image build -t built context >/dev/null; \
                 strata run --isolation container built -- sh -c 'cat /b; test -e /etc/debian_version || echo gone'";
    let Some(ended) = where_mounted(
        mount,
        &format!(
            "{START}; strata diff one || echo code $?; strata check | grep -c 'on an overlay' || true; {build}"
        ),
    ) else {
        return;
    };
    assert_eq!(ended.stdout, "kept\ncode 125\n1\nbuilt\ngone\n", "{ended:?}");
    let memory = "is on an overlay file system: what this container writes stays in memory";
    for said in [memory, "changes of one: the store is on an overlay"] {
        assert_eq!(ended.stderr.matches(said).count(), 1, "{said:?}: {ended:?}");
    }
}

#[test]
fn a_store_in_memory_keeps_what_containers_write() {
    let mount = "mount -t tmpfs none m; cp -a lower/store m/";
    let again = "strata diff one; strata kill one >/dev/null; strata wait one; strata start one >/dev/null; \
                 strata exec one cat /x";
    let Some(ended) = where_mounted(mount, &format!("{START}; {again}")) else { return };
    assert_eq!(ended.stdout, "kept\nA /x\n137\nkept\n", "{ended:?}");
    assert!(!ended.stderr.contains("overlay"), "{ended:?}");
}
