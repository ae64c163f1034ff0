use std::io;
use std::sync::atomic::AtomicUsize;

use super::super::testing::*;
use super::*;
use crate::device::Device;

const HEADER: u64 = DATA;
const STATUS: u64 = DATA + 0x800;
const BUFFER: u64 = DATA + 0x1_0000;
const DISK_BYTES: u64 = 8 << 20;

fn file_disk(access: Access) -> Box<dyn Disk> {
    let file = tempfile::tempfile().unwrap();
    file.set_len(DISK_BYTES).unwrap();
    Box::new(disk::formats::raw::Raw::from_file(file, access).unwrap())
}

fn rig(access: Access) -> Rig {
    Rig::live(Box::new(Block::new(file_disk(access), "a-serial-number-that-is-too-long")))
}

fn header(rig: &Rig, kind: u32, sector: u64) {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    bytes[8..].copy_from_slice(&sector.to_le_bytes());
    rig.ram.write(HEADER, &bytes).unwrap();
    rig.ram.write(STATUS, &[0xee]).unwrap();
}

/// One request with `data` between header and status: its status and the used length.
fn request(rig: &mut Rig, kind: u32, sector: u64, data: &[(u64, u32, u16)]) -> (u8, u32) {
    header(rig, kind, sector);
    let mut segments = vec![(HEADER, 16, 0)];
    segments.extend_from_slice(data);
    segments.push((STATUS, 1, WRITE));
    let len = rig.request(0, &segments);
    (rig.bytes(STATUS, 1)[0], len)
}

fn ranges(rig: &Rig, ranges: &[(u64, u32, u32)]) -> u32 {
    let mut bytes = Vec::new();
    for (sector, sectors, flags) in ranges {
        bytes.extend(sector.to_le_bytes());
        bytes.extend(sectors.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
    }
    rig.ram.write(BUFFER, &bytes).unwrap();
    bytes.len() as u32
}

#[test]
fn what_was_written_is_read_back_through_scattered_buffers() {
    let mut rig = rig(Access::ReadWrite);
    let data: Vec<u8> = (0..4096u32).map(|i| (i * 7) as u8).collect();
    rig.ram.write(BUFFER, &data).unwrap();
    let out = [(BUFFER, 100, 0), (BUFFER + 100, 3996, 0)];
    assert_eq!(request(&mut rig, blk::VIRTIO_BLK_T_OUT, 3, &out), (0, 1));
    assert_eq!(request(&mut rig, blk::VIRTIO_BLK_T_FLUSH, 0, &[]), (0, 1));
    let back = BUFFER + 0x1_0000;
    let parts = [(back, 1, WRITE), (back + 1, 511, WRITE), (back + 512, 3584, WRITE)];
    assert_eq!(request(&mut rig, blk::VIRTIO_BLK_T_IN, 3, &parts), (0, 4097));
    assert_eq!(rig.bytes(back, 4096), data);
    // Status in the same descriptor as the data.
    header(&rig, blk::VIRTIO_BLK_T_IN, 4);
    rig.request(0, &[(HEADER, 16, 0), (back, 513, WRITE)]);
    assert_eq!(rig.bytes(back, 512), data[512..1024]);
    assert_eq!(rig.bytes(back + 512, 1), [0]);
}

#[test]
fn transfers_larger_than_the_buffer_are_whole() {
    let mut rig = rig(Access::ReadWrite);
    let data: Vec<u8> = (0..3u32 << 20).map(|i| (i >> 9) as u8).collect();
    rig.ram.write(BUFFER, &data).unwrap();
    assert_eq!(request(&mut rig, blk::VIRTIO_BLK_T_OUT, 0, &[(BUFFER, 3 << 20, 0)]).0, 0);
    let back = BUFFER + (4 << 20);
    assert_eq!(request(&mut rig, blk::VIRTIO_BLK_T_IN, 0, &[(back, 3 << 20, WRITE)]).0, 0);
    assert!(rig.bytes(back, 3 << 20) == data);
}

#[test]
fn transfers_off_the_disk_or_of_partial_sectors_are_errors() {
    let mut rig = rig(Access::ReadWrite);
    let sectors = DISK_BYTES / SECTOR_SIZE;
    let cases = [
        (sectors, 512),
        (sectors - 1, 1024),
        (u64::MAX, 512),
        (1 << 55, 512),
        (u64::MAX >> 9, 512),
        (0, 511),
    ];
    for (sector, len) in cases {
        for (kind, flags) in [(blk::VIRTIO_BLK_T_IN, WRITE), (blk::VIRTIO_BLK_T_OUT, 0)] {
            assert_eq!(request(&mut rig, kind, sector, &[(BUFFER, len, flags)]).0, 1, "{sector:#x} {len}");
        }
    }
    assert!(!rig.is_broken());
}

#[test]
fn the_identity_is_cut_to_its_twenty_bytes() {
    let mut rig = rig(Access::ReadOnly);
    assert_eq!(request(&mut rig, blk::VIRTIO_BLK_T_GET_ID, 0, &[(BUFFER, 20, WRITE)]), (0, 21));
    assert_eq!(rig.bytes(BUFFER, 20), b"a-serial-number-that");
}

#[test]
fn unknown_requests_are_unsupported() {
    let mut rig = rig(Access::ReadWrite);
    for kind in [2, 3, 14, 0x8000_0000, u32::MAX] {
        assert_eq!(request(&mut rig, kind, 0, &[]).0, 2);
    }
}

#[test]
fn a_read_only_disk_says_so_and_refuses_writes() {
    let mut rig = rig(Access::ReadOnly);
    assert_ne!(rig.offered() & 1 << blk::VIRTIO_BLK_F_RO, 0);
    assert_eq!(request(&mut rig, blk::VIRTIO_BLK_T_OUT, 0, &[(BUFFER, 512, 0)]).0, 1);
    let len = ranges(&rig, &[(0, 8, 0)]);
    assert_eq!(request(&mut rig, blk::VIRTIO_BLK_T_DISCARD, 0, &[(BUFFER, len, 0)]).0, 1);
    assert_eq!(request(&mut rig, blk::VIRTIO_BLK_T_IN, 0, &[(BUFFER, 512, WRITE)]).0, 0);
}

#[test]
fn ranges_are_zeroed_and_discarded() {
    let mut rig = rig(Access::ReadWrite);
    rig.ram.write(BUFFER, &[5; 8192]).unwrap();
    request(&mut rig, blk::VIRTIO_BLK_T_OUT, 0, &[(BUFFER, 8192, 0)]);
    let len = ranges(&rig, &[(2, 2, 0), (8, 1, 1)]);
    assert_eq!(request(&mut rig, blk::VIRTIO_BLK_T_WRITE_ZEROES, 0, &[(BUFFER, len, 0)]).0, 0);
    request(&mut rig, blk::VIRTIO_BLK_T_IN, 0, &[(BUFFER, 8192, WRITE)]);
    let data = rig.bytes(BUFFER, 8192);
    for (sector, bytes) in data.chunks(512).enumerate() {
        let expected = if [2, 3, 8].contains(&sector) { 0 } else { 5 };
        assert!(bytes.iter().all(|&byte| byte == expected), "sector {sector}");
    }
    let len = ranges(&rig, &[(0, 16, 0)]);
    assert_eq!(request(&mut rig, blk::VIRTIO_BLK_T_DISCARD, 0, &[(BUFFER, len, 0)]).0, 0);
}

#[test]
fn bad_ranges_are_refused_before_the_first_is_done() {
    let mut rig = rig(Access::ReadWrite);
    let kind = blk::VIRTIO_BLK_T_WRITE_ZEROES;
    rig.ram.write(BUFFER, &[5; 512]).unwrap();
    request(&mut rig, blk::VIRTIO_BLK_T_OUT, 0, &[(BUFFER, 512, 0)]);
    let cases = [(DISK_BYTES / SECTOR_SIZE, 1, 0), (u64::MAX, 1, 0), (0, u32::MAX, 0), (u64::MAX >> 9, 2, 0)];
    for case in cases {
        let len = ranges(&rig, &[(0, 1, 0), case]);
        assert_eq!(request(&mut rig, kind, 0, &[(BUFFER, len, 0)]).0, 1, "{case:?}");
    }
    let len = ranges(&rig, &[(0, 1, 0), (1, 1, 2)]);
    assert_eq!(request(&mut rig, kind, 0, &[(BUFFER, len, 0)]).0, 2, "unknown flag");
    assert_eq!(request(&mut rig, blk::VIRTIO_BLK_T_DISCARD, 0, &[(BUFFER, 15, 0)]).0, 1);
    assert_eq!(request(&mut rig, kind, 0, &[]).0, 1);
    request(&mut rig, blk::VIRTIO_BLK_T_IN, 0, &[(BUFFER, 512, WRITE)]);
    assert_eq!(rig.bytes(BUFFER, 512), [5; 512]);
}

#[test]
fn a_request_without_header_or_status_asks_for_a_reset() {
    for segments in [&[(HEADER, 15, 0), (STATUS, 1, WRITE)][..], &[(HEADER, 16, 0)], &[(STATUS, 1, WRITE)]] {
        let mut rig = rig(Access::ReadWrite);
        rig.add(0, segments);
        rig.kick(0);
        wait_for(|| rig.is_broken().then_some(()));
    }
}

#[test]
fn the_configuration_describes_the_disk() {
    let mut rig = rig(Access::ReadWrite);
    assert_eq!(u64::from_le_bytes(rig.config(0)), DISK_BYTES / 512);
    assert_eq!(u32::from_le_bytes(rig.config(12)), SEG_MAX);
    assert_eq!(u32::from_le_bytes(rig.config(20)), 512);
    assert_eq!(rig.config::<1>(24), [3], "4 KiB blocks");
    assert_eq!(rig.config::<8>(56)[0], 1);
    assert_eq!(rig.config::<8>(60), [0; 8]);
}

/// A disk on which everything fails, or waits until it is let go.
struct Slow(Arc<Gate>);

struct Gate {
    gate: Mutex<()>,
    reads: AtomicUsize,
}

impl Disk for Slow {
    fn size_bytes(&self) -> u64 {
        DISK_BYTES
    }
    fn access(&self) -> Access {
        Access::ReadWrite
    }
    fn read_at(&self, data: &mut [u8], _offset: u64) -> io::Result<()> {
        let _gate = self.0.gate.lock().unwrap();
        data.fill(9);
        self.0.reads.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
    fn write_at(&self, _data: &[u8], _offset: u64) -> io::Result<()> {
        Err(io::ErrorKind::StorageFull.into())
    }
    fn flush(&self) -> io::Result<()> {
        Err(io::Error::other("broken"))
    }
    fn discard(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Err(io::Error::other("broken"))
    }
    fn write_zeroes(&self, _offset: u64, _len: u64, _unmap: disk::Unmap) -> io::Result<()> {
        Err(io::Error::other("broken"))
    }
}

fn slow() -> (Arc<Gate>, Rig) {
    let disk = Arc::new(Gate { gate: Mutex::new(()), reads: AtomicUsize::new(0) });
    let rig = Rig::live(Box::new(Block::new(Box::new(Slow(disk.clone())), "slow")));
    (disk, rig)
}

#[test]
fn errors_of_the_disk_reach_the_guest() {
    let (_disk, mut rig) = slow();
    assert_eq!(request(&mut rig, blk::VIRTIO_BLK_T_OUT, 0, &[(BUFFER, 512, 0)]).0, 1);
    assert_eq!(request(&mut rig, blk::VIRTIO_BLK_T_FLUSH, 0, &[]).0, 1);
    let len = ranges(&rig, &[(0, 1, 0)]);
    assert_eq!(request(&mut rig, blk::VIRTIO_BLK_T_DISCARD, 0, &[(BUFFER, len, 0)]).0, 1);
}

#[test]
fn a_slow_disk_does_not_hold_the_vcpu_and_requests_finish_before_a_save() {
    let (disk, mut rig) = slow();
    header(&rig, blk::VIRTIO_BLK_T_IN, 0);
    let gate = disk.gate.lock().unwrap();
    for index in 0..8 {
        rig.add(0, &[(HEADER, 16, 0), (BUFFER + index * 512, 512, WRITE), (STATUS + index, 1, WRITE)]);
        rig.kick(0);
    }
    assert_eq!(rig.used(0), None);
    drop(gate);
    rig.save();
    let finished = disk.reads.load(Ordering::SeqCst);
    let mut used = 0;
    while rig.used(0).is_some() {
        used += 1;
    }
    assert_eq!(used, finished, "what was begun is finished, the rest is untouched");
    rig.transport.as_queued().unwrap().start_queues();
    for _ in used..8 {
        rig.wait_used(0);
    }
    assert_eq!(disk.reads.load(Ordering::SeqCst), 8);
    assert_eq!(rig.bytes(BUFFER, 8 * 512), [9; 8 * 512]);
    assert_eq!(rig.bytes(STATUS, 8), [0; 8]);
}

#[test]
fn a_drive_without_a_medium_comes_back_with_one_and_the_driver_is_told() {
    let empty = disk::formats::raw::Raw::from_file(tempfile::tempfile().unwrap(), Access::ReadWrite).unwrap();
    let mut before = Rig::live(Box::new(Block::new(Box::new(empty), "root")));
    let ram = before.ram.clone();
    let restored = |section: &state::Section| {
        let block = Block::new(file_disk(Access::ReadWrite), "root");
        let mut rig = Rig::with_ram(Box::new(block), ram.clone());
        rig.transport.restore(section).unwrap();
        rig.transport.as_queued().unwrap().start_queues();
        rig
    };
    let (status, acknowledge) = (0x60, 0x64);
    let section = before.save();
    let mut after = restored(&section);
    assert_eq!(after.read(status), 2, "a configuration change");
    after.write(acknowledge, 2);
    after.transport.as_queued().unwrap().stop_queues();
    let mut same = restored(&after.transport.save().unwrap());
    assert_eq!(same.read(status), 0, "the same disk is no news");
}

#[test]
fn a_disk_of_another_size_is_not_restored_onto() {
    let mut rig = rig(Access::ReadWrite);
    let section = rig.save();
    let file = tempfile::tempfile().unwrap();
    file.set_len(512).unwrap();
    let small = disk::formats::raw::Raw::from_file(file, Access::ReadWrite).unwrap();
    let mut other = Rig::new(Box::new(Block::new(Box::new(small), "small")));
    assert!(other.transport.restore(&section).is_err());
    let mut same = Rig::new(Box::new(Block::new(file_disk(Access::ReadWrite), "same")));
    same.transport.restore(&section).unwrap();
}
