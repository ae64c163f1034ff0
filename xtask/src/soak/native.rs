//! The checksums that are right: those of the same image on the host itself, in its layers unpacked.

use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use image::Store;

use super::LOAD;
use super::heard::{Heard, Line, Results};
use crate::Outcome;

/// Unpacks the image below `folder`, runs one round of the load in it and removes it again. `None` where whoever runs
/// this may not change the root: then rounds can only be compared among themselves.
pub fn results(store: &Path, image: &str, folder: &Path) -> Outcome<Option<Results>> {
    let root = folder.join("native");
    remove(&root)?;
    fs::create_dir_all(&root)?;
    let outcome = if may_change_root(&root) {
        eprintln!("soak: one round natively");
        unpack(store, image, &root).and_then(|()| round(&root)).map(Some)
    } else {
        eprintln!("soak: only root can run the image natively; the first round counts as right");
        Ok(None)
    };
    remove(&root)?;
    outcome
}

fn remove(root: &Path) -> io::Result<()> {
    match fs::remove_dir_all(root) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Changing the root and not finding the program there is 127, not being allowed to is 125.
fn may_change_root(root: &Path) -> bool {
    let status = chroot(root).arg("/none").stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.code() == Some(127))
}

fn chroot(root: &Path) -> Command {
    let mut command = Command::new("chroot");
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").arg(root).stdin(Stdio::null());
    command
}

/// The layers one over the other. An image that was bootstrapped has one, and no files that take others away.
fn unpack(store: &Path, image: &str, root: &Path) -> Outcome {
    let store = Store::open(store)?;
    let image = store.image(&image.parse()?)?;
    for layer in image.manifest().layers() {
        let blob = store.open_part(layer)?;
        let status = Command::new("tar").arg("-xzC").arg(root).stdin(blob).status()?;
        if !status.success() {
            return Err(format!("unpack layer {}: tar: {status}", layer.digest()).into());
        }
    }
    Ok(())
}

fn round(root: &Path) -> Outcome<Results> {
    let began = Instant::now();
    let output = chroot(root).args(["/bin/sh", "-c", LOAD, "load", "0"]).stderr(Stdio::inherit()).output()?;
    let mut heard = Heard::default();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        heard.add(Line::parse(line), began.elapsed());
    }
    if !output.status.success() || !heard.done || !heard.faults.is_empty() {
        return Err(format!("run the load natively: {}: {}", output.status, heard.faults.join("; ")).into());
    }
    eprintln!("soak: natively {} s", began.elapsed().as_secs());
    Ok(heard.first())
}
