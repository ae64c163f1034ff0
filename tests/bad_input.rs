//! Files, stores and hosts that are not as they should be: one clear line, the documented code, nothing lost.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::{
    assets, copy_kernel_and_image, copy_store, elf, feed, file, finish, guest, noise, strata,
};

fn boot(kernel: &Path) -> Command {
    let mut command = strata();
    command.args(["boot", "--kernel"]).arg(kernel);
    command
}

/// A store in `folder` with the image `small`, made of a tar with one file.
fn small_store(folder: &Path) -> std::path::PathBuf {
    let store = folder.join("store");
    let tar = folder.join("root.tar");
    fs::create_dir_all(folder.join("root/etc")).unwrap();
    fs::write(folder.join("root/etc/motd"), "hello\n".repeat(10_000)).unwrap();
    let tarred = Command::new("tar")
        .arg("-C")
        .arg(folder.join("root"))
        .arg("-cf")
        .arg(&tar)
        .arg(".")
        .status()
        .unwrap();
    assert!(tarred.success());
    let mut command = strata();
    command.arg("--root").arg(&store).args(["image", "import"]).arg(&tar).arg("small");
    assert_eq!(finish(command).code(), 0);
    store
}

#[test]
fn files_that_are_no_kernel_are_named_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let text = file(folder.path(), "text", b"this is no kernel at all\n");
    finish(boot(&text))
        .expect_failure(125, &["boot: load kernel", "text: not a kernel but a file that is neither"]);
    let empty = file(folder.path(), "empty", b"");
    finish(boot(&empty)).expect_failure(125, &["empty"]);
    let other = file(folder.path(), "other", &elf::pvh(&[0; 16], 183));
    finish(boot(&other)).expect_failure(125, &["other", "arm64"]);
    // The first bytes of an arm64 kernel, which is no ELF file.
    let mut image = [0; 4096];
    image[0x38..0x3c].copy_from_slice(b"ARMd");
    let image = file(folder.path(), "image", &image);
    finish(boot(&image)).expect_failure(125, &["image", "arm64"]);
    let mut command = strata();
    command.arg("--root").arg(folder.path().join("store")).args(["kernel", "add"]).arg(&image);
    finish(command).expect_failure(125, &["add kernel", "image", "arm64"]);
    finish(boot(&folder.path().join("gone"))).expect_failure(125, &["gone", "No such file"]);
    finish(boot(folder.path())).expect_failure(125, &["directory"]);
}

#[test]
fn a_truncated_kernel_is_refused() {
    let Some(kernel) = guest::kernel() else { return };
    let folder = tempfile::tempdir().unwrap();
    let whole = fs::read(kernel.kernel_path()).unwrap();
    for (name, part) in [("half", whole.len() / 2), ("most", whole.len() - 10_000), ("head", 1024)] {
        let path = file(folder.path(), name, &whole[..part]);
        finish(boot(&path)).expect_failure(125, &[name]);
    }
}

#[test]
fn an_initial_ram_disk_larger_than_memory_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let kernel = file(folder.path(), "kernel", &elf::pvh(&[0xfa, 0xf4, 0xeb, 0xfc], 62));
    let initrd = folder.path().join("initrd");
    fs::File::create(&initrd).unwrap().set_len(256 << 20).unwrap();
    let mut command = boot(&kernel);
    command.args(["--memory", "64M", "--initrd"]).arg(&initrd);
    let ended = finish(command);
    ended.expect_failure(125, &["boot: read initrd", "larger than the machine's memory of 64 MiB"]);
    assert!(ended.stderr.contains("next: --memory SIZE"), "{ended:?}");
}

#[test]
fn disks_that_cannot_be_opened_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let kernel = file(folder.path(), "kernel", &elf::pvh(&[0xfa, 0xf4, 0xeb, 0xfc], 62));
    let mut command = boot(&kernel);
    command.arg("--disk").arg(folder.path().join("gone.img"));
    finish(command).expect_failure(125, &["open disk", "gone.img", "No such file"]);
}

#[test]
fn names_that_are_not_there_come_with_the_next_step() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = strata();
    command.arg("--root").arg(folder.path()).args(["run", "--pull", "never", "nowhere", "--", "true"]);
    let ended = finish(command);
    ended.expect_failure(125, &["run \"nowhere\": no image named nowhere:latest in"]);
    assert!(ended.stderr.contains("strata image bootstrap nowhere"), "{ended:?}");
    let store = small_store(folder.path());
    let mut command = strata();
    command.arg("--root").arg(&store).args(["run", "small", "--", "true"]);
    let ended = finish(command);
    ended.expect_failure(125, &["run \"small\": no kernel in"]);
    assert!(ended.stderr.contains("strata kernel fetch"), "{ended:?}");
    for (verb, act) in [("image", "remove image \"nowhere\""), ("kernel", "remove kernel nowhere")] {
        let mut command = strata();
        command.arg("--root").arg(&store).args([verb, "rm", "nowhere", "there"]);
        let ended = finish(command);
        ended.expect_failure(125, &["there"]);
        assert!(ended.stderr.contains(act) && !ended.stderr.contains("bootstrap"), "{ended:?}");
    }
}

#[test]
fn a_corrupt_blob_is_found_and_named() {
    let folder = tempfile::tempdir().unwrap();
    let store = small_store(folder.path());
    let blobs = fs::read_dir(store.join("blobs/sha256")).unwrap().flatten();
    let layer = blobs.max_by_key(|blob| blob.metadata().unwrap().len()).unwrap().path();
    let mut bytes = fs::read(&layer).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::set_permissions(&layer, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&layer, bytes).unwrap();
    let mut command = strata();
    command.arg("--root").arg(&store).args(["image", "save", "small"]).arg(folder.path().join("out.tar"));
    let ended = finish(command);
    ended.expect_failure(125, &["small", "corrupt blob", layer.file_name().unwrap().to_str().unwrap()]);
    assert!(!folder.path().join("out.tar").exists());
    assert!(ended.stderr.contains("next: pull, load, import or bootstrap it once more"), "{ended:?}");
    // So it is done, and it helps.
    let again = |arguments: &[&str]| {
        let mut command = strata();
        command.arg("--root").arg(&store).args(arguments);
        assert_eq!(finish(command).code(), 0, "{arguments:?}");
    };
    let [tar, out] = ["root.tar", "out.tar"].map(|name| folder.path().join(name).display().to_string());
    again(&["image", "import", &tar, "small"]);
    again(&["image", "save", "small", &out]);
}

#[test]
fn a_broken_kernel_is_listed_as_such_and_can_be_removed() {
    let Some(kernel) = guest::kernel() else { return };
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    let on = |arguments: &[&str]| {
        let mut command = strata();
        command.arg("--root").arg(&store).args(arguments);
        finish(command)
    };
    let file = kernel.kernel_path().display().to_string();
    let id = on(&["kernel", "add", &file]).stdout.trim().to_owned();
    fs::write(store.join("kernels").join(&id).join("bundle.json"), "{}").unwrap();
    let listed = on(&["kernel", "ls"]);
    assert!(listed.code() == 0 && listed.stdout.contains("broken: "), "{listed:?}");
    let json: serde_json::Value = serde_json::from_str(&on(&["kernel", "ls", "--json"]).stdout).unwrap();
    assert!(json[0]["id"] == id.as_str() && json[0]["broken"].is_string(), "{json}");
    assert_eq!(on(&["kernel", "rm", &id]).code(), 0);
    assert_eq!(on(&["kernel", "ls", "--json"]).stdout.trim(), "[]");
}

#[test]
fn a_kernel_that_changed_in_the_store_does_not_run() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    let Some(()) = copy_store(&store) else { return };
    let bundle = fs::read_dir(store.join("kernels")).unwrap().flatten().find(|entry| entry.path().is_dir());
    let vmlinux = bundle.unwrap().path().join("vmlinux");
    let mut bytes = fs::read(&vmlinux).unwrap();
    // Nothing in the guest would notice: it is behind all that is loaded.
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&vmlinux, bytes).unwrap();
    let mut command = strata();
    command.arg("--root").arg(&store).args(["run", "--start", "cold", "debian", "--", "echo", "runs"]);
    let ended = finish(command);
    ended.expect_failure(125, &["run \"debian\"", "corrupt blob", "vmlinux"]);
    assert!(ended.stderr.contains("next: strata kernel fetch"), "{ended:?}");
    assert!(ended.stdout.is_empty(), "{ended:?}");
}

#[test]
fn a_store_that_may_not_be_written_is_an_error_with_a_next_step() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root, to become somebody else");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let closed = folder.path().join("closed");
    fs::create_dir(&closed).unwrap();
    let ended = finish(as_nobody(folder.path(), &closed.join("store"), &["image", "ls"]));
    ended.expect_failure(125, &["open store", "ermission denied"]);
    assert!(ended.stderr.contains("--root"), "{ended:?}");
}

/// The program with a store in `store`, run as the user nobody; `folder` is made one that this user can reach.
fn as_nobody(folder: &Path, store: &Path, arguments: &[&str]) -> Command {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
    // The build folder may be out of reach for others.
    let program = folder.join("strata");
    fs::copy(env!("CARGO_BIN_EXE_strata"), &program).unwrap();
    let mut command = Command::new(&program);
    command.arg("--root").arg(store).args(arguments).stdin(Stdio::null()).uid(NOBODY).gid(NOBODY);
    command
}

/// The user nobody, who has no ids to map, so that no tool can make a root file system.
const NOBODY: u32 = 65534;

#[test]
fn a_user_who_cannot_bootstrap_is_told_before_and_after() {
    if !rustix::process::geteuid().is_root() || !Path::new("/usr/bin/mmdebstrap").exists() {
        println!("skipped: needs root, to become somebody else, and mmdebstrap");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    fs::create_dir(&store).unwrap();
    std::os::unix::fs::chown(&store, Some(NOBODY), Some(NOBODY)).unwrap();
    let checked = finish(as_nobody(folder.path(), &store, &["check"]));
    assert!(checked.stdout.contains("cannot work here without root"), "{checked:?}");
    let ended = finish(as_nobody(folder.path(), &store, &["image", "bootstrap", "x"]));
    ended.expect_failure(125, &["bootstrap image \"x\"", "mmdebstrap"]);
    assert!(ended.stderr.contains("next: as root: apt-get install uidmap"), "{ended:?}");
}

#[test]
fn a_damaged_index_is_no_empty_store() {
    let folder = tempfile::tempdir().unwrap();
    let store = small_store(folder.path());
    fs::write(store.join("index.json"), "{").unwrap();
    let mut command = strata();
    command.arg("--root").arg(&store).arg("check");
    let ended = finish(command);
    assert_eq!(ended.code(), 1, "{ended:?}");
    let line = ended.stdout.lines().find(|line| line.contains("images")).unwrap_or_default();
    assert!(line.contains("missing") && line.contains("index.json"), "{ended:?}");
}

#[test]
fn a_kernel_without_its_modules_says_so_when_it_is_added_and_when_it_fails() {
    let Some(kernel) = guest::kernel() else { return };
    let folder = tempfile::tempdir().unwrap();
    let store = small_store(folder.path());
    let mut command = strata();
    command.arg("--root").arg(&store).args(["kernel", "add"]).arg(kernel.kernel_path());
    let added = finish(command);
    assert_eq!(added.code(), 0);
    assert!(
        added.stderr.contains("note: it came without modules") && added.stderr.contains("squashfs"),
        "{added:?}"
    );
    let mut command = strata();
    command.arg("--root").arg(&store).args(["run", "small", "--", "true"]);
    let ended = finish(command);
    ended.expect_failure(125, &["run \"true\"", "powered off"]);
    assert!(ended.stderr.contains("next: kernel ") && ended.stderr.contains("--modules DIR"), "{ended:?}");
}

#[test]
fn a_full_disk_leaves_the_store_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let mounted =
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "none"]).arg(folder.path()).output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        println!("skipped: no small file system can be mounted here");
        return;
    }
    let source = tempfile::tempdir().unwrap();
    fs::write(source.path().join("noise"), noise(4 << 20)).unwrap();
    let tar = source.path().join("root.tar");
    let status =
        Command::new("tar").arg("-C").arg(source.path()).arg("-cf").arg(&tar).arg("noise").status().unwrap();
    assert!(status.success());
    let mut command = strata();
    command.arg("--root").arg(folder.path().join("store")).args(["image", "import"]).arg(&tar).arg("big");
    let ended = finish(command);
    let mut list = strata();
    list.arg("--root").arg(folder.path().join("store")).args(["image", "ls", "--quiet"]);
    let left = finish(list);
    let unmounted = Command::new("umount").arg(folder.path()).status().unwrap();
    assert!(unmounted.success());
    ended.expect_failure(125, &["big", "No space left on device"]);
    assert!(ended.stderr.contains("next: free some space"), "{ended:?}");
    assert_eq!((left.code(), left.stdout.as_str()), (0, ""), "{left:?}");
}

#[test]
fn a_disk_that_is_full_when_the_root_is_made_is_named() {
    let Some(assets) = assets() else { return };
    let source = assets.join("store");
    let used = Command::new("du")
        .args(["-sm", "--exclude=roots", "--exclude=templates", "--exclude=workloads"])
        .arg(&source)
        .output()
        .unwrap()
        .stdout;
    let used = String::from_utf8_lossy(&used);
    let used: u64 = used.split_whitespace().next().unwrap().parse().unwrap();
    let folder = tempfile::tempdir().unwrap();
    // Kernel and image fit, the image's files beside them do not.
    let size = format!("size={}m", used + 40);
    let mounted =
        Command::new("mount").args(["-t", "tmpfs", "-o", &size, "none"]).arg(folder.path()).output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        println!("skipped: no small file system can be mounted here");
        return;
    }
    let store = folder.path().join("store");
    let copied = copy_kernel_and_image(&assets, &store);
    let mut command = strata();
    command.arg("--root").arg(&store).args(["run", "--start", "cold", "debian", "--", "true"]);
    let ended = finish(command);
    let left = ["tmp", "roots"].map(|name| fs::read_dir(store.join(name)).map_or(0, Iterator::count));
    let unmounted = Command::new("umount").arg(folder.path()).status().unwrap();
    assert!(copied && unmounted.success());
    ended.expect_failure(125, &["debian", "No space left on device"]);
    assert_eq!(left, [0, 0], "something unfinished is left");
}

#[test]
fn a_host_without_descriptors_is_named_at_every_step() {
    let Some(assets) = assets() else { return };
    let mut enough = false;
    for limit in (5..40).step_by(3) {
        let mut command = Command::new("sh");
        command
            .args(["-c", &format!("ulimit -n {limit}; exec \"$0\" \"$@\"")])
            .arg(env!("CARGO_BIN_EXE_strata"))
            .arg("--root")
            .arg(assets.join("store"))
            .args(["run", "debian", "--", "echo", "hi"]);
        let ended = finish(command);
        enough = ended.code() == 0;
        if enough {
            assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("hi\n", ""));
            break;
        }
        ended.expect_failure(125, &["Too many open files"]);
    }
    assert!(enough, "40 descriptors are too few");
}

#[test]
fn an_image_for_another_processor_is_refused() {
    let Some(folder) = assets() else { return };
    let scratch = tempfile::tempdir().unwrap();
    let store = small_store(scratch.path());
    let archive = scratch.path().join("small.tar");
    let mut save = strata();
    save.arg("--root").arg(&store).args(["image", "save", "small", "--format", "docker"]).arg(&archive);
    assert_eq!(finish(save).code(), 0);
    let unpacked = scratch.path().join("unpacked");
    fs::create_dir(&unpacked).unwrap();
    assert!(
        Command::new("tar").arg("-C").arg(&unpacked).arg("-xf").arg(&archive).status().unwrap().success()
    );
    for entry in fs::read_dir(&unpacked).unwrap().flatten() {
        if let Ok(text) = fs::read_to_string(entry.path())
            && text.contains("\"amd64\"")
        {
            fs::write(entry.path(), text.replace("\"amd64\"", "\"arm64\"")).unwrap();
        }
    }
    assert!(
        Command::new("tar")
            .arg("-C")
            .arg(&unpacked)
            .arg("-cf")
            .arg(&archive)
            .arg(".")
            .status()
            .unwrap()
            .success()
    );
    let mut load = strata();
    load.arg("--root").arg(&store).args(["image", "load"]).arg(&archive);
    let loaded = finish(load);
    // Refused when it is loaded (its name is its digest), or when it is run.
    if loaded.code() == 0 {
        let mut run = strata();
        run.arg("--root").arg(&store).args(["run", "small", "--", "true"]);
        finish(run).expect_failure(125, &["arm64"]);
    }
    drop(folder);
}

#[test]
fn random_bytes_are_no_archive() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(folder.path(), "noise", &noise(100_000));
    for verb in [&["image", "load"][..], &["kernel", "add"]] {
        let mut command = strata();
        command.arg("--root").arg(folder.path().join("store")).args(verb).arg(&path);
        finish(command).expect_failure(125, &["noise"]);
    }
    let (output, status) = feed(boot(&path), Vec::new());
    assert_eq!((status.code(), output.len()), (Some(125), 0));
}

#[test]
fn a_layer_that_grows_a_thousandfold_takes_little_memory_and_no_disk() {
    let folder = tempfile::tempdir().unwrap();
    let script = "truncate -s 512M zeros && tar -c zeros | gzip -1 > bomb.tgz && rm zeros";
    let made = Command::new("sh").args(["-c", script]).current_dir(folder.path()).status().unwrap();
    assert!(made.success());
    let bomb = folder.path().join("bomb.tgz");
    assert!(bomb.metadata().unwrap().len() < 8 << 20);
    let store = folder.path().join("store");
    let program = |arguments: &[&str]| {
        let mut command = strata();
        command.arg("--root").arg(&store).args(arguments).current_dir(folder.path());
        let mut child = command.stdout(Stdio::null()).spawn().unwrap();
        let mut peak_kib = 0;
        while child.try_wait().unwrap().is_none() {
            let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
            peak_kib = peak_kib.max(line.trim().trim_end_matches(" kB").parse().unwrap_or(0));
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        assert!(child.wait().unwrap().success(), "{arguments:?}");
        assert!(peak_kib < 96 << 10, "{arguments:?}: {peak_kib} KiB");
    };
    program(&["image", "import", "bomb.tgz", "bomb"]);
    // Every file of it is looked at.
    program(&["image", "diff", "bomb"]);
    let used = Command::new("du").arg("-sk").arg(&store).output().unwrap();
    let used = String::from_utf8(used.stdout).unwrap();
    let used: u64 = used.split_whitespace().next().unwrap().parse().unwrap();
    assert!(used < 32 << 10, "{used} KiB");
}
