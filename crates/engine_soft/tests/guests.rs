//! The programs of `guest/` on the interpreter and on the translator: one test each.

#[path = "../../../guest/runner.rs"]
mod runner;

use engine_soft::x86::jit::Config;
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
                    super::runner::run(&super::at_once(), stringify!($name), $cpus);
                }
            )*
        }
    };
}

fn at_once() -> Translator {
    Translator { config: Config { threshold: 1, ..Config::default() }, ..Translator::default() }
}

programs! {
    calls: 1,
    exceptions: 1,
    interrupts: 1,
    modes: 1,
    paging: 1,
    smc: 1,
    smp: 4,
    system: 1,
}
