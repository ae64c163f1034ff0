//! Files that appear whole or not at all, and locks between processes.
//!
//! A temporary file or folder lies in `tmp/` of the store, on the same file system as its destination, and is locked
//! (flock, so the kernel lets go when its process dies) for as long as it is being written. Whoever opens the store removes
//! what is there and not locked: the remains of dead processes. The gate `locks/tmp` is held shared from the creation of a
//! temporary file to its lock, and from its unlock to its rename, and exclusively while cleaning.
//!
//! Lock order: `locks/gc`, then `locks/root-*`, then `locks/index`, then `locks/tmp`.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, CWD, FileType, RenameFlags, StatxAttributes, StatxFlags, renameat_with, statx};
use rustix::io::Errno;

use crate::error::{Error, Result};

static NEXT: AtomicU64 = AtomicU64::new(0);

/// The folder for temporary files of one store.
#[derive(Debug, Clone)]
pub(crate) struct Scratch {
    dir: PathBuf,
    gate: PathBuf,
}

impl Scratch {
    pub(crate) fn new(dir: PathBuf, gate: PathBuf) -> Self {
        Scratch { dir, gate }
    }

    fn fresh_path(&self) -> PathBuf {
        let nanos = std::time::UNIX_EPOCH.elapsed().map_or(0, |d| d.subsec_nanos());
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        self.dir.join(format!("{}-{number}-{nanos:08x}", std::process::id()))
    }

    /// A new, empty, locked temporary file, open for reading and writing.
    pub(crate) fn file(&self) -> Result<TempFile> {
        let path = self.fresh_path();
        let _gate = lock_shared(&self.gate)?;
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path);
        let file = file.map_err(Error::file("create", &path))?;
        let temp = TempFile { file, path, scratch: self.clone() };
        temp.file.lock().map_err(Error::file("lock", &temp.path))?;
        Ok(temp)
    }

    /// A new, empty, locked temporary folder.
    pub(crate) fn folder(&self) -> Result<TempFolder> {
        let path = self.fresh_path();
        let _gate = lock_shared(&self.gate)?;
        DirBuilder::new().create(&path).map_err(Error::file("create", &path))?;
        let handle = File::open(&path).map_err(Error::file("open", &path))?;
        let temp = TempFolder { handle, path, scratch: self.clone() };
        temp.handle.lock().map_err(Error::file("lock", &temp.path))?;
        Ok(temp)
    }

    /// Writes `bytes` to `path` so that a reader sees the old or the new file, also after a crash.
    pub(crate) fn replace(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let mut temp = self.file()?;
        temp.file.write_all(bytes).map_err(Error::file("write", &temp.path))?;
        temp.publish(path)?;
        Ok(())
    }

    /// Removes what dead processes left behind. Does nothing when another process is at work on the gate just now.
    pub(crate) fn clean(&self) -> Result<()> {
        let Some(_gate) = try_lock(&self.gate)? else { return Ok(()) };
        for entry in fs::read_dir(&self.dir).map_err(Error::file("list", &self.dir))? {
            let path = entry.map_err(Error::file("list", &self.dir))?.path();
            let opened = OpenOptions::new()
                .read(true)
                .custom_flags((rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits() as i32)
                .open(&path);
            match opened {
                Ok(file) if file.try_lock().is_err() => continue,
                Ok(_) | Err(_) => remove_any(&path),
            }
        }
        Ok(())
    }
}

/// Removes a file or a whole folder; what cannot be removed is left for the next time. A folder in which something is
/// mounted is left whole: a tool that was killed as root may have left `/proc` or `/dev` of the host there.
pub(crate) fn remove_any(path: &Path) {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => {
            if !holds_mount(path).unwrap_or(true) {
                let _ = fs::remove_dir_all(path);
            }
        }
        _ => {
            let _ = fs::remove_file(path);
        }
    }
}

/// True when the folder, or anything below it, is where something is mounted.
fn holds_mount(folder: &Path) -> io::Result<bool> {
    let own = fs::symlink_metadata(folder)?.dev();
    let mut todo = vec![folder.to_path_buf()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            let stat = statx(CWD, &path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS)?;
            // The attribute also tells mounts of the same file system; old kernels do not have it.
            let mounted = stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
            if mounted || rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor) != own {
                return Ok(true);
            }
            if FileType::from_raw_mode(stat.stx_mode.into()) == FileType::Directory {
                todo.push(path);
            }
        }
    }
    Ok(false)
}

/// A temporary file; removed on drop unless published.
#[derive(Debug)]
pub(crate) struct TempFile {
    pub(crate) file: File,
    path: PathBuf,
    scratch: Scratch,
}

impl TempFile {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the file durable and gives it its name. Hands back the open file, unlocked.
    pub(crate) fn publish(self, dest: &Path) -> Result<File> {
        self.file.sync_all().map_err(Error::file("write", &self.path))?;
        let _gate = lock_shared(&self.scratch.gate)?;
        self.file.unlock().map_err(Error::file("unlock", &self.path))?;
        fs::rename(&self.path, dest).map_err(Error::file("create", dest))?;
        sync_parent(dest)?;
        self.file.try_clone().map_err(Error::file("open", dest))
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        // After `publish` the name is gone already; names are never used twice.
        let _ = fs::remove_file(&self.path);
    }
}

/// A temporary folder; removed with all it holds on drop unless published.
#[derive(Debug)]
pub(crate) struct TempFolder {
    handle: File,
    path: PathBuf,
    scratch: Scratch,
}

impl TempFolder {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the folder durable and gives it its name, which must be free. The files in it must be durable already.
    pub(crate) fn publish(self, dest: &Path) -> Result<()> {
        self.handle.sync_all().map_err(Error::file("write", &self.path))?;
        let _gate = lock_shared(&self.scratch.gate)?;
        self.handle.unlock().map_err(Error::file("unlock", &self.path))?;
        fs::rename(&self.path, dest).map_err(Error::file("create", dest))?;
        sync_parent(dest)
    }

    /// As [`Self::publish`] where the name is taken: what has it vanishes. Whoever is killed meanwhile leaves the old folder
    /// or the new one, never none; but on a file system that cannot exchange names.
    pub(crate) fn exchange(self, dest: &Path) -> Result<()> {
        self.handle.sync_all().map_err(Error::file("write", &self.path))?;
        let gate = lock_shared(&self.scratch.gate)?;
        match renameat_with(CWD, &self.path, CWD, dest, RenameFlags::EXCHANGE) {
            Ok(()) => sync_parent(dest),
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                drop(gate);
                self.scratch.folder()?.bury(dest)?;
                self.publish(dest)
            }
            Err(errno) => Err(Error::file("replace", dest)(errno.into())),
        }
    }

    /// Moves an existing folder in here, to vanish with this one.
    pub(crate) fn bury(&self, dir: &Path) -> Result<()> {
        fs::rename(dir, self.path.join("buried")).map_err(Error::file("remove", dir))?;
        sync_parent(dir)
    }
}

impl Drop for TempFolder {
    fn drop(&mut self) {
        remove_any(&self.path);
    }
}

/// Makes the entry of `path` in its folder durable.
pub(crate) fn sync_parent(path: &Path) -> Result<()> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    let dir = File::open(parent).map_err(Error::file("open", parent))?;
    dir.sync_all().map_err(Error::file("sync", parent))
}

fn open_lock(path: &Path) -> Result<File> {
    let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
    opened.map_err(Error::file("open", path))
}

/// Waits for and takes the lock `path` for this process alone; dropping the file lets go.
pub(crate) fn lock(path: &Path) -> Result<File> {
    let file = open_lock(path)?;
    file.lock().map_err(Error::file("lock", path))?;
    Ok(file)
}

/// Waits for and takes the lock `path` together with others.
pub(crate) fn lock_shared(path: &Path) -> Result<File> {
    let file = open_lock(path)?;
    file.lock_shared().map_err(Error::file("lock", path))?;
    Ok(file)
}

/// Takes the lock `path` alone, or nothing when somebody holds it.
pub(crate) fn try_lock(path: &Path) -> Result<Option<File>> {
    let file = open_lock(path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(fs::TryLockError::WouldBlock) => Ok(None),
        Err(fs::TryLockError::Error(source)) => Err(Error::file("lock", path)(source)),
    }
}

/// Opens `path` for reading and holds a shared lock on it, so that nobody removes it. `None` when there is no such file.
pub(crate) fn open_pinned(path: &Path) -> Result<Option<File>> {
    loop {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::file("open", path)(e)),
        };
        file.lock_shared().map_err(Error::file("lock", path))?;
        // It may have been removed or replaced while we waited.
        if is_at(&file, path)? {
            return Ok(Some(file));
        }
    }
}

/// True when `path` still names the open `file`.
pub(crate) fn is_at(file: &File, path: &Path) -> Result<bool> {
    let open = file.metadata().map_err(Error::file("stat", path))?;
    match fs::metadata(path) {
        Ok(named) => Ok(named.ino() == open.ino() && named.dev() == open.dev()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(Error::file("stat", path)(e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch() -> (tempfile::TempDir, Scratch) {
        let dir = tempfile::tempdir().unwrap();
        let scratch = Scratch::new(dir.path().join("tmp"), dir.path().join("gate"));
        fs::create_dir(dir.path().join("tmp")).unwrap();
        (dir, scratch)
    }

    #[test]
    fn cleaning_spares_what_is_being_written() {
        let (dir, scratch) = scratch();
        let file = scratch.file().unwrap();
        let folder = scratch.folder().unwrap();
        fs::write(dir.path().join("tmp/orphan"), "x").unwrap();
        fs::create_dir_all(dir.path().join("tmp/orphans/deep")).unwrap();
        scratch.clean().unwrap();
        assert!(file.path().exists() && folder.path().exists());
        assert_eq!(fs::read_dir(dir.path().join("tmp")).unwrap().count(), 2);
    }

    #[test]
    fn an_unpublished_file_leaves_nothing() {
        let (dir, scratch) = scratch();
        drop(scratch.file().unwrap());
        drop(scratch.folder().unwrap());
        scratch.replace(&dir.path().join("a"), b"1").unwrap();
        scratch.replace(&dir.path().join("a"), b"2").unwrap();
        assert_eq!(fs::read(dir.path().join("a")).unwrap(), b"2");
        assert_eq!(fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0);
    }

    #[test]
    fn a_pinned_file_is_not_locked_away() {
        let (dir, _scratch) = scratch();
        let path = dir.path().join("p");
        fs::write(&path, "x").unwrap();
        let pin = open_pinned(&path).unwrap().unwrap();
        assert!(File::open(&path).unwrap().try_lock().is_err());
        drop(pin);
        assert!(File::open(&path).unwrap().try_lock().is_ok());
        assert!(open_pinned(&dir.path().join("none")).unwrap().is_none());
    }

    #[test]
    fn removing_never_enters_what_is_mounted() {
        use std::process::Command;
        let (dir, scratch) = scratch();
        let inner = dir.path().join("tmp/orphan/root/proc");
        let outside = dir.path().join("outside");
        fs::create_dir_all(&inner).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("precious"), "x").unwrap();
        // A mount of the very same file system, which its device number does not give away.
        let mount = Command::new("mount").arg("--bind").arg(&outside).arg(&inner).output();
        if !mount.is_ok_and(|out| out.status.success()) {
            println!("skipped: nothing can be mounted here");
            return;
        }
        let cleaned = scratch.clean();
        let kept = outside.join("precious").exists();
        assert!(Command::new("umount").arg(&inner).status().unwrap().success());
        cleaned.unwrap();
        assert!(kept, "the cleaner went into a mount");
        scratch.clean().unwrap();
        assert_eq!(fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0);
        assert!(outside.join("precious").exists());
    }
}
