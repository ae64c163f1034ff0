//! Which queue pair a frame for the guest belongs to (virtio 1.2, section 5.1.6.5.5): that from which the guest sends in the
//! same flow, so that one vCPU has all of it. A flow from which it has not sent is anybody's.
//!
//! A guest may send in one flow from several vCPUs in turns, data from one and what acknowledges it from another. A flow changes
//! its pair only when all that was sent for a while came from another: frames that overtake each other in two rings are worse
//! than those of a vCPU that is not the best.

use std::sync::atomic::{AtomicU16, Ordering};

/// Flows told apart; others share.
const FLOWS: usize = 256;
/// What is known of a flow is its pair and, in the high byte, how many frames in a row were sent from others.
const PAIR: u16 = 0xff;
const ANOTHER: u16 = 0x100;
const UNKNOWN: u16 = PAIR;
/// So many move the flow.
const PATIENCE: u16 = 64;

const TYPE_OFFSET: usize = 12;
const PACKET_OFFSET: usize = 14;
const TYPE_IPV4: [u8; 2] = [0x08, 0x00];
const TYPE_IPV6: [u8; 2] = [0x86, 0xdd];
const TCP: u8 = 6;
const UDP: u8 = 17;

/// What is known of flows, and how many pairs the guest uses. Nothing here is waited for: several threads send at once.
pub(super) struct Steering {
    pairs: AtomicU16,
    flows: [AtomicU16; FLOWS],
}

impl Steering {
    /// The guest uses the first pair.
    pub fn new() -> Self {
        Self { pairs: AtomicU16::new(1), flows: [const { AtomicU16::new(UNKNOWN) }; FLOWS] }
    }

    /// How many pairs the guest uses.
    pub fn pairs(&self) -> u16 {
        self.pairs.load(Ordering::Relaxed)
    }

    /// The guest uses the first `pairs` pairs from now on; what was known of flows is forgotten.
    pub fn use_pairs(&self, pairs: u16) {
        self.flows.iter().for_each(|flow| flow.store(UNKNOWN, Ordering::Relaxed));
        self.pairs.store(pairs.max(1), Ordering::Relaxed);
    }

    /// The guest sent `frame` from `pair`.
    pub fn learn(&self, frame: &[u8], pair: u16) {
        if self.pairs() == 1 {
            return;
        }
        let Some(hash) = hash(frame) else { return };
        let flow = &self.flows[hash as usize % FLOWS];
        let known = flow.load(Ordering::Relaxed);
        let next = match known & PAIR {
            UNKNOWN => pair,
            same if same == pair => pair,
            _ if known / ANOTHER + 1 == PATIENCE => pair,
            _ => known + ANOTHER,
        };
        // Most frames tell nothing new, and others read this.
        if next != known {
            flow.store(next, Ordering::Relaxed);
        }
    }

    /// Where `frame` belongs.
    pub fn pair_of(&self, frame: &[u8]) -> u16 {
        let pairs = self.pairs();
        if pairs == 1 {
            return 0;
        }
        let Some(hash) = hash(frame) else { return 0 };
        match self.flows[hash as usize % FLOWS].load(Ordering::Relaxed) & PAIR {
            known if known < pairs => known,
            _ => (hash >> 16) as u16 % pairs,
        }
    }

    /// `pair`, or the first if the guest uses it no more.
    pub fn in_use(&self, pair: u16) -> u16 {
        if pair < self.pairs() { pair } else { 0 }
    }
}

/// The same number for both directions of a flow; `None` for what is not IP.
fn hash(frame: &[u8]) -> Option<u32> {
    let packet = frame.get(PACKET_OFFSET..)?;
    let (addresses, protocol, payload) = match frame.get(TYPE_OFFSET..PACKET_OFFSET)?.try_into().ok()? {
        TYPE_IPV4 => {
            let header = packet.get(..20)?;
            let is_fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0;
            let payload = packet.get(usize::from(header[0] & 15) * 4..).filter(|_| !is_fragment);
            (&header[12..20], header[9], payload)
        }
        TYPE_IPV6 => {
            let header = packet.get(..40)?;
            (&header[8..40], header[6], packet.get(40..))
        }
        _ => return None,
    };
    let ports = payload.filter(|_| matches!(protocol, TCP | UDP)).and_then(<[u8]>::first_chunk::<4>);
    let ports = ports.copied().unwrap_or_default();
    let (from, to) = addresses.split_at(addresses.len() / 2);
    let end = |address: &[u8], port: &[u8]| address.iter().chain(port).fold(0, |hash, &byte| mix(hash, byte));
    let both = end(from, &ports[..2]).wrapping_add(end(to, &ports[2..]));
    // The high bits of a product depend on all bits of its factors.
    Some((u64::from(mix(both, protocol)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32)
}

/// One step of FNV-1a.
fn mix(hash: u32, byte: u8) -> u32 {
    (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A TCP segment over IPv4 from one address and port to another.
    fn segment((from, from_port): (u8, u16), (to, to_port): (u8, u16)) -> Vec<u8> {
        let mut frame = vec![0; 54];
        frame[12..14].copy_from_slice(&TYPE_IPV4);
        (frame[14], frame[23], frame[29], frame[33]) = (0x45, TCP, from, to);
        frame[34..36].copy_from_slice(&from_port.to_be_bytes());
        frame[36..38].copy_from_slice(&to_port.to_be_bytes());
        frame
    }

    #[test]
    fn answers_come_to_the_pair_that_asked() {
        let steering = Steering::new();
        steering.use_pairs(4);
        for port in 0..40 {
            // Flows may share what is known of them.
            steering.use_pairs(4);
            let pair = port % 4;
            steering.learn(&segment((1, 1000 + port), (2, 80)), pair);
            assert_eq!(steering.pair_of(&segment((2, 80), (1, 1000 + port))), pair);
        }
        steering.use_pairs(2);
        assert!((0..40).all(|port| steering.pair_of(&segment((2, 80), (1, 1000 + port))) < 2));
        assert_eq!([steering.in_use(1), steering.in_use(3)], [1, 0]);
    }

    #[test]
    fn a_flow_moves_when_all_of_it_is_sent_from_elsewhere() {
        let steering = Steering::new();
        steering.use_pairs(2);
        let (sent, answer) = (segment((1, 1000), (2, 80)), segment((2, 80), (1, 1000)));
        steering.learn(&sent, 0);
        for _ in 0..1000 {
            (0..PATIENCE - 1).for_each(|_| steering.learn(&sent, 1));
            assert_eq!(steering.pair_of(&answer), 0);
            steering.learn(&sent, 0);
        }
        (0..PATIENCE).for_each(|_| steering.learn(&sent, 1));
        assert_eq!(steering.pair_of(&answer), 1);
    }

    #[test]
    fn flows_that_nobody_knows_are_spread() {
        let steering = Steering::new();
        steering.use_pairs(4);
        let mut counts = [0; 4];
        for port in 0..400 {
            counts[usize::from(steering.pair_of(&segment((2, 80), (1, 1000 + port))))] += 1;
        }
        assert!(counts.iter().all(|&count| count > 50), "{counts:?}");
    }

    #[test]
    fn what_is_cut_off_anywhere_belongs_somewhere() {
        let steering = Steering::new();
        steering.use_pairs(3);
        for kind in [TYPE_IPV4, TYPE_IPV6, [8, 6]] {
            let mut frame = segment((1, 2), (3, 4));
            frame.resize(80, 0xff);
            frame[12..14].copy_from_slice(&kind);
            for len in 0..frame.len() {
                steering.learn(&frame[..len], 2);
                assert!(steering.pair_of(&frame[..len]) < 3);
            }
        }
        let mut fragment = segment((1, 2), (3, 4));
        fragment[20] = 0x20;
        let mut next = segment((1, 7), (3, 9));
        next[21] = 8;
        steering.use_pairs(3);
        steering.learn(&fragment, 1);
        assert_eq!(steering.pair_of(&next), 1, "fragments have no ports");
    }
}
