//! Where a guest's console output goes: to the owner's sink through a bounded queue, and into a short memory of
//! the last lines, which is what an error message shows when a guest dies.
//!
//! A guest that prints faster than the sink takes is slowed down: its vCPU waits until there is room. It never
//! waits longer than the machine lives ([`Console::release`]).

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::Error;

/// Bytes that wait for the sink at most.
const QUEUE_BYTES: usize = 256 << 10;
/// Bytes of output kept for error messages.
const TAIL_BYTES: usize = 16 << 10;
/// Longest line looked at for a panic message.
const LINE_BYTES: usize = 512;
/// How long the writer lets characters gather: a serial port delivers them one by one, and waking another
/// thread for each would cost more than the guest spends on printing it.
const GATHER: Duration = Duration::from_millis(2);
pub(crate) const PANIC_MARK: &str = "Kernel panic - not syncing";

#[derive(Default)]
struct State {
    queue: VecDeque<u8>,
    tail: VecDeque<u8>,
    line: Vec<u8>,
    panic: Option<String>,
    /// The writer holds bytes it has taken but not written yet.
    writing: bool,
    /// No sink, or one that failed: nothing is queued any more.
    sinkless: bool,
    /// Nobody waits any more.
    released: bool,
    closed: bool,
}

struct Shared {
    state: Mutex<State>,
    /// There is something to write, or the end has come.
    filled: Condvar,
    /// There is room, or everything was written.
    drained: Condvar,
}

/// The console output of one machine.
pub struct Console {
    shared: Arc<Shared>,
    /// Until the writer takes it.
    sink: Mutex<Option<Box<dyn Write + Send>>>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl Console {
    /// A console that hands its output to `sink` once it is started; without one only the tail is kept.
    pub fn new(sink: Option<Box<dyn Write + Send>>) -> Self {
        let state = State { sinkless: sink.is_none(), ..State::default() };
        let shared =
            Arc::new(Shared { state: Mutex::new(state), filled: Condvar::new(), drained: Condvar::new() });
        Self { shared, sink: Mutex::new(sink), writer: Mutex::new(None) }
    }

    /// Starts the thread that writes to the sink.
    ///
    /// # Errors
    /// [`Error::Thread`].
    pub fn start(&self) -> Result<(), Error> {
        let Some(sink) = self.sink.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            return Ok(());
        };
        let shared = self.shared.clone();
        let name = "console".to_owned();
        let writer = std::thread::Builder::new()
            .name(name.clone())
            .spawn(move || shared.write_out(sink))
            .map_err(|source| Error::Thread { name, source })?;
        *self.writer.lock().unwrap_or_else(PoisonError::into_inner) = Some(writer);
        Ok(())
    }

    /// What a device writes its output to.
    pub fn sink(&self) -> ConsoleSink {
        ConsoleSink(self.shared.clone())
    }

    /// The last lines, without control characters but line ends.
    pub fn tail(&self) -> String {
        let state = self.shared.lock();
        let bytes: Vec<u8> = state.tail.iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        text.chars().filter(|c| !c.is_control() || *c == '\n').collect()
    }

    /// The kernel's panic message, if it was seen.
    pub fn panic_message(&self) -> Option<String> {
        self.shared.lock().panic.clone()
    }

    /// Lets nobody wait for the sink any more: what does not fit is dropped. For the machine's end.
    pub fn release(&self) {
        self.shared.lock().released = true;
        self.shared.drained.notify_all();
    }

    /// Waits until everything is written, at most `timeout`. Says whether it is.
    pub fn flush(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut state = self.shared.lock();
        loop {
            if state.sinkless || (state.queue.is_empty() && !state.writing) {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.shared.drained.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for Console {
    /// Writes what is left, for a bounded time: a sink that blocks for ever must not keep the machine alive.
    fn drop(&mut self) {
        self.release();
        let written = self.flush(Duration::from_secs(2));
        self.shared.lock().closed = true;
        self.shared.filled.notify_all();
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer
            && written
        {
            let _ = writer.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_out(&self, mut sink: Box<dyn Write + Send>) {
        loop {
            let mut state = self.lock();
            while state.queue.is_empty() && !state.closed {
                state = self.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.queue.len() < LINE_BYTES && !state.closed && !state.released {
                drop(state);
                std::thread::sleep(GATHER);
                state = self.lock();
            }
            if state.queue.is_empty() {
                return;
            }
            let bytes = Vec::from(std::mem::take(&mut state.queue));
            state.writing = true;
            self.drained.notify_all();
            drop(state);
            let failed = sink.write_all(&bytes).and_then(|()| sink.flush()).err();
            let mut state = self.lock();
            state.writing = false;
            if let Some(error) = failed {
                tracing::debug!(%error, "console sink is gone");
                state.sinkless = true;
                state.queue.clear();
            }
            self.drained.notify_all();
        }
    }

    /// Takes as many of `bytes` as there is room for, without waiting.
    fn offer(&self, bytes: &[u8]) -> usize {
        let mut state = self.lock();
        let count = match QUEUE_BYTES.saturating_sub(state.queue.len()) {
            _ if state.sinkless || state.released => bytes.len(),
            room => room.min(bytes.len()),
        };
        state.remember(&bytes[..count]);
        let room = QUEUE_BYTES.saturating_sub(state.queue.len());
        if !state.sinkless && count > 0 {
            if state.queue.is_empty() {
                self.filled.notify_one();
            }
            state.queue.extend(&bytes[..count.min(room)]);
        }
        count
    }

    fn push(&self, mut bytes: &[u8]) {
        let mut state = self.lock();
        state.remember(bytes);
        while !bytes.is_empty() && !state.sinkless {
            let room = QUEUE_BYTES.saturating_sub(state.queue.len()).min(bytes.len());
            if room == 0 {
                if state.released {
                    return;
                }
                state = self.drained.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let was_empty = state.queue.is_empty();
            state.queue.extend(&bytes[..room]);
            bytes = &bytes[room..];
            if was_empty {
                self.filled.notify_one();
            }
        }
    }
}

impl State {
    fn remember(&mut self, bytes: &[u8]) {
        let excess = (self.tail.len() + bytes.len()).saturating_sub(TAIL_BYTES).min(self.tail.len());
        self.tail.drain(..excess);
        self.tail.extend(&bytes[bytes.len().saturating_sub(TAIL_BYTES)..]);
        for &byte in bytes {
            if byte == b'\n' {
                self.end_line();
            } else if self.line.len() < LINE_BYTES {
                self.line.push(byte);
            }
        }
    }

    fn end_line(&mut self) {
        let text = String::from_utf8_lossy(&self.line);
        if self.panic.is_none()
            && let Some(at) = text.find(PANIC_MARK)
        {
            self.panic = Some(text[at..].chars().filter(|c| !c.is_control()).collect());
        }
        self.line.clear();
    }
}

/// Takes console output; any thread, any number of them. As a [`Write`] it waits while the queue is full; as a
/// serial port's sink it takes what fits.
#[derive(Clone)]
pub struct ConsoleSink(Arc<Shared>);

impl Write for ConsoleSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl devices::serial::ConsoleSink for ConsoleSink {
    fn write(&mut self, bytes: &[u8]) -> usize {
        self.0.offer(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Collected(Arc<Mutex<Vec<u8>>>);

    impl Write for Collected {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A sink that takes nothing until told to.
    struct Gate(std::sync::mpsc::Receiver<()>);

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn everything_reaches_the_sink_in_order() {
        let sink = Collected::default();
        let console = Console::new(Some(Box::new(sink.clone())));
        console.start().unwrap();
        let text: Vec<u8> = (0..1_000_000u32).map(|i| i as u8).collect();
        for piece in text.chunks(70_001) {
            console.sink().write_all(piece).unwrap();
        }
        drop(console);
        assert!(*sink.0.lock().unwrap() == text);
    }

    #[test]
    fn a_stuck_sink_bounds_the_queue_and_release_frees_the_writer() {
        let (open, gate) = std::sync::mpsc::channel();
        let console = Arc::new(Console::new(Some(Box::new(Gate(gate)))));
        console.start().unwrap();
        let mut sink = console.sink();
        let guest = std::thread::spawn(move || sink.write_all(&vec![b'x'; 4 * QUEUE_BYTES]).unwrap());
        while console.shared.lock().queue.len() < QUEUE_BYTES {
            std::thread::yield_now();
        }
        assert!(!console.flush(Duration::from_millis(1)));
        assert!(console.shared.lock().queue.len() <= QUEUE_BYTES);
        console.release();
        guest.join().unwrap();
        drop(open);
    }

    #[test]
    fn a_panic_message_is_found_across_pieces() {
        let console = Console::new(None);
        for piece in ["[ 1.0] Kernel pa", "nic - not syncing: Attempted to kill ", "init!\r\n", "more\n"] {
            console.sink().write_all(piece.as_bytes()).unwrap();
        }
        let message = console.panic_message().unwrap();
        assert_eq!(message, "Kernel panic - not syncing: Attempted to kill init!");
        assert!(console.tail().ends_with("more\n"));
    }

    #[test]
    fn output_without_end_keeps_only_a_tail() {
        let console = Console::new(None);
        for _ in 0..1000 {
            console.sink().write_all(&[b'y'; 1000]).unwrap();
        }
        assert_eq!(console.tail().len(), TAIL_BYTES);
        assert!(console.shared.lock().line.len() <= LINE_BYTES);
    }
}
