//! The interrupt chips together, and every chip under random accesses.

use std::sync::{Arc, Mutex};

use super::testing::{Random, Recorder};
use super::*;
use crate::device::Clock;
use crate::serial::{ConsoleSink, Uart16550};
use crate::{BusBuilder, Device, InterruptController, SharedDevice};

fn router() -> (Arc<Recorder>, InterruptRouter) {
    let recorder = Recorder::new();
    let apics = Arc::new(ApicBus::new(2, recorder.lapic_glue()));
    (recorder, InterruptRouter::new(apics))
}

fn out(device: &Mutex<impl Device>, port: u16, value: u8) {
    device.lock().unwrap().as_pio().unwrap().port_write(port, &[value]);
}

fn init_pic(router: &InterruptRouter) {
    for (port, value) in
        [(0x20, 0x11), (0xa0, 0x11), (0x21, 0x30), (0xa1, 0x38), (0x21, 4), (0xa1, 2), (0x21, 1), (0xa1, 1)]
    {
        out(router.pic(), port, value);
    }
}

fn write_entry(router: &InterruptRouter, pin: u8, entry: u64) {
    let mut ioapic = router.ioapic().lock().unwrap();
    for (index, half) in [(0x11 + 2 * pin, entry >> 32), (0x10 + 2 * pin, entry & 0xffff_ffff)] {
        ioapic.as_mmio().unwrap().mmio_write(0, &[index]);
        ioapic.as_mmio().unwrap().mmio_write(0x10, &(half as u32).to_le_bytes());
    }
}

#[test]
fn in_virtual_wire_mode_the_8259a_interrupts_the_bootstrap_processor() {
    let (recorder, router) = router();
    init_pic(&router);
    router.apics().lapics().iter().for_each(Lapic::set_up_virtual_wire);
    router.set_line(4, true);
    assert!(router.is_pending(0) && !router.is_pending(1));
    assert!(recorder.interrupts.lock().unwrap().contains(&0));
    assert_eq!(router.acknowledge(0), Some(0x34));
    assert!(!router.is_pending(0));
}

#[test]
fn a_disabled_local_apic_lets_the_8259a_through() {
    let (recorder, router) = router();
    init_pic(&router);
    assert!(!router.is_pending(0));
    router.apics().msr_write(0, 0x1b, 0xfee0_0100).unwrap();
    router.set_line(1, true);
    assert_eq!(router.acknowledge(0), Some(0x31));
    assert!(recorder.interrupts.lock().unwrap().contains(&0));
}

#[test]
fn an_ext_int_entry_of_the_io_apic_asks_the_8259a() {
    let (_, router) = router();
    init_pic(&router);
    write_entry(&router, 0, 0x700 | 1 << 56);
    router.set_line(12, true);
    assert!(router.is_pending(1) && !router.is_pending(0));
    assert_eq!(router.acknowledge(1), Some(0x3c));
    assert!(!router.is_pending(1));
}

#[test]
fn line_0_is_pin_2_and_line_2_is_nowhere() {
    let (_, router) = router();
    router.apics().mmio_write(0, 0xf0, &0x1ffu32.to_le_bytes());
    write_entry(&router, 2, 0x40);
    router.set_line(2, true);
    assert!(!router.is_pending(0));
    router.set_line(0, true);
    assert_eq!(router.acknowledge(0), Some(0x40));
}

#[test]
fn a_level_that_stays_interrupts_again_after_eoi() {
    let (_, router) = router();
    router.apics().mmio_write(0, 0xf0, &0x1ffu32.to_le_bytes());
    write_entry(&router, 10, 0x8050);
    router.set_line(10, true);
    assert_eq!(router.acknowledge(0), Some(0x50));
    assert_eq!(router.acknowledge(0), None);
    router.apics().mmio_write(0, 0xb0, &[0; 4]);
    assert_eq!(router.acknowledge(0), Some(0x50));
    router.set_line(10, false);
    router.apics().mmio_write(0, 0xb0, &[0; 4]);
    assert_eq!(router.acknowledge(0), None);
}

#[test]
fn without_eoi_broadcast_the_io_apics_own_eoi_register_ends_a_level() {
    let (_, router) = router();
    router.apics().mmio_write(0, 0xf0, &0x11ffu32.to_le_bytes());
    write_entry(&router, 10, 0x8050);
    router.set_line(10, true);
    assert_eq!(router.acknowledge(0), Some(0x50));
    router.apics().mmio_write(0, 0xb0, &[0; 4]);
    assert_eq!(router.acknowledge(0), None);
    router.ioapic().lock().unwrap().as_mmio().unwrap().mmio_write(0x40, &0x50u32.to_le_bytes());
    assert_eq!(router.acknowledge(0), Some(0x50));
}

struct Nowhere;

impl ConsoleSink for Nowhere {
    fn write(&mut self, bytes: &[u8]) -> usize {
        bytes.len() / 2
    }
}

fn all_chips(recorder: &Arc<Recorder>, router: &InterruptRouter) -> Vec<SharedDevice> {
    let (clock, line) = (recorder.clock.clone(), |gsi| recorder.line(gsi));
    let uart = Uart16550::new("serial0", line(4), Box::new(Nowhere), clock.clone());
    vec![
        router.pic().clone(),
        router.ioapic().clone(),
        Arc::new(Mutex::new(Pit::new(clock.clone(), line(0)))),
        Arc::new(Mutex::new(Rtc::new(clock.clone(), line(8)))),
        Arc::new(Mutex::new(I8042::new(line(1), recorder.clone()))),
        Arc::new(Mutex::new(PowerManagement::new(clock, line(9), recorder.clone()))),
        Arc::new(Mutex::new(BoardPorts::new(recorder.clone()))),
        Arc::new(Mutex::new(uart)),
    ]
}

const PORTS: [(u16, u32); 15] = [
    (0x20, 2),
    (0x40, 4),
    (0x60, 1),
    (0x61, 1),
    (0x64, 1),
    (0x70, 2),
    (0x80, 1),
    (0x92, 1),
    (0xa0, 2),
    (0x3f8, 8),
    (0x4d0, 2),
    (0x600, 12),
    (0xcf8, 4),
    (0x1234, 1),
    (0xfffc, 4),
];

fn bus(recorder: &Arc<Recorder>, router: &InterruptRouter) -> crate::Bus {
    let mut builder = BusBuilder::new();
    let owner = |port: u16| match port {
        0x20 | 0xa0 | 0x4d0 => Some("pic"),
        0x40 | 0x61 => Some("pit"),
        0x60 | 0x64 => Some("i8042"),
        0x70 => Some("rtc"),
        0x80 | 0x92 => Some("board-ports"),
        0x3f8 => Some("serial0"),
        0x600 | 0xcf8 => Some("acpi-pm"),
        _ => None,
    };
    for device in all_chips(recorder, router) {
        let name = device.lock().unwrap().name().to_owned();
        let id = builder.add(device).unwrap();
        if name == "ioapic" {
            builder.claim_mmio(id, 0xfec0_0000, 0x1000).unwrap();
        }
        for (port, len) in PORTS {
            if owner(port) == Some(&name) {
                builder.claim_ports(id, port, len).unwrap();
            }
        }
    }
    builder.build(recorder.clone())
}

/// One random access, line change, or step of time.
fn act(random: &mut Random, bus: &crate::Bus, router: &InterruptRouter, recorder: &Recorder) {
    let mut data = random.next().to_le_bytes();
    let width = 1 << random.below(4);
    let vcpu = random.below(2) as u32;
    let (first, len) = PORTS[random.below(PORTS.len() as u64) as usize];
    let port = first + random.below(len.into()) as u16;
    match random.below(12) {
        0..3 => bus.port_read(port, &mut data[..width.min(4)]),
        3..6 => bus.port_write(port, &data[..width.min(4)]),
        6 => bus.mmio_write(0xfec0_0000 + random.below(5) * 16, &data[..width]),
        7 => router.apics().mmio_write(vcpu, random.below(64) * 16, &data[..4]),
        8 => {
            let value = random.next() & [0xff, 0x7_ffff, u64::MAX][random.below(3) as usize];
            let _ = router.apics().msr_write(vcpu, 0x800 + random.below(64) as u32, value);
            let _ = router.apics().msr_write(vcpu, 0x1b, 0xfee0_0000 | random.below(16) << 8);
            let _ = router.apics().msr_write(vcpu, 0x6e0, value);
            let _ = router.apics().msr_read(vcpu, 0x800 + random.below(64) as u32);
        }
        9 => router.set_line(random.below(30) as u32, random.below(2) == 0),
        10 => {
            router.apics().mmio_read(vcpu, random.below(0x1000), &mut data[..width]);
            let _ = router.acknowledge(vcpu);
            let _ = router.apics().lapic(vcpu).take_events();
        }
        _ => {
            let far = random.below(40);
            recorder.clock.pass(random.below(1 << far));
            let now = recorder.clock.now();
            for timer in 0..bus.device_count() {
                bus.advance(crate::TimerId(timer), now);
            }
            router.apics().lapic(vcpu).advance(now);
        }
    }
}

#[test]
fn random_accesses_never_panic_and_every_state_reached_can_be_restored() {
    let (recorder, router) = router();
    let bus = bus(&recorder, &router);
    let mut random = Random(0x5eed);
    for round in 0..200 {
        for _ in 0..500 {
            act(&mut random, &bus, &router, &recorder);
        }
        for vcpu in 0..2 {
            let lapic = router.apics().lapic(vcpu);
            assert!(lapic.pending().is_none_or(|v| u32::from(v >> 4) > lapic.ppr() >> 4));
        }
        // A state that a guest can reach is one that a restore takes, and saves as the same again.
        let saved = bus.save().unwrap();
        bus.restore(|name| saved.iter().find(|(n, _)| n == name).map(|(_, s)| s.clone()))
            .unwrap_or_else(|e| panic!("round {round}: {e} ({:?})", std::error::Error::source(&e)));
        let apics = router.apics().save().unwrap();
        router.apics().restore(&apics).unwrap_or_else(|e| panic!("round {round}: {e}"));
        assert_eq!(router.apics().save().unwrap(), apics);
        recorder.lines.lock().unwrap().clear();
        if round % 50 == 49 {
            bus.reset();
            router.apics().reset();
        }
    }
}

#[test]
fn damaged_states_are_refused_or_harmless() {
    let (recorder, router) = router();
    let bus = bus(&recorder, &router);
    let mut random = Random(0xbad);
    for _ in 0..2000 {
        act(&mut random, &bus, &router, &recorder);
    }
    let saved = bus.save().unwrap();
    let apics = router.apics().save().unwrap();
    for _ in 0..3000 {
        for (device, (name, section)) in bus.devices().map(|(_, d)| d).zip(&saved) {
            let mut section = section.clone();
            let at = random.below(section.bytes.len() as u64) as usize;
            section.bytes[at] ^= 1 << random.below(8);
            let mut device = device.lock().unwrap();
            assert_eq!(device.name(), name);
            let _ = device.restore(&section);
        }
        let mut section = apics.clone();
        let at = random.below(section.bytes.len() as u64) as usize;
        section.bytes[at] ^= 1 << random.below(8);
        let _ = router.apics().restore(&section);
        for _ in 0..5 {
            act(&mut random, &bus, &router, &recorder);
        }
        recorder.lines.lock().unwrap().clear();
    }
}

#[test]
fn a_section_of_another_kind_is_refused_and_changes_nothing() {
    let (recorder, router) = router();
    let bus = bus(&recorder, &router);
    let foreign = state::Section::encode("something", 1, &0).unwrap();
    for (_, device) in bus.devices() {
        let mut device = device.lock().unwrap();
        let before = device.save().unwrap();
        assert!(device.restore(&foreign).is_err());
        assert_eq!(device.save().unwrap(), before);
    }
    assert!(router.apics().restore(&foreign).is_err());
}
