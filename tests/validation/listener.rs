//! `config-linux.md`, `seccomp` with `SCMP_ACT_NOTIFY`: a listener is sent the container's process state and the descriptor.

use std::io::IoSliceMut;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::{Value, json};

use crate::support::PATIENCE;
use crate::support::bundle::Bundle;

/// A bundle whose script makes folders, of which the listener at `agent` in the bundle's folder is notified.
fn notifying(script: &str) -> Option<(Bundle, UnixListener)> {
    let mut bundle = Bundle::new(script)?;
    bundle.add_mount("/tmp", "tmpfs", "tmpfs", &[]);
    bundle.config["annotations"] = json!({ "org.example": "x".repeat(5000) });
    bundle.config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": bundle.path("agent"), "listenerMetadata": "for you",
        "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY" }],
    });
    let listener = UnixListener::bind(bundle.path("agent")).unwrap();
    Some((bundle, listener))
}

/// What a listener is sent: all of the connection, to its end.
pub fn hear(listener: &UnixListener) -> (Value, OwnedFd) {
    let (connection, _) = listener.accept().unwrap();
    connection.set_read_timeout(Some(PATIENCE)).unwrap();
    let (mut text, mut given) = (Vec::new(), Vec::new());
    loop {
        let mut bytes = [0; 1000];
        let mut data = [IoSliceMut::new(&mut bytes)];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let read = recvmsg(&connection, &mut data, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap().bytes;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                given.extend(fds);
            }
        }
        if read == 0 {
            break;
        }
        text.extend_from_slice(&bytes[..read]);
    }
    assert_eq!(given.len(), 1);
    (serde_json::from_slice(&text).unwrap(), given.remove(0))
}

/// Waits until somebody waits for an answer.
pub fn wait_for_a_call(notifications: &OwnedFd) {
    let patience = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
    let mut polled = [PollFd::from_borrowed_fd(notifications.as_fd(), PollFlags::IN)];
    assert_eq!(poll(&mut polled, Some(&patience)).unwrap(), 1);
    assert!(polled[0].revents().contains(PollFlags::IN), "{:?}", polled[0].revents());
}

#[test]
fn a_listener_is_sent_the_state_and_holds_the_calls() {
    // Once the listener is gone, there is no such call.
    let Some((mut bundle, listener)) = notifying("mkdir /tmp/x; echo \"ended with $?\"") else { return };
    for (no_new_privileges, status) in [(true, "created"), (false, "creating")] {
        bundle.config["process"]["noNewPrivileges"] = json!(no_new_privileges);
        let container = bundle.create(&[]);
        let pid = container.state()["pid"].clone();
        container.start();
        let (said, notifications) = hear(&listener);
        assert_eq!((&said["pid"], &said["state"]["pid"]), (&pid, &pid), "{said}");
        assert_eq!(said["fds"], json!(["seccompFd"]));
        assert_eq!(said["metadata"], json!("for you"));
        assert_eq!(said["state"]["id"], json!(container.id));
        assert_eq!(said["state"]["status"], json!(status));
        assert_eq!(said["state"]["bundle"], json!(bundle.folder.path()));
        assert_eq!(said["state"]["annotations"], bundle.config["annotations"]);
        assert!(said["ociVersion"].as_str().unwrap().starts_with("1."), "{said}");
        wait_for_a_call(&notifications);
        assert_eq!(container.status(), "running");
        drop(notifications);
        container.wait_for("stopped");
        let log = container.log();
        assert!(log.contains("Function not implemented") && log.contains("ended with 1"), "{log}");
    }
}

#[test]
fn a_command_that_comes_later_has_the_listener_too() {
    let Some((bundle, listener)) = notifying("sleep 1000") else { return };
    let container = bundle.create(&[]);
    container.start();
    let (first, _kept) = hear(&listener);
    let mut exec = bundle.oci(&["exec", &container.id, "/bin/mkdir", "/tmp/x"]);
    let mut exec = exec.stderr(std::process::Stdio::null()).spawn().unwrap();
    let (said, notifications) = hear(&listener);
    assert_eq!(said["state"]["status"], json!("running"));
    assert_eq!(said["state"]["pid"], first["pid"]);
    assert_ne!(said["pid"], first["pid"]);
    let group = bundle.good(&["ps", "--format", "json", &container.id]);
    assert!(serde_json::from_str::<Vec<Value>>(&group).unwrap().contains(&said["pid"]), "{said} {group}");
    wait_for_a_call(&notifications);
    drop(notifications);
    let begun = Instant::now();
    while exec.try_wait().unwrap().is_none() {
        assert!(begun.elapsed() < PATIENCE, "the command waits for a listener that is gone");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert_eq!(exec.wait().unwrap().code(), Some(1));
}

#[test]
fn a_listener_that_cannot_be_told_is_an_error() {
    let Some((mut bundle, listener)) = notifying("true") else { return };
    drop(listener);
    bundle.refused(&["seccomp listener", "agent", "refused"]);
    std::fs::remove_file(bundle.path("agent")).unwrap();
    bundle.refused(&["seccomp listener", "agent", "No such file"]);
    let config = bundle.config.clone();
    let rule = |names: Value| json!([{ "names": names, "action": "SCMP_ACT_NOTIFY" }]);
    for (field, value, words) in [
        ("listenerPath", Value::Null, ["seccomp", "listenerMetadata"]),
        ("defaultAction", json!("SCMP_ACT_NOTIFY"), ["seccomp", "sendmsg"]),
        ("defaultAction", json!("SCMP_ACT_ERRNO"), ["seccomp", "sendmsg"]),
        ("syscalls", rule(json!(["sendmsg"])), ["seccomp", "sendmsg"]),
    ] {
        bundle.config = config.clone();
        bundle.config["linux"]["seccomp"][field] = value;
        bundle.refused(&words);
    }
    bundle.config = config;
    let seccomp = bundle.config["linux"]["seccomp"].as_object_mut().unwrap();
    seccomp.remove("listenerMetadata");
    let path = seccomp.remove("listenerPath");
    bundle.refused(&["SCMP_ACT_NOTIFY", "listenerPath"]);
    // Without a rule that needs it, the place says nothing.
    bundle.config["linux"]["seccomp"]["listenerPath"] = path.unwrap();
    bundle.config["linux"]["seccomp"]["syscalls"] = json!([]);
    bundle.output();
    bundle.config["linux"]["seccomp"]["flags"] = json!(["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]);
    bundle.refused(&["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV", "SCMP_ACT_NOTIFY"]);
}
