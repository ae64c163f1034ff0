//! An image goes to its registry: blobs first, several at once, then the manifest that makes them an image.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;

use image::{Digest, Image, NoProgress, Part, Progress, Reference, Store, media};
use oci_spec::image::Descriptor;
use ureq::http::header::{CONTENT_TYPE, HeaderValue};
use ureq::http::{Method, StatusCode};

use crate::Options;
use crate::auth::Scope;
use crate::client::Client;
use crate::error::{Cause, Error, Result, While};
use crate::http::{Call, Payload};
use crate::manifest::digest_of;
use crate::pull::announced_digest;
use crate::upload::{Arrived, Outgoing};
use crate::work::{Patience, in_parallel};

/// What a push did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pushed {
    /// The digest of the manifest.
    pub digest: Digest,
    /// Blobs that were sent.
    pub sent: usize,
    /// Blobs that the registry had in another repository.
    pub mounted: usize,
    /// Blobs that were there.
    pub present: usize,
}

/// Brings the image `name` from the store to its registry.
///
/// # Errors
/// There is no such image; the registry cannot be reached, refuses, lies or stalls. Blobs that have arrived stay there.
pub fn push(store: &Store, name: &Reference, options: &Options, progress: &dyn Progress) -> Result<Pushed> {
    let image = store.image(name).while_trying(|| format!("find image {name}"))?;
    progress.step(&format!("push {}", name.full()));
    let client = options.connect(name.domain())?;
    let repository = name.repository();
    let sources = sources(store, name, &image)?;
    let mut others: Vec<String> = sources.iter().flatten().cloned().collect();
    others.sort();
    others.dedup();
    let scope = Scope::push(&repository, &others);
    let pusher = Pusher { store, image: &image, client: &client, scope, repository, options, progress };
    pusher.push(name, &sources)
}

/// For each layer a repository of the same registry that had it when its image was pulled or pushed.
fn sources(store: &Store, name: &Reference, image: &Image) -> Result<Vec<Option<String>>> {
    let find = |layer: &Descriptor| -> Result<Option<String>> {
        let digest = digest_of(layer).map_err(Cause::Unsupported).while_trying(|| format!("push {name}"))?;
        let names =
            store.names_with_layer(name.domain(), &digest).while_trying(|| "list images".to_string())?;
        Ok(names.iter().map(Reference::repository).find(|repository| *repository != name.repository()))
    };
    image.manifest().layers().iter().map(find).collect()
}

struct Pusher<'a> {
    store: &'a Store,
    image: &'a Image,
    client: &'a Client,
    scope: Scope,
    repository: String,
    options: &'a Options,
    progress: &'a dyn Progress,
}

impl Pusher<'_> {
    fn push(&self, name: &Reference, sources: &[Option<String>]) -> Result<Pushed> {
        let manifest = self.image.manifest();
        let mut seen = HashSet::new();
        let count = manifest.layers().len();
        let layers = manifest.layers().iter().zip(sources).enumerate().map(|(number, (layer, source))| {
            (format!("layer {} of {count}", number + 1), layer, source.clone())
        });
        let config = ("the config".to_string(), manifest.config(), None);
        let unique = layers.chain([config]).filter(|(_, part, _)| seen.insert(part.digest().to_string()));
        let arrived = Mutex::new(Vec::new());
        in_parallel(self.options.parallel.min(count + 1), unique, |(what, part, source), called_off| {
            let how = self.part(&what, part, source, called_off)?;
            arrived.lock().unwrap_or_else(PoisonError::into_inner).push(how);
            Ok(())
        })?;
        self.manifest(name)?;
        let arrived = arrived.into_inner().unwrap_or_else(PoisonError::into_inner);
        let count = |wanted| arrived.iter().filter(|how| **how == wanted).count();
        Ok(Pushed {
            digest: self.image.digest(),
            sent: count(Arrived::Sent),
            mounted: count(Arrived::Mounted),
            present: count(Arrived::Present),
        })
    }

    fn part(
        &self,
        what: &str,
        descriptor: &Descriptor,
        mount_from: Option<String>,
        called_off: &AtomicBool,
    ) -> Result<Arrived> {
        let act = || {
            format!("put {what} ({}) into {}/{}", descriptor.digest(), self.client.domain, self.repository)
        };
        let digest = digest_of(descriptor).map_err(Cause::Unsupported).while_trying(act)?;
        let mut file = self.store.open_part(descriptor).while_trying(act)?;
        let outgoing = Outgoing {
            client: self.client,
            scope: &self.scope,
            repository: &self.repository,
            digest,
            size: descriptor.size(),
            mount_from,
            chunk_bytes: self.options.chunk_bytes,
            called_off,
        };
        let mut part: Box<dyn Part + '_> = match what {
            "the config" => Box::new(NoProgress),
            what => self.progress.part(&format!("{what} ({})", &digest.hex()[..12]), descriptor.size()),
        };
        let sent = outgoing.send(&mut file, part.as_mut());
        if let Err(Cause::Status { status: 400, .. }) = sent {
            // Bytes that are not those of their name: if it is our store that is broken, that is the news.
            self.store.verify_part(descriptor).while_trying(act)?;
        }
        let arrived = sent.while_trying(act)?;
        if arrived == Arrived::Sent {
            part.finish();
        }
        Ok(arrived)
    }

    fn manifest(&self, name: &Reference) -> Result<()> {
        let version =
            name.digest().map_or_else(|| name.tag().unwrap_or_default().to_string(), |d| d.to_string());
        let act = || format!("put manifest {version} into {}/{}", self.client.domain, self.repository);
        let digest = self.image.digest();
        if name.digest().is_some_and(|wanted| wanted != digest) {
            let reason = format!("the name pins another digest than that of the image here, {digest}");
            return Err(Error::new(act(), Cause::Unsupported(reason)));
        }
        let url = self.client.url(&format!("{}/manifests/{version}", self.repository));
        let media_type = self.image.manifest().media_type().as_ref().map_or(media::MANIFEST, |t| t.as_ref());
        let media_type = HeaderValue::from_str(media_type)
            .map_err(|_| Cause::Unsupported("a media type that is none".to_string()))
            .while_trying(act)?;
        let put = || {
            let bytes = Payload::Bytes(self.image.manifest_bytes());
            let call =
                Call::new(Method::PUT, url.clone()).header(CONTENT_TYPE, media_type.clone()).payload(bytes);
            let response = self.client.call(&self.scope, call)?;
            match response.status() {
                StatusCode::CREATED | StatusCode::OK | StatusCode::ACCEPTED => {
                    Ok(announced_digest(&response))
                }
                _ => Err(self.client.status(&url, response)),
            }
        };
        let found = Patience::new(self.client.http.timeouts).until(put).while_trying(act)?;
        match found {
            Some(found) if found != digest => {
                Err(Error::new(act(), Cause::WrongDigest { host: self.client.domain.clone(), found }))
            }
            _ => Ok(()),
        }
    }
}
