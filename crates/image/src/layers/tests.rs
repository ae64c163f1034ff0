use std::collections::BTreeMap;
use std::io::{self, Read};

use super::*;
use crate::squashfs::FileData;
use crate::tar::Reader;
use crate::tar::testing::Tar;

/// Keeps contents in memory; a file's start is its number.
#[derive(Default)]
struct Kept(Vec<Vec<u8>>);

impl Contents for Kept {
    fn store<R: Read>(
        &mut self,
        file: &mut crate::tar::Contents<'_, R>,
        size: u64,
    ) -> Result<io::Result<FileData>, crate::Error> {
        let mut data = Vec::new();
        if let Err(e) = file.take(size).read_to_end(&mut data) {
            return Ok(Err(e));
        }
        self.0.push(data);
        Ok(Ok(FileData { start: self.0.len() as u64 - 1, size, sparse: 0, blocks: Vec::new() }))
    }
}

fn build(layers: &[Vec<u8>]) -> Result<(Tree, Kept), String> {
    let (mut tree, mut kept) = (Tree::new(), Kept::default());
    for (number, layer) in layers.iter().enumerate() {
        match apply(&mut tree, number as u32, &mut Reader::new(&layer[..]), &mut kept) {
            Ok(_) => {}
            Err(ApplyError::Tar(e)) => return Err(e.to_string()),
            Err(ApplyError::Store(e)) => return Err(e.to_string()),
        }
    }
    Ok((tree, kept))
}

/// Path to what is there: contents, `-> target`, `/` for a folder.
fn names(layers: &[Vec<u8>]) -> BTreeMap<String, String> {
    let (tree, kept) = build(layers).unwrap();
    let mut found = BTreeMap::new();
    let mut todo = vec![(String::new(), ROOT)];
    while let Some((path, id)) = todo.pop() {
        for (name, child) in &tree.dir(id).unwrap().children {
            let path = format!("{path}/{}", String::from_utf8_lossy(name));
            let text = match &tree.node(child.node).body {
                Body::Dir(_) => {
                    todo.push((path.clone(), child.node));
                    "/".to_string()
                }
                Body::File(data) => String::from_utf8_lossy(&kept.0[data.start as usize]).into_owned(),
                Body::Symlink(target) => format!("-> {}", String::from_utf8_lossy(target)),
                other => format!("{other:?}"),
            };
            found.insert(path, text);
        }
    }
    found
}

fn text(layers: &[Vec<u8>]) -> String {
    names(layers)
        .into_iter()
        .filter(|(_, what)| what != "/")
        .map(|(path, what)| format!("{path}={what} "))
        .collect()
}

#[test]
fn upper_layers_replace_and_whiteouts_remove() {
    let base =
        Tar::new().dir("d").file("d/a", b"1").file("d/b", b"2").dir("e").file("e/x", b"3").file("f", b"4");
    let upper = Tar::new().file("d/a", b"new").file("d/.wh.b", b"").file(".wh.e", b"").file("g", b"5");
    assert_eq!(text(&[base.end(), upper.end()]), "/d/a=new /f=4 /g=5 ");
}

#[test]
fn an_opaque_folder_hides_lower_layers_only_in_any_order() {
    let base = || Tar::new().dir("d").file("d/a", b"1").dir("d/sub").file("d/sub/x", b"2").end();
    let first = Tar::new().dir("d").file("d/.wh..wh..opq", b"").file("d/n", b"3").file("d/sub/y", b"4").end();
    let last = Tar::new().dir("d").file("d/n", b"3").file("d/sub/y", b"4").file("d/.wh..wh..opq", b"").end();
    assert_eq!(text(&[base(), first]), "/d/n=3 /d/sub/y=4 ");
    assert_eq!(text(&[base(), last]), "/d/n=3 /d/sub/y=4 ");
}

#[test]
fn a_whiteout_spares_what_its_own_layer_made() {
    let base = Tar::new().dir("d").file("d/old", b"1").end();
    let upper =
        Tar::new().dir("d").file("d/new", b"2").file(".wh.d", b"").file("k", b"3").file(".wh.k", b"").end();
    assert_eq!(text(&[base, upper]), "/d/new=2 /k=3 ");
}

#[test]
fn whiteouts_of_nothing_and_aufs_files_do_nothing() {
    let base = Tar::new().file("a", b"1").end();
    let upper = Tar::new().file(".wh.none", b"").file("no/.wh.x", b"").file(".wh..wh.plnk", b"").end();
    assert_eq!(text(&[base, upper]), "/a=1 ");
    assert!(build(&[Tar::new().file(".wh.", b"").end()]).is_err());
    assert!(build(&[Tar::new().file("d/.wh...", b"").end()]).is_err());
}

#[test]
fn kinds_replace_each_other() {
    let base = Tar::new().file("d/x/y", b"1").file("f", b"2").symlink("s", "d");
    let upper = Tar::new().file("d", b"now a file").dir("f").file("f/in", b"3").dir("s").file("s/in", b"4");
    assert_eq!(text(&[base.end(), upper.end()]), "/d=now a file /f/in=3 /s/in=4 ");
}

#[test]
fn a_folder_named_again_keeps_its_children() {
    let (tree, _) =
        build(&[Tar::new().file("d/a", b"1").end(), Tar::new().mode(0o700).owner(5, 6).dir("d").end()])
            .unwrap();
    let child = tree.child(ROOT, b"d").unwrap();
    let meta = tree.node(child.node).meta;
    assert_eq!((meta.mode, meta.uid, meta.gid), (0o700, 5, 6));
    assert!(tree.child(child.node, b"a").is_some());
}

#[test]
fn paths_stay_inside_the_image() {
    let tar = Tar::new()
        .file("/etc/passwd", b"1")
        .file("../../up", b"2")
        .file("a/../../b/./c", b"3")
        .dir("out")
        .symlink("abs", "/out")
        .symlink("up", "../../../out/deeper")
        .symlink("host", "/proc/self/root")
        .file("abs/one", b"4")
        .file("up/two", b"5")
        .file("host/three", b"6");
    let want = "/abs=-> /out /b/c=3 /etc/passwd=1 /host=-> /proc/self/root /out/deeper/two=5 /out/one=4 \
                /proc/self/root/three=6 ";
    let mut found = names(&[tar.end()]);
    found.retain(|_, what| what != "/");
    // The link `up` took the place of the file of that name.
    assert_eq!(found.remove("/up").unwrap(), "-> ../../../out/deeper");
    let found: String = found.into_iter().map(|(path, what)| format!("{path}={what} ")).collect();
    assert_eq!(found, want);
}

#[test]
fn links_that_lead_in_circles_are_refused() {
    assert!(build(&[Tar::new().symlink("a", "b").symlink("b", "a").file("a/x", b"").end()]).is_err());
    assert!(build(&[Tar::new().symlink("a", "a/a").file("a/x", b"").end()]).is_err());
    assert!(build(&[Tar::new().file("f", b"").file("f/x", b"").end()]).is_err());
    assert!(build(&[Tar::new().symlink("s", "").end()]).is_err());
}

#[test]
fn hard_links_share_an_inode_and_need_a_target() {
    let (tree, _) = build(&[
        Tar::new().file("a", b"1").link("b", "a").link("c/d", "/b").link("a", "a").end(),
        Tar::new().file("a", b"2").end(),
    ])
    .unwrap();
    let b = tree.child(ROOT, b"b").unwrap().node;
    assert_eq!(tree.node(b).links, 2);
    assert_ne!(tree.child(ROOT, b"a").unwrap().node, b);
    assert!(tree.freed.is_empty());
    for bad in [
        Tar::new().link("b", "none"),
        Tar::new().dir("d").link("b", "d"),
        Tar::new().link("b", ".."),
        Tar::new().link("b", ""),
    ] {
        assert!(build(&[bad.end()]).is_err());
    }
}

#[test]
fn what_is_replaced_is_given_back() {
    let layers = [
        Tar::new().file("d/a", b"11").file("b", b"22").end(),
        Tar::new().file(".wh.d", b"").file("b", b"3").end(),
    ];
    let (tree, _) = build(&layers).unwrap();
    let mut freed = tree.freed.clone();
    freed.sort();
    assert_eq!(freed, [(0, 2), (1, 2)]);
}

#[test]
fn names_past_the_limits_are_refused() {
    let long = "n".repeat(256);
    assert!(build(&[Tar::new().pax(&[("path", long.as_bytes())]).file("x", b"").end()]).is_err());
    assert!(build(&[Tar::new().pax(&[("path", b"a\0b")]).file("x", b"").end()]).is_err());
    assert!(build(&[Tar::new().symlink("x", &"t".repeat(99)).file("x/../..", b"").end()]).is_err());
    let mut deep = Tar::new();
    let path = "d/".repeat(600);
    deep = deep.pax(&[("path", path.as_bytes())]).dir("x").symlink("s", &"d/".repeat(45));
    let far = format!("{}{}", path, "e/".repeat(500));
    assert!(build(&[deep.pax(&[("path", far.as_bytes())]).dir("x").end()]).is_err());
}

#[test]
fn devices_and_xattrs_are_kept_or_told() {
    let tar = Tar::new()
        .device("null", b'3', 1, 3)
        .device("disk", b'4', 259, 70000)
        .pax(&[
            ("SCHILY.xattr.security.capability", b"\x01\x00"),
            ("SCHILY.xattr.user.a", b"b"),
            ("SCHILY.xattr.system.posix_acl_access", b"x"),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        ])
        .file("f", b"");
    let mut tree = Tree::new();
    let notes = match apply(&mut tree, 0, &mut Reader::new(&tar.end()[..]), &mut Kept::default()) {
        Ok(notes) => notes,
        Err(e) => panic!("{e:?}"),
    };
    assert_eq!(notes.len(), 1);
    assert!(notes[0].starts_with("2 extended attributes left out"), "{notes:?}");
    assert_eq!(tree.xattr_sets().len(), 1);
    assert_eq!(tree.xattr_sets()[0].len(), 2);
    assert!(build(&[Tar::new().device("x", b'3', 1 << 12, 0).end()]).is_err());
}
