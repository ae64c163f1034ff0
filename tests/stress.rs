//! Whole boots of the stock kernel while the translator does all the time what it does rarely, and while what it does is
//! compared with the interpreter. `make stress` asks for all of it, `make test` for a part.

use crate::support::{finish, run};

/// What the guests do, and what they say then.
const WORK: (&str, &str) = (
    "set -e; seq 2000 | sort -rn | head -1; for i in 1 2 3 4 5; do /bin/true; done; \
     head -c 300000 /dev/zero | gzip -9 | gunzip | sha256sum; exit 7",
    "2000\n886715e4051e827f4fe215df3053af3f85ad0d352db2c829c7487af6d78efe30  -\n",
);
/// The same for those that take a hundred times as long for everything.
const LITTLE_WORK: (&str, &str) = (
    "set -e; seq 200 | sort -rn | head -1; /bin/true; head -c 30000 /dev/zero | gzip -9 | gunzip | sha256sum; exit 7",
    "200\n3755862355e2e7d0e0dc0f6b98a89978c0710890982862dd17975829e35be6b4  -\n",
);

/// Boots under each of `lists`, and expects of all the same.
fn boots_under(lists: &[&str], cpus: &str, (script, said): (&str, &str)) {
    for stress in lists {
        let arguments =
            ["--engine", "jit", "--cpus", cpus, "-v", "--stress", stress, "debian", "--", "sh", "-c", script];
        let Some(command) = run(&arguments) else { return };
        let ended = finish(command);
        assert_eq!((ended.code(), ended.stdout.as_str()), (7, said), "{stress}: {ended:?}");
        let compared = ended.stderr.contains("blocks compared");
        assert_eq!(compared, stress.contains("step"), "{stress}: {ended:?}");
    }
}

fn asked_for() -> bool {
    let asked = std::env::var_os("STRATA_STRESS").is_some();
    if !asked {
        println!("skipped: STRATA_STRESS is not set; run `make stress`");
    }
    asked
}

#[test]
fn a_boot_stands_everything_at_once() {
    boots_under(&["tlb,code,returns,kick"], "1", WORK);
}

#[test]
fn a_boot_in_step_with_the_interpreter_shows_no_difference() {
    boots_under(&["step=64,exact"], "1", WORK);
}

#[test]
fn boots_stand_each_stress_alone() {
    if asked_for() {
        boots_under(&["tlb", "code", "returns", "kick", "once", "exact"], "2", WORK);
    }
}

#[test]
fn every_block_of_a_boot_is_compared() {
    if asked_for() {
        boots_under(&["step,exact", "step,tlb"], "1", LITTLE_WORK);
        boots_under(&["step=64,exact"], "2", WORK);
    }
}
