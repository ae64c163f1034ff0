//! Control groups, on hosts with v2, with v1, and with both: every hierarchy that is mounted gets a folder for the
//! container, and each limit is written where its controller is.
//!
//! A process is put into v1 groups by itself, through files opened before it was made: the kernel moves a thread that
//! moves itself without the grace period that moving another costs (14 ms here). On v2 it is born there.

mod devices;
mod host;
mod limits;
mod usage;
mod v1;
mod v2;

pub use host::HostGroups;
pub use usage::Usage;

use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, While};
use crate::spec::Resources;
use crate::sys;

/// How long removal waits for the last process to be gone.
const REMOVAL_TRIES: u32 = 400;

/// A hierarchy of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Hierarchy {
    /// Where it is mounted.
    mount: PathBuf,
    /// Its controllers, or `name=systemd`; none for v2.
    controllers: Vec<String>,
    is_v2: bool,
    /// Where this process is in it.
    own: String,
}

/// The groups of one container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cgroups {
    groups: Vec<Group>,
}

/// A folder in one hierarchy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Group {
    mount: PathBuf,
    path: PathBuf,
    controllers: Vec<String>,
    is_v2: bool,
}

/// How a process gets into its groups.
#[derive(Debug, Default)]
pub struct Entry {
    /// Files of v1 groups that move whoever writes to them.
    tasks: Vec<OwnedFd>,
    /// The folder of the v2 group.
    pub v2: Option<OwnedFd>,
}

impl Entry {
    /// Moves this process into the v1 groups.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn enter(&self) -> Result<()> {
        for file in &self.tasks {
            rustix::io::write(file, b"0").during(|| "enter the control group".to_owned())?;
        }
        Ok(())
    }
}

/// Reads a file of the kernel's. It has no size that it says, and is read at once.
fn read(path: &Path) -> Result<String> {
    const USUAL_BYTES: usize = 8 << 10;
    let mut text = String::with_capacity(USUAL_BYTES);
    let file = std::fs::File::open(path);
    let read = file.and_then(|mut file| file.read_to_string(&mut text));
    read.during(|| format!("read {}", path.display())).map(|_| text)
}

fn write(path: &Path, value: &str) -> Result<()> {
    use std::io::Write;
    let written = std::fs::OpenOptions::new().write(true).open(path);
    written
        .and_then(|mut file| file.write_all(value.as_bytes()))
        .during(|| format!("write {:?} to {}", value.trim(), path.display()))
}

/// Hierarchies from `/proc/self/mountinfo` and `/proc/self/cgroup`.
fn hierarchies(mountinfo: &str, own: &str) -> Vec<Hierarchy> {
    let own_path = |wanted: &dyn Fn(&str) -> bool| {
        let mut lines = own.lines().filter_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
            wanted(controllers).then(|| path.to_owned())
        });
        lines.next().unwrap_or_else(|| "/".to_owned())
    };
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let (left, right): (Vec<&str>, Vec<&str>) = (left.split(' ').collect(), right.split(' ').collect());
        let (Some(root), Some(mount), Some(kind)) = (left.get(3), left.get(4), right.first()) else {
            continue;
        };
        let options = right.get(2).copied().unwrap_or_default();
        let hierarchy = match *kind {
            "cgroup2" => Hierarchy {
                mount: mount.into(),
                controllers: Vec::new(),
                is_v2: true,
                own: own_path(&|controllers| controllers.is_empty()),
            },
            "cgroup" => {
                let known =
                    |option: &&str| !matches!(*option, "rw" | "ro" | "xattr" | "noprefix" | "clone_children");
                let controllers: Vec<String> = options
                    .split(',')
                    .filter(known)
                    .filter(|o| !o.starts_with("release_agent"))
                    .map(str::to_owned)
                    .collect();
                let first = controllers.first().cloned().unwrap_or_default();
                let is_it = move |names: &str| names.split(',').any(|name| name == first);
                Hierarchy { mount: mount.into(), controllers, is_v2: false, own: own_path(&is_it) }
            }
            _ => continue,
        };
        // A container's own view is bound from below the root; it is no place to make groups by absolute paths.
        let own = hierarchy.own.strip_prefix(*root).unwrap_or(&hierarchy.own).to_owned();
        if !found.iter().any(|h| h.is_v2 == hierarchy.is_v2 && h.controllers == hierarchy.controllers) {
            found.push(Hierarchy { own, ..hierarchy });
        }
    }
    found
}

/// The group's path in each hierarchy; `systemd` says that `path` is `slice:prefix:name`.
fn place(path: Option<&str>, id: &str, systemd: bool) -> Result<PathBuf> {
    let path = match path.filter(|path| !path.is_empty()) {
        None => return Ok(PathBuf::from(id)),
        Some(path) if systemd && path.matches(':').count() == 2 => from_systemd(path),
        Some(path) => path.to_owned(),
    };
    let is_plain = Path::new(&path)
        .components()
        .all(|c| matches!(c, std::path::Component::RootDir | std::path::Component::Normal(_)));
    if !is_plain || path.contains('\0') || path.trim_matches('/').is_empty() {
        return Err(Error::refused(format!("cgroup path {path:?}"), "it has a name, and does not go up"));
    }
    Ok(PathBuf::from(path))
}

/// Whether a path and rules for devices make sense; other limits are the kernel's to judge.
///
/// # Errors
/// One does not.
pub fn check(path: Option<&str>, resources: &Resources) -> Result<()> {
    place(path, "id", path.is_some_and(|path| path.matches(':').count() == 2))?;
    devices::check_rules(&resources.devices)
}

/// `a-b.slice:prefix:name` as the folders systemd would make; the folders are made here, without systemd.
fn from_systemd(path: &str) -> String {
    let mut parts = path.split(':');
    let (slice, prefix, name) = (parts.next(), parts.next(), parts.next());
    let (slice, name) = (slice.unwrap_or_default(), name.unwrap_or_default());
    let mut folders = String::from("/");
    let stem = slice.strip_suffix(".slice").unwrap_or(slice);
    for (at, _) in stem.match_indices('-').chain([(stem.len(), "")]) {
        if at > 0 {
            folders.push_str(&format!("{}.slice/", &stem[..at]));
        }
    }
    match prefix.unwrap_or_default() {
        "" => folders + name,
        prefix if name.ends_with(".slice") || name.ends_with(".scope") => format!("{folders}{prefix}-{name}"),
        prefix => format!("{folders}{prefix}-{name}.scope"),
    }
}

impl Cgroups {
    /// Makes the groups of a container. A hierarchy that cannot be written is left out, with a warning, unless a
    /// limit needs it.
    ///
    /// # Errors
    /// A path that goes up, or no group where limits ask for one.
    pub fn create(path: Option<&str>, id: &str, systemd: bool, resources: &Resources) -> Result<Self> {
        let place = place(path, id, systemd)?;
        let (mountinfo, own) = (read("/proc/self/mountinfo".as_ref())?, read("/proc/self/cgroup".as_ref())?);
        let mut cgroups = Self::default();
        let mut refused = None;
        for hierarchy in hierarchies(&mountinfo, &own) {
            match make(&hierarchy, &place) {
                Ok(group) => cgroups.groups.push(group),
                Err(error) => {
                    tracing::debug!("no control group in {}: {}", hierarchy.mount.display(), error.chain());
                    refused = Some(error);
                }
            }
        }
        cgroups.require_empty()?;
        if let (Some(error), true) = (refused, cgroups.groups.is_empty() && limits::any(resources)) {
            return Err(Error::host("limits need a control group", error.chain()));
        }
        if let Err(error) = cgroups.limit(resources, limits::When::Creating) {
            // What was made for a container that will not be is not left behind.
            let _ = cgroups.remove();
            return Err(error);
        }
        Ok(cgroups)
    }

    /// Refuses groups that processes are in already: limits would be theirs too, and deletion would end them.
    fn require_empty(&self) -> Result<()> {
        for group in &self.groups {
            if !read(&group.path.join("cgroup.procs"))?.is_empty() {
                let what = format!("control group {}", group.path.display());
                return Err(Error::refused(what, "there are processes in it already: another container's?"));
            }
        }
        Ok(())
    }

    /// Sets limits.
    ///
    /// # Errors
    /// The kernel refuses one, or no hierarchy has its controller.
    fn limit(&self, resources: &Resources, when: limits::When) -> Result<()> {
        limits::apply(self, resources, when)
    }

    /// Changes limits of a container that exists; the device filter stays.
    ///
    /// # Errors
    /// The kernel refuses one, or no hierarchy has its controller.
    pub fn update(&self, resources: &Resources) -> Result<()> {
        self.limit(resources, limits::When::Updating)
    }

    /// Opens what a process needs to get in.
    ///
    /// # Errors
    /// A group is gone.
    pub fn entry(&self) -> Result<Entry> {
        let mut entry = Entry::default();
        for group in &self.groups {
            let act = || format!("open control group {}", group.path.display());
            if group.is_v2 {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                entry.v2 = Some(rustix::fs::open(&group.path, flags, Mode::empty()).during(act)?);
            } else {
                let flags = OFlags::WRONLY | OFlags::CLOEXEC;
                let tasks = group.path.join("tasks");
                entry.tasks.push(rustix::fs::open(tasks, flags, Mode::empty()).during(act)?);
            }
        }
        Ok(entry)
    }

    fn with(&self, controller: &str) -> Option<&Group> {
        self.groups.iter().find(|group| !group.is_v2 && group.controllers.iter().any(|c| c == controller))
    }

    fn unified(&self) -> Option<&Group> {
        self.groups.iter().find(|group| group.is_v2)
    }

    /// Folders by the name they have below `/sys/fs/cgroup` of the container; the empty name alone is v2 alone.
    #[must_use]
    pub fn folders(&self) -> Vec<(String, PathBuf)> {
        if let [only] = self.groups.as_slice()
            && only.is_v2
        {
            return vec![(String::new(), only.path.clone())];
        }
        let name = |group: &Group| group.mount.file_name().unwrap_or_default().to_string_lossy().into_owned();
        self.groups.iter().map(|group| (name(group), group.path.clone())).collect()
    }

    /// Ids of all processes inside, as the host sees them.
    ///
    /// # Errors
    /// No group is left.
    pub fn processes(&self) -> Result<Vec<i32>> {
        let group = self.with("pids").or_else(|| self.with("freezer")).or_else(|| self.unified());
        let Some(group) = group.or(self.groups.first()) else { return Ok(Vec::new()) };
        let mut pids = Vec::new();
        collect(&group.path, &mut pids)?;
        Ok(pids)
    }

    /// Sends a signal to all processes inside.
    ///
    /// # Errors
    /// The groups cannot be read.
    pub fn signal(&self, signal: i32) -> Result<()> {
        let v2 = self.unified().map(|group| group.path.join("cgroup.kill"));
        if signal == libc::SIGKILL && v2.is_some_and(|file| write(&file, "1").is_ok()) {
            return Ok(());
        }
        for pid in self.processes()? {
            let Some(pid) = rustix::process::Pid::from_raw(pid) else { continue };
            // It may be gone by now, which is as good.
            if let Ok(pidfd) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) {
                use std::os::fd::AsFd;
                let _ = sys::signal_process(pidfd.as_fd(), signal);
            }
        }
        Ok(())
    }

    /// Freezes or thaws all processes inside.
    ///
    /// # Errors
    /// There is no freezer, or it does not come to rest.
    pub fn freeze(&self, frozen: bool) -> Result<()> {
        if let Some(group) = self.with("freezer") {
            return v1::freeze(&group.path, frozen);
        }
        match self.unified() {
            Some(group) => v2::freeze(&group.path, frozen),
            None => Err(Error::host("pause", "this host has no freezer for control groups")),
        }
    }

    /// Whether they are frozen.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        if let Some(group) = self.with("freezer") {
            return std::fs::read_to_string(group.path.join("freezer.state"))
                .is_ok_and(|state| state.trim() != "THAWED");
        }
        self.unified().is_some_and(|group| {
            std::fs::read_to_string(group.path.join("cgroup.freeze")).is_ok_and(|state| state.trim() == "1")
        })
    }

    /// Removes the groups and those below them. Whatever still runs inside is killed.
    ///
    /// # Errors
    /// Something inside does not end.
    pub fn remove(&self) -> Result<()> {
        for group in &self.groups {
            let mut tries = 0;
            loop {
                match remove_tree(&group.path) {
                    Ok(()) => break,
                    Err(error) if error.raw_os_error() == Some(libc::EBUSY) && tries < REMOVAL_TRIES => {
                        if tries == 0 {
                            let _ = self.freeze(false);
                            self.signal(libc::SIGKILL)?;
                        }
                        tries += 1;
                        std::thread::sleep(Duration::from_millis(if tries < 20 { 1 } else { 10 }));
                    }
                    Err(error) => {
                        return Err(error)
                            .during(|| format!("remove control group {}", group.path.display()));
                    }
                }
            }
        }
        Ok(())
    }
}

fn collect(folder: &Path, pids: &mut Vec<i32>) -> Result<()> {
    let text = match std::fs::read_to_string(folder.join("cgroup.procs")) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        text => text.during(|| format!("read {}", folder.display()))?,
    };
    pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
    for entry in std::fs::read_dir(folder).during(|| format!("read {}", folder.display()))?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(&entry.path(), pids)?;
        }
    }
    Ok(())
}

/// Removes a group; first those below, if it has any.
fn remove_tree(folder: &Path) -> std::io::Result<()> {
    let gone = |error: &std::io::Error| error.kind() == std::io::ErrorKind::NotFound;
    match std::fs::remove_dir(folder) {
        Err(error) if gone(&error) => return Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
        result => return result,
    }
    for entry in std::fs::read_dir(folder)?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    match std::fs::remove_dir(folder) {
        Err(error) if gone(&error) => Ok(()),
        result => result,
    }
}

/// Where groups go whose paths are relative. A group of v2 that has processes hands no controller on to groups below it, and
/// this very process is in its own: so they go beside that one, where this user may make any.
fn base(hierarchy: &Hierarchy) -> PathBuf {
    let own = hierarchy.mount.join(hierarchy.own.trim_start_matches('/'));
    match own.parent() {
        Some(above) if hierarchy.is_v2 && own != hierarchy.mount => {
            let access = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
            if rustix::fs::access(above, access).is_ok() { above.to_owned() } else { own }
        }
        _ => own,
    }
}

/// Makes the container's folder in one hierarchy, with those above it.
fn make(hierarchy: &Hierarchy, place: &Path) -> Result<Group> {
    let below = match place.strip_prefix("/") {
        Ok(absolute) => absolute.to_owned(),
        // A relative path is below where the runtime itself is, or beside it.
        Err(_) => base(hierarchy).strip_prefix(&hierarchy.mount).unwrap_or(Path::new("")).join(place),
    };
    let mut path = hierarchy.mount.clone();
    for part in below.iter() {
        let above = path.clone();
        path.push(part);
        if hierarchy.is_v2 {
            v2::enable_controllers(&above);
        }
        match std::fs::create_dir(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            result => {
                result.during(|| format!("make control group {}", path.display()))?;
                if hierarchy.controllers.iter().any(|c| c == "cpuset") {
                    v1::inherit_cpuset(&above, &path)?;
                }
            }
        }
    }
    let controllers = hierarchy.controllers.clone();
    Ok(Group { mount: hierarchy.mount.clone(), path, controllers, is_v2: hierarchy.is_v2 })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
25 24 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
26 25 0:23 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
27 25 0:24 / /sys/fs/cgroup/systemd rw,relatime shared:3 - cgroup cgroup rw,xattr,name=systemd
28 25 0:25 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    #[test]
    fn both_kinds_of_hierarchies_are_found() {
        let own = "9:name=systemd:/user\n4:cpu,cpuacct:/jobs/1\n0::/\n";
        let found = hierarchies(HYBRID, own);
        let short: Vec<(&str, bool, &str)> = found
            .iter()
            .map(|h| (h.controllers.first().map_or("", |c| c), h.is_v2, h.own.as_str()))
            .collect();
        assert_eq!(short, [("cpu", false, "jobs/1"), ("name=systemd", false, "user"), ("", true, "")]);
    }

    #[test]
    fn paths_of_groups_do_not_go_up() {
        assert_eq!(place(None, "a", false).unwrap(), Path::new("a"));
        assert_eq!(place(Some("/x/y"), "a", false).unwrap(), Path::new("/x/y"));
        for bad in ["../x", "/x/../../y", "/", "//"] {
            assert!(place(Some(bad), "a", false).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn names_for_systemd_become_its_folders() {
        let path = |text| place(Some(text), "a", true).unwrap();
        assert_eq!(path("user.slice:libpod:abc"), Path::new("/user.slice/libpod-abc.scope"));
        assert_eq!(path("a-b.slice:cri:x"), Path::new("/a.slice/a-b.slice/cri-x.scope"));
        assert!(place(Some("../..:a:b"), "a", true).is_err());
    }
}
