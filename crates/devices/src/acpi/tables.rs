//! The tables of fixed layout: RSDP, XSDT, FADT, FACS, MADT.

use acpi_tables::Aml;
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;

use super::{AcpiConfig, Presence};
use crate::chipset::{pm, rtc};

pub(super) const OEM_ID: [u8; 6] = *b"STRATA";
pub(super) const OEM_TABLE_ID: [u8; 8] = *b"MICROVM ";
pub(super) const OEM_REVISION: u32 = 1;

/// Bytes of the RSDP.
pub(super) const RSDP_LEN: u64 = 36;

/// FADT's IA-PC boot architecture flags.
mod boot_architecture {
    pub const LEGACY_DEVICES: u16 = 1;
    pub const KEYBOARD_CONTROLLER: u16 = 1 << 1;
    pub const NO_VGA: u16 = 1 << 2;
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

pub(super) fn rsdp(xsdt: u64) -> Vec<u8> {
    bytes(&Rsdp::new(OEM_ID, xsdt))
}

pub(super) fn xsdt(tables: &[u64]) -> Vec<u8> {
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    for &table in tables {
        xsdt.add_entry(table);
    }
    bytes(&xsdt)
}

pub(super) fn facs() -> Vec<u8> {
    bytes(&FACS::new())
}

fn io(port: u16, len: u8, access: AccessSize) -> GAS {
    GAS::new(AddressSpace::SystemIo, len * 8, 0, access, port.into())
}

pub(super) fn fadt(config: &AcpiConfig, dsdt: u32, facs: u32) -> Vec<u8> {
    let keyboard = match config.keyboard {
        Presence::Present => boot_architecture::KEYBOARD_CONTROLLER,
        Presence::Absent => 0,
    };
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .firmware_ctrl_32(facs)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        // No fixed sleep button, no fixed RTC event; the power button is fixed hardware.
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::TmrValExt)
        .flag(Flags::ResetRegSup);
    fadt.dsdt = dsdt.into();
    fadt.x_dsdt = u64::from(dsdt).into();
    fadt.sci_int = (pm::SCI as u16).into();
    fadt.pm1a_evt_blk = u32::from(pm::EVENT_BLOCK).into();
    fadt.pm1a_cnt_blk = u32::from(pm::CONTROL_BLOCK).into();
    fadt.pm_tmr_blk = u32::from(pm::TIMER_BLOCK).into();
    fadt.pm1_evt_len = pm::EVENT_LEN;
    fadt.pm1_cnt_len = pm::CONTROL_LEN;
    fadt.pm_tmr_len = pm::TIMER_LEN;
    // Latencies that say there are no C2 and C3.
    fadt.p_lvl2_lat = 0xfff.into();
    fadt.p_lvl3_lat = 0xfff.into();
    fadt.century = rtc::CENTURY_INDEX;
    fadt.iapc_boot_arch = (boot_architecture::LEGACY_DEVICES | boot_architecture::NO_VGA | keyboard).into();
    fadt.reset_reg = io(pm::RESET_PORT, 1, AccessSize::ByteAccess);
    fadt.reset_value = pm::RESET_VALUE;
    fadt.x_pm1a_evt_blk = io(pm::EVENT_BLOCK, pm::EVENT_LEN, AccessSize::WordAccess);
    fadt.x_pm1a_cnt_blk = io(pm::CONTROL_BLOCK, pm::CONTROL_LEN, AccessSize::WordAccess);
    fadt.x_pm_tmr_blk = io(pm::TIMER_BLOCK, pm::TIMER_LEN, AccessSize::DwordAccess);
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(*b"STRATA\0\0").into();
    bytes(&fadt.finalize())
}

/// MADT structures (ACPI 6.5, section 5.2.12).
mod madt_entry {
    pub const LOCAL_APIC: u8 = 0;
    pub const IO_APIC: u8 = 1;
    pub const SOURCE_OVERRIDE: u8 = 2;
    pub const LOCAL_APIC_NMI: u8 = 4;
    pub const LOCAL_X2APIC: u8 = 9;
    pub const LOCAL_X2APIC_NMI: u8 = 10;
}

/// There is an 8259A pair too.
const PCAT_COMPAT: u32 = 1;
const ENABLED: u32 = 1;
/// Interrupt flags: as the bus is (edge, active high).
const CONFORMING: u16 = 0;
/// Interrupt flags: level-triggered, active high.
const LEVEL_HIGH: u16 = 0xd;
/// ids above need x2APIC structures; 255 is the broadcast address.
const MAX_APIC_ID: u32 = 254;

pub(super) fn madt(config: &AcpiConfig) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend(config.lapic_gpa.to_le_bytes());
    body.extend(PCAT_COMPAT.to_le_bytes());
    for id in 0..config.vcpu_count {
        if id <= MAX_APIC_ID {
            body.extend([madt_entry::LOCAL_APIC, 8, id as u8, id as u8]);
            body.extend(ENABLED.to_le_bytes());
        } else {
            body.extend([madt_entry::LOCAL_X2APIC, 16, 0, 0]);
            body.extend([id, ENABLED, id].iter().flat_map(|v| v.to_le_bytes()));
        }
    }
    // Its id register reads 0, which processors may share in systems without an APIC bus.
    body.extend([madt_entry::IO_APIC, 12, 0, 0]);
    body.extend(config.ioapic_gpa.to_le_bytes());
    body.extend(0u32.to_le_bytes());
    for (irq, gsi, flags) in [(0, 2, CONFORMING), (pm::SCI as u8, pm::SCI, LEVEL_HIGH)] {
        body.extend([madt_entry::SOURCE_OVERRIDE, 10, 0, irq]);
        body.extend(gsi.to_le_bytes());
        body.extend(flags.to_le_bytes());
    }
    // LINT1 of every processor is NMI.
    body.extend([madt_entry::LOCAL_APIC_NMI, 6, 0xff, 0, 0, 1]);
    if config.vcpu_count > MAX_APIC_ID + 1 {
        body.extend([madt_entry::LOCAL_X2APIC_NMI, 12, 0, 0]);
        body.extend(u32::MAX.to_le_bytes());
        body.extend([1, 0, 0, 0]);
    }
    let mut madt = Sdt::new(*b"APIC", 36, 5, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    madt.append_slice(&body);
    madt.as_slice().to_vec()
}
