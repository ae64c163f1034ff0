//! Every crate says what it is, in its own file and in the README.

use std::path::Path;

use super::metadata::Package;
use super::{Complaint, read_text};
use crate::Outcome;

/// Lines a crate's opening may have.
const OPENING_LIMIT: usize = 25;

/// Lines `ARCHITECTURE.md` may have.
const ARCHITECTURE_LIMIT: usize = 300;

/// Checks the crates' openings, the README's list and the size of the architecture.
pub fn check(top: &Path, packages: &[Package]) -> Outcome<Vec<Complaint>> {
    let mut complaints = Vec::new();
    let readme = read_text(&top.join("README.md"))?.unwrap_or_default();
    for package in packages {
        if !readme.lines().any(|line| line.starts_with('|') && line.contains(&format!("`{}`", package.name)))
        {
            let text = format!("the list of crates has no row for `{}`", package.name);
            complaints.push(Complaint::file("README.md".as_ref(), text));
        }
        for name in ["src/lib.rs", "src/main.rs"] {
            let path = package.folder.join(name);
            if let Some(text) = read_text(&top.join(&path))? {
                complaints.extend(opening(&path, &text));
            }
        }
    }
    for name in ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"] {
        if read_text(&top.join(name))?.is_none() {
            complaints.push(Complaint::file(name.as_ref(), "missing"));
        }
    }
    let architecture = read_text(&top.join("ARCHITECTURE.md"))?.unwrap_or_default();
    if architecture.lines().count() > ARCHITECTURE_LIMIT {
        let text = format!("more than {ARCHITECTURE_LIMIT} lines: it is a map, not the land");
        complaints.push(Complaint::file("ARCHITECTURE.md".as_ref(), text));
    }
    Ok(complaints)
}

fn opening(path: &Path, text: &str) -> Option<Complaint> {
    let lines = text.lines().take_while(|line| line.starts_with("//!")).count();
    match lines {
        0 => Some(Complaint::file(path, "does not open with what this crate is")),
        1..=OPENING_LIMIT => None,
        // A protocol drawing may need a little more; a page is too much.
        _ if lines <= OPENING_LIMIT + 10 && text.contains("```text") => None,
        _ => Some(Complaint::file(path, format!("opens with {lines} lines, more than {OPENING_LIMIT}"))),
    }
}
