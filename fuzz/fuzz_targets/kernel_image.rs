//! Kernel files: told apart, unwrapped and loaded into a small memory.
#![no_main]

use libfuzzer_sys::fuzz_target;
use machine::loader::decompress::{self, Compression};
use machine::loader::elf::{Elf, ZeroFill};
use machine::loader::{extract_vmlinux, inspect};
use memory::GuestRam;

const RAM_BYTES: u64 = 4 << 20;
/// Decompressed at most; the loader's own limit would only make this slower.
const LIMIT: usize = 1 << 20;

fn load(vmlinux: &[u8]) {
    let Ok(file) = Elf::parse(vmlinux) else { return };
    let _ = (file.pvh_entry(), file.has_acpi());
    let _ = (file.isa(), file.class(), file.is_shared_object());
    let _ = file.bytes_at(file.entry());
    let ram = GuestRam::new(&[(0, RAM_BYTES)]).expect("map memory");
    let loadable = file.check_loadable();
    for zero in [ZeroFill::Fresh, ZeroFill::Write] {
        let _ = file.load(&ram, zero);
    }
    if loadable.is_ok() {
        let (start, end) = file.extent();
        assert!(start <= end);
    }
}

fuzz_target!(|data: &[u8]| {
    let _ = inspect(data).map(|info| info.release().map(str::len));
    load(data);
    if let Some(kind) = Compression::detect(data)
        && let Ok(bytes) = decompress::decompress(data, kind, LIMIT)
    {
        assert!(bytes.len() <= LIMIT);
    }
    if let Ok(vmlinux) = extract_vmlinux(data) {
        load(&vmlinux);
    }
});
