//! Disk formats, one module each.

pub mod raw;
