//! What the program's exit code means: the one place that says so.

use std::process::ExitCode;

/// How `strata` ended. A workload's own code passes through as it is ([`Exit::Workload`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// All is well.
    Success,
    /// The answer is no: `check` found something missing that the default needs, or broken.
    Missing,
    /// The command line makes no sense.
    Usage,
    /// `boot`: the guest asked for a reset.
    GuestReset,
    /// `boot`: the guest's kernel panicked.
    GuestPanic,
    /// `boot`: a triple fault, which resets real hardware.
    TripleFault,
    /// `boot`: the engine or a device cannot go on.
    MachineFault,
    /// The time of `--timeout` is over.
    Timeout,
    /// Strata itself could not do its work.
    Strata,
    /// A signal ended Strata's own work, with this number.
    Signal(u8),
    /// What the command inside returned, 128 + n if signal n ended it.
    Workload(u8),
}

/// The table of `strata --help` and of the manual page.
pub const TABLE: &str = "\
Exit codes:
  0        success; for `run`, the command's own code
  1        `check`: this host lacks something that microVMs need, or the store stays broken
  2        the command line makes no sense
  3        `boot`: the guest reset the machine
  4        `boot`: the guest's kernel panicked
  5        `boot`: triple fault
  6        `boot`: the machine cannot go on (engine or device)
  124      `run --timeout`: the time is over, the command was killed
  125      Strata itself failed: host, image, kernel, machine
  126      `run`: the command exists in the image and cannot be executed
  127      `run`: there is no such command in the image
  128 + n  signal n ended the command, or Strata";

/// The part of [`TABLE`] that `strata run --help` shows.
pub const OF_RUN: &str = "\
Exit codes:
  n        the command's own
  2        the command line makes no sense
  124      the time of --timeout is over, the command was killed
  125      Strata itself failed: host, image, kernel, machine
  126      the command exists in the image and cannot be executed
  127      there is no such command in the image
  128 + n  signal n ended the command, or Strata";

/// The part of [`TABLE`] that `strata boot --help` shows.
pub const OF_BOOT: &str = "\
Exit codes:
  0        the guest turned itself off, or the user left
  2        the command line makes no sense
  3        the guest reset the machine
  4        the guest's kernel panicked
  5        triple fault
  6        the machine cannot go on (engine or device)
  125      Strata itself failed: host, kernel, machine
  128 + n  signal n ended Strata";

impl Exit {
    /// The number the parent process sees.
    pub fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Missing => 1,
            Self::Usage => 2,
            Self::GuestReset => 3,
            Self::GuestPanic => 4,
            Self::TripleFault => 5,
            Self::MachineFault => 6,
            Self::Timeout => 124,
            Self::Strata => 125,
            Self::Signal(number) => number.saturating_add(128),
            Self::Workload(code) => code,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}
