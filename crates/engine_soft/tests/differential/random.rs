//! Random numbers and values: the same for the same seed on every machine.

/// xorshift64*.
#[derive(Clone)]
pub struct Random(u64);

impl Random {
    /// The generator of case `index` of `seed`.
    pub fn new(seed: u64, index: u64) -> Self {
        // splitmix64, so that neighbouring cases have nothing in common.
        let mut z = seed ^ index.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        Self((z ^ z >> 31) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 16) % limit
    }

    /// True in `percent` of cases.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }

    /// Bits that are often an interesting integer or floating-point number of either precision.
    pub fn word(&mut self) -> u64 {
        const INTERESTING: [u64; 22] = [
            0,
            u64::MAX,
            1,
            2,
            0x80,
            0x7fff,
            0xffff_ffff,
            0x8000_0000,
            0x8000_0000_0000_0000,
            0x7fff_ffff_ffff_ffff,
            0x7ff0_0000_0000_0000, // infinity
            0x7ff8_0000_0000_0000, // quiet NaN
            0x7ff0_0000_0000_0001, // signalling NaN
            0x3ff0_0000_3f80_0000, // about one, and one
            0x0000_0000_0000_0001, // denormal
            0x7f80_0000_ff80_0000, // single infinities
            0x7fc0_0000_7f80_0001, // single NaNs
            0x0000_0001_8000_0000, // single denormal, minus zero
            0x7f7f_ffff_0080_0000, // single largest, smallest normal
            0x4330_0000_4b00_0000,
            0x0010_0000_0000_0000, // smallest normal
            0xffff_8000_0000_0000,
        ];
        match self.below(5) {
            0 => self.pick(&INTERESTING),
            1 => (self.next() & 0x000f_ffff_ffff_ffff) | (1023 - 8 + self.below(16)) << 52,
            2 => {
                let half = |r: &mut Self| (r.next() & 0x807f_ffff) | (127 - 8 + r.below(16)) << 23;
                half(self) | half(self) << 32
            }
            3 => self.below(256),
            _ => self.next(),
        }
    }

    /// An 80-bit number in its 16 bytes.
    pub fn extended(&mut self) -> [u8; 16] {
        let significand = match self.below(6) {
            0 => 0,
            1 => 1 << 63,
            2 => self.next(), // perhaps an unnormal
            _ => self.next() | 1 << 63,
        };
        let exponent = match self.below(6) {
            0 => 0,
            1 => 0x7fff,
            2 => self.next() as u16,
            _ => 0x3fff - 8 + self.below(16) as u16,
        };
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&significand.to_le_bytes());
        bytes[8..10].copy_from_slice(&exponent.to_le_bytes());
        bytes
    }
}
