//! What a command returns when it cannot do its work, and the one place that prints it.

use std::error::Error;
use std::fmt;

use crate::exit::Exit;

/// What commands return.
pub type Outcome<T = Exit> = Result<T, Failure>;

/// An act that failed, why, and what the user can do about it.
#[derive(Debug)]
pub struct Failure {
    act: String,
    source: Option<Box<dyn Error + Send + Sync>>,
    hint: Option<String>,
    exit: Exit,
}

impl Failure {
    /// A failure without a further cause.
    pub fn new(text: impl Into<String>) -> Self {
        Self { act: text.into(), source: None, hint: None, exit: Exit::Strata }
    }

    /// `act` failed because of `source`.
    pub fn because(act: impl Into<String>, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { source: Some(source.into()), ..Self::new(act) }
    }

    /// Adds the next step for the user.
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// Ends the program with another code than 125.
    pub fn exit(self, exit: Exit) -> Self {
        Self { exit, ..self }
    }

    /// The code to end with.
    pub fn exit_code(&self) -> Exit {
        self.exit
    }

    /// Prints the whole chain on one line, and the next step on another.
    pub fn print(&self) {
        eprintln!("strata: {self}");
        if let Some(hint) = &self.hint {
            eprintln!("  next: {hint}");
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.act)?;
        let mut said = self.act.clone();
        let mut next: Option<&dyn Error> = self.source.as_ref().map(|source| source.as_ref() as &dyn Error);
        while let Some(cause) = next {
            next = cause.source();
            let text = cause.to_string();
            // Some foreign errors repeat their cause in their own text.
            if !said.ends_with(&text) {
                write!(f, ": {text}")?;
            }
            said = text;
        }
        Ok(())
    }
}

/// Says which act a failed result belongs to.
pub trait While<T> {
    /// `act` failed because of this error.
    fn while_trying(self, act: impl FnOnce() -> String) -> Outcome<T>;
}

impl<T, E: Into<Box<dyn Error + Send + Sync>>> While<T> for Result<T, E> {
    fn while_trying(self, act: impl FnOnce() -> String) -> Outcome<T> {
        self.map_err(|error| Failure::because(act(), error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn the_whole_chain_stands_on_one_line() {
        let cause = io::Error::new(io::ErrorKind::NotFound, "no such file");
        let failure = Failure::because("open \"x\"", cause);
        assert_eq!(failure.to_string(), "open \"x\": no such file");
        assert_eq!(failure.exit_code().code(), 125);
    }

    #[test]
    fn a_cause_that_was_already_said_is_not_repeated() {
        let failure = Failure::because("read x: broken", io::Error::other("broken"));
        assert_eq!(failure.to_string(), "read x: broken");
    }
}
