//! Socket device (virtio 1.2, section 5.10): streams between the guest and sockets of the host.
//!
//! The host's side of every stream is a Unix socket. For a connection the guest asks for, a [`VsockHost`]
//! gives the socket or refuses; [`VsockHandle::connect`] asks the guest for one. Sockets never block the
//! device, so packets are carried on the notifying vCPU; the device's thread waits for the sockets.
//!
//! A restore carries streams on where the host has a socket for each ([`VsockHost::resume`]): the guest sees no
//! difference. What the guest had sent before is the original's, and not sent again; what was on its way to the guest
//! still arrives. With any other host all streams are gone and the guest is told so (transport reset event).
//!
//! Writes to sockets expect SIGPIPE to be ignored, as Rust programs have it unless they change it.
//!
//! Known omissions: VIRTIO_VSOCK_F_SEQPACKET.
//!
//! Reading order: this file, `packet`, `muxer`, `connection`.

mod connection;
#[cfg(test)]
mod guest;
mod muxer;
mod packet;
#[cfg(test)]
mod tests;

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use state::Section;

use self::connection::SavedConnection;
use self::muxer::{FIRST_EPHEMERAL_PORT, Muxer};
use super::poller::Poller;
use super::worker::Worker;
use super::{DeviceType, QueueProgress, Signals, VirtioDevice, Virtqueue, read_config_bytes};

const KIND: &str = "virtio-vsock";
const VERSION: u32 = 2;

/// Feature bit: stream sockets.
const VIRTIO_VSOCK_F_STREAM: u32 = 0;

const RX: usize = 0;
const TX: usize = 1;

/// How long [`VsockHandle::connect`] waits for the guest's answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Answers the guest's requests for connections to the host.
pub trait VsockHost: Send {
    /// The guest connects to `port` of the host: gives the socket that carries the stream. Must not wait.
    ///
    /// # Errors
    /// Any error refuses the connection.
    fn connect(&mut self, port: u32) -> io::Result<UnixStream>;

    /// As [`Self::connect`], for who wants to know from which port of the guest.
    ///
    /// # Errors
    /// Any error refuses the connection.
    fn accept(&mut self, port: u32, _guest_port: u32) -> io::Result<UnixStream> {
        self.connect(port)
    }

    /// The guest was restored with a connection from its port `guest_port` to `port` of the host: gives the socket that
    /// carries it on, from which `unread` is read first. Must not wait.
    ///
    /// # Errors
    /// Any error ends all connections of the guest, as it is for a host that does not carry on.
    fn resume(&mut self, _port: u32, _guest_port: u32, _unread: &[u8]) -> io::Result<UnixStream> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl<F: FnMut(u32) -> io::Result<UnixStream> + Send> VsockHost for F {
    fn connect(&mut self, port: u32) -> io::Result<UnixStream> {
        self(port)
    }
}

/// The device.
pub struct Vsock {
    shared: Arc<Shared>,
    worker: Worker,
}

/// Connects to ports of the guest. Clones are the same device.
#[derive(Clone)]
pub struct VsockHandle {
    shared: Arc<Shared>,
}

struct Shared {
    muxer: Mutex<Muxer>,
    poller: Arc<Poller>,
}

/// Saved form.
#[derive(Serialize, Deserialize)]
struct VsockState {
    guest_cid: u64,
    next_port: u32,
    transport_reset: bool,
    /// Since version 2; before, a restore reset the transport.
    #[serde(default)]
    connections: Vec<SavedConnection>,
    /// Since version 2. Ports of the host and of the guest of connections that the guest has yet to be told the end of.
    #[serde(default)]
    resets: Vec<(u32, u32)>,
}

impl Vsock {
    /// A socket device for the guest with context id `guest_cid` (3 or more).
    ///
    /// # Errors
    /// The host gives no epoll or eventfd descriptor.
    pub fn new(guest_cid: u64, host: Box<dyn VsockHost>) -> io::Result<(Self, VsockHandle)> {
        let poller = Arc::new(Poller::new()?);
        let muxer = Mutex::new(Muxer::new(guest_cid, host, Arc::clone(&poller)));
        let shared = Arc::new(Shared { muxer, poller });
        let handle = VsockHandle { shared: Arc::clone(&shared) };
        Ok((Self { shared, worker: Worker::default() }, handle))
    }

    fn start_thread(&mut self) {
        let shared = Arc::clone(&self.shared);
        let work = move || {
            let mut ready = Vec::new();
            while shared.poller.wait(&mut ready, None) {
                let mut muxer = shared.lock();
                for event in ready.drain(..) {
                    muxer.socket_ready(event);
                }
                shared.carry_on(&mut muxer);
            }
        };
        self.worker.start("virtio-vsock", work);
    }
}

impl Drop for Vsock {
    fn drop(&mut self) {
        self.shared.poller.close();
        self.worker.join();
        // Whoever waits in `connect` must not wait for a device that is gone.
        self.shared.lock().close();
    }
}

impl VsockHandle {
    /// Connects to `port` of the guest and waits up to ten seconds for it to accept.
    ///
    /// # Errors
    /// As [`Self::connect_timeout`].
    pub fn connect(&self, port: u32) -> io::Result<UnixStream> {
        self.connect_timeout(port, CONNECT_TIMEOUT)
    }

    /// Connects to `port` of the guest and waits for it to accept. A guest whose driver is not there yet is
    /// waited for; one that nobody listens in refuses at once.
    ///
    /// # Errors
    /// `ConnectionRefused`, `TimedOut`, `ConnectionAborted` (the device was reset or is gone), or what the
    /// host says of making a socket pair.
    pub fn connect_timeout(&self, port: u32, timeout: Duration) -> io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        let (sender, answer) = mpsc::channel();
        let token = {
            let mut muxer = self.shared.lock();
            let token = muxer.request(port, theirs, sender)?;
            self.shared.carry_on(&mut muxer);
            token
        };
        match answer.recv_timeout(timeout) {
            Ok(answer) => answer.map(|()| ours),
            Err(RecvTimeoutError::Disconnected) => Err(io::ErrorKind::ConnectionAborted.into()),
            Err(RecvTimeoutError::Timeout) => {
                let mut muxer = self.shared.lock();
                muxer.abandon(token);
                self.shared.carry_on(&mut muxer);
                Err(io::ErrorKind::TimedOut.into())
            }
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Muxer> {
        self.muxer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One round; what is left is the thread's.
    fn carry_on(&self, muxer: &mut Muxer) {
        if muxer.process() {
            self.poller.wake();
        }
    }
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> DeviceType {
        DeviceType::Vsock
    }

    fn queue_sizes(&self) -> &[u16] {
        &[128, 128, 16]
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_VSOCK_F_STREAM
    }

    fn attach(&mut self, signals: Arc<Signals>) {
        self.shared.lock().signals = Some(signals);
    }

    fn accept_features(&mut self, _features: u64) {}

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let guest_cid = self.shared.lock().guest_cid();
        read_config_bytes(&guest_cid.to_le_bytes(), offset, data);
    }

    fn start_queue(&mut self, index: usize, queue: Virtqueue) {
        self.start_thread();
        let mut muxer = self.shared.lock();
        match index {
            RX => muxer.rx = Some(queue),
            TX => muxer.tx = Some(queue),
            _ => muxer.event = Some(queue),
        }
        self.shared.carry_on(&mut muxer);
    }

    fn stop_queue(&mut self, index: usize) -> Option<QueueProgress> {
        let mut muxer = self.shared.lock();
        let queue = match index {
            RX => muxer.rx.take(),
            TX => muxer.tx.take(),
            _ => muxer.event.take(),
        };
        queue.map(Virtqueue::stop)
    }

    fn notify(&mut self, _index: usize) {
        match self.shared.muxer.try_lock() {
            Ok(mut muxer) => self.shared.carry_on(&mut muxer),
            Err(_) => self.shared.poller.wake(),
        }
    }

    fn reset(&mut self) {
        let mut muxer = self.shared.lock();
        muxer.forget_connections();
        muxer.transport_reset = false;
    }

    fn save(&self) -> Result<Section, state::Error> {
        let muxer = self.shared.lock();
        let (connections, resets) = muxer.saved_connections();
        let state = VsockState {
            guest_cid: muxer.guest_cid(),
            next_port: muxer.next_port,
            transport_reset: muxer.transport_reset,
            connections,
            resets,
        };
        Section::encode(KIND, VERSION, &state)
    }

    fn restore(&mut self, section: &Section) -> Result<(), state::Error> {
        let VsockState { guest_cid, next_port, transport_reset, connections, resets } =
            section.decode_any(KIND, 1..=VERSION)?;
        connection::check(&connections, &resets)
            .map_err(|reason| state::Error::Malformed { kind: KIND, reason: reason.to_owned() })?;
        let mut muxer = self.shared.lock();
        muxer.forget_connections();
        muxer.next_port = next_port.max(FIRST_EPHEMERAL_PORT);
        // The guest reads its context id again after a transport reset, so another one is not an error.
        let carried = !transport_reset
            && guest_cid == muxer.guest_cid()
            && !connections.is_empty()
            && muxer.resume(connections, &resets);
        muxer.transport_reset = !carried;
        Ok(())
    }
}
