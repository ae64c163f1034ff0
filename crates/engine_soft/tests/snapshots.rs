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

/// How often the load is saved and restored in one run at most.
const TURNS: u32 = 12;

/// Requests of the disk are under way whenever it is saved. A run that was saved and restored must end as one that was not.
#[test]
fn a_load_that_was_saved_and_restored_leaves_what_one_leaves_that_was_not() {
    let jit = Translator::default();
    let (expected, _) = runner::end_of_load(&[&Interpreter], 0, seed());
    assert_ne!(expected.registers.gpr[12], 0, "it has computed something");
    let kinds: [(&str, &[&dyn Engine]); 4] = [
        ("jit alone", &[&jit]),
        ("interp", &[&Interpreter, &Interpreter]),
        ("jit", &[&jit, &jit]),
        ("in turns", &[&Interpreter, &jit, &jit]),
    ];
    for (what, engines) in kinds {
        let turns = if engines.len() == 1 { 0 } else { TURNS };
        let (left, taken) = runner::end_of_load(engines, turns, seed());
        left.assert_same(&expected, what);
        assert!(turns == 0 || taken > 0, "{what}: it ended before it was saved once");
        println!("{what}: saved and restored {taken} times");
    }
}
