//! What goes to the distribution's own registry and comes from it, with skopeo at the other end.

use std::fs;
use std::path::Path;
use std::process::Command;

use image::Digest;
use serde_json::{Value, json};

use super::{Place, skopeo};
use crate::support::docker_registry::DockerRegistry;
use crate::support::fake_registry::{CONFIG, MANIFEST, config, descriptor};
use crate::support::{assets, finish, noise, strata};

#[test]
fn what_is_pushed_is_what_is_pulled_and_what_skopeo_sees() {
    let Some(registry) = DockerRegistry::start() else { return };
    let (here, there) = (Place::new(), Place::new());
    let noise = noise(3 << 20);
    here.import("app", &[("noise", &noise), ("motd", b"hello\n")]);
    let name = format!("{}/team/app:1.0", registry.domain);
    here.good(&["image", "tag", "app", &name]);
    let digest = here.good(&["push", &name]);
    assert_eq!(digest, here.inspect("app")["digest"].as_str().unwrap());
    assert_eq!(there.good(&["pull", &name]), name);
    assert_eq!(there.inspect(&name)["digest"], digest.as_str());
    assert_eq!(there.inspect(&name)["config"], here.inspect("app")["config"]);
    let pinned = format!("{}/team/app@{digest}", registry.domain);
    assert_eq!(there.good(&["pull", &pinned]), pinned);
    // Again nothing comes, and nothing goes.
    assert!(there.run(&["pull", &name]).stderr.contains("is up to date"));
    assert!(
        here.run(&["push", &name])
            .stderr
            .contains("0 blobs sent, 0 taken from other images, 2 had been there")
    );
    let other = format!("{}/other/app", registry.domain);
    here.good(&["image", "tag", "app", &other]);
    let pushed = here.run(&["push", &other]);
    assert!(pushed.stderr.contains("1 blobs sent, 1 taken from other images"), "{pushed:?}");
    there.run(&["pull", &format!("{name}.1")]).expect_failure(125, &["no such image", "manifest unknown"]);
    // What another tool sees there is the same, byte for byte.
    let source = format!("docker://{name}");
    let Some(seen) = skopeo(&["inspect", "--tls-verify=false", "--raw", &source]) else { return };
    assert_eq!(Digest::of(seen.as_bytes()).to_string(), digest);
    let layout = here.path("layout");
    let dest = format!("oci:{}:x", layout.display());
    skopeo(&["copy", "--insecure-policy", "--src-tls-verify=false", &source, &dest]);
    let names = |folder: &Path| {
        let mut names: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(&layout.join("blobs/sha256")), names(&here.path("store").join("blobs/sha256")));
}

#[test]
fn what_skopeo_pushes_is_pulled() {
    let Some(registry) = DockerRegistry::start() else { return };
    let (here, there) = (Place::new(), Place::new());
    let archive = here.path("app.tar");
    let archive = archive.to_str().unwrap();
    for (tag, options, media_type) in [
        ("docker", &["--format", "v2s2"][..], "docker.distribution.manifest"),
        ("zstd", &["--format", "oci", "--dest-compress-format", "zstd"], "layer.v1.tar+zstd"),
    ] {
        // Other contents each time: skopeo would reuse a layer in the compression it has been sent in.
        here.import("app", &[("noise", &noise(1 << 20)), ("motd", tag.as_bytes())]);
        // Uncompressed there, so that skopeo compresses as it is told.
        here.good(&["image", "save", "--format", "docker", "app", archive]);
        let (source, name) = (format!("docker-archive:{archive}"), format!("{}/app:{tag}", registry.domain));
        let dest = format!("docker://{name}");
        let copy = ["copy", "--insecure-policy", "--dest-tls-verify=false"];
        let Some(_) = skopeo(&[&copy, options, &[&source, &dest]].concat()) else { return };
        assert_eq!(there.good(&["pull", &name]), name);
        let manifest = there.inspect(&name)["manifest"].to_string();
        assert!(manifest.contains(media_type), "{manifest}");
        // Its files are those of the image it was made of.
        there.good(&["image", "load", archive]);
        assert_eq!(there.good(&["image", "diff", &name, "app"]), "");
    }
}

#[test]
fn a_list_of_manifests_is_chosen_from() {
    let Some(registry) = DockerRegistry::start() else { return };
    let here = Place::new();
    let layout = here.path("layout");
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |media_type: &str, bytes: &[u8]| {
        fs::write(blobs.join(Digest::of(bytes).hex()), bytes).unwrap();
        descriptor(media_type, bytes)
    };
    let mut all = Vec::new();
    for (architecture, variant) in [("amd64", ""), ("arm64", "v8"), ("arm", "v7"), ("arm", "v6")] {
        let layer = format!("layer for {architecture} {variant}").into_bytes();
        let mut config: Value = serde_json::from_slice(&config(std::slice::from_ref(&layer))).unwrap();
        config["architecture"] = json!(architecture);
        let layer = put("application/vnd.oci.image.layer.v1.tar", &layer);
        let config = put(CONFIG, config.to_string().as_bytes());
        let manifest =
            json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer] });
        let mut entry = put(MANIFEST, manifest.to_string().as_bytes());
        entry["platform"] = json!({ "os": "linux", "architecture": architecture });
        if !variant.is_empty() {
            entry["platform"]["variant"] = json!(variant);
        }
        all.push(entry);
    }
    let media_type = "application/vnd.oci.image.index.v1+json";
    let index = json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": all });
    let mut top = put(media_type, index.to_string().as_bytes());
    top["annotations"] = json!({ "org.opencontainers.image.ref.name": "multi" });
    fs::write(layout.join("index.json"), json!({ "schemaVersion": 2, "manifests": [top] }).to_string())
        .unwrap();
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let source = format!("oci:{}:multi", layout.display());
    let dest = format!("docker://{}/multi", registry.domain);
    let copy = [
        "copy",
        "--all",
        "--preserve-digests",
        "--insecure-policy",
        "--dest-tls-verify=false",
        &source,
        &dest,
    ];
    let Some(_) = skopeo(&copy) else { return };
    let name = format!("{}/multi", registry.domain);
    for (platform, at) in [("linux/amd64", 0), ("linux/arm64", 1), ("linux/arm", 2), ("linux/arm/v6", 3)] {
        here.good(&["pull", "--platform", platform, &name]);
        assert_eq!(here.inspect(&name)["digest"], all[at]["digest"], "{platform}");
    }
    let none = here.run(&["pull", "--platform", "linux/s390x", &name]);
    none.expect_failure(
        125,
        &["not there for linux/s390x", "linux/amd64, linux/arm64/v8, linux/arm/v7, linux/arm/v6"],
    );
    assert!(none.stderr.contains("--platform"), "{none:?}");
    let nonsense = here.run(&["pull", "--platform", "everything", &name]);
    assert_eq!(nonsense.code(), 2, "{nonsense:?}");
}

#[test]
fn run_pulls_what_is_not_there() {
    let (Some(assets), Some(registry)) = (assets(), DockerRegistry::start()) else { return };
    let place = Place::new();
    let store = place.path("store");
    fs::create_dir(&store).unwrap();
    let copied = Command::new("cp")
        .args(["-a", "--reflink=auto"])
        .arg(assets.join("store/kernels"))
        .arg(&store)
        .status();
    assert!(copied.unwrap().success());
    let name = format!("{}/debian:12", registry.domain);
    let other = Place::new();
    let archive = other.path("debian.tar");
    let mut save = strata();
    save.arg("--root").arg(assets.join("store")).args(["image", "save", "debian"]).arg(&archive);
    assert_eq!(finish(save).code(), 0);
    other.good(&["image", "load", archive.to_str().unwrap()]);
    other.good(&["image", "tag", "debian", &name]);
    other.good(&["push", &name]);
    let never = place.run(&["run", "--pull", "never", &name, "--", "true"]);
    never.expect_failure(125, &["no image named"]);
    let ran = place.run(&["run", &name, "--", "echo", "hi"]);
    assert_eq!((ran.code(), ran.stdout.as_str()), (0, "hi\n"), "{ran:?}");
    assert!(ran.stderr.contains(&format!("pull {name}")) && ran.stderr.contains("is new"), "{ran:?}");
    // A newer one is taken when it is asked for.
    let always = place.run(&["run", "--pull", "always", &name, "--", "echo", "hi"]);
    assert!(always.code() == 0 && always.stderr.contains("is up to date"), "{always:?}");
    drop(registry);
    let ran = place.run(&["run", &name, "--", "echo", "hi"]);
    assert_eq!((ran.code(), ran.stdout.as_str(), ran.stderr.as_str()), (0, "hi\n", ""), "{ran:?}");
    let gone = place.run(&["run", &format!("{name}.1"), "--", "echo", "hi"]);
    gone.expect_failure(125, &["is not in", "pull", "Connection refused"]);
}
