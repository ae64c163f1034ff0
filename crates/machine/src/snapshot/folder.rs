//! The folder of a snapshot: made under another name, and named when it is whole and durable.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::{Error, Snapshot};

/// The file of sections.
pub const STATE: &str = "state";
/// The file of memory.
pub const RAM: &str = "ram";

/// A folder that is being made. Dropped without [`Folder::commit`] it is removed again.
#[derive(Debug)]
pub struct Folder {
    at: PathBuf,
    /// Where its files go.
    pub state: File,
    /// Where memory goes.
    pub ram: File,
    committed: bool,
}

impl Folder {
    /// Begins a folder beside what will be `target`; its name begins with a dot and ends with `.partial`.
    ///
    /// # Errors
    /// The host's.
    pub fn create(target: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Host { act: "create the snapshot's folder", source };
        let name = target.file_name().ok_or_else(|| failed(io::ErrorKind::InvalidFilename.into()))?;
        let name = format!(".{}.{}.partial", name.to_string_lossy(), std::process::id());
        let at = target.with_file_name(name);
        // Of a process of the same number that was killed.
        match fs::remove_dir_all(&at) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        fs::create_dir(&at).map_err(failed)?;
        remove_abandoned(target);
        let create = |name: &str| File::options().read(true).write(true).create_new(true).open(at.join(name));
        // Locked as long as anybody writes it.
        let files = create(STATE).and_then(|state| state.lock().and_then(|()| Ok((state, create(RAM)?))));
        match files {
            Ok((state, ram)) => Ok(Self { at, state, ram, committed: false }),
            Err(error) => {
                let _ = fs::remove_dir_all(&at);
                Err(failed(error))
            }
        }
    }

    /// Where it is until it has its name.
    pub fn path(&self) -> &Path {
        &self.at
    }

    /// Gives it its name. A snapshot that has it already is replaced, and there is always one of the two.
    ///
    /// # Errors
    /// The host's, or the name is taken by something that is no snapshot.
    pub fn commit(mut self, target: &Path) -> Result<(), Error> {
        let failed = |source| Error::Host { act: "name the snapshot's folder", source };
        let sync = |path: &Path| File::open(path).and_then(|folder| folder.sync_all());
        let parent = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        sync(&self.at).map_err(failed)?;
        match renameat_with(CWD, &self.at, CWD, target, RenameFlags::NOREPLACE) {
            Ok(()) => {}
            Err(Errno::EXIST) if target.join(STATE).is_file() || is_empty(target) => {
                let flags = RenameFlags::EXCHANGE;
                renameat_with(CWD, &self.at, CWD, target, flags).map_err(|errno| failed(errno.into()))?;
                let _ = fs::remove_dir_all(&self.at);
            }
            Err(errno) => return Err(failed(errno.into())),
        }
        self.committed = true;
        sync(parent).map_err(failed)
    }
}

/// Removes what those left who were killed while they saved to `target`. Whoever may be at it still is left alone.
fn remove_abandoned(target: &Path) {
    let (Some(name), Some(parent)) = (target.file_name(), target.parent()) else { return };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let beginning = format!(".{}.", name.to_string_lossy());
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let maker = name.to_str().and_then(|name| name.strip_prefix(&beginning)?.strip_suffix(".partial"));
        let Some(maker) = maker.and_then(|maker| maker.parse::<u32>().ok()) else { continue };
        if Path::new("/proc").join(maker.to_string()).exists() {
            continue;
        }
        match File::open(entry.path().join(STATE)) {
            Ok(state) if state.try_lock().is_ok() => drop(fs::remove_dir_all(entry.path())),
            // Killed before it had any file; one that has some is not removed so.
            Err(_) => drop(fs::remove_dir(entry.path())),
            Ok(_) => {}
        }
    }
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !self.committed {
            let _ = fs::remove_dir_all(&self.at);
        }
    }
}

/// Opens the snapshot in folder `at`.
///
/// # Errors
/// As [`Snapshot::read`].
pub fn open(at: &Path) -> Result<Snapshot, Error> {
    let failed = |act| move |source| Error::Host { act, source };
    let state = File::open(at.join(STATE)).map_err(failed("open state"))?;
    let ram = File::open(at.join(RAM)).map_err(failed("open ram"))?;
    Snapshot::read(&state, ram)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn listed(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_folder_has_its_name_when_it_is_whole_and_replaces_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("snap");
        drop(Folder::create(&target).unwrap());
        assert!(listed(dir.path()).is_empty());
        for generation in [b"one", b"two"] {
            let mut folder = Folder::create(&target).unwrap();
            folder.state.write_all(generation).unwrap();
            folder.commit(&target).unwrap();
            assert_eq!(listed(dir.path()), ["snap"]);
            assert_eq!(fs::read(target.join(STATE)).unwrap(), generation);
        }
    }

    #[test]
    fn what_a_killed_process_left_is_removed_and_what_is_being_written_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("snap");
        // No process has such a number.
        let [left, written] = [u32::MAX, u32::MAX - 1].map(|n| dir.path().join(format!(".snap.{n}.partial")));
        let [empty, other] =
            ["snap", "snap.more"].map(|name| dir.path().join(format!(".{name}.{}.partial", u32::MAX - 2)));
        fs::create_dir(&empty).unwrap();
        for folder in [&left, &written, &other] {
            fs::create_dir(folder).unwrap();
            fs::write(folder.join(STATE), "half").unwrap();
        }
        let writer = File::open(written.join(STATE)).unwrap();
        writer.lock().unwrap();
        let folder = Folder::create(&target).unwrap();
        assert!(
            !left.exists() && !empty.exists() && written.exists() && other.exists() && folder.path().exists()
        );
    }

    #[test]
    fn a_name_that_something_else_has_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("snap");
        fs::create_dir(&target).unwrap();
        fs::write(target.join("letter"), "dear").unwrap();
        let folder = Folder::create(&target).unwrap();
        assert!(folder.commit(&target).is_err());
        assert_eq!((listed(dir.path()), listed(&target)), (vec!["snap".into()], vec!["letter".into()]));
    }
}
