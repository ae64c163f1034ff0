//! Keys that take a client away from a terminal without ending what runs there.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::error::{ApiError, Result};

/// What they are unless the client says others: CTRL-P, CTRL-Q.
const USUAL: [u8; 2] = [0x10, 0x11];
/// Bytes of keys that are read at once.
const CHUNK_BYTES: usize = 4 << 10;

/// A sequence of keys, and how much of it was typed last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DetachKeys {
    keys: Vec<u8>,
    typed: usize,
}

/// How typing ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Typed {
    /// The client said so, or is gone.
    End,
    /// By the keys.
    Detach,
}

impl DetachKeys {
    /// Understands `ctrl-p,x`: keys with commas between them; nothing is the usual ones.
    ///
    /// # Errors
    /// One is no key.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let key = |name: &str| match name.as_bytes() {
            [key] => Some(*key),
            [b'c', b't', b'r', b'l', b'-', key @ (b'a'..=b'z' | b'@' | b'['..=b'_')] => Some(key & 0x1f),
            _ => None,
        };
        let keys: Option<Vec<u8>> = match text {
            "" => Some(USUAL.to_vec()),
            text => text.split(',').map(key).collect(),
        };
        let wrong = || ApiError::bad(format!("Invalid detach keys ({text}) provided"));
        Ok(Self { keys: keys.ok_or_else(wrong)?, typed: 0 })
    }

    /// As [`Self::parse`] understands them.
    pub(super) fn words(&self) -> String {
        let key = |key: &u8| match key {
            0..0x20 => format!("ctrl-{}", char::from(key | 0x40).to_ascii_lowercase()),
            _ => char::from(*key).to_string(),
        };
        self.keys.iter().map(key).collect::<Vec<_>>().join(",")
    }

    /// Takes what was typed; gives what is to be handed on of it, and whether the keys were.
    fn take(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut on = Vec::with_capacity(typed.len() + self.keys.len());
        for byte in typed {
            if *byte == self.keys[self.typed] {
                self.typed += 1;
                if self.typed == self.keys.len() {
                    return (on, true);
                }
                continue;
            }
            // It was something else after all.
            on.extend(&self.keys[..self.typed]);
            self.typed = usize::from(*byte == self.keys[0]);
            if self.typed == 0 {
                on.push(*byte);
            }
        }
        (on, false)
    }

    /// Hands on what is typed until its end, or until the keys are typed.
    pub(super) async fn copy(
        mut self,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
    ) -> Typed {
        let mut buffer = vec![0; CHUNK_BYTES];
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            let (on, is_detach) = self.take(&buffer[..count]);
            if is_detach {
                return Typed::Detach;
            }
            if to.write_all(&on).await.is_err() {
                break;
            }
        }
        Typed::End
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_letters_and_those_with_ctrl() {
        let keys = |text: &str| DetachKeys::parse(text).map(|keys| keys.keys).ok();
        assert_eq!(keys(""), Some(vec![0x10, 0x11]));
        assert_eq!(keys("ctrl-a,b,ctrl-@,ctrl-_"), Some(vec![1, b'b', 0, 0x1f]));
        assert_eq!(DetachKeys::parse("ctrl-a,b,ctrl-@,ctrl-_").unwrap().words(), "ctrl-a,b,ctrl-@,ctrl-_");
        for wrong in ["ctrl-A", "ctrl-", "ab", "a,,b", ","] {
            assert_eq!(keys(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_only_begins_like_the_keys_is_handed_on() {
        let mut keys = DetachKeys::parse("ctrl-p,ctrl-q").unwrap();
        assert_eq!(keys.take(b"a\x10"), (b"a".to_vec(), false));
        assert_eq!(keys.take(b"b\x10\x10"), (b"\x10b\x10".to_vec(), false));
        assert_eq!(keys.take(b"\x11c"), (Vec::new(), true));
        let mut one = DetachKeys::parse("x").unwrap();
        assert_eq!(one.take(b"abxc"), (b"ab".to_vec(), true));
    }
}
