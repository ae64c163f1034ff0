//! Saved form of the transport.

use serde::{Deserialize, Serialize};
use state::Section;

use super::queue::{QueueProgress, QueueSetup};

/// Section kind of a virtio device on MMIO.
pub(super) const KIND: &str = "virtio-mmio";
/// Version of [`MmioState`].
pub(super) const VERSION: u32 = 1;

/// Registers, queues, and the device behind them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct MmioState {
    pub device_type: u32,
    pub status: u32,
    pub needs_reset: bool,
    pub device_features_sel: u32,
    pub driver_features_sel: u32,
    pub driver_features: u64,
    pub queue_sel: u32,
    pub interrupt_status: u32,
    pub queues: Vec<QueueSavedState>,
    pub device: NestedState,
}

/// One queue: where the driver put it and how far the device got.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct QueueSavedState {
    pub setup: QueueSetup,
    pub progress: QueueProgress,
}

/// The device's own section.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct NestedState {
    pub kind: String,
    pub version: u32,
    pub bytes: Vec<u8>,
}

impl From<Section> for NestedState {
    fn from(section: Section) -> Self {
        let Section { kind, version, bytes } = section;
        Self { kind, version, bytes }
    }
}

impl From<NestedState> for Section {
    fn from(nested: NestedState) -> Self {
        let NestedState { kind, version, bytes } = nested;
        Self { kind, version, bytes }
    }
}
