//! What stands before every frame in a buffer (virtio 1.2, section 5.1.6): `struct virtio_net_hdr` with its number of
//! buffers, which is always there in version 1.

use net::{Checksum, Offloads, Received, Unfinished};
use virtio_bindings::virtio_net as vnet;

/// Bytes of it.
pub(super) const HEADER_BYTES: usize = 12;
const GSO_TYPE_OFFSET: usize = 1;
const HEADER_LEN_OFFSET: usize = 2;
const GSO_SIZE_OFFSET: usize = 4;
const CSUM_START_OFFSET: usize = 6;
const CSUM_OFFSET_OFFSET: usize = 8;
const NUM_BUFFERS_OFFSET: usize = 10;
const NEEDS_CSUM: u8 = vnet::VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
const GSO_NONE: u8 = vnet::VIRTIO_NET_HDR_GSO_NONE as u8;
const GSO_TCPV4: u8 = vnet::VIRTIO_NET_HDR_GSO_TCPV4 as u8;
/// Ethernet, IPv4 and TCP without options: what each segment of a large frame begins with.
const SEGMENT_HEADERS: u16 = 14 + 20 + 20;

/// What the guest says of a frame that it sends; it is the port's to doubt it. `None` if it leaves undone what is not among
/// `offered`.
pub(super) fn of_sent(header: &[u8; HEADER_BYTES], offered: Offloads) -> Option<Unfinished> {
    let Offloads { checksum, segmentation } = offered;
    let is_offered = match (header[0], header[GSO_TYPE_OFFSET]) {
        (0, GSO_NONE) => true,
        (NEEDS_CSUM, GSO_NONE) => checksum,
        (NEEDS_CSUM, GSO_TCPV4) => segmentation,
        _ => false,
    };
    let word = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    let checksum = match header[0] {
        NEEDS_CSUM => Checksum::Partial { start: word(CSUM_START_OFFSET), offset: word(CSUM_OFFSET_OFFSET) },
        _ => Checksum::Complete,
    };
    let segment_bytes = (header[GSO_TYPE_OFFSET] == GSO_TCPV4).then(|| word(GSO_SIZE_OFFSET));
    is_offered.then_some(Unfinished { checksum, segment_bytes })
}

/// What stands before a received frame in the first of `buffers` buffers.
pub(super) fn of_received(received: Received, buffers: u16) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    let mut put = |at: usize, value: u16| header[at..at + 2].copy_from_slice(&value.to_le_bytes());
    put(NUM_BUFFERS_OFFSET, buffers);
    if let Checksum::Partial { start, offset } = received.checksum {
        put(CSUM_START_OFFSET, start);
        put(CSUM_OFFSET_OFFSET, offset);
        header[0] = NEEDS_CSUM;
    }
    if let Some(segment_bytes) = received.segment_bytes {
        let mut put = |at: usize, value: u16| header[at..at + 2].copy_from_slice(&value.to_le_bytes());
        put(HEADER_LEN_OFFSET, SEGMENT_HEADERS);
        put(GSO_SIZE_OFFSET, segment_bytes);
        header[GSO_TYPE_OFFSET] = GSO_TCPV4;
    }
    header
}
