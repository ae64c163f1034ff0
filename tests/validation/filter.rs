//! `config-linux.md`, `seccomp`.

use serde_json::{Value, json};

use crate::support::bundle::Bundle;

fn filter(bundle: &mut Bundle, default: &str, rules: Value) {
    bundle.config["linux"]["seccomp"] = json!({ "defaultAction": default, "syscalls": rules });
}

#[test]
fn calls_get_the_error_a_rule_names() {
    let Some(mut bundle) = Bundle::new("mkdir /tmp/x; rm -r /tmp/gone; chmod 777 /tmp; echo $?") else {
        return;
    };
    bundle.add_mount("/tmp", "tmpfs", "tmpfs", &[]);
    let rules = json!([
        { "names": ["mkdir", "mkdirat", "of_another_kernel"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28 },
        { "names": ["chmod", "fchmodat"], "action": "SCMP_ACT_ERRNO" },
    ]);
    filter(&mut bundle, "SCMP_ACT_ALLOW", rules);
    let ended = bundle.run();
    assert!(ended.stderr.contains("No space left on device"), "{ended:?}");
    // EPERM unless a number is given.
    assert!(ended.stderr.contains("Operation not permitted") && ended.stdout == "1\n", "{ended:?}");
}

#[test]
fn arguments_are_compared_by_each_operator() {
    // `kill -0` of this shell with various signals: the second argument of kill(2).
    let script = "for s in 1 2 9 10 15; do kill -$s 4000 2>&1 | grep -q permitted && echo $s; done; true";
    let row =
        |op: &str, value: u64, two: u64| json!({ "index": 1, "op": op, "value": value, "valueTwo": two });
    for (op, value, two, stopped) in [
        ("SCMP_CMP_EQ", 9, 0, "9\n"),
        ("SCMP_CMP_NE", 9, 0, "1\n2\n10\n15\n"),
        ("SCMP_CMP_LT", 9, 0, "1\n2\n"),
        ("SCMP_CMP_LE", 9, 0, "1\n2\n9\n"),
        ("SCMP_CMP_GT", 9, 0, "10\n15\n"),
        ("SCMP_CMP_GE", 9, 0, "9\n10\n15\n"),
        ("SCMP_CMP_MASKED_EQ", 0b1000, 0b1000, "9\n10\n15\n"),
    ] {
        let Some(mut bundle) = Bundle::new(script) else { return };
        let rule = json!([{ "names": ["kill"], "action": "SCMP_ACT_ERRNO", "args": [row(op, value, two)] }]);
        filter(&mut bundle, "SCMP_ACT_ALLOW", rule);
        assert_eq!(bundle.output(), stopped, "{op}");
    }
}

#[test]
fn a_filter_kills_where_it_says_so() {
    let Some(mut bundle) = Bundle::new("mkdir /tmp/x; echo \"ended with $?\"") else { return };
    bundle.add_mount("/tmp", "tmpfs", "tmpfs", &[]);
    for action in ["SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_KILL_THREAD", "SCMP_ACT_TRAP"] {
        filter(&mut bundle, "SCMP_ACT_ALLOW", json!([{ "names": ["mkdir", "mkdirat"], "action": action }]));
        assert_eq!(bundle.output(), "ended with 159\n", "{action}");
    }
    filter(
        &mut bundle,
        "SCMP_ACT_ALLOW",
        json!([{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_LOG" }]),
    );
    assert_eq!(bundle.output(), "ended with 0\n");
}

#[test]
fn a_filter_holds_with_and_without_new_privileges() {
    let Some(mut bundle) = Bundle::new("grep -E 'Seccomp:|NoNewPrivs' /proc/self/status; mkdir /tmp/x")
    else {
        return;
    };
    bundle.add_mount("/tmp", "tmpfs", "tmpfs", &[]);
    filter(
        &mut bundle,
        "SCMP_ACT_ALLOW",
        json!([{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO" }]),
    );
    for flag in [true, false] {
        bundle.config["process"]["noNewPrivileges"] = json!(flag);
        let ended = bundle.run();
        let shown = format!("NoNewPrivs:\t{}\nSeccomp:\t2\n", i32::from(flag));
        assert_eq!((ended.code(), ended.stdout), (1, shown), "{}", ended.stderr);
    }
}

#[test]
fn filters_that_make_no_sense_are_refused() {
    let Some(bundle) = Bundle::new("true") else { return };
    let mut bundle = bundle;
    let rule = |action: &str| json!([{ "names": ["kill"], "action": action }]);
    let arg = |index: u32, op: &str| json!([{ "names": ["kill"], "action": "SCMP_ACT_ERRNO", "args": [{ "index": index, "value": 1, "op": op }] }]);
    for (default, rules, word) in [
        ("SCMP_ACT_NONSENSE", json!([]), "SCMP_ACT_NONSENSE"),
        ("", json!([]), "action"),
        ("SCMP_ACT_ALLOW", rule("SCMP_ACT_X"), "SCMP_ACT_X"),
        ("SCMP_ACT_ALLOW", arg(6, "SCMP_CMP_EQ"), "6"),
        ("SCMP_ACT_ALLOW", arg(1, "SCMP_CMP_X"), "SCMP_CMP_X"),
    ] {
        filter(&mut bundle, default, rules);
        bundle.refused(&[word]);
    }
    filter(&mut bundle, "SCMP_ACT_ALLOW", json!([]));
    bundle.config["linux"]["seccomp"]["flags"] = json!(["SECCOMP_FILTER_FLAG_X"]);
    bundle.refused(&["SECCOMP_FILTER_FLAG_X"]);
    bundle.config["linux"]["seccomp"]["flags"] =
        json!(["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"]);
    bundle.config["linux"]["seccomp"]["architectures"] =
        json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_AARCH64"]);
    bundle.output();
}
