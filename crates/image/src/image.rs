//! One image of the store: its manifest and its config.

use std::collections::BTreeMap;
use std::fs::File;

use oci_spec::image::{ImageConfiguration, ImageManifest};
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::document;
use crate::error::{Error, Result};
use crate::files;
use crate::reference::Reference;
use crate::store::Store;
use crate::{MAX_DOCUMENT_BYTES, digest_of};

/// An image held open: as long as this lives nothing removes its blobs.
#[derive(Debug)]
pub struct Image {
    name: Reference,
    digest: Digest,
    manifest: ImageManifest,
    manifest_bytes: Vec<u8>,
    configuration: ImageConfiguration,
    config_bytes: Vec<u8>,
    _pin: File,
}

/// What the image says about the command to run: OCI image specification 1.1, config.md.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Config {
    /// What the command line begins with.
    pub entrypoint: Vec<String>,
    /// What follows the entrypoint when the user gives no command.
    pub cmd: Vec<String>,
    /// `NAME=value`
    pub env: Vec<String>,
    /// Where the command starts; `/` when the image says nothing.
    pub workdir: String,
    /// `user[:group]`, names or numbers; empty means root.
    pub user: String,
    /// `SIGTERM` when the image says nothing.
    pub stop_signal: String,
    /// `port/protocol`
    pub exposed_ports: Vec<String>,
    /// Folders whose content is to outlive the command's root.
    pub volumes: Vec<String>,
    /// How to see whether the command is well. Docker's, and not in the OCI specification.
    pub healthcheck: Option<Healthcheck>,
    /// Free text by key.
    pub labels: BTreeMap<String, String>,
    /// The processor it is made for, in the words of Go: `amd64`, `arm64`, …
    pub architecture: String,
    /// `linux`
    pub os: String,
}

/// How to see whether a command is well: docker's image specification 1.2. Times are in nanoseconds; what is not given is 0.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all(deserialize = "PascalCase"))]
pub struct Healthcheck {
    /// `NONE`, `CMD` and a command line, or `CMD-SHELL` and a line for the shell.
    pub test: Vec<String>,
    /// From one check to the next.
    pub interval: u64,
    /// A check that takes longer has failed.
    pub timeout: u64,
    /// How long after the start failures do not count.
    pub start_period: u64,
    /// Failures in a row that count.
    pub retries: u32,
}

impl Config {
    /// The command line: the entrypoint, then `args`, or the image's own command when `args` is empty.
    pub fn command(&self, args: &[String]) -> Vec<String> {
        let args = if args.is_empty() { &self.cmd } else { args };
        self.entrypoint.iter().chain(args).cloned().collect()
    }

    fn from_oci(configuration: &ImageConfiguration, bytes: &[u8]) -> Config {
        let config = configuration.config().clone().unwrap_or_default();
        let or = |text: &Option<String>, default: &str| match text {
            Some(text) if !text.is_empty() => text.clone(),
            _ => default.to_string(),
        };
        Config {
            entrypoint: config.entrypoint().clone().unwrap_or_default(),
            cmd: config.cmd().clone().unwrap_or_default(),
            env: config.env().clone().unwrap_or_default(),
            workdir: or(config.working_dir(), "/"),
            user: config.user().clone().unwrap_or_default(),
            stop_signal: or(config.stop_signal(), "SIGTERM"),
            exposed_ports: config.exposed_ports().clone().unwrap_or_default(),
            volumes: config.volumes().clone().unwrap_or_default(),
            healthcheck: healthcheck(bytes),
            labels: config.labels().clone().unwrap_or_default().into_iter().collect(),
            architecture: configuration.architecture().to_string(),
            os: configuration.os().to_string(),
        }
    }
}

/// The health check of a configuration. One that makes no sense is none, as an image without one runs too.
fn healthcheck(configuration: &[u8]) -> Option<Healthcheck> {
    #[derive(Deserialize)]
    struct Outer {
        config: Inner,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Inner {
        healthcheck: Option<Healthcheck>,
    }
    serde_json::from_slice::<Outer>(configuration).ok()?.config.healthcheck
}

impl Image {
    /// The name it was found by.
    pub fn name(&self) -> &Reference {
        &self.name
    }

    /// The digest of its manifest, which names all of it.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The manifest.
    pub fn manifest(&self) -> &ImageManifest {
        &self.manifest
    }

    /// The manifest as it is stored.
    pub fn manifest_bytes(&self) -> &[u8] {
        &self.manifest_bytes
    }

    /// The configuration, as the OCI types have it.
    pub fn configuration(&self) -> &ImageConfiguration {
        &self.configuration
    }

    /// The configuration as it is stored.
    pub fn config_bytes(&self) -> &[u8] {
        &self.config_bytes
    }

    /// What the image says about the command to run.
    pub fn config(&self) -> Config {
        Config::from_oci(&self.configuration, &self.config_bytes)
    }

    /// Bytes of its layers as they are stored.
    pub fn size_bytes(&self) -> u64 {
        self.manifest.layers().iter().map(|layer| layer.size()).sum()
    }
}

/// One line of the list of images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageSummary {
    /// The name with its tag.
    pub name: String,
    /// The digest of the manifest.
    pub digest: String,
    /// Bytes of the layers as stored.
    pub size_bytes: u64,
    /// Number of layers.
    pub layers: usize,
    /// When it was made, RFC 3339, if the image says so.
    pub created: Option<String>,
    /// What is wrong with it, if it cannot be read.
    pub broken: Option<String>,
}

impl Store {
    /// Finds and holds an image.
    ///
    /// # Errors
    /// There is no such image, or its manifest or config is missing, corrupt or makes no sense.
    pub fn image(&self, name: &Reference) -> Result<Image> {
        let (digest, size) = self.find(name)?;
        self.image_at(name, digest, Some(size))
    }

    /// Holds the image with this manifest, whatever `name` means by now.
    ///
    /// # Errors
    /// As [`Store::image`].
    pub fn image_pinned(&self, name: &Reference, digest: Digest) -> Result<Image> {
        self.image_at(name, digest, None)
    }

    /// The image with this manifest; `name` is for messages.
    pub(crate) fn image_at(&self, name: &Reference, digest: Digest, size: Option<u64>) -> Result<Image> {
        let path = self.blob_path(&digest);
        let pin = files::open_pinned(&path)?;
        let pin = pin.ok_or_else(|| Error::MissingBlob { digest: digest.hex(), path })?;
        let manifest_bytes = self.read_blob(&digest, size, MAX_DOCUMENT_BYTES)?;
        let what = |part: &str| format!("{part} of image {name}");
        let manifest: ImageManifest =
            document::parse(&manifest_bytes).map_err(Error::json(what("manifest")))?;
        let config = manifest.config();
        let config_bytes = self.read_blob(&digest_of(config)?, Some(config.size()), MAX_DOCUMENT_BYTES)?;
        let configuration = document::parse(&config_bytes).map_err(Error::json(what("config")))?;
        Ok(Image {
            name: name.clone(),
            digest,
            manifest,
            manifest_bytes,
            configuration,
            config_bytes,
            _pin: pin,
        })
    }

    /// The names of images in the registry `domain` that have the layer `digest`.
    ///
    /// # Errors
    /// The index cannot be read.
    pub fn names_with_layer(&self, domain: &str, digest: &Digest) -> Result<Vec<Reference>> {
        let text = digest.to_string();
        let has = |name: &Reference| {
            let image = self.image(name).ok();
            image.is_some_and(|image| image.manifest.layers().iter().any(|l| l.digest().as_ref() == text))
        };
        let names = self.names()?.into_iter().map(|(name, ..)| name);
        Ok(names.filter(|name| name.domain() == domain && has(name)).collect())
    }

    /// All images, sorted by name. One that cannot be read says why and hides no other.
    ///
    /// # Errors
    /// The index cannot be read.
    pub fn images(&self) -> Result<Vec<ImageSummary>> {
        let summary = |(name, digest, _): (Reference, Digest, u64)| match self.image(&name) {
            Ok(image) => ImageSummary {
                name: name.to_string(),
                digest: digest.to_string(),
                size_bytes: image.size_bytes(),
                layers: image.manifest.layers().len(),
                created: image.configuration.created().clone(),
                broken: None,
            },
            Err(e) => ImageSummary {
                name: name.to_string(),
                digest: digest.to_string(),
                size_bytes: 0,
                layers: 0,
                created: None,
                broken: Some(e.to_string()),
            },
        };
        Ok(self.names()?.into_iter().map(summary).collect())
    }

    /// Everything about an image as one JSON value: name, digest, manifest, config as stored, root file.
    ///
    /// # Errors
    /// As [`Store::image`].
    pub fn inspect(&self, name: &Reference) -> Result<serde_json::Value> {
        let image = self.image(name)?;
        let parse =
            |bytes: &[u8], what| document::parse::<serde_json::Value>(bytes).map_err(Error::json(what));
        let digest = image.digest;
        let names: Vec<String> = self
            .names()?
            .into_iter()
            .filter(|(_, d, _)| *d == digest)
            .map(|(name, ..)| name.to_string())
            .collect();
        let root = self.root_path(&digest);
        Ok(serde_json::json!({
            "name": image.name.to_string(),
            "names": names,
            "digest": digest.to_string(),
            "size_bytes": image.size_bytes(),
            "run": image.config(),
            "root_file": root.exists().then_some(root),
            "manifest": parse(image.manifest_bytes(), "manifest")?,
            "config": parse(image.config_bytes(), "config")?,
        }))
    }
}
