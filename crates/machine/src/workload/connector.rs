//! What the guest's vsock connections end in: socket pairs, one end each handed to the session.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::Sender;

use devices::virtio::VsockHost;

use super::Event;

/// Connections a guest may open in its life: the agent needs four; a guest that opens more plays tricks.
const MAX_CONNECTIONS: u32 = 64;

/// Accepts the agent's connections.
pub struct Connector {
    events: Sender<Event>,
    control_open: bool,
    connections: u32,
}

impl Connector {
    pub(super) fn new(events: Sender<Event>) -> Self {
        Self { events, control_open: false, connections: 0 }
    }
}

impl VsockHost for Connector {
    fn connect(&mut self, port: u32) -> io::Result<UnixStream> {
        let is_control = port == protocol::CONTROL_PORT;
        let known = is_control || port == protocol::STREAM_PORT;
        if !known || (is_control && self.control_open) || self.connections >= MAX_CONNECTIONS {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        // The guest only hears of a reset; the owner is told why.
        let (theirs, ours) = UnixStream::pair().inspect_err(|error| {
            let _ = self.events.send(Event::NoSocket(copy_of(error)));
        })?;
        let event = Event::Connected { port, socket: ours };
        self.events.send(event).map_err(|_| io::Error::from(io::ErrorKind::ConnectionRefused))?;
        self.connections += 1;
        self.control_open |= is_control;
        Ok(theirs)
    }
}

fn copy_of(error: &io::Error) -> io::Error {
    error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_control_connection_and_a_bounded_number_of_streams() {
        let (sender, _events) = std::sync::mpsc::channel();
        let mut connector = Connector::new(sender);
        assert!(connector.connect(protocol::CONTROL_PORT).is_ok());
        assert!(connector.connect(protocol::CONTROL_PORT).is_err());
        assert!(connector.connect(22).is_err());
        let accepted = (0..1000).filter(|_| connector.connect(protocol::STREAM_PORT).is_ok()).count();
        assert_eq!(accepted as u32, MAX_CONNECTIONS - 1);
    }
}
