//! One file per command: its flags and what they do.

pub mod boot;
pub mod changes;
pub mod check;
pub mod completions;
pub mod cp;
pub mod debug;
pub mod files;
pub mod fork;
pub mod image;
pub mod kernel;
mod listing;
pub mod login;
pub mod man;
pub mod network;
pub mod oci;
pub mod registry;
pub mod restore;
pub mod run;
pub mod serve;
mod sizing;
pub mod snapshot;
pub mod snapshots;
pub mod start;
pub mod templates;
pub mod usage;
pub mod volume;
pub mod workloads;
