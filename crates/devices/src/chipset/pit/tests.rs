use super::*;
use crate::chipset::testing::Recorder;

fn pit() -> (Arc<Recorder>, Pit) {
    let recorder = Recorder::new();
    let pit = Pit::new(recorder.clock.clone(), recorder.line(0));
    (recorder, pit)
}

fn out(pit: &mut Pit, port: u16, values: &[u8]) {
    for value in values {
        pit.port_write(port, &[*value]);
    }
}

fn inb(pit: &mut Pit, port: u16) -> u8 {
    let mut data = [0];
    pit.port_read(port, &mut data);
    data[0]
}

fn at(recorder: &Recorder, pit: &mut Pit, tick: u64) {
    recorder.clock.set(nanoseconds(tick));
    pit.advance(nanoseconds(tick));
}

/// OUT of counter 2, whose gate is high, at each of some ticks.
fn outputs(mode: u8, count: u8, ticks: std::ops::Range<u64>) -> Vec<u8> {
    let (recorder, mut pit) = pit();
    out(&mut pit, 0x43, &[0x90 | mode << 1]);
    if !matches!(mode, 1 | 5) {
        out(&mut pit, 0x61, &[1]);
    }
    out(&mut pit, 0x42, &[count]);
    out(&mut pit, 0x61, &[1]);
    ticks
        .map(|tick| {
            at(&recorder, &mut pit, tick);
            inb(&mut pit, 0x61) >> 5 & 1
        })
        .collect()
}

#[test]
fn each_mode_has_its_wave() {
    assert_eq!(outputs(0, 4, 0..8), [0, 0, 0, 0, 1, 1, 1, 1]);
    assert_eq!(outputs(1, 4, 0..8), [0, 0, 0, 0, 1, 1, 1, 1]);
    assert_eq!(outputs(2, 4, 0..8), [1, 1, 1, 0, 1, 1, 1, 0]);
    assert_eq!(outputs(3, 4, 0..8), [1, 1, 0, 0, 1, 1, 0, 0]);
    assert_eq!(outputs(3, 5, 0..10), [1, 1, 1, 0, 0, 1, 1, 1, 0, 0]);
    assert_eq!(outputs(4, 4, 0..8), [1, 1, 1, 1, 0, 1, 1, 1]);
    assert_eq!(outputs(5, 4, 0..8), [1, 1, 1, 1, 0, 1, 1, 1]);
    assert_eq!(outputs(6, 4, 0..8), outputs(2, 4, 0..8));
}

#[test]
fn the_rate_generator_interrupts_once_a_period() {
    let (recorder, mut pit) = pit();
    out(&mut pit, 0x43, &[0x34]);
    out(&mut pit, 0x40, &[0xa9, 0x04]);
    let period = 0x4a9;
    let before = recorder.edges(0);
    for n in 1..=10 {
        assert_eq!(pit.next_deadline(), Some(nanoseconds(n * period)));
        at(&recorder, &mut pit, n * period);
        assert_eq!(recorder.edges(0) - before, n as usize);
    }
    // Late: one edge for three periods.
    at(&recorder, &mut pit, 13 * period + 7);
    assert_eq!(recorder.edges(0) - before, 11);
    assert!(recorder.level(0));
}

#[test]
fn the_square_wave_drives_the_line_both_ways() {
    let (recorder, mut pit) = pit();
    out(&mut pit, 0x43, &[0x36]);
    out(&mut pit, 0x40, &[0, 0]);
    assert!(recorder.level(0));
    assert_eq!(pit.next_deadline(), Some(nanoseconds(0x8000)));
    at(&recorder, &mut pit, 0x8000);
    assert!(!recorder.level(0));
    at(&recorder, &mut pit, 0x1_0000);
    assert!(recorder.level(0));
}

#[test]
fn terminal_count_interrupts_once_and_counting_goes_on() {
    let (recorder, mut pit) = pit();
    out(&mut pit, 0x43, &[0x30]);
    out(&mut pit, 0x40, &[0x10]);
    assert_eq!(pit.next_deadline(), None, "half a count");
    out(&mut pit, 0x40, &[0]);
    assert_eq!(pit.next_deadline(), Some(nanoseconds(16)));
    at(&recorder, &mut pit, 18);
    assert_eq!((recorder.edges(0), pit.next_deadline()), (1, None));
    out(&mut pit, 0x43, &[0]);
    assert_eq!([inb(&mut pit, 0x40), inb(&mut pit, 0x40)], [0xfe, 0xff]);
}

#[test]
fn a_latched_count_stands_still_until_it_is_read() {
    let (recorder, mut pit) = pit();
    out(&mut pit, 0x43, &[0x34]);
    out(&mut pit, 0x40, &[0, 0x10]);
    at(&recorder, &mut pit, 0x10);
    out(&mut pit, 0x43, &[0]);
    at(&recorder, &mut pit, 0x20);
    out(&mut pit, 0x43, &[0]);
    assert_eq!([inb(&mut pit, 0x40), inb(&mut pit, 0x40)], [0xf0, 0x0f]);
    assert_eq!([inb(&mut pit, 0x40), inb(&mut pit, 0x40)], [0xe0, 0x0f]);
}

#[test]
fn read_back_latches_status_and_count_of_several_counters() {
    let (recorder, mut pit) = pit();
    out(&mut pit, 0x43, &[0x34, 0xb0]);
    out(&mut pit, 0x40, &[0, 0x10]);
    at(&recorder, &mut pit, 1);
    out(&mut pit, 0x43, &[0xca]);
    // Status first: OUT high, count loaded, access both, mode 2; then the count.
    assert_eq!([inb(&mut pit, 0x40), inb(&mut pit, 0x40), inb(&mut pit, 0x40)], [0xb4, 0xff, 0x0f]);
    // No count was written yet.
    assert_eq!(inb(&mut pit, 0x42), 0x70);
}

#[test]
fn bcd_counts_in_decimal() {
    let (recorder, mut pit) = pit();
    out(&mut pit, 0x43, &[0x35]);
    out(&mut pit, 0x40, &[0x00, 0x10]);
    at(&recorder, &mut pit, 1);
    assert_eq!([inb(&mut pit, 0x40), inb(&mut pit, 0x40)], [0x99, 0x09]);
    assert_eq!(pit.next_deadline(), Some(nanoseconds(1000)));
    out(&mut pit, 0x40, &[0, 0]);
    at(&recorder, &mut pit, 1000);
    assert_eq!(pit.next_deadline(), Some(nanoseconds(11_000)));
}

#[test]
fn a_new_count_of_a_periodic_mode_waits_for_the_end_of_the_period() {
    let (recorder, mut pit) = pit();
    out(&mut pit, 0x43, &[0x14]);
    out(&mut pit, 0x40, &[100]);
    at(&recorder, &mut pit, 50);
    out(&mut pit, 0x40, &[200]);
    assert_eq!(pit.next_deadline(), Some(nanoseconds(100)));
    at(&recorder, &mut pit, 100);
    assert_eq!(pit.next_deadline(), Some(nanoseconds(300)));
}

#[test]
fn the_gate_holds_counter_2() {
    let (recorder, mut pit) = pit();
    out(&mut pit, 0x43, &[0x90]);
    out(&mut pit, 0x61, &[1]);
    out(&mut pit, 0x42, &[100]);
    at(&recorder, &mut pit, 40);
    out(&mut pit, 0x61, &[0]);
    at(&recorder, &mut pit, 140);
    assert_eq!(inb(&mut pit, 0x42), 60);
    out(&mut pit, 0x61, &[1]);
    at(&recorder, &mut pit, 199);
    assert_eq!(inb(&mut pit, 0x61) & 0x20, 0);
    at(&recorder, &mut pit, 200);
    assert_eq!(inb(&mut pit, 0x61) & 0x21, 0x21);
}

#[test]
fn the_refresh_bit_toggles() {
    let (recorder, mut pit) = pit();
    let first = inb(&mut pit, 0x61) & 0x10;
    recorder.clock.pass(15_085);
    assert_ne!(inb(&mut pit, 0x61) & 0x10, first);
}

#[test]
fn a_saved_timer_goes_on_where_it_was() {
    let (recorder, mut pit) = pit();
    out(&mut pit, 0x43, &[0x34]);
    out(&mut pit, 0x40, &[0, 0x10]);
    at(&recorder, &mut pit, 0x123);
    let section = pit.save().unwrap();
    let mut other = Pit::new(recorder.clock.clone(), recorder.line(0));
    other.restore(&section).unwrap();
    assert_eq!(other.next_deadline(), pit.next_deadline());
    assert_eq!(other.save().unwrap(), section);
}
