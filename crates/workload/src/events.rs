//! What happens to workloads, images, networks and volumes, in the order it happens: a line of JSON each in `events.json`,
//! whoever does it.
//!
//! Who does something adds the line; who wants to know reads the file from where it likes, and what is added
//! meanwhile. Lines are not made durable: a host that crashes may lose the last ones.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::description::Description;
use crate::error::Result;
use crate::folder::{Folder, Workloads};
use crate::log::Reader;
use crate::networks::NetworkInfo;
use crate::volumes::VolumeInfo;

/// A file that is longer is set aside; one is kept beside it.
const MAX_BYTES: u64 = 4 << 20;

/// To what something happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventKind {
    /// A workload.
    #[default]
    Container,
    /// An image.
    Image,
    /// A network.
    Network,
    /// A volume.
    Volume,
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            EventKind::Container => "container",
            EventKind::Image => "image",
            EventKind::Network => "network",
            EventKind::Volume => "volume",
        })
    }
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// To a workload, where nothing else is said.
    #[serde(default)]
    pub kind: EventKind,
    /// What, in docker's words: `create`, `start`, `kill`, `die`, `oom`, `exec_start: COMMAND`, `health_status: healthy`, … of a
    /// workload; `pull`, `tag`, `untag`, `delete`, `import`, `load`, `save`, `push` of an image; `create`, `connect`,
    /// `disconnect`, `destroy` of a network; `create`, `mount`, `unmount`, `destroy` of a volume; `prune` of all of a kind.
    pub action: String,
    /// The workload's id, or the network's; an image's as docker has it, or its name where it is pulled or pushed; a volume's
    /// name. Empty for `prune`.
    pub id: String,
    /// Its name, after the event.
    pub name: String,
    /// Its image, as the user named it; what is no workload has none.
    pub image: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// What more is to be said: `exitCode` of `die`, `oldName` of `rename`, `container` of `connect`.
    pub more: BTreeMap<String, String>,
}

impl Event {
    /// Something that happens now to what has this id and this name.
    fn new(kind: EventKind, action: &str, id: &str, name: &str) -> Event {
        Event {
            at_ms: crate::state::now_ms(),
            kind,
            action: action.to_owned(),
            id: id.to_owned(),
            name: name.to_owned(),
            image: String::new(),
            labels: BTreeMap::new(),
            more: BTreeMap::new(),
        }
    }

    fn with(mut self, labels: &BTreeMap<String, String>, more: &[(&str, String)]) -> Event {
        self.labels.clone_from(labels);
        self.more = more.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
        self
    }

    /// Something that happens now to the workload of this description.
    pub(crate) fn now(description: &Description, action: &str, more: &[(&str, String)]) -> Event {
        let Description { id, name, wanted, .. } = description;
        let event = Event::new(EventKind::Container, action, id, name).with(&wanted.labels, more);
        Event { image: wanted.image.clone(), ..event }
    }

    /// Something that happens now to a network, or on it to the workload of this id.
    pub(crate) fn of_network(network: &NetworkInfo, action: &str, workload: Option<&str>) -> Event {
        let mut more = vec![("type", "bridge".to_owned())];
        more.extend(workload.map(|id| ("container", id.to_owned())));
        Event::new(EventKind::Network, action, &network.id, &network.name).with(&network.labels, &more)
    }

    /// Something that happens now to a volume.
    pub(crate) fn of_volume(volume: &VolumeInfo, action: &str) -> Event {
        let more = [("driver", "local".to_owned())];
        Event::new(EventKind::Volume, action, &volume.name, &volume.name).with(&volume.labels, &more)
    }

    /// Adds it to the file in the folder `workloads`. What happened has happened: a disk that is full keeps nobody from it.
    pub(crate) fn add_to(&self, workloads: &Path) {
        let path = file(workloads);
        let added = serde_json::to_vec(self).map_err(io::Error::from).and_then(|mut line| {
            line.push(b'\n');
            let mut file = open_locked(&path)?;
            file.write_all(&line)?;
            if file.metadata()?.len() > MAX_BYTES {
                fs::rename(&path, path.with_extension("json.1"))?;
            }
            Ok(())
        });
        if let Err(error) = added {
            tracing::warn!("write {}: {error}", path.display());
        }
    }
}

/// The file, held alone: not one that somebody else has just set aside.
fn open_locked(path: &Path) -> io::Result<File> {
    loop {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        file.lock()?;
        if fs::metadata(path).is_ok_and(|named| file.metadata().is_ok_and(|own| own.ino() == named.ino())) {
            return Ok(file);
        }
    }
}

fn file(workloads: &Path) -> PathBuf {
    workloads.join("events.json")
}

impl Workloads {
    /// Reads what happened to workloads, from the oldest event that is kept, and what happens meanwhile.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn events(&self) -> Result<Reader<Event>> {
        Reader::open(&file(&self.dir))
    }

    /// Notes what happens to an image: `id` is docker's, or its name where it is pulled or pushed.
    pub fn tell_image(&self, action: &str, id: &str, name: &str, labels: &BTreeMap<String, String>) {
        Event::new(EventKind::Image, action, id, name).with(labels, &[]).add_to(&self.dir);
    }

    /// Notes that those of a kind were removed that nobody used, and how many bytes they had.
    pub fn tell_pruned(&self, kind: EventKind, bytes: u64) {
        let more = [("reclaimed", bytes.to_string())];
        Event::new(kind, "prune", "", "").with(&BTreeMap::new(), &more).add_to(&self.dir);
    }
}

impl Folder {
    /// Notes that this happened to it.
    pub fn tell(&self, action: &str, more: &[(&str, String)]) {
        if let Some(all) = self.path().parent() {
            Event::now(self.description(), action, more).add_to(all);
        }
    }

    /// Notes that it has its volumes from now on (`mount`), or no more (`unmount`).
    pub(crate) fn tell_of_volumes(&self, action: &str) {
        let Some(all) = self.path().parent() else { return };
        for mount in &self.description().wanted.mounts {
            let Some(name) = mount.volume() else { continue };
            let mut more = vec![("driver", "local".to_owned()), ("container", self.description().id.clone())];
            if action == "mount" {
                let writes = !mount.read_only;
                more.push(("destination", mount.target.clone()));
                more.extend([("read/write", writes.to_string()), ("propagation", String::new())]);
            }
            Event::new(EventKind::Volume, action, name, name).with(&BTreeMap::new(), &more).add_to(all);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::folder::testing::{wanted, workloads};

    #[test]
    fn volumes_and_images_have_events_too() {
        let (_dir, all) = workloads();
        let mut reader = all.events().unwrap();
        let volumes = all.volumes().unwrap();
        let new = || crate::NewVolume { name: Some("data".to_owned()), ..crate::NewVolume::default() };
        volumes.create(new()).unwrap();
        // It is there already.
        volumes.create(new()).unwrap();
        volumes.remove("data").unwrap();
        all.tell_image("pull", "debian:latest", "debian", &BTreeMap::new());
        volumes.prune(|_| true).unwrap();
        let mut seen = Vec::new();
        while let Some(event) = reader.next_entry().unwrap() {
            seen.push(format!("{} {} {}", event.kind, event.action, event.id));
        }
        let expected =
            ["volume create data", "volume destroy data", "image pull debian:latest", "volume prune "];
        assert_eq!(seen, expected);
    }

    #[test]
    fn who_reads_misses_nothing_and_old_ones_go() {
        let (_dir, all) = workloads();
        let mut reader = all.events().unwrap();
        let folder = all.create(Some("web".to_owned()), wanted()).unwrap();
        all.rename(&folder, "site".to_owned()).unwrap();
        all.remove(&all.find("site").unwrap(), crate::Running::Stays).unwrap();
        let mut next = || reader.next_entry().unwrap().map(|event| (event.action, event.name, event.more));
        let old = BTreeMap::from([("oldName".to_owned(), "web".to_owned())]);
        assert_eq!(next(), Some(("create".to_owned(), "web".to_owned(), BTreeMap::new())));
        assert_eq!(next(), Some(("rename".to_owned(), "site".to_owned(), old)));
        assert_eq!(next(), Some(("destroy".to_owned(), "site".to_owned(), BTreeMap::new())));
        assert_eq!(next(), None);

        let event = Event::now(folder.description(), "start", &[("x", "y".repeat(100_000))]);
        let dir = folder.path().parent().unwrap();
        for _ in 0..60 {
            event.add_to(dir);
        }
        let mut count = 0;
        while reader.next_entry().unwrap().is_some() {
            count += 1;
        }
        assert_eq!(count, 60);
        let kept = fs::metadata(file(dir)).unwrap().len();
        assert!(kept <= MAX_BYTES && file(dir).with_extension("json.1").exists(), "{kept}");
    }
}
