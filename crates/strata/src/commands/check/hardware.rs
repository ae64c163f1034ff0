//! The hardware layer: what can execute a guest's instructions here.

use std::io::ErrorKind;

use serde::Serialize;

use super::{Finding, Layer};
use crate::engines::{self, Hardware, Speed};
use crate::host_cpu::HostCpu;

/// What KVM is here, for programs that read JSON.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Kvm {
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    million_instructions_per_second: Option<f64>,
}

/// Engines, KVM, processor features.
pub fn look() -> (Vec<Finding>, Kvm) {
    let hardware = Hardware::look();
    let (finding, summary) = kvm(&hardware);
    (vec![engine(hardware.best()), finding, cpu(&HostCpu::look())], summary)
}

fn engine(best: &str) -> Finding {
    let names: Vec<&str> = engines::ALL.iter().map(|engine| engine.name).collect();
    let detail = format!("{} built in; auto chooses {best}", names.join(", "));
    if cfg!(target_os = "linux") && std::env::consts::ARCH == "x86_64" {
        Finding::ok(Layer::Hardware, "engines", detail)
    } else {
        let detail = format!("no engine runs x86 guests on {}", std::env::consts::ARCH);
        Finding::missing(Layer::Hardware, "engines", detail, "run Strata on an x86-64 Linux host")
    }
}

fn kvm(hardware: &Hardware) -> (Finding, Kvm) {
    let summary = |state, speed: Option<&Speed>| Kvm {
        state,
        million_instructions_per_second: speed.map(|speed| (speed.0 * 10.0).round() / 10.0),
    };
    match hardware {
        Hardware::Real(_, speed) => {
            let finding = Finding::ok(Layer::Hardware, "kvm", format!("real ({speed}); auto takes it"));
            (finding, summary("real", Some(speed)))
        }
        Hardware::Emulates(_, speed) => {
            let advice = "nothing to do: microVMs run without it (for speed take a host that gives its guests the \
                          processor's virtualization)";
            let detail = format!("emulates ordinary guests ({speed}), not used");
            (Finding::limited(Layer::Hardware, "kvm", detail, advice), summary("emulates", Some(speed)))
        }
        Hardware::Absent(error) => (absent(error), summary("absent", None)),
    }
}

fn absent(error: &engine::Error) -> Finding {
    let kind = match error {
        engine::Error::Host { source, .. } => source.kind(),
        engine::Error::Unsupported { .. } => ErrorKind::Unsupported,
    };
    let (detail, advice) = match kind {
        ErrorKind::NotFound => (
            "absent: no /dev/kvm".to_owned(),
            "nothing to do: microVMs run without it (for speed: modprobe kvm_intel or kvm_amd, and virtualization \
             switched on in the firmware or in the host of this virtual machine)",
        ),
        ErrorKind::PermissionDenied => (
            "absent: /dev/kvm may not be opened".to_owned(),
            "nothing to do: microVMs run without it (for speed: join the group that owns /dev/kvm)",
        ),
        _ => {
            let cause = std::error::Error::source(error).map_or(String::new(), |cause| format!(": {cause}"));
            (format!("absent: {error}{cause}"), "nothing to do: microVMs run without it")
        }
    };
    Finding::limited(Layer::Hardware, "kvm", detail, advice)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(kind: ErrorKind) -> engine::Error {
        engine::Error::Host { engine: "kvm", act: "open /dev/kvm".to_owned(), source: kind.into() }
    }

    #[test]
    fn each_reason_why_kvm_is_absent_comes_with_what_to_do() {
        for (error, detail, advice) in [
            (refused(ErrorKind::NotFound), "absent: no /dev/kvm", "modprobe"),
            (refused(ErrorKind::PermissionDenied), "absent: /dev/kvm may not be opened", "group"),
            (
                refused(ErrorKind::ResourceBusy),
                "absent: engine kvm: open /dev/kvm: resource busy",
                "nothing to do",
            ),
        ] {
            let (finding, summary) = kvm(&Hardware::Absent(error));
            assert_eq!((finding.detail.as_str(), summary.state), (detail, "absent"));
            assert!(finding.advice.unwrap().contains(advice));
        }
    }
}
