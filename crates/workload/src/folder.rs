//! The folders of all workloads of a store.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::description::{self, Description, Wanted};
use crate::error::{Error, Result};
use crate::files::{self, Durable};
use crate::known::Known;
use crate::listing::in_parallel;
use crate::state::{self, State, Status, now_ms};

/// Letters and digits of an id.
const ID_DIGITS: usize = 64;
/// Folders that are being made or removed begin so; what a crash left of them is removed.
pub(crate) const UNFINISHED: &str = ".";

/// All workloads of a store.
#[derive(Clone, Debug)]
pub struct Workloads {
    pub(crate) dir: PathBuf,
    known: Arc<Known>,
}

impl Workloads {
    /// The workloads of the store at `root`.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn open(root: &Path) -> Result<Workloads> {
        let dir = root.join("workloads");
        // What a workload writes is its owner's business.
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&dir);
        made.map_err(Error::file("create", &dir))?;
        Ok(Workloads { dir, known: Arc::default() })
    }

    pub(crate) fn lock(&self) -> Result<File> {
        let path = self.dir.join("lock");
        let file = open_lock(&path)?;
        file.lock().map_err(Error::file("lock", &path))?;
        Ok(file)
    }

    /// Makes a workload that does nothing yet. Without a name it gets one, made from image and id.
    ///
    /// # Errors
    /// The name is none or another's, or the folder cannot be written.
    pub fn create(&self, name: Option<String>, wanted: Wanted) -> Result<Folder> {
        let _lock = self.lock()?;
        self.clean();
        let id = new_id()?;
        let name = match name {
            Some(name) => parse_name(&name).map_err(|reason| Error::BadName { name, reason })?,
            None => default_name(&wanted.image, &id),
        };
        self.check_free(&name)?;
        self.make(id, name, wanted, Durable::Now)
    }

    /// The lock is held.
    fn make(&self, id: String, name: String, wanted: Wanted, durable: Durable) -> Result<Folder> {
        let version = description::VERSION;
        let description = Description { version, id: id.clone(), name, created_ms: now_ms(), wanted };
        let (temp, path) = (self.dir.join(format!("{UNFINISHED}{id}")), self.dir.join(&id));
        DirBuilder::new().mode(0o700).create(&temp).map_err(Error::file("create", &temp))?;
        let known = Arc::clone(&self.known);
        let made = Folder { path: temp.clone(), description: Arc::new(description), known };
        files::replace(&temp.join("workload.json"), made.description(), durable)?;
        files::replace(&temp.join("state.json"), &State::new(), durable)?;
        fs::rename(&temp, &path).map_err(Error::file("create", &path))?;
        if durable == Durable::Now {
            files::sync_parent(&path)?;
        }
        let made = Folder { path, ..made };
        made.tell("create", &[]);
        Ok(made)
    }

    /// Makes `count` copies of `parent` that do nothing yet. Their names are the parent's with `-1` and so on; numbers that are
    /// taken are passed over. What they are copies of is in memory: a crash of the host may take their folders too.
    ///
    /// # Errors
    /// As [`Self::create`]; there are no copies then.
    pub fn create_copies(&self, parent: &Description, count: u32) -> Result<Vec<Folder>> {
        let _lock = self.lock()?;
        self.clean();
        let taken: HashSet<String> =
            self.list()?.iter().map(|folder| folder.description.name.clone()).collect();
        let mut names =
            (1u64..).map(|number| format!("{}-{number}", parent.name)).filter(|name| !taken.contains(name));
        let mut copies: Vec<Folder> = Vec::new();
        for name in names.by_ref().take(count as usize) {
            let made = parse_name(&name)
                .map_err(|reason| Error::BadName { name, reason })
                .and_then(|name| self.make(new_id()?, name, parent.wanted.clone(), Durable::Later));
            match made {
                Ok(copy) => copies.push(copy),
                Err(error) => {
                    copies.iter().for_each(|copy| drop(copy.bury()));
                    return Err(error);
                }
            }
        }
        Ok(copies)
    }

    /// Removes what crashes left, and what was to be removed and had nobody to do it. The lock is held.
    fn clean(&self) {
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_lost = || is_id(&name) && files::is_lost(&entry.path().join("workload.json"));
            if name.starts_with(UNFINISHED) || is_lost() {
                let _ = fs::remove_dir_all(entry.path());
            } else if is_id(&name)
                && let Ok(folder) = Folder::open(entry.path())
                && folder.is_left()
            {
                let _ = folder.bury();
            }
        }
    }

    /// All of them, the oldest first. A folder that cannot be read hides no other.
    ///
    /// # Errors
    /// The folder of them all cannot be read.
    pub fn list(&self) -> Result<Vec<Folder>> {
        let mut paths = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(Error::file("list", &self.dir))? {
            let entry = entry.map_err(Error::file("list", &self.dir))?;
            if is_id(&entry.file_name().to_string_lossy()) {
                paths.push(entry.path());
            }
        }
        // One that vanishes meanwhile was removed.
        let open = |path: &PathBuf| Folder::open_known(path.clone(), &self.known).ok();
        let mut found = in_parallel(&paths, |path| open(path).filter(|folder| !folder.is_left()));
        self.known.keep(paths.len());
        let age = |folder: &Folder| folder.description.created_ms;
        found.sort_unstable_by(|a, b| (age(a), &a.description.id).cmp(&(age(b), &b.description.id)));
        Ok(found)
    }

    /// The one with this name, this id, or an id that begins so.
    ///
    /// # Errors
    /// There is none, or several ids begin so.
    pub fn find(&self, name: &str) -> Result<Folder> {
        let path = self.dir.join(name);
        if is_id(name) && path.exists() {
            return Folder::open_known(path, &self.known);
        }
        let mut all = self.list()?;
        if let Some(at) = all.iter().position(|folder| folder.description.name == name) {
            return Ok(all.swap_remove(at));
        }
        let mut matching: Vec<Folder> =
            all.into_iter().filter(|f| !name.is_empty() && f.description.id.starts_with(name)).collect();
        match (matching.pop(), matching.is_empty()) {
            (Some(found), true) => Ok(found),
            (Some(_), false) => Err(Error::Ambiguous { name: name.to_owned() }),
            (None, _) => Err(Error::NotFound { name: name.to_owned() }),
        }
    }

    /// Refuses a name that another workload has. The lock is held.
    pub(crate) fn check_free(&self, name: &str) -> Result<()> {
        match self.list()?.into_iter().find(|folder| folder.description.name == name) {
            Some(other) => Err(Error::NameTaken { name: name.to_owned(), id: other.description.id.clone() }),
            None => Ok(()),
        }
    }
}

/// The folder of one workload.
#[derive(Clone, Debug)]
pub struct Folder {
    path: PathBuf,
    description: Arc<Description>,
    known: Arc<Known>,
}

impl Folder {
    /// Opens the folder at `path`.
    ///
    /// # Errors
    /// It is none, or of another version.
    pub fn open(path: impl Into<PathBuf>) -> Result<Folder> {
        Folder::open_known(path.into(), &Arc::default())
    }

    /// [`Self::open`], where what was read before is `known`.
    pub(crate) fn open_known(path: PathBuf, known: &Arc<Known>) -> Result<Folder> {
        let file = path.join("workload.json");
        let description = known.descriptions.read(&file)?;
        if description.version != description::VERSION {
            return Err(Error::Version { path: file, found: description.version });
        }
        Ok(Folder { path, description, known: Arc::clone(known) })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it is.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// How it is: what was noted last, or [`Status::Lost`] where that cannot be.
    ///
    /// # Errors
    /// The state cannot be read.
    pub fn state(&self) -> Result<State> {
        // First: a monitor that ends between the two has noted the end before it let go.
        let watched = self.is_watched()?;
        let path = self.path.join("state.json");
        let read = self.known.states.read(&path);
        if read.is_err() && !watched && files::is_lost(&path) {
            let error = Some("the host crashed while it ran".to_owned());
            return Ok(State { status: Status::Lost, error, ..State::new() });
        }
        let mut state = State::clone(&*read?);
        if state.version != state::VERSION {
            return Err(Error::Version { path, found: state.version });
        }
        if !watched && state.status.is_active() {
            state = State {
                status: Status::Lost,
                monitor_pid: None,
                worker_pid: None,
                error: Some("its monitor was killed".to_owned()),
                ..state
            };
        }
        Ok(state)
    }

    /// Notes how it is; that it runs is not durable, for a crash of the host ends that. For the monitor, and for whoever makes
    /// it.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn set_state(&self, state: &State) -> Result<()> {
        let durable = if state.status.is_active() { Durable::Later } else { Durable::Now };
        files::replace_or_overwrite(&self.path.join("state.json"), state, durable)
    }

    /// Where the monitor answers.
    pub fn socket(&self) -> PathBuf {
        self.path.join("control.sock")
    }

    /// Where what it writes is kept; older files have `.1` and so on behind the name.
    pub fn log(&self) -> PathBuf {
        self.path.join("log.json")
    }

    fn lock_path(&self) -> PathBuf {
        self.path.join("monitor.lock")
    }

    /// Whether a monitor lives. Its lock is the kernel's, and gone with it however it ends.
    ///
    /// # Errors
    /// The lock cannot be read.
    pub fn is_watched(&self) -> Result<bool> {
        let path = self.lock_path();
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(Error::file("open", &path)(e)),
        };
        // Shared: those who look do not see each other.
        match file.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(fs::TryLockError::WouldBlock) => Ok(true),
            Err(fs::TryLockError::Error(e)) => Err(Error::file("lock", &path)(e)),
        }
    }

    /// Whether it is over and was to be removed then, but whoever watched it could not: it was killed, or it is the machine of a
    /// [`crate::Foreground`], which may touch no folder any more.
    pub(crate) fn is_left(&self) -> bool {
        self.description.wanted.remove && self.state().is_ok_and(|state| state.status == Status::Lost)
    }

    /// Becomes the one who watches it, as long as the file lives.
    ///
    /// # Errors
    /// Somebody does already.
    pub fn watch(&self) -> Result<File> {
        let path = self.lock_path();
        let file = open_lock(&path)?;
        // Who looks holds it for a moment; who watches, for long.
        for _ in 0..100 {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(fs::TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(10)),
                Err(fs::TryLockError::Error(e)) => return Err(Error::file("lock", &path)(e)),
            }
        }
        Err(Error::Refused(format!("{} is watched already", self.description.name)))
    }
}

pub(crate) fn open_lock(path: &Path) -> Result<File> {
    let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
    opened.map_err(Error::file("open", path))
}

pub(crate) fn is_id(name: &str) -> bool {
    name.len() == ID_DIGITS && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

pub(crate) fn new_id() -> Result<String> {
    let mut bytes = [0; ID_DIGITS / 2];
    let mut filled = 0;
    while filled < bytes.len() {
        let flags = rustix::rand::GetRandomFlags::empty();
        let got = rustix::rand::getrandom(&mut bytes[filled..], flags);
        filled += got.map_err(|e| Error::file("read", "/dev/urandom")(e.into()))?;
    }
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Whether `text` can be the name of a workload: the one rule, whoever takes a name.
///
/// # Errors
/// What a name is.
pub fn parse_name(text: &str) -> std::result::Result<String, String> {
    let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    let right = text.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric)
        && text.len() <= 128
        && text.bytes().all(ok)
        && !is_id(text);
    if right {
        return Ok(text.to_owned());
    }
    Err("it is up to 128 letters, digits, '_', '-' and '.', and begins with one of the first two".to_owned())
}

/// The last part of the image's name and the beginning of the id: `debian-3f0a9c`.
fn default_name(image: &str, id: &str) -> String {
    let last = image.split('@').next().unwrap_or_default().rsplit('/').next().unwrap_or_default();
    let last = last.split(':').next().unwrap_or_default();
    let stem: String = last.chars().filter(char::is_ascii_alphanumeric).take(40).collect();
    let stem = if stem.is_empty() { "workload".to_owned() } else { stem };
    format!("{stem}-{}", &id[..6])
}

#[cfg(test)]
pub(crate) mod testing {
    use super::{Wanted, Workloads};
    use crate::description::{Isolation, LogLimits, Restart};
    pub(crate) fn wanted() -> Wanted {
        Wanted {
            isolation: Isolation::Vm,
            image: "reg.example/team/debian:12".to_owned(),
            command: vec!["true".to_owned()],
            remove: false,
            restart: Restart::No,
            log: LogLimits::default(),
            health: None,
            labels: Default::default(),
            publish: Vec::new(),
            networks: Vec::new(),
            mounts: Vec::new(),
            said: None,
            stop_signal: 15,
            tty: false,
            interactive: false,
            options: serde_json::json!({"cpus": 1}),
        }
    }

    pub(crate) fn workloads() -> (tempfile::TempDir, Workloads) {
        let dir = tempfile::tempdir().unwrap();
        let all = Workloads::open(dir.path()).unwrap();
        (dir, all)
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{wanted, workloads};
    use super::*;
    use crate::Running;

    #[test]
    fn copies_are_numbered_and_a_number_that_is_taken_is_passed_over() {
        let (_dir, all) = workloads();
        let web = all.create(Some("web".to_owned()), wanted()).unwrap();
        all.create(Some("web-2".to_owned()), wanted()).unwrap();
        let copies = all.create_copies(web.description(), 3).unwrap();
        let copies: Vec<_> = copies.iter().map(Folder::description).collect();
        let names: Vec<_> = copies.iter().map(|copy| copy.name.as_str()).collect();
        assert_eq!(names, ["web-1", "web-3", "web-4"]);
        assert!(
            copies
                .iter()
                .all(|copy| copy.wanted == web.description().wanted && copy.id != web.description().id)
        );
        let long = all.create(Some("x".repeat(127)), wanted()).unwrap();
        assert!(matches!(all.create_copies(long.description(), 1), Err(Error::BadName { .. })));
        let nine = all.create(Some("x".repeat(126)), wanted()).unwrap();
        let before = all.list().unwrap().len();
        assert!(all.create_copies(nine.description(), 10).is_err());
        assert_eq!(all.list().unwrap().len(), before, "all or none");
    }

    #[test]
    fn what_a_crash_of_the_host_left_empty_is_lost_or_removed() {
        let (_dir, all) = workloads();
        let web = all.create(Some("web".to_owned()), wanted()).unwrap();
        fs::write(web.path().join("state.json"), b"").unwrap();
        assert_eq!(web.state().unwrap().status, Status::Lost);
        let copy = all.create_copies(web.description(), 1).unwrap().remove(0);
        fs::write(copy.path().join("workload.json"), b"").unwrap();
        all.create(Some("other".to_owned()), wanted()).unwrap();
        assert!(!copy.path().exists());
        assert!(web.path().exists());
    }

    #[test]
    fn a_workload_is_found_by_name_id_and_the_beginning_of_its_id() {
        let (_dir, all) = workloads();
        let web = all.create(Some("web".to_owned()), wanted()).unwrap();
        let other = all.create(None, wanted()).unwrap();
        let id = &web.description().id;
        for name in ["web", id, &id[..12]] {
            assert_eq!(all.find(name).unwrap().description(), web.description());
        }
        assert!(other.description().name.starts_with("debian-"));
        assert_eq!(all.list().unwrap().len(), 2);
        for name in ["", "we", "x", "../workloads", &"0".repeat(64)] {
            assert!(all.find(name).unwrap_err().is_not_found(), "{name:?}");
        }
    }

    #[test]
    fn a_name_is_given_once() {
        let (_dir, all) = workloads();
        let first = all.create(Some("a".to_owned()), wanted()).unwrap();
        assert!(
            all.create(Some("a".to_owned()), wanted())
                .unwrap_err()
                .to_string()
                .contains("another workload has it")
        );
        for name in ["", "-a", ".a", "a/b", "a b", "é", &"a".repeat(129), &"a".repeat(64)] {
            assert!(all.create(Some(name.to_owned()), wanted()).is_err(), "{name:?}");
        }
        all.remove(&first, Running::Stays).unwrap();
        all.create(Some("a".to_owned()), wanted()).unwrap();
    }

    #[test]
    fn what_ran_without_a_monitor_is_lost_and_can_be_removed() {
        let (_dir, all) = workloads();
        let folder = all.create(Some("a".to_owned()), wanted()).unwrap();
        assert_eq!(folder.state().unwrap().status, Status::Created);
        let watch = folder.watch().unwrap();
        let running = State { status: Status::Running, worker_pid: Some(7), ..State::new() };
        folder.set_state(&running).unwrap();
        assert_eq!(folder.state().unwrap(), running);
        let message = all.remove(&folder, Running::Stays).unwrap_err().to_string();
        assert_eq!(message, "a is running");
        assert!(folder.watch().is_err());
        drop(watch);
        let lost = folder.state().unwrap();
        assert_eq!((lost.status, lost.worker_pid), (Status::Lost, None));
        all.remove(&folder, Running::Stays).unwrap();
        assert!(all.find("a").is_err() && !folder.path().exists());
        assert!(all.remove(&folder, Running::Killed).unwrap_err().is_not_found());
    }

    #[test]
    fn what_crashes_left_is_cleaned_and_what_is_broken_hides_nothing() {
        let (dir, all) = workloads();
        let folder = all.create(Some("a".to_owned()), wanted()).unwrap();
        let place = dir.path().join("workloads");
        fs::create_dir(place.join(format!(".{}", "1".repeat(64)))).unwrap();
        let broken = place.join("2".repeat(64));
        fs::create_dir(&broken).unwrap();
        fs::write(broken.join("workload.json"), b"{").unwrap();
        all.create(Some("b".to_owned()), wanted()).unwrap();
        assert!(!place.join(format!(".{}", "1".repeat(64))).exists());
        assert_eq!(all.list().unwrap().len(), 2);
        let text = fs::read_to_string(folder.path().join("workload.json")).unwrap();
        fs::write(folder.path().join("workload.json"), text.replace("\"version\": 1", "\"version\": 2"))
            .unwrap();
        let message = Folder::open(folder.path()).unwrap_err().to_string();
        assert!(message.ends_with("has version 2, this build knows 1"), "{message}");
    }
}
