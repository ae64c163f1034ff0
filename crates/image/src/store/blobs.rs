//! Blobs: files named by the SHA-256 of their bytes, checked on every read.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::PathBuf;

use oci_spec::image::Descriptor;

use super::{Adding, Store, digest_of};
use crate::digest::{Digest, HashReader, HashWriter};
use crate::error::{Error, Result};
use crate::files::TempFile;

impl Store {
    /// Where the blob `digest` lies.
    pub(crate) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    /// Opens a blob whose length must be `size` where that is known.
    pub(crate) fn open_blob(&self, digest: &Digest, size: Option<u64>) -> Result<BlobReader> {
        let path = self.blob_path(digest);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(Error::MissingBlob { digest: digest.hex(), path });
            }
            Err(e) => return Err(Error::file("open", &path)(e)),
        };
        let len = file.metadata().map_err(Error::file("stat", &path))?.len();
        let reader = BlobReader { inner: HashReader::new(file), digest: *digest, path, len };
        match size {
            Some(size) if size != len => Err(reader.corrupt(format!("{len} bytes where {size} should be"))),
            _ => Ok(reader),
        }
    }

    /// Opens a layer or config as it is stored. Its bytes are not checked.
    ///
    /// # Errors
    /// It is not there, or its size is another.
    pub fn open_part(&self, part: &Descriptor) -> Result<File> {
        let digest = digest_of(part)?;
        self.open_blob(&digest, Some(part.size()))?;
        let path = self.blob_path(&digest);
        File::open(&path).map_err(Error::file("open", &path))
    }

    /// Reads a layer or config to its end to see whether it is what its name says.
    ///
    /// # Errors
    /// It is not, or it is not there.
    pub fn verify_part(&self, part: &Descriptor) -> Result<()> {
        self.open_blob(&digest_of(part)?, Some(part.size()))?.finish()
    }

    /// The whole of a small blob, checked.
    pub(crate) fn read_blob(&self, digest: &Digest, size: Option<u64>, limit: u64) -> Result<Vec<u8>> {
        let mut reader = self.open_blob(digest, size)?;
        if reader.len > limit {
            return Err(Error::invalid(digest.to_string(), format!("a document of {} bytes", reader.len)));
        }
        let mut bytes = Vec::with_capacity(reader.len as usize);
        let path = reader.path.clone();
        (&mut reader).take(limit).read_to_end(&mut bytes).map_err(Error::file("read", &path))?;
        reader.finish()?;
        Ok(bytes)
    }

    /// Begins a blob. Its bytes get their name when it is finished.
    pub(crate) fn write_blob(&self, adding: &Adding) -> Result<BlobWriter> {
        let _ = adding;
        let temp = self.scratch.file()?;
        let file = temp.file.try_clone().map_err(Error::file("open", temp.path()))?;
        Ok(BlobWriter {
            store: self.clone(),
            temp,
            out: HashWriter::new(io::BufWriter::with_capacity(1 << 18, file)),
        })
    }

    /// Stores `bytes` as a blob.
    pub(crate) fn add_blob(&self, adding: &Adding, bytes: &[u8]) -> Result<Digest> {
        let mut blob = self.write_blob(adding)?;
        blob.put(bytes)?;
        Ok(blob.finish()?.0)
    }
}

/// A blob being read. Nothing read from it counts before `finish` has said that it is whole.
pub(crate) struct BlobReader {
    inner: HashReader<File>,
    digest: Digest,
    path: PathBuf,
    len: u64,
}

impl BlobReader {
    /// Bytes of the blob.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    fn corrupt(&self, reason: String) -> Error {
        Error::CorruptBlob { digest: self.digest.hex(), path: self.path.clone(), reason }
    }

    /// Reads what is left and compares the digest.
    pub(crate) fn finish(self) -> Result<()> {
        let BlobReader { inner, digest, path, .. } = self;
        let (found, _) = inner.finish().map_err(Error::file("read", &path))?;
        if found != digest {
            let reason = format!("its bytes have the digest {found}");
            return Err(Error::CorruptBlob { digest: digest.hex(), path, reason });
        }
        Ok(())
    }
}

impl Read for BlobReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.inner.read(buf)
    }
}

/// A blob being written.
pub(crate) struct BlobWriter {
    store: Store,
    temp: TempFile,
    out: HashWriter<io::BufWriter<File>>,
}

impl BlobWriter {
    pub(crate) fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(Error::file("write", self.temp.path()))
    }

    /// Gives the blob its name. Gives digest and size.
    pub(crate) fn finish(self) -> Result<(Digest, u64)> {
        let BlobWriter { store, temp, out } = self;
        let (mut buffer, digest, size) = out.finish();
        buffer.flush().map_err(Error::file("write", temp.path()))?;
        let path = store.blob_path(&digest);
        // An equal blob that is whole stays: somebody may hold it. A broken one is mended.
        let whole = fs::metadata(&path).is_ok_and(|meta| meta.len() == size)
            && store.open_blob(&digest, Some(size)).and_then(BlobReader::finish).is_ok();
        if !whole {
            temp.publish(&path)?;
        }
        Ok((digest, size))
    }

    /// Where it is being written, for messages.
    pub(crate) fn path(&self) -> &std::path::Path {
        self.temp.path()
    }
}

impl Write for BlobWriter {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.out.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
