//! The engines this program has. The only file that names one.

use std::fs::File;
use std::io::LineWriter;

use engine::Engine;
use engine_soft::x86::jit::{Config, Trace};

use crate::failure::{Failure, Outcome};

/// An engine by the name users type.
pub struct Choice {
    /// What `--engine` takes.
    pub name: &'static str,
    make: fn(Wishes) -> Box<dyn Engine>,
}

/// What a caller wants of an engine beside its work.
#[derive(Default)]
pub struct Wishes {
    /// That it counts instructions, although that costs time.
    pub count: bool,
    /// A file for what it makes of the guest's code.
    pub trace: Option<File>,
}

/// Every engine built in.
pub const ALL: &[Choice] = &[
    Choice { name: "jit", make: translator },
    Choice { name: "interp", make: |_| Box::new(engine_soft::Interpreter) },
];

/// What `auto` chooses.
pub const AUTO: &str = "jit";

/// The engine called `name`, or the best this host offers for `auto`.
///
/// # Errors
/// There is no such engine.
pub fn open(name: &str, wishes: Wishes) -> Outcome<Box<dyn Engine>> {
    let wanted = if name == "auto" { AUTO } else { name };
    let choice = ALL.iter().find(|choice| choice.name == wanted);
    choice
        .map(|choice| (choice.make)(wishes))
        .ok_or_else(|| Failure::new(format!("no engine is called {name:?}")))
}

fn translator(wishes: Wishes) -> Box<dyn Engine> {
    let config = Config { count: wishes.count, ..Config::default() };
    let trace = wishes.trace.map(|file| Trace::new(LineWriter::new(file)));
    Box::new(engine_soft::Translator { config, trace })
}

/// What `--engine` takes.
pub fn names() -> Vec<&'static str> {
    std::iter::once("auto").chain(ALL.iter().map(|choice| choice.name)).collect()
}
