//! A root file system's tar becomes an image of one layer.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use super::commit::Made;
use crate::MAX_LAYER_BYTES;
use crate::compression::{self, Compression};
use crate::digest::{Digest, HashReader};
use crate::error::{Error, Result};
use crate::image::Image;
use crate::progress::Progress;
use crate::reference::Reference;
use crate::root::Reporting;
use crate::store::{Adding, BlobWriter, Store};
use crate::tar::{End, Reader, TarError};

/// Quick rather than small. Not zstd: tools of a few years ago read no zstd layers, and images leave here for them.
pub(crate) const GZIP_LEVEL: u32 = 4;

/// A layer in the store.
pub(super) struct Layer {
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) media_type: &'static str,
    /// Digest of the uncompressed archive.
    pub(super) diff_id: Digest,
}

impl Store {
    /// Makes an image named `name` of the root file system in the tar `file` (plain, gzip, zstd or xz).
    ///
    /// # Errors
    /// The file cannot be read, is no whole tar archive, or the store cannot be written. The store is as before then.
    pub fn import(&self, file: &Path, name: &Reference, progress: &dyn Progress) -> Result<Image> {
        let open = File::open(file).map_err(Error::file("open", file))?;
        let total = open.metadata().map_err(Error::file("stat", file))?.len();
        let by = format!("import {}", file.file_name().unwrap_or_default().to_string_lossy());
        let made = Made::now(by, &["/bin/sh"]);
        progress.step(&format!("import {}", file.display()));
        let what = file.display().to_string();
        self.import_stream(open, total, &what, name, &made, |_| Ok(()), progress)
    }

    /// As `import`, from a stream; `then` is asked after the last byte whether the source is content.
    #[expect(
        clippy::too_many_arguments,
        reason = "one caller inside the crate, and each is a different thing"
    )]
    pub(crate) fn import_stream(
        &self,
        reader: impl Read,
        total: u64,
        what: &str,
        name: &Reference,
        made: &Made,
        then: impl FnOnce(std::result::Result<(), &Error>) -> Result<()>,
        progress: &dyn Progress,
    ) -> Result<Image> {
        let adding = self.adding()?;
        let counted = Reporting { inner: reader, progress, done: 0, told: 0, total };
        let layer = self.store_layer(&adding, counted, what);
        then(layer.as_ref().map(|_| ()))?;
        let image = self.commit_layer(&adding, name, &layer?, made)?;
        drop(adding);
        // The name may have meant another image before.
        self.collect()?;
        Ok(image)
    }

    /// Stores an archive as a layer, checking that it is one. gzip and zstd stay as they are, the rest becomes gzip.
    fn store_layer(&self, adding: &Adding, reader: impl Read, what: &str) -> Result<Layer> {
        let archive = |source| Error::Archive { what: what.to_string(), source };
        let read_error = |source| archive(TarError::Io { offset: 0, source });
        let (kind, raw) = compression::sniff(reader).map_err(read_error)?;
        let mut blob = self.write_blob(adding)?;
        let (media_type, checked) = match kind {
            Compression::Gzip | Compression::Zstd => {
                let mut tee = Tee::new(raw, &mut blob);
                let checked = check_as(kind, &mut tee);
                let media_type = match kind {
                    Compression::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
                    _ => "application/vnd.oci.image.layer.v1.tar+zstd",
                };
                (media_type, tee.end(checked))
            }
            Compression::None | Compression::Xz | Compression::Bzip2 => {
                ("application/vnd.oci.image.layer.v1.tar+gzip", recompress(kind, raw, &mut blob))
            }
        };
        let diff_id = checked.map_err(Error::file("write", blob.path()))?.map_err(archive)?;
        let (digest, size) = blob.finish()?;
        Ok(Layer { digest, size, media_type, diff_id })
    }
}

type Checked = std::result::Result<Digest, TarError>;

fn recompress(kind: Compression, raw: impl Read, blob: &mut BlobWriter) -> io::Result<Checked> {
    let mut encoder = flate2::write::GzEncoder::new(blob, flate2::Compression::new(GZIP_LEVEL));
    let decoded = match compression::decoder(kind, raw) {
        Ok(decoded) => decoded,
        Err(source) => return Ok(Err(TarError::Io { offset: 0, source })),
    };
    let mut tee = Tee::new(decoded, &mut encoder);
    let checked = check(&mut tee);
    let checked = tee.end(checked)?;
    encoder.finish()?;
    Ok(checked)
}

fn check_as(kind: Compression, reader: impl Read) -> Checked {
    check(compression::decoder(kind, reader).map_err(|source| TarError::Io { offset: 0, source })?)
}

/// Reads the whole archive and gives the digest of its bytes.
fn check(reader: impl Read) -> Checked {
    let mut archive = Reader::new(HashReader::new(reader.take(MAX_LAYER_BYTES)));
    while archive.next_entry()?.is_some() {}
    let end = archive.end();
    let hash = archive.into_inner();
    let offset = hash.count();
    let (digest, size) = hash.finish().map_err(|source| TarError::Io { offset, source })?;
    // There is no digest that says whether all of it is here: only the mark of the end does.
    if end != Some(End::Mark) || size >= MAX_LAYER_BYTES {
        return Err(TarError::Truncated { offset: size });
    }
    Ok(digest)
}

/// Copies what is read to a writer. An error of the writer is kept apart from those of the reader.
struct Tee<R, W> {
    reader: R,
    writer: W,
    failed: Option<io::Error>,
}

impl<R: Read, W: Write> Tee<R, W> {
    fn new(reader: R, writer: W) -> Self {
        Tee { reader, writer, failed: None }
    }

    /// Copies what has not been read. The outer error is the writer's.
    fn end(mut self, checked: Checked) -> io::Result<Checked> {
        let drained = if checked.is_ok() { io::copy(&mut self, &mut io::sink()) } else { Ok(0) };
        match (self.failed, drained) {
            (Some(failed), _) => Err(failed),
            (None, Err(source)) => Ok(Err(TarError::Io { offset: 0, source })),
            (None, Ok(_)) => Ok(checked),
        }
    }
}

impl<R: Read, W: Write> Read for Tee<R, W> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.reader.read(buf)?;
        if let Err(e) = self.writer.write_all(&buf[..n]) {
            self.failed = Some(e);
            return Err(io::Error::other("the copy cannot be written"));
        }
        Ok(n)
    }
}
