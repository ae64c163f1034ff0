//! `strata image build` beside buildah, one instruction and its odd corners after the other: the same files, modes, owners, times
//! left aside, the same config, as many steps of history; and what one refuses the other refuses.
//!
//! Where both differ on purpose, the case says so and why, and the difference is asserted as it is. The others are those of every
//! build: variables that are set again stay where they were, as with docker, and buildah leaves what it mounted for RUN.

mod cases;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::support::starts::Start;
use crate::support::{Ended, finish, strata};
use cases::{BASE, CASES, Case, REFUSED};

/// A file of this mode.
fn put(folder: &Path, name: &str, text: &str, mode: u32) {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// What all cases copy from.
fn context(folder: &Path) {
    for (name, text, mode) in [
        ("a", "1", 0o711),
        ("b.txt", "22", 0o644),
        ("c.txt", "333", 0o600),
        ("with space.txt", "4444", 0o644),
        ("setuid", "5", 0o4755),
        ("d/x", "x", 0o644),
        ("d/sub/y", "y", 0o640),
        ("d/drop.log", "", 0o644),
        ("d/keep.log", "", 0o644),
        ("d/deep/er/z", "z", 0o644),
        ("ignored/no", "", 0o644),
        ("ignored/but", "", 0o644),
        ("same/one", "same", 0o644),
        ("etc/passwd", "root:x:0:0::/:/bin/sh\nme:x:1000:7::/:/bin/sh\n", 0o644),
        ("etc/group", "root:x:0:\nthem:x:70:\n", 0o644),
        ("links/usr/bin/tool", "tool", 0o755),
        (".dockerignore", "# comment\n**/*.log\n!d/keep.log\n/ignored/*\n!ignored/but\nnot/there\n", 0o644),
    ] {
        put(folder, name, text, mode);
    }
    fs::create_dir(folder.join("d/empty")).unwrap();
    fs::set_permissions(folder.join("d/sub"), fs::Permissions::from_mode(0o750)).unwrap();
    fs::set_permissions(folder.join("d/empty"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::hard_link(folder.join("same/one"), folder.join("same/two")).unwrap();
    for (target, name) in
        [("x", "d/link"), ("nowhere", "d/broken"), ("a", "to-a"), ("d", "to-d"), ("usr/bin", "links/bin")]
    {
        symlink(target, folder.join(name)).unwrap();
    }
    let _ = rustix::fs::setxattr(folder.join("b.txt"), "user.note", b"kept", rustix::fs::XattrFlags::empty());
    let script = "tar -czf t.tgz --owner=3 --group=4 d && tar -cf t.tar --owner=5 --group=6 same etc \
        && tar -cjf t.tbz d/x && gzip -k -c a > plain.gz && cp /bin/busybox busybox";
    let made = Command::new("sh").args(["-c", script]).current_dir(folder).status().unwrap();
    assert!(made.success());
}

/// Both programs, each with a store of its own, and the context.
struct Both {
    dir: tempfile::TempDir,
}

impl Both {
    /// Nothing where one of them cannot work.
    fn new() -> Option<Both> {
        if Start::of_environment().is_some() {
            println!("skipped: no guest has a part in it");
            return None;
        }
        let has = |program: &str| Command::new(program).arg("--version").output().is_ok();
        if !rustix::process::geteuid().is_root() || !has("buildah") || !Path::new("/bin/busybox").exists() {
            println!(
                "skipped: this needs root, buildah and busybox (Debian packages buildah, busybox-static)"
            );
            return None;
        }
        let both = Both { dir: tempfile::tempdir().unwrap() };
        fs::create_dir(both.context()).unwrap();
        context(&both.context());
        let policy = r#"{"default":[{"type":"insecureAcceptAnything"}]}"#;
        fs::write(both.path("policy.json"), policy).unwrap();
        // No short name leads to a registry.
        fs::write(both.path("registries.conf"), "unqualified-search-registries = []\n").unwrap();
        let base = Case { name: "base", text: BASE, args: &[], target: "", kept: &[] };
        if both.theirs(&base).is_err() {
            println!("skipped: buildah does not work here");
            return None;
        }
        both.ours(&base).unwrap();
        Some(both)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn context(&self) -> PathBuf {
        self.path("context")
    }

    fn strata(&self, arguments: &[&str]) -> Ended {
        let mut command = strata();
        command.env("STRATA_ROOT", self.path("store")).args(arguments).current_dir(self.context());
        finish(command)
    }

    fn good(&self, arguments: &[&str]) -> String {
        let ended = self.strata(arguments);
        assert_eq!(ended.code(), 0, "{arguments:?}: {ended:?}");
        ended.stdout
    }

    fn buildah(&self, arguments: &[&str]) -> Result<(), String> {
        let mut command = Command::new("buildah");
        command.env("CONTAINERS_REGISTRIES_CONF", self.path("registries.conf"));
        command.arg("--root").arg(self.path("theirs")).arg("--runroot").arg(self.path("run"));
        command.args(["--storage-driver", "vfs", arguments[0], "--signature-policy"]);
        command.arg(self.path("policy.json")).args(&arguments[1..]).current_dir(self.context());
        let ended = finish(command);
        if ended.status.success() { Ok(()) } else { Err(ended.stderr) }
    }

    fn flags<'a>(&self, case: &'a Case) -> Vec<&'a str> {
        let target = if case.target.is_empty() { vec![] } else { vec!["--target", case.target] };
        case.args.iter().flat_map(|arg| ["--build-arg", arg]).chain(target).collect()
    }

    fn file(&self, case: &Case) -> String {
        let path = self.path(&format!("{}.Containerfile", case.name));
        fs::write(&path, case.text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// Builds with buildah, and brings what comes of it into our store as `theirs-NAME`.
    fn theirs(&self, case: &Case) -> Result<(), String> {
        let (file, name) = (self.file(case), format!("localhost/{}", case.name));
        let fixed =
            ["bud", "--layers", "--isolation", "chroot", "--format", "docker", "-f", &file, "-t", &name];
        self.buildah(&[&fixed[..], &self.flags(case), &["."]].concat())?;
        let archive = self.path("theirs.tar");
        let _ = fs::remove_file(&archive);
        // Docker's format: OCI's has no place for SHELL, HEALTHCHECK and ONBUILD.
        let to = format!("docker-archive:{}:localhost/theirs-{}:latest", archive.display(), case.name);
        self.buildah(&["push", &name, &to])?;
        self.good(&["image", "load", archive.to_str().unwrap()]);
        Ok(())
    }

    fn ours(&self, case: &Case) -> Result<(), String> {
        let (file, name) = (self.file(case), format!("localhost/{}", case.name));
        let fixed = ["image", "build", "-f", &file, "-t", &name];
        let ended = self.strata(&[&fixed[..], &self.flags(case), &["."]].concat());
        if ended.code() == 0 { Ok(()) } else { Err(ended.stderr) }
    }

    /// What differs between both images of a case: files as `A /path` and so on, and parts of the config by their names.
    fn differences(&self, case: &Case) -> Vec<String> {
        let (ours, theirs) = (format!("localhost/{}", case.name), format!("localhost/theirs-{}", case.name));
        // What buildah mounts its own on stays behind in its layers.
        let own =
            ["/dev", "/etc", "/etc/hostname", "/etc/hosts", "/etc/resolv.conf", "/proc", "/run", "/sys"];
        let runs = case.text.contains("RUN");
        let left = |line: &&str| !runs || !line.split_once(' ').is_some_and(|(_, path)| own.contains(&path));
        let files = self.good(&["image", "diff", &theirs, &ours]);
        let mut found: Vec<String> = files.lines().filter(left).map(str::to_owned).collect();
        let (ours, theirs) = (self.config(&ours), self.config(&theirs));
        for (key, value) in &ours {
            if theirs[key] != *value {
                println!("{}: {key}: ours {value}, theirs {}", case.name, theirs[key]);
                found.push((*key).to_owned());
            }
        }
        found
    }

    /// What a config says, without what it says of buildah, and without an order where none counts.
    fn config(&self, name: &str) -> BTreeMap<&'static str, Value> {
        const KEYS: [&str; 13] = [
            "Env",
            "Cmd",
            "Entrypoint",
            "WorkingDir",
            "User",
            "ExposedPorts",
            "Volumes",
            "StopSignal",
            "Labels",
            "Healthcheck",
            "OnBuild",
            "Shell",
            "ArgsEscaped",
        ];
        let all: Value = serde_json::from_str(&self.good(&["image", "inspect", name])).unwrap();
        let mut config = all["config"]["config"].clone();
        if let Some(env) = config["Env"].as_array_mut() {
            env.sort_by_key(Value::to_string);
        }
        if let Some(labels) = config["Labels"].as_object_mut() {
            labels.remove("io.buildah.version");
        }
        let empty = |value: &Value| matches!(value.to_string().as_str(), "\"\"" | "null" | "[]" | "{}");
        let mut found: BTreeMap<&'static str, Value> = KEYS
            .map(|key| (key, Some(config[key].clone()).filter(|value| !empty(value)).unwrap_or(Value::Null)))
            .into_iter()
            .collect();
        found.insert("author", all["config"]["author"].clone());
        found.insert("history", json!(all["config"]["history"].as_array().map_or(0, Vec::len)));
        found
    }
}

#[test]
fn every_instruction_does_what_buildah_does() {
    let Some(both) = Both::new() else { return };
    let mut wrong = Vec::new();
    for case in CASES {
        match (both.theirs(case), both.ours(case)) {
            (Ok(()), Ok(())) => {
                let found = both.differences(case);
                if found != case.kept {
                    wrong.push(format!("{}: {found:?}", case.name));
                }
            }
            (theirs, ours) => wrong.push(format!("{}: theirs {theirs:?}, ours {ours:?}", case.name)),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    both.good(&["check", "--store"]);
}

#[test]
fn what_buildah_refuses_is_refused() {
    let Some(both) = Both::new() else { return };
    for (number, (text, words)) in REFUSED.iter().enumerate() {
        let name = format!("refused-{number}");
        let case = Case { name: &name, text, args: &[], target: "", kept: &[] };
        assert!(both.theirs(&case).is_err(), "buildah takes {text:?}");
        let message = both.ours(&case).expect_err(text);
        let line = message.lines().rfind(|line| line.starts_with("strata: ")).unwrap_or_default();
        assert!(line.contains(words), "{text:?}: {message}");
    }
    assert_eq!(
        both.good(&["image", "ls", "--quiet"]),
        "localhost/base:latest\nlocalhost/theirs-base:latest\n"
    );
}
