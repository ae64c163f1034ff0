//! An image that arrives piece by piece, in any order, from several threads: what a registry's client needs.
//!
//! A blob on its way lies in `partial/<hex>`, locked by whoever writes it: a second process that wants the same blob waits and
//! then finds it whole. What a dead process or a broken connection left there is taken up again; since nobody knows whether a
//! crash kept all of it, its bytes count only once the digest of the whole is right. The collector removes what nobody
//! touched for a day.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use oci_spec::image::ImageManifest;
use sha2::{Digest as _, Sha256};

use super::blobs::{BlobReader, BlobWriter};
use super::{Adding, Store};
use crate::digest::Digest;
use crate::document;
use crate::error::{Error, Result};
use crate::files::{self, TempFolder};
use crate::image::Image;
use crate::reference::Reference;
use crate::{MAX_DOCUMENT_BYTES, MAX_LAYER_BYTES, digest_of};

/// How long a partial blob is kept for whoever comes back for it.
pub(super) const PARTIAL_AGE: Duration = Duration::from_secs(24 * 3600);

/// Written back to the disk in pieces of this size, so that the end of a large blob does not wait for all of it.
const WRITEBACK_BYTES: u64 = 8 << 20;

/// An image on its way into the store. Until it is committed or dropped, the collector stays away.
#[derive(Debug)]
pub struct Incoming {
    pub(super) store: Store,
    adding: Adding,
}

impl Store {
    /// Begins to take in an image.
    ///
    /// # Errors
    /// The store cannot be locked.
    pub fn incoming(&self) -> Result<Incoming> {
        Ok(Incoming { store: self.clone(), adding: self.adding()? })
    }

    pub(super) fn partial_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("partial").join(digest.hex())
    }

    /// True when a blob of this name and size is there. Its bytes are checked when they are used.
    pub(super) fn has_blob(&self, digest: &Digest, size: u64) -> bool {
        fs::metadata(self.blob_path(digest)).is_ok_and(|meta| meta.is_file() && meta.len() == size)
    }

    /// True when a blob of this name is there and its bytes, all of which are read, are those of the name.
    fn has_whole_blob(&self, digest: &Digest, size: u64) -> Result<bool> {
        match self.open_blob(digest, Some(size)).and_then(BlobReader::finish) {
            Ok(()) => Ok(true),
            Err(Error::MissingBlob { .. } | Error::CorruptBlob { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl Incoming {
    /// The blob `digest` of `size` bytes, to be filled; nothing when the store has it, which is seen by reading it: one whose
    /// bytes are not those of its name is filled again. While another process fills it, `wait` is called once, and then
    /// this waits.
    ///
    /// # Errors
    /// `size` is more than a layer may have, the blob that is there cannot be read, or the store cannot be written.
    pub fn blob(&self, digest: &Digest, size: u64, wait: impl FnOnce()) -> Result<Option<PartialBlob>> {
        if size > MAX_LAYER_BYTES {
            let reason = format!("{size} bytes, more than {} GiB", MAX_LAYER_BYTES >> 30);
            return Err(Error::invalid(format!("blob {digest}"), reason));
        }
        let mut wait = Some(wait);
        let path = self.store.partial_path(digest);
        loop {
            if self.store.has_whole_blob(digest, size)? {
                return Ok(None);
            }
            let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
            let file = opened.map_err(Error::file("open", &path))?;
            if file.try_lock().is_err() {
                if let Some(wait) = wait.take() {
                    wait();
                }
                file.lock().map_err(Error::file("lock", &path))?;
            }
            // Meanwhile it may have become a blob, or been removed.
            if !files::is_at(&file, &path)? {
                continue;
            }
            if self.store.has_whole_blob(digest, size)? {
                let _ = fs::remove_file(&path);
                return Ok(None);
            }
            return PartialBlob::new(&self.store, file, path, *digest, size).map(Some);
        }
    }

    /// A small blob that the store has already and that is what it should be.
    pub fn document(&self, digest: &Digest, size: u64) -> Option<Vec<u8>> {
        self.store.read_blob(digest, Some(size), MAX_DOCUMENT_BYTES).ok()
    }

    /// An empty folder of the store's file system, which is gone with the value, or soon after this process died.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn scratch_folder(&self) -> Result<ScratchFolder> {
        Ok(ScratchFolder(self.store.scratch.folder()?))
    }

    /// Begins a blob whose digest is not known before it is whole.
    pub(crate) fn blob_writer(&self) -> Result<BlobWriter> {
        self.store.write_blob(&self.adding)
    }

    /// Stores a small document: a manifest, a config.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn add(&self, bytes: &[u8]) -> Result<Digest> {
        self.store.add_blob(&self.adding, bytes)
    }

    /// Gives the image its name, whatever that meant before.
    ///
    /// # Errors
    /// The manifest or a blob it names is not in the store; the index cannot be written.
    pub fn commit(self, name: &Reference, manifest: &Digest) -> Result<Image> {
        let Incoming { store, adding } = self;
        let bytes = store.read_blob(manifest, None, MAX_DOCUMENT_BYTES)?;
        let parsed: ImageManifest =
            document::parse(&bytes).map_err(Error::json(format!("manifest {manifest}")))?;
        for part in parsed.layers().iter().chain([parsed.config()]) {
            let digest = digest_of(part)?;
            if !store.has_blob(&digest, part.size()) {
                return Err(Error::MissingBlob { digest: digest.hex(), path: store.blob_path(&digest) });
            }
        }
        store.set_name(&adding, name, manifest)?;
        let image = store.image(name)?;
        drop(adding);
        // The name may have meant another image before.
        store.collect()?;
        Ok(image)
    }
}

/// A folder for a while.
#[derive(Debug)]
pub struct ScratchFolder(TempFolder);

impl ScratchFolder {
    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

/// A blob that is being filled. Dropped before it is finished, it stays for whoever comes back for it.
#[derive(Debug)]
pub struct PartialBlob {
    store: Store,
    file: File,
    path: PathBuf,
    digest: Digest,
    size: u64,
    hasher: Sha256,
    have: u64,
    written_back: u64,
}

impl PartialBlob {
    fn new(store: &Store, file: File, path: PathBuf, digest: Digest, size: u64) -> Result<Self> {
        let blob = PartialBlob {
            store: store.clone(),
            file,
            path,
            digest,
            size,
            hasher: Sha256::new(),
            have: 0,
            written_back: 0,
        };
        blob.take_up()
    }

    /// Counts what an earlier attempt left.
    fn take_up(mut self) -> Result<Self> {
        let left = self.file.metadata().map_err(Error::file("stat", &self.path))?.len();
        if left >= self.size {
            // All of it and not published: it was not right, or the process died in that very moment.
            self.restart()?;
            return Ok(self);
        }
        let mut buffer = vec![0; 128 << 10];
        loop {
            match self.file.read(&mut buffer) {
                Ok(0) => return Ok(self),
                Ok(n) => {
                    self.hasher.update(&buffer[..n]);
                    self.have += n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::file("read", &self.path)(e)),
            }
        }
    }

    /// Bytes that are there; the next one to come has this offset.
    pub fn have(&self) -> u64 {
        self.have
    }

    /// Bytes it will have.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Adds bytes at the end.
    ///
    /// # Errors
    /// The store cannot be written; what was there is removed then. More bytes than the blob has.
    pub fn put(&mut self, bytes: &[u8]) -> Result<()> {
        if bytes.len() as u64 > self.size - self.have {
            return Err(Error::invalid(
                format!("blob {}", self.digest),
                format!("more than {} bytes", self.size),
            ));
        }
        if let Err(e) = self.file.write_all(bytes) {
            // A full disk had better not stay full.
            let _ = fs::remove_file(&self.path);
            return Err(Error::file("write", &self.path)(e));
        }
        self.hasher.update(bytes);
        self.have += bytes.len() as u64;
        if self.have - self.written_back >= WRITEBACK_BYTES {
            self.write_back();
        }
        Ok(())
    }

    /// Has the kernel begin to write to the disk, and keep what is being written.
    fn write_back(&mut self) {
        let len = std::num::NonZero::new(self.have - self.written_back);
        // Advice; whether it is taken does not matter.
        let _ = rustix::fs::fadvise(&self.file, self.written_back, len, rustix::fs::Advice::DontNeed);
        self.written_back = self.have;
    }

    /// Forgets what is there and begins again.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn restart(&mut self) -> Result<()> {
        self.file.set_len(0).map_err(Error::file("write", &self.path))?;
        self.file.seek(SeekFrom::Start(0)).map_err(Error::file("write", &self.path))?;
        self.hasher = Sha256::new();
        (self.have, self.written_back) = (0, 0);
        Ok(())
    }

    /// The digest of what is there.
    pub fn found(&self) -> Digest {
        Digest::from_hash(self.hasher.clone())
    }

    /// Takes the blob away.
    pub fn discard(self) {
        let _ = fs::remove_file(&self.path);
    }

    /// Makes it a blob of the store.
    ///
    /// # Errors
    /// Its bytes are not those of its name: they are removed then. The store cannot be written.
    pub fn finish(self) -> Result<()> {
        let found = self.found();
        if self.have != self.size || found != self.digest {
            let reason = format!("{} bytes with the digest {found}", self.have);
            let error = Error::CorruptBlob { digest: self.digest.hex(), path: self.path.clone(), reason };
            self.discard();
            return Err(error);
        }
        self.file.sync_all().map_err(Error::file("write", &self.path))?;
        let dest = self.store.blob_path(&self.digest);
        fs::rename(&self.path, &dest).map_err(Error::file("create", &dest))?;
        files::sync_parent(&dest)
    }
}

impl Drop for PartialBlob {
    fn drop(&mut self) {
        // Nothing to come back for. After `finish` the path is gone, or another process's: it is only removed when it is ours.
        if self.have == 0 && files::is_at(&self.file, &self.path).unwrap_or(false) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::SystemTime;

    use super::*;
    use crate::tar::testing::Tar;
    use crate::testing::{chain, files_below, noise, reference, temp_store};

    fn partials(store: &Store) -> usize {
        fs::read_dir(store.root().join("partial")).unwrap().count()
    }

    fn fill(incoming: &Incoming, bytes: &[u8]) -> Result<()> {
        let digest = Digest::of(bytes);
        if let Some(mut blob) = incoming.blob(&digest, bytes.len() as u64, || {})? {
            let at = blob.have() as usize;
            blob.put(&bytes[at..])?;
            blob.finish()?;
        }
        Ok(())
    }

    fn documents(layer: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let tar = Digest::of(layer).to_string();
        let config = serde_json::json!({
            "architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [tar]},
        });
        let config = serde_json::to_vec(&config).unwrap();
        let part = |kind: &str, bytes: &[u8]| {
            serde_json::json!({
                "mediaType": format!("application/vnd.oci.image.{kind}"),
                "digest": Digest::of(bytes).to_string(),
                "size": bytes.len(),
            })
        };
        let manifest = serde_json::json!({
            "schemaVersion": 2, "config": part("config.v1+json", &config), "layers": [part("layer.v1.tar", layer)],
        });
        (config, serde_json::to_vec(&manifest).unwrap())
    }

    #[test]
    fn an_image_arrives_in_pieces() {
        let temp = temp_store();
        let layer = Tar::new().file("f", b"1").end();
        let (config, manifest) = documents(&layer);
        let incoming = temp.store.incoming().unwrap();
        fill(&incoming, &layer).unwrap();
        incoming.add(&config).unwrap();
        let digest = incoming.add(&manifest).unwrap();
        let image = incoming.commit(&reference("reg.example/app"), &digest).unwrap();
        assert_eq!((image.digest(), image.size_bytes()), (digest, layer.len() as u64));
        temp.store.root_for_vm(&image, &crate::NoProgress).unwrap();
        assert_eq!(partials(&temp.store), 0);
        // By its digest it is found under the name of its repository only.
        let pinned = |name: &str| temp.store.image(&reference(&format!("{name}@{digest}")));
        assert_eq!(pinned("reg.example/app").unwrap().digest(), digest);
        assert!(pinned("reg.example/other").unwrap_err().is_not_found());
        // A second one brings nothing, unless the bytes that are here are no longer those of the name.
        let path = temp.store.blob_path(&Digest::of(&layer));
        let mut flipped = layer.clone();
        flipped[600] ^= 1;
        fs::write(&path, flipped).unwrap();
        fill(&temp.store.incoming().unwrap(), &layer).unwrap();
        assert_eq!(fs::read(&path).unwrap(), layer);
        let incoming = temp.store.incoming().unwrap();
        assert!(incoming.blob(&Digest::of(&layer), layer.len() as u64, || {}).unwrap().is_none());
        assert_eq!(incoming.document(&Digest::of(&config), config.len() as u64).unwrap(), config);
    }

    #[test]
    fn an_image_with_a_missing_layer_gets_no_name() {
        let temp = temp_store();
        let (config, manifest) = documents(b"never comes");
        let incoming = temp.store.incoming().unwrap();
        incoming.add(&config).unwrap();
        let digest = incoming.add(&manifest).unwrap();
        let message = chain(&incoming.commit(&reference("app"), &digest).unwrap_err());
        assert!(message.starts_with("missing blob"), "{message}");
        assert!(temp.store.images().unwrap().is_empty());
        temp.store.collect().unwrap();
        let left = files_below(temp.store.root());
        assert!(!left.iter().any(|path| path.starts_with("blobs/")), "{left:?}");
    }

    #[test]
    fn what_arrived_is_taken_up_again() {
        let temp = temp_store();
        let bytes = noise(300_000);
        let (digest, size) = (Digest::of(&bytes), bytes.len() as u64);
        let incoming = temp.store.incoming().unwrap();
        let mut blob = incoming.blob(&digest, size, || {}).unwrap().unwrap();
        blob.put(&bytes[..200_000]).unwrap();
        drop(blob);
        // Another process comes back for it.
        let store = Store::open(temp.store.root()).unwrap();
        let incoming = store.incoming().unwrap();
        let mut blob = incoming.blob(&digest, size, || {}).unwrap().unwrap();
        assert_eq!(blob.have(), 200_000);
        blob.put(&bytes[200_000..]).unwrap();
        assert_eq!(blob.found(), digest);
        blob.finish().unwrap();
        assert!(store.read_blob(&digest, Some(size), size).is_ok());
    }

    #[test]
    fn bytes_that_are_not_those_of_the_name_are_thrown_away() {
        let temp = temp_store();
        let incoming = temp.store.incoming().unwrap();
        let digest = Digest::of(b"right");
        let mut blob = incoming.blob(&digest, 5, || {}).unwrap().unwrap();
        blob.put(b"wrong").unwrap();
        assert!(blob.put(b"x").is_err(), "more than its size");
        assert!(chain(&blob.finish().unwrap_err()).starts_with("corrupt blob"));
        assert_eq!(partials(&temp.store), 0);
        // Whole but wrong, as a crash may leave it: nothing of it is used.
        fs::write(temp.store.partial_path(&digest), b"wrong").unwrap();
        let mut blob = incoming.blob(&digest, 5, || {}).unwrap().unwrap();
        assert_eq!(blob.have(), 0);
        blob.put(b"wr").unwrap();
        blob.restart().unwrap();
        blob.put(b"right").unwrap();
        blob.finish().unwrap();
        assert!(incoming.blob(&digest, MAX_LAYER_BYTES + 1, || {}).is_err());
        drop(incoming.blob(&Digest::of(b"nothing yet"), 11, || {}).unwrap());
        assert_eq!(partials(&temp.store), 0);
    }

    #[test]
    fn whoever_wants_the_same_blob_waits_and_finds_it() {
        let temp = temp_store();
        let bytes = noise(1000);
        let (digest, size) = (Digest::of(&bytes), 1000);
        let incoming = temp.store.incoming().unwrap();
        let mut first = incoming.blob(&digest, size, || panic!("nobody to wait for")).unwrap().unwrap();
        let (said, heard) = mpsc::channel();
        std::thread::scope(|scope| {
            let second =
                scope.spawn(|| incoming.blob(&digest, size, move || said.send(()).unwrap()).unwrap());
            heard.recv().unwrap();
            first.put(&bytes).unwrap();
            first.finish().unwrap();
            assert!(second.join().unwrap().is_none());
        });
        assert_eq!(partials(&temp.store), 0);
    }

    #[test]
    fn the_collector_takes_only_what_is_old_and_nobody_fills() {
        let temp = temp_store();
        let incoming = temp.store.incoming().unwrap();
        let blob = |text: &[u8]| {
            let mut blob = incoming.blob(&Digest::of(text), 100, || {}).unwrap().unwrap();
            blob.put(text).unwrap();
            blob
        };
        let (fresh, old, busy) = (blob(b"fresh"), blob(b"old"), blob(b"busy"));
        for blob in [&old, &busy] {
            blob.file.set_modified(SystemTime::now() - PARTIAL_AGE).unwrap();
        }
        drop((fresh, old));
        // While images arrive it does nothing at all.
        temp.store.collect().unwrap();
        assert_eq!(partials(&temp.store), 3);
        drop(incoming);
        let done = temp.store.collect().unwrap();
        assert_eq!((done.files, done.in_use, partials(&temp.store)), (1, 1, 2));
        drop(busy);
    }
}
