//! Images become one file.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use oci_spec::image::Descriptor;
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use serde_json::{Value, json};

use super::commit::to_bytes;
use crate::compression;
use crate::digest::Digest;
use crate::document;
use crate::error::{Error, Result};
use crate::files;
use crate::image::Image;
use crate::media;
use crate::progress::Progress;
use crate::store::Store;
use crate::tar::Writer;
use crate::{MAX_LAYER_BYTES, digest_of};

/// The kinds of archives that can be written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SaveFormat {
    /// An OCI image layout in a tar; layers as they are stored.
    #[default]
    OciArchive,
    /// What `docker load` takes; layers uncompressed.
    DockerArchive,
}

impl Store {
    /// Writes `images` to `file`, which appears whole or not at all (a pipe or device is written as it is). What they have in common
    /// is there once.
    ///
    /// # Errors
    /// A blob is missing or corrupt, or the file cannot be written.
    pub fn save(
        &self,
        images: &[Image],
        file: &Path,
        format: SaveFormat,
        progress: &dyn Progress,
    ) -> Result<()> {
        let names: Vec<String> = images.iter().map(|image| image.name().to_string()).collect();
        progress.step(&format!("save {} to {}", names.join(", "), file.display()));
        let special = fs::metadata(file).is_ok_and(|meta| !meta.is_file());
        if special {
            let open = File::options().write(true).open(file).map_err(Error::file("open", file))?;
            return self.write_archive(images, open, file, format, progress);
        }
        let out = Unnamed::create(file)?;
        let handle = out.file.try_clone().map_err(Error::file("write", file))?;
        self.write_archive(images, handle, file, format, progress)?;
        out.publish(file)
    }

    fn write_archive(
        &self,
        images: &[Image],
        out: File,
        file: &Path,
        format: SaveFormat,
        progress: &dyn Progress,
    ) -> Result<()> {
        let mut saving = Saving {
            store: self,
            written: HashSet::new(),
            out: Writer::new(io::BufWriter::with_capacity(1 << 18, out)),
            file: file.to_path_buf(),
            progress,
            done: 0,
        };
        match format {
            SaveFormat::OciArchive => saving.oci(images)?,
            SaveFormat::DockerArchive => saving.docker(images)?,
        }
        saving.out.finish().map_err(Error::file("write", file))?;
        Ok(())
    }
}

struct Saving<'a> {
    store: &'a Store,
    /// Blobs that are in the archive, or files in it that were made of them.
    written: HashSet<Digest>,
    out: Writer<io::BufWriter<File>>,
    file: PathBuf,
    progress: &'a dyn Progress,
    done: u64,
}

impl Saving<'_> {
    fn put(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.out.file(name, bytes.len() as u64, bytes).map_err(Error::file("write", &self.file))
    }

    fn count(&mut self, bytes: u64) {
        self.done += bytes;
        self.progress.bytes(self.done, None);
    }

    fn oci(&mut self, images: &[Image]) -> Result<()> {
        let manifests: Vec<Vec<u8>> =
            images.iter().map(|image| oci_manifest(image.manifest_bytes())).collect::<Result<_>>()?;
        let row = |(image, manifest): (&Image, &Vec<u8>)| {
            json!({
                "mediaType": media::MANIFEST,
                "digest": Digest::of(manifest).to_string(),
                "size": manifest.len(),
                "annotations": { "org.opencontainers.image.ref.name": image.name().to_string() },
            })
        };
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": images.iter().zip(&manifests).map(row).collect::<Vec<_>>(),
        });
        self.put("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        self.put("index.json", &to_bytes(&index)?)?;
        for (image, manifest) in images.iter().zip(&manifests) {
            self.put_blob(Digest::of(manifest), manifest)?;
            self.put_blob(digest_of(image.manifest().config())?, image.config_bytes())?;
            for layer in image.manifest().layers() {
                self.oci_layer(layer)?;
            }
        }
        Ok(())
    }

    fn put_blob(&mut self, digest: Digest, bytes: &[u8]) -> Result<()> {
        if self.written.insert(digest) { self.put(&blob_name(&digest), bytes) } else { Ok(()) }
    }

    fn oci_layer(&mut self, layer: &Descriptor) -> Result<()> {
        let digest = digest_of(layer)?;
        if !self.written.insert(digest) {
            return Ok(());
        }
        let mut blob = self.store.open_blob(&digest, Some(layer.size()))?;
        let size = blob.len();
        self.out.file(&blob_name(&digest), size, &mut blob).map_err(Error::file("write", &self.file))?;
        blob.finish()?;
        self.count(size);
        Ok(())
    }

    fn docker(&mut self, images: &[Image]) -> Result<()> {
        let mut rows: Vec<(Digest, Value)> = Vec::new();
        for image in images {
            let digest = digest_of(image.manifest().config())?;
            let name = json!(image.name().to_string());
            if let Some((_, row)) = rows.iter_mut().find(|(other, _)| *other == digest) {
                row["RepoTags"].as_array_mut().expect("it was made so below").push(name);
                continue;
            }
            let config = format!("{}.json", digest.hex());
            self.put(&config, image.config_bytes())?;
            let mut paths = Vec::new();
            for layer in image.manifest().layers() {
                let digest = digest_of(layer)?;
                let path = format!("{}/layer.tar", digest.hex());
                if self.written.insert(digest) {
                    self.docker_layer(layer, &path)?;
                }
                paths.push(path);
            }
            rows.push((digest, json!({ "Config": config, "RepoTags": [name], "Layers": paths })));
        }
        let manifest: Vec<Value> = rows.into_iter().map(|(_, row)| row).collect();
        self.put("manifest.json", &to_bytes(&json!(manifest))?)
    }

    /// The size goes before the contents, so the layer is decompressed twice.
    fn docker_layer(&mut self, layer: &Descriptor, path: &str) -> Result<()> {
        let digest = digest_of(layer)?;
        let what = || Error::file("decompress", self.store.blob_path(&digest));
        let mut blob = self.store.open_blob(&digest, Some(layer.size()))?;
        let counted = compression::decode(&mut blob)
            .and_then(|(_, decoded)| io::copy(&mut decoded.take(MAX_LAYER_BYTES), &mut io::sink()));
        // A blob that is not what it was explains whatever went wrong with it.
        blob.finish()?;
        let size = counted.map_err(what())?;
        let blob = self.store.open_blob(&digest, Some(layer.size()))?;
        let (_, decoded) = compression::decode(blob).map_err(what())?;
        self.out.file(path, size, decoded).map_err(Error::file("write", &self.file))?;
        self.count(size);
        Ok(())
    }
}

/// The manifest as it is, or with OCI's media types where it has Docker's: an image layout holds no others.
fn oci_manifest(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut manifest: Value = document::parse(bytes).map_err(Error::json("manifest"))?;
    if manifest["mediaType"] != media::DOCKER_MANIFEST {
        return Ok(bytes.to_vec());
    }
    let rename = |place: &mut Value| {
        if let Some(text) = place.get_mut("mediaType") {
            *text = text.as_str().map(media::to_oci).into();
        }
    };
    rename(&mut manifest);
    manifest.get_mut("config").into_iter().for_each(rename);
    manifest.get_mut("layers").and_then(Value::as_array_mut).into_iter().flatten().for_each(rename);
    to_bytes(&manifest)
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// A file that has no name until it is whole, so that nothing is left of it when we die.
struct Unnamed {
    file: File,
    /// Its name where the file system has no unnamed files.
    temp: Option<PathBuf>,
}

impl Unnamed {
    fn create(dest: &Path) -> Result<Unnamed> {
        let folder = match dest.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        if let Ok(fd) = rustix::fs::open(folder, flags, Mode::from_raw_mode(0o644)) {
            return Ok(Unnamed { file: File::from(fd), temp: None });
        }
        let temp = temp_name(dest);
        let file =
            File::options().write(true).create_new(true).open(&temp).map_err(Error::file("create", dest))?;
        Ok(Unnamed { file, temp: Some(temp) })
    }

    fn publish(mut self, dest: &Path) -> Result<()> {
        self.file.sync_all().map_err(Error::file("write", dest))?;
        if self.temp.is_none() {
            let temp = temp_name(dest);
            let fd = std::os::fd::AsRawFd::as_raw_fd(&self.file);
            let proc = format!("/proc/self/fd/{fd}");
            rustix::fs::linkat(CWD, proc, CWD, &temp, AtFlags::SYMLINK_FOLLOW)
                .map_err(|e| Error::file("create", dest)(e.into()))?;
            self.temp = Some(temp);
        }
        if let Some(temp) = &self.temp {
            fs::rename(temp, dest).map_err(Error::file("create", dest))?;
            self.temp = None;
        }
        files::sync_parent(&std::path::absolute(dest).map_err(Error::file("create", dest))?)
    }
}

impl Drop for Unnamed {
    fn drop(&mut self) {
        if let Some(temp) = &self.temp {
            let _ = fs::remove_file(temp);
        }
    }
}

fn temp_name(dest: &Path) -> PathBuf {
    let name = dest.file_name().unwrap_or_default().to_string_lossy();
    dest.with_file_name(format!(".{name}.{}", std::process::id()))
}
