//! The last steps of a process before it executes its command: the same for a container's first process and for those
//! that come later. From here on everything only gets less.

use std::convert::Infallible;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Access, AtFlags, FileType, Gid, Mode, OFlags, Uid};

use crate::affinity::Affinity;
use crate::capabilities::Sets;
use crate::channel::{Channel, Message};
use crate::console;
use crate::error::{Error, Result, While};
use crate::paths::{self, Missing};
use crate::rlimits;
use crate::seccomp::Filter;
use crate::seccomp::listener::Listener;
use crate::spec::{self, Process};
use crate::sys;

/// What programs are looked for in without a PATH.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What is known about a process before it exists.
#[derive(Debug)]
pub struct Plan {
    /// The specification's part.
    pub process: Process,
    /// `USER[:GROUP]` by names of the container's own files, instead of the specification's numbers.
    pub user_name: Option<String>,
    /// Further groups, by numbers or by names of the container's own files.
    pub group_names: Vec<String>,
    /// Its capabilities.
    sets: Sets,
    /// Its filter.
    filter: Option<Filter>,
    /// Who is sent what the filter notifies of.
    pub listener: Option<Listener>,
    /// Processors it runs on, if it is not the container's first one.
    pub affinity: Affinity,
    /// Descriptors from 3 on that it inherits.
    pub preserve_fds: u32,
    /// Whether it is killed when the thread that made it ends.
    pub tied: bool,
    /// The program that is executed instead of the command, and starts it.
    pub init: Option<OwnedFd>,
    /// Where its terminal's controlling end goes.
    pub console: Option<OwnedFd>,
    /// The host's `/proc`: where labels and the like are written, which a forged one must not swallow.
    pub host_proc: OwnedFd,
}

impl Plan {
    /// Checks a process and translates what can be translated beforehand. `new_user` says whether it enters a user
    /// namespace that is not this process's.
    ///
    /// # Errors
    /// It makes no sense.
    pub fn new(process: &Process, seccomp: Option<&spec::Seccomp>, new_user: bool) -> Result<Self> {
        let refuse = |fault: &str| Err(Error::refused("process", fault));
        if process.args.is_empty() {
            return refuse("it has no args");
        }
        if !process.cwd.starts_with('/') {
            return refuse("its cwd is not absolute");
        }
        let texts = process.args.iter().chain(&process.env).chain([&process.cwd]);
        if texts.into_iter().any(|text| text.contains('\0')) {
            return refuse("a NUL byte in args, env or cwd");
        }
        if process.oom_score_adj.is_some_and(|value| !(-1000..=1000).contains(&value)) {
            let fault =
                format!("oomScoreAdj {}, it goes from -1000 to 1000", process.oom_score_adj.unwrap_or(0));
            return refuse(&fault);
        }
        rlimits::check(&process.rlimits)?;
        check_labels(process)?;
        let folder = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let host_proc =
            rustix::fs::open("/proc", folder, Mode::empty()).during(|| "open /proc".to_owned())?;
        if !crate::mounts::is_proc(host_proc.as_fd()) {
            return Err(Error::refused("/proc", "it is no proc file system"));
        }
        Ok(Self {
            process: process.clone(),
            user_name: None,
            group_names: Vec::new(),
            sets: Sets::new(
                process.capabilities.as_ref().unwrap_or(&spec::Capabilities::default()),
                new_user,
            ),
            filter: seccomp.map(Filter::new).transpose()?,
            listener: None,
            affinity: Affinity::new(process.exec_cpu_affinity.as_ref())?,
            preserve_fds: 0,
            tied: false,
            init: None,
            console: None,
            host_proc,
        })
    }
}

impl Plan {
    /// Puts this process under its filter, and sends the listener what it is to listen to.
    fn install(&self, filter: &Filter) -> Result<()> {
        // Not afterwards: the filter may not let this be found out any more.
        let pid = own_pid(self.host_proc.as_fd())?;
        match (filter.install()?, &self.listener) {
            (Some(notifications), Some(listener)) => listener.hand_out(&notifications, pid),
            _ => Ok(()),
        }
    }
}

/// The id of this process as the host sees it.
fn own_pid(host_proc: BorrowedFd<'_>) -> Result<i32> {
    let act = || "find the own process id".to_owned();
    let link = rustix::fs::readlinkat(host_proc, "self", Vec::new()).during(act)?;
    let pid = link.to_str().ok().and_then(|text| text.parse().ok());
    pid.ok_or_else(|| Error::refused("/proc/self", "it leads to no process"))
}

fn check_labels(process: &Process) -> Result<()> {
    let profile = process.apparmor_profile.as_deref().unwrap_or_default();
    let enabled = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled");
    let enabled = enabled.is_ok_and(|text| text.starts_with('Y'));
    if !enabled && !matches!(profile, "" | "unconfined") {
        return Err(Error::host(format!("apparmor profile {profile:?}"), "this host has no AppArmor"));
    }
    Ok(())
}

/// Writes to a file of this process below the host's `/proc`; nothing on the way may be a link but `self`.
fn write_own(host_proc: BorrowedFd<'_>, file: &str, value: &str) -> Result<()> {
    let act = || format!("write {value:?} to /proc/self/{file}");
    let path = format!("{}/{file}", own_pid(host_proc)?);
    let resolve = rustix::fs::ResolveFlags::NO_SYMLINKS
        | rustix::fs::ResolveFlags::NO_XDEV
        | rustix::fs::ResolveFlags::BENEATH;
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let open = rustix::fs::openat2(host_proc, path, flags, Mode::empty(), resolve).during(act)?;
    rustix::io::write(&open, value.as_bytes()).during(act).map(drop)
}

/// Sets what needs the rights of whoever makes the container. Called first of all.
///
/// # Errors
/// The kernel refuses something that cannot be done without.
pub fn begin(plan: &Plan) -> Result<()> {
    if let Some(adjustment) = plan.process.oom_score_adj
        && let Err(error) = write_own(plan.host_proc.as_fd(), "oom_score_adj", &adjustment.to_string())
    {
        // Without CAP_SYS_RESOURCE it can only be made worse: what is there is kept.
        tracing::warn!("{}", error.chain());
    }
    rlimits::apply(&plan.process.rlimits)
}

/// Gives up everything, calls `before` when all is ready and `hooks` right before the end, and executes the command.
/// What fails after `before` is told to the connection it returned.
///
/// # Errors
/// A step failed; the process must end.
pub fn execute(
    plan: &Plan,
    root: BorrowedFd<'_>,
    before: impl FnOnce() -> Result<Option<Channel>>,
    hooks: impl FnOnce() -> Result<()>,
) -> Result<Infallible> {
    let process = &plan.process;
    let mut user = match &plan.user_name {
        Some(name) => paths_user(root, name)?,
        None => process.user.clone(),
    };
    user.additional_gids.extend(crate::user::groups(root, &plan.group_names)?);
    write_labels(plan)?;
    priorities(process)?;
    if plan.console.is_none() {
        own_streams(&user);
    }
    let entered = enter_folder(root, &process.cwd);
    plan.sets.drop_bounding()?;
    // A filter without no_new_privs needs a capability that is about to go.
    let early = plan.filter.as_ref().filter(|_| !process.no_new_privileges);
    if process.no_new_privileges {
        rustix::thread::set_no_new_privs(true).during(|| "set no_new_privs".to_owned())?;
    }
    if let Some(filter) = early {
        plan.install(filter)?;
    }
    become_user(&user)?;
    plan.sets.apply()?;
    if plan.tied {
        // Not earlier: the kernel forgets it whenever a process becomes somebody else.
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
            .during(|| "end with whoever made it".to_owned())?;
    }
    if entered.is_err() {
        // A folder that only its owner may enter, on a file system where root is nobody.
        enter_folder(root, &process.cwd)?;
    }
    check_folder(&process.cwd)?;
    let env = environment(process, root, user.uid);
    let program = find_program(process, &env)?;
    sys::close_on_exec_from(3 + plan.preserve_fds).during(|| "close descriptors".to_owned())?;
    let strings = |texts: &[String]| -> Vec<CString> {
        texts.iter().filter_map(|text| CString::new(text.as_str()).ok()).collect()
    };
    let (args, env) = (strings(&process.args), strings(&env));
    let started = before()?;
    let end = || -> Result<Infallible> {
        if let (Some(filter), true) = (&plan.filter, process.no_new_privileges) {
            plan.install(filter)?;
        }
        hooks()?;
        sys::default_signals();
        let error = match &plan.init {
            None => sys::exec(&program, &args, &env),
            Some(init) => {
                let own = [c"init".to_owned(), c"reap".to_owned(), program.clone()];
                let words: Vec<CString> = own.into_iter().chain(args.iter().cloned()).collect();
                sys::exec_fd(init.as_fd(), &words, &env)
            }
        };
        Err(Error::Command { text: explain(&process.args[0], &error), code: code(&error) })
    };
    let ended = end();
    if let (Some(started), Err(error)) = (started, &ended) {
        // Whoever started it hears of it; whoever made it is gone.
        let _ = started.send(&failure(error));
    }
    ended
}

/// What a failure is to the other end.
pub fn failure(error: &Error) -> Message {
    let code = if let Error::Command { code, .. } = error { *code } else { 125 };
    Message::Failed(code, error.chain())
}

fn paths_user(root: BorrowedFd<'_>, name: &str) -> Result<spec::User> {
    crate::user::resolve(root, name)
}

fn explain(command: &str, error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOENT) => format!("run {command:?}: no such file or directory"),
        Some(libc::EACCES) => format!("run {command:?}: permission denied"),
        _ => format!("run {command:?}: {error}"),
    }
}

fn code(error: &io::Error) -> u8 {
    if error.raw_os_error() == Some(libc::ENOENT) { 127 } else { 126 }
}

fn write_labels(plan: &Plan) -> Result<()> {
    let process = &plan.process;
    let proc = plan.host_proc.as_fd();
    if let Some(profile) = process.apparmor_profile.as_deref().filter(|p| !p.is_empty() && *p != "unconfined")
    {
        let value = format!("exec {profile}");
        write_own(proc, "attr/apparmor/exec", &value).or_else(|_| write_own(proc, "attr/exec", &value))?;
    }
    match process.selinux_label.as_deref().filter(|label| !label.is_empty()) {
        Some(label) if std::path::Path::new("/sys/fs/selinux/enforce").exists() => {
            write_own(proc, "attr/exec", label)
        }
        _ => Ok(()),
    }
}

fn priorities(process: &Process) -> Result<()> {
    if let Some(priority) = &process.io_priority {
        let class = match priority.class.as_str() {
            "IOPRIO_CLASS_RT" => 1,
            "IOPRIO_CLASS_BE" => 2,
            "IOPRIO_CLASS_IDLE" => 3,
            other => return Err(Error::refused("ioPriority", format!("no class is called {other:?}"))),
        };
        if priority.priority > 7 {
            return Err(Error::refused("ioPriority", "it goes from 0 to 7"));
        }
        sys::io_priority(class, priority.priority).during(|| "set the priority for disks".to_owned())?;
    }
    process.scheduler.as_ref().map_or(Ok(()), schedule)
}

fn schedule(scheduler: &spec::Scheduler) -> Result<()> {
    let policies =
        ["SCHED_OTHER", "SCHED_FIFO", "SCHED_RR", "SCHED_BATCH", "SCHED_ISO", "SCHED_IDLE", "SCHED_DEADLINE"];
    let what = || "scheduler".to_owned();
    let unknown = || Error::refused(what(), format!("no policy is called {:?}", scheduler.policy));
    let policy = policies.iter().position(|name| *name == scheduler.policy).ok_or_else(unknown)?;
    let mut flags = 0u64;
    for flag in &scheduler.flags {
        flags |= match flag.as_str() {
            "SCHED_FLAG_RESET_ON_FORK" => 1,
            "SCHED_FLAG_RECLAIM" => 2,
            "SCHED_FLAG_DL_OVERRUN" => 4,
            "SCHED_FLAG_KEEP_POLICY" => 8,
            "SCHED_FLAG_KEEP_PARAMS" => 16,
            "SCHED_FLAG_UTIL_CLAMP_MIN" => 32,
            "SCHED_FLAG_UTIL_CLAMP_MAX" => 64,
            other => return Err(Error::refused(what(), format!("no flag is called {other:?}"))),
        };
    }
    let mut attributes = [0u8; 48];
    attributes[..4].copy_from_slice(&48u32.to_ne_bytes());
    attributes[4..8].copy_from_slice(&(policy as u32).to_ne_bytes());
    attributes[8..16].copy_from_slice(&flags.to_ne_bytes());
    attributes[16..20].copy_from_slice(&scheduler.nice.to_ne_bytes());
    attributes[20..24].copy_from_slice(&scheduler.priority.to_ne_bytes());
    for (at, value) in [(24, scheduler.runtime), (32, scheduler.deadline), (40, scheduler.period)] {
        attributes[at..at + 8].copy_from_slice(&value.to_ne_bytes());
    }
    sys::scheduler(&attributes).during(|| "set the scheduler".to_owned())
}

/// Pipes that are the standard streams become the user's, who could not open `/dev/stdout` otherwise.
fn own_streams(user: &spec::User) {
    for stream in [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()] {
        let is_pipe = paths::file_type(stream).is_ok_and(|kind| kind == FileType::Fifo);
        if is_pipe && user.uid != 0 {
            // One from a namespace where this user is nobody stays whose it is.
            let _ = rustix::fs::fchown(stream, Some(Uid::from_raw(user.uid)), None);
        }
    }
}

/// Goes into the working directory, made if it is not there. No link of the kernel is followed: one such could lead to
/// what a descriptor of the runtime has open (CVE-2024-21626).
fn enter_folder(root: BorrowedFd<'_>, path: &str) -> Result<()> {
    let act = || format!("enter {path:?}");
    let folder = match paths::find(root, path) {
        Ok(folder) => folder,
        Err(rustix::io::Errno::NOENT) => paths::find_or_make(root, path, Missing::Folder)?,
        Err(error) => return Err(error).during(act),
    };
    rustix::process::fchdir(&folder).during(act)
}

/// The kernel itself must know a path from the root to where this process is.
fn check_folder(path: &str) -> Result<()> {
    let here = rustix::process::getcwd(Vec::new()).during(|| format!("look where {path:?} is"))?;
    if here.to_bytes().starts_with(b"/") {
        return Ok(());
    }
    Err(Error::refused(format!("enter {path:?}"), "it is outside of the root"))
}

fn become_user(user: &spec::User) -> Result<()> {
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    rustix::thread::set_keep_capabilities(true).during(|| "keep capabilities".to_owned())?;
    let groups: Vec<Gid> = user.additional_gids.iter().map(|gid| Gid::from_raw(*gid)).collect();
    match rustix::thread::set_thread_groups(&groups) {
        // In a user namespace of an ordinary user groups cannot be set; there are none but its own.
        Err(rustix::io::Errno::PERM) if groups.is_empty() => {}
        result => result.during(|| "set groups".to_owned())?,
    }
    rustix::thread::set_thread_res_gid(gid, gid, gid).during(|| format!("become group {}", user.gid))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).during(|| format!("become user {}", user.uid))?;
    rustix::process::umask(Mode::from_raw_mode(user.umask.unwrap_or(0o022) & 0o777));
    Ok(())
}

fn environment(process: &Process, root: BorrowedFd<'_>, uid: u32) -> Vec<String> {
    let mut env = process.env.clone();
    if !env.iter().any(|entry| entry.starts_with("HOME=") && entry.len() > 5) {
        env.retain(|entry| !entry.starts_with("HOME="));
        env.push(format!("HOME={}", crate::user::home(root, uid)));
    }
    env
}

/// The program to execute, looked for as a shell does. That it can be executed is known before the container counts as
/// made.
fn find_program(process: &Process, env: &[String]) -> Result<CString> {
    let name = process.args[0].as_str();
    let command = |text: String, code| Error::Command { text, code };
    let found = |path: &str| rustix::fs::accessat(rustix::fs::CWD, path, Access::EXEC_OK, AtFlags::EACCESS);
    let c_string =
        |path: &str| CString::new(path).map_err(|_| command(format!("run {name:?}: a NUL byte"), 127));
    if name.contains('/') {
        found(name).map_err(|error| {
            let error = io::Error::from(error);
            command(explain(name, &error), code(&error))
        })?;
        return c_string(name);
    }
    let path = env.iter().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
    let mut denied = false;
    for folder in path.split(':').filter(|_| !name.is_empty()) {
        let full = if folder.is_empty() { format!("./{name}") } else { format!("{folder}/{name}") };
        let is_file = std::fs::metadata(&full).is_ok_and(|meta| meta.is_file());
        match found(&full) {
            Ok(()) if is_file => return c_string(&full),
            Err(rustix::io::Errno::ACCESS) => denied |= is_file,
            _ => {}
        }
    }
    if denied {
        return Err(command(format!("run {name:?}: permission denied"), 126));
    }
    Err(command(format!("run {name:?}: executable file not found in $PATH"), 127))
}

/// The process's terminal, if it gets one, made and taken.
///
/// # Errors
/// The container has no devpts, or the kernel refuses.
pub fn terminal(plan: &Plan, root: BorrowedFd<'_>, is_first: bool) -> Result<()> {
    let Some(socket) = &plan.console else { return Ok(()) };
    let size = plan.process.console_size.as_ref();
    let terminal = console::set_up(root, socket.as_fd(), size, is_first)?;
    if let Some(name) = &plan.user_name {
        let user = paths_user(root, name)?;
        let _ = rustix::fs::fchown(&terminal, Some(Uid::from_raw(user.uid)), None);
    } else {
        let _ = rustix::fs::fchown(&terminal, Some(Uid::from_raw(plan.process.user.uid)), None);
    }
    console::take(&terminal)
}
