use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicUsize, Ordering};

use net::{Received, Unfinished};

use super::super::testing::*;
use super::*;
use crate::device::Device;

pub(super) const RX: usize = 0;
pub(super) const TX: usize = 1;
const CONTROL: usize = 2;
pub(super) const MAC: Mac = [2, 0, 0, 0, 0, 1];
const STATUS: u64 = DATA + 0x800;

/// A cable with a datagram socket at the other end.
struct Cable(UnixDatagram);

impl Port for Cable {
    fn link(&self) -> Link {
        Link::Up
    }
    fn send(&self, frame: &[u8], _left: Unfinished) -> io::Result<()> {
        self.0.send(frame).map(drop)
    }
    fn receive(&self, frame: &mut [u8]) -> io::Result<Option<Received>> {
        match self.0.recv(frame) {
            Ok(len) => Ok(Some(Received::plain(len))),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }
    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.as_fd())
    }
}

fn card(features: u64) -> (Rig, UnixDatagram) {
    card_with(features, |card| card)
}

pub(super) fn card_with(features: u64, change: impl FnOnce(Net) -> Net) -> (Rig, UnixDatagram) {
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    let net = Net::new(Box::new(Cable(theirs)), MAC).unwrap();
    (Rig::live_with(Box::new(change(net)), features), ours)
}

/// A card with three queue pairs, whose driver takes those of what is offered.
fn wide_card(features: u64) -> (Rig, UnixDatagram) {
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    let net = Net::with_pairs(Box::new(Cable(theirs)), MAC, 3).unwrap();
    (Rig::live_with(Box::new(net), features), ours)
}

/// A UDP datagram between the guest's port `port` and a peer's.
fn datagram(way: Way, port: u16, len: usize) -> Vec<u8> {
    let mut frame = frame(MAC, len);
    frame[12..14].copy_from_slice(&[8, 0]);
    frame[14..34].copy_from_slice(&[0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    frame[34..36].copy_from_slice(&port.to_be_bytes());
    frame[36..38].copy_from_slice(&[0, 53]);
    if way == Way::ToGuest {
        let (addresses, ports) = (frame[26..34].to_vec(), frame[34..38].to_vec());
        frame[26..34].copy_from_slice(&[&addresses[4..], &addresses[..4]].concat());
        frame[34..38].copy_from_slice(&[&ports[2..], &ports[..2]].concat());
    }
    frame
}

#[derive(PartialEq)]
enum Way {
    FromGuest,
    ToGuest,
}

pub(super) fn frame(destination: Mac, len: usize) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..len).map(|i| (i * 3) as u8).collect();
    frame[..6].copy_from_slice(&destination);
    frame
}

fn control(rig: &mut Rig, class: u32, command: u32, arguments: &[u8]) -> u8 {
    control_at(rig, CONTROL, class, command, arguments)
}

fn control_at(rig: &mut Rig, queue: usize, class: u32, command: u32, arguments: &[u8]) -> u8 {
    let mut bytes = vec![class as u8, command as u8];
    bytes.extend_from_slice(arguments);
    rig.ram.write(DATA, &bytes).unwrap();
    rig.request(queue, &[(DATA, bytes.len() as u32, 0), (STATUS, 1, WRITE)]);
    rig.bytes(STATUS, 1)[0]
}

#[test]
fn a_sent_frame_leaves_through_the_port_without_its_header() {
    let (mut rig, cable) = card(u64::MAX);
    let sent = frame([0xff; 6], 100);
    rig.ram.write(DATA, &[0; 12]).unwrap();
    rig.ram.write(DATA + 12, &sent).unwrap();
    rig.request(TX, &[(DATA, 50, 0), (DATA + 50, 62, 0)]);
    let mut received = [0; 200];
    assert_eq!(cable.recv(&mut received).unwrap(), 100);
    assert_eq!(received[..100], sent);
}

#[test]
fn what_is_no_frame_or_wants_what_was_not_offered_is_dropped() {
    let (mut rig, cable) = card(u64::MAX);
    let bad = [([2u8, 0], 100), ([1, 3], 100), ([0, 1], 100), ([0, 0], 12), ([0, 0], 25), ([0, 0], 1 << 20)];
    for (first, len) in bad {
        rig.ram.write(DATA, &first).unwrap();
        rig.request(TX, &[(DATA, len, 0)]);
    }
    assert!(!rig.is_broken());
    cable.set_nonblocking(true).unwrap();
    assert!(cable.recv(&mut [0; 100]).is_err());
}

#[test]
fn received_frames_are_merged_over_small_buffers() {
    let (mut rig, cable) = card(u64::MAX);
    let sent = frame(MAC, 1000);
    cable.send(&sent).unwrap();
    for index in 0..2 {
        rig.add(RX, &[(DATA + 0x1000 * index, 400, WRITE)]);
        rig.kick(RX);
    }
    assert_eq!(rig.used(RX), None, "two are not enough");
    rig.add(RX, &[(DATA + 0x2000, 400, WRITE)]);
    rig.kick(RX);
    assert_eq!([rig.wait_used(RX).1, rig.wait_used(RX).1, rig.wait_used(RX).1], [400, 400, 212]);
    assert_eq!(rig.bytes(DATA, 12), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0]);
    let mut received = rig.bytes(DATA + 12, 388);
    received.extend(rig.bytes(DATA + 0x1000, 400));
    received.extend(rig.bytes(DATA + 0x2000, 212));
    assert_eq!(received, sent);
}

#[test]
fn without_merging_a_frame_takes_one_buffer_or_is_lost() {
    let (mut rig, cable) = card(!(1 << vnet::VIRTIO_NET_F_MRG_RXBUF));
    rig.add(RX, &[(DATA, 64, WRITE)]);
    rig.add(RX, &[(DATA, 1526, WRITE)]);
    rig.kick(RX);
    cable.send(&frame(MAC, 1000)).unwrap();
    assert_eq!(rig.wait_used(RX).1, 0);
    cable.send(&frame(MAC, 900)).unwrap();
    assert_eq!(rig.wait_used(RX).1, 912);
    assert_eq!(rig.bytes(DATA + 10, 2), [1, 0]);
}

#[test]
fn frames_wait_for_nothing_but_buffers() {
    let (mut rig, cable) = card(u64::MAX);
    for _ in 0..8 {
        rig.add(RX, &[(DATA, 2048, WRITE)]);
    }
    rig.kick(RX);
    for len in 60..68 {
        cable.send(&frame(MAC, len)).unwrap();
        assert_eq!(rig.wait_used(RX).1, len as u32 + 12);
    }
}

#[test]
fn the_control_queue_sets_what_is_received() {
    let (mut rig, cable) = card(u64::MAX);
    let stranger = [2, 9, 9, 9, 9, 9];
    assert_eq!(control(&mut rig, 0, vnet::VIRTIO_NET_CTRL_RX_PROMISC, &[0]), 0);
    let mut tables = 1u32.to_le_bytes().to_vec();
    tables.extend(stranger);
    tables.extend(0u32.to_le_bytes());
    assert_eq!(control(&mut rig, 1, vnet::VIRTIO_NET_CTRL_MAC_TABLE_SET, &tables), 0);
    assert_eq!(control(&mut rig, 1, vnet::VIRTIO_NET_CTRL_MAC_ADDR_SET, &[2, 0, 0, 0, 0, 7]), 0);
    assert_eq!(rig.config::<6>(0), [2, 0, 0, 0, 0, 7]);
    for _ in 0..4 {
        rig.add(RX, &[(DATA, 2048, WRITE)]);
    }
    rig.kick(RX);
    cable.send(&frame(MAC, 60)).unwrap();
    cable.send(&frame(stranger, 61)).unwrap();
    cable.send(&frame([2, 0, 0, 0, 0, 7], 62)).unwrap();
    assert_eq!([rig.wait_used(RX).1, rig.wait_used(RX).1], [73, 74]);
}

#[test]
fn nonsense_on_the_control_queue_is_an_error_and_no_more() {
    let (mut rig, _cable) = card(u64::MAX);
    assert_eq!(control(&mut rig, 9, 0, &[]), 1);
    assert_eq!(control(&mut rig, 0, 77, &[1]), 1);
    assert_eq!(control(&mut rig, 0, 0, &[]), 1);
    assert_eq!(control(&mut rig, 1, 0, &u32::MAX.to_le_bytes()), 1);
    assert_eq!(control(&mut rig, 1, 0, &[1, 0, 0, 0, 2, 2]), 1);
    assert_eq!(control(&mut rig, 1, 1, &[1, 2, 3]), 1);
    assert!(!rig.is_broken());
}

#[test]
fn an_unplugged_card_has_no_link_and_takes_frames_to_nowhere() {
    let mut rig = Rig::live(Box::new(Net::new(Box::new(net::Unplugged), MAC).unwrap()));
    assert_eq!(rig.config::<8>(0), [2, 0, 0, 0, 0, 1, 0, 0]);
    rig.request(TX, &[(DATA, 100, 0)]);
}

#[test]
fn filters_survive_a_save() {
    let (mut rig, _cable) = card(u64::MAX);
    control(&mut rig, 1, vnet::VIRTIO_NET_CTRL_MAC_ADDR_SET, &[2, 0, 0, 0, 0, 7]);
    let section = rig.save();
    let mut other = Rig::new(Box::new(Net::new(Box::new(net::Unplugged), MAC).unwrap()));
    other.transport.restore(&section).unwrap();
    assert_eq!(other.config::<6>(0), [2, 0, 0, 0, 0, 7]);
    other.transport.reset();
    assert_eq!(other.config::<6>(0), MAC);
}

fn use_pairs(rig: &mut Rig, queue: usize, pairs: u16) -> u8 {
    let (class, command) = (vnet::VIRTIO_NET_CTRL_MQ, vnet::VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET);
    control_at(rig, queue, class, command, &pairs.to_le_bytes())
}

#[test]
fn answers_come_into_the_pair_that_sent() {
    let (mut rig, cable) = wide_card(u64::MAX);
    assert_eq!(rig.config::<2>(8), [3, 0]);
    assert_eq!(rig.queues.len(), 7);
    assert_eq!(use_pairs(&mut rig, 6, 3), 0);
    for pair in 0..3 {
        rig.add(2 * pair, &[(DATA + 0x1000 * pair as u64, 2048, WRITE)]);
        rig.kick(2 * pair);
    }
    for pair in [2, 0, 1] {
        let sent = datagram(Way::FromGuest, 1000 + pair as u16, 100);
        rig.ram.write(DATA + 0x8000, &[0; 12]).unwrap();
        rig.ram.write(DATA + 0x800c, &sent).unwrap();
        rig.request(2 * pair + 1, &[(DATA + 0x8000, 112, 0)]);
        assert_eq!(cable.recv(&mut [0; 200]).unwrap(), 100);
        cable.send(&datagram(Way::ToGuest, 1000 + pair as u16, 60 + pair)).unwrap();
        assert_eq!(rig.wait_used(2 * pair).1, 72 + pair as u32);
    }
    assert_eq!([rig.used(0), rig.used(2), rig.used(4)], [None; 3]);
}

#[test]
fn a_driver_of_one_pair_finds_its_control_queue_behind_it() {
    let (mut rig, cable) = wide_card(!(1 << vnet::VIRTIO_NET_F_MQ));
    assert_eq!(control(&mut rig, 1, vnet::VIRTIO_NET_CTRL_MAC_ADDR_SET, &[2, 0, 0, 0, 0, 7]), 0);
    assert_eq!(rig.config::<6>(0), [2, 0, 0, 0, 0, 7]);
    for queue in 3..7 {
        rig.add(queue, &[(DATA, 112, 0)]);
        rig.kick(queue);
        assert_eq!(rig.used(queue), None);
    }
    rig.add(RX, &[(DATA, 2048, WRITE)]);
    rig.kick(RX);
    cable.send(&datagram(Way::ToGuest, 1, 60)).unwrap();
    assert_eq!(rig.wait_used(RX).1, 72);
}

#[test]
fn pairs_that_are_not_there_cannot_be_used() {
    let (mut rig, _cable) = wide_card(u64::MAX);
    for (pairs, status) in [(0, 1), (3, 0), (4, 1), (u16::MAX, 1), (1, 0)] {
        assert_eq!(use_pairs(&mut rig, 6, pairs), status, "{pairs}");
    }
    assert_eq!(control_at(&mut rig, 6, vnet::VIRTIO_NET_CTRL_MQ, 9, &[1, 0]), 1);
    assert_eq!(control_at(&mut rig, 6, vnet::VIRTIO_NET_CTRL_MQ, 0, &[1]), 1);
    let (mut narrow, _cable) = card(u64::MAX);
    assert_eq!(narrow.offered() & 1 << vnet::VIRTIO_NET_F_MQ, 0);
    assert_eq!(use_pairs(&mut narrow, CONTROL, 2), 1);
}

#[test]
fn a_frame_held_for_a_pair_that_goes_out_of_use_comes_into_the_first() {
    let (mut rig, cable) = wide_card(u64::MAX);
    use_pairs(&mut rig, 6, 3);
    // One of these flows at least belongs to another pair than the first, and there is no buffer anywhere.
    for port in 0..16 {
        cable.send(&datagram(Way::ToGuest, port, 60)).unwrap();
    }
    rig.kick(RX);
    use_pairs(&mut rig, 6, 1);
    for _ in 0..16 {
        rig.add(RX, &[(DATA, 2048, WRITE)]);
    }
    rig.kick(RX);
    assert!((0..16).all(|_| rig.wait_used(RX).1 == 72));
}

#[test]
fn pairs_in_use_are_saved() {
    let (mut rig, _cable) = wide_card(u64::MAX);
    use_pairs(&mut rig, 6, 2);
    let section = rig.save();
    let wide = |pairs| Rig::new(Box::new(Net::with_pairs(Box::new(net::Unplugged), MAC, pairs).unwrap()));
    let mut other = wide(3);
    other.transport.restore(&section).unwrap();
    assert!(other.transport.save().unwrap() == section);
    assert!(wide(1).transport.restore(&section).is_err(), "that card has no such queues");
    let mut alone = Net::new(Box::new(net::Unplugged), MAC).unwrap();
    let state = NetState { pairs_in_use: 2, ..Filter::new(MAC).into() };
    assert!(alone.restore(&Section::encode(KIND, VERSION, &state).unwrap()).is_err());
    alone.restore(&Section::encode(KIND, 2, &NetState::from(Filter::new(MAC))).unwrap()).unwrap();
}

/// Counts the frames that are sent.
#[derive(Clone, Default)]
struct Counting(Arc<AtomicUsize>);

impl Port for Counting {
    fn link(&self) -> Link {
        Link::Up
    }
    fn send(&self, frame: &[u8], _left: Unfinished) -> io::Result<()> {
        assert_eq!(frame.len(), 100);
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
    fn receive(&self, _frame: &mut [u8]) -> io::Result<Option<Received>> {
        Ok(None)
    }
    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

#[test]
fn several_threads_send_at_once_and_nothing_is_lost() {
    let port = Counting::default();
    let net = Net::with_pairs(Box::new(port.clone()), MAC, 2).unwrap();
    let shared = net.shared.clone();
    let mut rig = Rig::live(Box::new(net));
    use_pairs(&mut rig, 4, 2);
    rig.ram.write(DATA, &[0; 12]).unwrap();
    rig.ram.write(DATA + 12, &frame([0xff; 6], 100)).unwrap();
    std::thread::scope(|scope| {
        for pair in 0..2 {
            let mut ring = rig.queues[2 * pair + 1].clone();
            let (shared, ram) = (&shared, &rig.ram);
            scope.spawn(move || {
                for _ in 0..2000 {
                    ring.add(ram, &[(DATA, 112, 0)]);
                    shared.carry_on_here(Role::Send(pair));
                    wait_for(|| ring.used(ram));
                }
            });
        }
    });
    assert_eq!(port.0.load(Ordering::Relaxed), 4000);
}
