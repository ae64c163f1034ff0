//! The same commands in guests that booted, that go on from a template, that were saved and restored, and that are copies: they
//! must not notice. `make matrix` runs every other test all four ways too.

use std::io::{Read, Write};
use std::net::TcpListener;

use crate::support::starts::Start;
use crate::support::{Ended, finish, start};

/// What all four leave, which must be the same.
fn each(flags: &[&str], script: &str) -> Option<Vec<(Start, Ended)>> {
    let arguments = [flags, &["debian", "--", "bash", "-c", script]].concat();
    Start::ALL.into_iter().map(|start| Some((start, finish(start.run(&arguments)?)))).collect()
}

#[test]
fn output_errors_variables_and_the_exit_code_are_the_commands() {
    let script = "echo out $NAME $(nproc) $(id -u); echo err >&2; cd /usr/bin; cat [a-c]* | cksum; \
                  for i in 1 2 3 4 5; do (echo $i | sha256sum; true) | cksum; done; \
                  head -c 20M /dev/zero | tr '\\0' x > /tmp/x; cksum < /tmp/x; exit 9";
    let Some(ends) = each(&["--cpus", "2", "-e", "NAME=value"], script) else { return };
    let expected = &ends[0].1.stdout;
    assert!(expected.starts_with("out value 2 0\n"), "{ends:?}");
    for (start, ended) in &ends {
        assert_eq!((ended.code(), &ended.stdout), (9, expected), "{start:?}: {ended:?}");
        assert!(ended.stderr.lines().any(|line| line == "err"), "{start:?}: {ended:?}");
    }
}

#[test]
fn time_goes_on_and_is_the_hosts() {
    let script = "a=$(date +%s%N); u=$(cut -d. -f1 /proc/uptime); sleep 1.2; b=$(date +%s%N); v=$(cut -d. -f1 /proc/uptime); \
                  echo $((b - a >= 1000000000)) $((v > u)) $(date +%s)";
    let Some(ends) = each(&[], script) else { return };
    for (start, ended) in ends {
        let words: Vec<&str> = ended.stdout.split_whitespace().collect();
        assert_eq!(words[..2], ["1", "1"], "{start:?}: {ended:?}");
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        assert!(now.abs_diff(words[2].parse().unwrap()) < 600, "{start:?}: {ended:?}");
    }
}

#[test]
fn input_comes_and_a_signal_arrives() {
    let script = "trap 'echo told; exit 5' TERM; read line; echo got $line; while :; do sleep 0.1; done";
    for how in [Start::Booted, Start::Template, Start::Snapshot] {
        let Some(mut command) = how.run(&["-i", "debian", "--", "bash", "-c", script]) else { return };
        command.stdin(std::process::Stdio::piped());
        let mut running = start(command);
        running.child.stdin.take().unwrap().write_all(b"a line\n").unwrap();
        running.wait_for("got a line\n");
        running.signal(rustix::process::Signal::TERM);
        let ended = running.finish();
        assert_eq!((ended.code(), ended.stdout.as_str()), (5, "got a line\ntold\n"), "{how:?}: {ended:?}");
    }
}

#[test]
fn servers_of_the_host_are_reached() {
    for how in [Start::Booted, Start::Template, Start::Snapshot] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let script = format!("exec 3<>/dev/tcp/10.0.2.2/{port}; echo question >&3; cat <&3");
        let Some(command) = how.run(&["--host-loopback", "debian", "--", "bash", "-c", &script]) else {
            return;
        };
        let running = start(command);
        let (mut stream, _) = listener.accept().unwrap();
        let mut question = [0; 9];
        stream.read_exact(&mut question).unwrap();
        stream.write_all(b"answer\n").unwrap();
        drop(stream);
        let ended = running.finish();
        assert_eq!((ended.code(), ended.stdout.as_str()), (0, "answer\n"), "{how:?}: {ended:?}");
    }
}
