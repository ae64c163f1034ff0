//! The os layer: containers made of namespaces, control groups, mounts, seccomp and capabilities.
//!
//! Reading order: [`spec`] (what a bundle says), [`Runtime`] in `verbs/` (a file per verb), `init` (the first process,
//! step by step), `process` (the last steps before any command), then `mounts`, `paths` and `rootfs` (how nothing of a
//! hostile root is trusted), `cgroups`, `seccomp`, [`own_binary`] (CVE-2019-5736), [`command`] (one command in a folder).
//!
//! **Why not libcontainer** (youki's library, 0.7): measured before this was written, its runtime takes 24 ms for a run
//! where crun takes 10 and the kernel itself 6, half of that for starting itself anew; without the C library libseccomp
//! it passes filters over with a warning; v1 hierarchies are at the end of their maintenance there, and hosts with both
//! are what we meet. Here a container costs one `clone3` and no helper process, and no exec but the command's, and paths
//! and mounts go by descriptor throughout.
//!
//! Deliberately absent: networks beyond loopback, images, checkpoints, listeners of seccomp notifications, id-mapped
//! mounts, Intel RDT, network classes; printing and flags, which are `strata`'s.

pub mod capabilities;
pub mod command;
pub mod own_binary;
pub mod seccomp;
pub mod spec;
pub mod state;
pub mod template;

mod bundle;
mod cgroups;
mod channel;
mod console;
mod copy;
mod error;
mod foreground;
mod hooks;
mod ids;
mod init;
mod launch;
mod mounts;
mod namespaces;
mod options;
mod paths;
mod process;
mod rlimits;
mod rootfs;
mod sys;
mod user;
mod verbs;

pub use error::{Error, Result};
pub use foreground::{Signals, Streams};
pub use rootfs::{Root, Upper};
pub use verbs::{CreateOptions, ExecOptions, Exit, Running, Runtime, Source, features};
