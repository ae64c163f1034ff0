//! A minimal root of the host's distribution, made by the host's own package manager: mmdebstrap, or debootstrap.
//!
//! The packages come from where the host's packages come from: the files under `/etc/apt` are handed on. mmdebstrap writes a
//! tar to its standard output, which becomes a layer as it comes; nothing is unpacked here. As another user than root it
//! works in a user name space, where the host allows those; debootstrap needs root.

use std::collections::VecDeque;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;

use rustix::fs::{StatVfsMountFlags, statvfs};

use crate::archive::Made;
use crate::error::{Error, Result};
use crate::files::TempFolder;
use crate::image::Image;
use crate::progress::Progress;
use crate::reference::Reference;
use crate::store::Store;

/// Lines of a tool's standard error that are kept for the message when it fails.
const TAIL_LINES: usize = 12;
/// Left out of every root: nobody reads manuals in a machine that lives for a command.
const EXCLUDED: [&str; 5] = [
    "/usr/share/man/*",
    "/usr/share/info/*",
    "/usr/share/doc/*",
    "/usr/share/locale/*",
    "/usr/share/lintian/*",
];

/// What to make a root of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bootstrap {
    /// The release, e.g. `bookworm`; the host's own when `None`.
    pub suite: Option<String>,
    /// Packages beyond the minimal set.
    pub packages: Vec<String>,
}

impl Store {
    /// Makes an image named `name` of a minimal distribution root.
    ///
    /// # Errors
    /// No tool is installed, it does not succeed (its own words are in the error), or the store cannot be written.
    pub fn bootstrap(&self, name: &Reference, what: &Bootstrap, progress: &dyn Progress) -> Result<Image> {
        let host = OsRelease::read(Path::new("/etc/os-release"))?;
        let suite = match &what.suite {
            Some(suite) => suite.clone(),
            None => host.suite()?,
        };
        for word in what.packages.iter().chain([&suite]) {
            check_word(word)?;
        }
        // A day's resolution: two roots made on one day from the same packages are equal.
        let now = crate::archive::source_date();
        let day = if std::env::var_os("SOURCE_DATE_EPOCH").is_some() { now } else { now - now % 86400 };
        let words: Vec<&str> =
            [suite.as_str()].into_iter().chain(what.packages.iter().map(String::as_str)).collect();
        let mut made = Made::now(format!("bootstrap {}", words.join(" ")), &["/bin/bash"]);
        made.created_s = day;
        let sources = sources_for(&suite, &host, Path::new("/etc/apt"));
        if find_program("mmdebstrap").is_some() {
            let mut command = with_own_mounts("mmdebstrap")?;
            mmdebstrap_args(&mut command, &suite, &what.packages, &sources, day);
            let work = self.work_folder()?;
            command.envs(work.iter().map(|folder| ("TMPDIR", folder.path())));
            progress.step(&format!("make a root of {suite} with mmdebstrap"));
            return self.import_from(command, "mmdebstrap", name, &made, progress);
        }
        if find_program("debootstrap").is_some() {
            return self.debootstrap(name, &suite, &what.packages, &sources, &made, progress);
        }
        Err(Error::NoTool { act: "bootstrap", program: "mmdebstrap", package: "mmdebstrap" })
    }

    /// Where root's mmdebstrap works: what it leaves when it is killed goes with the store's other unfinished things. None
    /// where nothing could be executed there, and for other users, whose name space may not reach the store.
    fn work_folder(&self) -> Result<Option<TempFolder>> {
        let folder = self.scratch.folder()?;
        let flags = statvfs(folder.path()).map(|stat| stat.f_flag).unwrap_or(StatVfsMountFlags::NOEXEC);
        let is_fit = !flags.intersects(StatVfsMountFlags::NOEXEC | StatVfsMountFlags::NODEV);
        Ok((rustix::process::geteuid().is_root() && is_fit).then_some(folder))
    }

    fn debootstrap(
        &self,
        name: &Reference,
        suite: &str,
        packages: &[String],
        sources: &[String],
        made: &Made,
        progress: &dyn Progress,
    ) -> Result<Image> {
        let folder = self.scratch.folder()?;
        let root = folder.path().join("root");
        let mut command = with_own_mounts("debootstrap")?;
        command.arg("--variant=minbase");
        if !packages.is_empty() {
            command.arg(format!("--include={}", packages.join(",")));
        }
        command.arg(suite).arg(&root);
        // debootstrap takes one mirror and no files.
        if let Some(uri) = sources.iter().find_map(|line| line.split(' ').find(|word| word.contains("://"))) {
            command.arg(uri);
        } else if let Some(source) = host_source(Path::new("/etc/apt"), suite) {
            command.arg(source.uri);
        }
        progress.step(&format!("make a root of {suite} with debootstrap"));
        run(command, "debootstrap", progress)?;
        let mut command = with_death_signal("tar");
        command.args(["--numeric-owner", "--sort=name", "--xattrs", "--one-file-system", "--format=pax"]);
        command.arg("--clamp-mtime").arg(format!("--mtime=@{}", made.created_s));
        command.args([
            "--exclude=./var/cache/apt/*",
            "--exclude=./var/lib/apt/lists/*",
            "--exclude=./var/log/*.log",
        ]);
        command.args(EXCLUDED.map(|path| format!("--exclude=.{path}")));
        command.arg("-C").arg(&root).args(["-c", "."]);
        self.import_from(command, "tar", name, made, progress)
    }

    /// Makes an image of the tar that `command` writes to its standard output.
    fn import_from(
        &self,
        mut command: Command,
        program: &str,
        name: &Reference,
        made: &Made,
        progress: &dyn Progress,
    ) -> Result<Image> {
        let mut child = spawn(&mut command, program)?;
        let stdout = child.stdout.take().expect("its output is a pipe");
        let stderr = child.stderr.take().expect("its errors are a pipe");
        thread::scope(|scope| {
            let tail = scope.spawn(move || follow(stderr, progress));
            let then = |stored: std::result::Result<(), &Error>| {
                let ended = end(&mut child, program, || tail.join().unwrap_or_default());
                match stored {
                    // Our own trouble made it fail, not the other way round.
                    Err(e) if !matches!(e, Error::Archive { .. }) => Ok(()),
                    _ => ended,
                }
            };
            self.import_stream(stdout, 0, &format!("output of {program}"), name, made, then, progress)
        })
    }
}

/// Runs a tool to its end.
pub(crate) fn run(mut command: Command, program: &str, progress: &dyn Progress) -> Result<Vec<u8>> {
    let mut child = spawn(&mut command, program)?;
    let stdout = child.stdout.take().expect("its output is a pipe");
    let stderr = child.stderr.take().expect("its errors are a pipe");
    thread::scope(|scope| {
        let tail = scope.spawn(move || follow(stderr, progress));
        let mut out = Vec::new();
        let read = stdout.take(16 << 20).read_to_end(&mut out);
        end(&mut child, program, || tail.join().unwrap_or_default())?;
        read.map_err(Error::file("read the output of", program))?;
        Ok(out)
    })
}

fn spawn(command: &mut Command, program: &str) -> Result<Child> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).env("LC_ALL", "C.UTF-8");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command.spawn().map_err(Error::file("run", program))
}

fn end(child: &mut Child, program: &str, tail: impl FnOnce() -> String) -> Result<()> {
    let status = child.wait().map_err(Error::file("wait for", program))?;
    let message = tail();
    if status.success() {
        return Ok(());
    }
    Err(Error::Tool { program: program.to_string(), outcome: status.to_string(), message })
}

/// Tells each line of a tool's standard error as a step; gives what matters of the last ones.
fn follow(stderr: impl Read, progress: &dyn Progress) -> String {
    let mut tail = VecDeque::new();
    for line in BufReader::new(stderr.take(64 << 20)).split(b'\n') {
        let Ok(line) = line else { break };
        let line = String::from_utf8_lossy(&line).trim().chars().take(300).collect::<String>();
        let text = line.strip_prefix("I: ").unwrap_or(&line);
        if text.is_empty() || text == "done" {
            continue;
        }
        progress.step(text);
        if tail.len() == TAIL_LINES {
            tail.pop_front();
        }
        tail.push_back(line);
    }
    let errors: Vec<&String> = tail.iter().filter(|line| line.starts_with("E:")).collect();
    match errors.split_first() {
        // The others follow from it.
        Some((first, [])) => (*first).clone(),
        Some((first, others)) => format!("{first} (and {} errors after it)", others.len()),
        None => tail.into_iter().collect::<Vec<_>>().join("; "),
    }
}

/// Runs the program of its arguments; when told to end, tells all of its group, and lets them clean up behind them.
const KEEPER: &str = r#"trap 'trap "" TERM; kill -TERM 0; wait; exit 143' TERM; "$@" & wait $!"#;

/// The program, in a group of its own that is told to end when this process does, also by `kill -9`.
pub(crate) fn with_death_signal(program: &str) -> Command {
    if find_program("setpriv").is_none() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", "--", "sh", "-c", KEEPER, "sh", program]);
    command.process_group(0);
    command
}

/// As `with_death_signal`, and as root with mounts of its own: these tools mount the host's `/proc`, `/sys` and `/dev` in the
/// root they make. If one of them dies, no such mount is left for somebody to delete through.
fn with_own_mounts(program: &'static str) -> Result<Command> {
    if !rustix::process::geteuid().is_root() {
        // mmdebstrap makes a name space itself.
        return Ok(with_death_signal(program));
    }
    let tool = Error::NoTool { act: "bootstrap", program: "unshare", package: "util-linux" };
    find_program("unshare").ok_or(tool)?;
    let mut command = with_death_signal("unshare");
    command.args(["--mount", "--propagation", "private", "--", program]);
    Ok(command)
}

/// Where a program lies, in `PATH` or in the folders of the administrator.
pub(crate) fn find_program(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let admin = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(admin).map(|dir| dir.join(program)).find(|path| path.is_file())
}

fn mmdebstrap_args(command: &mut Command, suite: &str, packages: &[String], sources: &[String], day: u64) {
    command.args(["--variant=minbase", "--format=tar"]);
    if !packages.is_empty() {
        command.arg(format!("--include={}", packages.join(",")));
    }
    command.arg("--aptopt=Acquire::Languages \"none\";");
    for option in apt_options() {
        command.arg(format!("--aptopt={option}"));
    }
    command.args(EXCLUDED.map(|path| format!("--dpkgopt=path-exclude={path}")));
    command.arg("--dpkgopt=path-include=/usr/share/doc/*/copyright");
    command.arg("--dpkgopt=path-include=/usr/share/locale/locale.alias");
    command.env("SOURCE_DATE_EPOCH", day.to_string());
    command.arg(suite).arg("-").args(sources);
}

/// How the host's apt reaches its mirrors: proxies, checks of dates, retries.
fn apt_options() -> Vec<String> {
    let dump = Command::new("apt-config").arg("dump").stderr(Stdio::null()).output();
    let text = dump.map(|out| String::from_utf8_lossy(&out.stdout).into_owned()).unwrap_or_default();
    let wanted =
        ["Acquire::http::", "Acquire::https::", "Acquire::Check-", "Acquire::Retries", "Acquire::Force"];
    // Indexed lists (`a::b::`) and empty values say nothing.
    let keep = |line: &&str| {
        wanted.iter().any(|prefix| line.starts_with(prefix))
            && !line.contains(":: ")
            && !line.ends_with(" \"\";")
    };
    text.lines().filter(keep).map(str::to_string).collect()
}

/// Suites and packages become words of a command line of another program.
pub(crate) fn check_word(word: &str) -> Result<()> {
    let ok = |b: u8| {
        b.is_ascii_alphanumeric() || matches!(b, b'.' | b'+' | b'-' | b':' | b'_' | b'/' | b'=' | b'~')
    };
    if word.is_empty() || word.starts_with(['-', '.', '/']) || !word.bytes().all(ok) {
        return Err(Error::invalid(format!("{word:?}"), "not the name of a package or suite"));
    }
    Ok(())
}

/// `/etc/os-release` (os-release(5)).
struct OsRelease {
    codename: Option<String>,
}

impl OsRelease {
    fn read(path: &Path) -> Result<OsRelease> {
        let text = fs::read_to_string(path).map_err(Error::file("read", path))?;
        let field = |key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
            line.map(|value| value.trim_matches(['"', '\'']).to_string()).filter(|value| !value.is_empty())
        };
        Ok(OsRelease { codename: field("VERSION_CODENAME") })
    }

    fn suite(&self) -> Result<String> {
        self.codename.clone().ok_or_else(|| {
            Error::invalid("/etc/os-release", "it names no release (VERSION_CODENAME): give a suite")
        })
    }
}

/// What to give mmdebstrap as mirrors: the host's files for the host's release, else its first source with another suite.
fn sources_for(suite: &str, host: &OsRelease, etc_apt: &Path) -> Vec<String> {
    let files = source_files(etc_apt);
    if host.codename.as_deref() == Some(suite) && !files.is_empty() {
        return files.iter().map(|file| file.display().to_string()).collect();
    }
    let own = host.codename.as_deref().unwrap_or_default();
    let Some(source) = host_source(etc_apt, own) else { return Vec::new() };
    let signed = source.signed_by.map_or(String::new(), |key| format!("[signed-by={key}] "));
    vec![format!("deb {signed}{} {suite} {}", source.uri, source.components)]
}

fn source_files(etc_apt: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = Vec::new();
    let list = etc_apt.join("sources.list");
    if fs::read_to_string(&list)
        .is_ok_and(|text| text.lines().any(|line| line.trim_start().starts_with("deb ")))
    {
        files.push(list);
    }
    let entries = fs::read_dir(etc_apt.join("sources.list.d")).into_iter().flatten().flatten();
    let mut parts: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    parts.retain(|path| path.extension().is_some_and(|ext| ext == "list" || ext == "sources"));
    parts.sort();
    files.extend(parts);
    files
}

#[derive(Debug, PartialEq, Eq)]
struct Source {
    uri: String,
    components: String,
    signed_by: Option<String>,
}

/// The first source of the host that has `suite`.
fn host_source(etc_apt: &Path, suite: &str) -> Option<Source> {
    source_files(etc_apt).iter().find_map(|file| {
        let text = fs::read_to_string(file).ok()?;
        if file.extension().is_some_and(|ext| ext == "sources") {
            text.split("\n\n").find_map(|stanza| stanza_source(stanza, suite))
        } else {
            text.lines().find_map(|line| line_source(line, suite))
        }
    })
}

/// A stanza of deb822 style (sources.list(5)).
fn stanza_source(stanza: &str, suite: &str) -> Option<Source> {
    let field =
        |key: &str| stanza.lines().find_map(|line| Some(line.strip_prefix(key)?.strip_prefix(':')?.trim()));
    let has =
        |key: &str, word: &str| field(key).is_some_and(|value| value.split_whitespace().any(|w| w == word));
    if !has("Types", "deb") || !has("Suites", suite) || field("Enabled") == Some("no") {
        return None;
    }
    Some(Source {
        uri: field("URIs")?.split_whitespace().next()?.to_string(),
        components: field("Components")?.to_string(),
        signed_by: field("Signed-By").filter(|key| key.starts_with('/')).map(str::to_string),
    })
}

/// A line of one-line style.
fn line_source(line: &str, suite: &str) -> Option<Source> {
    let mut rest = line.trim().strip_prefix("deb ")?.trim_start();
    let mut signed_by = None;
    if let Some(options) = rest.strip_prefix('[') {
        let (options, after) = options.split_once(']')?;
        signed_by = options.split_whitespace().find_map(|o| o.strip_prefix("signed-by=")).map(str::to_string);
        rest = after;
    }
    let mut words = rest.split_whitespace();
    let uri = words.next()?.to_string();
    if words.next()? != suite {
        return None;
    }
    Some(Source { uri, components: words.collect::<Vec<_>>().join(" "), signed_by })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_styles_of_sources_are_read() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sources.list.d")).unwrap();
        fs::write(dir.path().join("sources.list"), "# deb nothing\n").unwrap();
        let stanza = "Types: deb\nURIs: http://a.example/debian\nSuites: one one-updates\nComponents: main x\nSigned-By: /k.gpg\n";
        fs::write(dir.path().join("sources.list.d/a.sources"), stanza).unwrap();
        let line = "deb-src http://no.example one main\ndeb [arch=amd64 signed-by=/l.gpg] http://b.example two main\n";
        fs::write(dir.path().join("sources.list.d/b.list"), line).unwrap();
        fs::write(dir.path().join("sources.list.d/c.disabled"), "deb http://c.example three main").unwrap();
        let source = host_source(dir.path(), "one").unwrap();
        assert_eq!((source.uri.as_str(), source.components.as_str()), ("http://a.example/debian", "main x"));
        assert_eq!(host_source(dir.path(), "two").unwrap().signed_by.as_deref(), Some("/l.gpg"));
        assert_eq!(host_source(dir.path(), "three"), None);
        let host = OsRelease { codename: Some("one".into()) };
        assert_eq!(sources_for("one", &host, dir.path()).len(), 2);
        let other = sources_for("new", &host, dir.path());
        assert_eq!(other, ["deb [signed-by=/k.gpg] http://a.example/debian new main x"]);
    }

    #[test]
    fn words_that_would_be_options_are_refused() {
        assert!(check_word("python3-minimal").is_ok() && check_word("libc6:amd64").is_ok());
        for word in ["", "-o", "--hook=x", "a b", "a,b", "a;b", "/etc/passwd", "$(x)"] {
            assert!(check_word(word).is_err(), "{word:?} passed");
        }
    }

    #[test]
    fn a_tool_that_fails_is_quoted() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo 'I: working' >&2; echo 'E: no such suite' >&2; exit 3"]);
        let error = run(command, "sh", &crate::NoProgress).unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.contains("E: no such suite"), "{error}");
    }

    #[test]
    #[ignore = "a part of the next test"]
    fn starts_a_tool() {
        if let Some(mark) = crate::testing::child_value() {
            let mut command = with_death_signal("sh");
            command.args(["-c", "sleep 1000 & echo $! > \"$0\"; wait", &mark]);
            let _ = run(command, "sh", &crate::NoProgress);
        }
    }

    #[test]
    fn a_tool_does_not_outlive_us() {
        if find_program("setpriv").is_none() {
            println!("skipped: setpriv is not installed");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let mark = dir.path().join("mark");
        let mut child = crate::testing::child("bootstrap::tests::starts_a_tool", mark.to_str().unwrap());
        let wait_for = |what: &dyn Fn() -> bool| {
            (0..600).any(|_| what() || (thread::sleep(std::time::Duration::from_millis(50)), false).1)
        };
        assert!(wait_for(&|| fs::read_to_string(&mark).is_ok_and(|text| text.ends_with('\n'))));
        let pid = fs::read_to_string(&mark).unwrap().trim().to_string();
        let alive =
            || fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
        assert!(alive());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(wait_for(&|| !alive()), "the tool is still there");
    }
}
