//! What a command sees beside its image (`--volume`, `--mount`): folders of this host, volumes of the store, memory.
//!
//! Flags and the API's words become [`Mount`]s. [`Flags::settle`] makes them what is mounted: volumes are made, filled with what
//! the image has at their places, and held, so that nobody removes them.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use image::{Image, Store};
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, StatxFlags};
use workload::{Held, Mount, MountSource, NewVolume, Propagation, Volumes};

use super::copy_up::ImageFiles;
use super::mount_flags;
use crate::exit::Exit;
use crate::failure::{Failure, Outcome, While};

/// What the command sees beside its image.
#[derive(Clone, Debug, Default, clap::Args, serde::Serialize, serde::Deserialize)]
#[command(next_help_heading = "Files")]
pub struct Flags {
    /// Show the command a folder or file of this host, which begins with / or ./, or the volume NAME, which is made if it is not there, or a new volume; :ro for one it may not change (also -v)
    #[arg(long, value_name = "[HOST:|NAME:]PATH[:ro]", value_parser = mount_flags::check_volume)]
    volume: Vec<String>,
    /// The same in other words: type=bind|volume|tmpfs,source=HOST|NAME,target=PATH and readonly, volume-nocopy, tmpfs-size=SIZE, bind-propagation=rslave|rshared… where wanted
    #[arg(long, value_name = "KEY=VALUE,…", value_parser = mount_flags::check_mount)]
    #[serde(default)]
    mount: Vec<String>,
    /// What becomes of the volumes that the image names
    #[arg(long, value_enum, default_value_t = ImageVolumes::Anonymous, value_name = "WHAT")]
    #[serde(default)]
    image_volume: ImageVolumes,
    /// What clients of the API say, or what all of these were settled to be.
    #[arg(skip)]
    #[serde(default)]
    pub(super) mounts: Vec<Mount>,
    /// Volumes have been made.
    #[arg(skip)]
    #[serde(default)]
    settled: bool,
}

/// What becomes of the volumes that an image names.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize,
)]
enum ImageVolumes {
    /// Each workload in the background gets new ones, without names
    #[default]
    Anonymous,
    /// Nothing: a machine without volumes can be saved and forked
    Ignore,
}

/// How long what the command writes is to stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Longer than the workload.
    Workload,
    /// Until the workload is removed.
    Removed,
    /// Until the command ends: then a volume without a name is removed, and one that only the image names is not needed, for the
    /// root can be written and goes too.
    Command,
    /// The same, where the root cannot be written.
    CommandOnReadOnlyRoot,
}

/// What a command sees, ready to be mounted.
#[derive(Clone, Debug)]
pub struct Volume {
    /// What is mounted.
    pub source: Source,
    /// Where the command sees it.
    pub target: String,
    /// Whether the command cannot change it.
    pub read_only: bool,
    /// What becomes of mounts below it.
    pub propagation: Propagation,
}

/// What is mounted.
#[derive(Clone, Debug)]
pub enum Source {
    /// A folder or file of this host.
    Host(PathBuf),
    /// A tmpfs with these options.
    Memory(String),
    /// A folder or file in a volume, held open: others who have the volume may put something else there at any time.
    Inside(Arc<OwnedFd>),
}

impl Volume {
    /// The folder or file of this host, if it is one.
    pub fn folder(&self) -> Option<&Path> {
        match &self.source {
            Source::Host(path) => Some(path),
            Source::Memory(_) | Source::Inside(_) => None,
        }
    }
}

/// Opens what is at a path in a volume. No link on the way may lead out of it.
fn open_inside(data: &Path, path: &str) -> Outcome<OwnedFd> {
    let act = || format!("cannot access path {}", data.join(path).display());
    let (held, folder) = (OFlags::PATH | OFlags::CLOEXEC, OFlags::DIRECTORY);
    let volume = rustix::fs::open(data, held | folder, Mode::empty()).map_err(std::io::Error::from);
    let inside = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let found = rustix::fs::openat2(volume.while_trying(act)?, path, held, Mode::empty(), inside);
    found.map_err(std::io::Error::from).while_trying(act)
}

/// What [`Flags::settle`] comes to.
#[derive(Debug)]
pub struct Settled {
    /// For the workload's description.
    pub mounts: Vec<Mount>,
    /// What is mounted, those whose place may lie in another's after that.
    pub volumes: Vec<Volume>,
    /// As long as these live nobody removes the volumes.
    pub held: Vec<Held>,
}

impl From<workload::Error> for Failure {
    fn from(error: workload::Error) -> Failure {
        Failure::because("use a volume", error)
    }
}

impl Flags {
    /// What all flags say, whatever the working folder of the process that reads them later. Those whose place may lie in
    /// another's come after that; two in one place are an error.
    fn said(&self) -> Outcome<Vec<Mount>> {
        let bad = |flag: &str, text: String| Failure::new(format!("{flag}: {text}")).exit(Exit::Usage);
        let mut all = self.mounts.clone();
        for text in &self.volume {
            all.push(mount_flags::volume(text).map_err(|text| bad("--volume", text))?);
        }
        for text in &self.mount {
            all.push(mount_flags::mount(text).map_err(|text| bad("--mount", text))?);
        }
        for mount in &mut all {
            mount.target = mount_flags::place(&mount.target).map_err(|text| bad("--volume", text))?;
            if let MountSource::Bind { source, .. } = &mut mount.source {
                let found = std::fs::canonicalize(&*source);
                let found = found.while_trying(|| format!("show the command {source}"))?;
                *source = found.to_string_lossy().into_owned();
            }
        }
        sort(&mut all);
        if let Some(pair) = all.windows(2).find(|pair| pair[0].target == pair[1].target) {
            return Err(bad("--volume", format!("two are to be at {}", pair[0].target)));
        }
        Ok(all)
    }

    /// Makes the volumes, unless that was done before, and holds all.
    ///
    /// # Errors
    /// A flag is not as it should be, what it names is not there, or the store cannot be written.
    pub fn settle(&self, store: &Store, image: &Image, keep: Keep) -> Outcome<Settled> {
        let mut mounts = self.said()?;
        let wants_images = keep != Keep::Command && self.image_volume == ImageVolumes::Anonymous;
        if wants_images && !self.settled {
            add_images(&mut mounts, &image.config().volumes);
        }
        let mut settled = Settled { mounts: Vec::new(), volumes: Vec::new(), held: Vec::new() };
        if mounts.is_empty() {
            return Ok(settled);
        }
        let files = ImageFiles::new(store, image);
        let volumes = Volumes::open(store.root())?;
        // What was to go and had nobody to remove it.
        volumes.clean()?;
        for mut mount in mounts {
            let mut propagation = Propagation::default();
            let source = match &mut mount.source {
                MountSource::Bind { source, propagation: wanted } => {
                    propagation = *wanted;
                    Source::Host(PathBuf::from(&*source))
                }
                MountSource::Tmpfs { options } => Source::Memory(options.clone()),
                MountSource::Volume { name, copy, labels, options, subpath } => {
                    let mut fill = |folder: &Path| files.copy(&mount.target, folder);
                    let new = NewVolume {
                        temporary: name.is_empty() && keep != Keep::Workload,
                        name: Some(name.clone()).filter(|name| !name.is_empty()),
                        labels: labels.clone(),
                        options: options.clone(),
                    };
                    let wants_copy = *copy && !self.settled && subpath.is_empty();
                    let held = volumes.hold_new(new, wants_copy.then_some(&mut fill))?;
                    name.clone_from(&held.volume().info().name);
                    let data = held.volume().data();
                    settled.held.push(held);
                    if subpath.is_empty() {
                        Source::Host(data)
                    } else {
                        let inside = Arc::new(open_inside(&data, subpath)?);
                        Source::Inside(inside)
                    }
                }
            };
            let (target, read_only) = (mount.target.clone(), mount.read_only);
            settled.volumes.push(Volume { source, target, read_only, propagation });
            settled.mounts.push(mount);
        }
        Ok(settled)
    }
}

impl super::Options {
    /// What a workload that was made with these options sees.
    ///
    /// # Errors
    /// Its image or a volume is gone.
    pub fn settle_files(&self, store: &Store) -> Outcome<Settled> {
        self.files.settle(store, &super::find(store, self)?, Keep::Workload)
    }
}

impl Settled {
    /// Whether a machine can have them.
    ///
    /// # Errors
    /// It is not to see all of a volume, for who serves its folders opens them by their paths; or mounts are to be seen on both
    /// sides, and its kernel has its own.
    pub fn check_machine(&self) -> Outcome<()> {
        let refuse = |volume: &Volume, why: &str| {
            Err(Failure::new(format!("--mount {}: {why}", volume.target)).exit(Exit::Usage))
        };
        for volume in &self.volumes {
            if matches!(volume.source, Source::Inside(_)) {
                return refuse(volume, "a microVM sees all of a volume, volume-subpath is of containers");
            }
            if !volume.propagation.is_private() {
                return refuse(volume, "a microVM has mounts of its own, bind-propagation is of containers");
            }
        }
        Ok(())
    }

    /// The flags that come to the same, for the process that runs the workload.
    pub fn flags(&self) -> Flags {
        Flags { mounts: self.mounts.clone(), settled: true, ..Flags::default() }
    }
}

fn sort(mounts: &mut [Mount]) {
    mounts.sort_by_key(|mount| (Path::new(&mount.target).components().count(), mount.target.clone()));
}

/// Adds the volumes that the image names, but where something else will be.
fn add_images(mounts: &mut Vec<Mount>, places: &[String]) {
    for place in places {
        // An image may say anything; what is no place in it is not one to mount at.
        let Ok(target) = mount_flags::place(place) else { continue };
        if mounts.iter().all(|mount| mount.target != target) {
            mounts.push(Mount { source: MountSource::volume("", true), target, read_only: false });
        }
    }
    sort(mounts);
}

/// What a container's bundle has of them. Links of the host are resolved: what is mounted is what was checked.
pub fn mounts(volumes: &[Volume]) -> Vec<container::spec::Mount> {
    let mount = |volume: &Volume| {
        let bind = |from: &str| {
            let (access, propagation) =
                (if volume.read_only { "rro" } else { "rw" }, volume.propagation.word());
            let options = format!("rbind,{propagation},nosuid,nodev,{access}");
            container::template::mount(&volume.target, "bind", from, &options)
        };
        match &volume.source {
            Source::Host(path) => bind(&path.to_string_lossy()),
            // What `held` gives is mounted instead.
            Source::Inside(held) => bind(&format!("descriptor {}", held.as_raw_fd())),
            Source::Memory(options) => {
                let access = if volume.read_only { "ro" } else { "rw" };
                let options = format!("nosuid,nodev,noexec,{access},{options}");
                container::template::mount(&volume.target, "tmpfs", "tmpfs", &options)
            }
        }
    };
    volumes.iter().map(mount).collect()
}

/// Those that no path leads to, or from whose mounts the container is not cut off, by their places: as mounts that are attached
/// nowhere.
///
/// # Errors
/// This process may not mount, or the host does not share the mount.
pub fn held(volumes: &[Volume]) -> Outcome<Vec<(String, Arc<OwnedFd>)>> {
    let mut all = Vec::new();
    for volume in volumes {
        let opened = match &volume.source {
            Source::Host(path) if !volume.propagation.is_private() => open_shared(path, volume.propagation)?,
            Source::Inside(held) => held.clone(),
            Source::Host(_) | Source::Memory(_) => continue,
        };
        let made = container::rest::copy(opened.as_fd()).map_err(super::container::explain)?;
        all.push((volume.target.clone(), Arc::new(made)));
    }
    Ok(all)
}

/// Opens what is at `path`, whose mount the host shares as `wanted`.
fn open_shared(path: &Path, wanted: Propagation) -> Outcome<Arc<OwnedFd>> {
    let act = || format!("show the command {} with its mounts", path.display());
    let opened = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    let opened = opened.map_err(std::io::Error::from).while_trying(act)?;
    let found = rustix::fs::statx(&opened, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID);
    let id = found.map_err(std::io::Error::from).while_trying(act)?.stx_mnt_id;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").while_trying(act)?;
    if !is_shared(&mounts, id, wanted) {
        let kind = if wanted.is_shared() { "a shared" } else { "a shared or slave" };
        let text = format!("{}: path {} is not on {kind} mount", act(), path.display());
        let hint =
            format!("findmnt -o TARGET,PROPAGATION -T {}; mount --make-rshared makes it one", path.display());
        return Err(Failure::new(text).exit(Exit::Usage).hint(hint));
    }
    Ok(Arc::new(opened))
}

/// Whether the mount with this number, of those that proc(5) lists as `mounts`, is shared as `wanted`.
fn is_shared(mounts: &str, id: u64, wanted: Propagation) -> bool {
    let line = mounts.lines().find(|line| line.split(' ').next() == Some(&*id.to_string()));
    // Behind the sixth field are optional ones, up to a lone hyphen.
    let optional = line.into_iter().flat_map(|line| line.split(' ').skip(6).take_while(|word| *word != "-"));
    optional
        .into_iter()
        .any(|word| word.starts_with("shared:") || (!wanted.is_shared() && word.starts_with("master:")))
}

/// What the agent is told of them.
pub fn of_guest(volumes: &[Volume]) -> Vec<protocol::Volume> {
    let told = |volume: &Volume| protocol::Volume {
        target: volume.target.clone(),
        read_only: volume.read_only,
        memory: match &volume.source {
            Source::Host(_) | Source::Inside(_) => None,
            Source::Memory(options) => Some(options.clone()),
        },
    };
    volumes.iter().map(told).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_shared_as_the_kernel_says() {
        let mounts = "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
                      30 22 0:26 / /a rw master:7 - tmpfs tmpfs rw\n31 22 0:27 / /b rw - tmpfs shared:9 rw\n";
        let is = |id, word| is_shared(mounts, id, Propagation::parse(word).unwrap());
        assert!(is(22, "rshared") && is(22, "slave"));
        assert!(!is(30, "shared") && is(30, "rslave"));
        assert!(!is(31, "rslave") && !is(3, "rslave"));
    }
}
