//! Images that are made here, step by step: manifests around configs and layers, and the memory of steps made before.
//!
//! What a step made is kept as `build/<key>`, a file that holds the digest of the manifest it led to. The collector keeps those
//! manifests and all they name for as long as the file is there, which is [`CACHE_AGE`] after its last use.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::{Incoming, Store, digest_of, gc};
use crate::digest::Digest;
use crate::document;
use crate::error::{Error, Result};
use crate::image::Image;
use crate::layers::LayerPart;
use crate::media;
use crate::reference::Reference;

/// How long what a step made is kept for whoever makes it again.
const CACHE_AGE: Duration = Duration::from_secs(14 * 24 * 3600);

impl Incoming {
    /// Stores an image without a name: `config`, with the layers' digests put into it, and a manifest.
    ///
    /// # Errors
    /// The config is none, or the store cannot be written.
    pub fn add_image(&self, config: &[u8], layers: &[LayerPart]) -> Result<Digest> {
        let mut config: Value = document::parse(config).map_err(Error::json("config of the new image"))?;
        let ids: Vec<String> = layers.iter().map(|layer| layer.diff_id.to_string()).collect();
        config["rootfs"] = json!({ "type": "layers", "diff_ids": ids });
        let config = serde_json::to_vec(&config).map_err(Error::json("new config"))?;
        let config_digest = self.add(&config)?;
        let layer = |layer: &LayerPart| {
            json!({
                "mediaType": layer.media_type,
                "digest": layer.digest.to_string(),
                "size": layer.size,
            })
        };
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": media::MANIFEST,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": config_digest.to_string(),
                "size": config.len(),
            },
            "layers": layers.iter().map(layer).collect::<Vec<_>>(),
        });
        self.add(&serde_json::to_vec(&manifest).map_err(Error::json("new manifest"))?)
    }

    /// The image without a name that [`Incoming::add_image`] or a step made before; `name` is for messages.
    ///
    /// # Errors
    /// As [`Store::image`].
    pub fn image(&self, digest: &Digest, name: &Reference) -> Result<Image> {
        self.store.image_at(name, *digest, None)
    }

    /// The image that the step `key` led to, if that is known and all of it is here.
    pub fn remembered(&self, key: &Digest, name: &Reference) -> Option<Image> {
        let path = self.store.build_path(key);
        let digest = fs::read_to_string(&path).ok()?.trim().parse().ok()?;
        let image = self.image(&digest, name).ok()?;
        let mut layers = image.manifest().layers().iter();
        let here = layers.all(|l| digest_of(l).is_ok_and(|digest| self.store.has_blob(&digest, l.size())));
        if !here {
            return None;
        }
        // Used now: it may stay.
        let _ = fs::File::options().append(true).open(&path).and_then(|f| f.set_modified(SystemTime::now()));
        Some(image)
    }

    /// Remembers what the step `key` led to.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn remember(&self, key: &Digest, manifest: &Digest) -> Result<()> {
        self.store.scratch.replace(&self.store.build_path(key), format!("{manifest}\n").as_bytes())
    }
}

impl Store {
    fn build_path(&self, key: &Digest) -> PathBuf {
        self.root.join("build").join(key.hex())
    }

    /// Manifests that steps led to which are still remembered; with `forget` none is any more.
    pub(super) fn remembered_steps(&self, forget: bool) -> Result<Vec<Digest>> {
        let mut found = Vec::new();
        for (path, _) in gc::list(&self.root.join("build"))? {
            let touched = fs::symlink_metadata(&path).and_then(|meta| meta.modified());
            let old = touched.is_ok_and(|time| time.elapsed().is_ok_and(|age| age >= CACHE_AGE));
            let digest = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok());
            match digest {
                Some(digest) if !old && !forget => found.push(digest),
                _ => drop(fs::remove_file(&path)),
            }
        }
        Ok(found)
    }
}

impl Image {
    /// Its layers, for an image made of it.
    ///
    /// # Errors
    /// Manifest and config do not fit each other.
    pub fn layer_parts(&self) -> Result<Vec<LayerPart>> {
        let layers = self.manifest().layers();
        let ids = self.configuration().rootfs().diff_ids();
        if layers.len() != ids.len() {
            let reason = format!("a config of {} layers for a manifest of {}", ids.len(), layers.len());
            return Err(Error::invalid(format!("image {}", self.name()), reason));
        }
        let part = |(layer, id): (&oci_spec::image::Descriptor, &String)| {
            Ok(LayerPart {
                media_type: media::to_oci(layer.media_type().as_ref()).to_string(),
                digest: digest_of(layer)?,
                size: layer.size(),
                diff_id: id.parse()?,
            })
        };
        layers.iter().zip(ids).map(part).collect()
    }
}
