//! The host code that the translator makes of a few hundred guest instructions, compared with files: a change in
//! generated code is reviewed as a difference of text.
//!
//! Each theme is an assembly file here, `THEME.s`, with one case a page; `THEME.txt` has what came of them. The text
//! does not depend on the host. `cargo xtask bless` writes it anew.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

mod cases;
mod difference;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arch::x86::cpuid::CpuModel;
use engine_soft::x86::hostexec::host_features;
use engine_soft::x86::jit::Config;
use engine_soft::x86::jit::inspect::Inspector;
use memory::GuestRam;

use cases::{Case, Theme};

/// What every golden file is made for.
const MODEL: &str = "x86-64-v3";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// All cases of a theme as text.
fn listing(theme: &Theme) -> String {
    let ram = Arc::new(GuestRam::new(&[(0, theme.code.len() as u64)]).unwrap());
    ram.write(0, &theme.code).unwrap();
    let model = Arc::new(CpuModel::named(MODEL).unwrap());
    let mut text = String::new();
    for case in &theme.cases {
        let config = Config { exact_flags: case.exact_flags, count: case.count, ..Config::default() };
        let mut inspector = Inspector::new(ram.clone(), model.clone(), config).unwrap();
        inspector.set_width(case.width);
        text += &format!("== {}\n", case.line);
        text += &blocks(&mut inspector, case);
    }
    text
}

fn blocks(inspector: &mut Inspector, case: &Case) -> String {
    let mut text = String::new();
    let mut at = case.start;
    for _ in 0..case.blocks {
        let seen = inspector.block(at, at, case.privilege, case.detail).unwrap();
        at += seen.len;
        text += &seen.text;
    }
    text
}

/// Whether this host can be the model that the files are for: what it cannot execute has no translation here.
fn can_compare() -> bool {
    let missing = CpuModel::named(MODEL).unwrap().missing_on(host_features());
    if !missing.is_empty() {
        let names: Vec<_> = missing.iter().map(|feature| feature.name).collect();
        println!("skipped: this host lacks {}", names.join(", "));
    }
    missing.is_empty()
}

fn check(name: &str) {
    if !can_compare() {
        return;
    }
    let theme = Theme::assemble(&folder().join(format!("{name}.s")));
    let now = listing(&theme);
    assert!(!now.contains("unnamed"), "a cell that jit/names.rs has no name for:\n{now}");
    let path = folder().join(format!("{name}.txt"));
    if std::env::var_os("STRATA_BLESS").is_some() {
        std::fs::write(&path, now).unwrap();
        return;
    }
    let agreed = std::fs::read_to_string(&path).unwrap_or_default();
    if let Some(difference) = difference::of(&agreed, &now) {
        panic!(
            "{name}: other host code than in {name}.txt\n{difference}`cargo xtask bless` makes it what is agreed on"
        );
    }
}

macro_rules! themes {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                check(stringify!($name));
            }
        )*

        #[test]
        fn every_file_belongs_to_a_theme() {
            let themes = [$(stringify!($name)),*];
            for entry in std::fs::read_dir(folder()).unwrap() {
                let path = entry.unwrap().path();
                let name = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
                let of_theme = path.extension().is_some_and(|extension| extension == "s" || extension == "txt");
                assert!(!of_theme || themes.contains(&name), "{}", path.display());
            }
        }
    };
}

themes! {
    moves arithmetic flags user_memory kernel_memory groups stack jumps calls bits vectors x87 code32 system handlers counted
}
