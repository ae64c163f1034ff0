//! `strata files`: files of a workload as archives, for `strata cp` and the API, which start this program for it.
//!
//! Those of a container that runs are reached through its first process; of one at rest, by its layers, mounted for this process
//! alone. In a machine the agent does the same. What it does is in the crate `archive` for all of them.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use archive::{Request, Roots};
use clap::Args;
use container::{Root, Upper};
use workload::control::{Answer, Client, Exec};
use workload::{Description, Folder, Isolation, Status};

use super::run::{container as containers, exec, volumes};
use super::workloads;
use crate::cli::Global;
use crate::exit::Exit;
use crate::failure::{Failure, Outcome, While};
use crate::store;

/// The agent's own program in a machine, by a name that no image has in its hands.
const AGENT: &str = "/proc/1/exe";
/// Bytes of what it says that is no archive.
const MAX_ANSWER_BYTES: u64 = 4 << 20;
/// What it ends with where a root may not be written.
const READ_ONLY: u8 = 4;
/// What this ends with where nothing is kept of a workload that does not run.
const AT_REST: u8 = 5;
/// Where an overlay cannot have its upper folder: on another one.
const OVERLAYFS: i64 = 0x794c_7630;
/// What to do about it.
pub const NO_OVERLAY_HINT: &str =
    "keep the store on a disk or in a volume of what this runs in: --root DIR or STRATA_ROOT";

/// Whether upper folders there would be on another overlay, so that what containers write stays in memory.
pub fn is_overlay(folder: &Path) -> bool {
    rustix::fs::statfs(folder).is_ok_and(|found| found.f_type == OVERLAYFS)
}

/// Says so to whoever makes a container in the background, which is expected to keep what it writes.
pub fn warn_of_overlay(store: &Path) {
    if is_overlay(store) {
        tracing::warn!(
            "{} is on an overlay file system: what this container writes stays in memory, and is gone when it ends; {NO_OVERLAY_HINT}",
            store.display()
        );
    }
}

/// How long it may take until the end of a workload is noted.
const NOTED: Duration = Duration::from_secs(5);

/// The words of [`Request`].
#[derive(Args)]
pub struct Options {
    /// Name or id of the workload
    workload: String,
    /// What is asked
    #[arg(trailing_var_arg = true, required = true)]
    words: Vec<String>,
}

/// Does what is asked; an archive comes from standard input or goes to standard output.
///
/// # Errors
/// As `archive`'s, with its exit codes; or the workload cannot be reached.
pub fn run(global: &Global, options: &Options) -> Outcome {
    let folder = workloads::find(global, &options.workload)?;
    let words: Vec<&[u8]> = options.words.iter().map(String::as_bytes).collect();
    let request = Request::parse(&words)
        .ok_or_else(|| Failure::new(format!("files: {:?}", options.words)).exit(Exit::Usage))?;
    tell(&folder, &request);
    let stdin = io::stdin();
    let decoded = if request.reads() { Some(decompress()?) } else { None };
    let input = decoded.as_ref().map_or_else(|| stdin.as_fd(), AsFd::as_fd);
    let deadline = Instant::now() + NOTED;
    loop {
        match folder.description().wanted.isolation {
            _ if workloads::state(&folder)?.status == Status::Restarting => {}
            Isolation::Vm if is_up(&folder)? => return in_machine(&folder, &request, input),
            Isolation::Container if is_up(&folder)? => {
                containers::check_rights()?;
                match containers::runtime().root_of(&containers::id_of(&folder)) {
                    Ok(root) => return in_root(&folder, &root, &request, input),
                    Err(error) if Instant::now() >= deadline => return Err(containers::explain(error)),
                    // It has ended just now, which is noted soon.
                    Err(_) => {}
                }
            }
            isolation => {
                // Nobody starts it meanwhile. Whoever did before this is seen in the next round.
                if let Some(_held) = try_hold(&folder)? {
                    return match isolation {
                        Isolation::Container => in_container_at_rest(global, &folder, &request, input),
                        Isolation::Vm => Err(at_rest(&folder)),
                    };
                }
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Notes what is done with its files, in docker's words.
fn tell(folder: &Folder, request: &Request) {
    let path = |path: &[u8]| [("path", String::from_utf8_lossy(path).into_owned())];
    match request {
        Request::Get { path: from, .. } => folder.tell("archive-path", &path(from)),
        Request::Put { path: to, .. } => folder.tell("extract-to-dir", &path(to)),
        Request::Export => folder.tell("export", &[]),
        Request::Stat(_) | Request::Changes | Request::Apply => {}
    }
}

fn at_rest(folder: &Folder) -> Failure {
    let Description { name, wanted, .. } = folder.description();
    let (who, hint) = match wanted.isolation {
        Isolation::Vm => ("a machine wrote", format!("strata start {name}")),
        Isolation::Container => ("a container wrote to memory", NO_OVERLAY_HINT.to_owned()),
    };
    let text = format!("files of {name}: what {who} is gone when it has ended, and this one does not run");
    Failure::new(text).exit(Exit::Workload(AT_REST)).hint(hint)
}

fn is_up(folder: &Folder) -> Outcome<bool> {
    Ok(matches!(workloads::state(folder)?.status, Status::Running | Status::Paused))
}

/// Standard input, decompressed by a thread of its own.
fn decompress() -> Outcome<OwnedFd> {
    let act = || "read the archive".to_owned();
    let (read, mut write) = io::pipe().while_trying(act)?;
    let copy = move || {
        let copied =
            image::decompress(io::stdin().lock()).and_then(|mut from| io::copy(&mut from, &mut write));
        if let Err(error) = copied
            && error.kind() != io::ErrorKind::BrokenPipe
        {
            // No archive: whoever reads it says so.
            tracing::warn!("read the archive: {error}");
            let _ = write.write_all(b"\xff");
        }
    };
    std::thread::Builder::new().name("archive".into()).spawn(copy).while_trying(act)?;
    Ok(read.into())
}

/// The agent does it, in the guest.
fn in_machine(folder: &Folder, request: &Request, input: BorrowedFd<'_>) -> Outcome {
    let words = request.to_words().into_iter().map(String::from_utf8);
    let words: Result<Vec<String>, _> = words.collect();
    let words = words.while_trying(|| format!("files of {}", folder.description().name))?;
    let words = std::iter::once("files".to_owned()).chain(words).collect();
    let (stdout, stderr) = (io::stdout(), io::stderr());
    let mut fds = vec![stdout.as_fd(), stderr.as_fd()];
    fds.extend(request.reads().then_some(input));
    start_agent(folder, words, &fds).map(Exit::Workload)
}

/// Starts the agent's program once more, with these streams; gives its exit code.
fn start_agent(folder: &Folder, words: Vec<String>, fds: &[BorrowedFd<'_>]) -> Outcome<u8> {
    let act = || format!("ask the guest of {}", folder.description().name);
    let exec = Exec {
        key: exec::new_key(),
        command: std::iter::once(AGENT.to_owned()).chain(words).collect(),
        env: Vec::new(),
        workdir: "/".to_owned(),
        user: String::new(),
        terminal: None,
        stdin: fds.len() > 2,
        detach: false,
    };
    let mut client = Client::connect(folder).while_trying(act)?;
    match client.ask(&workload::control::Request::Exec(exec), fds).while_trying(act)? {
        Answer::Exited { code } => Ok(code),
        Answer::NotStarted { reason, .. } => Err(Failure::new(format!("{}: {reason}", act()))),
        other => Err(Failure::new(format!("{}: {other:?}", act()))),
    }
}

/// What the agent's program of a machine that runs says to a word, as far as it is text.
///
/// # Errors
/// It does not run, or does not know.
pub fn ask_agent(folder: &Folder, word: &str) -> Outcome<String> {
    let act = || format!("ask the guest of {}", folder.description().name);
    let (mut read, write) = io::pipe().while_trying(act)?;
    let null = File::options().write(true).open("/dev/null").while_trying(act)?;
    let hear = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // The guest is hostile: what is more is nobody's list.
        let _ = (&mut read).take(MAX_ANSWER_BYTES).read_to_end(&mut bytes);
        bytes
    });
    let code = start_agent(folder, vec![word.to_owned()], &[write.as_fd(), null.as_fd()]);
    drop(write);
    let bytes = hear.join().unwrap_or_default();
    match code? {
        0 => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        code => Err(Failure::new(format!("{}: it ended with {code}", act()))),
    }
}

/// Bytes that a workload has written to its image's root: those of a container, for what a machine writes is not kept.
pub fn written(folder: &Folder) -> Option<u64> {
    fn below(folder: &Path) -> u64 {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries
            .map(|entry| match entry.metadata() {
                Ok(meta) if meta.is_dir() => below(&entry.path()),
                Ok(meta) if meta.is_file() => meta.len(),
                _ => 0,
            })
            .sum()
    }
    let upper = upper_of(folder).join("upper");
    (folder.description().wanted.isolation == Isolation::Container).then(|| below(&upper))
}

fn in_root(folder: &Folder, root: &OwnedFd, request: &Request, input: BorrowedFd<'_>) -> Outcome {
    if matches!(request, Request::Changes) && is_overlay(&upper_of(folder)) {
        let name = &folder.description().name;
        let text = format!("changes of {name}: the store is on an overlay, and what it writes in memory");
        return Err(Failure::new(text).hint(NO_OVERLAY_HINT));
    }
    let upper = || File::open(upper_of(folder).join("upper")).ok().map(OwnedFd::from);
    let user = |name: &str| container::user(root.as_fd(), name).ok().map(|user| (user.uid, user.gid));
    let roots = Roots { root: root.as_fd(), upper: &upper, user: &user };
    let stdout = io::stdout();
    request.run(&roots, input, stdout.as_fd()).map_err(|error| {
        let text = error.line(|errno| io::Error::from(errno).to_string());
        Failure::new(text).exit(Exit::Workload(error.code()))
    })?;
    Ok(Exit::Success)
}

fn in_container_at_rest(
    global: &Global,
    folder: &Folder,
    request: &Request,
    input: BorrowedFd<'_>,
) -> Outcome {
    containers::check_rights()?;
    let options: super::run::Options = serde_json::from_value(folder.description().wanted.options.clone())
        .while_trying(|| format!("read how {} was started", folder.description().name))?;
    if request.reads() && options.is_read_only() {
        let text = "container rootfs is marked read-only";
        return Err(Failure::new(text).exit(Exit::Workload(READ_ONLY)));
    }
    let store = store::open(global)?;
    let (lower, digest) = super::run::root_file(&store, &options)?;
    let Upper::Folder(upper) = make_upper(folder, &digest)? else { return Err(at_rest(folder)) };
    let scratch = upper.join("mount");
    std::fs::create_dir_all(&scratch).while_trying(|| format!("make {}", scratch.display()))?;
    let (file, fs_type) = (lower.path().to_owned(), lower.fstype().to_owned());
    let root = Root::Image { file, fs_type, below: Vec::new(), upper: Upper::Folder(upper) };
    // What is seen of volumes belongs to paths, and not to the root's own files.
    let sees_volumes = matches!(request, Request::Stat(_) | Request::Get { .. } | Request::Put { .. });
    let settled = if sees_volumes { Some(options.settle_files(&store)?) } else { None };
    let seen = settled.as_ref().map(|settled| settled.volumes.as_slice()).unwrap_or_default();
    let (more, held) = (volumes::mounts(seen), volumes::held(seen)?);
    let root = container::rest::mount_with(&root, &scratch, &more, &held).map_err(containers::explain)?;
    in_root(folder, &root, request, input)
}

/// Where what a container writes is kept.
fn upper_of(folder: &Folder) -> PathBuf {
    folder.path().join("files")
}

/// Makes the place where what a container writes to the root of `image` is kept: with the workload, as long as it is there.
///
/// # Errors
/// What is kept was written to another image's root, or the store cannot be written.
pub fn make_upper(folder: &Folder, image: &image::Digest) -> Outcome<Upper> {
    let path = upper_of(folder);
    let act = || format!("make {}", path.display());
    match std::fs::create_dir(&path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error).while_trying(act),
        _ => {}
    }
    if is_overlay(&path) {
        return Ok(Upper::Memory);
    }
    let note = path.join("image");
    let noted = std::fs::read_to_string(&note).unwrap_or_default();
    if noted != image.to_string() {
        let is_written =
            std::fs::read_dir(path.join("upper")).is_ok_and(|mut entries| entries.next().is_some());
        if is_written {
            let Description { name, wanted, .. } = folder.description();
            let text =
                format!("files of {name}: {} is another image than when they were written", wanted.image);
            return Err(
                Failure::new(text).hint(format!("strata image tag {noted} NAME, or strata rm {name}"))
            );
        }
        std::fs::write(&note, image.to_string()).while_trying(|| format!("write {}", note.display()))?;
    }
    Ok(Upper::Folder(path))
}

/// Held by whoever runs a workload, or has its files mounted while it does not run.
fn lock_of(folder: &Folder) -> Outcome<File> {
    let path = folder.path().join("files.lock");
    let opened = File::options().create(true).truncate(false).write(true).open(&path);
    opened.while_trying(|| format!("open {}", path.display()))
}

fn try_hold(folder: &Folder) -> Outcome<Option<File>> {
    let file = lock_of(folder)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(std::fs::TryLockError::WouldBlock) => Ok(None),
        Err(std::fs::TryLockError::Error(error)) => Err(error).while_trying(|| "lock the files".to_owned()),
    }
}

/// Waits until nobody has the files of a workload mounted, and keeps it so while the file lives.
///
/// # Errors
/// The store cannot be written.
pub fn hold(folder: &Folder) -> Outcome<File> {
    let file = lock_of(folder)?;
    file.lock().while_trying(|| "lock the files".to_owned())?;
    Ok(file)
}
