//! The programs of `guest/`, saved and restored at random moments: interpreter and translator take turns on one machine.

#[path = "../../../guest/runner.rs"]
mod runner;

use engine::Engine;
use engine_soft::{Interpreter, Translator};

/// `STRATA_SEED` chooses other moments; they are never the same on a busy host anyway.
fn seed() -> u64 {
    std::env::var("STRATA_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0x5eed)
}

fn in_turns(name: &str, cpus: u32) {
    let jit = Translator::default();
    let engines: [&dyn Engine; 3] = [&Interpreter, &jit, &jit];
    let (ended, turns) = runner::outcome_in_turns(&engines, name, cpus, runner::First::Rests, seed());
    let whole = ended.is_whole() && ended.failures().next().is_none();
    assert!(whole, "{name} after {turns} turns: {:?}\n{}", ended.event, ended.text);
    assert!(turns > 0, "{name} ended before it was saved once");
}

macro_rules! programs {
    ($($name:ident: $cpus:literal,)*) => {
        $(
            #[test]
            fn $name() {
                in_turns(stringify!($name), $cpus);
            }
        )*
    };
}

runner::all_programs!(programs);
