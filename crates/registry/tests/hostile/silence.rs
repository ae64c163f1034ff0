//! Silence, drips and answers without end, at each stage of a pull and of a push. That a test here ends is half of what it
//! shows: each would last for hours, or for ever, if the time for its stage were not limited.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use image::{Digest, Reference};
use registry::{Credentials, Options, Timeouts};

use super::fake_registry::{Act, Contents, FakeRegistry, Reply, Request};
use super::{Temp, chain, noise, options};

/// Times that an honest stage keeps on a busy machine too, and one attempt.
fn short() -> Options {
    let timeouts = Timeouts {
        connect: Duration::from_secs(2),
        idle: Duration::from_secs(2),
        document: Duration::from_secs(4),
        commit: Duration::from_secs(2),
        attempts: 1,
        ..options().timeouts
    };
    Options { timeouts, ..options() }
}

/// The same for blobs that never come to their end.
fn impatient() -> Options {
    let mut options = short();
    options.timeouts.slowest = Duration::from_millis(200);
    options
}

/// `first`, and then `more` again and again, `pause` apart, as long as somebody listens.
fn endless(first: impl Into<Vec<u8>>, more: &'static [u8], pause: Duration) -> Reply {
    let first = first.into();
    Reply::Stream(Box::new(move |stream| {
        let mut sent = stream.write_all(&first);
        while sent.is_ok() {
            std::thread::sleep(pause);
            sent = stream.write_all(more);
        }
    }))
}

const DRIP: Duration = Duration::from_millis(50);
const FLOOD: Duration = Duration::ZERO;

fn silent() -> Reply {
    Reply::Stall(Vec::new())
}

/// An address where connections come about and nothing is ever said.
fn mute() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let domain = listener.local_addr().unwrap().to_string();
    (listener, domain)
}

const LAYER_BYTES: usize = 100_000;

/// What a stage does, and what is said of it.
type Stage = (fn(&Request, &[u8]) -> Option<Reply>, fn() -> Options, &'static [&'static str]);

fn is_layer(request: &Request, layer: &[u8]) -> bool {
    request.path.ends_with(&Digest::of(layer).hex())
}

fn is_config(request: &Request, layer: &[u8]) -> bool {
    request.path.contains("/blobs/") && !is_layer(request, layer)
}

fn is_manifest(request: &Request) -> bool {
    request.path.contains("/manifests/")
}

/// Pulls from a registry of one stage that is not honest, and gives the error.
fn pull_error(&(act, options, wanted): &Stage) -> Result<(), String> {
    let layer = noise(LAYER_BYTES, 1);
    let bytes = layer.clone();
    let registry =
        FakeRegistry::start(Contents::image(&[layer], |_| {}), move |request| act(request, &bytes));
    let temp = Temp::new();
    let message = temp.pull_with(&registry, "app", &options()).unwrap_err();
    temp.assert_untouched();
    let missing = wanted.iter().find(|words| !message.contains(*words));
    match missing {
        Some(words) => Err(format!("no {words:?} in {message:?}")),
        None if message.lines().count() != 1 => Err(message),
        None => Ok(()),
    }
}

/// All at once: what they wait for is time.
fn check_all<T: Sync>(stages: &[T], check: impl Fn(&T) -> Result<(), String> + Sync) {
    let check = &check;
    let found: Vec<String> = std::thread::scope(|scope| {
        let running: Vec<_> = stages.iter().map(|stage| scope.spawn(move || check(stage))).collect();
        running.into_iter().filter_map(|thread| thread.join().unwrap().err()).collect()
    });
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn silence_and_drips_end_at_every_stage_of_a_pull() {
    let stages: &[Stage] = &[
        (|r, _| (r.path == "/v2/").then(silent), short, &["reach registry", "stalls: no answer within 2 s"]),
        (|r, _| is_manifest(r).then(silent), short, &["get manifest latest", "stalls: no answer"]),
        (
            |r, _| {
                is_manifest(r)
                    .then(|| Reply::Stall(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{".to_vec()))
            },
            short,
            &["get manifest latest", "stalls: no more data within 2 s"],
        ),
        (
            |r, _| {
                is_manifest(r).then(|| endless("HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n", b" ", DRIP))
            },
            short,
            &["get manifest latest", "stalls: not all of the answer within 4 s"],
        ),
        (
            |r, _| is_manifest(r).then(|| endless("HTTP/1.1 200 OK\r\nX-Drip: ", b"x", DRIP)),
            short,
            &["get manifest latest", "stalls: no whole answer within 4 s"],
        ),
        (|r, l| is_config(r, l).then(silent), short, &["get config", "stalls: no answer"]),
        (|r, l| is_layer(r, l).then(silent), short, &["layer 1 of 1", "stalls: no answer within 2 s"]),
        (
            |r, l| is_layer(r, l).then(|| endless("HTTP/1.1 200 OK\r\nX-Drip: ", b"x", DRIP)),
            short,
            &["layer 1 of 1", "stalls: no whole answer within 4 s"],
        ),
    ];
    check_all(stages, pull_error);
}

#[test]
fn answers_without_end_are_cut_off() {
    const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let stages: &[Stage] = &[
        (
            |r, _| is_manifest(r).then(|| endless("HTTP/1.1 200 OK\r\n\r\n", &[b' '; 4096], FLOOD)),
            short,
            &["get manifest latest", "a document of more than 4194304 bytes"],
        ),
        (
            |r, _| is_manifest(r).then(|| endless("HTTP/1.1 200 OK\r\n", b"X-More: and more\r\n", FLOOD)),
            short,
            &["get manifest latest", "breaks the protocol"],
        ),
        (
            |r, l| is_layer(r, l).then(|| endless("HTTP/1.1 200 OK\r\n\r\n", &[0; 4096], FLOOD)),
            impatient,
            &["layer 1 of 1", "more than the 100000 bytes of a blob"],
        ),
        // Bytes that are none of the body's.
        (
            |r, l| is_layer(r, l).then(|| endless("", b"HTTP/1.1 100 Continue\r\n\r\n", FLOOD)),
            impatient,
            &["layer 1 of 1"],
        ),
        (
            |r, l| is_layer(r, l).then(|| endless(format!("{CHUNKED}0\r\n"), b"X-More: and more\r\n", FLOOD)),
            impatient,
            &["layer 1 of 1", "stalls: no more than a trickle within 0.2 s"],
        ),
        (
            |r, l| is_layer(r, l).then(|| endless(format!("{CHUNKED}0\r\n"), b"X: y\r\n", DRIP)),
            impatient,
            &["layer 1 of 1", "stalls: no more than a trickle within 0.2 s"],
        ),
        (|r, l| is_layer(r, l).then(|| endless(CHUNKED, b"0", FLOOD)), impatient, &["layer 1 of 1"]),
        // The reason for a refusal drips: it is done without.
        (
            |r, l| {
                is_layer(r, l)
                    .then(|| endless("HTTP/1.1 400 Bad Request\r\nContent-Length: 9999\r\n\r\n", b"x", DRIP))
            },
            short,
            &["layer 1 of 1", "answers 400: Bad Request"],
        ),
    ];
    check_all(stages, pull_error);
}

fn closed() -> Reply {
    Reply::Raw(Vec::new())
}

#[test]
fn connections_that_close_end_a_pull_at_every_stage() {
    // At once, in the middle of the headers, and before all that was announced is there.
    let stages: &[Stage] = &[
        (|r, _| (r.path == "/v2/").then(closed), short, &["reach registry", "disconnected"]),
        (|r, _| is_manifest(r).then(closed), short, &["get manifest latest", "disconnected"]),
        (
            |r, _| is_manifest(r).then(|| Reply::Raw(b"HTTP/1.1 200 OK\r\nContent-Le".to_vec())),
            short,
            &["get manifest latest", "connection to"],
        ),
        (
            |r, _| {
                is_manifest(r)
                    .then(|| Reply::Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{}".to_vec()))
            },
            short,
            &["get manifest latest", "connection to"],
        ),
        // Less than there is: what comes is no document.
        (
            |r, _| {
                is_manifest(r).then(|| Reply::Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{}".to_vec()))
            },
            short,
            &["get manifest latest", "does not parse"],
        ),
        (|r, l| is_config(r, l).then(closed), short, &["get config", "disconnected"]),
        (|r, l| is_layer(r, l).then(closed), short, &["layer 1 of 1", "disconnected"]),
    ];
    check_all(stages, pull_error);
    let tokens = FakeRegistry::start(Contents::default(), |_| Some(closed()));
    let message = token_error(format!("http://{}/token", tokens.domain));
    assert!(message.contains(&tokens.domain) && message.contains("disconnected"), "{message}");
}

#[test]
fn connections_that_close_end_a_push_at_every_stage() {
    type Closed = (fn(&Request) -> bool, &'static str);
    let stages: &[Closed] = &[
        (|r| r.method == "HEAD", "put layer 1 of 1"),
        (|r| r.method == "POST", "put layer 1 of 1"),
        (|r| r.method == "PATCH", "put layer 1 of 1"),
        (|r| r.path.contains("?digest="), "put layer 1 of 1"),
        (is_manifest, "put manifest latest"),
    ];
    check_all(stages, |&(closed_at, wanted)| {
        let message = push_error(short(), false, |_| None, move |request| closed_at(request).then(closed));
        let fits =
            message.contains(wanted) && message.contains("connection to") && message.lines().count() == 1;
        if fits { Ok(()) } else { Err(message) }
    });
}

#[test]
fn trailers_without_end_do_not_keep_a_layer_that_is_there() {
    let layer = noise(LAYER_BYTES, 2);
    let bytes = layer.clone();
    let registry =
        FakeRegistry::start(Contents::image(std::slice::from_ref(&layer), |_| {}), move |request| {
            let head = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n", bytes.len());
            let body = [head.as_bytes(), &bytes, b"\r\n0\r\n"].concat();
            is_layer(request, &bytes).then(|| endless(body, b"X-More: and more\r\n", FLOOD))
        });
    let temp = Temp::new();
    // All the time in the world for the layer, and no more for what follows it than for any silence.
    let mut options = short();
    options.timeouts.slowest = Duration::from_secs(3600);
    temp.pull_with(&registry, "app", &options).unwrap();
    assert_eq!(temp.blob(&layer), Some(layer));
}

#[test]
fn how_long_a_blob_may_take_is_nothing_for_an_answer_without_its_bytes() {
    // So large a blob may take a day, and each of these would keep it for as long.
    const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    const ANNOUNCED_BYTES: u64 = 64 << 30;
    type Empty = (&'static str, &'static [u8], Duration);
    let answers: &[Empty] = &[
        ("0\r\n", b"X-More: and more\r\n", FLOOD),
        ("0\r\n", b"X: y\r\n", DRIP),
        ("1;", b"x", DRIP),
        ("1\r\nx\r\n0000", b"0", DRIP),
    ];
    check_all(answers, |&(begin, more, pause)| {
        let layer = noise(1000, 7);
        let bytes = layer.clone();
        let contents = Contents::image(&[layer], |manifest| {
            manifest["layers"][0]["size"] = ANNOUNCED_BYTES.into();
        });
        let registry = FakeRegistry::start(contents, move |request| {
            is_layer(request, &bytes).then(|| endless(format!("{CHUNKED}{begin}"), more, pause))
        });
        let temp = Temp::new();
        let mut options = short();
        options.timeouts.slowest = Duration::from_secs(1);
        let message = temp.pull_with(&registry, "app", &options).unwrap_err();
        let fits =
            message.contains("layer 1 of 1") && message.contains("stalls: no more than a trickle within 1 s");
        if fits { Ok(()) } else { Err(format!("{begin:?}: {message}")) }
    });
}

#[test]
fn a_registry_that_only_takes_connections_is_no_registry() {
    let (_listener, domain) = mute();
    let temp = Temp::new();
    let name: Reference = format!("{domain}/app").parse().unwrap();
    let error = registry::pull(&temp.store, &name, &short(), &image::NoProgress).unwrap_err();
    let message = chain(&error);
    assert!(
        message.contains(&format!("reach registry {domain}: {domain} stalls: no answer within 2 s")),
        "{message}"
    );
    let error = registry::login(&domain, &short()).unwrap_err();
    assert!(chain(&error).contains("stalls"), "{error:?}");
    temp.assert_untouched();
}

/// A registry that wants tokens from `realm`, and the error of a pull from it.
fn token_error(realm: String) -> String {
    let registry = FakeRegistry::start(Contents::image(&[noise(1000, 1)], |_| {}), move |_| {
        Some(Reply::status(401).with("WWW-Authenticate", format!("Bearer realm=\"{realm}\"")))
    });
    let temp = Temp::new();
    let credentials = Some(Credentials::password("me", "secret").unwrap());
    let message = temp.pull_with(&registry, "app", &Options { credentials, ..short() }).unwrap_err();
    temp.assert_untouched();
    message
}

#[test]
fn a_place_for_tokens_that_says_nothing_ends_the_pull() {
    // Without TLS and with it, where nothing comes, and where the greeting drips.
    let (_listener, domain) = mute();
    let message = token_error(format!("http://{domain}/token"));
    assert!(message.contains(&format!("{domain} stalls: no answer within 2 s")), "{message}");
    let message = token_error(format!("https://{domain}/token"));
    assert!(message.contains(&format!("{domain} stalls: no connection within 2 s")), "{message}");
    let (listener, domain) = mute();
    let drips = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        // The head of a TLS record of 16 KiB, a handshake's.
        let mut sent = stream.write_all(b"\x16\x03\x03\x40\x00");
        while sent.is_ok() {
            std::thread::sleep(DRIP);
            sent = stream.write_all(b"\x02");
        }
    });
    let message = token_error(format!("https://{domain}/token"));
    assert!(message.contains(&domain) && !message.contains("wants"), "{message}");
    drips.join().unwrap();
}

/// An image of one layer of so many bytes in a store under a name of this registry.
fn stored(registry: &FakeRegistry, layer: &[u8]) -> (Temp, Reference) {
    let temp = Temp::new();
    let honest = FakeRegistry::start(Contents::image(&[layer.to_vec()], |_| {}), |_| None);
    temp.pull(&honest).unwrap();
    let name: Reference = format!("{}/other", registry.domain).parse().unwrap();
    temp.store.tag(&format!("{}/app", honest.domain).parse().unwrap(), &name).unwrap();
    (temp, name)
}

/// Takes every upload, whole or in pieces, whatever it is.
fn take(request: &Request) -> Reply {
    match request.method.as_str() {
        "HEAD" => Reply::status(404),
        "POST" | "PATCH" => Reply::status(202).with("Location", "/v2/other/blobs/uploads/session"),
        "PUT" => Reply::status(201),
        _ => Reply::ok("{}"),
    }
}

/// Pushes a layer, in two pieces or whole, to a registry that is not honest at one stage, and gives the error.
fn push_error(
    options: Options,
    whole: bool,
    early: impl Fn(&Request) -> Option<Act> + Send + Sync + 'static,
    script: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static,
) -> String {
    let registry = FakeRegistry::start_early(Contents::default(), early, move |request| {
        script(request).or_else(|| Some(take(request)))
    });
    // More than the kernel takes for somebody who does not read.
    let layer = noise(12 << 20, 3);
    let (temp, name) = stored(&registry, &layer);
    let chunk_bytes = if whole { 1 << 30 } else { 8 << 20 };
    let options = Options { chunk_bytes, parallel: 1, ..options };
    let error = registry::push(&temp.store, &name, &options, &image::NoProgress).unwrap_err();
    assert!(temp.store.check(false, &image::NoProgress).unwrap().problems.is_empty());
    chain(&error)
}

#[test]
fn silence_ends_at_every_stage_of_a_push() {
    type Silent = (bool, fn(&Request) -> bool, &'static [&'static str]);
    let stages: &[Silent] = &[
        (false, |r| r.method == "HEAD", &["put layer 1 of 1", "stalls: no answer within 2 s"]),
        (false, |r| r.method == "POST", &["put layer 1 of 1", "stalls: no answer within 2 s"]),
        (false, |r| r.method == "PATCH", &["put layer 1 of 1", "stalls: no answer within 2 s"]),
        (false, |r| r.path.contains("?digest="), &["put layer 1 of 1", "stalls: no answer within 2 s"]),
        (true, |r| r.path.contains("?digest="), &["put layer 1 of 1", "stalls: no answer within 2 s"]),
        (true, is_manifest, &["put manifest latest", "stalls: no answer within 2 s"]),
    ];
    check_all(stages, |&(whole, silent_at, wanted)| {
        let message = push_error(short(), whole, |_| None, move |request| silent_at(request).then(silent));
        let missing = wanted.iter().find(|words| !message.contains(*words));
        missing.map_or(Ok(()), |words| Err(format!("no {words:?} in {message:?}")))
    });
}

/// Reads nothing for much longer than anybody waits here. Nobody waits for the thread.
fn read_nothing(_: &mut TcpStream) {
    std::thread::sleep(Duration::from_secs(300));
}

/// Reads a little now and then.
fn read_drips(stream: &mut TcpStream) {
    let mut buffer = [0; 16 << 10];
    while matches!(stream.read(&mut buffer), Ok(1..)) {
        std::thread::sleep(DRIP);
    }
}

#[test]
fn a_registry_that_does_not_take_what_is_sent_is_left() {
    type Slow = (bool, fn(&mut TcpStream), &'static str);
    // Of what is not taken the kernel takes a little all the same, now and then: either limit may come first.
    let cases: &[Slow] = &[
        (false, read_nothing, "stalls: it takes no"),
        (true, read_nothing, "stalls: it takes no"),
        (false, read_drips, "stalls: it takes not all of the data within"),
        (true, read_drips, "stalls: it takes not all of the data within"),
    ];
    check_all(cases, |&(whole, act, wanted)| {
        let sends = |request: &Request| matches!(request.method.as_str(), "PATCH" | "PUT");
        let message = push_error(
            impatient(),
            whole,
            move |request| sends(request).then(|| Box::new(act) as Act),
            |_| None,
        );
        if message.contains(wanted) { Ok(()) } else { Err(message) }
    });
}

#[test]
fn a_piece_that_is_never_answered_is_not_tried_over_and_over() {
    // As often as attempts are allowed, and not as often in each of as many uploads.
    let pieces = std::sync::Arc::new(AtomicUsize::new(0));
    let count = pieces.clone();
    let registry = FakeRegistry::start(Contents::default(), move |request| {
        if request.method == "PATCH" {
            count.fetch_add(1, Ordering::Relaxed);
            return Some(Reply::Raw(Vec::new()));
        }
        Some(take(request))
    });
    let (temp, name) = stored(&registry, &noise(350_000, 4));
    let options = Options { chunk_bytes: 100_000, parallel: 1, ..options() };
    assert!(registry::push(&temp.store, &name, &options, &image::NoProgress).is_err());
    assert_eq!(pieces.load(Ordering::Relaxed) as u32, options.timeouts.attempts);
}

#[test]
fn who_waits_for_one_layer_does_not_go_on_when_another_failed() {
    let layers = [noise(1000, 5), noise(1000, 6)];
    let [bad, mute] = [0, 1].map(|at: usize| Digest::of(&layers[at]).hex());
    let path = mute.clone();
    let registry = FakeRegistry::start(Contents::image(&layers, |_| {}), move |request| {
        if request.path.ends_with(&bad) {
            // Both are on their way by then.
            std::thread::sleep(Duration::from_millis(500));
            return Some(Reply::status(404));
        }
        request.path.ends_with(&mute).then(silent)
    });
    let temp = Temp::new();
    let options = Options { parallel: 2, ..options() };
    let message = temp.pull_with(&registry, "app", &options).unwrap_err();
    assert!(message.contains("layer 1 of 2") && message.contains("no such image"), "{message}");
    assert!(registry.count(&path) <= 1);
    temp.assert_untouched();
}
