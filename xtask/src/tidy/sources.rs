//! What each file may contain, line by line.

use std::path::Path;

use super::Complaint;

/// Crates that may hold unsafe code, each with its reason in `ARCHITECTURE.md`.
const UNSAFE_CRATES: &[&str] =
    &["memory", "engine_soft", "engine_kvm", "container", "machine", "agent", "sandbox"];

/// Lines a source file may have.
const FILE_LIMIT: usize = 550;

/// Longer files that are tables or tests of tables: file, why.
const LONG_FILES: &[(&str, &str)] =
    &[("crates/engine_soft/src/x86/interp/select.rs", "a table: which function executes which instruction")];

/// Marks of code that is not finished. Written in halves so that this file does not hold them.
const UNFINISHED: &[&str] =
    &[concat!("TO", "DO"), concat!("FIX", "ME"), concat!("unimplemented", "!"), concat!("todo", "!")];

/// Starts of paths that exist on one machine only, and hosts that a build must not name.
const OF_ONE_MACHINE: &[&str] = &[
    concat!("/wo", "rk/"),
    concat!(".cargo", "/registry"),
    concat!(".rust", "up/"),
    concat!("/ho", "me/"),
    concat!("/tmp/", "target"),
    concat!("static.", "crates.io"),
    concat!("index.", "crates.io"),
    concat!("deb.", "debian.org"),
    concat!("pypi", ".org"),
    concat!("registry.", "npmjs"),
];

/// Files in which a name of [`OF_ONE_MACHINE`] is right: file, text, why.
const MACHINE_EXCEPTIONS: &[(&str, &str, &str)] = &[
    ("crates/image/src/files.rs", concat!("/ro", "ot/"), "a folder of that name in a scratch folder"),
    ("crates/image/src/layers/tests.rs", concat!("/ro", "ot/"), "a link's target inside an image"),
];

/// Checks one file of text.
pub fn check(path: &Path, text: &str) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    if path.ends_with("Cargo.lock") {
        return complaints;
    }
    let is_rust = path.extension().is_some_and(|e| e == "rs");
    if is_rust {
        complaints.extend(size(path, text));
        complaints.extend(unsafety(path, text));
    }
    for (number, line) in (1..).zip(text.lines()) {
        if is_rust {
            let unfinished = UNFINISHED.iter().filter(|mark| has_word(line, mark));
            complaints
                .extend(unfinished.map(|mark| Complaint::line(path, number, format!("unfinished: {mark}"))));
        }
        let foreign = OF_ONE_MACHINE.iter().filter(|part| line.contains(**part) && !is_excepted(path, part));
        complaints.extend(foreign.map(|part| Complaint::line(path, number, format!("names {part}"))));
    }
    complaints
}

fn is_excepted(path: &Path, part: &str) -> bool {
    MACHINE_EXCEPTIONS.iter().any(|(file, text, _)| path == Path::new(file) && part == *text)
}

fn size(path: &Path, text: &str) -> Option<Complaint> {
    let lines = text.lines().count();
    let listed = LONG_FILES.iter().any(|(file, _)| Path::new(file) == path);
    (lines > FILE_LIMIT && !listed).then(|| {
        Complaint::file(path, format!("{lines} lines, more than {FILE_LIMIT}, and not listed as a table"))
    })
}

/// Crate roots outside [`UNSAFE_CRATES`] forbid unsafe code; inside, each file that has some says why.
fn unsafety(path: &Path, text: &str) -> Option<Complaint> {
    let mut parts = path.iter().filter_map(|part| part.to_str());
    let owner = match parts.next()? {
        "crates" => parts.next()?,
        "xtask" => "xtask",
        _ => return None,
    };
    let is_root = path.ends_with("src/lib.rs") || path.ends_with("src/main.rs");
    if !UNSAFE_CRATES.contains(&owner) {
        let forbids = text.lines().any(|line| line.trim() == "#![forbid(unsafe_code)]");
        return (is_root && !forbids).then(|| Complaint::file(path, "does not say #![forbid(unsafe_code)]"));
    }
    let uses = text.lines().any(|line| {
        let code = line.split("//").next().unwrap_or_default();
        ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"].iter().any(|form| code.contains(form))
    });
    let says_why = text.lines().take(40).any(|line| line.starts_with("// UNSAFETY: "));
    (uses && !says_why)
        .then(|| Complaint::file(path, "has unsafe code but no `// UNSAFETY: why` near its top"))
}

fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let is_part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
        let whole_end = word.ends_with('!') || !is_part(line[at + word.len()..].chars().next());
        !is_part(line[..at].chars().next_back()) && whole_end
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints(path: &str, text: &str) -> Vec<String> {
        check(Path::new(path), text).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_crate_root_must_forbid_unsafe_code() {
        assert_eq!(complaints("crates/image/src/lib.rs", "//! x\n").len(), 1);
        assert!(complaints("crates/image/src/lib.rs", "//! x\n#![forbid(unsafe_code)]\n").is_empty());
        assert!(complaints("crates/memory/src/lib.rs", "//! x\n").is_empty());
    }

    #[test]
    fn an_unsafe_file_says_why() {
        let code = "fn f() { unsafe { g() } }\n";
        assert_eq!(complaints("crates/memory/src/map.rs", code).len(), 1);
        assert!(
            complaints("crates/memory/src/map.rs", &format!("// UNSAFETY: maps memory\n{code}")).is_empty()
        );
    }

    #[test]
    fn unfinished_code_and_paths_of_one_machine_are_found() {
        let todo = concat!("to", "do");
        assert_eq!(complaints("crates/a/src/b.rs", &format!("fn f() {{ {todo}!() }}\n")).len(), 1);
        assert!(complaints("crates/a/src/b.rs", "let mastodon = 1;\n").is_empty());
        assert_eq!(complaints("Makefile", concat!("x = /wo", "rk/x\n")).len(), 1);
    }

    #[test]
    fn long_files_are_reported() {
        assert_eq!(complaints("crates/a/src/b.rs", &"\n".repeat(FILE_LIMIT + 1)).len(), 1);
    }
}
