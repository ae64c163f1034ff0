//! What a confined server of names may still do and what it may not, each tried in a process of its own: this program again.
// UNSAFETY: makes system calls that have no safe form, to see them refused.

use std::io::Read;
use std::net::{TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Output};

use rustix::fs::{Mode, OFlags, openat};
use sandbox::{Violation, confine_names};

const CODE: i32 = 77;

fn say(violation: &Violation) -> i32 {
    for part in [b"violation: ", violation.name.unwrap_or("?").as_bytes(), b"\n"] {
        let _ = rustix::io::write(rustix::stdio::stderr(), part);
    }
    CODE
}

/// Runs the part `name` of [`part`] in a process that is confined to `folder`.
fn confined(name: &str, folder: &Path) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "part", "--ignored", "--nocapture"]).env("PART", name).env("FOLDER", folder);
    command.env_remove("RUST_BACKTRACE").output().unwrap()
}

#[test]
#[ignore = "a part of other tests"]
fn part() {
    let (Ok(name), Some(folder)) = (std::env::var("PART"), std::env::var_os("FOLDER")) else { return };
    let folder = confine_names(Path::new(&folder), say).unwrap();
    act(&name, &folder);
    rustix::io::write(rustix::stdio::stderr(), b"went on\n").unwrap();
    std::process::exit(0);
}

fn act(name: &str, folder: &OwnedFd) {
    let open = |path: &str, flags| openat(folder, path, flags | OFlags::CLOEXEC, Mode::RUSR);
    match name {
        "live" => {
            let mut text = String::new();
            std::fs::File::from(open("inside", OFlags::RDONLY).unwrap()).read_to_string(&mut text).unwrap();
            assert_eq!(text, "seen");
            // There is nothing above it, and no other root.
            assert!(open("../../../etc/passwd", OFlags::RDONLY).is_err());
            assert!(
                std::fs::File::open("/etc/passwd").is_err()
                    && std::fs::File::open("/proc/self/maps").is_err()
            );
            let one = UdpSocket::bind("127.0.0.1:0").unwrap();
            let two = UdpSocket::bind("127.0.0.1:0").unwrap();
            one.send_to(b"x", two.local_addr().unwrap()).unwrap();
            assert_eq!(two.recv_from(&mut [0; 2]).unwrap().0, 1);
            // Nobody listens there.
            assert!(TcpStream::connect(one.local_addr().unwrap()).is_err());
            // A port that only root may have: in no thread.
            assert!(UdpSocket::bind("127.0.0.1:67").is_err());
            let thread = std::thread::spawn(|| UdpSocket::bind("127.0.0.1:67").is_err());
            assert!(thread.join().unwrap());
            rustix::fs::flock(folder.as_fd(), rustix::fs::FlockOperation::Unlock).unwrap_err();
        }
        "write:openat" => drop(open("inside", OFlags::WRONLY)),
        "create:openat" => drop(open("new", OFlags::CREATE)),
        "unlinkat" => drop(rustix::fs::unlinkat(folder, "inside", rustix::fs::AtFlags::empty())),
        "unix:socket" => raw(libc::SYS_socket, [libc::AF_UNIX, libc::SOCK_STREAM, 0]),
        "raw:socket" => raw(libc::SYS_socket, [libc::AF_INET, libc::SOCK_RAW, 1]),
        "netlink:socket" => raw(libc::SYS_socket, [libc::AF_NETLINK, libc::SOCK_DGRAM, 0]),
        "listen" => raw(libc::SYS_listen, [0, 0, 0]),
        "execve" => raw(libc::SYS_execve, [0, 0, 0]),
        "unshare" => raw(libc::SYS_unshare, [0, 0, 0]),
        "kill" => raw(libc::SYS_kill, [1, 0, 0]),
        "setns" => raw(libc::SYS_setns, [0, 0, 0]),
        other => panic!("no part {other}"),
    }
}

fn raw(number: i64, a: [i32; 3]) {
    // SAFETY: each call above is refused before the kernel looks at its arguments; were it not, all of them are
    // harmless to this process, which is made for it.
    unsafe { libc::syscall(number, a[0], a[1], a[2]) };
}

#[test]
fn a_server_of_names_reads_its_folder_and_has_sockets_and_nothing_else() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: bridges, and so their servers, are root's");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("inside"), "seen").unwrap();
    let live = confined("live", folder.path());
    let text = String::from_utf8_lossy(&live.stderr);
    assert!(live.status.success() && text.contains("went on"), "{live:?}");
    let forbidden = [
        "write:openat",
        "create:openat",
        "unlinkat",
        "unix:socket",
        "raw:socket",
        "netlink:socket",
        "listen",
        "execve",
        "unshare",
        "kill",
        "setns",
    ];
    for name in forbidden {
        let output = confined(name, folder.path());
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(CODE), "{name}: {output:?}");
        let call = name.rsplit(':').next().unwrap();
        assert!(
            text.contains(&format!("violation: {call}\n")) && !text.contains("went on"),
            "{name}: {text}"
        );
    }
    assert_eq!(std::fs::read(folder.path().join("inside")).unwrap(), b"seen");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}
