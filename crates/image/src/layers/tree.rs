//! The tree of an image: inodes in an arena, folders that name them.

use std::collections::{BTreeMap, HashMap};

use crate::path::{MAX_HOPS, components};
use crate::squashfs::FileData;

/// Names an inode of one tree.
pub(crate) type NodeId = u32;

/// The root folder.
pub(crate) const ROOT: NodeId = 0;

/// Folders inside each other. Attack: depth that makes any walk of the result slow.
const MAX_DEPTH: u32 = 1024;
/// NAME_MAX of Linux.
const MAX_NAME_BYTES: usize = 255;
/// Memory for names, targets, xattrs and inodes of one image. Attack: an archive that expands to millions of them.
const MAX_TREE_BYTES: usize = 512 << 20;
/// Roughly what an inode and its name cost besides their bytes.
const NODE_BYTES: usize = 192;

/// The name spaces of xattrs that a read-only image can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum XattrKind {
    User,
    Trusted,
    Security,
}

/// One extended attribute; the name is without its name space.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Xattr {
    pub(crate) kind: XattrKind,
    pub(crate) name: Vec<u8>,
    pub(crate) value: Vec<u8>,
}

/// What every inode has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Meta {
    /// Permission, setuid, setgid and sticky bits.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds since 1970, clamped to what the image can hold.
    pub(crate) mtime: u32,
    /// Index into the tree's sets of xattrs.
    pub(crate) xattrs: Option<u32>,
}

/// What an inode is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Body {
    Dir(Dir),
    File(FileData),
    Symlink(Box<[u8]>),
    /// Major and minor number.
    Char(u32, u32),
    Block(u32, u32),
    Fifo,
    /// Removed; nothing names it.
    Gone,
}

/// A folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Dir {
    pub(crate) parent: NodeId,
    depth: u32,
    pub(crate) children: BTreeMap<Box<[u8]>, Child>,
}

/// A name in a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Child {
    pub(crate) node: NodeId,
    /// The layer that gave it last.
    layer: u32,
}

/// An inode.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) meta: Meta,
    pub(crate) body: Body,
    /// Names it has; for folders 1.
    pub(crate) links: u32,
}

/// All inodes of an image.
#[derive(Debug, Clone)]
pub(crate) struct Tree {
    nodes: Vec<Node>,
    xattr_sets: Vec<Vec<Xattr>>,
    xattr_index: HashMap<Vec<Xattr>, u32>,
    bytes: usize,
    /// Stored ranges (start, length) of files that a later entry replaced or removed.
    pub(crate) freed: Vec<(u64, u64)>,
}

impl Tree {
    pub(crate) fn new() -> Self {
        let meta = Meta { mode: 0o755, uid: 0, gid: 0, mtime: 0, xattrs: None };
        let dir = Dir { parent: ROOT, depth: 0, children: BTreeMap::new() };
        let root = Node { meta, body: Body::Dir(dir), links: 1 };
        Tree {
            nodes: vec![root],
            xattr_sets: Vec::new(),
            xattr_index: HashMap::new(),
            bytes: 0,
            freed: Vec::new(),
        }
    }

    pub(crate) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id as usize]
    }

    /// How many ids have been given; some of them are of inodes gone since.
    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// The xattrs of a set's index.
    pub(crate) fn xattrs(&self, index: Option<u32>) -> &[Xattr] {
        index.map_or(&[], |index| &self.xattr_sets[index as usize])
    }

    pub(crate) fn xattr_sets(&self) -> &[Vec<Xattr>] {
        &self.xattr_sets
    }

    pub(crate) fn dir(&self, id: NodeId) -> Option<&Dir> {
        match &self.nodes[id as usize].body {
            Body::Dir(dir) => Some(dir),
            _ => None,
        }
    }

    fn dir_mut(&mut self, id: NodeId) -> &mut Dir {
        match &mut self.nodes[id as usize].body {
            Body::Dir(dir) => dir,
            _ => unreachable!("only ids of folders come here"),
        }
    }

    pub(super) fn child(&self, dir: NodeId, name: &[u8]) -> Option<Child> {
        self.dir(dir).and_then(|dir| dir.children.get(name).copied())
    }

    pub(super) fn set_meta(&mut self, id: NodeId, meta: Meta) {
        self.nodes[id as usize].meta = meta;
    }

    fn charge(&mut self, bytes: usize) -> Result<(), String> {
        self.bytes += bytes;
        if self.bytes > MAX_TREE_BYTES {
            return Err(format!(
                "names and attributes of the image take more than {} MiB",
                MAX_TREE_BYTES >> 20
            ));
        }
        Ok(())
    }

    /// The index of a set of xattrs; equal sets share one.
    pub(super) fn xattr_set(&mut self, mut set: Vec<Xattr>) -> Result<Option<u32>, String> {
        if set.is_empty() {
            return Ok(None);
        }
        set.sort();
        if let Some(&index) = self.xattr_index.get(&set) {
            return Ok(Some(index));
        }
        self.charge(set.iter().map(|x| 2 * (x.name.len() + x.value.len() + 64)).sum())?;
        let index = self.xattr_sets.len() as u32;
        self.xattr_index.insert(set.clone(), index);
        self.xattr_sets.push(set);
        Ok(Some(index))
    }

    /// The folder that `path` leads to, through symlinks. With `create`, folders that are missing are made for that layer.
    pub(super) fn walk(&mut self, path: &[u8], create: Option<u32>) -> Result<Option<NodeId>, String> {
        // Components still to go, the next one last.
        let mut todo: Vec<Box<[u8]>> = components(path).rev().map(Box::from).collect();
        let mut at = ROOT;
        let mut hops = 0;
        while let Some(name) = todo.pop() {
            if &*name == b".." {
                at = self.dir(at).map_or(ROOT, |dir| dir.parent);
                continue;
            }
            let Some(child) = self.child(at, &name) else {
                let Some(layer) = create else { return Ok(None) };
                let meta = Meta { mode: 0o755, uid: 0, gid: 0, mtime: 0, xattrs: None };
                at = self.make_dir(at, &name, meta, layer)?;
                continue;
            };
            match &self.node(child.node).body {
                Body::Dir(_) => at = child.node,
                Body::Symlink(target) => {
                    hops += 1;
                    if hops > MAX_HOPS {
                        return Err("too many symbolic links in its path".to_string());
                    }
                    if target.starts_with(b"/") {
                        at = ROOT;
                    }
                    todo.extend(components(target).rev().map(Box::from));
                }
                _ => return Err(format!("{:?} in its path is not a folder", String::from_utf8_lossy(&name))),
            }
        }
        Ok(Some(at))
    }

    /// A folder `name` in `parent`; an existing folder keeps its children, anything else is replaced.
    pub(super) fn make_dir(
        &mut self,
        parent: NodeId,
        name: &[u8],
        meta: Meta,
        layer: u32,
    ) -> Result<NodeId, String> {
        if let Some(child) = self.child(parent, name)
            && self.dir(child.node).is_some()
        {
            self.set_meta(child.node, meta);
            self.dir_mut(parent).children.insert(name.into(), Child { node: child.node, layer });
            return Ok(child.node);
        }
        let depth = self.dir_mut(parent).depth + 1;
        if depth > MAX_DEPTH {
            return Err(format!("more than {MAX_DEPTH} folders inside each other"));
        }
        let body = Body::Dir(Dir { parent, depth, children: BTreeMap::new() });
        self.make(parent, name, meta, body, layer)
    }

    /// An inode `name` in `parent`, in place of what was there.
    pub(super) fn make(
        &mut self,
        parent: NodeId,
        name: &[u8],
        meta: Meta,
        body: Body,
        layer: u32,
    ) -> Result<NodeId, String> {
        check_name(name)?;
        let own = match &body {
            Body::Symlink(target) => target.len(),
            Body::File(data) => data.blocks.len() * 4,
            _ => 0,
        };
        self.charge(NODE_BYTES + name.len() + own)?;
        let id = NodeId::try_from(self.nodes.len()).map_err(|_| "too many inodes".to_string())?;
        self.nodes.push(Node { meta, body, links: 0 });
        self.link(parent, name, id, layer)?;
        Ok(id)
    }

    /// One more name for an inode that is no folder.
    pub(super) fn link(
        &mut self,
        parent: NodeId,
        name: &[u8],
        node: NodeId,
        layer: u32,
    ) -> Result<(), String> {
        check_name(name)?;
        // First the new name, so that replacing a name of the same inode never frees it.
        let links = &mut self.nodes[node as usize].links;
        *links = links.checked_add(1).ok_or("too many hard links")?;
        self.charge(64 + name.len())?;
        if let Some(old) = self.dir_mut(parent).children.insert(name.into(), Child { node, layer }) {
            self.unlink(old.node);
        }
        Ok(())
    }

    /// Takes away one name of `id`, and of all below it if it is a folder.
    fn unlink(&mut self, id: NodeId) {
        let mut todo = vec![id];
        while let Some(id) = todo.pop() {
            let node = &mut self.nodes[id as usize];
            node.links = node.links.saturating_sub(1);
            if node.links > 0 {
                continue;
            }
            match std::mem::replace(&mut node.body, Body::Gone) {
                Body::Dir(dir) => todo.extend(dir.children.values().map(|child| child.node)),
                Body::File(data) if data.stored() > 0 => self.freed.push((data.start, data.stored())),
                _ => {}
            }
        }
    }

    /// Whiteout: takes `name` away as far as lower layers gave it. What `layer` itself put there stays, in any order.
    pub(super) fn whiteout(&mut self, parent: NodeId, name: &[u8], layer: u32) {
        let Some(child) = self.child(parent, name) else { return };
        if self.dir(child.node).is_some() {
            self.clear_lower(child.node, layer);
            let empty = self.dir(child.node).is_some_and(|dir| dir.children.is_empty());
            if child.layer == layer || !empty {
                return;
            }
        } else if child.layer == layer {
            return;
        }
        self.dir_mut(parent).children.remove(name);
        self.unlink(child.node);
    }

    /// Opaque whiteout: takes away what lower layers put below `dir`.
    pub(super) fn clear_lower(&mut self, dir: NodeId, layer: u32) {
        let mut found = vec![dir];
        let mut at = 0;
        // Folders below, parents first; then from the deepest up.
        while let Some(&id) = found.get(at) {
            let children = self.dir(id).into_iter().flat_map(|dir| dir.children.values());
            let below: Vec<NodeId> = children.map(|c| c.node).filter(|&c| self.dir(c).is_some()).collect();
            found.extend(below);
            at += 1;
        }
        for &id in found.iter().rev() {
            let mut children = std::mem::take(&mut self.dir_mut(id).children);
            children.retain(|_, child| {
                let full = self.dir(child.node).is_some_and(|dir| !dir.children.is_empty());
                let stays = child.layer == layer || full;
                if !stays {
                    self.unlink(child.node);
                }
                stays
            });
            self.dir_mut(id).children = children;
        }
    }
}

fn check_name(name: &[u8]) -> Result<(), String> {
    if name.len() > MAX_NAME_BYTES {
        return Err(format!("a name longer than {MAX_NAME_BYTES} bytes"));
    }
    if name.is_empty() || name.contains(&0) {
        return Err("a name that is empty or holds a zero byte".to_string());
    }
    Ok(())
}
