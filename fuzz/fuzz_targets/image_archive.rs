//! Archives of strangers through the whole store: root file systems, images, Debian packages, kernel modules.
#![no_main]

use std::path::PathBuf;
use std::sync::OnceLock;

use image::kernels::AddKernel;
use image::{Image, NoProgress, Reference, Store};
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

/// An ELF header is enough of a kernel for a store that does not start it.
const KERNEL: &[u8] = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0Linux version 6.1.0 x\0";

/// A store, and a folder for what goes in. Both are kept: making a store takes longer than using it.
struct Place {
    store: Store,
    folder: TempDir,
}

fn place() -> &'static Place {
    static PLACE: OnceLock<Place> = OnceLock::new();
    PLACE.get_or_init(|| {
        // TMPDIR had better be memory: a store makes everything durable, and a disk takes its time for that.
        // libFuzzer ends without destructors: whoever set TMPDIR removes what is left in it.
        let folder = TempDir::new().expect("make a temporary folder");
        std::fs::create_dir(folder.path().join("modules")).expect("make a folder");
        let store = Store::open(folder.path().join("store")).expect("make a store");
        Place { store, folder }
    })
}

fn write(name: &str, data: &[u8]) -> PathBuf {
    let path = place().folder.path().join(name);
    std::fs::write(&path, data).expect("write a temporary file");
    path
}

fn build(image: &Image) {
    if let Ok(root) = place().store.root_for_vm(image, &NoProgress) {
        assert!(root.size_bytes() > 0);
    }
}

fn add_kernel(file: PathBuf, modules: Option<PathBuf>) {
    let add = AddKernel { files: vec![file], modules, unpack: &|_| Ok(None), make_default: false };
    if let Ok(kernel) = place().store.add_kernel(&add, &NoProgress) {
        for module in kernel.modules_for(&["virtio_blk", "overlay"]) {
            kernel.read_module(module).expect("a module that was stored can be read");
        }
        let id = kernel.info().id.clone();
        drop(kernel);
        place().store.remove_kernel(&id).expect("a kernel can be removed");
    }
}

fn import(data: &[u8]) {
    let name: Reference = "fuzz".parse().expect("a name");
    if let Ok(image) = place().store.import(&write("layer", data), &name, &NoProgress) {
        build(&image);
        drop(image);
        place().store.remove(&name).expect("an image can be removed");
    }
}

fn load(data: &[u8]) {
    let store = &place().store;
    if let Ok(names) = store.load(&write("archive", data), &NoProgress) {
        for name in names {
            if let Ok(image) = store.image(&name) {
                build(&image);
            }
            // The same name may be there twice.
            let _ = store.remove(&name);
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((kind, data)) = data.split_first() else { return };
    match kind % 4 {
        0 => import(data),
        1 => load(data),
        2 => add_kernel(write("package", data), None),
        _ => {
            write("modules/virtio.ko", data);
            add_kernel(write("kernel", KERNEL), Some(place().folder.path().join("modules")));
        }
    }
    let _ = place().store.collect();
});
