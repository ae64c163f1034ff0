//! The DSDT: what has no table of its own, in AML.

use acpi_tables::Aml;
use acpi_tables::aml::{
    Device, EISAName, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, IO, Interrupt,
    Memory32Fixed, Method, Name, Notify, OpRegion, OpRegionSpace, Package, Path, ResourceTemplate, Return,
    Scope, Store,
};
use acpi_tables::sdt::Sdt;

use super::tables::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use super::{AcpiConfig, AcpiError, GenerationIdAt, SerialPort, Trigger, VirtioMmio};
use crate::chipset::{generation, pm, rtc};

/// Line of the real-time clock.
const RTC_GSI: u32 = 8;
/// Devices of a kind are numbered by two hexadecimal digits.
const MAX_OF_A_KIND: usize = 256;

/// The whole table.
pub(super) fn dsdt(config: &AcpiConfig) -> Result<Vec<u8>, AcpiError> {
    for count in [config.serial.len(), config.virtio.len()] {
        if count > MAX_OF_A_KIND {
            return Err(AcpiError::TooManyDevices { count, max: MAX_OF_A_KIND });
        }
    }
    let mut devices = Vec::new();
    clock(&mut devices);
    for (uid, port) in (0..).zip(&config.serial) {
        serial(&mut devices, uid, port);
    }
    for (uid, device) in (0..).zip(&config.virtio) {
        virtio(&mut devices, uid, device);
    }
    if let Some(at) = &config.generation_id {
        generation_id(&mut devices, at);
    }
    let mut aml = Vec::new();
    let s5 = [pm::SLEEP_TYPE_S5, pm::SLEEP_TYPE_S5, 0, 0];
    let s5 = Package::new(s5.iter().map(|v| v as &dyn Aml).collect());
    Name::new("_S5_".into(), &s5).to_aml_bytes(&mut aml);
    aml.extend(Scope::raw("_SB_".into(), devices));
    let mut table = Sdt::new(*b"DSDT", 36, 2, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(&aml);
    Ok(table.as_slice().to_vec())
}

fn device(aml: &mut Vec<u8>, name: &str, hid: &dyn Aml, uid: u32, resources: Vec<&dyn Aml>) {
    let hid = Name::new("_HID".into(), hid);
    let uid = Name::new("_UID".into(), &uid);
    let crs = Name::new("_CRS".into(), &ResourceTemplate::new(resources));
    Device::new(Path::new(name), vec![&hid, &uid, &crs]).to_aml_bytes(aml);
}

/// A line of one consumer, active high.
fn interrupt(gsi: u32, trigger: Trigger) -> Interrupt {
    Interrupt::new(true, trigger == Trigger::Edge, false, false, gsi)
}

fn clock(aml: &mut Vec<u8>) {
    let ports = IO::new(rtc::PORT, rtc::PORT, 1, rtc::PORTS as u8);
    let line = interrupt(RTC_GSI, Trigger::Edge);
    device(aml, "RTC_", &EISAName::new("PNP0B00"), 0, vec![&ports, &line]);
}

fn serial(aml: &mut Vec<u8>, uid: u32, port: &SerialPort) {
    let ports = IO::new(port.port, port.port, 1, 8);
    let line = interrupt(port.gsi, Trigger::Edge);
    device(aml, &format!("CM{uid:02X}"), &EISAName::new("PNP0501"), uid, vec![&ports, &line]);
}

fn virtio(aml: &mut Vec<u8>, uid: u32, virtio: &VirtioMmio) {
    let memory = Memory32Fixed::new(true, virtio.gpa, virtio.len);
    let line = interrupt(virtio.gsi, virtio.trigger);
    device(aml, &format!("VR{uid:02X}"), &"LNRO0005", uid, vec![&memory, &line]);
}

/// The ID, whose address whoever asks for is noted beside it, and the generic event device (ACPI 6.5, section 5.6.9) that turns an edge of its line into the notification 0x80.
fn generation_id(aml: &mut Vec<u8>, at: &GenerationIdAt) {
    let hid = Name::new("_HID".into(), &"STRA0001");
    // Drivers look for the one or for the other.
    let names: [&dyn Aml; 2] = [&"VM_Gen_Counter", &"VMGENCTR"];
    let cid = Name::new("_CID".into(), &Package::new(names.to_vec()));
    let ddn = Name::new("_DDN".into(), &"VM_Gen_Counter");
    let halves: [&dyn Aml; 2] = [&at.gpa, &0u32];
    let (offset, len) = (at.gpa + generation::ASKED, 1u8);
    let region = OpRegion::new("NOTE".into(), OpRegionSpace::SystemMemory, &offset, &len);
    let fields = vec![FieldEntry::Named(*b"ASKD", 8)];
    let (access, lock, update) =
        (FieldAccessType::Byte, FieldLockRule::NoLock, FieldUpdateRule::WriteAsZeroes);
    let field = Field::new("NOTE".into(), access, lock, update, fields);
    let (asked, yes, place) = (Path::new("ASKD"), 1u8, Package::new(halves.to_vec()));
    let (note, answer) = (Store::new(&asked, &yes), Return::new(&place));
    let place = Method::new("ADDR".into(), 0, true, vec![&note, &answer]);
    Device::new(Path::new("VGEN"), vec![&hid, &cid, &ddn, &region, &field, &place]).to_aml_bytes(aml);

    let hid = Name::new("_HID".into(), &"ACPI0013");
    let uid = Name::new("_UID".into(), &0u32);
    let line = interrupt(at.gsi, Trigger::Edge);
    let crs = Name::new("_CRS".into(), &ResourceTemplate::new(vec![&line]));
    let (device, changed) = (Path::new("\\_SB_.VGEN"), 0x80u8);
    let notify = Notify::new(&device, &changed);
    let event = Method::new("_EVT".into(), 1, true, vec![&notify]);
    Device::new(Path::new("GED_"), vec![&hid, &uid, &crs, &event]).to_aml_bytes(aml);
}
