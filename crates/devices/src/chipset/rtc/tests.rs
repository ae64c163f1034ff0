use super::*;
use crate::chipset::testing::Recorder;

const SECOND: u64 = 1_000_000_000;
/// 2000-02-29 12:34:56, a Tuesday.
const LEAP_DAY: u64 = 951_827_696 * SECOND;

fn rtc() -> (Arc<Recorder>, Rtc) {
    let recorder = Recorder::new();
    recorder.clock.set_wall(LEAP_DAY);
    let rtc = Rtc::new(recorder.clock.clone(), recorder.line(8));
    (recorder, rtc)
}

fn get(rtc: &mut Rtc, index: u8) -> u8 {
    let mut data = [0];
    rtc.port_write(0x70, &[index]);
    rtc.port_read(0x71, &mut data);
    data[0]
}

fn set(rtc: &mut Rtc, index: u8, value: u8) {
    rtc.port_write(0x70, &[index]);
    rtc.port_write(0x71, &[value]);
}

fn time(rtc: &mut Rtc) -> Vec<u8> {
    TIME_REGISTERS.map(|index| get(rtc, index)).to_vec()
}

#[test]
fn the_wall_clock_shows_in_bcd_binary_and_12_hours() {
    let (recorder, mut rtc) = rtc();
    assert_eq!(time(&mut rtc), [0x56, 0x34, 0x12, 3, 0x29, 0x02, 0x00, 0x20]);
    rtc.cmos[usize::from(reg::B)] = reg_b::BINARY | reg_b::HOUR_24;
    assert_eq!(time(&mut rtc), [56, 34, 12, 3, 29, 2, 0, 20]);
    rtc.cmos[usize::from(reg::B)] = 0;
    assert_eq!(get(&mut rtc, reg::HOURS), 0x92);
    recorder.clock.pass(12 * 3600 * SECOND);
    assert_eq!(get(&mut rtc, reg::HOURS), 0x12);
    assert_eq!(get(&mut rtc, reg::MONTH), 0x03);
}

#[test]
fn a_time_set_under_set_goes_on_from_there() {
    let (recorder, mut rtc) = rtc();
    set(&mut rtc, reg::B, 0x82);
    for (index, value) in TIME_REGISTERS.into_iter().zip([0x58, 0x59, 0x23, 1, 0x31, 0x12, 0x99, 0x19]) {
        set(&mut rtc, index, value);
    }
    recorder.clock.pass(5 * SECOND);
    assert_eq!(time(&mut rtc)[..3], [0x58, 0x59, 0x23], "held");
    set(&mut rtc, reg::B, 0x02);
    recorder.clock.pass(3 * SECOND);
    assert_eq!(time(&mut rtc), [0x01, 0, 0, 7, 0x01, 0x01, 0x00, 0x20]);
}

#[test]
fn a_single_field_can_be_set_while_time_goes_on() {
    let (_, mut rtc) = rtc();
    set(&mut rtc, reg::HOURS, 0x05);
    assert_eq!(time(&mut rtc)[..3], [0x56, 0x34, 0x05]);
}

#[test]
fn an_update_is_announced_244_microseconds_before() {
    let (recorder, mut rtc) = rtc();
    assert_eq!(get(&mut rtc, reg::A) & 0x80, 0);
    recorder.clock.pass(SECOND - 2_229_000);
    assert_eq!(get(&mut rtc, reg::A) & 0x80, 0);
    recorder.clock.pass(2_000);
    assert_eq!(get(&mut rtc, reg::A) & 0x80, 0x80);
    recorder.clock.pass(2_227_000);
    assert_eq!((get(&mut rtc, reg::A) & 0x80, get(&mut rtc, reg::SECONDS)), (0, 0x57));
}

#[test]
fn the_update_interrupt_comes_every_second_until_c_is_read() {
    let (recorder, mut rtc) = rtc();
    assert_eq!(rtc.next_deadline(), None);
    set(&mut rtc, reg::B, 0x12);
    assert_eq!(rtc.next_deadline(), Some(SECOND));
    recorder.clock.pass(SECOND);
    rtc.advance(SECOND);
    assert!(recorder.level(8));
    assert_eq!(rtc.next_deadline(), None, "nobody took the last one");
    // The periodic flag is set too, but not enabled.
    assert_eq!(get(&mut rtc, reg::C), 0xd0);
    assert!(!recorder.level(8));
    assert_eq!(get(&mut rtc, reg::C), 0);
    assert_eq!(rtc.next_deadline(), Some(2 * SECOND));
}

#[test]
fn the_alarm_matches_fields_and_wildcards() {
    let (recorder, mut rtc) = rtc();
    for (index, value) in [(reg::SECONDS_ALARM, 0x05), (reg::MINUTES_ALARM, 0x35), (reg::HOURS_ALARM, 0xff)] {
        set(&mut rtc, index, value);
    }
    set(&mut rtc, reg::B, 0x22);
    for second in 1..=8 {
        recorder.clock.pass(SECOND);
        rtc.advance(second * SECOND);
        assert!(!recorder.level(8), "{second}");
    }
    recorder.clock.pass(SECOND);
    rtc.advance(9 * SECOND);
    assert_eq!(get(&mut rtc, reg::C) & 0xb0, 0xb0);
    // Late by more than a day: still once, and found at once.
    recorder.clock.pass(1_000_000 * SECOND);
    assert_eq!(get(&mut rtc, reg::C) & 0xb0, 0xb0);
}

#[test]
fn the_periodic_interrupt_has_the_rate_of_register_a() {
    let (recorder, mut rtc) = rtc();
    set(&mut rtc, reg::A, 0x26);
    set(&mut rtc, reg::B, 0x42);
    // 1024 Hz.
    let deadline = rtc.next_deadline().unwrap();
    assert!((976_562..976_564).contains(&deadline));
    recorder.clock.set(deadline);
    rtc.advance(deadline);
    assert_eq!(get(&mut rtc, reg::C) & 0xc0, 0xc0);
    // Rates 1 and 2 are those of 8 and 9: 256 and 128 Hz.
    set(&mut rtc, reg::A, 0x21);
    assert_eq!(rtc.periodic_shift(), Some(7));
    set(&mut rtc, reg::A, 0x22);
    assert_eq!(rtc.periodic_shift(), Some(8));
    set(&mut rtc, reg::A, 0x20);
    assert_eq!(rtc.next_deadline(), None);
}

#[test]
fn flags_are_set_without_interrupts_too() {
    let (recorder, mut rtc) = rtc();
    recorder.clock.pass(SECOND);
    assert_eq!(get(&mut rtc, reg::C) & 0xd0, 0x50);
    assert!(!recorder.level(8));
}

#[test]
fn the_nmi_mask_is_bit_7_of_the_index() {
    let (_, mut rtc) = rtc();
    rtc.port_write(0x70, &[0x8d]);
    assert!(rtc.is_nmi_masked());
    let mut data = [0];
    rtc.port_read(0x71, &mut data);
    assert_eq!(data, [0x80], "register d: the battery is fine");
    rtc.port_write(0x70, &[0x0d]);
    assert!(!rtc.is_nmi_masked());
}

#[test]
fn memory_survives_a_reset_and_interrupt_enables_do_not() {
    let (_, mut rtc) = rtc();
    set(&mut rtc, 0x40, 0xab);
    set(&mut rtc, reg::B, 0x72);
    rtc.reset();
    assert_eq!((get(&mut rtc, 0x40), get(&mut rtc, reg::B)), (0xab, 0x02));
    rtc.set_cmos(0x15, 0x80);
    assert_eq!(get(&mut rtc, 0x15), 0x80);
}
