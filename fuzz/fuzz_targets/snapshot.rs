//! The file `state` of a snapshot from a stranger: read whole or refused, and what was read is written the same again.
#![no_main]

use std::fs::File;
use std::io::{Seek, Write};

use arch::x86::saved;
use fuzz::Bytes;
use libfuzzer_sys::fuzz_target;
use machine::snapshot::Snapshot;
use state::{Archive, Section};

const GOLDEN: &[u8] = include_bytes!("../../crates/machine/tests/golden/snapshot-1/state");

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().expect("the host has room for a small file");
    file.write_all(bytes).and_then(|()| file.rewind()).expect("it can be written");
    file
}

/// Whatever its checksums say, nothing but an error or a snapshot comes of it.
fn read(state: &[u8]) {
    if let Ok(archive) = Archive::parse(state) {
        assert_eq!(Archive::parse(&archive.to_bytes()), Ok(archive));
    }
    let _ = Snapshot::read(&file(state), file(&[]));
}

/// The golden snapshot with a section damaged before the checksums were taken.
fn damaged(input: &mut Bytes<'_>) -> Archive {
    let mut archive = Archive::parse(GOLDEN).expect("the golden snapshot is whole");
    let paths: Vec<String> = archive.sections().map(|(path, _)| path.to_owned()).collect();
    let path = &paths[usize::from(input.u8()) % paths.len()];
    let mut section: Section = archive.take(path).expect("it was listed");
    let changes = input.u8() % 8;
    input.damage(&mut section.bytes, changes);
    if path.starts_with("vcpu/")
        && let Ok(cpu) = saved::restore(&section)
    {
        let again = saved::save(&cpu).expect("what was read can be written");
        assert_eq!(saved::restore(&again).ok(), Some(cpu));
    }
    archive.put(path.clone(), section);
    archive
}

fuzz_target!(|data: &[u8]| {
    read(data);
    read(&damaged(&mut Bytes(data)).to_bytes());
});
