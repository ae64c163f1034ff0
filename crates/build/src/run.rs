//! RUN: what becomes the root of a stage's commands, and what a command changed in it.
//!
//! The root is a file system in a file, which is the base image's own as long as nothing but commands changed the stage's files,
//! and what earlier commands wrote over it, a folder each. Whoever runs the commands says what one changed, as an archive.

use std::fs::File;
use std::io::Seek;
use std::path::{Path, PathBuf};

use image::{Incoming, LayerPart, RootFile, ScratchFolder};

use crate::error::{Error, Result};

/// What earlier commands wrote is looked through folder by folder: after so many they become one file system.
const MAX_BELOW: usize = 32;

/// A command of RUN.
#[derive(Debug)]
pub struct Run<'a> {
    /// A file that holds the file system which is its root.
    pub file: &'a Path,
    /// The name of that file system.
    pub fs_type: &'a str,
    /// What earlier commands wrote over it, the lowest first: folders that [`Ended::written`] named.
    pub below: &'a [PathBuf],
    /// A folder for what it writes; empty but for what earlier commands wrote.
    pub space: &'a Path,
    /// An empty file that is given what it changed, as an archive (OCI image specification 1.1, `layer.md`).
    pub changes: &'a File,
    /// The command and its arguments.
    pub argv: &'a [String],
    /// `NAME=value` each.
    pub env: &'a [String],
    /// Where it starts, inside the root.
    pub cwd: &'a str,
    /// As in an image's config; empty is root.
    pub user: &'a str,
}

/// How a command ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit code. Unless it is 0, nothing needs to be said of changes.
    pub code: u8,
    /// The folder that later commands may have below theirs, if there is such a thing.
    pub written: Option<PathBuf>,
}

/// Whoever can run a command in a root as if that were all there is: containers, or machines.
pub trait Runner {
    /// Runs the command to its end, its output going where ours goes. Nothing of it runs or is mounted afterwards.
    ///
    /// # Errors
    /// It could not be run.
    fn run(&self, run: &Run<'_>) -> std::result::Result<Ended, Box<dyn std::error::Error + Send + Sync>>;
}

/// What whoever runs commands mounts in a root: the folders are the host kernel's, and no image's.
const NOT_OF_IMAGE: [&[u8]; 3] = [b"dev", b"proc", b"sys"];

/// The root that the commands of a stage share as long as nobody else changes its files.
pub(crate) struct Root {
    file: PathBuf,
    fs_type: &'static str,
    /// The base's own is not removed meanwhile.
    _held: Option<RootFile>,
    folder: ScratchFolder,
    below: Vec<PathBuf>,
}

impl Root {
    /// On the root that an image has for its workloads.
    pub(crate) fn on_image(held: RootFile, incoming: &Incoming) -> Result<Root> {
        let (file, fs_type) = (held.path().to_owned(), held.fstype());
        let folder = incoming.scratch_folder()?;
        Ok(Root { file, fs_type, _held: Some(held), folder, below: Vec::new() })
    }

    /// On a squashfs that stays as it is for as long as this is used.
    pub(crate) fn on_file(file: &Path, incoming: &Incoming) -> Result<Root> {
        let (file, folder) = (file.to_owned(), incoming.scratch_folder()?);
        Ok(Root { file, fs_type: image::SQUASHFS, _held: None, folder, below: Vec::new() })
    }

    /// Whether one more command may run on what earlier ones wrote.
    pub(crate) fn has_room(&self) -> bool {
        self.below.len() < MAX_BELOW
    }

    /// Runs a command. Gives the layer of what it changed, unless it changed nothing, and whether later commands may use this.
    pub(crate) fn run(
        &mut self,
        runner: &dyn Runner,
        (argv, env): (&[String], &[String]),
        (cwd, user): (&str, &str),
        (incoming, latest): (&Incoming, Option<u64>),
    ) -> Result<(Option<LayerPart>, bool)> {
        let act = || self.folder.path().join("changes");
        let options = File::options().read(true).write(true).create(true).truncate(true).open(act());
        let mut changes = options.map_err(Error::file("create", act()))?;
        let space = self.folder.path().join("written");
        std::fs::create_dir_all(&space).map_err(Error::file("create", &space))?;
        let (file, fs_type, below) = (self.file.as_path(), self.fs_type, self.below.as_slice());
        let run = Run { file, fs_type, below, space: &space, changes: &changes, argv, env, cwd, user };
        let outside = |source| Error::Outside { act: format!("run {:?}", argv.join(" ")), source };
        let ended = runner.run(&run).map_err(outside)?;
        if ended.code != 0 {
            return Err(Error::Command(ended.code));
        }
        changes.rewind().map_err(Error::file("read", act()))?;
        let layer = incoming.layer_of_changes(&changes, |path| !is_of_host(path), latest)?;
        let lasts = ended.written.is_some();
        self.below.extend(ended.written);
        Ok((layer, lasts))
    }
}

fn is_of_host(path: &[u8]) -> bool {
    NOT_OF_IMAGE
        .iter()
        .any(|top| path == *top || (path.starts_with(top) && path.get(top.len()) == Some(&b'/')))
}

#[cfg(test)]
mod tests {
    use super::is_of_host;

    #[test]
    fn folders_of_the_kernel_are_no_images() {
        assert!(
            is_of_host(b"dev") && is_of_host(b"proc/1") && !is_of_host(b"device") && !is_of_host(b"a/dev")
        );
    }
}
