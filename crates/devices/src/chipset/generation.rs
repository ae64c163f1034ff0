//! The virtual machine generation ID ("Virtual Machine Generation ID", Microsoft, 2012): 128 bits in guest memory that are others
//! whenever the machine goes on from a saved state, and an event that says so. A kernel with a driver (Linux from 5.18 on)
//! makes its random numbers new before anything else uses them.
//!
//! How the guest finds it, and what the event is, stands in the ACPI tables ([`crate::acpi::GenerationIdAt`]).

use std::sync::Arc;

use memory::GuestRam;
use rustix::rand::{GetRandomFlags, getrandom};
use state::Section;

use crate::device::{Device, Queued};
use crate::irq::IrqLine;

const KIND: &str = "generation-id";
const VERSION: u32 = 1;

/// The device. It has no registers.
pub struct GenerationId {
    // Glue.
    ram: Arc<GuestRam>,
    gpa: u64,
    line: IrqLine,
    // Bookkeeping.
    /// The guest is to be told when it goes on.
    changed: bool,
}

impl GenerationId {
    /// An ID that lies at `gpa`, on a page of its own; the event is an edge of `line`.
    pub fn new(ram: Arc<GuestRam>, gpa: u64, line: IrqLine) -> Self {
        Self { ram, gpa, line, changed: false }
    }

    fn renew(&self) {
        let mut id = [0; 16];
        // The host's generator never waits once it is up, and gives so few bytes at once. A board that has no memory
        // there has no ID.
        if getrandom(&mut id, GetRandomFlags::empty()).is_ok() {
            let _ = self.ram.write(self.gpa, &id);
        }
    }
}

impl Device for GenerationId {
    fn name(&self) -> &str {
        "generation-id"
    }

    fn reset(&mut self) {
        self.changed = false;
        self.renew();
    }

    /// The ID itself is part of guest memory, and never of use again.
    fn save(&self) -> Result<Section, state::Error> {
        let Self { ram: _, gpa: _, line: _, changed } = self;
        Section::encode(KIND, VERSION, changed)
    }

    fn restore(&mut self, section: &Section) -> Result<(), state::Error> {
        let _told: bool = section.decode(KIND, VERSION)?;
        self.renew();
        self.changed = true;
        Ok(())
    }

    fn as_queued(&mut self) -> Option<&mut dyn Queued> {
        Some(self)
    }
}

impl Queued for GenerationId {
    fn stop_queues(&mut self) {}

    fn start_queues(&mut self) {
        if std::mem::take(&mut self.changed) {
            self.line.pulse();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::irq::InterruptController;

    #[derive(Default)]
    struct Edges(AtomicU32);

    impl InterruptController for Edges {
        fn set_line(&self, gsi: u32, high: bool) {
            assert_eq!(gsi, 23);
            self.0.fetch_add(u32::from(high), Ordering::Relaxed);
        }
    }

    #[test]
    fn a_machine_that_goes_on_from_a_state_is_told_once_and_one_that_rests_is_not() {
        let (ram, edges) = (Arc::new(GuestRam::new(&[(0, 0x2000)]).unwrap()), Arc::new(Edges::default()));
        let mut device = GenerationId::new(ram.clone(), 0x1000, IrqLine::new(edges.clone(), 23));
        let id = || {
            let mut id = [0; 16];
            ram.read(0x1000, &mut id).unwrap();
            id
        };
        let count = || edges.0.load(Ordering::Relaxed);
        device.reset();
        let first = id();
        assert_ne!(first, [0; 16]);
        device.start_queues();
        device.stop_queues();
        device.start_queues();
        assert_eq!((id(), count()), (first, 0));
        let section = device.save().unwrap();
        device.restore(&section).unwrap();
        assert_ne!(id(), first);
        assert_eq!(count(), 0, "not before it goes on");
        device.start_queues();
        device.start_queues();
        assert_eq!(count(), 1);
        let wrong = Section { kind: "other".to_owned(), ..section };
        let before = id();
        assert!(device.restore(&wrong).is_err());
        assert_eq!(id(), before);
    }
}
