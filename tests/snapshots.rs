//! Programs of `guest/` whose machine moves from engine to engine. Interpreter and translator do so in the tests of their
//! own crate; here KVM takes part.

#[path = "../guest/runner.rs"]
mod runner;

use engine::Engine;
use engine_kvm::Kvm;
use engine_kvm::probe::Pace;
use engine_soft::{Interpreter, Translator};

/// What a host's emulator says when it lacks an instruction.
const GAVE_UP: &str = "kvm emulates this guest and cannot execute ";

#[test]
fn guest_programs_go_on_under_kvm_and_under_the_others() {
    let kvm = match Kvm::open() {
        Ok(kvm) => kvm,
        Err(error) => return println!("skipped: {error}"),
    };
    let is_real = matches!(kvm.probe(), Ok(Pace::Real { .. }));
    let jit = Translator::default();
    // KVM makes the machine: the clock of its APIC timers is its own, which the others take, and not every TSC is a multiple of.
    let engines: Vec<&dyn Engine> = vec![&kvm, &Interpreter, &jit];
    // A KVM that only emulates has no watchpoints and is wrong about some steps and user code, and which checks come while it is
    // its turn is chance: what fails every time is not its doing.
    let tries = if is_real { 1 } else { 4 };
    let is_known = |failure: &str| !is_real && failure.contains("watch");
    for name in ["calls", "exceptions", "smc"] {
        for attempt in 1..=tries {
            let (ended, turns) = runner::outcome_in_turns(&engines, name, 1, runner::First::Rests, 7);
            let reason = ended.event.as_ref().map(ToString::to_string).unwrap_or_default();
            let gave_up = reason.contains(GAVE_UP);
            let whole = ended.is_whole() && ended.failures().all(is_known);
            println!("{name}, {turns} turns: {}", if gave_up { "skipped" } else { "saved and restored" });
            assert!(gave_up || whole || attempt < tries, "{name}: {reason}\n{}", ended.text);
            if gave_up || whole {
                break;
            }
        }
    }
}
