//! The os layer: containers made of namespaces, control groups, mounts, seccomp and capabilities.
//!
//! Reading order: [`spec`] (what a bundle says), [`Runtime`] in `verbs/` (a file per verb), `init` (the first process,
//! step by step), `process` (the last steps before any command), then `mounts`, `paths` and `rootfs` (how nothing of a
//! hostile root is trusted), `cgroups`, `seccomp`, [`own_binary`] (CVE-2019-5736), [`command`] (one command in a folder).
//!
//! **Why not libcontainer** (youki's library, 0.7). Not tried here; decided by what is known of it: youki's run takes 24 ms
//! where crun's takes 10, without the C library libseccomp it passes filters over with a warning, and v1 hierarchies, which
//! hosts with both still need, are at the end of their maintenance there. Here a container costs one `clone3` and no helper
//! process, the program is kept from it without a new start ([`own_binary`]), and paths and mounts go by descriptor.
//!
//! Deliberately absent: what leads out of a network namespace, images, checkpoints, Intel RDT, network classes and devices,
//! policies for memory, RDMA; printing and flags, which are `strata`'s.

pub mod capabilities;
pub mod command;
pub mod network;
pub mod own_binary;
pub mod seccomp;
pub mod spec;
pub mod state;
pub mod template;

mod affinity;
mod bundle;
mod cgroups;
mod channel;
mod console;
mod copy;
mod error;
mod foreground;
mod hooks;
mod idmapped;
mod ids;
mod init;
mod launch;
mod mounts;
mod namespaces;
mod options;
mod paths;
mod process;
mod remap;
pub mod rest;
mod rlimits;
mod rootfs;
mod sys;
mod tree;
mod user;
mod verbs;

pub use bundle::examine;
pub use cgroups::{HostGroups, Usage};
pub use error::{Error, Result};
pub use foreground::{Signals, Streams};
pub use rootfs::{Root, Upper};
pub use tree::Tree;
pub use user::resolve as user;
pub use verbs::{CreateOptions, ExecOptions, Exit, Running, Runtime, Source, features, id_of, own_id};
