use std::os::unix::net::UnixStream;

use virtio_bindings::virtio_mmio as reg;

use super::super::testing::*;
use super::super::{Block, Console, Net, Rng, Vsock};
use super::*;

/// One of every device, with host sides that accept what they are given.
fn every_device() -> Vec<Box<dyn VirtioDevice>> {
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 20).unwrap();
    let disk = disk::formats::raw::Raw::from_file(file, disk::Access::ReadWrite).unwrap();
    // The other end of each socket is dropped at once: connections end as soon as they are made.
    let host = |_port: u32| UnixStream::pair().map(|(ours, _)| ours);
    vec![
        Box::new(Rng::new()),
        Box::new(Block::new(Box::new(disk), "disk")),
        Box::new(Console::new(Box::new(std::io::sink())).0),
        Box::new(Net::new(Box::new(net::Unplugged), [2, 0, 0, 0, 0, 1]).unwrap()),
        Box::new(Vsock::new(3, Box::new(host)).unwrap().0),
    ]
}

#[test]
fn the_identification_registers_say_virtio_version_2() {
    let mut rig = Rig::new(Box::new(Rng::new()));
    assert_eq!(rig.read(reg::VIRTIO_MMIO_MAGIC_VALUE).to_le_bytes(), *b"virt");
    assert_eq!(rig.read(reg::VIRTIO_MMIO_VERSION), 2);
    assert_eq!(rig.read(reg::VIRTIO_MMIO_DEVICE_ID), 4);
    assert_eq!(rig.read(reg::VIRTIO_MMIO_SHM_LEN_LOW), u32::MAX);
    assert_eq!(rig.read(reg::VIRTIO_MMIO_SHM_BASE_HIGH), u32::MAX);
}

#[test]
fn every_device_comes_up_and_resets() {
    for device in every_device() {
        let mut rig = Rig::live(device);
        rig.bring_up(0);
        rig.transport.reset();
        assert_eq!(rig.status(), 0);
        assert_eq!(rig.read(reg::VIRTIO_MMIO_QUEUE_READY), 0);
    }
}

#[test]
fn features_that_were_not_offered_or_lack_version_1_are_not_accepted() {
    for features in [0, 1 << 63 | features::VERSION_1, features::EVENT_IDX] {
        let mut rig = Rig::new(Box::new(Rng::new()));
        rig.write(reg::VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER);
        rig.choose(features);
        rig.write(reg::VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        assert_eq!(rig.status() & FEATURES_OK, 0, "{features:#x}");
    }
}

#[test]
fn features_are_fixed_once_they_are_accepted() {
    let mut rig = Rig::live(Box::new(Rng::new()));
    rig.choose(0);
    rig.write(reg::VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    rig.request(0, &[(DATA, 8, WRITE)]);
}

#[test]
fn a_driver_that_skips_feature_negotiation_is_told_to_reset() {
    let mut rig = Rig::new(Box::new(Rng::new()));
    rig.write(reg::VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER | DRIVER_OK);
    assert_eq!(rig.status() & (DRIVER_OK | NEEDS_RESET), NEEDS_RESET);
    assert!(rig.interrupt_is_up());
    rig.bring_up(u64::MAX);
    assert!(!rig.is_broken() && !rig.interrupt_is_up());
}

#[test]
fn a_queue_outside_of_ram_or_of_bad_size_does_not_become_ready() {
    let bad: [(u32, u32); 7] = [
        (reg::VIRTIO_MMIO_QUEUE_NUM, 0),
        (reg::VIRTIO_MMIO_QUEUE_NUM, 3),
        (reg::VIRTIO_MMIO_QUEUE_NUM, 128),
        (reg::VIRTIO_MMIO_QUEUE_NUM, 0x1_0040),
        (reg::VIRTIO_MMIO_QUEUE_DESC_HIGH, u32::MAX),
        (reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW, RAM_BYTES as u32 - 8),
        (reg::VIRTIO_MMIO_QUEUE_USED_LOW, 0x40001),
    ];
    for (register, value) in bad {
        let mut rig = Rig::live(Box::new(Rng::new()));
        rig.write(reg::VIRTIO_MMIO_QUEUE_SEL, 0);
        rig.write(reg::VIRTIO_MMIO_QUEUE_READY, 0);
        rig.write(register, value);
        rig.write(reg::VIRTIO_MMIO_QUEUE_READY, 1);
        assert_eq!(rig.read(reg::VIRTIO_MMIO_QUEUE_READY), 0, "{register:#x} {value:#x}");
        assert!(rig.is_broken());
    }
}

#[test]
fn notifying_what_is_not_started_does_nothing() {
    let mut rig = Rig::new(Box::new(Rng::new()));
    rig.kick(0);
    let mut rig = Rig::live(Box::new(Rng::new()));
    rig.write(reg::VIRTIO_MMIO_QUEUE_SEL, 0);
    rig.write(reg::VIRTIO_MMIO_QUEUE_READY, 0);
    for queue in [0, 1, 7, u32::MAX as usize] {
        rig.kick(queue);
    }
    assert!(!rig.is_broken());
}

#[test]
fn the_line_is_high_while_an_interrupt_is_not_acknowledged() {
    let mut rig = Rig::live(Box::new(Rng::new()));
    rig.request(0, &[(DATA, 8, WRITE)]);
    assert!(rig.interrupt_is_up());
    assert_eq!(rig.read(reg::VIRTIO_MMIO_INTERRUPT_STATUS), 1);
    rig.write(reg::VIRTIO_MMIO_INTERRUPT_ACK, 2);
    assert!(rig.interrupt_is_up());
    rig.write(reg::VIRTIO_MMIO_INTERRUPT_ACK, 1);
    assert!(!rig.interrupt_is_up());
}

#[test]
fn interrupts_are_suppressed_when_the_driver_says_so() {
    // Without EVENT_IDX: the flag.
    let mut rig = Rig::live_with(Box::new(Rng::new()), !features::EVENT_IDX);
    rig.ram.write(rig.queues[0].avail, &1u16.to_le_bytes()).unwrap();
    rig.request(0, &[(DATA, 8, WRITE)]);
    assert!(!rig.interrupt_is_up());
    rig.ram.write(rig.queues[0].avail, &0u16.to_le_bytes()).unwrap();
    rig.request(0, &[(DATA, 8, WRITE)]);
    assert!(rig.interrupt_is_up());

    // With EVENT_IDX: not before the third.
    let mut rig = Rig::live(Box::new(Rng::new()));
    let used_event = rig.queues[0].avail + 4 + 2 * u64::from(rig.queues[0].size);
    rig.ram.write(used_event, &2u16.to_le_bytes()).unwrap();
    for expected in [false, false, true] {
        rig.add(0, &[(DATA, 8, WRITE)]);
        rig.kick(0);
        assert_eq!(rig.interrupt_is_up(), expected);
    }
}

#[test]
fn nonsense_in_the_rings_asks_for_a_reset() {
    type Spoil = fn(&mut Rig);
    let cases: [(&str, Spoil); 9] = [
        ("loop", |rig| {
            rig.queues[0].descriptor(&rig.ram, 0, DATA, 8, WRITE | NEXT, 0);
            rig.queues[0].offer(&rig.ram, 0);
        }),
        ("head out of range", |rig| rig.queues[0].offer(&rig.ram, 64)),
        ("next out of range", |rig| {
            rig.queues[0].descriptor(&rig.ram, 0, DATA, 8, WRITE | NEXT, 64);
            rig.queues[0].offer(&rig.ram, 0);
        }),
        ("readable after writable", |rig| {
            rig.add(0, &[(DATA, 8, WRITE), (DATA, 8, 0)]);
        }),
        ("outside of ram", |rig| {
            rig.add(0, &[(RAM_BYTES - 4, 8, WRITE)]);
        }),
        ("wrapping address", |rig| {
            rig.add(0, &[(u64::MAX - 4, 8, WRITE)]);
        }),
        ("available index too far ahead", |rig| {
            rig.ram.write(rig.queues[0].avail + 2, &65u16.to_le_bytes()).unwrap();
        }),
        ("indirect in indirect", |rig| {
            write_descriptor(&rig.ram, DATA, 0, (DATA, 16, INDIRECT, 0));
            rig.add(0, &[(DATA, 16, INDIRECT)]);
        }),
        ("indirect table of odd size", |rig| {
            rig.add(0, &[(DATA, 17, INDIRECT)]);
        }),
    ];
    for (name, spoil) in cases {
        let mut rig = Rig::live(Box::new(Rng::new()));
        spoil(&mut rig);
        rig.kick(0);
        assert!(rig.is_broken(), "{name}");
        assert_eq!(rig.used(0), None, "{name}");
        rig.kick(0);
        rig.bring_up(u64::MAX);
        assert_eq!(rig.request(0, &[(DATA, 8, WRITE)]), 8, "{name}: after a reset");
    }
}

#[test]
fn an_indirect_chain_longer_than_any_request_is_refused() {
    let mut rig = Rig::live(Box::new(Rng::new()));
    for index in 0..2000u16 {
        write_descriptor(&rig.ram, DATA, index, (DATA + 0x10_0000, 1, WRITE | NEXT, index + 1));
    }
    rig.add(0, &[(DATA, 16 * 2001, INDIRECT)]);
    rig.kick(0);
    assert!(rig.is_broken());
}

#[test]
fn indirect_chains_work() {
    let mut rig = Rig::live(Box::new(Rng::new()));
    write_descriptor(&rig.ram, DATA, 0, (DATA + 0x1000, 5, WRITE | NEXT, 1));
    write_descriptor(&rig.ram, DATA, 1, (DATA + 0x2000, 6, WRITE, 0));
    assert_eq!(rig.request(0, &[(DATA, 32, INDIRECT)]), 11);
}

#[test]
fn the_ring_wraps_round() {
    let mut rig = Rig::live(Box::new(Rng::new()));
    for _ in 0..70_000 {
        assert_eq!(rig.request(0, &[(DATA, 1, WRITE)]), 1);
    }
}

#[test]
fn a_saved_device_goes_on_in_another_machine() {
    let ram = Arc::new(GuestRam::new(&[(0, RAM_BYTES)]).unwrap());
    let mut rig = Rig::with_ram(Box::new(Rng::new()), ram.clone());
    rig.bring_up(u64::MAX);
    for _ in 0..5 {
        rig.request(0, &[(DATA, 8, WRITE)]);
    }
    assert!(rig.transport.save().is_err(), "queues are running");
    let section = rig.save();
    let queues = rig.queues.clone();
    drop(rig);

    let mut rig = Rig::with_ram(Box::new(Rng::new()), ram);
    rig.queues = queues;
    rig.transport.restore(&section).unwrap();
    assert!(rig.interrupt_is_up(), "the interrupt was not acknowledged");
    rig.add(0, &[(DATA, 8, WRITE)]);
    rig.kick(0);
    assert_eq!(rig.used(0), None, "at rest");
    rig.transport.as_queued().unwrap().start_queues();
    assert!(rig.used(0).is_some());
    assert_eq!(rig.request(0, &[(DATA, 8, WRITE)]), 8);
    assert_eq!(rig.save().version, section.version);
}

#[test]
fn impossible_saved_states_are_refused_and_change_nothing() {
    let mut rig = Rig::live(Box::new(Rng::new()));
    let good: MmioState = rig.save().decode(saved::KIND, saved::VERSION).unwrap();
    type Spoil = fn(&mut MmioState);
    let cases: [Spoil; 8] = [
        |s| s.device_type = 2,
        |s| s.status |= 0x100,
        |s| s.status &= !FEATURES_OK,
        |s| s.driver_features = u64::MAX,
        |s| s.queues.clear(),
        |s| s.queues[0].setup.size = 5,
        |s| s.queues[0].setup.avail_ring = u64::MAX - 1,
        |s| s.device.kind = "virtio-blk".into(),
    ];
    for (index, spoil) in cases.iter().enumerate() {
        let mut state = good.clone();
        spoil(&mut state);
        let section = Section::encode(saved::KIND, saved::VERSION, &state).unwrap();
        let mut other = Rig::new(Box::new(Rng::new()));
        assert!(other.transport.restore(&section).is_err(), "case {index}");
        assert_eq!(other.status(), 0);
        other.bring_up(u64::MAX);
        other.request(0, &[(DATA, 8, WRITE)]);
    }
}

#[test]
fn accesses_of_other_widths_and_beyond_the_configuration_are_harmless() {
    for device in every_device() {
        let mut rig = Rig::live(device);
        for offset in [0u64, 1, 0x70, 0xfc, 0x100, 0x13c, 0xff8, 0xfff, u64::MAX - 7] {
            for len in [1, 2, 4, 8] {
                let mut data = vec![0x55; len];
                rig.transport.mmio_read(offset, &mut data);
                if offset < 0x100 && (len != 4 || offset % 4 != 0) {
                    assert_eq!(data, vec![0; len]);
                }
                if offset >= 0x100 {
                    rig.transport.mmio_write(offset, &data);
                }
            }
        }
        assert_eq!(rig.config::<8>(0xe00), [0; 8]);
    }
}

#[test]
fn random_register_writes_never_break_the_host() {
    for (number, device) in every_device().into_iter().enumerate() {
        let mut random = Random(0x5eed + number as u64);
        let mut rig = Rig::live(device);
        for _ in 0..20_000 {
            let register = random.below(0x48) as u32 * 4;
            let values = [0, 1, 0xf, 64, 0x2_0000, random.next() as u32];
            let value = random.pick(&values);
            rig.write(register, value);
            rig.read(random.below(0x200) as u32 & !3);
            if random.below(200) == 0 {
                rig.bring_up(random.next());
            }
        }
    }
}

/// Descriptors that are often almost right.
fn random_descriptors(random: &mut Random, rig: &Rig, table: u64, count: u16) {
    for index in 0..count {
        let gpa = random.pick(&[DATA, DATA + 0x1000, DATA + 0x1fff, RAM_BYTES - 16, u64::MAX - 3, 0x2_0000]);
        let gpa = if random.below(8) == 0 { random.next() } else { gpa };
        let len = random.pick(&[0, 1, 2, 12, 16, 44, 64, 512, 513, 4096, 0x1_0000, u32::MAX]);
        let flags = random.pick(&[0, 0, NEXT, NEXT, WRITE, WRITE | NEXT, WRITE | NEXT, INDIRECT, 7]);
        write_descriptor(&rig.ram, table, index, (gpa, len, flags, (index + 1) % (count + 1)));
    }
}

#[test]
fn random_rings_never_break_the_host() {
    for (number, device) in every_device().into_iter().enumerate() {
        let mut random = Random(0xf00d + number as u64);
        let mut rig = Rig::live(device);
        for _ in 0..3_000 {
            let index = random.below(rig.queues.len() as u64) as usize;
            let mut queue = rig.queues[index].clone();
            random_descriptors(&mut random, &rig, queue.desc, 16);
            random_descriptors(&mut random, &rig, DATA, 4);
            // Headers of block requests, vsock packets and control commands, now and then plausible.
            let header: Vec<u8> = (0..44).map(|_| random.pick(&[0, 0, 0, 1, 2, 3, 5, 8, 11, 0xff])).collect();
            rig.ram.write(DATA + 0x1000, &header).unwrap();
            for _ in 0..random.below(4) {
                queue.offer(&rig.ram, random.below(17) as u16);
            }
            rig.queues[index] = queue;
            rig.kick(index);
            if rig.is_broken() || random.below(50) == 0 {
                let features = random.next();
                rig.bring_up(features);
            }
        }
    }
}
