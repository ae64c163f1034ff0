//! The agent's control connection: reading it, and what the agent is told of this moment.

use std::os::unix::net::UnixStream;
use std::sync::PoisonError;
use std::sync::mpsc::Sender;

use protocol::AgentMessage;
use rustix::event::{PollFd, PollFlags, poll};

use super::Event;
use super::saving::Gate;

/// Starts the thread that hands on what the agent says.
pub(super) fn read_control(mut reader: UnixStream, sender: Sender<Event>, gate: Gate) -> std::io::Result<()> {
    let read = move || {
        loop {
            // Not while nothing is there to be read: who wants to know whether all was read must get the lock.
            let _ = poll(&mut [PollFd::new(&reader, PollFlags::IN)], None);
            let _held = gate.lock().unwrap_or_else(PoisonError::into_inner);
            let message = protocol::read_message::<AgentMessage>(&mut reader);
            let more = matches!(
                message,
                Ok(Some(_)) | Err(protocol::Error::UnknownKind(_) | protocol::Error::Malformed { .. })
            );
            if sender.send(Event::Agent(message)).is_err() || !more {
                return;
            }
        }
    };
    std::thread::Builder::new().name("agent-control".to_owned()).spawn(read).map(drop)
}

/// Random bits and the time, of this moment.
pub(super) fn renewal() -> std::io::Result<protocol::Renew> {
    let mut bytes = [0; 64];
    // The kernel gives up to 256 bytes in one go.
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    let word = |at: usize| u64::from_le_bytes(bytes[at * 8..][..8].try_into().expect("eight bytes"));
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let clock_ns = u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX);
    Ok(protocol::Renew { seed: std::array::from_fn(word), clock_ns })
}
