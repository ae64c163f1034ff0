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
        /// Whether what is mounted below it later is seen on the other side.
        #[serde(default, skip_serializing_if = "Propagation::is_private")]
        propagation: Propagation,
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

/// Whether what is mounted below a place later is seen where else that is; the words are those of mount(8), and in those that begin
/// with r this goes for what is mounted below already too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Propagation {
    /// As below, but for this mount alone.
    Private,
    /// Nothing is.
    #[default]
    RPrivate,
    /// As below, but for this mount alone.
    Slave,
    /// The workload sees what the host mounts.
    RSlave,
    /// As below, but for this mount alone.
    Shared,
    /// Each sees what the other mounts.
    RShared,
}

impl Propagation {
    const WORDS: [(&str, Propagation); 6] = [
        ("private", Propagation::Private),
        ("rprivate", Propagation::RPrivate),
        ("slave", Propagation::Slave),
        ("rslave", Propagation::RSlave),
        ("shared", Propagation::Shared),
        ("rshared", Propagation::RShared),
    ];

    /// Understands one of the words.
    pub fn parse(text: &str) -> Option<Propagation> {
        Self::WORDS.iter().find(|(word, _)| *word == text).map(|(_, kind)| *kind)
    }

    /// The word.
    pub fn word(self) -> &'static str {
        Self::WORDS.iter().find(|(_, kind)| *kind == self).map_or("rprivate", |(word, _)| word)
    }

    /// Whether nothing mounted later is seen.
    pub fn is_private(&self) -> bool {
        matches!(self, Propagation::Private | Propagation::RPrivate)
    }

    /// Whether the host sees what the workload mounts.
    pub fn is_shared(self) -> bool {
        matches!(self, Propagation::Shared | Propagation::RShared)
    }
}

fn yes() -> bool {
    true
}

impl MountSource {
    /// A folder or file of the host, as it is when nothing more is said.
    pub fn bind(source: impl Into<String>) -> MountSource {
        MountSource::Bind { source: source.into(), propagation: Propagation::default() }
    }

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
