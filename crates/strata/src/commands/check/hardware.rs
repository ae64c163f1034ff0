//! The hardware layer: what can execute a guest's instructions here.

use std::fs::OpenOptions;
use std::io::ErrorKind;

use super::{Finding, Layer};
use crate::engines;
use crate::host_cpu::HostCpu;

/// Engines, the KVM device, processor features.
pub fn look() -> Vec<Finding> {
    vec![engine(), kvm(), cpu(&HostCpu::look())]
}

fn engine() -> Finding {
    let names: Vec<&str> = engines::ALL.iter().map(|engine| engine.name).collect();
    let detail = format!("{} built in; auto chooses {}", names.join(", "), engines::AUTO);
    if cfg!(target_os = "linux") && std::env::consts::ARCH == "x86_64" {
        Finding::ok(Layer::Hardware, "engines", detail)
    } else {
        let detail = format!("no engine runs x86 guests on {}", std::env::consts::ARCH);
        Finding::missing(Layer::Hardware, "engines", detail, "run Strata on an x86-64 Linux host")
    }
}

/// The device, as far as opening it tells; no engine of this version uses it.
fn kvm() -> Finding {
    let no_need = "nothing to do: microVMs run without it";
    match OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(_) => Finding::ok(Layer::Hardware, "kvm", "/dev/kvm opens; no engine of this version uses it"),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Finding::limited(Layer::Hardware, "kvm", "no /dev/kvm", no_need)
        }
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Finding::limited(
            Layer::Hardware,
            "kvm",
            "/dev/kvm may not be opened",
            "nothing to do: microVMs run without it (to use it later, join the group kvm)",
        ),
        Err(error) => Finding::limited(Layer::Hardware, "kvm", format!("open /dev/kvm: {error}"), no_need),
    }
}

fn cpu(cpu: &HostCpu) -> Finding {
    let best = cpu.best_model();
    match cpu.next_model() {
        None => Finding::ok(Layer::Hardware, "cpu", format!("{}: guests see {best}", cpu.name)),
        Some((next, missing)) => {
            let detail = format!("{}: guests see {best}; for {next} lacks {}", cpu.name, missing.join(" "));
            let advice = format!("programs built for {next} need a newer processor");
            Finding::limited(Layer::Hardware, "cpu", detail, advice)
        }
    }
}
