//! Random instruction sequences, run on this processor, in the interpreter and in the translator, must end alike: registers,
//! flags (but undefined ones), vectors, x87 state, memory, and the kind, error code and address of the fault.
//!
//! `STRATA_SEQUENCES` says how many (200,000 unless told), `STRATA_SEED` which, `STRATA_CASE` runs a single one.
//!
//! Reading order: `layout` and `case`; `forms`, `operands` and `generate` (what is run); `native` and `guest`
//! (where); `compare` and `known` (what must agree, and what need not); this file (in which order, and what is said about it).
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

mod amd;
mod case;
mod compare;
mod forms;
mod generate;
mod guest;
mod known;
mod layout;
mod native;
mod operands;
mod random;
mod report;
mod run;

use engine::Engine;
use engine_soft::x86::jit::Config;
use engine_soft::{Interpreter, Translator};

fn check(engine: &'static dyn Engine, warm: bool) {
    let summary = run::run(&run::Settings::from_environment(engine, warm));
    report::print(&summary);
    assert!(summary.failures.is_empty(), "{} kinds of difference", summary.failures.len());
    assert_eq!(summary.forms_covered, summary.forms, "every form is covered");
}

#[test]
fn random_sequences_end_as_on_this_processor() {
    check(&Interpreter, false);
}

/// Every sequence is translated, and finds its operands in the TLB.
#[test]
fn translated_sequences_end_as_on_this_processor() {
    let config =
        Config { threshold: 1, patience: 0, code_bytes: 16 << 20, exact_flags: true, ..Config::default() };
    check(Box::leak(Box::new(Translator { config, ..Translator::default() })), true);
}
