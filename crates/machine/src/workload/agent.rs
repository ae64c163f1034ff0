//! The agent's control connection: reading it, and what the agent is told of this moment.

use std::os::unix::net::UnixStream;
use std::sync::PoisonError;
use std::sync::mpsc::Sender;

use protocol::{AgentMessage, HostMessage, Identity, Renew};
use rustix::event::{PollFd, PollFlags, poll};

use super::run::Run;
use super::saving::Gate;
use super::{Error, Event, Origin};

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

impl Run<'_> {
    /// Makes the machine differ from every other that comes from the same one.
    pub(super) fn renew(&mut self) -> Result<(), Error> {
        if self.origin == Origin::Restored {
            self.tell(&HostMessage::Renew(renewal().map_err(Error::Host)?))?;
        }
        if let Some(identity) = self.identity.take() {
            self.tell(&HostMessage::Identify(identity))?;
        }
        match self.network.take() {
            Some(network) => self.tell(&HostMessage::Network(network)),
            None => Ok(()),
        }
    }
}

/// A machine id that nobody else has, for a machine that is to be called `hostname`; empty leaves it its name.
///
/// # Errors
/// The host has no random numbers.
pub fn new_identity(hostname: String) -> std::io::Result<Identity> {
    let [high, low] = random_words()?;
    // As a random UUID of RFC 9562, which is what systemd makes.
    let high = high & !0xf000 | 0x4000;
    let low = low & !(3 << 62) | 2 << 62;
    Ok(Identity { hostname, machine_id: [high, low] })
}

/// Random bits and the time, of this moment.
fn renewal() -> std::io::Result<Renew> {
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let clock_ns = u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX);
    Ok(Renew { seed: random_words()?, clock_ns })
}

/// At most 32: the kernel gives up to 256 bytes in one go.
fn random_words<const N: usize>() -> std::io::Result<[u64; N]> {
    let mut words = [[0; 8]; N];
    rustix::rand::getrandom(words.as_flattened_mut(), rustix::rand::GetRandomFlags::empty())?;
    Ok(words.map(u64::from_le_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_identities_are_the_same_and_each_is_a_random_uuid() {
        let one = new_identity("web".to_owned()).unwrap();
        let text = one.machine_id_text();
        assert_ne!(text, new_identity("web".to_owned()).unwrap().machine_id_text());
        assert_eq!((text.len(), &text[12..13]), (32, "4"));
        assert!(matches!(&text[16..17], "8" | "9" | "a" | "b"), "{text}");
    }
}
