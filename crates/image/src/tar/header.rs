//! The 512-byte header block: fields, numbers, checksum.

/// One header block.
pub(super) struct Header(pub(super) [u8; 512]);

impl Header {
    pub(super) fn is_zero(&self) -> bool {
        self.0.iter().all(|&b| b == 0)
    }

    /// The sum of all bytes with the checksum field as spaces. Old tars summed signed chars.
    pub(super) fn checksum_ok(&self) -> bool {
        let Some(stored) = self.number(148, 8) else { return false };
        let with = |value: fn(u8) -> i64| -> i64 {
            self.0.iter().enumerate().map(|(i, &b)| if (148..156).contains(&i) { 32 } else { value(b) }).sum()
        };
        stored == with(i64::from) || stored == with(|b| i64::from(b as i8))
    }

    pub(super) fn typeflag(&self) -> u8 {
        self.0[156]
    }

    fn is_gnu(&self) -> bool {
        &self.0[257..265] == b"ustar  \0"
    }

    fn is_ustar(&self) -> bool {
        &self.0[257..263] == b"ustar\0"
    }

    /// Name with the ustar prefix.
    pub(super) fn path(&self) -> Vec<u8> {
        let name = self.text(0, 100);
        let prefix = if self.is_ustar() { self.text(345, 155) } else { &[] };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    pub(super) fn link(&self) -> Vec<u8> {
        self.text(157, 100).to_vec()
    }

    /// Device numbers are defined where there is a magic.
    pub(super) fn device(&self) -> Option<(i64, i64)> {
        if !self.is_gnu() && !self.is_ustar() {
            return Some((0, 0));
        }
        Some((self.number(329, 8)?, self.number(337, 8)?))
    }

    /// A field up to its NUL.
    pub(super) fn text(&self, at: usize, len: usize) -> &[u8] {
        let field = &self.0[at..at + len];
        &field[..field.iter().position(|&b| b == 0).unwrap_or(len)]
    }

    /// An octal field, or base-256 when its first bit is set; `None` for nonsense or what does not fit.
    pub(super) fn number(&self, at: usize, len: usize) -> Option<i64> {
        number(&self.0[at..at + len])
    }
}

pub(super) fn number(field: &[u8]) -> Option<i64> {
    let first = *field.first()?;
    if first & 0x80 != 0 {
        // Two's complement, big endian; bit 7 of the first byte is the flag, bit 6 the sign.
        let mut value: i128 = if first & 0x40 != 0 { -1 } else { 0 };
        value = value << 6 | i128::from(first & 0x3f);
        for &byte in &field[1..] {
            value = value.checked_mul(256)? | i128::from(byte);
        }
        return i64::try_from(value).ok();
    }
    let mut digits = field.iter().skip_while(|&&b| b == b' ').peekable();
    let mut value: i64 = 0;
    while let Some(&&byte) = digits.peek() {
        match byte {
            b'0'..=b'7' => value = value.checked_mul(8)? + i64::from(byte - b'0'),
            0 | b' ' => break,
            _ => return None,
        }
        digits.next();
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn numbers_are_octal_or_base_256() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"    17 \0"), Some(0o17));
        assert_eq!(number(b"\0\0\0\0"), Some(0));
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0]), Some(0x2_0000_0000));
        assert_eq!(number(&[0xff; 12]), Some(-1));
        assert_eq!(number(b"12x\0"), None);
        assert_eq!(number(&[0xbf; 12]), None);
    }
}
