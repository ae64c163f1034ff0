//! What the process of a machine has given up when its guest runs.

use std::fs;
use std::io::Read;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal};

use crate::support::{elf, file, strata};

/// The lines `Name`, `CapEff`, … of one thread.
fn field(status: &str, name: &str) -> String {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {name} in {status}")).trim().to_owned()
}

/// Boots a guest that writes without end, looks at every thread once it runs, and ends it.
fn threads_of_a_machine(arguments: &[&str]) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    // mov dx, 0x3f8; mov al, 'x'; out dx, al; jmp back to the out.
    let code = [0x66, 0xba, 0xf8, 0x03, 0xb0, b'x', 0xee, 0xeb, 0xfd];
    let kernel = file(folder.path(), "chatter", &elf::pvh(&code, 62));
    let mut command: Command = strata();
    command.args(["boot", "--memory", "32M", "--cpus", "2", "--kernel"]).arg(kernel).args(arguments);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    let tasks = fs::read_dir(format!("/proc/{}/task", child.id())).unwrap();
    // A thread may end between being listed and being looked at; (ENOENT, ESRCH); all else is a failure.
    let statuses: Vec<String> = tasks
        .filter_map(|task| match fs::read_to_string(task.unwrap().path().join("status")) {
            Err(error) if matches!(error.raw_os_error(), Some(2 | 3)) => None,
            status => Some(status.unwrap()),
        })
        .collect();
    assert!(statuses.len() >= 3, "two vCPUs and their supervisor run: {statuses:?}");
    rustix::process::kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(128 + 15));
    statuses
}

#[test]
fn every_thread_of_a_running_machine_is_confined() {
    let threads = threads_of_a_machine(&[]);
    let names: Vec<String> = threads.iter().map(|status| field(status, "Name")).collect();
    for name in ["vcpu0", "vcpu1", "console", "timers", "machine", "signals"] {
        assert!(names.iter().any(|have| have == name), "no {name} in {names:?}");
    }
    for status in &threads {
        assert_eq!(field(status, "NoNewPrivs"), "1", "{status}");
        assert_eq!(field(status, "Seccomp"), "2", "{status}");
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(field(status, set), "0000000000000000", "{status}");
        }
    }
}

#[test]
fn no_sandbox_leaves_everything_as_it_was() {
    let own = fs::read_to_string("/proc/self/status").unwrap();
    for status in threads_of_a_machine(&["--no-sandbox"]) {
        for name in ["NoNewPrivs", "Seccomp", "CapEff", "CapBnd"] {
            assert_eq!(field(&status, name), field(&own, name), "{name} of {status}");
        }
    }
}
