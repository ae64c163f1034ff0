//! How each contender is started: the same kernel, the same initial RAM disk, the same memory.

use std::fs;
use std::process::Command;

use super::Options;
use super::prepare::Guest;

/// Memory the guests get.
pub const MEMORY_MIB: u64 = 512;

/// A guest's errand: what it runs, and on how many vCPUs.
#[derive(Clone, Copy)]
pub struct Errand<'a> {
    pub rows: &'a [&'a str],
    pub vcpus: u32,
    /// That Strata counts instructions, which costs a translator time.
    pub count: bool,
}

fn append(options: &Options, errand: Errand<'_>) -> String {
    let (scale, text, rows) = (options.scale, options.text, errand.rows.join(","));
    format!("console=ttyS0 panic=-1 reboot=k quiet bench.rows={rows} bench.scale={scale} bench.text={text}")
}

/// `strata boot`
pub fn strata(engine: &str, guest: &Guest, options: &Options, errand: Errand<'_>) -> Command {
    let mut command = Command::new(&options.strata);
    command.args(["boot", "--engine", engine, "--memory", &format!("{MEMORY_MIB}M")]);
    if errand.count {
        command.arg("-v");
    }
    command.args(["--cpus", &errand.vcpus.to_string(), "--kernel"]);
    command.arg(&guest.kernel).arg("--initrd").arg(&guest.initrd).arg("--append");
    command.arg(append(options, errand));
    command
}

/// `strata run`, of a command that says one word and ends; it boots, as QEMU does.
pub fn strata_run(engine: &str, options: &Options) -> Command {
    let mut command = Command::new(&options.strata);
    command.arg("--root").arg(&options.store).args(["run", "--start", "cold", "--engine", engine]);
    command.args(["--memory", &format!("{MEMORY_MIB}M"), &options.image, "--", "echo", "up"]);
    command
}

/// QEMU with the flags that were found to be the fastest.
///
/// Linux on this machine finds out the frequency of the TSC by counting a timer's ticks, and gives up if the
/// host takes the processor away meanwhile. Then it has no clock it trusts before the first timer interrupt,
/// the microvm has no timer that would give one, and the guest waits for ever: on a busy host, every other
/// time. So it is told the frequency, which under TCG is the host's.
pub fn qemu(guest: &Guest, options: &Options, errand: Errand<'_>) -> Command {
    let mut command = qemu_machine(errand.vcpus);
    command.arg("-kernel").arg(&guest.kernel).arg("-initrd").arg(&guest.initrd);
    command.arg("-append").arg(qemu_append(&append(options, errand)));
    command
}

/// The machine alone, without kernel and devices.
pub fn qemu_machine(vcpus: u32) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-accel", "tcg,thread=multi,tb-size=256", "-cpu", "max", "-M", "microvm"]);
    command.args(["-m", &MEMORY_MIB.to_string(), "-smp", &vcpus.to_string()]);
    command.args(["-nodefaults", "-nic", "none", "-display", "none", "-serial", "stdio", "-no-reboot"]);
    command
}

/// The command line with the word more.
pub fn qemu_append(append: &str) -> String {
    let khz = tsc_khz(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default());
    // At the head: what follows `--` is for PID 1.
    khz.map_or_else(|| append.to_owned(), |khz| format!("tsc_early_khz={khz} {append}"))
}

/// Linux's BogoMIPS are the TSC's frequency in another unit, where there is a TSC.
fn tsc_khz(cpuinfo: &str) -> Option<u64> {
    let line = cpuinfo.lines().find(|line| line.starts_with("bogomips"))?;
    let mips: f64 = line.split_once(':')?.1.trim().parse().ok()?;
    (mips > 1.0).then_some((mips * 500.0) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_frequency_of_the_tsc_is_in_the_bogomips() {
        assert_eq!(tsc_khz("cpu MHz\t\t: 3100.1\nbogomips\t: 5192.28\n"), Some(2_596_140));
        assert_eq!(tsc_khz("model name : x"), None);
    }
}
