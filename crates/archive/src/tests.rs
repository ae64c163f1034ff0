use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::prelude::rust_2024::*;
use std::vec;

use rustix::fd::{AsFd, OwnedFd};

use crate::{Cause, Overwrite, Owner, Request, Result, Roots, Stat};

/// Asks for something in `root`, with `input` to read; gives what was written.
fn ask(root: &Path, upper: Option<&Path>, request: &Request, input: &[u8]) -> Result<Vec<u8>> {
    let root: OwnedFd = fs::File::open(root).unwrap().into();
    let upper = || upper.map(|path| OwnedFd::from(fs::File::open(path).unwrap()));
    let user = |name: &str| (name == "web").then_some((33, 34));
    let roots = Roots { root: root.as_fd(), upper: &upper, user: &user };
    let words = request.to_words();
    let words: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
    assert_eq!(Request::parse(&words).as_ref(), Some(request));
    std::thread::scope(|scope| {
        let (from, mut to) = std::io::pipe().unwrap();
        let (mut read, write) = std::io::pipe().unwrap();
        scope.spawn(move || to.write_all(input));
        let written = scope.spawn(move || {
            let mut bytes = Vec::new();
            read.read_to_end(&mut bytes).unwrap();
            bytes
        });
        let done = request.run(&roots, from.as_fd(), write.as_fd());
        drop((write, from));
        let written = written.join().unwrap();
        done.map(|()| written)
    })
}

fn put(path: &str) -> Request {
    Request::Put { path: path.into(), overwrite: Overwrite::Anything, owner: Owner::Archive }
}

fn get(path: &str) -> Request {
    Request::Get { path: path.into(), name: None }
}

fn names(archive: &[u8]) -> Vec<String> {
    let mut archive = tar::Archive::new(archive);
    let name = |entry: std::io::Result<tar::Entry<'_, &[u8]>>| {
        String::from_utf8(entry.unwrap().path_bytes().into_owned()).unwrap()
    };
    archive.entries().unwrap().map(name).collect()
}

/// An archive of these: name, flag, link or contents.
fn archive(entries: &[(&str, u8, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, flag, text) in entries {
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(tar::EntryType::new(*flag));
        header.set_mode(0o644);
        header.set_uid(rustix::process::geteuid().as_raw().into());
        header.set_gid(rustix::process::getegid().as_raw().into());
        header.set_mtime(1_000_000);
        let data = if *flag == b'0' { text.as_bytes() } else { b"" };
        header.set_size(data.len() as u64);
        if *flag != b'0' {
            header.as_mut_bytes()[157..157 + text.len()].copy_from_slice(text.as_bytes());
        }
        header.set_cksum();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(data);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

#[test]
fn what_is_packed_is_unpacked_as_it_was() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let long = "x".repeat(150);
    let tree = from.path().join("tree");
    fs::create_dir_all(tree.join(&long)).unwrap();
    fs::write(tree.join("large"), vec![7; 300_000]).unwrap();
    fs::write(tree.join(&long).join("ü"), "text").unwrap();
    fs::set_permissions(tree.join("large"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::hard_link(tree.join("large"), tree.join("other")).unwrap();
    symlink("/absolute/target", tree.join("link")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, tree.join("pipe"), rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
    let packed = ask(from.path(), None, &get("/tree"), b"").unwrap();
    assert_eq!(names(&packed)[..2], ["tree/", "tree/large"]);
    ask(to.path(), None, &put("/"), &packed).unwrap();
    let there = to.path().join("tree");
    let large = fs::metadata(there.join("large")).unwrap();
    assert_eq!((large.len(), large.mode() & 0o7777, large.nlink()), (300_000, 0o4751, 2));
    assert_eq!(large.ino(), fs::metadata(there.join("other")).unwrap().ino());
    assert_eq!(large.mtime(), fs::metadata(tree.join("large")).unwrap().mtime());
    let folders = [&tree, &there].map(|path| fs::metadata(path).unwrap().mtime());
    assert_eq!(folders[0], folders[1]);
    assert_eq!(fs::read_to_string(there.join(&long).join("ü")).unwrap(), "text");
    assert_eq!(fs::read_link(there.join("link")).unwrap(), Path::new("/absolute/target"));
    assert!(fs::symlink_metadata(there.join("pipe")).unwrap().file_type().is_fifo());
}

#[test]
fn names_begin_with_what_was_asked_for() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("etc")).unwrap();
    fs::write(root.path().join("etc/file"), "1").unwrap();
    symlink("etc", root.path().join("link")).unwrap();
    let got = |path: &str| ask(root.path(), None, &get(path), b"").map(|bytes| names(&bytes));
    assert_eq!(got("/etc").unwrap(), ["etc/", "etc/file"]);
    assert_eq!(got("etc/.").unwrap(), ["./", "./file"]);
    assert_eq!(got("/etc/../etc/file").unwrap(), ["file"]);
    assert_eq!(got("/link").unwrap(), ["link"]);
    assert_eq!(got("/link/").unwrap(), ["link/", "link/file"]);
    assert_eq!(got("/").unwrap(), ["/", "/etc/", "/etc/file", "/link"]);
    assert_eq!(got("/etc/none").unwrap_err().code(), 2);
    assert_eq!(got("/etc/file/").unwrap_err().code(), 3);
    let renamed = Request::Get { path: b"/etc".to_vec(), name: Some(b"new".to_vec()) };
    assert_eq!(names(&ask(root.path(), None, &renamed, b"").unwrap()), ["new/", "new/file"]);
    let stat =
        |path: &str| Stat::parse(&ask(root.path(), None, &Request::Stat(path.into()), b"").unwrap()).unwrap();
    let link = stat("/link");
    assert_eq!(
        (&link.name[..], &link.link[..], link.mode & 0o170_000),
        (&b"link"[..], &b"/etc"[..], 0o120_000)
    );
    assert_eq!((&stat("/").name[..], stat("etc/file").size), (&b"/"[..], 1));
    symlink("loop", root.path().join("loop")).unwrap();
    assert!(ask(root.path(), None, &Request::Stat(b"loop".to_vec()), b"").is_err());
    assert_eq!(names(&ask(root.path(), None, &Request::Export, b"").unwrap())[1..3], ["etc/", "etc/file"]);
}

#[test]
fn nothing_leads_out_of_the_root() {
    let (outer, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let root = outer.path().join("root");
    fs::create_dir(&root).unwrap();
    fs::write(outer.path().join("secret"), "secret").unwrap();
    symlink(outer.path(), root.join("out")).unwrap();
    symlink("../..", root.join("up")).unwrap();
    symlink("/proc/self/root", root.join("magic")).unwrap();
    let got = |path: &str| ask(&root, None, &get(path), b"");
    assert_eq!(got("/out/secret").unwrap_err().cause, Cause::Os(rustix::io::Errno::NOENT));
    assert_eq!(names(&got("/up/").unwrap())[..2], ["up/", "up/magic"]);
    assert!(got("/magic/etc").is_err() && got("/../secret").is_err());

    let evil = other.path().to_str().unwrap();
    for entries in [
        vec![("../a", b'0', "1"), ("/b", b'0', "2"), ("x/../../../c", b'0', "3")],
        vec![("l", b'2', evil), ("l/d", b'0', "4")],
        vec![("h", b'1', "../secret")],
        vec![("m", b'2', "/proc/self/cwd"), ("m/e", b'0', "5")],
    ] {
        let _ = ask(&root, None, &put("/"), &archive(&entries));
        assert_eq!(fs::read_dir(outer.path()).unwrap().count(), 2, "{entries:?}");
        assert_eq!(fs::read_dir(other.path()).unwrap().count(), 0, "{entries:?}");
    }
    assert_eq!(fs::read_to_string(root.join("a")).unwrap(), "1");
    assert!(!root.join("h").exists() && !Path::new("e").exists());
    // A device of the host's root directory is no better than a link.
    assert!(ask(&root, None, &put("/out"), &archive(&[("f", b'0', "")])).is_err());
}

#[test]
fn a_folder_and_a_file_take_each_others_place_only_if_they_may() {
    let root = tempfile::tempdir().unwrap();
    let strict = Request::Put { path: b"/".to_vec(), overwrite: Overwrite::SameKind, owner: Owner::Archive };
    fs::create_dir_all(root.path().join("d/e/f")).unwrap();
    fs::write(root.path().join("file"), "1").unwrap();
    for entry in [("d", b'0', "x"), ("file", b'5', "")] {
        let error = ask(root.path(), None, &strict, &archive(&[entry])).unwrap_err();
        assert!(error.is_other_kind() && error.code() == 3, "{error:?}");
    }
    assert!(root.path().join("d/e/f").is_dir());
    ask(root.path(), None, &put("/"), &archive(&[("d", b'0', "x"), ("file/", b'5', "")])).unwrap();
    assert!(root.path().join("d").is_file() && root.path().join("file").is_dir());
    assert_eq!(ask(root.path(), None, &put("/none"), &archive(&[])).unwrap_err().code(), 2);
    assert_eq!(ask(root.path(), None, &put("/d"), &archive(&[])).unwrap_err().code(), 3);
    let owned = Request::Put {
        path: b"/".to_vec(),
        overwrite: Overwrite::Anything,
        owner: Owner::User("nobody-here".to_owned()),
    };
    assert_eq!(ask(root.path(), None, &owned, &archive(&[])).unwrap_err().code(), 3);
}

#[test]
fn nonsense_is_an_error() {
    let root = tempfile::tempdir().unwrap();
    let whole = archive(&[("a", b'0', "text"), ("b", b'0', "text")]);
    for bytes in [&b"no archive"[..], &whole[..700], &whole[..1024 + 300], &[b'x'; 2048]] {
        assert_eq!(ask(root.path(), None, &put("/"), bytes).unwrap_err().code(), 3, "{}", bytes.len());
    }
    for flag in [b'S', b'Z'] {
        assert!(ask(root.path(), None, &put("/"), &archive(&[("s", flag, "")])).is_err());
    }
    let mut huge = archive(&[("x", b'x', "")]);
    huge[124..136].copy_from_slice(b"77777777777\0");
    assert!(ask(root.path(), None, &put("/"), &huge).is_err());
    assert_eq!(ask(root.path(), None, &put("/"), b"").unwrap(), b"");
}

#[test]
fn changes_are_told_as_a_layer_and_applied_as_one() {
    if !rustix::process::geteuid().is_root() {
        std::println!("skipped: whiteouts are made by root");
        return;
    }
    let (upper, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = upper.path();
    for folder in ["etc", "old", "new"] {
        fs::create_dir(path.join(folder)).unwrap();
    }
    fs::write(path.join("etc/hostname"), "mine").unwrap();
    fs::write(path.join("new/file"), "2").unwrap();
    let whiteout = |name: &str| {
        let kind = rustix::fs::FileType::CharacterDevice;
        rustix::fs::mknodat(rustix::fs::CWD, path.join(name), kind, rustix::fs::Mode::empty(), 0).unwrap();
    };
    whiteout("gone");
    let flags = rustix::fs::XattrFlags::empty();
    if rustix::fs::setxattr(path.join("old"), "trusted.overlay.opaque", b"y", flags).is_err() {
        std::println!("skipped: no extended attributes here");
        return;
    }
    let told = |layer: &[u8]| names(layer);
    let layer = ask(root.path(), Some(path), &Request::Changes, b"").unwrap();
    assert_eq!(told(&layer), [".wh.gone", "new/", "new/file", "old/", "old/.wh..wh..opq"]);
    whiteout("etc/passwd");
    let layer = ask(root.path(), Some(path), &Request::Changes, b"").unwrap();
    assert_eq!(told(&layer)[..2], ["etc/", "etc/.wh.passwd"]);

    fs::create_dir_all(root.path().join("gone/below")).unwrap();
    fs::create_dir_all(root.path().join("old/below")).unwrap();
    fs::write(root.path().join("gone/below/x"), "").unwrap();
    ask(root.path(), None, &Request::Apply, &layer).unwrap();
    let mut left: Vec<_> =
        fs::read_dir(root.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["etc", "new", "old"]);
    assert_eq!(fs::read_dir(root.path().join("old")).unwrap().count(), 0);
    assert_eq!(fs::read_to_string(root.path().join("new/file")).unwrap(), "2");

    rustix::fs::setxattr(path.join("new/file"), "trusted.overlay.metacopy", b"", flags).unwrap();
    assert!(ask(root.path(), Some(path), &Request::Changes, b"").is_err());
}
