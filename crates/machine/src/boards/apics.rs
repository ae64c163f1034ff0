//! Joins the board's interrupt chips with local APICs that are the engine's own.

use std::sync::Arc;

use devices::chipset::ForeignLapics;
use devices::chipset::lapic::{ApicPage, PAGE_BYTES};
use devices::{LevelRoute, Msi};
use engine::{ApicRegisters, LocalApics};

type Cause = Box<dyn std::error::Error + Send + Sync>;

const _: () = assert!(PAGE_BYTES == engine::apics::APIC_PAGE);

/// An engine's local APICs, as the chips see them.
pub struct EngineApics(pub Arc<dyn LocalApics>);

impl ForeignLapics for EngineApics {
    fn send(&self, msi: Msi) {
        self.0.send(msi.address, msi.data);
    }

    fn set_level_routes(&self, routes: &[LevelRoute]) {
        let route =
            |r: &LevelRoute| engine::LevelRoute { pin: r.pin, address: r.msi.address, data: r.msi.data };
        self.0.set_level_routes(&routes.iter().map(route).collect::<Vec<_>>());
    }

    fn save(&self, vcpu: u32) -> Result<ApicPage, Cause> {
        let ApicRegisters { base, page, tsc_deadline } = self.0.save(vcpu)?;
        Ok(ApicPage { base, registers: page, tsc_deadline })
    }

    fn load(&self, vcpu: u32, page: &ApicPage) -> Result<(), Cause> {
        let ApicPage { base, registers, tsc_deadline } = page;
        let registers = ApicRegisters { base: *base, page: *registers, tsc_deadline: *tsc_deadline };
        Ok(self.0.load(vcpu, &registers)?)
    }
}
