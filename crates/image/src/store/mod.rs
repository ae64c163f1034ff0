//! The store: a folder that is an OCI image layout, with what is derived from it beside.
//!
//! ```text
//! oci-layout  index.json  blobs/sha256/<hex>     OCI image specification 1.1, image-layout.md
//! roots/<hex of the manifest>-<format>.squashfs  root file systems, made on demand, thrown away with their image
//! kernels/<id>/                                  see `kernels`
//! build/<hex of a step>                          which image a step of a build led to, see `built`
//! partial/<hex>                                  blobs on their way from a registry, see `incoming`
//! locks/  tmp/                                   see `files`
//! ```
//!
//! Who holds which lock: whoever adds blobs holds `locks/gc` shared until the index names them; the collector holds it alone
//! and gives up when it is taken. An [`Image`](crate::Image) holds its manifest's blob locked shared, a root file itself: the
//! collector leaves what is locked. Changing `index.json` takes `locks/index`; reading it takes nothing.

mod blobs;
mod built;
mod check;
mod gc;
mod incoming;
mod index;
#[cfg(test)]
mod tests;

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) use blobs::BlobWriter;
pub use check::{Checked, Problem};
pub use gc::{Collected, Pruned};
pub use incoming::{Incoming, PartialBlob, ScratchFolder};
pub(crate) use index::{MAX_DOCUMENT_BYTES, digest_of};

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::files::{self, Scratch};

/// A store of images and kernels in one folder. Several processes may use it at once.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
    pub(crate) scratch: Scratch,
    keeper: Option<Arc<dyn Keeper>>,
}

/// Who keeps images whether or not names lead to them: a workload is made from one, and will be started from it again.
pub trait Keeper: std::fmt::Debug + Send + Sync {
    /// The digests of their manifests. Who begins to keep an image holds it until it is told of here.
    ///
    /// # Errors
    /// It cannot be known; then nothing is removed.
    fn kept(&self) -> io::Result<Vec<Digest>>;
}

impl Store {
    /// Opens the store at `root`, making it if it is not there, and removes what dead processes left in it.
    ///
    /// # Errors
    /// `root` cannot be made or written, or is an OCI layout of another version.
    pub fn open(root: impl Into<PathBuf>) -> Result<Store> {
        let root: PathBuf = root.into();
        for dir in ["", "blobs/sha256", "build", "partial", "roots", "kernels", "locks", "tmp"] {
            let path = if dir.is_empty() { root.clone() } else { root.join(dir) };
            DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(&path)
                .map_err(Error::file("create", &path))?;
        }
        let scratch = Scratch::new(root.join("tmp"), root.join("locks/tmp"));
        let store = Store { root, scratch, keeper: None };
        store.scratch.clean()?;
        store.check_layout()?;
        Ok(store)
    }

    /// The same store, of which the collector leaves what `keeper` keeps.
    #[must_use]
    pub fn kept_by(self, keeper: Arc<dyn Keeper>) -> Store {
        Store { keeper: Some(keeper), ..self }
    }

    /// The manifests that are kept whatever names say.
    fn kept(&self) -> Result<Vec<Digest>> {
        let Some(keeper) = &self.keeper else { return Ok(Vec::new()) };
        keeper.kept().map_err(Error::file("find out who keeps images of", &self.root))
    }

    /// The folder of the store.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn check_layout(&self) -> Result<()> {
        let path = self.root.join("oci-layout");
        match fs::read(&path) {
            Ok(bytes) => {
                let what = path.display().to_string();
                let layout: oci_spec::image::OciLayout =
                    serde_json::from_slice(&bytes).map_err(Error::json(what.clone()))?;
                match layout.image_layout_version().as_str() {
                    "1.0.0" => Ok(()),
                    other => Err(Error::invalid(what, format!("unknown image layout version {other:?}"))),
                }
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.scratch.replace(&path, br#"{"imageLayoutVersion":"1.0.0"}"#)
            }
            Err(e) => Err(Error::file("read", &path)(e)),
        }
    }

    fn lock_path(&self, name: &str) -> PathBuf {
        self.root.join("locks").join(name)
    }

    /// Held by whoever adds blobs, until the index names them.
    pub(crate) fn adding(&self) -> Result<Adding> {
        Ok(Adding { _lock: files::lock_shared(&self.lock_path("gc"))? })
    }

    /// Held alone by whoever builds the root file system of the manifest `hex`.
    pub(crate) fn lock_root(&self, hex: &str) -> Result<fs::File> {
        // 256 files serve all digests; two images that share one wait for each other, no more.
        files::lock(&self.lock_path(&format!("root-{}", &hex[..2])))
    }
}

/// Blobs are being added: the collector stays away.
#[derive(Debug)]
pub(crate) struct Adding {
    _lock: fs::File,
}
