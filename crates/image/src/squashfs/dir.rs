//! Folder listings: runs of entries under headers, and an index for the long ones.

use super::metadata::{MetaTable, Place};

/// Entries under one header.
const MAX_RUN: usize = 256;

/// One name of a folder.
pub(super) struct Item<'t> {
    pub(super) name: &'t [u8],
    pub(super) place: Place,
    pub(super) number: u32,
    /// The basic inode type, 1 to 7.
    pub(super) kind: u16,
}

/// A row of the index of a folder: where a header lies and the first name under it.
pub(super) struct IndexRow<'t> {
    /// Bytes of the listing before the header.
    pub(super) offset: u32,
    pub(super) block: u32,
    pub(super) name: &'t [u8],
}

/// Where a listing lies and how long it is.
pub(super) struct Listing<'t> {
    pub(super) place: Place,
    pub(super) bytes: usize,
    pub(super) index: Vec<IndexRow<'t>>,
}

/// Adds the listing of one folder, whose items are sorted by name, to the table of folders.
pub(super) fn write<'t>(table: &mut MetaTable, items: &[Item<'t>]) -> Option<Listing<'t>> {
    let start = table.len();
    let mut listing = Listing { place: table.place()?, bytes: 0, index: Vec::new() };
    let mut indexed_block = table.block_index();
    let mut rest = items;
    while let Some(first) = rest.first() {
        if table.block_index() != indexed_block {
            indexed_block = table.block_index();
            let offset = u32::try_from(table.len() - start).ok()?;
            listing.index.push(IndexRow { offset, block: table.place()?.block, name: first.name });
        }
        let taken = write_run(table, rest);
        rest = &rest[taken..];
    }
    listing.bytes = table.len() - start;
    Some(listing)
}

/// One header and the entries that share its inode block, number base and metadata block. Gives how many.
fn write_run(table: &mut MetaTable, items: &[Item<'_>]) -> usize {
    let first = &items[0];
    let block = table.block_index();
    let mut at = table.len() + 12;
    let mut count = 0;
    for item in items.iter().take(MAX_RUN) {
        let near = i16::try_from(i64::from(item.number) - i64::from(first.number)).is_ok();
        let same_block = at / 8192 == block || count == 0;
        if item.place.block != first.place.block || !near || !same_block {
            break;
        }
        at += 8 + item.name.len();
        count += 1;
    }
    table.push(&(count as u32 - 1).to_le_bytes());
    table.push(&first.place.block.to_le_bytes());
    table.push(&first.number.to_le_bytes());
    for item in &items[..count] {
        let delta = (i64::from(item.number) - i64::from(first.number)) as i16;
        table.push(&item.place.offset.to_le_bytes());
        table.push(&delta.to_le_bytes());
        table.push(&item.kind.to_le_bytes());
        table.push(&(item.name.len() as u16 - 1).to_le_bytes());
        table.push(item.name);
    }
    count
}
