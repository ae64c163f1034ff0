//! Inodes, tables and superblock.
//!
//! Folders are written after all that they name: the list of folders, parents first, is walked backwards. Inode numbers are
//! given in the same order beforehand, because a folder names its parent's number.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, fallocate};

use super::data::DataWriter;
use super::dir::{self, Item, Listing};
use super::metadata::{MetaTable, Place};
use super::*;
use crate::error::{Error, Result};
use crate::layers::{Body, Meta, Node, NodeId, ROOT, Tree};

/// UNCOMPRESSED inodes, data, fragments, xattrs, ids; NO_FRAGMENTS.
const FLAGS: u16 = 1 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 8 | 1 << 11;
const FLAG_NO_XATTRS: u16 = 1 << 9;

/// Writes the tables for `tree` after the file contents in `out`. Gives the size of the file in bytes.
pub(crate) fn finish(tree: &Tree, out: &mut DataWriter) -> Result<u64> {
    let mut tables = Tables::new(tree);
    tables.write_all()?;
    let inode_table = out.pos;
    out.write(&tables.inodes.stored())?;
    let dir_table = out.pos;
    out.write(&tables.dirs.stored())?;
    let id_table = write_ids(out, &tables.ids.list)?;
    let sets = tree.xattr_sets();
    let xattr_table = if sets.is_empty() { NO_TABLE } else { xattr::write(out, sets)? };
    let used = out.pos;
    let flags = if sets.is_empty() { FLAGS | FLAG_NO_XATTRS } else { FLAGS };
    let root = tables.places[ROOT as usize].ok_or_else(too_large)?;

    let mut sb = Vec::with_capacity(SUPERBLOCK_BYTES as usize);
    for word in [MAGIC, tables.count, 0, BLOCK_BYTES as u32, 0] {
        sb.extend_from_slice(&word.to_le_bytes());
    }
    for half in [COMPRESSION_ZLIB, BLOCK_LOG, flags, tables.ids.list.len() as u16, 4, 0] {
        sb.extend_from_slice(&half.to_le_bytes());
    }
    for long in [root.reference(), used, id_table, xattr_table, inode_table, dir_table, NO_TABLE, NO_TABLE] {
        sb.extend_from_slice(&long.to_le_bytes());
    }
    let error = Error::file("write", out.path());
    let size = used.next_multiple_of(PAD_BYTES);
    let file = out.file()?;
    file.write_all_at(&sb, 0).and_then(|()| file.set_len(size)).map_err(error)?;
    for &(start, len) in &tree.freed {
        // Only saves space: what lower layers had and upper ones replaced.
        let _ = fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, start, len);
    }
    Ok(size)
}

/// Whether a file of `size` bytes begins with a superblock that speaks of as many.
pub(crate) fn is_whole(file: &File, size: u64) -> bool {
    let mut sb = [0; SUPERBLOCK_BYTES as usize];
    if file.read_exact_at(&mut sb, 0).is_err() {
        return false;
    }
    let used = u64::from_le_bytes(sb[40..48].try_into().expect("eight bytes"));
    sb[..4] == MAGIC.to_le_bytes() && used.checked_next_multiple_of(PAD_BYTES) == Some(size)
}

fn too_large() -> Error {
    Error::invalid("image", "its inodes or names are too many for squashfs")
}

fn write_ids(out: &mut DataWriter, ids: &[u32]) -> Result<u64> {
    let mut table = MetaTable::default();
    for id in ids {
        table.push(&id.to_le_bytes());
    }
    let start = out.pos;
    out.write(&table.stored())?;
    let index = out.pos;
    for offset in table.block_offsets(start) {
        out.write(&offset.to_le_bytes())?;
    }
    Ok(index)
}

#[derive(Default)]
struct Ids {
    list: Vec<u32>,
    index: HashMap<u32, u16>,
}

impl Ids {
    fn number(&mut self, id: u32) -> Result<u16> {
        if let Some(&number) = self.index.get(&id) {
            return Ok(number);
        }
        if self.list.len() >= usize::from(u16::MAX) {
            return Err(Error::invalid("image", "more than 65535 different user and group ids"));
        }
        let number = self.list.len() as u16;
        self.list.push(id);
        self.index.insert(id, number);
        Ok(number)
    }
}

struct Tables<'t> {
    tree: &'t Tree,
    inodes: MetaTable,
    dirs: MetaTable,
    ids: Ids,
    /// By node: its inode number (0: none yet) and where its inode lies.
    numbers: Vec<u32>,
    places: Vec<Option<Place>>,
    count: u32,
}

impl<'t> Tables<'t> {
    fn new(tree: &'t Tree) -> Self {
        Tables {
            tree,
            inodes: MetaTable::default(),
            dirs: MetaTable::default(),
            ids: Ids::default(),
            numbers: vec![0; tree.len()],
            places: vec![None; tree.len()],
            count: 0,
        }
    }

    fn write_all(&mut self) -> Result<()> {
        let tree = self.tree;
        let mut folders = vec![ROOT];
        let mut at = 0;
        while let Some(&id) = folders.get(at) {
            folders.extend(children(tree, id).map(|(_, node)| node).filter(|&node| tree.dir(node).is_some()));
            at += 1;
        }
        folders.reverse();
        for &folder in &folders {
            for (_, id) in children(tree, folder) {
                self.give_number(id);
            }
        }
        self.give_number(ROOT);
        for &folder in &folders {
            for (_, id) in children(tree, folder) {
                if self.places[id as usize].is_none() && tree.dir(id).is_none() {
                    self.places[id as usize] = Some(self.inodes.place().ok_or_else(too_large)?);
                    self.write_leaf(id)?;
                }
            }
            self.write_folder(folder)?;
        }
        Ok(())
    }

    fn give_number(&mut self, id: NodeId) {
        if self.numbers[id as usize] == 0 {
            self.count += 1;
            self.numbers[id as usize] = self.count;
        }
    }

    fn write_folder(&mut self, id: NodeId) -> Result<()> {
        let tree = self.tree;
        let mut items = Vec::new();
        let mut nlink = 2u32;
        for (name, child) in children(tree, id) {
            let place = self.places[child as usize].ok_or_else(too_large)?;
            let kind = basic_type(tree.node(child));
            nlink += u32::from(kind == 1);
            items.push(Item { name, place, number: self.numbers[child as usize], kind });
        }
        let listing = dir::write(&mut self.dirs, &items).ok_or_else(too_large)?;
        let parent = match tree.dir(id) {
            Some(dir) if id != ROOT => self.numbers[dir.parent as usize],
            _ => self.count + 1,
        };
        self.places[id as usize] = Some(self.inodes.place().ok_or_else(too_large)?);
        let meta = &tree.node(id).meta;
        // "." and ".." count three bytes in the size of a listing.
        let size = u32::try_from(listing.bytes + 3).map_err(|_| too_large())?;
        if size <= u32::from(u16::MAX) && meta.xattrs.is_none() && listing.index.is_empty() {
            self.header(id, 1, meta)?;
            self.words(&[listing.place.block, nlink]);
            self.inodes.push(&(size as u16).to_le_bytes());
            self.inodes.push(&listing.place.offset.to_le_bytes());
            self.words(&[parent]);
            return Ok(());
        }
        self.header(id, 8, meta)?;
        self.write_long_folder(&listing, nlink, size, parent, meta);
        Ok(())
    }

    fn write_long_folder(&mut self, listing: &Listing<'_>, nlink: u32, size: u32, parent: u32, meta: &Meta) {
        let index = &listing.index[..listing.index.len().min(usize::from(u16::MAX))];
        self.words(&[nlink, size, listing.place.block, parent]);
        self.inodes.push(&(index.len() as u16).to_le_bytes());
        self.inodes.push(&listing.place.offset.to_le_bytes());
        self.words(&[meta.xattrs.unwrap_or(NONE)]);
        for row in index {
            self.words(&[row.offset, row.block, row.name.len() as u32 - 1]);
            self.inodes.push(row.name);
        }
    }

    fn write_leaf(&mut self, id: NodeId) -> Result<()> {
        let tree = self.tree;
        let node = tree.node(id);
        let meta = &node.meta;
        let basic = basic_type(node);
        // Extended inodes are the basic ones with xattrs; their types come seven later.
        let (kind, xattrs) = match meta.xattrs {
            Some(set) => (basic + 7, Some(set)),
            None => (basic, None),
        };
        match &node.body {
            Body::File(data) => return self.write_file(id, node, data),
            Body::Symlink(target) => {
                self.header(id, kind, meta)?;
                self.words(&[node.links, target.len() as u32]);
                self.inodes.push(target);
            }
            Body::Char(major, minor) | Body::Block(major, minor) => {
                self.header(id, kind, meta)?;
                self.words(&[node.links, minor & 0xff | major << 8 | (minor & !0xff) << 12]);
            }
            Body::Fifo => {
                self.header(id, kind, meta)?;
                self.words(&[node.links]);
            }
            Body::Dir(_) | Body::Gone => unreachable!("no name leads to it here"),
        }
        if let Some(set) = xattrs {
            self.words(&[set]);
        }
        Ok(())
    }

    fn write_file(&mut self, id: NodeId, node: &Node, data: &FileData) -> Result<()> {
        let meta = &node.meta;
        let small = u32::try_from(data.start).ok().zip(u32::try_from(data.size).ok());
        match small {
            Some((start, size)) if meta.xattrs.is_none() && node.links == 1 && data.sparse == 0 => {
                self.header(id, 2, meta)?;
                self.words(&[start, NONE, 0, size]);
            }
            _ => {
                self.header(id, 9, meta)?;
                // The kernel takes the blocks of a file from size - sparse, which must not be 0.
                let sparse = data.sparse.min(data.size.saturating_sub(1));
                for long in [data.start, data.size, sparse] {
                    self.inodes.push(&long.to_le_bytes());
                }
                self.words(&[node.links, NONE, 0, meta.xattrs.unwrap_or(NONE)]);
            }
        }
        self.words(&data.blocks);
        Ok(())
    }

    fn header(&mut self, id: NodeId, kind: u16, meta: &Meta) -> Result<()> {
        let (uid, gid) = (self.ids.number(meta.uid)?, self.ids.number(meta.gid)?);
        for half in [kind, meta.mode & 0o7777, uid, gid] {
            self.inodes.push(&half.to_le_bytes());
        }
        self.words(&[meta.mtime, self.numbers[id as usize]]);
        Ok(())
    }

    fn words(&mut self, words: &[u32]) {
        for word in words {
            self.inodes.push(&word.to_le_bytes());
        }
    }
}

fn children(tree: &Tree, id: NodeId) -> impl Iterator<Item = (&[u8], NodeId)> {
    tree.dir(id).into_iter().flat_map(|dir| dir.children.iter().map(|(name, child)| (&**name, child.node)))
}

/// The type of an inode in its short form, which is also the one in listings.
fn basic_type(node: &Node) -> u16 {
    match node.body {
        Body::Dir(_) => 1,
        Body::File(_) => 2,
        Body::Symlink(_) => 3,
        Body::Block(..) => 4,
        Body::Char(..) => 5,
        Body::Fifo => 6,
        Body::Gone => unreachable!("no name leads to it"),
    }
}
