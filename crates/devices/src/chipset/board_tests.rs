//! The small chips: I/O APIC by itself, ACPI fixed hardware, keyboard controller, single ports.

use std::sync::Arc;

use super::testing::Recorder;
use super::*;
use crate::device::{Device, MmioDevice, PioDevice, PowerEvent, Timed};

fn get(device: &mut dyn PioDevice, port: u16) -> u8 {
    let mut data = [0];
    device.port_read(port, &mut data);
    data[0]
}

fn ioapic() -> (Arc<Recorder>, IoApic) {
    let recorder = Recorder::new();
    let ioapic = IoApic::new(recorder.clone());
    (recorder, ioapic)
}

fn write(ioapic: &mut IoApic, index: u8, value: u32) {
    ioapic.mmio_write(0, &[index]);
    ioapic.mmio_write(0x10, &value.to_le_bytes());
}

fn read(ioapic: &mut IoApic, index: u8) -> u32 {
    let mut data = [0; 4];
    ioapic.mmio_write(0, &[index]);
    ioapic.mmio_read(0x10, &mut data);
    u32::from_le_bytes(data)
}

#[test]
fn io_apic_registers_read_back_without_their_read_only_bits() {
    let (_, mut ioapic) = ioapic();
    assert_eq!((read(&mut ioapic, 1), read(&mut ioapic, 0x10)), (0x0017_0020, 0x1_0000));
    write(&mut ioapic, 0, u32::MAX);
    assert_eq!((read(&mut ioapic, 0), read(&mut ioapic, 2)), (0x0f00_0000, 0x0f00_0000));
    write(&mut ioapic, 0x3e, 0xffff_ffff);
    assert_eq!((read(&mut ioapic, 0x3e), read(&mut ioapic, 0x40)), (0x1_afff, 0));
}

#[test]
fn an_edge_is_one_message_and_lost_while_masked() {
    let (recorder, mut ioapic) = ioapic();
    write(&mut ioapic, 0x17, 3 << 24);
    write(&mut ioapic, 0x16, 0x0931);
    ioapic.set_pin(3, true);
    ioapic.set_pin(3, true);
    let msis = recorder.msis.lock().unwrap().clone();
    assert_eq!(msis, [crate::Msi { address: 0xfee0_3004, data: 0x4131 }]);
    ioapic.set_pin(3, false);
    write(&mut ioapic, 0x16, 0x1_0931);
    ioapic.set_pin(3, true);
    write(&mut ioapic, 0x16, 0x0931);
    assert_eq!(recorder.msis.lock().unwrap().len(), 1);
}

#[test]
fn a_level_waits_for_eoi_and_for_its_mask() {
    let (recorder, mut ioapic) = ioapic();
    write(&mut ioapic, 0x24, 0x1_8040);
    ioapic.set_pin(10, true);
    assert!(recorder.msis.lock().unwrap().is_empty());
    write(&mut ioapic, 0x24, 0x8040);
    assert_eq!(recorder.msis.lock().unwrap()[0].data, 0xc040);
    assert_eq!(read(&mut ioapic, 0x24), 0xc040, "remote irr");
    ioapic.set_pin(10, false);
    ioapic.set_pin(10, true);
    assert_eq!(recorder.msis.lock().unwrap().len(), 1);
    ioapic.end_of_interrupt(0x41);
    assert_eq!(recorder.msis.lock().unwrap().len(), 1);
    ioapic.end_of_interrupt(0x40);
    assert_eq!(recorder.msis.lock().unwrap().len(), 2);
    // Linux's way to clear a stuck remote irr: edge and back.
    write(&mut ioapic, 0x24, 0x1_0040);
    assert_eq!(read(&mut ioapic, 0x24), 0x1_0040);
    ioapic.set_pin(99, true);
}

fn pm() -> (Arc<Recorder>, PowerManagement) {
    let recorder = Recorder::new();
    let pm = PowerManagement::new(recorder.clock.clone(), recorder.line(9), recorder.clone());
    (recorder, pm)
}

#[test]
fn soft_off_is_sleep_type_5() {
    let (recorder, mut pm) = pm();
    assert_eq!(get(&mut pm, 0x604), 1, "always in acpi mode");
    pm.port_write(0x604, &(3u16 << 10 | 1 << 13).to_le_bytes());
    assert!(recorder.power.lock().unwrap().is_empty());
    pm.port_write(0x604, &(5u16 << 10 | 1 << 13).to_le_bytes());
    assert_eq!(*recorder.power.lock().unwrap(), [PowerEvent::PowerOff]);
}

#[test]
fn the_power_button_raises_the_sci_until_its_status_is_cleared() {
    let (recorder, mut pm) = pm();
    assert!(!pm.press_power_button());
    assert!(!recorder.level(9));
    pm.port_write(0x602, &0x100u16.to_le_bytes());
    assert!(recorder.level(9));
    pm.port_write(0x600, &0x100u16.to_le_bytes());
    assert!(!recorder.level(9));
    assert!(pm.press_power_button());
    assert!(recorder.level(9));
}

#[test]
fn the_power_management_timer_counts_and_its_carry_interrupts() {
    let (recorder, mut pm) = pm();
    recorder.clock.set(1_000_000_000);
    let mut data = [0; 4];
    pm.port_read(0x608, &mut data);
    assert_eq!(u32::from_le_bytes(data), 3_579_545);
    assert_eq!(pm.next_deadline(), None);
    pm.port_write(0x602, &[1]);
    let deadline = pm.next_deadline().unwrap();
    recorder.clock.set(deadline - 1);
    pm.advance(deadline - 1);
    assert!(!recorder.level(9));
    recorder.clock.set(deadline);
    pm.advance(deadline);
    assert!(recorder.level(9));
    pm.port_read(0x608, &mut data);
    assert_eq!(u32::from_le_bytes(data), 1 << 31);
}

#[test]
fn only_a_byte_at_cf9_resets() {
    let (recorder, mut pm) = pm();
    // PCI configuration mechanism 1: function 4 of device 0.
    pm.port_write(0xcf8, &0x8000_0400u32.to_le_bytes());
    pm.port_write(0xcf9, &[0x02]);
    assert!(recorder.power.lock().unwrap().is_empty());
    pm.port_write(0xcf9, &[0x06]);
    assert_eq!(*recorder.power.lock().unwrap(), [PowerEvent::Reset]);
    let mut data = [0; 4];
    pm.port_read(0xcf8, &mut data);
    assert_eq!(data, [0xff; 4]);
}

#[test]
fn the_keyboard_controller_passes_its_tests_and_has_no_keyboard() {
    let recorder = Recorder::new();
    let mut i8042 = I8042::new(recorder.line(1), recorder.clone());
    for (command, answer) in [(0xaa, 0x55), (0xab, 0), (0xa9, 1)] {
        i8042.port_write(0x64, &[command]);
        assert_eq!(get(&mut i8042, 0x64) & 1, 1);
        assert_eq!(get(&mut i8042, 0x60), answer);
        assert_eq!(get(&mut i8042, 0x64) & 1, 0);
    }
    i8042.port_write(0x64, &[0x60]);
    i8042.port_write(0x60, &[0x01]);
    i8042.port_write(0x60, &[0xf2]);
    assert!(recorder.level(1));
    assert_eq!(get(&mut i8042, 0x60), 0xfe);
    assert!(!recorder.level(1));
}

#[test]
fn every_old_way_resets() {
    let recorder = Recorder::new();
    let mut i8042 = I8042::new(recorder.line(1), recorder.clone());
    i8042.port_write(0x64, &[0xff]);
    i8042.port_write(0x64, &[0xfe]);
    i8042.port_write(0x64, &[0xd1]);
    i8042.port_write(0x60, &[0xfe]);
    let mut ports = BoardPorts::new(recorder.clone());
    ports.port_write(0x92, &[0x02]);
    ports.port_write(0x92, &[0x03]);
    ports.port_write(0x92, &[0x03]);
    assert_eq!(*recorder.power.lock().unwrap(), [PowerEvent::Reset; 3]);
    ports.port_write(0x80, &[0xab]);
    assert_eq!((get(&mut ports, 0x80), ports.post_code()), (0xab, 0xab));
    ports.reset();
    assert_eq!(get(&mut ports, 0x92), 2, "a20 is open");
}
