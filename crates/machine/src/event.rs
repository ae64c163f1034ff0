//! How a machine ends.

use crate::console::PANIC_MARK;
use crate::vcpu::EndCause;

/// Why a machine stopped running. Each machine ends with exactly one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MachineEvent {
    /// The guest turned itself off (ACPI S5).
    PowerOff,
    /// The guest asked for a reset and the configuration says that ends the machine.
    Reset,
    /// The guest's kernel panicked (seen on the console) and then asked for a reset or stopped.
    GuestPanic {
        /// The kernel's line, e.g. `Kernel panic - not syncing: Attempted to kill init!`.
        message: String,
    },
    /// A vCPU shut down: an exception while delivering a double fault.
    TripleFault {
        /// What led there.
        reason: String,
    },
    /// The engine or a device cannot go on.
    Fatal {
        /// What and where.
        reason: String,
    },
    /// The owner called [`crate::Machine::stop`].
    Stopped,
}

impl From<EndCause> for MachineEvent {
    fn from(cause: EndCause) -> Self {
        match cause {
            EndCause::Shutdown(reason) => Self::TripleFault { reason },
            EndCause::Fatal(reason) | EndCause::Gone(reason) => Self::Fatal { reason },
        }
    }
}

impl std::fmt::Display for MachineEvent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::PowerOff => f.write_str("the guest powered off"),
            Self::Reset => f.write_str("the guest reset the machine"),
            Self::GuestPanic { message } => {
                // What the line says besides is said already.
                let message =
                    message.strip_prefix(PANIC_MARK).unwrap_or(message).trim_start_matches([':', ' ']);
                write!(f, "the guest's kernel panicked: {message}")
            }
            Self::TripleFault { reason } => write!(f, "triple fault: {reason}"),
            Self::Fatal { reason } => write!(f, "the machine cannot go on: {reason}"),
            Self::Stopped => f.write_str("the machine was stopped"),
        }
    }
}
