//! What host and agent say to each other on the control connection.
//!
//! Kinds are numbered apart for each direction and never used again. A later message (volumes to
//! mount before `Start`) takes the next number.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use crate::Error;
use crate::frame::Message;
use crate::identity::{Identity, Renew};
use crate::network::Network;
use crate::volume::{self, Volume};
use crate::wire::{Decoder, Encoder};

/// From the host to the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HostMessage {
    /// Mount the root and start the first process in it. Once in a machine's life.
    Start(Start),
    /// Start a further process beside the first, after [`HostMessage::Start`] succeeded.
    Exec(Process),
    /// Send a signal to a process, or, if it has a terminal, to its foreground process group.
    Signal {
        /// The process, by the host's id.
        exec: u32,
        /// The signal's number on Linux x86.
        number: u8,
    },
    /// The size of a process's terminal changed.
    Resize {
        /// The process, by the host's id.
        exec: u32,
        /// The new size.
        size: WinSize,
    },
    /// End a process's stdin now, dropping what the process has not been given yet. The orderly end,
    /// after all input, is to shut down the sending half of the stream connection instead.
    CloseStdin {
        /// The process, by the host's id.
        exec: u32,
    },
    /// Kill what still runs, write everything back, power off. Losing the control connection means the same.
    Shutdown,
    /// This machine is a copy of one that was saved: what the copies must not share becomes this one's own. Before
    /// [`HostMessage::Start`], which names it.
    Renew(Renew),
    /// What else is this machine's own: applied at once, or, before [`HostMessage::Start`], when the root is there.
    Identify(Identity),
    /// Give the machine's network card its addresses. Before [`HostMessage::Start`], whose root it completes, or to a machine that
    /// goes on elsewhere.
    Network(Network),
    /// Show the processes these of the host. Before [`HostMessage::Start`], whose root they complete.
    Volumes(Vec<Volume>),
}

/// What [`HostMessage::Start`] carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// The file system the processes see as `/`.
    pub root: Root,
    /// The machine's name; empty leaves the kernel's.
    pub hostname: String,
    /// What `/etc/hosts` says beside what the image says: whole lines.
    pub hosts: String,
    /// The first process.
    pub process: Process,
}

/// Where the root file system comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Root {
    /// The initramfs itself: the processes see the agent's own root.
    Initramfs,
    /// A block device.
    Device {
        /// Its node, e.g. `/dev/vda`.
        device: String,
        /// The file system on it, by the kernel's name: `squashfs`, `erofs`, `ext4`.
        fs_type: String,
        /// What becomes of writes.
        writable: Writable,
    },
}

/// What becomes of writes to the root file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writable {
    /// They fail: everything is read-only.
    No,
    /// They reach the device.
    Device,
    /// They go to a tmpfs laid over the read-only device, and are gone with the machine.
    Overlay {
        /// The most the tmpfs may hold, in bytes; 0 is the kernel's default, half of the RAM.
        size_bytes: u64,
    },
}

/// A process to start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Process {
    /// The id the host gives it and uses from then on. One may not be used twice.
    pub exec: u32,
    /// The command and its arguments; the command is looked for in the `PATH` of `env` unless it has a slash.
    pub argv: Vec<String>,
    /// `NAME=value` each. `PATH`, `HOME`, `HOSTNAME` and, on a terminal, `TERM` are added where absent.
    pub env: Vec<String>,
    /// The working directory, made if absent; empty is `/`.
    pub cwd: String,
    /// As in an OCI image: empty (root), `user`, `uid`, `user:group`, `uid:gid`, and mixed.
    pub user: String,
    /// The size of the terminal to run it on; without one it gets pipes.
    pub tty: Option<WinSize>,
    /// Whether it gets an stdin; if not it reads end-of-file (`/dev/null`).
    pub stdin: bool,
}

/// The size of a terminal, in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WinSize {
    /// Lines.
    pub rows: u16,
    /// Columns.
    pub cols: u16,
}

/// From the agent to the host. Every text in it was written by the guest: show it through
/// [`fmt::Display`], which makes control characters visible.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AgentMessage {
    /// The first message: the guest is up, nothing is mounted.
    Ready(Ready),
    /// A process runs.
    Started {
        /// The process, by the host's id.
        exec: u32,
        /// Its process id in the guest.
        pid: u32,
    },
    /// A process ended. All its output was sent before; read its streams to their end.
    Exited {
        /// The process, by the host's id.
        exec: u32,
        /// How.
        exit: Exit,
    },
    /// A process did not start.
    Failed(Failure),
    /// Something worth a line.
    Log(Log),
}

/// What [`AgentMessage::Ready`] carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ready {
    /// The agent's [`VERSION`](crate::VERSION): give it to [`check_version`](crate::check_version).
    /// It stays the first field in every version.
    pub version: u16,
    /// The kernel's release, as `uname -r` says it.
    pub kernel: String,
    /// The modules that could not be loaded.
    pub failed_modules: Vec<ModuleFailure>,
}

/// A kernel module that could not be loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModuleFailure {
    /// Its file's name.
    pub name: String,
    /// Why.
    pub cause: String,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It returned this code.
    Code(u8),
    /// This signal killed it.
    Signal(u8),
}

impl Exit {
    /// The code a shell reports: its own, or 128 + the signal.
    #[must_use]
    pub fn shell_code(self) -> u8 {
        match self {
            Exit::Code(code) => code,
            Exit::Signal(number) => number.saturating_add(128),
        }
    }
}

/// Why a process did not start: the act, its object, and the cause, to be shown as one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The process, by the host's id.
    pub exec: u32,
    /// The exit code for it: 127 when the command does not exist, 126 when it can't be executed, 125 otherwise.
    pub code: u8,
    /// What was being done, e.g. "mount root".
    pub act: String,
    /// To what, e.g. "/dev/vda"; may be empty.
    pub object: String,
    /// Why it did not work, e.g. "No such file or directory".
    pub cause: String,
}

impl Failure {
    /// The code of a failure that is neither 126 nor 127.
    pub const OTHER: u8 = 125;
    /// The code for a command that exists and can't be executed.
    pub const NOT_EXECUTABLE: u8 = 126;
    /// The code for a command that doesn't exist.
    pub const NOT_FOUND: u8 = 127;
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        printable(&self.act, f)?;
        if !self.object.is_empty() {
            f.write_str(" ")?;
            printable(&self.object, f)?;
        }
        f.write_str(": ")?;
        printable(&self.cause, f)
    }
}

impl fmt::Display for ModuleFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("load module ")?;
        printable(&self.name, f)?;
        f.write_str(": ")?;
        printable(&self.cause, f)
    }
}

/// How much a [`Log`] matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Of interest to who looks into something.
    Debug,
    /// Not an error, yet not what was asked for either.
    Warning,
    /// Something did not work.
    Error,
}

/// A line for the host's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// How much it matters.
    pub level: Level,
    /// The line, without a newline.
    pub text: String,
}

impl fmt::Display for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        printable(&self.text, f)
    }
}

/// Writes text of the guest so that it can't drive the host's terminal.
fn printable(text: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    text.chars().try_for_each(|c| {
        if c.is_control() { write!(f, "{}", c.escape_default()) } else { fmt::Write::write_char(f, c) }
    })
}

impl Message for HostMessage {
    /// Room for arguments and environment as large as Linux takes them.
    const MAX_LEN: u32 = 4 << 20;

    fn encode(&self, to: &mut Encoder) -> u8 {
        match self {
            HostMessage::Start(start) => {
                encode_root(&start.root, to);
                to.string(&start.hostname);
                to.string(&start.hosts);
                encode_process(&start.process, to);
                1
            }
            HostMessage::Exec(process) => {
                encode_process(process, to);
                2
            }
            HostMessage::Signal { exec, number } => {
                to.u32(*exec);
                to.u8(*number);
                3
            }
            HostMessage::Resize { exec, size } => {
                to.u32(*exec);
                encode_size(*size, to);
                4
            }
            HostMessage::CloseStdin { exec } => {
                to.u32(*exec);
                5
            }
            HostMessage::Shutdown => 6,
            HostMessage::Renew(renew) => {
                renew.encode(to);
                7
            }
            HostMessage::Identify(identity) => {
                identity.encode(to);
                8
            }
            HostMessage::Network(network) => {
                network.encode(to);
                9
            }
            HostMessage::Volumes(volumes) => {
                volume::encode(volumes, to);
                10
            }
        }
    }

    fn decode_fields(kind: u8, from: &mut Decoder<'_>) -> Result<Self, Error> {
        Ok(match kind {
            1 => HostMessage::Start(Start {
                root: decode_root(from)?,
                hostname: from.string("hostname")?,
                hosts: from.string("hosts")?,
                process: decode_process(from)?,
            }),
            2 => HostMessage::Exec(decode_process(from)?),
            3 => HostMessage::Signal { exec: from.u32("exec")?, number: from.u8("number")? },
            4 => HostMessage::Resize { exec: from.u32("exec")?, size: decode_size(from)? },
            5 => HostMessage::CloseStdin { exec: from.u32("exec")? },
            6 => HostMessage::Shutdown,
            7 => HostMessage::Renew(Renew::decode(from)?),
            8 => HostMessage::Identify(Identity::decode(from)?),
            9 => HostMessage::Network(Network::decode(from)?),
            10 => HostMessage::Volumes(volume::decode(from)?),
            _ => return Err(Error::UnknownKind(kind)),
        })
    }
}

impl Message for AgentMessage {
    const MAX_LEN: u32 = 64 << 10;

    fn encode(&self, to: &mut Encoder) -> u8 {
        match self {
            AgentMessage::Ready(ready) => {
                to.u16(ready.version);
                to.string(&ready.kernel);
                to.count(ready.failed_modules.len());
                for module in &ready.failed_modules {
                    to.string(&module.name);
                    to.string(&module.cause);
                }
                1
            }
            AgentMessage::Started { exec, pid } => {
                to.u32(*exec);
                to.u32(*pid);
                2
            }
            AgentMessage::Exited { exec, exit } => {
                to.u32(*exec);
                let (choice, number) = match exit {
                    Exit::Code(code) => (0, *code),
                    Exit::Signal(number) => (1, *number),
                };
                to.u8(choice);
                to.u8(number);
                3
            }
            AgentMessage::Failed(failure) => {
                to.u32(failure.exec);
                to.u8(failure.code);
                to.string(&failure.act);
                to.string(&failure.object);
                to.string(&failure.cause);
                4
            }
            AgentMessage::Log(log) => {
                to.u8(log.level as u8);
                to.string(&log.text);
                5
            }
        }
    }

    fn decode_fields(kind: u8, from: &mut Decoder<'_>) -> Result<Self, Error> {
        Ok(match kind {
            1 => AgentMessage::Ready(decode_ready(from)?),
            2 => AgentMessage::Started { exec: from.u32("exec")?, pid: from.u32("pid")? },
            3 => AgentMessage::Exited { exec: from.u32("exec")?, exit: decode_exit(from)? },
            4 => AgentMessage::Failed(Failure {
                exec: from.u32("exec")?,
                code: from.u8("code")?,
                act: from.string("act")?,
                object: from.string("object")?,
                cause: from.string("cause")?,
            }),
            5 => AgentMessage::Log(Log { level: decode_level(from)?, text: from.string("text")? }),
            _ => return Err(Error::UnknownKind(kind)),
        })
    }
}

fn no_choice<T>(field: &'static str) -> Result<T, Error> {
    Err(Error::Malformed { field, fault: "no such choice" })
}

/// Another version's fields are not ours to read: such a message decodes to its version alone, so
/// that the host can say which it was.
fn decode_ready(from: &mut Decoder<'_>) -> Result<Ready, Error> {
    let version = from.u16("version")?;
    if version != crate::VERSION {
        from.skip_rest();
        return Ok(Ready { version, kernel: String::new(), failed_modules: Vec::new() });
    }
    let kernel = from.string("kernel")?;
    let failed_modules = from.list("failed_modules", |d| {
        Ok(ModuleFailure { name: d.string("module name")?, cause: d.string("module cause")? })
    })?;
    Ok(Ready { version, kernel, failed_modules })
}

fn decode_exit(from: &mut Decoder<'_>) -> Result<Exit, Error> {
    let choice = from.u8("exit")?;
    let number = from.u8("exit number")?;
    match choice {
        0 => Ok(Exit::Code(number)),
        1 => Ok(Exit::Signal(number)),
        _ => no_choice("exit"),
    }
}

fn decode_level(from: &mut Decoder<'_>) -> Result<Level, Error> {
    match from.u8("level")? {
        0 => Ok(Level::Debug),
        1 => Ok(Level::Warning),
        2 => Ok(Level::Error),
        _ => no_choice("level"),
    }
}

fn encode_size(size: WinSize, to: &mut Encoder) {
    to.u16(size.rows);
    to.u16(size.cols);
}

fn decode_size(from: &mut Decoder<'_>) -> Result<WinSize, Error> {
    Ok(WinSize { rows: from.u16("rows")?, cols: from.u16("cols")? })
}

fn encode_process(process: &Process, to: &mut Encoder) {
    let Process { exec, argv, env, cwd, user, tty, stdin } = process;
    to.u32(*exec);
    to.strings(argv);
    to.strings(env);
    to.string(cwd);
    to.string(user);
    to.bool(tty.is_some());
    if let Some(size) = tty {
        encode_size(*size, to);
    }
    to.bool(*stdin);
}

fn decode_process(from: &mut Decoder<'_>) -> Result<Process, Error> {
    Ok(Process {
        exec: from.u32("exec")?,
        argv: from.strings("argv")?,
        env: from.strings("env")?,
        cwd: from.string("cwd")?,
        user: from.string("user")?,
        tty: if from.bool("tty")? { Some(decode_size(from)?) } else { None },
        stdin: from.bool("stdin")?,
    })
}

fn encode_root(root: &Root, to: &mut Encoder) {
    match root {
        Root::Initramfs => to.u8(0),
        Root::Device { device, fs_type, writable } => {
            to.u8(1);
            to.string(device);
            to.string(fs_type);
            match writable {
                Writable::No => to.u8(0),
                Writable::Device => to.u8(1),
                Writable::Overlay { size_bytes } => {
                    to.u8(2);
                    to.u64(*size_bytes);
                }
            }
        }
    }
}

fn decode_root(from: &mut Decoder<'_>) -> Result<Root, Error> {
    match from.u8("root")? {
        0 => Ok(Root::Initramfs),
        1 => Ok(Root::Device {
            device: from.string("device")?,
            fs_type: from.string("fs_type")?,
            writable: match from.u8("writable")? {
                0 => Writable::No,
                1 => Writable::Device,
                2 => Writable::Overlay { size_bytes: from.u64("size_bytes")? },
                _ => return no_choice("writable"),
            },
        }),
        _ => no_choice("root"),
    }
}
