//! One layer's archive applied to the tree.

use std::io::{self, Read};

use super::tree::{Body, Meta, NodeId, ROOT, Tree, Xattr, XattrKind};
use crate::squashfs::FileData;
use crate::tar::{self, Entry, Kind, Reader, TarError};

/// PATH_MAX of Linux, for symlink targets with their NUL.
const MAX_TARGET_BYTES: usize = 4095;

/// Where the contents of files go as they stream by.
pub(crate) trait Contents {
    /// Takes the `size` bytes of `file`. The outer error is one of the destination, the inner one of the reader.
    fn store<R: Read>(
        &mut self,
        file: &mut tar::Contents<'_, R>,
        size: u64,
    ) -> Result<io::Result<FileData>, crate::Error>;
}

/// Why a layer was not applied.
#[derive(Debug)]
pub(crate) enum ApplyError {
    Tar(TarError),
    Store(crate::Error),
}

impl From<TarError> for ApplyError {
    fn from(e: TarError) -> Self {
        ApplyError::Tar(e)
    }
}

/// Applies the archive to the tree as layer number `layer`. Gives notes on what was left out.
pub(crate) fn apply(
    tree: &mut Tree,
    layer: u32,
    archive: &mut Reader<impl Read>,
    contents: &mut impl Contents,
) -> Result<Vec<String>, ApplyError> {
    let mut dropped = Dropped::default();
    while let Some(entry) = archive.next_entry()? {
        let data = if entry.kind == Kind::File && whiteout_of(split_last(&entry.path).1).is_none() {
            let stored =
                contents.store(&mut archive.contents(&entry), entry.size).map_err(ApplyError::Store)?;
            Some(stored.map_err(|e| archive.contents_error(e))?)
        } else {
            None
        };
        add(tree, layer, &entry, data, &mut dropped).map_err(|reason| entry.error(reason))?;
    }
    Ok(dropped.notes())
}

#[derive(Default)]
struct Dropped {
    xattrs: u64,
    example: String,
}

impl Dropped {
    fn notes(self) -> Vec<String> {
        if self.xattrs == 0 {
            return Vec::new();
        }
        vec![format!("{} extended attributes left out, such as {}", self.xattrs, self.example)]
    }
}

/// What follows `.wh.` in a name.
fn whiteout_of(name: &[u8]) -> Option<&[u8]> {
    name.strip_prefix(b".wh.")
}

fn add(
    tree: &mut Tree,
    layer: u32,
    entry: &Entry,
    data: Option<FileData>,
    dropped: &mut Dropped,
) -> Result<(), String> {
    let (parent, name) = split_last(&entry.path);
    if name.is_empty() {
        if entry.kind != Kind::Dir {
            return Err("it would replace the root folder".to_string());
        }
        let meta = meta(tree, entry, dropped)?;
        tree.set_meta(ROOT, meta);
        return Ok(());
    }
    if name == b".." {
        return if entry.kind == Kind::Dir { Ok(()) } else { Err("its name is \"..\"".to_string()) };
    }
    if let Some(hidden) = whiteout_of(name) {
        return hide(tree, layer, parent, hidden);
    }
    let parent = tree.walk(parent, Some(layer))?.ok_or("its folder is missing")?;
    if entry.kind == Kind::HardLink {
        return hard_link(tree, layer, parent, name, &entry.link);
    }
    let meta = meta(tree, entry, dropped)?;
    let body = match entry.kind {
        Kind::Dir => {
            tree.make_dir(parent, name, meta, layer)?;
            return Ok(());
        }
        Kind::File => Body::File(data.ok_or("its contents are missing")?),
        Kind::Symlink => {
            if entry.link.is_empty() || entry.link.len() > MAX_TARGET_BYTES || entry.link.contains(&0) {
                return Err("a symbolic link with a bad target".to_string());
            }
            Body::Symlink(entry.link.as_slice().into())
        }
        Kind::Char | Kind::Block => {
            let (major, minor) = entry.device;
            if major >= 1 << 12 || minor >= 1 << 20 {
                return Err(format!("bad device number {major}:{minor}"));
            }
            if entry.kind == Kind::Char { Body::Char(major, minor) } else { Body::Block(major, minor) }
        }
        Kind::Fifo => Body::Fifo,
        Kind::HardLink => return Err("a hard link".to_string()),
    };
    tree.make(parent, name, meta, body, layer)?;
    Ok(())
}

/// The folder part and the last name of a path; the name is empty when the path leads to the root.
fn split_last(path: &[u8]) -> (&[u8], &[u8]) {
    let mut end = path.len();
    loop {
        let start = path[..end].iter().rposition(|&b| b == b'/').map_or(0, |slash| slash + 1);
        let name = &path[start..end];
        if !name.is_empty() && name != b"." {
            return (&path[..start], name);
        }
        if start == 0 {
            return (b"", b"");
        }
        end = start - 1;
    }
}

fn hide(tree: &mut Tree, layer: u32, parent: &[u8], hidden: &[u8]) -> Result<(), String> {
    // `.wh..wh.plnk` and such are bookkeeping of aufs.
    if hidden.starts_with(b".wh.") && hidden != b".wh..opq" {
        return Ok(());
    }
    if matches!(hidden, b"" | b"." | b"..") {
        return Err("a whiteout of nothing".to_string());
    }
    if let Some(parent) = tree.walk(parent, None)? {
        match hidden {
            b".wh..opq" => tree.clear_lower(parent, layer),
            name => tree.whiteout(parent, name, layer),
        }
    }
    Ok(())
}

fn hard_link(tree: &mut Tree, layer: u32, parent: NodeId, name: &[u8], target: &[u8]) -> Result<(), String> {
    let shown = || String::from_utf8_lossy(target).chars().take(200).collect::<String>();
    let (target_parent, target_name) = split_last(target);
    let found = match tree.walk(target_parent, None)? {
        Some(dir) if !target_name.is_empty() && target_name != b".." => tree.child(dir, target_name),
        _ => None,
    };
    let found = found.ok_or_else(|| format!("a hard link to {:?}, which does not exist", shown()))?;
    if tree.dir(found.node).is_some() {
        return Err(format!("a hard link to the folder {:?}", shown()));
    }
    tree.link(parent, name, found.node, layer)
}

fn meta(tree: &mut Tree, entry: &Entry, dropped: &mut Dropped) -> Result<Meta, String> {
    let mut set = Vec::new();
    for (name, value) in &entry.xattrs {
        match split_xattr(name) {
            Some((kind, name)) => set.push(Xattr { kind, name: name.to_vec(), value: value.clone() }),
            None => {
                dropped.xattrs += 1;
                dropped.example = String::from_utf8_lossy(name).into_owned();
            }
        }
    }
    Ok(Meta {
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        mtime: entry.mtime.clamp(0, i64::from(u32::MAX)) as u32,
        xattrs: tree.xattr_set(set)?,
    })
}

/// Name space and rest. `system.*` (POSIX ACLs) has no place in squashfs; `trusted.overlay.*` would speak to the overlay
/// that the root is mounted under, so an image must not carry it.
fn split_xattr(name: &[u8]) -> Option<(XattrKind, &[u8])> {
    let spaces: [(&[u8], XattrKind); 3] =
        [(b"user.", XattrKind::User), (b"trusted.", XattrKind::Trusted), (b"security.", XattrKind::Security)];
    let (prefix, kind) = spaces.into_iter().find(|(prefix, _)| name.starts_with(prefix))?;
    let rest = &name[prefix.len()..];
    let overlay = kind != XattrKind::Security && rest.starts_with(b"overlay.");
    (!rest.is_empty() && !overlay && !rest.contains(&0)).then_some((kind, rest))
}
