//! One vCPU's thread.
//!
//! ```text
//!            Run                    Exit::Shutdown, Exit::Fatal: report Ended
//!  Paused ────────► Running ─────────────────────────────┐
//!    ▲  ▲ ◄──────────  │  ▲                              │
//!    │  │ Pause: report└──┘ Halt: sleep until a request  │
//!    │  │ Paused                or the own APIC timer    │
//!    │  └────────────────────────────────────────────────┘
//!    └── Reset(state): take it        Exit: the thread ends
//! ```
//! A vCPU that waits for a start-up IPI is a halted one whose interrupts are off: nothing but INIT, start-up
//! or a command gets it going, and the engine still serves its own requests meanwhile.

use std::panic::AssertUnwindSafe;
use std::sync::mpsc::{Receiver, Sender, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arch::x86::{CpuState, Cr0, Segment, SegmentRegister};
use devices::chipset::lapic::Events;
use engine::{Exit, Request, Statistics, Vcpu, VcpuSignal};

use crate::Error;
use crate::boards::Board;
use crate::idle::Idleness;

/// What a vCPU's thread is told. Each is followed by a kick of the vCPU.
#[derive(Debug)]
pub enum Command {
    /// Run, if paused.
    Run,
    /// Stop running and answer [`Report::Paused`]; paused already, answer all the same.
    Pause,
    /// Take this state. Only while paused.
    Reset(Box<CpuState>, Activity),
    /// Hand out the state. Only while paused.
    Save(Sender<Saved>),
    /// Take over a saved state. Only while paused.
    Restore(Box<Saved>),
    /// End the thread.
    Exit,
}

/// A vCPU at rest.
#[derive(Clone, Debug)]
pub struct Saved {
    /// Its registers.
    pub state: CpuState,
    /// An NMI came while it waits for a start-up IPI.
    pub latched_nmi: bool,
}

/// What a vCPU does in a given state, beside what the state itself says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// It executes, or is halted.
    Active,
    /// It waits for a start-up IPI.
    WaitsForStartUp,
}

/// What a vCPU's thread tells.
#[derive(Debug)]
pub enum Report {
    /// It is paused.
    Paused {
        /// Which vCPU.
        vcpu: u32,
    },
    /// It has come to have little to do, and has given back what it can do without.
    Idle,
    /// It cannot go on, and is paused.
    Ended {
        /// Which vCPU.
        vcpu: u32,
        /// Why.
        cause: EndCause,
    },
}

/// Why a vCPU cannot go on.
#[derive(Debug)]
pub enum EndCause {
    /// Triple fault.
    Shutdown(String),
    /// The engine gave up.
    Fatal(String),
    /// The thread itself is gone: a bug.
    Gone(String),
}

/// The machine's hold on one vCPU's thread.
pub struct Handle {
    commands: Sender<Command>,
    signal: Arc<VcpuSignal>,
    counters: Counters,
    thread: Option<JoinHandle<()>>,
}

impl Handle {
    /// Tells the thread `command`.
    pub fn tell(&self, command: Command) {
        // A thread that has ended reported why; there is nobody left to tell.
        let _ = self.commands.send(command);
        self.signal.kick();
    }

    /// Waits for the thread to end, after [`Command::Exit`].
    pub fn join(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }

    /// The vCPU's counters, for others to read.
    pub fn counters(&self) -> Counters {
        self.counters.clone()
    }
}

/// What a vCPU's engine had counted when the vCPU last halted, paused or ended.
#[derive(Clone, Default)]
pub struct Counters(Arc<Mutex<Statistics>>);

impl Counters {
    /// The figures.
    pub fn latest(&self) -> Statistics {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, figures: Statistics) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = figures;
    }
}

/// Starts the thread of vCPU `index`, paused.
///
/// # Errors
/// [`Error::Thread`].
pub fn spawn(
    index: u32,
    vcpu: Box<dyn Vcpu>,
    signal: Arc<VcpuSignal>,
    board: Arc<dyn Board>,
    reports: impl Fn(Report) + Send + Sync + 'static,
) -> Result<Handle, Error> {
    let reports: Arc<dyn Fn(Report) + Send + Sync> = Arc::new(reports);
    let (commands, inbox) = std::sync::mpsc::channel();
    let counters = Counters::default();
    let thread = Thread {
        index,
        vcpu,
        signal: signal.clone(),
        board,
        inbox,
        reports: reports.clone(),
        counters: counters.clone(),
        latched_nmi: false,
        idleness: Idleness::new(Instant::now(), Duration::ZERO),
    };
    let name = format!("vcpu{index}");
    let run = move || {
        // A bug in the engine or a device ends the machine instead of leaving it to wait for ever.
        if std::panic::catch_unwind(AssertUnwindSafe(|| thread.run())).is_err() {
            let cause = EndCause::Gone(format!("the thread of vcpu {index} panicked"));
            reports(Report::Ended { vcpu: index, cause });
        }
    };
    let spawned = std::thread::Builder::new().name(name.clone()).spawn(run);
    let thread = Some(spawned.map_err(|source| Error::Thread { name, source })?);
    Ok(Handle { commands, signal, counters, thread })
}

enum Mode {
    Paused,
    Running,
    Over,
}

struct Thread {
    index: u32,
    vcpu: Box<dyn Vcpu>,
    signal: Arc<VcpuSignal>,
    board: Arc<dyn Board>,
    inbox: Receiver<Command>,
    reports: Arc<dyn Fn(Report) + Send + Sync>,
    counters: Counters,
    /// An NMI that came while waiting for a start-up IPI.
    latched_nmi: bool,
    idleness: Idleness,
}

/// The processor time that this thread has had.
fn worked() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

impl Thread {
    fn run(mut self) {
        let mut mode = Mode::Paused;
        loop {
            mode = match mode {
                Mode::Paused => match self.inbox.recv() {
                    Ok(command) => self.obey(command, Mode::Paused),
                    Err(_) => Mode::Over,
                },
                Mode::Running => self.run_once(),
                Mode::Over => return,
            };
        }
    }

    fn obey(&mut self, command: Command, now: Mode) -> Mode {
        match command {
            Command::Run => {
                self.idleness.begins(Instant::now(), worked());
                Mode::Running
            }
            Command::Pause => {
                self.count();
                (self.reports)(Report::Paused { vcpu: self.index });
                Mode::Paused
            }
            Command::Reset(state, activity) => {
                self.latched_nmi = false;
                *self.vcpu.state_mut() = *state;
                self.set_activity(activity);
                now
            }
            Command::Save(to) => {
                let saved = Saved { state: self.vcpu.state().clone(), latched_nmi: self.latched_nmi };
                let _ = to.send(saved);
                now
            }
            Command::Restore(saved) => {
                let Saved { state, latched_nmi } = *saved;
                *self.vcpu.state_mut() = state;
                self.latched_nmi = latched_nmi;
                now
            }
            Command::Exit => {
                self.count();
                Mode::Over
            }
        }
    }

    fn run_once(&mut self) -> Mode {
        // Cleared before looking, so that what is told from now on makes `run` return again.
        let kicked = self.signal.take(Request::KICK);
        if self.board.is_stopping() {
            // The instruction that asked for a reset is the last one; the machine is about to say so.
            return match self.inbox.recv() {
                Ok(command) => self.obey(command, Mode::Running),
                Err(_) => Mode::Over,
            };
        }
        if kicked {
            match self.inbox.try_recv() {
                Ok(command) => {
                    // There may be more behind it.
                    self.signal.kick();
                    return self.obey(command, Mode::Running);
                }
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => return Mode::Over,
            }
            if let Err(error) = self.apply_events() {
                return self.end(EndCause::Fatal(crate::machine::chain(&error)));
            }
        }
        if self.vcpu.state().events.waits_for_start_up {
            // Interrupt requests stay with the local APIC; the engine only serves its own.
            self.signal.take(Request::INTERRUPT);
        }
        match self.vcpu.run() {
            Exit::Kicked => Mode::Running,
            Exit::Halt => {
                self.count();
                let (vcpu, rip) = (self.index, self.vcpu.state().rip);
                tracing::trace!(vcpu, rip = format_args!("{rip:#x}"), "halts");
                self.sleep();
                Mode::Running
            }
            Exit::Shutdown { reason } => self.end(EndCause::Shutdown(reason)),
            Exit::Fatal { reason } => self.end(EndCause::Fatal(reason)),
        }
    }

    fn sleep(&mut self) {
        if self.idleness.sleeps(Instant::now(), worked) {
            self.vcpu.give_back();
            (self.reports)(Report::Idle);
        }
        let board = self.board.clone();
        board.timers().sleep(self.index, self.idleness.deadline(), &*board);
    }

    fn end(&mut self, cause: EndCause) -> Mode {
        self.count();
        (self.reports)(Report::Ended { vcpu: self.index, cause });
        Mode::Paused
    }

    fn count(&self) {
        self.counters.set(self.vcpu.statistics());
    }

    fn set_activity(&mut self, activity: Activity) {
        let events = &mut self.vcpu.state_mut().events;
        events.waits_for_start_up = activity == Activity::WaitsForStartUp;
        events.halted = events.waits_for_start_up;
    }

    fn apply_events(&mut self) -> Result<(), Error> {
        let Events { init, start_up, nmi } = self.board.take_events(self.index);
        if init {
            self.board.init_apic(self.index)?;
            apply_init(self.vcpu.state_mut());
            self.latched_nmi = false;
            // The bootstrap processor starts at the reset vector instead (SDM vol. 3, "MP Initialization").
            self.set_activity(if self.index == 0 { Activity::Active } else { Activity::WaitsForStartUp });
        }
        if start_up.is_none() && !nmi {
            return Ok(());
        }
        let waits = self.vcpu.state().events.waits_for_start_up;
        if let (Some(page), true) = (start_up, waits) {
            apply_start_up(self.vcpu.state_mut(), page);
            self.set_activity(Activity::Active);
            self.vcpu.state_mut().events.nmi_pending = std::mem::take(&mut self.latched_nmi) | nmi;
        } else if nmi && waits {
            self.latched_nmi = true;
        } else if nmi {
            self.vcpu.state_mut().events.nmi_pending = true;
        }
        Ok(())
    }
}

/// The state after INIT (SDM vol. 3 table "IA-32 and Intel 64 Processor States Following Power-up, Reset, or
/// INIT"): as after power-up, but caching control, x87 and vector registers, XCR0, the TSC and most MSRs stay.
fn apply_init(state: &mut CpuState) {
    let caching = state.cr0 & (Cr0::CD | Cr0::NW).bits();
    let efer = 0;
    let mut fresh = CpuState::power_up();
    fresh.cr0 = caching | Cr0::ET.bits();
    fresh.xcr0 = state.xcr0;
    fresh.tsc_offset = state.tsc_offset;
    fresh.msrs = arch::x86::state::Msrs { efer, ..state.msrs };
    fresh.ymm = state.ymm;
    fresh.fx = state.fx;
    *state = fresh;
}

/// A start-up IPI: real mode at the start of 4 KiB page `page`.
fn apply_start_up(state: &mut CpuState, page: u8) {
    let cs = state.segment_mut(SegmentRegister::Cs);
    *cs = Segment::real_mode(u16::from(page) << 8, cs.access);
    state.rip = 0;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn init_keeps_vector_registers_and_drops_paging() {
        let mut state = CpuState::power_up();
        state.cr0 = (Cr0::PE | Cr0::PG | Cr0::CD).bits();
        state.msrs.efer = 0x500;
        state.msrs.tsc_aux = 7;
        state.ymm[3].0[0] = 9;
        apply_init(&mut state);
        assert_eq!(state.cr0, (Cr0::CD | Cr0::ET).bits());
        assert_eq!((state.msrs.efer, state.msrs.tsc_aux, state.ymm[3].0[0]), (0, 7, 9));
    }

    #[test]
    fn a_start_up_ipi_points_into_its_page() {
        let mut state = CpuState::power_up();
        apply_start_up(&mut state, 0x9a);
        let cs = state.segment(SegmentRegister::Cs);
        assert_eq!((cs.selector, cs.base, cs.limit, state.rip), (0x9a00, 0x9_a000, 0xffff, 0));
        assert_eq!(state.code_bits(), 16);
    }
}
