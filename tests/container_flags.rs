//! `strata run --isolation container`: what each of its flags does, seen from inside.

use crate::support::{Ended, finish, run, strata};

/// Runs a script with these flags; nothing without image or rights.
fn with(flags: &[&str], script: &str) -> Option<Ended> {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: containers are tested as root");
        return None;
    }
    let arguments = [&["--isolation", "container"], flags, &["debian", "--", "sh", "-c", script]].concat();
    Some(finish(run(&arguments)?))
}

/// What it writes; it must end with 0.
fn says(flags: &[&str], script: &str) -> Option<String> {
    let ended = with(flags, script)?;
    assert_eq!(ended.code(), 0, "{flags:?}: {ended:?}");
    Some(ended.stdout)
}

/// A limit as one of two files has it: on hosts with v1 control groups, and on those with v2 alone.
fn limit(v1: &str, v2: &str) -> String {
    format!("cat /sys/fs/cgroup/{v1} 2>/dev/null || cat /sys/fs/cgroup/{v2}")
}

#[test]
fn limits_are_those_of_the_flags() {
    let files = [
        limit("cpu/cpu.cfs_quota_us", "cpu.max"),
        limit("memory/memory.limit_in_bytes", "memory.max"),
        limit("pids/pids.max", "pids.max"),
    ];
    let flags = ["--cpus", "2", "--memory", "96M", "--pids-limit", "33"];
    let Some(said) = says(&flags, &files.join("; ")) else { return };
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines[0] == "200000" || lines[0] == "200000 100000", "{lines:?}");
    assert_eq!(lines[1..], ["100663296", "33"], "{lines:?}");
    let ended = with(&["--memory", "64M"], "head -c 300M /dev/zero | tail -c 299M | wc -c; echo still there")
        .unwrap();
    assert!(!ended.stdout.contains("313524224"), "it had more memory than it may: {ended:?}");
    assert!(ended.stderr.contains("Killed") || ended.code() == 137, "{ended:?}");
    let ended =
        with(&["--pids-limit", "8"], "for i in 1 2 3 4 5 6 7 8 9 10; do sleep 5 & done; echo all").unwrap();
    assert!(ended.stderr.contains("ork"), "it made more processes than it may: {ended:?}");
}

#[test]
fn capabilities_come_and_go() {
    let show = "grep -E 'CapEff|CapBnd|CapPrm' /proc/self/status | cut -f2 | sort -u";
    // Bits of `linux/capability.h`: the fourteen that other tools give too.
    let Some(said) = says(&[], show) else { return };
    assert_eq!(said, "00000000a80425fb\n");
    let cases: [(&[&str], &str); 5] = [
        (&["--cap-drop", "ALL"], "0000000000000000\n"),
        (&["--cap-drop", "all", "--cap-add", "net_bind_service"], "0000000000000400\n"),
        (&["--cap-add", "CAP_NET_ADMIN"], "00000000a80435fb\n"),
        (&["--cap-drop", "chown", "--cap-drop", "KILL"], "00000000a80425da\n"),
        (&["--cap-drop", "NET_RAW", "--user", "nobody"], "0000000000000000\n00000000a80405fb\n"),
    ];
    for (flags, wanted) in cases {
        assert_eq!(says(flags, show).unwrap(), wanted, "{flags:?}");
    }
    with(&["--cap-add", "FLY"], "true").unwrap().expect_failure(2, &["FLY"]);
    let ended = with(&["--cap-drop", "CHOWN"], "touch /tmp/own && chown 5 /tmp/own").unwrap();
    assert!(ended.code() != 0 && ended.stderr.contains("not permitted"), "{ended:?}");
}

#[test]
fn filters_and_new_privileges_are_as_the_flags_say() {
    let show = "grep -E 'NoNewPrivs|Seccomp:' /proc/self/status | cut -f2 | tr '\\n' ' '";
    let Some(said) = says(&[], show) else { return };
    assert_eq!(said, "0 2 ");
    assert_eq!(says(&["--security-opt", "no-new-privileges"], show).unwrap(), "1 2 ");
    assert_eq!(says(&["--security-opt", "seccomp=unconfined"], show).unwrap(), "0 0 ");
    assert_eq!(says(&["--security-opt", "label=disable"], show).unwrap(), "0 2 ");
    with(&["--security-opt", "label=type:x"], "true").unwrap().expect_failure(2, &["label=type:x"]);
    assert_ne!(
        says(&["--security-opt", "systempaths=unconfined"], "cat /proc/timer_list | wc -l").unwrap(),
        "0\n"
    );
    // What a filter keeps from one is there without, for who has the right to it.
    let unshare = "unshare --uts hostname other && echo done";
    assert_ne!(with(&[], unshare).unwrap().code(), 0);
    assert_eq!(says(&["--cap-add", "SYS_ADMIN"], unshare).unwrap(), "done\n");
}

#[test]
fn a_profile_in_a_file_is_the_filter() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("profile.json");
    let profile = r#"{"defaultAction":"SCMP_ACT_ALLOW","archMap":[],"syscalls":[
        {"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":28,"excludes":{"caps":["CAP_SYS_ADMIN"]}}]}"#;
    std::fs::write(&file, profile).unwrap();
    let option = format!("seccomp={}", file.display());
    let make = "mkdir /made 2>&1 || true; test -d /made && echo made";
    let Some(ended) = with(&["--security-opt", &option], make) else { return };
    assert!(ended.code() != 0 && ended.stdout.contains("No space left"), "{ended:?}");
    let flags = ["--security-opt", &option, "--cap-add", "SYS_ADMIN"];
    assert_eq!(says(&flags, make).unwrap(), "made\n");
    std::fs::write(&file, "{}").unwrap();
    with(&["--security-opt", &option], make).unwrap().expect_failure(125, &["defaultAction"]);
}

#[test]
fn a_read_only_root_has_room_where_memory_is_mounted() {
    let script = "touch /x 2>/dev/null || echo refused; touch /tmp/x && echo made; \
                  head -c 3M /dev/zero > /tmp/big 2>/dev/null || echo full; stat -f -c %T /tmp; stat -c %a /tmp; \
                  cp /bin/true /tmp/ 2>/dev/null; rm /tmp/big; cp /bin/true /tmp/; /tmp/true 2>/dev/null || echo noexec";
    let Some(said) = says(&["--read-only", "--tmpfs", "/tmp:size=1M,mode=1770"], script) else { return };
    assert_eq!(said, "refused\nmade\nfull\ntmpfs\n1770\nnoexec\n");
    with(&["--tmpfs", "tmp"], "true").unwrap().expect_failure(2, &["--tmpfs", "tmp", "absolute"]);
    with(&["--tmpfs", "/tmp:no-such=1"], "true").unwrap().expect_failure(125, &["/tmp"]);
}

#[test]
fn resource_limits_names_and_users_are_as_the_flags_say() {
    let script = "ulimit -Sn; ulimit -Hn; ulimit -c; hostname; id -u; id -g; id -G; cat /etc/hostname";
    let flags =
        ["--ulimit", "nofile=100:200", "--ulimit", "core=0", "--hostname", "somebody", "--user", "daemon"];
    let Some(said) = says(&flags, script) else { return };
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[..7], ["100", "200", "0", "somebody", "1", "1", "1"], "{said}");
    for (user, ids) in
        [("1234", "1234 0\n"), ("1234:77", "1234 77\n"), ("daemon:bin", "1 2\n"), ("0", "0 0\n")]
    {
        assert_eq!(says(&["--user", user], "echo $(id -u) $(id -g)").unwrap(), ids, "{user}");
    }
    with(&["--user", "no-such-user"], "true").unwrap().expect_failure(125, &["no-such-user"]);
    let ended = with(&["--ulimit", "nofile=x"], "true").unwrap();
    assert!(ended.code() == 2 && ended.stderr.contains("nofile=x"), "{ended:?}");
    with(&["--ulimit", "nonsense=1"], "true").unwrap().expect_failure(125, &["NONSENSE"]);
}

#[test]
fn a_privileged_one_is_warned_of_and_has_what_it_takes() {
    let script = "grep CapEff /proc/self/status | cut -f2; grep Seccomp: /proc/self/status | cut -f2; \
                  mknod /tmp/null c 1 3 && echo x > /tmp/null && mount -t tmpfs t /mnt && hostname other && echo done; \
                  mknod /tmp/mem c 1 1 && head -c 1 /tmp/mem > /dev/null && echo memory; ls /sys/firmware | wc -l";
    let Some(ended) = with(&["--privileged"], script) else { return };
    assert_eq!(ended.code(), 0, "{ended:?}");
    let lines: Vec<&str> = ended.stdout.lines().collect();
    // All that this process has itself.
    let own = std::fs::read_to_string("/proc/self/status").unwrap();
    let own = own.lines().find_map(|line| line.strip_prefix("CapEff:\t")).unwrap();
    let bits = |text: &str| u64::from_str_radix(text, 16).unwrap();
    assert_eq!(bits(lines[0]), bits(own), "{ended:?}");
    assert_eq!(lines[1..3], ["0", "done"], "{ended:?}");
    assert!(ended.stderr.contains("--privileged"), "{ended:?}");
    // The same without it.
    let ended = with(&[], script).unwrap();
    assert!(!ended.stdout.contains("done") && !ended.stdout.contains("memory"), "{ended:?}");
    assert!(!ended.stderr.contains("--privileged"), "{ended:?}");
}

#[test]
fn flags_that_say_nothing_to_a_machine_are_refused() {
    for flags in [&["--cap-drop", "ALL"][..], &["--read-only"], &["--tmpfs", "/tmp"], &["--privileged"]] {
        for verb in ["run", "create"] {
            let mut command = strata();
            command.arg(verb).args(flags).args(["debian", "--", "true"]);
            let ended = finish(command);
            ended.expect_failure(2, &[flags[0], "microVM"]);
            assert!(ended.stderr.contains("--isolation container"), "{ended:?}");
        }
    }
}
