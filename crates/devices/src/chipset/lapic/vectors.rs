//! A 256-bit register with a bit per vector: IRR, ISR, TMR. Any thread may change any bit.

use std::sync::atomic::{AtomicU32, Ordering};

#[derive(Debug, Default)]
pub(super) struct Vectors([AtomicU32; 8]);

fn place(vector: u8) -> (usize, u32) {
    (usize::from(vector >> 5), 1 << (vector & 31))
}

impl Vectors {
    /// Sets a bit; whether it was clear.
    pub(super) fn set(&self, vector: u8) -> bool {
        let (word, bit) = place(vector);
        self.0[word].fetch_or(bit, Ordering::SeqCst) & bit == 0
    }

    pub(super) fn clear(&self, vector: u8) {
        let (word, bit) = place(vector);
        self.0[word].fetch_and(!bit, Ordering::SeqCst);
    }

    pub(super) fn contains(&self, vector: u8) -> bool {
        let (word, bit) = place(vector);
        self.0[word].load(Ordering::SeqCst) & bit != 0
    }

    /// The highest bit set.
    #[inline]
    pub(super) fn highest(&self) -> Option<u8> {
        for (i, word) in self.0.iter().enumerate().rev() {
            let word = word.load(Ordering::SeqCst);
            if word != 0 {
                return Some((i as u32 * 32 + word.ilog2()) as u8);
            }
        }
        None
    }

    pub(super) fn word(&self, index: usize) -> u32 {
        self.0[index].load(Ordering::SeqCst)
    }

    pub(super) fn words(&self) -> [u32; 8] {
        std::array::from_fn(|i| self.word(i))
    }

    pub(super) fn store(&self, words: &[u32; 8]) {
        for (to, from) in self.0.iter().zip(words) {
            to.store(*from, Ordering::SeqCst);
        }
    }
}
