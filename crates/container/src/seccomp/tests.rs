use super::bpf::evaluate;
use super::*;
use crate::spec::SyscallRule;

const X86_64: u32 = 0xc000_003e;

fn rule(name: &str, action: &str, args: Vec<SyscallArg>) -> SyscallRule {
    SyscallRule { names: vec![name.to_owned()], action: action.to_owned(), args, ..SyscallRule::default() }
}

fn filter(default: &str, syscalls: Vec<SyscallRule>) -> Vec<Instruction> {
    let rules = Seccomp { default_action: default.to_owned(), syscalls, ..Seccomp::default() };
    let arches = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"].map(str::to_owned).to_vec();
    Filter::new(&Seccomp { architectures: arches, ..rules }).unwrap().program
}

fn arg(index: u32, op: &str, value: u64, value_two: u64) -> SyscallArg {
    SyscallArg { index, value, value_two, op: format!("SCMP_CMP_{op}") }
}

#[test]
fn each_call_of_the_profile_gets_its_verdict_on_each_architecture() {
    let program = filter("SCMP_ACT_ERRNO", profile::default_rules(&[]).syscalls);
    for (arch, read, mount) in [(X86_64, 0, 165), (0x4000_0003, 3, 21)] {
        assert_eq!(evaluate(&program, arch, read, [0; 6]), ALLOW);
        assert_eq!(evaluate(&program, arch, mount, [0; 6]), ERRNO | 1);
    }
    assert_eq!(evaluate(&program, X86_64, 9999, [0; 6]), ERRNO | libc::ENOSYS as u32);
    assert_eq!(evaluate(&program, 0xc000_00b7, 0, [0; 6]), KILL_PROCESS);
    assert_eq!(evaluate(&program, X86_64, 0x4000_0000, [0; 6]), KILL_PROCESS);
}

#[test]
fn arguments_are_compared_with_all_their_bits() {
    let big = 0x1_0000_0005;
    let values = [0, 4, 5, 6, 0xffff_ffff, big - 1, big, big + 1, u64::MAX];
    type Holds = fn(u64, u64) -> bool;
    let comparisons: [(&str, Holds); 6] = [
        ("EQ", |a, b| a == b),
        ("NE", |a, b| a != b),
        ("LT", |a, b| a < b),
        ("LE", |a, b| a <= b),
        ("GT", |a, b| a > b),
        ("GE", |a, b| a >= b),
    ];
    for (name, holds) in comparisons {
        for bound in [5, big] {
            let program =
                filter("SCMP_ACT_KILL", vec![rule("read", "SCMP_ACT_ALLOW", vec![arg(2, name, bound, 0)])]);
            for value in values {
                let verdict = evaluate(&program, X86_64, 0, [7, 7, value, 7, 7, 7]);
                assert_eq!(verdict == ALLOW, holds(value, bound), "{value:#x} {name} {bound:#x}");
            }
        }
    }
}

#[test]
fn a_mask_and_several_conditions_hold_together() {
    let namespaces = 0x7e02_0000;
    let rules = vec![
        rule("clone", "SCMP_ACT_ALLOW", vec![arg(0, "MASKED_EQ", namespaces, 0), arg(1, "EQ", 1, 0)]),
        rule("clone", "SCMP_ACT_LOG", vec![arg(1, "EQ", 2, 0)]),
    ];
    let program = filter("SCMP_ACT_ERRNO", rules);
    let verdict = |a, b| evaluate(&program, X86_64, 56, [a, b, 0, 0, 0, 0]);
    assert_eq!(verdict(0x11, 1), ALLOW);
    assert_eq!(verdict(0x0002_0011, 1), ERRNO | 1);
    assert_eq!(verdict(0x0002_0011, 2), LOG);
    assert_eq!(verdict(0, 3), ERRNO | 1);
}

#[test]
fn what_nobody_knows_is_refused_or_passed_over() {
    let unknown_call = vec![rule("no_such_call", "SCMP_ACT_ALLOW", vec![])];
    assert_eq!(evaluate(&filter("SCMP_ACT_KILL", unknown_call), X86_64, 0, [0; 6]), KILL_THREAD);
    let refused = |rules: Seccomp| Filter::new(&rules).unwrap_err().to_string();
    let allow = || "SCMP_ACT_ALLOW".to_owned();
    assert!(refused(Seccomp { default_action: "X".into(), ..Seccomp::default() }).contains("\"X\""));
    let syscalls = vec![rule("read", "SCMP_ACT_KILL", vec![arg(6, "EQ", 0, 0)])];
    assert!(
        refused(Seccomp { default_action: allow(), syscalls, ..Seccomp::default() }).contains("argument 6")
    );
    let notify = || vec![rule("read", "SCMP_ACT_NOTIFY", vec![])];
    let with = |listener_path, syscalls| Seccomp {
        default_action: allow(),
        listener_path,
        syscalls,
        ..Seccomp::default()
    };
    assert!(refused(with(None, notify())).contains("listenerPath"));
    assert!(Filter::new(&with(Some("/x".into()), notify())).is_ok());
    let sendmsg = vec![rule("sendmsg", "SCMP_ACT_NOTIFY", vec![arg(0, "EQ", 77, 0)])];
    assert!(refused(with(Some("/x".into()), sendmsg)).contains("sendmsg"));
}

#[test]
fn rules_that_grow_beyond_measure_are_given_up() {
    let names = vec!["read".to_owned(); 10_000];
    let args = vec![arg(0, "EQ", 1, 0); 10_000];
    let bomb = SyscallRule { names, args, action: "SCMP_ACT_KILL".to_owned(), ..SyscallRule::default() };
    let rules =
        Seccomp { default_action: "SCMP_ACT_ALLOW".to_owned(), syscalls: vec![bomb], ..Seccomp::default() };
    assert!(Filter::new(&rules).unwrap_err().to_string().contains("conditions"));
}

#[test]
fn sockets_of_families_that_reach_too_far_are_not_made() {
    let program = filter("SCMP_ACT_ERRNO", profile::default_rules(&[]).syscalls);
    let refused: Vec<u64> =
        (0..60).filter(|family| evaluate(&program, X86_64, 41, [*family, 0, 0, 0, 0, 0]) != ALLOW).collect();
    let gaps = [12, 19, 20, 23, 25, 34, 37, 38, 40];
    assert_eq!(refused[..gaps.len()], gaps);
    assert_eq!(refused[gaps.len()..], (46..60).collect::<Vec<u64>>());
}

/// A rule of the profile that podman and its like come with.
#[derive(Default, serde::Deserialize)]
#[serde(default)]
struct ForeignRule {
    names: Vec<String>,
    action: String,
    args: Option<Vec<serde_json::Value>>,
    includes: BTreeMap<String, serde_json::Value>,
}

/// Calls for all, and calls that come with a capability.
type Foreign = (Vec<String>, Vec<(String, String)>);

/// What their profile allows whatever the arguments: to all, and with a capability.
fn foreign_calls() -> Option<Foreign> {
    let path = "/usr/share/containers/seccomp.json";
    let Ok(text) = std::fs::read(path) else {
        println!("skipped: no {path} (Debian package golang-github-containers-common, which podman needs)");
        return None;
    };
    let mut profile: BTreeMap<String, serde_json::Value> = serde_json::from_slice(&text).unwrap();
    let rules: Vec<ForeignRule> = serde_json::from_value(profile.remove("syscalls").unwrap()).unwrap();
    let (mut all, mut with) = (Vec::new(), Vec::new());
    for rule in rules.into_iter().filter(|rule| rule.action == "SCMP_ACT_ALLOW") {
        if rule.args.is_some_and(|args| !args.is_empty()) {
            continue;
        }
        match rule.includes.get("caps").and_then(|caps| caps[0].as_str()) {
            Some(capability) => with.extend(rule.names.into_iter().map(|name| (capability.to_owned(), name))),
            None => all.extend(rule.names),
        }
    }
    Some((all, with))
}

#[test]
fn what_other_tools_allow_is_allowed_but_for_what_is_named_here() {
    let Some((all, with)) = foreign_calls() else { return };
    let number = |name: &str| tables::native().number(name);
    let allowed = |capabilities: &[String], name: &str| {
        let program = filter("SCMP_ACT_ERRNO", profile::default_rules(capabilities).syscalls);
        number(name).is_none_or(|number| evaluate(&program, X86_64, number, [0; 6]) == ALLOW)
    };
    // Docker's profile has none of these for a process without CAP_SYS_ADMIN and its like: with a user namespace of its own it
    // would reach much of the kernel; keys are of no namespace; clone3 is answered "no such call", clone depends on flags.
    let refused = "clone3 fsconfig fsmount fsopen fspick get_mempolicy keyctl mbind mount mount_setattr move_mount open_tree \
                   pidfd_getfd pivot_root reboot set_mempolicy setns syslog umount umount2 unshare";
    let theirs: Vec<&String> = all.iter().filter(|name| !allowed(&[], name)).collect();
    let unknown: Vec<_> =
        theirs.iter().filter(|name| !refused.split_whitespace().any(|r| r == **name)).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    for (capability, name) in with {
        // No kernel has had it since 2.6.
        let gone = name == "query_module";
        assert!(gone || allowed(std::slice::from_ref(&capability), &name), "{name} with {capability}");
        // Their one rule about sockets is for kinds of them; ours are for families.
        let free = name != "socket" && number(&name).is_some() && allowed(&[], &name);
        assert!(!free, "{name} without {capability}");
    }
}

#[test]
fn what_is_allowed_beyond_other_tools_is_named_here() {
    let Some((all, _)) = foreign_calls() else { return };
    // Newer than their profile, and in docker's; vmsplice and io_pgetevents, which docker's has too.
    let newer = "cachestat fchmodat2 futex_requeue futex_wait futex_waitv futex_wake getxattrat io_pgetevents \
                 listmount listxattrat map_shadow_stack mseal removexattrat setxattrat statmount uretprobe vmsplice \
                 clone personality socket";
    let program = filter("SCMP_ACT_ERRNO", profile::default_rules(&[]).syscalls);
    for call in syscalls::x86_64::Sysno::iter() {
        let ours = evaluate(&program, X86_64, call.id() as u32, [0; 6]) == ALLOW;
        let known = all.iter().any(|theirs| theirs == call.name());
        let named = newer.split_whitespace().any(|newer| newer == call.name());
        assert!(!ours || known || named, "{} is allowed here alone", call.name());
    }
}
