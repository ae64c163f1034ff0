//! The keys of `strata boot`: everything is typed into the guest, but Ctrl-] and the key after it.

/// Shown by Ctrl-] ?.
pub const HELP: &str = "\r\n\
    Ctrl-] x   leave: the machine is stopped at once\r\n\
    Ctrl-] p   press the power button: the guest may shut down\r\n\
    Ctrl-] ]   type Ctrl-] into the guest\r\n\
    Ctrl-] ?   this list\r\n";

const ESCAPE: u8 = 0x1d;

/// What keys ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Bytes for the guest.
    Type(Vec<u8>),
    /// Stop the machine.
    Leave,
    /// Press its power button.
    PowerButton,
    /// Show [`HELP`].
    Help,
}

/// Remembers whether Ctrl-] was the last key.
#[derive(Debug, Default)]
pub struct Keys {
    escaped: bool,
}

impl Keys {
    /// What `bytes`, typed after all before, ask for.
    pub fn typed(&mut self, bytes: &[u8]) -> Vec<Act> {
        let mut acts = Vec::new();
        let mut plain = Vec::new();
        for &byte in bytes {
            if !std::mem::take(&mut self.escaped) {
                if byte == ESCAPE {
                    self.escaped = true;
                } else {
                    plain.push(byte);
                }
                continue;
            }
            let act = match byte {
                b'x' | b'X' => Act::Leave,
                b'p' | b'P' => Act::PowerButton,
                b'?' | b'h' => Act::Help,
                b']' | ESCAPE => {
                    plain.push(ESCAPE);
                    continue;
                }
                other => {
                    plain.extend([ESCAPE, other]);
                    continue;
                }
            };
            flush(&mut plain, &mut acts);
            acts.push(act);
        }
        flush(&mut plain, &mut acts);
        acts
    }
}

fn flush(plain: &mut Vec<u8>, acts: &mut Vec<Act>) {
    if !plain.is_empty() {
        acts.push(Act::Type(std::mem::take(plain)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_keys_go_to_the_guest() {
        assert_eq!(Keys::default().typed(b"ls\r\x03"), [Act::Type(b"ls\r\x03".to_vec())]);
    }

    #[test]
    fn the_escape_and_its_key_may_come_apart() {
        let mut keys = Keys::default();
        assert_eq!(keys.typed(b"a\x1d"), [Act::Type(b"a".to_vec())]);
        assert_eq!(keys.typed(b"xb"), [Act::Leave, Act::Type(b"b".to_vec())]);
    }

    #[test]
    fn an_escape_can_be_typed_and_unknown_keys_pass() {
        let mut keys = Keys::default();
        assert_eq!(keys.typed(b"\x1d]\x1dq"), [Act::Type(b"\x1d\x1dq".to_vec())]);
        assert_eq!(keys.typed(b"\x1d?\x1dp"), [Act::Help, Act::PowerButton]);
    }
}
