//! A driver that gets everything wrong: registers, descriptors, rings and data of every virtio device.
#![no_main]

use devices::MmioDevice;
use fuzz::Bytes;
use fuzz::virtio::{DATA, KINDS, QUEUE_NOTIFY, RAM_BYTES, Rig, ring};
use libfuzzer_sys::fuzz_target;

fn act(rig: &mut Rig, input: &mut Bytes<'_>) {
    let choice = input.u8();
    let queue = u32::from(choice >> 6);
    match choice % 16 {
        0 => {
            let (register, value) = (u64::from(input.u8() % 0x48) * 4, input.u32());
            rig.write(register, value);
        }
        1 => {
            let _ = rig.read(u64::from(input.u16()));
        }
        2 => {
            let (offset, width) = (u64::from(input.u16()), 1usize << queue);
            rig.transport.mmio_write(offset, &input.array::<8>()[..width]);
        }
        3 => rig.bring_up(input.u64()),
        4 => {
            let gpa = u64::from(input.u32()) % RAM_BYTES;
            let len = usize::from(input.u8());
            let _ = rig.ram.write(gpa, input.slice(len));
        }
        5..7 => {
            let len = usize::from(input.u8() % 64);
            let _ = rig.ram.write(DATA + u64::from(input.u8()) * 0x100, input.slice(len));
        }
        7..11 => {
            let index = u64::from(input.u8() % 64);
            rig.describe(ring(queue), index, input);
        }
        // An indirect table.
        11 => {
            let (table, index) = (DATA + u64::from(input.u8()) * 0x100, u64::from(input.u8() % 8));
            rig.describe(table, index, input);
        }
        12 => rig.offer(queue, input.u16()),
        13 => rig.offer(queue, u16::from(input.u8() % 64)),
        _ => {
            rig.offer(queue, u16::from(input.u8() % 64));
            rig.write(QUEUE_NOTIFY, queue);
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Bytes(data);
    let kind = input.u8();
    let mut rig = Rig::new(kind % KINDS);
    if kind < 0xf0 {
        rig.bring_up(u64::MAX);
    }
    while !input.is_empty() {
        act(&mut rig, &mut input);
    }
    rig.rest();
});
