use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use tempfile::TempDir;

use super::*;
use crate::wire::OUT_HEADER;

const EPERM: i32 = 1;
const ENOENT: i32 = 2;
const EBADF: i32 = 9;
const EXDEV: i32 = 18;
const ENOTDIR: i32 = 20;
const EINVAL: i32 = 22;
const EROFS: i32 = 30;
const ELOOP: i32 = 40;
const ENOSYS: i32 = 38;
const ESTALE: i32 = 116;

/// A server of two folders, the second of which is not to be changed.
struct Host {
    folders: [TempDir; 2],
    server: Server,
}

impl Host {
    fn new() -> Self {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let export =
            |index: usize, access| Export { file: open_path(folders[index].path()).unwrap(), access };
        let exports = vec![export(0, Access::ReadWrite), export(1, Access::ReadOnly)];
        // The owner is this test's, whoever runs it.
        let owner = Owner::Always(rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let server = Server::new(exports, owner, Descriptors::new().unwrap());
        Self { folders, server }
    }

    /// The fields of the answer, or the error's number.
    fn ask(&mut self, opcode: Opcode, node: u64, body: &[u8]) -> Result<Vec<u8>, i32> {
        self.ask_raw(opcode as u32, node, (IN_HEADER + body.len()) as u32, body)
    }

    fn ask_raw(&mut self, opcode: u32, node: u64, len: u32, body: &[u8]) -> Result<Vec<u8>, i32> {
        let mut header = [0; IN_HEADER];
        header[..4].copy_from_slice(&len.to_le_bytes());
        header[4..8].copy_from_slice(&opcode.to_le_bytes());
        header[8..16].copy_from_slice(&77u64.to_le_bytes());
        header[16..24].copy_from_slice(&node.to_le_bytes());
        let (answer, _) = self.server.answer(&header, body).expect("an answer");
        assert_eq!(answer.len(), u32::from_le_bytes(answer[..4].try_into().unwrap()) as usize);
        assert_eq!(answer[8..16], 77u64.to_le_bytes());
        match -i32::from_le_bytes(answer[4..8].try_into().unwrap()) {
            0 => Ok(answer[OUT_HEADER..].to_vec()),
            errno => Err(errno),
        }
    }

    fn look_up(&mut self, folder: u64, name: &str) -> Result<u64, i32> {
        self.ask(Opcode::Lookup, folder, &text(name)).map(|entry| number(&entry, 0))
    }

    fn open(&mut self, node: u64, flags: i32) -> Result<u64, i32> {
        let body = words(&[flags as u32, 0]);
        self.ask(Opcode::Open, node, &body).map(|open| number(&open, 0))
    }
}

fn text(text: &str) -> Vec<u8> {
    [text.as_bytes(), b"\0"].concat()
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn longs(longs: &[u64]) -> Vec<u8> {
    longs.iter().flat_map(|long| long.to_le_bytes()).collect()
}

fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

const RDONLY: i32 = 0;
const RDWR: i32 = 2;

#[test]
fn a_file_made_by_the_guest_is_there() {
    let mut host = Host::new();
    let root = host.look_up(ROOT_NODE, "0").unwrap();
    let body = [words(&[RDWR as u32, 0o100_640, 0, 0]), text("new")].concat();
    let made = host.ask(Opcode::Create, root, &body).unwrap();
    assert_eq!(made.len(), 128 + 16);
    let found = fs::metadata(host.folders[0].path().join("new")).unwrap();
    // The umask of the test's process is the server's too, here: it may take the group's bit.
    assert_eq!(found.permissions().mode() & 0o7737, 0o600);
    assert_eq!(number(&made, 40) & 0xffff_ffff_ffff, found.ino() & 0xffff_ffff_ffff);
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    let mut host = Host::new();
    let root = host.look_up(ROOT_NODE, "0").unwrap();
    for name in ["", ".", "..", "a/b", "/etc", "../x"] {
        assert_eq!(host.look_up(root, name), Err(EINVAL), "{name:?}");
        let body = [words(&[0o755, 0]), text(name)].concat();
        assert_eq!(host.ask(Opcode::Mkdir, root, &body), Err(EINVAL), "{name:?}");
        assert_eq!(host.ask(Opcode::Unlink, root, &text(name)), Err(EINVAL), "{name:?}");
    }
    assert_eq!(host.ask(Opcode::Lookup, root, b"no end"), Err(EINVAL));
    for name in ["2", "00", "-1", "x", "99999999999999999999999"] {
        assert_eq!(host.look_up(ROOT_NODE, name), Err(ENOENT), "{name:?}");
    }
}

#[test]
fn links_are_looked_at_and_never_followed() {
    let mut host = Host::new();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "x").unwrap();
    let link = host.folders[0].path().join("link");
    symlink(outside.path(), &link).unwrap();
    let root = host.look_up(ROOT_NODE, "0").unwrap();
    let link = host.look_up(root, "link").unwrap();
    let target = host.ask(Opcode::Readlink, link, &[]).unwrap();
    assert_eq!(target, outside.path().as_os_str().as_encoded_bytes());
    assert!(matches!(host.look_up(link, "secret"), Err(ENOTDIR | ELOOP)));
    assert!(host.open(link, RDONLY).is_err());
    assert_eq!(host.ask(Opcode::Opendir, link, &words(&[0, 0])), Err(ENOTDIR));
    let body = [words(&[RDWR as u32, 0o644, 0, 0]), text("made")].concat();
    assert!(host.ask(Opcode::Create, link, &body).is_err());
    // A name that is a link already is not written through.
    symlink(outside.path().join("made"), host.folders[0].path().join("dangling")).unwrap();
    let body = [words(&[RDWR as u32, 0o644, 0, 0]), text("dangling")].concat();
    assert!(host.ask(Opcode::Create, root, &body).is_err());
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
}

#[test]
fn a_read_only_folder_stays_as_it_is() {
    let mut host = Host::new();
    fs::write(host.folders[1].path().join("a"), "a").unwrap();
    let root = host.look_up(ROOT_NODE, "1").unwrap();
    let file = host.look_up(root, "a").unwrap();
    assert_eq!(host.open(file, RDWR), Err(EROFS));
    assert_eq!(host.open(file, RDONLY | 0o1000), Err(EROFS), "O_TRUNC");
    let handle = host.open(file, RDONLY).unwrap();
    let create = [words(&[RDWR as u32, 0o644, 0, 0]), text("b")].concat();
    assert_eq!(host.ask(Opcode::Create, root, &create), Err(EROFS));
    assert_eq!(host.ask(Opcode::Unlink, root, &text("a")), Err(EROFS));
    let rename = [longs(&[root]), text("a"), text("b")].concat();
    assert_eq!(host.ask(Opcode::Rename, root, &rename), Err(EROFS));
    assert_eq!(host.ask(Opcode::Setattr, file, &[0; 88]), Err(EROFS));
    let allocate = [longs(&[handle, 0, 4096]), words(&[0, 0])].concat();
    assert_eq!(host.ask(Opcode::Fallocate, file, &allocate), Err(EBADF));
    // Nor does a folder that may be changed lend its rights.
    let other = host.look_up(ROOT_NODE, "0").unwrap();
    let link = [longs(&[file]), text("a")].concat();
    assert_eq!(host.ask(Opcode::Link, other, &link), Err(EROFS));
    let rename = [longs(&[root]), text("x"), text("y")].concat();
    assert_eq!(host.ask(Opcode::Rename, other, &rename), Err(EROFS));
    assert_eq!(fs::read(host.folders[1].path().join("a")).unwrap(), b"a");
}

#[test]
fn nothing_moves_from_one_folder_to_another() {
    let mut host = Host::new();
    let extra = tempfile::tempdir().unwrap();
    let export = Export { file: open_path(extra.path()).unwrap(), access: Access::ReadWrite };
    host.server.exports.push(export);
    fs::write(extra.path().join("a"), "a").unwrap();
    let (to, from) = (host.look_up(ROOT_NODE, "0").unwrap(), host.look_up(ROOT_NODE, "2").unwrap());
    let rename = [longs(&[to]), text("a"), text("a")].concat();
    assert_eq!(host.ask(Opcode::Rename, from, &rename), Err(EXDEV));
}

#[test]
fn device_nodes_are_not_made() {
    let mut host = Host::new();
    let root = host.look_up(ROOT_NODE, "0").unwrap();
    for kind in [0o020_000, 0o060_000, 0o040_000, 0o120_000, 0] {
        let body = [words(&[kind | 0o644, 0x103, 0, 0]), text("node")].concat();
        assert_eq!(host.ask(Opcode::Mknod, root, &body), Err(EPERM), "{kind:o}");
    }
    let body = [words(&[0o010_000 | 0o644, 0, 0, 0]), text("pipe")].concat();
    let pipe = number(&host.ask(Opcode::Mknod, root, &body).unwrap(), 0);
    // It is the guest's kernel that reads and writes it.
    assert!(host.open(pipe, RDWR).is_err());
}

#[test]
fn a_node_is_known_until_it_is_forgotten_as_often() {
    let mut host = Host::new();
    fs::write(host.folders[0].path().join("a"), "a").unwrap();
    let root = host.look_up(ROOT_NODE, "0").unwrap();
    let file = host.look_up(root, "a").unwrap();
    assert_eq!(host.look_up(root, "a"), Ok(file));
    let forget = |host: &mut Host, count: u64| {
        let mut header = [0; IN_HEADER];
        header[..4].copy_from_slice(&48u32.to_le_bytes());
        header[4..8].copy_from_slice(&2u32.to_le_bytes());
        header[16..24].copy_from_slice(&file.to_le_bytes());
        assert!(host.server.answer(&header, &count.to_le_bytes()).is_none());
    };
    forget(&mut host, 1);
    assert!(host.ask(Opcode::Getattr, file, &[0; 16]).is_ok());
    forget(&mut host, u64::MAX);
    assert_eq!(host.ask(Opcode::Getattr, file, &[0; 16]), Err(ESTALE));
    assert_eq!(host.server.nodes.len(), 1);
    // What was forgotten too often is not there less than not at all.
    forget(&mut host, 1);
    assert_ne!(host.look_up(root, "a"), Ok(file));
}

#[test]
fn requests_that_no_guest_makes_are_refused() {
    let mut host = Host::new();
    let root = host.look_up(ROOT_NODE, "0").unwrap();
    assert_eq!(host.ask_raw(9999, root, IN_HEADER as u32, &[]), Err(ENOSYS));
    for len in [0, 39, 41, u32::MAX] {
        assert_eq!(host.ask_raw(Opcode::Getattr as u32, root, len, &[]), Err(EINVAL), "{len}");
    }
    let every = (0..64).filter_map(Opcode::new).filter(|opcode| !opcode.is_unanswered());
    for opcode in every {
        // Cut short, about nothing, and full of numbers that mean nothing.
        for node in [0, ROOT_NODE, root, 12345, u64::MAX] {
            for body in [vec![], vec![0; 7], vec![0xff; 200], vec![0xff; 60_000], vec![1; 88]] {
                let _ = host.ask(opcode, node, &body);
            }
        }
        // INIT and DESTROY forget everything.
        let _ = host.look_up(ROOT_NODE, "0");
    }
    for opcode in [Opcode::Release, Opcode::Fsync, Opcode::Lseek, Opcode::Fallocate, Opcode::Readdir] {
        assert_eq!(host.ask(opcode, root, &[0xff; 40]), Err(EBADF), "{opcode:?}");
    }
    // A list of things to forget that says it is longer than it is.
    let mut header = [0; IN_HEADER];
    header[..4].copy_from_slice(&48u32.to_le_bytes());
    header[4..8].copy_from_slice(&42u32.to_le_bytes());
    assert!(host.server.answer(&header, &[0xff; 8]).is_none());
}

#[test]
fn a_listing_is_given_in_pieces_as_small_as_asked_for() {
    let mut host = Host::new();
    for index in 0..300 {
        fs::write(host.folders[0].path().join(format!("file-{index}")), "").unwrap();
    }
    let root = host.look_up(ROOT_NODE, "0").unwrap();
    let handle = number(&host.ask(Opcode::Opendir, root, &words(&[0, 0])).unwrap(), 0);
    for (opcode, before) in [(Opcode::Readdir, 0), (Opcode::Readdirplus, 128)] {
        let (mut names, mut offset) = (Vec::new(), 0);
        loop {
            let body = [longs(&[handle, offset]), words(&[1000, 0]), longs(&[0, 0])].concat();
            let piece = host.ask(opcode, root, &body).unwrap();
            assert!(piece.len() <= 1000);
            if piece.is_empty() {
                break;
            }
            let mut rest = &piece[..];
            while !rest.is_empty() {
                let entry = &rest[before..];
                offset = number(entry, 8);
                let len = u32::from_le_bytes(entry[16..20].try_into().unwrap()) as usize;
                names.push(String::from_utf8(entry[24..24 + len].to_vec()).unwrap());
                rest = &entry[24 + len.next_multiple_of(8)..];
            }
        }
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 302, "{opcode:?}");
    }
}
