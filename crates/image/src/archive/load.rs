//! Archives of whole images: `oci-archive` (an OCI image layout in a tar), `docker-archive` (`docker save`), compressed or
//! not, and an OCI image layout in a folder.
//!
//! One pass: every file of the archive becomes a blob of the store, whose digest then tells whether it is what its name
//! says; what no image needs is collected again.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex, ImageManifest};
use serde::Deserialize;
use serde_json::json;

use super::commit::to_bytes;
use crate::compression::{self, Compression};
use crate::digest::Digest;
use crate::document;
use crate::error::{Error, Result};
use crate::media;
use crate::platform::Platform;
use crate::progress::Progress;
use crate::reference::Reference;
use crate::root::Reporting;
use crate::store::{Adding, BlobWriter, Store};
use crate::tar::{Kind, Reader, TarError};
use crate::{MAX_DOCUMENT_BYTES, MAX_LAYER_BYTES, digest_of};

/// Files in one archive. Attack: millions of tiny ones, each a file of the store.
const MAX_FILES: usize = 10_000;

/// What a path of the archive holds.
#[derive(Debug, Clone)]
enum Item {
    Blob(Digest, u64),
    Link(String),
}

struct Contents {
    what: String,
    items: HashMap<String, Item>,
}

/// One image of `manifest.json` in a docker-archive.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl Store {
    /// Takes in the images of an archive, or of an OCI image layout in a folder. Gives their names; one without a name is
    /// named for the file.
    ///
    /// # Errors
    /// The archive cannot be read, is of neither kind, or holds a blob that is not what its name says.
    pub fn load(&self, file: &Path, progress: &dyn Progress) -> Result<Vec<Reference>> {
        progress.step(&format!("load {}", file.display()));
        let adding = self.adding()?;
        let loaded = self.load_all(&adding, file, progress);
        drop(adding);
        self.collect()?;
        loaded
    }

    fn load_all(&self, adding: &Adding, file: &Path, progress: &dyn Progress) -> Result<Vec<Reference>> {
        let what = file.display().to_string();
        let meta = fs::metadata(file).map_err(Error::file("open", file))?;
        let mut contents = Contents { what: what.clone(), items: HashMap::new() };
        if meta.is_dir() {
            self.take_folder(adding, file, &mut contents)?;
        } else {
            let open = File::open(file).map_err(Error::file("open", file))?;
            let counted = Reporting { inner: open, progress, done: 0, told: 0, total: meta.len() };
            self.take_archive(adding, counted, &mut contents)?;
        }
        let stem = file.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        let stem = stem.split('.').next().unwrap_or_default();
        let names = if contents.items.contains_key("index.json") {
            self.name_oci(adding, &contents, stem)?
        } else if contents.items.contains_key("manifest.json") {
            self.name_docker(adding, &contents, stem)?
        } else {
            return Err(Error::invalid(
                what,
                "neither an oci-archive (index.json) nor a docker-archive (manifest.json)",
            ));
        };
        if names.is_empty() {
            return Err(Error::invalid(what, "there is no image in it"));
        }
        Ok(names)
    }

    fn take_archive(&self, adding: &Adding, reader: impl Read, contents: &mut Contents) -> Result<()> {
        let what = contents.what.clone();
        let error = |source| Error::Archive { what: what.clone(), source };
        let (_, decoded) =
            compression::decode(reader).map_err(|source| error(TarError::Io { offset: 0, source }))?;
        let mut archive = Reader::new(decoded);
        let mut bytes = 0u64;
        while let Some(entry) = archive.next_entry().map_err(&error)? {
            let path = normal(&String::from_utf8_lossy(&entry.path));
            let item = match entry.kind {
                Kind::File => {
                    // Holes would be written to the store as zeros, as many as the entry claims.
                    if entry.is_sparse() {
                        return Err(error(entry.error("a sparse file, which no blob of an image is")));
                    }
                    bytes = bytes.saturating_add(entry.size);
                    if bytes > MAX_LAYER_BYTES {
                        let limit = MAX_LAYER_BYTES >> 30;
                        return Err(error(entry.error(format!("files of more than {limit} GiB together"))));
                    }
                    let mut blob = self.write_blob(adding)?;
                    let copied = copy_to(&mut archive.contents(&entry), &mut blob)?;
                    copied.map_err(|e| error(archive.contents_error(e)))?;
                    let (digest, size) = blob.finish()?;
                    Item::Blob(digest, size)
                }
                // Old archives link equal layers to each other.
                Kind::Symlink => Item::Link(beside(&path, &String::from_utf8_lossy(&entry.link))),
                Kind::HardLink => Item::Link(normal(&String::from_utf8_lossy(&entry.link))),
                _ => continue,
            };
            contents.add(path, item)?;
        }
        Ok(())
    }

    fn take_folder(&self, adding: &Adding, folder: &Path, contents: &mut Contents) -> Result<()> {
        let mut bytes = 0u64;
        let mut take = |relative: String| -> Result<()> {
            let path = folder.join(&relative);
            let meta = fs::metadata(&path).map_err(Error::file("open", &path))?;
            // A pipe or a device might have no end, a file of holes one far away.
            if !meta.is_file() {
                return Err(contents.invalid(format!("{relative} is no regular file")));
            }
            bytes = bytes.saturating_add(meta.len());
            if bytes > MAX_LAYER_BYTES {
                let limit = MAX_LAYER_BYTES >> 30;
                return Err(contents.invalid(format!("files of more than {limit} GiB together")));
            }
            let mut file = File::open(&path).map_err(Error::file("open", &path))?.take(meta.len());
            let mut blob = self.write_blob(adding)?;
            copy_to(&mut file, &mut blob)?.map_err(Error::file("read", &path))?;
            let (digest, size) = blob.finish()?;
            contents.add(relative, Item::Blob(digest, size))
        };
        take("oci-layout".to_string())?;
        take("index.json".to_string())?;
        let blobs = folder.join("blobs/sha256");
        for entry in fs::read_dir(&blobs).map_err(Error::file("list", &blobs))? {
            let entry = entry.map_err(Error::file("list", &blobs))?;
            take(format!("blobs/sha256/{}", entry.file_name().to_string_lossy()))?;
        }
        Ok(())
    }

    fn name_oci(&self, adding: &Adding, contents: &Contents, stem: &str) -> Result<Vec<Reference>> {
        let index: ImageIndex = contents.json(self, "index.json")?;
        let mut names = Vec::new();
        for descriptor in index.manifests() {
            let name = match descriptor_name(descriptor) {
                Some(name) => name,
                None => name_from_file(contents, stem)?,
            };
            let chosen = self.choose_manifest(contents, descriptor, 0)?;
            let digest = self.check_manifest(contents, &chosen)?;
            self.set_name(adding, &name, &digest)?;
            names.push(name);
        }
        Ok(names)
    }

    /// The manifest for the host's architecture where there is a choice.
    fn choose_manifest(
        &self,
        contents: &Contents,
        descriptor: &Descriptor,
        depth: u32,
    ) -> Result<Descriptor> {
        if !media::is_index(descriptor.media_type().as_ref()) {
            return Ok(descriptor.clone());
        }
        if depth > 4 {
            return Err(contents.invalid("indexes inside each other"));
        }
        let index: ImageIndex = self.document(contents, descriptor)?;
        let host = Platform::host();
        let chosen = match (host.choose(index.manifests()), &index.manifests()[..]) {
            (Some(chosen), _) => chosen,
            (None, [only]) => only,
            (None, _) => return Err(contents.invalid(format!("no image for {host}"))),
        };
        self.choose_manifest(contents, chosen, depth + 1)
    }

    fn document<T: for<'d> Deserialize<'d>>(
        &self,
        contents: &Contents,
        descriptor: &Descriptor,
    ) -> Result<T> {
        let digest = contents.must_have(descriptor)?;
        let bytes = self.read_blob(&digest, Some(descriptor.size()), MAX_DOCUMENT_BYTES)?;
        document::parse(&bytes).map_err(Error::json(format!("{digest} in {}", contents.what)))
    }

    fn check_manifest(&self, contents: &Contents, descriptor: &Descriptor) -> Result<Digest> {
        let manifest: ImageManifest = self.document(contents, descriptor)?;
        let _: ImageConfiguration = self.document(contents, manifest.config())?;
        for layer in manifest.layers() {
            contents.must_have(layer)?;
        }
        digest_of(descriptor)
    }

    fn name_docker(&self, adding: &Adding, contents: &Contents, stem: &str) -> Result<Vec<Reference>> {
        let images: Vec<DockerImage> = contents.json(self, "manifest.json")?;
        let mut names = Vec::new();
        for image in images {
            let digest = self.docker_manifest(adding, contents, &image)?;
            let mut tags = Vec::new();
            for tag in image.repo_tags.iter().flatten() {
                tags.push(tag.parse()?);
            }
            if tags.is_empty() {
                tags.push(name_from_file(contents, stem)?);
            }
            for name in tags {
                self.set_name(adding, &name, &digest)?;
                names.push(name);
            }
        }
        Ok(names)
    }

    /// Writes the OCI manifest for an image of a docker-archive.
    fn docker_manifest(&self, adding: &Adding, contents: &Contents, image: &DockerImage) -> Result<Digest> {
        let (config, config_size) = contents.find(&image.config)?;
        let bytes = self.read_blob(&config, Some(config_size), MAX_DOCUMENT_BYTES)?;
        let parsed: ImageConfiguration =
            document::parse(&bytes).map_err(Error::json(format!("{} in {}", image.config, contents.what)))?;
        if parsed.rootfs().diff_ids().len() != image.layers.len() {
            return Err(contents.invalid(format!("{} names another number of layers", image.config)));
        }
        let mut layers = Vec::new();
        for path in &image.layers {
            let (digest, size) = contents.find(path)?;
            let blob = self.open_blob(&digest, Some(size))?;
            let (kind, _) = compression::sniff(blob).map_err(Error::file("read", self.blob_path(&digest)))?;
            let suffix = match kind {
                Compression::Gzip => "tar+gzip",
                Compression::Zstd => "tar+zstd",
                _ => "tar",
            };
            let media_type = format!("application/vnd.oci.image.layer.v1.{suffix}");
            layers.push(json!({ "mediaType": media_type, "digest": digest.to_string(), "size": size }));
        }
        let manifest = to_bytes(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": config.to_string(),
                "size": config_size,
            },
            "layers": layers,
        }))?;
        self.add_blob(adding, &manifest)
    }
}

impl Contents {
    fn invalid(&self, reason: impl Into<String>) -> Error {
        Error::invalid(self.what.clone(), reason)
    }

    fn add(&mut self, path: String, item: Item) -> Result<()> {
        if let (Some(hex), Item::Blob(digest, _)) = (path.strip_prefix("blobs/sha256/"), &item)
            && digest.hex() != hex
        {
            return Err(self.invalid(format!("its blob {path} has the digest {digest}")));
        }
        self.items.insert(path, item);
        if self.items.len() > MAX_FILES {
            return Err(self.invalid(format!("more than {MAX_FILES} files")));
        }
        Ok(())
    }

    fn find(&self, path: &str) -> Result<(Digest, u64)> {
        let mut at = normal(path);
        for _ in 0..8 {
            match self.items.get(&at) {
                Some(Item::Blob(digest, size)) => return Ok((*digest, *size)),
                Some(Item::Link(target)) => at = target.clone(),
                None => break,
            }
        }
        Err(self.invalid(format!("{path} is missing in it")))
    }

    fn json<T: for<'d> Deserialize<'d>>(&self, store: &Store, path: &str) -> Result<T> {
        let (digest, size) = self.find(path)?;
        let bytes = store.read_blob(&digest, Some(size), MAX_DOCUMENT_BYTES)?;
        document::parse(&bytes).map_err(Error::json(format!("{path} in {}", self.what)))
    }

    fn must_have(&self, descriptor: &Descriptor) -> Result<Digest> {
        let digest = digest_of(descriptor)?;
        let (_, size) = self.find(&format!("blobs/sha256/{}", digest.hex()))?;
        if size != descriptor.size() {
            return Err(
                self.invalid(format!("{digest} has {size} bytes where {} should be", descriptor.size()))
            );
        }
        Ok(digest)
    }
}

/// Copies all of `reader`. The outer error is the store's, the inner one the reader's.
fn copy_to(reader: &mut impl Read, blob: &mut BlobWriter) -> Result<io::Result<()>> {
    let mut buf = vec![0; 128 << 10];
    loop {
        match reader.read(&mut buf) {
            Ok(0) => return Ok(Ok(())),
            Ok(n) => blob.put(&buf[..n])?,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Ok(Err(e)),
        }
    }
}

/// A path without `.`, `..` and empty components.
fn normal(path: &str) -> String {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// What `target` means, seen from the folder of `path`.
fn beside(path: &str, target: &str) -> String {
    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    normal(&format!("{folder}/{target}"))
}

fn descriptor_name(descriptor: &Descriptor) -> Option<Reference> {
    let annotations = descriptor.annotations().as_ref()?;
    let keys = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];
    keys.iter().find_map(|key| annotations.get(*key)?.parse().ok())
}

fn name_from_file(contents: &Contents, stem: &str) -> Result<Reference> {
    stem.parse().map_err(|_| contents.invalid("it names no image, and its file name is no image name"))
}
