//! The virtual machine generation ID ("Virtual Machine Generation ID", Microsoft, 2012): 128 bits in guest memory that are others
//! whenever the machine goes on from a saved state, and an event that says so. A kernel with a driver (Linux from 5.18 on)
//! makes its random numbers new before anything else uses them.
//!
//! A kernel without one would interpret the event's AML for nothing, which is a fifth of what a copy does when it goes on. So
//! AML notes in the ID's page that the guest has asked where the ID is, and only then there is an event.
//!
//! How the guest finds it, and what the event is, stands in the ACPI tables ([`crate::acpi::GenerationIdAt`]).

use std::sync::Arc;

use memory::GuestRam;
use rustix::rand::{GetRandomFlags, getrandom};
use state::Section;

use crate::device::{Device, Queued};
use crate::irq::IrqLine;

const KIND: &str = "generation-id";
/// Of 1 the AML noted nothing: the guest is always told.
const VERSION: u32 = 2;

/// Where the note is, from the ID's address on: a byte that is not zero once the guest has asked for it.
pub const ASKED: u32 = 16;

/// The device. It has no registers.
pub struct GenerationId {
    // Glue.
    ram: Arc<GuestRam>,
    gpa: u64,
    line: IrqLine,
    // Bookkeeping.
    /// The guest is to be told when it goes on.
    changed: bool,
    /// Whether it has asked or not.
    tell_always: bool,
}

impl GenerationId {
    /// An ID that lies at `gpa`, on a page of its own; the event is an edge of `line`.
    pub fn new(ram: Arc<GuestRam>, gpa: u64, line: IrqLine) -> Self {
        Self { ram, gpa, line, changed: false, tell_always: false }
    }

    fn renew(&self) {
        let mut id = [0; 16];
        // The host's generator never waits once it is up, and gives so few bytes at once. A board that has no memory
        // there has no ID.
        if getrandom(&mut id, GetRandomFlags::empty()).is_ok() {
            let _ = self.ram.write(self.gpa, &id);
        }
    }

    fn has_asked(&self) -> bool {
        let mut note = [0];
        self.tell_always || self.ram.read(self.gpa + u64::from(ASKED), &mut note).is_ok() && note != [0]
    }
}

impl Device for GenerationId {
    fn name(&self) -> &str {
        "generation-id"
    }

    fn reset(&mut self) {
        (self.changed, self.tell_always) = (false, false);
        let _ = self.ram.write(self.gpa + u64::from(ASKED), &[0]);
        self.renew();
    }

    /// The ID itself is part of guest memory, and never of use again.
    fn save(&self) -> Result<Section, state::Error> {
        let Self { ram: _, gpa: _, line: _, changed, tell_always } = self;
        Section::encode(KIND, if *tell_always { 1 } else { VERSION }, changed)
    }

    fn restore(&mut self, section: &Section) -> Result<(), state::Error> {
        let _told: bool = section.decode_any(KIND, 1..=VERSION)?;
        self.renew();
        (self.changed, self.tell_always) = (true, section.version == 1);
        Ok(())
    }

    fn as_queued(&mut self) -> Option<&mut dyn Queued> {
        Some(self)
    }
}

impl Queued for GenerationId {
    fn stop_queues(&mut self) {}

    fn start_queues(&mut self) {
        if std::mem::take(&mut self.changed) && self.has_asked() {
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
        let ask = || ram.write(0x1000 + u64::from(ASKED), &[1]).unwrap();
        ask();
        device.reset();
        let first = id();
        assert_ne!(first, [0; 16]);
        device.start_queues();
        device.stop_queues();
        device.start_queues();
        assert_eq!((id(), count()), (first, 0));
        let section = device.save().unwrap();
        device.restore(&section).unwrap();
        device.start_queues();
        assert_eq!(count(), 0, "a reset forgets that it has asked");
        ask();
        device.restore(&section).unwrap();
        assert_ne!(id(), first);
        assert_eq!(count(), 0, "not before it goes on");
        device.start_queues();
        device.start_queues();
        assert_eq!(count(), 1);
        ram.write(0x1000 + u64::from(ASKED), &[0]).unwrap();
        let old = Section { version: 1, ..section.clone() };
        device.restore(&old).unwrap();
        assert_eq!(device.save().unwrap().version, 1, "it stays one that is always told");
        device.start_queues();
        assert_eq!(count(), 2);
        let wrong = Section { kind: "other".to_owned(), ..section };
        let before = id();
        assert!(device.restore(&wrong).is_err());
        assert_eq!(id(), before);
    }
}
