//! Kernels for machines: each with the modules that a machine's agent needs, in the order to load them.
//!
//! A bundle is a folder `kernels/<id>/` of the store: `bundle.json`, the kernel as it came (`kernel`), its decompressed form if
//! the caller made one (`vmlinux`), and `modules/*.ko`, decompressed so that the guest need not. `kernels/default` names the
//! bundle that is taken when nobody says which.
//!
//! What a kernel file is inside is not known here beyond its first bytes.

mod add;
mod bundle;
mod deb;
mod fetch;
mod modinfo;
mod modules;
mod sniff;
#[cfg(test)]
mod tests;

pub use add::{AddKernel, Unpack};
pub use bundle::{BundleInfo, FileInfo, KernelBundle, KernelKind, Module};
pub use fetch::DEFAULT_PACKAGE;
pub use modules::WANTED;
