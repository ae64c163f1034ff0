//! A disk that is held to a rate. With the clock that stands still, what waits waits for ever.

use std::io;
use std::sync::atomic::AtomicU64;

use super::super::testing::*;
use super::*;
use crate::Clock;
use crate::chipset::testing::FakeClock;
use crate::device::Device;
use crate::rate::{Bucket, Limits};

const SECOND: u64 = 1_000_000_000;
const STATUS: u64 = DATA + 0x800;
const BUFFER: u64 = DATA + 0x1_0000;
const DISK_BYTES: u64 = 8 << 20;

/// Zeros that count how many of them were read, none from a cache.
struct Counting(Arc<AtomicU64>);

impl Disk for Counting {
    fn access(&self) -> Access {
        Access::ReadOnly
    }
    fn size_bytes(&self) -> u64 {
        DISK_BYTES
    }
    fn block_size(&self) -> u32 {
        512
    }
    fn read_at(&self, data: &mut [u8], _offset: u64) -> io::Result<()> {
        data.fill(0);
        self.0.fetch_add(data.len() as u64, Ordering::SeqCst);
        Ok(())
    }
    fn write_at(&self, _data: &[u8], _offset: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
    fn discard(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }
    fn write_zeroes(&self, _offset: u64, _len: u64, _unmap: disk::Unmap) -> io::Result<()> {
        Ok(())
    }
}

fn bucket(size: u64, one_time_burst: u64, refill_time_ms: u64) -> Option<Bucket> {
    Some(Bucket { size, one_time_burst, refill_time_ms })
}

/// A device held to `limits` by `clock`, and the bytes that were read from its disk.
fn device(limits: Limits, clock: &Arc<dyn Clock>) -> (Box<Block>, Arc<AtomicU64>) {
    let read = Arc::new(AtomicU64::new(0));
    let block = Block::new(Box::new(Counting(read.clone())), "limited");
    (Box::new(block.limited(RateLimiter::new(Some(limits), clock))), read)
}

fn add(rig: &mut Rig, kind: u32, len: u32) {
    let header = DATA + 0x20 * u64::from(rig.queues[0].next_avail % 64);
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    rig.ram.write(header, &bytes).unwrap();
    let all = [(header, 16, 0), (BUFFER, len, WRITE), (STATUS, 1, WRITE)];
    let (header, data, status) = (all[0], all[1], all[2]);
    let segments = if len == 0 { vec![header, status] } else { vec![header, data, status] };
    rig.add(0, &segments);
}

fn read(rig: &mut Rig, len: u32) {
    add(rig, blk::VIRTIO_BLK_T_IN, len);
    rig.kick(0);
}

#[test]
fn a_request_waits_for_its_bytes_and_those_behind_it_for_it() {
    let fake = Arc::new(FakeClock::default());
    let clock: Arc<dyn Clock> = fake.clone();
    let limits = Limits { bandwidth: bucket(8192, 4096, 1000), ops: None };
    let (device, bytes) = device(limits, &clock);
    let mut rig = Rig::live(device);
    for _ in 0..3 {
        read(&mut rig, 4096);
        rig.wait_used(0);
    }
    // The last that there are went to the third; what costs nothing waits behind what does.
    read(&mut rig, 8192);
    add(&mut rig, blk::VIRTIO_BLK_T_FLUSH, 0);
    rig.kick(0);
    fake.pass(SECOND - 1);
    rig.kick(0);
    assert_eq!((rig.used(0), bytes.load(Ordering::SeqCst)), (None, 3 * 4096));
    // Who looks in between loses a part of a nanosecond.
    fake.pass(2);
    rig.kick(0);
    rig.wait_used(0);
    rig.wait_used(0);
    assert_eq!(bytes.load(Ordering::SeqCst), 5 * 4096);
}

#[test]
fn requests_of_every_kind_are_operations() {
    let fake = Arc::new(FakeClock::default());
    let clock: Arc<dyn Clock> = fake.clone();
    let (device, _) = device(Limits { bandwidth: None, ops: bucket(2, 0, 1000) }, &clock);
    let mut rig = Rig::live(device);
    read(&mut rig, 512);
    rig.wait_used(0);
    add(&mut rig, blk::VIRTIO_BLK_T_GET_ID, 20);
    rig.kick(0);
    rig.wait_used(0);
    add(&mut rig, blk::VIRTIO_BLK_T_FLUSH, 0);
    rig.kick(0);
    assert_eq!(rig.used(0), None);
    fake.pass(SECOND / 2);
    rig.kick(0);
    rig.wait_used(0);
}

#[test]
fn the_thread_goes_on_by_itself_when_the_time_has_come() {
    let clock = HostClock::start();
    let (device, bytes) = device(Limits { bandwidth: bucket(4096, 0, 5), ops: None }, &clock);
    let mut rig = Rig::live(device);
    let begun = clock.now();
    for _ in 0..16 {
        add(&mut rig, blk::VIRTIO_BLK_T_IN, 4096);
    }
    rig.kick(0);
    for _ in 0..16 {
        rig.wait_used(0);
        let passed = bytes.load(Ordering::SeqCst);
        // A full bucket, and what was earned since.
        let most = 4096 + (clock.now() - begun) * 4096 / 5_000_000 + 1;
        assert!(passed <= most, "{passed} bytes, {most} at most");
    }
}

#[test]
fn what_waits_is_saved_in_the_ring_with_the_levels_and_a_reset_fills_nothing() {
    let fake = Arc::new(FakeClock::default());
    let clock: Arc<dyn Clock> = fake.clone();
    let limits = Limits { bandwidth: bucket(4096, 0, 1000), ops: None };
    let mut rig = Rig::live(device(limits, &clock).0);
    read(&mut rig, 4096);
    rig.wait_used(0);
    read(&mut rig, 4096);
    fake.pass(SECOND / 2);
    let section = rig.save();
    assert_eq!(rig.used(0), None);

    let (again, bytes) = device(limits, &clock);
    let mut other = Rig::with_ram(again, rig.ram.clone());
    other.queues.clone_from(&rig.queues);
    other.transport.restore(&section).unwrap();
    other.transport.as_queued().unwrap().start_queues();
    other.kick(0);
    assert_eq!((other.used(0), bytes.load(Ordering::SeqCst)), (None, 0), "half of it is there");
    fake.pass(SECOND / 2);
    other.kick(0);
    other.wait_used(0);
    assert_eq!(bytes.load(Ordering::SeqCst), 4096);

    other.bring_up(u64::MAX);
    read(&mut other, 4096);
    assert_eq!(other.used(0), None);
}

#[test]
fn a_state_of_version_1_is_read_and_has_no_levels() {
    let clock: Arc<dyn Clock> = Arc::new(FakeClock::default());
    let limits = Limits { bandwidth: bucket(4096, 0, 1000), ops: None };
    let (mut block, _) = device(limits, &clock);
    let mut section = block.save().unwrap();
    section.version = 1;
    block.restore(&section).unwrap();
    section.version = VERSION + 1;
    assert!(block.restore(&section).is_err());
    // And one that was saved without limits is held to those of its new machine.
    let unlimited = Block::new(Box::new(Counting(Arc::default())), "unlimited");
    block.restore(&unlimited.save().unwrap()).unwrap();
}
