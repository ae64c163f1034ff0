//! What the guest's vsock connections end in: socket pairs, one end each handed to the session.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::Sender;

use devices::virtio::VsockHost;

use super::Event;
use super::saving::WorkloadState;

/// Accepts the agent's connections.
pub struct Connector {
    events: Sender<Event>,
    control_open: bool,
    connections: u32,
    /// How many it may open in its life.
    allowed: Arc<AtomicU32>,
    /// Of a workload that was saved: what its connections are.
    saved: Option<WorkloadState>,
}

impl Connector {
    pub(super) fn new(events: Sender<Event>, allowed: Arc<AtomicU32>, saved: Option<WorkloadState>) -> Self {
        Self { events, control_open: false, connections: 0, allowed, saved }
    }

    fn hand_on(&mut self, event: impl FnOnce(UnixStream) -> Event, unread: &[u8]) -> io::Result<UnixStream> {
        // The guest only hears of a reset; the owner is told why.
        let (theirs, mut ours) = UnixStream::pair().inspect_err(|error| {
            let _ = self.events.send(Event::NoSocket(copy_of(error)));
        })?;
        // As much as such a socket held before: if this one does not, it is no snapshot of ours.
        ours.set_nonblocking(true)?;
        ours.write_all(unread)?;
        ours.set_nonblocking(false)?;
        self.events.send(event(ours)).map_err(|_| io::Error::from(io::ErrorKind::ConnectionRefused))?;
        Ok(theirs)
    }
}

impl VsockHost for Connector {
    fn connect(&mut self, port: u32) -> io::Result<UnixStream> {
        self.accept(port, 0)
    }

    fn accept(&mut self, port: u32, guest_port: u32) -> io::Result<UnixStream> {
        let is_control = port == protocol::CONTROL_PORT;
        let known = is_control || port == protocol::STREAM_PORT;
        if !known
            || (is_control && self.control_open)
            || self.connections >= self.allowed.load(Ordering::Relaxed)
        {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let socket = self.hand_on(|socket| Event::Connected { port, guest_port, socket }, &[])?;
        self.connections += 1;
        self.control_open |= is_control;
        Ok(socket)
    }

    fn resume(&mut self, port: u32, guest_port: u32, unread: &[u8]) -> io::Result<UnixStream> {
        let Some(saved) = &self.saved else { return Err(io::ErrorKind::Unsupported.into()) };
        let is_control = saved.control == guest_port && port == protocol::CONTROL_PORT;
        let stream = saved.stream_of(guest_port).filter(|_| port == protocol::STREAM_PORT);
        let exec = saved.exec;
        if is_control {
            self.control_open = true;
            return self.hand_on(|socket| Event::Connected { port, guest_port, socket }, unread);
        }
        let Some(stream) = stream else {
            // One that was over for the host already: for the guest it ends now.
            return UnixStream::pair().map(|(theirs, _ours)| theirs);
        };
        let hello = protocol::Hello { exec, stream };
        self.hand_on(|socket| Event::StreamOpened { hello, guest_port, socket }, unread)
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
        let allowed = Arc::new(AtomicU32::new(64));
        let mut connector = Connector::new(sender, allowed.clone(), None);
        assert!(connector.connect(protocol::CONTROL_PORT).is_ok());
        assert!(connector.connect(protocol::CONTROL_PORT).is_err());
        assert!(connector.connect(22).is_err());
        let accepted = (0..1000).filter(|_| connector.connect(protocol::STREAM_PORT).is_ok()).count();
        assert_eq!(accepted, 63);
        allowed.fetch_add(3, Ordering::Relaxed);
        assert_eq!((0..10).filter(|_| connector.connect(protocol::STREAM_PORT).is_ok()).count(), 3);
    }
}
