//! KVM's paravirtual clock (`Documentation/virt/kvm/x86/msr.rst`, `arch/x86/include/asm/pvclock-abi.h`).
//!
//! The guest names a place in its memory by MSR; there it finds the TSC's scale and the time at one TSC value
//! and computes the rest itself. Our clock is the host's TSC times a constant, so the page is written when it is
//! asked for, when the machine goes on after a rest, and when the guest writes a TSC, never else.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use arch::x86::msr;
use devices::Clock;
use engine::MsrResult;
use memory::GuestRam;
use memory::vm_memory::{Bytes, GuestAddress};

use crate::clock::MachineClock;
use crate::tsc::VcpuTscs;

const ENABLED: u64 = 1;
/// `PVCLOCK_TSC_STABLE_BIT`: all vCPUs agree, no need to compare.
const FLAG_TSC_STABLE: u8 = 1 << 0;
/// `PVCLOCK_GUEST_STOPPED`: the guest was at rest, its watchdogs should look away once.
const FLAG_GUEST_STOPPED: u8 = 1 << 1;

/// The clock MSRs of all vCPUs.
#[derive(Debug)]
pub struct KvmClock {
    wall_clock: AtomicU64,
    system_time: Box<[AtomicU64]>,
    /// One writer at a time, or two could leave a page half one's and half the other's.
    writer: Mutex<()>,
}

/// The clock MSRs, saved.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct KvmClockState {
    wall_clock: u64,
    system_time: Vec<u64>,
}

/// What the clock is computed from, and where it goes.
#[derive(Clone, Copy)]
pub struct Time<'a> {
    /// Guest memory.
    pub ram: &'a GuestRam,
    /// Machine time.
    pub clock: &'a MachineClock,
    /// The TSCs it is counted in.
    pub tscs: &'a VcpuTscs,
}

impl KvmClock {
    /// For `cpus` vCPUs.
    pub fn new(cpus: u32) -> Self {
        let system_time = (0..cpus).map(|_| AtomicU64::new(0)).collect();
        Self { wall_clock: AtomicU64::new(0), system_time, writer: Mutex::new(()) }
    }

    /// All MSRs zero, as after power-up.
    pub fn reset(&self) {
        self.wall_clock.store(0, Ordering::SeqCst);
        self.system_time.iter().for_each(|m| m.store(0, Ordering::SeqCst));
    }

    /// The MSRs, at rest.
    pub fn save(&self) -> KvmClockState {
        let Self { wall_clock, system_time, writer: _ } = self;
        KvmClockState {
            wall_clock: wall_clock.load(Ordering::SeqCst),
            system_time: system_time.iter().map(|m| m.load(Ordering::SeqCst)).collect(),
        }
    }

    /// Takes over saved MSRs. Nothing is written to memory before [`Self::after_rest`].
    ///
    /// # Errors
    /// They are of another number of vCPUs, or no guest could have written them.
    pub fn restore(&self, saved: &KvmClockState) -> Result<(), &'static str> {
        let KvmClockState { wall_clock, system_time } = saved;
        if system_time.len() != self.system_time.len() {
            return Err("another number of vcpus");
        }
        if wall_clock & 3 != 0 || system_time.iter().any(|value| value & 2 != 0) {
            return Err("a misaligned place");
        }
        self.wall_clock.store(*wall_clock, Ordering::SeqCst);
        for (to, from) in self.system_time.iter().zip(system_time) {
            to.store(*from, Ordering::SeqCst);
        }
        Ok(())
    }

    /// RDMSR; `None` if `index` is not ours.
    pub fn read(&self, vcpu: u32, index: u32) -> Option<MsrResult> {
        match index {
            msr::KVM_WALL_CLOCK | msr::KVM_WALL_CLOCK_NEW => {
                Some(MsrResult::Done(self.wall_clock.load(Ordering::SeqCst)))
            }
            msr::KVM_SYSTEM_TIME | msr::KVM_SYSTEM_TIME_NEW => Some(
                self.system_time
                    .get(vcpu as usize)
                    .map_or(MsrResult::Fault, |m| MsrResult::Done(m.load(Ordering::SeqCst))),
            ),
            _ => None,
        }
    }

    /// WRMSR; `None` if `index` is not ours. A place outside of RAM is remembered and never written, as KVM does;
    /// one that is not aligned to 4 bytes is refused, because the version could not be written in one go.
    pub fn write(&self, vcpu: u32, index: u32, value: u64, time: Time<'_>) -> Option<MsrResult> {
        match index {
            msr::KVM_WALL_CLOCK | msr::KVM_WALL_CLOCK_NEW => {
                if value & 3 != 0 {
                    return Some(MsrResult::Fault);
                }
                self.wall_clock.store(value, Ordering::SeqCst);
                write_wall_clock(time.ram, value, time.clock);
            }
            msr::KVM_SYSTEM_TIME | msr::KVM_SYSTEM_TIME_NEW => {
                let Some(slot) = self.system_time.get(vcpu as usize).filter(|_| value & 2 == 0) else {
                    return Some(MsrResult::Fault);
                };
                slot.store(value, Ordering::SeqCst);
                self.update(vcpu, time, 0);
            }
            _ => return None,
        }
        Some(MsrResult::Done(value))
    }

    /// Writes every vCPU's page anew after a rest. The machine only, while its vCPUs are stopped.
    pub fn after_rest(&self, time: Time<'_>) {
        self.update_all(time, FLAG_GUEST_STOPPED);
    }

    /// A guest wrote a TSC: its own page changes, and whether all agree in everyone's. Any thread.
    pub fn tsc_changed(&self, time: Time<'_>) {
        self.update_all(time, 0);
    }

    fn update_all(&self, time: Time<'_>, flags: u8) {
        for vcpu in 0..self.system_time.len() {
            self.update(vcpu as u32, time, flags);
        }
    }

    fn update(&self, vcpu: u32, time: Time<'_>, flags: u8) {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(value) = self.system_time.get(vcpu as usize).map(|m| m.load(Ordering::SeqCst)) else {
            return;
        };
        if value & ENABLED == 0 {
            return;
        }
        publish(time.ram, value & !ENABLED, &time_info(vcpu, time, flags));
    }
}

/// `pvclock_vcpu_time_info` after its version: what the clock showed at one TSC value. The value is the clock's
/// origin on every vCPU, so all of them compute the same.
fn time_info(vcpu: u32, time: Time<'_>, flags: u8) -> [u8; 28] {
    let mut bytes = [0; 28];
    let scale = time.clock.scale();
    let origin = time.clock.origin().wrapping_add(time.tscs.offset(vcpu));
    bytes[4..12].copy_from_slice(&origin.to_le_bytes()); // tsc_timestamp
    bytes[12..20].copy_from_slice(&0u64.to_le_bytes()); // system_time
    bytes[20..24].copy_from_slice(&scale.multiplier.to_le_bytes());
    bytes[24] = scale.shift as u8;
    bytes[25] = flags | if time.tscs.agree() { FLAG_TSC_STABLE } else { 0 };
    bytes
}

/// `pvclock_wall_clock`: the wall-clock time at machine time zero.
fn write_wall_clock(ram: &GuestRam, gpa: u64, clock: &MachineClock) {
    let boot = clock.wall_clock().saturating_sub(clock.now());
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&((boot / 1_000_000_000) as u32).to_le_bytes());
    bytes[4..].copy_from_slice(&((boot % 1_000_000_000) as u32).to_le_bytes());
    publish(ram, gpa, &bytes);
}

/// Writes `body` behind the version at `gpa`; the version is odd while the body is not whole.
fn publish(ram: &GuestRam, gpa: u64, body: &[u8]) {
    let address = GuestAddress(gpa);
    let Ok(version) = ram.backend().load::<u32>(address, Ordering::Acquire) else { return };
    let odd = version.wrapping_add(1) | 1;
    let whole = ram.backend().store(odd, address, Ordering::SeqCst).is_ok()
        && gpa.checked_add(4).is_some_and(|at| ram.write(at, body).is_ok());
    if whole {
        // The store also orders the body before the even version.
        let _ = ram.backend().store(odd.wrapping_add(1), address, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(ram: &GuestRam, gpa: u64) -> (u32, u64, u64, u32, i8, u8) {
        let mut b = [0; 32];
        ram.read(gpa, &mut b).unwrap();
        let u32_at = |at: usize| u32::from_le_bytes(b[at..at + 4].try_into().unwrap());
        let u64_at = |at: usize| u64::from_le_bytes(b[at..at + 8].try_into().unwrap());
        (u32_at(0), u64_at(8), u64_at(16), u32_at(24), b[28] as i8, b[29])
    }

    #[test]
    fn the_guest_computes_the_machines_own_time() {
        let ram = GuestRam::new(&[(0, 0x4000)]).unwrap();
        let (clock, tscs) = (MachineClock::new(2_100_000), VcpuTscs::new(2_100_000, 2));
        let time = Time { ram: &ram, clock: &clock, tscs: &tscs };
        let kvm = KvmClock::new(2);
        clock.run();
        assert!(kvm.write(1, msr::KVM_SYSTEM_TIME_NEW, 0x2001, time).is_some());
        let (version, timestamp, system, multiplier, shift, flags) = page(&ram, 0x2000);
        assert_eq!((version & 1, flags), (0, FLAG_TSC_STABLE));
        let tsc = timestamp + 123_456_789_012;
        let delta = if shift >= 0 { (tsc - timestamp) << shift } else { (tsc - timestamp) >> -shift };
        let guest = system + ((u128::from(delta) * u128::from(multiplier)) >> 32) as u64;
        assert_eq!(guest, clock.at_tsc(tsc));
    }

    #[test]
    fn a_written_tsc_moves_that_vcpus_page_only_and_ends_the_agreement() {
        let ram = GuestRam::new(&[(0, 0x4000)]).unwrap();
        let (clock, tscs) = (MachineClock::new(1_000_000), VcpuTscs::new(1_000_000, 2));
        let time = Time { ram: &ram, clock: &clock, tscs: &tscs };
        let kvm = KvmClock::new(2);
        for vcpu in 0..2 {
            kvm.write(vcpu, msr::KVM_SYSTEM_TIME_NEW, u64::from(vcpu + 1) << 12 | 1, time);
        }
        tscs.set_offset(1, 0u64.wrapping_sub(clock.origin()));
        kvm.tsc_changed(time);
        let (first, second) = (page(&ram, 0x1000), page(&ram, 0x2000));
        assert_eq!((first.1, first.5), (clock.origin(), 0));
        assert_eq!((second.1, second.5), (0, 0));
        tscs.reset();
        kvm.tsc_changed(time);
        assert_eq!(page(&ram, 0x2000).5, FLAG_TSC_STABLE);
    }

    #[test]
    fn each_rewrite_advances_the_version_by_two() {
        let ram = GuestRam::new(&[(0, 0x4000)]).unwrap();
        let (clock, tscs) = (MachineClock::new(1_000_000), VcpuTscs::new(1_000_000, 1));
        let time = Time { ram: &ram, clock: &clock, tscs: &tscs };
        let kvm = KvmClock::new(1);
        kvm.write(0, msr::KVM_SYSTEM_TIME_NEW, 0x1001, time);
        let before = page(&ram, 0x1000).0;
        kvm.after_rest(time);
        let after = page(&ram, 0x1000);
        assert_eq!(after.0, before + 2);
        assert_eq!(after.5, FLAG_TSC_STABLE | FLAG_GUEST_STOPPED);
    }

    #[test]
    fn a_place_outside_of_ram_is_left_alone_and_a_misaligned_one_faults() {
        let ram = GuestRam::new(&[(0, 0x1000)]).unwrap();
        let (clock, tscs) = (MachineClock::new(1_000_000), VcpuTscs::new(1_000_000, 1));
        let time = Time { ram: &ram, clock: &clock, tscs: &tscs };
        let kvm = KvmClock::new(1);
        for value in [0xff1, 0x1001, u64::MAX - 2] {
            let done = kvm.write(0, msr::KVM_SYSTEM_TIME_NEW, value, time);
            assert_eq!(done, Some(MsrResult::Done(value)), "{value:#x}");
        }
        assert_eq!(kvm.write(0, msr::KVM_SYSTEM_TIME, 0x103, time), Some(MsrResult::Fault));
        assert_eq!(kvm.write(0, msr::KVM_WALL_CLOCK, 0x102, time), Some(MsrResult::Fault));
        assert_eq!(kvm.write(9, msr::KVM_SYSTEM_TIME, 0x101, time), Some(MsrResult::Fault));
        assert_eq!(kvm.write(0, 0x4b56_4d02, 1, time), None);
    }

    #[test]
    fn the_wall_clock_is_that_of_machine_time_zero() {
        let ram = GuestRam::new(&[(0, 0x1000)]).unwrap();
        let (clock, tscs) = (MachineClock::new(1_000_000), VcpuTscs::new(1_000_000, 1));
        let time = Time { ram: &ram, clock: &clock, tscs: &tscs };
        KvmClock::new(1).write(0, msr::KVM_WALL_CLOCK_NEW, 0x100, time);
        let mut b = [0; 12];
        ram.read(0x100, &mut b).unwrap();
        let seconds = u64::from(u32::from_le_bytes(b[4..8].try_into().unwrap()));
        assert!(seconds.abs_diff(clock.wall_clock() / 1_000_000_000) <= 2);
    }
}
