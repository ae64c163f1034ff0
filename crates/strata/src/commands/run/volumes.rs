//! Folders and files of this host that a command sees (`--volume`): what the flags say, and the process that serves them to a
//! machine.

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Component, Path, PathBuf};
use std::process::Stdio;

use fuse::link::{self, Client};
use fuse::server::{Access, Descriptors, Export, Owner, Server};
use image::kernels::KernelBundle;
use sandbox::Violation;

use crate::exit::Exit;
use crate::failure::{Failure, Outcome, While};

/// The module without which a guest finds no folders.
pub const MODULE: &str = "virtiofs";
/// What the server says when it is ready; anything else is why it is not.
const READY: &[u8] = b"ready";

/// What of this host the command sees.
#[derive(Clone, Debug, Default, clap::Args, serde::Serialize, serde::Deserialize)]
#[command(next_help_heading = "Files")]
pub struct Flags {
    /// Show the command a folder or file of this host, which it may change, or with :ro not; HOST begins with / or ./ (also -v HOST:PATH)
    #[arg(long, value_name = "HOST:PATH[:ro]", value_parser = check)]
    pub(super) volume: Vec<String>,
}

/// A folder or file of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Where it is here.
    pub source: PathBuf,
    /// Where the command sees it.
    pub target: String,
    /// Whether the command cannot change it.
    pub read_only: bool,
}

fn check(text: &str) -> Result<String, String> {
    parse(text).map(|_| text.to_owned())
}

/// Understands one `HOST:PATH[:ro]`.
fn parse(text: &str) -> Result<Volume, String> {
    let wrong = || format!("{text:?} is not HOST:PATH[:ro|rw]");
    let (rest, read_only) = match text.rsplit_once(':') {
        Some((rest, "ro")) => (rest, true),
        Some((rest, "rw")) => (rest, false),
        _ => (text, false),
    };
    let (source, target) = rest.rsplit_once(':').ok_or_else(wrong)?;
    if !(source.starts_with('/') || source.starts_with("./") || source == ".") {
        // A plain name will be a volume that has one.
        return Err(format!("{source:?} is not a path: it begins with neither / nor ./"));
    }
    let parts: Vec<_> = Path::new(target).components().collect();
    let is_plain = matches!(parts[..], [Component::RootDir, _, ..])
        && parts[1..].iter().all(|part| matches!(part, Component::Normal(_)));
    if !is_plain {
        return Err(format!("{target:?} is not an absolute path below / without .."));
    }
    let names: Vec<_> = parts[1..].iter().map(|part| part.as_os_str().to_string_lossy()).collect();
    Ok(Volume { source: source.into(), target: format!("/{}", names.join("/")), read_only })
}

impl Flags {
    /// What the flags say, those whose place may lie in another's after that; two in one place are an error.
    ///
    /// # Errors
    /// One of them is not as it should be, or not there.
    pub fn volumes(&self) -> Outcome<Vec<Volume>> {
        let bad = |text: String| Failure::new(text).exit(Exit::Usage);
        let mut volumes = Vec::new();
        for text in &self.volume {
            let mut volume = parse(text).map_err(|text| bad(format!("--volume: {text}")))?;
            let found = std::fs::canonicalize(&volume.source);
            volume.source = found.while_trying(|| format!("show the command {}", volume.source.display()))?;
            volumes.push(volume);
        }
        volumes.sort_by_key(|volume| Path::new(&volume.target).components().count());
        for (index, volume) in volumes.iter().enumerate() {
            if volumes[..index].iter().any(|other| other.target == volume.target) {
                return Err(bad(format!("--volume: two are to be at {}", volume.target)));
            }
        }
        Ok(volumes)
    }

    /// The same, wherever the process that reads them later has its working folder.
    ///
    /// # Errors
    /// As [`Self::volumes`].
    pub fn anywhere(&self) -> Outcome<Flags> {
        let text = |volume: Volume| {
            let access = if volume.read_only { "ro" } else { "rw" };
            format!("{}:{}:{access}", volume.source.display(), volume.target)
        };
        Ok(Flags { volume: self.volumes()?.into_iter().map(text).collect() })
    }
}

/// What a container's bundle has of them. Links of the host are resolved: what is mounted is what was checked.
pub fn mounts(volumes: &[Volume]) -> Vec<container::spec::Mount> {
    let mount = |volume: &Volume| {
        let access = if volume.read_only { "rro" } else { "rw" };
        let options = format!("rbind,rprivate,nosuid,nodev,{access}");
        container::template::mount(&volume.target, "bind", &volume.source.to_string_lossy(), &options)
    };
    volumes.iter().map(mount).collect()
}

/// Whether `kernel` has what a guest needs for them.
///
/// # Errors
/// It came without the driver.
pub fn check_kernel(kernel: &KernelBundle) -> Outcome<()> {
    if kernel.info().absent.iter().any(|module| module == MODULE) {
        let text = format!("--volume: kernel {} came without {MODULE}", kernel.info().id);
        return Err(Failure::new(text).hint("strata kernel fetch brings one that has it"));
    }
    Ok(())
}

/// What the agent is told of them.
pub fn of_guest(volumes: &[Volume]) -> Vec<protocol::Volume> {
    let told =
        |volume: &Volume| protocol::Volume { target: volume.target.clone(), read_only: volume.read_only };
    volumes.iter().map(told).collect()
}

/// Starts the process that serves them, if there are any, and waits until it is confined. It ends with this one.
///
/// # Errors
/// It cannot be started, or something is not there.
pub fn serve(volumes: &[Volume], is_confined: bool) -> Outcome<Option<Client>> {
    if volumes.is_empty() {
        return Ok(None);
    }
    let act = || "serve the folders of --volume".to_owned();
    let (mut client, theirs) = link::pair().map_err(std::io::Error::from).while_trying(act)?;
    let program = std::env::current_exe().while_trying(|| "find this program".to_owned())?;
    let mut command = std::process::Command::new(program);
    command.arg("serve-folders");
    if !is_confined {
        command.arg("--no-sandbox");
    }
    command.arg("--");
    for volume in volumes {
        command.arg(if volume.read_only { "ro" } else { "rw" }).arg(&volume.source);
    }
    // Keys of a terminal are not for it: it goes when the machine has gone.
    command.stdin(Stdio::from(theirs)).stdout(Stdio::null()).process_group(0);
    command.spawn().while_trying(act)?;
    // The command has its copy of the other end until now; without it an end of the server is heard.
    drop(command);
    let answer = client.wait().map_err(std::io::Error::from).while_trying(act)?;
    if answer.bytes == READY {
        return Ok(Some(client));
    }
    Err(Failure::because(act(), String::from_utf8_lossy(answer.bytes).into_owned()))
}

/// Serves folders to a machine, on the socket that is standard input: for `strata run` itself.
#[derive(clap::Args)]
pub struct ServeOptions {
    /// Keep all privileges and system calls
    #[arg(long)]
    no_sandbox: bool,
    /// For each `ro` or `rw`, and its path
    #[arg(required = true)]
    folders: Vec<OsString>,
}

/// Serves until the machine's process is gone.
///
/// # Errors
/// A folder is not there, or the host refuses the sandbox.
pub fn run(options: &ServeOptions) -> Outcome {
    let socket = std::io::stdin();
    let mut server = match open(options) {
        Ok(server) => server,
        Err(failure) => {
            let _ = link::say(socket.as_fd(), failure.to_string().as_bytes());
            return Err(failure);
        }
    };
    let said = link::say(socket.as_fd(), READY).and_then(|()| link::serve(socket.as_fd(), &mut server));
    said.map_err(std::io::Error::from).while_trying(|| "serve folders".to_owned())?;
    Ok(Exit::Success)
}

fn open(options: &ServeOptions) -> Outcome<Server> {
    let accesses = options
        .folders
        .chunks(2)
        .map(|pair| if pair[0] == "ro" { Access::ReadOnly } else { Access::ReadWrite });
    let accesses: Vec<_> = accesses.collect();
    let paths: Vec<_> = options.folders.chunks(2).filter_map(|pair| pair.get(1)).map(PathBuf::from).collect();
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    let owner = if uid.is_root() { Owner::AsTheGuestSays } else { Owner::Always(uid.as_raw(), gid.as_raw()) };
    let (files, descriptors) = if options.no_sandbox {
        let files = paths.iter().map(fuse::server::open_path).collect::<Result<_, _>>();
        let files = files.map_err(std::io::Error::from).while_trying(|| "open folders".to_owned())?;
        let descriptors = Descriptors::new().map_err(std::io::Error::from);
        (files, descriptors.while_trying(|| "open /proc/self/fd".to_owned())?)
    } else {
        let changing = accesses.contains(&Access::ReadWrite);
        let left = sandbox::confine_server(&paths, changing, say)
            .map_err(|error| Failure::because("confine the server of folders", error))?;
        (left.files, Descriptors { folder: left.descriptors, prefix: "" })
    };
    let exports = files
        .into_iter()
        .zip(accesses)
        .map(|(file, access): (std::os::fd::OwnedFd, _)| Export { file, access });
    Ok(Server::new(exports.collect(), owner, descriptors))
}

/// In a signal handler: no allocation, no waiting.
fn say(violation: &Violation) -> i32 {
    let name = violation.name.unwrap_or("?").as_bytes();
    let stderr = rustix::stdio::stderr();
    for part in [b"strata: server of folders: system call ", name, b" is not allowed\n"] {
        let _ = rustix::io::write(stderr, part);
    }
    i32::from(Exit::Strata.code())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_a_path_here_and_one_there() {
        let volume = |source: &str, target: &str, read_only| {
            Ok(Volume { source: source.into(), target: target.to_owned(), read_only })
        };
        assert_eq!(parse("/a:/b"), volume("/a", "/b", false));
        assert_eq!(parse("./a/x:/b//c/:ro"), volume("./a/x", "/b/c", true));
        assert_eq!(parse(".:/b:rw"), volume(".", "/b", false));
        assert_eq!(parse("/with:colon:/b"), volume("/with:colon", "/b", false));
    }

    #[test]
    fn what_is_no_volume_is_refused() {
        for text in ["/a", "a:/b", "/a:b", "/a:/", "/a:/b/../c", "/a:", ":/b", "/a:/b:wx", "../a:/b"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
