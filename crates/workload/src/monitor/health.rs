//! Whether a workload is well: a command that is run in it over and over.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use rustix::process::Pid;

use super::{Monitor, Shared};
use crate::description::HealthCheck;
use crate::state::{Health, Status};

/// Bytes that are kept of what a check writes.
const KEPT: u64 = 4096;
/// How long a check whose time is over may take to end: whoever runs it kills it then, with all that it began.
const GRACE: Duration = Duration::from_secs(10);
/// How often a check that runs is looked at.
const GLANCE: Duration = Duration::from_millis(20);

impl Monitor<'_> {
    /// Checks the command that has just been started, worker `pid`'s, until it ends. `command` runs its arguments in the
    /// workload.
    pub(super) fn check_health(&self, pid: Pid, check: &HealthCheck, command: &dyn Fn(&[String]) -> Command) {
        if !self.waits_for_check(pid, Duration::ZERO) {
            return;
        }
        let begun = Instant::now();
        self.note(|state| state.health = Some(Health::default()));
        while self.waits_for_check(pid, Duration::from_millis(check.interval_ms.max(1))) {
            let early = begun.elapsed() < Duration::from_millis(check.start_period_ms);
            let timeout = Duration::from_millis(check.timeout_ms.max(1));
            let (code, output) = run(command(&check.command), timeout, GRACE);
            self.note(|state| {
                // A machine that was paused meanwhile could not answer.
                if let Some(health) = state.health.take_if(|_| state.status == Status::Running) {
                    state.health = Some(health.after(code, output, early, check.retries));
                }
            });
        }
        self.note(|state| state.health = None);
    }

    /// Waits for the next check; false when there is none, because the worker has ended.
    fn waits_for_check(&self, pid: Pid, interval: Duration) -> bool {
        let runs = |shared: &mut Shared| {
            shared.worker.as_ref().is_some_and(|worker| worker.pid == pid && !worker.silent)
        };
        let waited = self.changed.wait_timeout_while(self.lock(), interval, runs);
        let mut shared = waited.unwrap_or_else(PoisonError::into_inner).0;
        // One that does not run yet, or stands still, is not asked.
        while runs(&mut shared) && shared.state.status != Status::Running {
            shared = self.changed.wait(shared).unwrap_or_else(PoisonError::into_inner);
        }
        runs(&mut shared)
    }
}

/// The exit code, unless it took too long or could not be run, and what it wrote. A command that does not end by itself when
/// its time is over, is killed after the time of `grace`.
fn run(mut command: Command, timeout: Duration, grace: Duration) -> (Option<u8>, String) {
    let failed = |error: std::io::Error| (None, format!("the check could not be run: {error}"));
    let (mut read, write) = match std::io::pipe() {
        Ok(pipe) => pipe,
        Err(error) => return failed(error),
    };
    let Ok(errors) = write.try_clone() else { return (None, "no more open files".to_owned()) };
    command.stdin(Stdio::null()).stdout(write).stderr(errors);
    let spawned = command.spawn();
    // It holds the other ends.
    drop(command);
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => return failed(error),
    };
    let reader = std::thread::spawn(move || {
        let mut kept = Vec::new();
        let _ = read.by_ref().take(KEPT).read_to_end(&mut kept);
        // The rest is read, or the check would wait.
        let _ = std::io::copy(&mut read, &mut std::io::sink());
        String::from_utf8_lossy(&kept).into_owned()
    });
    let begun = Instant::now();
    let code = wait(&mut child, timeout.saturating_add(grace));
    if code.is_none() {
        let _ = child.kill();
        let _ = child.wait();
    }
    if begun.elapsed() >= timeout {
        return (None, format!("the check took longer than {} s", timeout.as_secs_f64()));
    }
    (code, reader.join().unwrap_or_default())
}

/// The exit code, if it ends in time.
fn wait(child: &mut Child, timeout: Duration) -> Option<u8> {
    let begun = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) => {
                return Some(status.code().and_then(|n| u8::try_from(n).ok()).unwrap_or(u8::MAX));
            }
            Ok(None) if begun.elapsed() < timeout => std::thread::sleep(GLANCE),
            Ok(None) | Err(_) => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_check_tells_its_code_its_output_and_that_it_takes_too_long() {
        let patient = Duration::from_secs(60);
        assert_eq!(run(shell("echo well"), patient, patient), (Some(0), "well\n".to_owned()));
        assert_eq!(run(shell("echo ill >&2; exit 3"), patient, patient), (Some(3), "ill\n".to_owned()));
        let (code, output) = run(shell("head -c 100000 /dev/zero | tr '\\0' x"), patient, patient);
        assert_eq!((code, output.len()), (Some(0), 4096));
        let (code, output) = run(shell("exec sleep 1000"), Duration::from_millis(50), Duration::ZERO);
        assert_eq!((code, output.as_str()), (None, "the check took longer than 0.05 s"));
        assert!(run(Command::new("/no/such"), patient, patient).1.contains("could not be run"));
    }
}
