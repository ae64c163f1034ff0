//! Pushes: in pieces, from other repositories, to registries that break off and lie.

use std::sync::{Arc, Mutex};

use image::{Digest, Reference};
use registry::{Options, Pushed};

use super::fake_registry::{Contents, FakeRegistry, Reply, Request};
use super::{Temp, chain, noise, options};

/// What a registry has of the layer that is pushed to the repository `other`.
#[derive(Default)]
struct Uploads {
    bytes: Vec<u8>,
    whole: Vec<Vec<u8>>,
    manifest: Vec<u8>,
}

/// An honest registry for uploads; what it has of blobs is forgotten, so that nothing is ever present.
fn take(uploads: &mut Uploads, request: &Request) -> Option<Reply> {
    let session = "/v2/other/blobs/uploads/session?state=a%2Fb";
    let accepted = |len: usize| {
        let range = format!("0-{}", len.saturating_sub(1));
        Reply::status(202).with("Location", session).with("Range", range)
    };
    match request.method.as_str() {
        "HEAD" => Some(Reply::status(404)),
        "POST" => {
            uploads.bytes.clear();
            Some(accepted(0))
        }
        "PATCH" => {
            uploads.bytes.extend(&request.body);
            Some(accepted(uploads.bytes.len()))
        }
        "PUT" if request.path.contains("/manifests/") => {
            uploads.manifest = request.body.clone();
            let digest = Digest::of(&request.body).to_string();
            Some(Reply::status(201).with("Docker-Content-Digest", digest))
        }
        "PUT" => {
            assert!(request.path.starts_with(session), "{request:?}");
            uploads.bytes.extend(&request.body);
            let whole = std::mem::take(&mut uploads.bytes);
            let good = request.path.ends_with(&format!("&digest={}", Digest::of(&whole)));
            uploads.whole.push(whole);
            Some(Reply::status(if good { 201 } else { 400 }))
        }
        "GET" if request.path.starts_with("/v2/other/blobs/uploads/") => {
            let range = format!("0-{}", uploads.bytes.len().saturating_sub(1));
            Some(Reply::status(204).with("Location", session).with("Range", range))
        }
        _ => None,
    }
}

struct Pushing {
    temp: Temp,
    registry: FakeRegistry,
    uploads: Arc<Mutex<Uploads>>,
    layer: Vec<u8>,
}

impl Pushing {
    /// An image of one layer in a store, and a registry that does what `script` says when it is pushed.
    fn new(script: impl Fn(&Request, &mut Uploads) -> Option<Reply> + Send + Sync + 'static) -> Pushing {
        let layer = noise(350_000, 1);
        let uploads = Arc::<Mutex<Uploads>>::default();
        let taken = uploads.clone();
        let registry =
            FakeRegistry::start(Contents::image(std::slice::from_ref(&layer), |_| {}), move |request| {
                let about = request.path.starts_with("/v2/other/") || request.path.contains("/elsewhere");
                let mut taken = taken.lock().unwrap();
                about.then(|| script(request, &mut taken).or_else(|| take(&mut taken, request))).flatten()
            });
        let temp = Temp::new();
        temp.pull(&registry).unwrap();
        let name = |name: &str| -> Reference { format!("{}/{name}", registry.domain).parse().unwrap() };
        temp.store.tag(&name("app"), &name("other")).unwrap();
        Pushing { temp, registry, uploads, layer }
    }

    fn push_with(&self, options: &Options) -> Result<Pushed, String> {
        let name: Reference = format!("{}/other", self.registry.domain).parse().unwrap();
        registry::push(&self.temp.store, &name, options, &image::NoProgress).map_err(|error| chain(&error))
    }

    fn push(&self) -> Result<Pushed, String> {
        self.push_with(&options())
    }

    /// One blob after the other, the layer in four pieces.
    fn in_pieces(&self) -> Result<Pushed, String> {
        self.push_with(&Options { parallel: 1, chunk_bytes: 100_000, ..options() })
    }

    fn assert_layer_arrived(&self) {
        assert!(self.uploads.lock().unwrap().whole.contains(&self.layer));
    }

    /// The ranges of all pieces, and of what was asked about them.
    fn pieces(&self) -> Vec<String> {
        let asked = self.registry.asked();
        let patches = asked.iter().filter(|request| request.method == "PATCH");
        patches.map(|request| request.header("content-range").to_string()).collect()
    }
}

#[test]
fn a_small_blob_is_sent_whole_and_the_manifest_last() {
    let pushing = Pushing::new(|_, _| None);
    let pushed = pushing.push().unwrap();
    assert_eq!((pushed.sent, pushed.mounted, pushed.present), (2, 0, 0));
    pushing.assert_layer_arrived();
    let asked = pushing.registry.asked();
    let last = asked.last().unwrap();
    assert_eq!((last.method.as_str(), last.path.as_str()), ("PUT", "/v2/other/manifests/latest"));
    assert_eq!(last.header("content-type"), super::fake_registry::MANIFEST);
    assert_eq!(Digest::of(&pushing.uploads.lock().unwrap().manifest), pushed.digest);
    assert!(pushing.pieces().is_empty());
}

#[test]
fn a_large_blob_is_sent_in_pieces() {
    let pushing = Pushing::new(|_, _| None);
    pushing.in_pieces().unwrap();
    pushing.assert_layer_arrived();
    assert_eq!(pushing.pieces(), ["0-99999", "100000-199999", "200000-299999", "300000-349999"]);
    // Pieces are as large as the registry wants them.
    let pushing = Pushing::new(|request, uploads| {
        let reply = take(uploads, request);
        if request.method == "POST" {
            reply.map(|reply| reply.with("OCI-Chunk-Min-Length", "200000"))
        } else {
            reply
        }
    });
    pushing.in_pieces().unwrap();
    assert_eq!(pushing.pieces(), ["0-199999", "200000-349999"]);
}

#[test]
fn pieces_that_were_lost_are_sent_again() {
    let lost = Mutex::new(0);
    let pushing = Pushing::new(move |request, uploads| {
        let mut lost = lost.lock().unwrap();
        if request.method != "PATCH" || !request.header("content-range").starts_with("200000-") || *lost == 2
        {
            return None;
        }
        *lost += 1;
        // Once half of it arrived, once none.
        if *lost == 1 {
            uploads.bytes.extend(&request.body[..50_000]);
        }
        Some(Reply::Raw(Vec::new()))
    });
    pushing.in_pieces().unwrap();
    pushing.assert_layer_arrived();
    let pieces = pushing.pieces();
    assert_eq!(pieces[..3], ["0-99999", "100000-199999", "200000-299999"]);
    assert_eq!(pieces[3..], ["250000-349999"]);
}

#[test]
fn a_registry_that_forgets_is_not_fed_for_ever() {
    let pushing = Pushing::new(|request, uploads| {
        if request.method == "PATCH" && request.header("content-range").starts_with("200000-") {
            uploads.bytes.clear();
            return Some(Reply::Raw(Vec::new()));
        }
        None
    });
    let message = pushing.in_pieces().unwrap_err();
    assert!(message.contains("disconnected"), "{message}");
    assert!(pushing.pieces().len() < 40, "{:?}", pushing.pieces());
}

#[test]
fn a_registry_without_pieces_gets_the_whole() {
    for status in [400, 405, 416, 501] {
        let pushing =
            Pushing::new(move |request, _| (request.method == "PATCH").then(|| Reply::status(status)));
        pushing.in_pieces().unwrap();
        pushing.assert_layer_arrived();
        assert_eq!(pushing.pieces().len(), 1);
    }
}

#[test]
fn a_blob_of_another_repository_is_mounted_or_sent() {
    let pushing = Pushing::new(|request, _| {
        request.path.contains("mount=").then(|| Reply::status(201).with("Location", "/x"))
    });
    let pushed = pushing.push().unwrap();
    assert_eq!((pushed.sent, pushed.mounted), (1, 1));
    let mounts: Vec<String> = pushing.registry.asked().into_iter().map(|request| request.path).collect();
    let wanted = format!("/v2/other/blobs/uploads/?mount={}&from=app", Digest::of(&pushing.layer));
    assert!(mounts.contains(&wanted), "{mounts:?}");
    // A registry that may not, or will not.
    for status in [403, 404] {
        let pushing =
            Pushing::new(move |request, _| request.path.contains("mount=").then(|| Reply::status(status)));
        assert_eq!(pushing.push().unwrap().sent, 2);
        pushing.assert_layer_arrived();
    }
}

#[test]
fn what_is_there_is_not_sent() {
    let pushing = Pushing::new(|request, _| {
        (request.method == "HEAD").then(|| Reply::status(200).with("Content-Length", "350000"))
    });
    let message = pushing.push().unwrap_err();
    // The config has another size than the registry says.
    assert!(message.contains("it has 350000 bytes of a blob of"), "{message}");
    let pushing = Pushing::new(|request, _| {
        (request.method == "HEAD")
            .then(|| Reply::Raw(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n".to_vec()))
    });
    let pushed = pushing.push().unwrap();
    assert_eq!((pushed.sent, pushed.mounted, pushed.present), (0, 0, 2));
}

#[test]
fn registries_that_lie_about_uploads_are_called_liars() {
    type Script = fn(&Request, &mut Uploads) -> Option<Reply>;
    let cases: [(Script, &str); 8] = [
        (|r, _| (r.method == "POST").then(|| Reply::status(202)), "without the Location"),
        (
            |r, _| (r.method == "POST").then(|| Reply::status(202).with("Location", "ftp://x/")),
            "redirects from http to \"ftp\"",
        ),
        (|r, _| (r.method == "POST").then(|| Reply::redirect("/elsewhere")), "it redirects POST to"),
        (|r, _| (r.method == "POST").then(|| Reply::status(201)), "answers 201"),
        (
            |r, _| {
                (r.method == "PATCH").then(|| Reply::status(202).with("Location", "/x").with("Range", "0-5"))
            },
            "it took 6 bytes where 100000",
        ),
        (|r, _| (r.method == "PUT").then(|| Reply::status(500)), "answers 500"),
        (
            |r, _| {
                r.path.contains("/manifests/").then(|| {
                    Reply::status(201).with("Docker-Content-Digest", format!("sha256:{}", "0".repeat(64)))
                })
            },
            "other bytes than asked for",
        ),
        (|r, _| r.path.contains("/manifests/").then(|| Reply::status(400)), "put manifest latest"),
    ];
    for (script, want) in cases {
        let pushing = Pushing::new(script);
        let message = pushing.in_pieces().unwrap_err();
        assert!(
            message.contains(want) && message.lines().count() == 1,
            "{message:?} should contain {want:?}"
        );
    }
}

#[test]
fn a_broken_store_is_told_from_a_broken_registry() {
    let pushing = Pushing::new(|_, _| None);
    let path = |pushing: &Pushing| {
        let hex = Digest::of(&pushing.layer).hex();
        pushing.temp.store.root().join("blobs/sha256").join(hex)
    };
    let mut bytes = pushing.layer.clone();
    bytes[7] ^= 1;
    std::fs::write(path(&pushing), &bytes).unwrap();
    let message = pushing.push().unwrap_err();
    assert!(message.contains("corrupt blob sha256:"), "{message}");
    std::fs::write(path(&pushing), &bytes[1..]).unwrap();
    let message = pushing.push().unwrap_err();
    assert!(message.contains("349999 bytes where 350000 should be"), "{message}");
    let name = "none".parse().unwrap();
    let missing = registry::push(&pushing.temp.store, &name, &options(), &image::NoProgress).unwrap_err();
    assert!(chain(&missing).contains("no image named none:latest"), "{missing:?}");
}
