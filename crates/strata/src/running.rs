//! Running workloads that have a name: a socket each in `running/` of the store, on which a snapshot can be asked for.
//!
//! A request is one line, `1 snapshot` or `1 snapshot stop`, with two empty files for state and memory (SCM_RIGHTS); the answer
//! is one line, `ok MILLISECONDS` or `error WHY`. The process that runs the machine can open nothing; it makes its socket before
//! that. Only the owner reaches the folder. A socket that nobody listens on is what a workload left that has ended.

use std::fs::{self, DirBuilder, File};
use std::io::{self, BufRead, BufReader, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use machine::snapshot::PageMap;
use machine::workload::{Control, Saving};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

use crate::failure::{Failure, Outcome, While};

/// Longer than any request.
const LINE_BYTES: usize = 64;
/// How long a client may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(5);

/// A name that this process has.
pub struct Named {
    listener: UnixListener,
    pages: Arc<PageMap>,
    build: String,
}

fn socket(root: &Path, name: &str) -> PathBuf {
    root.join("running").join(name)
}

/// Whether `text` can be the name of a workload.
///
/// # Errors
/// What it may consist of.
pub fn parse_name(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if text.is_empty() || text.len() > 40 || text.starts_with(['.', '-']) || !text.chars().all(fits) {
        return Err("a name is at most 40 letters, digits, -, _ and .".to_owned());
    }
    Ok(text.to_owned())
}

/// Takes `name` for what this process is about to run.
///
/// # Errors
/// A workload that runs has it.
pub fn claim(root: &Path, name: &str) -> Outcome<Named> {
    let act = || format!("name the workload {name:?}");
    let path = socket(root, name);
    let folder = root.join("running");
    match DirBuilder::new().mode(0o700).create(&folder) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error).while_trying(act),
        _ => {}
    }
    // Two that take the same name at the same moment: one waits.
    let lock = File::options().create(true).truncate(false).write(true).open(folder.join(".lock"));
    let lock = lock.while_trying(act)?;
    lock.lock().while_trying(act)?;
    match UnixStream::connect(&path) {
        Ok(_) => return Err(Failure::new(format!("{}: a workload that runs has this name", act()))),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            fs::remove_file(&path).while_trying(act)?;
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error).while_trying(act),
    }
    let listener = UnixListener::bind(&path).while_trying(act)?;
    Ok(Named { listener, pages: Arc::new(PageMap::open()), build: crate::commands::run::template::build() })
}

impl Named {
    /// Answers, on a thread of its own, until the process ends.
    ///
    /// # Errors
    /// The host has no thread.
    pub fn serve(self, control: Control) -> Outcome<()> {
        let serve = move || {
            for client in self.listener.incoming() {
                let Ok(client) = client else { return };
                let answer = match self.answer(&client, &control) {
                    Ok(paused) => format!("ok {}\n", paused.as_millis()),
                    Err(why) => format!("error {}\n", why.replace('\n', " ")),
                };
                let _ = (&client).write_all(answer.as_bytes());
            }
        };
        let thread = std::thread::Builder::new().name("control".to_owned()).spawn(serve);
        thread.map(drop).while_trying(|| "answer requests".to_owned())
    }

    fn answer(&self, client: &UnixStream, control: &Control) -> Result<Duration, String> {
        let text = |error: io::Error| error.to_string();
        client.set_read_timeout(Some(PATIENCE)).map_err(text)?;
        client.set_write_timeout(Some(PATIENCE)).map_err(text)?;
        let (line, files) = receive(client).map_err(text)?;
        let stop = match line.as_slice() {
            b"1 snapshot\n" => false,
            b"1 snapshot stop\n" => true,
            _ => return Err("a request this version does not know".to_owned()),
        };
        let [state, ram] = <[File; 2]>::try_from(files).map_err(|_| "a snapshot goes to two files")?;
        let (done, saved) = channel();
        let (pages, build) = (self.pages.clone(), self.build.clone());
        control.save(Saving { state, ram, pages, build, stop, done });
        saved.recv().unwrap_or_else(|_| Err("the command has ended".to_owned()))
    }
}

fn receive(client: &UnixStream) -> io::Result<(Vec<u8>, Vec<File>)> {
    let mut bytes = [0; LINE_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received =
        recvmsg(client, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let mut files = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            files.extend(fds.map(File::from));
        }
    }
    Ok((bytes[..received.bytes].to_vec(), files))
}

/// Asks the workload `name` for a snapshot to `state` and `ram`. How long it stood still, in milliseconds.
///
/// # Errors
/// There is none, or it could not be saved.
pub fn snapshot(root: &Path, name: &str, state: &File, ram: &File, stop: bool) -> Outcome<u64> {
    let act = || format!("snapshot {name:?}");
    let client = match UnixStream::connect(socket(root, name)) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
            let failure = Failure::new(format!("{}: no workload of this name runs", act()));
            return Err(failure.hint("strata run --name NAME gives a workload a name"));
        }
        client => client.while_trying(act)?,
    };
    let line: &[u8] = if stop { b"1 snapshot stop\n" } else { b"1 snapshot\n" };
    let files = [state.as_fd(), ram.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&files));
    let sent = sendmsg(&client, &[IoSlice::new(line)], &mut ancillary, SendFlags::NOSIGNAL);
    sent.map_err(io::Error::from).while_trying(act)?;
    let mut answer = String::new();
    BufReader::new(client.take(1 << 16)).read_line(&mut answer).while_trying(act)?;
    match answer.trim_end().split_once(' ') {
        Some(("ok", ms)) => Ok(ms.parse().unwrap_or_default()),
        Some(("error", why)) => Err(Failure::new(format!("{}: {why}", act()))),
        _ => Err(Failure::new(format!("{}: the workload ended meanwhile", act()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_workloads_at_a_time() {
        let root = tempfile::tempdir().unwrap();
        let first = claim(root.path(), "web").unwrap();
        assert!(claim(root.path(), "web").is_err());
        drop(first);
        assert!(claim(root.path(), "web").is_ok());
    }

    #[test]
    fn names_are_no_paths() {
        assert!(["web", "a.b-c_1"].iter().all(|name| parse_name(name).is_ok()));
        let long = "x".repeat(41);
        assert!(["", ".", "..", "a/b", "-x", &long].iter().all(|name| parse_name(name).is_err()));
    }
}
