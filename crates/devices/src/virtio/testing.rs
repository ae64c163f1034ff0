//! A driver for tests: real registers, real rings in guest RAM, and the freedom to get everything wrong.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use memory::GuestRam;
use virtio_bindings::virtio_mmio as reg;

use super::{MmioTransport, VirtioDevice, features};
use crate::device::{Clock, Device, MmioDevice};
use crate::irq::{InterruptController, IrqLine};

pub const RAM_BYTES: u64 = 32 << 20;
/// Where tests may put data; below are the rings.
pub const DATA: u64 = 1 << 20;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

pub const ACKNOWLEDGE: u32 = 1;
pub const DRIVER: u32 = 2;
pub const DRIVER_OK: u32 = 4;
pub const FEATURES_OK: u32 = 8;
pub const NEEDS_RESET: u32 = 64;

/// The line a device under test drives.
#[derive(Default)]
pub struct TestLine {
    pub high: AtomicBool,
    pub rises: AtomicU32,
}

impl InterruptController for TestLine {
    fn set_line(&self, _gsi: u32, high: bool) {
        if high && !self.high.swap(high, Ordering::SeqCst) {
            self.rises.fetch_add(1, Ordering::SeqCst);
        }
        self.high.store(high, Ordering::SeqCst);
    }
}

/// A device, its memory and its line, and the driver's idea of its queues.
pub struct Rig {
    pub ram: Arc<GuestRam>,
    pub transport: MmioTransport,
    pub line: Arc<TestLine>,
    pub queues: Vec<DriverQueue>,
}

/// The driver's side of one queue.
#[derive(Clone)]
pub struct DriverQueue {
    pub index: u32,
    pub size: u16,
    pub desc: u64,
    pub avail: u64,
    pub used: u64,
    pub next_desc: u16,
    pub next_avail: u16,
    pub next_used: u16,
}

impl Rig {
    /// A device straight after power-up.
    pub fn new(device: Box<dyn VirtioDevice>) -> Self {
        Self::with_ram(device, Arc::new(GuestRam::new(&[(0, RAM_BYTES)]).unwrap()))
    }

    pub fn with_ram(device: Box<dyn VirtioDevice>, ram: Arc<GuestRam>) -> Self {
        let line = Arc::new(TestLine::default());
        let irq = IrqLine::new(line.clone(), 5);
        let transport = MmioTransport::new("test0", device, ram.clone(), irq);
        Self { ram, transport, line, queues: Vec::new() }
    }

    /// A device driven up to DRIVER_OK with everything it offers, all queues at their largest.
    pub fn live(device: Box<dyn VirtioDevice>) -> Self {
        Self::live_with(device, u64::MAX)
    }

    /// As [`Self::live`], accepting only `mask` of what is offered.
    pub fn live_with(device: Box<dyn VirtioDevice>, mask: u64) -> Self {
        let mut rig = Self::new(device);
        rig.bring_up(mask);
        rig
    }

    pub fn bring_up(&mut self, mask: u64) {
        self.write(reg::VIRTIO_MMIO_STATUS, 0);
        self.write(reg::VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER);
        let offered = self.offered();
        self.choose(offered & (mask | features::VERSION_1));
        self.write(reg::VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        assert_ne!(self.read(reg::VIRTIO_MMIO_STATUS) & FEATURES_OK, 0);
        self.queues.clear();
        for index in 0.. {
            self.write(reg::VIRTIO_MMIO_QUEUE_SEL, index);
            let size = self.read(reg::VIRTIO_MMIO_QUEUE_NUM_MAX) as u16;
            if size == 0 {
                break;
            }
            let queue = DriverQueue::at(index, size);
            self.set_up(&queue);
            self.queues.push(queue);
        }
        self.write(reg::VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
        assert_eq!(self.read(reg::VIRTIO_MMIO_STATUS), ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    }

    pub fn offered(&mut self) -> u64 {
        self.write(reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL, 0);
        let low = self.read(reg::VIRTIO_MMIO_DEVICE_FEATURES);
        self.write(reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL, 1);
        u64::from(self.read(reg::VIRTIO_MMIO_DEVICE_FEATURES)) << 32 | u64::from(low)
    }

    pub fn choose(&mut self, features: u64) {
        for half in 0..2 {
            self.write(reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL, half);
            self.write(reg::VIRTIO_MMIO_DRIVER_FEATURES, (features >> (32 * half)) as u32);
        }
    }

    pub fn set_up(&mut self, queue: &DriverQueue) {
        self.ram.write(queue.desc, &vec![0; 16 * usize::from(queue.size)]).unwrap();
        self.ram.write(queue.avail, &vec![0; 6 + 2 * usize::from(queue.size)]).unwrap();
        self.ram.write(queue.used, &vec![0; 6 + 8 * usize::from(queue.size)]).unwrap();
        self.write(reg::VIRTIO_MMIO_QUEUE_SEL, queue.index);
        self.write(reg::VIRTIO_MMIO_QUEUE_NUM, queue.size.into());
        for (register, gpa) in [
            (reg::VIRTIO_MMIO_QUEUE_DESC_LOW, queue.desc),
            (reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW, queue.avail),
            (reg::VIRTIO_MMIO_QUEUE_USED_LOW, queue.used),
        ] {
            self.write(register, gpa as u32);
            self.write(register + 4, (gpa >> 32) as u32);
        }
        self.write(reg::VIRTIO_MMIO_QUEUE_READY, 1);
    }

    pub fn read(&mut self, register: u32) -> u32 {
        let mut data = [0; 4];
        self.transport.mmio_read(register.into(), &mut data);
        u32::from_le_bytes(data)
    }

    pub fn write(&mut self, register: u32, value: u32) {
        self.transport.mmio_write(register.into(), &value.to_le_bytes());
    }

    pub fn config<const N: usize>(&mut self, offset: u64) -> [u8; N] {
        let mut data = [0xaa; N];
        self.transport.mmio_read(u64::from(reg::VIRTIO_MMIO_CONFIG) + offset, &mut data);
        data
    }

    pub fn status(&mut self) -> u32 {
        self.read(reg::VIRTIO_MMIO_STATUS)
    }

    pub fn is_broken(&mut self) -> bool {
        self.status() & NEEDS_RESET != 0
    }

    pub fn kick(&mut self, queue: usize) {
        self.write(reg::VIRTIO_MMIO_QUEUE_NOTIFY, queue as u32);
    }

    /// Offers a chain of `(gpa, len, flags)`, NEXT being added where it belongs.
    pub fn add(&mut self, queue: usize, segments: &[(u64, u32, u16)]) -> u16 {
        self.queues[queue].add(&self.ram, segments)
    }

    /// Offers a chain, kicks, and waits until it is used: the bytes written.
    pub fn request(&mut self, queue: usize, segments: &[(u64, u32, u16)]) -> u32 {
        let head = self.add(queue, segments);
        self.kick(queue);
        let (id, len) = self.wait_used(queue);
        assert_eq!(id, u32::from(head));
        len
    }

    pub fn used(&mut self, queue: usize) -> Option<(u32, u32)> {
        self.queues[queue].used(&self.ram)
    }

    pub fn wait_used(&mut self, queue: usize) -> (u32, u32) {
        wait_for(|| self.used(queue))
    }

    pub fn interrupt_is_up(&self) -> bool {
        self.line.high.load(Ordering::SeqCst)
    }

    pub fn bytes(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.ram.read(gpa, &mut data).unwrap();
        data
    }

    pub fn save(&mut self) -> state::Section {
        self.transport.as_queued().unwrap().stop_queues();
        self.transport.save().unwrap()
    }
}

impl DriverQueue {
    fn at(index: u32, size: u16) -> Self {
        let base = 0x2_0000 * (u64::from(index) + 1);
        Self {
            index,
            size,
            desc: base,
            avail: base + 0x1_0000,
            used: base + 0x1_8000,
            next_desc: 0,
            next_avail: 0,
            next_used: 0,
        }
    }

    pub fn descriptor(&self, ram: &GuestRam, index: u16, gpa: u64, len: u32, flags: u16, next: u16) {
        write_descriptor(ram, self.desc, index, (gpa, len, flags, next));
    }

    pub fn add(&mut self, ram: &GuestRam, segments: &[(u64, u32, u16)]) -> u16 {
        let head = self.next_desc;
        for (at, &(gpa, len, flags)) in segments.iter().enumerate() {
            let index = self.next_desc;
            self.next_desc = (index + 1) % self.size;
            let flags = if at + 1 < segments.len() { flags | NEXT } else { flags };
            self.descriptor(ram, index, gpa, len, flags, self.next_desc);
        }
        self.offer(ram, head);
        head
    }

    /// Puts `head` into the available ring.
    pub fn offer(&mut self, ram: &GuestRam, head: u16) {
        let slot = u64::from(self.next_avail % self.size);
        ram.write(self.avail + 4 + 2 * slot, &head.to_le_bytes()).unwrap();
        self.next_avail = self.next_avail.wrapping_add(1);
        std::sync::atomic::fence(Ordering::SeqCst);
        ram.write(self.avail + 2, &self.next_avail.to_le_bytes()).unwrap();
    }

    pub fn used(&mut self, ram: &GuestRam) -> Option<(u32, u32)> {
        let mut index = [0; 2];
        ram.read(self.used + 2, &mut index).unwrap();
        std::sync::atomic::fence(Ordering::SeqCst);
        if u16::from_le_bytes(index) == self.next_used {
            return None;
        }
        let mut element = [0; 8];
        ram.read(self.used + 4 + 8 * u64::from(self.next_used % self.size), &mut element).unwrap();
        self.next_used = self.next_used.wrapping_add(1);
        // used_event: interrupt at the next one.
        ram.write(self.avail + 4 + 2 * u64::from(self.size), &self.next_used.to_le_bytes()).unwrap();
        let (id, len) = element.split_at(4);
        Some((u32::from_le_bytes(id.try_into().unwrap()), u32::from_le_bytes(len.try_into().unwrap())))
    }
}

/// Writes one descriptor of the table at `table`.
pub fn write_descriptor(
    ram: &GuestRam,
    table: u64,
    index: u16,
    (gpa, len, flags, next): (u64, u32, u16, u16),
) {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&gpa.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    ram.write(table + 16 * u64::from(index), &bytes).unwrap();
}

/// Polls until there is something; a minute is for ever.
pub fn wait_for<T>(mut poll: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = poll() {
            return value;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "nothing happens");
        std::thread::sleep(Duration::from_micros(50));
    }
}

/// A clock of this host, for devices whose threads sleep by it.
pub struct HostClock(Instant);

impl HostClock {
    pub fn start() -> Arc<dyn Clock> {
        Arc::new(Self(Instant::now()))
    }
}

impl Clock for HostClock {
    fn now(&self) -> u64 {
        self.0.elapsed().as_nanos() as u64
    }

    fn wall_clock(&self) -> u64 {
        self.now()
    }
}

/// A small random generator: the same numbers every time (xorshift64*).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 16) % limit
    }

    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }
}
