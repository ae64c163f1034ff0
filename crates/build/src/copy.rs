//! COPY and ADD: files from somewhere become entries of a layer.
//!
//! Source: the Dockerfile reference, COPY and ADD. A source that is a link is what it leads to; links inside a folder stay
//! links. A folder gives its contents, and its mode to the one it becomes if that is new (buildah makes it 0755). A destination that ends with `/`, is a folder already, or has several sources takes each
//! under its own name. Folders on the way are made, and where the image has a link to a folder there, it is followed.

use std::collections::{HashMap, HashSet};
use std::io::{self, Read};

use image::{Digest, LayerWriter, Missing, NodeInfo, NodeKind, View};
use sha2::{Digest as _, Sha256};

use crate::error::{Error, Result};
use crate::files::{Files, join, split_last};

/// Where entries go.
pub trait Sink {
    /// A file of any kind.
    ///
    /// # Errors
    /// The store cannot be written, or the contents cannot be read.
    fn add(&mut self, path: &[u8], info: &NodeInfo, contents: &mut dyn Read) -> io::Result<()>;

    /// One more name for a file that came before.
    ///
    /// # Errors
    /// As [`Sink::add`].
    fn hard_link(&mut self, path: &[u8], target: &[u8], info: &NodeInfo) -> io::Result<()>;
}

impl Sink for LayerWriter {
    fn add(&mut self, path: &[u8], info: &NodeInfo, contents: &mut dyn Read) -> io::Result<()> {
        LayerWriter::add(self, path, info, contents)
    }

    fn hard_link(&mut self, path: &[u8], target: &[u8], info: &NodeInfo) -> io::Result<()> {
        LayerWriter::hard_link(self, path, target, info)
    }
}

/// A digest of all entries but their times, which a fresh checkout changes and nothing else does.
#[derive(Default)]
pub struct Fingerprint(Sha256);

impl Fingerprint {
    fn entry(&mut self, kind: &str, path: &[u8], info: &NodeInfo) {
        let text = format!(
            "{kind} {} {:?} {:o} {} {} {:?};",
            path.len(),
            info.kind,
            info.mode,
            info.uid,
            info.gid,
            info.xattrs
        );
        self.0.update(text.as_bytes());
        self.0.update(path);
    }

    /// The digest.
    pub fn finish(self) -> String {
        self.0.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl Sink for Fingerprint {
    fn add(&mut self, path: &[u8], info: &NodeInfo, contents: &mut dyn Read) -> io::Result<()> {
        self.entry("entry", path, info);
        let mut buffer = vec![0; 64 << 10];
        loop {
            match contents.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => self.0.update(&buffer[..count]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    fn hard_link(&mut self, path: &[u8], target: &[u8], info: &NodeInfo) -> io::Result<()> {
        self.entry("link", path, info);
        self.0.update(Digest::of(target).to_string().as_bytes());
        Ok(())
    }
}

/// How files change on their way.
#[derive(Debug, Clone, Copy, Default)]
pub struct Changes {
    /// Owner and group of everything; nothing leaves what the source says.
    pub owner: Option<(u32, u32)>,
    /// Mode of everything that is no link.
    pub mode: Option<u16>,
    /// No time is later: what `SOURCE_DATE_EPOCH` says.
    pub latest: Option<u64>,
    /// The time of folders that are made on the way.
    pub now: u64,
}

/// One COPY into the files of a stage.
pub struct Copying<'a> {
    stage: &'a View,
    sink: &'a mut dyn Sink,
    changes: Changes,
    /// Folders this COPY has made.
    made: HashSet<Vec<u8>>,
    /// What comes keeps its owner and mode whatever was asked for.
    unpacks: bool,
}

impl<'a> Copying<'a> {
    /// Into `stage`, whose files are looked at; entries go to `sink`.
    pub fn new(stage: &'a View, sink: &'a mut dyn Sink, changes: Changes) -> Self {
        Copying { stage, sink, changes, made: HashSet::new(), unpacks: false }
    }

    /// Copies what lies at `source`, a path without links, to `dest`; `into` when that is a folder whatever it looks like.
    ///
    /// # Errors
    /// Something stands in the way, or files cannot be read or written.
    pub fn copy(
        &mut self,
        files: &dyn Files,
        source: &[u8],
        name: &[u8],
        dest: &[u8],
        into: bool,
    ) -> Result<()> {
        let info = files.stat(source)?.ok_or_else(|| invalid(source, "is gone"))?;
        let target = self.resolve(dest)?;
        let exists = self.kind(&target);
        if info.kind == NodeKind::Dir {
            match exists {
                Some(NodeKind::Dir) => {}
                Some(_) => return Err(invalid(&target, "is no folder, and a folder is copied there")),
                None if into => self.make_folders(&target)?,
                // A folder that is new is like the one it comes from.
                None => {
                    self.make_folders(split_last(&target).0)?;
                    self.put(&target, info, &mut io::empty())?;
                    self.made.insert(target.clone());
                }
            }
            return self.contents(files, source, &target);
        }
        let target = if into || exists == Some(NodeKind::Dir) {
            self.make_folders(&target)?;
            join(&target, name)
        } else {
            self.make_folders(split_last(&target).0)?;
            target
        };
        if target.is_empty() || self.kind(&target) == Some(NodeKind::Dir) {
            return Err(invalid(&target, "is a folder, and a file is copied there"));
        }
        self.file(files, source, info, &target, &mut HashMap::new())
    }

    /// Copies all of an archive to the folder `dest`. Of owner and mode that are asked for only folders which are made on the
    /// way see anything: what is in the archive has its own.
    ///
    /// # Errors
    /// As [`Self::copy`].
    pub fn unpack(&mut self, archive: &dyn Files, dest: &[u8]) -> Result<()> {
        self.make_folder(dest)?;
        self.unpacks = true;
        let done = self.copy(archive, b"", b"", dest, true);
        self.unpacks = false;
        done
    }

    /// Puts bytes where a file shall be.
    ///
    /// # Errors
    /// As [`Self::copy`].
    pub fn write(&mut self, name: &[u8], bytes: &[u8], dest: &[u8], into: bool) -> Result<()> {
        let target = self.resolve(dest)?;
        let into = into || self.kind(&target) == Some(NodeKind::Dir);
        let target = if into { join(&target, name) } else { target };
        self.make_folders(split_last(&target).0)?;
        let kind = NodeKind::File(bytes.len() as u64);
        let info =
            NodeInfo { kind, mode: 0o644, uid: 0, gid: 0, mtime: self.changes.now, xattrs: Vec::new() };
        self.put(&target, info, &mut &*bytes)
    }

    /// Makes a folder and those above it.
    ///
    /// # Errors
    /// As [`Self::copy`].
    pub fn make_folder(&mut self, path: &[u8]) -> Result<()> {
        let target = self.resolve(path)?;
        self.make_folders(&target)
    }

    fn resolve(&self, path: &[u8]) -> Result<Vec<u8>> {
        let found = self.stage.resolve(path, Missing::Stays).map_err(|reason| invalid(path, &reason))?;
        Ok(found.unwrap_or_default())
    }

    fn kind(&self, path: &[u8]) -> Option<NodeKind> {
        if self.made.contains(path) {
            return Some(NodeKind::Dir);
        }
        self.stage.stat(path).map(|info| info.kind)
    }

    /// Makes the folders of a path without links that are not there.
    fn make_folders(&mut self, path: &[u8]) -> Result<()> {
        let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        for end in ends.chain([path.len()]) {
            let folder = &path[..end];
            match self.kind(folder) {
                Some(NodeKind::Dir) => continue,
                _ if folder.is_empty() => continue,
                Some(_) => return Err(invalid(folder, "is no folder")),
                None => {}
            }
            let mtime = self.changes.now;
            let info =
                NodeInfo { kind: NodeKind::Dir, mode: 0o755, uid: 0, gid: 0, mtime, xattrs: Vec::new() };
            let owner = self.changes.owner.unwrap_or_default();
            let info = NodeInfo { uid: owner.0, gid: owner.1, ..info };
            self.sink.add(folder, &info, &mut io::empty()).map_err(Error::layer(folder))?;
            self.made.insert(folder.to_vec());
        }
        Ok(())
    }

    /// Everything in a folder, depth first, names sorted.
    fn contents(&mut self, files: &dyn Files, source: &[u8], target: &[u8]) -> Result<()> {
        let mut seen = HashMap::new();
        let mut todo = vec![(source.to_vec(), target.to_vec())];
        while let Some((source, target)) = todo.pop() {
            let mut folders = Vec::new();
            for name in files.list(&source)? {
                let from = join(&source, &name);
                let Some(info) = files.stat(&from)? else { continue };
                let to = join(&target, &name);
                if info.kind != NodeKind::Dir {
                    if self.kind(&to) == Some(NodeKind::Dir) {
                        return Err(invalid(&to, "is a folder, and a file is copied there"));
                    }
                    self.file(files, &from, info, &to, &mut seen)?;
                    continue;
                }
                // Where the image has a link to a folder, what comes goes into that.
                let real = self.resolve(&to)?;
                match self.kind(&real) {
                    Some(NodeKind::Dir) | None => {}
                    Some(_) => return Err(invalid(&to, "is no folder, and a folder is copied there")),
                }
                if real == to {
                    self.put(&to, info, &mut io::empty())?;
                    self.made.insert(to.clone());
                } else {
                    self.make_folders(&real)?;
                }
                folders.push((from, real));
            }
            todo.extend(folders.into_iter().rev());
        }
        Ok(())
    }

    fn file(
        &mut self,
        files: &dyn Files,
        source: &[u8],
        info: NodeInfo,
        target: &[u8],
        seen: &mut HashMap<(u64, u64), Vec<u8>>,
    ) -> Result<()> {
        if let Some(shared) = files.shared(source) {
            if let Some(first) = seen.get(&shared) {
                let info = self.changed(info);
                return self.sink.hard_link(target, first, &info).map_err(Error::layer(target));
            }
            seen.insert(shared, target.to_vec());
        }
        match info.kind {
            NodeKind::File(_) => {
                let mut contents = files.open(source)?;
                self.put(target, info, &mut contents)
            }
            _ => self.put(target, info, &mut io::empty()),
        }
    }

    fn put(&mut self, path: &[u8], info: NodeInfo, contents: &mut dyn Read) -> Result<()> {
        let info = self.changed(info);
        self.sink.add(path, &info, contents).map_err(Error::layer(path))
    }

    fn changed(&self, mut info: NodeInfo) -> NodeInfo {
        let asked = if self.unpacks { Changes::default() } else { self.changes };
        if let Some((uid, gid)) = asked.owner {
            (info.uid, info.gid) = (uid, gid);
        }
        if let (Some(mode), false) = (asked.mode, matches!(info.kind, NodeKind::Symlink(_))) {
            info.mode = mode;
        }
        info.mtime = info.mtime.min(self.changes.latest.unwrap_or(u64::MAX));
        info
    }
}

fn invalid(path: &[u8], reason: &str) -> Error {
    Error::Invalid(format!("/{}: {reason}", String::from_utf8_lossy(path)).replace(": is ", " is "))
}
