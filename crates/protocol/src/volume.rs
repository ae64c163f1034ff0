//! Folders and files of the host that a machine's processes see.

use alloc::string::String;
use alloc::vec::Vec;

use crate::error::Error;
use crate::wire::{Decoder, Encoder};

/// Most of them in one message.
const MAX: usize = 256;

/// The tag of the virtio-fs device that has all of them.
pub const TAG: &str = "strata";

/// A folder or file of the host: what is called by its place in the list (`0`, `1`, …) in the root of the file system with
/// the tag [`TAG`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Where the processes see it: a path from their root.
    pub target: String,
    /// Whether they cannot change it.
    pub read_only: bool,
}

pub(crate) fn encode(volumes: &[Volume], to: &mut Encoder) {
    to.count(volumes.len());
    for Volume { target, read_only } in volumes {
        to.string(target);
        to.bool(*read_only);
    }
}

pub(crate) fn decode(from: &mut Decoder<'_>) -> Result<Vec<Volume>, Error> {
    let volumes = from.list("volumes", |from| {
        Ok(Volume { target: from.string("target")?, read_only: from.bool("read_only")? })
    })?;
    if volumes.len() > MAX {
        return Err(Error::Malformed { field: "volumes", fault: "more than 256" });
    }
    Ok(volumes)
}
