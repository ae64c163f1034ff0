//! What the process of a machine has given up when its guest runs.

use std::fs;
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use crate::support::{elf, file, strata};

/// The lines `Name`, `CapEff`, … of one thread.
fn field(status: &str, name: &str) -> String {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {name} in {status}")).trim().to_owned()
}

/// The threads of every running machine, by the names that they give themselves.
const NAMES: [&str; 6] = ["vcpu0", "vcpu1", "console", "timers", "machine", "signals"];

/// The statuses of all threads of a process, once those of a machine have their names: a thread has that of its
/// maker at first.
fn named_threads(process: u32) -> Vec<String> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let statuses = threads(process);
        let named = |name: &&str| statuses.iter().any(|status| field(status, "Name") == **name);
        if NAMES.iter().all(named) || Instant::now() > deadline {
            return statuses;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The statuses of all threads of a process.
fn threads(process: u32) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let status = |task: std::io::Result<fs::DirEntry>| {
        match fs::read_to_string(task.unwrap().path().join("status")) {
            // It ended between being listed and being looked at (ENOENT, ESRCH); all else is a failure.
            Err(error) if matches!(error.raw_os_error(), Some(2 | 3)) => None,
            status => Some(status.unwrap()),
        }
    };
    tasks.filter_map(status).collect()
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
    let statuses = named_threads(child.id());
    rustix::process::kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(128 + 15));
    statuses
}

#[test]
fn every_thread_of_a_running_machine_is_confined() {
    let threads = threads_of_a_machine(&[]);
    let names: Vec<String> = threads.iter().map(|status| field(status, "Name")).collect();
    for name in NAMES {
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
