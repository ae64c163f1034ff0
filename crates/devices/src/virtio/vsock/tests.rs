use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::thread;

use super::super::testing::*;
use super::connection::BUFFER_BYTES;
use super::guest::*;
use super::packet::*;
use super::*;
use crate::device::Device;

/// A guest whose connections to the host come out of the receiver.
fn guest_with_host() -> (Guest, mpsc::Receiver<UnixStream>) {
    let (sender, receiver) = mpsc::channel();
    let guest = Guest::new(move |port| {
        if port != PORT {
            return Err(ErrorKind::ConnectionRefused.into());
        }
        let (ours, theirs) = UnixStream::pair()?;
        sender.send(theirs).unwrap();
        Ok(ours)
    });
    (guest, receiver)
}

fn pattern(random: &mut Random, len: usize) -> Vec<u8> {
    (0..len.div_ceil(8)).flat_map(|_| random.next().to_le_bytes()).take(len).collect()
}

#[test]
fn the_guest_learns_its_context_id() {
    let (mut guest, _host) = guest_with_host();
    assert_eq!(u64::from_le_bytes(guest.rig.config(0)), CID);
}

#[test]
fn a_refused_connection_is_reset() {
    let (mut guest, _host) = guest_with_host();
    let peer = Peer { ours: 7, theirs: 9, ..Peer::default() };
    guest.send(peer.header(op::REQUEST), &[]);
    let (reset, _) = guest.next();
    assert_eq!((reset.op, reset.src_port, reset.dst_port), (op::RST, 9, 7));
}

#[test]
fn data_passes_in_both_directions() {
    let (mut guest, host) = guest_with_host();
    let peer = guest.connect(7);
    let mut stream = host.recv().unwrap();
    guest.send(peer.header(op::RW), b"to the host");
    let mut data = [0; 11];
    stream.read_exact(&mut data).unwrap();
    assert_eq!(&data, b"to the host");
    stream.write_all(b"to the guest").unwrap();
    let (header, data) = guest.next();
    assert_eq!((header.op, &data[..]), (op::RW, &b"to the guest"[..]));
    assert_eq!(header.fwd_cnt, 11);
}

#[test]
fn a_host_that_closes_is_followed_by_a_shutdown_after_its_data() {
    let (mut guest, host) = guest_with_host();
    let peer = guest.connect(7);
    host.recv().unwrap().write_all(&[5; 10_000]).unwrap();
    let mut received = 0;
    let (shutdown, _) = loop {
        let (header, data) = guest.next_event();
        if header.op != op::RW {
            break (header, data);
        }
        received += data.len();
    };
    assert_eq!(received, 10_000);
    assert_eq!((shutdown.op, shutdown.flags), (op::SHUTDOWN, SHUTDOWN_SEND | SHUTDOWN_RECEIVE));
    guest.send(peer.header(op::RST), &[]);
    guest.send(peer.header(op::RW), b"x");
    assert_eq!(guest.next().0.op, op::RST, "it is gone");
}

#[test]
fn each_direction_closes_by_itself() {
    let (mut guest, host) = guest_with_host();
    let peer = guest.connect(7);
    let mut stream = host.recv().unwrap();
    guest.send(peer.header(op::RW), b"question");
    guest.shut_down(&peer, SHUTDOWN_SEND);
    let mut question = Vec::new();
    stream.read_to_end(&mut question).unwrap();
    assert_eq!(question, b"question");
    stream.write_all(b"answer").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let (answer, data) = guest.next_event();
    assert_eq!((answer.op, &data[..]), (op::RW, &b"answer"[..]));
    let (shutdown, _) = guest.next_event();
    assert_eq!(shutdown.op, op::SHUTDOWN);
    assert_ne!(shutdown.flags & SHUTDOWN_SEND, 0);
    guest.shut_down(&peer, SHUTDOWN_SEND | SHUTDOWN_RECEIVE);
    assert_eq!(guest.next_event().0.op, op::RST);
}

#[test]
fn a_guest_that_will_not_receive_breaks_the_host_s_pipe() {
    let (mut guest, host) = guest_with_host();
    let peer = guest.connect(7);
    let mut stream = host.recv().unwrap();
    guest.shut_down(&peer, SHUTDOWN_RECEIVE);
    wait_for(|| stream.write_all(b"x").err().map(|error| assert_eq!(error.kind(), ErrorKind::BrokenPipe)));
    guest.send(peer.header(op::RW), b"still sending");
    let mut data = [0; 13];
    stream.read_exact(&mut data).unwrap();
}

#[test]
fn what_the_guest_sent_before_closing_reaches_a_slow_host() {
    let (mut guest, host) = guest_with_host();
    let mut peer = guest.connect(7);
    let mut stream = host.recv().unwrap();
    let data = pattern(&mut Random(1), BUFFER_BYTES as usize);
    // More than the socket holds: the rest is in the backlog when the guest goes away.
    let mut rest = &data[..];
    while !rest.is_empty() {
        let count = peer.credit().min(rest.len()).min(32 << 10);
        if count == 0 {
            peer.note(&guest.next().0);
            continue;
        }
        guest.send(peer.header(op::RW), &rest[..count]);
        peer.sent += count as u32;
        rest = &rest[count..];
    }
    guest.shut_down(&peer, SHUTDOWN_SEND | SHUTDOWN_RECEIVE);
    guest.send(peer.header(op::RST), &[]);
    let reader = thread::spawn(move || {
        let mut received = Vec::new();
        stream.read_to_end(&mut received).map(|_| received)
    });
    assert!(reader.join().unwrap().unwrap() == data);
    // The ports are free at once.
    guest.connect(7);
}

#[test]
fn what_the_guest_sent_is_delivered_when_the_device_goes_away() {
    let (mut guest, host) = guest_with_host();
    let peer = guest.connect(7);
    let mut stream = host.recv().unwrap();
    let mut sent = 0;
    while sent < BUFFER_BYTES as usize {
        guest.send(peer.header(op::RW), &[1; 32 << 10]);
        sent += 32 << 10;
    }
    let reader = thread::spawn(move || {
        let mut received = Vec::new();
        stream.read_to_end(&mut received).map(|_| received.len())
    });
    drop(guest);
    assert_eq!(reader.join().unwrap().unwrap(), sent);
}

#[test]
fn a_guest_that_ignores_credit_is_reset() {
    let (mut guest, host) = guest_with_host();
    let peer = guest.connect(7);
    let _stream = host.recv().unwrap();
    for _ in 0..64 {
        guest.send(peer.header(op::RW), &[0; 64 << 10]);
    }
    assert_eq!(guest.next_event().0.op, op::RST);
}

#[test]
fn the_guest_s_credit_is_respected() {
    let (mut guest, host) = guest_with_host();
    let mut peer = guest.connect(7);
    let stream = host.recv().unwrap();
    let writer = thread::spawn(move || (&stream).write_all(&[9; 1 << 20]));
    let mut received = 0u32;
    while received < 1 << 20 {
        let mut asked = false;
        // Nothing is forwarded until the device says that it is out of credit.
        while !asked {
            let (header, data) = guest.next();
            received += data.len() as u32;
            assert!(received - peer.forwarded <= GUEST_BUFFER, "more than there is room for");
            asked = header.op == op::CREDIT_REQUEST || received == 1 << 20;
        }
        peer.forwarded = received;
        guest.send(peer.header(op::CREDIT_UPDATE), &[]);
    }
    writer.join().unwrap().unwrap();
}

#[test]
fn the_host_connects_to_the_guest() {
    let (mut guest, _host) = guest_with_host();
    let handle = guest.handle.clone();
    let host = thread::spawn(move || {
        let mut stream = handle.connect(PORT).unwrap();
        stream.write_all(b"hello").unwrap();
        stream
    });
    let peer = guest.accept();
    assert_eq!(peer.ours, PORT);
    let (header, data) = guest.next();
    assert_eq!((header.op, &data[..]), (op::RW, &b"hello"[..]));
    drop(host.join().unwrap());
}

#[test]
fn the_host_hears_of_refusals_and_of_silence() {
    let (mut guest, _host) = guest_with_host();
    let handle = guest.handle.clone();
    let refused = thread::spawn(move || handle.connect(PORT).unwrap_err().kind());
    let (request, _) = guest.next();
    guest.send(request.reset_reply(), &[]);
    assert_eq!(refused.join().unwrap(), ErrorKind::ConnectionRefused);

    let error = guest.handle.connect_timeout(PORT, Duration::from_millis(20)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert_eq!(guest.next().0.op, op::REQUEST);
    assert_eq!(guest.next().0.op, op::RST);
}

#[test]
fn a_connection_asked_for_before_the_driver_is_there_waits_for_it() {
    let (device, handle) = Vsock::new(CID, Box::new(|_| Err(ErrorKind::ConnectionRefused.into()))).unwrap();
    let mut rig = Rig::new(Box::new(device));
    let host = {
        let handle = handle.clone();
        thread::spawn(move || handle.connect(PORT).is_ok())
    };
    thread::sleep(Duration::from_millis(20));
    rig.bring_up(u64::MAX);
    let mut guest = Guest { rig, handle, inbox: VecDeque::new(), sent_packets: 0, unused_packets: 0 };
    guest.stock();
    guest.accept();
    assert!(host.join().unwrap());
}

#[test]
fn a_reset_of_the_device_ends_its_connections() {
    let (mut guest, host) = guest_with_host();
    guest.connect(7);
    let mut stream = host.recv().unwrap();
    guest.rig.bring_up(u64::MAX);
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn packets_that_make_no_sense_are_answered_with_a_reset_or_not_at_all() {
    let (mut guest, _host) = guest_with_host();
    let peer = Peer { ours: 7, theirs: PORT, ..Peer::default() };
    for header in [
        Header { kind: 2, ..peer.header(op::REQUEST) },
        Header { dst_cid: 99, ..peer.header(op::REQUEST) },
        peer.header(op::RESPONSE),
        peer.header(op::SHUTDOWN),
        peer.header(0),
        peer.header(0xffff),
    ] {
        guest.send(header, &[]);
        assert_eq!(guest.rig.wait_used(RX).1 as usize, HEADER_BYTES);
    }
    // A reset is never answered, and neither is someone else's packet.
    guest.send(peer.header(op::RST), &[]);
    guest.send(Header { src_cid: 7, ..peer.header(op::REQUEST) }, &[]);
    assert_eq!(guest.rig.used(RX), None);
    assert!(!guest.rig.is_broken());
}

#[test]
fn a_packet_shorter_than_it_says_asks_for_a_reset() {
    let (mut guest, _host) = guest_with_host();
    let peer = guest.connect(7);
    let header = Header { len: u32::MAX, ..peer.header(op::RW) };
    guest.rig.ram.write(TX_BASE, &header.to_bytes()).unwrap();
    guest.rig.add(TX, &[(TX_BASE, 100, 0)]);
    guest.rig.kick(TX);
    assert!(guest.rig.is_broken());
}

#[test]
fn a_flood_of_resets_waits_for_buffers_and_none_is_lost() {
    let (device, handle) = Vsock::new(CID, Box::new(|_| Err(ErrorKind::ConnectionRefused.into()))).unwrap();
    let rig = Rig::live(Box::new(device));
    let mut guest = Guest { rig, handle, inbox: VecDeque::new(), sent_packets: 0, unused_packets: 0 };
    let sent = 280;
    for port in 0..sent {
        let peer = Peer { ours: port, theirs: 9, ..Peer::default() };
        guest.send(peer.header(op::REQUEST), &[]);
    }
    guest.stock();
    for port in 0..sent {
        assert_eq!(guest.next().0.dst_port, port);
    }
}

#[test]
fn many_connections_at_once_keep_their_data_apart() {
    let (mut guest, host) = guest_with_host();
    let count = 200u32;
    let mut peers: Vec<Peer> = (0..count).map(|port| guest.connect(port)).collect();
    let streams: Vec<UnixStream> = host.try_iter().collect();
    for (number, mut stream) in streams.iter().enumerate() {
        stream.write_all(&(number as u32).to_le_bytes()).unwrap();
    }
    for _ in 0..count {
        let (header, data) = guest.next();
        assert_eq!(header.dst_port.to_le_bytes(), data[..]);
        peers[header.dst_port as usize].forwarded += data.len() as u32;
    }
    for peer in &peers {
        guest.send(peer.header(op::RW), &peer.ours.to_le_bytes());
    }
    for (number, mut stream) in streams.iter().enumerate() {
        let mut data = [0; 4];
        stream.read_exact(&mut data).unwrap();
        assert_eq!(u32::from_le_bytes(data), number as u32);
    }
}

/// Sends `outgoing` in chunks of random length, closes, and receives until the host's end of stream.
fn exchange(guest: &mut Guest, peer: &mut Peer, outgoing: &[u8], random: &mut Random) -> Vec<u8> {
    let mut rest = outgoing;
    let mut received = Vec::new();
    let mut advertised = 0u32;
    let (mut closed, mut ended) = (false, false);
    while !(ended && closed) {
        let chunk = (1 + random.below(64 << 10) as usize).min(rest.len());
        if chunk > 0 && chunk <= peer.credit() {
            guest.send(peer.header(op::RW), &rest[..chunk]);
            peer.sent = peer.sent.wrapping_add(chunk as u32);
            rest = &rest[chunk..];
        } else if rest.is_empty() && !closed {
            guest.shut_down(peer, SHUTDOWN_SEND);
            closed = true;
        } else {
            thread::yield_now();
        }
        guest.poll();
        while let Some((header, data)) = guest.inbox.pop_front() {
            peer.note(&header);
            peer.forwarded = peer.forwarded.wrapping_add(data.len() as u32);
            received.extend(data);
            ended |= header.op == op::SHUTDOWN && header.flags & SHUTDOWN_SEND != 0;
            assert_ne!(header.op, op::RST);
        }
        if peer.forwarded.wrapping_sub(advertised) > GUEST_BUFFER / 2 {
            advertised = peer.forwarded;
            guest.send(peer.header(op::CREDIT_UPDATE), &[]);
        }
    }
    received
}

const ECHO_BYTES: usize = 20 << 20;

#[test]
fn twenty_megabytes_are_echoed_in_random_chunks_and_half_closed() {
    let (mut guest, host) = guest_with_host();
    let mut peer = guest.connect(7);
    let mut stream = host.recv().unwrap();
    let echo = thread::spawn(move || {
        let mut random = Random(3);
        let mut buffer = vec![0; 100_000];
        loop {
            let len = 1 + random.below(100_000) as usize;
            let count = stream.read(&mut buffer[..len]).unwrap();
            if count == 0 {
                return stream.shutdown(Shutdown::Write).unwrap();
            }
            stream.write_all(&buffer[..count]).unwrap();
        }
    });
    let mut random = Random(2);
    let data = pattern(&mut random, ECHO_BYTES);
    let received = exchange(&mut guest, &mut peer, &data, &mut random);
    echo.join().unwrap();
    assert!(received == data, "{} bytes of {}", received.len(), data.len());
}

#[test]
fn both_directions_run_at_full_speed_independently() {
    let (mut guest, _host) = guest_with_host();
    let handle = guest.handle.clone();
    let host = thread::spawn(move || {
        let stream = handle.connect(PORT).unwrap();
        let mut sender = stream.try_clone().unwrap();
        let writer = thread::spawn(move || {
            let mut random = Random(4);
            let data = pattern(&mut random, ECHO_BYTES);
            let mut rest = &data[..];
            while !rest.is_empty() {
                let (chunk, tail) = rest.split_at((1 + random.below(200_000) as usize).min(rest.len()));
                sender.write_all(chunk).unwrap();
                rest = tail;
            }
            sender.shutdown(Shutdown::Write).unwrap();
            data
        });
        let mut received = Vec::new();
        (&stream).read_to_end(&mut received).unwrap();
        (received, writer.join().unwrap())
    });
    let mut peer = guest.accept();
    let mut random = Random(5);
    let data = pattern(&mut random, ECHO_BYTES);
    let received = exchange(&mut guest, &mut peer, &data, &mut random);
    let (at_host, from_host) = host.join().unwrap();
    assert!(at_host == data && received == from_host);
}

#[test]
fn after_a_restore_the_guest_is_told_that_its_connections_are_gone() {
    let (mut guest, host) = guest_with_host();
    let peer = guest.connect(7);
    let _stream = host.recv().unwrap();
    guest.rig.add(2, &[(DATA + 0x10_0000, 4, WRITE)]);
    guest.rig.kick(2);
    assert_eq!(guest.rig.used(2), None);
    let section = guest.rig.save();

    let (device, handle) = Vsock::new(CID, Box::new(|_| Err(ErrorKind::ConnectionRefused.into()))).unwrap();
    let mut rig = Rig::with_ram(Box::new(device), guest.rig.ram.clone());
    rig.queues = guest.rig.queues.clone();
    rig.transport.restore(&section).unwrap();
    rig.transport.as_queued().unwrap().start_queues();
    assert_eq!(rig.wait_used(2).1, 4);
    assert_eq!(rig.bytes(DATA + 0x10_0000, 4), [0; 4]);
    let mut guest = Guest { rig, handle, inbox: VecDeque::new(), sent_packets: 1, unused_packets: 1 };
    guest.send(peer.header(op::RW), b"anyone?");
    assert_eq!(guest.next().0.op, op::RST);
}

/// Gives the sockets it is told to carry on with to the test.
struct Resuming(mpsc::Sender<(u32, u32, Vec<u8>, UnixStream)>);

impl VsockHost for Resuming {
    fn connect(&mut self, _port: u32) -> io::Result<UnixStream> {
        Err(ErrorKind::ConnectionRefused.into())
    }

    fn resume(&mut self, port: u32, guest_port: u32, unread: &[u8]) -> io::Result<UnixStream> {
        let (ours, mut theirs) = UnixStream::pair()?;
        theirs.write_all(unread)?;
        self.0.send((port, guest_port, unread.to_vec(), theirs)).unwrap();
        Ok(ours)
    }
}

#[test]
fn a_host_that_carries_on_loses_nothing_over_a_restore() {
    let (mut guest, host) = guest_with_host();
    let mut peer = guest.connect(7);
    let mut stream = host.recv().unwrap();
    guest.send(peer.header(op::RW), b"before");
    let mut before = [0; 6];
    stream.read_exact(&mut before).unwrap();
    // More than the guest has room for: the rest waits in the socket.
    let sent = pattern(&mut Random(9), GUEST_BUFFER as usize + 5000);
    stream.write_all(&sent).unwrap();
    let mut received = Vec::new();
    while received.len() < GUEST_BUFFER as usize {
        received.extend(guest.next_event().1);
    }
    let section = guest.rig.save();

    let (sender, resumed) = mpsc::channel();
    let (device, handle) = Vsock::new(CID, Box::new(Resuming(sender))).unwrap();
    let mut rig = Rig::with_ram(Box::new(device), guest.rig.ram.clone());
    rig.queues = guest.rig.queues.clone();
    rig.transport.restore(&section).unwrap();
    let (port, guest_port, unread, mut stream) = resumed.recv().unwrap();
    assert_eq!((port, guest_port), (PORT, 7));
    assert!(unread == sent[GUEST_BUFFER as usize..]);
    rig.transport.as_queued().unwrap().start_queues();
    let Guest { inbox, sent_packets, unused_packets, .. } = guest;
    let mut guest = Guest { rig, handle, inbox, sent_packets, unused_packets };
    peer.forwarded = GUEST_BUFFER;
    guest.send(peer.header(op::CREDIT_UPDATE), &[]);
    while received.len() < sent.len() {
        received.extend(guest.next_event().1);
    }
    assert!(received == sent);
    guest.send(peer.header(op::RW), b"after");
    let mut after = [0; 5];
    stream.read_exact(&mut after).unwrap();
    assert_eq!((&before, &after), (b"before", b"after"));
}

#[test]
fn saved_connections_that_cannot_be_are_refused() {
    let (mut guest, _host) = guest_with_host();
    guest.connect(7);
    guest.rig.save();
    let saved = guest.handle.shared.lock().saved_connections().0;
    let twice = [saved[0].clone(), saved[0].clone()];
    assert!(connection::check(&saved, &[]).is_ok());
    assert!(connection::check(&twice, &[]).is_err());
    assert!(connection::check(&saved, &vec![(1, 2); 2000]).is_err());
}
