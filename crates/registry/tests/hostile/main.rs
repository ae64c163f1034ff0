//! Registries that lie, stall, redirect and break off: each time one clear error, and a store as it was.
#![forbid(unsafe_code)]

#[path = "../../../../tests/support/fake_registry.rs"]
mod fake_registry;

mod access;
mod blobs;
mod documents;
mod silence;
mod uploads;

use std::error::Error as _;
use std::sync::Mutex;
use std::time::Duration;

use image::{Part, Progress, Reference, Store};
use registry::{Options, Pulled, Timeouts};

use fake_registry::{Contents, FakeRegistry, Reply, Request};

/// Times that a test can wait for. None is short enough that a busy machine would make an honest registry fail.
fn timeouts() -> Timeouts {
    Timeouts {
        connect: Duration::from_secs(20),
        idle: Duration::from_secs(2),
        document: Duration::from_secs(20),
        commit: Duration::from_secs(20),
        slowest: Duration::from_secs(20),
        backoff: Duration::from_millis(1),
        attempts: 3,
    }
}

fn options() -> Options {
    Options {
        credential_file: None,
        timeouts: timeouts(),
        platform: "linux/amd64".parse().unwrap(),
        ..Options::default()
    }
}

/// A store that vanishes with the value.
struct Temp {
    dir: tempfile::TempDir,
    store: Store,
}

impl Temp {
    fn new() -> Temp {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("store")).unwrap();
        Temp { dir, store }
    }

    fn pull(&self, registry: &FakeRegistry) -> Result<Pulled, String> {
        self.pull_with(registry, "app", &options())
    }

    fn pull_with(&self, registry: &FakeRegistry, name: &str, options: &Options) -> Result<Pulled, String> {
        let name: Reference = format!("{}/{name}", registry.domain).parse().unwrap();
        registry::pull(&self.store, &name, options, &image::NoProgress).map_err(|error| chain(&error))
    }

    /// Files below a folder of the store.
    fn files(&self, folder: &str) -> usize {
        std::fs::read_dir(self.store.root().join(folder)).unwrap().count()
    }

    fn blob(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let hex = image::Digest::of(bytes).hex();
        std::fs::read(self.store.root().join("blobs/sha256").join(hex)).ok()
    }

    /// No name, no blob that a name would need, no temporary file.
    fn assert_untouched(&self) {
        assert!(self.store.images().unwrap().is_empty());
        self.store.collect().unwrap();
        assert_eq!((self.files("blobs/sha256"), self.files("tmp")), (0, 0));
    }
}

/// The message with all causes, as the program prints it.
fn chain(error: &registry::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text += &format!(": {next}");
        cause = next.source();
    }
    text
}

/// Bytes that do not compress.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64 ^ seed;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| next()).collect()
}

/// One layer, and a script for the requests that are about it.
fn with_layer(
    layer: &[u8],
    script: impl Fn(&Request, &[u8]) -> Option<Reply> + Send + Sync + 'static,
) -> FakeRegistry {
    let hex = image::Digest::of(layer).hex();
    let bytes = layer.to_vec();
    FakeRegistry::start(Contents::image(&[layer.to_vec()], |_| {}), move |request| {
        if request.path.ends_with(&hex) { script(request, &bytes) } else { None }
    })
}

/// Pulls an image of one layer from a registry with this script and gives the error.
fn layer_error(script: impl Fn(&Request, &[u8]) -> Option<Reply> + Send + Sync + 'static) -> String {
    layer_error_with(&options(), script)
}

fn layer_error_with(
    options: &Options,
    script: impl Fn(&Request, &[u8]) -> Option<Reply> + Send + Sync + 'static,
) -> String {
    let temp = Temp::new();
    let registry = with_layer(&noise(100_000, 1), script);
    let message = temp.pull_with(&registry, "app", options).unwrap_err();
    temp.assert_untouched();
    assert!(message.lines().count() == 1 && message.contains("layer 1 of 1"), "{message}");
    message
}

/// Keeps what it hears.
#[derive(Default)]
struct Heard(Mutex<Vec<String>>);

impl Progress for Heard {
    fn step(&self, text: &str) {
        self.0.lock().unwrap().push(text.to_string());
    }
    fn bytes(&self, _done: u64, _total: Option<u64>) {}
    fn note(&self, text: &str) {
        self.step(text);
    }
    fn part(&self, text: &str, total: u64) -> Box<dyn Part + '_> {
        self.step(&format!("{text} of {total}"));
        Box::new(image::NoProgress)
    }
}
