//! The interrupt chips of a PC joined together: lines to 8259A and I/O APIC, those to local APICs.
//!
//! ```text
//! line 0..=15 ──┬─► 8259A pair ── INTR ──┬─► LINT0 of every local APIC
//!               │                        └─► I/O APIC pin 0
//!               └─► I/O APIC pin (0 → 2, others their own; 2 is the cascade: nowhere)
//! line 16..=23 ───► I/O APIC pin
//! ```
//! A line has one driver; two devices that share one must be joined before they come here.

use std::sync::{Arc, Mutex};

use super::apic_bus::{ApicBus, EoiSink};
use super::elsewhere::{ForeignError, ForeignLapics};
use super::ioapic::{IoApic, PINS};
use super::pic::DualPic;
use crate::bus::lock;
use crate::irq::InterruptController;

/// The interrupt chips.
pub struct InterruptRouter {
    apics: Arc<ApicBus>,
    pic: Arc<Mutex<DualPic>>,
    ioapic: Arc<Mutex<IoApic>>,
}

impl InterruptRouter {
    /// Makes 8259A pair and I/O APIC, and joins them with the local APICs. The caller puts [`Self::pic`] and
    /// [`Self::ioapic`] on the bus.
    pub fn new(apics: Arc<ApicBus>) -> Self {
        let ioapic = Arc::new(Mutex::new(IoApic::new(apics.clone())));
        let sink: Arc<dyn EoiSink> = ioapic.clone();
        apics.set_eoi_sink(Arc::downgrade(&sink));
        let output = {
            let (apics, ioapic) = (apics.clone(), ioapic.clone());
            // Lock order: the 8259A, then the I/O APIC.
            move |high| {
                lock(&ioapic).set_pin(0, high);
                apics.set_intr(high);
            }
        };
        Self { apics, pic: Arc::new(Mutex::new(DualPic::new(Box::new(output)))), ioapic }
    }

    /// The 8259A pair: ports 0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1.
    pub fn pic(&self) -> &Arc<Mutex<DualPic>> {
        &self.pic
    }

    /// The I/O APIC.
    pub fn ioapic(&self) -> &Arc<Mutex<IoApic>> {
        &self.ioapic
    }

    /// The local APICs.
    pub fn apics(&self) -> &Arc<ApicBus> {
        &self.apics
    }

    /// Whether [`Self::acknowledge`] would return a vector.
    #[inline]
    pub fn is_pending(&self, vcpu: u32) -> bool {
        self.apics.lapic(vcpu).pending().is_some() || self.apics.is_pic_pending(vcpu)
    }

    /// Takes the highest-priority interrupt of `vcpu`: of its local APIC, else of the 8259A.
    pub fn acknowledge(&self, vcpu: u32) -> Option<u8> {
        self.apics.lapic(vcpu).acknowledge().or_else(|| {
            self.apics.is_pic_pending(vcpu).then(|| {
                self.apics.take_ext_int(vcpu);
                lock(&self.pic).acknowledge()
            })
        })
    }
}

/// While vCPUs run, local APICs may be someone else's; see [`super::elsewhere`].
impl InterruptRouter {
    /// Says whose local APICs are used instead of ours while vCPUs run, once.
    pub fn use_lapics_elsewhere(&self, lapics: Arc<dyn ForeignLapics>) {
        self.apics.elsewhere().set(lapics);
    }

    /// Hands all registers over, if local APICs are elsewhere: vCPUs are about to run.
    ///
    /// # Errors
    /// They were refused.
    pub fn hand_over(&self) -> Result<(), ForeignError> {
        // Nothing can be delivered meanwhile: lines end here.
        let ioapic = lock(&self.ioapic);
        self.apics.hand_over(&ioapic.level_routes())
    }

    /// Takes all registers back: vCPUs have stopped. Idempotent.
    ///
    /// # Errors
    /// They could not be read, or are none that an APIC can have.
    pub fn take_back(&self) -> Result<(), ForeignError> {
        let mut ioapic = lock(&self.ioapic);
        if self.apics.take_back()? {
            ioapic.end_unheld(|vector| self.apics.holds(vector));
        }
        Ok(())
    }
}

impl InterruptController for InterruptRouter {
    fn set_line(&self, gsi: u32, high: bool) {
        if gsi < 16 && gsi != 2 {
            lock(&self.pic).set_line(gsi as u8, high);
        }
        match gsi {
            0 => lock(&self.ioapic).set_pin(2, high),
            2 => {}
            1..PINS => lock(&self.ioapic).set_pin(gsi, high),
            _ => {}
        }
    }
}
