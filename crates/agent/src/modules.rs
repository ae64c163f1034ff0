//! Kernel modules from the initramfs: `/modules/order` names files in `/modules`, one a line, in
//! the order to load them; what follows a space on a line are the module's parameters.
//!
//! A compressed module (`.xz`, `.zst`, `.gz`) is left to the kernel to decompress, which it can if it
//! was built so.

use alloc::ffi::CString;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use protocol::ModuleFailure;
use rustix::fs::{self, OFlags};
use rustix::io::Errno;
use rustix::system::finit_module;

use crate::{files, sys};

/// Where the modules are.
pub const DIR: &str = "/modules";

/// `MODULE_INIT_COMPRESSED_FILE` of `linux/module.h`.
const COMPRESSED: i32 = 4;

/// More failures than this are counted but not named: the report has to fit one message.
const MAX_FAILURES: usize = 100;

/// What is kept of a name, in characters, for the same reason.
const MAX_NAME: usize = 100;

/// One line of `order`.
#[derive(Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// The file's name in [`DIR`].
    pub name: &'a str,
    /// For the module.
    pub parameters: &'a str,
}

/// Understands `order`. Empty lines and lines starting with `#` mean nothing.
pub fn parse_order(text: &str) -> impl Iterator<Item = Line<'_>> {
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).map(|line| {
        let (name, parameters) = line.split_once(' ').unwrap_or((line, ""));
        Line { name, parameters: parameters.trim() }
    })
}

/// Loads all of `order`, then removes the files (they are RAM). No list at all is fine.
#[must_use]
pub fn load_all() -> Vec<ModuleFailure> {
    let order = format!("{DIR}/order");
    let Ok(text) = files::read(&order) else { return Vec::new() };
    let mut failures = Vec::new();
    for line in parse_order(&text) {
        let path = format!("{DIR}/{}", line.name);
        if let Err(cause) = load(&path, line.parameters)
            && failures.len() < MAX_FAILURES
        {
            failures.push(ModuleFailure { name: line.name.chars().take(MAX_NAME).collect(), cause });
        }
        let _ = fs::unlink(&*path);
    }
    let _ = fs::unlink(&*order);
    failures
}

/// Being there already is as good as being loaded.
fn load(path: &str, parameters: &str) -> Result<(), String> {
    let file = files::open(path, OFlags::RDONLY).map_err(|fault| fault.cause)?;
    let parameters = CString::new(parameters).map_err(|_| "parameters with a zero byte".to_string())?;
    let compressed = [".xz", ".zst", ".gz"].iter().any(|end| path.ends_with(end));
    match finit_module(&file, &parameters, if compressed { COMPRESSED } else { 0 }) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(sys::errno_text(errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_a_name_and_parameters_a_line() {
        let text = "vsock.ko\n\n# comment\n  virtio_blk.ko.xz  num=4 x=y \r\n";
        let lines: Vec<_> = parse_order(text).collect();
        assert_eq!(
            lines,
            [
                Line { name: "vsock.ko", parameters: "" },
                Line { name: "virtio_blk.ko.xz", parameters: "num=4 x=y" }
            ]
        );
    }

    #[test]
    fn a_missing_file_is_a_cause_not_a_stop() {
        assert_eq!(load("/nonexistent/a.ko", ""), Err("No such file or directory".to_string()));
    }
}
