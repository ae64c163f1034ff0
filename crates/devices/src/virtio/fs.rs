//! File system device (virtio 1.2, section 5.11): carries FUSE requests to the server of the machine's folders.
//!
//! Names go to the server, which is another process ([`fuse::link`]); open files come back, and are read and written here.
//! Bytes that the host has in its page cache are read on the notifying vCPU, which also writes to there; what waits for a disk is
//! the device's thread's. The vCPU waits for a moment for what the server answers at once: whoever asked has nothing to
//! do meanwhile, and two switches of threads and an interrupt cost more than most answers.
//!
//! Without a server the device is there and every request fails, as in a machine that is saved to be given folders later. One
//! that has folders cannot be saved: what its guest has open is nowhere but here.
//!
//! Known omissions: DAX window, more than one request queue, notifications.

mod behind;
mod files;

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use fuse::link::Client;
use fuse::wire::{Header, IN_HEADER, MAX_PACKET, OUT_HEADER, Opcode, failed};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use state::Section;

use self::files::{Files, Transferred};
use super::poller::{Interest, Poller};
use super::worker::Worker;
use super::{Chain, DeviceType, QueueProgress, Signals, VirtioDevice, Virtqueue, read_config_bytes};

const KIND: &str = "virtio-fs";
const VERSION: u32 = 1;
/// What the guest mounts.
const TAG: &[u8] = b"strata";
/// `tag[36]` and `num_request_queues`.
const CONFIG_BYTES: usize = 40;
const NUM_REQUEST_QUEUES: u32 = 1;
/// The one for requests that nothing may delay, and the other. Linux asks for no more than fits the ring at once.
const QUEUE_SIZES: [u16; 2] = [64, 512];
const LINK_TOKEN: u64 = 0;
/// How long a vCPU waits for answers before it goes on.
const PROMPT: Duration = Duration::from_micros(200);

/// The device.
pub struct Fs {
    shared: Arc<Shared>,
    worker: Worker,
}

struct Shared {
    core: Mutex<Core>,
    poller: Poller,
}

struct Core {
    server: Option<Client>,
    files: Files,
    queues: [Option<Virtqueue>; 2],
    /// Taken, but it has to wait for the thread or for the server.
    parked: [Option<Chain>; 2],
    /// At the server, in the order in which it will answer.
    waiting: VecDeque<Waiting>,
    /// Whether a request waits for room in the link.
    is_full: bool,
    /// What is waited for there.
    interest: Interest,
}

struct Waiting {
    queue: usize,
    chain: Chain,
    unique: u64,
    opcode: Option<Opcode>,
}

/// Whether whoever serves a request may wait for a disk.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Patience {
    Wait,
    DoNotWait,
}

/// What became of a request.
enum Served {
    /// It is answered; so many bytes of its writable part.
    Answered(usize),
    /// The server has it.
    Sent(u64, Option<Opcode>),
    /// It takes more patience, or room in the link.
    Parked,
}

impl Fs {
    /// A device whose folders are at the other end of `server`, if it has any.
    ///
    /// # Errors
    /// The host gives no epoll or eventfd descriptor.
    pub fn new(server: Option<Client>) -> io::Result<Self> {
        let poller = Poller::new()?;
        if let Some(server) = &server {
            poller.add(server, LINK_TOKEN, Interest::empty())?;
        }
        let core = Core {
            server,
            files: Files::default(),
            queues: [None, None],
            parked: [None, None],
            waiting: VecDeque::new(),
            is_full: false,
            interest: Interest::empty(),
        };
        Ok(Self { shared: Arc::new(Shared { core: Mutex::new(core), poller }), worker: Worker::default() })
    }

    fn start_thread(&mut self) {
        let shared = Arc::clone(&self.shared);
        let work = move || {
            let mut ready = Vec::new();
            while shared.poller.wait(&mut ready, None) {
                let mut core = shared.lock();
                core.take_answers();
                core.take_requests(Patience::Wait);
                shared.wait_for_link(&mut core);
            }
        };
        self.worker.start("virtio-fs", work);
        self.shared.lock().files.write_behind();
    }
}

impl Drop for Fs {
    fn drop(&mut self) {
        self.shared.poller.close();
        self.worker.join();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the thread wait for answers that are owed, and for room where a request found none.
    fn wait_for_link(&self, core: &mut Core) {
        let Some(server) = &core.server else { return };
        let mut interest = Interest::empty();
        interest.set(Interest::IN, !core.waiting.is_empty());
        interest.set(Interest::OUT, core.is_full);
        if interest == core.interest {
            return;
        }
        match self.poller.modify(server, LINK_TOKEN, interest) {
            Ok(()) => core.interest = interest,
            Err(error) => tracing::error!(%error, "wait for the server of folders"),
        }
    }
}

impl Core {
    /// Serves what is in the queues. `true` if something is left for the thread.
    fn take_requests(&mut self, patience: Patience) -> bool {
        self.is_full = false;
        let mut is_left = false;
        for index in 0..self.queues.len() {
            let Some(mut queue) = self.queues[index].take() else { continue };
            queue.disable_notifications();
            let mut served = 0;
            loop {
                let Some(mut chain) = self.parked[index].take().or_else(|| queue.pop()) else {
                    if queue.enable_notifications() {
                        continue;
                    }
                    break;
                };
                // A vCPU serves one round; a ring that others refill without end is the thread's affair.
                let is_enough = patience == Patience::DoNotWait && served >= queue.size();
                served += 1;
                let outcome = if is_enough { Served::Parked } else { self.serve(&mut chain, patience) };
                match outcome {
                    Served::Answered(len) => queue.complete(&chain, len as u32),
                    Served::Sent(unique, opcode) => {
                        self.waiting.push_back(Waiting { queue: index, chain, unique, opcode });
                    }
                    Served::Parked => {
                        self.parked[index] = Some(chain);
                        is_left = true;
                        break;
                    }
                }
            }
            queue.signal();
            self.queues[index] = Some(queue);
        }
        is_left
    }

    fn serve(&mut self, chain: &mut Chain, patience: Patience) -> Served {
        let len = chain.readable();
        let Some(bytes) = chain.read_array::<IN_HEADER>() else {
            // Nobody can be answered whose question has no name.
            return Served::Answered(0);
        };
        let header = Header::read(&bytes);
        let opcode = Opcode::new(header.opcode);
        if self.server.is_none() {
            return refuse(chain, &header, Errno::NOTCONN);
        }
        if header.len as usize != len {
            return refuse(chain, &header, Errno::INVAL);
        }
        let transferred = match opcode {
            Some(Opcode::Read) => self.files.read(&header, chain, patience),
            Some(Opcode::Write) => self.files.write(&header, chain, patience),
            _ => return self.send(chain, &bytes, &header, opcode),
        };
        match transferred {
            Ok(Transferred::Done(len)) => Served::Answered(len),
            Ok(Transferred::WouldWait) => {
                chain.rewind();
                Served::Parked
            }
            Err(errno) => refuse(chain, &header, errno),
        }
    }

    fn send(
        &mut self,
        chain: &mut Chain,
        first: &[u8; IN_HEADER],
        header: &Header,
        opcode: Option<Opcode>,
    ) -> Served {
        let rest = chain.readable();
        if IN_HEADER + rest > MAX_PACKET {
            return refuse(chain, header, Errno::TOOBIG);
        }
        let mut packet = vec![0; IN_HEADER + rest];
        packet[..IN_HEADER].copy_from_slice(first);
        chain.read(&mut packet[IN_HEADER..]);
        let Some(server) = &self.server else { return refuse(chain, header, Errno::NOTCONN) };
        match server.send(&packet) {
            Ok(()) => {}
            Err(Errno::AGAIN) => {
                self.is_full = true;
                chain.rewind();
                return Served::Parked;
            }
            Err(_) => {
                self.lose_server();
                return refuse(chain, header, Errno::NOTCONN);
            }
        }
        self.files.asked(opcode, &packet[IN_HEADER..]);
        if opcode.is_some_and(Opcode::is_unanswered) {
            Served::Answered(0)
        } else {
            Served::Sent(header.unique, opcode)
        }
    }

    /// Hands on the answers that are there.
    fn take_answers(&mut self) {
        loop {
            let Some(server) = &mut self.server else { return };
            match server.receive() {
                Ok(answer) => {
                    let Some(waiting) = self.waiting.pop_front() else { continue };
                    let used = answered(&mut self.files, waiting, answer);
                    self.complete(used);
                }
                Err(Errno::AGAIN) => break,
                Err(_) => return self.lose_server(),
            }
        }
        self.signal();
    }

    /// Hands on the answers that come within [`PROMPT`], unless the server has been asked for what takes longer.
    fn take_prompt_answers(&mut self) {
        let is_long = |waiting: &Waiting| waiting.opcode.is_none_or(Opcode::may_wait_for_disk);
        if self.waiting.iter().any(is_long) {
            return;
        }
        let begun = Instant::now();
        while !self.waiting.is_empty() {
            let left = PROMPT.saturating_sub(begun.elapsed());
            let (Some(server), Ok(left)) = (&self.server, Timespec::try_from(left)) else { return };
            let mut sources = [PollFd::new(server, PollFlags::IN)];
            match poll(&mut sources, Some(&left)) {
                Ok(1..) | Err(Errno::INTR) => self.take_answers(),
                _ => return,
            }
        }
    }

    /// Waits until the server has answered all it has been asked.
    fn settle(&mut self) {
        while !self.waiting.is_empty() {
            let Some(server) = &mut self.server else { return };
            match server.wait() {
                Ok(answer) => {
                    let Some(waiting) = self.waiting.pop_front() else { return };
                    let used = answered(&mut self.files, waiting, answer);
                    self.complete(used);
                }
                Err(_) => self.lose_server(),
            }
        }
        self.signal();
    }

    fn complete(&mut self, (queue, chain, len): (usize, Chain, usize)) {
        if let Some(queue) = self.queues.get_mut(queue).and_then(Option::as_mut) {
            queue.complete(&chain, len as u32);
        }
    }

    fn signal(&mut self) {
        self.queues.iter_mut().flatten().for_each(Virtqueue::signal);
    }

    /// The server has ended: what it was asked fails, and so does all that comes.
    fn lose_server(&mut self) {
        tracing::error!("the server of the machine's folders has ended");
        self.server = None;
        self.files.close_all();
        for Waiting { queue, mut chain, unique, .. } in std::mem::take(&mut self.waiting) {
            chain.rewind();
            let len = chain.write(&failed(Errno::NOTCONN, unique));
            self.complete((queue, chain, len));
        }
        self.signal();
    }
}

/// Puts an answer of the server where the guest wants it: its queue, its chain, and how much was written.
fn answered(files: &mut Files, waiting: Waiting, answer: fuse::link::Answer<'_>) -> (usize, Chain, usize) {
    let Waiting { queue, mut chain, unique, opcode } = waiting;
    let mut bytes = answer.bytes;
    let refused = failed(Errno::IO, unique);
    // The server is believed no more than a guest is.
    if bytes.len() < OUT_HEADER || bytes.len() > chain.writable() || bytes[8..16] != unique.to_le_bytes() {
        bytes = &refused;
    } else if let Some(errno) = files.opened(opcode, bytes, answer.file) {
        let refused = failed(errno, unique);
        let len = chain.write(&refused);
        return (queue, chain, len);
    }
    let len = chain.write(bytes);
    (queue, chain, len)
}

fn refuse(chain: &mut Chain, header: &Header, errno: Errno) -> Served {
    if Opcode::new(header.opcode).is_some_and(Opcode::is_unanswered) {
        return Served::Answered(0);
    }
    Served::Answered(chain.write(&failed(errno, header.unique)))
}

impl VirtioDevice for Fs {
    fn device_type(&self) -> DeviceType {
        DeviceType::Fs
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        0
    }

    fn attach(&mut self, _signals: Arc<Signals>) {}

    fn accept_features(&mut self, _features: u64) {}

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; CONFIG_BYTES];
        config[..TAG.len()].copy_from_slice(TAG);
        config[36..].copy_from_slice(&NUM_REQUEST_QUEUES.to_le_bytes());
        read_config_bytes(&config, offset, data);
    }

    fn start_queue(&mut self, index: usize, queue: Virtqueue) {
        self.start_thread();
        if let Some(place) = self.shared.lock().queues.get_mut(index) {
            *place = Some(queue);
        }
        self.shared.poller.wake();
    }

    fn stop_queue(&mut self, index: usize) -> Option<QueueProgress> {
        let mut core = self.shared.lock();
        core.settle();
        let mut queue = core.queues.get_mut(index)?.take()?;
        if core.parked[index].take().is_some() {
            queue.undo_pop();
        }
        Some(queue.stop())
    }

    fn notify(&mut self, _index: usize) {
        let is_left = match self.shared.core.try_lock() {
            Ok(mut core) => {
                let is_left = core.take_requests(Patience::DoNotWait);
                if !is_left {
                    core.take_prompt_answers();
                }
                self.shared.wait_for_link(&mut core);
                is_left
            }
            // Busy: whoever holds it may have looked at the ring before this request came.
            Err(_) => true,
        };
        if is_left {
            self.shared.poller.wake();
        }
    }

    fn reset(&mut self) {
        let mut core = self.shared.lock();
        core.files.close_all();
        // The next guest says INIT, and the server forgets all that this one knew.
    }

    fn save(&self) -> Result<Section, state::Error> {
        if self.shared.lock().server.is_some() {
            let reason = "the machine has folders of this host, which go with no copy of it (--volume)";
            return Err(state::Error::Malformed { kind: KIND, reason: reason.to_owned() });
        }
        Section::encode(KIND, VERSION, &())
    }

    fn restore(&mut self, section: &Section) -> Result<(), state::Error> {
        section.decode(KIND, VERSION)
    }
}
