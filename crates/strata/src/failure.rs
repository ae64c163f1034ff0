//! What a command returns when it cannot do its work, and the one place that prints it.

use std::error::Error;
use std::fmt;
use std::io;

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

    /// The cause itself, if it is of this type.
    pub fn cause<T: Error + 'static>(&self) -> Option<&T> {
        self.source.as_ref().and_then(|source| source.downcast_ref())
    }

    /// Prints the whole chain on one line, and the next step on another.
    pub fn print(&self) {
        eprintln!("strata: {self}");
        if let Some(hint) = self.next_step() {
            eprintln!("  next: {hint}");
        }
    }

    /// What the user can do about it, if anybody knows.
    pub fn next_step(&self) -> Option<&str> {
        let full = "free some space there, or name a place that has some";
        self.hint.as_deref().or_else(|| self.is_full_disk().then_some(full))
    }

    fn is_full_disk(&self) -> bool {
        let mut next: Option<&dyn Error> = self.source.as_ref().map(|source| source.as_ref() as &dyn Error);
        while let Some(cause) = next {
            if cause.downcast_ref().is_some_and(|e: &io::Error| e.kind() == io::ErrorKind::StorageFull) {
                return true;
            }
            next = cause.source();
        }
        false
    }
}

/// Does `act` to each of `names`. Where it fails that is told, and the others come all the same.
///
/// # Errors
/// The last failure.
pub fn each<'a>(names: &'a [String], mut act: impl FnMut(&'a str) -> Outcome<()>) -> Outcome {
    let mut last: Option<Failure> = None;
    for name in names {
        if let Err(failure) = act(name)
            && let Some(before) = last.replace(failure)
        {
            before.print();
        }
    }
    last.map_or(Ok(Exit::Success), Err)
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
    fn a_full_disk_has_a_next_step_of_its_own() {
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        assert!(Failure::because("write x", full()).next_step().unwrap().contains("space"));
        assert_eq!(Failure::because("write x", full()).hint("other").next_step(), Some("other"));
        assert_eq!(Failure::because("write x", io::Error::other("broken")).next_step(), None);
    }

    #[test]
    fn what_fails_keeps_nothing_else_from_being_done() {
        let names = ["a", "b", "c"].map(str::to_owned);
        let mut done = Vec::new();
        let ended = each(&names, |name| {
            done.push(name);
            if name == "c" { Ok(()) } else { Err(Failure::new(name)) }
        });
        assert_eq!(done, ["a", "b", "c"]);
        assert_eq!(ended.unwrap_err().to_string(), "b");
    }

    #[test]
    fn a_cause_that_was_already_said_is_not_repeated() {
        let failure = Failure::because("read x: broken", io::Error::other("broken"));
        assert_eq!(failure.to_string(), "read x: broken");
    }
}
