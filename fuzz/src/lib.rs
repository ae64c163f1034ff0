//! What the fuzz targets share: bytes taken apart into choices.
//!
//! The targets are in `fuzz_targets`, what each starts from in `seeds`. `make fuzz` runs all of them.

pub mod board;
pub mod virtio;

/// The fuzzer's bytes, taken from the front. Beyond their end everything is 0.
#[derive(Debug)]
pub struct Bytes<'a>(pub &'a [u8]);

impl<'a> Bytes<'a> {
    /// Whether nothing is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Changes `bytes` in so many places: cut off, pushed apart, or another value.
    pub fn damage(&mut self, bytes: &mut Vec<u8>, changes: u8) {
        for _ in 0..changes {
            let at = usize::from(self.u16()) % bytes.len().max(1);
            match (self.u8(), bytes.get_mut(at)) {
                (0, _) => bytes.truncate(at),
                (1, _) => bytes.insert(at, self.u8()),
                (_, Some(byte)) => *byte = self.u8(),
                _ => {}
            }
        }
    }

    /// The next `len` bytes, or as many as are left.
    pub fn slice(&mut self, len: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        head
    }

    /// The next `N` bytes.
    pub fn array<const N: usize>(&mut self) -> [u8; N] {
        let head = self.slice(N);
        let mut array = [0; N];
        array[..head.len()].copy_from_slice(head);
        array
    }

    /// One byte.
    pub fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.array())
    }

    /// Two bytes, little endian.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    /// Four bytes, little endian.
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    /// Eight bytes, little endian.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// One of `choices`, which must not be empty, by one byte.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::from(self.u8()) % choices.len()]
    }
}
