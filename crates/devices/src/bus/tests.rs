use super::*;
use crate::chipset::testing::Recorder;
use crate::device::{MmioDevice, PioDevice, Timed};

type Writes = Arc<Mutex<Vec<(u64, Vec<u8>)>>>;

/// Reads give the low byte of port or offset; writes are written down; a write of 0x77 sets a deadline.
struct Echo {
    name: &'static str,
    writes: Writes,
    deadline: Option<u64>,
}

impl Echo {
    fn read(from: u64, data: &mut [u8]) {
        for (byte, i) in data.iter_mut().zip(from..) {
            *byte = i as u8;
        }
    }

    fn write(&mut self, to: u64, data: &[u8]) {
        self.writes.lock().unwrap().push((to, data.to_vec()));
        if data[0] == 0x77 {
            self.deadline = Some(100);
        }
    }
}

impl Device for Echo {
    fn name(&self) -> &str {
        self.name
    }

    fn reset(&mut self) {
        self.deadline = None;
    }

    fn save(&self) -> Result<Section, state::Error> {
        Section::encode("echo", 1, &self.deadline)
    }

    fn restore(&mut self, section: &Section) -> Result<(), state::Error> {
        self.deadline = section.decode("echo", 1)?;
        Ok(())
    }

    fn as_pio(&mut self) -> Option<&mut dyn PioDevice> {
        Some(self)
    }

    fn as_mmio(&mut self) -> Option<&mut dyn MmioDevice> {
        (self.name != "ports only").then_some(self)
    }

    fn as_timed(&mut self) -> Option<&mut dyn Timed> {
        Some(self)
    }
}

impl PioDevice for Echo {
    fn port_read(&mut self, port: u16, data: &mut [u8]) {
        Self::read(port.into(), data);
    }

    fn port_write(&mut self, port: u16, data: &[u8]) {
        self.write(port.into(), data);
    }
}

impl MmioDevice for Echo {
    fn mmio_read(&mut self, offset: u64, data: &mut [u8]) {
        Self::read(offset, data);
    }

    fn mmio_write(&mut self, offset: u64, data: &[u8]) {
        self.write(offset, data);
    }
}

impl Timed for Echo {
    fn next_deadline(&self) -> Option<u64> {
        self.deadline
    }

    fn advance(&mut self, now: u64) {
        self.deadline = self.deadline.filter(|d| *d > now);
    }
}

fn echo(name: &'static str) -> (SharedDevice, Writes) {
    let writes = Writes::default();
    (Arc::new(Mutex::new(Echo { name, writes: writes.clone(), deadline: None })), writes)
}

/// Ports 0x10..0x12 and memory 0x1000..0x1010 are a's, 0x12..0x14 and 0x1010..0x1020 b's.
fn bus() -> (Arc<Recorder>, Bus, Writes, Writes) {
    let recorder = Recorder::new();
    let mut builder = BusBuilder::new();
    let ((a, a_writes), (b, b_writes)) = (echo("a"), echo("b"));
    let (a, b) = (builder.add(a).unwrap(), builder.add(b).unwrap());
    builder.claim_ports(b, 0x12, 2).unwrap();
    builder.claim_ports(a, 0x10, 2).unwrap();
    builder.claim_ports(a, 0xffff, 1).unwrap();
    builder.claim_mmio(b, 0x1010, 0x10).unwrap();
    builder.claim_mmio(a, 0x1000, 0x10).unwrap();
    builder.claim_mmio(a, u64::MAX - 8, 8).unwrap();
    let bus = builder.build(recorder.clone());
    (recorder, bus, a_writes, b_writes)
}

#[test]
fn overlaps_bad_ranges_and_missing_sides_are_errors() {
    let mut builder = BusBuilder::new();
    let a = builder.add(echo("a").0).unwrap();
    let only = builder.add(echo("ports only").0).unwrap();
    assert!(matches!(builder.add(echo("a").0), Err(BusError::DuplicateName { .. })));
    builder.claim_ports(a, 0x10, 4).unwrap();
    builder.claim_mmio(a, 0x1000, 0x10).unwrap();
    assert!(matches!(builder.claim_ports(only, 0x13, 1), Err(BusError::Overlap { .. })));
    assert!(matches!(builder.claim_ports(only, 0xffff, 2), Err(BusError::BadRange { .. })));
    assert!(matches!(builder.claim_ports(only, 0, 0), Err(BusError::BadRange { .. })));
    assert!(matches!(builder.claim_mmio(a, 0xfff, 2), Err(BusError::Overlap { .. })));
    assert!(matches!(builder.claim_mmio(a, u64::MAX, 2), Err(BusError::BadRange { .. })));
    let error = builder.claim_mmio(only, 0x5000, 1).unwrap_err();
    assert_eq!(error.to_string(), "claim memory for ports only: the device does not answer there");
}

#[test]
fn nobody_reads_all_ones_and_is_counted() {
    let (_, bus, ..) = bus();
    let mut data = [0; 8];
    bus.port_read(0x50, &mut data[..4]);
    assert_eq!(data[..4], [0xff; 4]);
    bus.mmio_read(0x5000, &mut data);
    assert_eq!(data, [0xff; 8]);
    bus.port_write(0x50, &[1]);
    bus.mmio_write(u64::MAX - 1, &[1, 2, 3, 4]);
    assert_eq!(bus.unclaimed_accesses(), 4);
}

#[test]
fn accesses_reach_their_device_whole() {
    let (_, bus, a, b) = bus();
    bus.port_write(0x12, &[1, 2]);
    bus.mmio_write(0x1008, &[0; 8]);
    assert_eq!(*b.lock().unwrap(), [(0x12, vec![1, 2])]);
    assert_eq!(*a.lock().unwrap(), [(8, vec![0; 8])]);
    let mut data = [0; 8];
    bus.mmio_read(0x1010, &mut data);
    assert_eq!(data, [0, 1, 2, 3, 4, 5, 6, 7]);
}

#[test]
fn accesses_across_a_border_are_split_into_bytes() {
    let (_, bus, a, b) = bus();
    bus.port_write(0x11, &[1, 2, 3, 4]);
    assert_eq!(*a.lock().unwrap(), [(0x11, vec![1])]);
    assert_eq!(*b.lock().unwrap(), [(0x12, vec![2]), (0x13, vec![3])]);
    let mut data = [0; 4];
    bus.port_read(0x0e, &mut data);
    assert_eq!(data, [0xff, 0xff, 0x10, 0x11]);
    bus.port_read(0xffff, &mut data);
    assert_eq!(data, [0xff; 4]);
    bus.mmio_read(0x100e, &mut data);
    assert_eq!(data, [14, 15, 0, 1]);
    bus.mmio_read(0x101e, &mut data);
    assert_eq!(data, [14, 15, 0xff, 0xff]);
    bus.mmio_read(u64::MAX - 2, &mut data);
    assert_eq!(data, [6, 7, 0xff, 0xff]);
}

#[test]
fn deadlines_are_told_when_they_change() {
    let (recorder, bus, ..) = bus();
    bus.port_write(0x12, &[0]);
    assert!(recorder.deadlines.lock().unwrap().is_empty());
    bus.port_write(0x12, &[0x77]);
    bus.port_write(0x12, &[0]);
    assert_eq!(*recorder.deadlines.lock().unwrap(), [(TimerId(1), Some(100))]);
    // A timer that went off early is set again.
    bus.advance(TimerId(1), 99);
    bus.advance(TimerId(1), 100);
    bus.advance(TimerId(7), 100);
    let told = recorder.deadlines.lock().unwrap().clone();
    assert_eq!(told[1..], [(TimerId(1), Some(100)), (TimerId(1), None)]);
}

#[test]
fn states_go_to_the_devices_of_their_names() {
    let (_, bus, ..) = bus();
    bus.port_write(0x12, &[0x77]);
    let saved = bus.save().unwrap();
    bus.reset();
    assert_ne!(bus.save().unwrap(), saved);
    bus.restore(|name| saved.iter().find(|(n, _)| n == name).map(|(_, s)| s.clone())).unwrap();
    assert_eq!(bus.save().unwrap(), saved);
    assert!(matches!(bus.restore(|_| None), Err(BusError::MissingSection { .. })));
}
