//! A vCPU: the loop around KVM_RUN, and what is done for each reason it returns.
//!
//! ```text
//!  run ─► give state, if it was changed
//!          │
//!          ▼        KICK: complete what KVM_RUN returned for ─► Kicked
//!       requests? ─────────────────────────────────────────────────────►
//!          │    ▲
//!          ▼    │ ports, MMIO, MSRs, EOIs: the bus answers
//!       KVM_RUN ┴ shutdown, errors ─► Shutdown, Fatal
//! ```
//! HLT and start-up IPIs are the kernel's: the thread sleeps in KVM_RUN.
// UNSAFETY: one ioctl without a wrapper that leaves the shared page alone.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use arch::x86::{CpuState, msr};
use engine::{Bus, BusResult, Error, Exit, MsrResult, Request, Statistics, Vcpu, VcpuSignal};
use kvm_bindings::{KVM_MP_STATE_HALTED, KVM_MP_STATE_RUNNABLE};
use kvm_ioctls::VcpuFd;
use memory::GuestRam;

use crate::internal_error;
use crate::kick::Kick;
use crate::requests::KVM_RUN;
use crate::run_page::{PageExit, RunPage, request_exit};
use crate::state::{self, Shape, TscControl};
use crate::{refused, unsupported};

/// What a vCPU is made of.
pub struct Parts {
    pub index: u32,
    pub fd: Arc<VcpuFd>,
    pub page: Arc<RunPage>,
    pub kick: Arc<Kick>,
    pub signal: Arc<VcpuSignal>,
    pub bus: Arc<dyn Bus>,
    pub ram: Arc<GuestRam>,
    pub shape: Arc<Shape>,
}

/// See the module.
pub struct KvmVcpu {
    parts: Parts,
    state: CpuState,
    /// Whether `state` was changed and is yet to be given to the kernel; else the kernel's is the one that counts.
    changed: bool,
    /// Whether KVM_RUN returned in the middle of an instruction.
    incomplete: bool,
    /// Whether the page tells if an interrupt can be taken: not before KVM_RUN was called.
    readiness_known: bool,
    bus_accesses: u64,
    events: u64,
}

/// What comes after an exit.
enum Next {
    Run,
    Leave(Exit),
}

impl KvmVcpu {
    pub fn new(parts: Parts) -> Self {
        Self {
            parts,
            state: CpuState::power_up(),
            changed: true,
            incomplete: false,
            readiness_known: false,
            bus_accesses: 0,
            events: 0,
        }
    }

    fn try_run(&mut self) -> Result<Exit, Error> {
        self.give_state()?;
        self.parts.kick.bind();
        loop {
            let word = self.parts.signal.word().load(std::sync::atomic::Ordering::SeqCst);
            if word & Request::KICK.bits() != 0 {
                // Whoever called `run` clears it before looking why.
                return self.complete();
            }
            if word != 0 {
                self.parts.signal.take(Request::INTERRUPT);
                self.parts.signal.take(Request::ENGINE);
            }
            self.offer_interrupt()?;
            if !self.parts.kick.enter(&self.parts.signal) {
                continue;
            }
            let result = self.kvm_run();
            self.parts.kick.leave();
            match self.after_run(result)? {
                Next::Run => {}
                Next::Leave(Exit::Kicked) => return self.complete(),
                Next::Leave(exit) => return Ok(exit),
            }
        }
    }

    fn give_state(&mut self) -> Result<(), Error> {
        if self.changed {
            self.let_tsc_run_on();
            state::push(&self.parts.fd, &self.parts.shape, &self.state)?;
            self.changed = false;
            self.readiness_known = false;
        }
        Ok(())
    }

    /// Where guests have the host's TSC, one that rested sees that time went by: it is ahead of what it was. Timers and
    /// kvm-clock count from there. That it goes back is refused.
    fn let_tsc_run_on(&mut self) {
        let is_behind = (self.state.tsc_offset as i64) < 0;
        if self.parts.shape.tsc == TscControl::Fixed && is_behind {
            self.state.tsc_offset = 0;
            self.parts.bus.tsc_changed(self.parts.index, 0);
        }
    }

    fn take_state(&mut self) -> Result<(), Error> {
        if !self.changed {
            state::pull(&self.parts.fd, &self.parts.shape, &self.parts.ram, &mut self.state)?;
        }
        Ok(())
    }

    /// What KVM_RUN returned for is finished without executing anything further, so that the state is that between
    /// two instructions.
    fn complete(&mut self) -> Result<Exit, Error> {
        while self.incomplete {
            if let Next::Leave(exit) = self.run_nothing()?
                && !matches!(exit, Exit::Kicked)
            {
                return Ok(exit);
            }
        }
        Ok(Exit::Kicked)
    }

    /// KVM_RUN that comes back before the guest executes anything.
    fn run_nothing(&mut self) -> Result<Next, Error> {
        request_exit(&self.parts.page);
        let result = self.kvm_run();
        self.parts.kick.leave();
        self.after_run(result)
    }

    fn kvm_run(&self) -> Result<(), i32> {
        kvm_run(&self.parts.fd)
    }

    fn after_run(&mut self, result: Result<(), i32>) -> Result<Next, Error> {
        self.readiness_known = true;
        match result {
            Ok(()) => {
                self.incomplete = false;
                self.after_exit()
            }
            // The instruction was completed first. EAGAIN: a start-up IPI has come.
            Err(libc::EINTR | libc::EAGAIN) => {
                self.incomplete = false;
                Ok(Next::Run)
            }
            // A memory fault comes with EFAULT, and other errors with nothing.
            Err(error @ (libc::EFAULT | libc::EHWPOISON)) => match self.parts.page.exit() {
                PageExit::MemoryFault { gpa } => {
                    let reason = format!("the host has no memory for the guest's at gpa {gpa:#x}");
                    Ok(Next::Leave(Exit::Fatal { reason }))
                }
                _ => Err(refused("run a vcpu")(kvm_ioctls::Error::new(error))),
            },
            Err(error) => Err(refused("run a vcpu")(kvm_ioctls::Error::new(error))),
        }
    }

    fn after_exit(&mut self) -> Result<Next, Error> {
        let leave = |exit| Ok(Next::Leave(exit));
        match self.parts.page.exit() {
            PageExit::Io { write, size, port, count, offset } => {
                Ok(self.port(write, port, size.clamp(1, 4), count, offset))
            }
            PageExit::Mmio { write, gpa, data, len } => Ok(self.mmio(write, gpa, data, len)),
            PageExit::Msr { write, index, value } => self.msr(write, index, value),
            PageExit::Eoi { vector } => {
                self.parts.bus.end_of_interrupt(vector);
                Ok(Next::Run)
            }
            PageExit::Nothing | PageExit::Halt => Ok(Next::Run),
            PageExit::Shutdown => {
                let reason = format!("triple fault {}", self.place());
                leave(Exit::Shutdown { reason })
            }
            PageExit::FailEntry { reason } => {
                let reason =
                    format!("the processor refuses this state (reason {reason:#x}) {}", self.place());
                leave(Exit::Fatal { reason })
            }
            PageExit::InternalError { suberror, bytes } => {
                self.take_state()?;
                let Parts { fd, ram, .. } = &self.parts;
                let reason = internal_error::describe(suberror, &bytes, fd, ram, &self.state);
                leave(Exit::Fatal { reason })
            }
            PageExit::MemoryFault { gpa } => leave(Exit::Fatal {
                reason: format!("the host has no memory for the guest's at gpa {gpa:#x}"),
            }),
            PageExit::Other { reason } => {
                leave(Exit::Fatal { reason: format!("kvm stopped for reason {reason} {}", self.place()) })
            }
        }
    }

    /// Where the guest is, for messages.
    fn place(&mut self) -> String {
        match self.take_state() {
            Ok(()) => {
                let s = &self.state;
                format!("at rip {:#x} (cr0 {:#x}, cr3 {:#x}, cr4 {:#x})", s.rip, s.cr0, s.cr3, s.cr4)
            }
            Err(error) => format!("somewhere ({error})"),
        }
    }

    fn answered(&mut self, result: BusResult) -> Next {
        self.incomplete = true;
        self.bus_accesses += 1;
        if result == BusResult::Stop { Next::Leave(Exit::Kicked) } else { Next::Run }
    }

    /// IN and OUT, and their string forms, which come with several elements.
    fn port(&mut self, write: bool, port: u16, size: usize, count: usize, offset: usize) -> Next {
        let Parts { bus, page, index, .. } = &self.parts;
        let mut outcome = BusResult::Done;
        for element in 0..count {
            let mut data = [0; 4];
            let (at, data) = (offset + element * size, &mut data[..size]);
            let result = if write {
                page.read_io(at, data);
                bus.port_write(*index, port, data)
            } else {
                let result = bus.port_read(*index, port, data);
                page.write_io(at, data);
                result
            };
            if result == BusResult::Stop {
                outcome = BusResult::Stop;
            }
        }
        self.answered(outcome)
    }

    fn mmio(&mut self, write: bool, gpa: u64, mut data: [u8; 8], len: usize) -> Next {
        let Parts { bus, page, index, .. } = &self.parts;
        let result = if write {
            bus.mmio_write(*index, gpa, &data[..len])
        } else {
            let result = bus.mmio_read(*index, gpa, &mut data[..len]);
            page.set_mmio_data(data);
            result
        };
        self.answered(result)
    }

    fn msr(&mut self, write: bool, index: u32, value: u64) -> Result<Next, Error> {
        let answer = match (write, index) {
            (false, msr::TSC_ADJUST) => Some(self.state.msrs.tsc_adjust),
            (true, msr::TSC_ADJUST) => {
                self.move_tsc(value.wrapping_sub(self.state.msrs.tsc_adjust))?;
                Some(value)
            }
            (true, msr::TSC) => {
                let now = state::host_tsc().wrapping_add(self.state.tsc_offset);
                self.move_tsc(value.wrapping_sub(now))?;
                Some(value)
            }
            // The kernel has the local APIC; what it leaves of its registers is none.
            (_, msr::APIC_BASE | msr::TSC_DEADLINE | msr::X2APIC_FIRST..=msr::X2APIC_LAST) => None,
            (write, index) => {
                let Parts { bus, index: vcpu, .. } = &self.parts;
                let result =
                    if write { bus.msr_write(*vcpu, index, value) } else { bus.msr_read(*vcpu, index) };
                match result {
                    MsrResult::Done(value) => Some(value),
                    MsrResult::Fault => None,
                }
            }
        };
        self.parts.page.set_msr_answer(answer);
        Ok(self.answered(BusResult::Done))
    }

    /// The guest moves its TSC by `delta`. The offset and the adjustment are ours even while the kernel runs the vCPU.
    fn move_tsc(&mut self, delta: u64) -> Result<(), Error> {
        if self.parts.shape.tsc == TscControl::Fixed {
            // It stays where it is, and the guest can see that.
            return Ok(());
        }
        let offset = self.state.tsc_offset.wrapping_add(delta);
        self.state.tsc_offset = offset;
        self.state.msrs.tsc_adjust = self.state.msrs.tsc_adjust.wrapping_add(delta);
        let Parts { fd, shape, bus, index, .. } = &self.parts;
        shape.tsc.give(fd, offset)?;
        // A deadline counts in the TSC as it is now.
        let deadline = state::read_msrs(fd, &[msr::TSC_DEADLINE])?;
        if deadline.iter().any(|(_, value)| *value != 0) {
            state::write_msrs(fd, &deadline)?;
        }
        bus.tsc_changed(*index, offset);
        Ok(())
    }

    /// Gives the guest an interrupt of the 8259A, as soon as it can take one.
    fn offer_interrupt(&mut self) -> Result<(), Error> {
        let Parts { bus, page, fd, index, .. } = &self.parts;
        if !bus.interrupt_pending(*index) {
            page.request_interrupt_window(false);
            return Ok(());
        }
        if !self.readiness_known && !self.incomplete {
            // A vCPU that halts would sleep before it said.
            self.run_nothing()?;
            return self.offer_interrupt();
        }
        if self.incomplete || !page.is_ready_for_interrupt() {
            page.request_interrupt_window(true);
            return Ok(());
        }
        page.request_interrupt_window(false);
        let Some(vector) = bus.acknowledge_interrupt(*index) else { return Ok(()) };
        let mut events = fd.get_vcpu_events().map_err(refused("read a vcpu's events"))?;
        (events.interrupt.injected, events.interrupt.nr, events.interrupt.soft) = (1, vector, 0);
        fd.set_vcpu_events(&events).map_err(refused("inject an interrupt"))?;
        let mut activity = fd.get_mp_state().map_err(refused("read a vcpu's activity"))?;
        if activity.mp_state == KVM_MP_STATE_HALTED {
            activity.mp_state = KVM_MP_STATE_RUNNABLE;
            fd.set_mp_state(activity).map_err(refused("wake a vcpu"))?;
        }
        self.events += 1;
        Ok(())
    }
}

impl Vcpu for KvmVcpu {
    fn run(&mut self) -> Exit {
        self.try_run().unwrap_or_else(|error| {
            let cause = std::error::Error::source(&error).map_or(String::new(), |cause| format!(": {cause}"));
            Exit::Fatal { reason: format!("{error}{cause}") }
        })
    }

    fn state(&mut self) -> &CpuState {
        if let Err(error) = self.take_state() {
            // The ioctls of a live vCPU fail on a kernel's bug alone; what was read last is all there is.
            debug_assert!(false, "{error}");
        }
        &self.state
    }

    fn state_mut(&mut self) -> &mut CpuState {
        self.state();
        self.changed = true;
        &mut self.state
    }

    fn statistics(&self) -> Statistics {
        Statistics { events: self.events, bus_accesses: self.bus_accesses, ..Statistics::default() }
    }
}

/// Runs a vCPU until the kernel has something to say.
///
/// # Errors
/// The number of the error.
pub fn kvm_run(vcpu: &VcpuFd) -> Result<(), i32> {
    // SAFETY: the request takes no argument. What the kernel writes to is guest RAM, which whoever made the vCPU keeps
    // mapped, and the page, which only `RunPage` accesses.
    let result = unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_RUN, 0) };
    if result == 0 { Ok(()) } else { Err(kvm_ioctls::Error::last().errno()) }
}

/// For a vCPU that was never made.
pub fn no_such_vcpu(index: u32, count: u32) -> Error {
    unsupported(format!("vcpu {index} of a machine with {count}"))
}
