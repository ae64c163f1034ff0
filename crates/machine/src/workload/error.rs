//! Why a workload could not be run to its end.

use crate::MachineEvent;

/// Why a workload could not be run to its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The machine ended while the process still ran, or before it did.
    #[error("{event}{}", last_lines(console))]
    GuestEnded {
        /// How.
        event: MachineEvent,
        /// The console's last lines.
        console: String,
    },
    /// The agent did not answer in time: a kernel without what it needs, or an initial RAM disk without it.
    #[error("wait for the agent: no answer within {seconds} s{}", last_lines(console))]
    BootTimeout {
        /// How long was waited.
        seconds: f64,
        /// The console's last lines.
        console: String,
    },
    /// The process ran longer than it may.
    #[error("run workload: still running after {seconds} s")]
    Timeout {
        /// How long it was let run.
        seconds: f64,
    },
    /// The owner gave up.
    #[error("run workload: cancelled")]
    Cancelled,
    /// Agent and host do not understand each other.
    #[error("talk to the agent")]
    Protocol(#[from] protocol::Error),
    /// The process's output could not be delivered.
    #[error("write {stream} of the workload")]
    Output {
        /// `stdout` or `stderr`.
        stream: &'static str,
        /// What the host said.
        #[source]
        source: std::io::Error,
    },
    /// The process's input could not be read.
    #[error("read stdin for the workload")]
    Input(#[source] std::io::Error),
    /// The host gave no thread or descriptor.
    #[error("carry the workload's streams")]
    Host(#[source] std::io::Error),
}

/// At most ten lines, each on a line of its own below the message.
fn last_lines(console: &str) -> String {
    let lines: Vec<&str> = console.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    let shown = &lines[lines.len().saturating_sub(10)..];
    if shown.is_empty() {
        return "; its console is empty".to_owned();
    }
    shown.iter().fold("; its console ends with:".to_owned(), |text, line| text + "\n  | " + line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_shows_the_consoles_end() {
        let console = (0..20).map(|i| format!("line {i}\r\n")).collect::<String>();
        let event = MachineEvent::GuestPanic { message: "Kernel panic - not syncing: no init".to_owned() };
        let text = Error::GuestEnded { event, console }.to_string();
        assert!(text.starts_with("the guest's kernel panicked: no init; its console ends"));
        assert!(text.ends_with("| line 19") && !text.contains("line 9\n"));
    }
}
