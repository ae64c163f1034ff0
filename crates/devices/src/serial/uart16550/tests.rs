use std::sync::Mutex;

use super::*;
use crate::chipset::testing::Recorder;

/// A reader that takes `room` bytes and then no more.
#[derive(Clone)]
struct Reader(Arc<Mutex<(Vec<u8>, usize)>>);

impl ConsoleSink for Reader {
    fn write(&mut self, bytes: &[u8]) -> usize {
        let mut state = self.0.lock().unwrap();
        let taken = bytes.len().min(state.1);
        state.0.extend(&bytes[..taken]);
        state.1 -= taken;
        taken
    }
}

fn uart(room: usize) -> (Arc<Recorder>, Reader, Uart16550) {
    let recorder = Recorder::new();
    let reader = Reader(Arc::new(Mutex::new((Vec::new(), room))));
    let uart = Uart16550::new("serial0", recorder.line(4), Box::new(reader.clone()), recorder.clock.clone());
    (recorder, reader, uart)
}

const LOTS: usize = 1 << 20;

#[test]
fn bytes_come_out_in_order_and_the_transmitter_is_empty() {
    let (_, reader, mut uart) = uart(LOTS);
    for byte in b"hello" {
        assert_eq!(uart.read(reg::LSR) & 0x60, 0x60);
        uart.write(reg::DATA, *byte);
    }
    assert_eq!(reader.0.lock().unwrap().0, b"hello");
}

#[test]
fn a_reader_that_takes_nothing_fills_the_fifo_and_loses_nothing_the_guest_waited_for() {
    let (recorder, reader, mut uart) = uart(1);
    uart.write(reg::IIR, 1);
    for byte in 0..17 {
        uart.write(reg::DATA, byte);
    }
    assert_eq!(uart.read(reg::LSR) & 0x60, 0);
    // One more into the full FIFO is the guest's loss.
    uart.write(reg::DATA, 99);
    assert_eq!(uart.next_deadline(), Some(RETRY_NS));
    uart.write(reg::MCR, 8);
    uart.write(reg::IER, 2);
    assert!(!recorder.level(4));
    reader.0.lock().unwrap().1 = LOTS;
    recorder.clock.set(RETRY_NS);
    uart.advance(RETRY_NS);
    assert_eq!(reader.0.lock().unwrap().0, (0..17).collect::<Vec<_>>());
    assert!(recorder.level(4));
    assert_eq!((uart.next_deadline(), uart.read(reg::LSR) & 0x60), (None, 0x60));
}

#[test]
fn the_transmit_interrupt_is_cleared_by_reading_iir() {
    let (recorder, _, mut uart) = uart(LOTS);
    uart.write(reg::MCR, 8);
    uart.write(reg::IER, 2);
    assert!(recorder.level(4));
    assert_eq!(uart.read(reg::IIR), 0x02);
    assert!(!recorder.level(4));
    assert_eq!(uart.read(reg::IIR), 0x01);
    uart.write(reg::DATA, b'x');
    assert_eq!(uart.read(reg::IIR), 0x02);
}

#[test]
fn without_out2_the_line_is_quiet() {
    let (recorder, _, mut uart) = uart(LOTS);
    uart.write(reg::IER, 2);
    assert!(!recorder.level(4));
}

#[test]
fn received_bytes_interrupt_at_the_trigger_level_and_time_out_below() {
    let (recorder, _, mut uart) = uart(LOTS);
    uart.write(reg::MCR, 8);
    uart.write(reg::IIR, 0x41);
    uart.write(reg::IER, 1);
    assert_eq!(uart.receive(b"abcde"), 5);
    assert!(recorder.level(4));
    assert_eq!(uart.read(reg::IIR), 0xc4);
    assert_eq!([uart.read(reg::DATA), uart.read(reg::DATA)], *b"ab");
    assert_eq!(uart.read(reg::IIR), 0xcc);
    assert_eq!([uart.read(reg::DATA), uart.read(reg::DATA), uart.read(reg::DATA)], *b"cde");
    assert!(!recorder.level(4));
    assert_eq!((uart.read(reg::IIR), uart.read(reg::LSR) & 1), (0xc1, 0));
}

#[test]
fn without_fifo_one_byte_is_received_at_a_time() {
    let (_, _, mut uart) = uart(LOTS);
    assert_eq!(uart.receive(b"ab"), 1);
    assert_eq!(uart.receive(b"b"), 0);
    assert_eq!(uart.read(reg::DATA), b'a');
    assert_eq!(uart.receive(b"b"), 1);
}

#[test]
fn loopback_returns_data_and_modem_lines() {
    let (_, reader, mut uart) = uart(LOTS);
    assert_eq!(uart.read(reg::MSR), 0xb0);
    // What a driver's probe does: DTR and OUT1 on, RTS and OUT2 off, then the other way round.
    uart.write(reg::MCR, 0x1a);
    assert_eq!(uart.read(reg::MSR) & 0xf0, 0x90);
    uart.write(reg::MCR, 0x10);
    assert_eq!(uart.read(reg::MSR), 0x09);
    uart.write(reg::DATA, 0x5a);
    uart.write(reg::DATA, 0x5b);
    assert_eq!(uart.read(reg::LSR) & 0x03, 0x03, "overrun: there is room for one");
    assert_eq!(uart.read(reg::LSR) & 0x03, 0x01);
    assert_eq!(uart.read(reg::DATA), 0x5a);
    assert!(reader.0.lock().unwrap().0.is_empty());
}

#[test]
fn divisor_scratch_and_ids_read_back() {
    let (_, _, mut uart) = uart(LOTS);
    uart.write(reg::LCR, 0x83);
    uart.write(reg::DATA, 0x34);
    uart.write(reg::IER, 0x12);
    assert_eq!([uart.read(reg::DATA), uart.read(reg::IER)], [0x34, 0x12]);
    uart.write(reg::LCR, 0x03);
    assert_eq!(uart.read(reg::IER), 0);
    uart.write(reg::SCR, 0xa5);
    assert_eq!(uart.read(reg::SCR), 0xa5);
    assert_eq!(uart.read(reg::IIR) & 0xc0, 0);
    uart.write(reg::IIR, 1);
    assert_eq!(uart.read(reg::IIR) & 0xc0, 0xc0, "a 16550A");
}

#[test]
fn input_waits_for_room_and_arrives_whole() {
    let (_, _, uart) = uart(LOTS);
    let uart = Arc::new(Mutex::new(uart));
    let input = SerialInput::new(uart.clone());
    let sent: Vec<u8> = (0..2000u32).map(|i| i as u8).collect();
    let sender = {
        let (input, sent) = (input.clone(), sent.clone());
        std::thread::spawn(move || input.push(&sent))
    };
    let mut received = Vec::new();
    while received.len() < sent.len() {
        let mut uart = uart.lock().unwrap();
        if uart.read(reg::LSR) & 1 != 0 {
            received.push(uart.read(reg::DATA));
        } else {
            drop(uart);
            std::thread::yield_now();
        }
    }
    assert!(sender.join().unwrap());
    assert_eq!(received, sent);
    // Nobody reads any more.
    let sender = {
        let input = input.clone();
        std::thread::spawn(move || input.push(&sent))
    };
    input.close();
    assert!(!sender.join().unwrap());
}

#[test]
fn a_saved_uart_keeps_what_was_not_read_and_not_sent() {
    let (recorder, _, mut uart) = uart(0);
    uart.write(reg::IIR, 1);
    uart.receive(b"in");
    uart.write(reg::DATA, b'o');
    let section = uart.save().unwrap();
    let reader = Reader(Arc::new(Mutex::new((Vec::new(), LOTS))));
    let sink = Box::new(reader.clone());
    let mut other = Uart16550::new("serial0", recorder.line(4), sink, recorder.clock.clone());
    other.restore(&section).unwrap();
    assert_eq!(other.save().unwrap(), section);
    other.advance(recorder.clock.now());
    assert_eq!(reader.0.lock().unwrap().0, b"o");
    assert_eq!([other.read(reg::DATA), other.read(reg::DATA)], *b"in");
}
