//! What else containerd's `ctr` has words for, and what this runtime refuses it.

use super::Containerd;
use super::verbs::group_files;
use crate::support::{finish, pty, start};

#[test]
fn containerds_words_for_one_task() {
    let Some(containerd) = Containerd::start() else { return };
    let script = "echo x > /x || echo refused; echo $A; cat /proc/self/status";
    let flags = ["--rm", "--read-only", "--seccomp", "--env", "A=b", "--cap-drop", "CAP_CHOWN"];
    let said = containerd.run(&flags, "first", &["/bin/sh", "-c", script]).stdout;
    assert!(said.starts_with("refused\nb\n"), "{said}");
    for line in ["NoNewPrivs:\t1\n", "Seccomp:\t2\n", "CapEff:\t00000000a80425fa\n"] {
        assert!(said.contains(line), "no {line:?} in {said}");
    }
    let missing = containerd.run(&["--rm"], "missing", &["/no/such"]);
    assert!(missing.code() == 1 && missing.stderr.contains("run \"/no/such\": no such file"), "{missing:?}");

    // A terminal, of the size that the caller's has.
    let (runtime, root) = (containerd.caller.runtime(), containerd.caller.path("root"));
    let [runtime, root] = [&runtime, &root].map(|path| path.to_str().unwrap());
    let shell = ["run", "--rm", "-t", "--runc-binary", runtime, "--rootfs", root, "typed", "/bin/sh"];
    let mut terminal = pty::start(containerd.ctr(&shell), 33, 77);
    terminal.wait_for("# ");
    terminal.types("busybox stty size; tty\n");
    terminal.wait_for("33 77");
    terminal.wait_for("/dev/pts/0");
    terminal.types("exit 4\n");
    assert_eq!(terminal.finish().code(), Some(4));

    // Limits, seen from the host.
    let script = "trap 'exit 5' TERM; while :; do echo tick; sleep 0.1; done";
    let flags = ["-d", "--memory-limit", "67108864"];
    assert_eq!(containerd.run(&flags, "limited", &["/bin/sh", "-c", script]).code(), 0);
    let limits = group_files("default/limited", &["memory.limit_in_bytes", "memory.max"]);
    assert_eq!(limits, ["67108864"]);
    let all = containerd.good(&["task", "ls"]);
    let pid = all.lines().find_map(|line| line.strip_prefix("limited")).unwrap().split_whitespace().next();
    assert!(containerd.good(&["task", "ps", "limited"]).contains(pid.unwrap()));
    // What it cannot do is one line, and harms nothing.
    let refused = finish(containerd.ctr(&["task", "checkpoint", "limited"]));
    assert_eq!(refused.code(), 1, "{refused:?}");
    assert!(
        refused.stderr.contains("checkpoint or restore a container: this runtime does not"),
        "{refused:?}"
    );
    assert_eq!(containerd.status("limited"), "RUNNING");
    // Whoever attaches later sees what comes, and how it ends.
    let mut attached = start(containerd.ctr(&["task", "attach", "limited"]));
    attached.wait_for("tick");
    containerd.good(&["task", "kill", "limited"]);
    assert_eq!(attached.finish().code(), 5);
    containerd.good(&["container", "rm", "limited"]);

    assert_eq!(containerd.run(&["-d"], "forced", &["/bin/sleep", "1000"]).code(), 0);
    finish(containerd.ctr(&["task", "rm", "--force", "forced"]));
    containerd.good(&["container", "rm", "forced"]);
    assert_eq!(containerd.good(&["task", "ls"]).lines().count(), 1);
}
