//! `--engine kvm`, on hosts whose KVM runs guests, on those whose KVM emulates them, and on those without.

use rustix::process::Signal;

use crate::support::{Ended, elf, file, finish, run, start, strata};

/// x86-64 in the header of an ELF file.
const X86_64: u16 = 62;

/// What `strata check --json` says.
fn check() -> serde_json::Value {
    let folder = tempfile::tempdir().unwrap();
    let mut command = strata();
    command.arg("--root").arg(folder.path()).args(["check", "--json"]);
    serde_json::from_str(&finish(command).stdout).unwrap()
}

/// What KVM is here: `real`, `emulates` or `absent`.
fn state() -> String {
    check()["kvm"]["state"].as_str().unwrap().to_owned()
}

/// `strata boot --engine kvm` of a program of a few bytes.
fn boot(code: &[u8]) -> (tempfile::TempDir, std::process::Command) {
    let folder = tempfile::tempdir().unwrap();
    let kernel = file(folder.path(), "kernel", &elf::pvh(code, X86_64));
    let mut command = strata();
    command.args(["boot", "--engine", "kvm", "--memory", "32M", "--kernel"]).arg(kernel);
    (folder, command)
}

fn warnings(ended: &Ended) -> usize {
    ended.stderr.lines().filter(|line| line.contains("emulates ordinary guests")).count()
}

#[test]
fn check_says_what_kvm_is_here_and_whether_auto_takes_it() {
    let value = check();
    let kvm = &value["kvm"];
    let findings = value["findings"].as_array().unwrap();
    let detail = |item: &str| {
        let finding = findings.iter().find(|finding| finding["item"] == item).unwrap();
        (finding["detail"].as_str().unwrap().to_owned(), finding["advice"].is_string())
    };
    let (text, advice) = detail("kvm");
    match kvm["state"].as_str().unwrap() {
        "real" => assert!(text.starts_with("real (") && !advice, "{text}"),
        "emulates" => assert!(text.starts_with("emulates ordinary guests (") && advice, "{text}"),
        "absent" => assert!(text.starts_with("absent: ") && advice, "{text}"),
        other => panic!("{other}"),
    }
    let rate = kvm["million_instructions_per_second"].as_f64();
    assert_eq!(rate.is_some(), kvm["state"] != "absent");
    let (engines, _) = detail("engines");
    assert_eq!(engines.ends_with("auto chooses kvm"), kvm["state"] == "real", "{engines}");
}

#[test]
fn it_is_obeyed_with_one_warning_where_it_emulates_and_refused_where_it_is_absent() {
    // mov dx, 0x3f8; mov al, 'K'; out dx, al; mov al, 0xfe; out 0x64, al; hlt: says K and resets.
    let code = [0x66, 0xba, 0xf8, 0x03, 0xb0, b'K', 0xee, 0xb0, 0xfe, 0xe6, 0x64, 0xf4];
    let (_folder, command) = boot(&code);
    let ended = finish(command);
    match state().as_str() {
        "absent" => ended.expect_failure(125, &["open engine kvm"]),
        state => {
            ended.expect_failure(3, &["reset"]);
            assert_eq!(
                (ended.stdout.trim(), warnings(&ended)),
                ("K", usize::from(state == "emulates")),
                "{ended:?}"
            );
        }
    }
}

#[test]
fn auto_says_nothing_about_a_kvm_it_does_not_take() {
    let folder = tempfile::tempdir().unwrap();
    let kernel = file(folder.path(), "kernel", &elf::pvh(&[0xb0, 0xfe, 0xe6, 0x64, 0xf4], X86_64));
    let mut command = strata();
    command.args(["boot", "-v", "--memory", "32M", "--kernel"]).arg(kernel);
    let ended = finish(command);
    ended.expect_failure(3, &["reset"]);
    let engine = if state() == "real" { "engine kvm: " } else { "engine jit: " };
    assert!(ended.stderr.contains(engine) && warnings(&ended) == 0, "{ended:?}");
}

#[test]
fn a_vcpu_that_sleeps_in_the_kernel_is_ended_by_a_signal() {
    if state() == "absent" {
        return println!("skipped: this host has no kvm");
    }
    // cli; hlt; and again.
    let (_folder, command) = boot(&[0xfa, 0xf4, 0xeb, 0xfc]);
    let running = start(command);
    std::thread::sleep(std::time::Duration::from_millis(500));
    running.signal(Signal::TERM);
    assert_eq!(running.finish().code(), 128 + 15);
}

#[test]
fn a_vcpu_that_never_leaves_the_guest_is_ended_by_a_signal() {
    if state() == "absent" {
        return println!("skipped: this host has no kvm");
    }
    // cli; jmp to itself.
    let (_folder, command) = boot(&[0xfa, 0xeb, 0xfe]);
    let running = start(command);
    std::thread::sleep(std::time::Duration::from_millis(500));
    running.signal(Signal::TERM);
    assert_eq!(running.finish().code(), 128 + 15);
}

#[test]
fn an_instruction_that_an_emulator_lacks_is_named() {
    if state() != "emulates" {
        return println!("skipped: kvm is {} here", state());
    }
    // bound eax, [ebx]
    let (_folder, command) = boot(&[0x62, 0x03, 0xf4]);
    let ended = finish(command);
    ended.expect_failure(6, &["cannot execute `bound %eax,(%ebx)` (62 03)", "rip 0x100000", "--engine jit"]);
}

#[test]
fn a_workload_runs_on_a_real_kvm() {
    let state = state();
    if state != "real" {
        return println!("skipped: kvm is {state} here: its emulator boots no 64-bit Linux");
    }
    let arguments = ["--engine", "kvm", "--cpus", "2", "debian", "--", "sh", "-c", "nproc; uname -m; exit 5"];
    let Some(command) = run(&arguments) else { return };
    let ended = finish(command);
    assert_eq!((ended.code(), ended.stdout.as_str()), (5, "2\nx86_64\n"), "{ended:?}");
}
