//! What a workload sees beside its image: folders of the host, volumes, memory.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Something at a place of a workload's root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// What is there.
    #[serde(flatten)]
    pub source: MountSource,
    /// Where the workload sees it: an absolute path.
    pub target: String,
    /// Whether the workload cannot change it.
    #[serde(default)]
    pub read_only: bool,
}

/// What is at such a place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum MountSource {
    /// A folder or file of the host.
    Bind {
        /// Where it is there: an absolute path.
        source: String,
    },
    /// A volume of the store.
    Volume {
        /// Its name; empty for one that is yet to be made and to get a name.
        name: String,
        /// A new one gets what the image has at the place.
        #[serde(default = "yes")]
        copy: bool,
        /// What a new one is labelled with.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        labels: BTreeMap<String, String>,
        /// What its driver is told, of a new one.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        options: BTreeMap<String, String>,
        /// The folder or file in it that is seen; empty for all of it.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        subpath: String,
    },
    /// Memory of its own, empty at each start.
    Tmpfs {
        /// Options of tmpfs(5), such as `size=65536,mode=1777`.
        #[serde(default)]
        options: String,
    },
}

fn yes() -> bool {
    true
}

impl MountSource {
    /// The volume of this name, as it is when nothing more is said; `copy` is whether a new one gets what the image has there.
    pub fn volume(name: impl Into<String>, copy: bool) -> MountSource {
        let (labels, options) = (BTreeMap::new(), BTreeMap::new());
        MountSource::Volume { name: name.into(), copy, labels, options, subpath: String::new() }
    }
}

impl Mount {
    /// The name of the volume, if it is one.
    pub fn volume(&self) -> Option<&str> {
        match &self.source {
            MountSource::Volume { name, .. } => Some(name),
            _ => None,
        }
    }
}
