//! `strata boot`: disks, and each way a machine ends.

use std::io::Read;
use std::process::Stdio;

use rustix::process::Signal;

use crate::support::{elf, file, finish, guest, start, strata};

/// x86-64 in the header of an ELF file.
const X86_64: u16 = 62;

#[test]
fn a_disk_is_written_and_read_back() {
    let Some(kernel) = guest::kernel() else { return };
    let folder = tempfile::tempdir().unwrap();
    let mut contents = vec![0; 8 << 20];
    contents[..11].copy_from_slice(b"from-host\n\0");
    let disk = file(folder.path(), "disk.img", &contents);
    let fixed = file(folder.path(), "fixed.img", &contents);
    let script = "head -n 1 /dev/vda\n\
        yes pattern | head -c 4194304 | dd of=/dev/vda bs=64k seek=16 conv=fsync 2>/dev/null && echo written\n\
        echo 3 > /proc/sys/vm/drop_caches\n\
        dd if=/dev/vda bs=64k skip=16 count=64 2>/dev/null | md5sum\n\
        yes pattern | head -c 4194304 | md5sum\n\
        cat /sys/block/vdb/ro 2>/dev/null || { mkdir /sys; mount -t sysfs sys /sys; cat /sys/block/vdb/ro; }\n\
        dd if=/dev/zero of=/dev/vdb bs=512 count=1 conv=fsync 2>/dev/null || echo refused\n\
        poweroff -f\n";
    let initrd = guest::initrd(folder.path(), &kernel, script);
    let mut command = guest::boot(&kernel, Some(&initrd));
    command.arg("--disk").arg(&disk).arg("--disk").arg(format!("{},ro", fixed.display()));
    let ended = finish(command);
    assert_eq!(ended.code(), 0, "{ended:?}");
    let lines: Vec<&str> = ended.stdout.lines().map(str::trim_end).collect();
    let at = lines.iter().position(|line| *line == "from-host").unwrap_or_else(|| panic!("{ended:?}"));
    assert_eq!(lines[at + 1], "written", "{ended:?}");
    assert_eq!(lines[at + 2], lines[at + 3], "{ended:?}");
    assert_eq!(lines[at + 4..at + 6], ["1", "refused"], "{ended:?}");
    let now = std::fs::read(&disk).unwrap();
    let pattern: Vec<u8> = b"pattern\n".iter().copied().cycle().take(4 << 20).collect();
    assert!(now[1 << 20..5 << 20] == pattern[..] && now[5 << 20..] == contents[5 << 20..]);
    assert!(std::fs::read(&fixed).unwrap() == contents);
}

#[test]
fn a_guest_that_panics_is_code_4_and_its_own_words() {
    let Some(kernel) = guest::kernel() else { return };
    finish(guest::boot(&kernel, None)).expect_failure(4, &["boot: the guest's kernel panicked: VFS", "root"]);
}

/// Nobody has to know what Linux does by default, which is to stand still.
#[test]
fn a_panic_ends_the_machine_unless_the_user_says_otherwise() {
    let Some(kernel) = guest::kernel() else { return };
    let mut command = strata();
    command.args(["boot", "--append", "quiet", "--kernel"]).arg(kernel.kernel_path());
    finish(command).expect_failure(4, &["the guest's kernel panicked"]);
}

#[test]
fn a_guest_that_resets_is_code_3() {
    let Some(kernel) = guest::kernel() else { return };
    let folder = tempfile::tempdir().unwrap();
    let initrd = guest::initrd(folder.path(), &kernel, "reboot -f\n");
    finish(guest::boot(&kernel, Some(&initrd))).expect_failure(3, &["reset"]);
}

#[test]
fn a_triple_fault_is_code_5() {
    let folder = tempfile::tempdir().unwrap();
    // lidt of six zero bytes that follow, then int3: no handler, no double fault handler.
    let code = [0x0f, 0x01, 0x1d, 0x08, 0x00, 0x10, 0x00, 0xcc, 0, 0, 0, 0, 0, 0];
    let kernel = file(folder.path(), "triple", &elf::pvh(&code, X86_64));
    let mut command = strata();
    command.args(["boot", "--kernel"]).arg(kernel);
    finish(command).expect_failure(5, &["triple fault"]);
}

#[test]
fn a_guest_that_halts_for_ever_is_ended_by_a_signal() {
    let folder = tempfile::tempdir().unwrap();
    // cli; hlt; and again.
    let kernel = file(folder.path(), "halt", &elf::pvh(&[0xfa, 0xf4, 0xeb, 0xfc], X86_64));
    let mut command = strata();
    command.args(["boot", "--kernel"]).arg(kernel);
    let running = start(command);
    std::thread::sleep(std::time::Duration::from_millis(500));
    running.signal(Signal::TERM);
    assert_eq!(running.finish().code(), 128 + 15);
}

#[test]
fn output_without_end_to_a_reader_that_waits_takes_no_memory() {
    let folder = tempfile::tempdir().unwrap();
    // mov dx, 0x3f8; mov al, 'x'; out dx, al; jmp back to the out.
    let code = [0x66, 0xba, 0xf8, 0x03, 0xb0, b'x', 0xee, 0xeb, 0xfd];
    let kernel = file(folder.path(), "chatter", &elf::pvh(&code, X86_64));
    let mut command = strata();
    command.args(["boot", "--memory", "32M", "--kernel"]).arg(kernel);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut some = vec![0; 1 << 20];
    stdout.read_exact(&mut some).unwrap();
    assert!(some.iter().all(|byte| *byte == b'x'));
    // Nobody reads now; the guest goes on.
    std::thread::sleep(std::time::Duration::from_secs(1));
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak_kib: u64 = peak.split_whitespace().next().unwrap().parse().unwrap();
    assert!(peak_kib < 96 << 10, "{peak_kib} KiB");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(128 + 15));
}
