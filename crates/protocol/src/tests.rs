//! Both directions there and back, and what hostile bytes can do: nothing.

use std::io::Cursor;

use super::*;

fn process() -> Process {
    Process {
        exec: 7,
        argv: vec!["sh".into(), "-c".into(), "echo ü".into()],
        env: vec!["A=b".into(), String::new()],
        cwd: "/srv".into(),
        user: "nobody:users".into(),
        tty: Some(WinSize { rows: 24, cols: 80 }),
        stdin: true,
    }
}

fn host_messages() -> Vec<HostMessage> {
    let device = |writable| Root::Device { device: "/dev/vda".into(), fs_type: "squashfs".into(), writable };
    let start = |root| {
        HostMessage::Start(Start {
            root,
            hostname: "box".into(),
            hosts: "10.0.0.1\tdb\n".into(),
            process: process(),
        })
    };
    vec![
        start(Root::Initramfs),
        start(device(Writable::No)),
        start(device(Writable::Device)),
        start(device(Writable::Overlay { size_bytes: 1 << 40 })),
        HostMessage::Exec(Process { tty: None, stdin: false, ..process() }),
        HostMessage::Signal { exec: u32::MAX, number: 15 },
        HostMessage::Resize { exec: 0, size: WinSize { rows: 1, cols: u16::MAX } },
        HostMessage::CloseStdin { exec: 3 },
        HostMessage::Shutdown,
        HostMessage::Identify(Identity { hostname: "web-1".into(), machine_id: [u64::MAX, 1] }),
        HostMessage::Renew(Renew { seed: [u64::MAX, 1, 2, 3, 4, 5, 6, 7], clock_ns: 1 << 60 }),
        HostMessage::Network(network(None)),
        HostMessage::Network(network(Some(SixNetwork {
            address: [0xfd; 16],
            prefix: 64,
            gateway: Some([0xfe; 16]),
        }))),
        HostMessage::Volumes(vec![
            crate::Volume { target: "/data".into(), read_only: false, memory: None },
            crate::Volume { target: "/etc/motd".into(), read_only: true, memory: None },
            crate::Volume { target: "/m".into(), read_only: true, memory: Some("size=1".into()) },
        ]),
    ]
}

fn network(six: Option<SixNetwork>) -> Network {
    Network {
        interface: "eth0".into(),
        mac: [2, 0, 0, 0, 0, 1],
        mtu: 1500,
        address: [10, 0, 2, 15],
        prefix: 24,
        gateway: six.is_none().then_some([10, 0, 2, 2]),
        six,
        resolv_conf: "nameserver 10.0.2.3\n".into(),
    }
}

fn agent_messages() -> Vec<AgentMessage> {
    vec![
        AgentMessage::Ready(Ready {
            version: VERSION,
            kernel: "6.1.0".into(),
            failed_modules: vec![ModuleFailure { name: "a.ko".into(), cause: "Exec format error".into() }],
        }),
        AgentMessage::Started { exec: 1, pid: 99 },
        AgentMessage::Exited { exec: 1, exit: Exit::Code(255) },
        AgentMessage::Exited { exec: 1, exit: Exit::Signal(9) },
        AgentMessage::Failed(Failure {
            exec: 1,
            code: Failure::NOT_FOUND,
            act: "run".into(),
            object: "nope".into(),
            cause: "not found in PATH".into(),
        }),
        AgentMessage::Log(Log { level: Level::Warning, text: "no overlay".into() }),
    ]
}

fn round_trip<M: Message + Clone + PartialEq + std::fmt::Debug>(messages: &[M]) {
    let mut wire = Vec::new();
    for message in messages {
        write_message(&mut wire, message).unwrap();
    }
    let mut from = Cursor::new(&wire);
    let mut back = Vec::new();
    while let Some(message) = read_message::<M>(&mut from).unwrap() {
        back.push(message);
    }
    assert_eq!(back, messages);

    let mut buffer = FrameBuffer::default();
    let mut back = Vec::new();
    for piece in wire.chunks(3) {
        buffer.push(piece);
        while let Some(message) = buffer.take::<M>().unwrap() {
            back.push(message);
        }
    }
    assert!(buffer.is_empty());
    assert_eq!(back, messages);
}

#[test]
fn every_message_comes_back_as_it_was_sent() {
    round_trip(&host_messages());
    round_trip(&agent_messages());
}

#[test]
fn every_cut_of_a_frame_is_truncated() {
    for message in host_messages() {
        let frame = message.to_frame().unwrap();
        for len in 1..frame.len() {
            let result = read_message::<HostMessage>(&mut Cursor::new(&frame[..len]));
            assert!(matches!(result, Err(Error::Truncated)), "{len} of {message:?}: {result:?}");
        }
    }
}

#[test]
fn a_body_with_too_few_or_too_many_bytes_is_malformed() {
    for message in host_messages() {
        let frame = message.to_frame().unwrap();
        let mut longer = frame[4..].to_vec();
        longer.push(0);
        assert!(matches!(HostMessage::decode(&longer), Err(Error::Malformed { .. })));
        for len in 5..frame.len() {
            assert!(matches!(HostMessage::decode(&frame[4..len]), Err(Error::Malformed { .. })));
        }
    }
}

#[test]
fn a_length_beyond_the_cap_is_refused_before_it_is_read() {
    let mut bytes = (AgentMessage::MAX_LEN + 1).to_le_bytes().to_vec();
    bytes.push(1);
    assert!(matches!(read_message::<AgentMessage>(&mut Cursor::new(&bytes)), Err(Error::TooLong { .. })));
    let mut buffer = FrameBuffer::default();
    buffer.push(&bytes);
    assert!(matches!(buffer.take::<AgentMessage>(), Err(Error::TooLong { .. })));
    let zero = [0u8; 4];
    assert!(matches!(read_message::<AgentMessage>(&mut Cursor::new(&zero)), Err(Error::Empty)));
}

#[test]
fn a_message_beyond_the_cap_is_not_sent() {
    let text = "x".repeat(AgentMessage::MAX_LEN as usize);
    let mut wire = Vec::new();
    let log = AgentMessage::Log(Log { level: Level::Debug, text });
    assert!(matches!(write_message(&mut wire, &log), Err(Error::TooLong { .. })));
    assert!(wire.is_empty());
}

#[test]
fn an_unknown_kind_and_a_malformed_body_leave_the_connection_usable() {
    let mut wire = vec![2, 0, 0, 0, 200, 1, 3, 0, 0, 0, 3, 1, 2];
    write_message(&mut wire, &HostMessage::Shutdown).unwrap();
    let mut from = Cursor::new(&wire);
    assert!(matches!(read_message::<HostMessage>(&mut from), Err(Error::UnknownKind(200))));
    assert!(matches!(read_message::<HostMessage>(&mut from), Err(Error::Malformed { .. })));
    assert_eq!(read_message::<HostMessage>(&mut from).unwrap(), Some(HostMessage::Shutdown));
    let mut buffer = FrameBuffer::default();
    buffer.push(&wire);
    assert!(buffer.take::<HostMessage>().is_err());
    assert!(buffer.take::<HostMessage>().is_err());
    assert_eq!(buffer.take::<HostMessage>().unwrap(), Some(HostMessage::Shutdown));
}

#[test]
fn a_count_that_cannot_be_true_is_refused() {
    let mut frame = vec![1];
    frame.extend_from_slice(&VERSION.to_le_bytes());
    frame.extend_from_slice(&0u32.to_le_bytes());
    frame.extend_from_slice(&u32::MAX.to_le_bytes());
    let result = AgentMessage::decode(&frame);
    assert!(matches!(result, Err(Error::Malformed { field: "failed_modules", .. })), "{result:?}");
}

#[test]
fn another_version_of_ready_still_says_its_version() {
    let frame = [1, 0x34, 0x12, 9, 9, 9];
    let AgentMessage::Ready(ready) = AgentMessage::decode(&frame).unwrap() else { panic!("not ready") };
    assert_eq!(ready.version, 0x1234);
    let text = check_version(ready.version).unwrap_err().to_string();
    assert_eq!(text, "the agent speaks protocol version 4660, this program 2");
}

#[test]
fn text_of_the_guest_cannot_drive_the_terminal() {
    let log = Log { level: Level::Error, text: "a\u{1b}[2J\nü\u{9b}".into() };
    assert_eq!(log.to_string(), "a\\u{1b}[2J\\nü\\u{9b}");
    let failure =
        Failure { exec: 1, code: 125, act: "mount".into(), object: "/dev/vda".into(), cause: "bad\r".into() };
    assert_eq!(failure.to_string(), "mount /dev/vda: bad\\r");
}

#[test]
fn a_hello_names_its_stream() {
    for stream in [Stream::Stdin, Stream::Stdout, Stream::Stderr] {
        let hello = Hello { exec: 0x0102_0304, stream };
        let mut wire = Vec::new();
        hello.write(&mut wire).unwrap();
        assert_eq!(wire.len(), Hello::LEN);
        assert_eq!(Hello::read(&mut Cursor::new(&wire)).unwrap(), hello);
    }
    assert!(matches!(Hello::read(&mut Cursor::new(b"st")), Err(Error::Truncated)));
    assert!(matches!(Hello::decode(*b"st\x03\x00\0\0\0\0"), Err(Error::Version { theirs: 3, .. })));
    assert!(matches!(Hello::decode(*b"st\x02\x03\0\0\0\0"), Err(Error::Malformed { .. })));
    assert!(matches!(Hello::decode(*b"GET / HT"), Err(Error::Malformed { .. })));
}

/// Xorshift: the same bytes in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// Whatever decodes must encode to the very bytes it came from.
fn decode_any<M: Message>(frame: &[u8]) {
    if let Ok(message) = M::decode(frame)
        && let Ok(again) = message.to_frame()
    {
        assert_eq!(&again[4..], frame);
    }
}

#[test]
fn random_and_damaged_bytes_are_refused_or_mean_exactly_one_message() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for _ in 0..20_000 {
        let len = (random.next() % 64) as usize;
        let mut frame: Vec<u8> = (0..len).map(|_| random.next() as u8).collect();
        decode_any::<HostMessage>(&frame);
        // Another version of `Ready` is cut down to its version on purpose: keep to ours.
        if frame.len() >= 3 && frame[0] == 1 {
            frame[1..3].copy_from_slice(&VERSION.to_le_bytes());
        }
        if frame.len() >= 3 || frame.first() != Some(&1) {
            decode_any::<AgentMessage>(&frame);
        }
        let _ = read_message::<AgentMessage>(&mut Cursor::new(&frame));
        let mut buffer = FrameBuffer::default();
        buffer.push(&frame);
        while let Ok(Some(_)) = buffer.take::<HostMessage>() {}
    }
    for message in host_messages() {
        let frame = message.to_frame().unwrap()[4..].to_vec();
        for _ in 0..2_000 {
            let mut damaged = frame.clone();
            let at = (random.next() as usize) % damaged.len();
            damaged[at] ^= 1 << (random.next() % 8);
            decode_any::<HostMessage>(&damaged);
        }
    }
}
