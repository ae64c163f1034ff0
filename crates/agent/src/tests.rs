//! The agent's loop on the host: a forked copy of the test serves real processes, over Unix sockets
//! named by port where a guest has vsock.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::string::{String, ToString};
use std::time::Duration;
use std::vec::Vec;
use std::{format, thread, vec};

use protocol::{
    AgentMessage, Exit, HostMessage, Identity, Level, Process, Renew, Root, Start, Stream, VERSION, WinSize,
    read_message,
};

mod host;
use host::{Host, PATIENCE};

fn command(argv: &[&str]) -> Process {
    Process {
        exec: 1,
        argv: argv.iter().map(ToString::to_string).collect(),
        // The test may run as anyone: nobody but root can become someone else.
        user: format!("{}:{}", rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw()),
        ..Process::default()
    }
}

fn shell(script: &str) -> Process {
    command(&["/bin/sh", "-c", script])
}

fn text(mut stream: UnixStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn output_error_and_exit_code_arrive() {
    let mut host = Host::new();
    let (stdout, stderr) = host.run(shell("echo out; echo err >&2; exit 3"));
    assert_eq!(text(stdout), "out\n");
    assert_eq!(text(stderr), "err\n");
    assert_eq!(host.expect_exit(1), Exit::Code(3));
    host.shut_down();
}

#[test]
fn input_comes_back_whole_and_its_end_ends_the_process() {
    const LEN: usize = 20 << 20;
    let mut host = Host::new();
    host.start(Process { stdin: true, ..command(&["cat"]) });
    let mut stdin = host.accept(1, Stream::Stdin);
    let mut stdout = host.accept(1, Stream::Stdout);
    let _stderr = host.accept(1, Stream::Stderr);
    host.expect_started(1);
    let bytes: Vec<u8> = (0..LEN as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let sent = bytes.clone();
    let writer = thread::spawn(move || {
        stdin.write_all(&sent).unwrap();
        stdin.shutdown(Shutdown::Write).unwrap();
        stdin
    });
    let mut back = Vec::new();
    stdout.read_to_end(&mut back).unwrap();
    assert!(back == bytes, "{} of {LEN} bytes came back", back.len());
    drop(writer.join().unwrap());
    assert_eq!(host.expect_exit(1), Exit::Code(0));
    host.shut_down();
}

#[test]
fn output_the_host_reads_late_is_all_delivered_before_the_exit() {
    const LEN: usize = 5 << 20;
    let mut host = Host::new();
    let (stdout, mut stderr) = host.run(shell(&format!("head -c {LEN} /dev/zero; echo done >&2; exit 9")));
    host.control.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    assert!(read_message::<AgentMessage>(&mut host.control).is_err(), "exit before the output was read");
    host.control.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(text(stdout).len(), LEN);
    assert_eq!(host.expect_exit(1), Exit::Code(9));
    let mut end = String::new();
    stderr.read_to_string(&mut end).unwrap();
    assert_eq!(end, "done\n");
    host.shut_down();
}

#[test]
fn whoever_still_holds_the_pipe_does_not_delay_the_exit() {
    let mut host = Host::new();
    let (stdout, stderr) = host.run(shell("sleep 3 & echo kept; exit 4"));
    assert_eq!(text(stdout), "kept\n");
    assert_eq!(text(stderr), "");
    assert_eq!(host.expect_exit(1), Exit::Code(4));
    host.shut_down();
}

#[test]
fn whoever_writes_for_ever_does_not_delay_the_exit() {
    let mut host = Host::new();
    let (stdout, _stderr) = host.run(shell("yes & exit 5"));
    let reader = thread::spawn(move || text(stdout).len());
    assert_eq!(host.expect_exit(1), Exit::Code(5));
    reader.join().unwrap();
    host.shut_down();
}

#[test]
fn a_host_that_closes_stdout_stops_the_writer() {
    let mut host = Host::new();
    let (mut stdout, _stderr) = host.run(command(&["yes"]));
    stdout.read_exact(&mut [0; 100]).unwrap();
    drop(stdout);
    assert_eq!(host.expect_exit(1), Exit::Signal(13));
    host.shut_down();
}

#[test]
fn a_signal_reaches_the_process() {
    let mut host = Host::new();
    let (mut stdout, _stderr) =
        host.run(shell("trap 'echo usr1' USR1; echo up; while :; do sleep 0.05; done"));
    let mut up = [0; 3];
    stdout.read_exact(&mut up).unwrap();
    host.send(&HostMessage::Signal { exec: 1, number: 10 });
    let mut usr1 = [0; 5];
    stdout.read_exact(&mut usr1).unwrap();
    assert_eq!(&usr1, b"usr1\n");
    host.send(&HostMessage::Signal { exec: 1, number: 15 });
    assert_eq!(host.expect_exit(1), Exit::Signal(15));
    host.send(&HostMessage::Signal { exec: 1, number: 15 });
    host.shut_down();
}

/// A shell waits for what it runs, so an interrupt of the shell alone would be nothing to see.
#[test]
fn an_interrupt_reaches_what_the_command_has_started() {
    let mut host = Host::new();
    let (mut stdout, _stderr) = host.run(shell("sh -c 'echo up; exec sleep 10000'; echo over"));
    let mut up = [0; 3];
    stdout.read_exact(&mut up).unwrap();
    host.send(&HostMessage::Signal { exec: 1, number: 2 });
    assert_eq!(host.expect_exit(1), Exit::Signal(2));
    host.shut_down();
}

#[test]
fn closing_stdin_ends_a_reader() {
    let mut host = Host::new();
    host.start(Process { stdin: true, ..command(&["cat"]) });
    let _stdin = host.accept(1, Stream::Stdin);
    let (_stdout, _stderr) = (host.accept(1, Stream::Stdout), host.accept(1, Stream::Stderr));
    host.expect_started(1);
    host.send(&HostMessage::CloseStdin { exec: 1 });
    assert_eq!(host.expect_exit(1), Exit::Code(0));
    host.shut_down();
}

#[test]
fn without_stdin_a_reader_sees_the_end() {
    let mut host = Host::new();
    let (stdout, _stderr) = host.run(command(&["cat"]));
    assert_eq!(text(stdout), "");
    assert_eq!(host.expect_exit(1), Exit::Code(0));
    host.shut_down();
}

fn on_terminal(process: Process) -> Process {
    Process { tty: Some(WinSize { rows: 30, cols: 100 }), stdin: true, ..process }
}

/// Reads until `expected` has come.
fn read_until(stream: &mut UnixStream, expected: &str) -> String {
    let mut seen = String::new();
    let mut byte = [0; 1];
    while !seen.ends_with(expected) {
        assert_eq!(stream.read(&mut byte).unwrap(), 1, "ended after {seen:?}");
        seen.push(char::from(byte[0]));
    }
    seen
}

#[test]
fn a_terminal_has_its_size_and_a_resize_is_seen() {
    let mut host = Host::new();
    let script = "test -t 0 && test -t 1 && test -t 2 && stty size; echo $TERM; \
        trap 'stty size; exit 6' WINCH; echo ready; while :; do sleep 0.05; done";
    host.start(on_terminal(shell(script)));
    let _stdin = host.accept(1, Stream::Stdin);
    let mut stdout = host.accept(1, Stream::Stdout);
    host.expect_started(1);
    assert_eq!(read_until(&mut stdout, "ready\r\n"), "30 100\r\nxterm\r\nready\r\n");
    host.send(&HostMessage::Resize { exec: 1, size: WinSize { rows: 5, cols: 7 } });
    assert_eq!(text(stdout), "5 7\r\n");
    assert_eq!(host.expect_exit(1), Exit::Code(6));
    host.shut_down();
}

#[test]
fn on_a_terminal_keys_and_signals_reach_the_foreground() {
    for by_key in [true, false] {
        let mut host = Host::new();
        // One long sleep would not do: a shell that is about to fork keeps the signal to itself.
        let script = "trap 'exit 9' INT; echo ready; while :; do sleep 0.05; done";
        host.start(on_terminal(shell(script)));
        let mut stdin = host.accept(1, Stream::Stdin);
        let mut stdout = host.accept(1, Stream::Stdout);
        host.expect_started(1);
        read_until(&mut stdout, "ready\r\n");
        if by_key {
            stdin.write_all(b"\x03").unwrap();
        } else {
            host.send(&HostMessage::Signal { exec: 1, number: 2 });
        }
        assert_eq!(host.expect_exit(1), Exit::Code(9));
        host.shut_down();
    }
}

#[test]
fn the_end_of_input_is_the_end_on_a_terminal_too() {
    let mut host = Host::new();
    host.start(on_terminal(shell("stty -echo; echo ready; cat; echo over")));
    let mut stdin = host.accept(1, Stream::Stdin);
    let mut stdout = host.accept(1, Stream::Stdout);
    host.expect_started(1);
    read_until(&mut stdout, "ready\r\n");
    stdin.write_all(b"line\n").unwrap();
    stdin.shutdown(Shutdown::Write).unwrap();
    assert_eq!(text(stdout), "line\r\nover\r\n");
    assert_eq!(host.expect_exit(1), Exit::Code(0));
    host.shut_down();
}

#[test]
fn a_terminal_delivers_all_it_was_given() {
    let mut host = Host::new();
    host.start(on_terminal(shell("seq 100000")));
    let _stdin = host.accept(1, Stream::Stdin);
    let stdout = host.accept(1, Stream::Stdout);
    host.expect_started(1);
    let lines = text(stdout);
    assert!(lines.ends_with("99999\r\n100000\r\n"));
    assert_eq!(lines.lines().count(), 100_000);
    assert_eq!(host.expect_exit(1), Exit::Code(0));
    host.shut_down();
}

#[test]
fn directory_environment_and_user_are_those_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let cwd = dir.path().join("a/b").to_str().unwrap().to_string();
    let mut host = Host::new();
    let process = shell("pwd; echo $FOO; id -u; echo $PATH");
    let (stdout, _stderr) = host.run(Process { cwd: cwd.clone(), env: vec!["FOO=bar".into()], ..process });
    let uid = rustix::process::getuid().as_raw();
    assert_eq!(text(stdout), format!("{cwd}\nbar\n{uid}\n{}\n", crate::command::DEFAULT_PATH));
    assert_eq!(host.expect_exit(1), Exit::Code(0));
    host.shut_down();
}

#[test]
fn another_user_may_open_its_output_by_name() {
    if !rustix::process::getuid().is_root() {
        std::println!("skipped: only root can become another user");
        return;
    }
    let mut host = Host::new();
    let process = shell("id -u; id -g; id -G; echo again > /dev/stdout; cat /proc/self/status | grep CapEff");
    let (stdout, stderr) = host.run(Process { user: "4242:4243".into(), ..process });
    assert_eq!(text(stdout), "4242\n4243\n4243\nagain\nCapEff:\t0000000000000000\n");
    assert_eq!(text(stderr), "");
    assert_eq!(host.expect_exit(1), Exit::Code(0));
    host.shut_down();
}

#[test]
fn what_cannot_be_started_says_why_with_a_shells_code() {
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("script");
    std::fs::write(&script, "#!/nonexistent/interpreter\n").unwrap();
    let junk = dir.path().join("junk");
    std::fs::write(&junk, "\u{7f}ELF junk").unwrap();
    for file in [&script, &junk] {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(file, mode).unwrap();
    }
    let (script, junk) = (script.to_str().unwrap(), junk.to_str().unwrap());
    let cases = [
        (command(&["no-such-command"]), 127, "run no-such-command: not found in PATH".to_string()),
        (command(&["/etc/passwd"]), 126, "run /etc/passwd: Permission denied".into()),
        (
            command(&[&"x".repeat(1 << 20)]),
            126,
            format!("run /usr/local/sbin/{}…: File name too long", "x".repeat(984)),
        ),
        (command(&["/etc"]), 126, "run /etc: Is a directory".into()),
        (
            command(&[script]),
            127,
            format!("run {script}: its interpreter or dynamic loader is not in the image"),
        ),
        (command(&[junk]), 126, format!("run {junk}: Exec format error (for another kind of machine?)")),
        (command(&[]), 125, "run: no command given".into()),
        (command(&["true", "a\0b"]), 125, "run true: zero byte in \"a\\0b\"".into()),
        (
            Process { user: "no such".into(), ..command(&["true"]) },
            125,
            "find user no such: no matching entry in /etc/passwd".into(),
        ),
        (
            Process { cwd: "/etc/passwd/x".into(), ..command(&["true"]) },
            125,
            "make directory /etc/passwd/x: Not a directory".into(),
        ),
    ];
    let mut host = Host::new();
    for (number, (process, code, line)) in cases.into_iter().enumerate() {
        if number == 0 {
            host.start(process);
        } else {
            host.send(&HostMessage::Exec(process));
        }
        let answer = host.next();
        let AgentMessage::Failed(failure) = answer else { panic!("{answer:?} instead of {line}") };
        assert_eq!((failure.code, failure.to_string()), (code, line));
    }
    host.shut_down();
}

#[test]
fn a_second_process_runs_beside_the_first() {
    let mut host = Host::new();
    host.send(&HostMessage::Exec(shell("true")));
    assert!(matches!(host.next(), AgentMessage::Failed(_)), "before the start");
    let (first, _stderr) = host.run(command(&["sleep", "60"]));
    host.send(&HostMessage::Exec(shell("true")));
    assert!(matches!(host.next(), AgentMessage::Failed(_)), "an id in use");
    host.send(&HostMessage::Exec(Process { exec: 2, ..shell("echo second; exit 2") }));
    let (second, _stderr) = (host.accept(2, Stream::Stdout), host.accept(2, Stream::Stderr));
    host.expect_started(2);
    assert_eq!(text(second), "second\n");
    assert_eq!(host.expect_exit(2), Exit::Code(2));
    host.send(&HostMessage::Signal { exec: 1, number: 9 });
    assert_eq!(host.expect_exit(1), Exit::Signal(9));
    assert_eq!(text(first), "");
    host.shut_down();
}

#[test]
fn a_root_that_cannot_be_entered_is_a_failure_and_may_be_tried_again() {
    let mut host = Host::new();
    let start = Start {
        root: Root::Initramfs,
        hostname: "broken".into(),
        hosts: String::new(),
        process: shell("true"),
    };
    host.send(&HostMessage::Start(start));
    let AgentMessage::Failed(failure) = host.next() else { panic!("not failed") };
    assert_eq!(
        (failure.exec, failure.code, failure.to_string()),
        (1, 125, "mount root /dev/vda: no".to_string())
    );
    let (stdout, _stderr) = host.run(shell("echo ok"));
    assert_eq!(text(stdout), "ok\n");
    assert_eq!(host.expect_exit(1), Exit::Code(0));
    host.shut_down();
}

#[test]
fn a_message_nobody_understands_is_logged_and_passed_over() {
    let mut host = Host::new();
    host.control.write_all(&[1, 0, 0, 0, 99, 2, 0, 0, 0, 3, 0]).unwrap();
    for expected in ["message of unknown kind 0x63", "decode message: exec: the message ends in it"] {
        let AgentMessage::Log(log) = host.next() else { panic!("no log") };
        assert_eq!((log.level, log.to_string().as_str()), (Level::Error, expected));
    }
    host.shut_down();
}

#[test]
fn a_host_that_is_gone_before_anything_runs_is_called_again() {
    let mut host = Host::new();
    let again = thread::spawn({
        let listener = host.listener.try_clone().unwrap();
        move || listener.accept().unwrap().0
    });
    host.control.shutdown(Shutdown::Both).unwrap();
    host.control = again.join().unwrap();
    let AgentMessage::Ready(ready) = host.next() else { panic!("not ready") };
    assert_eq!((ready.version, &*ready.kernel), (VERSION, "test"));
    host.send(&HostMessage::Renew(Renew { seed: [7; 8], clock_ns: 5 }));
    let AgentMessage::Log(log) = host.next() else { panic!("no log") };
    assert_eq!((log.level, &*log.text), (Level::Warning, "set the clock: 5"));
    let (stdout, _) = host.run(Process { exec: 1, argv: vec!["true".into()], ..Process::default() });
    drop(stdout);
    assert_eq!(host.expect_exit(1), Exit::Code(0));
    assert_eq!(host.agent_code(), 1, "now its end is the end");
}

#[test]
fn who_the_machine_is_waits_for_its_root_and_is_changed_at_once_later() {
    let mut host = Host::new();
    let identity = |name: &str| HostMessage::Identify(Identity { hostname: name.into(), machine_id: [1, 2] });
    host.send(&identity("first"));
    let process = Process { exec: 1, argv: vec!["sleep".into(), "1000".into()], ..Process::default() };
    host.start(Process { exec: 9, argv: vec!["no-such-command".into()], ..Process::default() });
    let AgentMessage::Log(log) = host.next() else { panic!("no log") };
    assert_eq!(log.text, "name the machine: first", "not before the start");
    let AgentMessage::Failed(_) = host.next() else { panic!("it ran") };
    host.send(&HostMessage::Exec(process));
    let _outputs = (host.accept(1, Stream::Stdout), host.accept(1, Stream::Stderr));
    host.expect_started(1);
    host.send(&identity("second"));
    let AgentMessage::Log(log) = host.next() else { panic!("no log") };
    assert_eq!(log.text, "name the machine: second");
    // In a machine it would end with that; here it would stay.
    host.send(&HostMessage::Signal { exec: 1, number: 9 });
    assert_eq!(host.expect_exit(1), Exit::Signal(9));
    host.shut_down();
}

#[test]
fn the_session_ends_when_the_host_is_gone_or_talks_nonsense() {
    assert_eq!(Host::new().agent_code(), 1);
    let mut host = Host::new();
    host.control.write_all(&[0xff; 64]).unwrap();
    assert_eq!(host.agent_code(), 1);
}

#[test]
fn the_embedded_agent_is_a_small_static_program() {
    let agent = crate::AGENT;
    assert!(agent.starts_with(b"\x7fELF\x02\x01"));
    assert!(agent.len() < 1 << 20, "{} bytes", agent.len());
    let word = |at: usize| u16::from_le_bytes([agent[at], agent[at + 1]]);
    assert_eq!((word(16), word(18)), (2, 62), "ET_EXEC for x86-64");
    let headers = usize::from(word(32));
    let kinds = (0..usize::from(word(56))).map(|i| word(headers + i * usize::from(word(54))));
    assert!(
        kinds.into_iter().all(|kind| kind != 2 && kind != 3),
        "it has a dynamic section or an interpreter"
    );
}
