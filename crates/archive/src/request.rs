//! What can be asked, as the words of a command line.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use rustix::fd::{BorrowedFd, OwnedFd};

use crate::error::{Error, Result};
use crate::pack::{self, Scope};
use crate::place;
use crate::stream::Sink;
use crate::unpack::{self, Overwrite, Put};

/// Who gets the files of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Whom the archive names.
    Archive,
    /// `USER[:GROUP]` of the root.
    User(String),
}

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// What lies at a path: [`place::Stat::to_bytes`].
    Stat(Vec<u8>),
    /// What lies at a path, as an archive.
    Get {
        /// Where.
        path: Vec<u8>,
        /// What its names begin with, instead of the path's last part.
        name: Option<Vec<u8>>,
    },
    /// An archive goes into the folder at a path.
    Put {
        /// The folder.
        path: Vec<u8>,
        /// What may be replaced.
        overwrite: Overwrite,
        /// Who gets the files.
        owner: Owner,
    },
    /// All files of the root's own file system, as an archive.
    Export,
    /// What was changed since the start, as the archive of a layer (OCI image specification 1.1, `layer.md`).
    Changes,
    /// Such an archive is applied to the root.
    Apply,
}

/// Where files are.
pub struct Roots<'a> {
    /// The root.
    pub root: BorrowedFd<'a>,
    /// The upper folder of the overlay that it is, if it is one.
    pub upper: &'a dyn Fn() -> Option<OwnedFd>,
    /// The numbers of a user of the root.
    pub user: &'a dyn Fn(&str) -> Option<(u32, u32)>,
}

impl Request {
    /// The words.
    pub fn to_words(&self) -> Vec<Vec<u8>> {
        let word = |text: &str| text.as_bytes().to_vec();
        match self {
            Request::Stat(path) => Vec::from([word("stat"), path.clone()]),
            Request::Get { path, name } => {
                [word("get"), path.clone()].into_iter().chain(name.clone()).collect()
            }
            Request::Put { path, overwrite, owner } => {
                let how = if *overwrite == Overwrite::SameKind { "same-kind" } else { "anything" };
                let mut words = Vec::from([word("put"), path.clone(), word(how)]);
                if let Owner::User(user) = owner {
                    words.push(word(user));
                }
                words
            }
            Request::Export => Vec::from([word("export")]),
            Request::Changes => Vec::from([word("changes")]),
            Request::Apply => Vec::from([word("apply")]),
        }
    }

    /// Reads those; nothing if they make no sense.
    pub fn parse(words: &[&[u8]]) -> Option<Request> {
        Some(match words {
            [b"stat", path] => Request::Stat(path.to_vec()),
            [b"get", path] => Request::Get { path: path.to_vec(), name: None },
            [b"get", path, name] => Request::Get { path: path.to_vec(), name: Some(name.to_vec()) },
            [b"put", path, how, owner @ ..] => Request::Put {
                path: path.to_vec(),
                overwrite: match *how {
                    b"same-kind" => Overwrite::SameKind,
                    b"anything" => Overwrite::Anything,
                    _ => return None,
                },
                owner: match owner {
                    [] => Owner::Archive,
                    [user] => Owner::User(core::str::from_utf8(user).ok()?.to_string()),
                    _ => return None,
                },
            },
            [b"export"] => Request::Export,
            [b"changes"] => Request::Changes,
            [b"apply"] => Request::Apply,
            _ => return None,
        })
    }

    /// Whether an archive is read.
    pub fn reads(&self) -> bool {
        matches!(self, Request::Put { .. } | Request::Apply)
    }

    /// Does it: an archive comes from `input` or goes to `output`.
    ///
    /// # Errors
    /// There is no such path, the archive makes no sense, or a file cannot be read or written. What was written before stays.
    pub fn run(&self, roots: &Roots<'_>, input: BorrowedFd<'_>, output: BorrowedFd<'_>) -> Result<()> {
        let root = roots.root;
        match self {
            Request::Stat(path) => {
                let mut sink = Sink::new(output);
                sink.write(&place::stat(root, path)?.to_bytes())?;
                sink.flush()
            }
            Request::Get { path, name } => pack::pack(root, path, name.as_deref(), Scope::Mounts, output),
            Request::Export => {
                let folder = place::open(root, b"", rustix::fs::OFlags::PATH);
                pack::pack_folder(folder.map_err(Error::os("open", b"/"))?, Scope::One, output)
            }
            Request::Changes => {
                let missing = || Error::invalid("read the changes", b"", "the root is no overlay");
                pack::pack_folder((roots.upper)().ok_or_else(missing)?, Scope::Upper, output)
            }
            Request::Put { path, overwrite, owner } => {
                let owner = match owner {
                    Owner::Archive => None,
                    Owner::User(user) => {
                        let found = (roots.user)(user);
                        let missing =
                            || Error::invalid("find user", user.as_bytes(), "there is none in the root");
                        Some(found.ok_or_else(missing)?)
                    }
                };
                let put = Put { overwrite: *overwrite, owner, is_layer: false };
                unpack::unpack(root, path, put, input)
            }
            Request::Apply => {
                let put = Put { overwrite: Overwrite::Anything, owner: None, is_layer: true };
                unpack::unpack(root, b"/", put, input)
            }
        }
    }
}
