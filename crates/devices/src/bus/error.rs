//! What can go wrong with a bus.

/// Why a device could not be put on the bus, or its state not be saved or restored.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// Two devices of one name.
    #[error("add device {name}: there is one of that name already")]
    DuplicateName {
        /// The name.
        name: String,
    },
    /// The range is empty or reaches past the end of its space.
    #[error("claim {space} {start:#x} (len {len:#x}) for {name}: empty or past the end of the space")]
    BadRange {
        /// `ports` or `memory`.
        space: &'static str,
        /// The device.
        name: String,
        /// First port or address.
        start: u64,
        /// How many.
        len: u64,
    },
    /// The range overlaps another one.
    #[error("claim {space} {start:#x} (len {len:#x}) for {name}: overlaps {other}")]
    Overlap {
        /// `ports` or `memory`.
        space: &'static str,
        /// The device.
        name: String,
        /// First port or address.
        start: u64,
        /// How many.
        len: u64,
        /// The device that has it already.
        other: String,
    },
    /// The device has no side of that kind.
    #[error("claim {space} for {name}: the device does not answer there")]
    NoSuchSide {
        /// `ports` or `memory`.
        space: &'static str,
        /// The device.
        name: String,
    },
    /// More devices than the port table can name.
    #[error("add device {name}: too many devices")]
    TooMany {
        /// The device.
        name: String,
    },
    /// A device's state could not be saved or restored.
    #[error("{act} {name}")]
    State {
        /// `save` or `restore`.
        act: &'static str,
        /// The device.
        name: String,
        /// What is wrong.
        #[source]
        source: state::Error,
    },
    /// A snapshot has no section for a device.
    #[error("restore {name}: no such section")]
    MissingSection {
        /// The device.
        name: String,
    },
}
