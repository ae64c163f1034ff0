//! `strata image rm` and `prune`: names, ids, and who uses what.

use std::fs;

use serde_json::Value;

use crate::support::{Ended, finish, strata};

/// A store of its own with images of a file each.
struct Images(tempfile::TempDir);

impl Images {
    fn new() -> Images {
        let images = Images(tempfile::tempdir().unwrap());
        fs::create_dir(images.0.path().join("context")).unwrap();
        images
    }

    fn run(&self, arguments: &[&str]) -> Ended {
        let mut command = strata();
        command.env("STRATA_ROOT", self.0.path().join("store")).args(arguments);
        command.current_dir(self.0.path().join("context"));
        finish(command)
    }

    fn good(&self, arguments: &[&str]) -> String {
        let ended = self.run(arguments);
        assert_eq!(ended.code(), 0, "{arguments:?}: {ended:?}");
        ended.stdout
    }

    fn build(&self, name: &str, more: &str) {
        let context = self.0.path().join("context");
        fs::write(context.join("a"), name).unwrap();
        fs::write(context.join("Containerfile"), format!("FROM scratch\nCOPY a /a\n{more}")).unwrap();
        self.good(&["image", "build", "--no-cache", "-t", name, "."]);
    }

    fn names(&self) -> String {
        self.good(&["image", "ls", "--quiet"]).replace('\n', " ")
    }

    /// The beginning of the digest that `image ls` shows.
    fn id(&self, name: &str) -> String {
        let rows: Value = serde_json::from_str(&self.good(&["image", "ls", "--json"])).unwrap();
        let row = rows.as_array().unwrap().iter().find(|row| row["name"] == name).unwrap();
        row["digest"].as_str().unwrap()["sha256:".len()..][..12].to_owned()
    }

    fn config_id(&self, name: &str) -> String {
        let all: Value = serde_json::from_str(&self.good(&["image", "inspect", name])).unwrap();
        all["manifest"]["config"]["digest"].as_str().unwrap().to_owned()
    }
}

#[test]
fn a_name_goes_alone_and_an_id_with_all_its_names() {
    let images = Images::new();
    images.build("one", "");
    images.good(&["image", "tag", "one", "team/one:2"]);
    images.good(&["image", "rm", "one"]);
    assert_eq!(images.names(), "team/one:2 ");
    images.good(&["image", "tag", "team/one:2", "one"]);
    // The digest of the manifest or of the config, whole or in part, as both have it.
    for id in [images.id("one:latest"), images.config_id("one"), images.config_id("one")[7..20].to_owned()] {
        let refused = images.run(&["image", "rm", &id]);
        refused.expect_failure(125, &["must be forced", "multiple repositories"]);
        assert!(refused.stderr.contains("next: "), "{refused:?}");
    }
    images.good(&["image", "rm", "--force", &images.id("one:latest")]);
    assert_eq!(images.names(), "");
    assert_eq!(images.run(&["image", "rm", "one"]).code(), 125);
    // One name of an id needs no force; what is wrong with one argument keeps nothing else from going.
    images.build("one", "");
    images.build("two", "");
    let id = images.id("two:latest");
    images.run(&["image", "rm", "none", &id]).expect_failure(125, &["No such image: none"]);
    assert_eq!(images.names(), "one:latest ");
    // A broken image goes by its name.
    let layer: Value = serde_json::from_str(&images.good(&["image", "inspect", "one"])).unwrap();
    let config = layer["manifest"]["config"]["digest"].as_str().unwrap().replace("sha256:", "");
    fs::remove_file(images.0.path().join("store/blobs/sha256").join(config)).unwrap();
    images.good(&["image", "rm", "one"]);
    assert_eq!(images.names(), "");
}

#[test]
fn an_image_with_workloads_is_refused_and_forced_away_is_still_theirs() {
    if !rustix::process::geteuid().is_root() || !fs::exists("/bin/busybox").unwrap() {
        return println!("skipped: this needs root and busybox (package busybox-static)");
    }
    let images = Images::new();
    fs::copy("/bin/busybox", images.0.path().join("context/sh")).unwrap();
    images.build("box", "COPY sh /bin/sh\n");
    let command = ["box", "--", "/bin/sh", "-c", "sleep 1000"];
    images.good(&[&["create", "--isolation", "container", "--name", "user"], &command[..]].concat());
    let id = images.id("box:latest");
    images.run(&["image", "rm", "box"]).expect_failure(125, &["must force", "is using its referenced image"]);
    images.run(&["image", "rm", &id]).expect_failure(125, &["must be forced", "stopped container"]);
    images.good(&["start", "user"]);
    for force in [&[][..], &["--force"]] {
        let refused = images.run(&[&["image", "rm"], force, &[&id]].concat());
        refused.expect_failure(125, &["cannot be forced", "running container"]);
    }
    images.run(&["image", "rm", "box"]).expect_failure(125, &["must force"]);
    // Another name of it may go at any time, and the last one by force: the workload starts again from what it keeps.
    images.good(&["image", "tag", "box", "other"]);
    images.good(&["image", "rm", "box"]);
    images.good(&["image", "rm", "--force", "other"]);
    assert_eq!(images.names(), "");
    images.good(&["image", "prune"]);
    images.good(&["restart", "-t", "0", "user"]);
    assert_eq!(images.good(&["exec", "user", "/bin/sh", "-c", "cat /a"]), "box");
    images.good(&["rm", "--force", "user"]);
    images.good(&["image", "prune", "--all", "--force"]);
    assert_eq!(fs::read_dir(images.0.path().join("store/blobs/sha256")).unwrap().count(), 0);
}

#[test]
fn prune_takes_those_that_fit_and_nobody_uses() {
    let images = Images::new();
    images.build("old", "LABEL keep=no\n");
    images.build("kept", "LABEL keep=yes\n");
    images.build("plain", "");
    let prune = |filters: &[&str]| {
        let flags = filters.iter().flat_map(|filter| ["--filter", filter]);
        let flags: Vec<&str> = ["image", "prune", "--all", "--force"].into_iter().chain(flags).collect();
        images.good(&flags).replace('\n', " ")
    };
    assert_eq!(prune(&["until=1h"]), "");
    assert_eq!(prune(&["label=keep", "label!=keep=yes"]), "old:latest ");
    assert_eq!(prune(&["label=none"]), "");
    assert_eq!(prune(&["until=2099-01-01T00:00:00Z", "label!=keep"]), "plain:latest ");
    assert_eq!(images.names(), "kept:latest ");
    for wrong in ["until", "fly=1", "label="] {
        assert_eq!(
            images.run(&["image", "prune", "--all", "--force", "--filter", wrong]).code(),
            2,
            "{wrong}"
        );
    }
    assert_eq!(images.run(&["image", "prune", "--filter", "label=x"]).code(), 2);
    images
        .run(&["image", "prune", "--all", "--force", "--filter", "until=soon"])
        .expect_failure(125, &["invalid filter 'until=soon'"]);
    assert_eq!(images.good(&["image", "prune", "--all", "--force"]), "kept:latest\n");
}
