//! PID 1 inside a microVM, and its bytes.
//!
//! Everything the agent does lives in this library, so that tests can run it on the host; `main.rs`
//! only enters it. The same package is built twice: as an ordinary library, which carries the other
//! build's result in [`AGENT`], and (by `build.rs`, with `--cfg pid1`) as a static program without
//! the standard library, which would not fit the mebibyte the agent may take.
//!
//! Read in order: [`init`] (the life of a machine), [`session`] (the one loop), [`root`] and
//! [`mounts`], [`spawn`] with [`command`] and [`user`], [`streams`], [`control`], [`power`]; [`service`] is what the same
//! program does when the host starts it once more, [`reaper`] what it does as the first process of a container.
//! Every system call that needs `unsafe` is in `sys` and `transport`.
//!
//! Deliberately absent: threads, name service (the image's own `/etc/passwd` is read), a shell,
//! configuration of its own. The host decides; when it is gone the machine powers off.
#![no_std]
#![deny(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod command;
pub mod console;
pub mod control;
pub mod fault;
pub mod files;
pub mod identity;
pub mod init;
pub mod modules;
pub mod mounts;
pub mod network;
pub mod power;
pub mod reaper;
pub mod root;
pub mod service;
pub mod session;
pub mod spawn;
pub mod streams;
#[expect(unsafe_code, reason = "system calls without a safe wrapper, see the file's own line")]
pub mod sys;
#[expect(unsafe_code, reason = "a socket address type of our own, see the file's own line")]
pub mod transport;
pub mod tree;
pub mod user;
pub mod volumes;

#[cfg(test)]
mod tests;

/// The agent as a static x86-64 Linux program: put it into an initramfs as `/init`, mode 0755,
/// beside `/dev`, and modules in `/modules` with their names, in dependency order, one a line, in
/// `/modules/order`.
#[cfg(not(pid1))]
pub static AGENT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/agent"));
