//! Images from and to registries: the distribution's own, and one that does what a test says.

mod access;
mod exchange;
pub mod streams;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::docker_registry::has;
use crate::support::{Ended, PATIENCE, finish, pty, strata};

/// A folder with a store and a home of its own.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        Place(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = strata();
        command.arg("--root").arg(self.path("store")).args(arguments);
        command.env("DOCKER_CONFIG", self.path("docker")).env_remove("HTTPS_PROXY").env_remove("HTTP_PROXY");
        command
    }

    fn run(&self, arguments: &[&str]) -> Ended {
        finish(self.command(arguments))
    }

    fn good(&self, arguments: &[&str]) -> String {
        let ended = self.run(arguments);
        assert_eq!(ended.code(), 0, "{arguments:?}: {ended:?}");
        ended.stdout.trim().to_owned()
    }

    /// The image `app`, whose one layer holds these files.
    fn import(&self, name: &str, files: &[(&str, &[u8])]) {
        let root = self.path("root");
        let _ = fs::remove_dir_all(&root);
        fs::create_dir(&root).unwrap();
        for (name, bytes) in files {
            fs::write(root.join(name), bytes).unwrap();
        }
        let tar = self.path("root.tar");
        let status = Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&tar).arg(".").status();
        assert!(status.unwrap().success());
        self.good(&["image", "import", tar.to_str().unwrap(), name]);
    }

    fn inspect(&self, name: &str) -> Value {
        serde_json::from_str(&self.good(&["image", "inspect", name])).unwrap()
    }
}

/// Runs skopeo, which must succeed; nothing if it is not installed.
fn skopeo(arguments: &[&str]) -> Option<String> {
    if !has("skopeo", "skopeo") {
        return None;
    }
    let output = Command::new("skopeo").args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap())
}

/// The screen once it holds `mark`: what a program wrote last may come after its end.
fn shown(terminal: &pty::Terminal, mark: &str) -> String {
    let deadline = Instant::now() + PATIENCE;
    while !terminal.screen().contains(mark) {
        assert!(Instant::now() < deadline, "no {mark:?} in {}", terminal.screen());
        std::thread::sleep(Duration::from_millis(10));
    }
    terminal.screen()
}

#[test]
fn tools_for_images_say_what_is_there() {
    let place = Place::new();
    place.import("old", &[("a", b"1"), ("b", b"2")]);
    place.import("new", &[("a", b"other"), ("c", b"3")]);
    assert_eq!(place.good(&["image", "diff", "new", "old"]), "C /a\nD /b\nA /c");
    let changes: Value =
        serde_json::from_str(&place.good(&["image", "diff", "--json", "new", "old"])).unwrap();
    assert_eq!(changes[1], json!({ "kind": "deleted", "path": "/b" }));
    let history = place.good(&["image", "history", "new"]);
    assert!(history.contains("import root.tar"), "{history}");
    place.good(&["image", "tag", "new", "team/app:1", "docker.io/library/newest"]);
    assert_eq!(place.good(&["image", "ls", "--quiet"]), "new:latest\nnewest:latest\nold:latest\nteam/app:1");
    place.run(&["image", "tag", "none", "x"]).expect_failure(125, &["no image named none:latest"]);
    assert_eq!(place.run(&["image", "tag", "new", "Bad"]).code(), 2);
    assert_eq!(place.run(&["image", "prune", "--all"]).code(), 2, "nobody to ask");
    assert_eq!(place.good(&["check", "--store"]).lines().count(), 1);
    // Damage is said, mended, and then gone.
    let layer =
        place.inspect("old")["manifest"]["layers"][0]["digest"].as_str().unwrap().replace("sha256:", "");
    fs::write(place.path("store/blobs/sha256").join(layer), b"junk").unwrap();
    let looked = place.run(&["check", "--store", "--dry-run"]);
    assert!(looked.code() == 1 && looked.stdout.contains("broken: image old:latest"), "{looked:?}");
    let mended = place.run(&["check", "--store", "--json"]);
    let value: Value = serde_json::from_str(&mended.stdout).unwrap();
    assert_eq!((mended.code(), &value["whole"]), (0, &json!(true)), "{mended:?}");
    assert_eq!(place.good(&["image", "ls", "--quiet"]), "new:latest\nnewest:latest\nteam/app:1");
    assert_eq!(place.good(&["image", "prune", "--all", "--force"]).lines().count(), 3);
    assert_eq!(place.good(&["image", "ls", "--quiet"]), "");
    assert_eq!(place.run(&["check", "--store", "--dry-run"]).code(), 0);
}
