//! Layers: lengths and digests that lie, streams that stall and break off.

use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::fake_registry::{Contents, FakeRegistry, Reply};
use super::{Heard, Temp, layer_error, layer_error_with, noise, options, timeouts, with_layer};

fn head(length: usize) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").into_bytes()
}

/// As `head`, then bytes.
fn answer(length: usize, bytes: &[u8]) -> Vec<u8> {
    [&head(length), bytes].concat()
}

#[test]
fn an_honest_registry_is_pulled_from_once() {
    let layers: Vec<Vec<u8>> = (0..7).map(|n| noise(n * 300_000, n as u64)).collect();
    let mut twice = layers.clone();
    twice.push(layers[3].clone());
    let registry = FakeRegistry::start(Contents::image(&twice, |_| {}), |_| None);
    let temp = Temp::new();
    let heard = Heard::default();
    let name = format!("{}/app", registry.domain).parse().unwrap();
    let pulled = registry::pull(&temp.store, &name, &options(), &heard).unwrap();
    assert!(pulled.is_new);
    assert_eq!(pulled.digest, pulled.image.digest());
    layers.iter().for_each(|layer| assert_eq!(temp.blob(layer).as_ref(), Some(layer)));
    // Seven layers and the config: one that is there twice comes once.
    assert_eq!(registry.count("/blobs/"), 8);
    assert_eq!(heard.0.lock().unwrap().len(), 1 + 7, "{heard:?}", heard = heard.0);
    drop(pulled);
    assert!(!temp.pull(&registry).unwrap().is_new);
    assert_eq!(registry.count("/blobs/"), 8);
    assert_eq!(temp.files("partial"), 0);
}

#[test]
fn pulling_once_more_mends_what_broke_in_the_store() {
    let layers = [noise(300_000, 1), noise(300_000, 2)];
    let contents = Contents::image(&layers, |_| {});
    let manifest = contents.manifests["latest"].0.clone();
    let config = contents.blobs.values().find(|blob| !layers.contains(blob)).unwrap().clone();
    let registry = FakeRegistry::start(contents, |_| None);
    let temp = Temp::new();
    temp.pull(&registry).unwrap();
    let path = |bytes: &[u8]| temp.store.root().join("blobs/sha256").join(image::Digest::of(bytes).hex());
    for (broken, fetched) in [(&layers[1], 1), (&config, 1), (&manifest, 0)] {
        let before = registry.count("/blobs/");
        let mut flipped = broken.clone();
        flipped[broken.len() / 2] ^= 1;
        std::fs::write(path(broken), flipped).unwrap();
        temp.pull(&registry).unwrap();
        assert_eq!(temp.blob(broken).as_ref(), Some(broken));
        assert_eq!(registry.count("/blobs/"), before + fetched);
    }
    std::fs::remove_file(path(&layers[0])).unwrap();
    temp.pull(&registry).unwrap();
    assert_eq!(temp.blob(&layers[0]).as_ref(), Some(&layers[0]));
    assert!(temp.store.check(false, &image::NoProgress).unwrap().problems.is_empty());
}

#[test]
fn lengths_that_lie_are_called_lies() {
    for announced in [0, 1, 99_999, 100_001, 1 << 40] {
        let message = layer_error(move |_, layer| Some(Reply::Raw(answer(announced, layer))));
        let want = format!("announces {announced} bytes of a blob where 100000 should come");
        assert!(message.contains(&want), "{message}");
    }
}

#[test]
fn more_bytes_than_the_blob_has_are_not_taken() {
    let close = |layer: &[u8], more: &[u8]| {
        Reply::Raw([b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", layer, more].concat())
    };
    let message = layer_error(move |_, layer| Some(close(layer, &[0; 500_000])));
    assert!(message.contains("more than the 100000 bytes"), "{message}");
    let chunked = |layer: &[u8]| {
        let first = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n", layer.len());
        Reply::Raw([first.as_bytes(), layer, b"\r\n1\r\nx\r\n0\r\n\r\n"].concat())
    };
    let message = layer_error(move |_, layer| Some(chunked(layer)));
    assert!(message.contains("more than the 100000 bytes"), "{message}");
}

#[test]
fn other_bytes_than_asked_for_are_thrown_away() {
    let temp = Temp::new();
    let registry = with_layer(&noise(100_000, 1), |_, layer| {
        let mut other = layer.to_vec();
        other[50_000] ^= 1;
        Some(Reply::ok(other))
    });
    let message = temp.pull(&registry).unwrap_err();
    assert!(message.contains("other bytes than asked for: they have the digest sha256:"), "{message}");
    temp.assert_untouched();
    assert_eq!(temp.files("partial"), 0);
}

#[test]
fn silence_ends_after_a_while() {
    let mut once = options();
    once.timeouts.attempts = 1;
    let message = layer_error_with(&once, |_, _| Some(Reply::Stall(Vec::new())));
    assert!(message.contains("stalls: no answer within 2 s"), "{message}");
    let message =
        layer_error_with(&once, |_, layer| Some(Reply::Stall(answer(layer.len(), &layer[..50_000]))));
    assert!(message.contains("stalls: no more data within 2 s"), "{message}");
    let message = layer_error_with(&once, |_, _| Some(Reply::Stall(b"HTTP/1.1 200 OK\r\nX-Half".to_vec())));
    assert!(message.contains("stalls"), "{message}");
}

#[test]
fn silence_is_waited_out_where_it_passes() {
    let asked = AtomicUsize::new(0);
    let layer = noise(100_000, 14);
    let registry = with_layer(&layer, move |_, layer| match asked.fetch_add(1, Ordering::Relaxed) {
        0 => Some(Reply::Stall(answer(layer.len(), &layer[..50_000]))),
        _ => None,
    });
    let temp = Temp::new();
    temp.pull(&registry).unwrap();
    assert_eq!(temp.blob(&layer), Some(layer));
}

#[test]
fn a_trickle_ends_too() {
    let temp = Temp::new();
    let registry = with_layer(&noise(100_000, 1), |_, layer| {
        let layer = layer.to_vec();
        Some(Reply::Stream(Box::new(move |stream| {
            let mut rest = layer.chunks(1);
            let mut next = stream.write_all(&head(layer.len()));
            while next.is_ok()
                && let Some(byte) = rest.next()
            {
                std::thread::sleep(Duration::from_millis(20));
                next = stream.write_all(byte);
            }
        })))
    });
    let mut options = options();
    options.timeouts.slowest = Duration::from_millis(300);
    options.timeouts.attempts = 2;
    let message = temp.pull_with(&registry, "app", &options).unwrap_err();
    assert!(message.contains("stalls: no more than a trickle within 0.3 s"), "{message}");
    temp.assert_untouched();
}

#[test]
fn what_broke_off_goes_on_where_it_was() {
    let layer = noise(1_000_000, 2);
    let breaks = AtomicUsize::new(0);
    let registry = with_layer(&layer, move |request, layer| match breaks.fetch_add(1, Ordering::Relaxed) {
        0 => Some(Reply::Raw(answer(layer.len(), &layer[..400_000]))),
        1 => {
            let first = request.range().unwrap();
            let head = format!("HTTP/1.1 206 OK\r\nContent-Range: bytes {first}-999999/1000000\r\n\r\n");
            Some(Reply::Raw([head.as_bytes(), &layer[first..700_000]].concat()))
        }
        _ => None,
    });
    let temp = Temp::new();
    temp.pull(&registry).unwrap();
    assert_eq!(temp.blob(&layer), Some(layer.clone()));
    let ranges: Vec<Option<usize>> = registry
        .asked()
        .iter()
        .filter(|request| request.path.ends_with(&image::Digest::of(&layer).hex()))
        .map(|request| request.range())
        .collect();
    assert_eq!(ranges[0], None);
    // At the latest where the stream broke; what was still in a buffer may come again.
    assert!(ranges[1].is_some_and(|at| at > 0 && at <= 400_000), "{ranges:?}");
    assert!(ranges[2].is_some_and(|at| at > ranges[1].unwrap() && at <= 700_000), "{ranges:?}");
}

#[test]
fn another_process_takes_up_what_came() {
    let layer = noise(1_000_000, 3);
    let temp = Temp::new();
    let broken = with_layer(&layer, |request, layer| {
        let first = request.range().unwrap_or(0);
        Some(if first == 0 { Reply::Raw(answer(layer.len(), &layer[..600_000])) } else { Reply::status(404) })
    });
    assert!(temp.pull(&broken).is_err());
    assert_eq!(temp.files("partial"), 1);
    let good = with_layer(&layer, |_, _| None);
    temp.pull(&good).unwrap();
    let hex = image::Digest::of(&layer).hex();
    let asked = good.asked();
    let asked: Vec<_> = asked.iter().filter(|request| request.path.ends_with(&hex)).collect();
    assert!(matches!(asked[..], [one] if one.range().is_some_and(|at| at > 0)), "{asked:?}");
    assert_eq!(temp.blob(&layer), Some(layer));
    assert_eq!(temp.files("partial"), 0);
}

#[test]
fn what_came_wrong_before_is_mended() {
    let layer = noise(100_000, 4);
    let temp = Temp::new();
    let hex = image::Digest::of(&layer).hex();
    std::fs::write(temp.store.root().join("partial").join(&hex), vec![0; 50_000]).unwrap();
    let registry = with_layer(&layer, |_, _| None);
    temp.pull(&registry).unwrap();
    assert_eq!(temp.blob(&layer), Some(layer));
    assert_eq!(registry.count(&hex), 2);
}

#[test]
fn registries_without_ranges_begin_again_and_not_for_ever() {
    // One that breaks off twice and always sends all of it.
    let layer = noise(3_000_000, 5);
    let breaks = AtomicUsize::new(0);
    let registry = with_layer(&layer, move |_, layer| match breaks.fetch_add(1, Ordering::Relaxed) {
        0 | 1 => Some(Reply::Raw(answer(layer.len(), &layer[..2_000_000]))),
        _ => Some(Reply::ok(layer.to_vec())),
    });
    let temp = Temp::new();
    temp.pull(&registry).unwrap();
    assert_eq!(temp.blob(&layer), Some(layer));
    // One that says the range is none.
    let layer = noise(200_000, 6);
    let breaks = AtomicUsize::new(0);
    let registry = with_layer(&layer, move |_, layer| match breaks.fetch_add(1, Ordering::Relaxed) {
        0 => Some(Reply::Raw(answer(layer.len(), &layer[..100_000]))),
        1 => Some(Reply::status(416)),
        _ => None,
    });
    temp.pull(&registry).unwrap();
    assert_eq!(temp.blob(&layer), Some(layer));
    // One that never gets to the end, however much it sends each time.
    for refuses in [false, true] {
        let layer = noise(3_000_000, 7);
        let registry = with_layer(&layer, move |request, layer| {
            let refused = refuses && request.range().is_some();
            Some(if refused {
                Reply::status(416)
            } else {
                Reply::Raw(answer(layer.len(), &layer[..2_500_000]))
            })
        });
        let message = Temp::new().pull(&registry).unwrap_err();
        assert!(message.contains("ended after") || message.contains("Peer disconnected"), "{message}");
        assert!(registry.count("/blobs/") < 20, "{}", registry.count("/blobs/"));
    }
}

#[test]
fn other_ranges_than_asked_for_are_refused() {
    for range in ["", "bytes 0-99999/100000", "bytes 50000-99999/7", "bytes 49999-99999/100000", "nonsense"] {
        let message = layer_error(move |request, layer| {
            let Some(first) = request.range() else {
                return Some(Reply::Raw(answer(layer.len(), &layer[..50_000])));
            };
            let body = layer[first..].to_vec();
            Some(Reply::Answer { status: 206, headers: Vec::new(), body }.with("Content-Range", range))
        });
        assert!(message.contains("it sends the range"), "{message}");
    }
    // A part that nobody asked for.
    let message = layer_error(|_, layer| {
        let body = layer.to_vec();
        Some(
            Reply::Answer { status: 206, headers: Vec::new(), body }
                .with("Content-Range", "bytes 0-99999/100000"),
        )
    });
    assert!(message.contains("answers 206"), "{message}");
}

#[test]
fn an_answer_that_is_no_http_is_called_so() {
    for bytes in [
        &b"hello\r\n\r\n"[..],
        b"HTTP/1.1 999999 X\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"\0\0\0\0",
    ] {
        let message = layer_error(move |_, _| Some(Reply::Raw(bytes.to_vec())));
        assert!(message.contains("breaks the protocol") || message.contains("disconnected"), "{message}");
    }
    let message = layer_error(|_, _| {
        let headers = "X-Filler: 0123456789012345678901234567890123456789\r\n".repeat(100_000);
        Some(Reply::Raw(format!("HTTP/1.1 200 OK\r\n{headers}\r\n").into_bytes()))
    });
    assert!(message.contains("breaks the protocol"), "{message}");
    let message = layer_error(|_, _| {
        let header = format!("X-Filler: {}\r\n", "x".repeat(1 << 20));
        Some(Reply::Raw(format!("HTTP/1.1 200 OK\r\n{header}\r\n").into_bytes()))
    });
    assert!(message.contains("headers of more than 65536 bytes"), "{message}");
}

#[test]
fn a_registry_in_trouble_is_asked_again() {
    let layer = noise(1000, 8);
    let asked = AtomicUsize::new(0);
    let registry = with_layer(&layer, move |_, _| match asked.fetch_add(1, Ordering::Relaxed) {
        0 => Some(Reply::status(503)),
        1 => Some(Reply::status(429).with("Retry-After", "0")),
        _ => None,
    });
    Temp::new().pull(&registry).unwrap();
    let message = layer_error(|_, _| Some(Reply::status(502)));
    assert!(message.contains("answers 502: Bad Gateway"), "{message}");
    // What does not pass is not tried again.
    let temp = Temp::new();
    let registry = with_layer(&layer, |_, _| {
        Some(Reply::Answer {
            status: 400,
            headers: Vec::new(),
            body: br#"{"errors":[{"code":"X","message":"no \u001b[31mway"}]}"#.to_vec(),
        })
    });
    let message = temp.pull(&registry).unwrap_err();
    assert!(message.contains(r"answers 400: no \u{1b}[31mway"), "{message}");
    assert_eq!(registry.count(&image::Digest::of(&layer).hex()), 1);
}

#[test]
fn one_failure_calls_off_the_rest() {
    let layers = [noise(1000, 9), noise(1000, 10), noise(1000, 11), noise(1000, 12), noise(1000, 13)];
    let bad = image::Digest::of(&layers[1]).hex();
    let registry = FakeRegistry::start(Contents::image(&layers, |_| {}), move |request| {
        request.path.ends_with(&bad).then(|| Reply::status(404))
    });
    let temp = Temp::new();
    let one = registry::Options { parallel: 1, timeouts: timeouts(), ..options() };
    let message = temp.pull_with(&registry, "app", &one).unwrap_err();
    assert!(message.contains("layer 2 of 5") && message.contains("no such image"), "{message}");
    assert_eq!(registry.count("/blobs/"), 1 + 2);
    temp.assert_untouched();
}
