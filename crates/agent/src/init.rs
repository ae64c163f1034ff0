//! The life of a machine, from the kernel's first process to power off.

use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;
use core::panic::PanicInfo;
use core::time::Duration;

use protocol::{CONTROL_PORT, Identity, Level, Log, Network, Ready, Renew, Start, VERSION, Volume};
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::fs::OFlags;
use rustix::process::{Resource, Rlimit, getpid, setrlimit, umask};
use rustix::system::uname;

use crate::control::Control;
use crate::fault::Fault;
use crate::session::{End, Guest, Session};
use crate::{
    console, files, identity, modules, mounts, network, power, reaper, root, service, sys, transport, volumes,
};

/// How long the host's devices may take to be found.
const CONTROL_PATIENCE: Duration = Duration::from_secs(10);

/// How long the host may take to accept a stream.
const STREAM_PATIENCE: Duration = Duration::from_secs(10);

/// Open files a process may have: at first, and at most. As systemd gives them.
const OPEN_FILES: Rlimit = Rlimit { current: Some(1024), maximum: Some(524_288) };

/// What a program ends with that has a bug, as Rust's own do.
const PANICKED: i32 = 101;

/// The program, told its command line. As PID 1 of a machine it never returns; else it is what the line says: the first process
/// of a container ([`reaper`]), or a [`service`].
#[must_use]
pub fn main(words: &[&[u8]]) -> i32 {
    let words = words.get(1..).unwrap_or_default();
    if let Some((&reaper::WORD, words)) = words.split_first() {
        return reaper::main(words);
    }
    if !is_first() {
        return service::main(words);
    }
    match live() {
        Ok(End::Shutdown) => {}
        Ok(End::HostGone(why)) => console::report(&why),
        Err(fault) => console::report(&fault.to_string()),
    }
    power::off()
}

fn is_first() -> bool {
    getpid().as_raw_nonzero().get() == 1
}

/// What a bug in the agent comes to: a line on the console, and power off. One that is not the first process has no machine: it
/// may be on somebody's host.
pub fn panicked(info: &PanicInfo<'_>) -> ! {
    if !is_first() {
        sys::complain(&format!("{info}\n"));
        sys::exit_now(PANICKED);
    }
    console::report(&format!("{info}"));
    power::off()
}

fn live() -> Result<End, Fault> {
    umask(rustix::fs::Mode::from_raw_mode(0o022));
    mounts::devices()?;
    occupy_stdio()?;
    let failed_modules = modules::load_all();
    mounts::for_processes()?;
    if let Err(fault) = mounts::loopback() {
        console::report(&fault.to_string());
    }
    let signals = sys::child_signals().map_err(|errno| Fault::os("take signals", "SIGCHLD", errno))?;
    // Fails only where the kernel allows less; then less it is.
    let _ = setrlimit(Resource::Nofile, OPEN_FILES);
    let control = transport::connect_host(CONTROL_PORT, CONTROL_PATIENCE)?;
    let kernel = uname().release().to_string_lossy().to_string();
    let ready = Ready { version: VERSION, kernel, failed_modules };
    Session::new(Control::new(control)?, signals, &mut Machine::default()).run(ready)
}

/// Descriptors 0 to 2 must be taken, or a stream would get one of them; the kernel opens them only
/// where the initramfs has a console node.
fn occupy_stdio() -> Result<(), Fault> {
    loop {
        let null = files::open("/dev/null", OFlags::RDWR)?;
        if null.as_raw_fd() > 2 {
            return Ok(());
        }
        core::mem::forget(null);
    }
}

/// The real thing, as opposed to a test's.
#[derive(Default)]
struct Machine {
    /// What its root is told of.
    network: Option<Network>,
    /// Its processes have a root.
    entered: bool,
    /// What it is completed with.
    volumes: Option<Result<Vec<volumes::Detached>, Fault>>,
}

impl Guest for Machine {
    fn connect(&mut self, port: u32) -> Result<OwnedFd, Fault> {
        transport::connect_host(port, STREAM_PATIENCE)
    }

    fn enter_root(&mut self, start: &Start, log: &mut dyn FnMut(Log)) -> Result<(), Fault> {
        root::enter(start, log)?;
        if let Some(volumes) = self.volumes.take() {
            volumes?.iter().try_for_each(volumes::attach)?;
        }
        if let Some(Err(fault)) = self.network.as_ref().map(network::name_server) {
            log(Log { level: Level::Warning, text: fault.to_string() });
        }
        self.entered = true;
        Ok(())
    }

    fn network(&mut self, network: &Network) -> Result<(), Fault> {
        let before = self.network.replace(network.clone());
        network::configure(network, before.as_ref())?;
        let told = before.is_none_or(|before| before.resolv_conf != network.resolv_conf);
        if self.entered && told { network::name_server(network) } else { Ok(()) }
    }

    fn volumes(&mut self, volumes: Vec<Volume>) {
        self.volumes = Some(volumes::open(volumes));
    }

    fn renew(&mut self, renew: &Renew) -> Result<(), Fault> {
        identity::renew(renew)
    }

    fn identify(&mut self, identity: &Identity) -> Result<(), Fault> {
        identity::identify(identity)
    }
}
