//! The store and the programs of the host that Strata calls.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, statvfs};

use super::{Finding, Layer};
use crate::cli::Global;
use crate::commands::files;
use crate::commands::image::NOT_ROOT;
use crate::failure::Failure;
use crate::{output, store};

/// Less free space than this does not hold a kernel and a small image.
const ROOM_BYTES: u64 = 1 << 30;

/// Whether the store can be written, how much room it has, and what is in it.
pub fn store(global: &Global) -> Vec<Finding> {
    let root = match store::root(global) {
        Ok(root) => root,
        Err(failure) => {
            return vec![Finding::missing(
                Layer::Store,
                "folder",
                failure.to_string(),
                "name one with --root DIR",
            )];
        }
    };
    // The store is made when it is first used: until then its nearest parent decides.
    let there = root.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"));
    let mut findings = vec![writable(&root, there), room(there)];
    if there == root {
        findings.extend(contents(global));
    }
    findings
}

fn writable(root: &Path, there: &Path) -> Finding {
    match rustix::fs::access(there, Access::WRITE_OK | Access::EXEC_OK) {
        Ok(()) if files::is_overlay(there) => Finding::limited(
            Layer::Store,
            "folder",
            format!(
                "{}, on an overlay: what containers in the background write stays in memory",
                root.display()
            ),
            files::NO_OVERLAY_HINT,
        ),
        Ok(()) => Finding::ok(Layer::Store, "folder", root.display().to_string()),
        Err(error) => Finding::missing(
            Layer::Store,
            "folder",
            format!("write {}: {error}", there.display()),
            "name a folder you may write with --root DIR or STRATA_ROOT",
        ),
    }
}

fn room(there: &Path) -> Finding {
    match statvfs(there) {
        Ok(stat) => {
            let free = stat.f_bavail.saturating_mul(stat.f_frsize);
            let detail = format!("{} free", output::bytes(free));
            if free >= ROOM_BYTES {
                return Finding::ok(Layer::Store, "room", detail);
            }
            let advice = format!(
                "free some space: a kernel and a small image take about {}",
                output::bytes(ROOM_BYTES)
            );
            Finding::limited(Layer::Store, "room", detail, advice)
        }
        Err(error) => Finding::limited(
            Layer::Store,
            "room",
            format!("stat file system of {}: {error}", there.display()),
            "put the store on a local file system with --root DIR",
        ),
    }
}

/// A kernel and an image are all a first run needs.
fn contents(global: &Global) -> Vec<Finding> {
    let counted =
        store::open(global).map(|store| (store.kernels().map(|k| k.len()), store.images().map(|i| i.len())));
    let (kernels, images) = match counted {
        Ok(counts) => counts,
        Err(failure) => {
            return vec![Finding::missing(
                Layer::Store,
                "contents",
                failure.to_string(),
                "see the line above",
            )];
        }
    };
    let count = |item, count: image::Result<usize>, advice: &str| match count {
        Ok(0) => Finding::limited(Layer::Store, item, "none", advice),
        Ok(count) => Finding::ok(Layer::Store, item, count.to_string()),
        Err(error) => {
            let fault = Failure::because("list them", error).to_string();
            let advice = "the store is damaged: mend that file, or take another store with --root DIR";
            Finding::missing(Layer::Store, item, fault, advice)
        }
    };
    vec![
        count("kernels", kernels, "strata kernel fetch"),
        count("images", images, "strata image bootstrap debian, or strata image load FILE"),
    ]
}

/// Programs that `kernel fetch` and `image bootstrap` call.
pub fn tools() -> Vec<Finding> {
    let fetch = match find("apt-get") {
        Some(_) => Finding::ok(Layer::Tools, "kernel fetch", "apt-get"),
        None => Finding::limited(
            Layer::Tools,
            "kernel fetch",
            "no apt-get",
            "add a kernel from a file: strata kernel add FILE",
        ),
    };
    vec![fetch, bootstrap(rustix::process::geteuid().is_root())]
}

/// debootstrap works as root only; mmdebstrap as another user needs something that lets it look like root.
fn bootstrap(is_root: bool) -> Finding {
    let item = "image bootstrap";
    let programs: &[&str] = if is_root { &["mmdebstrap", "debootstrap"] } else { &["mmdebstrap"] };
    let Some(program) = programs.iter().find(|name| find(name).is_some()) else {
        let detail = format!("no {}", programs.join(", no "));
        let advice = "apt-get install mmdebstrap, or bring an image: strata image load FILE";
        return Finding::limited(Layer::Tools, item, detail, advice);
    };
    let all = |programs: [&str; 2]| programs.iter().all(|name| find(name).is_some());
    let maps_ids =
        || all(["newuidmap", "newgidmap"]) && ["/etc/subuid", "/etc/subgid"].map(has_range) == [true; 2];
    if is_root || maps_ids() || all(["fakeroot", "fakechroot"]) {
        return Finding::ok(Layer::Tools, item, *program);
    }
    Finding::limited(Layer::Tools, item, "mmdebstrap, which cannot work here without root", NOT_ROOT)
}

/// Whether this user has a range of ids of its own there (subuid(5)), by name or by number.
pub fn has_range(file: &str) -> bool {
    let own = rustix::process::getuid().as_raw().to_string();
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let of_own = |line: &&str| line.split(':').nth(2) == Some(own.as_str());
    let name = users.lines().find(of_own).and_then(|line| line.split(':').next()).unwrap_or(own.as_str());
    let ranges = fs::read_to_string(file).unwrap_or_default();
    ranges.lines().filter_map(|line| line.split(':').next()).any(|user| user == name || user == own)
}

/// A program in `PATH`.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| {
        fs::metadata(file).is_ok_and(|m| m.is_file()) && rustix::fs::access(file, Access::EXEC_OK).is_ok()
    })
}
