//! `strata image build` beside buildah: the same Containerfile, the same files, modes, owners and config.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::support::{assets, copy_kernel_and_image, finish, strata};

const CONTAINERFILE: &str = "\
ARG TOP=scratch
FROM $TOP AS one
ARG V=default
ENV A=$V B=\"x y\" C=${V:+set}
WORKDIR /w/deep
COPY a .
COPY a to-a *.txt many/
COPY --chown=7:8 d /d2
COPY --chown=5:6 --chmod=0640 a /own/new/a
ADD t.tgz /unpacked
LABEL l=\"$A\" m=n
EXPOSE 80 53/udp
VOLUME /v
USER 7:8
CMD [\"run\", \"me\"]
STOPSIGNAL SIGINT
FROM scratch AS two
COPY --from=one /d2 /own /y/
COPY --from=one /w /x/
COPY links /
COPY d/x /bin/tool
ENTRYPOINT [\"/e\"]
ENV E ${V:-none}
FROM one AS three
COPY --from=two /x/deep /w/deep/a-folder
ENV A=3
CMD run $A
";

fn context(folder: &Path) {
    for (name, text) in
        [("a", "1"), ("b.txt", "22"), ("c.txt", "333"), ("d/x", "4"), ("d/sub/y", "5"), ("d/skip", "")]
    {
        fs::create_dir_all(folder.join(name).parent().unwrap()).unwrap();
        fs::write(folder.join(name), text).unwrap();
    }
    fs::create_dir_all(folder.join("links/usr/bin")).unwrap();
    fs::set_permissions(folder.join("a"), fs::Permissions::from_mode(0o711)).unwrap();
    fs::set_permissions(folder.join("d/sub"), fs::Permissions::from_mode(0o700)).unwrap();
    symlink("x", folder.join("d/link")).unwrap();
    symlink("a", folder.join("to-a")).unwrap();
    symlink("usr/bin", folder.join("links/bin")).unwrap();
    fs::write(folder.join(".dockerignore"), "**/skip\n").unwrap();
    fs::write(folder.join("Containerfile"), CONTAINERFILE).unwrap();
    let tar = ["-czf", "t.tgz", "--owner=3", "--group=4", "d"];
    assert!(Command::new("tar").args(tar).current_dir(folder).status().unwrap().success());
}

/// Builds a stage with buildah, into an archive; false when buildah cannot work here.
pub fn buildah(home: &Path, context: &Path, stage: &str) -> bool {
    let policy = home.join("policy.json");
    fs::write(&policy, r#"{"default":[{"type":"insecureAcceptAnything"}]}"#).unwrap();
    let run = |arguments: &[&str]| {
        let mut command = Command::new("buildah");
        command.arg("--root").arg(home.join("root")).arg("--runroot").arg(home.join("run"));
        command.args(["--storage-driver", "vfs", arguments[0], "--signature-policy"]).arg(&policy);
        let out = command.args(&arguments[1..]).current_dir(context).output().unwrap();
        if !out.status.success() {
            println!("{}", String::from_utf8_lossy(&out.stderr));
        }
        out.status.success()
    };
    let archive = format!("oci-archive:{}:{stage}", home.join(format!("{stage}.tar")).display());
    run(&[
        "bud",
        "--layers",
        "--isolation",
        "chroot",
        "--format",
        "docker",
        "--target",
        stage,
        "-t",
        stage,
        ".",
    ]) && run(&["push", stage, &archive])
}

#[test]
fn what_is_built_is_what_buildah_builds() {
    if Command::new("buildah").arg("--version").output().is_err() {
        println!("skipped: no buildah (Debian package buildah)");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (folder, store) = (dir.path().join("context"), dir.path().join("store"));
    fs::create_dir(&folder).unwrap();
    context(&folder);
    let own = |arguments: &[&str]| {
        let mut command = strata();
        command.env("STRATA_ROOT", &store).args(arguments).current_dir(&folder);
        let ended = finish(command);
        assert_eq!(ended.code(), 0, "{arguments:?}: {ended:?}");
        ended.stdout
    };
    for stage in ["one", "two", "three"] {
        if !buildah(dir.path(), &folder, stage) {
            println!("skipped: buildah does not work here");
            return;
        }
        own(&["image", "load", dir.path().join(format!("{stage}.tar")).to_str().unwrap()]);
        let built = format!("built-{stage}");
        own(&["image", "build", "-t", &built, "--target", stage, "."]);
        assert_eq!(own(&["image", "diff", &built, stage]), "", "{stage}");
        let config = |name: &str| -> Value {
            let all: Value = serde_json::from_str(&own(&["image", "inspect", name])).unwrap();
            let mut config = all["config"]["config"].clone();
            // A variable that is set again stays where it was, as with docker; buildah puts it at the end.
            if let Some(env) = config["Env"].as_array_mut() {
                env.sort_by_key(Value::to_string);
            }
            config
        };
        let (ours, theirs) = (config(&built), config(stage));
        for key in ["Env", "Cmd", "Entrypoint", "WorkingDir", "User", "ExposedPorts", "Volumes", "StopSignal"]
        {
            let value = |config: &Value| config.get(key).filter(|value| *value != "").cloned();
            assert_eq!(value(&ours), value(&theirs), "{key} of {stage}");
        }
        let labels = |config: &Value| {
            let mut labels = config["Labels"].as_object().cloned().unwrap_or_default();
            labels.remove("io.buildah.version");
            labels
        };
        assert_eq!(labels(&ours), labels(&theirs), "labels of {stage}");
    }
}

#[test]
fn what_is_wrong_in_a_containerfile_names_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let build = |text: &str| {
        fs::write(dir.path().join("Containerfile"), text).unwrap();
        let mut command = strata();
        command.env("STRATA_ROOT", dir.path().join("store")).args(["image", "build", "."]);
        command.current_dir(dir.path());
        finish(command)
    };
    build("FROM scratch\nCOPY none /\n")
        .expect_failure(125, &["Containerfile:2:", "\"none\" is not in the context"]);
    build("FROM scratch\nRUN true\n")
        .expect_failure(125, &["Containerfile:2: RUN true", "/bin/sh", "no such file"]);
    let ended = build("FROM scratch\nCOPY Containerfile /\n");
    assert!(ended.code() == 0 && ended.stdout.starts_with("sha256:"), "{ended:?}");
}

#[test]
fn what_run_writes_is_in_the_image_under_both_isolations() {
    let Some(assets) = assets() else { return };
    if !rustix::process::geteuid().is_root() {
        return println!("skipped: RUN needs root");
    }
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    assert!(copy_kernel_and_image(&assets, &store));
    let text = "FROM debian\nRUN echo made > /made && chown 5:6 /made && rm /etc/issue\nUSER 1000\nRUN test $(id -u) = 1000\n";
    fs::write(dir.path().join("Containerfile"), text).unwrap();
    let program = |arguments: &[&str]| {
        let mut command = strata();
        command.env("STRATA_ROOT", &store).args(arguments).current_dir(dir.path());
        finish(command)
    };
    let built = program(&["image", "build", "-t", "built", "."]);
    assert!(built.code() == 0 && built.stdout.trim().starts_with("sha256:"), "{built:?}");
    for isolation in ["vm", "container"] {
        let script = "cat /made; stat -c %u:%g /made; test -e /etc/issue || echo gone";
        let ended = program(&["run", "--isolation", isolation, "built", "--", "sh", "-c", script]);
        assert_eq!((ended.code(), ended.stdout.as_str()), (0, "made\n5:6\ngone\n"), "{isolation}: {ended:?}");
    }
    let failed = "FROM debian\nRUN exit 3\n";
    fs::write(dir.path().join("Containerfile"), failed).unwrap();
    program(&["image", "build", "."]).expect_failure(125, &["Containerfile:2: RUN exit 3"]);
}
