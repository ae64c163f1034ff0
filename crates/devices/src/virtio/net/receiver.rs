//! The receiving halves of all queue pairs: frames from the port to the ring that each belongs in.

use std::time::Duration;

use net::{MAX_FRAME, Received};

use super::super::{Chain, Virtqueue};
use super::filter::Filter;
use super::header::{self, HEADER_BYTES};
use super::{MIN_FRAME, ROUNDS, Round, Shared};
use crate::rate::RateLimiter;

/// The rings, and what may come into them.
pub(super) struct Receiver {
    pub rings: Vec<Option<Virtqueue>>,
    pub filter: Filter,
    pub mergeable: bool,
    pub limiter: Option<RateLimiter>,
    /// A received frame: the first bytes of `frame`, if there is one.
    frame: Vec<u8>,
    held: Option<Held>,
}

/// A frame that waits for the guest.
#[derive(Clone, Copy)]
struct Held {
    received: Received,
    pair: u16,
    /// It has cost what the rate limit makes it cost.
    is_paid: bool,
}

impl Receiver {
    /// Those of `pairs` queue pairs.
    pub fn new(pairs: u16, filter: Filter) -> Self {
        Self {
            rings: (0..pairs).map(|_| None).collect(),
            filter,
            mergeable: false,
            limiter: None,
            frame: vec![0; MAX_FRAME],
            held: None,
        }
    }

    /// Loses the frame that waits.
    pub fn forget(&mut self) {
        self.held = None;
    }

    /// One bounded round. It ends where a frame finds no buffers: those behind it wait with it, in their order.
    pub fn receive_frames(&mut self, shared: &Shared) -> Round {
        self.rings.iter_mut().flatten().for_each(Virtqueue::disable_notifications);
        let turns = self.rings.iter().flatten().map(Virtqueue::size).max().unwrap_or(0) * ROUNDS;
        let mut round = if turns == 0 { Round::Idle } else { Round::More };
        for _ in 0..turns {
            if !self.hold_frame(shared) {
                round = Round::Idle;
                break;
            }
            if let Err(wait) = self.pay_for_held() {
                round = Round::Limited(wait);
                break;
            }
            if !self.deliver(shared) {
                round = Round::Idle;
                break;
            }
            self.held = None;
        }
        self.rings.iter_mut().flatten().for_each(Virtqueue::signal);
        round
    }

    /// Makes sure that a frame for the guest is held, if the port has one.
    fn hold_frame(&mut self, shared: &Shared) -> bool {
        while self.held.is_none() {
            let received = match shared.port.receive(&mut self.frame) {
                Ok(Some(received)) if received.len <= self.frame.len() => received,
                Ok(Some(_)) => continue,
                Ok(None) => return false,
                Err(error) => {
                    tracing::debug!(%error, "receive frame");
                    return false;
                }
            };
            let frame = &self.frame[..received.len];
            if received.len >= MIN_FRAME && frame.first_chunk().is_some_and(|mac| self.filter.accepts(mac)) {
                self.held = Some(Held { received, pair: shared.steering.pair_of(frame), is_paid: false });
            }
        }
        true
    }

    /// Once for each frame, however often it is tried to deliver it.
    fn pay_for_held(&mut self) -> Result<(), Duration> {
        let Some(held) = &mut self.held else { return Ok(()) };
        if let (Some(limiter), false) = (&mut self.limiter, held.is_paid) {
            limiter.pay(held.received.len)?;
        }
        held.is_paid = true;
        Ok(())
    }

    /// Places the held frame. `false` if the guest has not enough buffers; then none is used.
    fn deliver(&mut self, shared: &Shared) -> bool {
        let Some(Held { received, pair, .. }) = self.held else { return true };
        let pair = shared.steering.in_use(pair);
        let Some(ring) = self.rings.get_mut(usize::from(pair)).and_then(Option::as_mut) else { return false };
        let total = HEADER_BYTES + received.len;
        let Some((mut chains, room)) = take_buffers(ring, total, self.mergeable) else { return false };
        if room < total {
            // A buffer that cannot take a frame takes none: the frame is lost, as on a full card.
            chains.iter().for_each(|chain| ring.complete(chain, 0));
            return true;
        }
        let header = header::of_received(received, chains.len() as u16);
        let (mut header, mut frame) = (&header[..], &self.frame[..received.len]);
        for chain in &mut chains {
            let from_header = chain.write(header);
            let from_frame = if from_header == header.len() { chain.write(frame) } else { 0 };
            header = &header[from_header..];
            frame = &frame[from_frame..];
            ring.complete(chain, (from_header + from_frame) as u32);
        }
        true
    }
}

/// Takes buffers with room for `total` bytes: several if they are `mergeable`, else the next, however large. Gives them and the
/// room in them; `None` if there are not enough, and then none is taken.
fn take_buffers(ring: &mut Virtqueue, total: usize, mergeable: bool) -> Option<(Vec<Chain>, usize)> {
    let mut chains: Vec<Chain> = Vec::new();
    let mut room = 0;
    while room < total {
        let Some(chain) = ring.pop() else {
            // Asked for while all buffers are taken, so that the next one given is notified.
            if ring.enable_notifications() {
                continue;
            }
            chains.iter().for_each(|_| ring.undo_pop());
            return None;
        };
        room += chain.writable();
        chains.push(chain);
        if !mergeable || chains.len() == usize::from(ring.size()) {
            break;
        }
    }
    Some((chains, room))
}
