use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::*;
use crate::kernels::{modinfo, sniff};
use crate::tar::testing::Tar;
use crate::testing::{Temp, chain, temp_store};
use crate::{Error, NoProgress};

/// A bzImage as far as its header goes.
fn bzimage(version: &str) -> Vec<u8> {
    let mut image = vec![0u8; 4096];
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
    image[0x20e..0x210].copy_from_slice(&0x400u16.to_le_bytes());
    image[0x236] = 1;
    image[0x600..0x600 + version.len()].copy_from_slice(version.as_bytes());
    image[0x600 + version.len()] = b' ';
    image
}

/// An ELF file with nothing but a `.modinfo` section.
fn module(info: &str) -> Vec<u8> {
    let mut elf = vec![0u8; 64];
    elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
    let info: Vec<u8> =
        info.split(' ').flat_map(|line| [line.replace('~', " ").as_bytes(), b"\0"].concat()).collect();
    let names = b"\0.modinfo\0";
    let info_at = elf.len();
    elf.extend_from_slice(&info);
    let names_at = elf.len();
    elf.extend_from_slice(names);
    let table = elf.len();
    for (name, at, len) in [(0u32, 0, 0), (1, info_at, info.len()), (0, names_at, names.len())] {
        let mut row = [0u8; 64];
        row[..4].copy_from_slice(&name.to_le_bytes());
        row[0x18..0x20].copy_from_slice(&(at as u64).to_le_bytes());
        row[0x20..0x28].copy_from_slice(&(len as u64).to_le_bytes());
        elf.extend_from_slice(&row);
    }
    elf[0x28..0x30].copy_from_slice(&(table as u64).to_le_bytes());
    for (at, value) in [(0x3a, 64u16), (0x3c, 3), (0x3e, 2)] {
        elf[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }
    elf
}

fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut out = liblzma::write::XzEncoder::new(Vec::new(), 1);
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

fn ar(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = b"!<arch>\n".to_vec();
    for (name, bytes) in members {
        out.extend_from_slice(
            format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, 100_644, bytes.len()).as_bytes(),
        );
        out.extend_from_slice(bytes);
        if out.len() % 2 == 1 {
            out.push(b'\n');
        }
    }
    out
}

const CONTROL: &str = "Package: linux-image-9.9\nVersion: 9.9-1\nArchitecture: amd64\nDescription: x\n";

fn deb(data: Tar) -> Vec<u8> {
    let control = xz(&Tar::new().file("./control", CONTROL.as_bytes()).end());
    ar(&[("debian-binary", b"2.0\n"), ("control.tar.xz", &control), ("data.tar.xz", &xz(&data.end()))])
}

fn sample() -> Tar {
    let dir = "./lib/modules/9.9/kernel";
    let zst = zstd::encode_all(&module("depends=virtio")[..], 1).unwrap();
    Tar::new()
        .file("./boot/vmlinuz-9.9", &bzimage("9.9"))
        .file(&format!("{dir}/virtio_blk.ko.zst"), &zst)
        .file(&format!("{dir}/virtio.ko.xz"), &xz(&module("depends= vermagic=9.9~SMP")))
        .file(
            &format!("{dir}/drivers/virtio-rng.ko"),
            &module("depends=virtio,rng-core softdep=pre:~soft~post:~late"),
        )
        .file(&format!("{dir}/soft.ko"), &module("depends="))
        .file(&format!("{dir}/rng-core.ko"), &module("license=GPL"))
        .file(&format!("{dir}/unwanted.ko"), b"junk")
        .file("./lib/modules/9.9/modules.builtin", b"kernel/fs/ext4/ext4.ko\nkernel/crypto/x.ko\n")
}

fn add(temp: &Temp, file: &Path, modules: Option<PathBuf>) -> Result<KernelBundle, Error> {
    let unpack = |bytes: &[u8]| Ok(Some([b"unpacked ", &bytes[..bytes.len().min(4)]].concat()));
    let add = AddKernel { files: vec![file.to_path_buf()], modules, unpack: &unpack, make_default: false };
    temp.store.add_kernel(&add, &NoProgress)
}

fn put(temp: &Temp, name: &str, bytes: &[u8]) -> PathBuf {
    let path = temp.path(name);
    fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn a_package_becomes_a_bundle_with_modules_in_order() {
    let temp = temp_store();
    let bundle = add(&temp, &put(&temp, "k.deb", &deb(sample())), None).unwrap();
    let info = bundle.info();
    assert_eq!(
        (info.id.as_str(), info.arch.as_str(), info.origin.as_str()),
        ("9.9", "amd64", "linux-image-9.9 9.9-1")
    );
    let names: Vec<&str> = info.modules.iter().map(|module| module.name.as_str()).collect();
    assert_eq!(names, ["virtio", "virtio_blk", "soft", "rng_core", "virtio_rng"]);
    assert_eq!(info.built_in, ["ext4"]);
    assert!(info.absent.contains(&"squashfs".to_string()));
    let rng: Vec<&str> =
        bundle.modules_for(&["virtio_rng"]).iter().map(|module| module.name.as_str()).collect();
    assert_eq!(rng, ["virtio", "soft", "rng_core", "virtio_rng"]);
    assert_eq!(bundle.read_module(&info.modules[1]).unwrap(), module("depends=virtio"));
    assert!(bundle.read_kernel().unwrap().starts_with(b"unpacked"));
    assert!(bundle.is_default());
}

#[test]
fn bundles_are_listed_replaced_and_removed() {
    let temp = temp_store();
    assert!(temp.store.kernel(None).unwrap_err().is_not_found());
    let one = put(&temp, "one", &bzimage("1.0-one"));
    let two = put(&temp, "two", &bzimage("2.0-two"));
    drop(add(&temp, &one, None).unwrap());
    drop(add(&temp, &two, None).unwrap());
    assert_eq!(temp.store.kernel(None).unwrap().info().id, "1.0-one");
    drop(add(&temp, &one, None).unwrap());
    assert_eq!(temp.store.kernels().unwrap().len(), 2);
    temp.store.set_default_kernel("2.0-two").unwrap();
    let held = temp.store.kernel(Some("2.0-two")).unwrap();
    assert!(chain(&temp.store.remove_kernel("2.0-two").unwrap_err()).contains("in use"));
    drop(held);
    temp.store.remove_kernel("2.0-two").unwrap();
    assert_eq!(temp.store.kernel(None).unwrap().info().id, "1.0-one");
    temp.store.remove_kernel("1.0-one").unwrap();
    assert!(temp.store.kernels().unwrap().is_empty());
    assert!(temp.store.remove_kernel("1.0-one").unwrap_err().is_not_found());
    for bad in ["../images", "", ".", "default", "a/b"] {
        assert!(temp.store.kernel(Some(bad)).unwrap_err().is_not_found());
    }
    assert_eq!(fs::read_dir(temp.store.root().join("tmp")).unwrap().count(), 0);
}

/// Whoever replaces a kernel may be killed at any moment, so there must be one at every moment.
#[test]
fn a_kernel_is_replaced_at_once_and_stays_the_default() {
    let temp = temp_store();
    let kernel = put(&temp, "one", &bzimage("1.0-one"));
    drop(add(&temp, &kernel, None).unwrap());
    drop(add(&temp, &put(&temp, "two", &bzimage("2.0-two")), None).unwrap());
    let kernels = temp.store.root().join("kernels");
    std::thread::scope(|scope| {
        let replacing = scope.spawn(|| (0..100).for_each(|_| drop(add(&temp, &kernel, None).unwrap())));
        while !replacing.is_finished() {
            assert!(kernels.join("1.0-one/bundle.json").exists());
            assert_eq!(fs::read_to_string(kernels.join("default")).unwrap(), "1.0-one");
        }
    });
    assert_eq!(fs::read_dir(temp.store.root().join("tmp")).unwrap().count(), 0);
}

#[test]
fn a_broken_bundle_hides_no_other_and_can_be_removed_or_replaced() {
    let temp = temp_store();
    let one = put(&temp, "one", &bzimage("1.0-one"));
    drop(add(&temp, &one, None).unwrap());
    drop(add(&temp, &put(&temp, "two", &bzimage("2.0-two")), None).unwrap());
    for by_adding in [true, false] {
        fs::write(temp.store.root().join("kernels/1.0-one/bundle.json"), "{}").unwrap();
        let names: Vec<String> =
            temp.store.kernels().unwrap().iter().map(|bundle| bundle.info().id.clone()).collect();
        assert_eq!(names, ["2.0-two"]);
        let broken = temp.store.broken_kernels().unwrap();
        assert_eq!(broken.len(), 1);
        assert!(broken[0].0 == "1.0-one" && chain(&broken[0].1).contains("1.0-one/bundle.json"));
        if by_adding {
            drop(add(&temp, &one, None).unwrap());
            assert!(temp.store.broken_kernels().unwrap().is_empty());
        } else {
            temp.store.remove_kernel("1.0-one").unwrap();
            assert_eq!(temp.store.kernel(None).unwrap().info().id, "2.0-two");
        }
    }
}

#[test]
fn a_folder_of_modules_uses_what_depmod_wrote() {
    let temp = temp_store();
    let dir = temp.path("modules");
    fs::create_dir_all(dir.join("kernel/net")).unwrap();
    std::os::unix::fs::symlink("/", dir.join("build")).unwrap();
    for name in ["vsock", "squashfs", "helper"] {
        fs::write(dir.join(format!("kernel/net/{name}.ko")), module("depends=")).unwrap();
    }
    fs::write(dir.join("modules.dep"), "kernel/net/squashfs.ko: kernel/net/helper.ko kernel/net/vsock.ko\n")
        .unwrap();
    let bundle = add(&temp, &put(&temp, "vmlinuz", &bzimage("5.5")), Some(dir)).unwrap();
    let names: Vec<&str> = bundle.info().modules.iter().map(|module| module.name.as_str()).collect();
    assert_eq!(names, ["vsock", "helper", "squashfs"]);
}

#[test]
fn what_is_no_kernel_is_called_so() {
    let temp = temp_store();
    for (bytes, want) in [
        (b"MZ not a kernel".to_vec(), "not a kernel"),
        (vec![], "not a kernel"),
        (bzimage("1")[..0x200].to_vec(), "not a kernel"),
        (deb(Tar::new().file("./etc/x", b"")), "the package has no kernel"),
        (deb(Tar::new().file("./boot/vmlinuz-1", b"junk")), "not a kernel"),
        (deb(sample())[..400].to_vec(), "truncated package"),
        (ar(&[("control.tar.xz", b"junk")]), "control.tar"),
        (ar(&[("data.tar", b"")]), "no control.tar"),
        (b"!<arch>\n0000".to_vec(), "truncated package"),
    ] {
        let message = chain(&add(&temp, &put(&temp, "bad", &bytes), None).unwrap_err());
        assert!(message.contains(want), "{message:?} should contain {want:?}");
    }
    let junk = sample().file("./lib/modules/9.9/kernel/squashfs.ko", b"not ELF");
    assert!(
        chain(&add(&temp, &put(&temp, "bad", &deb(junk)), None).unwrap_err()).contains("not a kernel module")
    );
    let refuse = |_: &[u8]| Err("no loader".into());
    let files = vec![put(&temp, "good", &bzimage("1"))];
    let add = AddKernel { files, modules: None, unpack: &refuse, make_default: false };
    assert!(chain(&temp.store.add_kernel(&add, &NoProgress).unwrap_err()).ends_with("no loader"));
    assert!(temp.store.kernels().unwrap().is_empty());
    assert_eq!(fs::read_dir(temp.store.root().join("tmp")).unwrap().count(), 0);
}

#[test]
fn a_changed_file_of_a_bundle_is_named() {
    let temp = temp_store();
    let bundle = add(&temp, &put(&temp, "k", &bzimage("1.0")), None).unwrap();
    bundle.verify_kernel().unwrap();
    fs::write(bundle.vmlinux_path().unwrap(), b"other").unwrap();
    for error in [bundle.read_kernel().unwrap_err(), bundle.verify_kernel().unwrap_err()] {
        let message = chain(&error);
        assert!(message.starts_with("corrupt blob") && message.contains("kernels/1.0/vmlinux"), "{message}");
    }
}

#[test]
fn versions_are_read_from_the_files() {
    let found = sniff::sniff(&bzimage("6.1.0-1-cloud")).unwrap();
    assert_eq!(
        (found.kind, found.arch, found.version.as_deref()),
        (KernelKind::BzImage, "amd64", Some("6.1.0-1-cloud"))
    );
    let mut elf = vec![0u8; 64];
    elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
    elf[18] = 62;
    elf.extend_from_slice(b"Linux version %s\0LLinux version 5.4.1 (gcc)");
    let found = sniff::sniff(&elf).unwrap();
    assert_eq!((found.kind, found.arch, found.version.as_deref()), (KernelKind::Elf, "amd64", Some("5.4.1")));
}

#[test]
fn damaged_modules_end_in_an_answer() {
    let good = module("depends=a,b-c softdep=pre:~d~post:~e vermagic=1~x");
    let info = modinfo::parse(&good).unwrap();
    assert_eq!(
        (info.depends, info.soft, info.vermagic.unwrap()),
        (vec!["a".into(), "b_c".into()], vec!["d".into()], "1".into())
    );
    for cut in 0..good.len() {
        let _ = modinfo::parse(&good[..cut]);
    }
    let mut state = 7u64;
    for _ in 0..50_000 {
        let mut bad = good.clone();
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let at = (state >> 33) as usize % bad.len();
        bad[at] = (state >> 22) as u8;
        bad[0x28 + (state >> 50) as usize % 24] = (state >> 12) as u8;
        let _ = modinfo::parse(&bad);
    }
}
