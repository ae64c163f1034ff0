use std::sync::mpsc;

use super::super::testing::*;
use super::*;
use crate::device::Device;

/// A terminal that can be looked at, and can be stuck.
struct Terminal(mpsc::SyncSender<Vec<u8>>);

impl Write for Terminal {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        self.0.send(data.to_vec()).map_err(|_| std::io::ErrorKind::BrokenPipe)?;
        Ok(data.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn console(room: usize) -> (Rig, ConsoleHandle, mpsc::Receiver<Vec<u8>>) {
    let (sender, receiver) = mpsc::sync_channel(room);
    let (console, handle) = Console::new(Box::new(Terminal(sender)));
    (Rig::live(Box::new(console)), handle, receiver)
}

#[test]
fn what_the_guest_prints_arrives_in_order() {
    let (mut rig, _handle, terminal) = console(1000);
    let mut expected = Vec::new();
    for number in 0..500u32 {
        let text = format!("line {number}\n");
        rig.ram.write(DATA, text.as_bytes()).unwrap();
        rig.request(TX, &[(DATA, 3, 0), (DATA + 3, text.len() as u32 - 3, 0)]);
        expected.extend(text.into_bytes());
    }
    drop(rig);
    assert_eq!(terminal.iter().flatten().collect::<Vec<u8>>(), expected);
}

#[test]
fn a_stuck_terminal_holds_up_printing_but_not_the_vcpu() {
    let (mut rig, _handle, terminal) = console(0);
    let page = vec![b'x'; 4096];
    rig.ram.write(DATA, &page).unwrap();
    for _ in 0..60 {
        rig.add(TX, &[(DATA, 4096, 0)]);
        rig.kick(TX);
    }
    let mut taken = 0;
    while rig.used(TX).is_some() {
        taken += 1;
    }
    assert!(taken < 60, "output is bounded, {taken} pages were taken");
    let mut received = 0;
    while received < 60 * 4096 {
        received += terminal.recv().unwrap().len();
    }
    assert_eq!(received, 60 * 4096);
    drop(terminal);
}

#[test]
fn typing_waits_for_buffers_and_is_bounded() {
    let (mut rig, handle, _terminal) = console(1);
    assert_eq!(handle.input(b"hello"), 5);
    rig.add(RX, &[(DATA, 2, WRITE), (DATA + 0x1000, 1, WRITE)]);
    rig.kick(RX);
    assert_eq!(rig.wait_used(RX).1, 3);
    assert_eq!((rig.bytes(DATA, 2), rig.bytes(DATA + 0x1000, 1)), (b"he".to_vec(), b"l".to_vec()));
    assert_eq!(rig.request(RX, &[(DATA, 16, WRITE)]), 2);
    assert_eq!(handle.input(&vec![0; 1 << 20]), INPUT_LIMIT);
}

#[test]
fn a_resize_is_an_interrupt_and_a_new_configuration() {
    let (mut rig, handle, _terminal) = console(1);
    let generation = rig.read(virtio_bindings::virtio_mmio::VIRTIO_MMIO_CONFIG_GENERATION);
    handle.resize(132, 43);
    assert!(rig.interrupt_is_up());
    assert_eq!(rig.config::<4>(0), [132, 0, 43, 0]);
    assert_ne!(rig.read(virtio_bindings::virtio_mmio::VIRTIO_MMIO_CONFIG_GENERATION), generation);
}

#[test]
fn waiting_input_survives_a_save() {
    let (mut rig, handle, _terminal) = console(1);
    handle.input(b"typed");
    handle.resize(80, 25);
    let section = rig.save();
    let ram = rig.ram.clone();
    let (console, _handle) = Console::new(Box::new(std::io::sink()));
    let mut other = Rig::with_ram(Box::new(console), ram);
    other.queues = rig.queues.clone();
    other.transport.restore(&section).unwrap();
    other.transport.as_queued().unwrap().start_queues();
    assert_eq!(other.request(RX, &[(DATA, 16, WRITE)]), 5);
    assert_eq!(other.bytes(DATA, 5), b"typed");
    assert_eq!(other.config::<4>(0), [80, 0, 25, 0]);
}
