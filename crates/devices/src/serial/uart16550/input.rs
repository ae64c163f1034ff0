//! The other end of a UART's receive pin: hands bytes over from another thread, waiting while there is no room.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

use super::Uart16550;
use crate::bus::lock;

/// Says that the receiver has room again.
#[derive(Default)]
pub(super) struct Room {
    /// How often there was room, and whether nobody waits any more.
    state: Mutex<(u64, bool)>,
    changed: Condvar,
}

impl Room {
    pub(super) fn announce(&self) {
        lock(&self.state).0 += 1;
        self.changed.notify_all();
    }
}

/// The other end of a UART's receive pin. Any thread; order among several is theirs to keep.
#[derive(Clone)]
pub struct SerialInput {
    uart: Arc<Mutex<Uart16550>>,
    room: Arc<Room>,
}

impl SerialInput {
    /// The receive pin of `uart`.
    pub fn new(uart: Arc<Mutex<Uart16550>>) -> Self {
        let room = lock(&uart).room.clone();
        Self { uart, room }
    }

    /// Hands all of `bytes` to the guest, waiting while its receiver is full. `false` if [`Self::close`] came
    /// first.
    pub fn push(&self, mut bytes: &[u8]) -> bool {
        loop {
            let (seen, closed) = *lock(&self.room.state);
            if closed {
                return false;
            }
            let taken = lock(&self.uart).receive(bytes);
            bytes = &bytes[taken..];
            if bytes.is_empty() {
                return true;
            }
            let state = lock(&self.room.state);
            let is_full = |s: &mut (u64, bool)| s.0 == seen && !s.1;
            drop(self.room.changed.wait_while(state, is_full).unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// Ends every present and future [`Self::push`].
    pub fn close(&self) {
        lock(&self.room.state).1 = true;
        self.room.changed.notify_all();
    }
}
