//! Frames in both directions: what is understood is written again as the same message.
#![no_main]

use std::fmt::Debug;

use libfuzzer_sys::fuzz_target;
use protocol::{AgentMessage, FrameBuffer, Hello, HostMessage, Message, read_message};

fn messages<M: Message + PartialEq + Debug>(data: &[u8]) {
    if let Ok(message) = M::decode(data) {
        again(&message);
    }
    let mut from = data;
    while let Ok(Some(message)) = read_message::<M>(&mut from) {
        again(&message);
    }
    // The same bytes in two pieces give the same first message as at once.
    let mut whole = FrameBuffer::default();
    whole.push(data);
    let mut pieces = FrameBuffer::default();
    let (head, tail) = data.split_at(data.len() / 2);
    pieces.push(head);
    let mut first = pieces.take::<M>();
    if matches!(first, Ok(None)) {
        pieces.push(tail);
        first = pieces.take::<M>();
    }
    assert_eq!(first.ok(), whole.take::<M>().ok());
}

fn again<M: Message + PartialEq + Debug>(message: &M) {
    // An encoding has no choices, so that what fitted before fits again.
    let frame = message.to_frame().expect("a message that was read can be written");
    let read = read_message::<M>(&mut frame.as_slice()).expect("a frame that was written can be read");
    assert_eq!(read.as_ref(), Some(message));
}

fuzz_target!(|data: &[u8]| {
    messages::<HostMessage>(data);
    messages::<AgentMessage>(data);
    if let Some(hello) = data.first_chunk().and_then(|bytes| Hello::decode(*bytes).ok()) {
        assert_eq!(Hello::decode(hello.encode()).ok(), Some(hello));
    }
});
