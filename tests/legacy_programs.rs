//! Programs of 32 bits under the stock kernel: compatibility mode, with what 64-bit code has not.

use std::path::Path;
use std::process::Command;

use crate::support::{finish, run};

/// Builds `programs/i386.c` in `folder`.
fn build(folder: &Path) {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/programs/i386.c");
    let flags = [
        "-m32",
        "-O2",
        "-march=i686",
        "-mfpmath=387",
        "-ffreestanding",
        "-nostdlib",
        "-static",
        "-fno-pie",
        "-no-pie",
    ];
    let built = Command::new("gcc")
        .args(flags)
        .args(["-fno-stack-protector", "-o"])
        .arg(folder.join("i386"))
        .arg(source)
        .status();
    assert!(built.unwrap().success());
}

#[test]
fn a_32_bit_program_does_what_it_does_on_the_host() {
    let folder = tempfile::tempdir().unwrap();
    build(folder.path());
    let here = match Command::new(folder.path().join("i386")).output() {
        Ok(ended) => ended,
        Err(error) => return println!("skipped: this host runs no programs of 32 bits: {error}"),
    };
    let expected = String::from_utf8(here.stdout).unwrap();
    assert_eq!((here.status.code(), expected.lines().count()), (Some(7), 9), "{expected}");
    let volume = format!("{}:/programs:ro", folder.path().display());
    for flags in
        [&["--engine", "jit"][..], &["--engine", "interp"], &["--engine", "jit", "--stress", "once,exact"]]
    {
        let rest = ["--volume", &volume, "debian", "--", "/programs/i386"];
        let Some(command) = run(&[flags, &rest].concat()) else { return };
        let ended = finish(command);
        assert_eq!((ended.code(), &ended.stdout), (7, &expected), "{flags:?}: {ended:?}");
    }
}
