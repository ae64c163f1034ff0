//! Hooks: programs of the bundle's that run at points of a container's life, with its state on their standard input.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::error::{Error, Result, While};
use crate::spec::{Hook, Spec};
use crate::state::State;

/// How often a hook with a time limit is looked after.
const POLL: Duration = Duration::from_millis(5);

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
    if let Some(mut stdin) = child.stdin.take() {
        // A hook need not read its input.
        let _ = stdin.write_all(&text);
    }
    let Some(timeout) = hook.timeout else {
        return ended(hook, child.wait().during(act)?);
    };
    let until = Instant::now() + Duration::from_secs(timeout);
    loop {
        if let Some(status) = child.try_wait().during(act)? {
            return ended(hook, status);
        }
        if Instant::now() >= until {
            child.kill().and_then(|()| child.wait()).during(act)?;
            return Err(Error::refused(act(), format!("killed after {timeout} s")));
        }
        std::thread::sleep(POLL);
    }
}

fn ended(hook: &Hook, status: std::process::ExitStatus) -> Result<()> {
    if status.success() {
        return Ok(());
    }
    Err(Error::refused(format!("run hook {}", hook.path.display()), status.to_string()))
}
