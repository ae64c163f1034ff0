//! `index.json`: which name means which manifest.

use std::collections::HashMap;
use std::fs;
use std::io;

use oci_spec::image::{ANNOTATION_REF_NAME, Descriptor, ImageIndex, ImageManifest, MediaType};

use super::{Adding, Store};
use crate::digest::Digest;
use crate::document;
use crate::error::{Error, Result};
use crate::files;
use crate::reference::Reference;

/// A document of metadata; larger ones are refused.
pub(crate) const MAX_DOCUMENT_BYTES: u64 = 16 << 20;

impl Store {
    /// The index as it is now.
    pub(crate) fn index(&self) -> Result<ImageIndex> {
        let path = self.root.join("index.json");
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(empty_index()),
            Err(e) => return Err(Error::file("read", &path)(e)),
        };
        serde_json::from_slice(&bytes).map_err(Error::json(path.display().to_string()))
    }

    fn change_index<T>(&self, change: impl FnOnce(&mut Vec<Descriptor>) -> Result<T>) -> Result<T> {
        let _lock = files::lock(&self.lock_path("index"))?;
        let mut index = self.index()?;
        let mut manifests = index.manifests().clone();
        let result = change(&mut manifests)?;
        index.set_manifests(manifests);
        let path = self.root.join("index.json");
        let bytes = serde_json::to_vec_pretty(&index).map_err(Error::json("index.json"))?;
        self.scratch.replace(&path, &bytes)?;
        Ok(result)
    }

    /// Makes `name` mean the manifest `digest`, whatever it meant before.
    pub(crate) fn set_name(&self, adding: &Adding, name: &Reference, digest: &Digest) -> Result<()> {
        let _ = adding;
        let bytes = self.read_blob(digest, None, MAX_DOCUMENT_BYTES)?;
        let manifest: ImageManifest =
            document::parse(&bytes).map_err(Error::json(format!("manifest {digest}")))?;
        let media_type = manifest.media_type().clone().unwrap_or(MediaType::ImageManifest);
        let mut descriptor = Descriptor::new(media_type, bytes.len() as u64, oci_digest(digest));
        descriptor
            .set_annotations(Some(HashMap::from([(ANNOTATION_REF_NAME.to_string(), name.to_string())])));
        self.change_index(|manifests| {
            manifests.retain(|m| name_of(m).as_deref() != Some(&name.to_string()));
            manifests.push(descriptor);
            Ok(())
        })
    }

    /// The manifest that `name` means.
    pub(crate) fn find(&self, name: &Reference) -> Result<(Digest, u64)> {
        let text = name.to_string();
        let index = self.index()?;
        let named = index.manifests().iter().find(|m| name_of(m).as_deref() == Some(&text));
        // A name by digest also means an image that has another name of the same repository.
        let pinned = |m: &&Descriptor| {
            let same = |other: String| other.parse::<Reference>().is_ok_and(|r| r.name() == name.name());
            name.digest().is_some_and(|digest| digest_of(m).is_ok_and(|d| d == digest))
                && name_of(m).is_some_and(same)
        };
        let found = named.or_else(|| index.manifests().iter().find(pinned));
        let found = found.ok_or_else(|| self.no_image(name))?;
        Ok((digest_of(found)?, found.size()))
    }

    fn no_image(&self, name: &Reference) -> Error {
        Error::NoImage { name: name.to_string(), store: self.root.clone() }
    }

    /// All names and the manifests they mean, sorted by name.
    pub(crate) fn names(&self) -> Result<Vec<(Reference, Digest, u64)>> {
        let index = self.index()?;
        let mut names = Vec::new();
        for manifest in index.manifests() {
            // Other tools may have put manifests here that we have no name for.
            if let Some(Ok(name)) = name_of(manifest).map(|name| name.parse()) {
                names.push((name, digest_of(manifest)?, manifest.size()));
            }
        }
        names.sort();
        Ok(names)
    }

    /// Makes `alias` another name for the image `name`.
    ///
    /// # Errors
    /// No image has the name `name`, or the index cannot be written.
    pub fn tag(&self, name: &Reference, alias: &Reference) -> Result<()> {
        let adding = self.adding()?;
        let (digest, _) = self.find(name)?;
        self.set_name(&adding, alias, &digest)
    }

    /// Removes the name `name`, and with its last name the image, its layers and its root file system. What a running
    /// workload uses of it stays valid until it ends.
    ///
    /// # Errors
    /// No image has that name, or the index cannot be written.
    pub fn remove(&self, name: &Reference) -> Result<()> {
        self.forget(name)?;
        self.collect()?;
        Ok(())
    }

    /// Removes the name alone.
    pub(super) fn forget(&self, name: &Reference) -> Result<()> {
        let text = name.to_string();
        self.change_index(|manifests| {
            let before = manifests.len();
            manifests.retain(|m| name_of(m).as_deref() != Some(&text));
            if manifests.len() == before { Err(self.no_image(name)) } else { Ok(()) }
        })
    }
}

/// The name a descriptor of `index.json` carries, as it is there.
pub(super) fn name_of(descriptor: &Descriptor) -> Option<String> {
    descriptor.annotations().as_ref()?.get(ANNOTATION_REF_NAME).cloned()
}

/// The digest of a descriptor; others than sha256 are refused.
pub(crate) fn digest_of(descriptor: &Descriptor) -> Result<Digest> {
    descriptor.digest().as_ref().parse()
}

/// A digest as the OCI types have it.
fn oci_digest(digest: &Digest) -> oci_spec::image::Digest {
    digest.to_string().parse().expect("a sha256 digest in hexadecimal is a digest")
}

fn empty_index() -> ImageIndex {
    let mut index = ImageIndex::default();
    index.set_schema_version(2);
    index.set_media_type(Some(MediaType::ImageIndex));
    index
}
