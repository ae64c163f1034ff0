//! Entropy device (virtio 1.2, section 5.4): fills the driver's buffers from the host's random generator.
//!
//! Done on the notifying vCPU: the generator never waits once the host is up.

use std::sync::Arc;

use rustix::rand::{GetRandomFlags, getrandom};
use state::Section;

use super::{Chain, DeviceType, QueueProgress, Signals, VirtioDevice, Virtqueue};

const KIND: &str = "virtio-rng";
const VERSION: u32 = 1;

/// Bytes given to one request; a driver that wants more asks again.
const MAX_BYTES: usize = 4096;

/// Rounds of the ring served per notification. Only a driver that refills from another vCPU without end gets
/// there; the rest waits for its next notification, so that this vCPU can be stopped.
const MAX_ROUNDS: u32 = 8;

/// The device. It has no state of its own.
#[derive(Default)]
pub struct Rng {
    signals: Option<Arc<Signals>>,
    queue: Option<Virtqueue>,
}

impl Rng {
    /// A new entropy device.
    pub fn new() -> Self {
        Self::default()
    }

    fn serve(&mut self) {
        let Some(queue) = &mut self.queue else { return };
        for _ in 0..u32::from(queue.size()) * MAX_ROUNDS {
            let Some(mut chain) = queue.pop() else {
                if queue.enable_notifications() {
                    continue;
                }
                break;
            };
            let written = fill(&mut chain);
            queue.complete(&chain, written);
        }
        queue.signal();
    }
}

fn fill(chain: &mut Chain) -> u32 {
    let mut buffer = [0; 256];
    let mut written = 0;
    while written < MAX_BYTES && chain.writable() > 0 {
        let len = chain.writable().min(buffer.len());
        let Ok(count) = getrandom(&mut buffer[..len], GetRandomFlags::empty()) else { break };
        written += chain.write(&buffer[..count]);
    }
    written as u32
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> DeviceType {
        DeviceType::Rng
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64]
    }

    fn features(&self) -> u64 {
        0
    }

    fn attach(&mut self, signals: Arc<Signals>) {
        self.signals = Some(signals);
    }

    fn accept_features(&mut self, _features: u64) {}

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn start_queue(&mut self, _index: usize, queue: Virtqueue) {
        self.queue = Some(queue);
        self.serve();
    }

    fn stop_queue(&mut self, _index: usize) -> Option<QueueProgress> {
        self.queue.take().map(Virtqueue::stop)
    }

    fn notify(&mut self, _index: usize) {
        self.serve();
    }

    fn reset(&mut self) {}

    fn save(&self) -> Result<Section, state::Error> {
        let Self { signals: _, queue: _ } = self;
        Section::encode(KIND, VERSION, &())
    }

    fn restore(&mut self, section: &Section) -> Result<(), state::Error> {
        section.decode(KIND, VERSION)
    }
}

#[cfg(test)]
mod tests;
