//! Manifests, indexes and configs that are not what they should be.

use serde_json::{Value, json};

use super::fake_registry::{CONFIG, Contents, FakeRegistry, INDEX, MANIFEST, Reply, descriptor};
use super::{Heard, Temp, noise, options};

fn error_of(contents: Contents) -> String {
    let temp = Temp::new();
    let registry = FakeRegistry::start(contents, |_| None);
    let message = temp.pull(&registry).unwrap_err();
    assert_eq!(message.lines().count(), 1, "{message}");
    temp.assert_untouched();
    message
}

fn image(change: impl FnOnce(&mut Value)) -> Contents {
    Contents::image(&[noise(1000, 1)], change)
}

#[test]
fn manifests_that_are_none_are_refused() {
    let unknown = |m: &mut Value| m["layers"][0]["mediaType"] = json!("application/x-evil");
    assert!(error_of(image(unknown)).contains("a layer of the unknown type \"application/x-evil\""));
    let artifact =
        |m: &mut Value| m["config"]["mediaType"] = json!("application/vnd.cncf.helm.config.v1+json");
    assert!(error_of(image(artifact)).contains("no image but an artifact"));
    let both = |m: &mut Value| m["manifests"] = json!([]);
    assert!(error_of(image(both)).contains("both an image and an index"));
    let first = |m: &mut Value| *m = json!({"schemaVersion": 1, "name": "x", "fsLayers": []});
    assert!(error_of(image(first)).contains("first schema"));
    let mut lying = image(|_| {});
    lying.manifests.values_mut().for_each(|(_, media_type)| *media_type = INDEX.to_string());
    assert!(error_of(lying).contains("outside"));
    let sha512 = |m: &mut Value| m["layers"][0]["digest"] = json!(format!("sha512:{}", "0".repeat(128)));
    assert!(error_of(image(sha512)).contains("no sha256 digest"));
    let huge = |m: &mut Value| m["layers"][0]["size"] = json!(u64::MAX);
    assert!(error_of(image(huge)).contains("bytes of layers"));
    let large = |m: &mut Value| m["layers"][0]["size"] = json!(1u64 << 43);
    assert!(error_of(image(large)).contains("more than 512 GiB"));
    let mut junk = image(|_| {});
    junk.manifests.values_mut().for_each(|(bytes, _)| *bytes = b"{\"schemaVersion\":2,".to_vec());
    assert!(error_of(junk).contains("does not parse"));
    let mut deep = image(|_| {});
    deep.manifests.values_mut().for_each(|(bytes, _)| *bytes = "[".repeat(1 << 20).into_bytes());
    assert!(error_of(deep).contains("does not parse"));
}

#[test]
fn documents_of_more_values_than_any_image_has_are_refused() {
    let crowd = || json!(vec![json!({}); 100_000]);
    let layers = |m: &mut Value| m["layers"] = crowd();
    assert!(error_of(image(layers)).contains("more than 50000 values"));
    let other = |m: &mut Value| m["whatever"] = crowd();
    assert!(error_of(image(other)).contains("more than 50000 values"));
    let index = |m: &mut Value| *m = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": crowd()});
    let mut crowded = image(index);
    crowded.manifests.values_mut().for_each(|(_, media_type)| *media_type = INDEX.to_string());
    assert!(error_of(crowded).contains("more than 50000 values"));
    // A config with as many steps of history.
    let mut contents = image(|_| {});
    let (key, config) = contents.blobs.iter().find(|(_, bytes)| bytes.starts_with(b"{")).unwrap();
    let (key, mut config): (String, Value) = (key.clone(), serde_json::from_slice(config).unwrap());
    config["history"] = crowd();
    contents.blobs.remove(&key);
    let bytes = serde_json::to_vec(&config).unwrap();
    let part = descriptor(CONFIG, &bytes);
    contents.blobs.insert(part["digest"].as_str().unwrap().to_string(), bytes);
    for (bytes, _) in contents.manifests.values_mut() {
        let mut manifest: Value = serde_json::from_slice(bytes).unwrap();
        manifest["config"] = part.clone();
        *bytes = serde_json::to_vec(&manifest).unwrap();
    }
    assert!(error_of(contents).contains("more than 50000 values"));
}

#[test]
fn documents_without_end_are_not_read_to_it() {
    let temp = Temp::new();
    let endless = |request: &super::Request| {
        request.path.contains("/manifests/").then(|| {
            Reply::Stream(Box::new(|stream| {
                use std::io::Write;
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n");
                while stream.write_all(&[b' '; 65536]).is_ok() {}
            }))
        })
    };
    let registry = FakeRegistry::start(image(|_| {}), endless);
    let message = temp.pull(&registry).unwrap_err();
    assert!(message.contains("a document of more than 4194304 bytes"), "{message}");
    let announced = |request: &super::Request| {
        request
            .path
            .contains("/manifests/")
            .then(|| Reply::Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n{}".to_vec()))
    };
    let registry = FakeRegistry::start(image(|_| {}), announced);
    let message = temp.pull(&registry).unwrap_err();
    assert!(message.contains("a document of more than 4194304 bytes"), "{message}");
    temp.assert_untouched();
}

#[test]
fn a_manifest_is_the_one_asked_for() {
    // By digest, its bytes have that digest.
    let temp = Temp::new();
    let contents = image(|_| {});
    let digest = contents.manifests.keys().find(|name| name.starts_with("sha256:")).unwrap().clone();
    let mut other = contents.clone();
    other.manifests.get_mut(&digest).unwrap().0.push(b' ');
    let registry = FakeRegistry::start(other, |_| None);
    let message = temp.pull_with(&registry, &format!("app@{digest}"), &options()).unwrap_err();
    assert!(message.contains("other bytes than asked for"), "{message}");
    temp.assert_untouched();
    // By tag, that of the header.
    let announced = |request: &super::Request| {
        let wrong = format!("sha256:{}", "0".repeat(64));
        let body = b"{}".to_vec();
        let reply = Reply::Answer { status: 200, headers: Vec::new(), body };
        request.path.contains("/manifests/").then(|| reply.with("Docker-Content-Digest", wrong))
    };
    let registry = FakeRegistry::start(contents.clone(), announced);
    assert!(temp.pull(&registry).unwrap_err().contains("other bytes than asked for"));
    // And an honest one is found again by the name it was pulled under.
    let registry = FakeRegistry::start(contents, |_| None);
    let pulled = temp.pull_with(&registry, &format!("app:9@{digest}"), &options()).unwrap();
    assert_eq!(pulled.digest.to_string(), digest);
    let name = format!("{}/app@{digest}", registry.domain);
    assert_eq!(temp.store.images().unwrap()[0].name, name);
}

fn index(of: &[(&str, Value)]) -> Value {
    let entries: Vec<Value> = of
        .iter()
        .map(|(platform, descriptor)| {
            let mut entry = descriptor.clone();
            let (os, architecture) = platform.split_once('/').unwrap();
            entry["platform"] = json!({ "os": os, "architecture": architecture });
            entry
        })
        .collect();
    json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": entries })
}

#[test]
fn an_index_is_chosen_from_by_platform() {
    let mut contents = image(|_| {});
    let manifest: Value = serde_json::from_slice(&contents.manifests["latest"].0).unwrap();
    let mine = contents.add_manifest("mine", &manifest, MANIFEST);
    let absent = descriptor(MANIFEST, b"absent");
    let all =
        index(&[("linux/s390x", absent.clone()), ("unknown/unknown", absent), ("linux/amd64", mine.clone())]);
    let top = contents.add_manifest("latest", &all, INDEX);
    let temp = Temp::new();
    let registry = FakeRegistry::start(contents.clone(), |_| None);
    let pulled = temp.pull(&registry).unwrap();
    assert_eq!(pulled.digest.to_string(), top["digest"].as_str().unwrap());
    assert_eq!(pulled.image.digest().to_string(), mine["digest"].as_str().unwrap());
    let other = registry::Options { platform: "linux/mips".parse().unwrap(), ..options() };
    let message = temp.pull_with(&registry, "app", &other).unwrap_err();
    assert!(message.contains("not there for linux/mips, only for linux/s390x, linux/amd64"), "{message}");
    // An index that names another size than its manifest has.
    let mut wrong = mine;
    wrong["size"] = json!(7);
    contents.add_manifest("latest", &index(&[("linux/amd64", wrong)]), INDEX);
    assert!(error_of(contents).contains("its index says 7"));
}

#[test]
fn indexes_inside_each_other_have_an_end() {
    let mut contents = image(|_| {});
    let mut inner = descriptor(MANIFEST, b"never asked for");
    for depth in 0..10 {
        inner = contents.add_manifest(&depth.to_string(), &index(&[("linux/amd64", inner)]), INDEX);
    }
    contents.manifests.insert("latest".to_string(), contents.manifests["9"].clone());
    assert!(error_of(contents).contains("indexes inside each other"));
    let empty = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [] });
    let mut contents = image(|_| {});
    contents.add_manifest("latest", &empty, INDEX);
    assert!(error_of(contents).contains("only for nothing"));
}

#[test]
fn configs_are_checked() {
    let with_config = |bytes: &[u8]| {
        let mut contents = image(|m| m["config"] = descriptor(CONFIG, bytes));
        contents.blobs.insert(image::Digest::of(bytes).to_string(), bytes.to_vec());
        contents
    };
    assert!(error_of(with_config(b"{")).contains("a config that does not parse"));
    let none = json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}});
    assert!(error_of(with_config(none.to_string().as_bytes())).contains("0 layers for a manifest of 1"));
    let mut short = image(|_| {});
    short.blobs.values_mut().for_each(|blob| blob.truncate(10));
    assert!(error_of(short).contains("get config"));
    // One for another platform is pulled, and said.
    let layer = noise(1000, 1);
    let other = json!({
        "architecture": "riscv64", "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [image::Digest::of(&layer).to_string()]},
    });
    let registry = FakeRegistry::start(with_config(other.to_string().as_bytes()), |_| None);
    let (temp, heard) = (Temp::new(), Heard::default());
    let name = format!("{}/app", registry.domain).parse().unwrap();
    registry::pull(&temp.store, &name, &options(), &heard).unwrap();
    let heard = heard.0.into_inner().unwrap();
    assert!(heard.iter().any(|text| text.contains("for linux/riscv64, not for linux/amd64")), "{heard:?}");
}
