//! The host's side of an agent that is a forked copy of the test.

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::string::{String, ToString};
use std::time::Duration;
use std::vec;

use protocol::{
    AgentMessage, CONTROL_PORT, Exit, Hello, HostMessage, Identity, Log, Process, Ready, Renew, Root,
    STREAM_PORT, Start, Stream, VERSION, read_message, write_message,
};
use rustix::fd::OwnedFd;
use rustix::process::{Pid, WaitOptions, waitpid};

use crate::control::Control;
use crate::fault::Fault;
use crate::session::{End, Guest, Session};
use crate::sys;

/// Long enough for a loaded machine; only a hang takes it.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// Sockets for ports; the root is left as it is.
pub(super) struct Sockets(PathBuf);

impl Sockets {
    fn path(&self, port: u32) -> PathBuf {
        self.0.join(port.to_string())
    }
}

impl Guest for Sockets {
    fn volumes(&mut self, volumes: std::vec::Vec<protocol::Volume>) {
        assert!(volumes.is_empty(), "no test asks for any");
    }

    fn connect(&mut self, port: u32) -> Result<OwnedFd, Fault> {
        let stream = UnixStream::connect(self.path(port)).map_err(|e| Fault::new("connect", port, e))?;
        Ok(stream.into())
    }

    /// The host's clock stays as it is.
    fn renew(&mut self, renew: &Renew) -> Result<(), Fault> {
        Err(Fault::new("set", "the clock", renew.clock_ns))
    }

    fn identify(&mut self, identity: &Identity) -> Result<(), Fault> {
        Err(Fault::new("name", "the machine", &identity.hostname))
    }

    fn enter_root(&mut self, start: &Start, _: &mut dyn FnMut(Log)) -> Result<(), Fault> {
        if start.hostname == "broken" { Err(Fault::new("mount root", "/dev/vda", "no")) } else { Ok(()) }
    }
}

/// What the forked copy does; its exit code says how the session ended.
pub(super) fn serve(dir: &Path) -> i32 {
    sys::close_inherited();
    let mut sockets = Sockets(dir.to_path_buf());
    let Ok(control) = sockets.connect(CONTROL_PORT).and_then(Control::new) else { return 10 };
    let Ok(signals) = sys::child_signals() else { return 11 };
    let ready = Ready { version: VERSION, kernel: "test".into(), failed_modules: vec![] };
    match Session::new(control, signals, &mut sockets).run(ready) {
        Ok(End::Shutdown) => 0,
        Ok(End::HostGone(_)) => 1,
        Err(_) => 2,
    }
}

/// The host's side of one agent.
pub(super) struct Host {
    _dir: tempfile::TempDir,
    pub(super) listener: UnixListener,
    pub(super) streams: UnixListener,
    pub(super) control: UnixStream,
    pub(super) agent: Pid,
}

impl Host {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let sockets = Sockets(dir.path().to_path_buf());
        let listener = UnixListener::bind(sockets.path(CONTROL_PORT)).unwrap();
        let streams = UnixListener::bind(sockets.path(STREAM_PORT)).unwrap();
        let agent = sys::fork(|| serve(dir.path())).unwrap();
        let control = listener.accept().unwrap().0;
        control.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut host = Self { _dir: dir, listener, streams, control, agent };
        let AgentMessage::Ready(ready) = host.next() else { panic!("not ready") };
        assert_eq!(ready.version, VERSION);
        host
    }

    pub(super) fn send(&mut self, message: &HostMessage) {
        write_message(&mut self.control, message).unwrap();
    }

    pub(super) fn next(&mut self) -> AgentMessage {
        read_message(&mut self.control).unwrap().expect("the agent ended")
    }

    /// Accepts the next stream, which must be this one.
    pub(super) fn accept(&self, exec: u32, stream: Stream) -> UnixStream {
        let mut connection = self.streams.accept().unwrap().0;
        connection.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(Hello::read(&mut connection).unwrap(), Hello { exec, stream });
        connection
    }

    pub(super) fn start(&mut self, process: Process) {
        let start = Start { root: Root::Initramfs, hostname: String::new(), hosts: String::new(), process };
        self.send(&HostMessage::Start(start));
    }

    pub(super) fn expect_started(&mut self, exec: u32) -> u32 {
        match self.next() {
            AgentMessage::Started { exec: started, pid } if started == exec => pid,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn expect_exit(&mut self, exec: u32) -> Exit {
        match self.next() {
            AgentMessage::Exited { exec: exited, exit } if exited == exec => exit,
            other => panic!("{other:?}"),
        }
    }

    /// Starts a process without stdin; its stdout and stderr.
    pub(super) fn run(&mut self, process: Process) -> (UnixStream, UnixStream) {
        let exec = process.exec;
        self.start(process);
        let outputs = (self.accept(exec, Stream::Stdout), self.accept(exec, Stream::Stderr));
        self.expect_started(exec);
        outputs
    }

    /// The code the agent ends with.
    pub(super) fn agent_code(self) -> i32 {
        drop(self.listener);
        drop(self.control);
        let (_, status) = waitpid(Some(self.agent), WaitOptions::empty()).unwrap().unwrap();
        status.exit_status().unwrap()
    }

    pub(super) fn shut_down(mut self) {
        self.send(&HostMessage::Shutdown);
        let (_, status) = waitpid(Some(self.agent), WaitOptions::empty()).unwrap().unwrap();
        assert_eq!(status.exit_status(), Some(0));
    }
}
