//! Images in and out of the store as files: a root file system's tar, `oci-archive`, `docker-archive`.

mod commit;
mod import;
mod load;
mod save;
#[cfg(test)]
mod tests;

pub(crate) use commit::Made;
pub use commit::{rfc3339, source_date};
pub(crate) use import::GZIP_LEVEL;
pub use save::SaveFormat;
