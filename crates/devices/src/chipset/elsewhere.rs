//! Local APICs elsewhere: a host's kernel may have its own, which its vCPUs use while they run.
//!
//! ```text
//!          hand_over: vCPUs are about to run
//!   ours ─────────────────────────────────────► theirs
//!        ◄─────────────────────────────────────
//!          take_back: vCPUs have stopped
//! ```
//! Whatever a machine does at rest (reset, save, restore) it does to ours, and it does not matter which are used
//! when it runs. While theirs are in use ours are parked: registers as after INIT, so no timer of theirs expires here
//! and no vector waits; what a vCPU's thread has yet to take ([`super::lapic::Events`]) and the levels of pins stay.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use super::ApicBus;
use super::lapic::ApicPage;
use crate::irq::{LevelRoute, Msi};

/// Why registers could not be moved.
#[derive(Debug, thiserror::Error)]
pub enum ForeignError {
    /// They could not be read or written.
    #[error("{act} local apic {vcpu}")]
    Access {
        /// `save` or `load`.
        act: &'static str,
        /// Whose.
        vcpu: u32,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No local APIC can have what was read.
    #[error("{0}")]
    Malformed(String),
}

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// The local APICs of a machine, elsewhere. Any thread may call.
pub trait ForeignLapics: Send + Sync {
    /// Delivers an MSI.
    fn send(&self, msi: Msi);
    /// Which interrupts of the I/O APIC are level-triggered: the end of theirs is to be told to it.
    fn set_level_routes(&self, routes: &[LevelRoute]);
    /// All registers of a vCPU's.
    ///
    /// # Errors
    /// They cannot be read.
    fn save(&self, vcpu: u32) -> Result<ApicPage, Cause>;
    /// Gives a vCPU's these registers.
    ///
    /// # Errors
    /// They are refused.
    fn load(&self, vcpu: u32, page: &ApicPage) -> Result<(), Cause>;
}

/// Whether there are any, and whether they are in use.
#[derive(Default)]
pub(super) struct LapicsElsewhere {
    lapics: OnceLock<Arc<dyn ForeignLapics>>,
    in_use: AtomicBool,
}

impl LapicsElsewhere {
    pub(super) fn set(&self, lapics: Arc<dyn ForeignLapics>) {
        assert!(self.lapics.set(lapics).is_ok(), "a machine has one engine");
    }

    /// Them, while they are in use.
    #[inline]
    pub(super) fn in_use(&self) -> Option<&dyn ForeignLapics> {
        if self.in_use.load(Ordering::SeqCst) { self.lapics.get().map(|lapics| &**lapics) } else { None }
    }
}

impl ApicBus {
    /// See [`super::InterruptRouter::hand_over`].
    pub(super) fn hand_over(&self, routes: &[LevelRoute]) -> Result<(), ForeignError> {
        let elsewhere = self.elsewhere();
        let Some(lapics) = elsewhere.lapics.get().filter(|_| elsewhere.in_use().is_none()) else {
            return Ok(());
        };
        lapics.set_level_routes(routes);
        for (vcpu, lapic) in (0..).zip(self.lapics()) {
            let loaded = lapics.load(vcpu, &lapic.export());
            loaded.map_err(|source| ForeignError::Access { act: "load", vcpu, source })?;
        }
        self.lapics().iter().for_each(|lapic| lapic.init());
        elsewhere.in_use.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// See [`super::InterruptRouter::take_back`]; whether anything had been handed over.
    pub(super) fn take_back(&self) -> Result<bool, ForeignError> {
        let Some(lapics) = self.elsewhere().in_use() else { return Ok(false) };
        for (vcpu, lapic) in (0..).zip(self.lapics()) {
            let page =
                lapics.save(vcpu).map_err(|source| ForeignError::Access { act: "save", vcpu, source })?;
            lapic.import(&page).map_err(ForeignError::Malformed)?;
        }
        self.elsewhere().in_use.store(false, Ordering::SeqCst);
        Ok(true)
    }

    /// Returns the local APIC of `vcpu`, wherever it is, to its state after INIT. The vCPU's thread only.
    ///
    /// # Errors
    /// As [`super::InterruptRouter::hand_over`].
    pub fn init(&self, vcpu: u32) -> Result<(), ForeignError> {
        let lapic = self.lapic(vcpu);
        lapic.init();
        match self.elsewhere().in_use() {
            Some(lapics) => lapics.load(vcpu, &lapic.export()).map_err(|source| ForeignError::Access {
                act: "load",
                vcpu,
                source,
            }),
            None => Ok(()),
        }
    }

    /// Whether an interrupt of `vector` waits or is in service anywhere.
    pub(super) fn holds(&self, vector: u8) -> bool {
        self.lapics().iter().any(|lapic| lapic.holds(vector))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::super::testing::Recorder;
    use super::super::{InterruptRouter, ioapic, lapic};
    use super::*;
    use crate::device::{Clock, Device};
    use crate::irq::InterruptController;

    /// Keeps pages, and writes messages down.
    #[derive(Default)]
    struct Kernel {
        pages: Mutex<Vec<Option<ApicPage>>>,
        sent: Mutex<Vec<Msi>>,
        routes: Mutex<Vec<LevelRoute>>,
    }

    impl ForeignLapics for Kernel {
        fn send(&self, msi: Msi) {
            self.sent.lock().unwrap().push(msi);
        }

        fn set_level_routes(&self, routes: &[LevelRoute]) {
            *self.routes.lock().unwrap() = routes.to_vec();
        }

        fn save(&self, vcpu: u32) -> Result<ApicPage, Cause> {
            self.pages.lock().unwrap()[vcpu as usize].clone().ok_or_else(|| "nothing there".into())
        }

        fn load(&self, vcpu: u32, page: &ApicPage) -> Result<(), Cause> {
            self.pages.lock().unwrap()[vcpu as usize] = Some(page.clone());
            Ok(())
        }
    }

    fn board() -> (Arc<Recorder>, InterruptRouter, Arc<Kernel>) {
        let recorder = Recorder::new();
        let router = InterruptRouter::new(Arc::new(ApicBus::new(2, recorder.lapic_glue())));
        router.apics().lapics().iter().for_each(lapic::Lapic::set_up_virtual_wire);
        let kernel = Arc::new(Kernel { pages: Mutex::new(vec![None; 2]), ..Kernel::default() });
        router.use_lapics_elsewhere(kernel.clone());
        (recorder, router, kernel)
    }

    /// Redirects a pin to a level-triggered vector of vCPU 0.
    fn redirect(router: &InterruptRouter, pin: u8, low: u32) {
        let mut chip = router.ioapic().lock().unwrap();
        let chip = chip.as_mmio().unwrap();
        chip.mmio_write(0, &[0x10 + 2 * pin]);
        chip.mmio_write(0x10, &low.to_le_bytes());
    }

    #[test]
    fn registers_go_there_and_come_back() {
        let (_, router, _) = board();
        let before: Vec<_> = router.apics().lapics().iter().map(lapic::Lapic::save).collect();
        router.hand_over().unwrap();
        assert_ne!(router.apics().lapic(0).save(), before[0], "parked");
        router.take_back().unwrap();
        router.take_back().unwrap();
        let after: Vec<_> = router.apics().lapics().iter().map(lapic::Lapic::save).collect();
        assert_eq!(after, before);
    }

    #[test]
    fn a_parked_timer_expires_for_nobody() {
        let (recorder, router, _) = board();
        let apics = router.apics();
        apics.mmio_write(1, 0x320, &0x40u32.to_le_bytes());
        apics.mmio_write(1, 0x380, &1000u32.to_le_bytes());
        assert!(apics.lapic(1).next_deadline().is_some());
        router.hand_over().unwrap();
        assert_eq!(apics.lapic(1).next_deadline(), None);
        recorder.clock.pass(1_000_000);
        apics.advance(crate::timer::TimerId(1), recorder.clock.now());
        assert!(!router.is_pending(1));
    }

    #[test]
    fn messages_go_where_the_local_apics_are() {
        let (_, router, kernel) = board();
        redirect(&router, 20, 0x8031);
        assert!(kernel.routes.lock().unwrap().is_empty(), "told when they are handed over");
        router.hand_over().unwrap();
        let told = kernel.routes.lock().unwrap().clone();
        assert_eq!(told.iter().map(|r| (r.pin, r.msi.data & 0xff)).collect::<Vec<_>>(), [(20, 0x31)]);
        redirect(&router, 21, 0x8032);
        assert_eq!(kernel.routes.lock().unwrap().len(), 2);
        router.set_line(20, true);
        assert_eq!(kernel.sent.lock().unwrap().iter().map(|m| m.data & 0xff).collect::<Vec<_>>(), [0x31]);
        assert!(!router.is_pending(0));
        // The pin waits for the end; the kernel holds nothing, so it must have been on its way.
        router.take_back().unwrap();
        assert!(router.is_pending(0), "the line is still up: delivered again, to ours");
        let section = router.ioapic().lock().unwrap().save().unwrap();
        let state: ioapic::IoApicState = section.decode("ioapic", 1).unwrap();
        assert!(state.entries[20] & 1 << 14 != 0);
    }

    #[test]
    fn every_vcpu_is_asked_whether_it_takes_an_interrupt_of_the_pic() {
        let (recorder, router, _) = board();
        router.hand_over().unwrap();
        recorder.interrupts.lock().unwrap().clear();
        router.apics().set_intr(true);
        assert_eq!(*recorder.interrupts.lock().unwrap(), [0, 1]);
        assert!(router.is_pending(0) && router.is_pending(1));
    }

    #[test]
    fn registers_that_cannot_be_read_leave_theirs_in_use() {
        let (_, router, kernel) = board();
        router.hand_over().unwrap();
        kernel.pages.lock().unwrap()[1] = None;
        let error = router.take_back().unwrap_err();
        assert_eq!(error.to_string(), "save local apic 1");
        assert!(router.apics().elsewhere().in_use().is_some());
    }
}
