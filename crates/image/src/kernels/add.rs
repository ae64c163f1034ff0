//! A kernel comes into the store.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use super::bundle::{
    BundleInfo, FORMAT, FileInfo, KernelBundle, KernelKind, MAX_KERNEL_BYTES, Module, valid_id,
};
use super::deb::{self, Deb};
use super::modules::{self, Source, WANTED};
use super::sniff;
use crate::archive::source_date;
use crate::compression::read_limited;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::files::{self, TempFolder};
use crate::progress::Progress;
use crate::store::Store;

/// Makes of a kernel file its decompressed form, or nothing if there is none; the error says why it is no kernel.
pub type Unpack<'a> =
    dyn Fn(&[u8]) -> std::result::Result<Option<Vec<u8>>, Box<dyn std::error::Error + Send + Sync>> + 'a;

/// A kernel to add.
pub struct AddKernel<'a> {
    /// The kernel: Debian packages (one with the kernel, others with more modules), or one bzImage or ELF file.
    pub files: Vec<PathBuf>,
    /// A folder of modules, such as `/lib/modules/VERSION`.
    pub modules: Option<PathBuf>,
    /// Called with the kernel's bytes; what it gives is stored beside them.
    pub unpack: &'a Unpack<'a>,
    /// Make it the default even if there is one.
    pub make_default: bool,
}

/// A kernel found in what was given.
struct Found {
    bytes: Vec<u8>,
    kind: KernelKind,
    arch: String,
    version: Option<String>,
    origin: String,
    id: String,
}

impl Store {
    /// Adds a kernel with the modules a machine needs. One of the same id is replaced.
    ///
    /// # Errors
    /// A file cannot be read or is no kernel; the store cannot be written; the kernel it replaces is being read just now.
    pub fn add_kernel(&self, add: &AddKernel<'_>, progress: &dyn Progress) -> Result<KernelBundle> {
        let first = add.files.first().ok_or_else(|| Error::invalid("kernel", "no file given"))?;
        let mut debs = Vec::new();
        let found = if is_deb(first)? {
            for file in &add.files {
                debs.push(Deb::open(self, file, progress)?);
            }
            from_debs(&debs, first)?
        } else {
            from_file(first, add.unpack)?
        };
        let mut sources: Vec<Source<'_>> = debs.iter().map(Source::Deb).collect();
        sources.extend(add.modules.as_deref().map(Source::Folder));
        progress.step(&format!("choose modules for {}", found.id));
        let resolved = modules::resolve(&sources, &WANTED)?;
        progress.step(&format!("unpack kernel {}", found.id));
        let vmlinux = (add.unpack)(&found.bytes);
        let vmlinux =
            vmlinux.map_err(|source| Error::Unpack { what: first.display().to_string(), source })?;

        let folder = self.scratch.folder()?;
        let kernel = put(&folder, "kernel", &found.bytes)?;
        let vmlinux = vmlinux.map(|bytes| put(&folder, "vmlinux", &bytes)).transpose()?;
        let modules_dir = folder.path().join("modules");
        fs::create_dir(&modules_dir).map_err(Error::file("create", &modules_dir))?;
        let mut list = Vec::new();
        for module in resolved.modules {
            if let (Some(have), Some(want)) = (&module.vermagic, &found.version)
                && have != want
            {
                progress.note(&format!("module {} is made for {have}, the kernel is {want}", module.name));
            }
            let file = put(&folder, &format!("modules/{}.ko", module.name), &module.bytes)?;
            list.push(Module { name: module.name, file, depends: module.depends });
        }
        let info = BundleInfo {
            format: FORMAT,
            id: found.id,
            version: found.version,
            arch: found.arch,
            origin: found.origin,
            added_s: source_date(),
            kind: found.kind,
            kernel,
            vmlinux,
            modules: list,
            built_in: resolved.built_in.into_iter().collect(),
            absent: resolved.absent.into_iter().collect(),
        };
        let json = serde_json::to_vec_pretty(&info).map_err(Error::json("bundle.json"))?;
        put(&folder, "bundle.json", &json)?;
        self.place_kernel(folder, &info.id, add.make_default)
    }

    /// Gives a bundle its place, in exchange for one that may be there.
    fn place_kernel(&self, folder: TempFolder, id: &str, make_default: bool) -> Result<KernelBundle> {
        let modules = folder.path().join("modules/.");
        files::sync_parent(&modules)?;
        let _lock = files::lock(&self.root().join("locks/kernels"))?;
        let dest = self.kernel_dir(id);
        if dest.exists() {
            let _claim = self.claim_soon(id)?;
            folder.exchange(&dest)?;
        } else {
            folder.publish(&dest)?;
        }
        if make_default || self.kernel(None).is_err() {
            self.set_default_kernel(id)?;
        }
        self.kernel(Some(id))
    }
}

fn is_deb(path: &Path) -> Result<bool> {
    let file = File::open(path).map_err(Error::file("open", path))?;
    let mut head = Vec::new();
    file.take(8).read_to_end(&mut head).map_err(Error::file("read", path))?;
    Ok(deb::is_deb(&head))
}

fn from_debs(debs: &[Deb], first: &Path) -> Result<Found> {
    let is_kernel = |path: &&str| path.starts_with("boot/vmlinuz-") || path.starts_with("boot/vmlinux-");
    let found = debs.iter().find_map(|deb| deb.paths().find(is_kernel).map(|path| (deb, path.to_string())));
    let Some((deb, path)) = found else {
        return Err(Error::invalid(
            first.display().to_string(),
            "the package has no kernel (boot/vmlinuz-*)",
        ));
    };
    let bytes = deb.read(&path, MAX_KERNEL_BYTES)?;
    let sniffed = sniff::sniff(&bytes).ok_or_else(|| not_a_kernel(&path))?;
    let version = path.split_once('-').map(|(_, version)| version.to_string());
    let id =
        version.clone().filter(|id| valid_id(id)).ok_or_else(|| Error::invalid(&path, "a bad version"))?;
    let origin = format!("{} {}", deb.package, deb.version);
    Ok(Found { bytes, kind: sniffed.kind, arch: deb.arch.clone(), version, origin, id })
}

fn from_file(path: &Path, unpack: &Unpack<'_>) -> Result<Found> {
    let file = File::open(path).map_err(Error::file("open", path))?;
    let bytes = read_limited(file, MAX_KERNEL_BYTES).map_err(Error::file("read", path))?;
    let sniffed = sniff::sniff(&bytes).ok_or_else(|| {
        let what = path.display().to_string();
        match unpack(&bytes) {
            // Whoever knows kernels better says what it is instead.
            Err(source) => Error::Unpack { what, source },
            Ok(_) => not_a_kernel(&what),
        }
    })?;
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let by_digest = || format!("kernel-{}", &Digest::of(&bytes).hex()[..12]);
    let id = [sniffed.version.clone(), Some(name.clone())].into_iter().flatten().find(|id| valid_id(id));
    Ok(Found {
        kind: sniffed.kind,
        arch: sniffed.arch.to_string(),
        version: sniffed.version,
        origin: name,
        id: id.unwrap_or_else(by_digest),
        bytes,
    })
}

fn not_a_kernel(what: &str) -> Error {
    Error::invalid(what, "not a kernel: neither a bzImage nor an ELF file")
}

/// Writes a file of the bundle, durably.
fn put(folder: &TempFolder, name: &str, bytes: &[u8]) -> Result<FileInfo> {
    let path = folder.path().join(name);
    let mut file = File::create_new(&path).map_err(Error::file("create", &path))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(Error::file("write", &path))?;
    Ok(FileInfo { file: name.to_string(), size_bytes: bytes.len() as u64, sha256: Digest::of(bytes).hex() })
}
