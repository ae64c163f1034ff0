//! Looks at everything in the store, and mends what can be mended.
//!
//! A file whose bytes are not those of its name is worth nothing: it goes. A name that leads to something missing goes too, so
//! that afterwards every name leads to a whole image; what is left of such an image stays until the next collection, for
//! whoever pulls or loads it again at once. An index that is no index is set aside, and images whose parts are all here get
//! names again.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use oci_spec::image::{ImageConfiguration, ImageManifest};
use serde::Serialize;

use super::gc::{list, lock_unused};
use super::index::name_of;
use super::{Adding, MAX_DOCUMENT_BYTES, Store, digest_of};
use crate::digest::{Digest, HashReader};
use crate::document;
use crate::error::{Error, Result};
use crate::files;
use crate::media;
use crate::progress::Progress;
use crate::reference::Reference;
use crate::root::{self, ROOT_SUFFIX};
use crate::seal;

/// One thing that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// What is wrong with what.
    pub what: String,
    /// What was done about it; nothing when nothing was, or could be.
    pub done: Option<String>,
    /// What the user can do.
    pub advice: Option<String>,
}

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Checked {
    /// Blobs that were read.
    pub blobs: usize,
    /// Bytes of them.
    pub bytes: u64,
    /// Names of images.
    pub images: usize,
    /// Kernels.
    pub kernels: usize,
    /// What is not as it should be.
    pub problems: Vec<Problem>,
}

impl Checked {
    /// True when nothing is wrong, or nothing any more.
    pub fn is_whole(&self) -> bool {
        self.problems.iter().all(|problem| problem.done.is_some())
    }

    fn found(&mut self, what: String, done: Option<String>, advice: Option<String>) {
        self.problems.push(Problem { what, done, advice });
    }
}

impl Store {
    /// Reads every blob, every name, every kernel and every root file system; with `repair`, mends what can be mended.
    ///
    /// # Errors
    /// The store cannot be read or written, or images are being added to it just now.
    pub fn check(&self, repair: bool, progress: &dyn Progress) -> Result<Checked> {
        let busy = || Error::InUse { what: "the store: images are being added to it".to_string() };
        // Nothing is added meanwhile, and nothing collected.
        let adding = Adding { _lock: files::try_lock(&self.lock_path("gc"))?.ok_or_else(busy)? };
        let (found, whole) = (Checked::default(), HashMap::new());
        let mut check = Check { store: self, adding, repair, found, whole, progress };
        check.blobs()?;
        check.index()?;
        check.names()?;
        check.roots()?;
        check.partial()?;
        check.kernels();
        Ok(check.found)
    }
}

struct Check<'a> {
    store: &'a Store,
    adding: Adding,
    repair: bool,
    found: Checked,
    /// Blobs that are what their names say, and their sizes.
    whole: HashMap<Digest, u64>,
    progress: &'a dyn Progress,
}

impl Check<'_> {
    /// Removes a file when things are to be mended. Gives what was done.
    fn remove(&self, path: &Path) -> Result<Option<String>> {
        if !self.repair {
            return Ok(None);
        }
        fs::remove_file(path).map_err(Error::file("remove", path))?;
        Ok(Some("removed".to_string()))
    }

    fn blobs(&mut self) -> Result<()> {
        let all = list(&self.store.root.join("blobs/sha256"))?;
        let total: u64 = all.iter().filter_map(|(path, _)| Some(fs::metadata(path).ok()?.len())).sum();
        self.progress.step("check blobs");
        for (path, name) in all {
            let wanted = Digest::from_hex(&name);
            let problem = match (&wanted, hash(&path)) {
                (None, _) => "a file that is no blob".to_string(),
                (Some(wanted), Ok((found, size))) if found == *wanted => {
                    self.whole.insert(*wanted, size);
                    self.found.blobs += 1;
                    self.found.bytes += size;
                    self.progress.bytes(self.found.bytes, Some(total));
                    continue;
                }
                (Some(_), Ok((found, _))) => format!("a corrupt blob: its bytes have the digest {found}"),
                // Not its fault, perhaps: a disk that cannot be read today.
                (Some(_), Err(error)) => {
                    let advice = "look after the disk".to_string();
                    self.found.found(format!("{}: {error}", path.display()), None, Some(advice));
                    continue;
                }
            };
            let done = self.remove(&path)?;
            self.found.found(format!("{}: {problem}", path.display()), done, None);
        }
        Ok(())
    }

    /// An index that does not parse is set aside; images that are whole get names that say what happened.
    fn index(&mut self) -> Result<()> {
        let error = match self.store.index() {
            Ok(_) => return Ok(()),
            Err(error @ Error::Json { .. }) => error,
            Err(error) => return Err(error),
        };
        let path = self.store.root.join("index.json");
        let aside = path.with_extension("json.broken");
        let what = format!(
            "{error}: {}",
            std::error::Error::source(&error).map_or_else(String::new, ToString::to_string)
        );
        if !self.repair {
            self.found.found(what, None, None);
            return Ok(());
        }
        fs::rename(&path, &aside).map_err(Error::file("set aside", &path))?;
        let mut names = Vec::new();
        for digest in self.images_without_a_name() {
            let name: Reference = format!("recovered/{}", &digest.hex()[..12]).parse()?;
            self.store.set_name(&self.adding, &name, &digest)?;
            names.push(name.to_string());
        }
        let named = if names.is_empty() {
            "no image is left".to_string()
        } else {
            format!("images are now {}", names.join(", "))
        };
        let advice = "give them their names with strata image tag".to_string();
        let done = format!("set aside as {}; {named}", aside.display());
        self.found.found(what, Some(done), Some(advice).filter(|_| !names.is_empty()));
        Ok(())
    }

    /// Manifests of images of which everything is here.
    fn images_without_a_name(&self) -> Vec<Digest> {
        let small = self.whole.iter().filter(|(_, size)| **size <= 4 << 20).map(|(digest, _)| *digest);
        let mut found: Vec<Digest> = small.filter(|digest| self.why_broken(digest).is_none()).collect();
        found.sort();
        found
    }

    /// What is missing of the image with this manifest.
    fn why_broken(&self, digest: &Digest) -> Option<String> {
        if !self.whole.contains_key(digest) {
            return Some(format!("its manifest {digest} is missing"));
        }
        let document = |digest: &Digest| self.store.read_blob(digest, None, MAX_DOCUMENT_BYTES).ok();
        let manifest = document(digest).and_then(|bytes| document::parse::<ImageManifest>(&bytes).ok());
        let Some(manifest) = manifest.filter(|m| media::is_config(m.config().media_type().as_ref())) else {
            return Some(format!("its manifest {digest} is none"));
        };
        for part in manifest.layers().iter().chain([manifest.config()]) {
            let found = digest_of(part).ok().and_then(|digest| self.whole.get(&digest));
            if found != Some(&part.size()) {
                return Some(format!("its part {} is missing", part.digest()));
            }
        }
        let config = digest_of(manifest.config()).ok().and_then(|digest| document(&digest));
        let config = config.and_then(|bytes| document::parse::<ImageConfiguration>(&bytes).ok());
        if config.is_none() { Some("its config is none".to_string()) } else { None }
    }

    fn names(&mut self) -> Result<()> {
        self.progress.step("check images");
        // After an index that was not mended there are none.
        let Ok(index) = self.store.index() else { return Ok(()) };
        for descriptor in index.manifests() {
            let Some(Ok(name)) = name_of(descriptor).map(|name| name.parse::<Reference>()) else { continue };
            self.found.images += 1;
            let reason = match digest_of(descriptor) {
                Ok(digest) => self.why_broken(&digest),
                Err(error) => Some(error.to_string()),
            };
            let Some(reason) = reason else { continue };
            let done = if self.repair {
                self.store.forget(&name)?;
                Some("its name was removed".to_string())
            } else {
                None
            };
            let advice = format!("strata pull {name}, or load or make it again");
            self.found.found(format!("image {name}: {reason}"), done, Some(advice));
        }
        Ok(())
    }

    /// Root file systems are made again when they are needed: one whose bytes changed, or of an image that is not here, goes.
    fn roots(&mut self) -> Result<()> {
        self.progress.step("check root file systems");
        for (path, name) in list(&self.store.root.join("roots"))? {
            let digest = name.strip_suffix(ROOT_SUFFIX).and_then(Digest::from_hex);
            let unbroken = File::open(&path).and_then(|file| {
                let size = file.metadata()?.len();
                Ok(root::is_whole(&file, size) && seal::is_unbroken(&file, size)?)
            });
            let reason = match (digest, unbroken) {
                (Some(digest), Ok(true)) if self.whole.contains_key(&digest) => continue,
                (Some(_), Ok(true)) => "the root file system of an image that is not here",
                (Some(_), Ok(false)) => "a root file system whose bytes are not those that were written",
                (None, _) => "a root file system of another version",
                (_, Err(error)) => {
                    let advice = "look after the disk".to_string();
                    self.found.found(format!("{}: {error}", path.display()), None, Some(advice));
                    continue;
                }
            };
            // Whoever runs on it goes on running; what is broken serves nobody else, though.
            if reason.ends_with("written") || lock_unused(&path).is_some() {
                let done = self.remove(&path)?;
                self.found.found(format!("{}: {reason}", path.display()), done, None);
            }
        }
        Ok(())
    }

    fn partial(&mut self) -> Result<()> {
        for (path, name) in list(&self.store.root.join("partial"))? {
            if Digest::from_hex(&name).is_none() {
                let done = self.remove(&path)?;
                self.found.found(format!("{}: a file that is no part of a blob", path.display()), done, None);
            }
        }
        Ok(())
    }

    fn kernels(&mut self) {
        self.progress.step("check kernels");
        let (checked, broken) = self.store.check_kernels();
        self.found.kernels = checked;
        for (id, error) in broken {
            let cause =
                std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
            let advice = format!("strata kernel rm {id}, then strata kernel fetch or add");
            self.found.found(format!("kernel {id}: {error}{cause}"), None, Some(advice));
        }
    }
}

fn hash(path: &PathBuf) -> std::io::Result<(Digest, u64)> {
    HashReader::new(File::open(path)?).finish()
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
