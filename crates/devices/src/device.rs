//! What every device offers, and what it may ask for.

use state::Section;

/// A device. Calls are serialised by whoever owns it (the bus keeps each device in a mutex of its own).
///
/// Lifecycle: made, `reset`, then accesses; `save` and `restore` only while every vCPU and every queue of the
/// machine is stopped. A guest's mistake is not a host error: accesses never fail, they answer as hardware would.
pub trait Device: Send {
    /// A name unique within the machine, e.g. `serial0`; also its section's path in a snapshot.
    fn name(&self) -> &str;

    /// Returns to the state after power-up.
    fn reset(&mut self);

    /// The device's state. Implementations destructure every field without `..`.
    ///
    /// # Errors
    /// Whatever `state` says of values that cannot be encoded.
    fn save(&self) -> Result<Section, state::Error>;

    /// Takes over a saved state, checked as input from a stranger: on error nothing has changed.
    ///
    /// # Errors
    /// A section of another kind or version, or with values the device could never have had.
    fn restore(&mut self, section: &Section) -> Result<(), state::Error>;

    /// The port I/O side, if it has one.
    fn as_pio(&mut self) -> Option<&mut dyn PioDevice> {
        None
    }

    /// The MMIO side, if it has one.
    fn as_mmio(&mut self) -> Option<&mut dyn MmioDevice> {
        None
    }

    /// The side that needs to be called at certain times, if it has one.
    fn as_timed(&mut self) -> Option<&mut dyn Timed> {
        None
    }

    /// The side that works on its own (queues, threads) and must be put to rest before a save, if it has one.
    fn as_queued(&mut self) -> Option<&mut dyn Queued> {
        None
    }
}

/// A device that answers on I/O ports. `data` is 1, 2 or 4 bytes, little endian.
pub trait PioDevice {
    /// IN. Fills `data`; all ones where nothing is there.
    fn port_read(&mut self, port: u16, data: &mut [u8]);
    /// OUT.
    fn port_write(&mut self, port: u16, data: &[u8]);
}

/// A device that answers in guest physical address space. `data` is 1, 2, 4 or 8 bytes, little endian;
/// `offset` counts from the start of the range the device was registered with.
pub trait MmioDevice {
    /// A load. Fills `data`.
    fn mmio_read(&mut self, offset: u64, data: &mut [u8]);
    /// A store.
    fn mmio_write(&mut self, offset: u64, data: &[u8]);
}

/// A device that acts by itself at certain times. Nothing polls: after every access the owner asks for the
/// deadline and calls [`Timed::advance`] when the clock has reached it.
pub trait Timed {
    /// When [`Timed::advance`] must be called next, in [`Clock`] nanoseconds; `None` if never.
    fn next_deadline(&self) -> Option<u64>;
    /// The clock now shows `now`, which may be late. Late ticks are counted, not replayed.
    fn advance(&mut self, now: u64);
}

/// A device that works while no vCPU calls it. Around a save: stop the vCPUs, [`Queued::stop_queues`] on every
/// such device, `save`, and [`Queued::start_queues`] if the machine goes on. After a `restore` the queues are
/// at rest until [`Queued::start_queues`].
pub trait Queued {
    /// Completes what was begun and touches guest RAM no more. Idempotent.
    fn stop_queues(&mut self);
    /// Goes on. Idempotent.
    fn start_queues(&mut self);
}

/// Machine time: nanoseconds since the machine was made, not counting time at rest.
pub trait Clock: Send + Sync {
    /// Now.
    fn now(&self) -> u64;
    /// Wall-clock time as nanoseconds since the Unix epoch.
    fn wall_clock(&self) -> u64;
}

/// What a device may ask of the machine as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerEvent {
    /// Reset all vCPUs and devices.
    Reset,
    /// Turn off (ACPI S5).
    PowerOff,
}

/// Takes power events; the machine implements it. Returns at once; the machine acts when vCPUs are stopped.
pub trait PowerSink: Send + Sync {
    /// Asks for `event`.
    fn request(&self, event: PowerEvent);
}
