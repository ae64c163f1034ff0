//! Whether this host's KVM runs guests on the processor or only emulates them.
//!
//! Some hosts have a `/dev/kvm` that runs guests of a special make at speed and interprets every other, instruction by
//! instruction. A loop of known length in a scratch machine tells: a processor takes nanoseconds where an emulator takes
//! microseconds. The machine has one page of 32-bit code without paging, as every kernel starts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arch::x86::{CpuState, Cr0, Segment, SegmentRegister};
use engine::Error;
use memory::GuestRam;

use crate::host::Host;
use crate::run_page::{PageExit, RunPage};
use crate::state;
use crate::vm::map_ram;
use crate::{NAME, refused, unsupported};

/// `mov $N, %ecx; 1: dec %ecx; jnz 1b; hlt`: the count stands at [`COUNT`].
const CODE: [u8; 10] = [0xb9, 0, 0, 0, 0, 0x49, 0x75, 0xfd, 0xf4, 0xf4];
const COUNT: usize = 1;
/// Where the code is.
const START: u64 = 0x1000;

/// Iterations, of two instructions each. An emulator does the short loop in about a millisecond; a processor in so little
/// that what KVM_RUN itself costs is most of it, so it gets a longer one.
const SHORT: u32 = 2_000;
const LONG: u32 = 400_000;
/// Tries; the best counts, as other processes only ever make it slower.
const TRIES: u32 = 3;
/// Instructions a second that no emulator comes near and every processor exceeds by far.
const REAL: f64 = 40e6;
/// More than any try takes where KVM works at all.
const PATIENCE: Duration = Duration::from_secs(1);

/// How fast guests run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// On the processor.
    Real {
        /// Instructions a second.
        rate: f64,
    },
    /// In an emulator in the host's kernel.
    Emulated {
        /// Instructions a second.
        rate: f64,
    },
}

/// Runs the loop.
pub(crate) fn measure(host: &Host) -> Result<Pace, Error> {
    let scratch = Scratch::create(host)?;
    let short = scratch.best(SHORT)?;
    Ok(classify(short, || scratch.best(LONG).unwrap_or(short)))
}

fn classify(short: f64, long: impl FnOnce() -> f64) -> Pace {
    if short < REAL / 4.0 {
        return Pace::Emulated { rate: short };
    }
    let rate = long();
    if rate < REAL { Pace::Emulated { rate } } else { Pace::Real { rate } }
}

/// A machine of one page and one vCPU, without interrupt controllers: HLT is an exit.
struct Scratch {
    // Before the memory, which its guest uses.
    vcpu: kvm_ioctls::VcpuFd,
    page: RunPage,
    ram: Arc<GuestRam>,
}

impl Scratch {
    fn create(host: &Host) -> Result<Self, Error> {
        let failed =
            |source: std::io::Error| Error::Host { engine: NAME, act: "map a vcpu".to_owned(), source };
        let no_memory = |error: memory::Error| failed(std::io::Error::other(error));
        let vm = host.kvm().create_vm().map_err(refused("create a virtual machine"))?;
        let ram = Arc::new(GuestRam::new(&[(0, 0x4000)]).map_err(no_memory)?);
        map_ram(&vm, &ram)?;
        let vcpu = vm.create_vcpu(0).map_err(refused("create a vcpu"))?;
        let page = RunPage::map(&vcpu, vm.run_size()).map_err(failed)?;
        ram.write(START, &CODE).map_err(no_memory)?;
        Ok(Self { vcpu, page, ram })
    }

    /// Instructions a second in a loop of `iterations`, in the best of some tries.
    fn best(&self, iterations: u32) -> Result<f64, Error> {
        let instructions = 2.0 * f64::from(iterations);
        let mut best = Duration::MAX;
        for _ in 0..TRIES {
            best = best.min(self.time(iterations)?);
            // An emulator is not asked twice.
            if instructions / best.as_secs_f64() < REAL / 40.0 {
                break;
            }
        }
        Ok(instructions / best.as_secs_f64().max(1e-9))
    }

    fn time(&self, iterations: u32) -> Result<Duration, Error> {
        let written = self.ram.write(START + COUNT as u64, &iterations.to_le_bytes());
        written.expect("the scratch machine has this page");
        state::push_registers(&self.vcpu, &flat())?;
        let started = Instant::now();
        loop {
            let result = crate::vcpu::kvm_run(&self.vcpu);
            match (result, self.page.exit()) {
                (Ok(()), PageExit::Halt) => return Ok(started.elapsed()),
                (Err(libc::EINTR), _) if started.elapsed() < PATIENCE => {}
                (Err(error), _) => return Err(refused("run a vcpu")(kvm_ioctls::Error::new(error))),
                (Ok(()), exit) => {
                    return Err(unsupported(format!("a loop of two instructions ends in {exit:?}")));
                }
            }
        }
    }
}

/// 32-bit protected mode without paging, at [`START`].
fn flat() -> CpuState {
    let mut state = CpuState::power_up();
    let attributes = Segment::PRESENT | Segment::CODE_OR_DATA | Segment::BIG | Segment::GRANULAR;
    let data = Segment::new(0x10, 0, u32::MAX, attributes | Segment::WRITABLE | Segment::ACCESSED);
    let code = attributes | Segment::CODE | Segment::WRITABLE | Segment::ACCESSED;
    state.segments = [data; 6];
    *state.segment_mut(SegmentRegister::Cs) = Segment::new(0x8, 0, u32::MAX, code);
    state.cr0 = (Cr0::PE | Cr0::ET | Cr0::NE).bits();
    state.rip = START;
    state
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_emulator_is_known_by_the_short_loop_and_a_processor_by_the_long_one() {
        let never = || panic!("the long loop would take an emulator too long");
        assert_eq!(classify(5e6, never), Pace::Emulated { rate: 5e6 });
        assert_eq!(classify(60e6, || 2e9), Pace::Real { rate: 2e9 });
        assert_eq!(classify(12e6, || 15e6), Pace::Emulated { rate: 15e6 });
    }

    #[test]
    fn this_host_has_one_pace_or_the_other() {
        let Ok(host) = Host::open() else { return println!("skipped: /dev/kvm does not open here") };
        let (Pace::Real { rate } | Pace::Emulated { rate }) = measure(&host).unwrap();
        assert!(rate > 1e3 && rate < 1e12, "{rate} instructions a second");
    }
}
