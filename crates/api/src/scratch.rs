//! Folders of the store in which a server keeps something for the time of one request. Their names say whose they are, so that the
//! next server finds those of one that was killed.

use std::io;
use std::path::Path;

use tempfile::TempDir;

/// What is kept there: a build's context, a body that is too large for memory.
const KINDS: [&str; 2] = [CONTEXT, UPLOAD];
/// A build's context.
pub(crate) const CONTEXT: &str = ".context-";
/// A body.
pub(crate) const UPLOAD: &str = ".upload-";

/// A folder of this kind, which goes with the value.
pub(crate) fn folder(store: &Path, kind: &str) -> io::Result<TempDir> {
    tempfile::Builder::new().prefix(&format!("{kind}{}-", std::process::id())).tempdir_in(store)
}

/// Removes those of processes that are gone. Other servers of the store keep theirs.
pub(crate) fn clear(store: &Path) {
    for entry in std::fs::read_dir(store).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let rest = KINDS.iter().find_map(|kind| name.strip_prefix(kind));
        let maker = rest.and_then(|rest| rest.split_once('-')?.0.parse::<u32>().ok());
        if maker.is_some_and(|maker| !Path::new(&format!("/proc/{maker}")).exists())
            && let Err(error) = std::fs::remove_dir_all(entry.path())
        {
            tracing::warn!("remove {}, which a killed server left: {error}", entry.path().display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_processes_that_are_gone_have_left_is_removed_and_nothing_else() {
        let store = tempfile::tempdir().unwrap();
        let ours = folder(store.path(), CONTEXT).unwrap();
        let mut gone = std::process::Command::new("true").spawn().unwrap();
        let left = store.path().join(format!("{UPLOAD}{}-x", gone.id()));
        gone.wait().unwrap();
        let strange = [".upload-x", "workloads", ".context-", &format!("x{}-1", gone.id())]
            .map(|name| store.path().join(name));
        strange.iter().chain([&left]).for_each(|path| std::fs::create_dir(path).unwrap());
        clear(store.path());
        assert!(ours.path().exists() && strange.iter().all(|path| path.exists()) && !left.exists());
    }
}
