//! What an image or an archive holds, to be looked at: the files of an image without unpacking it to the host.
//!
//! Paths are bytes from the image's root, with or without a slash in front; none of them is ever a path of the host.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::digest::HashReader;
use crate::error::{Error, Result};
use crate::files::TempFile;
use crate::image::Image;
use crate::layers::{self, ApplyError, Body, NodeId, ROOT, Tree, XattrKind};
use crate::path::{self, Step, components};
use crate::progress::Progress;
use crate::squashfs::{self, BLOCK_BYTES, DataWriter, FileData};
use crate::store::Store;
use crate::tar::{Reader, TarError};
use crate::{MAX_LAYER_BYTES, compression};

/// The files of an image or an archive.
pub struct View {
    tree: Tree,
    data: DataWriter,
    file: File,
    layers: u32,
    temp: TempFile,
}

/// What a name leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeKind {
    /// A folder.
    Dir,
    /// A regular file of so many bytes.
    File(u64),
    /// A symbolic link to this target.
    Symlink(Vec<u8>),
    /// A character device: major and minor number.
    Char(u32, u32),
    /// A block device: major and minor number.
    Block(u32, u32),
    /// A named pipe.
    Fifo,
}

/// Everything about a file but its name and its contents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeInfo {
    /// What it is.
    pub kind: NodeKind,
    /// Permission, setuid, setgid and sticky bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds since 1970.
    pub mtime: u64,
    /// Full names and values, sorted.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Store {
    /// The files of `image`.
    ///
    /// # Errors
    /// A layer is missing, corrupt, or no sane archive; the store cannot be written.
    pub fn view(&self, image: &Image, progress: &dyn Progress) -> Result<View> {
        let mut view = self.empty_view()?;
        self.extend_view(&mut view, image, progress)?;
        Ok(view)
    }

    /// Puts those layers of `image` that `view` does not have on top of it; those that it has are the image's first.
    ///
    /// # Errors
    /// As [`Store::view`]; the view is of no use then.
    pub fn extend_view(&self, view: &mut View, image: &Image, progress: &dyn Progress) -> Result<()> {
        for number in view.layers as usize..image.manifest().layers().len() {
            self.apply_layer(image, number, &mut view.tree, &mut view.data, progress)?;
            view.layers += 1;
        }
        view.data.file()?;
        Ok(())
    }

    /// The files of a tar archive, plain or compressed; `what` is its name for errors.
    ///
    /// # Errors
    /// It is none, or not whole; the store cannot be written.
    pub fn view_archive(&self, reader: impl Read, what: &str) -> Result<View> {
        let mut view = self.empty_view()?;
        view.add_archive(reader, what)?;
        Ok(view)
    }

    fn empty_view(&self) -> Result<View> {
        let temp = self.scratch.file()?;
        let clone = || temp.file.try_clone().map_err(Error::file("open", temp.path()));
        let data = DataWriter::new(clone()?, temp.path().to_path_buf())?;
        Ok(View { tree: Tree::new(), data, file: clone()?, layers: 0, temp })
    }
}

impl View {
    /// Puts a layer's archive on top.
    fn add_archive(&mut self, reader: impl Read, what: &str) -> Result<()> {
        let error = |source| Error::Archive { what: what.to_string(), source };
        let io_error = |source| error(TarError::Io { offset: 0, source });
        let (_, decoded) = compression::decode(reader).map_err(io_error)?;
        let mut archive = Reader::new(HashReader::new(decoded.take(MAX_LAYER_BYTES)));
        match layers::apply(&mut self.tree, self.layers, &mut archive, &mut self.data) {
            Ok(_) => {}
            Err(ApplyError::Store(e)) => return Err(e),
            Err(ApplyError::Tar(source)) => return Err(error(source)),
        }
        self.layers += 1;
        self.data.file()?;
        Ok(())
    }

    /// The files as a squashfs in a file, which is there until the view goes or a layer comes on top.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn file_system(&mut self) -> Result<&Path> {
        let end = self.data.position();
        squashfs::finish(&self.tree, &mut self.data)?;
        self.data.rewind(end)?;
        // Still nobody sweeps it, and a machine may have it for a disk.
        self.temp.file.lock_shared().map_err(Error::file("lock", self.temp.path()))?;
        Ok(self.temp.path())
    }

    /// The path without symbolic links that `path` leads to, without a slash in front; empty for the root. Nothing when there is
    /// nothing; with `missing`, what is not there stays in it as it is.
    ///
    /// # Errors
    /// A file that is no folder stands in its way, or its links lead in circles. What stands in the way is the error.
    pub fn resolve(&self, path: &[u8], missing: Missing) -> std::result::Result<Option<Vec<u8>>, String> {
        let too_many = || "too many symbolic links".to_string();
        path::resolve(path, too_many, |here, rest| {
            let Some(id) = self.id(here) else {
                return Ok(match missing {
                    Missing::Nothing => Step::Nowhere,
                    Missing::Stays => Step::On,
                });
            };
            match &self.tree.node(id).body {
                Body::Symlink(target) => Ok(Step::Follow(target.to_vec())),
                Body::Dir(_) => Ok(Step::On),
                _ if rest.iter().all(|name| name == b"..") => Ok(Step::On),
                _ => Err(format!("{:?} is no folder", String::from_utf8_lossy(here))),
            }
        })
    }

    /// The inode that a path without symbolic links names.
    fn id(&self, path: &[u8]) -> Option<NodeId> {
        components(path).try_fold(ROOT, |at, name| Some(self.tree.dir(at)?.children.get(name)?.node))
    }

    /// What lies at a path without symbolic links but perhaps its last component.
    pub fn stat(&self, path: &[u8]) -> Option<NodeInfo> {
        let node = self.tree.node(self.id(path)?);
        let kind = match &node.body {
            Body::Dir(_) => NodeKind::Dir,
            Body::File(data) => NodeKind::File(data.size),
            Body::Symlink(target) => NodeKind::Symlink(target.to_vec()),
            Body::Char(major, minor) => NodeKind::Char(*major, *minor),
            Body::Block(major, minor) => NodeKind::Block(*major, *minor),
            Body::Fifo => NodeKind::Fifo,
            Body::Gone => return None,
        };
        let meta = node.meta;
        let xattrs = self.tree.xattrs(meta.xattrs).iter();
        let mut xattrs: Vec<_> = xattrs.map(|x| (full_name(x.kind, &x.name), x.value.clone())).collect();
        xattrs.sort();
        let mtime = meta.mtime.into();
        Some(NodeInfo { kind, mode: meta.mode, uid: meta.uid, gid: meta.gid, mtime, xattrs })
    }

    /// A number that two names of one file share, where it has several.
    pub fn shared_inode(&self, path: &[u8]) -> Option<u32> {
        let id = self.id(path)?;
        (self.tree.node(id).links > 1).then_some(id)
    }

    /// The names in a folder, sorted; nothing when it is none.
    pub fn list(&self, path: &[u8]) -> Option<Vec<Vec<u8>>> {
        let dir = self.tree.dir(self.id(path)?)?;
        Some(dir.children.keys().map(|name| name.to_vec()).collect())
    }

    /// The contents of a regular file; nothing when it is none.
    pub fn open(&self, path: &[u8]) -> Option<impl Read + '_> {
        match &self.tree.node(self.id(path)?).body {
            Body::File(data) => {
                Some(FileReader { file: &self.file, data, block: 0, at: 0, offset: data.start })
            }
            _ => None,
        }
    }

    /// The whole of a small regular file, through symbolic links.
    ///
    /// # Errors
    /// It has more than `limit` bytes, or cannot be read.
    pub fn read(&self, path: &[u8], limit: u64) -> io::Result<Option<Vec<u8>>> {
        let Ok(Some(path)) = self.resolve(path, Missing::Nothing) else { return Ok(None) };
        self.open(&path).map(|reader| compression::read_limited(reader, limit)).transpose()
    }
}

/// What [`View::resolve`] does with what is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// There is no such path then.
    Nothing,
    /// The rest of the path is taken as it is.
    Stays,
}

fn full_name(kind: XattrKind, name: &[u8]) -> Vec<u8> {
    let space: &[u8] = match kind {
        XattrKind::User => b"user.",
        XattrKind::Trusted => b"trusted.",
        XattrKind::Security => b"security.",
    };
    [space, name].concat()
}

/// Reads a file block by block; holes are zeros.
struct FileReader<'v> {
    file: &'v File,
    data: &'v FileData,
    /// Number of the block, and how far in it.
    block: usize,
    at: u64,
    /// Where the block's bytes lie, if it has any.
    offset: u64,
}

impl Read for FileReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(word) = self.data.blocks.get(self.block) else { return Ok(0) };
        let before = self.block as u64 * BLOCK_BYTES as u64;
        let len = (self.data.size - before).min(BLOCK_BYTES as u64);
        let wanted = (len - self.at).min(buffer.len() as u64) as usize;
        let count = if *word == 0 {
            buffer[..wanted].fill(0);
            wanted
        } else {
            self.file.read_at(&mut buffer[..wanted], self.offset + self.at)?
        };
        if count == 0 && wanted > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += count as u64;
        if self.at == len {
            self.offset += if *word == 0 { 0 } else { len };
            (self.block, self.at) = (self.block + 1, 0);
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NoProgress;
    use crate::tar::testing::Tar;
    use crate::testing::{noise, reference, temp_store};

    #[test]
    fn files_are_read_as_they_are() {
        let temp = temp_store();
        let mut large = noise(300_000);
        large[131_072..262_144].fill(0);
        let tar = Tar::new().dir("d").file("d/large", &large).file("empty", b"").symlink("l", "/d/../d");
        let image = temp.import("t", &tar.link("hard", "d/large").end()).unwrap();
        let view = temp.store.view(&image, &NoProgress).unwrap();
        for path in ["d/large", "/hard", "l/large"] {
            let read = view.read(path.as_bytes(), 1 << 20).unwrap().unwrap();
            assert!(read == large, "{path}");
        }
        assert_eq!(view.read(b"empty", 10).unwrap().unwrap(), b"");
        assert!(view.read(b"hard", 10).is_err(), "more than was wanted");
        assert!(view.read(b"d", 10).unwrap().is_none() && view.read(b"none", 10).unwrap().is_none());
        assert_eq!(view.list(b"").unwrap(), [&b"d"[..], b"empty", b"hard", b"l"]);
        assert_eq!(view.shared_inode(b"hard"), view.shared_inode(b"d/large"));
        assert_eq!(view.shared_inode(b"empty"), None);
        assert_eq!(view.stat(b"l").unwrap().kind, NodeKind::Symlink(b"/d/../d".to_vec()));
    }

    #[test]
    fn layers_come_on_top_of_a_view_that_was_a_file_system() {
        let temp = temp_store();
        let text = noise(300_000);
        let base = temp.import("t", &Tar::new().file("a", &text).end()).unwrap();
        let mut view = temp.store.view(&base, &NoProgress).unwrap();
        let first = std::fs::read(view.file_system().unwrap()).unwrap();
        let kept = temp.store.root_for_vm(&base, &NoProgress).unwrap();
        // The kept one has a seal behind it.
        assert!(std::fs::read(kept.path()).unwrap().starts_with(&first));
        let incoming = temp.store.incoming().unwrap();
        let more = Tar::new().file("b", &text[..200_000]).end();
        let mut layers = base.layer_parts().unwrap();
        layers.push(incoming.layer_of(&more[..]).unwrap());
        let digest = incoming.add_image(base.config_bytes(), &layers).unwrap();
        let image = incoming.commit(&reference("more"), &digest).unwrap();
        temp.store.extend_view(&mut view, &image, &NoProgress).unwrap();
        assert!(view.read(b"a", 1 << 20).unwrap().unwrap() == text);
        assert!(view.read(b"b", 1 << 20).unwrap().unwrap() == text[..200_000]);
        let whole = std::fs::read(view.file_system().unwrap()).unwrap();
        let kept = temp.store.root_for_vm(&image, &NoProgress).unwrap();
        assert!(std::fs::read(kept.path()).unwrap().starts_with(&whole));
    }

    #[test]
    fn paths_are_resolved_inside_the_image() {
        let temp = temp_store();
        let tar =
            Tar::new().dir("usr").dir("usr/bin").symlink("bin", "usr/bin").symlink("up", "../../../usr");
        let tar = tar.file("file", b"1").symlink("loop", "loop").symlink("dangling", "/nowhere/x");
        let image = temp.import("t", &tar.end()).unwrap();
        let view = temp.store.view(&image, &NoProgress).unwrap();
        let resolve = |path: &str, missing| {
            let found = view.resolve(path.as_bytes(), missing);
            found.map(|path| path.map(|path| String::from_utf8(path).unwrap()))
        };
        for (path, want) in [("/bin", "usr/bin"), ("up/bin/", "usr/bin"), ("a/../..", ""), ("", "")] {
            assert_eq!(resolve(path, Missing::Stays).unwrap().unwrap(), want, "{path}");
        }
        assert_eq!(resolve("bin/new/x", Missing::Stays).unwrap().unwrap(), "usr/bin/new/x");
        assert_eq!(resolve("dangling/y", Missing::Stays).unwrap().unwrap(), "nowhere/x/y");
        assert_eq!(resolve("bin/new", Missing::Nothing).unwrap(), None);
        assert!(resolve("file/x", Missing::Stays).unwrap_err().contains("no folder"));
        assert!(resolve("loop", Missing::Stays).unwrap_err().contains("too many"));
    }
}
