//! Builds the guest programs and runs them on an engine. Included by the tests of every engine:
//! `#[path = "../../../guest/runner.rs"] mod runner;`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use arch::x86::cpuid::CpuModel;
use engine::Engine;
use machine::config::{MachineConfig, Source};
use machine::{Backends, Machine, MachineEvent};

/// Far beyond what any program needs; one that hangs fails instead of blocking the tests.
const PATIENCE: Duration = Duration::from_secs(300);

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

/// The folder with the built programs; they are built once a test process.
fn programs() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("guest-{}", std::process::id()));
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../guest/build");
        let status = Command::new(script).arg(&out).status().expect("guest/build starts");
        assert!(status.success(), "guest/build: {status}");
        out
    })
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

/// Runs program `name` with `cpus` vCPUs on `engine`, as the best processor that the engine can give there.
pub fn outcome(engine: &dyn Engine, name: &str, cpus: u32) -> Ended {
    outcome_while(engine, name, cpus, |_| {})
}

/// The same; `meanwhile` happens once the machine runs.
pub fn outcome_while(engine: &dyn Engine, name: &str, cpus: u32, meanwhile: impl FnOnce(&Machine)) -> Ended {
    let mut config = MachineConfig::new(Source::File(programs().join(format!("{name}.elf"))));
    config.cpus = cpus;
    config.cpu_model = CpuModel::best(|model| !engine.missing_for(model).is_empty()).to_owned();
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

/// Runs it and fails with its console output unless each check passed.
#[allow(dead_code, reason = "not every engine passes every check")]
pub fn run(engine: &dyn Engine, name: &str, cpus: u32) {
    let ended = outcome(engine, name, cpus);
    let whole = ended.is_whole() && ended.failures().next().is_none();
    assert!(whole, "{name} on {}: {:?}\n{}", engine.name(), ended.event, ended.text);
}
