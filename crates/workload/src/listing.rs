//! Many workloads read at once: `ps` of five hundred waits for files and for what is made of them.

use std::path::PathBuf;
use std::sync::Arc;

use crate::Folder;
use crate::known::Known;

/// Those of `paths` that are whole, in no order. One that vanishes meanwhile was removed.
pub(crate) fn open_all(paths: &[PathBuf], known: &Arc<Known>) -> Vec<Folder> {
    /// Fewer are read before a thread has begun.
    const LEAST: usize = 64;
    const MAX_THREADS: usize = 4;
    let open = |paths: &[PathBuf]| -> Vec<Folder> {
        let folders = paths.iter().filter_map(|path| Folder::open_known(path.clone(), known).ok());
        folders.filter(|folder| !folder.is_left()).collect()
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
    let (first, rest) = paths.split_at(paths.len().div_ceil(threads).max(LEAST).min(paths.len()));
    std::thread::scope(|scope| {
        let begin =
            |share| std::thread::Builder::new().spawn_scoped(scope, move || open(share)).map_err(|_| share);
        let others: Vec<_> = rest.chunks(first.len().max(1)).map(begin).collect();
        let mut found = open(first);
        for other in others {
            found.extend(match other {
                Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
                // A host that gives no more threads has this one.
                Err(share) => open(share),
            });
        }
        found
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::folder::testing::{wanted, workloads};

    #[test]
    fn all_are_read_whatever_their_number_and_what_is_none_is_left_out() {
        let (root, all) = workloads();
        let one = all.create(Some("one".to_owned()), wanted()).unwrap();
        let mut paths: Vec<_> = all
            .create_copies(one.description(), 200)
            .unwrap()
            .iter()
            .map(|folder| folder.path().to_owned())
            .collect();
        paths.insert(70, root.path().join("nothing"));
        for count in [0, 1, 64, 65, 201] {
            let missing = usize::from(count > 70);
            assert_eq!(open_all(&paths[..count], &Arc::default()).len(), count - missing);
        }
    }
}
