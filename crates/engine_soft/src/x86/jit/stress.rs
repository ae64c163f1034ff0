//! Ways to make happen all the time what is rare: for tests, and for whoever looks for a fault.
//!
//! None changes what a guest sees; a guest that behaves otherwise under one has met a fault of the translator's.

use std::str::FromStr;

use super::Config;

/// What is made to happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stress {
    /// `tlb`: the software TLB holds one page.
    pub one_page: bool,
    /// `code`: the code area has 64 KiB, so that it is emptied all the time.
    pub small_code: bool,
    /// `returns`: the stack of returns holds four.
    pub few_returns: bool,
    /// `kick`: somebody wants the vCPU's attention at every block, none of which leads to another directly.
    pub kicks: bool,
    /// `once`: a block is translated before it is executed the first time.
    pub at_once: bool,
    /// `exact`: all flags are kept, needed or not (see [`super::flags`]).
    pub exact_flags: bool,
    /// `step=N`: every Nth execution of a block is repeated by the interpreter and compared (see
    /// [`super::lockstep`]); 0 for none.
    pub step: u32,
}

/// A word that is no way to provoke anything.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is none of {names}", names = Stress::NAMES)]
pub struct Unknown(String);

impl Stress {
    /// What [`FromStr`] takes, separated by commas.
    pub const NAMES: &str = "tlb, code, returns, kick, once, exact, step[=N]";

    /// Whether each block is entered from Rust.
    pub(super) fn forbids_chains(&self) -> bool {
        self.kicks || self.step != 0
    }
}

impl FromStr for Stress {
    type Err = Unknown;

    fn from_str(words: &str) -> Result<Self, Unknown> {
        let mut stress = Self::default();
        for word in words.split(',').map(str::trim).filter(|word| !word.is_empty()) {
            let unknown = || Unknown(word.to_owned());
            match word {
                "tlb" => stress.one_page = true,
                "code" => stress.small_code = true,
                "returns" => stress.few_returns = true,
                "kick" => stress.kicks = true,
                "once" => stress.at_once = true,
                "exact" => stress.exact_flags = true,
                "step" => stress.step = 1,
                _ => {
                    let every = word.strip_prefix("step=").and_then(|number| number.parse().ok());
                    stress.step = every.filter(|every| *every > 0).ok_or_else(unknown)?;
                }
            }
        }
        Ok(stress)
    }
}

impl Config {
    /// The same under `stress`.
    #[must_use]
    pub fn under(mut self, stress: Stress) -> Self {
        self.stress = stress;
        if stress.small_code {
            self.code_bytes = 64 << 10;
        }
        if stress.at_once {
            (self.threshold, self.patience) = (1, 0);
        }
        self.exact_flags |= stress.exact_flags;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_understood_and_others_named() {
        let expected = Stress { one_page: true, step: 64, ..Stress::default() };
        assert_eq!("tlb, step=64".parse(), Ok(expected));
        assert_eq!("step".parse(), Ok(Stress { step: 1, ..Stress::default() }));
        assert_eq!("".parse(), Ok(Stress::default()));
        for wrong in ["step=0", "step=x", "tlbs"] {
            assert_eq!(wrong.parse::<Stress>(), Err(Unknown(wrong.to_owned())));
        }
    }
}
