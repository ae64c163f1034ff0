//! What the guest knows: each file it has looked up, until it forgets it as many times.

use std::collections::HashMap;
use std::os::fd::OwnedFd;

use rustix::fs::{FileType, Stat};
use rustix::io::Errno;

use crate::wire::ROOT_NODE;

/// A file, by where it is and not by its name. The same one in two exports is two nodes, for what may be done differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    export: usize,
    device: u64,
    inode: u64,
}

/// A file that the guest knows.
#[derive(Debug)]
pub(super) struct Node {
    /// With `O_PATH`.
    pub(super) file: OwnedFd,
    key: Key,
    kind: FileType,
    lookups: u64,
}

impl Node {
    pub(super) fn export(&self) -> usize {
        self.key.export
    }

    pub(super) fn is_file(&self) -> bool {
        self.kind == FileType::RegularFile
    }

    pub(super) fn is_folder(&self) -> bool {
        self.kind == FileType::Directory
    }

    pub(super) fn is_link(&self) -> bool {
        self.kind == FileType::Symlink
    }
}

/// All of them. A number is never given twice.
#[derive(Debug)]
pub(super) struct Nodes {
    by_id: HashMap<u64, Node>,
    by_key: HashMap<Key, u64>,
    next: u64,
}

impl Default for Nodes {
    fn default() -> Self {
        Self { by_id: HashMap::new(), by_key: HashMap::new(), next: ROOT_NODE + 1 }
    }
}

impl Nodes {
    pub(super) fn find(&self, id: u64) -> Result<&Node, Errno> {
        self.by_id.get(&id).ok_or(Errno::STALE)
    }

    /// The number of a file that was looked up once more.
    pub(super) fn add(&mut self, export: usize, file: OwnedFd, stat: &Stat) -> u64 {
        let key = Key { export, device: stat.st_dev, inode: stat.st_ino };
        if let Some(id) = self.by_key.get(&key)
            && let Some(node) = self.by_id.get_mut(id)
        {
            node.lookups = node.lookups.saturating_add(1);
            return *id;
        }
        let id = self.next;
        self.next += 1;
        let kind = FileType::from_raw_mode(stat.st_mode);
        self.by_id.insert(id, Node { file, key, kind, lookups: 1 });
        self.by_key.insert(key, id);
        id
    }

    pub(super) fn forget(&mut self, id: u64, count: u64) {
        let Some(node) = self.by_id.get_mut(&id) else { return };
        node.lookups = node.lookups.saturating_sub(count);
        if node.lookups == 0
            && let Some(node) = self.by_id.remove(&id)
        {
            self.by_key.remove(&node.key);
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }
}
