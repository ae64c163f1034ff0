//! The files the guest has open, which the server has handed over: read and written here.

use std::collections::HashMap;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use fuse::wire::{Body, Header, MAX_IO, OUT_HEADER, Opcode, Transfer, out_header};
use rustix::fs::OFlags;
use rustix::io::{Errno, ReadWriteFlags, pread, preadv2};

use super::Patience;
use super::behind::Behind;
use crate::virtio::Chain;

/// Bytes of `fuse_entry_out`, which stands before `fuse_open_out` where a file is made.
const ENTRY: usize = 128;
/// `fuse_write_out`.
const WRITE_OUT: usize = 8;

/// By the number that the server gave each.
#[derive(Default)]
pub(super) struct Files {
    open: HashMap<u64, Open>,
    buffer: Vec<u8>,
    behind: Option<Behind>,
}

struct Open {
    file: Arc<OwnedFd>,
    /// Each write is on the disk before it is answered.
    is_durable: bool,
    /// What was written in order and no disk has been told of.
    run: Range<u64>,
}

/// How far a request to move bytes got.
pub(super) enum Transferred {
    /// It is answered with so many bytes.
    Done(usize),
    /// The disk must be waited for.
    WouldWait,
}

impl Files {
    /// Has disks begin early from now on.
    pub(super) fn write_behind(&mut self) {
        self.behind.get_or_insert_with(Behind::new);
    }

    /// The guest has none of them open any more.
    pub(super) fn close_all(&mut self) {
        self.open.clear();
    }

    /// The server was asked something of these.
    pub(super) fn asked(&mut self, opcode: Option<Opcode>, body: &[u8]) {
        match opcode {
            Some(Opcode::Release) => {
                if let Ok(handle) = Body(body).u64() {
                    self.open.remove(&handle);
                }
            }
            Some(Opcode::Init | Opcode::Destroy) => self.open.clear(),
            _ => {}
        }
    }

    /// Keeps what an answer brings. Why it has to be another answer: this process has no descriptors left.
    pub(super) fn opened(
        &mut self,
        opcode: Option<Opcode>,
        answer: &[u8],
        file: Option<OwnedFd>,
    ) -> Option<Errno> {
        let at = match opcode {
            Some(Opcode::Open) => OUT_HEADER,
            Some(Opcode::Create) => OUT_HEADER + ENTRY,
            _ => return None,
        };
        // One that failed has nothing after its header.
        let handle = Body(answer.get(at..)?).u64().ok()?;
        match file {
            Some(file) => {
                let flags = rustix::fs::fcntl_getfl(&file).unwrap_or(OFlags::SYNC);
                let is_durable = flags.intersects(OFlags::SYNC | OFlags::DSYNC);
                self.open.insert(handle, Open { file: Arc::new(file), is_durable, run: 0..0 });
                None
            }
            None => Some(Errno::NFILE),
        }
    }

    pub(super) fn read(
        &mut self,
        header: &Header,
        chain: &mut Chain,
        patience: Patience,
    ) -> Result<Transferred, Errno> {
        let request = transfer(chain)?;
        let file = &self.open.get(&request.handle).ok_or(Errno::BADF)?.file;
        let room = chain.writable().checked_sub(OUT_HEADER).ok_or(Errno::INVAL)?;
        let size = (request.size as usize).min(room).min(MAX_IO);
        self.buffer.resize(OUT_HEADER + size, 0);
        let mut done = 0;
        while done < size {
            let into = &mut self.buffer[OUT_HEADER + done..];
            let at = request.offset.checked_add(done as u64).ok_or(Errno::INVAL)?;
            let result = if patience == Patience::Wait {
                pread(file, into, at)
            } else {
                let mut into = [std::io::IoSliceMut::new(into)];
                preadv2(file, &mut into, at, ReadWriteFlags::NOWAIT)
            };
            match result {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN | Errno::OPNOTSUPP) if patience == Patience::DoNotWait => {
                    return Ok(Transferred::WouldWait);
                }
                Err(errno) => return Err(errno),
            }
        }
        let len = OUT_HEADER + done;
        self.buffer[..OUT_HEADER].copy_from_slice(&out_header(len, 0, header.unique));
        Ok(Transferred::Done(chain.write(&self.buffer[..len])))
    }

    pub(super) fn write(
        &mut self,
        header: &Header,
        chain: &mut Chain,
        patience: Patience,
    ) -> Result<Transferred, Errno> {
        let request = transfer(chain)?;
        let open = self.open.get_mut(&request.handle).ok_or(Errno::BADF)?;
        // Others go to the host's page cache in less time than to another thread.
        if open.is_durable && patience == Patience::DoNotWait {
            return Ok(Transferred::WouldWait);
        }
        let size = request.size as usize;
        if size > MAX_IO || size > chain.readable() {
            return Err(Errno::INVAL);
        }
        let mut done = 0;
        while done < size {
            let at = request.offset.checked_add(done as u64).ok_or(Errno::INVAL)?;
            match chain.write_to(open.file.as_fd(), at, size - done) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                // What is written is written; whoever goes on there hears of it then.
                Err(_) if done > 0 => break,
                Err(error) => return Err(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
            }
        }
        if let (Some(behind), Some(end)) = (&self.behind, request.offset.checked_add(done as u64)) {
            behind.written(&open.file, &mut open.run, request.offset..end);
        }
        let len = OUT_HEADER + WRITE_OUT;
        let mut answer = out_header(len, 0, header.unique).to_vec();
        answer.extend_from_slice(&(done as u64).to_le_bytes());
        Ok(Transferred::Done(chain.write(&answer)))
    }
}

fn transfer(chain: &mut Chain) -> Result<Transfer, Errno> {
    let bytes = chain.read_array::<{ Transfer::BYTES }>().ok_or(Errno::INVAL)?;
    Ok(Transfer::read(&bytes))
}
