//! Pulls that are looked at while they run: memory, death in the middle, two at once, bars.

use std::fs;
use std::io::Write;
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use image::Digest;
use serde_json::json;

use super::{Place, shown};
use crate::support::fake_registry::{CONFIG, Contents, FakeRegistry, LAYER, MANIFEST, Reply, descriptor};
use crate::support::{pty, start};

/// A registry whose layers are `sizes` long and all of zeros, each held back before its last byte until the test says go on.
pub fn held_back(sizes: &'static [usize]) -> (FakeRegistry, mpsc::Receiver<()>, Arc<Mutex<bool>>) {
    let zeros = Arc::new(vec![0u8; *sizes.iter().max().unwrap()]);
    let layers: Vec<&[u8]> = sizes.iter().map(|size| &zeros[..*size]).collect();
    let ids: Vec<String> = layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
    let config =
        json!({ "architecture": "amd64", "os": "linux", "rootfs": { "type": "layers", "diff_ids": ids } });
    let config = config.to_string().into_bytes();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor(CONFIG, &config),
        "layers": layers.iter().map(|layer| descriptor(LAYER, layer)).collect::<Vec<_>>(),
    });
    let mut contents = Contents::default();
    contents.blobs.insert(Digest::of(&config).to_string(), config);
    contents.add_manifest("latest", &manifest, MANIFEST);
    let (there, arrived) = mpsc::channel();
    let there = Mutex::new(there);
    let go_on = Arc::new(Mutex::new(false));
    let free = go_on.clone();
    let registry = FakeRegistry::start(contents, move |request| {
        let at = ids.iter().position(|id| request.path.ends_with(id))?;
        let (size, from) = (sizes[at], request.range().unwrap_or(0));
        let (zeros, free, there) = (zeros.clone(), free.clone(), there.lock().unwrap().clone());
        Some(Reply::Stream(Box::new(move |stream| {
            let head = match from {
                0 => format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n"),
                from => format!("HTTP/1.1 206 OK\r\nContent-Range: bytes {from}-{}/{size}\r\n\r\n", size - 1),
            };
            let sent = stream.write_all(head.as_bytes());
            let sent = sent.and_then(|()| stream.write_all(&zeros[from..size - 1]));
            let _ = there.send(());
            // Whoever asks was killed.
            if sent.is_err() {
                return;
            }
            while !*free.lock().unwrap() {
                std::thread::sleep(Duration::from_millis(5));
            }
            let _ = stream.write_all(&[0]);
        })))
    });
    (registry, arrived, go_on)
}

fn partial_bytes(place: &Place) -> u64 {
    let entries = fs::read_dir(place.path("store/partial")).into_iter().flatten();
    entries.map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
}

#[test]
fn an_image_of_any_size_takes_little_memory() {
    const SIZES: &[usize] = &[150 << 20, 140 << 20, 130 << 20, 120 << 20];
    let (registry, arrived, go_on) = held_back(SIZES);
    let place = Place::new();
    let pull = start(place.command(&["pull", &format!("{}/big", registry.domain)]));
    for _ in SIZES {
        arrived.recv().unwrap();
    }
    // All but what is in buffers has been taken; nothing more comes before we say so.
    let most: usize = SIZES.iter().sum::<usize>() - (32 << 20);
    while partial_bytes(&place) < most as u64 {
        std::thread::sleep(Duration::from_millis(10));
    }
    let status = fs::read_to_string(format!("/proc/{}/status", pull.child.id())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    *go_on.lock().unwrap() = true;
    let ended = pull.finish();
    assert_eq!(ended.code(), 0, "{ended:?}");
    assert!(peak < 64 << 10, "{peak} KiB");
}

#[test]
fn a_pull_that_is_killed_goes_on_where_it_was() {
    const SIZES: &[usize] = &[20 << 20, 10 << 20];
    let (registry, arrived, go_on) = held_back(SIZES);
    let place = Place::new();
    let name = format!("{}/big", registry.domain);
    let mut pull = start(place.command(&["pull", &name]));
    for _ in SIZES {
        arrived.recv().unwrap();
    }
    while partial_bytes(&place) < 20 << 20 {
        std::thread::sleep(Duration::from_millis(10));
    }
    pull.child.kill().unwrap();
    drop(pull.finish());
    assert!(place.good(&["image", "ls", "--quiet"]).is_empty());
    *go_on.lock().unwrap() = true;
    place.good(&["pull", &name]);
    let ranges: usize = registry.asked().iter().filter_map(|request| request.range()).sum();
    assert!(ranges >= 20 << 20, "{ranges} bytes were not asked for again");
    assert_eq!(partial_bytes(&place), 0);
    assert_eq!(place.run(&["check", "--store"]).code(), 0);
}

#[test]
fn two_processes_bring_a_layer_once() {
    const SIZES: &[usize] = &[8 << 20];
    let (registry, arrived, go_on) = held_back(SIZES);
    let place = Place::new();
    let name = format!("{}/big", registry.domain);
    let first = start(place.command(&["pull", &name]));
    arrived.recv().unwrap();
    let second = start(place.command(&["pull", &name]));
    // Both are on their way: the second has asked for the manifest, and then waits for the layer.
    while registry.count("/manifests/") < 2 {
        std::thread::sleep(Duration::from_millis(10));
    }
    *go_on.lock().unwrap() = true;
    let (first, second) = (first.finish(), second.finish());
    assert_eq!((first.code(), second.code()), (0, 0), "{first:?} {second:?}");
    let layer = Digest::of(&vec![0; SIZES[0]]).hex();
    assert_eq!(registry.count(&layer), 1);
    assert_eq!(place.run(&["check", "--store"]).code(), 0);
}

#[test]
fn every_layer_has_a_bar_of_its_own() {
    const SIZES: &[usize] = &[8 << 20, 4 << 20];
    let (registry, arrived, go_on) = held_back(SIZES);
    let place = Place::new();
    let mut terminal = pty::start(place.command(&["pull", &format!("{}/big", registry.domain)]), 24, 120);
    for _ in SIZES {
        arrived.recv().unwrap();
    }
    for mark in ["layer 1 of 2", "layer 2 of 2", "/8.00 MiB", "/4.00 MiB"] {
        terminal.wait_for(mark);
    }
    *go_on.lock().unwrap() = true;
    assert!(terminal.finish().success(), "{}", terminal.screen());
    shown(&terminal, "is new: sha256:");
}
