//! The collector: removes blobs and root file systems that no name leads to, nobody keeps and nobody uses.

use std::collections::HashSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use oci_spec::image::{ImageIndex, ImageManifest};

use super::Store;
use super::incoming::PARTIAL_AGE;
use super::index::{MAX_DOCUMENT_BYTES, digest_of};
use crate::digest::Digest;
use crate::document;
use crate::error::{Error, Result};
use crate::files;
use crate::image::Image;
use crate::reference::Reference;
use crate::root::ROOT_SUFFIX;

/// What the collector did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// Files removed.
    pub files: u64,
    /// Bytes they took.
    pub bytes: u64,
    /// Files that stay because somebody uses them; the next collection looks again.
    pub in_use: u64,
}

/// What was removed on request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Names of images that are gone.
    pub names: Vec<Reference>,
    /// The files that went.
    pub collected: Collected,
}

impl Store {
    /// Removes what no name leads to and nobody uses, and what arrived of images that were never finished; with `unused`
    /// images too that nobody keeps or uses just now.
    ///
    /// # Errors
    /// Images are being added just now, or the store cannot be read.
    pub fn prune(&self, unused: bool) -> Result<Pruned> {
        let names = if unused { self.forget_unused(&|_| true)? } else { Vec::new() };
        self.prune_rest(names, unused)
    }

    /// Removes images that nobody keeps or uses just now and that fit, and what no name leads to then. What builds remember stays.
    ///
    /// # Errors
    /// As [`Store::prune`].
    pub fn prune_some(&self, fits: &dyn Fn(&Image) -> bool) -> Result<Pruned> {
        // A broken one has nothing that could fit.
        let fits = |name: &Reference| self.image(name).is_ok_and(|image| fits(&image));
        let names = self.forget_unused(&fits)?;
        self.prune_rest(names, false)
    }

    /// Removes what only builds remember, and what no name leads to then.
    ///
    /// # Errors
    /// As [`Store::prune`].
    pub fn prune_builds(&self) -> Result<Pruned> {
        self.prune_rest(Vec::new(), true)
    }

    fn forget_unused(&self, fits: &dyn Fn(&Reference) -> bool) -> Result<Vec<Reference>> {
        let mut names = Vec::new();
        for (name, digest, _) in self.names()? {
            if !fits(&name) {
                continue;
            }
            // Held by whoever uses it, until then by us: whoever comes now waits, and finds that it is gone.
            let path = self.blob_path(&digest);
            let held = path.exists().then(|| lock_unused(&path));
            // In this order: who begins to keep it holds it until that is known.
            if !matches!(held, Some(None)) && !self.kept()?.contains(&digest) {
                self.forget(&name)?;
                names.push(name);
            }
        }
        Ok(names)
    }

    fn prune_rest(&self, names: Vec<Reference>, forget: bool) -> Result<Pruned> {
        let collected = self.collect_all(Duration::ZERO, forget)?;
        let busy = || Error::InUse { what: "the store: images are being added to it".to_string() };
        Ok(Pruned { names, collected: collected.ok_or_else(busy)? })
    }

    /// Removes what no name leads to. Does nothing when images are being added just now; the next `remove` or `collect` does
    /// it then.
    ///
    /// # Errors
    /// The store cannot be read. Files that cannot be removed are left.
    pub fn collect(&self) -> Result<Collected> {
        Ok(self.collect_all(PARTIAL_AGE, false)?.unwrap_or_default())
    }

    /// As `collect`; partial blobs go when nobody touched them for `age`, with `forget` what builds remember too. Nothing when
    /// images are being added.
    fn collect_all(&self, age: Duration, forget: bool) -> Result<Option<Collected>> {
        let Some(_gc) = files::try_lock(&self.lock_path("gc"))? else { return Ok(None) };
        let mut done = Collected::default();
        let mut live = HashSet::new();
        for descriptor in self.index()?.manifests() {
            self.mark(&digest_of(descriptor)?, &mut live, 0);
        }
        for digest in self.remembered_steps(forget)?.into_iter().chain(self.kept()?) {
            self.mark(&digest, &mut live, 0);
        }
        self.sweep_roots(&live, &mut done)?;
        self.sweep_blobs(live, &mut done)?;
        self.sweep_partial(age, &mut done)?;
        Ok(Some(done))
    }

    /// Marks a manifest or index and what it points to. What cannot be read points to nothing: it is broken anyway.
    fn mark(&self, digest: &Digest, live: &mut HashSet<Digest>, depth: u32) {
        if !live.insert(*digest) || depth > 4 {
            return;
        }
        let Ok(bytes) = self.read_blob(digest, None, MAX_DOCUMENT_BYTES) else { return };
        if let Ok(manifest) = document::parse::<ImageManifest>(&bytes) {
            let parts = manifest.layers().iter().chain([manifest.config()]);
            live.extend(parts.filter_map(|part| digest_of(part).ok()));
        } else if let Ok(index) = document::parse::<ImageIndex>(&bytes) {
            for child in index.manifests().iter().filter_map(|child| digest_of(child).ok()) {
                self.mark(&child, live, depth + 1);
            }
        }
    }

    fn sweep_roots(&self, live: &HashSet<Digest>, done: &mut Collected) -> Result<()> {
        for (path, name) in list(&self.root.join("roots"))? {
            let digest = name.strip_suffix(ROOT_SUFFIX).and_then(Digest::from_hex);
            // Files of another format version have no digest here and go.
            if !digest.is_some_and(|digest| live.contains(&digest)) {
                match lock_unused(&path) {
                    Some(lock) => remove(&path, lock, done),
                    None => done.in_use += 1,
                }
            }
        }
        Ok(())
    }

    /// Removes what arrived of blobs and was not touched for `age`.
    fn sweep_partial(&self, age: Duration, done: &mut Collected) -> Result<()> {
        for (path, _) in list(&self.root.join("partial"))? {
            let touched = fs::symlink_metadata(&path).and_then(|meta| meta.modified());
            // A clock that was set back makes nothing old.
            if touched.is_ok_and(|time| time.elapsed().is_ok_and(|elapsed| elapsed >= age)) {
                match lock_unused(&path) {
                    Some(lock) => remove(&path, lock, done),
                    None => done.in_use += 1,
                }
            }
        }
        Ok(())
    }

    fn sweep_blobs(&self, mut live: HashSet<Digest>, done: &mut Collected) -> Result<()> {
        let mut dead = Vec::new();
        for (path, name) in list(&self.root.join("blobs/sha256"))? {
            let digest = Digest::from_hex(&name);
            if digest.is_some_and(|digest| live.contains(&digest)) {
                continue;
            }
            match (lock_unused(&path), digest) {
                (Some(lock), _) => dead.push((path, digest, lock)),
                // A manifest whose image somebody holds: all of it stays.
                (None, Some(digest)) => {
                    done.in_use += 1;
                    self.mark(&digest, &mut live, 0);
                }
                (None, None) => done.in_use += 1,
            }
        }
        // Who began to keep an image since then has let go of it before it was locked here, or waits for it in vain.
        for digest in self.kept()? {
            self.mark(&digest, &mut live, 0);
        }
        for (path, digest, lock) in dead {
            if !digest.is_some_and(|digest| live.contains(&digest)) {
                remove(&path, lock, done);
            }
        }
        Ok(())
    }
}

/// Locks a file that nobody uses.
pub(super) fn lock_unused(path: &Path) -> Option<File> {
    let file = File::open(path).ok()?;
    file.try_lock().ok()?;
    Some(file)
}

fn remove(path: &Path, lock: File, done: &mut Collected) {
    let bytes = lock.metadata().map_or(0, |meta| std::os::unix::fs::MetadataExt::blocks(&meta) * 512);
    if fs::remove_file(path).is_ok() {
        done.files += 1;
        done.bytes += bytes;
    }
}

/// Paths and names in a folder of the store.
pub(super) fn list(dir: &Path) -> Result<Vec<(PathBuf, String)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(Error::file("list", dir))? {
        let entry = entry.map_err(Error::file("list", dir))?;
        found.push((entry.path(), entry.file_name().to_string_lossy().into_owned()));
    }
    Ok(found)
}
