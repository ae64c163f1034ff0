//! A layer made of an archive of changes that somebody else wrote: `strata`'s own reader of an overlay, or a guest.

use std::io::{self, Read};

use super::LayerPart;
use crate::error::{Error, Result};
use crate::store::Incoming;
use crate::tar::{Entry, Kind, Reader, TarError};
use crate::view::{NodeInfo, NodeKind};

impl Incoming {
    /// Makes a layer of those entries of `archive` whose paths are to be kept, with no time later than `latest`. Whiteouts stand
    /// in it as a layer has them. Nothing when no entry is left.
    ///
    /// # Errors
    /// The archive makes no sense or is not whole, or the store cannot be written.
    pub fn layer_of_changes(
        &self,
        archive: impl Read,
        keep: impl Fn(&[u8]) -> bool,
        latest: Option<u64>,
    ) -> Result<Option<LayerPart>> {
        let wrong = |source: TarError| Error::Archive { what: "the changes".to_owned(), source };
        let mut layer = self.layer_writer()?;
        let mut archive = Reader::new(archive);
        while let Some(entry) = archive.next_entry().map_err(wrong)? {
            let path = clean(&entry.path);
            if path.is_empty() || !keep(path) {
                continue;
            }
            let info = info(&entry, latest);
            let added = if entry.kind == Kind::HardLink {
                layer.hard_link(path, clean(&entry.link), &info)
            } else {
                layer.add(path, &info, &mut archive.contents(&entry))
            };
            added.map_err(|source| match source.kind() {
                io::ErrorKind::UnexpectedEof => wrong(archive.contents_error(source)),
                _ => Error::file("write", layer.path())(source),
            })?;
        }
        if layer.entries() == 0 { Ok(None) } else { layer.finish().map(Some) }
    }
}

/// Without slashes around it.
fn clean(path: &[u8]) -> &[u8] {
    let start = path.iter().position(|byte| *byte != b'/').unwrap_or(path.len());
    let end = path.iter().rposition(|byte| *byte != b'/').map_or(start, |last| last + 1);
    &path[start..end]
}

fn info(entry: &Entry, latest: Option<u64>) -> NodeInfo {
    let (major, minor) = entry.device;
    NodeInfo {
        kind: match entry.kind {
            Kind::File | Kind::HardLink => NodeKind::File(entry.size),
            Kind::Dir => NodeKind::Dir,
            Kind::Symlink => NodeKind::Symlink(entry.link.clone()),
            Kind::Char => NodeKind::Char(major, minor),
            Kind::Block => NodeKind::Block(major, minor),
            Kind::Fifo => NodeKind::Fifo,
        },
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        mtime: u64::try_from(entry.mtime).unwrap_or_default().min(latest.unwrap_or(u64::MAX)),
        xattrs: entry.xattrs.clone(),
    }
}

#[cfg(test)]
mod tests {
    use crate::NoProgress;
    use crate::tar::testing::Tar;
    use crate::testing::{reference, temp_store};
    use crate::view::NodeKind;

    #[test]
    fn what_is_kept_is_as_it_was_and_no_younger_than_it_may_be() {
        let temp = temp_store();
        let base =
            temp.import("base", &Tar::new().dir("d").file("d/old", b"1").file("y", b"2").end()).unwrap();
        let incoming = temp.store.incoming().unwrap();
        let changes = Tar::new().dir("./").file("d/.wh.old", b"").dir("dev").file("dev/no", b"").owner(5, 6);
        let attribute: &[(&str, &[u8])] = &[("SCHILY.xattr.user.a", b"b")];
        let changes = changes.pax(attribute).file("d/new", b"3").link("hard", "d/new").symlink("l", "d/");
        let keep = |path: &[u8]| !path.starts_with(b"dev") && path != b".";
        let layer = incoming.layer_of_changes(&changes.end()[..], keep, Some(7)).unwrap().unwrap();
        let nothing = Tar::new().dir("dev").end();
        assert!(incoming.layer_of_changes(&nothing[..], keep, None).unwrap().is_none());
        let mut layers = base.layer_parts().unwrap();
        layers.push(layer);
        let digest = incoming.add_image(base.config_bytes(), &layers).unwrap();
        let image = incoming.commit(&reference("built"), &digest).unwrap();
        let view = temp.store.view(&image, &NoProgress).unwrap();
        assert_eq!(view.list(b"").unwrap(), [&b"d"[..], b"hard", b"l", b"y"]);
        assert_eq!(view.list(b"d").unwrap(), [b"new"]);
        let new = view.stat(b"d/new").unwrap();
        assert_eq!((new.uid, new.gid, new.mtime), (5, 6, 7));
        assert_eq!(new.xattrs, [(b"user.a".to_vec(), b"b".to_vec())]);
        assert_eq!(view.shared_inode(b"d/new"), view.shared_inode(b"hard"));
        assert_eq!(view.stat(b"l").unwrap().kind, NodeKind::Symlink(b"d/".to_vec()));
    }

    #[test]
    fn changes_that_end_early_are_no_layer() {
        let temp = temp_store();
        let incoming = temp.store.incoming().unwrap();
        let changes = Tar::new().file("f", &[1; 2000]).end();
        for length in [0, 100, 1000] {
            let made = incoming.layer_of_changes(&changes[..length], |_| true, None);
            assert!(crate::testing::chain(&made.unwrap_err()).starts_with("read the changes"), "{length}");
        }
    }
}
