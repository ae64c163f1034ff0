//! The store under bad luck: damage, other processes, death in the middle, full disks.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::process::Command;

use super::*;
use crate::tar::testing::Tar;
use crate::testing::{chain, child, child_value, files_below, is_root, noise, reference, temp_store};
use crate::{NoProgress, Progress};

fn blobs(store: &Store) -> usize {
    fs::read_dir(store.root().join("blobs/sha256")).unwrap().count()
}

fn small() -> Vec<u8> {
    Tar::new().file("bin/sh", b"#!").end()
}

#[test]
fn names_are_normalised_listed_and_moved() {
    let temp = temp_store();
    temp.import("debian", &small()).unwrap();
    temp.store.tag(&reference("debian:latest"), &reference("mine:1")).unwrap();
    let names: Vec<String> = temp.store.images().unwrap().into_iter().map(|image| image.name).collect();
    assert_eq!(names, ["debian:latest", "mine:1"]);
    let other = temp.import("debian", &Tar::new().file("x", b"y").end()).unwrap();
    assert_ne!(temp.store.image(&reference("mine:1")).unwrap().digest(), other.digest());
    assert!(temp.store.image(&reference("none")).unwrap_err().is_not_found());
    assert!(temp.store.remove(&reference("none")).unwrap_err().is_not_found());
    assert_eq!(temp.store.inspect(&reference("mine:1")).unwrap()["run"]["cmd"][0], "/bin/sh");
}

#[test]
fn removing_the_last_name_removes_everything() {
    let temp = temp_store();
    let image = temp.import("a", &small()).unwrap();
    temp.store.root_for_vm(&image, &NoProgress).unwrap();
    temp.store.tag(&reference("a"), &reference("b")).unwrap();
    drop(image);
    temp.store.remove(&reference("a")).unwrap();
    assert_eq!(blobs(&temp.store), 3);
    temp.store.remove(&reference("b")).unwrap();
    let left = files_below(temp.store.root());
    let left: Vec<_> = left.into_iter().filter(|path| !path.starts_with("locks/")).collect();
    assert_eq!(left, ["index.json", "oci-layout"]);
}

/// Keeps what the test says.
#[derive(Debug, Default)]
struct Listed(std::sync::Mutex<Vec<Digest>>);

impl Keeper for Listed {
    fn kept(&self) -> std::io::Result<Vec<Digest>> {
        Ok(self.0.lock().unwrap().clone())
    }
}

#[test]
fn what_somebody_keeps_stays_without_a_name_and_is_found_by_its_digest() {
    let mut temp = temp_store();
    let listed = std::sync::Arc::new(Listed::default());
    // What an import replaces is collected too.
    temp.store = temp.store.kept_by(listed.clone());
    let store = temp.store.clone();
    let digest = temp.import("a", &small()).unwrap().digest();
    listed.0.lock().unwrap().push(digest);
    // Its name is not taken away as if nobody used it.
    assert_eq!(store.prune(true).unwrap(), Pruned::default());
    let other = temp.import("a", &Tar::new().file("x", b"y").end()).unwrap().digest();
    store.prune(false).unwrap();
    assert_eq!(store.image_pinned(&reference("a"), digest).unwrap().digest(), digest);
    assert_eq!(store.image(&reference("a")).unwrap().digest(), other);
    store.remove(&reference("a")).unwrap();
    assert_eq!((blobs(&store), store.images().unwrap().len()), (3, 0));
    let held = store.image_pinned(&reference("a"), digest).unwrap();
    assert!(store.root_for_vm(&held, &NoProgress).is_ok());
    drop(held);
    listed.0.lock().unwrap().clear();
    assert_eq!(store.prune(false).unwrap().collected.files, 4);
    assert!(store.image_pinned(&reference("a"), digest).is_err());
}

#[test]
fn nothing_is_removed_when_nobody_can_tell_what_is_kept() {
    #[derive(Debug)]
    struct Dumb;
    impl Keeper for Dumb {
        fn kept(&self) -> std::io::Result<Vec<Digest>> {
            Err(std::io::ErrorKind::PermissionDenied.into())
        }
    }
    let temp = temp_store();
    temp.import("a", &small()).unwrap();
    let store = temp.store.clone().kept_by(std::sync::Arc::new(Dumb));
    assert!(chain(&store.prune(true).unwrap_err()).contains("find out who keeps images"));
    assert!(store.image(&reference("a")).is_ok());
}

#[test]
fn removing_spares_what_is_in_use() {
    let temp = temp_store();
    let image = temp.import("a", &small()).unwrap();
    temp.store.remove(&reference("a")).unwrap();
    // Somebody who holds the image can still use all of it.
    let root = temp.store.root_for_vm(&image, &NoProgress).unwrap();
    drop(image);
    temp.store.collect().unwrap();
    assert_eq!(blobs(&temp.store), 0);
    let mut magic = [0; 4];
    root.file().read_exact_at(&mut magic, 0).unwrap();
    assert_eq!(&magic, b"hsqs");
    assert!(root.path().exists());
    drop(root);
    assert_eq!(temp.store.collect().unwrap().files, 1);
}

#[test]
fn a_corrupt_blob_is_named_with_its_file() {
    for damage in ["flip", "cut", "gone"] {
        let temp = temp_store();
        let image = temp.import("a", &Tar::new().file("f", &[3; 100_000]).end()).unwrap();
        let digest = crate::digest_of(&image.manifest().layers()[0]).unwrap();
        let path = temp.store.blob_path(&digest);
        let mut bytes = fs::read(&path).unwrap();
        match damage {
            "flip" => {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
                fs::write(&path, &bytes).unwrap();
            }
            "cut" => fs::write(&path, &bytes[..bytes.len() - 1]).unwrap(),
            _ => fs::remove_file(&path).unwrap(),
        }
        let message = chain(&temp.store.root_for_vm(&image, &NoProgress).unwrap_err());
        let kind = if damage == "gone" { "missing blob" } else { "corrupt blob" };
        assert!(message.starts_with(kind), "{message}");
        assert!(message.contains(&digest.hex()) && message.contains("blobs/sha256"), "{message}");
        // No half of a root, and no temporary file.
        let left = files_below(temp.store.root());
        assert!(!left.iter().any(|path| path.starts_with("roots/") || path.starts_with("tmp/")), "{left:?}");
        // A good copy of the same bytes mends it.
        temp.import("a", &Tar::new().file("f", &[3; 100_000]).end()).unwrap();
        temp.store.root_for_vm(&temp.store.image(&reference("a")).unwrap(), &NoProgress).unwrap();
    }
}

#[test]
fn corrupt_documents_hide_no_other_image() {
    let temp = temp_store();
    temp.import("good", &small()).unwrap();
    let bad = temp.import("bad", &Tar::new().file("x", b"y").end()).unwrap();
    fs::write(temp.store.blob_path(&bad.digest()), b"{").unwrap();
    drop(bad);
    let list = temp.store.images().unwrap();
    assert!(list[0].broken.as_ref().unwrap().contains("corrupt blob"));
    assert_eq!(list[1].broken, None);
    temp.store.remove(&reference("bad")).unwrap();
    assert_eq!(temp.store.images().unwrap().len(), 1);
    fs::write(temp.store.root().join("index.json"), b"not json").unwrap();
    assert!(chain(&temp.store.images().unwrap_err()).contains("index.json"));
    fs::write(temp.store.root().join("oci-layout"), br#"{"imageLayoutVersion":"9.0.0"}"#).unwrap();
    assert!(Store::open(temp.store.root()).is_err());
}

/// Run in other processes by the tests below.
#[test]
#[ignore = "a part of other tests"]
fn other_process() {
    let Some(value) = child_value() else { return };
    let (what, rest) = value.split_once(' ').unwrap();
    let (root, argument) = rest.split_once(' ').unwrap();
    let store = Store::open(root).unwrap();
    match what {
        "names" => {
            for i in 0..20 {
                let file = std::path::Path::new(root).join(format!("../{argument}.tar"));
                fs::write(&file, Tar::new().file("who", argument.as_bytes()).file("n", &[i]).end()).unwrap();
                store.import(&file, &reference(&format!("{argument}-{i}")), &NoProgress).unwrap();
                store.import(&file, &reference("shared"), &NoProgress).unwrap();
                if i % 2 == 1 {
                    store.remove(&reference(&format!("{argument}-{}", i - 1))).unwrap();
                }
            }
        }
        "root" => {
            let image = store.image(&reference(argument)).unwrap();
            let root = store.root_for_vm(&image, &Said).unwrap();
            let mut magic = [0; 4];
            root.file().read_exact_at(&mut magic, 0).unwrap();
            assert_eq!(&magic, b"hsqs");
        }
        "hang" => {
            // Takes in a pipe that never ends: the parent kills us in the middle of it.
            let made = crate::archive::Made::now("test".into(), &[]);
            let pipe = fs::File::open(argument).unwrap();
            let _ = store.import_stream(pipe, 0, "pipe", &reference("hung"), &made, |_| Ok(()), &NoProgress);
        }
        _ => unreachable!(),
    }
}

struct Said;

impl Progress for Said {
    fn step(&self, text: &str) {
        println!("step {text}");
    }
    fn bytes(&self, _done: u64, _total: Option<u64>) {}
}

const OTHER: &str = "store::tests::other_process";

#[test]
fn processes_that_add_and_remove_at_once_lose_nothing() {
    let temp = temp_store();
    let root = temp.store.root().display();
    let children: Vec<_> =
        ["a", "b", "c"].iter().map(|who| child(OTHER, &format!("names {root} {who}"))).collect();
    for child in children {
        let out = child.wait_with_output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }
    let images = temp.store.images().unwrap();
    // Of each 20 names, the ten odd ones stay.
    assert_eq!(images.len(), 3 * 10 + 1);
    for image in images {
        assert_eq!(image.broken, None);
        let image = temp.store.image(&reference(&image.name)).unwrap();
        temp.store.root_for_vm(&image, &NoProgress).unwrap();
    }
    assert_eq!(fs::read_dir(temp.store.root().join("tmp")).unwrap().count(), 0);
}

#[test]
fn one_of_many_processes_makes_the_root() {
    let temp = temp_store();
    temp.import("a", &Tar::new().file("f", &[5; 20_000_000]).end()).unwrap();
    let root = temp.store.root().display().to_string();
    let children: Vec<_> = (0..4).map(|_| child(OTHER, &format!("root {root} a"))).collect();
    let mut builds = 0;
    for child in children {
        let out = child.wait_with_output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        builds += usize::from(String::from_utf8_lossy(&out.stdout).contains("step apply layer"));
    }
    assert_eq!(builds, 1);
}

#[test]
fn a_killed_process_leaves_nothing_after_the_next_open() {
    let temp = temp_store();
    let fifo = temp.path("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let root = temp.store.root().display().to_string();
    let mut hung = child(OTHER, &format!("hang {root} {}", fifo.display()));
    let mut pipe = fs::File::options().write(true).open(&fifo).unwrap();
    let noise = noise(4_000_000);
    let tar = Tar::new().file("f", &noise).bare();
    // More than fits in the pipe has been taken in when this returns.
    pipe.write_all(&tar[..3_000_000]).unwrap();
    assert_eq!(fs::read_dir(temp.store.root().join("tmp")).unwrap().count(), 1);
    // While it lives, its file is left alone.
    Store::open(temp.store.root()).unwrap();
    assert_eq!(fs::read_dir(temp.store.root().join("tmp")).unwrap().count(), 1);
    hung.kill().unwrap();
    hung.wait().unwrap();
    let store = Store::open(temp.store.root()).unwrap();
    assert_eq!(fs::read_dir(store.root().join("tmp")).unwrap().count(), 0);
    assert_eq!((store.images().unwrap().len(), blobs(&store)), (0, 0));
    temp.import("after", &small()).unwrap();
}

#[test]
fn a_full_disk_is_one_clear_error_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mount =
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=6m", "tmpfs"]).arg(dir.path()).output();
    if !is_root() || !mount.is_ok_and(|out| out.status.success()) {
        println!("skipped: tmpfs cannot be mounted here");
        return;
    }
    let result = std::panic::catch_unwind(|| {
        let store = Store::open(dir.path().join("store")).unwrap();
        let noise = noise(3_500_000);
        let outside = tempfile::tempdir().unwrap();
        let import = |name: &str, tar: &[u8]| {
            let file = outside.path().join("in.tar");
            fs::write(&file, tar).unwrap();
            store.import(&file, &reference(name), &NoProgress)
        };
        let message =
            chain(&import("big", &Tar::new().file("a", &noise).file("b", &noise[1..]).end()).unwrap_err());
        assert!(message.starts_with("write ") && message.contains("No space left on device"), "{message}");
        assert_eq!((blobs(&store), fs::read_dir(store.root().join("tmp")).unwrap().count()), (0, 0));
        let image = import("fits", &Tar::new().file("a", &noise).end()).unwrap();
        let message = chain(&store.root_for_vm(&image, &NoProgress).unwrap_err());
        assert!(message.contains("No space left on device"), "{message}");
        let save = chain(
            &store
                .save(
                    std::slice::from_ref(&image),
                    &dir.path().join("out.tar"),
                    crate::SaveFormat::OciArchive,
                    &NoProgress,
                )
                .unwrap_err(),
        );
        assert!(save.contains("out.tar") && save.contains("No space left on device"), "{save}");
        assert_eq!(fs::read_dir(store.root().join("tmp")).unwrap().count(), 0);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!(store.images().unwrap().len(), 1);
    });
    assert!(Command::new("umount").arg(dir.path()).status().unwrap().success());
    result.unwrap();
}

#[test]
fn no_permission_is_one_clear_error() {
    if is_root() {
        println!("skipped: root may do everything");
        let message = chain(&Store::open("/proc/strata").unwrap_err());
        assert!(message.starts_with("create /proc/strata"), "{message}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o500)).unwrap();
    let message = chain(&Store::open(dir.path().join("store")).unwrap_err());
    assert!(message.contains("ermission denied"), "{message}");
}

#[test]
fn what_is_not_an_archive_changes_nothing() {
    let temp = temp_store();
    let whole = Tar::new().file("f", &[1; 3000]).end();
    let mut unmarked = whole.clone();
    unmarked.truncate(whole.len() - 1024);
    for bytes in [&b""[..], b"hello", &whole[..2000], &unmarked, &[0x1f, 0x8b, 0, 0]] {
        let message = chain(&temp.import("bad", bytes).unwrap_err());
        assert!(message.starts_with("read ") && message.contains("in.tar"), "{message}");
    }
    assert_eq!((blobs(&temp.store), temp.store.images().unwrap().len()), (0, 0));
    let mut pipe = Vec::new();
    fs::File::open(temp.path("in.tar")).unwrap().read_to_end(&mut pipe).unwrap();
    let missing =
        chain(&temp.store.import(&temp.path("none.tar"), &reference("x"), &NoProgress).unwrap_err());
    assert!(missing.starts_with("open ") && missing.contains("No such file"), "{missing}");
}
