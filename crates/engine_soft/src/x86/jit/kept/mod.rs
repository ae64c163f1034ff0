//! Translations in a file, for machines that execute the same code later.
//!
//! A kept translation is found by what was looked at to make it: the bytes of the guest's code, where in its page they are,
//! and for which privilege and width. Nothing else of a machine is in it, so it is right wherever those bytes are met.
//!
//! ```text
//! header   magic, identity, count       identity: of whoever says that its translations are of use here
//! buckets  where in the index the keys that begin with each number begin
//! index    key, offset, length          in the order of the keys, which are made of what a block begins with
//! entries  checksum and what `Entry` has
//! ```
//!
//! A kept translation is code that will be executed: whoever can write the file can do what this process can. So only who
//! may replace the program itself may write it, and never a process that ran somebody else's guest. What the checksums find
//! is damage.
// UNSAFETY: maps a file.

mod entry;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::x86::hostexec::host_features;
pub(super) use entry::{Entry, KeptPiece, KeptSite, MAX_PIECES};

const MAGIC: u64 = u64::from_le_bytes(*b"strata\x01K");
const HEADER: usize = 20;
const BUCKET: usize = 4;
const INDEX_ENTRY: usize = 16;
/// Bytes that a key is made of, if the page has so many.
pub(super) const HEAD: usize = 16;

/// What is done with translations beyond using them.
#[derive(Clone, Debug, Default)]
pub enum Keeping {
    /// Nothing.
    #[default]
    Nothing,
    /// They are recorded.
    Record(Recorder),
    /// Those of the file are used where they fit, and not made anew.
    Reuse(Arc<Kept>),
}

/// Code by what it does, for one guest and one host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Offset in the page.
    pub(super) start: u16,
    /// Whether it is of privilege level 3.
    pub(super) user: bool,
    /// Whether it is of 32 bits.
    pub(super) narrow: bool,
}

impl Place {
    /// Where in its page that is which the key is made of.
    pub(super) fn head(self) -> Range<usize> {
        let start = usize::from(self.start);
        start..(start + HEAD).min(4096)
    }

    /// The key of a block that begins here with `head`.
    pub(super) fn key(self, head: &[u8]) -> u64 {
        let place = u64::from(self.start) << 2 | u64::from(self.user) << 1 | u64::from(self.narrow);
        digest(place, head)
    }
}

/// Spreads every bit of `bytes`, from `seed`. Against accidents, not against malice.
fn digest(seed: u64, bytes: &[u8]) -> u64 {
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let mix = |sum: u64, word: u64| {
        let product = (sum ^ word).wrapping_mul(FACTOR);
        (product ^ product >> 29).wrapping_add(FACTOR)
    };
    let words = |bytes: &[u8; 32]| -> [u64; 4] {
        std::array::from_fn(|n| u64::from_le_bytes(bytes[8 * n..][..8].try_into().expect("eight bytes")))
    };
    // Four sums, for a processor that can work on them at once.
    let mut sums = [0, 1, 2, 3].map(|n| mix(seed, n));
    let (blocks, rest) = bytes.as_chunks();
    let mut last = [0; 32];
    last[..rest.len()].copy_from_slice(rest);
    for block in blocks.iter().chain([&last]) {
        for (sum, word) in sums.iter_mut().zip(words(block)) {
            *sum = mix(*sum, word);
        }
    }
    sums.into_iter().fold(bytes.len() as u64, mix)
}

/// That of translations which are right for `whose` machines on this host.
fn identity(whose: &str) -> u64 {
    digest(1, format!("{whose}\n{:?}", host_features()).as_bytes())
}

/// Takes translations down as they are made, by any number of vCPUs.
#[derive(Clone, Debug, Default)]
pub struct Recorder(Arc<Mutex<Entries>>);

/// Entries as bytes, by their keys and what was looked at.
type Entries = BTreeMap<(u64, Vec<u8>), Vec<u8>>;

impl Recorder {
    /// Takes down `entry`, which was made from `page`.
    pub(super) fn add(&self, entry: &Entry<'_>, page: &[u8]) {
        let place = entry.place();
        let (Some(bytes), Some(head)) = (entry.to_bytes(), page.get(place.head())) else { return };
        let key = place.key(head);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert((key, entry.guest.to_vec()), bytes);
    }

    /// The file of what was recorded, for [`Kept::open`] of the same `whose`. Empties the recorder.
    pub fn finish(&self, whose: &str) -> Vec<u8> {
        let entries = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let mut file = [MAGIC.to_le_bytes(), identity(whose).to_le_bytes()].concat();
        file.extend_from_slice(&(entries.len() as u32).to_le_bytes());
        let mut keys = entries.keys().map(|(key, _)| *key).peekable();
        let (mut before, bits) = (0u32, bucket_bits(entries.len()));
        for bucket in 0..1u64 << bits {
            file.extend_from_slice(&before.to_le_bytes());
            while keys.next_if(|key| bucket_of(*key, bits) as u64 == bucket).is_some() {
                before += 1;
            }
        }
        let mut offset = file.len() + entries.len() * INDEX_ENTRY;
        for ((key, _), bytes) in &entries {
            let len = bytes.len() + 8;
            file.extend_from_slice(&key.to_le_bytes());
            file.extend([offset as u32, len as u32].into_iter().flat_map(u32::to_le_bytes));
            offset += len;
        }
        for ((key, _), bytes) in &entries {
            file.extend_from_slice(&digest(*key, bytes).to_le_bytes());
            file.extend_from_slice(bytes);
        }
        file
    }
}

/// How many bits of a key say which bucket it is in, of so many keys.
fn bucket_bits(count: usize) -> u32 {
    count.next_power_of_two().trailing_zeros()
}

fn bucket_of(key: u64, bits: u32) -> usize {
    key.checked_shr(u64::BITS - bits).unwrap_or(0) as usize
}

/// A file of translations.
#[derive(Debug)]
pub struct Kept {
    base: NonNull<u8>,
    len: usize,
    count: usize,
    used: AtomicU64,
}

// SAFETY: a mapping that is only read and does not depend on a thread.
unsafe impl Send for Kept {}
// SAFETY: as above.
unsafe impl Sync for Kept {}

impl Kept {
    /// The translations in `file`, which only who may replace this program can write, and nobody shortens meanwhile.
    ///
    /// # Errors
    /// `InvalidData` if they are not of `whose` machines on such a host by such a program; else the host's.
    pub fn open(file: &File, whose: &str) -> io::Result<Self> {
        let len = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
        let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what);
        if !(HEADER..=u32::MAX as usize).contains(&len) {
            return Err(invalid("no file of translations"));
        }
        // SAFETY: a mapping at an address the kernel picks touches nothing that exists.
        let base = unsafe {
            let flags = libc::MAP_PRIVATE;
            libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ, flags, file.as_raw_fd(), 0)
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).expect("mmap never returns null");
        let mut kept = Self { base, len, count: 0, used: AtomicU64::new(0) };
        let bytes = kept.bytes();
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        if word(0) != MAGIC {
            return Err(invalid("no file of translations"));
        }
        if word(8) != identity(whose) {
            return Err(invalid("translations of another machine"));
        }
        let count = u32::from_le_bytes(bytes[16..HEADER].try_into().expect("four bytes")) as usize;
        let tables =
            (BUCKET << bucket_bits(count.min(len))).saturating_add(count.saturating_mul(INDEX_ENTRY));
        if tables > len - HEADER {
            return Err(invalid("a cut file of translations"));
        }
        kept.count = count;
        Ok(kept)
    }

    /// How often one was used.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Counts one that is used.
    pub(super) fn note_use(&self) {
        self.used.fetch_add(1, Ordering::Relaxed);
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping has this length and is there as long as this value; nobody writes the file.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.len) }
    }

    /// Where in the index the bucket of `key` begins, and the index.
    fn index(&self, key: u64) -> (usize, &[[u8; INDEX_ENTRY]]) {
        let bits = bucket_bits(self.count);
        let (buckets, rest) = self.bytes()[HEADER..].split_at(BUCKET << bits);
        let first =
            buckets.as_chunks().0.get(bucket_of(key, bits)).map_or(0, |first| u32::from_le_bytes(*first));
        (first as usize, rest[..self.count * INDEX_ENTRY].as_chunks().0)
    }

    /// The translations of blocks with `key`; damaged ones are none.
    pub(super) fn with(&self, key: u64) -> impl Iterator<Item = Entry<'_>> {
        let key_of =
            |entry: &[u8; INDEX_ENTRY]| u64::from_le_bytes(*entry.first_chunk().expect("eight bytes"));
        let (first, index) = self.index(key);
        let behind = index.get(first..).unwrap_or_default().iter();
        let found =
            behind.skip_while(move |entry| key_of(entry) < key).take_while(move |entry| key_of(entry) == key);
        found.filter_map(move |entry| {
            let word =
                |at: usize| u32::from_le_bytes(entry[at..at + 4].try_into().expect("four bytes")) as usize;
            let bytes = self.bytes().get(word(8)..)?.get(..word(12))?;
            let (sum, bytes) = bytes.split_first_chunk()?;
            let whole = u64::from_le_bytes(*sum) == digest(key, bytes);
            whole.then(|| Entry::from_bytes(bytes)).flatten()
        })
    }

    /// Lets the host have the memory of what was read; it is read again when it is needed.
    pub(super) fn give_back(&self) {
        // SAFETY: pages of a file that was never written to come back as they were.
        unsafe { libc::madvise(self.base.as_ptr().cast(), self.len, libc::MADV_DONTNEED) };
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // SAFETY: this value's own mapping, of which no slice is left.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Kind, Site};
    use super::*;
    use std::io::Write;

    const PIECE: KeptPiece = KeptPiece { start: 0x10, len: 20, count: 5 };

    fn entry<'a>(pieces: &'a [u8], guest: &'a [u8], code: &'a [u8], sites: &'a [u8]) -> Entry<'a> {
        Entry { pieces, seen: (0x40, 0x44), guest, code, sites, inner: 3, ready: 9, ..Entry::default() }
    }

    fn agrees(entry: &Entry<'_>, page: &[u8]) -> bool {
        entry.parts().all(|part| part.is_some_and(|(range, bytes)| page[range] == *bytes))
    }

    fn page() -> Vec<u8> {
        (0..4096u32).map(|n| (n * 7) as u8).collect()
    }

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn recorded(site: &[u8]) -> (Vec<u8>, u64, Vec<u8>) {
        let page = page();
        let pieces = PIECE.to_bytes();
        let guest = entry(&pieces, &[], &[], &[]).guest_of(&page).unwrap();
        let recorder = Recorder::default();
        recorder.add(&entry(&pieces, &guest, &[0xc3; 40], site), &page);
        let key = Place { start: 0x10, user: false, narrow: false }.key(&guest[..HEAD]);
        (recorder.finish("test"), key, guest)
    }

    #[test]
    fn what_was_recorded_is_found_where_the_guest_has_the_same_bytes() {
        let site =
            Site { kind: Kind::Fill, register: 3, distance: -8, ip: 77, resume: 12, op: 4, ..Site::lost() };
        let site = KeptSite { site, piece: 0 };
        let (bytes, key, guest) = recorded(&site.to_bytes());
        let kept = Kept::open(&file(&bytes), "test").unwrap();
        let found: Vec<_> = kept.with(key).collect();
        assert_eq!(found, [entry(&PIECE.to_bytes(), &guest, &[0xc3; 40], &site.to_bytes())]);
        assert_eq!(found[0].sites().collect::<Vec<_>>(), [Some(site)]);
        assert_eq!(kept.with(key + 1).count(), 0);
        let mut page = page();
        assert!(agrees(&found[0], &page));
        for (at, matters) in [(0x0f, false), (0x10, true), (0x23, true), (0x24, false), (0x43, true)] {
            page[at] ^= 1;
            assert_eq!(agrees(&found[0], &page), !matters, "byte {at:#x}");
            page[at] ^= 1;
        }
    }

    #[test]
    fn others_translations_and_no_translations_are_refused() {
        let (bytes, ..) = recorded(&[]);
        let refused = |bytes: &[u8], whose| Kept::open(&file(bytes), whose).unwrap_err().to_string();
        assert_eq!(refused(&bytes, "another"), "translations of another machine");
        assert_eq!(refused(&bytes[1..], "test"), "no file of translations");
        assert_eq!(refused(&bytes[..10], "test"), "no file of translations");
        assert_eq!(refused(&bytes[..HEADER], "test"), "a cut file of translations");
    }

    #[test]
    fn what_is_damaged_or_cut_anywhere_is_not_found() {
        let site = KeptSite { site: Site::lost(), piece: 0 };
        let (bytes, key, _) = recorded(&site.to_bytes());
        for at in HEADER..bytes.len() {
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << bit;
                assert_eq!(Kept::open(&file(&damaged), "test").unwrap().with(key).count(), 0, "byte {at}");
            }
            let cut = Kept::open(&file(&bytes[..at]), "test");
            assert_eq!(cut.map_or(0, |kept| kept.with(key).count()), 0);
        }
    }
}
