//! The engines this program has. The only file that names one.

use std::fs::{self, File};
use std::io::LineWriter;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use arch::x86::cpuid::CpuModel;
use engine::Engine;
use engine_kvm::Kvm;
use engine_kvm::probe::Pace;
use engine_soft::x86::hostexec::host_features;
use engine_soft::x86::jit::{Config, Trace};
use machine::snapshot::Snapshot;

pub use engine_soft::x86::jit::inspect;
pub use engine_soft::x86::jit::kept::{Keeping, Kept, Recorder};
pub use engine_soft::x86::jit::stress::Stress;

use crate::failure::{Failure, Outcome, While};

/// An engine by the name users type.
pub struct Choice {
    /// What `--engine` takes.
    pub name: &'static str,
    open: fn(Wishes) -> Outcome<Box<dyn Engine>>,
}

/// What a caller wants of an engine beside its work.
#[derive(Default)]
pub struct Wishes {
    /// That it counts instructions, although that costs time.
    pub count: bool,
    /// A file for what it makes of the guest's code.
    pub trace: Option<File>,
    /// What is provoked in a translator.
    pub stress: Stress,
    /// What a translator does with its translations beyond using them.
    pub keeping: Keeping,
}

/// Every engine built in.
pub const ALL: &[Choice] = &[
    Choice { name: engine_kvm::NAME, open: |_| kvm() },
    Choice { name: TRANSLATOR, open: |wishes| Ok(translator(wishes)) },
    Choice { name: "interp", open: |_| Ok(Box::new(engine_soft::Interpreter)) },
];

/// What `auto` chooses where KVM is not real.
const WITHOUT_KVM: &str = TRANSLATOR;

/// The engine that translates.
const TRANSLATOR: &str = "jit";

/// Whether the engine called `name` can do something with [`Kept`] translations.
pub fn keeps_translations(name: &str) -> bool {
    name == TRANSLATOR
}

/// What this host's KVM is good for.
pub enum Hardware {
    /// It runs guests on the processor.
    Real(Kvm, Speed),
    /// It is there, and interprets guests in the host's kernel.
    Emulates(Kvm, Speed),
    /// It is not there, or lacks something.
    Absent(engine::Error),
}

/// Millions of instructions a second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speed(pub f64);

impl std::fmt::Display for Speed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let digits = if self.0 < 10.0 { 1 } else { 0 };
        write!(f, "{:.digits$} million instructions/s", self.0)
    }
}

impl Hardware {
    /// Looks, and tries it out for some milliseconds.
    pub fn look() -> Self {
        let opened = Kvm::open().and_then(|kvm| kvm.probe().map(|pace| (kvm, pace)));
        match opened {
            Ok((kvm, Pace::Real { rate })) => Self::Real(kvm, Speed(rate / 1e6)),
            Ok((kvm, Pace::Emulated { rate })) => Self::Emulates(kvm, Speed(rate / 1e6)),
            Err(error) => Self::Absent(error),
        }
    }

    /// The engine that `auto` chooses here.
    pub fn best(&self) -> &'static str {
        if matches!(self, Self::Real(..)) { engine_kvm::NAME } else { WITHOUT_KVM }
    }
}

/// What shows the translations of code in the memory of a machine at rest.
///
/// # Errors
/// This host cannot be that processor, or gives no executable memory.
pub fn inspector(of: &Snapshot) -> Outcome<inspect::Inspector> {
    let model = &of.config.cpu_model;
    let act = || format!("translate for cpu model {model:?}");
    let ram = Arc::new(of.memory().while_trying(act)?);
    let named = CpuModel::named(model).ok_or_else(|| Failure::new(format!("{}: there is none", act())))?;
    let fitted = Arc::new(named.fitted_to(host_features()));
    inspect::Inspector::new(ram, fitted, Config::default()).while_trying(act)
}

/// The engine called `name`, or the best this host offers for `auto`.
///
/// # Errors
/// There is no such engine, or this host does not have it.
pub fn open(name: &str, wishes: Wishes) -> Outcome<Box<dyn Engine>> {
    let wanted = match name {
        "auto" => match Hardware::look() {
            Hardware::Real(kvm, _) => return Ok(Box::new(kvm)),
            other => other.best(),
        },
        name => name,
    };
    let choice = ALL.iter().find(|choice| choice.name == wanted);
    let unknown = || Err(Failure::new(format!("no engine is called {name:?}")));
    choice.map_or_else(unknown, |choice| (choice.open)(wishes))
}

/// What `name` means here. That KVM is of no use is noted in the folder `notes` until the host is started anew or its device
/// changes: finding out takes longer than to restore a machine.
pub fn settle(name: &str, notes: &Path) -> String {
    if name != "auto" {
        return name.to_owned();
    }
    let (file, key) = (notes.join("kvm-is-of-no-use"), host_key());
    if let Some(key) = &key
        && fs::read_to_string(&file).is_ok_and(|noted| noted == *key)
    {
        return WITHOUT_KVM.to_owned();
    }
    match (Hardware::look(), key) {
        (Hardware::Real(..), _) => return "auto".to_owned(),
        (Hardware::Emulates(..), Some(key)) => {
            // Without the note the next one looks again. Whole or not at all: others read it meanwhile.
            let partial = file.with_extension(std::process::id().to_string());
            let _ = fs::write(&partial, key).and_then(|()| fs::rename(&partial, &file));
        }
        // Quickly found out.
        _ => {}
    }
    WITHOUT_KVM.to_owned()
}

/// This start of this host, with this KVM.
fn host_key() -> Option<String> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let device = fs::metadata("/dev/kvm").ok()?;
    Some(format!("{} {} {}.{:09}", boot.trim(), device.ino(), device.ctime(), device.ctime_nsec()))
}

fn translator(wishes: Wishes) -> Box<dyn Engine> {
    let mut config = Config { count: wishes.count, ..Config::default() }.under(wishes.stress);
    if matches!(wishes.keeping, Keeping::Record(_)) {
        // It works for others, who will not have to.
        config.patience = 0;
    }
    let trace = wishes.trace.map(|file| Trace::new(LineWriter::new(file)));
    Box::new(engine_soft::Translator { config, trace, keeping: wishes.keeping })
}

/// KVM, whatever it is good for.
fn kvm() -> Outcome<Box<dyn Engine>> {
    match Hardware::look() {
        Hardware::Real(kvm, _) => Ok(Box::new(kvm)),
        Hardware::Emulates(kvm, speed) => {
            tracing::warn!(
                "kvm on this host emulates ordinary guests ({speed}) and lacks instructions that kernels need; \
                 --engine {WITHOUT_KVM} is faster and complete"
            );
            Ok(Box::new(kvm))
        }
        Hardware::Absent(error) => {
            let failure = Failure::because("open engine kvm", error);
            Err(failure.hint(format!(
                "strata check says what this host offers; --engine {WITHOUT_KVM} needs nothing"
            )))
        }
    }
}

/// The best processor that `engine` can give guests here; the plainest if none, and the engine says what is missing.
pub fn best_model(engine: &dyn Engine) -> &'static str {
    CpuModel::best(|model| !engine.missing_for(model).is_empty())
}

/// What `--engine` takes.
pub fn names() -> Vec<&'static str> {
    std::iter::once("auto").chain(ALL.iter().map(|choice| choice.name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_is_told_with_a_digit_more() {
        assert_eq!(Speed(4.96).to_string(), "5.0 million instructions/s");
        assert_eq!(Speed(2148.3).to_string(), "2148 million instructions/s");
    }

    #[test]
    fn what_auto_means_is_the_same_with_and_without_a_note_and_a_note_of_another_host_is_none() {
        let notes = tempfile::tempdir().unwrap();
        let first = settle("auto", notes.path());
        assert_eq!(settle("auto", notes.path()), first);
        fs::write(notes.path().join("kvm-is-of-no-use"), "another start").unwrap();
        assert_eq!(settle("auto", notes.path()), first);
        assert_eq!(settle("interp", notes.path()), "interp");
    }

    #[test]
    fn an_engine_nobody_has_is_an_error_that_names_it() {
        let error = open("warp", Wishes::default()).err().expect("no such engine");
        assert_eq!(error.to_string(), "no engine is called \"warp\"");
    }
}
