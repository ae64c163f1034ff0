//! What an image has at the place of a new volume is the volume's first content, as docker has it.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use image::{Image, Missing, NodeInfo, NodeKind, Store, View};
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};

use crate::failure::{Failure, Outcome, While};
use crate::progress::Bar;

/// The files of an image, which are looked at when they are needed first.
pub struct ImageFiles<'a> {
    store: &'a Store,
    image: &'a Image,
    view: OnceCell<View>,
}

impl<'a> ImageFiles<'a> {
    /// Those of `image`.
    pub fn new(store: &'a Store, image: &'a Image) -> Self {
        Self { store, image, view: OnceCell::new() }
    }

    /// Copies what lies in the folder `target` of the image into `folder`, which is new, empty and nobody else's. Owner and mode
    /// of `folder` become those of the image's. Does nothing where the image has no folder.
    ///
    /// # Errors
    /// The image cannot be read, or the folder not be written.
    pub fn copy(&self, target: &str, folder: &Path) -> Outcome<()> {
        let act = || format!("fill a volume with {target} of {}", self.image.name());
        let view = match self.view.get() {
            Some(view) => view,
            None => {
                let view = self.store.view(self.image, &Bar::new()).while_trying(act)?;
                self.view.get_or_init(|| view)
            }
        };
        let found =
            view.resolve(target.as_bytes(), Missing::Nothing).map_err(|e| Failure::because(act(), e))?;
        let Some(place) = found else { return Ok(()) };
        let Some(info) = view.stat(&place).filter(|info| info.kind == NodeKind::Dir) else { return Ok(()) };
        let mut copy = Copy { view, is_root: rustix::process::geteuid().is_root(), links: HashMap::new() };
        copy.children(&place, folder).and_then(|()| copy.attributes(&info, folder)).while_trying(act)
    }
}

struct Copy<'a> {
    view: &'a View,
    is_root: bool,
    /// The first name of each file that has several.
    links: HashMap<u32, PathBuf>,
}

impl Copy<'_> {
    fn children(&mut self, from: &[u8], to: &Path) -> io::Result<()> {
        for name in self.view.list(from).unwrap_or_default() {
            let path = [from, b"/", &name].concat();
            self.file(&path, &to.join(std::ffi::OsStr::from_bytes(&name)))?;
        }
        Ok(())
    }

    fn file(&mut self, from: &[u8], to: &Path) -> io::Result<()> {
        let Some(info) = self.view.stat(from) else { return Ok(()) };
        if let Some(number) = self.view.shared_inode(from) {
            if let Some(first) = self.links.get(&number) {
                return fs::hard_link(first, to);
            }
            self.links.insert(number, to.to_path_buf());
        }
        match &info.kind {
            NodeKind::Dir => {
                DirBuilder::new().mode(0o700).create(to)?;
                self.children(from, to)?;
            }
            NodeKind::File(_) => {
                let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
                if let Some(mut content) = self.view.open(from) {
                    io::copy(&mut content, &mut file)?;
                }
            }
            NodeKind::Symlink(target) => symlink(std::ffi::OsStr::from_bytes(target), to)?,
            NodeKind::Fifo => rustix::fs::mknodat(CWD, to, FileType::Fifo, Mode::RUSR, 0)?,
            // Only root makes devices, and a mount of the volume has none anyway.
            NodeKind::Char(..) | NodeKind::Block(..) => return Ok(()),
        }
        self.attributes(&info, to)
    }

    /// Owner, mode, attributes and time. After the contents, which change the time.
    fn attributes(&self, info: &NodeInfo, path: &Path) -> io::Result<()> {
        // The files of a user are root's in the workload.
        if self.is_root {
            lchown(path, Some(info.uid), Some(info.gid))?;
        }
        if !matches!(info.kind, NodeKind::Symlink(_)) {
            fs::set_permissions(path, Permissions::from_mode(info.mode.into()))?;
        }
        for (name, value) in &info.xattrs {
            // The file system may have none, or not these for us.
            let _ = rustix::fs::lsetxattr(path, &**name, value, XattrFlags::empty());
        }
        let time = Timespec { tv_sec: info.mtime.try_into().unwrap_or_default(), tv_nsec: 0 };
        let times = Timestamps { last_access: time, last_modification: time };
        Ok(rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
    }
}
