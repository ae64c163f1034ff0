//! Images made by a Containerfile.
//!
//! [`build()`] reads the file, and makes the stages that the wanted one needs. Each instruction leads from one image in the store
//! to the next; what it led to is remembered under a key of all that went into it, so that it is not done again.
//!
//! Reading order: `source` (text to statements), `instruction` (statements to instructions), `words` (variables), `build` (the
//! stages), `stage` (one instruction after the other), `copy` and `files` (COPY and ADD), `run` and `stage/command` (RUN), `config`.
//!
//! Deliberately not here: what runs a command (see [`Runner`]), where images come from (see [`Images`]), flags, printing.
#![forbid(unsafe_code)]

mod build;
mod config;
mod copy;
mod error;
mod files;
pub mod instruction;
mod pattern;
mod run;
pub mod source;
mod stage;
#[cfg(test)]
mod tests;
mod users;
pub mod words;

pub use build::{Images, Options, build};
pub use error::{Error, Result};
pub use run::{Ended, Run, Runner};
