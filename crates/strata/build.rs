//! What the program is linked with.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let env = std::env::var("CARGO_CFG_TARGET_ENV").unwrap_or_default();
    if env == "gnu" {
        // The unwinder as a part of the program, not a library of its own: to find, map and place that took a tenth of a
        // millisecond at each start. The agent needs the same archive.
        println!("cargo::rustc-link-lib=static:-bundle=gcc_eh");
        // Relocations as a bitmap, which is a twentieth of their table, to be read at each start.
        if knows_packed_relocations() {
            println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
        }
    }
}

/// Whether the C library of this host, for which the program is built, is 2.36 or newer.
fn knows_packed_relocations() -> bool {
    let Ok(answer) = std::process::Command::new("getconf").arg("GNU_LIBC_VERSION").output() else {
        return false;
    };
    let text = String::from_utf8_lossy(&answer.stdout);
    let version = text.trim().strip_prefix("glibc ").and_then(|version| version.split_once('.'));
    version.and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?))) >= Some((2, 36))
}
