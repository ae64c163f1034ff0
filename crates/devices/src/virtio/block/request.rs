//! One block request: header, data, status (virtio 1.2, section 5.2.6).

use std::io;

use disk::{SECTOR_SIZE, Unmap};
use virtio_bindings::virtio_blk as blk;

use super::super::Chain;
use super::{RANGE_SECTORS_MAX, RANGE_SEGMENTS_MAX, Shared};

/// Data goes through a buffer of at most this many bytes, whatever the request's length.
const CHUNK_BYTES: usize = 256 << 10;
const RANGE_BYTES: usize = 16;

/// A parsed header. The chain's cursors stand at the data.
pub(super) struct Request {
    kind: u32,
    sector: u64,
    /// Bytes between header and status, in whichever direction.
    data_in: usize,
    pub write_through: bool,
}

/// What came of a request that may not wait.
pub(super) enum Outcome {
    /// It is done, with this status.
    Done(u8),
    /// It needs the disk.
    WouldWait,
}

impl Request {
    /// Reads the header. `None` if the chain has no room for a header or a status.
    pub fn parse(chain: &mut Chain) -> Option<Self> {
        let header: [u8; 16] = chain.read_array()?;
        let data_in = chain.writable().checked_sub(1)?;
        let (kind, rest) = header.split_first_chunk::<4>()?;
        let sector = rest.last_chunk::<8>()?;
        Some(Self {
            kind: u32::from_le_bytes(*kind),
            sector: u64::from_le_bytes(*sector),
            data_in,
            write_through: false,
        })
    }

    /// Bytes of the disk that it reads or writes.
    pub fn data_bytes(&self, chain: &Chain) -> usize {
        match self.kind {
            blk::VIRTIO_BLK_T_IN => self.data_in,
            blk::VIRTIO_BLK_T_OUT => chain.readable(),
            _ => 0,
        }
    }

    /// Serves the request if that takes no waiting.
    pub fn run_cached(&self, shared: &Shared, chain: &mut Chain, buffer: &mut Vec<u8>) -> Outcome {
        match self.kind {
            blk::VIRTIO_BLK_T_IN if self.data_in <= CHUNK_BYTES => {
                let Ok(offset) = self.start(self.data_in) else { return Outcome::Done(IOERR) };
                let data = sized(buffer, self.data_in);
                match shared.disk.read_cached_at(data, offset) {
                    Ok(true) => {
                        chain.write(data);
                        Outcome::Done(OK)
                    }
                    Ok(false) => Outcome::WouldWait,
                    Err(_) => Outcome::Done(IOERR),
                }
            }
            blk::VIRTIO_BLK_T_GET_ID => {
                let len = self.data_in.min(shared.id.len());
                chain.write(&shared.id[..len]);
                Outcome::Done(OK)
            }
            blk::VIRTIO_BLK_T_IN
            | blk::VIRTIO_BLK_T_OUT
            | blk::VIRTIO_BLK_T_FLUSH
            | blk::VIRTIO_BLK_T_DISCARD
            | blk::VIRTIO_BLK_T_WRITE_ZEROES => Outcome::WouldWait,
            _ => Outcome::Done(UNSUPP),
        }
    }

    /// Serves the request, waiting for the disk, and gives its status.
    pub fn run(&self, shared: &Shared, chain: &mut Chain, buffer: &mut Vec<u8>) -> u8 {
        let result = match self.kind {
            blk::VIRTIO_BLK_T_IN => self.read(shared, chain, buffer),
            blk::VIRTIO_BLK_T_OUT => self.write(shared, chain, buffer),
            blk::VIRTIO_BLK_T_FLUSH => shared.disk.flush().map(|()| OK),
            _ => self.ranges(shared, chain),
        };
        result.unwrap_or_else(|error| {
            tracing::debug!(kind = self.kind, sector = self.sector, %error, "block request");
            IOERR
        })
    }

    /// Puts `status` into the last byte of the chain.
    pub fn finish(&self, chain: &mut Chain, status: u8) {
        chain.skip_writable(chain.writable().saturating_sub(1));
        chain.write(&[status]);
    }

    /// Offset of the first byte on the disk, for a transfer of `len` bytes.
    fn start(&self, len: usize) -> io::Result<u64> {
        let whole = (len as u64).is_multiple_of(SECTOR_SIZE);
        let offset = self.sector.checked_mul(SECTOR_SIZE).filter(|_| whole);
        offset.ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }

    fn read(&self, shared: &Shared, chain: &mut Chain, buffer: &mut Vec<u8>) -> io::Result<u8> {
        let mut offset = self.start(self.data_in)?;
        check_end(shared, offset, self.data_in)?;
        let mut left = self.data_in;
        while left > 0 {
            let data = sized(buffer, left.min(CHUNK_BYTES));
            shared.disk.read_at(data, offset)?;
            chain.write(data);
            offset += data.len() as u64;
            left -= data.len();
        }
        Ok(OK)
    }

    fn write(&self, shared: &Shared, chain: &mut Chain, buffer: &mut Vec<u8>) -> io::Result<u8> {
        let mut offset = self.start(chain.readable())?;
        check_end(shared, offset, chain.readable())?;
        while chain.readable() > 0 {
            let data = sized(buffer, chain.readable().min(CHUNK_BYTES));
            chain.read(data);
            shared.disk.write_at(data, offset)?;
            offset += data.len() as u64;
        }
        if self.write_through {
            shared.disk.flush()?;
        }
        Ok(OK)
    }

    /// Discard and write zeroes: a list of ranges (section 5.2.6.1), checked whole before the first is done.
    fn ranges(&self, shared: &Shared, chain: &mut Chain) -> io::Result<u8> {
        let count = chain.readable() / RANGE_BYTES;
        if !chain.readable().is_multiple_of(RANGE_BYTES) || count == 0 || count > RANGE_SEGMENTS_MAX as usize
        {
            return Ok(IOERR);
        }
        let mut ranges = Vec::with_capacity(count);
        while let Some(bytes) = chain.read_array::<RANGE_BYTES>() {
            let Some(range) = Range::parse(&bytes) else { return Ok(IOERR) };
            let allowed = if self.kind == blk::VIRTIO_BLK_T_WRITE_ZEROES { UNMAP } else { 0 };
            if range.flags & !allowed != 0 {
                return Ok(UNSUPP);
            }
            check_end(shared, range.offset, range.len as usize)?;
            ranges.push(range);
        }
        for Range { offset, len, flags } in ranges {
            match self.kind {
                blk::VIRTIO_BLK_T_DISCARD => shared.disk.discard(offset, len)?,
                _ if flags & UNMAP != 0 => shared.disk.write_zeroes(offset, len, Unmap::Free)?,
                _ => shared.disk.write_zeroes(offset, len, Unmap::Keep)?,
            }
        }
        if self.write_through {
            shared.disk.flush()?;
        }
        Ok(OK)
    }
}

struct Range {
    offset: u64,
    len: u64,
    flags: u32,
}

impl Range {
    /// `None` if it is longer than the device allows or off the end of any disk.
    fn parse(bytes: &[u8; RANGE_BYTES]) -> Option<Self> {
        let (sector, rest) = bytes.split_first_chunk::<8>()?;
        let (sectors, rest) = rest.split_first_chunk::<4>()?;
        let sectors = u32::from_le_bytes(*sectors);
        let offset = u64::from_le_bytes(*sector).checked_mul(SECTOR_SIZE)?;
        let flags = u32::from_le_bytes(*rest.first_chunk::<4>()?);
        let len = u64::from(sectors) * SECTOR_SIZE;
        (sectors <= RANGE_SECTORS_MAX).then_some(Self { offset, len, flags })
    }
}

const OK: u8 = blk::VIRTIO_BLK_S_OK as u8;
const IOERR: u8 = blk::VIRTIO_BLK_S_IOERR as u8;
const UNSUPP: u8 = blk::VIRTIO_BLK_S_UNSUPP as u8;
/// Flag of a write-zeroes range: the space may be freed.
const UNMAP: u32 = 1;

fn check_end(shared: &Shared, offset: u64, len: usize) -> io::Result<()> {
    let end = offset.checked_add(len as u64);
    if end.is_some_and(|end| end <= shared.disk.size_bytes()) {
        return Ok(());
    }
    Err(io::ErrorKind::InvalidInput.into())
}

fn sized(buffer: &mut Vec<u8>, len: usize) -> &mut [u8] {
    if buffer.len() < len {
        buffer.resize(len, 0);
    }
    &mut buffer[..len]
}
