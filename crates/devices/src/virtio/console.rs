//! Console device (virtio 1.2, section 5.3): one port, no control queues.
//!
//! What the guest prints is copied to a bounded buffer on the notifying vCPU and written out by the device's
//! thread, so a stuck terminal stops the guest's printing but not its vCPUs. Input comes through a
//! [`ConsoleHandle`] and is placed in the guest's buffers by the caller's thread.
//!
//! Known omissions: VIRTIO_CONSOLE_F_MULTIPORT, VIRTIO_CONSOLE_F_EMERG_WRITE.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use state::Section;

use super::doorbell::Doorbell;
use super::worker::Worker;
use super::{Chain, DeviceType, QueueProgress, Signals, VirtioDevice, Virtqueue, read_config_bytes};

const KIND: &str = "virtio-console";
const VERSION: u32 = 1;

/// Feature bit: the configuration space tells the terminal's size.
const VIRTIO_CONSOLE_F_SIZE: u32 = 0;

const RX: usize = 0;
const TX: usize = 1;

/// Output waiting to be written beyond which the guest's buffers are left in the ring.
const OUTPUT_LIMIT: usize = 64 << 10;
/// Bytes of one request that are printed; a console driver sends a page at most, so the rest is an attack.
const REQUEST_LIMIT: usize = 1 << 20;
/// Input waiting for the guest to read it.
const INPUT_LIMIT: usize = 64 << 10;

/// The device.
pub struct Console {
    shared: Arc<Shared>,
    writer: Option<Box<dyn Write + Send>>,
    worker: Worker,
}

/// The host's side of the console: typing, and the size of the terminal. Clones are the same console.
#[derive(Clone)]
pub struct ConsoleHandle {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    core: Mutex<Core>,
    doorbell: Doorbell,
}

#[derive(Default)]
struct Core {
    signals: Option<Arc<Signals>>,
    rx: Option<Virtqueue>,
    tx: Option<Virtqueue>,
    output: Vec<u8>,
    input: VecDeque<u8>,
    columns: u16,
    rows: u16,
}

/// Saved form. Output not written yet is the host's and is not part of it.
#[derive(Serialize, Deserialize)]
struct ConsoleState {
    input: Vec<u8>,
    columns: u16,
    rows: u16,
}

impl Console {
    /// A console that prints to `output`.
    pub fn new(output: Box<dyn Write + Send>) -> (Self, ConsoleHandle) {
        let shared = Arc::new(Shared::default());
        let handle = ConsoleHandle { shared: Arc::clone(&shared) };
        (Self { shared, writer: Some(output), worker: Worker::default() }, handle)
    }

    fn start_thread(&mut self) {
        let Some(writer) = self.writer.take() else { return };
        let shared = Arc::clone(&self.shared);
        self.worker.start("virtio-console", move || shared.write_out(writer));
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.shared.doorbell.close();
        self.worker.join();
    }
}

impl ConsoleHandle {
    /// Types `data`, and says how much of it was taken: less than all when the guest does not read.
    pub fn input(&self, data: &[u8]) -> usize {
        let mut core = self.shared.lock();
        let count = data.len().min(INPUT_LIMIT.saturating_sub(core.input.len()));
        core.input.extend(&data[..count]);
        core.give_input();
        count
    }

    /// Tells the guest the size of the terminal, in characters.
    pub fn resize(&self, columns: u16, rows: u16) {
        let mut core = self.shared.lock();
        if (core.columns, core.rows) == (columns, rows) {
            return;
        }
        (core.columns, core.rows) = (columns, rows);
        if let Some(signals) = &core.signals {
            signals.config_changed();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread: writes what the guest printed until the doorbell closes. When `writer` is broken, what is
    /// printed is lost, as on a line with no terminal.
    fn write_out(&self, mut writer: Box<dyn Write + Send>) {
        let mut broken = false;
        while self.doorbell.wait(None) {
            loop {
                let output = {
                    let mut core = self.lock();
                    core.take_output();
                    std::mem::take(&mut core.output)
                };
                if output.is_empty() {
                    break;
                }
                if !broken && let Err(error) = writer.write_all(&output).and_then(|()| writer.flush()) {
                    tracing::warn!(%error, "write console output");
                    broken = true;
                }
            }
        }
    }
}

impl Core {
    /// Moves what the guest printed to the output buffer, as far as there is room. Whether there is any.
    fn take_output(&mut self) -> bool {
        let Some(tx) = &mut self.tx else { return !self.output.is_empty() };
        while self.output.len() < OUTPUT_LIMIT {
            let Some(mut chain) = tx.pop() else {
                if tx.enable_notifications() {
                    continue;
                }
                break;
            };
            append(&mut self.output, &mut chain);
            tx.complete(&chain, 0);
        }
        tx.signal();
        !self.output.is_empty()
    }

    /// Moves typed input to the guest's buffers, as far as there are any.
    fn give_input(&mut self) {
        let Some(rx) = &mut self.rx else { return };
        while !self.input.is_empty() {
            let Some(mut chain) = rx.pop() else {
                if rx.enable_notifications() {
                    continue;
                }
                break;
            };
            let (first, second) = self.input.as_slices();
            let mut written = chain.write(first);
            if written == first.len() {
                written += chain.write(second);
            }
            self.input.drain(..written);
            rx.complete(&chain, written as u32);
        }
        rx.signal();
    }
}

fn append(output: &mut Vec<u8>, chain: &mut Chain) {
    let start = output.len();
    output.resize(start + chain.readable().min(REQUEST_LIMIT), 0);
    chain.read(&mut output[start..]);
}

impl VirtioDevice for Console {
    fn device_type(&self) -> DeviceType {
        DeviceType::Console
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64, 64]
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_CONSOLE_F_SIZE
    }

    fn attach(&mut self, signals: Arc<Signals>) {
        self.shared.lock().signals = Some(signals);
    }

    fn accept_features(&mut self, _features: u64) {}

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let core = self.shared.lock();
        let mut config = [0; 12];
        config[0..2].copy_from_slice(&core.columns.to_le_bytes());
        config[2..4].copy_from_slice(&core.rows.to_le_bytes());
        config[4..8].copy_from_slice(&1u32.to_le_bytes());
        read_config_bytes(&config, offset, data);
    }

    fn start_queue(&mut self, index: usize, queue: Virtqueue) {
        self.start_thread();
        match index {
            RX => self.shared.lock().rx = Some(queue),
            _ => self.shared.lock().tx = Some(queue),
        }
        self.notify(index);
    }

    fn stop_queue(&mut self, index: usize) -> Option<QueueProgress> {
        let mut core = self.shared.lock();
        let queue = if index == RX { core.rx.take() } else { core.tx.take() };
        queue.map(Virtqueue::stop)
    }

    fn notify(&mut self, index: usize) {
        let mut core = self.shared.lock();
        match index {
            RX => core.give_input(),
            TX if core.take_output() => {
                drop(core);
                self.shared.doorbell.ring();
            }
            _ => {}
        }
    }

    fn reset(&mut self) {
        self.shared.lock().input.clear();
    }

    fn save(&self) -> Result<Section, state::Error> {
        let core = self.shared.lock();
        let Core { signals: _, rx: _, tx: _, output: _, input, columns, rows } = &*core;
        let state = ConsoleState { input: input.iter().copied().collect(), columns: *columns, rows: *rows };
        Section::encode(KIND, VERSION, &state)
    }

    fn restore(&mut self, section: &Section) -> Result<(), state::Error> {
        let ConsoleState { input, columns, rows } = section.decode(KIND, VERSION)?;
        if input.len() > INPUT_LIMIT {
            let reason = format!("{} bytes of waiting input", input.len());
            return Err(state::Error::Malformed { kind: KIND, reason });
        }
        let mut core = self.shared.lock();
        core.input = input.into();
        (core.columns, core.rows) = (columns, rows);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
