use super::*;
use crate::chipset::testing::FakeClock;

const MS: u64 = 1_000_000;

fn bucket(size: u64, one_time_burst: u64, refill_time_ms: u64) -> Bucket {
    Bucket { size, one_time_burst, refill_time_ms }
}

/// Spends `tokens` if that can be now.
fn take(bucket: &mut TokenBucket, tokens: u64, now: u64) -> bool {
    let can = bucket.wait(tokens, now) == 0;
    if can {
        bucket.spend(tokens);
    }
    can
}

#[test]
fn a_full_bucket_is_spent_and_filled_in_its_time() {
    let mut b = TokenBucket::new(bucket(1000, 0, 100), 7);
    assert!(take(&mut b, 600, 7) && take(&mut b, 400, 7));
    assert_eq!(b.wait(1, 7), MS / 10);
    assert_eq!(b.wait(500, 7), 50 * MS);
    assert!(!take(&mut b, 500, 7 + 50 * MS - 1) && take(&mut b, 500, 7 + 50 * MS));
    // No more than it holds, however long nothing is spent.
    assert!(take(&mut b, 1000, u64::MAX / 2) && !take(&mut b, 1, u64::MAX / 2));
}

#[test]
fn the_burst_is_spent_first_and_once() {
    let mut b = TokenBucket::new(bucket(100, 50, 100), 0);
    assert!(take(&mut b, 150, 0) && !take(&mut b, 1, 0));
    assert!(!take(&mut b, 101, 99 * MS) && take(&mut b, 100, 100 * MS));
    assert!(!take(&mut b, 1, 100 * MS));
}

#[test]
fn what_is_larger_than_the_bucket_waits_for_a_full_one_and_is_paid_off() {
    let mut b = TokenBucket::new(bucket(100, 0, 100), 0);
    assert!(take(&mut b, 1, 0));
    assert_eq!(b.wait(350, 0), MS);
    assert!(take(&mut b, 350, MS));
    assert_eq!(b.wait(1, MS), 251 * MS);
    assert!(take(&mut b, 1, 252 * MS));
}

#[test]
fn a_clock_that_goes_back_earns_nothing() {
    let mut b = TokenBucket::new(bucket(10, 0, 10), 100 * MS);
    assert!(take(&mut b, 10, 100 * MS));
    assert!(!take(&mut b, 1, 0));
    assert!(take(&mut b, 1, 101 * MS));
}

/// A sequence of numbers that looks random (xorshift).
fn numbers(mut seed: u64) -> impl FnMut(u64) -> u64 {
    move |below| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % below
    }
}

#[test]
fn in_no_span_of_time_more_goes_through_than_the_limit_and_in_the_end_no_less() {
    for seed in 1..300 {
        let mut random = numbers(seed * 0x9e37_79b9_7f4a_7c15);
        let limits = bucket(1 + random(5000), random(3000), 1 + random(2000));
        let largest = 1 + random(8000);
        let mut b = TokenBucket::new(limits, 0);
        let (mut now, mut passed, mut events) = (0, 0, Vec::new());
        for _ in 0..400 {
            let tokens = 1 + random(largest);
            match b.wait(tokens, now) {
                0 => {
                    b.spend(tokens);
                    events.push((now, passed));
                    passed += tokens;
                }
                wait => {
                    // Whoever waits as long as it was told gets it, and not before.
                    assert!(b.clone().wait(tokens, now + wait - 1) != 0, "{limits:?} {tokens}");
                    assert_eq!(b.clone().wait(tokens, now + wait), 0, "{limits:?} {tokens}");
                    now += if random(3) == 0 { wait } else { 1 + random(wait) };
                }
            }
            if random(5) == 0 {
                now += random(limits.refill_time_ms * MS);
            }
            let most = |span: u64| {
                let earned = u128::from(span) * u128::from(limits.size)
                    / (u128::from(limits.refill_time_ms) * u128::from(MS));
                earned + u128::from(limits.one_time_burst + limits.size.max(largest)) + 1
            };
            for (then, before) in &events {
                assert!(u128::from(passed - before) <= most(now - then), "{limits:?}: {passed} at {now}");
            }
        }
    }
}

fn limiter(limits: Limits) -> (RateLimiter, Arc<FakeClock>) {
    let fake = Arc::new(FakeClock::default());
    let clock: Arc<dyn Clock> = fake.clone();
    (RateLimiter::new(Some(limits), &clock).unwrap(), fake)
}

#[test]
fn an_operation_needs_both_buckets_and_one_that_waits_costs_nothing() {
    let limits = Limits { bandwidth: Some(bucket(1000, 0, 1000)), ops: Some(bucket(2, 0, 100)) };
    let (mut limiter, clock) = limiter(limits);
    limiter.pay(900).unwrap();
    assert_eq!(limiter.pay(200), Err(Duration::from_millis(100)), "the bytes");
    limiter.pay(100).unwrap();
    assert_eq!(limiter.pay(0), Err(Duration::from_millis(50)), "the operations");
    clock.pass(50 * MS);
    limiter.pay(0).unwrap();
}

#[test]
fn levels_are_saved_and_those_that_cannot_be_become_some_that_can() {
    let limits = Limits { bandwidth: Some(bucket(1000, 500, 1000)), ops: None };
    let (mut before, clock) = limiter(limits);
    before.pay(1300).unwrap();
    clock.pass(100 * MS);
    let saved = before.save();
    assert_eq!(saved, LevelsState { bandwidth: Some(LevelState { budget: 300, burst: 0 }), ops: None });
    let (mut after, _) = limiter(limits);
    after.restore(saved);
    assert_eq!(after.pay(400), Err(Duration::from_millis(100)));
    let full = LevelState { budget: i64::MAX, burst: u64::MAX };
    after.restore(LevelsState { bandwidth: Some(full), ops: Some(full) });
    after.pay(1500).unwrap();
    assert!(after.pay(1).is_err());
    after.restore(LevelsState { bandwidth: Some(LevelState { budget: i64::MIN, burst: 0 }), ops: None });
    assert!(after.pay(1).is_err());
}

#[test]
fn no_limits_are_no_limiter_and_nonsense_is_told() {
    let clock: Arc<dyn Clock> = Arc::new(FakeClock::default());
    assert!(RateLimiter::new(None, &clock).is_none());
    assert!(RateLimiter::new(Some(Limits::default()), &clock).is_none());
    let bad = [
        bucket(0, 0, 1),
        bucket(1, 0, 0),
        bucket(u64::MAX, 0, 1),
        bucket(1, u64::MAX, 1),
        bucket(1, 0, u64::MAX),
    ];
    for bad in bad {
        assert!(Limits { bandwidth: Some(bad), ops: None }.check().is_err());
        assert!(Limits { bandwidth: None, ops: Some(bad) }.check().is_err());
    }
    let most = bucket(MAX_TOKENS, MAX_TOKENS, MAX_REFILL_MS);
    Limits { bandwidth: Some(most), ops: Some(most) }.check().unwrap();
    let mut most = TokenBucket::new(most, 0);
    assert!(take(&mut most, u64::MAX, u64::MAX));
}
