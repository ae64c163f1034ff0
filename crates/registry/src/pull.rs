//! An image comes here: its manifest, its config, and its layers several at once.

use std::collections::HashSet;
use std::sync::atomic::AtomicBool;

use image::{Digest, Image, Incoming, Part, Progress, Reference, Store};
use oci_spec::image::{Descriptor, ImageIndex, ImageManifest};
use ureq::http::header::{ACCEPT, CONTENT_TYPE, HeaderName, HeaderValue};
use ureq::http::{Method, StatusCode};

use crate::Options;
use crate::auth::Scope;
use crate::client::Client;
use crate::download::Wanted;
use crate::error::{Cause, Error, Result, While};
use crate::http::{self, Call, Response};
use crate::manifest::{self, MAX_DOCUMENT_BYTES, Manifest, digest_of};
use crate::work::{Patience, in_parallel};

/// Indexes inside each other.
const MAX_DEPTH: u32 = 4;
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// What a pull brought.
#[derive(Debug)]
pub struct Pulled {
    /// The image, held.
    pub image: Image,
    /// The digest of what the name means in the registry: a manifest or an index.
    pub digest: Digest,
    /// False when the store had all of it under this name already.
    pub is_new: bool,
}

/// Brings the image `name` from its registry into the store, under the same name.
///
/// # Errors
/// The registry cannot be reached, refuses, lies or stalls; the image is none or has nothing for the platform; the store
/// cannot be written. No name has changed then; what arrived of large layers is kept for the next attempt.
pub fn pull(store: &Store, name: &Reference, options: &Options, progress: &dyn Progress) -> Result<Pulled> {
    progress.step(&format!("pull {}", name.full()));
    let client = options.connect(name.domain())?;
    let repository = name.repository();
    let puller = Puller { scope: Scope::pull(&repository), client: &client, repository, options, progress };
    puller.pull(store, name)
}

/// The digest that an answer says its manifest has.
pub(crate) fn announced_digest(response: &Response) -> Option<Digest> {
    response.headers().get(CONTENT_DIGEST)?.to_str().ok()?.parse().ok()
}

struct Puller<'a> {
    client: &'a Client,
    scope: Scope,
    repository: String,
    options: &'a Options,
    progress: &'a dyn Progress,
}

/// A manifest as it came.
struct Document {
    bytes: Vec<u8>,
    digest: Digest,
    manifest: Manifest,
}

impl Puller<'_> {
    fn pull(&self, store: &Store, name: &Reference) -> Result<Pulled> {
        let version =
            name.digest().map_or_else(|| name.tag().unwrap_or_default().to_string(), |d| d.to_string());
        let top = self.document(&version)?;
        let digest = top.digest;
        let (bytes, manifest) = self.choose(top, 0)?;
        let before = store.image(name).ok().map(|image| image.digest());
        let incoming = store.incoming().while_trying(|| "lock the store".to_string())?;
        self.config(&incoming, &manifest)?;
        self.layers(&incoming, &manifest)?;
        let stored = || format!("store image {name}");
        let manifest_digest = incoming.add(&bytes).while_trying(stored)?;
        let image = incoming.commit(name, &manifest_digest).while_trying(stored)?;
        Ok(Pulled { image, digest, is_new: before != Some(manifest_digest) })
    }

    /// The manifest or index that a tag or digest names.
    fn document(&self, version: &str) -> Result<Document> {
        let act = || format!("get manifest {version} of {}/{}", self.client.domain, self.repository);
        let url = self.client.url(&format!("{}/manifests/{version}", self.repository));
        let get = || {
            let accept = HeaderValue::from_static(manifest::ACCEPT);
            let response =
                self.client.call(&self.scope, Call::new(Method::GET, url.clone()).header(ACCEPT, accept))?;
            if response.status() != StatusCode::OK {
                return Err(self.client.status(&url, response));
            }
            let content_type = response.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok());
            let (content_type, announced) = (content_type.map(str::to_string), announced_digest(&response));
            let bytes = http::read_document(&self.client.http, &url, response, MAX_DOCUMENT_BYTES)?;
            Ok((bytes, content_type, announced))
        };
        let (bytes, content_type, announced) =
            Patience::new(self.client.http.timeouts).until(get).while_trying(act)?;
        let digest = Digest::of(&bytes);
        // What was asked for by digest has it; what was not has the one that the registry announces.
        let wanted: Option<Digest> = version.parse().ok().or(announced);
        if wanted.is_some_and(|wanted| wanted != digest) {
            return Err(Error::new(
                act(),
                Cause::WrongDigest { host: self.client.domain.clone(), found: digest },
            ));
        }
        let manifest = Manifest::parse(&bytes, content_type.as_deref());
        let manifest = manifest.map_err(Cause::Unsupported).while_trying(act)?;
        Ok(Document { bytes, digest, manifest })
    }

    /// The manifest of the image for the wanted platform.
    fn choose(&self, document: Document, depth: u32) -> Result<(Vec<u8>, ImageManifest)> {
        let index = match document.manifest {
            Manifest::Image(manifest) => return Ok((document.bytes, *manifest)),
            Manifest::Index(index) => index,
        };
        let act = || format!("choose an image of index {}", document.digest);
        if depth >= MAX_DEPTH {
            return Err(Error::new(act(), Cause::Unsupported("indexes inside each other".to_string())));
        }
        let chosen = self.for_platform(&index).while_trying(act)?;
        let digest = digest_of(chosen).map_err(Cause::Unsupported).while_trying(act)?;
        let next = self.document(&digest.to_string())?;
        if next.bytes.len() as u64 != chosen.size() {
            let reason =
                format!("manifest {digest} has {} bytes, its index says {}", next.bytes.len(), chosen.size());
            return Err(Error::new(act(), Cause::Unsupported(reason)));
        }
        self.choose(next, depth + 1)
    }

    fn for_platform<'i>(&self, index: &'i ImageIndex) -> std::result::Result<&'i Descriptor, Cause> {
        let wanted = &self.options.platform;
        wanted.choose(index.manifests()).ok_or_else(|| Cause::NoPlatform {
            wanted: wanted.to_string(),
            offered: manifest::platforms_of(index),
        })
    }

    /// Makes sure that the store has the config, and that it is one.
    fn config(&self, incoming: &Incoming, manifest: &ImageManifest) -> Result<()> {
        let config = manifest.config();
        let act = || format!("get config {} of {}/{}", config.digest(), self.client.domain, self.repository);
        let digest = digest_of(config).map_err(Cause::Unsupported).while_trying(act)?;
        let bytes = match incoming.document(&digest, config.size()) {
            Some(bytes) => bytes,
            None => {
                let bytes = self.small_blob(&digest, config.size()).while_trying(act)?;
                incoming.add(&bytes).while_trying(act)?;
                bytes
            }
        };
        let parsed =
            manifest::parse_config(&bytes, manifest).map_err(Cause::Unsupported).while_trying(act)?;
        let (os, architecture) = (parsed.os().to_string(), parsed.architecture().to_string());
        let wanted = self.options.platform.to_string();
        if !wanted.starts_with(&format!("{os}/{architecture}")) {
            self.progress.note(&format!("the image is for {os}/{architecture}, not for {wanted}"));
        }
        Ok(())
    }

    fn small_blob(&self, digest: &Digest, size: u64) -> std::result::Result<Vec<u8>, Cause> {
        let url = self.client.url(&format!("{}/blobs/{digest}", self.repository));
        let bytes = Patience::new(self.client.http.timeouts).until(|| {
            let response = self.client.call(&self.scope, Call::new(Method::GET, url.clone()))?;
            if response.status() != StatusCode::OK {
                return Err(self.client.status(&url, response));
            }
            http::read_document(&self.client.http, &url, response, size)
        })?;
        let found = Digest::of(&bytes);
        if found != *digest {
            return Err(Cause::WrongDigest { host: self.client.domain.clone(), found });
        }
        Ok(bytes)
    }

    /// All layers, several at once. The first failure calls off the others.
    fn layers(&self, incoming: &Incoming, manifest: &ImageManifest) -> Result<()> {
        let mut seen = HashSet::new();
        let unique =
            manifest.layers().iter().enumerate().filter(|(_, layer)| seen.insert(layer.digest().to_string()));
        let count = manifest.layers().len();
        let threads = self.options.parallel.min(count);
        in_parallel(threads, unique, |(number, layer), called_off| {
            self.layer(incoming, &format!("layer {} of {count}", number + 1), layer, called_off)
        })
    }

    fn layer(
        &self,
        incoming: &Incoming,
        what: &str,
        layer: &Descriptor,
        called_off: &AtomicBool,
    ) -> Result<()> {
        let act = || format!("get {what} ({}) of {}/{}", layer.digest(), self.client.domain, self.repository);
        let digest = digest_of(layer).map_err(Cause::Unsupported).while_trying(act)?;
        let short = &digest.hex()[..12];
        let wait = || {
            self.progress.note(&format!("{what} ({short}) is on its way in another process: waiting for it"))
        };
        let Some(blob) = incoming.blob(&digest, layer.size(), wait).while_trying(act)? else {
            return Ok(());
        };
        let wanted = Wanted {
            client: self.client,
            scope: &self.scope,
            repository: &self.repository,
            digest,
            called_off,
        };
        let mut part: Box<dyn Part + '_> = self.progress.part(&format!("{what} ({short})"), layer.size());
        wanted.fetch(blob, part.as_mut()).while_trying(act)?;
        part.finish();
        Ok(())
    }
}
