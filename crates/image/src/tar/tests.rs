use std::io::Read;

use super::testing::{Tar, pax_record};
use super::*;

/// Reads all entries with their contents.
fn read(bytes: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, TarError> {
    let mut archive = Reader::new(bytes);
    let mut found = Vec::new();
    while let Some(entry) = archive.next_entry()? {
        let mut data = Vec::new();
        let read = archive.contents(&entry).take(1 << 20).read_to_end(&mut data);
        read.map_err(|e| archive.contents_error(e))?;
        found.push((entry, data));
    }
    Ok(found)
}

fn refused(bytes: &[u8]) -> String {
    match read(bytes) {
        Err(e) => e.to_string(),
        Ok(found) => panic!("accepted: {:?}", found.iter().map(|(e, _)| e.path.len()).collect::<Vec<_>>()),
    }
}

#[test]
fn plain_entries_are_read() {
    let tar = Tar::new()
        .owner(7, 9)
        .mode(0o4755)
        .file("a/b", b"hello")
        .dir("d/")
        .symlink("s", "t")
        .link("h", "a/b");
    let found = read(&tar.device("c", b'3', 5, 1).device("p", b'6', 0, 0).end()).unwrap();
    let (entry, data) = &found[0];
    assert_eq!((entry.path.as_slice(), data.as_slice()), (&b"a/b"[..], &b"hello"[..]));
    assert_eq!((entry.mode, entry.uid, entry.gid, entry.mtime), (0o4755, 7, 9, 1_700_000_000));
    let kinds: Vec<Kind> = found.iter().map(|(entry, _)| entry.kind).collect();
    assert_eq!(kinds, [Kind::File, Kind::Dir, Kind::Symlink, Kind::HardLink, Kind::Char, Kind::Fifo]);
    assert_eq!(found[4].0.device, (5, 1));
}

#[test]
fn pax_and_gnu_names_override_the_header() {
    let long = "x/".repeat(300) + "end";
    let gnu = [long.as_bytes(), b"\0"].concat();
    let tar = Tar::new()
        .pax(&[
            ("path", long.as_bytes()),
            ("uid", b"70000"),
            ("mtime", b"-1.5"),
            ("SCHILY.xattr.user.k", b"v\0w"),
        ])
        .file("short", b"1")
        .entry(b"././@LongLink", b'L', b"", gnu.len() as u64, &gnu)
        .entry(b"././@LongLink", b'K', b"", gnu.len() as u64, &gnu)
        .symlink("short", "short");
    let found = read(&tar.end()).unwrap();
    assert_eq!(found[0].0.path, long.as_bytes());
    assert_eq!((found[0].0.uid, found[0].0.mtime), (70000, -2));
    assert_eq!(found[0].0.xattrs, [(b"user.k".to_vec(), b"v\0w".to_vec())]);
    assert_eq!((&found[1].0.path[..], &found[1].0.link[..]), (long.as_bytes(), long.as_bytes()));
    // They count for one entry only.
    assert_eq!(found[1].0.xattrs, []);
}

#[test]
fn a_pax_size_counts_over_the_header() {
    let tar = Tar::new().pax(&[("size", b"5")]).raw(b"f", b'0', b"", 0, b"12345", |_| {}).file("g", b"x");
    let found = read(&tar.end()).unwrap();
    assert_eq!((found[0].1.as_slice(), found[1].1.as_slice()), (&b"12345"[..], &b"x"[..]));
}

#[test]
fn all_sparse_formats_give_the_same_file() {
    let stored = [vec![1u8; 512], vec![2u8; 100]].concat();
    let mut want = vec![0u8; 5000];
    want[1024..1536].fill(1);
    want[4096..4196].fill(2);
    let map = "1024,512,4096,100";
    let v00: Vec<(&str, &[u8])> = vec![
        ("GNU.sparse.size", b"5000"),
        ("GNU.sparse.numblocks", b"2"),
        ("GNU.sparse.offset", b"1024"),
        ("GNU.sparse.numbytes", b"512"),
        ("GNU.sparse.offset", b"4096"),
        ("GNU.sparse.numbytes", b"100"),
    ];
    let v01: Vec<(&str, &[u8])> =
        vec![("GNU.sparse.size", b"5000"), ("GNU.sparse.name", b"f"), ("GNU.sparse.map", map.as_bytes())];
    let v10: Vec<(&str, &[u8])> = vec![
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"f"),
        ("GNU.sparse.realsize", b"5000"),
    ];
    let mut with_map = b"2\n1024\n512\n4096\n100\n".to_vec();
    with_map.resize(512, 0);
    with_map.extend_from_slice(&stored);
    let old = |block: &mut [u8; 512]| {
        let rows = [(1024u64, 512u64), (4096, 100)];
        for (i, (offset, len)) in rows.into_iter().enumerate() {
            let at = 386 + i * 24;
            block[at..at + 11].copy_from_slice(format!("{offset:011o}").as_bytes());
            block[at + 12..at + 23].copy_from_slice(format!("{len:011o}").as_bytes());
        }
        block[483..494].copy_from_slice(format!("{:011o}", 5000).as_bytes());
        block[257..265].copy_from_slice(b"ustar  \0");
    };
    for tar in [
        Tar::new().pax(&v00).file("f", &stored),
        Tar::new().pax(&v01).file("GNUSparseFile.0/f", &stored),
        Tar::new().pax(&v10).file("GNUSparseFile.0/f", &with_map),
        Tar::new().raw(b"f", b'S', b"", stored.len() as u64, &stored, old),
    ] {
        let found = read(&tar.file("next", b"n").end()).unwrap();
        assert_eq!((found[0].0.path.as_slice(), found[0].0.size), (&b"f"[..], 5000));
        assert_eq!(found[0].1, want);
        assert_eq!(found[1].1, b"n");
    }
}

#[test]
fn sparse_maps_that_lie_are_refused() {
    let with = |map: &str, size: &str, stored: &[u8]| {
        let records: Vec<(&str, &[u8])> =
            vec![("GNU.sparse.size", size.as_bytes()), ("GNU.sparse.map", map.as_bytes())];
        refused(&Tar::new().pax(&records).file("f", stored).end())
    };
    with("0,4,2,4", "8", b"12345678");
    with("0,9", "8", b"123456789");
    with("18446744073709551615,2", "8", b"12");
    with("0,4", "8", b"12345678");
    with("0", "8", b"");
    let mut map = String::from("0,1");
    (1..70_000).for_each(|i| map.push_str(&format!(",{},1", i * 2)));
    with(&map, "8", b"");
}

#[test]
fn truncation_is_seen_wherever_it_happens() {
    let whole = Tar::new().file("a", &[7; 2000]).pax(&[("path", b"b")]).file("b", b"xyz").bare();
    for cut in 1..whole.len() {
        // A cut between entries is not seen here; the mark of the end is the caller's business.
        let between = [512 + 2048].contains(&cut);
        let result = read(&whole[..cut]);
        assert_eq!(result.is_ok(), between, "cut at {cut}: {result:?}");
    }
    let mut archive = Reader::new(&whole[..]);
    while archive.next_entry().unwrap().is_some() {}
    assert_eq!(archive.end(), Some(End::Bare));
}

#[test]
fn what_is_no_archive_is_called_so() {
    assert!(matches!(read(b""), Err(TarError::NotTar)));
    assert!(matches!(read(b"hello"), Err(TarError::NotTar)));
    assert!(matches!(read(&[b'x'; 4096]), Err(TarError::NotTar)));
    assert!(read(&[0; 1024]).unwrap().is_empty());
    let mut broken = Tar::new().file("a", b"1").file("b", b"2").end();
    broken[1024] ^= 1;
    assert!(refused(&broken).contains("checksum"));
}

#[test]
fn sizes_past_all_sense_take_no_memory() {
    for flag in [b'x', b'g', b'L', b'K'] {
        refused(&Tar::new().entry(b"x", flag, b"", u64::MAX >> 2, b"").end());
        refused(&Tar::new().entry(b"x", flag, b"", 2 << 20, &vec![b'a'; 2 << 20]).file("f", b"").end());
    }
    refused(&Tar::new().entry(b"x", b'0', b"", u64::MAX, b"").end());
    refused(&Tar::new().entry(b"x", b'0', b"", i64::MAX as u64, b"").end());
    refused(&Tar::new().entry(b"x", b'?', b"", 0, b"").end());
    let big = vec![0; 100 << 10];
    refused(&Tar::new().pax(&[("SCHILY.xattr.user.big", &big)]).file("f", b"").end());
    refused(&Tar::new().pax(&[("path", &[b'p'; 5000])]).file("f", b"").end());
    refused(&Tar::new().pax(&[("uid", b"99999999999999999999")]).file("f", b"").end());
    refused(&Tar::new().pax(&[("uid", b"4294967296")]).file("f", b"").end());
}

#[test]
fn malformed_pax_records_are_refused() {
    for records in
        [&b"5 a=b"[..], b"99 a=b\n", b"0 a=b\n", b"6 ab\n\n", b"x a=b\n", b"7 a=bc\r", b" a=b\n", b"3 \n"]
    {
        let tar = Tar::new().entry(b"x", b'x', b"", records.len() as u64, records).file("f", b"");
        refused(&tar.end());
    }
    assert_eq!(pax_record("a", b"b"), b"6 a=b\n");
}

#[test]
fn any_damage_to_an_archive_ends_in_an_answer() {
    let good = Tar::new()
        .pax(&[("path", b"abc"), ("SCHILY.xattr.user.x", b"1")])
        .file("a", &[1; 700])
        .pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.realsize", b"600")])
        .file("s", &[b"1\n0\n88\n".as_slice(), &[0; 592]].concat())
        .end();
    let mut state = 1u64;
    for _ in 0..20_000 {
        let mut bad = good.clone();
        for _ in 0..3 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let at = (state >> 33) as usize % bad.len();
            bad[at] = (state >> 20) as u8;
            // Make the header's checksum right again, so that the damage gets further.
            let block = at / 512 * 512;
            if bad[block + 257..block + 262] == *b"ustar" {
                bad[block + 148..block + 156].fill(b' ');
                let sum: u32 = bad[block..block + 512].iter().map(|&b| u32::from(b)).sum();
                bad[block + 148..block + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
        }
        let _ = read(&bad);
    }
}

#[test]
fn what_the_writer_writes_the_reader_reads() {
    let mut tar = Writer::new(Vec::new());
    tar.file("name", 5, &b"12345"[..]).unwrap();
    assert!(tar.file("short", 5, &b"1"[..]).is_err());
    let mut tar = Writer::new(Vec::new());
    tar.file("a", 5, &b"12345"[..]).unwrap();
    tar.file("b", 0, &b""[..]).unwrap();
    let found = read(&tar.finish().unwrap()).unwrap();
    assert_eq!(found.len(), 2);
    assert_eq!(found[0].1, b"12345");
}
