//! `cargo xtask tidy`: the rules of `ARCHITECTURE.md` and `CONTRIBUTING.md` that no compiler checks.
//!
//! | rule | where |
//! |---|---|
//! | crates depend on each other only as the architecture draws it | [`edges`] |
//! | unsafe code only where it is listed, each such file says why; no unfinished code | [`sources`] |
//! | files and functions of a readable size | [`sources`], [`functions`] |
//! | no path of one machine, no host of a registry | [`sources`] |
//! | every crate introduces itself; README lists every crate | [`docs`] |
//!
//! Not here because clippy has it: a SAFETY comment on every unsafe block, documentation of public items.

mod docs;
mod edges;
mod functions;
mod metadata;
mod sources;

use std::fmt;
use std::path::{Path, PathBuf};

use crate::Outcome;

/// One broken rule at one place.
struct Complaint {
    place: PathBuf,
    line: Option<usize>,
    text: String,
}

impl Complaint {
    fn file(place: &Path, text: impl Into<String>) -> Self {
        Self { place: place.to_owned(), line: None, text: text.into() }
    }

    fn line(place: &Path, line: usize, text: impl Into<String>) -> Self {
        Self { place: place.to_owned(), line: Some(line), text: text.into() }
    }
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.place.display(), self.text),
            None => write!(f, "{}: {}", self.place.display(), self.text),
        }
    }
}

/// Checks everything and prints each complaint.
pub fn run(top: &Path) -> Outcome {
    let packages = metadata::packages(top)?;
    let files = metadata::tracked_files(top)?;
    let mut complaints = edges::check(&packages);
    complaints.extend(docs::check(top, &packages)?);
    let mut functions = 0;
    for path in &files {
        let Some(text) = read_text(&top.join(path))? else { continue };
        complaints.extend(sources::check(path, &text));
        if path.extension().is_some_and(|e| e == "rs") {
            let (seen, long) = functions::check(path, &text);
            functions += seen;
            complaints.extend(long);
        }
    }
    for complaint in &complaints {
        println!("{complaint}");
    }
    println!(
        "tidy: {} crates, {} files, {functions} functions, {} complaints",
        packages.len(),
        files.len(),
        complaints.len()
    );
    if complaints.is_empty() { Ok(()) } else { Err("the rules above are broken".into()) }
}

/// The text of a file; nothing for one that is gone or is not text.
fn read_text(path: &Path) -> Outcome<Option<String>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8(bytes).ok()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("read {}: {error}", path.display()).into()),
    }
}
