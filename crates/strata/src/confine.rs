//! What this process gives up before a guest's first instruction, and what is said when it is missed.

use std::io::Write;

use machine::machine::Confine;
use sandbox::Violation;

use crate::exit::Exit;
use crate::failure::{Failure, Outcome};
use crate::terminal;

/// For [`machine::Backends::confine`].
pub fn while_building() -> Confine {
    Box::new(|| {
        sandbox::use_one_heap();
        Ok(sandbox::drop_privileges()?)
    })
}

/// After that nothing can be opened, executed or connected any more. `requests` of ioctl are the engine's, `network` is the
/// guest's.
///
/// # Errors
/// The host has no filter for system calls.
pub fn before_start(requests: &[u64], network: sandbox::Network) -> Outcome<()> {
    sandbox::give_back_memory();
    // Of a machine that is saved while it runs.
    let requests = [requests, machine::snapshot::HOST_REQUESTS].concat();
    sandbox::forbid_system_calls(&requests, network, say).map_err(|error| {
        Failure::because("enter the sandbox", error).hint("--no-sandbox runs the machine without it")
    })
}

/// From now on, memory whose file somebody cuts short is an end with a reason.
///
/// # Errors
/// The host's.
pub fn watch_memory() -> Outcome<()> {
    sandbox::on_lost_memory(say_lost_memory)
        .map_err(|error| Failure::because("watch the memory of the machine", error))
}

/// In a signal handler: no allocation, no waiting.
fn say_lost_memory() -> i32 {
    terminal::restore_in_signal();
    let line = b"strata: guest memory: its file was cut short while the machine ran, or cannot be read\n  \
        next: restore another copy of the snapshot; strata templates rm --all removes templates\n";
    let _ = rustix::io::write(rustix::stdio::stderr(), line);
    i32::from(Exit::Strata.code())
}

/// In a signal handler: no allocation, no waiting.
fn say(violation: &Violation) -> i32 {
    terminal::restore_in_signal();
    let mut line = [0; 200];
    let len = line.len();
    let mut rest = &mut line[..];
    let name = violation.name.unwrap_or("?");
    // A line too long for its place is cut off.
    let _ = write!(
        rest,
        "strata: system call {name} ({}) is not allowed while a machine runs\n  \
         next: report this; --no-sandbox runs the machine without the sandbox\n",
        violation.number
    );
    let left = rest.len();
    let _ = rustix::io::write(rustix::stdio::stderr(), &line[..len - left]);
    i32::from(Exit::Strata.code())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forbidden_call_is_code_125() {
        assert_eq!(say(&Violation { number: 257, name: Some("openat") }), 125);
    }
}
