//! Judged by two readers that are not ours: `unsquashfs`, and as root the kernel.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use crate::tar::testing::Tar;
use crate::testing::{is_root, noise, reference, temp_store};
use crate::{NoProgress, RootFile};

fn unsquashfs(args: &[&str], file: &RootFile) -> Option<String> {
    let mut command = Command::new("unsquashfs");
    // Options, file, then names; file attributes of every kind are listed but not made.
    let out = command.args(args).arg(file.path()).output();
    let Ok(out) = out else {
        println!("skipped: unsquashfs is not installed");
        return None;
    };
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{text}");
    Some(text)
}

/// Runs `check` on the file system as the kernel sees it, where that may be mounted.
fn mounted(file: &RootFile, check: impl FnOnce(&Path)) {
    let dir = tempfile::tempdir().unwrap();
    let mount = Command::new("mount")
        .args(["-t", "squashfs", "-o", "loop,ro"])
        .arg(file.path())
        .arg(dir.path())
        .output();
    if !is_root() || !mount.is_ok_and(|out| out.status.success()) {
        println!("skipped: squashfs cannot be mounted here");
        return;
    }
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(dir.path())));
    assert!(Command::new("umount").arg(dir.path()).status().unwrap().success());
    result.unwrap();
}

fn root_of(layers: &[u8]) -> (crate::testing::Temp, RootFile) {
    let temp = temp_store();
    let image = temp.import("t", layers).unwrap();
    let root = temp.store.root_for_vm(&image, &NoProgress).unwrap();
    (temp, root)
}

fn everything() -> Vec<u8> {
    let mut sparse = vec![0u8; 1 << 20];
    sparse[300_000..300_010].fill(9);
    let long = format!("long/{}", "n".repeat(255));
    Tar::new()
        .mode(0o1777)
        .dir("./")
        .dir("tmp")
        .mode(0o4755)
        .owner(0, 42)
        .file("suid", &[7u8; 200_000])
        .mode(0o640)
        .owner(1_000_000, 2_000_000)
        .file("sparse", &sparse)
        .file("zeros", &[0u8; 300_000])
        .link("zz/hard", "suid")
        .symlink("sym", "a/../b c")
        .device("tty", b'3', 5, 0)
        .device("disk", b'4', 259, 0x12345)
        .device("pipe", b'6', 0, 0)
        .file("empty", b"")
        .pax(&[(
            "SCHILY.xattr.security.capability",
            &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        )])
        .file("ping", b"x")
        .pax(&[("SCHILY.xattr.user.name", b"value"), ("SCHILY.xattr.user.big", &[b'b'; 9000])])
        .dir("xdir")
        .pax(&[("SCHILY.xattr.trusted.t", b"1")])
        .symlink("xsym", "y")
        .pax(&[("path", long.as_bytes())])
        .file("x", b"long")
        .end()
}

#[test]
fn every_kind_of_inode_is_read_by_unsquashfs() {
    let (_temp, root) = root_of(&everything());
    let Some(text) = unsquashfs(&["-llnumeric"], &root) else { return };
    let find = |name: &str| {
        text.lines().find(|line| line.contains(name)).unwrap_or_else(|| panic!("{name}: {text}"))
    };
    assert!(find("/suid").starts_with("-rwsr-xr-x 0/42"));
    assert!(find("/zz/hard").starts_with("-rwsr-xr-x 0/42"));
    assert!(find("/sparse").contains("1000000/2000000") && find("/sparse").contains("1048576"));
    assert!(find("/tty").starts_with("crw-r-----") && find("/tty").contains("5,  0"));
    // It cuts device numbers to eight bits; the kernel's word on them is below.
    assert!(find("/disk").starts_with("brw-r-----"));
    assert!(find("/pipe").starts_with("prw"));
    assert!(find("/sym ").ends_with("/sym -> a/../b c"));
    assert!(find("/tmp").starts_with("drwxrwxrwt"));
    assert!(find("/nnnn").contains(&"n".repeat(255)));
    let zeros = unsquashfs(&["-s"], &root).unwrap();
    assert!(zeros.contains("valid SQUASHFS 4:0"), "{zeros}");
}

#[test]
fn every_kind_of_inode_is_read_by_the_kernel() {
    let (_temp, root) = root_of(&everything());
    mounted(&root, |dir| {
        let meta = |name: &str| fs::symlink_metadata(dir.join(name)).unwrap();
        assert_eq!(meta("").mode() & 0o7777, 0o1777);
        assert_eq!((meta("suid").mode() & 0o7777, meta("suid").gid(), meta("suid").nlink()), (0o4755, 42, 2));
        assert_eq!(meta("suid").ino(), meta("zz/hard").ino());
        assert_eq!(fs::read(dir.join("zz/hard")).unwrap(), [7u8; 200_000]);
        assert_eq!((meta("sparse").uid(), meta("sparse").mtime()), (1_000_000, 1_700_000_000));
        let sparse = fs::read(dir.join("sparse")).unwrap();
        assert!(sparse.len() == 1 << 20 && sparse.iter().map(|&b| u32::from(b)).sum::<u32>() == 90);
        assert_eq!(fs::read(dir.join("zeros")).unwrap(), [0u8; 300_000]);
        assert_eq!(fs::read_link(dir.join("sym")).unwrap(), Path::new("a/../b c"));
        let makedev = rustix::fs::makedev;
        assert!(meta("tty").file_type().is_char_device() && meta("tty").rdev() == makedev(5, 0));
        assert!(meta("disk").file_type().is_block_device() && meta("disk").rdev() == makedev(259, 0x12345));
        assert!(meta("pipe").file_type().is_fifo());
        let mut value = vec![0u8; 10_000];
        let mut xattr = |name: &str, key: &str| {
            let len = rustix::fs::lgetxattr(dir.join(name), key, &mut value[..]).unwrap();
            value[..len].to_vec()
        };
        assert_eq!(xattr("ping", "security.capability").len(), 20);
        assert_eq!(xattr("xdir", "user.name"), b"value");
        assert_eq!(xattr("xdir", "user.big"), [b'b'; 9000]);
        assert_eq!(xattr("xsym", "trusted.t"), b"1");
        assert_eq!(fs::read(dir.join("long").join("n".repeat(255))).unwrap(), b"long");
    });
}

#[test]
fn large_folders_are_found_by_name() {
    let mut tar = Tar::new().dir("d");
    let count = 20_000;
    for i in 0..count {
        // Names of many lengths, hard links that point far away, folders between files.
        let name = format!("d/{:x}{}", i * 7919 % count, "y".repeat(i % 60));
        tar = match i % 97 {
            0 => tar.dir(&name),
            1 if i > 97 => tar.link(&name, "d/first"),
            _ => tar.file(&name, &[1]),
        };
        if i == 0 {
            tar = tar.file("d/first", b"1");
        }
    }
    let (_temp, root) = root_of(&tar.end());
    mounted(&root, |dir| {
        let names: Vec<_> =
            fs::read_dir(dir.join("d")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), count + 1);
        for name in names {
            fs::symlink_metadata(dir.join("d").join(&name)).unwrap_or_else(|e| panic!("{name:?}: {e}"));
        }
        assert!(!dir.join("d/zzz").exists());
    });
}

#[test]
fn deep_folders_and_an_empty_image_are_read() {
    let mut path = String::new();
    (0..500).for_each(|_| path.push_str("d/"));
    let (_temp, root) = root_of(&Tar::new().pax(&[("path", path.as_bytes())]).dir("x").end());
    mounted(&root, |dir| assert!(dir.join(&path).is_dir()));
    let (_temp, root) = root_of(&Tar::new().end());
    unsquashfs(&["-ll"], &root);
    mounted(&root, |dir| assert_eq!(fs::read_dir(dir).unwrap().count(), 0));
    assert_eq!(root.size_bytes() % 4096, 0);
}

#[test]
fn replaced_files_take_no_space_and_equal_images_are_equal_files() {
    let temp = temp_store();
    let noise = noise(1_000_000);
    let image = temp.import("a", &Tar::new().file("f", &noise).file("f", b"small").end()).unwrap();
    let root = temp.store.root_for_vm(&image, &NoProgress).unwrap();
    assert!(root.size_bytes() > 1_000_000);
    assert!(root.file().metadata().unwrap().blocks() * 512 < 200_000);
    let first = fs::read(root.path()).unwrap();
    fs::remove_file(root.path()).unwrap();
    let image = temp.store.image(&reference("a")).unwrap();
    let again = temp.store.root_for_vm(&image, &NoProgress).unwrap();
    assert!(fs::read(again.path()).unwrap() == first, "two builds differ");
}

/// A sparse file in a pax archive: `segments` are (offset, bytes).
fn sparse(tar: Tar, name: &str, size: u64, segments: &[(u64, &[u8])]) -> Tar {
    let map: Vec<String> =
        segments.iter().map(|(offset, bytes)| format!("{offset},{}", bytes.len())).collect();
    let stored: Vec<u8> = segments.iter().flat_map(|(_, bytes)| bytes.iter().copied()).collect();
    let (size, map) = (size.to_string(), map.join(","));
    tar.pax(&[("GNU.sparse.size", size.as_bytes()), ("GNU.sparse.map", map.as_bytes())]).file(name, &stored)
}

#[test]
fn holes_stay_holes_wherever_they_begin_and_end() {
    // 240 GiB of holes: read as bytes this would take minutes.
    let huge = 240 << 30;
    let tail = huge - 3;
    let mut tar = sparse(Tar::new(), "huge", huge, &[(1 << 37, b"middle"), (tail, b"end")]);
    tar = sparse(tar, "begins", 500_000, &[(0, &[7; 131_073])]);
    tar = sparse(tar, "ends", 500_001, &[(499_990, b"0123456789")]);
    tar = sparse(tar, "after", 10, &[(9, b"x")]);
    let (_temp, root) = root_of(&tar.file("last", b"plain").end());
    assert!(root.file().metadata().unwrap().blocks() * 512 < 16 << 20);
    mounted(&root, |dir| {
        let open = |name: &str| fs::File::open(dir.join(name)).unwrap();
        let read = |name: &str, at: u64, len: usize| {
            let mut bytes = vec![1; len];
            std::os::unix::fs::FileExt::read_exact_at(&open(name), &mut bytes, at).unwrap();
            bytes
        };
        assert_eq!(fs::metadata(dir.join("huge")).unwrap().len(), huge);
        assert_eq!(read("huge", (1 << 37) - 2, 10), b"\0\0middle\0\0");
        assert_eq!(read("huge", tail - 2, 5), b"\0\0end");
        let begins = fs::read(dir.join("begins")).unwrap();
        assert!(begins.len() == 500_000 && begins[..131_073].iter().all(|&b| b == 7));
        assert!(begins[131_073..].iter().all(|&b| b == 0));
        let ends = fs::read(dir.join("ends")).unwrap();
        assert!(ends.len() == 500_001 && ends[..499_990].iter().all(|&b| b == 0));
        assert_eq!(&ends[499_990..], b"0123456789\0");
        assert_eq!(fs::read(dir.join("after")).unwrap(), b"\0\0\0\0\0\0\0\0\0x");
        assert_eq!(fs::read(dir.join("last")).unwrap(), b"plain");
    });
}

#[test]
fn a_root_that_was_cut_short_is_made_again() {
    let temp = temp_store();
    let image = temp.import("t", &Tar::new().file("f", &noise(100_000)).end()).unwrap();
    let root = temp.store.root_for_vm(&image, &NoProgress).unwrap();
    let (path, whole) = (root.path().to_owned(), fs::read(root.path()).unwrap());
    drop(root);
    for len in [0, 50, 4096, whole.len() - 4096] {
        fs::remove_file(&path).unwrap();
        fs::write(&path, &whole[..len]).unwrap();
        drop(temp.store.root_for_vm(&image, &NoProgress).unwrap());
        assert!(fs::read(&path).unwrap() == whole, "cut at {len}");
    }
}
