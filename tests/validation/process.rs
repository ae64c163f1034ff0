//! `config.md`, `process` and `config.md`, `user`: what the process is when its program begins.

use serde_json::{Value, json};

use crate::support::bundle::Bundle;

#[test]
fn arguments_and_environment_arrive_as_they_are() {
    let Some(mut bundle) = Bundle::new("") else { return };
    let words = ["", " ", "a b", "ä\nö", "'\"$X`", "-e", "*"];
    let script = "for a; do printf '<%s>' \"$a\"; done; echo; env | sort";
    let args = [&["/bin/sh", "-c", script, "name"], &words[..]].concat();
    bundle.config["process"]["args"] = json!(args);
    bundle.config["process"]["env"] = json!(["A=b=c", "EMPTY=", "HOME=/somewhere", "X=ü y"]);
    let output = bundle.output();
    let wanted: String = words.iter().map(|word| format!("<{word}>")).collect();
    let env = output.strip_prefix(&format!("{wanted}\n")).unwrap_or_else(|| panic!("{output}"));
    // The shell sets these.
    let own = ["PWD=", "SHLVL=", "PATH="];
    let env: Vec<&str> = env.lines().filter(|line| !own.iter().any(|name| line.starts_with(name))).collect();
    assert_eq!(env, ["A=b=c", "EMPTY=", "HOME=/somewhere", "X=ü y"]);
}

#[test]
fn the_program_is_looked_for_in_the_path_of_the_container() {
    let Some(mut bundle) = Bundle::new("") else { return };
    std::fs::create_dir(bundle.rootfs().join("own")).unwrap();
    std::os::unix::fs::symlink("/bin/busybox", bundle.rootfs().join("own/echo")).unwrap();
    bundle.config["process"]["args"] = json!(["echo", "found"]);
    bundle.config["process"]["env"] = json!(["PATH=/none:/own"]);
    assert_eq!(bundle.output(), "found\n");
    bundle.config["process"]["env"] = json!(["PATH=/none"]);
    bundle.run().expect_failure(127, &["echo"]);
    bundle.config["process"]["args"] = json!(["./echo", "relative"]);
    bundle.config["process"]["cwd"] = json!("/own");
    assert_eq!(bundle.output(), "relative\n");
}

#[test]
fn the_working_directory_is_where_it_begins() {
    let Some(mut bundle) = Bundle::new("pwd") else { return };
    std::fs::create_dir_all(bundle.rootfs().join("some/where")).unwrap();
    std::os::unix::fs::symlink("/some", bundle.rootfs().join("link")).unwrap();
    for (cwd, real) in [("/some/where", "/some/where"), ("/link/where", "/some/where"), ("/", "/")] {
        bundle.config["process"]["cwd"] = json!(cwd);
        bundle.config["process"]["args"] = json!(["/bin/readlink", "/proc/self/cwd"]);
        assert_eq!(bundle.output(), format!("{real}\n"), "{cwd}");
    }
}

#[test]
fn the_user_has_its_numbers_groups_and_mask() {
    let Some(mut bundle) = Bundle::new("id -u; id -g; id -G; umask; grep -E '^(Uid|Gid)' /proc/self/status")
    else {
        return;
    };
    let user = json!({ "uid": 1000, "gid": 1001, "additionalGids": [5, 70_000], "umask": 0o27 });
    bundle.config["process"]["user"] = user;
    let output = bundle.output();
    let wanted =
        "1000\n1001\n1001 5 70000\n0027\nUid:\t1000\t1000\t1000\t1000\nGid:\t1001\t1001\t1001\t1001\n";
    assert_eq!(output, wanted);
    bundle.config["process"]["user"] = json!({ "uid": 0, "gid": 0 });
    assert!(bundle.output().starts_with("0\n0\n0\n0022\n"));
}

/// The five sets as `/proc` shows them, of the first process.
fn capability_sets(bundle: &Bundle) -> Vec<u64> {
    let output = bundle.output();
    let sets = output.lines().filter_map(|line| line.strip_prefix("Cap")?.split_once(":\t"));
    sets.map(|(_, value)| u64::from_str_radix(value, 16).unwrap()).collect()
}

#[test]
fn each_set_of_capabilities_is_the_one_given() {
    let Some(mut bundle) = Bundle::new("") else { return };
    bundle.config["process"]["args"] = json!(["/bin/grep", "Cap", "/proc/self/status"]);
    let bit = |number: u32| 1_u64 << number;
    let (chown, kill, setuid, bind) = (bit(0), bit(5), bit(7), bit(10));
    bundle.config["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
    bundle.config["process"]["capabilities"] = json!({
        "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_SETUID", "CAP_NET_BIND_SERVICE"],
        "permitted": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_BIND_SERVICE"],
        "inheritable": ["CAP_KILL", "CAP_NET_BIND_SERVICE"],
        "effective": ["CAP_CHOWN"],
        "ambient": ["CAP_NET_BIND_SERVICE"],
    });
    // Inheritable, permitted, effective, bounding, ambient: an ordinary user keeps the ambient ones over exec.
    assert_eq!(capability_sets(&bundle), [kill | bind, bind, bind, chown | kill | setuid | bind, bind]);
    bundle.config["process"]["user"] = json!({ "uid": 0, "gid": 0 });
    bundle.config["process"]["capabilities"]["ambient"] = json!([]);
    // Without new privileges root gets what was permitted over exec, otherwise all that its bounding set lets it have.
    let (had, all) = (chown | kill | bind, chown | kill | setuid | bind);
    assert_eq!(capability_sets(&bundle), [kill | bind, had, had, all, 0]);
    bundle.config["process"]["noNewPrivileges"] = json!(false);
    assert_eq!(capability_sets(&bundle), [kill | bind, all, all, all, 0]);
    bundle.config["process"].as_object_mut().unwrap().remove("capabilities");
    assert_eq!(capability_sets(&bundle), [0, 0, 0, 0, 0]);
}

#[test]
fn a_capability_nobody_knows_is_a_warning() {
    let Some(mut bundle) = Bundle::new("echo ran") else { return };
    bundle.config["process"]["capabilities"]["bounding"] = json!(["CAP_KILL", "CAP_TELEPORT"]);
    let ended = bundle.run();
    assert_eq!((ended.code(), ended.stdout.as_str()), (0, "ran\n"), "{ended:?}");
    assert!(ended.stderr.contains("CAP_TELEPORT"), "{ended:?}");
}

#[test]
fn limits_are_set_and_what_makes_no_sense_is_refused() {
    let Some(mut bundle) = Bundle::new("cat /proc/self/limits") else { return };
    let limit = |kind: &str, soft: u64, hard: u64| json!({ "type": kind, "soft": soft, "hard": hard });
    bundle.config["process"]["rlimits"] = json!([
        limit("RLIMIT_NOFILE", 100, 200),
        limit("RLIMIT_CORE", 0, 4096),
        limit("RLIMIT_CPU", 1000, 2000),
        limit("RLIMIT_FSIZE", 1 << 30, 1 << 31),
        limit("RLIMIT_STACK", 1 << 20, 1 << 22),
    ]);
    let output = bundle.output();
    let row = |name: &str| -> Vec<String> {
        let line = output.lines().find(|line| line.starts_with(name)).unwrap();
        line[name.len()..].split_whitespace().take(2).map(str::to_owned).collect()
    };
    assert_eq!(row("Max open files"), ["100", "200"]);
    assert_eq!(row("Max core file size"), ["0", "4096"]);
    assert_eq!(row("Max cpu time"), ["1000", "2000"]);
    assert_eq!(row("Max file size"), ["1073741824", "2147483648"]);
    assert_eq!(row("Max stack size"), ["1048576", "4194304"]);
    let twice = json!([limit("RLIMIT_CORE", 0, 0), limit("RLIMIT_CORE", 1, 1)]);
    for (wrong, word) in [
        (twice, "RLIMIT_CORE"),
        (json!([limit("RLIMIT_NONSENSE", 0, 0)]), "RLIMIT_NONSENSE"),
        (json!([limit("RLIMIT_CORE", 2, 1)]), "RLIMIT_CORE"),
    ] {
        bundle.config["process"]["rlimits"] = wrong;
        bundle.refused(&[word]);
    }
}

#[test]
fn the_oom_killer_is_told() {
    let Some(mut bundle) = Bundle::new("cat /proc/self/oom_score_adj") else { return };
    let own = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap();
    assert_eq!(bundle.output(), own);
    for value in [0, 321, 1000] {
        if value >= own.trim().parse().unwrap() {
            bundle.config["process"]["oomScoreAdj"] = json!(value);
            assert_eq!(bundle.output(), format!("{value}\n"));
        }
    }
    bundle.config["process"]["oomScoreAdj"] = json!(1001);
    bundle.refused(&["oomScoreAdj", "1001"]);
}

#[test]
fn privileges_may_or_may_not_grow() {
    let Some(mut bundle) = Bundle::new("grep NoNewPrivs /proc/self/status") else { return };
    for (flag, shown) in [(true, "1"), (false, "0")] {
        bundle.config["process"]["noNewPrivileges"] = json!(flag);
        assert_eq!(bundle.output(), format!("NoNewPrivs:\t{shown}\n"));
    }
}

#[test]
fn schedulers_and_priorities_are_set_or_refused() {
    let Some(mut bundle) = Bundle::new("cat /proc/self/stat | cut -d' ' -f19,41; ionice") else { return };
    bundle.config["process"]["scheduler"] = json!({ "policy": "SCHED_BATCH", "nice": 5 });
    bundle.config["process"]["ioPriority"] = json!({ "class": "IOPRIO_CLASS_BE", "priority": 6 });
    // Nice value, policy 3; the class and level of disks.
    assert_eq!(bundle.output(), "5 3\nbest-effort: prio 6\n");
    let config = bundle.config.clone();
    let wrong: [(&str, Value, &str); 5] = [
        ("scheduler", json!({ "policy": "SCHED_NONSENSE" }), "SCHED_NONSENSE"),
        ("scheduler", json!({ "policy": "SCHED_OTHER", "flags": ["SCHED_FLAG_X"] }), "SCHED_FLAG_X"),
        ("ioPriority", json!({ "class": "IOPRIO_CLASS_X", "priority": 1 }), "IOPRIO_CLASS_X"),
        ("ioPriority", json!({ "class": "IOPRIO_CLASS_BE", "priority": 8 }), "ioPriority"),
        ("apparmorProfile", json!("no-such-profile"), "no-such-profile"),
    ];
    for (field, value, word) in wrong {
        bundle.config = config.clone();
        bundle.config["process"][field] = value;
        bundle.refused(&[word]);
    }
}

#[test]
fn a_process_that_comes_later_runs_on_the_processors_it_is_given() {
    let show = ["/bin/grep", "Cpus_allowed_list", "/proc/self/status"];
    let Some(mut bundle) = Bundle::new("grep Cpus_allowed_list /proc/self/status; sleep 1000") else {
        return;
    };
    let all = std::fs::read_to_string("/proc/self/status").unwrap();
    let all = all.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:\t")).unwrap();
    let last = all.rsplit(['-', ',']).next().unwrap();
    if last == "0" {
        return println!("skipped: a host with one processor");
    }
    // The first process has those of whoever made it.
    bundle.config["process"]["execCPUAffinity"] = json!({ "initial": "0", "final": last });
    let container = bundle.create(&[]);
    container.start();
    container.wait_until("said where it runs", || container.log().contains('\n'));
    assert_eq!(container.log(), format!("Cpus_allowed_list:\t{all}\n"));
    let by_default = bundle.good(&[&["exec", &container.id], &show[..]].concat());
    assert_eq!(by_default, format!("Cpus_allowed_list:\t{last}\n"));
    let with = |affinity: Value| {
        let process = json!({ "args": show, "cwd": "/", "user": {}, "execCPUAffinity": affinity });
        std::fs::write(bundle.path("process.json"), process.to_string()).unwrap();
        bundle.act(&["exec", "--process", "process.json", &container.id])
    };
    let wanted = |list: &str| format!("Cpus_allowed_list:\t{list}\n");
    assert_eq!(with(json!({ "final": last })).stdout, wanted(last));
    assert_eq!(with(json!({ "initial": last, "final": "" })).code(), 0);
    assert_eq!(with(json!({})).stdout, wanted(all));
    with(json!({ "initial": "0,x" })).expect_failure(1, &["execCPUAffinity initial", "0,x"]);
    with(json!({ "final": "1-0" })).expect_failure(1, &["execCPUAffinity final", "1-0"]);
    with(json!({ "final": "1000" })).expect_failure(1, &["execCPUAffinity final"]);
    drop(container);
    bundle.config["process"]["execCPUAffinity"] = json!({ "initial": "nonsense" });
    bundle.refused(&["execCPUAffinity", "nonsense"]);
}

#[test]
fn only_descriptors_that_are_to_be_preserved_are() {
    let Some(bundle) = Bundle::new("ls /proc/$$/fd | tr '\\n' ' '; cat <&3") else { return };
    bundle.write();
    std::fs::write(bundle.path("given"), "given\n").unwrap();
    let program = crate::support::strata().get_program().to_owned();
    let mut shell = std::process::Command::new("sh");
    let script = "exec 3<given 4<given 5<given; exec \"$0\" oci --root states run --preserve-fds 2 \"$1\"";
    shell.args(["-c", script]).arg(program).arg(bundle.id()).current_dir(bundle.folder.path());
    let ended = crate::support::finish(shell);
    assert_eq!(ended.code(), 0, "{ended:?}");
    // 10 is the shell's own.
    let words: Vec<&str> = ended.stdout.split_whitespace().filter(|word| *word != "10").collect();
    assert_eq!(words, ["0", "1", "2", "3", "4", "given"], "{ended:?}");
}

#[test]
fn a_terminal_is_handed_out_over_the_console_socket() {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};
    let script = "tty; stty size; test -t 0 && test -t 2 && test -c /dev/console && echo terminal";
    let Some(mut bundle) = Bundle::new(script) else { return };
    bundle.config["process"]["terminal"] = json!(true);
    bundle.config["process"]["consoleSize"] = json!({ "height": 33, "width": 77 });
    bundle.write();
    bundle.act(&["create", "x"]).expect_failure(1, &["terminal", "console socket"]);
    let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    rustix::net::bind(&socket, &SocketAddrUnix::new(bundle.path("console")).unwrap()).unwrap();
    rustix::net::listen(&socket, 1).unwrap();
    let container = bundle.create(&["--console-socket", bundle.path("console").to_str().unwrap()]);
    let connection = rustix::net::accept(&socket).unwrap();
    let mut bytes = [0; 64];
    let mut data = [std::io::IoSliceMut::new(&mut bytes)];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = rustix::net::RecvAncillaryBuffer::new(&mut space);
    let flags = rustix::net::RecvFlags::empty();
    rustix::net::recvmsg(&connection, &mut data, &mut control, flags).unwrap();
    let mut given = control.drain().filter_map(|message| match message {
        rustix::net::RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let mut terminal = std::fs::File::from(given.next().unwrap());
    container.start();
    let mut said = Vec::new();
    // A terminal whose last user is gone ends with an error.
    let _ = std::io::Read::read_to_end(&mut terminal, &mut said);
    assert_eq!(String::from_utf8_lossy(&said), "/dev/pts/0\r\n33 77\r\nterminal\r\n");
    container.wait_for("stopped");
    drop(container);
    bundle.config["process"]["terminal"] = json!(false);
    bundle.write();
    bundle.act(&["create", "--console-socket", "console", "x"]).expect_failure(1, &["no terminal"]);
}
