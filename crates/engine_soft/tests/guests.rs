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
                    super::under("once", stringify!($name), $cpus);
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
                    for stress in ["once,step,exact", "step,tlb"] {
                        super::under(stress, stringify!($name), $cpus);
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

runner::all_programs!(programs);
