//! Folders and files of the host that a machine's processes see.

use alloc::string::String;
use alloc::vec::Vec;

use crate::error::Error;
use crate::wire::{Decoder, Encoder};

/// Most of them in one message.
const MAX: usize = 256;

/// The tag of the virtio-fs device that has all of them.
pub const TAG: &str = "strata";

/// A folder or file of the host: what is called by its place among those of the list (`0`, `1`, …) in the root of the file
/// system with the tag [`TAG`]. Or memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Where the processes see it: a path from their root.
    pub target: String,
    /// Whether they cannot change it.
    pub read_only: bool,
    /// Options of a tmpfs, where it is none of the host's folders.
    pub memory: Option<String>,
}

pub(crate) fn encode(volumes: &[Volume], to: &mut Encoder) {
    to.count(volumes.len());
    for Volume { target, read_only, memory } in volumes {
        to.string(target);
        to.bool(*read_only);
        to.bool(memory.is_some());
        memory.iter().for_each(|options| to.string(options));
    }
}

pub(crate) fn decode(from: &mut Decoder<'_>) -> Result<Vec<Volume>, Error> {
    let volumes = from.list("volumes", |from| {
        let (target, read_only) = (from.string("target")?, from.bool("read_only")?);
        let memory = if from.bool("is_memory")? { Some(from.string("memory")?) } else { None };
        Ok(Volume { target, read_only, memory })
    })?;
    if volumes.len() > MAX {
        return Err(Error::Malformed { field: "volumes", fault: "more than 256" });
    }
    Ok(volumes)
}
