//! Manifests and indexes from a registry, checked before anything is done that they say.
//!
//! Sources: OCI image specification 1.1 (`manifest.md`, `image-index.md`), Docker image manifest version 2 schema 2. A document
//! that could be taken for both an image and an index is refused (CVE-2021-41190), as is one whose type is said twice and
//! differently. Known omissions: schema 1, artifacts that are no images.

use std::collections::HashMap;

use image::{Digest, document, media};
use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex, ImageManifest};
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::error::shown;

/// Bytes of a manifest, index or config: the most that registries take. Attack: a document that fills the memory.
pub(crate) const MAX_DOCUMENT_BYTES: u64 = 4 << 20;
/// Layers of one image; Docker's own limit is 127.
const MAX_LAYERS: usize = 1024;
/// Bytes of all layers of an image.
const MAX_IMAGE_BYTES: u64 = 1 << 44;

/// What `Accept` says.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json";

/// A document that a tag or a digest names.
#[derive(Debug)]
pub enum Manifest {
    /// One image.
    Image(Box<ImageManifest>),
    /// Images for several platforms.
    Index(Box<ImageIndex>),
}

/// What tells a document's kind.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    schema_version: Option<u64>,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<IgnoredAny>,
    layers: Option<IgnoredAny>,
    manifests: Option<IgnoredAny>,
    fs_layers: Option<IgnoredAny>,
}

impl Manifest {
    /// Reads a document that came with this `Content-Type`.
    ///
    /// # Errors
    /// What is wrong with it, as one line.
    pub fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<Manifest, String> {
        if bytes.len() as u64 > MAX_DOCUMENT_BYTES {
            return Err(format!("a manifest of {} bytes", bytes.len()));
        }
        let shape: Shape = document::parse(bytes).map_err(|e| unparsable("manifest", &e))?;
        let said = content_type.map(|text| text.split(';').next().unwrap_or_default().trim());
        // Some say no more than that it is JSON.
        let said = said.filter(|said| said.contains("vnd."));
        let within = shape.media_type.as_deref();
        if let (Some(said), Some(within)) = (said, within)
            && said != within
        {
            return Err(format!(
                "a manifest that is {:?} outside and {:?} inside",
                shown(said),
                shown(within)
            ));
        }
        if shape.fs_layers.is_some() || shape.schema_version == Some(1) {
            return Err("a manifest of Docker's first schema, which is not supported".to_string());
        }
        if shape.schema_version != Some(2) {
            return Err("a manifest without schemaVersion 2".to_string());
        }
        let is_image = shape.layers.is_some() || shape.config.is_some();
        if is_image && shape.manifests.is_some() {
            return Err("a manifest that is both an image and an index".to_string());
        }
        let media_type = within.or(said);
        match media_type {
            Some(t) if !media::is_manifest(t) && !media::is_index(t) => {
                return Err(format!("a manifest of the unknown type {:?}", shown(t)));
            }
            Some(t) if media::is_manifest(t) != is_image => {
                return Err(format!("a manifest that is not the {:?} it says", shown(t)));
            }
            _ => {}
        }
        let parse_error = |e| unparsable("manifest", &e);
        if is_image {
            let manifest: ImageManifest = document::parse(bytes).map_err(parse_error)?;
            check_image(&manifest, shape.artifact_type.as_deref())?;
            return Ok(Manifest::Image(Box::new(manifest)));
        }
        Ok(Manifest::Index(Box::new(document::parse(bytes).map_err(parse_error)?)))
    }
}

/// What the parser says, who quotes as much of a document as there is.
fn unparsable(what: &str, error: &serde_json::Error) -> String {
    format!("a {what} that does not parse: {}", shown(&error.to_string()))
}

fn check_image(manifest: &ImageManifest, artifact_type: Option<&str>) -> Result<(), String> {
    let config = manifest.config().media_type().as_ref();
    if !media::is_config(config) {
        let kind = artifact_type.unwrap_or(config);
        return Err(format!("it is no image but an artifact of type {:?}", shown(kind)));
    }
    if manifest.layers().len() > MAX_LAYERS {
        return Err(format!("a manifest of {} layers", manifest.layers().len()));
    }
    if manifest.config().size() > MAX_DOCUMENT_BYTES {
        return Err(format!("a manifest whose config has {} bytes", manifest.config().size()));
    }
    if let Some(layer) = manifest.layers().iter().find(|layer| !media::is_layer(layer.media_type().as_ref()))
    {
        return Err(format!("a layer of the unknown type {:?}", shown(layer.media_type().as_ref())));
    }
    let mut sizes = HashMap::new();
    let mut total = 0u64;
    for part in manifest.layers().iter().chain([manifest.config()]) {
        let digest = digest_of(part)?;
        if *sizes.entry(digest).or_insert(part.size()) != part.size() {
            return Err(format!("a manifest that gives {digest} two sizes"));
        }
        total = total.saturating_add(part.size());
    }
    if total > MAX_IMAGE_BYTES {
        return Err(format!("a manifest of {total} bytes of layers"));
    }
    Ok(())
}

/// The digest a descriptor names.
pub(crate) fn digest_of(descriptor: &Descriptor) -> Result<Digest, String> {
    let text = descriptor.digest().as_ref();
    text.parse().map_err(|_| format!("the digest {:?}, which is no sha256 digest", shown(text)))
}

/// Reads the config of an image with this manifest.
///
/// # Errors
/// What is wrong with it, as one line.
pub fn parse_config(bytes: &[u8], manifest: &ImageManifest) -> Result<ImageConfiguration, String> {
    let config: ImageConfiguration = document::parse(bytes).map_err(|e| unparsable("config", &e))?;
    let (layers, diff_ids) = (manifest.layers().len(), config.rootfs().diff_ids().len());
    if layers != diff_ids {
        return Err(format!("a config of {diff_ids} layers for a manifest of {layers}"));
    }
    Ok(config)
}

/// The platforms of an index, for a message.
pub(crate) fn platforms_of(index: &ImageIndex) -> String {
    const LIMIT: usize = 30;
    let platform = |descriptor: &Descriptor| {
        let platform = descriptor.platform().as_ref()?;
        let variant = platform.variant().as_ref().map(|v| format!("/{v}")).unwrap_or_default();
        Some(format!("{}/{}{variant}", platform.os(), platform.architecture()))
    };
    let known = |text: &String| text != "unknown/unknown";
    let mut all: Vec<String> = index.manifests().iter().filter_map(platform).filter(known).collect();
    all.dedup();
    let more = if all.len() > LIMIT { ", …" } else { "" };
    all.truncate(LIMIT);
    if all.is_empty() { "nothing".to_string() } else { shown(&all.join(", ")) + more }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn image() -> Value {
        let digest = |c: &str| format!("sha256:{}", c.repeat(64));
        json!({
            "schemaVersion": 2,
            "mediaType": media::MANIFEST,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest("a"), "size": 10},
            "layers": [
                {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest("b"), "size": 20},
                {"mediaType": "application/vnd.oci.image.layer.v1.tar+zstd", "digest": digest("c"), "size": 30},
            ],
        })
    }

    fn parse(value: &Value, content_type: Option<&str>) -> Result<Manifest, String> {
        Manifest::parse(&serde_json::to_vec(value).unwrap(), content_type)
    }

    #[test]
    fn images_and_indexes_of_both_kinds_are_read() {
        assert!(matches!(parse(&image(), None), Ok(Manifest::Image(_))));
        assert!(matches!(parse(&image(), Some("application/json")), Ok(Manifest::Image(_))));
        let charset = format!("{}; charset=utf-8", media::MANIFEST);
        assert!(matches!(parse(&image(), Some(&charset)), Ok(Manifest::Image(_))));
        let mut docker = image();
        docker["mediaType"] = json!(media::DOCKER_MANIFEST);
        docker["config"]["mediaType"] = json!("application/vnd.docker.container.image.v1+json");
        docker["layers"][0]["mediaType"] = json!("application/vnd.docker.image.rootfs.diff.tar.gzip");
        assert!(matches!(parse(&docker, Some(media::DOCKER_MANIFEST)), Ok(Manifest::Image(_))));
        let list = json!({"schemaVersion": 2, "mediaType": media::DOCKER_LIST, "manifests": []});
        assert!(matches!(parse(&list, Some(media::DOCKER_LIST)), Ok(Manifest::Index(_))));
        let untyped = json!({"schemaVersion": 2, "manifests": []});
        assert!(matches!(parse(&untyped, None), Ok(Manifest::Index(_))));
    }

    #[test]
    fn documents_that_are_no_image_are_called_so() {
        let change = |path: &str, value: Value| {
            let mut image = image();
            *image.pointer_mut(path).unwrap() = value;
            image
        };
        let add = |key: &str, value: Value| {
            let mut image = image();
            image[key] = value;
            image
        };
        let cases = [
            (json!([]), "does not parse"),
            (json!({}), "schemaVersion"),
            (json!({"schemaVersion": 1, "fsLayers": []}), "first schema"),
            (add("manifests", json!([])), "both"),
            (change("/mediaType", json!(media::INDEX)), "not the"),
            (change("/mediaType", json!("application/vnd.x+json")), "unknown type"),
            (
                change("/config/mediaType", json!("application/vnd.cncf.helm.config.v1+json")),
                "artifact of type",
            ),
            (change("/layers/0/mediaType", json!("application/vnd.x\u{1b}[31m")), "unknown type"),
            (change("/layers/0/digest", json!("sha512:00")), "digest"),
            (change("/layers/0/digest", json!(7)), "does not parse"),
            (change("/layers/0/size", json!(-1)), "does not parse"),
            (change("/layers/0/size", json!("x".repeat(100_000))), "does not parse"),
            (change("/layers/0/size", json!(u64::MAX)), "bytes of layers"),
            (change("/layers/1/digest", image()["layers"][0]["digest"].clone()), "two sizes"),
            (change("/config/size", json!(1 << 30)), "config has"),
            (change("/layers", json!(vec![image()["layers"][0].clone(); 2000])), "2000 layers"),
        ];
        for (value, want) in cases {
            let message = parse(&value, None).unwrap_err();
            assert!(
                message.contains(want) && !message.contains('\u{1b}'),
                "{message:?} should contain {want:?}"
            );
        }
        let message = parse(&image(), Some(media::DOCKER_MANIFEST)).unwrap_err();
        assert!(message.contains("outside"), "{message}");
        let huge = vec![b' '; MAX_DOCUMENT_BYTES as usize + 1];
        assert!(Manifest::parse(&huge, None).is_err());
    }

    #[test]
    fn a_config_has_as_many_layers_as_its_manifest() {
        let Ok(Manifest::Image(manifest)) = parse(&image(), None) else { panic!("no image") };
        let config = |ids: &[&str]| {
            let value = json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": ids}});
            parse_config(&serde_json::to_vec(&value).unwrap(), &manifest)
        };
        assert!(config(&["a", "b"]).is_ok());
        assert!(config(&["a"]).unwrap_err().contains("1 layers for a manifest of 2"));
        assert!(parse_config(b"{", &manifest).is_err());
    }
}
