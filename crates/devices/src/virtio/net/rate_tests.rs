//! A card that is held to a rate. With the clock that stands still, what waits waits for ever.

use super::super::testing::*;
use super::tests::{MAC, RX, TX, card_with, frame};
use super::*;
use crate::Clock;
use crate::chipset::testing::FakeClock;
use crate::device::Device;
use crate::rate::{Bucket, Limits};

const SECOND: u64 = 1_000_000_000;

fn limits(frames: u64) -> Option<Limits> {
    Some(Limits {
        bandwidth: None,
        ops: Some(Bucket { size: frames, one_time_burst: 0, refill_time_ms: 1000 }),
    })
}

fn send(rig: &mut Rig, len: u32) {
    rig.ram.write(DATA, &[0; 12]).unwrap();
    rig.ram.write(DATA + 12, &frame([0xff; 6], len as usize)).unwrap();
    rig.add(TX, &[(DATA, 12 + len, 0)]);
    rig.kick(TX);
}

#[test]
fn each_way_has_a_rate_of_its_own() {
    let fake = Arc::new(FakeClock::default());
    let clock: Arc<dyn Clock> = fake.clone();
    let (mut rig, cable) = card_with(u64::MAX, |card| {
        card.limited(RateLimiter::new(limits(1), &clock), RateLimiter::new(limits(2), &clock))
    });
    cable.set_nonblocking(true).unwrap();
    for _ in 0..4 {
        rig.add(RX, &[(DATA + 0x1000, 2048, WRITE)]);
    }
    rig.kick(RX);
    for len in [60, 61, 62] {
        send(&mut rig, len);
        cable.send(&frame(MAC, len as usize)).unwrap();
    }
    rig.kick(RX);
    assert_eq!(rig.wait_used(RX).1, 72);
    rig.wait_used(TX);
    rig.wait_used(TX);
    let mut received = [0; 100];
    assert_eq!([cable.recv(&mut received).unwrap(), cable.recv(&mut received).unwrap()], [60, 61]);
    assert_eq!((rig.used(RX), rig.used(TX)), (None, None));
    assert!(cable.recv(&mut received).is_err(), "the third waits");
    // Half a second is one frame of two, and half of one.
    fake.pass(SECOND / 2);
    rig.kick(TX);
    rig.wait_used(TX);
    assert_eq!((cable.recv(&mut received).unwrap(), rig.used(RX)), (62, None));
    fake.pass(SECOND / 2);
    rig.kick(RX);
    assert_eq!(rig.wait_used(RX).1, 73);
    fake.pass(SECOND);
    rig.kick(RX);
    assert_eq!(rig.wait_used(RX).1, 74, "in their order");
}

#[test]
fn a_frame_that_waits_for_buffers_is_paid_for_once() {
    let fake = Arc::new(FakeClock::default());
    let clock: Arc<dyn Clock> = fake.clone();
    let (mut rig, cable) =
        card_with(u64::MAX, |card| card.limited(RateLimiter::new(limits(2), &clock), None));
    cable.send(&frame(MAC, 60)).unwrap();
    (0..5).for_each(|_| rig.kick(RX));
    rig.add(RX, &[(DATA, 2048, WRITE)]);
    rig.add(RX, &[(DATA, 2048, WRITE)]);
    rig.kick(RX);
    assert_eq!(rig.wait_used(RX).1, 72);
    cable.send(&frame(MAC, 61)).unwrap();
    rig.kick(RX);
    assert_eq!(rig.wait_used(RX).1, 73);
}

#[test]
fn the_thread_goes_on_by_itself_when_the_time_has_come() {
    let clock = HostClock::start();
    let bytes =
        Limits { bandwidth: Some(Bucket { size: 1000, one_time_burst: 500, refill_time_ms: 5 }), ops: None };
    let (mut rig, cable) = card_with(u64::MAX, |card| {
        card.limited(RateLimiter::new(Some(bytes), &clock), RateLimiter::new(Some(bytes), &clock))
    });
    let begun = clock.now();
    for _ in 0..16 {
        rig.add(RX, &[(DATA + 0x1000, 2048, WRITE)]);
        cable.send(&frame(MAC, 1000)).unwrap();
        send(&mut rig, 1000);
    }
    rig.kick(RX);
    for passed in 1..=16 {
        rig.wait_used(RX);
        rig.wait_used(TX);
        let most = 1500 + (clock.now() - begun) * 1000 / 5_000_000 + 1;
        assert!(passed * 1000 <= most, "{passed} frames, {most} bytes at most");
    }
}

#[test]
fn levels_are_saved_and_version_1_had_none() {
    let fake = Arc::new(FakeClock::default());
    let clock: Arc<dyn Clock> = fake.clone();
    let make = || {
        card_with(u64::MAX, |card| {
            card.limited(RateLimiter::new(limits(1), &clock), RateLimiter::new(limits(1), &clock))
        })
    };
    let (mut rig, _cable) = make();
    send(&mut rig, 60);
    rig.wait_used(TX);
    send(&mut rig, 61);
    let section = rig.save();
    let (mut other, cable) = make();
    other.transport.as_queued().unwrap().stop_queues();
    other.transport.restore(&section).unwrap();
    other.ram.write(0, &rig.bytes(0, RAM_BYTES as usize)).unwrap();
    other.queues.clone_from(&rig.queues);
    other.transport.as_queued().unwrap().start_queues();
    cable.set_nonblocking(true).unwrap();
    assert!(cable.recv(&mut [0; 100]).is_err());
    fake.pass(SECOND);
    other.kick(TX);
    other.wait_used(TX);
    assert_eq!(cable.recv(&mut [0; 100]).unwrap(), 61);

    let mut old = Net::new(Box::new(net::Unplugged), MAC).unwrap();
    let filter = Filter::new([2, 0, 0, 0, 0, 9]);
    old.restore(&Section::encode(KIND, 1, &filter).unwrap()).unwrap();
    assert_eq!(lock(&old.shared.receiver).filter, filter);
    assert!(old.restore(&Section::encode(KIND, VERSION + 1, &filter).unwrap()).is_err());
}
