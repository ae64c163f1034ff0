//! The time-stamp counter: the host's, its frequency, and how far each vCPU's is from it.
//!
//! A vCPU's TSC is the host's plus an offset that engines keep in `CpuState` and tell of when the guest changes
//! it, because the clocks of the board count in it too. On hosts that are not x86 the
//! counter is virtual: nanoseconds of the host's monotonic clock, so 1 GHz.
// UNSAFETY: reads the host's time-stamp counter.

use std::io::Read;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use devices::chipset::lapic;
use rustix::time::{ClockId, clock_gettime};

/// The counter now.
#[cfg(target_arch = "x86_64")]
pub fn host_tsc() -> u64 {
    #[expect(unsafe_code, reason = "the one host register a machine reads: its clock is the guest's TSC")]
    // SAFETY: RDTSC has no precondition but CR4.TSD being clear, which Linux sees to unless a process asks
    // for the opposite by prctl(PR_SET_TSC); we don't.
    unsafe {
        core::arch::x86_64::_rdtsc()
    }
}

/// The counter now.
#[cfg(not(target_arch = "x86_64"))]
pub fn host_tsc() -> u64 {
    nanoseconds(ClockId::Monotonic)
}

/// Frequency of [`host_tsc`] in kHz, found out once a process.
pub fn host_tsc_khz() -> u32 {
    static KHZ: OnceLock<u32> = OnceLock::new();
    *KHZ.get_or_init(|| stated_khz().or_else(linux_khz).unwrap_or_else(|| calibrate(10)))
}

/// What CPUID says: KVM's timing leaf when we are a guest ourselves, else the crystal's ratio (SDM vol. 3,
/// "Determining the Processor Base Frequency"). Leaf 0x16 is only the marketing frequency.
#[cfg(target_arch = "x86_64")]
fn stated_khz() -> Option<u32> {
    use core::arch::x86_64::__cpuid;
    let basic = __cpuid(0);
    if basic.eax >= 1 && __cpuid(1).ecx & (1 << 31) != 0 {
        let hypervisor = __cpuid(0x4000_0000);
        let is_kvm = [hypervisor.ebx, hypervisor.ecx, hypervisor.edx] == [0x4b4d_564b, 0x564b_4d56, 0x4d];
        if is_kvm && hypervisor.eax >= 0x4000_0010 {
            return plausible(u64::from(__cpuid(0x4000_0010).eax));
        }
    }
    if basic.eax >= 0x15 {
        let leaf = __cpuid(0x15);
        if leaf.eax != 0 {
            return plausible(u64::from(leaf.ecx) * u64::from(leaf.ebx) / u64::from(leaf.eax) / 1000);
        }
    }
    None
}

#[cfg(not(target_arch = "x86_64"))]
fn stated_khz() -> Option<u32> {
    Some(1_000_000)
}

/// Between 100 MHz and 20 GHz.
fn plausible(khz: u64) -> Option<u32> {
    (100_000..20_000_000).contains(&khz).then_some(khz as u32)
}

/// What Linux found out when it booted, to a millionth: its BogoMIPS are the TSC's frequency in another unit, where it
/// trusts the TSC. A short count of our own says whether this is such a case.
fn linux_khz() -> Option<u32> {
    let mut text = String::new();
    // One processor's part of it is enough.
    std::fs::File::open("/proc/cpuinfo").ok()?.take(8 << 10).read_to_string(&mut text).ok()?;
    let khz = bogomips_khz(&text)?;
    (khz.abs_diff(calibrate(1)) < khz / 200).then_some(khz)
}

fn bogomips_khz(cpuinfo: &str) -> Option<u32> {
    let line = cpuinfo.lines().find(|line| line.starts_with("bogomips"))?;
    let mips: f64 = line.split_once(':')?.1.trim().parse().ok()?;
    plausible((mips * 500.0) as u64)
}

/// Counts for some milliseconds. Each end is the tightest of several readings, so that being scheduled away does not count.
fn calibrate(ms: u64) -> u32 {
    let reading = || {
        (0..8)
            .map(|_| {
                let before = host_tsc();
                let ns = nanoseconds(ClockId::MonotonicRaw);
                let width = host_tsc().wrapping_sub(before);
                (width, before.wrapping_add(width / 2), ns)
            })
            .min()
            .expect("eight readings")
    };
    let (_, start_tsc, start_ns) = reading();
    std::thread::sleep(std::time::Duration::from_millis(ms));
    let (_, end_tsc, end_ns) = reading();
    let ticks = u128::from(end_tsc.wrapping_sub(start_tsc));
    let khz = ticks * 1_000_000 / u128::from((end_ns - start_ns).max(1));
    u64::try_from(khz).ok().and_then(plausible).unwrap_or(1_000_000)
}

fn nanoseconds(clock: ClockId) -> u64 {
    let now = clock_gettime(clock);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// The TSC of every vCPU, as the local APIC's deadline timer and kvm-clock see it.
#[derive(Debug)]
pub struct VcpuTscs {
    khz: u32,
    offsets: Box<[AtomicU64]>,
}

impl VcpuTscs {
    /// For `cpus` vCPUs that have the host's TSC, of `khz`.
    pub fn new(khz: u32, cpus: u32) -> Self {
        Self { khz, offsets: (0..cpus).map(|_| AtomicU64::new(0)).collect() }
    }

    /// What the TSC of `vcpu` is ahead of the host's.
    pub fn offset(&self, vcpu: u32) -> u64 {
        self.offsets.get(vcpu as usize).map_or(0, |offset| offset.load(Ordering::SeqCst))
    }

    /// The TSC of `vcpu` is `offset` ahead of the host's from now on.
    pub fn set_offset(&self, vcpu: u32, offset: u64) {
        if let Some(slot) = self.offsets.get(vcpu as usize) {
            slot.store(offset, Ordering::SeqCst);
        }
    }

    /// All have the host's, as after power-up.
    pub fn reset(&self) {
        self.offsets.iter().for_each(|offset| offset.store(0, Ordering::SeqCst));
    }

    /// Whether all vCPUs read the same.
    pub fn agree(&self) -> bool {
        self.offsets.iter().all(|offset| offset.load(Ordering::SeqCst) == self.offset(0))
    }
}

impl lapic::GuestTsc for VcpuTscs {
    fn tsc(&self, vcpu: u32) -> u64 {
        host_tsc().wrapping_add(self.offset(vcpu))
    }

    fn khz(&self) -> u32 {
        self.khz
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vcpus_that_wrote_their_tsc_read_another() {
        let tscs = VcpuTscs::new(1_000_000, 2);
        tscs.set_offset(1, 1 << 60);
        assert!(!tscs.agree());
        assert!(lapic::GuestTsc::tsc(&tscs, 1) >= (1 << 60) && tscs.offset(0) == 0 && tscs.offset(9) == 0);
        tscs.set_offset(0, 1 << 60);
        assert!(tscs.agree());
        tscs.reset();
        assert_eq!((tscs.offset(0), tscs.offset(1)), (0, 0));
    }

    #[test]
    fn the_frequency_is_plausible_and_stays_the_same() {
        assert!(plausible(host_tsc_khz().into()).is_some());
        assert_eq!(host_tsc_khz(), host_tsc_khz());
    }

    #[test]
    fn bogomips_are_read_as_the_frequency_they_are() {
        assert_eq!(bogomips_khz("model name : x\nbogomips\t: 5192.28\n"), Some(2_596_140));
        for text in
            ["", "bogomips\t: ", "bogomips\t: -1", "bogomips : nan", "bogomips : 1e99", "bogomips : 2.0"]
        {
            assert_eq!(bogomips_khz(text), None, "{text}");
        }
    }

    #[test]
    fn the_counter_does_not_run_backwards_on_a_thread() {
        let first = host_tsc();
        assert!(host_tsc() >= first);
    }
}
