//! The host's time-stamp counter: reading it and knowing its frequency.
//!
//! The guest's TSC is the host's plus an offset that engines keep in `CpuState`. On hosts that are not x86 the
//! counter is virtual: nanoseconds of the host's monotonic clock, so 1 GHz.
// UNSAFETY: reads the host's time-stamp counter.

use std::sync::OnceLock;

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
    *KHZ.get_or_init(|| stated_khz().unwrap_or_else(calibrate))
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

/// Counts for 10 ms. Each end is the tightest of several readings, so that being scheduled away does not count.
fn calibrate() -> u32 {
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
    std::thread::sleep(std::time::Duration::from_millis(10));
    let (_, end_tsc, end_ns) = reading();
    let ticks = u128::from(end_tsc.wrapping_sub(start_tsc));
    let khz = ticks * 1_000_000 / u128::from((end_ns - start_ns).max(1));
    u64::try_from(khz).ok().and_then(plausible).unwrap_or(1_000_000)
}

fn nanoseconds(clock: ClockId) -> u64 {
    let now = clock_gettime(clock);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_frequency_is_plausible_and_stays_the_same() {
        assert!(plausible(host_tsc_khz().into()).is_some());
        assert_eq!(host_tsc_khz(), host_tsc_khz());
    }

    #[test]
    fn the_counter_does_not_run_backwards_on_a_thread() {
        let first = host_tsc();
        assert!(host_tsc() >= first);
    }
}
