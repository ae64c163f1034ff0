//! Starts a process: everything is found and opened first, so that between fork and exec there are
//! only system calls, each of which reports its failure through a pipe that exec closes.

use alloc::ffi::CString;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use protocol::{Failure, Hello, Process, STREAM_PORT, Stream, WinSize};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Gid, Mode, OFlags, Uid, fchown};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use rustix::process::{self, Pid};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use rustix::system::uname;
use rustix::termios::{Winsize, tcsetwinsize};
use rustix::thread::{set_thread_gid, set_thread_groups, set_thread_uid};

use crate::command::{self, Unusable};
use crate::fault::Fault;
use crate::files;
use crate::session::Guest;
use crate::streams::{PIPE_SIZE, Pump};
use crate::sys::{self, ExecStrings};
use crate::user::{self, Identity};

/// The terminal of a process.
#[derive(Debug)]
pub struct Terminal {
    /// The agent's side.
    pub master: OwnedFd,
    /// The process's side, kept open as long as the process runs: a process may close all its own
    /// and open them again.
    pub slave: Option<OwnedFd>,
}

/// A process that runs.
#[derive(Debug)]
pub struct Spawned {
    /// Its process id, which is its session's and process group's too.
    pub pid: Pid,
    /// What carries its stdio.
    pub pumps: Vec<Pump>,
    /// Its terminal.
    pub terminal: Option<Terminal>,
}

/// What the child needs, made before it is.
struct Image {
    path: CString,
    argv: ExecStrings,
    env: ExecStrings,
    cwd: CString,
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
    changes_identity: bool,
}

/// The process's ends of its stdio, and ours.
struct Stdio {
    child: [OwnedFd; 3],
    pumps: Vec<Pump>,
    terminal: Option<Terminal>,
}

/// Starts `process` in the root this process has.
///
/// # Errors
/// What could not be done, and the exit code a shell has for it.
pub fn spawn(process: &Process, guest: &mut dyn Guest) -> Result<Spawned, Unusable> {
    let other = |fault| (fault, Failure::OTHER);
    let identity = user::resolve(&process.user).map_err(other)?;
    let (image, file) = prepare(process, &identity)?;
    let stdio = match process.tty {
        Some(size) => open_terminal(process, size, identity.uid, guest),
        None => open_pipes(process, identity.uid, guest),
    };
    let stdio = stdio.map_err(other)?;
    let pid = start(&image, &stdio, &file)?;
    Ok(Spawned { pid, pumps: stdio.pumps, terminal: stdio.terminal })
}

/// Runs `process` to its end without standard input, its output going to the standard error of this one. Gives its exit code as
/// a shell has it.
///
/// # Errors
/// As [`spawn`].
pub fn run(process: &Process) -> Result<i32, Unusable> {
    let other = |fault| (fault, Failure::OTHER);
    let identity = user::resolve(&process.user).map_err(other)?;
    let (image, file) = prepare(process, &identity)?;
    let output =
        || fcntl_dupfd_cloexec(sys::standard_streams()[2], 3).map_err(|errno| other(stdio_fault(errno)));
    let child = [files::open("/dev/null", OFlags::RDONLY).map_err(other)?, output()?, output()?];
    let pid = start(&image, &Stdio { child, pumps: Vec::new(), terminal: None }, &file)?;
    loop {
        match process::waitpid(Some(pid), process::WaitOptions::empty()) {
            Err(Errno::INTR) | Ok(None) => {}
            Ok(Some((_, status))) => {
                let signal = status.terminating_signal().map_or(0, |signal| 128 + signal);
                return Ok(status.exit_status().unwrap_or(signal));
            }
            Err(errno) => return Err(other(Fault::os("wait for", &file, errno))),
        }
    }
}

fn prepare(process: &Process, identity: &Identity) -> Result<(Image, String), Unusable> {
    let other = |fault| (fault, Failure::OTHER);
    let Some(name) = process.argv.first() else {
        return Err(other(Fault::new("run", "", "no command given")));
    };
    let cwd = files::join("/", &process.cwd);
    files::make_dirs(&cwd, 0o755).map_err(other)?;
    let hostname = uname().nodename().to_string_lossy().to_string();
    // What the kernel calls a machine nobody named.
    let hostname = if hostname == "(none)" { "" } else { &hostname };
    let env = command::environment(process, &identity.home, hostname);
    let path = command::variable(&env, "PATH").unwrap_or(command::DEFAULT_PATH);
    let file = command::find(name, path, &cwd)?;
    let text = |text: &str| {
        CString::new(text).map_err(|_| other(Fault::new("run", name, format!("zero byte in {text:?}"))))
    };
    let texts =
        |texts: &[String]| texts.iter().map(|t| text(t)).collect::<Result<Vec<_>, _>>().map(ExecStrings::new);
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    let image = Image {
        path: text(&file)?,
        argv: texts(&process.argv)?,
        env: texts(&env)?,
        cwd: text(&cwd)?,
        uid,
        gid,
        groups: identity.groups.iter().map(|&group| Gid::from_raw(group)).collect(),
        // Without the right to change it, being it already is enough; PID 1 always has the right.
        changes_identity: process::geteuid().is_root()
            || (process::getuid(), process::getgid()) != (uid, gid),
    };
    Ok((image, file))
}

/// Opens the connection of one stream and says which it is.
fn connect(exec: u32, stream: Stream, guest: &mut dyn Guest) -> Result<OwnedFd, Fault> {
    let connection = guest.connect(STREAM_PORT)?;
    files::write_all(&connection, &Hello { exec, stream }.encode()).map_err(stdio_fault)?;
    Ok(connection)
}

fn stdio_fault(errno: Errno) -> Fault {
    Fault::os("open", "stdio", errno)
}

/// Lets the process open its stdio again by name (`/dev/stdout`), which takes the right to.
fn give(fd: impl AsFd, uid: u32) {
    if uid != 0 {
        let _ = fchown(fd, Some(Uid::from_raw(uid)), None);
    }
}

fn open_pipe() -> Result<(OwnedFd, OwnedFd), Fault> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(stdio_fault)?;
    // The kernel's own size does too.
    let _ = fcntl_setpipe_size(&write, PIPE_SIZE);
    Ok((read, write))
}

fn open_pipes(process: &Process, uid: u32, guest: &mut dyn Guest) -> Result<Stdio, Fault> {
    let mut pumps = Vec::new();
    let stdin = if process.stdin {
        let (read, write) = open_pipe()?;
        let connection = connect(process.exec, Stream::Stdin, guest)?;
        pumps.push(Pump::new(Stream::Stdin, false, connection, write).map_err(stdio_fault)?);
        read
    } else {
        files::open("/dev/null", OFlags::RDONLY)?
    };
    let mut output = |stream| {
        let (read, write) = open_pipe()?;
        let connection = connect(process.exec, stream, guest)?;
        pumps.push(Pump::new(stream, false, read, connection).map_err(stdio_fault)?);
        Ok(write)
    };
    let (stdout, stderr) = (output(Stream::Stdout)?, output(Stream::Stderr)?);
    if process.stdin {
        give(&stdin, uid);
    }
    give(&stdout, uid);
    give(&stderr, uid);
    Ok(Stdio { child: [stdin, stdout, stderr], pumps, terminal: None })
}

fn open_terminal(process: &Process, size: WinSize, uid: u32, guest: &mut dyn Guest) -> Result<Stdio, Fault> {
    let fault = |errno| Fault::os("open", "terminal", errno);
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags).map_err(fault)?;
    unlockpt(&master).map_err(fault)?;
    let slave = ioctl_tiocgptpeer(&master, flags).map_err(fault)?;
    resize(&master, size)?;
    give(&slave, uid);
    let copy = |fd: &OwnedFd| fcntl_dupfd_cloexec(fd, 3).map_err(fault);
    let mut pumps = Vec::new();
    if process.stdin {
        let connection = connect(process.exec, Stream::Stdin, guest)?;
        pumps.push(Pump::new(Stream::Stdin, true, connection, copy(&master)?).map_err(fault)?);
    }
    let connection = connect(process.exec, Stream::Stdout, guest)?;
    pumps.push(Pump::new(Stream::Stdout, true, copy(&master)?, connection).map_err(fault)?);
    let child = [copy(&slave)?, copy(&slave)?, copy(&slave)?];
    Ok(Stdio { child, pumps, terminal: Some(Terminal { master, slave: Some(slave) }) })
}

/// Gives a terminal another size; its foreground process group gets SIGWINCH from the kernel.
///
/// # Errors
/// The kernel's.
pub fn resize(master: impl AsFd, size: WinSize) -> Result<(), Fault> {
    let size = Winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(master, size).map_err(|errno| Fault::os("resize", "terminal", errno))
}

/// Where a child failed; [`STEPS`] has the words.
const STEPS: [&str; 6] =
    ["start session for", "set up stdio of", "change directory for", "set groups of", "set user of", "run"];
const EXEC: u8 = 5;

fn start(image: &Image, stdio: &Stdio, file: &str) -> Result<Pid, Unusable> {
    let other = |errno| (Fault::os("start process", file, errno), Failure::OTHER);
    let (report, child_report) = pipe_with(PipeFlags::CLOEXEC).map_err(other)?;
    let terminal = stdio.terminal.is_some();
    let pid = sys::fork(|| {
        let (step, errno) = become_image(image, &stdio.child, terminal);
        let [a, b, c, d] = errno.raw_os_error().to_le_bytes();
        let _ = files::write_all(&child_report, &[step, a, b, c, d]);
        127
    })
    .map_err(other)?;
    drop(child_report);
    let mut answer = [0; 5];
    loop {
        return match rustix::io::read(&report, &mut answer) {
            Ok(5) => {
                let [step, errno @ ..] = answer;
                Err(failure(step, Errno::from_raw_os_error(i32::from_le_bytes(errno)), file))
            }
            // Closed by exec. A child killed before that has an exit status of its own.
            Ok(_) => Ok(pid),
            Err(Errno::INTR) => continue,
            Err(errno) => Err(other(errno)),
        };
    }
}

fn failure(step: u8, errno: Errno, file: &str) -> Unusable {
    if step == EXEC {
        return command::exec_refusal(file, errno);
    }
    let act = STEPS.get(usize::from(step)).copied().unwrap_or("start");
    (Fault::os(act, file, errno), Failure::OTHER)
}

/// The child: returns only the step that failed. Allocates nothing (see [`sys::fork`]).
fn become_image(image: &Image, stdio: &[OwnedFd; 3], terminal: bool) -> (u8, Errno) {
    let steps: [&dyn Fn() -> Result<(), Errno>; 5] = [
        &|| process::setsid().map(drop),
        &|| take_stdio(stdio, terminal),
        &|| process::chdir(image.cwd.as_c_str()),
        &|| if image.changes_identity { set_groups(image) } else { Ok(()) },
        &|| if image.changes_identity { set_thread_uid(image.uid) } else { Ok(()) },
    ];
    for (number, step) in steps.iter().enumerate() {
        if let Err(errno) = step() {
            return (number as u8, errno);
        }
    }
    process::umask(Mode::from_raw_mode(0o022));
    sys::default_signals();
    (EXEC, sys::exec(&image.path, &image.argv, &image.env))
}

fn take_stdio([stdin, stdout, stderr]: &[OwnedFd; 3], terminal: bool) -> Result<(), Errno> {
    if terminal {
        process::ioctl_tiocsctty(stdin)?;
    }
    dup2_stdin(stdin)?;
    dup2_stdout(stdout)?;
    dup2_stderr(stderr)
}

fn set_groups(image: &Image) -> Result<(), Errno> {
    set_thread_groups(&image.groups)?;
    set_thread_gid(image.gid)
}
