//! The root file system of an image for a virtual machine: one read-only squashfs file, made once and kept.
//!
//! What is guaranteed: it is made of layers whose digests were checked while they were read, appears whole or not at all, and
//! is only used when its length and its first and last block are right. A byte that changes on the disk afterwards is found
//! by [`Store::check`], which reads all of it and removes a broken one (see `seal`); a start does not read all of it.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::compression;
use crate::digest::{Digest, HashReader};
use crate::error::{Error, Result};
use crate::files;
use crate::image::Image;
use crate::layers::{self, ApplyError, Contents, Tree};
use crate::progress::Progress;
use crate::seal;
use crate::squashfs::{self, DataWriter};
use crate::store::Store;
use crate::tar::{Reader, TarError};
use crate::{MAX_LAYER_BYTES, digest_of};

/// The name of the file system of roots, as `mount -t` wants it.
pub const SQUASHFS: &str = "squashfs";

/// What a root file's name ends with; the number is the version of how trees become files.
pub(crate) const ROOT_SUFFIX: &str = "-v2.squashfs";

/// A root file system, held open. It stays valid as long as this lives, also when its image is removed.
#[derive(Debug)]
pub struct RootFile {
    file: File,
    path: PathBuf,
    size_bytes: u64,
}

impl RootFile {
    /// The open file: read-only, to be given to a block device. Its size is a multiple of 4096 bytes.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The path it was opened at.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of the file; it takes less on disk where it has holes.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The name of the file system, as `mount -t` wants it.
    pub fn fstype(&self) -> &'static str {
        SQUASHFS
    }
}

impl Store {
    pub(crate) fn root_path(&self, digest: &Digest) -> PathBuf {
        self.root().join("roots").join(format!("{}{ROOT_SUFFIX}", digest.hex()))
    }

    /// The root file system of `image`, from the store or made now. Whoever else wants the same one meanwhile waits.
    ///
    /// # Errors
    /// A layer is missing, corrupt, or no sane archive; the store cannot be written.
    pub fn root_for_vm(&self, image: &Image, progress: &dyn Progress) -> Result<RootFile> {
        let path = self.root_path(&image.digest());
        if let Some(root) = open_root(&path)? {
            return Ok(root);
        }
        progress.step("prepare the root file system");
        let _lock = self.lock_root(&image.digest().hex())?;
        if let Some(root) = open_root(&path)? {
            return Ok(root);
        }
        self.build_root(image, &path, progress)?;
        match open_root(&path)? {
            Some(root) => Ok(root),
            None => Err(Error::invalid(path.display().to_string(), "removed while it was made")),
        }
    }

    fn build_root(&self, image: &Image, path: &Path, progress: &dyn Progress) -> Result<()> {
        let temp = self.scratch.file()?;
        let file = temp.file.try_clone().map_err(Error::file("open", temp.path()))?;
        let mut data = DataWriter::new(file, temp.path().to_path_buf())?;
        let mut tree = Tree::new();
        let count = image.manifest().layers().len();
        for number in 0..count {
            progress.step(&format!("apply layer {} of {count}", number + 1));
            self.apply_layer(image, number, &mut tree, &mut data, progress)?;
        }
        progress.step("write the root file system");
        let size = squashfs::finish(&tree, &mut data)?;
        seal::seal(&temp.file, size).map_err(Error::file("write", temp.path()))?;
        temp.publish(path)?;
        Ok(())
    }

    /// Puts layer `number` of an image on top of `tree`, checked; the contents of its files go to `contents`.
    pub(crate) fn apply_layer(
        &self,
        image: &Image,
        number: usize,
        tree: &mut Tree,
        contents: &mut impl Contents,
        progress: &dyn Progress,
    ) -> Result<()> {
        let layer = &image.manifest().layers()[number];
        let digest = digest_of(layer)?;
        let mut blob = self.open_blob(&digest, Some(layer.size()))?;
        let what = format!("layer {digest} of image {}", image.name());
        let total = blob.len();
        let counted = Reporting { inner: &mut blob, progress, done: 0, told: 0, total };
        let applied = apply_stream(counted, number as u32, tree, contents);
        let diff_id = match applied {
            Ok((diff_id, notes)) => {
                notes.iter().for_each(|note| progress.note(&format!("{what}: {note}")));
                diff_id
            }
            Err(ApplyError::Store(e)) => return Err(e),
            Err(ApplyError::Tar(source)) => {
                // If the bytes are not those that were stored, that is the news.
                blob.finish()?;
                return Err(Error::Archive { what, source });
            }
        };
        blob.finish()?;
        let wanted = image.configuration().rootfs().diff_ids().get(number);
        match wanted {
            Some(wanted) if *wanted != diff_id.to_string() => Err(Error::invalid(
                what,
                format!("its contents have the digest {diff_id}, the config says {wanted}"),
            )),
            _ => Ok(()),
        }
    }
}

fn apply_stream(
    reader: impl Read,
    layer: u32,
    tree: &mut Tree,
    contents: &mut impl Contents,
) -> std::result::Result<(Digest, Vec<String>), ApplyError> {
    let io_error = |source| ApplyError::Tar(TarError::Io { offset: 0, source });
    let (_, decoded) = compression::decode(reader).map_err(io_error)?;
    let mut archive = Reader::new(HashReader::new(decoded.take(MAX_LAYER_BYTES)));
    let notes = layers::apply(tree, layer, &mut archive, contents)?;
    let hash = archive.into_inner();
    let at = hash.count();
    let (diff_id, size) =
        hash.finish().map_err(|source| ApplyError::Tar(TarError::Io { offset: at, source }))?;
    if size >= MAX_LAYER_BYTES {
        return Err(io_error(io::Error::new(io::ErrorKind::FileTooLarge, "the layer is too large")));
    }
    Ok((diff_id, notes))
}

fn open_root(path: &Path) -> Result<Option<RootFile>> {
    let Some(file) = files::open_pinned(path)? else { return Ok(None) };
    let size_bytes = file.metadata().map_err(Error::file("stat", path))?.len();
    // One that was cut short (a file system repaired after a crash) is made again: a guest would say "invalid argument".
    if !is_whole(&file, size_bytes) {
        return Ok(None);
    }
    Ok(Some(RootFile { file, path: path.to_path_buf(), size_bytes }))
}

/// Whether a root file of `size` bytes has the length it was made with.
pub(crate) fn is_whole(file: &File, size: u64) -> bool {
    seal::is_sealed(file, size) && squashfs::is_whole(file, size - seal::SEAL_BYTES)
}

/// Tells how much has been read, once a mebibyte.
pub(crate) struct Reporting<'p, R> {
    pub(crate) inner: R,
    pub(crate) progress: &'p dyn Progress,
    pub(crate) done: u64,
    pub(crate) told: u64,
    /// 0 when it is not known.
    pub(crate) total: u64,
}

impl<R: Read> Read for Reporting<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.done += n as u64;
        if self.done - self.told >= 1 << 20 || (n == 0 && self.done > self.told) {
            self.told = self.done;
            self.progress.bytes(self.done, (self.total > 0).then_some(self.total));
        }
        Ok(n)
    }
}
