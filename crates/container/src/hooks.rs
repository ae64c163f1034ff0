//! Hooks: programs of the bundle's that run at points of a container's life, with its state on their standard input.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags};

use crate::error::{Error, Result, While};
use crate::spec::{Hook, Spec};
use crate::state::State;

/// Which hooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// `prestart` and `createRuntime`, in this order.
    CreateRuntime,
    /// `createContainer`
    CreateContainer,
    /// `startContainer`
    StartContainer,
    /// `poststart`
    Poststart,
    /// `poststop`
    Poststop,
}

/// The hooks of one point, in order.
pub fn of(spec: &Spec, point: Point) -> Vec<&Hook> {
    let Some(hooks) = &spec.hooks else { return Vec::new() };
    match point {
        Point::CreateRuntime => hooks.prestart.iter().chain(&hooks.create_runtime).collect(),
        Point::CreateContainer => hooks.create_container.iter().collect(),
        Point::StartContainer => hooks.start_container.iter().collect(),
        Point::Poststart => hooks.poststart.iter().collect(),
        Point::Poststop => hooks.poststop.iter().collect(),
    }
}

/// Whether a path of each is absolute, as it must be.
pub fn check(spec: &Spec) -> Result<()> {
    let points = [
        Point::CreateRuntime,
        Point::CreateContainer,
        Point::StartContainer,
        Point::Poststart,
        Point::Poststop,
    ];
    for hook in points.into_iter().flat_map(|point| of(spec, point)) {
        if !hook.path.is_absolute() {
            return Err(Error::refused(format!("hook {}", hook.path.display()), "its path is not absolute"));
        }
        if hook.timeout == Some(0) {
            return Err(Error::refused(
                format!("hook {}", hook.path.display()),
                "its timeout is not above 0",
            ));
        }
    }
    Ok(())
}

/// Runs the hooks of a point; the first that fails ends it.
///
/// # Errors
/// One cannot be run, fails, or takes too long.
pub fn run(spec: &Spec, point: Point, state: &State) -> Result<()> {
    for hook in of(spec, point) {
        run_one(hook, state)?;
    }
    Ok(())
}

/// Runs the hooks of a point; what fails is told, and the others run all the same.
pub fn run_all(spec: &Spec, point: Point, state: &State) {
    for hook in of(spec, point) {
        if let Err(error) = run_one(hook, state) {
            tracing::warn!("{}", error.chain());
        }
    }
}

fn run_one(hook: &Hook, state: &State) -> Result<()> {
    let act = || format!("run hook {}", hook.path.display());
    let text = serde_json::to_vec(state).map_err(std::io::Error::from).during(act)?;
    let mut command = Command::new(&hook.path);
    if let [name, rest @ ..] = hook.args.as_slice() {
        command.arg0(name).args(rest);
    }
    command.env_clear().envs(hook.env.iter().filter_map(|entry| entry.split_once('=')));
    command.stdin(Stdio::piped()).stdout(Stdio::null());
    let mut child = command.spawn().during(act)?;
    let mut stdin = child.stdin.take();
    if let Some(stdin) = &stdin {
        rustix::io::ioctl_fionbio(stdin, true).during(act)?;
    }
    let process = Pid::from_child(&child);
    let process = rustix::process::pidfd_open(process, PidfdFlags::empty()).during(act)?;
    let until = hook.timeout.and_then(|seconds| Instant::now().checked_add(Duration::from_secs(seconds)));
    let mut rest = text.as_slice();
    loop {
        // A hook need not read its input, and the state may be more than a pipe holds.
        let mut fds = vec![PollFd::new(&process, PollFlags::IN)];
        fds.extend(stdin.iter().map(|stdin| PollFd::new(stdin, PollFlags::OUT)));
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        let left = left.map(|left| Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        });
        match poll(&mut fds, left.as_ref()) {
            Ok(0) => {
                child.kill().and_then(|()| child.wait()).during(act)?;
                let seconds = hook.timeout.unwrap_or_default();
                return Err(Error::refused(act(), format!("killed after {seconds} s")));
            }
            Err(rustix::io::Errno::INTR) => continue,
            result => result.during(act)?,
        };
        if !fds[0].revents().is_empty() {
            return ended(hook, child.wait().during(act)?);
        }
        if let Some(pipe) = &mut stdin {
            match pipe.write(rest) {
                Ok(count) => rest = &rest[count..],
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => rest = &[],
            }
            if rest.is_empty() {
                stdin = None;
            }
        }
    }
}

fn ended(hook: &Hook, status: std::process::ExitStatus) -> Result<()> {
    if status.success() {
        return Ok(());
    }
    Err(Error::refused(format!("run hook {}", hook.path.display()), status.to_string()))
}
