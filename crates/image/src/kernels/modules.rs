//! Which modules a machine's agent needs from a kernel, and in which order.
//!
//! Order: from `modules.dep` (modules.dep(5)) where depmod has been run, else from what each module says of itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use super::deb::Deb;
use super::modinfo::{self, normal};
use crate::compression;
use crate::error::{Error, Result};

/// Modules that a machine may need: its devices, its root, and file systems for its disks.
pub const WANTED: [&str; 20] = [
    "virtio",
    "virtio_ring",
    "virtio_mmio",
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
    "virtio_rng",
    "virtio_net",
    "vsock",
    "vmw_vsock_virtio_transport",
    "overlay",
    "squashfs",
    "erofs",
    "virtio_balloon",
    "virtio_mem",
    "ext4",
    "fuse",
    "virtiofs",
    "loop",
    "failover",
];

/// One module, decompressed.
const MAX_MODULE_BYTES: u64 = 64 << 20;
/// All modules of a bundle.
const MAX_TOTAL_BYTES: u64 = 512 << 20;
/// `modules.dep` and its like.
const MAX_LIST_BYTES: u64 = 32 << 20;
/// Files below a folder of modules.
const MAX_FILES: usize = 200_000;

/// Where modules are: packages or a folder.
pub(super) enum Source<'a> {
    Deb(&'a Deb),
    Folder(&'a Path),
}

impl Source<'_> {
    fn paths(&self) -> Result<Vec<String>> {
        match self {
            Source::Deb(deb) => Ok(deb.paths().map(str::to_string).collect()),
            Source::Folder(folder) => walk(folder),
        }
    }

    fn read(&self, path: &str, limit: u64) -> Result<Vec<u8>> {
        match self {
            Source::Deb(deb) => deb.read(path, limit),
            Source::Folder(folder) => {
                let path = folder.join(path);
                let file = fs::File::open(&path).map_err(Error::file("open", &path))?;
                compression::read_limited(file, limit).map_err(Error::file("read", &path))
            }
        }
    }
}

/// All files below a folder, as paths from it. Links to other places are not followed (`build`, `source`).
fn walk(folder: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let mut todo = vec![folder.to_path_buf()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).map_err(Error::file("list", &dir))? {
            let entry = entry.map_err(Error::file("list", &dir))?;
            let kind = entry.file_type().map_err(Error::file("stat", entry.path()))?;
            if kind.is_dir() {
                todo.push(entry.path());
            } else if kind.is_file()
                && let Ok(relative) = entry.path().strip_prefix(folder)
            {
                found.push(relative.to_string_lossy().into_owned());
            }
            if found.len() + todo.len() > MAX_FILES {
                return Err(Error::invalid(
                    folder.display().to_string(),
                    "too many files for a folder of modules",
                ));
            }
        }
    }
    Ok(found)
}

/// A module taken from its source.
pub(super) struct Taken {
    pub(super) name: String,
    pub(super) bytes: Vec<u8>,
    pub(super) depends: Vec<String>,
    pub(super) vermagic: Option<String>,
}

/// What was found of the wanted modules.
#[derive(Default)]
pub(super) struct Resolved {
    /// In the order to load them.
    pub(super) modules: Vec<Taken>,
    pub(super) built_in: BTreeSet<String>,
    pub(super) absent: BTreeSet<String>,
}

/// Takes the wanted modules and what they depend on.
pub(super) fn resolve(sources: &[Source<'_>], wanted: &[&str]) -> Result<Resolved> {
    let mut resolver = Resolver::new(sources)?;
    for name in wanted {
        resolver.visit(&normal(name), Need::Hard)?;
    }
    Ok(resolver.found)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    Hard,
    /// A module that others would like before them; its absence is not told.
    Soft,
}

struct Resolver<'a> {
    sources: &'a [Source<'a>],
    /// By name: which source, which path.
    files: BTreeMap<String, (usize, String)>,
    /// From `modules.dep`.
    listed: BTreeMap<String, Vec<String>>,
    builtin: BTreeSet<String>,
    seen: BTreeSet<String>,
    found: Resolved,
    bytes: u64,
}

impl<'a> Resolver<'a> {
    fn new(sources: &'a [Source<'a>]) -> Result<Self> {
        let mut new = Resolver {
            sources,
            files: BTreeMap::new(),
            listed: BTreeMap::new(),
            builtin: BTreeSet::new(),
            seen: BTreeSet::new(),
            found: Resolved::default(),
            bytes: 0,
        };
        for (number, source) in sources.iter().enumerate() {
            for path in source.paths()? {
                let file = path.rsplit('/').next().unwrap_or_default();
                match file {
                    "modules.builtin" => {
                        let text = source.read(&path, MAX_LIST_BYTES)?;
                        new.builtin.extend(String::from_utf8_lossy(&text).lines().filter_map(module_name));
                    }
                    "modules.dep" => new.add_listed(&source.read(&path, MAX_LIST_BYTES)?),
                    _ => {
                        if let Some(name) = module_name(&path) {
                            new.files.insert(name, (number, path));
                        }
                    }
                }
            }
        }
        Ok(new)
    }

    fn add_listed(&mut self, text: &[u8]) {
        for line in String::from_utf8_lossy(text).lines() {
            if let Some((module, depends)) = line.split_once(':')
                && let Some(name) = module_name(module)
            {
                // The nearest dependency comes first in the file.
                let depends = depends.split_whitespace().rev().filter_map(module_name).collect();
                self.listed.insert(name, depends);
            }
        }
    }

    /// Takes what `name` depends on, then `name`. The depth is bounded by `seen`.
    fn visit(&mut self, name: &str, need: Need) -> Result<()> {
        if !self.seen.insert(name.to_string()) {
            return Ok(());
        }
        if self.builtin.contains(name) {
            self.found.built_in.insert(name.to_string());
            return Ok(());
        }
        let Some((source, path)) = self.files.get(name).cloned() else {
            if need == Need::Hard {
                self.found.absent.insert(name.to_string());
            } else {
                self.seen.remove(name);
            }
            return Ok(());
        };
        let what = || format!("module {path}");
        let stored = self.sources[source].read(&path, MAX_MODULE_BYTES)?;
        let bytes = compression::decode(&stored[..])
            .and_then(|(_, decoded)| compression::read_limited(decoded, MAX_MODULE_BYTES))
            .map_err(Error::file("decompress", &path))?;
        self.bytes += bytes.len() as u64;
        if self.bytes > MAX_TOTAL_BYTES || self.seen.len() > 1000 {
            return Err(Error::invalid(what(), "the modules take too much"));
        }
        let info = modinfo::parse(&bytes).ok_or_else(|| Error::invalid(what(), "not a kernel module"))?;
        for soft in &info.soft {
            self.visit(soft_target(soft), Need::Soft)?;
        }
        let depends = self.listed.get(name).cloned().unwrap_or(info.depends);
        for dependency in &depends {
            self.visit(dependency, Need::Hard)?;
        }
        let before: BTreeSet<&String> = self.found.modules.iter().map(|module| &module.name).collect();
        let soft = info.soft.iter().map(|soft| soft_target(soft).to_string());
        let mut needs: Vec<String> = depends.into_iter().chain(soft).filter(|d| before.contains(d)).collect();
        needs.sort();
        needs.dedup();
        self.found.modules.push(Taken {
            name: name.to_string(),
            bytes,
            depends: needs,
            vermagic: info.vermagic,
        });
        Ok(())
    }
}

/// Soft dependencies name what a module offers, not always the module.
fn soft_target(alias: &str) -> &str {
    match alias {
        "crc32c" => "crc32c_generic",
        "crc32" => "crc32_generic",
        other => other,
    }
}

/// The name of the module in a file, e.g. `virtio_rng` for `kernel/drivers/virtio-rng.ko.xz`.
fn module_name(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?;
    let stem = [".ko", ".ko.xz", ".ko.zst", ".ko.gz"].iter().find_map(|suffix| file.strip_suffix(suffix))?;
    (!stem.is_empty()).then(|| normal(stem))
}
