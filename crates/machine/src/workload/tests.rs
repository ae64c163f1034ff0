//! A session against an agent that is a thread on the other end of its sockets; no machine runs a guest here.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;

use protocol::{Exit, HostMessage, Process, Ready, Root, Start, read_message, write_message};

use super::*;
use crate::testing;

fn start(argv: &str) -> Start {
    let process = Process { exec: 1, argv: vec![argv.to_owned()], stdin: true, ..Process::default() };
    Start { root: Root::Initramfs, hostname: String::new(), hosts: String::new(), process }
}

struct Harness {
    session: AgentSession,
    machine: Machine,
    host: Box<dyn VsockHost>,
    stdin: std::fs::File,
    stdout: std::fs::File,
    stderr: std::fs::File,
    fds: Option<(OwnedFd, OwnedFd, OwnedFd)>,
}

fn harness() -> Harness {
    let session = AgentSession::new();
    let host = session.host();
    let machine = testing::machine(testing::Script::halt_for_ever());
    let (in_read, in_write) = rustix::pipe::pipe().unwrap();
    let (out_read, out_write) = rustix::pipe::pipe().unwrap();
    let (err_read, err_write) = rustix::pipe::pipe().unwrap();
    Harness {
        session,
        machine,
        host,
        stdin: in_write.into(),
        stdout: out_read.into(),
        stderr: err_read.into(),
        fds: Some((in_read, out_write, err_write)),
    }
}

/// The agent's side of the first steps: ready, start received.
fn greet(host: &mut dyn VsockHost) -> UnixStream {
    let mut control = host.connect(protocol::CONTROL_PORT).unwrap();
    let ready = Ready { version: protocol::VERSION, kernel: "6.1".into(), failed_modules: Vec::new() };
    write_message(&mut control, &AgentMessage::Ready(ready)).unwrap();
    let first = read_message::<HostMessage>(&mut control).unwrap();
    assert!(matches!(first, Some(HostMessage::Start(_))));
    control
}

fn open(host: &mut dyn VsockHost, stream: Stream) -> UnixStream {
    let mut socket = host.connect(protocol::STREAM_PORT).unwrap();
    Hello { exec: 1, stream }.write(&mut socket).unwrap();
    socket
}

fn run(harness: &mut Harness, session: AgentSession) -> Result<Outcome, Error> {
    let (stdin, stdout, stderr) = harness.fds.take().unwrap();
    let mut progress = |_| ();
    let workload = Workload {
        network: None,
        volumes: Vec::new(),
        start: start("true"),
        streams: Streams { stdin: Some(stdin), stdout, stderr },
        origin: Origin::Booted,
        identity: None,
        boot_timeout: Some(Duration::from_secs(60)),
        timeout: Some(Duration::from_secs(60)),
        progress: &mut progress,
    };
    session.run(&harness.machine, workload)
}

fn take_session(harness: &mut Harness) -> (AgentSession, Box<dyn VsockHost>) {
    let session = std::mem::take(&mut harness.session);
    (session, std::mem::replace(&mut harness.host, Box::new(|_| Err(std::io::ErrorKind::Other.into()))))
}

#[test]
fn output_that_is_slower_than_the_exit_status_is_not_lost() {
    let mut harness = harness();
    let (session, mut host) = take_session(&mut harness);
    let agent = std::thread::spawn(move || {
        let mut control = greet(&mut *host);
        let mut out = host.connect(protocol::STREAM_PORT).unwrap();
        let err = open(&mut *host, Stream::Stderr);
        let exit = AgentMessage::Exited { exec: 1, exit: Exit::Code(3) };
        write_message(&mut control, &exit).unwrap();
        // Only now does the stream say which one it is.
        Hello { exec: 1, stream: Stream::Stdout }.write(&mut out).unwrap();
        out.write_all(b"late").unwrap();
        drop((out, err));
        read_message::<HostMessage>(&mut control)
    });
    let mut stdout = harness.stdout.try_clone().unwrap();
    let outcome = {
        let machine_ends = std::thread::spawn(move || agent.join().unwrap());
        let outcome = run(&mut harness, session);
        assert!(matches!(machine_ends.join().unwrap(), Ok(Some(HostMessage::Shutdown))));
        outcome
    };
    assert_eq!(outcome.unwrap(), Outcome::Exited(Exit::Code(3)));
    let mut text = String::new();
    stdout.read_to_string(&mut text).unwrap();
    assert_eq!(text, "late");
}

#[test]
fn input_reaches_the_process_and_its_echo_comes_back() {
    let mut harness = harness();
    let (session, mut host) = take_session(&mut harness);
    let agent = std::thread::spawn(move || {
        let mut control = greet(&mut *host);
        let mut input = open(&mut *host, Stream::Stdin);
        let mut out = open(&mut *host, Stream::Stdout);
        drop(open(&mut *host, Stream::Stderr));
        std::io::copy(&mut input, &mut out).unwrap();
        drop(out);
        let exit = AgentMessage::Exited { exec: 1, exit: Exit::Signal(9) };
        write_message(&mut control, &exit).unwrap();
        let _ = read_message::<HostMessage>(&mut control);
    });
    let sent: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
    let (mut stdin, mut stdout) = (harness.stdin.try_clone().unwrap(), harness.stdout.try_clone().unwrap());
    harness.stdin = std::fs::File::open("/dev/null").unwrap();
    let bytes = sent.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&bytes).unwrap());
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        stdout.read_to_end(&mut all).unwrap();
        all
    });
    let outcome = run(&mut harness, session).unwrap();
    assert_eq!(outcome, Outcome::Exited(Exit::Signal(9)));
    writer.join().unwrap();
    agent.join().unwrap();
    assert!(reader.join().unwrap() == sent);
}

#[test]
fn a_guest_that_dies_while_booting_is_one_error() {
    let session = AgentSession::new();
    let mut host = session.host();
    let machine = testing::machine(testing::Script::panic_and_reset());
    let mut harness = harness();
    harness.machine = machine;
    // Somebody connects and says nothing, too.
    let _silent = host.connect(protocol::CONTROL_PORT).unwrap();
    let error = run(&mut harness, session).unwrap_err();
    assert!(matches!(&error, Error::GuestEnded { event: MachineEvent::GuestPanic { .. }, .. }), "{error}");
    assert!(error.to_string().contains("VFS: Unable to mount root"), "{error}");
}

#[test]
fn a_signal_before_the_agent_answers_cancels() {
    let mut harness = harness();
    let (session, _host) = take_session(&mut harness);
    session.control().signal(2);
    assert!(matches!(run(&mut harness, session), Err(Error::Cancelled)));
    drop(harness.stderr);
}

#[test]
fn an_agent_of_another_version_is_named() {
    let mut harness = harness();
    let (session, mut host) = take_session(&mut harness);
    let agent = std::thread::spawn(move || {
        let mut control = host.connect(protocol::CONTROL_PORT).unwrap();
        let ready = Ready { version: 999, kernel: String::new(), failed_modules: Vec::new() };
        write_message(&mut control, &AgentMessage::Ready(ready)).unwrap();
        let _ = read_message::<HostMessage>(&mut control);
    });
    let error = run(&mut harness, session).unwrap_err();
    assert!(matches!(error, Error::Protocol(protocol::Error::Version { theirs: 999, .. })));
    agent.join().unwrap();
}

#[test]
fn a_command_beside_the_first_has_streams_and_an_end_of_its_own() {
    let mut harness = harness();
    let (session, mut host) = take_session(&mut harness);
    let control = session.control();
    let (told, events) = std::sync::mpsc::channel();
    let agent = std::thread::spawn(move || {
        let mut agent = greet(&mut *host);
        let first = [Stream::Stdout, Stream::Stderr].map(|stream| open(&mut *host, stream));
        write_message(&mut agent, &AgentMessage::Started { exec: 1, pid: 2 }).unwrap();
        let process = match read_message::<HostMessage>(&mut agent) {
            Ok(Some(HostMessage::Exec(process))) => process,
            other => panic!("{other:?}"),
        };
        let exec = process.exec;
        for stream in [Stream::Stdout, Stream::Stderr] {
            let mut socket = host.connect(protocol::STREAM_PORT).unwrap();
            Hello { exec, stream }.write(&mut socket).unwrap();
            socket.write_all(process.argv[0].as_bytes()).unwrap();
        }
        write_message(&mut agent, &AgentMessage::Started { exec, pid: 3 }).unwrap();
        let number = match read_message::<HostMessage>(&mut agent) {
            Ok(Some(HostMessage::Signal { exec: signalled, number })) if signalled == exec => number,
            other => panic!("{other:?}"),
        };
        write_message(&mut agent, &AgentMessage::Exited { exec, exit: Exit::Signal(number) }).unwrap();
        // An end that nobody waits for is none.
        write_message(&mut agent, &AgentMessage::Exited { exec: exec + 1, exit: Exit::Code(1) }).unwrap();
        // The first goes on: it ends when the owner has heard of the other's end.
        let _ = read_message::<HostMessage>(&mut agent);
        drop(first);
        write_message(&mut agent, &AgentMessage::Exited { exec: 1, exit: Exit::Code(4) }).unwrap();
        let _ = read_message::<HostMessage>(&mut agent);
    });
    let owner = std::thread::spawn(move || {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let streams = Streams { stdin: None, stdout: write.try_clone().unwrap(), stderr: write };
        let process = Process { argv: vec!["hello".into()], ..Process::default() };
        // Until the first runs there is nothing beside it.
        let id = loop {
            let told = told.clone();
            let streams = Streams {
                stdin: None,
                stdout: streams.stdout.try_clone().unwrap(),
                stderr: streams.stderr.try_clone().unwrap(),
            };
            let told = Box::new(move |event| told.send(event).unwrap());
            let id = control.new_extra();
            control.exec(id, Extra { process: process.clone(), streams, told });
            match events.recv().unwrap() {
                ExtraEvent::Lost(_) => std::thread::sleep(Duration::from_millis(5)),
                event => break (event, id),
            }
        };
        drop(streams);
        assert_eq!(id.0, ExtraEvent::Started);
        control.signal_extra(id.1, 15);
        assert_eq!(events.recv().unwrap(), ExtraEvent::Ended(Outcome::Exited(Exit::Signal(15))));
        let mut text = String::new();
        std::fs::File::from(read).read_to_string(&mut text).unwrap();
        assert_eq!(text, "hellohello");
        control.signal(1);
    });
    let outcome = run(&mut harness, session).unwrap();
    owner.join().unwrap();
    agent.join().unwrap();
    assert_eq!(outcome, Outcome::Exited(Exit::Code(4)));
}
