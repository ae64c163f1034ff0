//! Bundles in the store: list, open, default, remove.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::compression::read_limited;
use crate::digest::{Digest, HashReader};
use crate::error::{Error, Result};
use crate::files;
use crate::store::Store;

/// The version of `bundle.json`.
pub(super) const FORMAT: u32 = 1;
/// A kernel, compressed or not.
pub(super) const MAX_KERNEL_BYTES: u64 = 1 << 30;

/// What a kernel file is by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KernelKind {
    /// A compressed kernel with the x86 boot header.
    BzImage,
    /// An ELF executable.
    Elf,
}

/// A file of a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileInfo {
    /// Path inside the bundle.
    pub file: String,
    /// Its size.
    pub size_bytes: u64,
    /// SHA-256 in hexadecimal.
    pub sha256: String,
}

/// A kernel module, decompressed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Module {
    /// Its name, with `_` where the file may have `-`.
    pub name: String,
    /// The file.
    #[serde(flatten)]
    pub file: FileInfo,
    /// Modules of this bundle that must be loaded before it.
    pub depends: Vec<String>,
}

/// `bundle.json`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundleInfo {
    /// Version of this document.
    pub format: u32,
    /// The name of the bundle.
    pub id: String,
    /// The kernel's own version, as `uname -r` would say it, if it is known.
    pub version: Option<String>,
    /// The processor it is made for: `amd64`, `386`, `arm64`, …
    pub arch: String,
    /// Where it came from: a package with its version, or a file.
    pub origin: String,
    /// Seconds since 1970.
    pub added_s: u64,
    /// What the kernel file is.
    pub kind: KernelKind,
    /// The kernel file.
    pub kernel: FileInfo,
    /// The decompressed kernel, if it was made.
    pub vmlinux: Option<FileInfo>,
    /// Modules in the order to load them.
    pub modules: Vec<Module>,
    /// Wanted modules that are part of the kernel.
    pub built_in: Vec<String>,
    /// Wanted modules that are neither part of it nor beside it, or where nobody can tell.
    pub absent: Vec<String>,
}

/// A bundle held open: nothing removes it as long as this lives.
#[derive(Debug)]
pub struct KernelBundle {
    folder: PathBuf,
    info: BundleInfo,
    is_default: bool,
    _pin: File,
}

impl KernelBundle {
    /// All that is known about it.
    pub fn info(&self) -> &BundleInfo {
        &self.info
    }

    /// True for the bundle that is taken when nobody says which.
    pub fn is_default(&self) -> bool {
        self.is_default
    }

    /// Where the kernel file lies.
    pub fn kernel_path(&self) -> PathBuf {
        self.folder.join(&self.info.kernel.file)
    }

    /// Where the decompressed kernel lies, if there is one.
    pub fn vmlinux_path(&self) -> Option<PathBuf> {
        Some(self.folder.join(&self.info.vmlinux.as_ref()?.file))
    }

    /// The bytes of the decompressed kernel if there is one, else of the kernel file; checked against their digest.
    ///
    /// # Errors
    /// The file cannot be read or has changed.
    pub fn read_kernel(&self) -> Result<Vec<u8>> {
        self.read(self.info.vmlinux.as_ref().unwrap_or(&self.info.kernel))
    }

    /// Checks what [`Self::read_kernel`] would read against its digest, without having it in memory. Costs about
    /// 40 ms for a distribution's kernel, so that whoever is in a hurry does something else meanwhile.
    ///
    /// # Errors
    /// The file cannot be read or has changed.
    pub fn verify_kernel(&self) -> Result<()> {
        self.verify_file(self.info.vmlinux.as_ref().unwrap_or(&self.info.kernel))
    }

    /// Checks every file against its digest.
    fn verify(&self) -> Result<()> {
        let modules = self.info.modules.iter().map(|module| &module.file);
        let mut files = [&self.info.kernel].into_iter().chain(&self.info.vmlinux).chain(modules);
        files.try_for_each(|info| self.verify_file(info))
    }

    fn verify_file(&self, info: &FileInfo) -> Result<()> {
        let path = self.folder.join(&info.file);
        let file = File::open(&path).map_err(Error::file("open", &path))?;
        let reader = HashReader::new(file.take(MAX_KERNEL_BYTES));
        let (found, _) = reader.finish().map_err(Error::file("read", &path))?;
        check(info, path, &found)
    }

    /// The bytes of a module, checked against their digest.
    ///
    /// # Errors
    /// The file cannot be read or has changed.
    pub fn read_module(&self, module: &Module) -> Result<Vec<u8>> {
        self.read(&module.file)
    }

    /// The modules needed for `names`, each after those it depends on. What is built in or absent is not among them.
    pub fn modules_for(&self, names: &[&str]) -> Vec<&Module> {
        let mut wanted: BTreeSet<&str> = names.iter().copied().collect();
        // Later modules depend on earlier ones only: one walk backwards finds all.
        for module in self.info.modules.iter().rev() {
            if wanted.contains(module.name.as_str()) {
                wanted.extend(module.depends.iter().map(String::as_str));
            }
        }
        self.info.modules.iter().filter(|module| wanted.contains(module.name.as_str())).collect()
    }

    fn read(&self, info: &FileInfo) -> Result<Vec<u8>> {
        let path = self.folder.join(&info.file);
        let file = File::open(&path).map_err(Error::file("open", &path))?;
        let bytes = read_limited(file, MAX_KERNEL_BYTES).map_err(Error::file("read", &path))?;
        check(info, path, &Digest::of(&bytes))?;
        Ok(bytes)
    }
}

fn check(info: &FileInfo, path: PathBuf, found: &Digest) -> Result<()> {
    if found.hex() == info.sha256 {
        return Ok(());
    }
    let reason = format!("its bytes have the digest {found}");
    Err(Error::CorruptBlob { digest: info.sha256.clone(), path, reason })
}

impl Store {
    fn kernels_dir(&self) -> PathBuf {
        self.root().join("kernels")
    }

    pub(super) fn kernel_dir(&self, id: &str) -> PathBuf {
        self.kernels_dir().join(id)
    }

    /// All kernels that can be used, the newest first.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn kernels(&self) -> Result<Vec<KernelBundle>> {
        let mut found: Vec<KernelBundle> =
            self.bundles()?.into_iter().filter_map(|(_, bundle)| bundle.ok()).collect();
        found.sort_by(|a, b| (b.info.added_s, &b.info.id).cmp(&(a.info.added_s, &a.info.id)));
        Ok(found)
    }

    /// The kernels whose bundles make no sense, by their ids, and why. They can be removed and replaced.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn broken_kernels(&self) -> Result<Vec<(String, Error)>> {
        let bundles = self.bundles()?.into_iter();
        Ok(bundles.filter_map(|(id, bundle)| bundle.err().map(|error| (id, error))).collect())
    }

    fn bundles(&self) -> Result<Vec<(String, Result<KernelBundle>)>> {
        let dir = self.kernels_dir();
        let default = self.default_kernel()?;
        let mut found = Vec::new();
        for entry in fs::read_dir(&dir).map_err(Error::file("list", &dir))? {
            let entry = entry.map_err(Error::file("list", &dir))?;
            let id = entry.file_name().to_string_lossy().into_owned();
            if entry.path().is_dir()
                && let Some(bundle) = open_bundle(&entry.path(), default.as_deref()).transpose()
            {
                found.push((id, bundle));
            }
        }
        Ok(found)
    }

    /// Reads every file of every kernel. Gives how many kernels there are, and what is wrong with which.
    pub(crate) fn check_kernels(&self) -> (usize, Vec<(String, Error)>) {
        let (mut count, mut broken) = (0, Vec::new());
        for entry in fs::read_dir(self.kernels_dir()).into_iter().flatten().flatten() {
            if !entry.path().is_dir() {
                continue;
            }
            count += 1;
            let checked = open_bundle(&entry.path(), None).and_then(|bundle| match bundle {
                Some(bundle) => bundle.verify(),
                None => Err(Error::invalid(entry.path().display().to_string(), "it has no bundle.json")),
            });
            broken
                .extend(checked.err().map(|error| (entry.file_name().to_string_lossy().into_owned(), error)));
        }
        (count, broken)
    }

    /// The kernel `id`, or the default one.
    ///
    /// # Errors
    /// There is no such kernel, or its bundle makes no sense.
    pub fn kernel(&self, id: Option<&str>) -> Result<KernelBundle> {
        let default = self.default_kernel()?;
        let no_kernel = || Error::NoKernel { id: id.map(str::to_string), store: self.root().into() };
        let id = id.or(default.as_deref()).filter(|id| valid_id(id)).ok_or_else(no_kernel)?;
        open_bundle(&self.kernel_dir(id), default.as_deref())?.ok_or_else(no_kernel)
    }

    /// Makes `id` the default kernel.
    ///
    /// # Errors
    /// There is no such kernel, or the store cannot be written.
    pub fn set_default_kernel(&self, id: &str) -> Result<()> {
        self.kernel(Some(id))?;
        self.scratch.replace(&self.kernels_dir().join("default"), id.as_bytes())
    }

    /// Removes a kernel, also a broken one. If it was the default, the newest other one is from now on.
    ///
    /// # Errors
    /// There is no such kernel, or somebody is reading it just now.
    pub fn remove_kernel(&self, id: &str) -> Result<()> {
        let folder = self.kernel_dir(id);
        if !valid_id(id) || !folder.is_dir() {
            return Err(Error::NoKernel { id: Some(id.to_string()), store: self.root().into() });
        }
        // Two that remove each other's next default would wait for each other.
        let _lock = files::lock(&self.root().join("locks/kernels"))?;
        // Before this one is claimed: listing the kernels looks at it too.
        let next = self.kernels()?.into_iter().map(|other| other.info.id).find(|other| other != id);
        let _claim = self.claim(id)?;
        if self.default_kernel()?.as_deref() == Some(id) {
            // First the new default: whoever is killed in between leaves one that is there.
            match next {
                Some(next) => self.set_default_kernel(&next)?,
                None => files::remove_any(&self.kernels_dir().join("default")),
            }
        }
        self.scratch.folder()?.bury(&folder)
    }

    /// Holds the bundle of `id` for this process alone; nothing where it has lost the file that is held.
    ///
    /// # Errors
    /// Somebody is reading it just now.
    pub(super) fn claim(&self, id: &str) -> Result<Option<File>> {
        let pin = self.kernel_dir(id).join("bundle.json");
        let file = match File::open(&pin) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::file("open", &pin)(e)),
        };
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(_) => Err(Error::InUse { what: format!("kernel {id}") }),
        }
    }

    /// As [`Self::claim`], but waits a little for who has just added the same kernel and will be done with it at once.
    ///
    /// # Errors
    /// Somebody goes on reading it.
    pub(super) fn claim_soon(&self, id: &str) -> Result<Option<File>> {
        const PATIENCE: Duration = Duration::from_secs(3);
        let started = Instant::now();
        loop {
            match self.claim(id) {
                Err(Error::InUse { .. }) if started.elapsed() < PATIENCE => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                claimed => return claimed,
            }
        }
    }

    pub(super) fn default_kernel(&self) -> Result<Option<String>> {
        let path = self.kernels_dir().join("default");
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text.trim().to_string())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::file("read", &path)(e)),
        }
    }
}

/// An id is a folder's name.
pub(super) fn valid_id(id: &str) -> bool {
    let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'+' | b'~');
    !id.is_empty() && id.len() <= 128 && !id.starts_with('.') && id != "default" && id.bytes().all(ok)
}

fn open_bundle(folder: &Path, default: Option<&str>) -> Result<Option<KernelBundle>> {
    let path = folder.join("bundle.json");
    let Some(pin) = files::open_pinned(&path)? else { return Ok(None) };
    let bytes = read_limited(&pin, 16 << 20).map_err(Error::file("read", &path))?;
    let what = path.display().to_string();
    let info: BundleInfo = serde_json::from_slice(&bytes).map_err(Error::json(what.clone()))?;
    if info.format != FORMAT {
        return Err(Error::invalid(what, format!("format {}, this program knows {FORMAT}", info.format)));
    }
    let paths = info.modules.iter().map(|m| &m.file).chain([&info.kernel]).chain(&info.vmlinux);
    if let Some(bad) = paths.map(|file| &file.file).find(|path| path.starts_with('/') || path.contains(".."))
    {
        return Err(Error::invalid(what, format!("a file outside the bundle: {bad}")));
    }
    let is_default = default == Some(info.id.as_str());
    Ok(Some(KernelBundle { folder: folder.to_path_buf(), info, is_default, _pin: pin }))
}
