//! The engines this program has. The only file that names one.

use engine::Engine;

use crate::failure::{Failure, Outcome};

/// An engine by the name users type.
pub struct Choice {
    /// What `--engine` takes.
    pub name: &'static str,
    make: fn() -> Box<dyn Engine>,
}

/// Every engine built in.
pub const ALL: &[Choice] = &[
    Choice { name: "jit", make: || Box::new(engine_soft::Translator::default()) },
    Choice { name: "interp", make: || Box::new(engine_soft::Interpreter) },
];

/// What `auto` chooses.
pub const AUTO: &str = "jit";

/// The engine called `name`, or the best this host offers for `auto`.
///
/// # Errors
/// There is no such engine.
pub fn open(name: &str) -> Outcome<Box<dyn Engine>> {
    let wanted = if name == "auto" { AUTO } else { name };
    let choice = ALL.iter().find(|choice| choice.name == wanted);
    choice.map(|choice| (choice.make)()).ok_or_else(|| Failure::new(format!("no engine is called {name:?}")))
}

/// What `--engine` takes.
pub fn names() -> Vec<&'static str> {
    std::iter::once("auto").chain(ALL.iter().map(|choice| choice.name)).collect()
}
