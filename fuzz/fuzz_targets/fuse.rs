//! FUSE requests for the server of a machine's folders, as a guest may send them: whatever they ask, nothing outside of the
//! folders changes, nothing at all in the one that is to be looked at only, and each answer says how long it is.
#![no_main]

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use fuse::server::{Access, Descriptors, Export, Owner, Server, open_path};
use fuse::wire::{IN_HEADER, OUT_HEADER};
use fuzz::Bytes;
use libfuzzer_sys::fuzz_target;

/// Codes of the protocol that mean something here, and some that do not.
const OPCODES: u8 = 52;
/// Requests of one input. Attack on the run: inputs that go on for ever.
const REQUESTS: usize = 64;

struct Place {
    folder: tempfile::TempDir,
}

/// One for the whole run: making folders would be most of it.
fn place() -> &'static Place {
    static PLACE: OnceLock<Place> = OnceLock::new();
    PLACE.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir(folder.path().join("look")).expect("a folder");
        fs::write(folder.path().join("look/file"), b"kept").expect("a file");
        fs::write(folder.path().join("outside"), b"kept").expect("a file");
        Place { folder }
    })
}

/// A folder with a file, a link that leads out, and a folder.
fn fresh(folder: &Path) {
    let _ = fs::remove_dir_all(folder);
    fs::create_dir_all(folder.join("d")).expect("a folder");
    fs::write(folder.join("d/f"), b"content").expect("a file");
    std::os::unix::fs::symlink("../outside", folder.join("l")).expect("a link");
}

fn request(server: &mut Server, input: &mut Bytes<'_>) {
    let (opcode, node) = (u32::from(input.u8() % OPCODES), u64::from(input.u8() % 16));
    let (size, bad_len) = (usize::from(input.u8()), input.u8());
    let mut body = match input.u8() % 4 {
        0 => b"0\0".to_vec(),
        1 => b"d\0".to_vec(),
        _ => input.slice(size).to_vec(),
    };
    if input.u8().is_multiple_of(2) {
        body.extend_from_slice(b"f\0l\0");
    }
    let len = IN_HEADER + body.len();
    let told = if bad_len == 0xff { len.wrapping_mul(3) } else { len };
    let mut header = [0; IN_HEADER];
    header[..4].copy_from_slice(&(told as u32).to_le_bytes());
    header[4..8].copy_from_slice(&opcode.to_le_bytes());
    header[8..16].copy_from_slice(&7u64.to_le_bytes());
    header[16..24].copy_from_slice(&node.to_le_bytes());
    if let Some((answer, _)) = server.answer(&header, &body) {
        let said = answer.first_chunk::<4>().map(|bytes| u32::from_le_bytes(*bytes) as usize);
        assert!(answer.len() >= OUT_HEADER && said == Some(answer.len()), "an answer says how long it is");
    }
}

fuzz_target!(|data: &[u8]| {
    let root = place().folder.path();
    fresh(&root.join("change"));
    let export = |name: &str, access| Export { file: open_path(root.join(name)).expect("a folder"), access };
    let exports = vec![export("change", Access::ReadWrite), export("look", Access::ReadOnly)];
    let owner = Owner::Always(rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let mut server = Server::new(exports, owner, Descriptors::new().expect("/proc"));
    let mut input = Bytes(data);
    for _ in 0..REQUESTS {
        if input.is_empty() {
            break;
        }
        request(&mut server, &mut input);
    }
    assert_eq!(fs::read(root.join("outside")).expect("what lies outside"), b"kept");
    assert_eq!(fs::read(root.join("look/file")).expect("what is looked at"), b"kept");
    assert_eq!(fs::read_dir(root.join("look")).expect("the folder").count(), 1);
});
