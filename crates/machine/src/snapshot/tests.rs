//! Machines of a scripted engine, saved and restored; the golden snapshot; and what is refused.

use std::io::{Read, Seek};
use std::path::Path;

use super::*;
use crate::config::{Bucket, ConsoleConfig, DiskConfig, Limits, NetConfig, VsockConfig};
use crate::testing::{self, FakeEngine, Script};
use crate::{Backends, Machine};

const DISK_BYTES: u64 = 1 << 20;

fn disk(folder: &Path) -> DiskConfig {
    let path = folder.join("disk");
    File::create(&path).unwrap().set_len(DISK_BYTES).unwrap();
    DiskConfig { path, read_only: false, serial: "root".to_owned(), rate: None }
}

/// One of every device there is.
fn full(folder: &Path) -> MachineConfig {
    let mut config = testing::config();
    config.cpus = 2;
    config.console = ConsoleConfig::Both;
    config.disks = vec![disk(folder)];
    config.net = vec![NetConfig::new([2, 0, 0, 0, 0, 1])];
    config.vsock = Some(VsockConfig::default());
    config.balloon = true;
    config.generation_id = true;
    config
}

/// Sets up a timer, a page of kvm-clock and some registers, and halts.
fn busy() -> FakeEngine {
    FakeEngine(Script::new(|stage| {
        if stage.index == 0 && stage.state.gpr[7] == 0 {
            stage.state.gpr = std::array::from_fn(|i| 0x1111 * i as u64);
            stage.bus.msr_write(0, arch::x86::msr::KVM_SYSTEM_TIME_NEW, 0x8001);
            stage.bus.port_write(0, 0x43, &[0x34]);
            stage.bus.port_write(0, 0x40, &[0x10]);
            stage.bus.port_write(0, 0x70, &[0x0b]);
            testing::print(stage, b"saved\n");
        }
        stage.state.events.halted = true;
        Some(engine::Exit::Halt)
    }))
}

fn paused(config: &MachineConfig) -> Machine {
    let machine = Machine::build(config, Backends::default(), &busy()).unwrap();
    machine.start();
    while !machine.console().tail().contains("saved") {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    machine.pause();
    machine
}

fn files(machine: &Machine) -> (Vec<u8>, File) {
    let (mut state, ram) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    write(machine, "test", &state, &ram, &PageMap::open()).unwrap();
    let mut bytes = Vec::new();
    state.rewind().unwrap();
    state.read_to_end(&mut bytes).unwrap();
    (bytes, ram)
}

fn frozen(machine: &Machine, map: &PageMap) -> Frozen {
    let frozen = Frozen::create().unwrap();
    write(machine, "test", &frozen.state, &frozen.ram, map).unwrap();
    frozen.seal().unwrap();
    assert!(frozen.ram.set_len(0).is_err(), "what is mapped cannot be cut");
    frozen
}

fn read(state: &[u8], ram: &File) -> Result<Snapshot, Error> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(state).unwrap();
    file.rewind().unwrap();
    Snapshot::read(&file, ram.try_clone().unwrap())
}

fn vcpu(archive: &Archive, index: usize) -> arch::x86::CpuState {
    let path = path::vcpu(index);
    let section = archive.sections().find(|(at, _)| *at == path).unwrap().1;
    arch::x86::CpuState { tsc_offset: 0, ..arch::x86::saved::restore(section).unwrap() }
}

#[test]
fn a_machine_goes_on_where_it_was_and_its_copies_do_not_see_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let machine = paused(&full(folder.path()));
    let before = machine.capture().unwrap();
    let (state, ram) = files(&machine);
    machine.resume();
    machine.pause();
    drop(machine);
    let copies: Vec<Machine> = (0..3)
        .map(|index| {
            let mut snapshot = read(&state, &ram).unwrap();
            let own = folder.path().join(index.to_string());
            std::fs::create_dir(&own).unwrap();
            snapshot.config.disks = vec![disk(&own)];
            Machine::restore(snapshot, Backends::default(), &busy()).unwrap()
        })
        .collect();
    for (index, copy) in copies.iter().enumerate() {
        let after = copy.capture().unwrap();
        for index in 0..2 {
            assert_eq!(vcpu(&after, index), vcpu(&before, index));
        }
        assert_eq!(after.header, before.header);
        let mut byte = [0];
        copy.ram().read(0x9000, &mut byte).unwrap();
        assert_eq!(byte, [0]);
        copy.ram().write(0x9000, &[index as u8 + 1]).unwrap();
        copy.start();
        copy.pause();
    }
}

#[test]
fn a_forked_machine_goes_on_and_its_copies_have_what_it_had_then() {
    let machine = paused(&testing::config());
    machine.ram().write(0x20_0000, b"before").unwrap();
    let fork = frozen(&machine, &PageMap::open());
    machine.ram().write(0x20_0000, b"after!").unwrap();
    machine.resume();
    let copies: Vec<Machine> = (0..4)
        .map(|_| Machine::restore(fork.copy().unwrap(), Backends::default(), &busy()).unwrap())
        .collect();
    drop(fork);
    copies.iter().for_each(Machine::start);
    drop(machine);
    for copy in &copies {
        let mut bytes = [0; 6];
        copy.ram().read(0x20_0000, &mut bytes).unwrap();
        assert_eq!(&bytes, b"before");
        copy.ram().write(0x20_0000, b"copy's").unwrap();
    }
    // A copy of a copy.
    copies[0].pause();
    let fork = frozen(&copies[0], &PageMap::open());
    let again = Machine::restore(fork.copy().unwrap(), Backends::default(), &busy()).unwrap();
    let mut bytes = [0; 6];
    again.ram().read(0x20_0000, &mut bytes).unwrap();
    assert_eq!(&bytes, b"copy's");
}

#[test]
fn a_disk_that_was_written_to_since_or_is_gone_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = testing::config();
    config.disks = vec![disk(folder.path())];
    let machine = paused(&config);
    let (state, ram) = files(&machine);
    drop(machine);
    let check = || read(&state, &ram).unwrap().check_disks();
    check().unwrap();
    let path = &config.disks[0].path;
    let modified = std::fs::metadata(path).unwrap().modified().unwrap();
    let file = File::options().write(true).open(path).unwrap();
    file.write_all_at(b"x", 0).unwrap();
    file.set_modified(modified + std::time::Duration::from_secs(1)).unwrap();
    assert!(matches!(check(), Err(Error::DiskChanged { .. })));
    file.set_modified(modified).unwrap();
    check().unwrap();
    file.set_len(DISK_BYTES + 512).unwrap();
    file.set_modified(modified).unwrap();
    assert!(matches!(check(), Err(Error::DiskChanged { .. })));
    std::fs::remove_file(path).unwrap();
    let error = check().unwrap_err();
    assert!(matches!(&error, Error::Disk { .. }), "{error}");
}

#[test]
fn time_goes_on_from_where_it_stood() {
    let machine = paused(&testing::config());
    let clocks: ClockState = take(&mut machine.capture().unwrap(), path::CLOCKS, CLOCKS).unwrap();
    let (state, ram) = files(&machine);
    drop(machine);
    std::thread::sleep(std::time::Duration::from_millis(20));
    let copy = Machine::restore(read(&state, &ram).unwrap(), Backends::default(), &busy()).unwrap();
    let restored: ClockState = take(&mut copy.capture().unwrap(), path::CLOCKS, CLOCKS).unwrap();
    assert!((0..10).contains(&(restored.now_ns - clocks.now_ns)), "{clocks:?} {restored:?}");
    assert_eq!(restored.tscs, clocks.tscs);
}

#[test]
fn a_machine_that_runs_or_has_ended_is_not_saved() {
    let machine = testing::machine(Script::halt_for_ever());
    machine.start();
    let refused = |machine: &Machine| crate::machine::chain(&machine.capture().unwrap_err());
    assert_eq!(refused(&machine), "snapshot: the machine is not paused, or has ended");
    machine.stop();
    machine.wait();
    assert_eq!(refused(&machine), "snapshot: the machine is not paused, or has ended");
}

#[test]
fn what_is_not_this_machines_is_refused_by_name() {
    let machine = paused(&testing::config());
    let (state, ram) = files(&machine);
    type Damage = fn(&mut Archive);
    let damages: [(&str, Damage); 9] = [
        ("unknown sections: device/warp", |a| a.put("device/warp", Section::encode("x", 1, &7u8).unwrap())),
        ("section \"vcpu/0\" is missing", |a| drop(a.take("vcpu/0"))),
        ("unknown sections: vcpu/1", |a| {
            let other = a.take("vcpu/0").unwrap();
            a.put("vcpu/0", other.clone());
            a.put("vcpu/1", other);
        }),
        ("serial0", |a| drop(a.take("device/serial0"))),
        ("section \"apics\" is missing", |a| drop(a.take("apics"))),
        ("version 2, this build reads up to 1", |a| {
            let mut section = a.take("vcpu/0").unwrap();
            section.version = 2;
            a.put("vcpu/0", section);
        }),
        ("board \"pc\", this build has \"microvm\"", |a| a.header.board = "pc".to_owned()),
        ("section is of kind \"x\", expected \"pit\"", |a| {
            a.put("device/pit", Section::encode("x", 1, &7u8).unwrap());
        }),
        ("regions of another machine", |a| {
            let mut config: MachineConfig = take(a, path::CONFIG, CONFIG).unwrap();
            config.memory_bytes *= 2;
            a.put(path::CONFIG, encode(path::CONFIG, CONFIG, &config).unwrap());
        }),
    ];
    for (expected, damage) in damages {
        let mut archive = Archive::parse(&state).unwrap();
        damage(&mut archive);
        let restored = read(&archive.to_bytes(), &ram)
            .map_err(crate::Error::from)
            .and_then(|snapshot| Machine::restore(snapshot, Backends::default(), &busy()));
        let text = crate::machine::chain(&restored.err().expect(expected));
        assert!(text.contains(expected), "{text:?} does not say {expected:?}");
    }
    let snapshot = read(&state, &ram).unwrap();
    let slow = Snapshot { clocks: ClockState { tsc_khz: 1_000, ..snapshot.clocks.clone() }, ..snapshot };
    let error = Machine::restore(slow, Backends::default(), &busy()).err().unwrap();
    assert!(crate::machine::chain(&error).contains("runs at 1000 kHz"));
}

/// An engine on a host whose processor lacks something.
struct Lacking;

impl engine::Engine for Lacking {
    fn name(&self) -> &'static str {
        "lacking"
    }

    fn create_vm(&self, config: engine::VmConfig) -> Result<Box<dyn engine::Vm>, engine::Error> {
        let what = format!("cpu model {} needs warp of the host's processor", config.cpu_model.name);
        Err(engine::Error::Unsupported { engine: self.name(), what })
    }
}

#[test]
fn a_host_that_lacks_what_the_saved_processor_has_is_told_and_the_snapshot_stays_good() {
    let machine = paused(&testing::config());
    let model = machine.capture().unwrap().header.cpu_model;
    let (state, ram) = files(&machine);
    let error = Machine::restore(read(&state, &ram).unwrap(), Backends::default(), &Lacking).err().unwrap();
    let text = crate::machine::chain(&error);
    assert!(text.contains(&format!("cpu model {model} needs warp")), "{text}");
    Machine::restore(read(&state, &ram).unwrap(), Backends::default(), &busy()).unwrap();
    // One that no build knows.
    let mut archive = Archive::parse(&state).unwrap();
    let mut config: MachineConfig = take(&mut archive, path::CONFIG, CONFIG).unwrap();
    config.cpu_model = "x86-64-v9".to_owned();
    archive.put(path::CONFIG, encode(path::CONFIG, CONFIG, &config).unwrap());
    let text = crate::machine::chain(&read(&archive.to_bytes(), &ram).unwrap_err());
    assert!(text.contains("x86-64-v9"), "{text}");
}

#[test]
fn restored_and_stopped_again_and_again_leaves_nothing() {
    // `STRATA_CYCLES=1000` for the longer one.
    let cycles = std::env::var("STRATA_CYCLES").ok().and_then(|n| n.parse().ok()).unwrap_or(40);
    let folder = tempfile::tempdir().unwrap();
    let (state, ram) = files(&paused(&full(folder.path())));
    let left = || {
        let count = |dir: &str| std::fs::read_dir(dir).unwrap().count();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        (
            count("/proc/self/fd"),
            count("/proc/self/task"),
            maps.lines().filter(|l| l.contains(".tmp")).count(),
        )
    };
    let cycle = || {
        let mut snapshot = read(&state, &ram).unwrap();
        snapshot.config.disks = vec![disk(folder.path())];
        let machine = Machine::restore(snapshot, Backends::default(), &busy()).unwrap();
        machine.start();
        machine.stop();
        machine.wait();
    };
    cycle();
    // Other tests of this process open and close things too; what leaks here does so each time.
    let before = left();
    (0..cycles).for_each(|_| cycle());
    let after = left();
    assert!(after.0 < before.0 + cycles && after.1 < before.1 + cycles && after.2 < before.2 + cycles);
}

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");

/// A golden snapshot, on this host.
fn golden(name: &str, folder: &Path) -> Snapshot {
    let state = std::fs::read(format!("{GOLDEN}/{name}/state")).unwrap();
    let mut ram = tempfile::tempfile().unwrap();
    zstd::stream::copy_decode(File::open(format!("{GOLDEN}/{name}/ram.zst")).unwrap(), &mut ram).unwrap();
    let mut snapshot = read(&state, &ram).unwrap();
    // The host that wrote it had another TSC.
    snapshot.clocks.tsc_khz = crate::tsc::host_tsc_khz();
    let rate = snapshot.config.disks[0].rate;
    snapshot.config.disks = vec![DiskConfig { rate, ..disk(folder) }];
    snapshot
}

/// Snapshots of this format stay readable for ever; what a later version changes is read into the new form.
#[test]
fn the_golden_snapshots_of_format_1_are_read_and_run() {
    for name in ["snapshot-1", "snapshot-1-rates"] {
        let folder = tempfile::tempdir().unwrap();
        let snapshot = golden(name, folder.path());
        assert_eq!((snapshot.header.board.as_str(), snapshot.config.cpus), ("microvm", 2));
        let (disk, net) = (&snapshot.config.disks[0], &snapshot.config.net[0]);
        let expected = (name == "snapshot-1-rates").then(rates);
        assert_eq!((disk.rate, net.rx_rate, net.tx_rate), (expected, expected, expected));
        let machine = Machine::restore(snapshot, Backends::default(), &busy()).unwrap();
        let archive = machine.capture().unwrap();
        assert_eq!(vcpu(&archive, 0).gpr, std::array::from_fn(|i| 0x1111 * i as u64));
        assert!(vcpu(&archive, 1).events.waits_for_start_up);
        let mut kvm_clock = [0; 4];
        machine.ram().read(0x8000, &mut kvm_clock).unwrap();
        assert_ne!(kvm_clock, [0; 4], "its memory is there");
        machine.start();
        machine.pause();
    }
}

fn rates() -> Limits {
    let bucket = |size| Some(Bucket { size, one_time_burst: 7, refill_time_ms: 1000 });
    Limits { bandwidth: bucket(1 << 20), ops: bucket(100) }
}

#[test]
#[ignore = "writes the golden snapshot of a new version of something, once"]
fn write_the_golden_snapshot() {
    let place = format!("{GOLDEN}/snapshot-1-rates");
    let folder = tempfile::tempdir().unwrap();
    let mut config = full(folder.path());
    config.disks[0].rate = Some(rates());
    config.net[0] = NetConfig { rx_rate: Some(rates()), tx_rate: Some(rates()), ..config.net[0].clone() };
    let (state, mut ram) = files(&paused(&config));
    let mut archive = Archive::parse(&state).unwrap();
    // Nothing of this host.
    let mut config: MachineConfig = take(&mut archive, path::CONFIG, CONFIG).unwrap();
    config.disks[0].path = "/disk".into();
    archive.put(path::CONFIG, encode(path::CONFIG, CONFIG, &config).unwrap());
    std::fs::create_dir_all(&place).unwrap();
    std::fs::write(format!("{place}/state"), archive.to_bytes()).unwrap();
    ram.rewind().unwrap();
    zstd::stream::copy_encode(&ram, File::create(format!("{place}/ram.zst")).unwrap(), 19).unwrap();
}

/// What a pause, a fork and a restore of a machine of 512 MiB with 100 MiB touched cost, on a scripted engine.
#[test]
#[ignore = "prints figures and asserts nothing"]
fn figures() {
    let mut config = testing::config();
    config.memory_bytes = 512 << 20;
    let machine = paused(&config);
    let block: Vec<u8> = (0..1u32 << 18).flat_map(|i| i.wrapping_mul(0x9e37_79b9).to_le_bytes()).collect();
    (0..100).for_each(|mib| machine.ram().write((200 + mib) << 20, &block).unwrap());
    let private = || {
        let text = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
        let line = text.lines().find(|line| line.starts_with("Private_Dirty:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let timed = |what: &str, act: &mut dyn FnMut()| {
        let start = std::time::Instant::now();
        act();
        println!("FIGURE {what}: {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
    };
    let map = PageMap::open();
    for _ in 0..3 {
        timed("snapshot to disk, durable", &mut || drop(files(&machine)));
        let mut fork = None;
        let mut make = || fork = Some(frozen(&machine, &map));
        timed("fork, pause", &mut make);
        let fork = fork.unwrap();
        let (before, mut copies) = (private(), Vec::new());
        let restore = || Machine::restore(fork.copy().unwrap(), Backends::default(), &busy()).unwrap();
        timed("20 copies, restored and started", &mut || {
            copies.extend((0..20).map(|_| restore()));
            copies.iter().for_each(Machine::start);
        });
        println!("FIGURE private memory a copy: {} KiB", private().saturating_sub(before) / 20);
    }
}
