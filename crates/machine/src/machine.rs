//! The life of a machine: built, started, paused and resumed any number of times, ended once.
//!
//! One thread decides, the supervisor: owners, devices (reset, power-off) and vCPU threads send it messages,
//! and it sends commands to vCPU threads. So there is no lock around "what the machine is doing".
//!
//! ```text
//!  build ──► Paused ──start──► Running ◄──resume/pause──► Paused
//!                                 │ power-off, reset, triple fault, stop
//!                                 ▼
//!                               Ended (exactly one MachineEvent)
//! ```

use std::io::Write;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arch::x86::CpuState;
use arch::x86::cpuid::CpuModel;
use devices::virtio::BalloonHandle;
use devices::{PowerEvent, PowerSink};
use engine::{Engine, Statistics, VcpuSignal, VmConfig};
use memory::GuestRam;
use state::Archive;

use crate::boards::{Board, microvm};
use crate::config::OnReset;
use crate::console::Console;
use crate::snapshot::disks::Disks;
use crate::snapshot::{self, Snapshot};
use crate::vcpu::{self, Activity, Command, EndCause, Report};
use crate::{Error, MachineConfig, MachineEvent};

pub use crate::boards::microvm::ConsoleInput;

/// What a machine is joined to on the host.
#[derive(Default)]
pub struct Backends {
    /// Where console output goes; without it only the last lines are kept.
    pub console: Option<Box<dyn Write + Send>>,
    /// Who answers the guest's vsock connections; needs [`MachineConfig::vsock`].
    pub vsock: Option<Box<dyn devices::virtio::VsockHost>>,
    /// Where the cables of [`MachineConfig::net`] end, in that order; those beyond are not plugged in.
    pub net: Vec<Box<dyn net::Port>>,
    /// The server of its folders; needs [`MachineConfig::folders`].
    pub folders: Option<fuse::link::Client>,
    /// Called once everything the machine needs is open and before its first thread: the place to give up what threads
    /// inherit, such as capabilities.
    pub confine: Option<Confine>,
    /// Called by a thread of the machine when a vCPU has come to have little to do: the time for the process to give memory back.
    pub when_idle: Option<Box<dyn Fn() + Send>>,
}

/// See [`Backends::confine`].
pub type Confine = Box<dyn FnOnce() -> Result<(), Box<dyn std::error::Error + Send + Sync>>>;

/// What the supervisor is told.
enum Message {
    /// Done once the sender is dropped.
    Pause(Sender<()>),
    Resume(Sender<()>),
    IsPaused(Sender<bool>),
    Save(Sender<Result<Archive, Error>>),
    Stop,
    Power(PowerEvent),
    Vcpu(Report),
}

/// Where devices ask for power events.
pub(crate) struct Power {
    messages: Mutex<Sender<Message>>,
    /// Set from the request until it was carried out; engines are told to stop while it is.
    requested: std::sync::atomic::AtomicBool,
}

impl Power {
    fn new(messages: Sender<Message>) -> Self {
        Self { messages: Mutex::new(messages), requested: std::sync::atomic::AtomicBool::new(false) }
    }

    /// Whether a reset or power-off waits to be carried out.
    pub(crate) fn is_requested(&self) -> bool {
        self.requested.load(std::sync::atomic::Ordering::Relaxed)
    }

    fn clear(&self) {
        self.requested.store(false, std::sync::atomic::Ordering::Relaxed);
    }
}

impl PowerSink for Power {
    fn request(&self, event: PowerEvent) {
        self.requested.store(true, std::sync::atomic::Ordering::Relaxed);
        let _ = self.messages.lock().unwrap_or_else(PoisonError::into_inner).send(Message::Power(event));
    }
}

#[derive(Default)]
struct Ending {
    event: Mutex<Option<MachineEvent>>,
    known: Condvar,
}

impl Ending {
    fn set(&self, event: MachineEvent) {
        self.event.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(event);
        self.known.notify_all();
    }
}

/// A machine. Dropping it stops it.
pub struct Machine {
    config: MachineConfig,
    disks: Disks,
    ram: Arc<GuestRam>,
    messages: Sender<Message>,
    ending: Arc<Ending>,
    console: Arc<Console>,
    statistics: Vec<vcpu::Counters>,
    input: ConsoleInput,
    power_button: Arc<dyn Fn() + Send + Sync>,
    balloon: Option<BalloonHandle>,
    network: net::Counts,
    supervisor: Option<JoinHandle<()>>,
}

impl Machine {
    /// Builds the machine of `config`, which executes on `engine`, and loads its kernel. It is paused.
    ///
    /// # Errors
    /// Any [`Error`]; nothing is left behind.
    pub fn build(config: &MachineConfig, backends: Backends, engine: &dyn Engine) -> Result<Self, Error> {
        Self::assemble(config, backends, engine, None)
    }

    /// Builds the machine of `snapshot` as it was, which executes on `engine` from now on. It is paused. Its kernel is not
    /// there any more: a reset ends it.
    ///
    /// # Errors
    /// Any [`Error`]; nothing is left behind.
    pub fn restore(snapshot: Snapshot, backends: Backends, engine: &dyn Engine) -> Result<Self, Error> {
        let config = snapshot::without_kernel(snapshot.config.clone());
        Self::assemble(&config, backends, engine, Some(snapshot))
    }

    fn assemble(
        config: &MachineConfig,
        backends: Backends,
        engine: &dyn Engine,
        snapshot: Option<Snapshot>,
    ) -> Result<Self, Error> {
        config.validate()?;
        let saved_hz = snapshot.as_ref().map(|snapshot| snapshot.apic_timer_hz(engine)).transpose()?;
        let ram = snapshot.as_ref().map(Snapshot::memory).transpose()?;
        let Backends { console, vsock, net, folders, confine, when_idle } = backends;
        let (network, console) = (net::Counts::default(), Arc::new(Console::new(console)));
        let net = net.into_iter().map(|port| network.watch(port)).collect();
        let (messages, inbox) = channel();
        let power = Arc::new(Power::new(messages.clone()));
        let signals: Vec<_> = (0..config.cpus).map(|_| Arc::new(VcpuSignal::new())).collect();
        let parts = microvm::Parts {
            console: console.clone(),
            vsock,
            net,
            folders,
            power: power.clone(),
            signals: &signals,
            apic_timer_hz: engine.apic_timer_hz().or(saved_hz),
            ram,
        };
        let board = Arc::new(microvm::MicroVm::build(config, parts)?);
        let disks = Disks::open(&config.disks)?;
        confine.map_or(Ok(()), |confine| confine()).map_err(Error::Confine)?;
        console.start()?;
        let (input, power_button, ram) = (board.console_input(), board.power_button(), board.ram().clone());
        let balloon = board.balloon();
        let vm = create_vm(engine, config, &board)?;
        let board: Arc<dyn Board> = board;
        board.join(vm.as_ref())?;
        let ending = Arc::new(Ending::default());
        let mut supervisor = Supervisor {
            inbox,
            backlog: Vec::new(),
            vcpus: Vec::new(),
            board: board.clone(),
            power,
            console: console.clone(),
            ending: ending.clone(),
            on_reset: config.on_reset,
            when_idle,
            timers: Some(board.timers().spawn(Arc::new(Advance(board.clone())))?),
            state: RunState::Paused,
        };
        supervisor.add_vcpus(vm.as_ref(), &signals, &messages)?;
        match snapshot {
            None => supervisor.load()?,
            Some(snapshot) => supervisor.restore(snapshot)?,
        }
        let statistics = supervisor.vcpus.iter().map(vcpu::Handle::counters).collect();
        let (config, supervisor) = (snapshot::without_kernel(config.clone()), Some(run(supervisor, vm)?));
        Ok(Self {
            config,
            disks,
            ram,
            messages,
            ending,
            console,
            statistics,
            input,
            power_button,
            balloon,
            network,
            supervisor,
        })
    }

    /// Starts, or goes on after [`Self::pause`]. Returns once every vCPU was told.
    pub fn start(&self) {
        self.ask(Message::Resume);
    }

    /// Stops every vCPU, device queue and the clock. Returns once they have stopped, or the machine has ended.
    pub fn pause(&self) {
        self.ask(Message::Pause);
    }

    /// Goes on after [`Self::pause`].
    pub fn resume(&self) {
        self.ask(Message::Resume);
    }

    /// Whether it stands still: it was not started, or [`Self::pause`] was the last that was asked of it.
    pub fn is_paused(&self) -> bool {
        let (reply, answer) = channel();
        let _ = self.messages.send(Message::IsPaused(reply));
        answer.recv().unwrap_or(false)
    }

    /// Guest memory; it changes unless the machine is paused.
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// Ends the machine without asking the guest; [`MachineEvent::Stopped`]. Returns at once.
    pub fn stop(&self) {
        // Somebody may be waiting for a sink that takes nothing.
        self.console.release();
        let _ = self.messages.send(Message::Stop);
    }

    /// Presses the power button: a guest with ACPI usually shuts itself down. Returns at once.
    pub fn press_power_button(&self) {
        (self.power_button)();
    }

    /// Waits for the end.
    pub fn wait(&self) -> MachineEvent {
        let mut event = self.ending.event.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match &*event {
                Some(event) => return event.clone(),
                None => event = self.ending.known.wait(event).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    /// Waits for the end, at most `timeout`.
    pub fn wait_timeout(&self, timeout: Duration) -> Option<MachineEvent> {
        let deadline = Instant::now() + timeout;
        let mut event = self.ending.event.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if event.is_some() || left.is_zero() {
                return event.clone();
            }
            event = self.ending.known.wait_timeout(event, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The end, if it has come.
    pub fn ended(&self) -> Option<MachineEvent> {
        self.ending.event.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Where keystrokes for the console go.
    pub fn console_input(&self) -> ConsoleInput {
        self.input.clone()
    }

    /// The console's output: its last lines, the kernel's panic message.
    pub fn console(&self) -> &Console {
        &self.console
    }

    /// Each vCPU's counters, as of when it last halted, paused or ended.
    pub fn statistics(&self) -> Vec<Statistics> {
        self.statistics.iter().map(vcpu::Counters::latest).collect()
    }

    fn ask(&self, message: impl FnOnce(Sender<()>) -> Message) {
        let (done, wait) = channel();
        if self.messages.send(message(done)).is_ok() {
            // The supervisor drops the sender when it is done, or ends.
            let _ = wait.recv();
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.stop();
        if let Some(supervisor) = self.supervisor.take() {
            let _ = supervisor.join();
        }
    }
}

fn cpu_model(config: &MachineConfig) -> Result<CpuModel, Error> {
    CpuModel::named(&config.cpu_model).ok_or_else(|| Error::Config {
        field: "cpu model".to_owned(),
        reason: format!("there is no {:?}", config.cpu_model),
    })
}

/// Starts the thread that decides about the machine's life.
fn run(supervisor: Supervisor, vm: Box<dyn engine::Vm>) -> Result<JoinHandle<()>, Error> {
    let name = "machine".to_owned();
    let thread = std::thread::Builder::new().name(name.clone()).spawn(move || supervisor.run(vm));
    thread.map_err(|source| Error::Thread { name, source })
}

/// The engine's part of the machine of `config`.
fn create_vm(
    engine: &dyn Engine,
    config: &MachineConfig,
    board: &microvm::MicroVm,
) -> Result<Box<dyn engine::Vm>, Error> {
    Ok(engine.create_vm(VmConfig {
        ram: board.ram().clone(),
        bus: board.bus(),
        cpu_model: Arc::new(cpu_model(config)?),
        vcpu_count: config.cpus,
        tsc_khz: board.tsc_khz(),
    })?)
}

/// Lets the timer thread hold a board of any kind.
struct Advance(Arc<dyn Board>);

impl crate::timers::Expiry for Advance {
    fn advance(&self, timer: devices::TimerId, now: u64) {
        self.0.advance(timer, now);
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum RunState {
    Paused,
    Running,
}

struct Supervisor {
    inbox: Receiver<Message>,
    /// What came while waiting for vCPUs to pause.
    backlog: Vec<Message>,
    vcpus: Vec<vcpu::Handle>,
    board: Arc<dyn Board>,
    power: Arc<Power>,
    console: Arc<Console>,
    ending: Arc<Ending>,
    on_reset: OnReset,
    when_idle: Option<Box<dyn Fn() + Send>>,
    timers: Option<JoinHandle<()>>,
    state: RunState,
}

impl Supervisor {
    /// Until the machine ends. The engine's part of the machine is dropped after its vCPUs.
    fn run(mut self, vm: Box<dyn engine::Vm>) {
        let event = loop {
            let done = match self.next() {
                Some(Message::Pause(done)) => self.pause().map(|()| drop(done)),
                Some(Message::Resume(done)) => self.resume().map(|()| drop(done)),
                Some(Message::IsPaused(reply)) => {
                    let _ = reply.send(self.state == RunState::Paused);
                    Ok(())
                }
                Some(Message::Save(reply)) => {
                    let _ = reply.send(self.save());
                    Ok(())
                }
                Some(Message::Power(PowerEvent::PowerOff)) => break MachineEvent::PowerOff,
                Some(Message::Power(PowerEvent::Reset)) => match self.on_reset {
                    OnReset::Stop => break MachineEvent::Reset,
                    OnReset::Restart => self.restart(),
                },
                Some(Message::Vcpu(Report::Ended { cause, .. })) => break cause.into(),
                Some(Message::Vcpu(Report::Paused { .. })) => Ok(()),
                Some(Message::Vcpu(Report::Idle)) => {
                    self.when_idle.iter().for_each(|act| act());
                    Ok(())
                }
                Some(Message::Stop) | None => break MachineEvent::Stopped,
            };
            if let Err(error) = done {
                break MachineEvent::Fatal { reason: chain(&error) };
            }
        };
        self.end(event);
        drop(self);
        drop(vm);
    }

    fn add_vcpus(
        &mut self,
        vm: &dyn engine::Vm,
        signals: &[Arc<VcpuSignal>],
        messages: &Sender<Message>,
    ) -> Result<(), Error> {
        for (index, signal) in (0..).zip(signals) {
            let vcpu = vm.create_vcpu(index, signal.clone())?;
            let to_supervisor = messages.clone();
            let report = move |report| drop(to_supervisor.send(Message::Vcpu(report)));
            self.vcpus.push(vcpu::spawn(index, vcpu, signal.clone(), self.board.clone(), report)?);
        }
        Ok(())
    }

    fn next(&mut self) -> Option<Message> {
        if self.backlog.is_empty() { self.inbox.recv().ok() } else { Some(self.backlog.remove(0)) }
    }

    fn load(&mut self) -> Result<(), Error> {
        let first = self.board.load()?;
        for (index, vcpu) in self.vcpus.iter().enumerate() {
            let (state, activity) = match index {
                0 => (first.clone(), Activity::Active),
                _ => (CpuState::power_up(), Activity::WaitsForStartUp),
            };
            vcpu.tell(Command::Reset(Box::new(state), activity));
        }
        Ok(())
    }

    fn resume(&mut self) -> Result<(), Error> {
        if self.state == RunState::Paused {
            self.board.resume()?;
            self.state = RunState::Running;
            self.vcpus.iter().for_each(|vcpu| vcpu.tell(Command::Run));
        }
        Ok(())
    }

    fn pause(&mut self) -> Result<(), Error> {
        if self.state == RunState::Running {
            self.state = RunState::Paused;
            self.stop_vcpus();
            self.board.rest()?;
        }
        Ok(())
    }

    fn stop_vcpus(&mut self) {
        self.vcpus.iter().for_each(|vcpu| vcpu.tell(Command::Pause));
        let mut running = vec![true; self.vcpus.len()];
        while running.contains(&true) {
            match self.inbox.recv() {
                Ok(Message::Vcpu(Report::Paused { vcpu })) => running[vcpu as usize] = false,
                Ok(Message::Vcpu(Report::Ended { vcpu, cause })) => {
                    // It answers the command too, unless its thread is gone.
                    if matches!(cause, EndCause::Gone(_)) {
                        running[vcpu as usize] = false;
                    }
                    self.backlog.push(Message::Vcpu(Report::Ended { vcpu, cause }));
                }
                Ok(Message::Stop) => {
                    self.board.release();
                    self.backlog.push(Message::Stop);
                }
                Ok(other) => self.backlog.push(other),
                Err(_) => return,
            }
        }
    }

    fn restart(&mut self) -> Result<(), Error> {
        self.pause()?;
        // A reset or power-off that another vCPU asked for at the same time is part of this one.
        self.backlog.retain(|m| !matches!(m, Message::Power(PowerEvent::Reset)));
        self.power.clear();
        self.load()?;
        self.resume()
    }

    fn end(&mut self, event: MachineEvent) {
        if event == MachineEvent::Stopped {
            self.board.release();
        }
        self.vcpus.iter().for_each(|vcpu| vcpu.tell(Command::Exit));
        self.vcpus.iter_mut().for_each(vcpu::Handle::join);
        // Nobody will look at its interrupt controllers.
        let _ = self.board.rest();
        self.board.release();
        self.board.timers().stop();
        if let Some(timers) = self.timers.take() {
            let _ = timers.join();
        }
        let panicked = self.console.panic_message();
        let event = match (event, panicked) {
            (MachineEvent::Reset | MachineEvent::TripleFault { .. }, Some(message)) => {
                MachineEvent::GuestPanic { message }
            }
            (event, _) => event,
        };
        self.ending.set(event);
    }
}

impl Drop for Supervisor {
    /// Also runs when building fails half-way: threads that were started must end.
    fn drop(&mut self) {
        self.vcpus.iter().for_each(|vcpu| vcpu.tell(Command::Exit));
        self.vcpus.iter_mut().for_each(vcpu::Handle::join);
        self.board.timers().stop();
        if let Some(timers) = self.timers.take() {
            let _ = timers.join();
        }
        self.ending.set(MachineEvent::Fatal { reason: "the machine's supervisor ended".to_owned() });
    }
}

/// An error and its causes on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

mod counts;
mod saving;
#[cfg(test)]
mod tests;
