//! One request: a descriptor chain, checked, as a readable part followed by a writable part.
//!
//! Virtio 1.2, sections 2.7.5 (descriptors) and 2.7.5.3 (indirect descriptors). Buffers are scattered over
//! guest RAM and may be changed by the guest at any time, so they are copied or handed to system calls as
//! volatile slices, never referenced.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use memory::{GuestRam, PageTracker};
use virtio_queue::DescriptorChain;
use vm_memory::bitmap::RefSlice;
use vm_memory::{
    GuestAddress, GuestMemory, GuestMemoryBackend, Permissions, ReadVolatile, VolatileMemoryError,
    VolatileSlice, WriteVolatile,
};

/// Descriptors in one chain beyond which it is refused, if the ring is no larger: as many as one vectored
/// system call takes. Drivers may exceed the ring's size with indirect tables; an attack could otherwise have
/// 65535 segments looked at per request.
const MAX_SEGMENTS: usize = 1024;

/// Guest memory as devices see it.
pub type Slice<'a> = VolatileSlice<'a, RefSlice<'a, PageTracker>>;

#[derive(Clone, Copy, Debug)]
struct Segment {
    gpa: GuestAddress,
    len: usize,
}

/// A checked descriptor chain: every segment is in RAM, readable ones come before writable ones, and both
/// parts together are shorter than 4 GiB. Reading and writing advance a cursor each.
pub struct Chain {
    ram: Arc<GuestRam>,
    head: u16,
    segments: Vec<Segment>,
    readable: Cursor,
    writable: Cursor,
    /// Where the cursors stood at first.
    start: (Cursor, Cursor),
}

#[derive(Clone, Copy, Debug, Default)]
struct Cursor {
    segment: usize,
    offset: usize,
    remaining: usize,
}

impl Chain {
    /// Walks `descriptors`.
    ///
    /// # Errors
    /// What is wrong with the chain.
    pub(crate) fn collect(
        mut descriptors: DescriptorChain<&memory::Backend>,
        queue_size: u16,
        ram: &Arc<GuestRam>,
    ) -> Result<Self, &'static str> {
        let limit = MAX_SEGMENTS.max(usize::from(queue_size));
        let mut chain = Self {
            ram: Arc::clone(ram),
            head: descriptors.head_index(),
            segments: Vec::new(),
            readable: Cursor::default(),
            writable: Cursor::default(),
            start: Default::default(),
        };
        // The iterator ends silently where a chain is cut short; the flags of the last descriptor tell.
        let mut complete = false;
        for descriptor in &mut descriptors {
            if chain.segments.len() == limit {
                return Err("descriptor chain is too long");
            }
            complete = !descriptor.has_next();
            chain.push(descriptor.addr(), descriptor.len() as usize, descriptor.is_write_only())?;
        }
        chain.start = (chain.readable, chain.writable);
        if complete { Ok(chain) } else { Err("descriptor chain has a loop or a bad index") }
    }

    fn push(&mut self, gpa: GuestAddress, len: usize, writable: bool) -> Result<(), &'static str> {
        let started_writing = self.writable.remaining > 0;
        if !writable && started_writing {
            return Err("readable descriptor after a writable one");
        }
        if len == 0 {
            return Ok(());
        }
        if !GuestMemory::check_range(self.ram.backend(), gpa, len, Permissions::ReadWrite) {
            return Err("descriptor outside of ram");
        }
        if writable {
            if !started_writing {
                self.writable.segment = self.segments.len();
            }
            self.writable.remaining += len;
        } else {
            self.readable.remaining += len;
        }
        self.segments.push(Segment { gpa, len });
        Ok(())
    }

    /// Index of the chain's first descriptor.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Bytes not read yet.
    pub fn readable(&self) -> usize {
        self.readable.remaining
    }

    /// Bytes not written yet.
    pub fn writable(&self) -> usize {
        self.writable.remaining
    }

    /// Reads as much as is there into `data` and says how much that was.
    pub fn read(&mut self, data: &mut [u8]) -> usize {
        let mut done = 0;
        while done < data.len() {
            let Some(slice) = self.readable_slice(data.len() - done) else { break };
            let count = slice.copy_to(&mut data[done..done + slice.len()]);
            self.skip_readable(count);
            done += count;
        }
        done
    }

    /// Reads exactly `N` bytes; `None` if fewer are there.
    pub fn read_array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let mut data = [0; N];
        (self.readable() >= N && self.read(&mut data) == N).then_some(data)
    }

    /// Writes as much of `data` as there is room for and says how much that was.
    pub fn write(&mut self, data: &[u8]) -> usize {
        let mut done = 0;
        while done < data.len() {
            let Some(slice) = self.writable_slice(data.len() - done) else { break };
            let count = slice.len();
            slice.copy_from(&data[done..done + count]);
            self.skip_writable(count);
            done += count;
        }
        done
    }

    /// One read of at most `limit` bytes from `source` straight into guest memory. 0 is the end of `source`
    /// (or no room in the chain).
    ///
    /// # Errors
    /// What `source` says; `WouldBlock` included.
    pub fn fill_from(&mut self, source: &mut impl ReadVolatile, limit: usize) -> io::Result<usize> {
        let Some(mut slice) = self.writable_slice(limit) else { return Ok(0) };
        let count = source.read_volatile(&mut slice).map_err(io_error)?;
        self.skip_writable(count);
        Ok(count)
    }

    /// One write of at most `limit` bytes from guest memory straight to `sink`.
    ///
    /// # Errors
    /// What `sink` says; `WouldBlock` included.
    pub fn drain_to(&mut self, sink: &mut impl WriteVolatile, limit: usize) -> io::Result<usize> {
        let Some(slice) = self.readable_slice(limit) else { return Ok(0) };
        let count = sink.write_volatile(&slice).map_err(io_error)?;
        self.skip_readable(count);
        Ok(count)
    }

    /// One write of at most `limit` bytes to `file` at `offset`, of all pieces at once and straight from guest memory. 0 if
    /// there is nothing to write.
    ///
    /// # Errors
    /// What `file` says.
    pub fn write_to(&mut self, file: BorrowedFd<'_>, offset: u64, limit: usize) -> io::Result<usize> {
        let mut left = limit;
        let pieces = ranges(&self.segments, self.readable).map_while(|(gpa, len)| {
            let len = len.min(left);
            left -= len;
            (len > 0).then_some((gpa, len))
        });
        let count = self.ram.write_to(pieces, file, offset)?;
        self.skip_readable(count);
        Ok(count)
    }

    /// Puts both cursors back to the start.
    pub fn rewind(&mut self) {
        (self.readable, self.writable) = self.start;
    }

    /// Moves the reading cursor on by `count` bytes, or to the end.
    pub fn skip_readable(&mut self, count: usize) {
        self.readable.advance(&self.segments, count);
    }

    /// Moves the writing cursor on by `count` bytes, or to the end.
    pub fn skip_writable(&mut self, count: usize) {
        self.writable.advance(&self.segments, count);
    }

    /// The next contiguous readable bytes, at most `limit`.
    pub fn readable_slice(&self, limit: usize) -> Option<Slice<'_>> {
        self.slice(self.readable, limit)
    }

    /// The next contiguous writable bytes, at most `limit`.
    pub fn writable_slice(&self, limit: usize) -> Option<Slice<'_>> {
        self.slice(self.writable, limit)
    }

    /// Guest physical address and bytes of each piece of the writable part that is left.
    pub fn writable_ranges(&self) -> impl Iterator<Item = (u64, usize)> + '_ {
        ranges(&self.segments, self.writable)
    }

    fn slice(&self, cursor: Cursor, limit: usize) -> Option<Slice<'_>> {
        if cursor.remaining == 0 || limit == 0 {
            return None;
        }
        let segment = self.segments.get(cursor.segment)?;
        let gpa = GuestAddress(segment.gpa.0 + cursor.offset as u64);
        let len = (segment.len - cursor.offset).min(limit);
        // A segment may span RAM regions; the first piece is enough, the cursor comes back for the rest.
        GuestMemoryBackend::get_slices(self.ram.backend(), gpa, len).next()?.ok()
    }
}

/// Guest physical address and bytes of each piece from `cursor` on.
fn ranges(segments: &[Segment], mut cursor: Cursor) -> impl Iterator<Item = (u64, usize)> + '_ {
    std::iter::from_fn(move || {
        if cursor.remaining == 0 {
            return None;
        }
        let segment = segments.get(cursor.segment)?;
        let (gpa, len) = (segment.gpa.0 + cursor.offset as u64, segment.len - cursor.offset);
        // The readable part ends where the writable one begins.
        let len = len.min(cursor.remaining);
        cursor.advance(segments, len);
        Some((gpa, len))
    })
}

impl Cursor {
    fn advance(&mut self, segments: &[Segment], count: usize) {
        let mut count = count.min(self.remaining);
        self.remaining -= count;
        while let Some(segment) = segments.get(self.segment) {
            let left = segment.len - self.offset;
            if count < left {
                self.offset += count;
                return;
            }
            count -= left;
            self.segment += 1;
            self.offset = 0;
            if count == 0 {
                return;
            }
        }
    }
}

fn io_error(error: VolatileMemoryError) -> io::Error {
    match error {
        VolatileMemoryError::IOError(error) => error,
        other => io::Error::other(other),
    }
}
