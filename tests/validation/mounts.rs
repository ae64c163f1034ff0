//! `config.md`, `root` and `mounts`; `config-linux.md`, default file systems, propagation, masked and read-only paths.

use serde_json::json;

use crate::support::bundle::Bundle;

/// A line of a container's `/proc/self/mountinfo`.
struct Line {
    options: Vec<String>,
    tags: Vec<String>,
    kind: String,
    fs_options: Vec<String>,
}

/// The last mount on `place`.
fn line(mountinfo: &str, place: &str) -> Option<Line> {
    let words = |text: &str| text.split(',').map(str::to_owned).collect();
    mountinfo.lines().rev().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let (left, right): (Vec<&str>, Vec<&str>) = (left.split(' ').collect(), right.split(' ').collect());
        (left[4] == place).then(|| Line {
            options: words(left[5]),
            tags: left[6..].iter().map(|tag| (*tag).to_owned()).collect(),
            kind: right[0].to_owned(),
            fs_options: words(right[2]),
        })
    })
}

impl Line {
    fn has(&self, option: &str) -> bool {
        self.options.iter().chain(&self.fs_options).any(|have| have == option)
    }
}

const SHOW: &str = "cat /proc/self/mountinfo";

#[test]
fn the_default_file_systems_are_there() {
    let Some(bundle) = Bundle::new(SHOW) else { return };
    let shown = bundle.output();
    for (place, kind) in [
        ("/proc", "proc"),
        ("/sys", "sysfs"),
        ("/dev/pts", "devpts"),
        ("/dev/shm", "tmpfs"),
        ("/dev/mqueue", "mqueue"),
    ] {
        let line = line(&shown, place).unwrap_or_else(|| panic!("no {place} in {shown}"));
        assert_eq!(line.kind, kind, "{place}");
        assert!(line.has("nosuid"), "{place}: {shown}");
    }
    assert!(line(&shown, "/sys").unwrap().options.contains(&"ro".to_owned()));
    // No mount of the host is left.
    assert_eq!(line(&shown, "/").unwrap().options[0], "ro");
    assert!(shown.lines().all(|line| !line.contains(" /work") && !line.contains(" /run/")), "{shown}");
}

#[test]
fn the_root_is_read_only_or_not() {
    let Some(mut bundle) = Bundle::new("echo x > /file && cat /file") else { return };
    assert_ne!(bundle.run().code(), 0);
    assert!(!bundle.rootfs().join("file").exists());
    bundle.config["root"]["readonly"] = json!(false);
    assert_eq!(bundle.output(), "x\n");
    assert!(bundle.rootfs().join("file").exists());
}

#[test]
fn a_root_may_be_named_absolutely_or_by_a_link() {
    let Some(mut bundle) = Bundle::new("echo here") else { return };
    bundle.config["root"]["path"] = json!(bundle.rootfs());
    assert_eq!(bundle.output(), "here\n");
    std::os::unix::fs::symlink("rootfs", bundle.path("link")).unwrap();
    bundle.config["root"]["path"] = json!("link");
    assert_eq!(bundle.output(), "here\n");
}

#[test]
fn every_option_of_the_specification_is_taken() {
    // Those after the bar change nothing that mountinfo shows.
    let shown = "ro nosuid nodev noexec noatime nodiratime nosymfollow | rw suid dev exec atime diratime relatime \
                 symfollow defaults async sync dirsync lazytime nolazytime iversion noiversion mand nomand loud \
                 silent norelatime nostrictatime strictatime remount private rprivate shared rshared slave \
                 rslave unbindable runbindable rro rrw rnosuid rsuid rnodev rdev rnoexec rexec rnoatime ratime \
                 rnodiratime rdiratime rrelatime rstrictatime rsymfollow rnosymfollow tmpcopyup";
    let (visible, others) = shown.split_once('|').unwrap();
    let Some(mut bundle) = Bundle::new(SHOW) else { return };
    let options: Vec<&str> = visible.split_whitespace().chain(others.split_whitespace()).collect();
    for option in &options {
        bundle.add_mount(&format!("/tmp/{option}"), "tmpfs", "tmpfs", &[option]);
    }
    std::fs::create_dir(bundle.path("source")).unwrap();
    for option in options.iter().filter(|option| **option != "tmpcopyup") {
        bundle.add_mount(&format!("/bound/{option}"), "bind", "source", &["bind", option]);
    }
    let output = bundle.output();
    for option in visible.split_whitespace() {
        for place in ["tmp", "bound"] {
            let line = line(&output, &format!("/{place}/{option}")).unwrap();
            assert!(line.options.iter().any(|have| have == option), "{place}/{option}: {:?}", line.options);
        }
    }
    for (option, word) in [("sync", "sync"), ("dirsync", "dirsync"), ("lazytime", "lazytime")] {
        assert!(line(&output, &format!("/tmp/{option}")).unwrap().has(word), "{option}");
    }
}

#[test]
fn what_features_says_of_options_is_true() {
    let Some(mut bundle) = Bundle::new("true") else { return };
    let features: serde_json::Value = serde_json::from_str(&bundle.good(&["features"])).unwrap();
    for option in features["mountOptions"].as_array().unwrap().iter().map(|o| o.as_str().unwrap()) {
        if option.ends_with("idmap") {
            // Those need what is bound and its mappings: `idmapped.rs`.
            continue;
        }
        let source = if option.ends_with("bind") { "rootfs" } else { "tmpfs" };
        bundle.add_mount(&format!("/tmp/{option}"), "tmpfs", source, &[option]);
    }
    bundle.output();
    bundle.add_mount("/tmp/x", "tmpfs", "tmpfs", &["no-such-option"]);
    bundle.refused(&["/tmp/x"]);
}

#[test]
fn options_of_a_file_system_reach_it() {
    let Some(mut bundle) = Bundle::new("stat -c '%a %u %g' /tmp; cat /proc/self/mountinfo") else { return };
    bundle.add_mount("/tmp", "tmpfs", "tmpfs", &["mode=1750", "uid=7", "gid=8", "size=12k"]);
    let output = bundle.output();
    assert!(output.starts_with("1750 7 8\n"), "{output}");
    assert!(line(&output, "/tmp").unwrap().has("size=12k"), "{output}");
}

#[test]
fn mounts_are_made_in_their_order() {
    let Some(mut bundle) = Bundle::new("ls /a /a/b; cat /a/b/file") else { return };
    std::fs::create_dir_all(bundle.path("one/b")).unwrap();
    std::fs::create_dir(bundle.path("two")).unwrap();
    std::fs::write(bundle.path("two/file"), "two\n").unwrap();
    bundle.add_mount("/a", "tmpfs", "tmpfs", &[]);
    bundle.add_mount("/a", "bind", "one", &["rbind"]);
    bundle.add_mount("/a/b", "bind", "two", &["bind", "ro"]);
    assert_eq!(bundle.output(), "/a:\nb\n\n/a/b:\nfile\ntwo\n");
}

#[test]
fn files_and_relative_places_are_bound_and_what_is_missing_is_made() {
    let Some(mut bundle) = Bundle::new("cat /deep/down/file here/file; echo x > /deep/down/file") else {
        return;
    };
    std::fs::write(bundle.path("file"), "text\n").unwrap();
    bundle.add_mount("/deep/down/file", "bind", "file", &["bind", "ro"]);
    // Handled as if it began with a slash.
    bundle.add_mount("here/file", "bind", "file", &["bind"]);
    let ended = bundle.run();
    assert_eq!((ended.code(), ended.stdout.as_str()), (1, "text\ntext\n"), "{ended:?}");
    assert!(ended.stderr.contains("Read-only"), "{ended:?}");
    assert_eq!(std::fs::read_to_string(bundle.path("file")).unwrap(), "text\n");
}

#[test]
fn a_mount_that_cannot_be_made_is_an_error() {
    let Some(bundle) = Bundle::new("true") else { return };
    let config = bundle.config.clone();
    let mut bundle = bundle;
    for (destination, kind, source, options, words) in [
        ("/x", "no-such-fs", "none", vec![], vec!["no-such-fs", "/x"]),
        ("/x", "bind", "gone", vec!["bind"], vec!["gone", "/x"]),
        ("/x", "bind", "", vec!["bind"], vec!["source"]),
        ("/bin/sh/x", "tmpfs", "tmpfs", vec![], vec!["/bin/sh/x"]),
        ("/x", "tmpfs", "tmpfs", vec!["size=nonsense"], vec!["/x"]),
        ("/", "tmpfs", "tmpfs", vec![], vec!["cover the root"]),
    ] {
        bundle.config = config.clone();
        bundle.add_mount(destination, kind, source, &options);
        bundle.refused(&words);
    }
    bundle.config = config;
    bundle.add_mount("/x", "bind", "rootfs", &["bind"]);
    let map = json!([{ "containerID": 0, "hostID": 1000, "size": 10 }]);
    bundle.config["mounts"].as_array_mut().unwrap().last_mut().unwrap()["uidMappings"] = map;
    bundle.refused(&["uidMappings and gidMappings"]);
}

#[test]
fn what_is_mounted_below_comes_along_or_not() {
    // A mount below the source, made where only this test's helper sees it.
    let script = "mount -t tmpfs below source/below && touch source/below/seen && \
                  exec \"$0\" oci --root states run \"$1\"";
    for (bind, seen) in [("rbind", "seen\n"), ("bind", "")] {
        let Some(mut bundle) = Bundle::new("ls /b/below") else { return };
        std::fs::create_dir_all(bundle.path("source/below")).unwrap();
        bundle.add_mount("/b", "bind", "source", &[bind]);
        bundle.write();
        assert_eq!(in_own_namespace(&bundle, script).stdout, seen, "{bind}");
    }
    for (option, below) in [("ro", "rw"), ("rro", "ro")] {
        let Some(mut bundle) = Bundle::new(SHOW) else { return };
        std::fs::create_dir_all(bundle.path("source/below")).unwrap();
        bundle.add_mount("/b", "bind", "source", &["rbind", option]);
        bundle.write();
        let output = in_own_namespace(&bundle, script).stdout;
        assert_eq!(line(&output, "/b").unwrap().options[0], "ro");
        assert_eq!(line(&output, "/b/below").unwrap().options[0], below, "{option}");
    }
}

/// Runs a shell that may mount; the program and the container's name are `$0` and `$1`.
fn in_own_namespace(bundle: &Bundle, script: &str) -> crate::support::Ended {
    let mut command = std::process::Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", script]);
    command.arg(crate::support::strata().get_program()).arg(bundle.id()).current_dir(bundle.folder.path());
    let ended = crate::support::finish(command);
    assert_eq!(ended.code(), 0, "{ended:?}");
    ended
}

#[test]
fn propagation_is_what_was_asked_for() {
    let Some(mut bundle) = Bundle::new(SHOW) else { return };
    for kind in ["private", "shared", "slave", "unbindable"] {
        bundle.add_mount(&format!("/{kind}"), "tmpfs", "tmpfs", &[kind]);
    }
    let output = bundle.output();
    let tags = |place: &str| line(&output, place).unwrap().tags;
    assert!(tags("/private").is_empty() && tags("/slave").is_empty(), "{output}");
    assert!(tags("/shared").iter().any(|tag| tag.starts_with("shared:")), "{output}");
    assert_eq!(tags("/unbindable"), ["unbindable"]);
}

#[test]
fn the_roots_propagation_is_what_was_asked_for() {
    for (kind, tag) in [
        ("private", None),
        ("shared", Some("shared:")),
        ("unbindable", Some("unbindable")),
        ("rprivate", None),
    ] {
        let Some(mut bundle) = Bundle::new(SHOW) else { return };
        bundle.config["linux"]["rootfsPropagation"] = json!(kind);
        bundle.write();
        let tags = line(&bundle.output(), "/").unwrap().tags;
        assert_eq!(tags.first().map(|t| t.split_inclusive(':').next().unwrap()), tag, "{kind}: {tags:?}");
    }
    // What the host mounts later comes in where the root is its slave, and never goes out.
    let host = "mount --make-shared -t tmpfs tmpfs source && mkdir source/late && \
                \"$0\" oci --root states create \"$1\" >log 2>&1 && mount -t tmpfs late source/late && \
                touch source/late/seen && \"$0\" oci --root states start \"$1\" && \
                until [ -e source/done ]; do sleep 0.02; done; cat source/done; grep -c from-inside /proc/self/mountinfo; \
                \"$0\" oci --root states delete --force \"$1\"";
    for (kind, seen) in [("rslave", "seen\n0\n"), ("private", "0\n")] {
        let script =
            "mount -t tmpfs from-inside /b/late; umount /b/late; ls /b/late > /b/new; mv /b/new /b/done";
        let Some(mut bundle) = Bundle::new(script) else { return };
        std::os::unix::fs::symlink("busybox", bundle.rootfs().join("bin/mv")).unwrap();
        std::fs::create_dir_all(bundle.path("source/late")).unwrap();
        bundle.config["linux"]["rootfsPropagation"] = json!(kind);
        bundle.config["process"]["capabilities"]["effective"] = json!([]);
        bundle.add_mount("/b", "bind", "source", &["rbind", kind]);
        bundle.write();
        let mut command = std::process::Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", host]);
        command
            .arg(crate::support::strata().get_program())
            .arg(bundle.id())
            .current_dir(bundle.folder.path());
        let ended = crate::support::finish(command);
        assert_eq!(ended.stdout, seen, "{kind}: {ended:?}");
    }
}

#[test]
fn a_tmpfs_may_begin_with_what_it_covers() {
    let Some(mut bundle) = Bundle::new("cat /t/file; stat -c '%a %u' /t/file; readlink /t/link") else {
        return;
    };
    std::fs::create_dir(bundle.rootfs().join("t")).unwrap();
    std::fs::write(bundle.rootfs().join("t/file"), "text\n").unwrap();
    std::os::unix::fs::chown(bundle.rootfs().join("t/file"), Some(7), None).unwrap();
    std::os::unix::fs::symlink("/far", bundle.rootfs().join("t/link")).unwrap();
    bundle.add_mount("/t", "tmpfs", "tmpfs", &["tmpcopyup"]);
    assert_eq!(bundle.output(), "text\n644 7\n/far\n");
}

#[test]
fn masked_paths_cannot_be_read_and_read_only_ones_not_written() {
    let script = "cat /m/file; ls /m/folder; echo x > /m/folder/x; echo x > /r/file; echo x > /r/deep/file; \
                  cat /r/file; echo fine > /other && cat /other";
    let Some(mut bundle) = Bundle::new(script) else { return };
    bundle.config["root"]["readonly"] = json!(false);
    for folder in ["m/folder", "r/deep"] {
        std::fs::create_dir_all(bundle.rootfs().join(folder)).unwrap();
    }
    for file in ["m/file", "m/folder/file", "r/file", "r/deep/file"] {
        std::fs::write(bundle.rootfs().join(file), "secret\n").unwrap();
    }
    bundle.config["linux"]["maskedPaths"] = json!(["/m/file", "/m/folder", "/not/there"]);
    bundle.config["linux"]["readonlyPaths"] = json!(["/r", "/not/there"]);
    let ended = bundle.run();
    assert_eq!((ended.code(), ended.stdout.as_str()), (0, "secret\nfine\n"), "{ended:?}");
    assert_eq!(ended.stderr.matches("Read-only file system").count(), 3, "{ended:?}");
    for field in ["maskedPaths", "readonlyPaths"] {
        let mut config = bundle.config.clone();
        config["linux"][field] = json!(["relative"]);
        std::mem::swap(&mut bundle.config, &mut config);
        bundle.refused(&["absolute"]);
        bundle.config = config;
    }
}
