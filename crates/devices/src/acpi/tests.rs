use std::process::Command;

use super::*;

fn config() -> AcpiConfig {
    AcpiConfig {
        gpa: 0xe_0000,
        len: 0x2_0000,
        vcpu_count: 4,
        lapic_gpa: 0xfee0_0000,
        ioapic_gpa: 0xfec0_0000,
        keyboard: Presence::Absent,
        serial: vec![SerialPort { port: 0x3f8, gsi: 4 }],
        virtio: (0..17)
            .map(|i| VirtioMmio {
                gpa: 0xd000_0000 + i * 0x1000,
                len: 0x1000,
                gsi: 5 + i,
                trigger: if i % 2 == 0 { Trigger::Level } else { Trigger::Edge },
            })
            .collect(),
        generation_id: Some(GenerationIdAt { gpa: 0xf_f000, gsi: 23 }),
    }
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, b| sum.wrapping_add(*b))
}

fn table<'a>(tables: &'a AcpiTables, signature: &[u8]) -> &'a (u64, Vec<u8>) {
    tables.blobs.iter().find(|(_, b)| b.starts_with(signature)).unwrap()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

#[test]
fn tables_lead_from_the_rsdp_to_the_dsdt() {
    let tables = build(&config()).unwrap();
    let rsdp = &tables.blobs[0];
    assert_eq!((rsdp.0, tables.rsdp_gpa), (0xe_0000, 0xe_0000));
    assert_eq!((sum(&rsdp.1), sum(&rsdp.1[..20])), (0, 0));
    let xsdt = table(&tables, b"XSDT");
    assert_eq!(u64_at(&rsdp.1, 24), xsdt.0);
    let (fadt, madt) = (table(&tables, b"FACP"), table(&tables, b"APIC"));
    assert_eq!((u64_at(&xsdt.1, 36), u64_at(&xsdt.1, 44)), (fadt.0, madt.0));
    assert_eq!(u64::from(u32_at(&fadt.1, 40)), table(&tables, b"DSDT").0);
    assert_eq!(u64::from(u32_at(&fadt.1, 36)), table(&tables, b"FACS").0);
    for signature in [b"XSDT", b"FACP", b"APIC", b"DSDT"] {
        let (gpa, bytes) = table(&tables, signature);
        assert_eq!((sum(bytes), gpa % 16, u32_at(bytes, 4) as usize), (0, 0, bytes.len()));
    }
    assert!(tables.blobs.windows(2).all(|w| w[0].0 + w[0].1.len() as u64 <= w[1].0));
}

#[test]
fn the_fadt_names_power_off_button_and_reset() {
    let tables = build(&config()).unwrap();
    let fadt = &table(&tables, b"FACP").1;
    assert_eq!(fadt[46], 9, "sci");
    assert_eq!((u32_at(fadt, 56), u32_at(fadt, 64), u32_at(fadt, 76)), (0x600, 0x604, 0x608));
    let flags = u32_at(fadt, 112);
    assert_ne!(flags & 1 << 10, 0, "reset register");
    assert_eq!(flags & 1 << 4, 0, "the power button is fixed hardware");
    assert_eq!((u64_at(fadt, 120), fadt[128]), (0xcf9, 6));
    assert_eq!(fadt[109] & 2, 0, "no keyboard controller");
}

#[test]
fn the_madt_lists_every_processor_and_the_timers_override() {
    let many = AcpiConfig { vcpu_count: 300, ..config() };
    let tables = build(&many).unwrap();
    let madt = &table(&tables, b"APIC").1;
    let (mut at, mut ids, mut overrides) = (44, Vec::new(), Vec::new());
    while at < madt.len() {
        match madt[at] {
            0 => ids.push(u32::from(madt[at + 3])),
            9 => ids.push(u32_at(madt, at + 4)),
            2 => overrides.push((madt[at + 3], u32_at(madt, at + 4))),
            _ => {}
        }
        at += usize::from(madt[at + 1]);
    }
    assert_eq!(at, madt.len());
    assert_eq!(ids, (0..300).collect::<Vec<_>>());
    assert_eq!(overrides, [(0, 2), (9, 9)]);
}

#[test]
fn tables_that_do_not_fit_are_an_error() {
    let small = AcpiConfig { len: 0x100, ..config() };
    assert!(matches!(build(&small), Err(AcpiError::DoesNotFit { .. })));
    let high = AcpiConfig { gpa: 0xffff_f000, ..config() };
    assert!(matches!(build(&high), Err(AcpiError::BadPlace { .. })));
    let many = AcpiConfig { serial: vec![SerialPort { port: 0, gsi: 0 }; 257], ..config() };
    assert!(matches!(build(&many), Err(AcpiError::TooManyDevices { .. })));
}

/// Every table through the reference disassembler, and the DSDT back through the compiler.
#[test]
fn the_reference_compiler_takes_every_table() {
    if Command::new("iasl").arg("-v").output().is_err() {
        println!("SKIPPED: iasl is not installed (Debian package acpica-tools)");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for signature in ["XSDT", "FACP", "APIC", "DSDT", "FACS"] {
        let name = signature.to_lowercase();
        let bytes = table(&build(&config()).unwrap(), signature.as_bytes()).1.clone();
        std::fs::write(folder.path().join(format!("{name}.dat")), bytes).unwrap();
        for (option, file) in [("-d", format!("{name}.dat")), ("-we", format!("{name}.dsl"))] {
            let output =
                Command::new("iasl").arg(option).arg(&file).current_dir(folder.path()).output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
            // The count at the end of a compilation aside, these words are complaints.
            let rest = text.replace("0 Errors, 0 Warnings", "");
            let is_clean = !rest.contains("Error") && !rest.contains("Warning") && !rest.contains("Invalid");
            assert!(output.status.success() && is_clean, "iasl {option} {file}: {text}");
        }
    }
    let source = std::fs::read_to_string(folder.path().join("dsdt.dsl")).unwrap();
    for wanted in [
        "\"LNRO0005\"",
        "PNP0501",
        "PNP0B00",
        "_S5",
        "0xD0000000",
        "0x03F8",
        "VM_Gen_Counter",
        "0x000FF000",
        "Notify (\\_SB.VGEN, 0x80)",
        "ASKD = One",
    ] {
        assert!(source.contains(wanted), "{wanted} is not in {source}");
    }
}
