//! Whoever listens to notifications of a filter: it is sent the descriptor they come from, and what container they are of
//! (`config-linux.md`, `listenerPath` and the container process state).
//!
//! The process sends it by itself, for it alone has the descriptor; the connection is the runtime's, made where the path is
//! meant. A connection carries one state and is closed.

use std::io::IoSlice;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown};

use crate::console;
use crate::error::{Result, While};
use crate::spec::Seccomp;
use crate::state::{OCI_VERSION, State};

/// A connection to a listener.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    metadata: Option<String>,
    state: State,
}

impl Listener {
    /// Connects to the listener of a filter that notifies one. `state` is the container's; without an id of a process it is that
    /// of the first one, which is still to come.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn connect(rules: &Seccomp, state: State) -> Result<Option<Self>> {
        let Some(path) = rules.listener_path.as_ref().filter(|_| super::notifies(rules)) else {
            return Ok(None);
        };
        let socket = console::connect("seccomp listener", path)?;
        Ok(Some(Self { socket, metadata: rules.listener_metadata.clone(), state }))
    }

    /// Sends the descriptor of process `pid`'s notifications.
    ///
    /// # Errors
    /// The listener is gone.
    pub fn hand_out(&self, notifications: &OwnedFd, pid: i32) -> Result<()> {
        let act = || "send the seccomp listener its descriptor".to_owned();
        let mut state = self.state.clone();
        if state.pid == 0 {
            state.pid = pid;
        }
        let mut message = serde_json::json!({
            "ociVersion": OCI_VERSION, "fds": ["seccompFd"], "pid": pid, "state": state,
        });
        if let Some(metadata) = &self.metadata {
            message["metadata"] = metadata.as_str().into();
        }
        let text = message.to_string();
        let fds = [notifications.as_fd()];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&fds));
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            // No other call than this one: it is the one that a filter with a listener is known to allow.
            let sent =
                rustix::net::sendmsg(&self.socket, &[IoSlice::new(rest)], &mut control, SendFlags::NOSIGNAL);
            match sent {
                Err(rustix::io::Errno::INTR) => {}
                sent => {
                    rest = &rest[sent.during(act)?.min(rest.len())..];
                    control.clear();
                }
            }
        }
        // The process closes its end when it executes its command. A filter may not let it say that it is done.
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Both);
        Ok(())
    }
}
