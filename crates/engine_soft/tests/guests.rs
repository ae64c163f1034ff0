//! The programs of `guest/` on the interpreter and on the translator: one test each.

#[path = "../../../guest/runner.rs"]
mod runner;

use std::io::Write;
use std::sync::Arc;

use engine_soft::x86::jit::Config;
use engine_soft::x86::jit::kept::{Keeping, Kept, Recorder};
use engine_soft::{Interpreter, Translator};

macro_rules! programs {
    ($($name:ident: $cpus:literal,)*) => {
        mod interp {
            $(
                #[test]
                fn $name() {
                    super::runner::run(&super::Interpreter, stringify!($name), $cpus);
                }
            )*
        }

        mod jit {
            $(
                #[test]
                fn $name() {
                    super::runner::run(&super::Translator::default(), stringify!($name), $cpus);
                }
            )*
        }

        /// Everything that can be translated is, at its first execution.
        mod jit_at_once {
            $(
                #[test]
                fn $name() {
                    super::under("once", stringify!($name), $cpus);
                }
            )*
        }

        /// What another run translated is used and not made.
        mod jit_reusing {
            $(
                #[test]
                fn $name() {
                    super::reusing(stringify!($name), $cpus);
                }
            )*
        }

        /// What is rare happens all the time.
        mod jit_stressed {
            $(
                #[test]
                fn $name() {
                    for stress in ["once,tlb,code", "once,code,returns", "tlb,returns,kick", "once,kick,exact"] {
                        super::under(stress, stringify!($name), $cpus);
                    }
                }
            )*
        }

        /// Each execution of a block is repeated by the interpreter and compared.
        mod jit_in_step {
            $(
                #[test]
                fn $name() {
                    if $cpus > 1 && std::env::var_os("STRATA_STRESS").is_none() {
                        return println!("skipped: CPUs that take turns take long; run `make stress`");
                    }
                    // CPUs that take turns wait for each other in each block that is compared.
                    let every = if $cpus > 1 { 16 } else { 1 };
                    for stress in ["once,exact", "tlb"] {
                        super::under(&format!("{stress},step={every}"), stringify!($name), $cpus);
                    }
                }
            )*
        }
    };
}

fn under(stress: &str, name: &str, cpus: u32) {
    println!("under {stress}:");
    let config = Config::default().under(stress.parse().unwrap());
    runner::run(&Translator { config, ..Translator::default() }, name, cpus);
}

/// Runs the program, keeps all its translations, and runs it again with them.
fn reusing(name: &str, cpus: u32) {
    let recorder = Recorder::default();
    let config = Config { threshold: 1, patience: 0, ..Config::default() };
    let recording =
        Translator { config, keeping: Keeping::Record(recorder.clone()), ..Translator::default() };
    runner::run(&recording, name, cpus);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&recorder.finish(name)).unwrap();
    let kept = Arc::new(Kept::open(&file, name).unwrap());
    runner::run(&Translator { keeping: Keeping::Reuse(kept.clone()), ..Translator::default() }, name, cpus);
    assert!(kept.used() > 10, "{} translations were of use", kept.used());
}

runner::all_programs!(programs);
