//! The OCI runtime specification 1.2 (`runtime.md`, `config.md`, `config-linux.md`): what it says a runtime MUST do,
//! theme by theme, with `strata oci` as the runtime on bundles of busybox.
//!
//! Where this runtime does otherwise on purpose, as runc does, the test says so.

mod cgroups;
mod filter;
mod hooks;
mod hosts;
mod idmapped;
mod lifecycle;
mod linux;
pub mod listener;
mod mounts;
mod namespaces;
mod process;
