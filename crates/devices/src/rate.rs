//! Rate limits of a device: token buckets with Firecracker's semantics.
//!
//! A bucket holds `size` tokens and is filled at `size` tokens in each `refill_time`; it is full at first. Beside it is a
//! burst, spent first and never filled again. A limiter has a bucket for bytes, one for operations, or both; an operation
//! goes through when both have what it costs. What is larger than a bucket waits for a full one and is paid off after it,
//! so nothing is too large to go through. In any span of time no more goes through than
//! ```text
//! one_time_burst + max(size, the largest operation) + span × size ÷ refill_time
//! ```
//! [`TokenBucket`] is told the time; [`RateLimiter`] has a clock, that of the machine: no tokens are earned while it rests.
//! A reset fills nothing, or a guest could give itself tokens.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::device::Clock;

/// Most tokens of a bucket or burst, far above any device.
pub const MAX_TOKENS: u64 = 1 << 60;
/// Longest time in which a bucket is filled: a day.
pub const MAX_REFILL_MS: u64 = 24 * 60 * 60 * 1000;
/// Most that is owed: above the largest request there is.
const MAX_DEBT: i64 = 1 << 32;

/// One bucket, as it is configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bucket {
    /// Tokens that it holds.
    pub size: u64,
    /// Tokens beside them, once.
    #[serde(default)]
    pub one_time_burst: u64,
    /// Time in which an empty one is full again, in milliseconds.
    pub refill_time_ms: u64,
}

impl Bucket {
    fn check(&self) -> Result<(), String> {
        if !(1..=MAX_TOKENS).contains(&self.size) || self.one_time_burst > MAX_TOKENS {
            return Err(format!("a bucket holds 1 to {MAX_TOKENS} tokens, and as many for a burst at most"));
        }
        if !(1..=MAX_REFILL_MS).contains(&self.refill_time_ms) {
            return Err(format!("a bucket is filled in 1 to {MAX_REFILL_MS} milliseconds"));
        }
        Ok(())
    }
}

/// What a device, or one direction of it, may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Of bytes.
    #[serde(default)]
    pub bandwidth: Option<Bucket>,
    /// Of operations: requests of a disk, frames of a card.
    #[serde(default)]
    pub ops: Option<Bucket>,
}

impl Limits {
    /// Whether every number is one that a bucket can have.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self) -> Result<(), String> {
        [self.bandwidth, self.ops].iter().flatten().try_for_each(Bucket::check)
    }
}

/// A bucket in use.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    bucket: Bucket,
    /// Below zero: what is owed.
    budget: i64,
    burst: u64,
    /// When `budget` was right, in nanoseconds.
    as_of: u64,
}

impl TokenBucket {
    /// A full one at the time `now`, in nanoseconds of any clock.
    pub fn new(bucket: Bucket, now: u64) -> Self {
        Self { bucket, budget: bucket.size as i64, burst: bucket.one_time_burst, as_of: now }
    }

    /// How long from `now` until `tokens` can be spent, in nanoseconds; 0 if they can be now.
    pub fn wait(&mut self, tokens: u64, now: u64) -> u64 {
        self.refill(now);
        let rest = tokens.saturating_sub(self.burst);
        let needed = i128::from(rest.min(self.bucket.size));
        let missing = needed - i128::from(self.budget);
        let missing = u128::try_from(missing).unwrap_or(0);
        if rest == 0 || missing == 0 {
            return 0;
        }
        let time = self.time_for(missing);
        // What has passed since `as_of` is less than a token's time.
        time.saturating_sub(now.saturating_sub(self.as_of)).max(1)
    }

    /// Spends `tokens`, for which [`Self::wait`] was 0.
    pub fn spend(&mut self, tokens: u64) {
        let from_burst = tokens.min(self.burst);
        self.burst -= from_burst;
        let rest = i64::try_from(tokens - from_burst).unwrap_or(i64::MAX);
        self.budget = self.budget.saturating_sub(rest).max(-MAX_DEBT);
    }

    fn refill(&mut self, now: u64) {
        let elapsed = now.saturating_sub(self.as_of);
        let earned = u128::from(elapsed) * u128::from(self.bucket.size) / self.refill_ns();
        let size = self.bucket.size as i64;
        let room = u128::from(size.abs_diff(self.budget));
        if earned >= room {
            self.budget = size;
            self.as_of = self.as_of.max(now);
        } else {
            self.budget += earned as i64;
            // Rounded up, so that no fraction of a token is ever earned twice.
            self.as_of += self.time_for(earned);
        }
    }

    fn time_for(&self, tokens: u128) -> u64 {
        let time = (tokens * self.refill_ns()).div_ceil(u128::from(self.bucket.size));
        u64::try_from(time).unwrap_or(u64::MAX)
    }

    fn refill_ns(&self) -> u128 {
        u128::from(self.bucket.refill_time_ms) * 1_000_000
    }

    fn save(&mut self, now: u64) -> LevelState {
        self.refill(now);
        LevelState { budget: self.budget, burst: self.burst }
    }

    /// A level that this bucket cannot have becomes the nearest that it can: the limits may have changed since.
    fn restore(&mut self, saved: LevelState, now: u64) {
        self.budget = saved.budget.clamp(-MAX_DEBT, self.bucket.size as i64);
        self.burst = saved.burst.min(self.bucket.one_time_burst);
        self.as_of = now;
    }
}

/// Saved form of a bucket's level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LevelState {
    budget: i64,
    burst: u64,
}

/// Saved form of a limiter: levels, for the limits are the configuration's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LevelsState {
    bandwidth: Option<LevelState>,
    ops: Option<LevelState>,
}

/// What holds a device, or one direction of it, to its limits.
pub struct RateLimiter {
    clock: Arc<dyn Clock>,
    bandwidth: Option<TokenBucket>,
    ops: Option<TokenBucket>,
}

impl RateLimiter {
    /// With full buckets. `None` where nothing is limited.
    pub fn new(limits: Option<Limits>, clock: &Arc<dyn Clock>) -> Option<Self> {
        let Limits { bandwidth, ops } = limits?;
        let now = clock.now();
        let bucket = |bucket: Option<Bucket>| bucket.map(|bucket| TokenBucket::new(bucket, now));
        let limiter = Self { clock: clock.clone(), bandwidth: bucket(bandwidth), ops: bucket(ops) };
        (bandwidth.is_some() || ops.is_some()).then_some(limiter)
    }

    /// Spends what one operation of `bytes` costs.
    ///
    /// # Errors
    /// How long it has to wait first; nothing was spent.
    pub fn pay(&mut self, bytes: usize) -> Result<(), Duration> {
        let now = self.clock.now();
        let mut prices = [(self.bandwidth.as_mut(), bytes as u64), (self.ops.as_mut(), 1)];
        let waits =
            prices.iter_mut().map(|(bucket, tokens)| bucket.as_mut().map_or(0, |b| b.wait(*tokens, now)));
        match waits.max() {
            Some(wait) if wait != 0 => return Err(Duration::from_nanos(wait)),
            _ => {}
        }
        prices.into_iter().for_each(|(bucket, tokens)| {
            if let Some(bucket) = bucket {
                bucket.spend(tokens);
            }
        });
        Ok(())
    }

    /// The levels now.
    pub fn save(&mut self) -> LevelsState {
        let now = self.clock.now();
        let level = |bucket: &mut Option<TokenBucket>| bucket.as_mut().map(|bucket| bucket.save(now));
        LevelsState { bandwidth: level(&mut self.bandwidth), ops: level(&mut self.ops) }
    }

    /// Takes over levels; a bucket of which nothing is said stays as it is.
    pub fn restore(&mut self, saved: LevelsState) {
        let now = self.clock.now();
        for (bucket, level) in [(&mut self.bandwidth, saved.bandwidth), (&mut self.ops, saved.ops)] {
            if let (Some(bucket), Some(level)) = (bucket, level) {
                bucket.restore(level, now);
            }
        }
    }
}

#[cfg(test)]
mod tests;
