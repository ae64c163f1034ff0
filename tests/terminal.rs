//! `-t`, and the console of `boot`: a real terminal, and how it is left.

use std::time::{Duration, Instant};

use crate::support::{PATIENCE, guest, pty, run};

#[test]
fn the_command_has_our_terminal_and_we_get_it_back() {
    // Bash runs traps between commands, not inside `read`, so it waits for the new size in small steps. The
    // child that the shell waits for says so itself: a shell on the way to it may lose the interrupt, as dash
    // does between fork and exec on any machine.
    let script = "trap 'stty size; resized=1' WINCH; stty size; tty; echo ready; \
                  until [ \"$resized\" ]; do sleep 0.1; done; read -r line; \
                  sh -c \"echo line=$line; exec sleep 10000\"; echo not interrupted";
    let Some(command) = run(&["-i", "-t", "debian", "--", "bash", "-c", script]) else { return };
    let mut terminal = pty::start(command, 33, 101);
    let before = terminal.mode();
    terminal.wait_for("ready");
    let screen = terminal.screen();
    assert!(screen.contains("33 101\r\n") && screen.contains("/dev/"), "{screen}");
    assert_ne!(terminal.mode(), before, "raw while the command runs");
    terminal.resize(44, 122);
    terminal.wait_for("44 122\r\n");
    terminal.types("hello\r");
    terminal.wait_for("line=hello");
    terminal.types("\x03");
    assert_eq!(terminal.finish().code(), Some(128 + 2));
    assert!(!terminal.screen().contains("not interrupted"), "{}", terminal.screen());
    assert_eq!(terminal.mode(), before);
}

/// As with docker: the command has a terminal to write to, and ours is not touched.
#[test]
fn without_i_our_terminal_stays_as_it_is_and_interrupts_are_signals() {
    let script = "tty; trap 'echo caught; exit 9' INT; echo ready; while :; do sleep 0.1; done";
    let Some(command) = run(&["-t", "debian", "--", "sh", "-c", script]) else { return };
    let mut terminal = pty::start(command, 24, 80);
    let before = terminal.mode();
    terminal.wait_for("ready");
    assert!(terminal.screen().contains("/dev/"), "{}", terminal.screen());
    assert_eq!(terminal.mode(), before);
    let pid = rustix::process::Pid::from_child(&terminal.child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(terminal.finish().code(), Some(9));
    assert!(terminal.screen().contains("caught"), "{}", terminal.screen());
}

#[test]
fn a_signal_that_ends_the_program_restores_the_terminal() {
    let Some(command) = run(&["-i", "-t", "debian", "--", "sleep", "10000"]) else { return };
    let mut terminal = pty::start(command, 24, 80);
    let before = terminal.mode();
    while terminal.mode() == before {
        assert!(terminal.child.try_wait().unwrap().is_none(), "{}", terminal.screen());
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let pid = rustix::process::Pid::from_child(&terminal.child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(terminal.finish().code(), Some(128 + 15));
    assert_eq!(terminal.mode(), before);
}

/// The program can undo nothing then; who waits beside it does.
#[test]
fn a_killed_program_leaves_the_terminal_as_it_was() {
    let Some(command) = run(&["-i", "-t", "debian", "--", "sh", "-c", "echo up; sleep 10000"]) else {
        return;
    };
    let mut terminal = pty::start(command, 24, 80);
    let before = terminal.mode();
    terminal.wait_for("up");
    assert_ne!(terminal.mode(), before, "raw while the command runs");
    terminal.child.kill().unwrap();
    terminal.finish();
    let deadline = Instant::now() + PATIENCE;
    while terminal.mode() != before {
        assert!(Instant::now() < deadline, "still {}", terminal.mode());
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn the_console_of_a_bare_machine_is_typed_into_and_left() {
    let Some(kernel) = guest::kernel() else { return };
    let folder = tempfile::tempdir().unwrap();
    let initrd =
        guest::initrd(folder.path(), &kernel, "echo ready\nwhile read -r line; do echo got $line; done\n");
    let mut terminal = pty::start(guest::boot(&kernel, Some(&initrd)), 24, 80);
    let before = terminal.mode();
    terminal.wait_for("ready");
    terminal.types("one\r");
    terminal.wait_for("got one");
    terminal.types("\x1d?");
    terminal.wait_for("Ctrl-] x");
    terminal.types("\x1dx");
    assert_eq!(terminal.finish().code(), Some(0));
    assert_eq!(terminal.mode(), before);
}
