//! What the agent's program does beside being PID 1: the files of the root as archives, the list of processes, and a command of
//! which only what it changed is wanted.
//!
//! The host starts it as it starts any command, by a path that no image has in its hands: `/proc/1/exe`. So it needs nothing of
//! the image, and its streams, its end and its exit code are carried like those of any command.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use archive::{Request, Roots};
use protocol::Process;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{self, AtFlags, Mode, OFlags, open};
use rustix::process::{Pid, Signal};

use crate::fault::Fault;
use crate::{files, mounts, root, spawn, sys, user};

/// What a command line that makes no sense ends with.
const USAGE: i32 = 2;
/// The kernel tells times in hundredths of a second, whatever its clock (USER_HZ).
const MS_PER_TICK: u64 = 10;

/// Does what the words say; gives the exit code.
#[must_use]
pub fn main(words: &[&[u8]]) -> i32 {
    let done = match words.split_first() {
        Some((&b"files", words)) => match Request::parse(words) {
            Some(request) => archive(&request),
            None => return USAGE,
        },
        Some((&b"processes", [])) => processes().map_err(|fault| (1, fault.to_string())),
        Some((&b"change", words)) => match parse_process(words) {
            Some(process) => change(&process),
            None => return USAGE,
        },
        _ => {
            sys::complain("agent: this is PID 1 of a microVM and does nothing else\n");
            return USAGE;
        }
    };
    match done {
        Ok(()) => 0,
        Err((code, text)) => {
            if !text.is_empty() {
                sys::complain(&format!("{text}\n"));
            }
            code
        }
    }
}

fn archive(request: &Request) -> Result<(), (i32, String)> {
    let place = OFlags::PATH | OFlags::DIRECTORY;
    let folder = files::open("/", place).map_err(|fault| (1, fault.to_string()))?;
    let owner = |name: &str| user::resolve(name).ok().map(|identity| (identity.uid, identity.gid));
    let roots = Roots { root: folder.as_fd(), upper: &upper, user: &owner };
    let [input, output, _] = sys::standard_streams();
    request.run(&roots, input, output).map_err(|error| (i32::from(error.code()), error.line(sys::errno_text)))
}

/// A command, as its words stand on a command line: user, folder, number of variables, variables, command.
fn parse_process(words: &[&[u8]]) -> Option<Process> {
    let text = |word: &&[u8]| core::str::from_utf8(word).ok().map(String::from);
    let [user, cwd, count, rest @ ..] = words else { return None };
    let (env, argv) = rest.split_at_checked(text(count)?.parse().ok()?)?;
    let texts = |words: &[&[u8]]| words.iter().map(text).collect::<Option<Vec<String>>>();
    let (env, argv) = (texts(env)?, texts(argv)?);
    Some(Process { user: text(user)?, cwd: text(cwd)?, env, argv, ..Process::default() })
}

/// Runs a command to its end, its output going to standard error; then what was changed goes to standard output, as the archive
/// of a layer. Whatever the command has left running is killed before.
fn change(process: &Process) -> Result<(), (i32, String)> {
    let other = |fault: Fault| (1, fault.to_string());
    // What the root has only because it is a machine's.
    let own: Vec<&str> = match upper() {
        Some(upper) => mounts::DIRECTORIES
            .into_iter()
            .map(|(path, _)| path)
            .filter(|path| fs::statat(&upper, &path[1..], AtFlags::SYMLINK_NOFOLLOW).is_ok())
            .collect(),
        None => Vec::new(),
    };
    match spawn::run(process).map_err(|(fault, code)| (i32::from(code), fault.to_string()))? {
        0 => {}
        code => return Err((code, String::new())),
    }
    end_others().map_err(other)?;
    // One that is not empty is the command's.
    for path in own {
        let _ = fs::rmdir(path);
    }
    archive(&Request::Changes)
}

/// Kills all processes but PID 1 and this one.
fn end_others() -> Result<(), Fault> {
    let own = rustix::process::getpid();
    for id in process_ids()?.into_iter().filter_map(|id| Pid::from_raw(i32::try_from(id).ok()?)) {
        if id != own && id != Pid::INIT {
            // The kernel's own take no notice, and one may have ended meanwhile.
            let _ = rustix::process::kill_process(id, Signal::KILL);
        }
    }
    Ok(())
}

/// Ids of all processes.
fn process_ids() -> Result<Vec<u32>, Fault> {
    let folder = files::open("/proc", OFlags::RDONLY | OFlags::DIRECTORY)?;
    let entries = fs::Dir::read_from(&folder).map_err(|errno| Fault::os("read", "/proc", errno))?;
    let name = |entry: fs::DirEntry| entry.file_name().to_str().ok()?.parse::<u32>().ok();
    let mut ids: Vec<u32> = entries.filter_map(|entry| name(entry.ok()?)).collect();
    ids.sort_unstable();
    Ok(ids)
}

/// What PID 1 holds open of the root's overlay.
fn upper() -> Option<OwnedFd> {
    let path = format!("/proc/1/fd/{}", root::UPPER_FD);
    open(path.as_str(), OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok()
}

/// Writes a line for each process: its id, its parent's, its user's, when it was started in milliseconds since 1970, its
/// milliseconds of processor time, and its command.
fn processes() -> Result<(), Fault> {
    let booted = files::read("/proc/stat")?;
    let booted = booted.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse::<u64>().ok());
    let ids = process_ids()?;
    let own = rustix::process::getpid().as_raw_nonzero().get().unsigned_abs();
    let mut text = String::new();
    // One that ends meanwhile is gone. Those of the kernel, and this one, are nobody's.
    for row in ids.into_iter().filter(|id| *id != own).filter_map(|id| row(id, booted.unwrap_or_default())) {
        text.push_str(&row);
    }
    files::write_all(sys::standard_streams()[1], text.as_bytes())
        .map_err(|errno| Fault::os("write", "the list", errno))
}

fn row(id: u32, booted: u64) -> Option<String> {
    /// The kernel's own: its first thread, whose children are the others.
    const KTHREADD: u64 = 2;
    let stat = files::read(&format!("/proc/{id}/stat")).ok()?;
    let status = files::read(&format!("/proc/{id}/status")).ok()?;
    // Behind the name, which may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    let parent = number(1)?;
    if parent == KTHREADD || u64::from(id) == KTHREADD || id == 1 {
        return None;
    }
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_whitespace().next()?;
    let words = files::read_bytes(&format!("/proc/{id}/cmdline")).ok()?;
    let words = words.split(|byte| *byte == 0).filter(|word| !word.is_empty());
    let words: Vec<String> = words.map(|word| String::from_utf8_lossy(word).to_string()).collect();
    let command: String =
        words.join(" ").chars().map(|c| if c.is_control() { ' ' } else { c }).take(4096).collect();
    let started = booted * 1000 + number(19)? * MS_PER_TICK;
    let used = (number(11)? + number(12)?) * MS_PER_TICK;
    Some(format!("{id} {parent} {uid} {started} {used} {command}\n"))
}
