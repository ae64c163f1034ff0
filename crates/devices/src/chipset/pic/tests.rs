use super::*;

fn pic() -> DualPic {
    let mut pic = DualPic::new(Box::new(|_| {}));
    for (port, value) in
        [(0x20, 0x11), (0xa0, 0x11), (0x21, 0x20), (0xa1, 0x28), (0x21, 4), (0xa1, 2), (0x21, 1), (0xa1, 1)]
    {
        pic.write(port, value);
    }
    pic
}

fn pulse(pic: &mut DualPic, line: u8) {
    pic.set_line(line, true);
    pic.set_line(line, false);
}

#[test]
fn nothing_interrupts_before_initialization() {
    let mut pic = DualPic::new(Box::new(|_| {}));
    pic.set_line(1, true);
    assert!(!pic.int());
    pic.write(0x20, 0x11);
    pic.write(0x21, 0x20);
    assert!(!pic.int());
}

#[test]
fn lower_numbers_go_first_and_nest() {
    let mut pic = pic();
    pulse(&mut pic, 5);
    pulse(&mut pic, 3);
    assert_eq!(pic.acknowledge(), 0x23);
    assert!(!pic.int());
    pulse(&mut pic, 1);
    assert_eq!(pic.acknowledge(), 0x21);
    pic.write(0x20, 0x0b);
    assert_eq!(pic.read(0x20), 0b1010);
    pic.write(0x20, 0x20);
    assert!(!pic.int());
    pic.write(0x20, 0x20);
    assert_eq!(pic.acknowledge(), 0x25);
}

#[test]
fn the_slave_interrupts_through_input_2() {
    let mut pic = pic();
    pulse(&mut pic, 12);
    assert_eq!(pic.acknowledge(), 0x2c);
    // One at the master of lower priority waits until both were told.
    pulse(&mut pic, 3);
    pic.write(0xa0, 0x20);
    assert!(!pic.int());
    pic.write(0x20, 0x20);
    assert_eq!(pic.acknowledge(), 0x23);
}

#[test]
fn an_interrupt_that_goes_away_is_spurious_7_or_15() {
    let mut pic = pic();
    pulse(&mut pic, 4);
    pic.write(0x21, 0x10);
    assert_eq!(pic.acknowledge(), 0x27);
    pic.write(0x20, 0x0b);
    assert_eq!(pic.read(0x20), 0, "nothing is in service");
    // At the slave: its request falls together with the master's.
    pic.write(0x21, 0);
    assert_eq!(pic.acknowledge(), 0x24);
    pic.write(0x20, 0x20);
    pic.write(0x4d1, 0x04);
    pic.set_line(10, true);
    assert!(pic.int());
    pic.set_line(10, false);
    assert!(!pic.int());
    assert_eq!(pic.acknowledge(), 0x27);
}

#[test]
fn a_slave_whose_request_is_gone_gives_15() {
    let mut pic = pic();
    pulse(&mut pic, 9);
    // Between the two INTA cycles; the master has taken the cascade by then.
    pic.slave.imr = 0xff;
    assert_eq!(pic.acknowledge(), 0x2f);
    assert_eq!((pic.master.isr, pic.slave.isr), (1 << CASCADE, 0));
}

#[test]
fn a_level_interrupts_as_long_as_it_is_high() {
    let mut pic = pic();
    pic.write(0x4d0, 0xff);
    assert_eq!(pic.read(0x4d0), 0xf8);
    pic.set_line(5, true);
    assert_eq!(pic.acknowledge(), 0x25);
    pic.write(0x20, 0x65);
    assert!(pic.int());
    pic.set_line(5, false);
    assert!(!pic.int());
}

#[test]
fn automatic_eoi_and_its_rotation_leave_nothing_in_service() {
    let mut pic = pic();
    for (port, value) in [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 3), (0x20, 0x80)] {
        pic.write(port, value);
    }
    pulse(&mut pic, 0);
    assert_eq!(pic.acknowledge(), 0x20);
    pulse(&mut pic, 0);
    pulse(&mut pic, 6);
    assert_eq!(pic.acknowledge(), 0x26, "0 has the lowest priority now");
    assert_eq!(pic.acknowledge(), 0x20);
}

#[test]
fn priorities_rotate_on_command() {
    let mut pic = pic();
    pic.write(0x20, 0xc3);
    pulse(&mut pic, 3);
    pulse(&mut pic, 4);
    assert_eq!(pic.acknowledge(), 0x24);
    pic.write(0x20, 0xa0);
    pulse(&mut pic, 4);
    assert_eq!(pic.acknowledge(), 0x23);
    pic.write(0x20, 0xe3);
    assert_eq!(pic.acknowledge(), 0x24);
}

#[test]
fn special_mask_mode_lets_lower_priorities_through() {
    let mut pic = pic();
    pulse(&mut pic, 1);
    assert_eq!(pic.acknowledge(), 0x21);
    pulse(&mut pic, 6);
    assert!(!pic.int());
    pic.write(0x21, 0x02);
    pic.write(0x20, 0x68);
    assert_eq!(pic.acknowledge(), 0x26);
    // Unspecific EOI does not touch what is masked.
    pic.write(0x20, 0x20);
    assert_eq!(pic.master.isr, 0x02);
}

#[test]
fn special_fully_nested_mode_lets_the_slave_nest() {
    let mut pic = pic();
    for (port, value) in [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 0x11)] {
        pic.write(port, value);
    }
    pulse(&mut pic, 12);
    assert_eq!(pic.acknowledge(), 0x2c);
    pulse(&mut pic, 9);
    assert_eq!(pic.acknowledge(), 0x29);
}

#[test]
fn a_poll_acknowledges() {
    let mut pic = pic();
    pic.write(0x20, 0x0c);
    assert_eq!(pic.read(0x20), 0);
    pulse(&mut pic, 6);
    pic.write(0x20, 0x0c);
    assert_eq!(pic.read(0x20), 0x86);
    assert!(!pic.int());
    assert_eq!(pic.master.isr, 1 << 6);
    assert_eq!(pic.read(0x20), 0, "irr again");
}

#[test]
fn int_falls_with_every_acknowledge() {
    use std::sync::{Arc, Mutex};
    let changes = Arc::new(Mutex::new(Vec::new()));
    let seen = changes.clone();
    let mut pic = DualPic::new(Box::new(move |high| seen.lock().unwrap().push(high)));
    for (port, value) in [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 3)] {
        pic.write(port, value);
    }
    pulse(&mut pic, 1);
    pulse(&mut pic, 3);
    pic.acknowledge();
    pic.acknowledge();
    assert_eq!(*changes.lock().unwrap(), [true, false, true, false]);
}
