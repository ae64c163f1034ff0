//! Saved states from a stranger: restored by every chip and device, which then go on working, or refused.
#![no_main]

use devices::{Device, MmioDevice};
use fuzz::Bytes;
use fuzz::board::Board;
use fuzz::virtio::{KINDS, QUEUE_NOTIFY, Rig};
use libfuzzer_sys::fuzz_target;
use state::Section;

/// A section like `good`, with other bytes altogether or a few of them changed.
fn damaged(good: &Section, input: &mut Bytes<'_>) -> Section {
    let mut section = good.clone();
    let changes = input.u8();
    if changes == 0xff {
        let len = usize::from(input.u16());
        section.bytes = input.slice(len).to_vec();
        return section;
    }
    input.damage(&mut section.bytes, changes % 8);
    section
}

fn chips(input: &mut Bytes<'_>) {
    let board = Board::new();
    for _ in 0..input.u8() % 16 {
        board.act(input);
    }
    let which = usize::from(input.u8()) % (board.bus.device_count() as usize + 1);
    let taken = match board.bus.devices().nth(which) {
        Some((_, device)) => {
            let mut device = devices::bus::lock(device);
            let good = device.save().expect("a state that was reached can be saved");
            device.restore(&damaged(&good, input)).is_ok()
        }
        None => {
            let good = board.router.apics().save().expect("a state that was reached can be saved");
            board.router.apics().restore(&damaged(&good, input)).is_ok()
        }
    };
    if taken {
        board.pass(1);
    }
    while !input.is_empty() {
        board.act(input);
    }
    board.pass(1 << 30);
    board.bus.save().expect("whatever was restored can be saved");
    board.router.apics().save().expect("whatever was restored can be saved");
}

fn virtio(kind: u8, input: &mut Bytes<'_>) {
    let mut rig = Rig::new(kind);
    if !input.u8().is_multiple_of(4) {
        rig.bring_up(u64::MAX);
        for queue in 0..input.u8() % 4 {
            rig.offer(queue.into(), 0);
        }
    }
    rig.rest();
    let good = rig.transport.save().expect("a device at rest can be saved");
    let taken = rig.transport.restore(&damaged(&good, input)).is_ok();
    if taken && let Some(queued) = rig.transport.as_queued() {
        queued.start_queues();
    }
    while !input.is_empty() {
        match input.u8() {
            0 => rig.bring_up(input.u64()),
            queue @ 1..4 => rig.write(QUEUE_NOTIFY, queue.into()),
            _ => rig.transport.mmio_read(u64::from(input.u16()), &mut [0; 4]),
        }
    }
    rig.rest();
    rig.transport.save().expect("whatever was restored can be saved");
}

fuzz_target!(|data: &[u8]| {
    let mut input = Bytes(data);
    match input.u8() {
        kind @ 0..KINDS => virtio(kind, &mut input),
        _ => chips(&mut input),
    }
});
