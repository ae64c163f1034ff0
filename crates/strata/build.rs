//! What the program is linked with.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let env = std::env::var("CARGO_CFG_TARGET_ENV").unwrap_or_default();
    if env == "gnu" {
        // The unwinder as a part of the program, not a library of its own: to find, map and place that took a tenth of a
        // millisecond at each start, and a container starts the program twice. The agent needs the same archive.
        println!("cargo::rustc-link-lib=static:-bundle=gcc_eh");
    }
}
