//! What the sandbox takes and what it leaves, each tried in a process of its own: this program again.
// UNSAFETY: makes system calls that have no safe form, to see them refused.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::process::{Command, Output};
use std::sync::mpsc::{Receiver, Sender, channel};

use sandbox::{Network, Violation, drop_privileges, forbid_system_calls};

const CODE: i32 = 77;

/// An ioctl of an engine's: KVM_RUN.
const ENGINES: &[u64] = &[0xae80];

fn say(violation: &Violation) -> i32 {
    let mut line = [0; 100];
    let len = line.len();
    let mut rest = &mut line[..];
    let _ = writeln!(rest, "violation: {}", violation.name.unwrap_or("?"));
    let left = rest.len();
    let _ = rustix::io::write(rustix::stdio::stderr(), &line[..len - left]);
    CODE
}

/// Runs the part `name` of [`part`] in a process that has entered the sandbox.
fn sandboxed(name: &str) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "part", "--ignored", "--nocapture"])
        .env("PART", name)
        .env_remove("RUST_BACKTRACE")
        .output()
        .unwrap()
}

/// A thread that is there before the sandbox: the filter must reach it.
fn early_thread() -> (Sender<String>, Receiver<()>) {
    let (sender, parts) = channel::<String>();
    let (done, wait) = channel();
    std::thread::spawn(move || {
        act(&parts.recv().unwrap());
        done.send(()).unwrap();
    });
    (sender, wait)
}

#[test]
#[ignore = "a part of other tests"]
fn part() {
    let Ok(name) = std::env::var("PART") else { return };
    drop_privileges().unwrap();
    let (sender, wait) = early_thread();
    let network = if name.starts_with("net:") { Network::Sockets } else { Network::None };
    forbid_system_calls(ENGINES, network, say).unwrap();
    sender.send(name).unwrap();
    wait.recv().unwrap();
    // No way back through the test harness, which may open files.
    rustix::io::write(rustix::stdio::stderr(), b"went on\n").unwrap();
    std::process::exit(0);
}

fn act(name: &str) {
    match name {
        "nothing" => {}
        "live" => live(),
        "openat" | "net:openat" => drop(std::fs::File::open("/dev/null")),
        "socket" => drop(std::net::UdpSocket::bind("127.0.0.1:0")),
        "kill" => drop(rustix::process::test_kill_process(rustix::process::Pid::INIT)),
        "unlink" => drop(std::fs::remove_file("/nonexistent")),
        "prctl" => drop(rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::Dumpable)),
        "ioctl" => raw(libc::SYS_ioctl, [0, libc::TIOCSTI as i64, c"x".as_ptr() as i64, 0, 0, 0]),
        // Nothing answers it here.
        "engine" => raw(libc::SYS_ioctl, [0, ENGINES[0] as i64, 0, 0, 0, 0]),
        "mmap" => {
            let (protection, flags) =
                (libc::PROT_READ | libc::PROT_EXEC, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            raw(libc::SYS_mmap, [0, 4096, protection.into(), flags.into(), -1, 0]);
        }
        "mprotect" => {
            raw(
                libc::SYS_mprotect,
                [0, 0, (libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC).into(), 0, 0, 0],
            );
        }
        "socketpair" => {
            raw(libc::SYS_socketpair, [libc::AF_NETLINK.into(), libc::SOCK_RAW.into(), 0, 0, 0, 0])
        }
        "setsockopt" => {
            raw(libc::SYS_setsockopt, [0, libc::SOL_SOCKET.into(), libc::SO_ATTACH_FILTER.into(), 0, 0, 0]);
        }
        "net:live" => {
            let socket = raw_socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_NONBLOCK);
            assert!(socket >= 0);
            raw(libc::SYS_connect, [socket, 0, 0, 0, 0, 0]);
            assert!(raw_socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC) >= 0);
        }
        "net:socket" => drop(raw_socket(libc::AF_UNIX, libc::SOCK_STREAM)),
        "net:raw:socket" => drop(raw_socket(libc::AF_INET, libc::SOCK_RAW)),
        "net:socketpair" => drop(std::os::unix::net::UnixDatagram::pair()),
        "net:bind" => raw(libc::SYS_bind, [0; 6]),
        "execve" => raw(libc::SYS_execve, [c"/bin/true".as_ptr() as i64, 0, 0, 0, 0, 0]),
        "ptrace" => raw(libc::SYS_ptrace, [0; 6]),
        "io_uring_setup" => raw(libc::SYS_io_uring_setup, [0; 6]),
        other => panic!("no part {other}"),
    }
}

fn raw(number: i64, a: [i64; 6]) {
    // SAFETY: each call above is refused before the kernel looks at its arguments; were it not, all of them are
    // harmless to this process, which is made for it.
    unsafe { libc::syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]) };
}

fn raw_socket(family: i32, kind: i32) -> i64 {
    // SAFETY: the call takes no pointer.
    unsafe { libc::syscall(libc::SYS_socket, family, kind, 0) }
}

/// What a running machine does.
fn live() {
    let big = vec![1u8; 64 << 20];
    let sums: Vec<_> = (0..12).map(|n| std::thread::spawn(move || vec![n; 1 << 20].len())).collect();
    assert!(sums.into_iter().all(|sum| sum.join().unwrap() == 1 << 20));
    assert_eq!(big.iter().map(|b| u64::from(*b)).sum::<u64>(), 64 << 20);
    drop(big);
    // An arena grows by small blocks and could shrink again.
    let small = || drop((0..300_000u32).map(|n| vec![n as u8; 100]).collect::<Vec<_>>());
    std::thread::spawn(small).join().unwrap();
    let (mut one, mut two) = std::os::unix::net::UnixStream::pair().unwrap();
    one.write_all(b"x").unwrap();
    two.read_exact(&mut [0]).unwrap();
    let _copy = one.as_fd().try_clone_to_owned().unwrap();
    one.set_write_timeout(Some(std::time::Duration::from_secs(1))).unwrap();
    one.set_read_timeout(None).unwrap();
    two.set_nonblocking(true).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(1));
    let (_sender, never) = channel::<()>();
    assert!(never.recv_timeout(std::time::Duration::from_millis(1)).is_err());
    let _ = rustix::termios::tcgetattr(rustix::stdio::stderr());
    std::thread::Builder::new().name("named".into()).spawn(|| {}).unwrap().join().unwrap();
    let caught = std::panic::catch_unwind(|| panic!("on purpose"));
    assert!(caught.is_err());
    // No process, and an error instead of a death: signals are blocked there.
    let started = Command::new("/bin/true").status();
    assert_eq!(started.unwrap_err().raw_os_error(), Some(libc::ENOSYS));
}

#[test]
fn what_a_machine_does_is_allowed() {
    for name in ["nothing", "live", "engine", "net:live"] {
        let output = sandboxed(name);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && text.contains("went on"), "{name}: {output:?}");
    }
}

#[test]
fn every_forbidden_call_ends_the_process_and_is_named() {
    let names = [
        "openat",
        "socket",
        "kill",
        "unlink",
        "prctl",
        "ioctl",
        "mmap",
        "mprotect",
        "socketpair",
        "setsockopt",
        "execve",
        "ptrace",
        "io_uring_setup",
        "net:socket",
        "net:raw:socket",
        "net:socketpair",
        "net:bind",
        "net:openat",
    ];
    for name in names {
        let output = sandboxed(name);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(CODE), "{name}: {output:?}");
        let call = name.rsplit(':').next().unwrap();
        assert!(text.contains(&format!("violation: {call}\n")), "{name}: {text}");
        assert!(!text.contains("went on"), "{name}: {text}");
    }
}

#[test]
fn no_capability_and_no_way_to_one_is_left() {
    let thread = std::thread::spawn(|| {
        drop_privileges().unwrap();
        let inherited = std::thread::spawn(|| rustix::thread::capabilities(None).unwrap()).join().unwrap();
        (inherited, rustix::thread::no_new_privs().unwrap())
    });
    let (sets, no_new_privs) = thread.join().unwrap();
    assert!(sets.effective.is_empty() && sets.permitted.is_empty() && sets.inheritable.is_empty());
    assert!(no_new_privs);
}
