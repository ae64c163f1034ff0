//! A bundle's `config.json`: shapes, rules for system calls and devices, namespaces, limits, mounts and their options.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|config: &[u8]| {
    let _ = container::examine(config);
});
