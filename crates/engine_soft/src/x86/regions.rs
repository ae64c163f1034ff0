//! Which regions of the address space something is in, roughly.

/// Numbers, of which some that were never added may be found as well.
#[derive(Clone, Copy, Debug, Default)]
pub struct Regions([u64; 16]);

impl Regions {
    fn place(number: u64) -> (usize, u64) {
        let hash = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 54;
        (hash as usize >> 6, 1 << (hash & 63))
    }

    /// Adds `number`.
    pub fn add(&mut self, number: u64) {
        let (word, bit) = Self::place(number);
        self.0[word] |= bit;
    }

    /// Whether `number` was added; perhaps.
    pub fn has(&self, number: u64) -> bool {
        let (word, bit) = Self::place(number);
        self.0[word] & bit != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_added_is_found_and_little_else() {
        let mut regions = Regions::default();
        (0..64).for_each(|n| regions.add(n));
        assert!((0..64).all(|n| regions.has(n)));
        assert!((64..4096).filter(|&n| regions.has(n)).count() < 1024);
    }
}
