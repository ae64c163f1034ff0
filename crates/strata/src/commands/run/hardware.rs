//! The machine of a workload: its kernel, what that is told, and its devices.

use std::path::Path;

use engine::Engine;
use image::kernels::KernelBundle;
use machine::MachineConfig;
use machine::config::{DiskConfig, Source, VsockConfig};

use super::Sizing;
use crate::failure::{Failure, Outcome};

/// A machine for a workload, whose root is on the disk at `root`.
pub fn config(
    sizing: &Sizing,
    engine: &dyn Engine,
    kernel: &KernelBundle,
    root: &Path,
    verbose: u8,
) -> MachineConfig {
    let path = kernel.vmlinux_path().unwrap_or_else(|| kernel.kernel_path());
    let mut config = sizing.machine(Source::File(path), engine);
    config.boot.cmdline = command_line(verbose);
    config.disks =
        vec![DiskConfig { path: root.to_owned(), read_only: true, serial: "root".to_owned(), rate: None }];
    config.vsock = Some(VsockConfig::default());
    config.balloon = true;
    config.generation_id = true;
    config
}

/// The agent is a 64-bit program; a kernel that cannot run it would only say that it found no init.
///
/// # Errors
/// This one cannot.
pub fn check_width(kernel: &KernelBundle) -> Outcome<()> {
    let info = kernel.info();
    if matches!(info.arch.as_str(), "amd64" | "x86_64") {
        return Ok(());
    }
    let failure =
        Failure::new(format!("boot kernel {}: it is for {}, workloads need amd64", info.id, info.arch));
    Err(failure.hint("strata kernel ls lists the others; strata boot boots this one"))
}

/// A panic is a reset at once, which ends the machine; without `-vv` the kernel says only what is wrong. It does not test its own
/// ciphers, which is a fifth of a boot.
fn command_line(verbose: u8) -> String {
    let quiet = if verbose < 2 { " quiet" } else { "" };
    format!("console=ttyS0 panic=-1 reboot=k cryptomgr.notests{quiet}")
}
