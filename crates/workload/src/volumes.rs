//! Volumes: folders of the store that have names and outlive the workloads that see them.
//!
//! ```text
//! ROOT/volumes/
//!   lock             held while a volume is made or removed
//!   <name>/
//!     volume.json    what it is: a VolumeInfo, written once; locked shared by whoever uses the volume
//!     data/          what workloads see, unless an option says it is elsewhere
//! ```
//!
//! Nobody counts users. Those of a volume are the workloads whose descriptions name it, and the processes that hold its lock:
//! one that is killed holds it no more. So no count can be wrong, whatever was killed, and when.
//!
//! A volume that was made for one workload, and is to go with it (`--rm`), is removed by whoever looks at the volumes next once
//! nobody uses it.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::events::{Event, EventKind};
use crate::files::{self, Durable};
use crate::folder::{self, Workloads, new_id, open_lock};
use crate::state::now_ms;

/// The version of [`VolumeInfo`] that this build writes and reads.
const VERSION: u32 = 1;
/// Folders that are being made or removed begin so.
const UNFINISHED: &str = ".";

/// What a volume is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeInfo {
    /// Of this very type: 1.
    pub version: u32,
    /// Unique among the volumes of a store.
    pub name: String,
    /// When it was made, in milliseconds since 1970.
    pub created_ms: u64,
    /// Free text by key, for those who look for it.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// What its driver was told, as docker's `local` driver has it.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
    /// Nobody gave it a name.
    #[serde(default)]
    pub anonymous: bool,
    /// It goes when nobody uses it any more.
    #[serde(default)]
    pub temporary: bool,
}

/// What a new volume is to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewVolume {
    /// Nothing for one that nobody gave a name.
    pub name: Option<String>,
    /// Free text by key.
    pub labels: BTreeMap<String, String>,
    /// `type=none`, `o=bind` and `device=PATH` for a folder that is elsewhere.
    pub options: BTreeMap<String, String>,
    /// It goes when nobody uses it any more.
    pub temporary: bool,
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    path: PathBuf,
    info: VolumeInfo,
}

/// A volume in use: nobody removes it as long as this lives.
#[derive(Debug)]
pub struct Held {
    volume: Volume,
    _lock: File,
}

/// What puts the first content into the folder of a new volume.
pub type Fill<'a, E> = &'a mut dyn FnMut(&Path) -> std::result::Result<(), E>;

/// All volumes of a store.
#[derive(Clone, Debug)]
pub struct Volumes {
    root: PathBuf,
    dir: PathBuf,
}

impl Workloads {
    /// The volumes of the same store.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn volumes(&self) -> Result<Volumes> {
        Volumes::open(self.dir.parent().unwrap_or(&self.dir))
    }
}

impl Volumes {
    /// The volumes of the store at `root`.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn open(root: &Path) -> Result<Volumes> {
        let dir = root.join("volumes");
        // What is in them is their owner's business, whatever modes the files have.
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&dir);
        made.map_err(Error::file("create", &dir))?;
        Ok(Volumes { root: root.to_path_buf(), dir })
    }

    fn lock(&self) -> Result<File> {
        let path = self.dir.join("lock");
        let file = open_lock(&path)?;
        file.lock().map_err(Error::file("lock", &path))?;
        Ok(file)
    }

    /// Makes a volume, or gives the one that has the name already, as docker does.
    ///
    /// # Errors
    /// The name is none, an option is none of ours, the one that is there has others, or the folder cannot be written.
    pub fn create(&self, new: NewVolume) -> Result<Volume> {
        let _lock = self.lock()?;
        self.create_locked(new)
    }

    fn create_locked(&self, new: NewVolume) -> Result<Volume> {
        let anonymous = new.name.is_none();
        let name = match new.name {
            Some(name) => {
                let parsed = folder::parse_name(&name);
                // One that has the form of an id was given to a nameless one, which may be asked for again.
                if parsed.is_err() && folder::is_id(&name) && self.dir.join(&name).exists() {
                    return self.find(&name);
                }
                parsed.map_err(|reason| Error::BadName { name, reason })?
            }
            None => new_id()?,
        };
        check_options(&new.options)?;
        match self.find(&name) {
            Ok(found) if found.info.options == new.options || new.options.is_empty() => return Ok(found),
            Ok(found) => {
                return Err(Error::Refused(format!(
                    "volume {} is there already, with other options",
                    found.info.name
                )));
            }
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
        let info = VolumeInfo {
            version: VERSION,
            name: name.clone(),
            created_ms: now_ms(),
            labels: new.labels,
            options: new.options,
            anonymous,
            temporary: new.temporary,
        };
        let (temp, path) = (self.dir.join(format!("{UNFINISHED}{name}")), self.dir.join(&name));
        let create = |path: &Path, mode| {
            DirBuilder::new().mode(mode).create(path).map_err(Error::file("create", path))
        };
        let _ = fs::remove_dir_all(&temp);
        create(&temp, 0o700)?;
        create(&temp.join("data"), 0o755)?;
        files::replace(&temp.join("volume.json"), &info, Durable::Now)?;
        fs::rename(&temp, &path).map_err(Error::file("create", &path))?;
        files::sync_parent(&path)?;
        self.tell(&info, "create");
        Ok(Volume { path, info })
    }

    /// Notes what happens to a volume.
    fn tell(&self, volume: &VolumeInfo, action: &str) {
        if let Ok(workloads) = Workloads::open(&self.root) {
            Event::of_volume(volume, action).add_to(&workloads.dir);
        }
    }

    /// The volume of this name.
    ///
    /// # Errors
    /// There is none, or it is of another version.
    pub fn find(&self, name: &str) -> Result<Volume> {
        let missing = || Error::NoVolume { name: name.to_owned() };
        if !(folder::is_id(name) || folder::parse_name(name).is_ok()) {
            return Err(missing());
        }
        let path = self.dir.join(name);
        if !path.join("volume.json").exists() {
            return Err(missing());
        }
        Volume::read(path)
    }

    /// All of them, by name. One that cannot be read hides no other.
    ///
    /// # Errors
    /// The folder of them all cannot be read.
    pub fn list(&self) -> Result<Vec<Volume>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(Error::file("list", &self.dir))? {
            let entry = entry.map_err(Error::file("list", &self.dir))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name != "lock"
                && !name.starts_with(UNFINISHED)
                && let Ok(volume) = Volume::read(entry.path())
            {
                found.push(volume);
            }
        }
        found.sort_by(|a, b| a.info.name.cmp(&b.info.name));
        Ok(found)
    }

    /// The names of the workloads that use each volume, by the volume's name.
    ///
    /// # Errors
    /// The workloads cannot be listed.
    pub fn users(&self) -> Result<HashMap<String, Vec<String>>> {
        let mut users: HashMap<String, Vec<String>> = HashMap::new();
        for folder in Workloads::open(&self.root)?.list()? {
            let description = folder.description();
            for volume in description.wanted.mounts.iter().filter_map(crate::Mount::volume) {
                users.entry(volume.to_owned()).or_default().push(description.name.clone());
            }
        }
        Ok(users)
    }

    /// Makes sure that the volume is there, makes it if it is not, and holds it. What is empty, and nobody else's, is given to
    /// `fill` first: it puts the first content into the folder it is told, which appears in the volume whole or not at all.
    ///
    /// # Errors
    /// As [`Self::create`], and those of `fill`.
    pub fn hold_new<E: From<Error>>(
        &self,
        new: NewVolume,
        fill: Option<Fill<'_, E>>,
    ) -> std::result::Result<Held, E> {
        let _lock = self.lock()?;
        let volume = self.create_locked(new)?;
        if let Some(fill) = fill
            && volume.info.options.is_empty()
            && volume.is_empty()
            && self.take_alone(&volume)?.is_some()
        {
            let (fresh, data) = (volume.path.join("data.new"), volume.data());
            let _ = fs::remove_dir_all(&fresh);
            DirBuilder::new().mode(0o755).create(&fresh).map_err(Error::file("create", &fresh))?;
            if let Err(error) = fill(&fresh) {
                let _ = fs::remove_dir_all(&fresh);
                return Err(error);
            }
            // The one that is there is empty, so this replaces it.
            fs::rename(&fresh, &data).map_err(Error::file("create", &data))?;
        }
        Ok(volume.hold()?)
    }

    /// Holds the volume of this name.
    ///
    /// # Errors
    /// There is none.
    pub fn hold(&self, name: &str) -> Result<Held> {
        let _lock = self.lock()?;
        self.find(name)?.hold()
    }

    /// Its lock, if nobody else holds it. The lock of all is held.
    fn take_alone(&self, volume: &Volume) -> Result<Option<File>> {
        let path = volume.path.join("volume.json");
        let file = File::open(&path).map_err(Error::file("open", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(e)) => Err(Error::file("lock", &path)(e)),
        }
    }

    /// Removes a volume and all that is in it.
    ///
    /// # Errors
    /// There is none, somebody uses it, or its files cannot be removed.
    pub fn remove(&self, name: &str) -> Result<()> {
        let _lock = self.lock()?;
        let volume = self.find(name)?;
        // First: whoever makes a workload holds the volume until the workload's description names it.
        let alone = self.take_alone(&volume)?;
        let mut users = self.users()?.remove(name).unwrap_or_default();
        if users.is_empty() && alone.is_none() {
            users.push("a command in the foreground".to_owned());
        }
        if !users.is_empty() {
            return Err(Error::VolumeInUse { name: name.to_owned(), users });
        }
        self.bury(&volume)
    }

    /// Removes those of `names` that were made without a name and that nobody uses: what a workload leaves.
    ///
    /// # Errors
    /// The volumes cannot be locked or listed.
    pub fn remove_anonymous(&self, names: &[String]) -> Result<()> {
        self.sweep(|info| info.anonymous && names.contains(&info.name)).map(drop)
    }

    /// Removes those that nobody uses and `unwanted` picks. Gives what was removed, and how many bytes it had.
    ///
    /// # Errors
    /// The volumes cannot be locked or listed.
    pub fn prune(&self, unwanted: impl Fn(&VolumeInfo) -> bool) -> Result<(Vec<String>, u64)> {
        let (names, bytes) = self.sweep(|info| info.temporary || unwanted(info))?;
        Workloads::open(&self.root)?.tell_pruned(EventKind::Volume, bytes);
        Ok((names, bytes))
    }

    /// Removes those that were to go with their workloads, which have gone.
    ///
    /// # Errors
    /// The volumes cannot be locked or listed.
    pub fn clean(&self) -> Result<()> {
        self.sweep(|info| info.temporary).map(drop)
    }

    fn sweep(&self, unwanted: impl Fn(&VolumeInfo) -> bool) -> Result<(Vec<String>, u64)> {
        let _lock = self.lock()?;
        let volumes: Vec<_> = self.list()?.into_iter().filter(|volume| unwanted(&volume.info)).collect();
        let (mut removed, mut bytes) = (Vec::new(), 0);
        for volume in volumes {
            // As in `remove`: the lock first, then the workloads.
            let alone = self.take_alone(&volume)?;
            if alone.is_none() || self.users()?.contains_key(&volume.info.name) {
                continue;
            }
            let size = volume.size_bytes();
            if self.bury(&volume).is_ok() {
                removed.push(volume.info.name);
                bytes += size;
            }
        }
        Ok((removed, bytes))
    }

    /// The lock of all is held, and the volume's.
    fn bury(&self, volume: &Volume) -> Result<()> {
        let grave = self.dir.join(format!("{UNFINISHED}{}", volume.info.name));
        // A crash may have left one.
        let _ = fs::remove_dir_all(&grave);
        fs::rename(&volume.path, &grave).map_err(Error::file("remove", &volume.path))?;
        files::sync_parent(&volume.path)?;
        self.tell(&volume.info, "destroy");
        fs::remove_dir_all(&grave).map_err(Error::file("remove", &grave))
    }
}

impl Volume {
    fn read(path: PathBuf) -> Result<Volume> {
        let file = path.join("volume.json");
        let info: VolumeInfo = files::read(&file)?;
        if info.version != VERSION {
            return Err(Error::Version { path: file, found: info.version });
        }
        Ok(Volume { path, info })
    }

    /// What it is.
    pub fn info(&self) -> &VolumeInfo {
        &self.info
    }

    /// The folder that workloads see.
    pub fn data(&self) -> PathBuf {
        match self.info.options.get("device") {
            Some(device) => PathBuf::from(device),
            None => self.path.join("data"),
        }
    }

    fn is_empty(&self) -> bool {
        fs::read_dir(self.data()).is_ok_and(|mut entries| entries.next().is_none())
    }

    fn hold(self) -> Result<Held> {
        let path = self.path.join("volume.json");
        let lock = File::open(&path).map_err(Error::file("open", &path))?;
        // Nobody holds it alone but whoever has the lock of all, and for a moment.
        lock.lock_shared().map_err(Error::file("lock", &path))?;
        Ok(Held { volume: self, _lock: lock })
    }

    /// Bytes that its files take on the disk. What cannot be read counts nothing.
    pub fn size_bytes(&self) -> u64 {
        fn of(folder: &Path) -> u64 {
            use std::os::unix::fs::MetadataExt;
            let Ok(entries) = fs::read_dir(folder) else { return 0 };
            let size = |entry: io::Result<fs::DirEntry>| {
                let Ok(entry) = entry else { return 0 };
                let Ok(meta) = entry.metadata() else { return 0 };
                meta.blocks() * 512 + if meta.is_dir() { of(&entry.path()) } else { 0 }
            };
            entries.map(size).sum()
        }
        of(&self.data())
    }
}

impl Held {
    /// The volume.
    pub fn volume(&self) -> &Volume {
        &self.volume
    }
}

/// What docker's `local` driver takes, as far as it makes sense without a mount of the host's.
fn check_options(options: &BTreeMap<String, String>) -> Result<()> {
    let refuse = |reason: String| Err(Error::BadOption { reason });
    for (key, value) in options {
        match (key.as_str(), value.as_str()) {
            ("type", "none" | "") | ("o", "bind" | "rbind" | "bind,rw" | "") => {}
            ("device", path)
                if path.starts_with('/') && fs::metadata(path).is_ok_and(|meta| meta.is_dir()) => {}
            ("device", path) => {
                return refuse(format!("device={path}: no folder of this host with that path"));
            }
            ("type" | "o", value) => {
                return refuse(format!("{key}={value}: only type=none and o=bind, a folder of this host"));
            }
            _ => return refuse(format!("{key}={value}: a volume has type, o and device")),
        }
    }
    match options.get("device") {
        None if !options.is_empty() => refuse("type and o say nothing without device=PATH".to_owned()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
