//! The sending half of a queue pair: frames from its ring to the port.

use net::{MAX_FRAME, Offloads};

use super::super::{Chain, Virtqueue};
use super::header::{self, HEADER_BYTES};
use super::{MIN_FRAME, ROUNDS, Round, Shared};

/// One ring, and what the guest may leave to us in frames it sends.
pub(super) struct Sender {
    pub ring: Option<Virtqueue>,
    pub offloads: Offloads,
    pair: u16,
    frame: Vec<u8>,
}

impl Sender {
    /// That of queue pair `pair`.
    pub fn new(pair: u16) -> Self {
        Self { ring: None, offloads: Offloads::default(), pair, frame: vec![0; MAX_FRAME] }
    }

    /// One bounded round of the ring.
    pub fn send_frames(&mut self, shared: &Shared) -> Round {
        let Some(mut ring) = self.ring.take() else { return Round::Idle };
        ring.disable_notifications();
        let mut round = Round::More;
        for _ in 0..ring.size() * ROUNDS {
            let Some(mut chain) = ring.pop() else {
                if ring.enable_notifications() {
                    continue;
                }
                round = Round::Idle;
                break;
            };
            if let Err(wait) = shared.pay_for_sent(chain.readable().saturating_sub(HEADER_BYTES)) {
                ring.undo_pop();
                round = Round::Limited(wait);
                break;
            }
            self.send(&mut chain, shared);
            ring.complete(&chain, 0);
        }
        ring.signal();
        self.ring = Some(ring);
        round
    }

    /// Sends one frame. One that no frame can be, or that asks for an offload we do not offer, is dropped.
    fn send(&mut self, chain: &mut Chain, shared: &Shared) {
        let Some(header) = chain.read_array::<HEADER_BYTES>() else { return };
        let Some(left) = header::of_sent(&header, self.offloads) else { return };
        let len = chain.readable();
        if !(MIN_FRAME..=MAX_FRAME).contains(&len) {
            return;
        }
        let frame = &mut self.frame[..len];
        chain.read(frame);
        shared.steering.learn(frame, self.pair);
        if let Err(error) = shared.port.send(frame, left) {
            tracing::debug!(%error, "send frame");
        }
    }
}
