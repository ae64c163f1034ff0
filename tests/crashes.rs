//! `kill -9` in the middle of what changes a store, and two processes that change one store at once.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::support::{self, PATIENCE, assets, file, finish, noise, start, strata};

fn on(store: &Path, arguments: &[&str]) -> Command {
    let mut command = strata();
    command.arg("--root").arg(store).args(arguments);
    command
}

/// A tar of one file that does not compress.
fn tar(folder: &Path) -> PathBuf {
    file(folder, "noise", &noise(4 << 20));
    let path = folder.join("root.tar");
    let status = Command::new("tar").arg("-C").arg(folder).arg("-cf").arg(&path).arg("noise").status();
    assert!(status.unwrap().success());
    path
}

/// What lies in the store's folder for unfinished things.
fn unfinished(store: &Path) -> usize {
    fs::read_dir(store.join("tmp")).map_or(0, Iterator::count)
}

/// Starts `command`, which reads the pipe `pipe`, gives it half of `bytes`, and kills it while it waits for the rest.
fn kill_in_the_middle(mut command: Command, store: &Path, pipe: &Path, bytes: &[u8]) {
    let mut child = command.stderr(Stdio::null()).spawn().unwrap();
    let mut feed = fs::File::options().write(true).open(pipe).unwrap();
    feed.write_all(&bytes[..bytes.len() / 2]).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while unfinished(store) == 0 {
        assert!(Instant::now() < deadline && child.try_wait().unwrap().is_none(), "it wrote nothing");
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_killed_import_or_load_leaves_nothing_and_is_repeated() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    let tar = tar(folder.path());
    let archive = folder.path().join("saved.tar");
    let pipe = folder.path().join("pipe.tar");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();

    let pipe_name = pipe.to_str().unwrap();
    kill_in_the_middle(
        on(&store, &["image", "import", pipe_name, "small"]),
        &store,
        &pipe,
        &fs::read(&tar).unwrap(),
    );
    let listed = finish(on(&store, &["image", "ls", "--quiet"]));
    assert_eq!((listed.code(), listed.stdout.as_str(), unfinished(&store)), (0, "", 0), "{listed:?}");

    assert_eq!(finish(on(&store, &["image", "import", tar.to_str().unwrap(), "small"])).code(), 0);
    assert_eq!(finish(on(&store, &["image", "save", "small", archive.to_str().unwrap()])).code(), 0);
    let other = folder.path().join("other");
    kill_in_the_middle(
        on(&other, &["image", "load", pipe_name]),
        &other,
        &pipe,
        &fs::read(&archive).unwrap(),
    );
    assert_eq!(finish(on(&other, &["image", "ls", "--quiet"])).stdout, "");
    assert_eq!(unfinished(&other), 0);
    assert_eq!(finish(on(&other, &["image", "load", archive.to_str().unwrap()])).code(), 0);
    assert_eq!(finish(on(&other, &["image", "ls", "--quiet"])).stdout, "small:latest\n");
}

#[test]
fn processes_that_change_one_store_at_once_all_succeed() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    let tar = tar(folder.path());
    let names = ["a", "b", "c"];
    let imports = names.map(|name| start(on(&store, &["image", "import", tar.to_str().unwrap(), name])));
    let kernel = assets().map(|assets| {
        let kernels = fs::read_dir(assets.join("store/kernels")).unwrap().flatten();
        let kernel = kernels.map(|entry| entry.path().join("kernel")).find(|path| path.exists()).unwrap();
        [(); 2].map(|()| start(on(&store, &["kernel", "add", kernel.to_str().unwrap()])))
    });
    for running in imports.into_iter().chain(kernel.into_iter().flatten()) {
        let ended: support::Ended = running.finish();
        assert_eq!(ended.code(), 0, "{ended:?}");
    }
    let listed = finish(on(&store, &["image", "ls", "--quiet"])).stdout;
    let mut listed: Vec<&str> = listed.lines().collect();
    listed.sort_unstable();
    assert_eq!(listed, ["a:latest", "b:latest", "c:latest"]);
    assert_eq!(unfinished(&store), 0);
}

#[test]
fn a_killed_machine_leaves_its_store_as_it_was() {
    let Some(assets) = assets() else { return };
    let store = assets.join("store");
    let mut running = start(on(&store, &["run", "debian", "--", "sh", "-c", "echo up; sleep 1000"]));
    running.wait_for("up");
    running.child.kill().unwrap();
    running.child.wait().unwrap();
    let listed = finish(on(&store, &["image", "ls", "--quiet"]));
    assert_eq!((listed.code(), listed.stdout.as_str()), (0, "debian:latest\n"));
    let again = finish(on(&store, &["run", "debian", "--", "true"]));
    assert_eq!((again.code(), again.stderr.as_str()), (0, ""));
}

/// What the host keeps of the containers whose ids have this in them: folders of states, and control groups.
fn kept_of_containers(mark: &str) -> Vec<String> {
    let mut find = Command::new("find");
    find.args(["/run/strata", "/sys/fs/cgroup", "-name", &format!("*{mark}*"), "-not", "-path", "*/lock"]);
    finish(find).stdout.lines().map(str::to_owned).collect()
}

#[test]
fn whatever_comes_after_a_killed_container_in_the_foreground_clears_what_is_left_of_it() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: containers of images need root");
        return;
    }
    let Some(assets) = assets() else { return };
    let store = assets.join("store");
    let run = ["run", "--isolation", "container"];
    let next: [&[&str]; 4] = [
        &["ps"],
        &["rm", "no-such-workload"],
        &["check"],
        &["run", "--isolation", "container", "debian", "true"],
    ];
    for next in next {
        let command = ["--network", "user", "debian", "--", "sh", "-c", "sleep 1000 & echo up; sleep 1000"];
        let mut running = start(on(&store, &[&run[..], &command].concat()));
        running.wait_for("up");
        let mark = format!("-{}-", running.child.id());
        let states = kept_of_containers(&mark);
        assert!(states.iter().any(|path| path.starts_with("/run/strata/run/run-")), "{states:?}");
        running.child.kill().unwrap();
        running.child.wait().unwrap();
        finish(on(&store, next));
        assert_eq!(kept_of_containers(&mark), [""; 0], "after {next:?}");
    }
}
