//! Builds the guest programs and runs them on an engine. Included by the tests of every engine:
//! `#[path = "../../../guest/runner.rs"] mod runner;`.

use std::fs::File;
use std::io::{Seek, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use arch::x86::cpuid::CpuModel;
use arch::x86::{CpuState, saved};
use engine::Engine;
use machine::config::{DiskConfig, MachineConfig, Source};
use machine::snapshot::ram::{self, PageMap, RamState};
use machine::snapshot::{self, Archive, Copying, Snapshot};
use machine::{Backends, Machine, MachineEvent};

/// Far beyond what any program needs; one that hangs fails instead of blocking the tests.
const PATIENCE: Duration = Duration::from_secs(300);
/// How often a machine is saved and restored at most: what comes after runs in one go.
pub const MAX_TURNS: u32 = 25;

#[derive(Clone, Default)]
struct Console(Arc<Mutex<Vec<u8>>>);

impl Write for Console {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Hands all programs, each with the vCPUs it wants, to the macro named.
#[allow(unused_macros, reason = "not every test runs all of them")]
macro_rules! all_programs {
    ($with:ident) => {
        $with! {
            calls: 1,
            dma: 2,
            exceptions: 1,
            interrupts: 1,
            litmus: 2,
            modes: 1,
            paging: 1,
            smc: 1,
            smp: 4,
            split: 4,
            system: 1,
        }
    };
}
#[allow(unused_imports, reason = "not every test runs all of them")]
pub(crate) use all_programs;

/// How many programs this process has begun to build.
static BUILDS: AtomicU32 = AtomicU32::new(0);

/// Program `name`, built unless it is newer than all that it is made from. Tests in other threads and processes may want it too.
fn program(name: &str) -> PathBuf {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../guest");
    let built = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guest");
    let program = built.join(format!("{name}.elf"));
    let modified = |path: &Path| path.metadata().and_then(|metadata| metadata.modified()).ok();
    if modified(&program).is_some_and(|built| Some(built) > newest(&sources)) {
        return program;
    }
    let number = BUILDS.fetch_add(1, Ordering::Relaxed);
    let new = built.join(format!("new-{}-{number}-{name}", std::process::id()));
    let status =
        Command::new(sources.join("build")).arg(&new).arg(name).status().expect("guest/build starts");
    assert!(status.success(), "guest/build: {status}");
    std::fs::rename(new.join(format!("{name}.elf")), &program).unwrap();
    let _ = std::fs::remove_dir(&new);
    program
}

/// When a file in a folder or in those of it was last written.
fn newest(folder: &Path) -> Option<SystemTime> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let of = |entry: std::fs::DirEntry| match entry.file_type().unwrap().is_dir() {
        true => newest(&entry.path()),
        false => entry.metadata().unwrap().modified().ok(),
    };
    entries.filter_map(of).max()
}

/// How a program ended.
pub struct Ended {
    /// What it printed.
    pub text: String,
    /// How its machine ended; none if it hung.
    pub event: Option<MachineEvent>,
}

impl Ended {
    /// The checks that failed: `name: detail`.
    pub fn failures(&self) -> impl Iterator<Item = &str> {
        self.text.lines().filter_map(|line| line.strip_prefix("FAIL "))
    }

    /// Whether it came to its end, whatever its checks said.
    pub fn is_whole(&self) -> bool {
        let passed = self.text.lines().filter(|line| line.starts_with("PASS ")).count();
        let done = format!("DONE {passed} passed {} failed", self.failures().count());
        passed > 0 && self.text.lines().any(|line| line == done) && self.event == Some(MachineEvent::PowerOff)
    }
}

/// A machine for program `name`, of the best processor that all `engines` can give.
fn machine(engines: &[&dyn Engine], name: &str, cpus: u32) -> MachineConfig {
    let mut config = MachineConfig::new(Source::File(program(name)));
    config.cpus = cpus;
    let lacks = |model: &CpuModel| engines.iter().any(|engine| !engine.missing_for(model).is_empty());
    config.cpu_model = CpuModel::best(lacks).to_owned();
    config
}

/// Runs program `name` with `cpus` vCPUs on `engine`, as the best processor that the engine can give there.
pub fn outcome(engine: &dyn Engine, name: &str, cpus: u32) -> Ended {
    outcome_while(engine, name, cpus, |_| {})
}

/// The same; `meanwhile` happens once the machine runs.
pub fn outcome_while(engine: &dyn Engine, name: &str, cpus: u32, meanwhile: impl FnOnce(&Machine)) -> Ended {
    let config = machine(&[engine], name, cpus);
    let console = Console::default();
    let backends = Backends { console: Some(Box::new(console.clone())), ..Backends::default() };
    let machine = Machine::build(&config, backends, engine).unwrap();
    machine.start();
    meanwhile(&machine);
    let event = machine.wait_timeout(PATIENCE);
    drop(machine);
    let bytes = console.0.lock().unwrap().clone();
    Ended { text: String::from_utf8_lossy(&bytes).into_owned(), event }
}

/// Whether the first engine executes anything before the machine is saved.
#[allow(dead_code, reason = "a single engine has no turns to take")]
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum First {
    Runs,
    Rests,
}

/// Runs program `name` on one of `engines` after the other: at moments that `seed` chooses the machine is saved, thrown away,
/// and restored on the next. Each time all registers, all devices and all memory must be what they were. Also how often.
#[allow(dead_code, reason = "a single engine has no turns to take")]
pub fn outcome_in_turns(
    engines: &[&dyn Engine],
    name: &str,
    cpus: u32,
    first: First,
    seed: u64,
) -> (Ended, u32) {
    let config = machine(engines, name, cpus);
    let console = Console::default();
    let backends = || Backends { console: Some(Box::new(console.clone())), ..Backends::default() };
    let mut machine = Machine::build(&config, backends(), engines[0]).unwrap();
    let (mut random, mut turns) = (seed | 1, 0);
    let event = loop {
        if turns > 0 || first == First::Runs {
            machine.start();
        }
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let microseconds = 1 << ((random >> 60) % 9); // to 256 µs
        let wait = if turns == MAX_TURNS { PATIENCE } else { Duration::from_micros(microseconds) };
        match machine.wait_timeout(wait) {
            None if turns < MAX_TURNS => {}
            event => break event,
        }
        let files = Files::begun(&machine, random >> 59 & 1 != 0);
        machine.pause();
        let Ok(before) = machine.capture() else { break machine.wait_timeout(PATIENCE) };
        turns += 1;
        let engine = engines[turns as usize % engines.len()];
        let when = format!("{name}, turn {turns} to {}", engine.name());
        machine = turn(machine, files, &before, backends(), engine, &when);
    };
    drop(machine);
    let bytes = console.0.lock().unwrap().clone();
    (Ended { text: String::from_utf8_lossy(&bytes).into_owned(), event }, turns)
}

/// Where a machine is saved to.
#[allow(dead_code, reason = "a single engine has no turns to take")]
struct Files {
    state: File,
    ram: File,
    copying: Copying,
}

#[allow(dead_code, reason = "a single engine has no turns to take")]
impl Files {
    /// Copies memory while the machine runs, if it is to be so.
    fn begun(machine: &Machine, ahead: bool) -> Self {
        let (state, ram) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let copying = Copying::new(machine.shared_ram(), &ram, &Arc::new(PageMap::open())).unwrap();
        let copying = if ahead { copying.ahead().unwrap() } else { copying };
        Self { state, ram, copying }
    }
}

/// Saves `machine`, whose state is `before`, throws it away and restores it on `engine`: it must be what it was.
#[allow(dead_code, reason = "a single engine has no turns to take")]
fn turn(
    machine: Machine,
    files: Files,
    before: &Archive,
    backends: Backends,
    engine: &dyn Engine,
    when: &str,
) -> Machine {
    let Files { state, ram, mut copying } = files;
    copying.rest().unwrap();
    let archive = snapshot::capture(&machine, "test", None).unwrap();
    snapshot::complete(archive, &copying.finish().unwrap(), &state).unwrap();
    let memory = memory(&machine);
    // Its last words come before those of the next.
    drop(machine);
    (&state).rewind().unwrap();
    let machine = Machine::restore(Snapshot::read(&state, ram).unwrap(), backends, engine).unwrap();
    assert!(memory.is_same(&self::memory(&machine)), "{when}: memory");
    assert_same(before, &machine.capture().unwrap(), when);
    machine
}

/// What `long/load.c` leaves.
#[allow(dead_code, reason = "a single engine has no turns to take")]
pub struct Left {
    /// All registers of its vCPU.
    pub registers: CpuState,
    memory: RamState,
    disk: Vec<u8>,
}

#[allow(dead_code, reason = "a single engine has no turns to take")]
impl Left {
    /// Panics at the first thing that is not the same.
    pub fn assert_same(&self, other: &Self, what: &str) {
        assert_eq!(self.registers, other.registers, "{what}: registers");
        assert!(self.memory.is_same(&other.memory), "{what}: memory");
        assert!(self.disk == other.disk, "{what}: disk");
    }
}

/// Runs `long/load.c` to its end, saved and restored at `turns` moments that `seed` chooses, on one of `engines` after the
/// other. Also how often that was before its end.
#[allow(dead_code, reason = "a single engine has no turns to take")]
pub fn end_of_load(engines: &[&dyn Engine], turns: u32, seed: u64) -> (Left, u32) {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    let mut config = machine(engines, "load", 1);
    config.disks =
        vec![DiskConfig { path: disk.clone(), read_only: false, serial: String::new(), rate: None }];
    std::fs::write(&disk, (0..256 << 10).map(|at: u32| (at * 7 + at / 251) as u8).collect::<Vec<_>>())
        .unwrap();
    let console = Console::default();
    let backends = || Backends { console: Some(Box::new(console.clone())), ..Backends::default() };
    let mut machine = Machine::build(&config, backends(), engines[0]).unwrap();
    let (mut random, mut taken) = (seed | 1, 0);
    let registers = loop {
        machine.start();
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // To 16 ms: once in a batch of requests, and many batches later.
        let wait = Duration::from_micros(1 << ((random >> 59) % 15));
        assert_eq!(machine.wait_timeout(wait), None, "it ended");
        let files = Files::begun(&machine, taken % 2 == 1);
        machine.pause();
        let before = machine.capture().unwrap();
        let (_, vcpu) = before.sections().find(|(path, _)| *path == "vcpu/0").unwrap();
        let mut registers = CpuState { tsc_offset: 0, ..saved::restore(vcpu).unwrap() };
        // What the last x87 instruction was, AMD's processors, whose word the interpreter takes, note after errors alone.
        (registers.fx.fip, registers.fx.fdp, registers.fx.fop) = (0, 0, 0);
        if registers.events.halted {
            break registers;
        }
        if taken < turns {
            taken += 1;
            let engine = engines[taken as usize % engines.len()];
            let when = format!("load, turn {taken} to {}", engine.name());
            machine = turn(machine, files, &before, backends(), engine, &when);
        }
    };
    let memory = memory(&machine);
    drop(machine);
    let text = String::from_utf8_lossy(&console.0.lock().unwrap()).into_owned();
    assert!(text.contains("PASS every request is answered"), "after {taken} turns: {text}");
    (Left { registers, memory, disk: std::fs::read(&disk).unwrap() }, taken)
}

/// A checksum of each MiB that is not all zeros.
fn memory(machine: &Machine) -> RamState {
    ram::write(machine.ram(), &tempfile::tempfile().unwrap(), &PageMap::open()).unwrap()
}

/// Sections that say how far a chip has counted: it looks at the clock when it is restored.
const COUNTED: [&str; 4] = ["clocks", "device/acpi-pm", "device/pit", "device/rtc"];

/// Compares all sections but those of [`COUNTED`].
fn assert_same(before: &Archive, after: &Archive, when: &str) {
    let paths = |archive: &Archive| archive.sections().map(|(path, _)| path.to_owned()).collect::<Vec<_>>();
    assert_eq!(paths(before), paths(after), "{when}");
    for ((path, before), (_, after)) in before.sections().zip(after.sections()) {
        if path.starts_with("vcpu/") {
            let registers = |section| CpuState { tsc_offset: 0, ..saved::restore(section).unwrap() };
            assert_eq!(registers(before), registers(after), "{when}: {path}");
        } else if !COUNTED.contains(&path) {
            assert_eq!(before, after, "{when}: {path}");
        }
    }
}

/// Runs it and fails with its console output unless each check passed.
#[allow(dead_code, reason = "not every engine passes every check")]
pub fn run(engine: &dyn Engine, name: &str, cpus: u32) {
    let ended = outcome(engine, name, cpus);
    let whole = ended.is_whole() && ended.failures().next().is_none();
    assert!(whole, "{name} on {}: {:?}\n{}", engine.name(), ended.event, ended.text);
}
