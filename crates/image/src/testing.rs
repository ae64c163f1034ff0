//! What several tests need: a store in a temporary folder, images in it, other processes.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::{Error, Image, NoProgress, Reference, Store};

/// A store that vanishes with the value.
pub(crate) struct Temp {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) store: Store,
}

pub(crate) fn temp_store() -> Temp {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("store")).unwrap();
    Temp { dir, store }
}

impl Temp {
    /// Writes `tar` to a file and imports it.
    pub(crate) fn import(&self, name: &str, tar: &[u8]) -> Result<Image, Error> {
        let file = self.dir.path().join("in.tar");
        std::fs::write(&file, tar).unwrap();
        self.store.import(&file, &reference(name), &NoProgress)
    }

    pub(crate) fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }
}

pub(crate) fn reference(name: &str) -> Reference {
    name.parse().unwrap()
}

/// The message with all causes, as the program prints it.
pub(crate) fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(error);
    while let Some(next) = cause {
        text += &format!(": {next}");
        cause = next.source();
    }
    text
}

/// Files below the folder, as paths from it.
pub(crate) fn files_below(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut todo = vec![root.to_path_buf()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                todo.push(path);
            } else {
                found.push(path.strip_prefix(root).unwrap().to_string_lossy().into_owned());
            }
        }
    }
    found.sort();
    found
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Runs the test `name` of this very binary in another process, with `STRATA_IMAGE_TEST` set to `value`.
pub(crate) fn child(name: &str, value: &str) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture", "--ignored"]).env("STRATA_IMAGE_TEST", value);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// What a child was told, if this is one.
pub(crate) fn child_value() -> Option<String> {
    std::env::var("STRATA_IMAGE_TEST").ok()
}

/// Bytes that do not compress.
pub(crate) fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| next()).collect()
}
