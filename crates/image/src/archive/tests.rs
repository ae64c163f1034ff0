use std::fs;
use std::io::Write;

use serde_json::json;

use crate::digest::Digest;
use crate::tar::testing::Tar;
use crate::testing::{Temp, chain, reference, temp_store};
use crate::{NoProgress, SaveFormat};

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

fn layer(n: u8) -> Vec<u8> {
    Tar::new().file("common", &[n; 2000]).file(&format!("only{n}"), &[n]).end()
}

/// The names in the root of an image's file system, through our own root file and the host's reader.
fn root_bytes(temp: &Temp, name: &str) -> Vec<u8> {
    let image = temp.store.image(&reference(name)).unwrap();
    fs::read(temp.store.root_for_vm(&image, &NoProgress).unwrap().path()).unwrap()
}

fn config(layers: &[&[u8]]) -> Vec<u8> {
    let diff_ids: Vec<String> = layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
    serde_json::to_vec(&json!({
        "architecture": "amd64", "os": "linux", "docker_version": "1.2", "container_config": {"x": null},
        "config": {
            "Entrypoint": ["/e"], "Cmd": ["c", "d"], "Env": ["A=1"], "WorkingDir": "/w", "User": "u:g", "Volumes": null,
            "Labels": {"k": "v"}, "ExposedPorts": {"80/tcp": {}}, "StopSignal": "SIGINT", "OnBuild": null, "Healthcheck": {"Test": ["NONE"]},
        },
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": [{"created_by": "x", "empty_layer": true}],
    }))
    .unwrap()
}

fn docker_archive(repo_tags: serde_json::Value) -> Tar {
    let (one, two) = (layer(1), layer(2));
    let config = config(&[&one, &two, &one]);
    let manifest = json!([{"Config": "c.json", "RepoTags": repo_tags, "Layers": ["1/layer.tar", "2/layer.tar", "3/layer.tar"]}]);
    Tar::new()
        .file("c.json", &config)
        .dir("1/")
        .file("1/layer.tar", &one)
        .file("./2/layer.tar", &gzip(&two))
        .symlink("3/layer.tar", "../1/layer.tar")
        .file("manifest.json", &serde_json::to_vec(&manifest).unwrap())
}

fn oci_archive(temp: &Temp, change: impl Fn(&mut serde_json::Value)) -> Vec<u8> {
    let one = gzip(&layer(1));
    let config = config(&[&layer(1)]);
    let blob = |bytes: &[u8], kind: &str| json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": Digest::of(bytes).to_string(), "size": bytes.len()});
    let mut manifest = json!({
        "schemaVersion": 2,
        "config": blob(&config, "config.v1+json"),
        "layers": [blob(&one, "layer.v1.tar+gzip")],
    });
    change(&mut manifest);
    let manifest = serde_json::to_vec(&manifest).unwrap();
    let mut descriptor = blob(&manifest, "manifest.v1+json");
    descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": "docker.io/library/app:2"});
    let index = serde_json::to_vec(&json!({"schemaVersion": 2, "manifests": [descriptor]})).unwrap();
    let _ = temp;
    let path = |bytes: &[u8]| format!("blobs/sha256/{}", Digest::of(bytes).hex());
    Tar::new()
        .file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)
        .file("index.json", &index)
        .file(&path(&one), &one)
        .file(&path(&config), &config)
        .file(&path(&manifest), &manifest)
        .end()
}

fn load(temp: &Temp, name: &str, bytes: &[u8]) -> Result<Vec<String>, String> {
    let file = temp.path(name);
    fs::write(&file, bytes).unwrap();
    let names = temp.store.load(&file, &NoProgress).map_err(|e| chain(&e))?;
    Ok(names.iter().map(|name| name.to_string()).collect())
}

#[test]
fn a_docker_archive_is_loaded_with_its_config() {
    let temp = temp_store();
    let archive = docker_archive(json!(["app:1", "docker.io/library/app:x"])).end();
    assert_eq!(load(&temp, "a.tar", &archive).unwrap(), ["app:1", "app:x"]);
    let config = temp.store.image(&reference("app:1")).unwrap().config();
    assert_eq!(config.command(&[]), ["/e", "c", "d"]);
    assert_eq!(config.command(&["q".into()]), ["/e", "q"]);
    assert_eq!((config.env[0].as_str(), config.workdir.as_str(), config.user.as_str()), ("A=1", "/w", "u:g"));
    assert_eq!((config.stop_signal.as_str(), config.exposed_ports[0].as_str()), ("SIGINT", "80/tcp"));
    assert_eq!(config.labels["k"], "v");
    root_bytes(&temp, "app:1");
    // Compressed as a whole, and without a name.
    let unnamed = gzip(&docker_archive(json!(null)).end());
    assert_eq!(load(&temp, "nameless.tar.gz", &unnamed).unwrap(), ["nameless:latest"]);
}

#[test]
fn an_oci_archive_is_loaded_and_its_default_registry_dropped() {
    let temp = temp_store();
    let archive = oci_archive(&temp, |_| {});
    assert_eq!(load(&temp, "a.tar", &archive).unwrap(), ["app:2"]);
    root_bytes(&temp, "app:2");
}

#[test]
fn an_image_survives_both_formats() {
    let temp = temp_store();
    load(&temp, "a.tar", &docker_archive(json!(["app:1"])).end()).unwrap();
    let want = root_bytes(&temp, "app:1");
    for format in [SaveFormat::OciArchive, SaveFormat::DockerArchive] {
        let file = temp.path("saved.tar");
        let image = temp.store.image(&reference("app:1")).unwrap();
        temp.store.save(std::slice::from_ref(&image), &file, format, &NoProgress).unwrap();
        let other = temp_store();
        assert_eq!(other.store.load(&file, &NoProgress).unwrap()[0].to_string(), "app:1");
        assert!(root_bytes(&other, "app:1") == want, "{format:?}");
        assert_eq!(other.store.image(&reference("app:1")).unwrap().config(), image.config());
    }
    // Nothing beside the result.
    let names: Vec<_> = fs::read_dir(temp.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 3, "{names:?}");
}

#[test]
fn dockers_media_types_leave_as_those_of_oci() {
    let temp = temp_store();
    let docker = |kind: &str| json!(format!("application/vnd.docker.{kind}"));
    let archive = oci_archive(&temp, |m| {
        m["mediaType"] = docker("distribution.manifest.v2+json");
        m["config"]["mediaType"] = docker("container.image.v1+json");
        m["layers"][0]["mediaType"] = docker("image.rootfs.diff.tar.gzip");
    });
    load(&temp, "a.tar", &archive).unwrap();
    let image = temp.store.image(&reference("app:2")).unwrap();
    let file = temp.path("saved.tar");
    temp.store.save(std::slice::from_ref(&image), &file, SaveFormat::OciArchive, &NoProgress).unwrap();
    let other = temp_store();
    other.store.load(&file, &NoProgress).unwrap();
    let index = fs::read_to_string(other.store.root().join("index.json")).unwrap();
    let saved = other.store.image(&reference("app:2")).unwrap();
    let text = String::from_utf8(saved.manifest_bytes().to_vec()).unwrap() + &index;
    assert!(!text.contains("docker.distribution") && !text.contains("vnd.docker"), "{text}");
    assert_eq!(saved.config(), image.config());
    root_bytes(&other, "app:2");
}

#[test]
fn a_layout_in_a_folder_is_loaded() {
    let temp = temp_store();
    load(&temp, "a.tar", &docker_archive(json!(["app:1"])).end()).unwrap();
    let other = temp_store();
    assert_eq!(other.store.load(temp.store.root(), &NoProgress).unwrap()[0].to_string(), "app:1");
}

#[test]
fn indexes_choose_the_host_architecture() {
    let temp = temp_store();
    let mine = layer(1);
    let config = config(&[&mine]);
    let blob = |bytes: &[u8], kind: &str| json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": Digest::of(bytes).to_string(), "size": bytes.len()});
    let manifest = serde_json::to_vec(&json!({"schemaVersion": 2, "config": blob(&config, "config.v1+json"), "layers": [blob(&mine, "layer.v1.tar")]})).unwrap();
    let build = |arch: &str| {
        let mut inner = blob(&manifest, "manifest.v1+json");
        inner["platform"] = json!({"architecture": arch, "os": "linux"});
        let mut absent = blob(b"absent", "manifest.v1+json");
        absent["platform"] = json!({"architecture": "s390x", "os": "linux"});
        let nested = serde_json::to_vec(&json!({"schemaVersion": 2, "manifests": [absent, inner]})).unwrap();
        let index =
            serde_json::to_vec(&json!({"schemaVersion": 2, "manifests": [blob(&nested, "index.v1+json")]}))
                .unwrap();
        let mut tar = Tar::new().file("index.json", &index);
        for bytes in [&mine, &config, &manifest, &nested] {
            tar = tar.file(&format!("blobs/sha256/{}", Digest::of(bytes).hex()), bytes);
        }
        tar.end()
    };
    assert_eq!(
        load(&temp, "multi.tar", &build(crate::platform::host_architecture())).unwrap(),
        ["multi:latest"]
    );
    assert!(load(&temp, "other.tar", &build("mips64le")).unwrap_err().contains("no image for"));
}

#[test]
fn archives_that_lie_are_refused_and_leave_nothing() {
    let temp = temp_store();
    let wrong = Digest::of(b"other").to_string();
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (oci_archive(&temp, |m| m["layers"][0]["digest"] = json!(wrong)), "is missing"),
        (oci_archive(&temp, |m| m["layers"][0]["size"] = json!(1)), "where 1 should be"),
        (oci_archive(&temp, |m| m["layers"][0]["digest"] = json!("sha512:00")), "digest"),
        (oci_archive(&temp, |m| m["config"] = json!(7)), "parse"),
        (Tar::new().file(&format!("blobs/sha256/{}", "0".repeat(64)), b"x").end(), "has the digest"),
        (Tar::new().file("index.json", b"{").end(), "index.json"),
        (Tar::new().file("index.json", br#"{"schemaVersion":2,"manifests":[]}"#).end(), "no image"),
        (Tar::new().file("manifest.json", br#"[{"Config":"x","Layers":[]}]"#).end(), "x is missing"),
        (Tar::new().symlink("manifest.json", "manifest.json").end(), "is missing"),
        (Tar::new().file("other", b"").end(), "neither"),
        (oci_archive(&temp, |_| {})[..3000].to_vec(), "truncated"),
        (b"junk".to_vec(), "not a tar archive"),
    ];
    for (bytes, want) in cases {
        let message = load(&temp, "bad.tar", &bytes).unwrap_err();
        assert!(message.contains(want), "{message:?} should contain {want:?}");
    }
    assert_eq!(fs::read_dir(temp.store.root().join("blobs/sha256")).unwrap().count(), 0);
    assert_eq!(temp.store.images().unwrap().len(), 0);
}

#[test]
fn a_layer_that_is_not_what_the_config_says_is_refused() {
    let temp = temp_store();
    let other = layer(9);
    let (one, config) = (layer(1), config(&[&other]));
    let manifest = json!([{"Config": "c.json", "RepoTags": ["x"], "Layers": ["l.tar"]}]);
    let tar = Tar::new()
        .file("c.json", &config)
        .file("l.tar", &one)
        .file("manifest.json", &serde_json::to_vec(&manifest).unwrap());
    load(&temp, "a.tar", &tar.end()).unwrap();
    let image = temp.store.image(&reference("x")).unwrap();
    let message = chain(&temp.store.root_for_vm(&image, &NoProgress).unwrap_err());
    assert!(message.contains("the config says"), "{message}");
}

#[test]
fn every_compression_is_imported() {
    let temp = temp_store();
    let tar = layer(1);
    let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
    xz.write_all(&tar).unwrap();
    let all = [tar.clone(), gzip(&tar), zstd::encode_all(&tar[..], 1).unwrap(), xz.finish().unwrap()];
    for bytes in all {
        let image = temp.import("a", &bytes).unwrap();
        assert_eq!(image.configuration().rootfs().diff_ids()[0], Digest::of(&tar).to_string());
        temp.store.root_for_vm(&image, &NoProgress).unwrap();
        // A stream that ends too early never becomes an image.
        assert!(temp.import("cut", &bytes[..bytes.len() - 600.min(bytes.len() / 2)]).is_err());
    }
}

#[test]
fn sparse_and_endless_files_of_an_archive_are_refused_unread() {
    let temp = temp_store();
    let claims: Vec<(&str, &[u8])> =
        vec![("GNU.sparse.size", b"9000000000000000000"), ("GNU.sparse.map", b"0,1")];
    let archive = Tar::new().pax(&claims).file("blob", b"x").end();
    let refused = load(&temp, "sparse.tar", &archive).unwrap_err();
    assert!(refused.contains("blob") && refused.contains("sparse"), "{refused}");
    let archive = Tar::new().file("small", b"1").entry(b"blob", b'0', b"", 1 << 60, b"x").end();
    let refused = load(&temp, "endless.tar", &archive).unwrap_err();
    assert!(refused.contains("blob") && refused.contains("512 GiB"), "{refused}");
    assert!(temp.store.images().unwrap().is_empty());
}

#[test]
fn a_layout_with_a_pipe_or_a_file_of_holes_is_refused_unread() {
    let temp = temp_store();
    let folder = temp.dir.path().join("layout");
    fs::create_dir_all(folder.join("blobs/sha256")).unwrap();
    fs::write(folder.join("oci-layout"), "{}").unwrap();
    fs::write(folder.join("index.json"), "{}").unwrap();
    let blob = folder.join("blobs/sha256/x");
    let refused = || chain(&temp.store.load(&folder, &NoProgress).unwrap_err());
    rustix::fs::mknodat(rustix::fs::CWD, &blob, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    assert!(refused().contains("blobs/sha256/x is no regular file"), "{}", refused());
    fs::remove_file(&blob).unwrap();
    fs::File::create(&blob).unwrap().set_len(1 << 42).unwrap();
    assert!(refused().contains("512 GiB"), "{}", refused());
    assert_eq!(fs::read_dir(temp.store.root().join("blobs/sha256")).unwrap().count(), 0);
}
