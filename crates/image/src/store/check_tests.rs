//! Stores that were damaged, and what becomes of them.

use std::fs;

use super::*;
use crate::NoProgress;
use crate::tar::testing::Tar;
use crate::testing::{Temp, chain, files_below, reference, temp_store};

fn two_images() -> Temp {
    let temp = temp_store();
    temp.import("good", &Tar::new().file("a", b"1").end()).unwrap();
    temp.import("bad", &Tar::new().file("b", b"2").end()).unwrap();
    let image = temp.store.image(&reference("bad")).unwrap();
    temp.store.root_for_vm(&image, &NoProgress).unwrap();
    temp
}

fn layer_path(temp: &Temp, name: &str) -> std::path::PathBuf {
    let image = temp.store.image(&reference(name)).unwrap();
    temp.store.blob_path(&digest_of(&image.manifest().layers()[0]).unwrap())
}

fn what(checked: &Checked) -> String {
    checked.problems.iter().map(|problem| format!("{} [{:?}]\n", problem.what, problem.done)).collect()
}

/// Checks without and with mending, and that nothing is left to mend.
fn mended(temp: &Temp) -> Checked {
    let before = files_below(temp.store.root());
    let looked = temp.store.check(false, &NoProgress).unwrap();
    assert!(!looked.is_whole() && looked.problems.iter().all(|problem| problem.done.is_none()));
    assert_eq!(files_below(temp.store.root()), before, "looking changes nothing");
    let checked = temp.store.check(true, &NoProgress).unwrap();
    assert!(checked.is_whole(), "{}", what(&checked));
    let again = temp.store.check(true, &NoProgress).unwrap();
    assert!(again.problems.is_empty(), "{}", what(&again));
    checked
}

#[test]
fn a_whole_store_has_no_problems() {
    let temp = two_images();
    let checked = temp.store.check(true, &NoProgress).unwrap();
    assert_eq!((checked.blobs, checked.images, checked.kernels), (6, 2, 0));
    assert!(checked.problems.is_empty() && checked.bytes > 1000, "{checked:?}");
}

#[test]
fn corrupt_and_missing_blobs_take_their_images_with_them() {
    for damage in ["flip", "cut", "gone"] {
        let temp = two_images();
        let path = layer_path(&temp, "bad");
        let mut bytes = fs::read(&path).unwrap();
        match damage {
            "flip" => {
                bytes[20] ^= 1;
                fs::write(&path, &bytes).unwrap();
            }
            "cut" => fs::write(&path, &bytes[1..]).unwrap(),
            _ => fs::remove_file(&path).unwrap(),
        }
        let checked = mended(&temp);
        assert!(what(&checked).contains("image bad:latest: its part sha256:"), "{}", what(&checked));
        let advice = checked.problems.last().unwrap().advice.as_deref().unwrap();
        assert!(advice.contains("strata pull bad:latest"), "{advice}");
        assert_eq!(temp.store.images().unwrap().len(), 1);
        temp.store.image(&reference("good")).unwrap();
        // What is left of it serves whoever brings it again, and goes when nobody does.
        let left = |temp: &Temp| fs::read_dir(temp.store.root().join("blobs/sha256")).unwrap().count();
        assert_eq!(left(&temp), 5);
        temp.store.collect().unwrap();
        assert_eq!(left(&temp), 3);
    }
}

#[test]
fn broken_documents_are_no_images() {
    let temp = two_images();
    let digest = temp.store.image(&reference("bad")).unwrap().digest();
    fs::write(temp.store.blob_path(&digest), b"{}").unwrap();
    assert!(what(&mended(&temp)).contains("its manifest"));
    // Whole as a blob, and yet no manifest.
    let temp = two_images();
    let adding = temp.store.adding().unwrap();
    let manifest = temp.store.add_blob(&adding, b"{\"schemaVersion\":2}").unwrap();
    drop(adding);
    let path = temp.store.root().join("index.json");
    let index = fs::read_to_string(&path).unwrap();
    let bad = temp.store.image(&reference("bad")).unwrap().digest();
    fs::write(&path, index.replace(&bad.to_string(), &manifest.to_string())).unwrap();
    assert!(what(&mended(&temp)).contains("is none"));
}

#[test]
fn an_index_that_is_none_gives_its_images_new_names() {
    let temp = two_images();
    let digests: Vec<String> = temp.store.images().unwrap().into_iter().map(|image| image.digest).collect();
    fs::write(temp.store.root().join("index.json"), b"{\"schemaVersion\":2,").unwrap();
    assert!(chain(&temp.store.images().unwrap_err()).contains("index.json"));
    let checked = mended(&temp);
    assert!(what(&checked).contains("set aside as"), "{}", what(&checked));
    let images = temp.store.images().unwrap();
    let mut found: Vec<String> = images.iter().map(|image| image.digest.clone()).collect();
    let mut wanted = digests.clone();
    found.sort();
    wanted.sort();
    assert_eq!(found, wanted);
    assert!(images.iter().all(|image| image.name.starts_with("recovered/")), "{images:?}");
    assert!(temp.store.root().join("index.json.broken").exists());
}

#[test]
fn files_that_belong_nowhere_go() {
    let temp = two_images();
    let root = temp.store.root();
    fs::write(root.join("blobs/sha256/README"), b"hello").unwrap();
    fs::write(root.join("partial/x"), b"hello").unwrap();
    let made = fs::read_dir(root.join("roots")).unwrap().next().unwrap().unwrap().path();
    let bytes = fs::read(&made).unwrap();
    fs::write(&made, &bytes[..bytes.len() - 4096]).unwrap();
    let other = made.with_file_name(format!("{}-v2.squashfs", "0".repeat(64)));
    fs::write(&other, &bytes).unwrap();
    // One that somebody runs on stays.
    let pinned = made.with_file_name(format!("{}-v2.squashfs", "1".repeat(64)));
    fs::write(&pinned, &bytes).unwrap();
    let pin = files::open_pinned(&pinned).unwrap().unwrap();
    let checked = mended(&temp);
    assert_eq!(checked.problems.len(), 4, "{}", what(&checked));
    assert!(pinned.exists() && !made.exists() && !other.exists());
    drop(pin);
}

#[test]
fn a_root_whose_bytes_changed_is_found_and_made_again() {
    let temp = two_images();
    let image = temp.store.image(&reference("bad")).unwrap();
    let held = temp.store.root_for_vm(&image, &NoProgress).unwrap();
    let (path, whole) = (held.path().to_owned(), fs::read(held.path()).unwrap());
    // The first byte of a file, one of the tables, one of the digest.
    for at in [96, whole.len() - 4096 - 4000, whole.len() - 4096 + 30] {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        fs::write(&path, &bytes).unwrap();
        let checked = mended(&temp);
        assert!(what(&checked).contains("bytes are not those that were written"), "{}", what(&checked));
        drop(temp.store.root_for_vm(&image, &NoProgress).unwrap());
        assert!(fs::read(&path).unwrap() == whole, "at {at}");
    }
    drop(held);
}

#[test]
fn a_store_that_is_being_added_to_is_left_alone() {
    let temp = two_images();
    let incoming = temp.store.incoming().unwrap();
    let message = chain(&temp.store.check(true, &NoProgress).unwrap_err());
    assert!(message.contains("images are being added"), "{message}");
    assert!(chain(&temp.store.prune(false).unwrap_err()).contains("images are being added"));
    drop(incoming);
    temp.store.check(true, &NoProgress).unwrap();
}

#[test]
fn pruning_takes_what_nobody_uses() {
    let temp = two_images();
    fs::write(temp.store.root().join("partial").join("0".repeat(64)), b"hello").unwrap();
    let pruned = temp.store.prune(false).unwrap();
    assert_eq!((pruned.names.len(), pruned.collected.files), (0, 1));
    let held = temp.store.image(&reference("good")).unwrap();
    let pruned = temp.store.prune(true).unwrap();
    assert_eq!(pruned.names, [reference("bad")]);
    assert_eq!(pruned.collected.files, 4);
    assert_eq!(temp.store.images().unwrap().len(), 1);
    drop(held);
    assert_eq!(temp.store.prune(true).unwrap().names, [reference("good")]);
    let left = files_below(temp.store.root());
    assert!(!left.iter().any(|path| path.starts_with("blobs/")), "{left:?}");
    // A name whose manifest is gone is of no use to anybody.
    temp.import("x", &Tar::new().file("a", b"1").end()).unwrap();
    let digest = temp.store.image(&reference("x")).unwrap().digest();
    fs::remove_file(temp.store.blob_path(&digest)).unwrap();
    assert_eq!(temp.store.prune(true).unwrap().names, [reference("x")]);
}
