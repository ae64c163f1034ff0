//! Virtio devices behind their transport, and a driver that can bring them up before it goes astray.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, OnceLock};

use devices::virtio::{Block, Console, MmioTransport, Net, Rng, VirtioDevice, Vsock};
use devices::{Device, InterruptController, IrqLine, MmioDevice};
use memory::GuestRam;

use crate::Bytes;

/// All of the guest's memory.
pub const RAM_BYTES: u64 = 1 << 20;
/// Where a driver's data are; below are the rings.
pub const DATA: u64 = 0x8_0000;
/// How many kinds of device [`Rig::new`] knows.
pub const KINDS: u8 = 5;

const DISK_BYTES: u64 = 1 << 16;
/// The largest ring the driver makes.
const QUEUE_SIZE: u32 = 64;

// Registers (virtio 1.2, 4.2.2).
const DEVICE_FEATURES: u64 = 0x10;
const DEVICE_FEATURES_SEL: u64 = 0x14;
const DRIVER_FEATURES: u64 = 0x20;
const DRIVER_FEATURES_SEL: u64 = 0x24;
const QUEUE_SEL: u64 = 0x30;
const QUEUE_NUM_MAX: u64 = 0x34;
const QUEUE_NUM: u64 = 0x38;
const QUEUE_READY: u64 = 0x44;
/// The driver rings here with a queue's number.
pub const QUEUE_NOTIFY: u64 = 0x50;
const STATUS: u64 = 0x70;
const QUEUE_DESC: u64 = 0x80;
const QUEUE_AVAIL: u64 = 0x90;
const QUEUE_USED: u64 = 0xa0;

const ACKNOWLEDGE_AND_DRIVER: u32 = 3;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;

struct NoLines;

impl InterruptController for NoLines {
    fn set_line(&self, _gsi: u32, _high: bool) {}
}

/// A device, its registers and the memory it works on.
pub struct Rig {
    /// The guest's memory.
    pub ram: Arc<GuestRam>,
    /// The device behind its registers.
    pub transport: MmioTransport,
}

impl Rig {
    /// A device of kind `kind` (below [`KINDS`]) after power-up.
    #[must_use]
    pub fn new(kind: u8) -> Self {
        let ram = Arc::new(GuestRam::new(&[(0, RAM_BYTES)]).expect("map memory"));
        let line = IrqLine::new(Arc::new(NoLines), 5);
        Self { transport: MmioTransport::new("virtio0", device(kind), ram.clone(), line), ram }
    }

    /// Reads a register.
    pub fn read(&mut self, register: u64) -> u32 {
        let mut data = [0; 4];
        self.transport.mmio_read(register, &mut data);
        u32::from_le_bytes(data)
    }

    /// Writes a register.
    pub fn write(&mut self, register: u64, value: u32) {
        self.transport.mmio_write(register, &value.to_le_bytes());
    }

    /// What a correct driver does until the device works: everything offered and in `mask`, all queues.
    pub fn bring_up(&mut self, mask: u64) {
        self.write(STATUS, 0);
        self.write(STATUS, ACKNOWLEDGE_AND_DRIVER);
        let mask = mask | 1 << 32;
        for half in 0..2 {
            self.write(DEVICE_FEATURES_SEL, half);
            let offered = self.read(DEVICE_FEATURES);
            self.write(DRIVER_FEATURES_SEL, half);
            self.write(DRIVER_FEATURES, offered & (mask >> (32 * half)) as u32);
        }
        self.write(STATUS, ACKNOWLEDGE_AND_DRIVER | FEATURES_OK);
        for index in 0..8 {
            self.write(QUEUE_SEL, index);
            let size = self.read(QUEUE_NUM_MAX).min(QUEUE_SIZE);
            if size == 0 {
                break;
            }
            self.write(QUEUE_NUM, size);
            let rings = [
                (QUEUE_DESC, ring(index)),
                (QUEUE_AVAIL, ring(index) + 0x1000),
                (QUEUE_USED, ring(index) + 0x2000),
            ];
            for (register, gpa) in rings {
                self.write(register, gpa as u32);
                self.write(register + 4, 0);
            }
            self.write(QUEUE_READY, 1);
        }
        self.write(STATUS, ACKNOWLEDGE_AND_DRIVER | FEATURES_OK | DRIVER_OK);
    }

    /// Writes a descriptor at `table`, as `input` says; often one that is almost right.
    pub fn describe(&self, table: u64, index: u64, input: &mut Bytes<'_>) {
        let gpa = match input.u8() {
            pick @ 0..0xc0 => DATA + u64::from(pick) * 0x100,
            0xc0..0xd0 => RAM_BYTES - 16,
            0xd0..0xe0 => ring(0),
            0xe0..0xf0 => u64::MAX - 3,
            _ => input.u64(),
        };
        let len = input.pick(&[0u32, 1, 2, 12, 16, 44, 64, 512, 513, 4096, 0x1_0000, u32::MAX]);
        let (flags, next) = (u16::from(input.u8()), u16::from(input.u8()));
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&gpa.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        let _ = self.ram.write(table + 16 * index, &bytes);
    }

    /// Puts `head` into the available ring of `queue`.
    pub fn offer(&self, queue: u32, head: u16) {
        let avail = ring(queue) + 0x1000;
        let mut index = [0; 2];
        let _ = self.ram.read(avail + 2, &mut index);
        let index = u16::from_le_bytes(index);
        let _ = self.ram.write(avail + 4 + 2 * u64::from(u32::from(index) % QUEUE_SIZE), &head.to_le_bytes());
        let _ = self.ram.write(avail + 2, &index.wrapping_add(1).to_le_bytes());
    }

    /// Lets the device come to rest: every request it took is completed.
    pub fn rest(&mut self) {
        if let Some(queued) = self.transport.as_queued() {
            queued.stop_queues();
        }
    }
}

/// Where the rings of queue `index` are: descriptors, available ring, used ring, a page each.
#[must_use]
pub fn ring(index: u32) -> u64 {
    0x1_0000 * (u64::from(index) + 1)
}

fn device(kind: u8) -> Box<dyn VirtioDevice> {
    // The other end of each socket is dropped at once: connections end as soon as they are made.
    let host = |_port: u32| UnixStream::pair().map(|(ours, _)| ours);
    match kind {
        0 => Box::new(Rng::new()),
        1 => Box::new(block()),
        2 => Box::new(Console::new(Box::new(std::io::sink())).0),
        3 => {
            Box::new(Net::with_pairs(Box::new(net::Unplugged), [2, 0, 0, 0, 0, 1], 2).expect("make a poller"))
        }
        _ => Box::new(Vsock::new(3, Box::new(host)).expect("make a poller").0),
    }
}

/// All disks of a process share one file: making one takes longer than a run.
fn block() -> Block {
    static FILE: OnceLock<File> = OnceLock::new();
    let file = FILE.get_or_init(|| {
        let file = tempfile::tempfile().expect("make a temporary file");
        file.set_len(DISK_BYTES).expect("size a temporary file");
        file
    });
    let file = file.try_clone().expect("a second handle");
    let disk = disk::formats::raw::Raw::from_file(file, disk::Access::ReadWrite).expect("a file is a disk");
    Block::new(Box::new(disk), "disk")
}
