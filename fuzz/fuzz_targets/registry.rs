//! What registries, and files about them, say: names, manifests, indexes, configs, challenges, platforms, credentials.
#![no_main]

use std::sync::OnceLock;

use image::{Platform, Reference};
use libfuzzer_sys::fuzz_target;
use registry::{Challenge, CredentialFile, Manifest, parse_config};
use tempfile::TempDir;

/// A name survives its own text, in both forms.
fn name(text: &str) {
    let Ok(name) = text.parse::<Reference>() else { return };
    for form in [name.to_string(), name.full()] {
        assert_eq!(form.parse::<Reference>().expect("a name is one"), name);
    }
    assert!(name.tag().is_some() != name.digest().is_some());
    // It becomes part of URLs and of paths of the host's configuration.
    let safe = |c: char| c.is_ascii_alphanumeric() || "._-/:[]".contains(c);
    assert!(name.domain().chars().all(safe) && !name.domain().contains('/') && !name.domain().contains(".."));
    assert!(name.repository().split('/').all(|part| !part.is_empty() && part != "." && part != ".."));
    assert!(name.repository().chars().all(safe));
}

fn manifest(data: &[u8]) {
    let (kind, data) = data.split_first().map_or((0, data), |(kind, data)| (*kind, data));
    let media_types = [
        None,
        Some(image::media::MANIFEST),
        Some(image::media::INDEX),
        Some(image::media::DOCKER_MANIFEST),
        Some(image::media::DOCKER_LIST),
    ];
    // The config follows after a zero byte, which no JSON has.
    let mut parts = data.splitn(2, |byte| *byte == 0);
    let (document, config) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    match Manifest::parse(document, media_types[usize::from(kind) % media_types.len()]) {
        Ok(Manifest::Image(manifest)) => {
            assert!(image::media::is_config(manifest.config().media_type().as_ref()));
            let bytes: Option<u64> =
                manifest.layers().iter().try_fold(0, |sum: u64, l| sum.checked_add(l.size()));
            assert!(bytes.is_some());
            if let Ok(config) = parse_config(config, &manifest) {
                assert_eq!(config.rootfs().diff_ids().len(), manifest.layers().len());
            }
        }
        Ok(Manifest::Index(index)) => {
            for platform in ["linux/amd64", "linux/arm", "linux/arm/v6", "windows/amd64"] {
                let platform: Platform = platform.parse().expect("a platform");
                if let Some(chosen) = platform.choose(index.manifests()) {
                    assert!(index.manifests().contains(chosen));
                }
            }
        }
        Err(message) => assert!(message.len() < 2000 && !message.contains('\x1b'), "{message}"),
    }
}

fn challenge(text: &str) {
    if let Some(Challenge::Bearer { realm, .. }) = Challenge::parse(text) {
        assert!(!realm.is_empty() && realm.len() <= text.len());
    }
}

fn credentials(data: &[u8]) {
    // Programs that the file names are not run here.
    if data.windows(4).any(|word| word.eq_ignore_ascii_case(b"cred") || word.contains(&b'\\')) {
        return;
    }
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| TempDir::new().expect("make a temporary folder"));
    let path = folder.path().join("config.json");
    std::fs::write(&path, data).expect("write a temporary file");
    let file = CredentialFile::at(path);
    for domain in ["docker.io", "reg.example:5000"] {
        let _ = file.get(domain);
        if file.remove(domain).is_ok() {
            assert!(matches!(file.get(domain), Ok(None)), "what was removed is still there");
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((kind, data)) = data.split_first() else { return };
    let text = std::str::from_utf8(data);
    match (kind % 5, text) {
        (0, Ok(text)) => name(text),
        (1, _) => manifest(data),
        (2, Ok(text)) => challenge(text),
        (3, _) => credentials(data),
        (4, Ok(text)) => {
            if let Ok(platform) = text.parse::<Platform>() {
                assert_eq!(platform.to_string(), text);
            }
        }
        _ => {}
    }
});
