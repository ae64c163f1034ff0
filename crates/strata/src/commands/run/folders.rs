//! The process that serves folders of this host to a machine.

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Stdio;

use fuse::link::{self, Client};
use fuse::server::{Access, Descriptors, Export, Owner, Server};
use image::kernels::KernelBundle;
use sandbox::Violation;

use super::volumes::Volume;
use crate::exit::Exit;
use crate::failure::{Failure, Outcome, While};

/// The module without which a guest finds no folders.
pub const MODULE: &str = "virtiofs";
/// What the server says when it is ready; anything else is why it is not.
const READY: &[u8] = b"ready";

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

/// Starts the process that serves them, if there are any, and waits until it is confined. It ends with this one.
///
/// # Errors
/// It cannot be started, or something is not there.
pub fn serve(volumes: &[Volume], is_confined: bool) -> Outcome<Option<Client>> {
    let folders: Vec<_> =
        volumes.iter().filter_map(|volume| Some((volume.folder()?, volume.read_only))).collect();
    if folders.is_empty() {
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
    for (folder, read_only) in folders {
        command.arg(if read_only { "ro" } else { "rw" }).arg(folder);
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
