//! What one image has that another has not: paths, contents, owners, modes, extended attributes.
//!
//! Times do not count: a rebuilt package has new ones and is the same. Contents are compared by their hash, so that two images
//! of any size need no more memory than their names.

use std::io::{self, Read};

use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::MAX_LAYER_BYTES;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::image::Image;
use crate::layers::{self, ApplyError, Body, Contents, NodeId, ROOT, Tree};
use crate::progress::Progress;
use crate::squashfs::FileData;
use crate::store::Store;
use crate::tar;

/// Contents are hashed in pieces of this size; holes of at least that much are not read.
const BLOCK_BYTES: usize = 128 << 10;

/// What happened to a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ChangeKind {
    /// It is new.
    Added,
    /// It is something else, or something in it is.
    Changed,
    /// It is gone, with all below it.
    Deleted,
}

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// What happened.
    pub kind: ChangeKind,
    /// Where, from the root of the image; bytes that are no text are replaced.
    pub path: String,
}

impl Store {
    /// What `image` has changed since `base`, or since itself without its last layer; sorted by path.
    ///
    /// # Errors
    /// A layer is missing, corrupt, or no sane archive.
    pub fn diff(&self, image: &Image, base: Option<&Image>, progress: &dyn Progress) -> Result<Vec<Change>> {
        let layers = |image: &Image| -> Vec<String> {
            image.manifest().layers().iter().map(|layer| layer.digest().to_string()).collect()
        };
        let new = layers(image);
        let old = match base {
            Some(base) => layers(base),
            None => new[..new.len().saturating_sub(1)].to_vec(),
        };
        // What both begin with is the same by its name.
        let common = new.iter().zip(&old).take_while(|(a, b)| a == b).count();
        let (mut tree, mut hashes) = (Tree::new(), Hashes::default());
        let mut apply = |image: &Image, from: usize, to: usize, tree: &mut Tree| -> Result<()> {
            for number in from..to {
                progress.step(&format!("read layer {} of {}", number + 1, image.name()));
                self.apply_layer(image, number, tree, &mut hashes, progress)?;
            }
            Ok(())
        };
        apply(image, 0, common, &mut tree)?;
        let mut other = tree.clone();
        apply(image, common, new.len(), &mut tree)?;
        apply(base.unwrap_or(image), common, old.len(), &mut other)?;
        let mut walk = Walk { old: &other, new: &tree, hashes: &hashes.0, changes: Vec::new() };
        walk.compare();
        Ok(walk.changes)
    }
}

impl Store {
    /// What a layer changes that stands on `image`; the archive is not compressed, and `what` is its name for errors. Sorted by path.
    ///
    /// # Errors
    /// A layer of the image is missing or corrupt, or the archive is no sane one.
    pub fn diff_layer(
        &self,
        image: &Image,
        archive: impl Read,
        what: &str,
        progress: &dyn Progress,
    ) -> Result<Vec<Change>> {
        let (mut old, mut hashes) = (Tree::new(), Hashes::default());
        let layers = image.manifest().layers().len();
        for number in 0..layers {
            self.apply_layer(image, number, &mut old, &mut hashes, progress)?;
        }
        let mut new = old.clone();
        let mut archive = tar::Reader::new(archive.take(MAX_LAYER_BYTES));
        let number = u32::try_from(layers).unwrap_or(u32::MAX);
        match layers::apply(&mut new, number, &mut archive, &mut hashes) {
            Ok(_) => {}
            Err(ApplyError::Store(error)) => return Err(error),
            Err(ApplyError::Tar(source)) => return Err(Error::Archive { what: what.to_owned(), source }),
        }
        let mut walk = Walk { old: &old, new: &new, hashes: &hashes.0, changes: Vec::new() };
        walk.compare();
        Ok(walk.changes)
    }
}

/// The contents of files as their hashes; a file's start is the number of its own.
#[derive(Default)]
struct Hashes(Vec<Digest>);

impl Contents for Hashes {
    fn store<R: Read>(&mut self, file: &mut tar::Contents<'_, R>, size: u64) -> Result<io::Result<FileData>> {
        let mut content = Content::default();
        let mut block = vec![0; BLOCK_BYTES];
        let mut left = size;
        while left > 0 {
            let hole = file.hole();
            let skipped = if hole == left { hole } else { hole - hole % BLOCK_BYTES as u64 };
            if skipped > 0 {
                file.skip_hole(skipped);
                content.zeros += skipped;
                left -= skipped;
                continue;
            }
            let len = left.min(BLOCK_BYTES as u64) as usize;
            if let Err(e) = file.read_exact(&mut block[..len]) {
                return Ok(Err(e));
            }
            content.add(&block[..len]);
            left -= len as u64;
        }
        let start = self.0.len() as u64;
        self.0.push(content.finish());
        Ok(Ok(FileData { start, size, sparse: 0, blocks: Vec::new() }))
    }
}

/// A hash for which blocks of zeros and holes are the same.
#[derive(Default)]
struct Content {
    hasher: Sha256,
    zeros: u64,
}

impl Content {
    fn add(&mut self, block: &[u8]) {
        if block.iter().all(|&byte| byte == 0) {
            self.zeros += block.len() as u64;
            return;
        }
        self.end_zeros();
        self.hasher.update(block);
    }

    fn end_zeros(&mut self) {
        self.hasher.update(self.zeros.to_le_bytes());
        self.zeros = 0;
    }

    fn finish(mut self) -> Digest {
        self.end_zeros();
        Digest::from_hash(self.hasher)
    }
}

struct Walk<'a> {
    old: &'a Tree,
    new: &'a Tree,
    hashes: &'a [Digest],
    changes: Vec<Change>,
}

/// A step of the walk: folders are left when all in them has been seen.
enum Step {
    /// The same path in both.
    Both(String, NodeId, NodeId),
    New(String, NodeId),
    Old(String),
    /// A folder's own line, at its place among the changes, unless nothing in it changed.
    Leave {
        at: usize,
        path: String,
    },
}

impl Walk<'_> {
    /// Without recursion: folders of an image may be as deep as it likes.
    fn compare(&mut self) {
        let mut todo = Vec::new();
        self.enter("", ROOT, ROOT, &mut todo);
        while let Some(step) = todo.pop() {
            match step {
                Step::Both(path, old, new) => self.both(path, old, new, &mut todo),
                Step::New(path, new) => self.added(path, new, &mut todo),
                Step::Old(path) => self.changes.push(Change { kind: ChangeKind::Deleted, path }),
                Step::Leave { at, path } if self.changes.len() > at => {
                    self.changes.insert(at, Change { kind: ChangeKind::Changed, path });
                }
                Step::Leave { .. } => {}
            }
        }
    }

    fn both(&mut self, path: String, old: NodeId, new: NodeId, todo: &mut Vec<Step>) {
        let folders = self.old.dir(old).is_some() && self.new.dir(new).is_some();
        if !self.same(old, new) {
            self.changes.push(Change { kind: ChangeKind::Changed, path: path.clone() });
        } else if folders {
            todo.push(Step::Leave { at: self.changes.len(), path: path.clone() });
        }
        if folders {
            self.enter(&path, old, new, todo);
        } else if self.new.dir(new).is_some() {
            self.children(&path, new, todo);
        }
    }

    fn added(&mut self, path: String, new: NodeId, todo: &mut Vec<Step>) {
        self.changes.push(Change { kind: ChangeKind::Added, path: path.clone() });
        self.children(&path, new, todo);
    }

    /// All below a new folder, the first one on top.
    fn children(&self, path: &str, new: NodeId, todo: &mut Vec<Step>) {
        let children = self.new.dir(new).into_iter().flat_map(|dir| dir.children.iter().rev());
        todo.extend(children.map(|(name, child)| Step::New(below(path, name), child.node)));
    }

    /// All names of either folder, the first one on top.
    fn enter(&self, path: &str, old: NodeId, new: NodeId, todo: &mut Vec<Step>) {
        let (Some(old), Some(new)) = (self.old.dir(old), self.new.dir(new)) else { return };
        let names = old.children.keys().chain(new.children.keys());
        let mut names: Vec<&[u8]> = names.map(AsRef::as_ref).collect();
        names.sort_unstable();
        names.dedup();
        for name in names.into_iter().rev() {
            let path = below(path, name);
            match (old.children.get(name), new.children.get(name)) {
                (Some(old), Some(new)) => todo.push(Step::Both(path, old.node, new.node)),
                (None, Some(new)) => todo.push(Step::New(path, new.node)),
                (Some(_), None) => todo.push(Step::Old(path)),
                (None, None) => {}
            }
        }
    }

    fn same(&self, old: NodeId, new: NodeId) -> bool {
        let (a, b) = (self.old.node(old), self.new.node(new));
        let owner = |tree: &Tree, id: NodeId| {
            let meta = tree.node(id).meta;
            (meta.mode, meta.uid, meta.gid)
        };
        let contents = match (&a.body, &b.body) {
            (Body::Dir(_), Body::Dir(_)) => true,
            (Body::File(a), Body::File(b)) => {
                a.size == b.size && self.hashes[a.start as usize] == self.hashes[b.start as usize]
            }
            (a, b) => a == b,
        };
        contents
            && owner(self.old, old) == owner(self.new, new)
            && self.old.xattrs(a.meta.xattrs) == self.new.xattrs(b.meta.xattrs)
    }
}

fn below(path: &str, name: &[u8]) -> String {
    format!("{path}/{}", String::from_utf8_lossy(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NoProgress;
    use crate::tar::testing::Tar;
    use crate::testing::{Temp, reference, temp_store};

    fn diff(old: Tar, new: Tar) -> String {
        let temp: Temp = temp_store();
        let old = temp.import("old", &old.end()).unwrap();
        let new = temp.import("new", &new.end()).unwrap();
        lines(&temp.store.diff(&new, Some(&old), &NoProgress).unwrap())
    }

    fn lines(changes: &[Change]) -> String {
        let letter = |kind| match kind {
            ChangeKind::Added => 'A',
            ChangeKind::Changed => 'C',
            ChangeKind::Deleted => 'D',
        };
        changes.iter().map(|change| format!("{} {} ", letter(change.kind), change.path)).collect()
    }

    #[test]
    fn every_kind_of_change_is_told_in_the_order_of_paths() {
        let old =
            Tar::new().dir("same").file("same/x", b"1").dir("d").file("d/gone", b"1").file("d/kept", b"1");
        let old = old.dir("dead").file("dead/x", b"1").symlink("s", "a").file("f", b"1").file("k", b"");
        let new =
            Tar::new().dir("same").file("same/x", b"1").dir("d").file("d/kept", b"2").dir("new").dir("new/n");
        let new = new.file("new/n/x", b"1").symlink("s", "b").dir("f").file("f/in", b"").file("k", b"");
        let want = "C /d D /d/gone C /d/kept D /dead C /f A /f/in A /new A /new/n A /new/n/x C /s ";
        assert_eq!(diff(old, new), want);
    }

    #[test]
    fn owners_modes_and_attributes_count() {
        let base = || Tar::new().file("f", b"1");
        assert_eq!(diff(base(), base()), "");
        assert_eq!(diff(base(), Tar::new().mode(0o600).file("f", b"1")), "C /f ");
        assert_eq!(diff(base(), Tar::new().owner(1, 0).file("f", b"1")), "C /f ");
        let attribute: &[(&str, &[u8])] = &[("SCHILY.xattr.user.a", b"b")];
        assert_eq!(diff(base(), Tar::new().pax(attribute).file("f", b"1")), "C /f ");
        assert_eq!(diff(Tar::new().mode(0o700).dir("d"), Tar::new().mode(0o755).dir("d")), "C /d ");
    }

    #[test]
    fn a_file_of_zeros_is_one_whatever_holds_them() {
        let zeros = vec![0; 3 * BLOCK_BYTES + 5];
        let mut other = zeros.clone();
        other[2 * BLOCK_BYTES] = 1;
        assert_eq!(diff(Tar::new().file("f", &zeros), Tar::new().file("f", &zeros)), "");
        assert_eq!(diff(Tar::new().file("f", &zeros), Tar::new().file("f", &other)), "C /f ");
        assert_eq!(diff(Tar::new().file("f", &zeros), Tar::new().file("f", &zeros[1..])), "C /f ");
    }

    #[test]
    fn an_image_of_one_layer_is_compared_with_nothing() {
        let temp = temp_store();
        temp.import("a", &Tar::new().dir("d").file("d/x", b"1").end()).unwrap();
        let image = temp.store.image(&reference("a")).unwrap();
        assert_eq!(lines(&temp.store.diff(&image, None, &NoProgress).unwrap()), "A /d A /d/x ");
        assert_eq!(image.history().len(), 1);
        assert_eq!(image.history()[0].created_by, "import in.tar");
        assert_eq!(image.history()[0].size_bytes, image.size_bytes());
    }
}
