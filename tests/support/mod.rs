//! Running the program and looking at what it did.

pub mod bundle;
pub mod chromium;
pub mod docker_registry;
pub mod elf;
#[expect(dead_code, reason = "the tests of the crate `registry` use the rest of it")]
pub mod fake_registry;
pub mod guest;
pub mod pty;
pub mod server;
pub mod starts;

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A machine that has not ended by then hangs. Generous: an interpreted guest on a busy host is slow.
pub const PATIENCE: Duration = Duration::from_secs(400);

/// The program, with no store of its own.
pub fn strata() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_strata"));
    command.env_remove("STRATA_ROOT").env_remove("NO_COLOR").stdin(Stdio::null());
    command
}

/// The folder with kernel and image, or a line that says why the test is skipped.
pub fn assets() -> Option<PathBuf> {
    let folder = std::env::var_os("STRATA_TEST_ASSETS").map(PathBuf::from).filter(|folder| folder.is_dir());
    if folder.is_none() {
        println!("skipped: STRATA_TEST_ASSETS is not set; run `make assets`");
    }
    folder
}

/// What a store needs of the kernel and the image.
const KERNEL_AND_IMAGE: [&str; 4] = ["blobs", "kernels", "index.json", "oci-layout"];

/// Makes a store at `to` with the kernel and the image, and nothing that was made of them; false if there is no space.
pub fn copy_kernel_and_image(assets: &Path, to: &Path) -> bool {
    std::fs::create_dir(to).unwrap();
    copy_parts(&KERNEL_AND_IMAGE, assets, to)
}

fn copy_parts(names: &[&str], assets: &Path, to: &Path) -> bool {
    let parts = names.iter().map(|name| assets.join("store").join(name)).filter(|part| part.exists());
    Command::new("cp").arg("-a").args(parts).arg(to).status().unwrap().success()
}

/// Makes a store at `to` with the kernel and the image, and what was made of them. Workloads, volumes and networks of tests that run beside do not come along:
/// whoever takes them for its own ends them.
pub fn copy_store(to: &Path) -> Option<()> {
    let assets = assets()?;
    assert!(copy_kernel_and_image(&assets, to));
    // What is made when it is needed may be in the making.
    let _ = copy_parts(&["roots", "templates", "kvm-is-of-no-use"], &assets, to);
    Some(())
}

/// The program on the store with kernel and image.
pub fn with_assets() -> Option<Command> {
    let folder = assets()?;
    let mut command = strata();
    command.env("STRATA_ROOT", folder.join("store"));
    Some(command)
}

/// `strata run ARGUMENTS`, or nothing if there are no assets. Guests start as `STRATA_TEST_START` says, unless `ARGUMENTS` do.
pub fn run(arguments: &[&str]) -> Option<Command> {
    if let Some(start) = starts::Start::of_environment() {
        return start.run(arguments);
    }
    run_itself(arguments)
}

/// The same, where the way to the command is what is looked at.
pub fn run_itself(arguments: &[&str]) -> Option<Command> {
    let mut command = with_assets()?;
    command.arg("run").args(arguments);
    Some(command)
}

/// How guests in the background start where a test does not care.
pub fn start_flags() -> impl Iterator<Item = String> {
    let start = starts::Start::of_environment();
    start.into_iter().flat_map(starts::Start::flags).map(str::to_owned)
}

/// What a program left.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    /// The exit code; a panic that shows everything if a signal ended the program.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| panic!("ended by a signal: {self:?}"))
    }

    /// Fails unless the program ended with `code` and said each of `words` on one line of standard error.
    pub fn expect_failure(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code(), code, "{self:?}");
        // Steps of what was tried stand above it.
        let line = self.stderr.lines().rfind(|line| line.starts_with("strata: ")).unwrap_or_default();
        for word in words {
            assert!(line.contains(word), "no {word:?} in {line:?} of {self:?}");
        }
        assert!(!self.stderr.contains("panicked at"), "{self:?}");
    }
}

/// A program that runs, its output gathered.
pub struct Running {
    pub child: Child,
    stdout: Gathered,
    stderr: Gathered,
}

type Gathered = (std::sync::Arc<std::sync::Mutex<Vec<u8>>>, JoinHandle<()>);

fn gather(mut from: impl Read + Send + 'static) -> Gathered {
    let bytes = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let to = bytes.clone();
    let thread = std::thread::spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            to.lock().unwrap().extend_from_slice(&buffer[..count]);
        }
    });
    (bytes, thread)
}

fn text(of: &Gathered) -> String {
    String::from_utf8_lossy(&of.0.lock().unwrap()).into_owned()
}

/// Starts `command`.
pub fn start(mut command: Command) -> Running {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let stdout = gather(child.stdout.take().unwrap());
    let stderr = gather(child.stderr.take().unwrap());
    Running { child, stdout, stderr }
}

impl Running {
    /// Waits until standard output holds `mark`.
    pub fn wait_for(&mut self, mark: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !text(&self.stdout).contains(mark) {
            let ended = self.child.try_wait().unwrap();
            if ended.is_some() || Instant::now() > deadline {
                let _ = self.child.kill();
                panic!("no {mark:?}; ended: {ended:?}\n{}\n{}", text(&self.stdout), text(&self.stderr));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Sends a signal by its name.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Waits for the end.
    pub fn finish(mut self) -> Ended {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > deadline {
                let _ = self.child.kill();
                panic!("does not end\n{}\n{}", text(&self.stdout), text(&self.stderr));
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        self.stdout.1.join().unwrap();
        self.stderr.1.join().unwrap();
        let string =
            |of: &std::sync::Mutex<Vec<u8>>| String::from_utf8_lossy(&of.lock().unwrap()).into_owned();
        Ended { status, stdout: string(&self.stdout.0), stderr: string(&self.stderr.0) }
    }
}

/// Runs `command` to its end.
pub fn finish(command: Command) -> Ended {
    start(command).finish()
}

/// Runs `command` with `input` on its standard input; gives what it wrote, as bytes, and its end.
pub fn feed(mut command: Command, input: Vec<u8>) -> (Vec<u8>, ExitStatus) {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let mut output = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut output).unwrap();
    let _ = writer.join().unwrap();
    (output, child.wait().unwrap())
}

/// Bytes that neither repeat soon nor compress, the same each time.
pub fn noise(count: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut bytes = Vec::with_capacity(count + 8);
    while bytes.len() < count {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(count);
    bytes
}

/// A file of `bytes` in `folder`.
pub fn file(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}
