//! `strata cp`: files between this host and a workload.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use archive::{Overwrite, Owner, Request, Roots, Stat};
use clap::Args;

use super::workloads;
use crate::cli::Global;
use crate::exit::Exit;
use crate::failure::{Failure, Outcome, While};
use crate::store;

/// Type bits of a mode, and two of their values.
const TYPE: u32 = 0o170_000;
const FOLDER: u32 = 0o040_000;
const LINK: u32 = 0o120_000;
/// The exit code for what is not there.
const NOT_FOUND: i32 = 2;

/// Copy files and folders between this host and a workload
///
/// One of both is NAME:PATH, the other a path of this host or - for a tar archive on a standard stream. A folder that is there
/// gets the copy in it; SRC/. are the contents of a folder. The workload may run or not.
#[derive(Args)]
pub struct Options {
    /// Keep users and groups; without this files become root's in the workload, and yours here
    #[arg(short, long)]
    archive: bool,
    /// Copy what a link leads to, if SRC is one
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// NAME:PATH, or a path of this host
    #[arg(value_name = "SRC")]
    from: String,
    /// A path of this host, or NAME:PATH
    #[arg(value_name = "DST")]
    to: String,
}

/// One end of a copy.
enum End<'a> {
    Workload { name: &'a str, path: &'a str },
    Here(&'a str),
    Stream,
}

impl<'a> End<'a> {
    fn parse(text: &'a str) -> End<'a> {
        match text.split_once(':') {
            _ if text == "-" => End::Stream,
            _ if text.starts_with(['/', '.']) => End::Here(text),
            Some((name, path)) if !name.is_empty() => End::Workload { name, path },
            _ => End::Here(text),
        }
    }
}

/// A file system that files are taken from or put into.
trait Side: Sync {
    /// What lies at a path, if anything does.
    fn stat(&self, path: &[u8]) -> Outcome<Option<Stat>>;
    /// Does it, with an archive that comes or goes.
    fn act(&self, request: &Request, stream: OwnedFd) -> Outcome<()>;
}

/// Copies.
///
/// # Errors
/// Something is not there, cannot be read or written, or would take the place of something else.
pub fn run(global: &Global, options: &Options) -> Outcome {
    let wrong = |text: &str| Err(Failure::new(format!("cp: {text}")).exit(Exit::Usage));
    let owner = |is_here: bool| match (options.archive, is_here) {
        (true, _) => Owner::Archive,
        (false, true) => {
            let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
            Owner::User(format!("{uid}:{gid}"))
        }
        (false, false) => Owner::User("0:0".to_owned()),
    };
    let there = |name: &str| Workload::open(global, name);
    let stdin =
        || io::stdin().as_fd().try_clone_to_owned().while_trying(|| "cp: read the archive".to_owned());
    let stdout =
        || io::stdout().as_fd().try_clone_to_owned().while_trying(|| "cp: write the archive".to_owned());
    match (End::parse(&options.from), End::parse(&options.to)) {
        (End::Workload { name, path }, End::Here(to)) => {
            let (from, to) = (there(name)?, absolute(to)?);
            copy((&from, path.as_bytes()), (&Here, &to), options.follow_link, owner(true))?;
        }
        (End::Here(from), End::Workload { name, path }) => {
            let (from, to) = (absolute(from)?, there(name)?);
            copy((&Here, &from), (&to, path.as_bytes()), options.follow_link, owner(false))?;
        }
        (End::Workload { name, path }, End::Stream) => {
            let side = there(name)?;
            let path = source(&side, path.as_bytes(), options.follow_link)?.0;
            side.act(&Request::Get { path, name: None }, stdout()?)?;
        }
        (End::Stream, End::Workload { name, path }) => {
            let request = Request::Put {
                path: path.as_bytes().to_vec(),
                overwrite: Overwrite::SameKind,
                owner: if options.archive { Owner::Archive } else { owner(false) },
            };
            there(name)?.act(&request, stdin()?)?;
        }
        (End::Workload { .. }, End::Workload { .. }) => {
            return wrong("from one workload to another: copy to a folder here, and from there");
        }
        _ => return wrong("one of SRC and DST is NAME:PATH"),
    }
    Ok(Exit::Success)
}

/// What is copied: its path, with links followed if that is wanted, and what it is.
fn source(side: &dyn Side, path: &[u8], follow: bool) -> Outcome<(Vec<u8>, Stat)> {
    let missing = || Failure::new(format!("cp: {}: there is no such file", String::from_utf8_lossy(path)));
    let stat = side.stat(path)?.ok_or_else(missing)?;
    if follow && stat.mode & TYPE == LINK {
        let target = side.stat(&stat.link)?.ok_or_else(missing)?;
        return Ok((stat.link, target));
    }
    Ok((path.to_vec(), stat))
}

/// Which folder gets what, and under which name: as `docker cp` has it.
fn copy(
    (from, from_path): (&dyn Side, &[u8]),
    (to, to_path): (&dyn Side, &[u8]),
    follow: bool,
    owner: Owner,
) -> Outcome<()> {
    let shown = String::from_utf8_lossy(to_path).into_owned();
    let (path, stat) = source(from, from_path, follow)?;
    let is_folder = stat.mode & TYPE == FOLDER;
    let base =
        |path: &[u8]| path.split(|byte| *byte == b'/').rfind(|part| !part.is_empty()).map(<[u8]>::to_vec);
    let mut target = to.stat(to_path)?;
    let mut to_path = to_path.to_vec();
    if let Some(link) = target.as_ref().filter(|target| target.mode & TYPE == LINK) {
        to_path.clone_from(&link.link);
        target = to.stat(&to_path)?;
    }
    let (folder, name) = match target {
        Some(target) if target.mode & TYPE == FOLDER => {
            let contents = path == b"." || path.ends_with(b"/.");
            // What a link is called counts, not what it leads to.
            let own = if contents { b".".to_vec() } else { base(from_path).unwrap_or_else(|| b".".to_vec()) };
            (to_path, own)
        }
        Some(_) if is_folder => {
            return Err(Failure::new(format!(
                "cp: {shown}: it is no folder, and a folder was to be copied there"
            )));
        }
        None if !is_folder && to_path.ends_with(b"/") => {
            return Err(Failure::new(format!("cp: {shown}: there is no such folder")));
        }
        _ => {
            let name = base(&to_path).ok_or_else(|| Failure::new(format!("cp: {shown}: it has no name")))?;
            let above = Path::new(std::ffi::OsStr::from_bytes(&to_path)).parent();
            let above = above.map_or_else(|| b"/".to_vec(), |above| above.as_os_str().as_bytes().to_vec());
            (if above.is_empty() { b"/".to_vec() } else { above }, name)
        }
    };
    let (read, write) = io::pipe().while_trying(|| "cp: make a pipe".to_owned())?;
    let get = Request::Get { path, name: Some(name) };
    let put = Request::Put { path: folder, overwrite: Overwrite::SameKind, owner };
    std::thread::scope(|scope| {
        let putting = scope.spawn(|| to.act(&put, read.into()).map_err(|failure| failure.to_string()));
        let got = from.act(&get, write.into());
        let put = putting.join().unwrap_or_else(|_| Err("the copy ended early".to_owned()));
        // A reader that failed is why the writer did.
        put.map_err(|reason| Failure::new(format!("cp: {reason}"))).and(got)
    })
}

/// A path of this host from its root on; what its end says stays.
fn absolute(path: &str) -> Outcome<Vec<u8>> {
    let full = std::path::absolute(path).while_trying(|| format!("cp: {path}"))?;
    let mut bytes = full.into_os_string().into_vec();
    if (path.ends_with("/.") || path == ".") && !bytes.ends_with(b"/.") {
        bytes.extend_from_slice(b"/.");
    }
    Ok(bytes)
}

/// This host.
struct Here;

impl Here {
    fn ask(&self, request: &Request, input: &OwnedFd, output: &OwnedFd) -> Result<(), archive::Error> {
        let root = File::open("/").map_err(|_| archive::Error {
            act: "open",
            path: "/".to_owned(),
            cause: archive::Cause::Os(rustix::io::Errno::ACCESS),
        })?;
        let user = |text: &str| {
            let (uid, gid) = text.split_once(':')?;
            Some((uid.parse().ok()?, gid.parse().ok()?))
        };
        let roots = Roots { root: root.as_fd(), upper: &|| None, user: &user };
        request.run(&roots, input.as_fd(), output.as_fd())
    }
}

fn told(error: &archive::Error) -> Failure {
    Failure::new(error.line(|errno| io::Error::from(errno).to_string()))
}

impl Side for Here {
    fn stat(&self, path: &[u8]) -> Outcome<Option<Stat>> {
        let act = || "cp: make a pipe".to_owned();
        let (mut read, write) = io::pipe().while_trying(act)?;
        let null = File::open("/dev/null").while_trying(act)?.into();
        // It is one small piece: the pipe holds it.
        match self.ask(&Request::Stat(path.to_vec()), &null, &OwnedFd::from(write)) {
            Ok(()) => {}
            Err(error) if i32::from(error.code()) == NOT_FOUND => return Ok(None),
            Err(error) => return Err(told(&error)),
        }
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut read, &mut bytes).while_trying(act)?;
        Ok(Stat::parse(&bytes))
    }

    fn act(&self, request: &Request, stream: OwnedFd) -> Outcome<()> {
        self.ask(request, &stream, &stream).map_err(|error| told(&error))
    }
}

/// A workload, reached by this program once more.
struct Workload {
    root: PathBuf,
    id: String,
}

impl Workload {
    fn open(global: &Global, name: &str) -> Outcome<Workload> {
        let id = workloads::find(global, name)?.description().id.clone();
        Ok(Workload { root: store::root(global)?, id })
    }

    fn command(&self, request: &Request) -> Outcome<Command> {
        let mut command = store::again(&self.root, 0)?;
        command.args(["files", &self.id, "--"]);
        command.args(request.to_words().into_iter().map(std::ffi::OsString::from_vec));
        Ok(command)
    }

    /// Runs it; what it says of an error is the error. Its exit code otherwise.
    fn finish(&self, command: &mut Command) -> Outcome<(i32, Vec<u8>)> {
        let output =
            command.stderr(Stdio::piped()).output().while_trying(|| "cp: start this program".to_owned())?;
        match output.status.code() {
            Some(code @ (0 | NOT_FOUND)) => Ok((code, if code == 0 { output.stdout } else { output.stderr })),
            _ => Err(Failure::new(said(&output.stderr))),
        }
    }
}

/// Does something with the files of a workload, with an archive that comes or goes.
///
/// # Errors
/// There is no such workload, or it says why not.
pub fn ask(global: &Global, workload: &str, request: &Request, stream: OwnedFd) -> Outcome<()> {
    Workload::open(global, workload)?.act(request, stream)
}

/// What this program said about its failure.
pub fn said(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let line = text.lines().find(|line| !line.starts_with("  next:")).unwrap_or("it ended early");
    crate::output::visible(line.strip_prefix("strata: ").unwrap_or(line))
}

impl Side for Workload {
    fn stat(&self, path: &[u8]) -> Outcome<Option<Stat>> {
        let mut command = self.command(&Request::Stat(path.to_vec()))?;
        let (code, bytes) = self.finish(command.stdin(Stdio::null()))?;
        Ok(Some(bytes).filter(|_| code == 0).and_then(|bytes| Stat::parse(&bytes)))
    }

    fn act(&self, request: &Request, stream: OwnedFd) -> Outcome<()> {
        let mut command = self.command(request)?;
        if request.reads() {
            command.stdin(stream);
        } else {
            command.stdin(Stdio::null()).stdout(stream);
        }
        // What is piped out is nobody's to collect here.
        let child =
            command.stderr(Stdio::piped()).spawn().while_trying(|| "cp: start this program".to_owned())?;
        // It holds copies of the stream, which has to end with the child.
        drop(command);
        let output = child.wait_with_output().while_trying(|| "cp: wait for this program".to_owned())?;
        if output.status.success() { Ok(()) } else { Err(Failure::new(said(&output.stderr))) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told_apart_as_docker_does() {
        let kind = |text: &str| match End::parse(text) {
            End::Workload { name, path } => format!("{name} has {path}"),
            End::Here(path) => path.to_owned(),
            End::Stream => "stream".to_owned(),
        };
        assert_eq!(kind("web:/etc"), "web has /etc");
        assert_eq!(kind("web:etc:x"), "web has etc:x");
        for here in ["/a:b", "./a:b", "a", ":a"] {
            assert_eq!(kind(here), here);
        }
        assert_eq!(kind("-"), "stream");
        assert!(absolute("/a/.").unwrap().ends_with(b"/a/.") && absolute("/a").unwrap().ends_with(b"/a"));
    }
}
