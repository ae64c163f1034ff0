//! Builds the guest programs and runs them on an engine. Included by the tests of every engine:
//! `#[path = "../../../guest/runner.rs"] mod runner;`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

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

/// Runs program `name` with `cpus` vCPUs on `engine` and fails with its console output unless each check passed.
pub fn run(engine: &dyn Engine, name: &str, cpus: u32) {
    let mut config = MachineConfig::new(Source::File(programs().join(format!("{name}.elf"))));
    config.cpus = cpus;
    let console = Console::default();
    let backends = Backends { console: Some(Box::new(console.clone())), ..Backends::default() };
    let machine = Machine::build(&config, backends, engine).unwrap();
    machine.start();
    let event = machine.wait_timeout(PATIENCE);
    drop(machine);
    let bytes = console.0.lock().unwrap().clone();
    let text = String::from_utf8_lossy(&bytes);
    let passed = text.lines().filter(|line| line.starts_with("PASS ")).count();
    let done = format!("DONE {passed} passed 0 failed");
    let whole = passed > 0 && text.lines().any(|line| line == done);
    assert!(whole && event == Some(MachineEvent::PowerOff), "{name} on {}: {event:?}\n{text}", engine.name());
}
