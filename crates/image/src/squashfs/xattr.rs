//! Xattrs: a table of names and values, a table of sets, and the header that leads to both.

use super::data::DataWriter;
use super::metadata::MetaTable;
use crate::error::{Error, Result};
use crate::layers::{Xattr, XattrKind};

fn type_code(kind: XattrKind) -> (u16, usize) {
    // The code, and the length of the prefix that it stands for.
    match kind {
        XattrKind::User => (0, 5),
        XattrKind::Trusted => (1, 8),
        XattrKind::Security => (2, 9),
    }
}

/// Writes all sets; gives the offset of the header. The header must end the file system.
pub(super) fn write(out: &mut DataWriter, sets: &[Vec<Xattr>]) -> Result<u64> {
    let too_many = || Error::invalid("image", "its extended attributes are too many for squashfs");
    let mut pairs = MetaTable::default();
    let mut rows = MetaTable::default();
    for set in sets {
        let place = pairs.place().ok_or_else(too_many)?;
        let mut size = 0;
        for xattr in set {
            let (code, prefix) = type_code(xattr.kind);
            pairs.push(&code.to_le_bytes());
            pairs.push(&(xattr.name.len() as u16).to_le_bytes());
            pairs.push(&xattr.name);
            pairs.push(&(xattr.value.len() as u32).to_le_bytes());
            pairs.push(&xattr.value);
            size += prefix + xattr.name.len() + 1 + xattr.value.len();
        }
        rows.push(&place.reference().to_le_bytes());
        rows.push(&(set.len() as u32).to_le_bytes());
        rows.push(&(size as u32).to_le_bytes());
    }
    let pairs_start = out.pos;
    out.write(&pairs.stored())?;
    let rows_start = out.pos;
    out.write(&rows.stored())?;
    let header = out.pos;
    out.write(&pairs_start.to_le_bytes())?;
    out.write(&(sets.len() as u32).to_le_bytes())?;
    out.write(&0u32.to_le_bytes())?;
    for offset in rows.block_offsets(rows_start) {
        out.write(&offset.to_le_bytes())?;
    }
    Ok(header)
}
