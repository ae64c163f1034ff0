//! Builds the agent a second time, as the static program that goes into an initramfs, so that
//! `lib.rs` can embed it: a plain `cargo build` of whatever depends on this crate is enough.
//!
//! The inner build is the same package seen with `--cfg pid1` (no standard library, its own entry
//! and panic handler). It has its own target directory inside `OUT_DIR`, hence its own lock, its
//! own profile, and none of the outer build's flags. It needs nothing from the network: whatever it
//! compiles, the outer build depends on too, at the versions of the same lock file.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Set for the inner build, whose own run of this script must not build again.
const INNER: &str = "STRATA_AGENT_PID1";

/// What the guest runs. The engine's guests are x86-64 whatever the host is.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Fully static and at fixed addresses: nothing to relocate while the guest starts.
/// libc.a's cancellation points refer to the unwinder, which the standard library would have brought.
const RUSTFLAGS: [&str; 6] = [
    "-Ctarget-feature=+crt-static",
    "-Crelocation-model=static",
    "-Cforce-unwind-tables=no",
    "-Clink-args=-Wl,-Bstatic -Wl,--start-group -lgcc_eh -lc -Wl,--end-group",
    "-Clink-arg=-Wl,--build-id=none",
    "-Clink-arg=-Wl,-z,norelro",
];

/// Small before fast: what is hot in the agent are system calls.
const PROFILE: [(&str, &str); 7] = [
    ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "z"),
    ("CARGO_PROFILE_RELEASE_LTO", "fat"),
    ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1"),
    ("CARGO_PROFILE_RELEASE_PANIC", "abort"),
    ("CARGO_PROFILE_RELEASE_STRIP", "symbols"),
    ("CARGO_PROFILE_RELEASE_DEBUG", "false"),
    ("CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS", "false"),
];

fn main() {
    println!("cargo::rustc-check-cfg=cfg(pid1)");
    println!("cargo::rerun-if-env-changed={INNER}");
    if env::var_os(INNER).is_some() {
        println!("cargo::rustc-cfg=pid1");
        return;
    }
    for path in [
        "build.rs",
        "Cargo.toml",
        "src",
        "../archive/Cargo.toml",
        "../archive/src",
        "../protocol/Cargo.toml",
        "../protocol/src",
        "../../Cargo.lock",
    ] {
        println!("cargo::rerun-if-changed={path}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR for build scripts"));
    let target_dir = out.join("target");
    let status = inner_build(&target_dir).status();
    assert!(
        status.as_ref().is_ok_and(|status| status.success()),
        "build the agent for {TARGET}: {status:?}; it needs that target (rustup target add {TARGET}) and libc.a (libc6-dev)",
    );
    embed(&target_dir.join(TARGET).join("release/agent"), &out.join("agent"));
}

fn inner_build(target_dir: &Path) -> Command {
    let cargo = env::var_os("CARGO").expect("cargo sets CARGO for build scripts");
    let mut command = Command::new(cargo);
    command.args(["build", "--release", "--offline", "--quiet"]);
    command.args(["--package", "agent", "--bin", "agent", "--target", TARGET]);
    command.arg("--target-dir").arg(target_dir);
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(belongs_to_the_outer_build) {
            command.env_remove(name);
        }
    }
    command.envs(PROFILE);
    let mut flags: Vec<String> = RUSTFLAGS.map(String::from).to_vec();
    flags.extend(path_flags());
    command.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
    command.env(INNER, "1");
    command
}

/// Where this machine keeps things stays out of the panic messages: the same source gives the same bytes.
fn path_flags() -> impl Iterator<Item = String> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).map(Path::to_path_buf);
    let cargo = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
    [(workspace, "strata"), (cargo, "cargo")]
        .into_iter()
        .filter_map(|(from, to)| Some(format!("--remap-path-prefix={}={to}", from?.to_str()?)))
}

/// Flags, profile, target directory and clippy's wrapper stay outside. The jobserver
/// (`CARGO_MAKEFLAGS`), where cargo keeps its things and how it reaches a registry come along.
fn belongs_to_the_outer_build(name: &str) -> bool {
    let cargo_kept = ["CARGO_HOME", "CARGO_MAKEFLAGS"].contains(&name)
        || ["CARGO_NET_", "CARGO_HTTP_", "CARGO_REGISTR", "CARGO_SOURCE_"]
            .iter()
            .any(|p| name.starts_with(p));
    (name.starts_with("CARGO_") && !cargo_kept)
        || ["RUSTFLAGS", "RUSTDOCFLAGS", "RUSTC_WORKSPACE_WRAPPER", "CLIPPY_ARGS", "RUSTC_LINKER"]
            .contains(&name)
}

/// The agent may take 1 MiB: every machine carries it.
const MAX_BYTES: usize = 1 << 20;

/// Leaves the copy alone when nothing changed, so that nothing above it is compiled again.
fn embed(built: &Path, copy: &Path) {
    let bytes = std::fs::read(built).unwrap_or_else(|e| panic!("read {}: {e}", built.display()));
    assert!(
        bytes.len() < MAX_BYTES,
        "the agent takes {} bytes, at most {MAX_BYTES} are allowed",
        bytes.len()
    );
    if std::fs::read(copy).is_ok_and(|old| old == bytes) {
        return;
    }
    std::fs::write(copy, bytes).unwrap_or_else(|e| panic!("write {}: {e}", copy.display()));
}
